//! Support for plugins that the runtime launches.
//!
//! A runtime starts the programs in its plugin directory, /opt/nri/plugins by default. A program
//! gets a connected socket and three environment variables, but no arguments and no standard
//! streams. Source: containerd/nri `pkg/adaptation/plugin.go`.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus};

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::process::{PidfdFlags, getppid, pidfd_open};

use crate::identity::Identity;

/// Environment variable that contains the number of the connected socket's file descriptor.
const SOCKET: &str = "NRI_PLUGIN_SOCKET";
/// Environment variable that contains the name of the plugin.
const NAME: &str = "NRI_PLUGIN_NAME";
/// Environment variable that contains the index of the plugin.
const INDEX: &str = "NRI_PLUGIN_IDX";
/// Environment variable that contains the number of a pidfd of the runtime's process, or -1. NRI
/// does not define this variable: [`Launched::detach`] and [`Successor::exec`] set it.
const RUNTIME: &str = "NRI_PLUGIN_RUNTIME_PIDFD";

/// The connection and identity that a runtime gives to a plugin that it launches.
#[derive(Debug)]
pub struct Launched {
    /// The connection that the runtime passed. `None` in a program that [`Successor::exec`] has
    /// started, because this program makes its own connection.
    pub(crate) connection: Option<OwnedFd>,
    pub(crate) identity: Identity,
    /// A pidfd of the runtime's process. `None` if the process cannot be watched. The pidfd becomes
    /// readable when the runtime ends.
    pub(crate) runtime: Option<OwnedFd>,
    detached: bool,
}

/// The data that a launched plugin needs to continue as another program. A runtime never launches a
/// plugin a second time, so the plugin itself must start the other program.
#[derive(Debug)]
pub struct Successor {
    identity: Identity,
    runtime: Option<OwnedFd>,
}

impl Successor {
    /// Replaces the program of this process with `command`. Returns only after a failure.
    ///
    /// In the new program, [`Launched::from_env`] reports that a runtime launched the plugin. The
    /// new program connects to the runtime's socket like an external plugin, but still ends when
    /// the runtime ends.
    ///
    /// The current program does not continue, so call this function last.
    pub fn exec(self, command: &mut Command) -> io::Error {
        // -1 tells the new program that it cannot watch the runtime, as in `detach`.
        let mut pidfd = -1;
        if let Some(runtime) = &self.runtime {
            if let Err(error) = fcntl_setfd(runtime, FdFlags::empty()) {
                return error.into();
            }
            pidfd = runtime.as_raw_fd();
        }
        let identity = [(NAME, self.identity.name()), (INDEX, self.identity.index())];
        command.env_remove(SOCKET).envs(identity).env(RUNTIME, pidfd.to_string()).exec()
    }
}

/// An error in the environment of a launched plugin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The value of a variable is not the number of an open file descriptor.
    #[error("{variable} is {value:?}, expected the number of an open file descriptor")]
    Descriptor {
        /// The variable.
        variable: &'static str,
        /// The value of the variable.
        value: OsString,
    },
}

impl Launched {
    /// Reads the environment that a runtime gives to a plugin. Returns `None` if no runtime
    /// launched this process.
    ///
    /// In a program that [`Successor::exec`] has started, the returned value has no connection.
    ///
    /// # Errors
    ///
    /// Fails if `NRI_PLUGIN_SOCKET` is set, but is not the number of an open file descriptor above
    /// 2.
    ///
    /// # Safety
    ///
    /// The function takes ownership of the file descriptors that the environment names, so no other
    /// code of the process may own them. Call the function once, at the start of `main`. Do not set
    /// `NRI_PLUGIN_SOCKET` or `NRI_PLUGIN_RUNTIME_PIDFD` in this process.
    #[allow(unsafe_code)]
    pub unsafe fn from_env() -> Result<Option<Self>, LaunchError> {
        let connection = match std::env::var_os(SOCKET) {
            // SAFETY: the caller guarantees that no other code owns the descriptor.
            Some(socket) => Some(unsafe { adopt(SOCKET, socket) }?),
            None if std::env::var_os(RUNTIME).is_some() => None,
            None => return Ok(None),
        };
        let text = |variable| std::env::var(variable).unwrap_or_default();
        let identity = Identity::given_by_runtime(text(INDEX), text(NAME));
        let (runtime, detached) = match std::env::var_os(RUNTIME) {
            // SAFETY: the caller guarantees that no other code owns the descriptor.
            Some(pidfd) => (unsafe { adopt(RUNTIME, pidfd) }.ok(), true),
            None => (watch_parent(), false),
        };
        Ok(Some(Self { connection, identity, runtime, detached }))
    }

    /// Returns the name and index that the runtime gave to the plugin.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns whether the plugin has the connection over which the runtime sends the
    /// configuration. A program that [`Successor::exec`] has started does not have this connection.
    pub fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Returns the data with which the plugin can continue as another program later.
    ///
    /// # Errors
    ///
    /// Fails if a file descriptor cannot be duplicated.
    pub fn successor(&self) -> io::Result<Successor> {
        let runtime = self.runtime.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok(Successor { identity: self.identity.clone(), runtime })
    }

    /// Continues the plugin in a second process, which survives when the runtime drops the plugin.
    ///
    /// Since NRI 0.7, a runtime that drops a plugin also kills the launched process. The runtime
    /// never launches the plugin again. One late reply is enough for the runtime to drop the
    /// plugin. Therefore the plugin runs in a second process. The runtime knows only the first
    /// process, which waits for the second process.
    ///
    /// Returns `Ok` in the second process, or if no second process can be started. Returns `Err` in
    /// the first process once the second process has ended. The error is the exit status of the
    /// second process. The first process should exit with the same status.
    ///
    /// Call this function before the process starts any thread.
    pub fn detach(self) -> Result<Self, ExitStatus> {
        if self.detached {
            return Ok(self);
        }
        let spawn = || -> io::Result<_> {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(std::env::args_os().skip(1));
            if let Some(connection) = &self.connection {
                fcntl_setfd(connection, FdFlags::empty())?;
                command.env(SOCKET, connection.as_raw_fd().to_string());
            }
            // -1 is not a valid descriptor, but the presence of the variable marks the second
            // process.
            let mut pidfd = -1;
            if let Some(runtime) = &self.runtime {
                fcntl_setfd(runtime, FdFlags::empty())?;
                pidfd = runtime.as_raw_fd();
            }
            command.env(RUNTIME, pidfd.to_string()).spawn()
        };
        let Ok(mut child) = spawn() else {
            // Continue in the first process, which the runtime may kill. Without an answer from the
            // plugin, a runtime with NRI 0.6.1 would not start.
            return Ok(self);
        };
        // If this process kept the connection open, the runtime would not notice the end of the
        // second process.
        drop(self.connection);
        // `wait` fails only if the process has already waited for this child.
        Err(child.wait().unwrap_or_default())
    }
}

fn watch_parent() -> Option<OwnedFd> {
    let parent = getppid()?;
    let pidfd = pidfd_open(parent, PidfdFlags::empty()).ok()?;
    // If the runtime ended before `pidfd_open`, the pidfd may belong to another process with the
    // same id.
    (getppid() == Some(parent)).then_some(pidfd)
}

/// Takes ownership of the open file descriptor whose number is the value of an environment
/// variable.
///
/// # Safety
///
/// No other code of the process may own the descriptor.
#[allow(unsafe_code)]
unsafe fn adopt(variable: &'static str, value: OsString) -> Result<OwnedFd, LaunchError> {
    let number = value.to_str().and_then(|text| text.parse::<RawFd>().ok()).filter(|fd| *fd > 2);
    let Some(number) = number else {
        return Err(LaunchError::Descriptor { variable, value });
    };
    // SAFETY: the caller guarantees that no other code owns the descriptor. If the descriptor is
    // not open, the checks below fail, and `forget` keeps this function from closing it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    if fcntl_getfl(&fd).is_ok_and(|flags| !flags.contains(OFlags::PATH)) && fcntl_getfd(&fd).is_ok()
    {
        // Child processes of the plugin must not keep the connection open.
        let _ = fcntl_setfd(&fd, FdFlags::CLOEXEC);
        return Ok(fd);
    }
    std::mem::forget(fd);
    Err(LaunchError::Descriptor { variable, value })
}

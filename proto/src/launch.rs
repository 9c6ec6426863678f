//! Plugins that the runtime launches itself.
//!
//! A runtime starts what it finds in its plugin directory (/opt/nri/plugins by default) with a connected socket and three
//! environment variables, and with nothing else: no arguments, no standard streams.
//! Source: containerd/nri `pkg/adaptation/plugin.go`.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus};

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::process::{PidfdFlags, getppid, pidfd_open};

use crate::stub::Identity;

/// Number of the file descriptor of the connected socket.
const SOCKET: &str = "NRI_PLUGIN_SOCKET";
/// Name of the plugin.
const NAME: &str = "NRI_PLUGIN_NAME";
/// Index of the plugin.
const INDEX: &str = "NRI_PLUGIN_IDX";
/// Number of a file descriptor that stands for the runtime's process. Ours: [`Launched::detach`] hands it on.
const RUNTIME: &str = "NRI_PLUGIN_RUNTIME_PIDFD";

/// What a runtime gives to a plugin that it launches.
#[derive(Debug)]
pub struct Launched {
    /// `None` in a [`Successor`], which makes one of its own.
    pub(crate) connection: Option<OwnedFd>,
    pub(crate) identity: Identity,
    /// The process of the runtime, if it can be watched. Readable when it has ended.
    pub(crate) runtime: Option<OwnedFd>,
    detached: bool,
}

/// What a plugin that a runtime launched needs to go on as another program: no runtime launches it a second time.
#[derive(Debug)]
pub struct Successor {
    identity: Identity,
    runtime: Option<OwnedFd>,
}

impl Successor {
    /// Replaces this process by `command`, which finds by [`Launched::from_env`] that it was launched. It connects to the runtime's
    /// socket as what was not, and ends with the runtime all the same. Returns only when that fails.
    ///
    /// Nothing of this process goes on: call it last.
    pub fn exec(self, command: &mut Command) -> io::Error {
        // As in `detach`.
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

/// What is wrong with the environment of a plugin that a runtime launched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The variable that names the socket is not the number of an open file descriptor.
    #[error("{variable} is {value:?}, expected the number of an open file descriptor")]
    Descriptor {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: OsString,
    },
}

impl Launched {
    /// What the runtime that launched this process gave to it, or `None` when no runtime did.
    ///
    /// Call it once, before anything else opens files: it takes ownership of the descriptor in `NRI_PLUGIN_SOCKET`. A
    /// [`Successor`] has none.
    ///
    /// # Errors
    ///
    /// When `NRI_PLUGIN_SOCKET` is set but what belongs to it is not in order.
    pub fn from_env() -> Result<Option<Self>, LaunchError> {
        let connection = match std::env::var_os(SOCKET) {
            Some(socket) => Some(adopt(SOCKET, socket)?),
            None if std::env::var_os(RUNTIME).is_some() => None,
            None => return Ok(None),
        };
        let text = |variable| std::env::var(variable).unwrap_or_default();
        let identity = Identity::given_by_runtime(text(INDEX), text(NAME));
        let (runtime, detached) = match std::env::var_os(RUNTIME) {
            Some(pidfd) => (adopt(RUNTIME, pidfd).ok(), true),
            None => (watch_parent(), false),
        };
        Ok(Some(Self { connection, identity, runtime, detached }))
    }

    /// The name and index that the runtime gave to the plugin.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether the runtime's connection is there, over which it hands over the configuration; not so in a [`Successor`].
    pub fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// What is needed to go on as another program later.
    ///
    /// # Errors
    ///
    /// When a file descriptor cannot be duplicated.
    pub fn successor(&self) -> io::Result<Successor> {
        let runtime = self.runtime.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok(Successor { identity: self.identity.clone(), runtime })
    }

    /// Goes on in a process of its own, so that the plugin outlives being dropped.
    ///
    /// From NRI 0.7 on, a runtime kills the process that it launched as soon as it drops the plugin, which a single late
    /// reply is enough for, and never launches it again. So the plugin runs in a second process, and the one that the
    /// runtime knows of only waits for it: the result is `Err` with the second one's status in the first process, to exit
    /// with, and `Ok` in the second, or when there can be none.
    ///
    /// Call it before any thread is started.
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
            // -1 is not taken for a descriptor, but tells that this is the second process.
            let mut pidfd = -1;
            if let Some(runtime) = &self.runtime {
                fcntl_setfd(runtime, FdFlags::empty())?;
                pidfd = runtime.as_raw_fd();
            }
            command.env(RUNTIME, pidfd.to_string()).spawn()
        };
        let Ok(mut child) = spawn() else {
            // Better a plugin that can be killed than none: without an answer NRI 0.6.1 would not start.
            return Ok(self);
        };
        // Else the runtime would not notice when the second process ends.
        drop(self.connection);
        // Waiting for a child that was not waited for before does not fail.
        Err(child.wait().unwrap_or_default())
    }
}

fn watch_parent() -> Option<OwnedFd> {
    let parent = getppid()?;
    let pidfd = pidfd_open(parent, PidfdFlags::empty()).ok()?;
    // Had the runtime ended before pidfd_open, the descriptor might stand for another process.
    (getppid() == Some(parent)).then_some(pidfd)
}

/// Takes over the open descriptor whose number an environment variable gives.
fn adopt(variable: &'static str, value: OsString) -> Result<OwnedFd, LaunchError> {
    let number = value.to_str().and_then(|text| text.parse::<RawFd>().ok()).filter(|fd| *fd > 2);
    let Some(number) = number else {
        return Err(LaunchError::Descriptor { variable, value });
    };
    // SAFETY: the environment says that this descriptor was opened for this process. Nothing else in it uses that number
    // if it is open; if it is not, the checks below fail and it is not closed.
    #[allow(unsafe_code)]
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    if fcntl_getfl(&fd).is_ok_and(|flags| !flags.contains(OFlags::PATH)) && fcntl_getfd(&fd).is_ok()
    {
        // Children of the plugin must not keep the connection open.
        let _ = fcntl_setfd(&fd, FdFlags::CLOEXEC);
        return Ok(fd);
    }
    std::mem::forget(fd);
    Err(LaunchError::Descriptor { variable, value })
}

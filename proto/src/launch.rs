//! Plugins that the runtime launches itself.
//!
//! A runtime starts what it finds in its plugin directory (/opt/nri/plugins by default) with a connected socket and three
//! environment variables, and with nothing else: no arguments, no standard streams.
//! Source: containerd/nri `pkg/adaptation/plugin.go`.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Command, ExitStatus};

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::process::{PidfdFlags, getppid, pidfd_open};

use crate::stub::{Identity, InvalidIdentity};

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
    pub(crate) connection: OwnedFd,
    pub(crate) identity: Identity,
    /// The process of the runtime. Readable when it has ended.
    pub(crate) runtime: OwnedFd,
    detached: bool,
}

/// What is wrong with the environment of a plugin that a runtime launched.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The variable that names the socket is not the number of an open file descriptor.
    #[error("{variable} is {value:?}, expected the number of an open file descriptor")]
    Descriptor {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: OsString,
    },
    /// Name or index are missing or malformed.
    #[error("{NAME} and {INDEX}: {0}")]
    Identity(#[from] InvalidIdentity),
    /// The runtime's process cannot be watched.
    #[error("cannot watch the runtime, process {pid}: {error}")]
    Runtime {
        /// The process id of the parent.
        pid: i32,
        /// What the operating system says.
        error: io::Error,
    },
    /// The second process cannot be started.
    #[error("cannot start a process of its own for the plugin: {0}")]
    Detach(io::Error),
}

impl Launched {
    /// What the runtime that launched this process gave to it, or `None` when no runtime did.
    ///
    /// Call it once, before anything else opens files: it takes ownership of the descriptor in `NRI_PLUGIN_SOCKET`.
    ///
    /// # Errors
    ///
    /// When `NRI_PLUGIN_SOCKET` is set but what belongs to it is not in order.
    pub fn from_env() -> Result<Option<Self>, LaunchError> {
        let Some(socket) = std::env::var_os(SOCKET) else {
            return Ok(None);
        };
        let connection = adopt(SOCKET, socket)?;
        let text = |variable| std::env::var(variable).unwrap_or_default();
        let identity = Identity::new(text(INDEX), text(NAME))?;
        let (runtime, detached) = match std::env::var_os(RUNTIME) {
            Some(pidfd) => (adopt(RUNTIME, pidfd)?, true),
            None => (watch_parent()?, false),
        };
        Ok(Some(Self { connection, identity, runtime, detached }))
    }

    /// The name and index that the runtime gave to the plugin.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Goes on in a process of its own, so that the plugin outlives being dropped.
    ///
    /// From NRI 0.7 on, a runtime kills the process that it launched as soon as it drops the plugin, which a single late
    /// reply is enough for, and never launches it again. So the plugin runs in a second process, and the one that the
    /// runtime knows of only waits for it: returns `Err` with the second one's status in the first process, to exit with, and `Ok` in
    /// the second.
    ///
    /// Call it before any thread is started.
    ///
    /// # Errors
    ///
    /// The inner error when the second process cannot be started.
    pub fn detach(self) -> Result<Result<Self, ExitStatus>, LaunchError> {
        if self.detached {
            return Ok(Ok(self));
        }
        let inherit = || -> io::Result<_> {
            for fd in [&self.connection, &self.runtime] {
                fcntl_setfd(fd, FdFlags::empty())?;
            }
            Command::new(std::env::current_exe()?)
                .args(std::env::args_os().skip(1))
                .env(SOCKET, self.connection.as_raw_fd().to_string())
                .env(RUNTIME, self.runtime.as_raw_fd().to_string())
                .spawn()
        };
        let mut child = inherit().map_err(LaunchError::Detach)?;
        // Else the runtime would not notice when the second process ends.
        drop(self.connection);
        Ok(Err(child.wait().map_err(LaunchError::Detach)?))
    }
}

fn watch_parent() -> Result<OwnedFd, LaunchError> {
    let failed = |pid, error| LaunchError::Runtime { pid, error };
    let parent = getppid().ok_or_else(|| failed(0, io::ErrorKind::NotFound.into()))?;
    let pid = parent.as_raw_nonzero().get();
    let pidfd = pidfd_open(parent, PidfdFlags::empty()).map_err(|error| failed(pid, error.into()))?;
    // Had the runtime ended before pidfd_open, the descriptor might stand for another process.
    if getppid() != Some(parent) {
        return Err(failed(pid, io::ErrorKind::NotFound.into()));
    }
    Ok(pidfd)
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
    if fcntl_getfl(&fd).is_ok_and(|flags| !flags.contains(OFlags::PATH)) && fcntl_getfd(&fd).is_ok() {
        // Children of the plugin must not keep the connection open.
        let _ = fcntl_setfd(&fd, FdFlags::CLOEXEC);
        return Ok(fd);
    }
    std::mem::forget(fd);
    Err(LaunchError::Descriptor { variable, value })
}

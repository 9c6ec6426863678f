//! The lock that keeps two instances of a plugin apart.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use tokio::sync::oneshot;
use tracing::warn;

use crate::error::Error;
use crate::identity::Identity;

/// The lock that prevents a second running instance of a plugin. The kernel releases the lock when
/// the process that holds it ends.
#[derive(Debug)]
pub(crate) struct InstanceLock {
    path: PathBuf,
    file: File,
    held: bool,
}

impl InstanceLock {
    /// Takes the lock beside the runtime's socket if no other instance holds it.
    pub(crate) fn open(socket: &Path, identity: &Identity) -> Result<Self, Error> {
        let directory = socket.parent().unwrap_or(Path::new("/"));
        let path = directory.join(format!("{}.lock", identity.name()));
        let failed = |error: io::Error| Error::Lock { path: path.clone(), error };
        // The runtime creates the directory with the same mode.
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| failed(error.into()))?;
        let file = File::from(file);
        let held = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => true,
            Err(rustix::io::Errno::WOULDBLOCK) => false,
            Err(error) => return Err(failed(error.into())),
        };
        Ok(Self { path, file, held })
    }

    /// Waits until this instance holds the lock.
    pub(crate) async fn wait(mut self) -> Result<Self, Error> {
        if self.held {
            return Ok(self);
        }
        warn!(
            lock = %self.path.display(),
            "another instance of this plugin is running, waiting until it ends"
        );
        let failed = |error| Error::Lock { path: self.path.clone(), error };
        let file = self.file.try_clone().map_err(failed)?;
        let (done, locked) = oneshot::channel();
        // Use a separate thread: tokio waits for its blocking threads at shutdown, and this call
        // may never return.
        let wait = move || {
            let result = flock(file.as_fd(), FlockOperation::LockExclusive);
            let _ = done.send(result);
        };
        std::thread::Builder::new().name("lock".to_owned()).spawn(wait).map_err(failed)?;
        match pin!(locked).await {
            Ok(Ok(())) => self.held = true,
            Ok(Err(error)) => return Err(failed(error.into())),
            Err(_) => return Err(failed(io::ErrorKind::Interrupted.into())),
        }
        Ok(self)
    }
}

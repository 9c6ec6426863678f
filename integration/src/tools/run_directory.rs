//! Directories for the files of a running machine or server. The directories are removed when the
//! processes end.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::tools::cache;

/// The directories with the files of one machine or server.
///
/// Most files are in the cache. The sockets are in another directory with a short path, because the
/// path of a socket is limited to 108 bytes.
pub(crate) struct RunDir {
    pub(crate) path: PathBuf,
    pub(crate) sockets: TempDir,
    /// A file lock that this process and QEMU hold until both have ended; see `sweep`.
    pub(crate) lock: File,
    pub(crate) kept: bool,
}

impl RunDir {
    /// Creates new directories and removes the directories of ended processes.
    pub(crate) fn create() -> Result<RunDir> {
        let parent = cache::directory()?.join("run");
        fs::create_dir_all(&parent).with_context(|| format!("creating {}", parent.display()))?;
        sweep(&parent)?;
        let sockets = tempfile::Builder::new()
            .prefix("node-")
            .tempdir()
            .context("creating a directory for sockets")?;
        // Rename the directory to its final name only after this process holds the directory's
        // lock. Without this order, another process could remove the directory as abandoned.
        let work = tempfile::Builder::new().prefix(".new-").tempdir_in(&parent);
        let work = work.with_context(|| format!("creating a directory in {}", parent.display()))?;
        let lock = File::create_new(work.path().join("lock")).context("creating a run lock")?;
        lock.lock().context("locking a run directory")?;
        symlink(sockets.path(), work.path().join("sockets"))
            .context("linking a socket directory")?;
        let name =
            work.path().file_name().unwrap_or_default().to_string_lossy().replace(".new-", "node-");
        let path = parent.join(name);
        fs::rename(work.keep(), &path).with_context(|| format!("creating {}", path.display()))?;
        Ok(RunDir { path, sockets, lock, kept: false })
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if !self.kept {
            // Ignore an error, because a later start removes the directory.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes the directories that ended processes left behind.
///
/// The lock of an abandoned directory is free.
fn sweep(parent: &Path) -> Result<()> {
    for entry in fs::read_dir(parent).with_context(|| format!("listing {}", parent.display()))? {
        let path = entry.with_context(|| format!("listing {}", parent.display()))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if let Ok(lock) = File::open(path.join("lock"))
            && !hidden
            && lock.try_lock().is_ok()
        {
            // Ignore errors, because another process may be removing the same directory.
            if let Ok(sockets) = fs::read_link(path.join("sockets")) {
                let _ = fs::remove_dir_all(sockets);
            }
            let _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}

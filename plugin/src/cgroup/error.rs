//! Errors that occur when the plugin accesses cgroups.

use std::io;
use std::path::PathBuf;

use plimsoll_core::outcome::Outcome;
use plimsoll_core::pod::CgroupPath;

/// Error while opening, reading or writing a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The cgroup was removed.
    #[error("cgroup {0} is gone")]
    Gone(CgroupPath),
    /// The cgroup does not have this file. Either the memory controller is not enabled for the
    /// cgroup, or the kernel is too old for the file.
    #[error(
        "cgroup {path} has no {file}; enable the memory controller in its parent's \
         cgroup.subtree_control"
    )]
    Unsupported {
        /// Path of the cgroup.
        path: CgroupPath,
        /// Name of the file.
        file: &'static str,
    },
    /// The file has unexpected content.
    #[error("cgroup {path}: {file}: {error}")]
    Malformed {
        /// Path of the cgroup.
        path: CgroupPath,
        /// Name of the file.
        file: &'static str,
        /// Description of the problem.
        error: String,
    },
    /// An I/O error that does not mean that the cgroup or the file is missing.
    #[error("cgroup {path}: cannot {operation}: {error}")]
    Io {
        /// Path of the cgroup.
        path: CgroupPath,
        /// The attempted operation.
        operation: String,
        /// Error from the operating system.
        error: io::Error,
    },
}

impl From<&CgroupError> for Outcome {
    /// Returns the outcome that corresponds to this error.
    fn from(error: &CgroupError) -> Self {
        match error {
            CgroupError::Gone(_) => Self::Gone,
            CgroupError::Unsupported { .. } => Self::Unsupported,
            CgroupError::Malformed { .. } | CgroupError::Io { .. } => Self::Failed,
        }
    }
}

/// Error: the plugin cannot use the root of the cgroup hierarchy.
#[derive(Debug, thiserror::Error)]
#[error("cgroup root {}: {error}; expected a cgroup v2 hierarchy", path.display())]
pub struct RootError {
    pub(super) path: PathBuf,
    pub(super) error: io::Error,
}

impl RootError {
    /// Returns true if no cgroup v2 hierarchy exists. Returns false if a hierarchy exists but the
    /// plugin cannot open it.
    pub fn is_absent(&self) -> bool {
        self.error.kind() == io::ErrorKind::NotFound
    }
}

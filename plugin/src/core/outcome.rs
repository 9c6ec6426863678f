//! What became of an attempt to bring a container or a cgroup to its values.

use std::fmt;

use crate::cgroup::CgroupError;

/// The outcome. `Display` gives one lowercase word, fit for logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Values were changed, and read back as they should be.
    Applied,
    /// They were as they should be.
    Unchanged,
    /// What they should be is not known.
    Unresolved,
    /// The container or cgroup is gone.
    Gone,
    /// The kernel or the cgroup lacks the file.
    Unsupported,
    /// Somebody else keeps changing them.
    Contended,
    /// Somebody refused to change them.
    Rejected,
    /// They are changed later.
    Deferred,
    /// They would be changed, or the change be refused, if the plugin did not only observe.
    Planned,
    /// They could not be read or written.
    Failed,
}

impl Outcome {
    /// The outcome of an attempt that ended with this error.
    pub const fn of(error: &CgroupError) -> Self {
        match error {
            CgroupError::Gone(_) => Self::Gone,
            CgroupError::Unsupported { .. } => Self::Unsupported,
            CgroupError::Malformed { .. } | CgroupError::Io { .. } => Self::Failed,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Unresolved => "unresolved",
            Self::Gone => "gone",
            Self::Unsupported => "unsupported",
            Self::Contended => "contended",
            Self::Rejected => "rejected",
            Self::Planned => "planned",
            Self::Deferred => "deferred",
            Self::Failed => "failed",
        })
    }
}

//! Results of attempts to set the values of a container or a cgroup.

use std::fmt;

/// Result of an attempt to set values. `Display` writes one lowercase word for logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The plugin or the runtime changed values, and a later read found the desired values.
    Applied,
    /// The desired values were already in force.
    Unchanged,
    /// The plugin does not know the desired values.
    Unresolved,
    /// The container or cgroup no longer exists.
    Gone,
    /// The kernel does not support the file, or the cgroup does not have it.
    Unsupported,
    /// Another program keeps changing the values.
    Contended,
    /// The plugin or the runtime refused the change.
    Rejected,
    /// The plugin postponed the change.
    Deferred,
    /// The plugin only planned the change or the refusal, because it is in observe mode.
    Planned,
    /// The plugin could not read or write a value, or an in-place resize did not take effect.
    Failed,
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

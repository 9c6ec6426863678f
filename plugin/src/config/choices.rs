//! Types of the fields that accept one of several values.

use std::fmt;

use plimsoll_core::units::Bytes;
use serde::{Deserialize, Serialize};

/// Mode of the plugin: whether the plugin sets values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The plugin sets values, and refuses limit decreases that would cause an OOM kill.
    #[default]
    Enforce,
    /// The plugin only reports what it would do. The plugin writes, raises and adjusts no value,
    /// and refuses no update.
    Observe,
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 2] = [Self::Enforce, Self::Observe];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        })
    }
}

/// Reaction to a new memory limit below a container's usage, if immediate reclaim cannot lower the
/// usage enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shrink {
    /// The resize fails with an error.
    #[default]
    Reject,
    /// The plugin applies the other parts of the update. The plugin sets the limit once the
    /// container uses less.
    Defer,
    /// The plugin does not intervene. The runtime sets the limit, and the kernel may OOM-kill
    /// processes.
    Allow,
}

impl Shrink {
    pub(super) const ALL: [Self; 3] = [Self::Reject, Self::Defer, Self::Allow];
}

impl fmt::Display for Shrink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reject => "reject",
            Self::Defer => "defer",
            Self::Allow => "allow",
        })
    }
}

/// Source of node allocatable memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeAllocatable {
    /// The plugin reads the amount from the node: [`crate::kubelet::node::NodeMemory::discover`].
    #[default]
    Auto,
    /// A fixed amount, more than 0.
    Fixed(Bytes),
}

/// Lowest severity that the plugin logs. The plugin also logs all severities before this one in the
/// list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Failures.
    Error,
    /// Conditions that may need attention.
    Warn,
    /// Changes.
    #[default]
    Info,
    /// Every decision.
    Debug,
    /// Every message that the plugin sends or receives.
    Trace,
}

impl LogLevel {
    pub(super) const ALL: [Self; 5] =
        [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// Returns the name of this severity in the configuration. The `tracing` crate uses the same
    /// name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

//! Cgroup files for which the plugin decides values.

use std::fmt;

use super::bytes::Bytes;
use super::limit::Limit;

/// File with the CPU limit of a cgroup.
pub const CPU_MAX: &str = "cpu.max";

/// File of the memory controller that contains a protection or a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Knob {
    /// `memory.min`: the amount of memory that the kernel never reclaims.
    Min,
    /// `memory.low`: the amount of memory that the kernel reclaims last.
    Low,
    /// `memory.high`: the usage above which the kernel throttles processes.
    High,
    /// `memory.max`: the memory limit.
    Max,
}

impl Knob {
    /// All files.
    pub const ALL: [Self; 4] = [Self::Min, Self::Low, Self::High, Self::Max];

    /// Returns the value of the file in a new cgroup.
    pub const fn default_value(self) -> Limit {
        match self {
            Self::Min | Self::Low => Limit::Bytes(Bytes::ZERO),
            Self::High | Self::Max => Limit::Max,
        }
    }

    /// Returns the name of the file, which is also the key in the `unified` map of OCI.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Min => "memory.min",
            Self::Low => "memory.low",
            Self::High => "memory.high",
            Self::Max => "memory.max",
        }
    }
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file_name())
    }
}

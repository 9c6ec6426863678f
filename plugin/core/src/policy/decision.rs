//! Desired values of a container's memory files, each with its reason.

use super::protection::Protection;
use super::reason::Reason;
use crate::units::{Bytes, Knob, Limit};

/// Files that the policy sets for containers.
pub const KNOBS: [Knob; 3] = [Knob::Min, Knob::Low, Knob::High];

/// Desired values of a container's memory files.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desired {
    /// `memory.min`: the kernel never reclaims memory below this amount. The plugin does not round
    /// the value; the kernel rounds it down to pages.
    pub min: Decision,
    /// `memory.low`: the kernel reclaims memory below this amount only when no unprotected memory
    /// is left. The plugin does not round the value.
    pub low: Decision,
    /// `memory.high`: above this amount, the kernel throttles the container and reclaims its
    /// memory. The value is a multiple of the page size.
    pub high: Decision,
    /// Protection that the container needs from the cgroups above it. The headroom lowers
    /// `memory.min`, but not this amount. `None` means unknown.
    pub claim: Option<Protection>,
}

impl Desired {
    /// Returns the desired value of `memory.min`. `None` means that the file keeps its current
    /// value.
    pub fn min_value(&self) -> Option<Limit> {
        value(self.min.setting, Limit::Bytes(Bytes::ZERO))
    }

    /// Returns the desired value of `memory.low`. `None` means that the file keeps its current
    /// value.
    pub fn low_value(&self) -> Option<Limit> {
        value(self.low.setting, Limit::Bytes(Bytes::ZERO))
    }

    /// Returns the desired value of `memory.high`. `None` means that the file keeps its current
    /// value.
    pub fn high_value(&self) -> Option<Limit> {
        value(self.high.setting, Limit::Max)
    }
}

/// Action for one cgroup v2 file, with its reason.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// The action.
    pub setting: Setting,
    /// The reason. `Display` writes the reason as a sentence with the amounts.
    pub reason: Reason,
}

impl Decision {
    pub(super) const fn set(bytes: Bytes, reason: Reason) -> Self {
        Self { setting: Setting::Set(Limit::Bytes(bytes)), reason }
    }

    pub(super) const fn default(reason: Reason) -> Self {
        Self { setting: Setting::Default, reason }
    }

    pub(super) const fn leave_alone(reason: Reason) -> Self {
        Self { setting: Setting::LeaveAlone, reason }
    }
}

/// Action for one cgroup v2 file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Set the file to this value.
    Set(Limit),
    /// Use the kernel's default: 0 for `memory.min` and `memory.low`, `max` for `memory.high`. The
    /// plugin sends no value for a new container, and resets a file whose value differs from the
    /// default.
    Default,
    /// Keep the current value, because the plugin does not know the desired value.
    LeaveAlone,
}

pub(super) fn value(setting: Setting, default: Limit) -> Option<Limit> {
    match setting {
        Setting::Set(value) => Some(value),
        Setting::Default => Some(default),
        Setting::LeaveAlone => None,
    }
}

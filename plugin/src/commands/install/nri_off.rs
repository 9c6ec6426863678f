//! The reason why NRI is off in the runtime.

use std::fmt;

use crate::host::runtime::detect::{NriOff, OffCause};
use crate::host::runtime::nri_settings::NriSwitch;

/// The reason why NRI is off. `Display` names the runtime and the reason.
#[derive(Clone, Debug)]
pub(super) enum WhyOff {
    /// The reason is the version or the configuration of the runtime.
    Runtime(NriOff),
    /// No process listens at the NRI socket, and no file switches NRI on.
    Unserved {
        /// Name and version of the runtime.
        runtime: String,
    },
}

impl WhyOff {
    /// Returns whether this version of the runtime has no NRI.
    pub(super) fn is_unsupported(&self) -> bool {
        matches!(self, Self::Runtime(NriOff { cause: OffCause::Unsupported(_), .. }))
    }

    /// Returns whether containerd's `disabled_plugins` names NRI. Another file cannot override such
    /// an entry.
    pub(super) fn is_disabled_plugin(&self) -> bool {
        let Self::Runtime(NriOff { cause: OffCause::Switch(switch), .. }) = self else {
            return false;
        };
        matches!(switch, NriSwitch::DisabledPlugins { .. })
    }
}

impl fmt::Display for WhyOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runtime(off) => off.fmt(f),
            Self::Unserved { runtime } => {
                write!(
                    f,
                    "off in {runtime}: no process listens at NRI's socket, and no file \
                    switches NRI on"
                )
            }
        }
    }
}

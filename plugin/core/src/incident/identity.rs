//! Identity of an incident, by which the plugin recognizes that an incident repeats.

use super::data::Incident;
use super::kind::IncidentKind;
use crate::units::{CPU_MAX, Knob, Limit};

/// Identity of an incident: its kind, its cgroup file and, if any, the limit that the plugin
/// refused or postponed. The identity does not depend on other amounts, such as the usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    kind: IncidentKind,
    requested: Option<Limit>,
    file: Option<&'static str>,
}

impl Identity {
    /// Returns the kind of the incident.
    pub const fn kind(self) -> IncidentKind {
        self.kind
    }
}

impl Incident {
    /// Returns the incident's identity, which does not depend on amounts such as the usage.
    pub const fn identity(&self) -> Identity {
        let requested = match self {
            Self::CutRejected(cut) | Self::CutDeferred(cut) | Self::CutGivenUp(cut) => {
                Some(cut.limit)
            }
            _ => None,
        };
        Identity { kind: self.kind(), requested, file: self.file() }
    }

    /// Returns the name of the cgroup file that the incident is about.
    pub const fn file(&self) -> Option<&'static str> {
        match self {
            Self::NotResized { knob, .. } | Self::PodRaised { knob, .. } => Some(knob),
            Self::Repaired { knob, .. }
            | Self::Contended { knob, .. }
            | Self::ContendedWithKubelet { knob, .. } => Some(knob.file_name()),
            Self::CpuContended { .. } => Some(CPU_MAX),
            Self::Released(_) | Self::PutBack(_) => Some(Knob::High.file_name()),
            Self::Killed { .. } | Self::BeyondNode { .. } | Self::Overcommitted { .. } => None,
            _ => Some(Knob::Max.file_name()),
        }
    }
}

//! Labels of the metrics.

use std::fmt::Write as _;

use plimsoll_core::outcome::Outcome;
use plimsoll_core::units::{CPU_MAX, Knob};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

/// Labels of an action that the plugin only planned in observe mode.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfKind {
    /// Kind of the incident.
    pub kind: String,
}

/// Labels of an attempt, such as a resize or an OOM rescue.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfOutcome {
    /// Outcome of the attempt.
    pub outcome: OutcomeLabel,
}

/// Labels of OOM kills.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfKill {
    /// Limit that caused the kill.
    pub by: By,
}

/// Limit that caused an OOM kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names are the label values")]
pub enum By {
    /// Limit of the container or of its pod.
    limit,
    /// Limit of a cgroup above the pod, or the node's memory.
    node,
}

/// Labels of a cgroup file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfLevel {
    /// Kind of the cgroup.
    pub level: Level,
    /// Name of the file.
    pub knob: File,
}

/// Kind of the cgroup that contains a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// Cgroup of a container.
    Container,
    /// Ancestor cgroup of containers, or a reserved cgroup outside kubepods.
    Ancestor,
}

impl EncodeLabelValue for Level {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(match self {
            Self::Container => "container",
            Self::Ancestor => "ancestor",
        })
    }
}

/// Name of a cgroup file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct File(&'static str);

impl From<Knob> for File {
    fn from(knob: Knob) -> Self {
        Self(knob.file_name())
    }
}

impl File {
    /// `cpu.max` of a pod.
    pub const CPU_MAX: Self = Self(CPU_MAX);
}

impl EncodeLabelValue for File {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.0)
    }
}

/// Outcome as the value of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OutcomeLabel(pub Outcome);

impl EncodeLabelValue for OutcomeLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        write!(encoder, "{}", self.0)
    }
}

/// Labels of NRI events.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfEvent {
    /// Name of the event in NRI.
    pub event: &'static str,
}

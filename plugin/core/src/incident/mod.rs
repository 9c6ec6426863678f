//! Incidents: everything that can happen and is worth reporting, as data.
//!
//! The code that detects an incident creates an [`Incident`]. The plugin's `report` folder chooses
//! where the incident appears: in the log, the metrics, the status and Kubernetes Events.

mod log;
mod message;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::log::Fields;
use crate::pod::{CgroupPath, PodUid, kubepods};
use crate::policy::resize::Usage;
use crate::units::{Bytes, CPU_MAX, CpuMax, Knob, Limit};

/// Pod, container or cgroup that an incident concerns.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// Namespace and name of the pod, as `namespace/name`.
    pub pod: Option<String>,
    /// UID of the pod.
    pub uid: Option<PodUid>,
    /// Name of the container.
    pub container: Option<String>,
    /// Path of the cgroup.
    pub cgroup: Option<CgroupPath>,
}

impl From<&CgroupPath> for Subject {
    fn from(cgroup: &CgroupPath) -> Self {
        Self { cgroup: Some(cgroup.clone()), ..Self::default() }
    }
}

/// A memory limit that is lower than the usage of a container, of a pod or of all pods.
#[derive(Clone, Copy, Debug)]
pub struct LowerLimit {
    /// Limit that was requested.
    pub limit: Limit,
    /// Limit in force.
    pub in_force: Limit,
    /// Usage of the container, of the pod or of all pods.
    pub usage: Usage,
}

/// An incident to report.
#[derive(Clone, Debug)]
pub enum Incident {
    /// The plugin refused a limit decrease that would OOM-kill.
    CutRejected(LowerLimit),
    /// The plugin deferred a limit decrease that would OOM-kill now.
    CutDeferred(LowerLimit),
    /// The plugin gave up a deferred limit that waited too long, or stopped acting meanwhile.
    CutGivenUp(LowerLimit),
    /// A deferred limit is in force.
    CutApplied {
        /// The limit that was deferred.
        desired: Bytes,
        /// The limit in force.
        observed: Limit,
    },
    /// The runtime reported an update as done, but the kernel has another value.
    NotResized {
        /// Name of the file.
        knob: &'static str,
        /// Value that the file should have.
        desired: String,
        /// Value that the file has.
        observed: String,
    },
    /// A pod's limit was lower than what its containers may use, and was raised.
    PodRaised {
        /// Name of the file.
        knob: &'static str,
        /// Value that the file has now.
        desired: String,
        /// Value that the file had before.
        observed: String,
    },
    /// The plugin repaired a file that another program had changed.
    Repaired {
        /// The file.
        knob: Knob,
        /// Value that the file should have.
        desired: Limit,
        /// Value that the plugin found.
        observed: Limit,
    },
    /// Another program keeps changing a file, so the plugin leaves the file alone.
    Contended {
        /// The file.
        knob: Knob,
        /// Value that the file should have.
        desired: Limit,
        /// Value that the file has.
        observed: Limit,
        /// Number of repairs.
        repairs: u32,
    },
    /// Another program keeps lowering the `cpu.max` of a pod, so the plugin leaves the file alone.
    CpuContended {
        /// Value that the file should have.
        desired: CpuMax,
        /// Value that the file has.
        observed: CpuMax,
        /// Number of times that the plugin raised the value.
        repairs: u32,
    },
    /// Like `Contended`, for a cgroup above the pods whose file the kubelet may also set.
    /// [`Incident::of_subject`] makes this variant from `Contended`.
    ContendedWithKubelet {
        /// The file.
        knob: Knob,
        /// Value that the file should have.
        desired: Limit,
        /// Value that the file has.
        observed: Limit,
        /// Number of repairs.
        repairs: u32,
    },
    /// The kernel OOM-killed processes of a container.
    Killed {
        /// Limit of the container.
        limit: Option<Limit>,
        /// True for a kill by the limit of the container or its pod. False for a kill by a limit
        /// above, or for a node without free memory.
        by_own_limit: bool,
        /// Number of kills within `window`.
        kills: usize,
        /// Time within which kills count.
        window: Duration,
    },
    /// The plugin raised the limit of a container that is OOM-killed repeatedly.
    Rescued {
        /// Limit that the user asked for.
        asked: Bytes,
        /// Limit before the raise.
        observed: Bytes,
        /// Limit after the raise.
        desired: Bytes,
        /// Number of kills within `window`.
        kills: usize,
        /// Time within which kills count.
        window: Duration,
    },
    /// A container is OOM-killed repeatedly, but its limit may not be raised further.
    AtCeiling {
        /// Limit of the container.
        observed: Bytes,
        /// Highest limit that the container may have.
        ceiling: Bytes,
        /// Node allocatable that no container has requested.
        free: Bytes,
        /// Number of kills within `window`.
        kills: usize,
        /// Time within which kills count.
        window: Duration,
    },
    /// A container's limit is above node allocatable.
    BeyondNode {
        /// Limit of the container.
        limit: Bytes,
        /// Node allocatable: memory for all pods together.
        allocatable: Bytes,
    },
    /// A container's limit is too many times its request.
    Overcommitted {
        /// Request of the container, or the upper bound if the request is not exact.
        request: Bytes,
        /// Limit of the container.
        limit: Bytes,
        /// Highest ratio of limit to request without a warning.
        most: f64,
    },
    /// The plugin set the limit of all pods together (`nodeGuard`).
    Guarded {
        /// Limit after the change.
        desired: Bytes,
        /// Limit before the change.
        observed: Limit,
    },
    /// All pods together use more than `nodeGuard` would leave them, so the limit waits.
    GuardWaits(LowerLimit),
    /// The plugin restored the limit that all pods together have without `nodeGuard`.
    Unguarded {
        /// Limit that was written.
        desired: Limit,
        /// Limit that was read back.
        observed: Limit,
    },
    /// A container was throttled at `memory.high`, so the plugin raised its `memory.high`.
    Released(Line),
    /// A container that was released has its original `memory.high` again.
    PutBack(Line),
}

/// An incident with its subject. Code that holds a lock returns occurrences, and its caller reports
/// them once the lock is released.
#[derive(Clone, Debug)]
pub struct Occurrence {
    /// Pod, container or cgroup that the incident concerns.
    pub subject: Subject,
    /// The incident.
    pub incident: Incident,
    /// Whether the action was only planned, because the plugin is in observe mode.
    pub is_planned: bool,
}

impl Occurrence {
    /// Creates an occurrence of an incident that has happened.
    pub fn new(subject: impl Into<Subject>, incident: Incident) -> Self {
        Self { subject: subject.into(), incident, is_planned: false }
    }

    /// Creates an occurrence of an action that observe mode leaves undone.
    pub fn planned(subject: impl Into<Subject>, incident: Incident) -> Self {
        Self { subject: subject.into(), incident, is_planned: true }
    }
}

/// Change of a container's `memory.high`.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// `memory.high` after the change.
    pub desired: Limit,
    /// `memory.high` before the change.
    pub observed: Limit,
    /// Usage of the container.
    pub usage: Bytes,
    /// Share of the last ten seconds that all of the container waited for memory, in percent.
    pub stalled: f64,
}

/// IncidentKind of an incident, as `plimsoll status` and the reason of Kubernetes Events show it. The names
/// are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is a `Incident` without its numbers")]
pub enum IncidentKind {
    CutRejected,
    CutDeferred,
    CutGivenUp,
    CutApplied,
    NotResized,
    PodRaised,
    Repaired,
    Contended,
    Killed,
    Rescued,
    AtCeiling,
    BeyondNode,
    Overcommitted,
    Guarded,
    GuardWaits,
    Unguarded,
    Released,
    PutBack,
}

/// Identity of an incident: kind, requested limit and file. Other numbers do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity(IncidentKind, Option<Limit>, Option<&'static str>);

impl Identity {
    /// Returns the kind of the incident.
    pub const fn kind(self) -> IncidentKind {
        self.0
    }
}

impl fmt::Display for IncidentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Incident {
    /// Returns the incident with what its subject adds. `Contended` above the pods becomes
    /// `ContendedWithKubelet`.
    pub fn of_subject(&self, subject: &Subject) -> Self {
        match (self, &subject.cgroup) {
            (
                &Self::Contended {
                    knob: knob @ (Knob::Min | Knob::Low | Knob::Max),
                    desired,
                    observed,
                    repairs,
                },
                Some(cgroup),
            ) if subject.container.is_none() && kubepods::is_above_pods(cgroup) => {
                Self::ContendedWithKubelet { knob, desired, observed, repairs }
            }
            _ => self.clone(),
        }
    }

    /// Returns the kind.
    pub const fn kind(&self) -> IncidentKind {
        match self {
            Self::CutRejected(_) => IncidentKind::CutRejected,
            Self::CutDeferred(_) => IncidentKind::CutDeferred,
            Self::CutGivenUp(_) => IncidentKind::CutGivenUp,
            Self::CutApplied { .. } => IncidentKind::CutApplied,
            Self::NotResized { .. } => IncidentKind::NotResized,
            Self::PodRaised { .. } => IncidentKind::PodRaised,
            Self::Repaired { .. } => IncidentKind::Repaired,
            Self::Contended { .. }
            | Self::CpuContended { .. }
            | Self::ContendedWithKubelet { .. } => IncidentKind::Contended,
            Self::Killed { .. } => IncidentKind::Killed,
            Self::Rescued { .. } => IncidentKind::Rescued,
            Self::AtCeiling { .. } => IncidentKind::AtCeiling,
            Self::BeyondNode { .. } => IncidentKind::BeyondNode,
            Self::Overcommitted { .. } => IncidentKind::Overcommitted,
            Self::Guarded { .. } => IncidentKind::Guarded,
            Self::GuardWaits(_) => IncidentKind::GuardWaits,
            Self::Unguarded { .. } => IncidentKind::Unguarded,
            Self::Released(_) => IncidentKind::Released,
            Self::PutBack(_) => IncidentKind::PutBack,
        }
    }

    /// Returns what identifies the incident when it repeats with other numbers.
    pub const fn identity(&self) -> Identity {
        let (limit, knob) = match self {
            Self::CutRejected(cut) | Self::CutDeferred(cut) | Self::CutGivenUp(cut) => {
                (Some(cut.limit), None)
            }
            Self::NotResized { knob, .. } | Self::PodRaised { knob, .. } => (None, Some(*knob)),
            Self::Repaired { knob, .. }
            | Self::Contended { knob, .. }
            | Self::ContendedWithKubelet { knob, .. } => (None, Some(knob.file_name())),
            Self::CpuContended { .. } => (None, Some(CPU_MAX)),
            _ => (None, None),
        };
        Identity(self.kind(), limit, knob)
    }

    /// Returns whether the incident requires action by the operator or the pod's owner.
    pub const fn is_warning(&self) -> bool {
        !matches!(
            self,
            Self::CutApplied { .. }
                | Self::PodRaised { .. }
                | Self::Repaired { .. }
                | Self::Guarded { .. }
                | Self::Unguarded { .. }
                | Self::Released(_)
                | Self::PutBack(_)
        )
    }
}

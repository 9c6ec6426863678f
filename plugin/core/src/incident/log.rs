//! The log line of an incident: a constant text, and fields with the numbers.

use std::fmt;
use std::time::Duration;

use super::{Incident, Line, LowerLimit};
use crate::outcome::Outcome;
use crate::units::{Bytes, CPU_MAX, Knob};

/// Fields of a log message.
#[derive(Debug, Default)]
pub struct Fields {
    /// Name of the file that changed.
    pub knob: Option<&'static str>,
    /// Value that the file should have.
    pub desired: Option<String>,
    /// Value that the file had or has.
    pub observed: Option<String>,
    /// Limit that the user asked for.
    pub asked: Option<Bytes>,
    /// Memory usage.
    pub usage: Option<Bytes>,
    /// Part of the usage that the kernel can reclaim.
    pub reclaimable: Option<Bytes>,
    /// Memory request.
    pub request: Option<String>,
    /// Memory limit.
    pub limit: Option<String>,
    /// Highest ratio of limit to request without a warning.
    pub most: Option<f64>,
    /// Node allocatable.
    pub allocatable: Option<String>,
    /// Share of time spent waiting for memory, in percent.
    pub stalled: Option<f64>,
    /// Number of repairs.
    pub repairs: Option<u32>,
    /// Whose limit caused an OOM kill.
    pub by: Option<&'static str>,
    /// Highest limit that the container may have.
    pub ceiling: Option<Bytes>,
    /// Node allocatable that no container has requested.
    pub free: Option<Bytes>,
    /// Number of OOM kills within `window`.
    pub kills: Option<usize>,
    /// Time within which OOM kills count.
    pub window: Option<Duration>,
    /// Result of the attempt.
    pub outcome: Option<Outcome>,
}

impl Incident {
    /// Returns what happened and what to do. The text has no numbers, so it is always the same.
    pub const fn text(&self) -> &'static str {
        match self {
            Self::CutRejected(_) => {
                "refused to lower the limit, which would kill: the container or pod has to use less before, or the limit to be higher"
            }
            Self::CutDeferred(_) => {
                "deferred a lower limit, which would kill the container until it uses less"
            }
            Self::CutGivenUp(_) => {
                "gave up the deferred limit, which would still kill the container: it has to use less, or the limit to be higher; \
                 then resize it again"
            }
            Self::CutApplied { .. } => "the deferred limit is in force",
            Self::NotResized { .. } => {
                "the runtime says that it has resized the container, and has not; what the kernel has counts. See whether the \
                 container was created with a unified value of this file, which the runtime prefers, and resize it again"
            }
            Self::PodRaised { .. } => "raised the pod's limit to what its containers may use",
            Self::Repaired { .. } => "repaired what somebody else changed",
            Self::Contended { .. } | Self::CpuContended { .. } => {
                "the value does not stay what it was set to, and is left to whoever else sets it; see above what the runtime said, or find out \
                 who it is, and let one of both set it"
            }
            Self::ContendedWithKubelet { knob: Knob::Max, .. } => {
                "the value does not stay what it was set to, and is left to the other writer. The kubelet may be the other writer: with \
                 enforceNodeAllocatable it sets the limit of all pods. Reserve the memory in the kubelet's configuration instead \
                 (systemReserved or kubeReserved), and restart the kubelet"
            }
            Self::ContendedWithKubelet { .. } => {
                "the value does not stay what it was set to, and is left to the other writer. The kubelet's own MemoryQoS may be the other \
                 writer: it is on by default from Kubernetes 1.37 on. Set featureGates.MemoryQoS to false in the kubelet's configuration \
                 and restart the kubelet"
            }
            Self::Killed { .. } => {
                "the kernel killed processes of the container for want of memory"
            }
            Self::Rescued { .. } => {
                "raising the limit of a container that is killed again and again; set it to what the container needs"
            }
            Self::AtCeiling { .. } => {
                "the container is killed again and again, and may not get more memory: that is its ceiling, or all that node \
                 allocatable leaves free; set its limit to what it needs"
            }
            Self::BeyondNode { .. } => {
                "the container may use more than the node has for all pods; set as asked, but the node may run out of memory before"
            }
            Self::Overcommitted { .. } => {
                "the container's limit is many times its request: what it uses beyond that may be taken from it, or not be there; \
                 raise the request to what it needs"
            }
            Self::Guarded { .. } => "keeps memory from pods: all together may use this much",
            Self::Unguarded { .. } => {
                "no memory is kept from pods any more: kubepods has its former limit"
            }
            Self::GuardWaits(_) => {
                "pods use more than nodeGuard leaves them, and would be killed for it: the line is set once they use less"
            }
            Self::Released(_) => "released a container that stood at memory.high",
            Self::PutBack(_) => {
                "a released container has been well below its memory.high, which is put back"
            }
        }
    }

    /// Returns the fields of the log line.
    pub fn fields(&self) -> Fields {
        let max = Knob::Max.file_name();
        let cut = |cut: &LowerLimit, outcome| Fields {
            knob: Some(max),
            desired: Some(cut.limit.to_string()),
            observed: Some(cut.in_force.to_string()),
            usage: Some(cut.usage.current),
            reclaimable: Some(cut.usage.reclaimable()),
            outcome: Some(outcome),
            ..Fields::default()
        };
        let line = |line: &Line| Fields {
            knob: Some(Knob::High.file_name()),
            desired: Some(line.desired.to_string()),
            observed: Some(line.observed.to_string()),
            usage: Some(line.usage),
            stalled: Some(line.stalled),
            ..Fields::default()
        };
        // Quote only a value that contains a space.
        let text = |value: &dyn fmt::Display| {
            let text = value.to_string();
            if text.contains(' ') { format!("{text:?}") } else { text }
        };
        let pair =
            |knob, desired: &dyn fmt::Display, observed: &dyn fmt::Display, outcome| Fields {
                knob: Some(knob),
                desired: Some(text(desired)),
                observed: Some(text(observed)),
                outcome: Some(outcome),
                ..Fields::default()
            };
        match self {
            Self::CutRejected(of) | Self::CutGivenUp(of) => cut(of, Outcome::Rejected),
            Self::CutDeferred(of) | Self::GuardWaits(of) => cut(of, Outcome::Deferred),
            Self::CutApplied { desired, observed } => {
                pair(max, desired, observed, Outcome::Applied)
            }
            Self::NotResized { knob, desired, observed } => {
                pair(knob, desired, observed, Outcome::Failed)
            }
            Self::PodRaised { knob, desired, observed } => {
                pair(knob, desired, observed, Outcome::Applied)
            }
            Self::Repaired { knob, desired, observed } => {
                pair(knob.file_name(), desired, observed, Outcome::Applied)
            }
            Self::Contended { knob, desired, observed, repairs }
            | Self::ContendedWithKubelet { knob, desired, observed, repairs } => Fields {
                repairs: Some(*repairs),
                ..pair(knob.file_name(), desired, observed, Outcome::Contended)
            },
            Self::CpuContended { desired, observed, repairs } => Fields {
                repairs: Some(*repairs),
                ..pair(CPU_MAX, desired, observed, Outcome::Contended)
            },
            Self::Killed { limit, by_own_limit, kills, window } => Fields {
                limit: limit.map(|limit| limit.to_string()),
                by: Some(if *by_own_limit {
                    "its own limit or its pod's"
                } else {
                    "the node or kubepods, not its own limit"
                }),
                kills: Some(*kills),
                window: Some(*window),
                ..Fields::default()
            },
            Self::Rescued { asked, observed, desired, kills, window } => Fields {
                asked: Some(*asked),
                kills: Some(*kills),
                window: Some(*window),
                outcome: None,
                ..pair(max, desired, observed, Outcome::Applied)
            },
            Self::AtCeiling { observed, ceiling, free, kills, window } => Fields {
                knob: Some(max),
                observed: Some(observed.to_string()),
                ceiling: Some(*ceiling),
                free: Some(*free),
                kills: Some(*kills),
                window: Some(*window),
                outcome: Some(Outcome::Rejected),
                ..Fields::default()
            },
            Self::BeyondNode { limit, allocatable } => Fields {
                limit: Some(limit.quantity()),
                allocatable: Some(allocatable.quantity()),
                ..Fields::default()
            },
            Self::Overcommitted { request, limit, most } => Fields {
                request: Some(request.quantity()),
                limit: Some(limit.quantity()),
                most: Some(*most),
                ..Fields::default()
            },
            Self::Guarded { desired, observed } => pair(max, desired, observed, Outcome::Applied),
            Self::Unguarded { desired, observed } => pair(max, desired, observed, Outcome::Applied),
            Self::Released(of) | Self::PutBack(of) => line(of),
        }
    }
}

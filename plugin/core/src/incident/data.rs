//! Incidents that the plugin reports, each with the amounts that its message shows.

use std::time::Duration;

use super::subject::Subject;
use crate::pod::kubepods;
use crate::policy::limit_decrease::Usage;
use crate::units::{Bytes, CpuMax, Knob, Limit};

/// A memory limit that is lower than the usage of a container, of a pod or of all pods.
#[derive(Clone, Copy, Debug)]
pub struct LowerLimit {
    /// The new and lower limit, which is not in force.
    pub limit: Limit,
    /// Limit in force.
    pub in_force: Limit,
    /// Usage of the container, of the pod or of all pods.
    pub usage: Usage,
}

/// An incident to report.
#[derive(Clone, Debug)]
pub enum Incident {
    /// The plugin refused a limit decrease that would cause an OOM kill.
    CutRejected(LowerLimit),
    /// The plugin postponed a limit decrease that would cause an OOM kill at the moment.
    CutDeferred(LowerLimit),
    /// The plugin no longer tries to set a postponed limit. The deadline for the limit
    /// (`shrinkDeadline`) had passed, or the plugin had stopped setting values.
    CutGivenUp(LowerLimit),
    /// A limit that the plugin had postponed is now in force.
    CutApplied {
        /// The limit that the plugin had postponed.
        desired: Bytes,
        /// The limit in force.
        observed: Limit,
    },
    /// The runtime reported success for an update, but the cgroup file has a different value.
    NotResized {
        /// Name of the file.
        knob: &'static str,
        /// Value that the file should have.
        desired: String,
        /// Value that the file has.
        observed: String,
    },
    /// The plugin raised a pod's limit, which was lower than the sum of its containers' limits.
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
        /// Value that the plugin read before the repair.
        observed: Limit,
    },
    /// Another program keeps changing a file, so the plugin no longer repairs the file.
    Contended {
        /// The file.
        knob: Knob,
        /// Value that the file should have.
        desired: Limit,
        /// Value that the file has.
        observed: Limit,
        /// Number of times that the plugin repaired the file.
        repairs: u32,
    },
    /// Another program keeps lowering the `cpu.max` of a pod, so the plugin no longer raises it.
    CpuContended {
        /// Value that the file should have.
        desired: CpuMax,
        /// Value that the file has.
        observed: CpuMax,
        /// Number of times that the plugin raised `cpu.max`.
        repairs: u32,
    },
    /// Another program, perhaps the kubelet, keeps changing a file of a cgroup above the pods.
    /// [`Incident::of_subject`] converts `Contended` to this variant.
    ContendedWithKubelet {
        /// The file.
        knob: Knob,
        /// Value that the file should have.
        desired: Limit,
        /// Value that the file has.
        observed: Limit,
        /// Number of times that the plugin repaired the file.
        repairs: u32,
    },
    /// The kernel OOM-killed processes of a container.
    Killed {
        /// Limit of the container.
        limit: Option<Limit>,
        /// True if the limit of the container or its pod caused the kill. False if the limit of a
        /// higher cgroup or a lack of free memory on the node caused the kill.
        by_own_limit: bool,
        /// Number of kills within `window`.
        kills: usize,
        /// Time window in which the plugin counts kills.
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
        /// Time window in which the plugin counts kills.
        window: Duration,
    },
    /// A container is OOM-killed repeatedly, but the plugin is not allowed to raise its limit
    /// further.
    AtCeiling {
        /// Limit of the container.
        observed: Bytes,
        /// Highest limit to which the plugin may raise the container's limit.
        ceiling: Bytes,
        /// Amount of node allocatable memory that no container requests.
        free: Bytes,
        /// Number of kills within `window`.
        kills: usize,
        /// Time window in which the plugin counts kills.
        window: Duration,
    },
    /// A container's limit is above node allocatable.
    BeyondNode {
        /// Limit of the container.
        limit: Bytes,
        /// Node allocatable: memory for all pods together.
        allocatable: Bytes,
    },
    /// The ratio of a container's memory limit to its memory request is too high.
    Overcommitted {
        /// Request of the container, or its upper bound if the exact request is unknown.
        request: Bytes,
        /// Limit of the container.
        limit: Bytes,
        /// Highest ratio of limit to request that causes no warning.
        most: f64,
    },
    /// The plugin set a memory limit for all pods together (`nodeGuard`).
    Guarded {
        /// Limit after the change.
        desired: Bytes,
        /// Limit before the change.
        observed: Limit,
    },
    /// The plugin does not yet set a memory limit for all pods together (`nodeGuard`), because the
    /// pods use more memory than this limit.
    GuardWaits(LowerLimit),
    /// The plugin restored the memory limit that all pods together would have without `nodeGuard`.
    Unguarded {
        /// Limit that the plugin wrote.
        desired: Limit,
        /// Limit that the plugin read after the write.
        observed: Limit,
    },
    /// A container was throttled at `memory.high`, so the plugin raised its `memory.high`.
    Released(HighChange),
    /// The plugin restored the original `memory.high` of a container, after it had raised this
    /// value.
    PutBack(HighChange),
}

/// Change of a container's `memory.high`.
#[derive(Clone, Copy, Debug)]
pub struct HighChange {
    /// `memory.high` after the change.
    pub desired: Limit,
    /// `memory.high` before the change.
    pub observed: Limit,
    /// Usage of the container.
    pub usage: Bytes,
    /// Percentage of the last ten seconds during which all tasks of the container waited for
    /// memory.
    pub stalled: f64,
}

impl Incident {
    /// Returns a copy of the incident. If `subject` is a cgroup above the pods, `Contended` becomes
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
}

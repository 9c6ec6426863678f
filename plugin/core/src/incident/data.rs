//! Incidents that the plugin reports, each with the amounts that its message shows.

use std::time::Duration;

use super::subject::Subject;
use crate::pod::kubepods;
use crate::policy::limit_decrease::Usage;
use crate::units::{Bytes, CpuMax, Knob, Limit};

/// A memory limit that is lower than the usage of a container, of a pod or of all pods.
#[derive(Clone, Copy, Debug)]
pub struct LowerLimit {
    /// The lower limit, which is not in force.
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
    /// The plugin deferred a limit decrease that would cause an OOM kill now.
    CutDeferred(LowerLimit),
    /// The plugin gave up a deferred limit. The deadline for the limit (`shrinkDeadline`) had
    /// passed, or the plugin had stopped setting values.
    CutGivenUp(LowerLimit),
    /// A limit that the plugin had deferred is now in force.
    CutApplied {
        /// The limit that the plugin had deferred.
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
        /// Number of times that the plugin repaired the file.
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
    /// Another program, perhaps the kubelet, keeps changing a file of a cgroup above the pods.
    /// [`Incident::of_subject`] makes this variant from `Contended`.
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
    /// A container is OOM-killed repeatedly, but the plugin may not raise the container's limit
    /// further.
    AtCeiling {
        /// Limit of the container.
        observed: Bytes,
        /// Highest limit that the container may have.
        ceiling: Bytes,
        /// Part of node allocatable that no container has requested.
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
    /// A container's limit is too many times its request.
    Overcommitted {
        /// Request of the container, or the upper bound if the request is not exact.
        request: Bytes,
        /// Limit of the container.
        limit: Bytes,
        /// Highest ratio of limit to request that causes no warning.
        most: f64,
    },
    /// The plugin set the limit of all pods together (`nodeGuard`).
    Guarded {
        /// Limit after the change.
        desired: Bytes,
        /// Limit before the change.
        observed: Limit,
    },
    /// The plugin does not set the limit of `nodeGuard` yet, because all pods together use more
    /// memory than this limit.
    GuardWaits(LowerLimit),
    /// The plugin restored the limit that all pods together have without `nodeGuard`.
    Unguarded {
        /// Limit that the plugin wrote.
        desired: Limit,
        /// Limit that the plugin read after the write.
        observed: Limit,
    },
    /// A container was throttled at `memory.high`, so the plugin raised this `memory.high`.
    Released(HighChange),
    /// The plugin had raised the `memory.high` of a throttled container, and now restored the
    /// original value.
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
    /// Returns the incident as the variant for this subject. For a cgroup above the pods,
    /// `Contended` becomes `ContendedWithKubelet`.
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

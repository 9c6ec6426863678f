//! Data that the runtime reported about a container, and the container's desired state.

use std::collections::HashMap;

use plimsoll_core::incident::Subject;
use plimsoll_core::pod::{CgroupPath, PodUid, QosClass, Request};
use plimsoll_core::policy::hierarchy::PodPlace;
use plimsoll_core::policy::limit_decrease::Limits;
use plimsoll_core::policy::{Decision, Desired, KNOBS, Reason, Setting};
use plimsoll_core::requests::Notice;
use plimsoll_core::requests::annotation::Overrides;
use plimsoll_core::units::{Bytes, CpuMax, CpuShares, Knob, Limit};

use crate::cgroup::{CgroupError, CgroupRoot};
use crate::kubelet::checkpoint::Moment;
use crate::state::originals::Values;
use crate::state::update_phase::{HighOverride, StoredValues, UpdatePhase};

/// Data about a container, most of which the runtime reported.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// ID in the runtime.
    pub id: String,
    /// Name of the container in its pod.
    pub name: String,
    /// Namespace and name of the container's pod, as `namespace/name`.
    pub pod: String,
    /// UID of the container's pod.
    pub uid: PodUid,
    /// ID of the sandbox of the container's pod.
    pub sandbox: String,
    /// Memory limit that the container should have. The create request, the last update or the
    /// plugin has set this limit.
    pub limit: Limit,
    /// Memory limit that the user asks for.
    pub asked: Limit,
    /// State of the container's updates. Only [`crate::state::containers::Containers`] changes the
    /// state of a known container.
    pub phase: UpdatePhase,
    /// CPU limit from the create request or the last update.
    pub cpu: CpuMax,
    /// CPU shares from the create request or the last update. CPU shares divide CPU time among
    /// competing cgroups.
    pub cpu_shares: CpuShares,
    /// Swap limit that the container should keep after the last update. With `None`, the plugin
    /// accepts any swap limit.
    pub swap_max: Option<Bytes>,
    /// `unified` map that the CRI client sent with the create request or the last update.
    pub unified: HashMap<String, String>,
    /// Overrides from the annotations of the container's pod.
    pub overrides: Overrides,
    /// The container's `oom_score_adj`.
    pub oom_score_adj: Option<i64>,
    /// Last operation that the kubelet performed on the container. This operation determines which
    /// of the kubelet's checkpoint entries is correct. The kubelet writes the entry of an update
    /// shortly after it has applied the update.
    pub moment: Moment,
    /// Whether the container was started and therefore has a cgroup.
    pub started: bool,
    /// Whether the plugin has seen processes in the container's cgroup. Afterwards, a missing
    /// cgroup means that the container has ended.
    ///
    /// With Kata and gVisor, this field stays false. With these runtimes, all processes of a pod
    /// are in the cgroup of the pod's sandbox, and only the runtime reports the end of a container.
    pub has_had_processes: bool,
    /// The container's cgroup. `None` if the runtime reported no path or an invalid path.
    pub cgroup: Option<CgroupPath>,
    /// Position of the container's pod in the cgroup hierarchy. `None` if no kubelet created the
    /// pod's cgroup.
    pub place: Option<PodPlace>,
}

/// Desired state of a container.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredState {
    /// QoS class of the pod.
    pub class: QosClass,
    /// Memory request of the container. `None` if the plugin does not know it.
    pub request: Option<Request>,
    /// Values that the policy computed for the container.
    pub desired: Desired,
    /// Problems to report in the log.
    pub notices: Vec<Notice>,
    /// Original values of the files. `None` if this plugin never changed the files.
    pub before: Option<Values>,
    /// Temporary values for `memory.high`, which replace the policy's value.
    pub high: HighOverride,
}

impl From<&Container> for Subject {
    fn from(container: &Container) -> Self {
        Self {
            pod: Some(container.pod.clone()),
            uid: Some(container.uid.clone()),
            container: Some(container.name.clone()),
            cgroup: container.cgroup.clone(),
        }
    }
}

impl Container {
    /// Returns the QoS class that the kubelet gave the pod. Returns `None` if no kubelet created
    /// the pod's cgroup.
    pub fn class(&self) -> Option<QosClass> {
        self.place.as_ref().map(PodPlace::class)
    }

    /// Returns false only if the container has certainly ended.
    pub fn is_alive(&self, root: &CgroupRoot) -> bool {
        let is_gone =
            |cgroup: &CgroupPath| matches!(root.cgroup(cgroup), Err(CgroupError::Gone(_)));
        !(self.started && self.has_had_processes && self.cgroup.as_ref().is_some_and(is_gone))
    }

    /// Copies the state that the runtime cannot report. `before` is the container's state before a
    /// reconnection.
    pub fn keep_after_reconnect(&mut self, before: &Self) {
        self.phase = UpdatePhase::reconnect(&before.phase, self.asked == before.asked);
        self.has_had_processes |= before.has_had_processes;
    }

    /// Returns the limits that the container should have.
    pub fn limits(&self) -> Limits {
        Limits { memory: self.limit, cpu: self.cpu.rate() }
    }

    /// Returns the limits that the container should have, but with the memory limit that the user
    /// asks for.
    pub fn asked_limits(&self) -> Limits {
        Limits { memory: self.asked, ..self.limits() }
    }
}

impl DesiredState {
    /// Returns the desired value of a file. Returns `None` if the plugin must not write the file.
    ///
    /// If the policy has no value for a file, the original value counts as the desired value.
    /// However, the result is `None` if the plugin has never changed the files.
    pub fn value(&self, knob: Knob) -> Option<Limit> {
        let (decision, value) = match knob {
            Knob::Min => (&self.desired.min, self.desired.min_value()),
            Knob::Low => (&self.desired.low, self.desired.low_value()),
            Knob::High => (&self.desired.high, self.desired.high_value()),
            Knob::Max => return None,
        };
        match decision.reason {
            Reason::NothingReserved | Reason::NoThrottling => self.before?.get(knob).or(value),
            _ if knob == Knob::High => self.high.desired(value),
            _ => value,
        }
    }

    /// Returns the desired values of the files that the plugin may write.
    pub fn values(&self) -> Vec<(Knob, Limit)> {
        KNOBS.into_iter().filter_map(|knob| Some((knob, self.value(knob)?))).collect()
    }

    /// Returns the desired values as [`StoredValues`], the type that an [`UpdatePhase`] stores.
    pub fn stored_values(&self) -> StoredValues {
        KNOBS.map(|knob| self.value(knob))
    }

    /// Returns whether the container is unmanaged: the policy has no value for the container, but
    /// this plugin has changed the container before.
    pub fn is_unmanaged(&self) -> bool {
        let Desired { min, low, high, .. } = &self.desired;
        let has_no_value = |decision: &Decision| {
            matches!(decision.reason, Reason::NothingReserved | Reason::NoThrottling)
        };
        self.before.is_some() && [min, low, high].into_iter().all(has_no_value)
    }

    /// Returns the policy's setting for a file.
    pub fn setting(&self, knob: Knob) -> Setting {
        match knob {
            Knob::Min => self.desired.min.setting,
            Knob::Low => self.desired.low.setting,
            Knob::High => self.desired.high.setting,
            Knob::Max => Setting::LeaveAlone,
        }
    }
}

//! Evidence about a pod's limits: the kubelet's checkpoint entry and the containers of the pod.

use std::sync::Arc;

use plimsoll_core::policy::limit_decrease::Limits;
use plimsoll_core::policy::pod_limit::{Member, PodLimitRecord, RecordedLimit};
use plimsoll_core::units::{Bytes, Limit, MilliCpu};

use crate::kubelet::checkpoint::{PodLevel, PodRecord, RecordSearch, RecordedLimits};
use crate::state::container::Container;
use crate::state::containers::Containers;

/// Evidence about a pod's limits, except the current limits in the pod's cgroup. The evidence is
/// the kubelet's checkpoint entry and the containers that have not ended.
#[derive(Clone, Debug)]
pub struct PodView {
    /// Evidence about the memory limit, in bytes.
    pub memory: (PodLimitRecord, Vec<Member>),
    /// Evidence about the CPU limit, in microseconds per second.
    pub cpu: (PodLimitRecord, Vec<Member>),
    /// The pod's own memory request (`spec.resources`).
    pub own_request: OwnRequest,
}

/// The memory request of a whole pod (`spec.resources.requests`), which may exceed the sum of the
/// containers' requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OwnRequest {
    /// The kubelet's checkpoint entry is missing or unreadable.
    #[default]
    Unknown,
    /// The kubelet has recorded this request, or no request of the whole pod.
    Known(Option<Bytes>),
}

impl OwnRequest {
    fn of(recorded: &RecordSearch) -> Self {
        let pod = recorded.as_ref().ok().and_then(|found| found.pod.as_ref());
        match pod.map(|pod| pod.pod_level()) {
            Some(PodLevel::Recorded { memory_request, .. }) => Self::Known(memory_request),
            Some(PodLevel::Unrecorded) => Self::Known(None),
            Some(PodLevel::Unreadable) | None => Self::Unknown,
        }
    }
}

impl Containers {
    /// Finds the other containers of a container's pod, and collects evidence about the pod's
    /// limits. `is_alive` returns whether another container of the pod has not ended.
    pub fn view_pod_of(
        &self,
        container: &Container,
        former: Option<Limits>,
        recorded: &RecordSearch,
        is_alive: impl Fn(&Container) -> bool,
    ) -> PodView {
        let mut others = self.in_sandbox(&container.sandbox);
        others.retain(|other| other.name != container.name && is_alive(other));
        self.view_pod(container, former, &others, recorded)
    }

    /// Collects the evidence about the limits of a container's pod.
    ///
    /// `recorded` is the kubelet's checkpoint entry of the pod. `former` are the previous intended
    /// limits of the container. `others` are the other containers of the pod that have not ended.
    pub fn view_pod(
        &self,
        container: &Container,
        former: Option<Limits>,
        others: &[Arc<Container>],
        recorded: &RecordSearch,
    ) -> PodView {
        let pod = recorded.as_ref().ok().and_then(|found| found.pod.clone());
        // For each container, use the checkpoint entry that matches its own last operation. The
        // kubelet writes a container's actuated resources only after an update is done.
        let recorded_limits = |other: &Container| {
            let found = if other.moment == container.moment {
                None
            } else {
                self.records.fresh(&other.uid, &other.name, other.moment).and_then(Result::ok)
            };
            let pod = found.and_then(|found| found.pod).or_else(|| pod.clone());
            pod.and_then(|pod| pod.limits(&other.name))
        };
        let others = others.iter().map(|other| (other.as_ref(), None));
        let (memory, cpu) = std::iter::once((container, former))
            .chain(others)
            .map(|(member, former)| members(member, former, recorded_limits(member)))
            .unzip();
        let [of_memory, of_cpu] = match (&pod, recorded) {
            (_, Err(_)) => [PodLimitRecord::Unreadable; 2],
            (None, Ok(_)) => [PodLimitRecord::Absent; 2],
            (Some(pod), Ok(_)) => {
                pod_limit_records(pod, self.knows_names(&container.sandbox, pod.names()))
            }
        };
        PodView {
            memory: (of_memory, memory),
            cpu: (of_cpu, cpu),
            own_request: OwnRequest::of(recorded),
        }
    }
}

/// Returns the memory limits and the CPU limits of a container.
fn members(
    container: &Container,
    former: Option<Limits>,
    recorded: Option<RecordedLimits>,
) -> (Member, Member) {
    let Limits { memory, cpu: rate } = container.limits();
    let asked = bytes(container.asked);
    let of = |amount: fn(RecordedLimits) -> Option<u64>| match recorded.map(amount) {
        None => RecordedLimit::NoRecord,
        Some(None) => RecordedLimit::NoLimit,
        Some(Some(limit)) => RecordedLimit::Limit(limit),
    };
    let former_memory = former.and_then(|former| bytes(former.memory));
    let memory = Member {
        limit: bytes(memory),
        asked,
        former: former_memory.filter(|former| Some(*former) != asked),
        recorded: of(|limits| limits.memory.map(Bytes::get)),
    };
    let former_rate = former.and_then(|former| former.cpu);
    let cpu = Member {
        limit: rate,
        asked: rate,
        former: former_rate.filter(|former| Some(*former) != rate),
        recorded: of(|limits| limits.cpu.map(MilliCpu::rate)),
    };
    (memory, cpu)
}

/// Returns the memory part and the CPU part of a pod's checkpoint entry. `is_complete` is true if
/// the runtime has reported every container in the entry.
fn pod_limit_records(pod: &PodRecord, is_complete: bool) -> [PodLimitRecord; 2] {
    let all = |is_limited: fn(RecordedLimits) -> bool| {
        pod.names().all(|name| pod.limits(name).is_some_and(is_limited))
    };
    let all_limited = [all(|limits| limits.memory.is_some()), all(|limits| limits.cpu.is_some())];
    let own = match pod.pod_level() {
        PodLevel::Unreadable => return [PodLimitRecord::Unreadable; 2],
        PodLevel::Unrecorded => [None, None],
        PodLevel::Recorded { limits: RecordedLimits { memory, cpu }, .. } => {
            [Some(memory.map(Bytes::get)), Some(cpu.map(MilliCpu::rate))]
        }
    };
    [0, 1].map(|index| PodLimitRecord::Present {
        own: own[index],
        is_complete,
        all_limited: all_limited[index],
    })
}

fn bytes(limit: Limit) -> Option<u64> {
    limit.bytes().map(Bytes::get)
}

//! Evidence about a pod's limits: the kubelet's record and the containers of the pod.

use std::sync::Arc;

use plimsoll_core::policy::pod_limit::{Member, PodLimitRecord, RecordedLimit};
use plimsoll_core::policy::resize::Limits;
use plimsoll_core::units::{Bytes, Limit, MilliCpu};

use crate::kubelet::checkpoint::{PodLevel, Recorded, RecordedLimits};
use crate::state::container::Container;
use crate::state::containers::Containers;

/// Evidence about a pod's limits from outside its cgroup: the kubelet's record and the containers
/// that have not ended.
#[derive(Clone, Debug)]
pub struct PodView {
    /// Memory, in bytes.
    pub memory: (PodLimitRecord, Vec<Member>),
    /// CPU time per second, in microseconds.
    pub cpu: (PodLimitRecord, Vec<Member>),
}

impl Containers {
    /// Collects the evidence about the limits of a container's pod.
    ///
    /// `recorded` is the kubelet's record of the pod. `former` is the last limits that the
    /// container should have had. `others` are the other containers of the pod that have not ended.
    pub fn view_pod(
        &self,
        container: &Container,
        former: Option<Limits>,
        others: &[Arc<Container>],
        recorded: &Recorded,
    ) -> PodView {
        let pod = recorded.as_ref().ok().and_then(|found| found.pod.clone());
        // The kubelet records an update of a container only after the update is done. So each
        // container needs the record for its own last operation.
        let recorded_limits = |other: &Container| {
            let found = if other.moment == container.moment {
                None
            } else {
                self.records.fresh(&other.uid, &other.name, other.moment).and_then(Result::ok)
            };
            let pod = found.and_then(|found| found.pod).or_else(|| pod.clone());
            pod.and_then(|pod| pod.limits(&other.name))
        };
        let (mut memory, mut cpu) = (Vec::new(), Vec::new());
        let mut add = |member: &Container, former: Option<Limits>| {
            let Limits { memory: limit, cpu: rate } = member.limits();
            let (limit, asked) = (bytes(limit), bytes(member.asked));
            let recorded = recorded_limits(member);
            let of = |amount: fn(RecordedLimits) -> Option<u64>| match recorded.map(amount) {
                None => RecordedLimit::NoRecord,
                Some(None) => RecordedLimit::NoLimit,
                Some(Some(limit)) => RecordedLimit::Limit(limit),
            };
            memory.push(Member {
                limit,
                asked,
                former: former
                    .and_then(|former| bytes(former.memory))
                    .filter(|former| Some(*former) != asked),
                recorded: of(|limits| limits.memory.map(Bytes::get)),
            });
            cpu.push(Member {
                limit: rate,
                asked: rate,
                former: former.and_then(|former| former.cpu).filter(|former| Some(*former) != rate),
                recorded: of(|limits| limits.cpu.map(MilliCpu::rate)),
            });
        };
        add(container, former);
        others.iter().for_each(|other| add(other, None));
        let [of_memory, of_cpu] = match (&pod, recorded) {
            (_, Err(_)) => [PodLimitRecord::Unreadable; 2],
            (None, Ok(_)) => [PodLimitRecord::Absent; 2],
            (Some(pod), Ok(_)) => {
                let is_complete = self.knows_names(&container.sandbox, pod.names());
                let all = |is_limited: fn(RecordedLimits) -> bool| {
                    pod.names().all(|name| pod.limits(name).is_some_and(is_limited))
                };
                let (memory_limited, cpu_limited) =
                    (all(|limits| limits.memory.is_some()), all(|limits| limits.cpu.is_some()));
                let record =
                    |own, all_limited| PodLimitRecord::Present { own, is_complete, all_limited };
                match pod.pod_level() {
                    PodLevel::Unreadable => [PodLimitRecord::Unreadable; 2],
                    PodLevel::Unrecorded => {
                        [record(None, memory_limited), record(None, cpu_limited)]
                    }
                    PodLevel::Limits(RecordedLimits { memory, cpu }) => {
                        let (memory, cpu) = (memory.map(Bytes::get), cpu.map(MilliCpu::rate));
                        [record(Some(memory), memory_limited), record(Some(cpu), cpu_limited)]
                    }
                }
            }
        };
        PodView { memory: (of_memory, memory), cpu: (of_cpu, cpu) }
    }
}

fn bytes(limit: Limit) -> Option<u64> {
    limit.bytes().map(Bytes::get)
}

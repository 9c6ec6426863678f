//! Translates the runtime's data into the plugin's types. Reports invalid data and ignores it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use nri::api::{self, ContainerState, LinuxResources, PodSandbox};
use plimsoll_core::pod::{CgroupPath, PodCgroup, PodUid};
use plimsoll_core::policy::hierarchy::PodPlace;
use plimsoll_core::requests::annotation::Overrides;
use plimsoll_core::units::{Bytes, CpuMax, CpuShares, Knob, Limit, PageSize, printable};
use tracing::warn;

use crate::kubelet::checkpoint::Moment;
use crate::state::container::Container;
use crate::state::levels::Sandbox;
use crate::state::update_phase::UpdatePhase;

/// Returns a pod's sandbox. Returns `None` if the kubelet does not manage the pod.
pub(super) fn sandbox(pod: &PodSandbox) -> Option<Sandbox> {
    let linux = pod.linux.get_or_default();
    let place = place(&linux.cgroup_parent)?;
    let memory = |resources: &LinuxResources| {
        u64::try_from(resources.memory.get_or_default().limit.get_or_default().value)
            .ok()
            .filter(|limit| *limit > 0)
    };
    let (overhead, limits) =
        (linux.pod_overhead.get_or_default(), linux.pod_resources.get_or_default());
    let (overrides, _) = Overrides::read(&pod.annotations, "");
    Some(Sandbox {
        id: pod.id.clone(),
        place,
        overhead: Bytes::new(memory(overhead).unwrap_or(0)),
        cpu_overhead: cpu(overhead, CpuMax::NONE).rate().unwrap_or(0),
        memory_limit: memory(limits).map(Bytes::new),
        cpu_limit: cpu(limits, CpuMax::NONE).rate(),
        overrides,
    })
}

pub(super) fn place(cgroup_parent: &str) -> Option<PodPlace> {
    let class = PodCgroup::parse(cgroup_parent)?.class;
    PodPlace::new(CgroupPath::of_parent(cgroup_parent).ok()?, class)
}

/// Returns whether a `unified` map sets a file to a value that differs from the kernel's default.
/// The kernel's default does not count, because the kubelet sends this default with every request.
/// Without the feature MemoryQoS, the kubelet sends `memory.high=max`. With MemoryQoS, the kubelet
/// also sends zeros where its policy protects no memory. Source: Kubernetes 1.37,
/// `pkg/kubelet/kuberuntime/kuberuntime_container_linux.go`.
pub(super) fn is_claimed(unified: &HashMap<String, String>, knob: Knob) -> bool {
    unified.get(knob.file_name()).is_some_and(|claimed| claimed.parse() != Ok(knob.default_value()))
}

/// Returns the newest container for each name in each sandbox. Runtimes with NRI before 0.9 do not
/// report the creation time. Without this time, a container with processes counts as the newest. If
/// no container has processes, the last container in the runtime's report counts as the newest.
pub(super) fn newest(containers: impl Iterator<Item = api::Container>) -> Vec<api::Container> {
    let age = |container: &api::Container| (container.created_at, has_processes(container));
    let mut newest: Vec<api::Container> = Vec::new();
    let mut places: HashMap<(String, String), usize> = HashMap::new();
    for container in containers {
        match places.entry((container.pod_sandbox_id.clone(), container.name.clone())) {
            Entry::Vacant(vacant) => {
                vacant.insert(newest.len());
                newest.push(container);
            }
            Entry::Occupied(place) => {
                let other = &mut newest[*place.get()];
                if age(&container) >= age(other) {
                    *other = container;
                }
            }
        }
    }
    newest
}

/// Returns whether a container's processes exist. A paused container is frozen and keeps its
/// processes.
fn has_processes(container: &api::Container) -> bool {
    use ContainerState::{CONTAINER_PAUSED, CONTAINER_RUNNING};
    matches!(container.state.enum_value(), Ok(CONTAINER_RUNNING | CONTAINER_PAUSED))
}

pub(super) fn has_ended(container: &api::Container) -> bool {
    matches!(container.state.enum_value(), Ok(ContainerState::CONTAINER_STOPPED))
}

/// Translates the runtime's data about a container. Reports invalid data and ignores it.
pub(super) fn translate(pod: &PodSandbox, container: &api::Container, page: PageSize) -> Container {
    let linux = container.linux.get_or_default();
    let resources = linux.resources.get_or_default();
    let cgroup_parent = &pod.linux.get_or_default().cgroup_parent;
    let parent = PodCgroup::parse(cgroup_parent);
    let (overrides, notices) = Overrides::read(&pod.annotations, &container.name);
    let uid = match &parent {
        Some(parent) if pod.uid.is_empty() => parent.uid.clone(),
        _ => PodUid::new(pod.uid.clone()),
    };
    let mut translated = Container {
        id: container.id.clone(),
        // `printable` does not change valid Kubernetes names.
        name: printable(&container.name),
        pod: format!("{}/{}", printable(&pod.namespace), printable(&pod.name)),
        uid,
        sandbox: pod.id.clone(),
        limit: Limit::Max,
        asked: Limit::Max,
        phase: UpdatePhase::default(),
        cpu: CpuMax::NONE,
        cpu_shares: shares(resources, CpuShares::default()),
        swap_max: None,
        unified: resources.unified.clone(),
        overrides,
        oom_score_adj: linux.oom_score_adj.as_ref().map(|adj| adj.value),
        moment: Moment::Create,
        has_had_processes: false,
        started: has_processes(container),
        cgroup: None,
        place: place(cgroup_parent),
    };
    for notice in notices {
        warn!(pod = translated.pod, container = translated.name, "{notice}");
    }
    let asked = resources.memory.get_or_default().limit.get_or_default().value;
    translated.limit = limit(asked, page, &translated);
    translated.asked = translated.limit;
    translated.cpu = cpu(resources, CpuMax::NONE);
    if !linux.cgroups_path.is_empty() {
        match CgroupPath::parse(&linux.cgroups_path) {
            Ok(path) => translated.cgroup = Some(path),
            Err(error) => warn!(
                pod = translated.pod,
                container = translated.name,
                %error,
                "the container's values cannot be verified"
            ),
        }
    }
    translated
}

/// Returns the CPU shares in `resources`. Returns `known` if `resources` contains no CPU shares.
pub(super) fn shares(resources: &LinuxResources, known: CpuShares) -> CpuShares {
    match resources.cpu.get_or_default().shares.get_or_default().value {
        0 => known,
        shares => CpuShares(shares),
    }
}

/// Returns the CPU limit in `resources`. Returns `known` if `resources` contains no CPU limit.
pub(super) fn cpu(resources: &LinuxResources, known: CpuMax) -> CpuMax {
    let cpu = resources.cpu.get_or_default();
    known.updated(cpu.quota.get_or_default().value, cpu.period.get_or_default().value)
}

pub(super) fn limit(asked: i64, page: PageSize, container: &Container) -> Limit {
    Limit::from_cri(asked, page).unwrap_or_else(|error| {
        warn!(pod = container.pod, container = container.name, "{error}");
        Limit::Max
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paused_container_has_started() {
        for (state, expected) in [
            (ContainerState::CONTAINER_CREATED, false),
            (ContainerState::CONTAINER_RUNNING, true),
            (ContainerState::CONTAINER_PAUSED, true),
            (ContainerState::CONTAINER_STOPPED, false),
        ] {
            let container = api::Container { state: state.into(), ..Default::default() };
            let translated = translate(&PodSandbox::default(), &container, PageSize::KIB4);
            assert_eq!(translated.started, expected, "{state:?}");
        }
    }

    #[test]
    fn the_newest_of_one_name_is_left() {
        let container = |id: &str, name: &str, sandbox: &str, created_at, state: ContainerState| {
            api::Container {
                id: id.into(),
                name: name.into(),
                pod_sandbox_id: sandbox.into(),
                created_at,
                state: state.into(),
                ..Default::default()
            }
        };
        let created = ContainerState::CONTAINER_CREATED;
        let running = ContainerState::CONTAINER_RUNNING;
        let paused = ContainerState::CONTAINER_PAUSED;
        for (containers, expected) in [
            (vec![], ""),
            (vec![container("a", "x", "1", 1, running), container("b", "x", "1", 2, created)], "b"),
            (vec![container("b", "x", "1", 2, created), container("a", "x", "1", 1, running)], "b"),
            (vec![container("a", "x", "1", 0, running), container("b", "x", "1", 0, created)], "a"),
            (vec![container("a", "x", "1", 0, created), container("b", "x", "1", 0, created)], "b"),
            (vec![container("a", "x", "1", 0, paused), container("b", "x", "1", 0, created)], "a"),
            (
                vec![container("a", "x", "1", 1, running), container("b", "x", "2", 2, running)],
                "a b",
            ),
            (
                vec![container("a", "x", "1", 1, running), container("b", "y", "1", 2, running)],
                "a b",
            ),
        ] {
            let left: Vec<_> =
                newest(containers.into_iter()).into_iter().map(|container| container.id).collect();
            assert_eq!(left.join(" "), expected);
        }
    }
}

//! Limit decreases and limit increases that caused problems for users.

use anyhow::{Context, Result, ensure};

use crate::kubelet::{Container, ContainerSpec, Kubelet, MIB, Pod, PodSpec};
use crate::machine::Node;
use crate::probe::cgroup::{self, Memory};

/// The memory in bytes that the containers of [`run_oom_killed`] and [`run_satisfied`] allocate.
pub const NEEDS: u64 = 128 * MIB;

/// Returns memory.high for the default throttling factor 0.9, in whole pages.
pub fn memory_high(request: u64, limit: u64) -> u64 {
    (request + 9 * (limit - request) / 10) / 4096 * 4096
}

/// Lets the container `app` allocate memory and returns the workload's answer.
pub fn alloc(node: &Node, pod: &Pod, bytes: u64) -> Result<String> {
    pod.container("app")?.call(node, &format!("alloc {bytes}"))
}

/// Returns the memory values of a pod and of its container `app`.
pub fn memory(node: &Node, pod: &Pod) -> Result<[Memory; 2]> {
    let found = cgroup::memory(node, &[&pod.cgroup, &pod.container("app")?.cgroup])?;
    found.try_into().ok().context("reading the memory values of two cgroups")
}

/// Runs a container that is OOM-killed, because it needs more memory than its limit.
///
/// While the container is down, the user raises its limit. The new container starts in the pod's
/// cgroup, whose limit does not change. The kubelet of Kubernetes 1.27 to 1.36 behaves in the same
/// way (kubernetes#138760).
///
/// Returns the pod and the workload's answer to the same allocation in the new container.
pub fn run_oom_killed(kubelet: &mut Kubelet<'_>, node: &Node) -> Result<(Pod, String)> {
    let spec = |limit: u64| ContainerSpec::new("app").request(32 * MIB).limit(limit);
    let mut pod = kubelet.run_pod(PodSpec::new("hungry").container(spec(100 * MIB)))?;
    let answer = alloc(node, &pod, NEEDS)?;
    ensure!(
        answer == "gone",
        "the container must be OOM-killed, but the workload answered {answer:?}"
    );
    kubelet.remove_container(&mut pod, "app")?;
    kubelet.run_container(&mut pod, &spec(200 * MIB))?;
    let answer = alloc(node, &pod, NEEDS)?;
    Ok((pod, answer))
}

/// Returns a pod whose container has a limit of 250 MiB.
pub fn ample_pod() -> PodSpec {
    PodSpec::new("satisfied")
        .container(ContainerSpec::new("app").request(64 * MIB).limit(250 * MIB))
}

/// Runs the pod of [`ample_pod`] and lets its container allocate 128 MiB.
pub fn run_satisfied(kubelet: &mut Kubelet<'_>, node: &Node) -> Result<Pod> {
    let pod = kubelet.run_pod(ample_pod())?;
    let answer = alloc(node, &pod, NEEDS)?;
    ensure!(answer.starts_with("ok"), "the workload must allocate memory, but answered {answer:?}");
    Ok(pod)
}

/// Decreases the limit of the container in [`run_satisfied`] to 100 MiB, which is below the
/// container's usage.
pub fn decrease_limit(kubelet: &mut Kubelet<'_>, pod: &mut Pod) -> Result<()> {
    kubelet.resize(pod, "app", Some(64 * MIB), Some(100 * MIB))
}

/// Decreases the limit of a container with 120 MiB of page cache from 150 to 60 MiB.
///
/// Returns the pod and the runtime's answer.
pub fn decrease_limit_below_cache(
    kubelet: &mut Kubelet<'_>,
    node: &Node,
) -> Result<(Pod, Result<()>)> {
    let app = ContainerSpec::new("app").limit(150 * MIB).cpu(2000);
    let mut pod = kubelet.run_pod(PodSpec::new("cached").container(app))?;
    let container = pod.container("app")?;
    let answer = container.call(node, &format!("write /cache {}", 120 * MIB))?;
    ensure!(answer.starts_with("ok"), "the workload must write a file, but answered {answer:?}");
    let [usage] = cgroup::usage(node, &[&container.cgroup])?[..] else {
        unreachable!("the request was for one cgroup")
    };
    ensure!(usage.file > 100 * MIB, "the page cache must exceed 100 MiB: {usage:?}");
    let cut = kubelet.resize(&mut pod, "app", Some(60 * MIB), Some(60 * MIB));
    Ok((pod, cut))
}

/// Returns whether the container still runs and how many processes of its pod were OOM-killed.
pub fn read_fate(node: &Node, pod: &Pod) -> Result<(bool, u64)> {
    let lives =
        pod.container("app")?.call(node, "touch").is_ok_and(|answer| answer.starts_with("ok"));
    Ok((lives, cgroup::events(node, &pod.cgroup)?["oom_kill"]))
}

/// Decreases the limit of a container from 250 to 100 MiB while its usage grows from 60 to 130 MiB.
///
/// The growth must be slow enough that the runtime writes the limit during the growth. Returns
/// whether the update succeeded and how often the write of the limit invoked the OOM killer.
pub fn grow_during_decrease(
    node: &Node,
    pod: &Pod,
    milliseconds_per_mib: u64,
) -> Result<(bool, u64)> {
    let container = pod.container("app")?;
    let answer = alloc(node, pod, 60 * MIB)?;
    ensure!(answer.starts_with("ok"), "the workload must allocate memory, but answered {answer:?}");
    // An allocation of the workload may also cause an OOM kill under the new limit. A kill by an
    // allocation does not count, because the workload and not the write of the limit invoked the
    // OOM killer.
    let Container { control, id, .. } = container;
    let output = node.try_run(&format!(
        "dmesg --clear
         workload call {control} grow {} {milliseconds_per_mib} >/dev/null || exit 3
         status=0
         crictl update --memory {} {id} >/dev/null || status=$?
         workload call {control} free >/dev/null || true
         dmesg | grep 'invoked oom-killer' | grep --count --invert-match ' workload invoked' || true
         exit $status",
        70 * MIB,
        100 * MIB,
    ))?;
    ensure!(output.status.code() != Some(3), "the workload must grow, but: {}", output.stderr);
    let killed =
        output.stdout.trim().parse().with_context(|| format!("counting kills: {output:?}"))?;
    Ok((output.status.success(), killed))
}

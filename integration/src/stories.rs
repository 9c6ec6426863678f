//! What users of resizing in place have met: the same steps for nodes with the plugin and without.

use anyhow::{Context, Result, ensure};

use crate::cgroup::{self, Memory};
use crate::kubelet::{Container, ContainerSpec, Kubelet, MIB, Pod, PodSpec};
use crate::node::Node;

/// What a hungry container needs.
const NEEDS: u64 = 128 * MIB;

/// Numbers that are random enough, and the same every time.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers that follow from this one.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one, below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        // Knuth's MMIX.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// memory.high by the default throttling factor, 0.9.
pub fn memory_high(request: u64, limit: u64) -> u64 {
    (request + 9 * (limit - request) / 10) / 4096 * 4096
}

/// A container that allocates.
pub fn alloc(node: &Node, pod: &Pod, bytes: u64) -> Result<String> {
    pod.container("app")?.call(node, &format!("alloc {bytes}"))
}

/// Memory of a pod and its container.
pub fn memory(node: &Node, pod: &Pod) -> Result<[Memory; 2]> {
    let found = cgroup::memory(node, &[&pod.cgroup, &pod.container("app")?.cgroup])?;
    found.try_into().ok().context("two were asked for")
}

/// "hungry": a container that needs more than its limit is killed. While it is down its limit is raised, and it is made anew
/// in the pod's cgroup as that is, as the kubelet of Kubernetes 1.27 to 1.36 does (kubernetes#138760). Returns the pod and what
/// became of the second one: the workload's answer to the same wish.
pub fn hungry(kubelet: &mut Kubelet<'_>, node: &Node) -> Result<(Pod, String)> {
    let spec = |limit: u64| ContainerSpec::new("app").request(32 * MIB).limit(limit);
    let mut pod = kubelet.run_pod(PodSpec::new("hungry").container(spec(100 * MIB)))?;
    let answer = alloc(node, &pod, NEEDS)?;
    ensure!(answer == "gone", "100 MiB are not enough, but the workload says {answer:?}");
    kubelet.remove_container(&mut pod, "app")?;
    kubelet.run_container(&mut pod, &spec(200 * MIB))?;
    let answer = alloc(node, &pod, NEEDS)?;
    Ok((pod, answer))
}

/// A container with 128 MiB in use and a limit of 250 MiB.
pub fn satisfied(kubelet: &mut Kubelet<'_>, node: &Node) -> Result<Pod> {
    let app = ContainerSpec::new("app").request(64 * MIB).limit(250 * MIB);
    let pod = kubelet.run_pod(PodSpec::new("satisfied").container(app))?;
    let answer = alloc(node, &pod, NEEDS)?;
    ensure!(answer.starts_with("ok"), "allocating says {answer:?}");
    Ok(pod)
}

/// Cuts its limit to less than it uses.
pub fn cut(kubelet: &mut Kubelet<'_>, pod: &mut Pod) -> Result<()> {
    kubelet.resize(pod, "app", Some(64 * MIB), Some(100 * MIB))
}

/// A container with 120 MiB of page cache and a limit of 150 MiB, which is cut to 60. Returns the pod and what the runtime says.
pub fn cached(kubelet: &mut Kubelet<'_>, node: &Node) -> Result<(Pod, Result<()>)> {
    let app = ContainerSpec::new("app").limit(150 * MIB).cpu(2000);
    let mut pod = kubelet.run_pod(PodSpec::new("cached").container(app))?;
    let container = pod.container("app")?;
    let answer = container.call(node, &format!("write /cache {}", 120 * MIB))?;
    ensure!(answer.starts_with("ok"), "writing says {answer:?}");
    let [usage] = cgroup::usage(node, &[&container.cgroup])?[..] else { unreachable!("one was asked for") };
    ensure!(usage.file > 100 * MIB, "{usage:?}");
    let cut = kubelet.resize(&mut pod, "app", Some(60 * MIB), Some(60 * MIB));
    Ok((pod, cut))
}

/// Whether the container lives, and how many processes of its pod were killed.
pub fn fate(node: &Node, pod: &Pod) -> Result<(bool, u64)> {
    let lives = pod.container("app")?.call(node, "touch").is_ok_and(|answer| answer.starts_with("ok"));
    Ok((lives, cgroup::events(node, &pod.cgroup)?["oom_kill"]))
}

/// What a container that stands at its memory.high asks for: 60 MiB beyond that, and well within its limit of 200 MiB.
const BEYOND: u64 = 150 * MIB;

/// memory.high of that container.
pub const LINE: u64 = 90 * MIB;

/// Lets a container go beyond its memory.high, which makes it stand still, and tells whether it has what it asks for within this
/// many seconds.
pub fn goes_beyond(node: &Node, pod: &Pod, seconds: u32) -> Result<bool> {
    let control = &pod.container("app")?.control;
    let output = node.try_run(&format!("timeout {seconds} workload call {control} alloc {BEYOND}"))?;
    ensure!(output.status.success() || output.status.code() == Some(124), "{}: {}", output.status, output.stderr);
    Ok(output.status.success())
}

/// A container that grows from 60 to 130 MiB while its limit of 250 MiB is cut to 100, at a pace that lets the runtime's write fall
/// into that. Tells what the runtime says, and how often the kernel had to kill for that write.
pub fn grows_while_it_is_cut(node: &Node, pod: &Pod, milliseconds_per_mib: u64) -> Result<(bool, u64)> {
    let container = pod.container("app")?;
    let answer = alloc(node, pod, 60 * MIB)?;
    ensure!(answer.starts_with("ok"), "allocating says {answer:?}");
    // What it goes on to allocate when it has the limit is its own affair: then it is the workload that asks the kernel for
    // memory, and not whoever writes the limit.
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
    ensure!(output.status.code() != Some(3), "the workload does not grow: {}", output.stderr);
    let killed = output.stdout.trim().parse().with_context(|| format!("counting kills: {output:?}"))?;
    Ok((output.status.success(), killed))
}

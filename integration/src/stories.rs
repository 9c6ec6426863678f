//! Problems that users of in-place resize have had.
//!
//! The steps are the same for nodes with the plugin and without it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cgroup::{self, Memory};
use crate::kubelet::{Container, ContainerSpec, Kubelet, MIB, Pod, PodSpec};
use crate::node::Node;

/// The memory in bytes that the container in [`hungry`] needs and the one in [`satisfied`] uses.
pub const NEEDS: u64 = 128 * MIB;

/// A pseudo-random number generator that returns the same numbers every time.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Returns a generator with this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number, which is below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The constants are from the generator of Knuth's MMIX.
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

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
    found.try_into().ok().context("two were asked for")
}

/// Runs a container that is OOM-killed, because it needs more memory than its limit.
///
/// While the container is down, its limit is raised. The new container starts in the pod's cgroup,
/// whose limit stays as it is. The kubelet of Kubernetes 1.27 to 1.36 does the same
/// (kubernetes#138760).
///
/// Returns the pod and the workload's answer to the same allocation in the new container.
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

/// Returns a pod whose container has a limit of 250 MiB.
pub fn ample() -> PodSpec {
    PodSpec::new("satisfied")
        .container(ContainerSpec::new("app").request(64 * MIB).limit(250 * MIB))
}

/// Runs the pod of [`ample`] and lets its container allocate 128 MiB.
pub fn satisfied(kubelet: &mut Kubelet<'_>, node: &Node) -> Result<Pod> {
    let pod = kubelet.run_pod(ample())?;
    let answer = alloc(node, &pod, NEEDS)?;
    ensure!(answer.starts_with("ok"), "allocating says {answer:?}");
    Ok(pod)
}

/// Decreases the limit of the container in [`satisfied`] to 100 MiB, which is below its usage.
pub fn cut(kubelet: &mut Kubelet<'_>, pod: &mut Pod) -> Result<()> {
    kubelet.resize(pod, "app", Some(64 * MIB), Some(100 * MIB))
}

/// Decreases the limit of a container with 120 MiB of page cache from 150 to 60 MiB.
///
/// Returns the pod and the runtime's answer.
pub fn cached(kubelet: &mut Kubelet<'_>, node: &Node) -> Result<(Pod, Result<()>)> {
    let app = ContainerSpec::new("app").limit(150 * MIB).cpu(2000);
    let mut pod = kubelet.run_pod(PodSpec::new("cached").container(app))?;
    let container = pod.container("app")?;
    let answer = container.call(node, &format!("write /cache {}", 120 * MIB))?;
    ensure!(answer.starts_with("ok"), "writing says {answer:?}");
    let [usage] = cgroup::usage(node, &[&container.cgroup])?[..] else {
        unreachable!("one was asked for")
    };
    ensure!(usage.file > 100 * MIB, "{usage:?}");
    let cut = kubelet.resize(&mut pod, "app", Some(60 * MIB), Some(60 * MIB));
    Ok((pod, cut))
}

/// Returns whether the container lives and how many processes of its pod were OOM-killed.
pub fn fate(node: &Node, pod: &Pod) -> Result<(bool, u64)> {
    let lives =
        pod.container("app")?.call(node, "touch").is_ok_and(|answer| answer.starts_with("ok"));
    Ok((lives, cgroup::events(node, &pod.cgroup)?["oom_kill"]))
}

/// The allocation in bytes of a container that is throttled at its memory.high.
///
/// The allocation is 60 MiB above memory.high and well below the container's limit of 200 MiB.
const BEYOND: u64 = 150 * MIB;

/// The memory.high of this container in bytes.
pub const LINE: u64 = 90 * MIB;

/// Lets a container allocate beyond its memory.high, so that the kernel throttles it.
///
/// Returns whether the allocation completes within 280 s.
pub fn goes_beyond(node: &Node, pod: &Pod) -> Result<bool> {
    const LIMIT: Duration = Duration::from_secs(300);
    let control = &pod.container("app")?.control;
    let script = format!("timeout {} workload call {control} alloc {BEYOND}", LIMIT.as_secs() - 20);
    let output = node.try_run_within(LIMIT, &script, Vec::new())?;
    ensure!(
        output.status.success() || output.status.code() == Some(124),
        "{}: {}",
        output.status,
        output.stderr
    );
    Ok(output.status.success())
}

/// The state of a container that is throttled at its memory.high.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// The stall time of the container in microseconds, from its memory.pressure.
    pub stalled: u64,
    /// The container's memory usage after this time, in bytes.
    pub current: u64,
    /// The number of times that the container exceeded memory.high.
    pub times: u64,
    /// Whether the workload has answered, which it does when the allocation completes.
    pub is_satisfied: bool,
}

/// Lets a container allocate beyond its memory.high, so that the kernel throttles it.
///
/// Waits until the allocation completes or the container has stalled for 10 seconds. The kernel
/// counts the stall time, so the wait takes longer on a slow machine.
pub fn stands(node: &Node, pod: &Pod) -> Result<Standing> {
    const LIMIT: Duration = Duration::from_secs(300);
    let Container { control, cgroup, .. } = pod.container("app")?;
    let script = format!(
        "cd {}/{cgroup}
         stalled() {{ sed -n 's/^some .*total=//p' memory.pressure; }}
         rm -f /run/beyond; before=$(stalled)
         setsid workload call {control} alloc {BEYOND} </dev/null >/run/beyond 2>&1 &
         until [ -s /run/beyond ] || [ $(($(stalled) - before)) -ge 10000000 ]; do sleep 0.2; done
         echo $(($(stalled) - before)) $(<memory.current) $(awk '$1 == \"high\" {{ print $2 }}' memory.events) $(wc -w </run/beyond)",
        cgroup::ROOT
    );
    let output = node.try_run_within(LIMIT, &script, Vec::new())?;
    ensure!(output.status.success(), "{}: {}", output.status, output.stderr);
    let numbers: Vec<u64> =
        output.stdout.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let &[stalled, current, times, words] = numbers.as_slice() else {
        bail!("four numbers expected: {numbers:?}")
    };
    Ok(Standing { stalled, current, times, is_satisfied: words > 0 })
}

/// Decreases the limit of a container from 250 to 100 MiB while its usage grows from 60 to 130 MiB.
///
/// The pace must be slow enough that the runtime writes the limit during the growth. Returns
/// whether the update succeeded and how often the write of the limit invoked the OOM killer.
pub fn grows_while_it_is_cut(
    node: &Node,
    pod: &Pod,
    milliseconds_per_mib: u64,
) -> Result<(bool, u64)> {
    let container = pod.container("app")?;
    let answer = alloc(node, pod, 60 * MIB)?;
    ensure!(answer.starts_with("ok"), "allocating says {answer:?}");
    // OOM kills that an allocation of the workload causes under the new limit do not count. In such
    // a case the workload invokes the OOM killer, and not the program that writes the limit.
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
    let killed =
        output.stdout.trim().parse().with_context(|| format!("counting kills: {output:?}"))?;
    Ok((output.status.success(), killed))
}

/// The pods of [`balloon`]: name, request, limit and final usage, the latter three in MiB.
///
/// The first two pods stay within their requests. The others use more than three times their
/// requests but less than their memory.high. Together the pods use more memory than the node has.
const BALLOONS: [(&str, u64, u64, u64); 5] = [
    ("a", 160, 400, 150),
    ("b", 80, 200, 75),
    ("c", 80, 800, 640),
    ("d", 80, 400, 300),
    ("e", 80, 400, 300),
];

/// The maximum number of additional pods in [`balloon`].
const MORE: usize = 5;

/// The outcome of [`balloon`].
#[derive(Debug)]
pub struct Balloon {
    /// The names of the pods whose container survived.
    pub alive: Vec<&'static str>,
    /// The number of OOM kills because the whole node was out of memory.
    pub node_kills: usize,
    /// The OOM kills because of a limit. Each entry is the cgroup with the limit.
    pub limit_kills: Vec<String>,
    /// The page cache of system.slice that was reclaimed and read again, in pages
    /// (workingset_refault_file).
    pub refaults: u64,
    /// The latency of calls to the runtime, which were made one after another meanwhile.
    pub runtime: Latency,
    /// The latency of a service in system.slice that reads its working set repeatedly.
    pub service: Latency,
}

/// The latency of a repeated operation.
#[derive(Debug)]
pub struct Latency {
    /// The number of operations.
    pub count: usize,
    /// The number of failed operations.
    pub failures: usize,
    /// The longest duration in milliseconds.
    pub slowest: u64,
}

/// Runs the pods `a` to `e`, which all allocate at the same time until the node has no free memory.
///
/// The limits of these pods are far above their requests. If fewer than `enough` pages of page
/// cache of system.slice are reclaimed and read again, more pods follow one after the other. Each
/// of them takes all memory that it can get. There are at most `MORE` of them.
pub fn balloon(kubelet: &mut Kubelet<'_>, node: &Node, enough: u64) -> Result<Balloon> {
    let specs = BALLOONS.map(|(name, request, limit, _)| {
        PodSpec::new(name)
            .container(ContainerSpec::new("app").request(request * MIB).limit(limit * MIB))
    });
    let mut pods = kubelet.run_pods(specs.into())?;
    // The probes run in system.slice, as the runtime and the kubelet do. Commands from the ssh
    // shell run in another slice.
    let probe = |name: &str, command: &str| {
        format!(
            "rm -f /run/{name}
             systemd-run --quiet --collect --unit {name} --slice system.slice sh -c '
                 while :; do
                     began=$(date +%s%N)
                     {command} >/dev/null 2>&1; status=$?
                     echo $status $(( ($(date +%s%N) - began) / 1000000 )) >> /run/{name}
                     sleep 0.2
                 done'
             until test -s /run/{name}; do sleep 0.1; done\n"
        )
    };
    let script = format!(
        "dmesg --clear; head --bytes {} /dev/urandom > /var/lib/working-set\n{}{}",
        40 * MIB,
        probe("probe-runtime", "crictl --timeout 100s ps"),
        probe("probe-service", "cat /var/lib/working-set"),
    );
    node.run(&script).context("starting what looks at the system")?;
    let before = refaults(node, "")?;
    let calls: Vec<String> = pods
        .iter()
        .zip(BALLOONS)
        .map(|(pod, (.., uses))| {
            Ok(format!(
                "workload call {} alloc {} >/dev/null &\n",
                pod.container("app")?.control,
                uses * MIB
            ))
        })
        .collect::<Result<_>>()?;
    let mut taken = refaults(node, &format!("{}wait\n", calls.concat()))? - before;
    for more in 0..MORE {
        if taken >= enough {
            break;
        }
        let pod = kubelet
            .run_pod(PodSpec::new(&format!("more-{more}")).container(ContainerSpec::new("app")))?;
        let control = &pod.container("app")?.control;
        // Allocate until the container is killed or has more memory than the node.
        let script = format!(
            "for _ in {{1..40}}; do workload call {control} alloc {} >/dev/null || break; done\n",
            40 * MIB
        );
        pods.push(pod);
        taken = refaults(node, &script)? - before;
    }
    let output = node.run(
        "systemctl stop probe-runtime probe-service
         dmesg | grep -o 'oom-kill:constraint=.*' || true
         echo END-OF-KILLS; cat /run/probe-runtime
         echo END-OF-RUNTIME; cat /run/probe-service",
    )?;
    let (kills, rest) = output.stdout.split_once("END-OF-KILLS").context("no list of kills")?;
    let (runtime, service) = rest.split_once("END-OF-RUNTIME").context("no latencies")?;
    let of_limits =
        kills.lines().filter_map(|line| line.split_once("oom_memcg=")?.1.split(',').next());
    let mut alive = Vec::new();
    for (pod, (name, ..)) in pods.iter().zip(BALLOONS) {
        if fate(node, pod)?.0 {
            alive.push(name);
        }
    }
    kubelet.remove_pods(&pods)?;
    Ok(Balloon {
        alive,
        node_kills: kills
            .lines()
            .filter(|line| line.contains("constraint=CONSTRAINT_NONE"))
            .count(),
        limit_kills: of_limits.map(str::to_owned).collect(),
        refaults: taken,
        runtime: latency(runtime)?,
        service: latency(service)?,
    })
}

/// Runs a script and returns how many pages of system.slice were reclaimed and read again so far.
///
/// The function first waits until the probe service has read its whole working set once more from
/// the beginning.
fn refaults(node: &Node, script: &str) -> Result<u64> {
    let script = format!(
        "{script}seen=$(wc -l </run/probe-service)
         until [ $(wc -l </run/probe-service) -ge $((seen + 2)) ]; do sleep 0.1; done
         awk '$1 == \"workingset_refault_file\" {{ print $2 }}' {}/system.slice/memory.stat",
        cgroup::ROOT
    );
    // A long time limit, because a busy host reads the working set slowly while memory is short.
    let output =
        node.try_run_within(Duration::from_secs(900), &script, Vec::new()).context("ballooning")?;
    ensure!(
        output.status.success(),
        "ballooning ({}): {}",
        output.status,
        output.stderr.trim_end()
    );
    output.stdout.trim().parse().with_context(|| format!("refaults: {:?}", output.stdout))
}

/// Parses lines with an exit status and milliseconds.
fn latency(lines: &str) -> Result<Latency> {
    let mut latency = Latency { count: 0, failures: 0, slowest: 0 };
    for line in lines.lines().filter(|line| !line.is_empty()) {
        let (status, milliseconds) = line.split_once(' ').with_context(|| format!("{line:?}"))?;
        latency.count += 1;
        latency.failures += usize::from(status != "0");
        latency.slowest =
            latency.slowest.max(milliseconds.parse().with_context(|| format!("{line:?}"))?);
    }
    ensure!(latency.count > 0, "nothing was measured");
    Ok(latency)
}

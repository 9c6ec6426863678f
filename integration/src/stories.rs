//! What users of resizing in place have met: the same steps for nodes with the plugin and without.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cgroup::{self, Memory};
use crate::kubelet::{Container, ContainerSpec, Kubelet, MIB, Pod, PodSpec};
use crate::node::Node;

/// What a hungry container needs, and a satisfied one has.
pub const NEEDS: u64 = 128 * MIB;

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
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
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

/// A container with a limit of 250 MiB.
pub fn ample() -> PodSpec {
    PodSpec::new("satisfied")
        .container(ContainerSpec::new("app").request(64 * MIB).limit(250 * MIB))
}

/// That container, with 128 MiB in use.
pub fn satisfied(kubelet: &mut Kubelet<'_>, node: &Node) -> Result<Pod> {
    let pod = kubelet.run_pod(ample())?;
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
    let [usage] = cgroup::usage(node, &[&container.cgroup])?[..] else {
        unreachable!("one was asked for")
    };
    ensure!(usage.file > 100 * MIB, "{usage:?}");
    let cut = kubelet.resize(&mut pod, "app", Some(60 * MIB), Some(60 * MIB));
    Ok((pod, cut))
}

/// Whether the container lives, and how many processes of its pod were killed.
pub fn fate(node: &Node, pod: &Pod) -> Result<(bool, u64)> {
    let lives =
        pod.container("app")?.call(node, "touch").is_ok_and(|answer| answer.starts_with("ok"));
    Ok((lives, cgroup::events(node, &pod.cgroup)?["oom_kill"]))
}

/// What a container that stands at its memory.high asks for: 60 MiB beyond that, and well within its limit of 200 MiB.
const BEYOND: u64 = 150 * MIB;

/// memory.high of that container.
pub const LINE: u64 = 90 * MIB;

/// Lets a container go beyond its memory.high, which makes it stand still, and tells whether it comes to have what it asks for.
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

/// A container that stands at its memory.high.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// How long it has waited for memory, by the kernel's account of the container, in microseconds.
    pub stalled: u64,
    /// What it uses after that, in bytes.
    pub current: u64,
    /// How often it went beyond memory.high.
    pub times: u64,
    /// Whether it has what it asked for.
    pub is_satisfied: bool,
}

/// Lets a container go beyond its memory.high, and waits until it has what it asks for or has stalled for 10 seconds. The kernel counts
/// these: on a slow machine that takes longer.
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

/// A container that grows from 60 to 130 MiB while its limit of 250 MiB is cut to 100, at a pace that lets the runtime's write fall
/// into that. Tells what the runtime says, and how often the kernel had to kill for that write.
pub fn grows_while_it_is_cut(
    node: &Node,
    pod: &Pod,
    milliseconds_per_mib: u64,
) -> Result<(bool, u64)> {
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
    let killed =
        output.stdout.trim().parse().with_context(|| format!("counting kills: {output:?}"))?;
    Ok((output.status.success(), killed))
}

/// The pods of [`balloon`], by name: what they request, their limit, and what they come to use, in MiB. The first two stay within
/// what they request. The others use more than three times that, but less than their memory.high: together more than the node has.
const BALLOONS: [(&str, u64, u64, u64); 5] = [
    ("a", 160, 400, 150),
    ("b", 80, 200, 75),
    ("c", 80, 800, 640),
    ("d", 80, 400, 300),
    ("e", 80, 400, 300),
];

/// How many pods follow in [`balloon`] at most.
const MORE: usize = 5;

/// What came of [`balloon`].
#[derive(Debug)]
pub struct Balloon {
    /// The pods whose container lives.
    pub alive: Vec<&'static str>,
    /// How often the kernel killed because the whole node was out of memory.
    pub node_kills: usize,
    /// How often it killed because of a limit: by the cgroup that has it.
    pub limit_kills: Vec<String>,
    /// How much page cache of system.slice was taken from it and read again, in pages (workingset_refault_file).
    pub refaults: u64,
    /// How long calls of the runtime took, made one after another meanwhile.
    pub runtime: Latency,
    /// How long it took a service in system.slice to read what it works with, again and again.
    pub service: Latency,
}

/// How long something took.
#[derive(Debug)]
pub struct Latency {
    /// How often it was done.
    pub count: usize,
    /// How often it failed.
    pub failures: usize,
    /// The longest, in milliseconds.
    pub slowest: u64,
}

/// Pods A to E, whose limits are far above what they request, use more and more until the node has no more; all at once.
///
/// If that takes less than `enough` pages of page cache from system.slice, one pod after the other follows that takes whatever there
/// is, at most `MORE` of them.
pub fn balloon(kubelet: &mut Kubelet<'_>, node: &Node, enough: u64) -> Result<Balloon> {
    let specs = BALLOONS.map(|(name, request, limit, _)| {
        PodSpec::new(name)
            .container(ContainerSpec::new("app").request(request * MIB).limit(limit * MIB))
    });
    let mut pods = kubelet.run_pods(specs.into())?;
    // In the slice of the system's services, as the runtime and the kubelet are; what calls from a shell is not.
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
        // Until it is killed, or has more than the node.
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

/// Runs a script, waits until the service that reads all it works with has done so once more from the beginning, and returns how many
/// pages of system.slice were read again since they had been taken from it.
fn refaults(node: &Node, script: &str) -> Result<u64> {
    let script = format!(
        "{script}seen=$(wc -l </run/probe-service)
         until [ $(wc -l </run/probe-service) -ge $((seen + 2)) ]; do sleep 0.1; done
         awk '$1 == \"workingset_refault_file\" {{ print $2 }}' {}/system.slice/memory.stat",
        cgroup::ROOT
    );
    // A machine with other things to do is slow to read it all while memory is short.
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

/// Reads lines of an exit status and milliseconds.
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

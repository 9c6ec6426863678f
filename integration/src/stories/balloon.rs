//! Pods that together need more memory than the node has.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::kubelet::{ContainerSpec, Kubelet, MIB, Pod, PodSpec};
use crate::machine::Node;
use crate::probe::cgroup;
use crate::stories::resizes::read_fate;

/// The pods of [`balloon`]: name, request in MiB, limit in MiB and final usage in MiB.
///
/// The first two pods stay within their requests. The other pods use more than three times their
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
    /// The number of OOM kills that happened because the whole node was out of memory.
    pub node_kills: usize,
    /// The OOM kills that a memory limit caused. Each entry is the cgroup that has the limit.
    pub limit_kills: Vec<String>,
    /// Number of pages of system.slice's page cache that the kernel reclaimed and then read again
    /// (workingset_refault_file).
    pub refaults: u64,
    /// The latency of calls to the runtime. A service made the calls one after another while the
    /// pods allocated memory.
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
/// The limits of these pods are far above their requests. If the kernel reclaims fewer than
/// `enough` pages of system.slice's page cache, this function starts at most `MORE` additional
/// pods. Each additional pod takes all memory that it can get.
pub fn balloon(kubelet: &mut Kubelet<'_>, node: &Node, enough: u64) -> Result<Balloon> {
    let specs = BALLOONS.map(|(name, request, limit, _)| {
        PodSpec::new(name)
            .container(ContainerSpec::new("app").request(request * MIB).limit(limit * MIB))
    });
    let mut pods = kubelet.run_pods(specs.into())?;
    start_probes(node)?;
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
    let outcome = outcome(node, &pods, taken)?;
    kubelet.remove_pods(&pods)?;
    Ok(outcome)
}

/// Starts the services whose latency is measured.
fn start_probes(node: &Node) -> Result<()> {
    // The probes run in system.slice, like the runtime and the kubelet. Commands from the ssh shell
    // run in another slice.
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
    node.run(&script).context("starting the probes")?;
    Ok(())
}

/// Stops the services and returns the outcome.
fn outcome(node: &Node, pods: &[Pod], refaults: u64) -> Result<Balloon> {
    let output = node.run(
        "systemctl stop probe-runtime probe-service
         dmesg | grep -o 'oom-kill:constraint=.*' || true
         echo END-OF-KILLS; cat /run/probe-runtime
         echo END-OF-RUNTIME; cat /run/probe-service",
    )?;
    let (kills, rest) =
        output.stdout.split_once("END-OF-KILLS").context("the output has no list of kills")?;
    let (runtime, service) =
        rest.split_once("END-OF-RUNTIME").context("the output has no latencies")?;
    let of_limits =
        kills.lines().filter_map(|line| line.split_once("oom_memcg=")?.1.split(',').next());
    let mut alive = Vec::new();
    for (pod, (name, ..)) in pods.iter().zip(BALLOONS) {
        if read_fate(node, pod)?.0 {
            alive.push(name);
        }
    }
    Ok(Balloon {
        alive,
        node_kills: kills
            .lines()
            .filter(|line| line.contains("constraint=CONSTRAINT_NONE"))
            .count(),
        limit_kills: of_limits.map(str::to_owned).collect(),
        refaults,
        runtime: latency(runtime)?,
        service: latency(service)?,
    })
}

/// Runs a script and returns the number of pages of system.slice that the kernel has reclaimed and
/// read again.
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
    // Use a long time limit, because a busy host reads the working set slowly while memory is
    // short.
    let output = node
        .try_run_within(Duration::from_secs(900), &script, Vec::new())
        .context("allocating memory in all pods")?;
    ensure!(
        output.status.success(),
        "allocating memory in all pods ({}): {}",
        output.status,
        output.stderr.trim_end()
    );
    output.stdout.trim().parse().with_context(|| {
        format!("the script must print the number of refaults, but printed {:?}", output.stdout)
    })
}

/// Parses lines that each contain an exit status and a duration in milliseconds.
fn latency(lines: &str) -> Result<Latency> {
    let mut latency = Latency { count: 0, failures: 0, slowest: 0 };
    for line in lines.lines().filter(|line| !line.is_empty()) {
        let (status, milliseconds) = line
            .split_once(' ')
            .with_context(|| format!("{line:?} is not an exit status and milliseconds"))?;
        latency.count += 1;
        latency.failures += usize::from(status != "0");
        latency.slowest = latency.slowest.max(
            milliseconds
                .parse()
                .with_context(|| format!("{line:?} is not an exit status and milliseconds"))?,
        );
    }
    ensure!(latency.count > 0, "the probe measured no operation");
    Ok(latency)
}

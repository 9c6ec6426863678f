//! Tests of in-place resizes: the new limits must reach the cgroups of containers and pods.

use std::collections::HashMap;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nri::api::{Event, LinuxCPU, LinuxResources, OptionalInt64, OptionalUInt64};
use nri::runtime::Options;
use plimsoll_core::policy::contention::REPAIRS;
use tokio::time::{sleep, timeout};

use crate::harness::{self, Daemon, MIB, Node, Pod, Runtime, memory_limit};

/// Starts a node with the plugin, and a runtime without containers.
async fn start() -> (Node, Daemon, Runtime) {
    let node = Node::new();
    let daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    (node, daemon, runtime)
}

/// Sets the CPU limit. `quota` is in microseconds per 100000 us, so 100000 is one CPU.
fn cpu(mut resources: LinuxResources, quota: i64) -> LinuxResources {
    let quota = Some(OptionalInt64 { value: quota, ..Default::default() }).into();
    let period = Some(OptionalUInt64 { value: 100_000, ..Default::default() }).into();
    resources.cpu = Some(LinuxCPU { quota, period, ..Default::default() }).into();
    resources
}

/// Returns another container of the pod.
fn beside(pod: &Pod, name: &str, limit: i64) -> Pod {
    let mut other = pod.clone();
    other.container.id = format!("id-{name}");
    other.container.name = name.into();
    let path = format!("{}/{}", pod.cgroup(), other.container.id);
    other.linux().cgroups_path = path;
    other.linux().resources = Some(memory_limit(limit)).into();
    other
}

#[tokio::test]
async fn limits_increased_during_downtime_reach_the_pod() {
    let (_node, mut daemon, runtime) = start().await;
    let mut hungry = Pod::new("burstable", "h", 100 * MIB);
    *hungry.linux().resources.as_mut().unwrap() = cpu(memory_limit(100 * MIB), 10_000);
    runtime.make_cgroup(&hungry);
    runtime.set_file(&hungry.cgroup(), "memory.max", &(100 * MIB).to_string());
    runtime.set_file(&hungry.cgroup(), "cpu.max", "10000 100000\n");
    runtime.run(&hungry).await;
    // The kernel kills the container. The kubelet creates the next container with another ID and a
    // higher limit, but does not raise the limit of the pod's cgroup.
    fs::remove_dir_all(runtime.cgroup(&hungry)).unwrap();
    let mut again = beside(&hungry, "again", 0);
    again.container.name = hungry.container.name.clone();
    *again.linux().resources.as_mut().unwrap() = cpu(memory_limit(200 * MIB), 30_000);
    runtime.create(&again).await;
    assert_eq!(runtime.file(&hungry.cgroup(), "memory.max"), (200 * MIB).to_string());
    assert_eq!(runtime.file(&hungry.cgroup(), "cpu.max"), "30000 100000");
    for (knob, from) in
        [("memory.max", "observed=104857600"), ("cpu.max", "observed=\"10000 100000\"")]
    {
        let line = daemon.says("raised the pod's limit").await;
        assert!(line.contains(&format!("knob=\"{knob}\"")) && line.contains(from), "{line}");
    }
}

#[tokio::test]
async fn updates_raise_and_never_lower_pod_limits() {
    let (_node, _daemon, runtime) = start().await;
    let pod = Pod::new("burstable", "b", 100 * MIB).overhead(8 * MIB);
    let side = beside(&pod, "side", 50 * MIB);
    runtime.make_cgroup(&pod);
    runtime.set_file(&pod.cgroup(), "memory.max", &(158 * MIB).to_string());
    runtime.set_file(&pod.cgroup(), "cpu.max", "max 100000");
    runtime.run(&pod).await;
    runtime.make_cgroup(&side);
    runtime.run(&side).await;
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), (158 * MIB).to_string());
    for (limit, expected) in [(120, 178), (80, 178), (130, 188)] {
        runtime.update(&pod, memory_limit(limit * MIB)).await;
        assert_eq!(
            runtime.file(&pod.cgroup(), "memory.max"),
            (expected * MIB).to_string(),
            "limit {limit} MiB"
        );
        fs::write(runtime.cgroup(&pod).join("memory.max"), format!("{}\n", limit * MIB)).unwrap();
        runtime.updated(&pod).await;
    }
    // The pod has no CPU limit, so the plugin sets none.
    runtime.update(&pod, cpu(LinuxResources::default(), 20_000)).await;
    assert_eq!(runtime.file(&pod.cgroup(), "cpu.max"), "max 100000");
}

#[tokio::test]
async fn missing_limits_leave_the_pod_limit_unchanged() {
    let (_node, _daemon, runtime) = start().await;
    let pod = Pod::new("burstable", "b", 100 * MIB);
    runtime.make_cgroup(&pod);
    runtime.run(&pod).await;
    runtime.update(&pod, memory_limit(120 * MIB)).await;
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), "max");
    runtime.set_file(&pod.cgroup(), "memory.max", &(120 * MIB).to_string());
    // An ephemeral container without a limit, as `kubectl debug` makes it.
    let debug = beside(&pod, "debug", 0);
    runtime.make_cgroup(&debug);
    runtime.run(&debug).await;
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), (120 * MIB).to_string());
}

#[tokio::test]
async fn only_checkpointed_pods_have_lower_limits_raised() {
    let node = Node::new();
    node.checkpoint_with_limits("known", &[("app", 200)]);
    let _daemon = node.start();
    let runtime = node.accept().await;
    let (known, unknown) =
        (Pod::new("burstable", "known", 200 * MIB), Pod::new("burstable", "unknown", 200 * MIB));
    for pod in [&known, &unknown] {
        runtime.make_cgroup(pod);
        runtime.set_file(&pod.cgroup(), "memory.max", &(100 * MIB).to_string());
    }
    runtime.synchronize(&[&known, &unknown]).await;
    runtime.holds(&known.cgroup(), "memory.max", 200 * MIB).await;
    runtime.set_file(&known.cgroup(), "memory.max", &(150 * MIB).to_string());
    runtime.holds(&known.cgroup(), "memory.max", 200 * MIB).await;
    // The kubelet's checkpoints have no entry for this pod, so the user may have intended the pod's
    // low limit.
    assert_eq!(runtime.file(&unknown.cgroup(), "memory.max"), (100 * MIB).to_string());
}

/// Starts a pod whose limit, as the plugin can prove, is the sum of its containers' limits. The
/// plugin has raised the limit from 100 MiB to this sum, 200 MiB.
async fn raised(config: &str) -> (Node, Daemon, Runtime, Pod) {
    let node = Node::new();
    node.replace("plimsoll.yaml", config);
    node.checkpoint_with_limits("known", &[("app", 200)]);
    let mut daemon = node.start();
    let mut runtime = node.accept().await;
    let pod = Pod::new("burstable", "known", 200 * MIB);
    runtime.make_cgroup(&pod);
    runtime.set_file(&pod.cgroup(), "memory.max", &(100 * MIB).to_string());
    runtime.synchronize(&[&pod]).await;
    // The plugin watches the pod's cgroup once the values are verified.
    runtime.serve_update(&[&pod]).await;
    daemon.says("verified").await;
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), (200 * MIB).to_string());
    (node, daemon, runtime, pod)
}

#[tokio::test]
async fn repeatedly_lowered_pod_memory_becomes_contended() {
    let (_node, mut daemon, runtime, pod) = raised("logLevel: debug\n").await;
    for lower in 101..106 {
        runtime.set_file(&pod.cgroup(), "memory.max", &(lower * MIB).to_string());
        runtime.holds(&pod.cgroup(), "memory.max", 200 * MIB).await;
    }
    let last = (106 * MIB).to_string();
    runtime.set_file(&pod.cgroup(), "memory.max", &last);
    let line = daemon.says("outcome=contended").await;
    assert!(line.contains("memory.max") && line.contains(&last), "{line}");
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), last);
    // The limit also stays after an event about other resources.
    runtime.update(&pod, cpu(LinuxResources::default(), 20_000)).await;
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), last);
    // The conflict does not stop a resize by the kubelet.
    runtime.update(&pod, memory_limit(250 * MIB)).await;
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), (250 * MIB).to_string());
}

#[tokio::test]
async fn without_repair_a_pods_lower_limit_stays() {
    let config = "logLevel: debug\nrepair: false\n";
    let (node, mut daemon, mut runtime, pod) = raised(config).await;
    let lower = (150 * MIB).to_string();
    runtime.set_file(&pod.cgroup(), "memory.max", &lower);
    daemon.says("so the plugin leaves the changed value").await;
    // Each new configuration makes the plugin check everything. The second request shows that the
    // first check has ended.
    for headroom in ["8Mi", "16Mi"] {
        node.replace("plimsoll.yaml", &format!("{config}memoryMinHeadroom: {headroom}\n"));
        runtime.serve_update(&[&pod]).await;
    }
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), lower);
}

/// Writes the kubelet's checkpoint of pod `b`: 200 MiB and `cpu` as limits of its container, and
/// pod-level resources without a limit.
fn record_limits(node: &Node, cpu: &str) {
    let app = serde_json::json!({ "app": { "limits": { "memory": "200Mi", "cpu": cpu } } });
    node.checkpoint_of_pod("b", &app, &serde_json::json!({ "limits": {} }));
}

/// Runs pod `b`, whose limits of 200 MiB and a tenth of a CPU equal the limits of its container.
async fn run_with_cpu_limit(node: &Node, runtime: &Runtime) -> Pod {
    let mut pod = Pod::new("burstable", "b", 200 * MIB);
    *pod.linux().resources.as_mut().unwrap() = cpu(memory_limit(200 * MIB), 10_000);
    record_limits(node, "100m");
    runtime.make_cgroup(&pod);
    runtime.set_file(&pod.cgroup(), "memory.max", &(200 * MIB).to_string());
    runtime.set_file(&pod.cgroup(), "cpu.max", "10000 100000");
    runtime.run(&pod).await;
    pod
}

#[tokio::test]
async fn unrepaired_memory_limits_block_no_cpu_increase() {
    let node = Node::new();
    node.replace("plimsoll.yaml", "logLevel: debug\nrepair: false\n");
    let mut daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    let pod = run_with_cpu_limit(&node, &runtime).await;
    daemon.says("verified").await;
    let lower = (150 * MIB).to_string();
    runtime.set_file(&pod.cgroup(), "memory.max", &lower);
    daemon.says("so the plugin leaves the changed value").await;
    record_limits(&node, "300m");
    runtime.update(&pod, cpu(memory_limit(200 * MIB), 30_000)).await;
    assert_eq!(runtime.file(&pod.cgroup(), "cpu.max"), "30000 100000");
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), lower);
}

/// Runs a pod with one container. The plugin has raised the pod's `cpu.max` together with the
/// container's limit. Returns the pod and the container's limits.
async fn with_more_processor_time(node: &Node, runtime: &Runtime) -> (Pod, LinuxResources) {
    let pod = run_with_cpu_limit(node, runtime).await;
    record_limits(node, "200m");
    let more = cpu(memory_limit(200 * MIB), 20_000);
    runtime.update(&pod, more.clone()).await;
    assert_eq!(runtime.file(&pod.cgroup(), "cpu.max"), "20000 100000");
    (pod, more)
}

#[tokio::test]
async fn repeatedly_lowered_pod_cpu_becomes_contended() {
    let (node, mut daemon, runtime) = start().await;
    let (pod, same) = with_more_processor_time(&node, &runtime).await;
    let lower = "15000 100000";
    let raises = async {
        for _ in 0..REPAIRS {
            runtime.set_file(&pod.cgroup(), "cpu.max", lower);
            // The plugin checks `cpu.max` with each event of the pod. The plugin waits longer
            // before each repeated raise.
            while runtime.file(&pod.cgroup(), "cpu.max") == lower {
                runtime.update(&pod, same.clone()).await;
            }
        }
        runtime.set_file(&pod.cgroup(), "cpu.max", lower);
        loop {
            runtime.update(&pod, same.clone()).await;
            assert_eq!(
                runtime.file(&pod.cgroup(), "cpu.max"),
                lower,
                "the plugin must raise cpu.max once more"
            );
            if let Ok(line) =
                tokio::time::timeout(Duration::from_millis(50), daemon.says("outcome=contended"))
                    .await
            {
                return line;
            }
        }
    };
    let line = tokio::time::timeout(Duration::from_secs(60), raises).await.unwrap();
    assert!(
        line.contains("knob=\"cpu.max\"") && line.contains(&format!("observed=\"{lower}\"")),
        "{line}"
    );
    // The user's request for another limit is new, so the plugin raises the pod's limit.
    runtime.update(&pod, cpu(memory_limit(200 * MIB), 30_000)).await;
    assert_eq!(runtime.file(&pod.cgroup(), "cpu.max"), "30000 100000");
}

#[tokio::test]
async fn a_lowered_cpu_limit_stays_without_repair() {
    let node = Node::new();
    node.replace("plimsoll.yaml", "repair: false\n");
    let _daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    let (pod, same) = with_more_processor_time(&node, &runtime).await;
    let lower = "15000 100000";
    runtime.set_file(&pod.cgroup(), "cpu.max", lower);
    for _ in 0..2 {
        runtime.update(&pod, same.clone()).await;
        assert_eq!(runtime.file(&pod.cgroup(), "cpu.max"), lower);
    }
}

#[tokio::test]
async fn limit_increases_keep_a_tighter_pod_limit() {
    let (_node, _daemon, runtime) = start().await;
    let pod = Pod::new("burstable", "b", 200 * MIB);
    runtime.make_cgroup(&pod);
    runtime.set_file(&pod.cgroup(), "memory.max", &(150 * MIB).to_string());
    runtime.run(&pod).await;
    runtime.update(&pod, memory_limit(300 * MIB)).await;
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), (150 * MIB).to_string());
}

#[tokio::test]
async fn what_an_update_does_not_mention_stays() {
    let (_node, mut daemon, runtime) = start().await;
    let mut pod = Pod::new("burstable", "b", 100 * MIB);
    *pod.linux().resources.as_mut().unwrap() = cpu(memory_limit(100 * MIB), 30_000);
    runtime.make_cgroup(&pod);
    runtime.set_file(&pod.cgroup(), "memory.max", &(100 * MIB).to_string());
    runtime.set_file(&pod.cgroup(), "cpu.max", "30000 100000");
    fs::write(runtime.cgroup(&pod).join("cpu.max"), "30000 100000\n").unwrap();
    runtime.run(&pod).await;
    daemon.says("outcome=unchanged").await;
    // containerd sends 0 for values that its client has not set.
    let mut resources = cpu(memory_limit(200 * MIB), 0);
    resources.cpu.as_mut().unwrap().period = Some(OptionalUInt64::default()).into();
    let asked = runtime.update(&pod, resources).await;
    assert_eq!(runtime.file(&pod.cgroup(), "cpu.max"), "30000 100000");
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), (200 * MIB).to_string());
    runtime.apply(&pod, &asked);
    fs::write(runtime.cgroup(&pod).join("memory.max"), format!("{}\n", 200 * MIB)).unwrap();
    runtime.updated(&pod).await;
    daemon.signal(rustix::process::Signal::TERM);
    while let Some(line) = daemon.messages.recv().await {
        assert!(!line.contains("the runtime reported a successful resize"), "{line}");
    }
}

#[tokio::test]
async fn containers_are_adjusted_without_a_pod_cgroup() {
    let (_node, _daemon, runtime) = start().await;
    let pod = Pod::new("burstable", "b", 100 * MIB);
    let adjusted = runtime.create(&pod).await;
    assert!(!adjusted.is_empty());
}

/// Runs a container with a limit of 250 MiB.
async fn runs(runtime: &Runtime, daemon: &mut Daemon) -> Pod {
    let pod = Pod::new("burstable", "b", 250 * MIB);
    runtime.make_cgroup(&pod);
    runtime.run(&pod).await;
    daemon.says("outcome=unchanged").await;
    pod
}

async fn cut(runtime: &Runtime, pod: &Pod, limit: i64) -> Result<HashMap<String, String>, String> {
    let (sandbox, container) = (pod.sandbox.clone(), pod.container.clone());
    let reply = runtime.connection.update_container(sandbox, container, memory_limit(limit)).await;
    let mut reply = reply.map_err(|error| error.to_string())?;
    Ok(reply.update.remove(0).linux.unwrap_or_default().resources.unwrap_or_default().unified)
}

fn files(cgroup: &Path) -> Vec<String> {
    let names = ["memory.min", "memory.low", "memory.high", "memory.max"];
    names.map(|name| fs::read_to_string(cgroup.join(name)).unwrap().trim_end().to_owned()).into()
}

#[tokio::test]
async fn pod_limit_decreases_are_refused_byte_exactly() {
    let node = Node::new();
    let mut daemon = node.start();
    let runtime = node.serve(node.trunk().await, harness::crio()).await;
    runtime.synchronize(&[]).await;
    // The kubelet lowers the container's limit before the pod's limit.
    let pod = Pod::new("burstable", "b", 100 * MIB);
    runtime.make_cgroup(&pod);
    runtime.run(&pod).await;
    let cgroup = runtime.path(&pod.cgroup());
    runtime.set_file(&pod.cgroup(), "memory.max", &(250 * MIB).to_string());
    fs::write(
        cgroup.join("memory.stat"),
        format!("inactive_anon {}\ninactive_file {}\n", 118 * MIB, 10 * MIB),
    )
    .unwrap();
    fs::write(cgroup.join("memory.current"), format!("{}\n", 128 * MIB)).unwrap();
    let ask = async |overhead: i64, limit: i64| {
        let (overhead, limit) = (memory_limit(overhead), memory_limit(limit));
        runtime.connection.update_pod_sandbox(pod.sandbox.clone(), overhead, limit).await
    };
    for _ in 0..2 {
        let refusal = ask(0, 118 * MIB - 1).await.unwrap_err().to_string();
        assert!(refusal.contains("memory limit of the pod not lowered"), "{refusal}");
    }
    let line = daemon.says("rejected a limit decrease").await;
    let parts = [
        "desired=123727872",
        "observed=262144000",
        "usage=134217728",
        "reclaimable=10485760",
        "outcome=rejected",
    ];
    assert!(parts.iter().all(|part| line.contains(part)) && !line.contains("container="), "{line}");
    // The plugin accepts an unchanged or higher limit, and an update without a memory limit. The
    // pod's limit includes the overhead.
    for (overhead, limit) in [(0, 250 * MIB), (0, 0), (10 * MIB, 240 * MIB)] {
        ask(overhead, limit).await.unwrap();
    }
    // The plugin reclaims page cache until the usage equals the limit.
    harness::reclaims(cgroup.clone(), 128 * MIB, 10 * MIB);
    ask(0, 118 * MIB).await.unwrap();
    assert_eq!(
        fs::read_to_string(cgroup.join("memory.current")).unwrap().trim(),
        (118 * MIB).to_string()
    );
    assert_eq!(
        runtime.file(&pod.cgroup(), "memory.max"),
        (250 * MIB).to_string(),
        "only the kubelet may lower the pod's limit"
    );
    // The sum of the containers' limits exceeds the pod's limit, so a 4 % margin is required.
    let side = beside(&pod, "side", 100 * MIB);
    runtime.make_cgroup(&side);
    runtime.run(&side).await;
    ask(0, 122 * MIB).await.unwrap_err();
    ask(0, 123 * MIB).await.unwrap();
    // After the second container has ended, no margin is needed. The plugin notices the end even if
    // the runtime does not report the end.
    fs::remove_dir_all(runtime.cgroup(&side)).unwrap();
    ask(0, 118 * MIB).await.unwrap();
}

#[tokio::test]
async fn unsafe_decreases_are_refused_with_constant_text() {
    let (_node, mut daemon, runtime) = start().await;
    let pod = runs(&runtime, &mut daemon).await;
    runtime.uses(&pod, 128 * MIB, 10 * MIB);
    let before = files(&runtime.cgroup(&pod));
    let first = cut(&runtime, &pod, 100 * MIB).await.unwrap_err();
    assert!(first.contains("would be killed"), "{first}");
    let line = daemon.says("rejected a limit decrease").await;
    for part in [
        "desired=104857600",
        "observed=262144000",
        "usage=134217728",
        "reclaimable=10485760",
        "outcome=rejected",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    runtime.uses(&pod, 129 * MIB, 10 * MIB);
    assert_eq!(cut(&runtime, &pod, 99 * MIB).await.unwrap_err(), first);
    assert_eq!(files(&runtime.cgroup(&pod)), before);
    assert_eq!(
        runtime.file("kubepods/burstable", "memory.min"),
        "0",
        "the container's request is unknown"
    );
    // After the container has freed memory, the plugin accepts the same limit.
    runtime.uses(&pod, 60 * MIB, 0);
    let unified = cut(&runtime, &pod, 100 * MIB).await.unwrap();
    assert!(unified.contains_key("memory.high"), "{unified:?}");
    // The plugin accepts an unchanged or higher limit at any usage.
    runtime.uses(&pod, 249 * MIB, 0);
    for limit in [250 * MIB, 300 * MIB, 0, -1] {
        cut(&runtime, &pod, limit).await.unwrap();
    }
    for limit in [1, 4096] {
        assert_eq!(cut(&runtime, &pod, limit).await.unwrap_err(), first, "{limit}");
    }
}

#[tokio::test]
async fn decreases_reclaim_cache_and_lower_memory_high() {
    let (_node, mut daemon, runtime) = start().await;
    let pod = runs(&runtime, &mut daemon).await;
    runtime.uses(&pod, 128 * MIB, 120 * MIB);
    harness::reclaims(runtime.cgroup(&pod), 128 * MIB, 120 * MIB);
    let unified = cut(&runtime, &pod, 60 * MIB).await.unwrap();
    let current: i64 = runtime.read(&pod, "memory.current").parse().unwrap();
    assert!(current <= 58 * MIB, "{current}");
    let line: i64 = runtime.read(&pod, "memory.high").parse().unwrap();
    assert!((current..=58 * MIB).contains(&line), "{line}, with {current} in use");
    // The runtime writes this `memory.high` after the limit.
    let high: i64 = unified["memory.high"].parse().unwrap();
    assert!(high <= 60 * MIB, "{high}");
    fs::write(runtime.cgroup(&pod).join("memory.max"), (60 * MIB).to_string()).unwrap();
    runtime.apply(&pod, &unified);
    runtime.updated(&pod).await;
    daemon.says("outcome=unchanged").await;
}

#[tokio::test]
async fn memory_high_is_restored_after_unapplied_decreases() {
    let (_node, mut daemon, runtime) = start().await;
    let mut pod = Pod::new("guaranteed", "g", 250 * MIB);
    pod.linux().oom_score_adj.as_mut().unwrap().value = -997;
    runtime.make_cgroup(&pod);
    runtime.run(&pod).await;
    daemon.says("outcome=unchanged").await;
    runtime.uses(&pod, 20 * MIB, 0);
    cut(&runtime, &pod, 60 * MIB).await.unwrap();
    assert_eq!(runtime.read(&pod, "memory.high"), (20 * MIB).to_string());
    // The runtime neither sets the limit nor reports a result. After 15 s
    // (`UPDATE_CHECK_DELAY` in `agent/reconciler/mod.rs`) the plugin restores `memory.high`.
    daemon.says("outcome=applied").await;
    runtime.holds(&format!("{}/{}", pod.cgroup(), pod.container.id), "memory.high", "max").await;
}

#[tokio::test]
async fn restarts_during_decreases_restore_memory_high() {
    let (node, mut daemon, runtime) = start().await;
    // No source contains the container's request, so the plugin leaves memory.high alone.
    node.write("host/var/lib/kubelet/actuated_pods_state", "torn");
    let mut pod = Pod::new("burstable", "b", 250 * MIB);
    pod.linux().oom_score_adj = None.into();
    runtime.make_cgroup(&pod);
    runtime.run(&pod).await;
    daemon.says("outcome=unchanged").await;
    assert_eq!(runtime.read(&pod, "memory.high"), "max");
    fs::write(runtime.cgroup(&pod).join("memory.high"), (240 * MIB).to_string()).unwrap();
    runtime.uses(&pod, 50 * MIB, 0);
    cut(&runtime, &pod, 100 * MIB).await.unwrap();
    assert_eq!(runtime.read(&pod, "memory.high"), (50 * MIB).to_string());
    daemon.signal(rustix::process::Signal::KILL);
    runtime.connection.closed().await;

    let mut daemon = node.start();
    let mut runtime = node.accept().await;
    runtime.synchronize(&[&pod]).await;
    let requested = runtime.serve_update(&[&pod]).await;
    assert_eq!(requested[&pod.container.id]["memory.high"], (240 * MIB).to_string());
    daemon.says("outcome=applied").await;
    assert_eq!(runtime.read(&pod, "memory.high"), (240 * MIB).to_string());
}

#[tokio::test]
async fn repairs_under_foreign_limits_skip_the_runtime() {
    let (_node, mut daemon, mut runtime) = start().await;
    let mut pod = Pod::new("guaranteed", "g", 250 * MIB);
    pod.linux().oom_score_adj.as_mut().unwrap().value = -997;
    runtime.make_cgroup(&pod);
    runtime.run(&pod).await;
    daemon.says("outcome=unchanged").await;
    // Another program raises the limit. The runtime would write its own limit with each request.
    let cgroup = runtime.cgroup(&pod);
    fs::write(cgroup.join("memory.max"), (400 * MIB).to_string()).unwrap();
    runtime.uses(&pod, 300 * MIB, 0);
    for high in [200, 210, 220] {
        fs::write(cgroup.join("memory.high"), (high * MIB).to_string()).unwrap();
        let pod_cgroup = format!("{}/{}", pod.cgroup(), pod.container.id);
        runtime.holds(&pod_cgroup, "memory.high", "max").await;
    }
    assert!(runtime.updates.try_recv().is_err(), "the plugin must not ask the runtime");
}

#[tokio::test]
async fn rapid_refusals_are_each_counted() {
    let (node, mut daemon, runtime) = start().await;
    let pod = runs(&runtime, &mut daemon).await;
    runtime.uses(&pod, 128 * MIB, 10 * MIB);
    for _ in 0..500 {
        assert!(cut(&runtime, &pod, 100 * MIB).await.unwrap_err().contains("would be killed"));
    }
    let metrics = node.metrics().await;
    let counted = metrics
        .lines()
        .find(|line| line.starts_with("plimsoll_resizes_total{outcome=\"rejected\"}"));
    assert_eq!(counted, Some("plimsoll_resizes_total{outcome=\"rejected\"} 500"));
}

#[tokio::test]
async fn blocked_reclaims_refuse_the_decrease_in_time() {
    let node = Node::new();
    let mut daemon = node.start();
    let options = Options { request_timeout: Duration::from_secs(4), ..Options::default() };
    let runtime = node.serve(node.trunk().await, options).await;
    runtime.synchronize(&[]).await;
    let pod = runs(&runtime, &mut daemon).await;
    runtime.uses(&pod, 128 * MIB, 120 * MIB);
    let before = files(&runtime.cgroup(&pod));
    // Opening a FIFO for writing blocks until another thread opens it for reading.
    let fifo = runtime.cgroup(&pod).join("memory.reclaim");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    let start = Instant::now();
    assert!(cut(&runtime, &pod, 60 * MIB).await.unwrap_err().contains("would be killed"));
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "the refusal must come within half of the timeout: {:?}",
        start.elapsed()
    );
    // A second attempt fails at once, because the plugin makes one attempt at a time.
    assert!(cut(&runtime, &pod, 60 * MIB).await.is_err());
    // The reclaim ends, and the usage fits below the limit. The plugin has already refused the
    // limit, so the late attempt changes nothing, and the next attempt may begin.
    runtime.uses(&pod, 20 * MIB, 0);
    let reader = std::thread::spawn(move || fs::read_to_string(fifo).unwrap());
    loop {
        assert_eq!(files(&runtime.cgroup(&pod)), before);
        match cut(&runtime, &pod, 60 * MIB).await {
            Ok(_) => break,
            Err(refusal) => assert!(refusal.contains("try again"), "{refusal}"),
        }
    }
    assert!(!reader.join().unwrap().is_empty());
}

#[tokio::test]
async fn updates_repeat_swap_limits_the_kubelet_omits() {
    let (_node, mut daemon, runtime) = start().await;
    let pod = runs(&runtime, &mut daemon).await;
    fs::write(runtime.cgroup(&pod).join("memory.swap.max"), "0\n").unwrap();
    assert_eq!(cut(&runtime, &pod, 300 * MIB).await.unwrap()["memory.swap.max"], "0");
    // The plugin omits the swap limit if the kubelet sets a swap limit.
    let mut resources = memory_limit(300 * MIB);
    resources.unified.insert("memory.swap.max".into(), "4096".into());
    assert!(!runtime.update(&pod, resources).await.contains_key("memory.swap.max"));
    fs::write(runtime.cgroup(&pod).join("memory.swap.max"), "max\n").unwrap();
    assert!(!cut(&runtime, &pod, 310 * MIB).await.unwrap().contains_key("memory.swap.max"));
}

#[tokio::test]
async fn an_unapplied_resize_is_reported_and_dropped() {
    let (_node, mut daemon, mut runtime) = start().await;
    let pod = runs(&runtime, &mut daemon).await;
    fs::write(runtime.cgroup(&pod).join("cpu.max"), "max 100000\n").unwrap();
    runtime.uses(&pod, 20 * MIB, 0);
    fs::write(runtime.cgroup(&pod).join("cpu.weight"), "50\n").unwrap();
    fs::write(runtime.cgroup(&pod).join("memory.swap.max"), "0\n").unwrap();
    // The runtime reports a successful update, but has not set the limits.
    let mut resources = cpu(memory_limit(100 * MIB), 20_000);
    resources.cpu.as_mut().unwrap().shares =
        Some(OptionalUInt64 { value: 1024, ..Default::default() }).into();
    let asked = runtime.update(&pod, resources).await;
    runtime.apply(&pod, &asked);
    fs::write(runtime.cgroup(&pod).join("memory.swap.max"), "max\n").unwrap();
    runtime.updated(&pod).await;
    for (knob, desired) in [
        ("memory.max", "104857600"),
        ("cpu.max", "\"20000 100000\""),
        ("cpu.weight", "\"1024 shares\""),
        ("memory.swap.max", "0"),
    ] {
        let line = daemon.says("the runtime reported a successful resize").await;
        assert!(line.contains(knob) && line.contains(&format!("desired={desired} ")), "{line}");
    }
    // The plugin requests from the runtime the `memory.high` that belongs to the container's
    // current limit. The runtime stores the value.
    let asked = runtime.serve_update(&[&pod]).await;
    let high: i64 = asked[&pod.container.id]["memory.high"].parse().unwrap();
    assert!(high > 200 * MIB, "{high}");
    // The plugin must accept a later CPU update, although the usage now exceeds the failed memory
    // limit.
    runtime.uses(&pod, 200 * MIB, 0);
    runtime.update(&pod, cpu(memory_limit(0), 30_000)).await;
}

#[tokio::test]
async fn an_earlier_update_disturbs_no_later_decrease() {
    let (_node, mut daemon, runtime) = start().await;
    let pod = runs(&runtime, &mut daemon).await;
    runtime.uses(&pod, 20 * MIB, 0);
    let asked = runtime.update(&pod, memory_limit(260 * MIB)).await;
    fs::write(runtime.cgroup(&pod).join("memory.max"), format!("{}\n", 260 * MIB)).unwrap();
    runtime.apply(&pod, &asked);
    runtime.updated(&pod).await;
    // The plugin's check of the first update must not restore `memory.high` during the second
    // update. This check is due 15 s after the first update (`UPDATE_CHECK_DELAY` in
    // `agent/reconciler/mod.rs`), after the end of this test.
    tokio::time::sleep(Duration::from_secs(3)).await;
    cut(&runtime, &pod, 60 * MIB).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(runtime.read(&pod, "memory.high"), (20 * MIB).to_string());
}

#[tokio::test]
async fn only_spare_memory_releases_a_throttled_container() {
    let node = Node::new();
    let config = |deadline: &str| {
        format!("nodeAllocatable: 4Gi\nlogLevel: debug\nthrottleDeadline: {deadline}\n")
    };
    node.replace("plimsoll.yaml", &config("1s"));
    let meminfo = |available| format!("MemTotal: 8388608 kB\nMemAvailable: {available} kB\n");
    node.write("host/proc/meminfo", &meminfo(400_000));
    let mut daemon = node.start();
    let mut runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    node.checkpoint("actuated_pods_state", &[("b", "app", 100 * MIB)]);
    node.checkpoint("allocated_pods_state", &[("b", "app", 100 * MIB)]);
    let pod = Pod::new("burstable", "b", 300 * MIB);
    runtime.make_cgroup(&pod);
    runtime.run(&pod).await;
    daemon.says("outcome=unchanged").await;
    assert_eq!(runtime.read(&pod, "memory.high"), (280 * MIB).to_string());
    let container = runtime.cgroup(&pod);
    let pressure = |full: &str| {
        let text = format!(
            "some avg10=95.00 avg60=0.00 avg300=0.00 total=1\nfull avg10={full} avg60=0.00 avg300=0.00 total=1\n"
        );
        fs::write(container.join("memory.pressure"), text).unwrap();
    };
    runtime.uses(&pod, 280 * MIB, 0);
    pressure("90.00");
    // The kernel keeps throttling the container. The node has less than one twentieth of its memory
    // available, so the plugin does not release the container from throttling.
    let held_back = {
        let levels = ["kubepods", "kubepods/burstable/podb"]
            .map(|level| runtime.root.join(level).join("memory.events"));
        move |count: u64| {
            for events in &levels {
                fs::write(events, format!("low 0\nhigh {count}\nmax 0\noom 0\noom_kill 0\n"))
                    .unwrap();
            }
        }
    };
    held_back(0);
    let counting = tokio::spawn(async move {
        for count in 1.. {
            tokio::time::sleep(Duration::from_millis(200)).await;
            held_back(count);
        }
    });
    assert!(tokio::time::timeout(Duration::from_secs(12), runtime.updates.recv()).await.is_err());
    node.write("host/proc/meminfo", &meminfo(4_000_000));
    let line = daemon.says("released a container that was stalled at memory.high").await;
    for part in [
        "container=\"app\"",
        "memory.high",
        "observed=293601280",
        "desired=298844160",
        "usage=293601280",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let asked = runtime.serve_update(&[&pod]).await;
    assert_eq!(asked["id-b"]["memory.high"], (285 * MIB).to_string());
    daemon.says("outcome=applied").await;
    // The container no longer needs the raised `memory.high`.
    counting.abort();
    pressure("0.00");
    runtime.uses(&pod, 100 * MIB, 0);
    daemon.says("restored memory.high of a released container").await;
    let asked = runtime.serve_update(&[&pod]).await;
    assert_eq!(asked["id-b"]["memory.high"], (280 * MIB).to_string());
}

#[tokio::test]
async fn a_limit_above_allocatable_is_reported_once() {
    let (_node, mut daemon, runtime) = start().await;
    let pod = runs(&runtime, &mut daemon).await;
    for _ in 0..2 {
        runtime.update(&pod, memory_limit(5 << 30)).await;
    }
    runtime.update(&pod, memory_limit(300 * MIB)).await;
    daemon.signal(rustix::process::Signal::TERM);
    let mut said = Vec::new();
    while let Some(line) = daemon.messages.recv().await {
        said.extend(line.contains("limit is above node allocatable").then_some(line));
    }
    let [line] = &said[..] else { panic!("{said:?}") };
    assert!(line.contains("limit=5Gi") && line.contains("allocatable=4Gi"), "{line}");
}

#[tokio::test]
async fn high_limit_request_ratios_are_reported_once() {
    let (node, mut daemon, runtime) = start().await;
    for file in ["actuated_pods_state", "allocated_pods_state"] {
        node.checkpoint(file, &[("b", "app", 64 * MIB)]);
    }
    let pod = Pod::new("burstable", "b", 256 * MIB);
    runtime.make_cgroup(&pod);
    runtime.run(&pod).await;
    for limit in [257 * MIB, 257 * MIB, 200 * MIB] {
        runtime.update(&pod, memory_limit(limit)).await;
    }
    daemon.signal(rustix::process::Signal::TERM);
    let mut said = Vec::new();
    while let Some(line) = daemon.messages.recv().await {
        said.extend(line.contains("many times its request").then_some(line));
    }
    let [line] = &said[..] else { panic!("{said:?}") };
    assert!(
        line.contains("request=64Mi") && line.contains("limit=257Mi") && line.contains("most=4.0"),
        "{line}"
    );
}

#[tokio::test]
async fn a_recorded_pod_level_limit_is_kept() {
    let (node, _daemon, runtime) = start().await;
    let pod = Pod::new("burstable", "b", 200 * MIB);
    node.checkpoint_with_pod_limit("b", "100Mi", "200Mi", "150Mi");
    runtime.make_cgroup(&pod);
    runtime.set_file(&pod.cgroup(), "memory.max", &(150 * MIB).to_string());
    runtime.run(&pod).await;
    runtime.update(&pod, memory_limit(300 * MIB)).await;
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), (150 * MIB).to_string());
}

/// Kubernetes 1.34 and 1.35 give both containers the limits of their pod. The kubelet's checkpoints
/// contain none of these limits.
#[tokio::test]
async fn unrecorded_pod_level_limits_stay_unchanged() {
    let limits = || cpu(memory_limit(200 * MIB), 50_000);
    let pod = |uid| {
        let mut pod = Pod::new("burstable", uid, 0).created_with(limits());
        *pod.linux().resources.as_mut().unwrap() = limits();
        let mut side = beside(&pod, &format!("side-{uid}"), 0);
        *side.linux().resources.as_mut().unwrap() = limits();
        (pod, side)
    };
    let (node, mut daemon, runtime) = start().await;
    // The checkpoints have an entry without limits for the first pod, and no entry for the second
    // pod. The plugin cannot read the third pod's checkpoint.
    for (ratio, (uid, record)) in
        (5..).zip([("told", Some("")), ("untold", None), ("torn", Some("torn"))])
    {
        let _ = fs::remove_file(node.path("host/var/lib/kubelet/allocated_pods_state"));
        let _ = fs::remove_file(node.path("host/var/lib/kubelet/actuated_pods_state"));
        match record {
            Some("") => node.checkpoint_with_limits(uid, &[("app", 0), ("side-told", 0)]),
            Some(torn) => node.write("host/var/lib/kubelet/actuated_pods_state", torn),
            None => {}
        }
        let (pod, side) = pod(uid);
        runtime.make_cgroup(&pod);
        runtime.set_file(&pod.cgroup(), "memory.max", &(200 * MIB).to_string());
        runtime.set_file(&pod.cgroup(), "cpu.max", "50000 100000");
        runtime.run(&pod).await;
        runtime.make_cgroup(&side);
        runtime.run(&side).await;
        // The plugin does not override a lower limit of another program.
        runtime.set_file(&pod.cgroup(), "memory.max", &(150 * MIB).to_string());
        let config =
            format!("nodeAllocatable: 4Gi\nlogLevel: debug\nmaxLimitRequestRatio: {ratio}\n");
        node.replace("plimsoll.yaml", &config);
        daemon.says("configuration changed").await;
        daemon.says("outcome=unchanged").await;
        runtime.pod_event(Event::RUN_POD_SANDBOX, &pod).await;
        runtime.update(&side, limits()).await;
        assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), (150 * MIB).to_string(), "{uid}");
        assert_eq!(runtime.file(&pod.cgroup(), "cpu.max"), "50000 100000", "{uid}");
    }
}

/// A pod-level limit of one resource does not show the origin of the pod's limits of other
/// resources.
#[tokio::test]
async fn pod_level_limits_block_only_their_resource() {
    let (node, _daemon, runtime) = start().await;
    let pod = |uid| {
        let mut pod = Pod::new("burstable", uid, 0);
        *pod.linux().resources.as_mut().unwrap() = cpu(memory_limit(100 * MIB), 10_000);
        pod
    };
    for (uid, pod_level, memory, cpu_max) in [
        ("cpu", serde_json::json!({ "cpu": "100m" }), 200, "10000 100000"),
        ("hugepages", serde_json::json!({ "hugepages-2Mi": "4Mi" }), 200, "20000 100000"),
        ("memory", serde_json::json!({ "memory": "100Mi" }), 100, "20000 100000"),
    ] {
        let pod = pod(uid);
        let app = |memory: &str, cpu: &str| serde_json::json!({ "app": { "limits": { "memory": memory, "cpu": cpu } } });
        let pod_level = serde_json::json!({ "limits": pod_level });
        node.checkpoint_of_pod(uid, &app("100Mi", "100m"), &pod_level);
        runtime.make_cgroup(&pod);
        runtime.set_file(&pod.cgroup(), "memory.max", &(100 * MIB).to_string());
        runtime.set_file(&pod.cgroup(), "cpu.max", "10000 100000");
        runtime.run(&pod).await;
        node.checkpoint_of_pod(uid, &app("200Mi", "200m"), &pod_level);
        runtime.update(&pod, cpu(memory_limit(200 * MIB), 20_000)).await;
        assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), (memory * MIB).to_string(), "{uid}");
        assert_eq!(runtime.file(&pod.cgroup(), "cpu.max").trim(), cpu_max, "{uid}");
    }
}

#[tokio::test]
async fn debug_containers_block_no_pod_limit_increase() {
    let (node, _daemon, runtime) = start().await;
    node.checkpoint_with_limits("b", &[("app", 60)]);
    let pod = Pod::new("burstable", "b", 60 * MIB);
    runtime.make_cgroup(&pod);
    runtime.set_file(&pod.cgroup(), "memory.max", &(60 * MIB).to_string());
    runtime.run(&pod).await;
    let debug = beside(&pod, "debugger", 0);
    runtime.make_cgroup(&debug);
    runtime.run(&debug).await;
    fs::remove_dir_all(runtime.cgroup(&pod)).unwrap();
    runtime.stop(&pod).await;
    // The user has resized the container while it was down. The kubelet then does not update the
    // pod's cgroup.
    node.checkpoint_with_limits("b", &[("app", 200)]);
    let mut again = beside(&pod, "again", 200 * MIB);
    again.container.name = pod.container.name.clone();
    runtime.create(&again).await;
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), (200 * MIB).to_string());
}

/// The plugin has a different proof for each of two pods. For the first pod, the limits in the
/// checkpoints added up to the pod's current limit. This proof is still valid after a reconnection.
/// For the second pod, the limits in the checkpoints add up to the pod's limit at its creation.
#[tokio::test]
async fn pod_limits_proven_as_sums_are_raised() {
    let (node, _daemon, runtime) = start().await;
    let pod = Pod::new("burstable", "b", 100 * MIB);
    let side = beside(&pod, "side", 50 * MIB);
    node.checkpoint_with_limits("b", &[("app", 100), ("side", 50)]);
    runtime.make_cgroup(&pod);
    runtime.set_file(&pod.cgroup(), "memory.max", &(150 * MIB).to_string());
    runtime.run(&pod).await;
    runtime.make_cgroup(&side);
    runtime.run(&side).await;
    drop(runtime);
    let runtime = node.accept().await;
    // The container was resized while the plugin was disconnected. The new limit alone is no proof,
    // because it is below the pod's limit.
    node.checkpoint_with_limits("b", &[("app", 120), ("side", 50)]);
    let mut resized = pod.clone();
    resized.linux().resources = Some(memory_limit(120 * MIB)).into();
    runtime.set_file(&format!("{}/id-b", pod.cgroup()), "memory.max", &(120 * MIB).to_string());
    runtime.synchronize(&[&resized, &side]).await;
    runtime.holds(&pod.cgroup(), "memory.max", 170 * MIB).await;
    let created = Pod::new("burstable", "created", 100 * MIB).created_with(memory_limit(100 * MIB));
    runtime.make_cgroup(&created);
    runtime.set_file(&created.cgroup(), "memory.max", &(80 * MIB).to_string());
    node.checkpoint_with_limits("created", &[("app", 100)]);
    runtime.run(&created).await;
    assert_eq!(runtime.file(&created.cgroup(), "memory.max"), (100 * MIB).to_string());
}

#[tokio::test]
async fn ambiguous_pod_limits_stay_with_one_report() {
    let (node, mut daemon, runtime) = start().await;
    let pod = Pod::new("burstable", "b", 100 * MIB);
    let side = beside(&pod, "side", 100 * MIB);
    node.checkpoint_with_limits("b", &[("app", 100), ("side", 100)]);
    runtime.make_cgroup(&pod);
    runtime.set_file(&pod.cgroup(), "memory.max", &(150 * MIB).to_string());
    runtime.run(&pod).await;
    runtime.make_cgroup(&side);
    runtime.run(&side).await;
    let line = daemon
        .says("the pod's limit is lower than the sum of its containers' limits, but stays")
        .await;
    assert!(
        line.contains("memory=157286400") && line.contains("memory_needed=209715200"),
        "{line}"
    );
    runtime.update(&pod, memory_limit(120 * MIB)).await;
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), (150 * MIB).to_string());
    daemon.signal(rustix::process::Signal::TERM);
    while let Some(line) = daemon.messages.recv().await {
        assert!(!line.contains("but stays"), "{line}");
    }
}

/// Starts the plugin with `shrink: defer`, and runs a container with a limit of 250 MiB. The
/// container uses 128 MiB, of which 10 MiB are page cache.
async fn deferring(deadline: &str) -> (Node, Daemon, Runtime, Pod) {
    let node = Node::new();
    let config = format!(
        "nodeAllocatable: 4Gi\nlogLevel: debug\nshrink: defer\nshrinkDeadline: {deadline}\n"
    );
    node.replace("plimsoll.yaml", &config);
    let mut daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    let pod = runs(&runtime, &mut daemon).await;
    runtime.uses(&pod, 128 * MIB, 10 * MIB);
    (node, daemon, runtime, pod)
}

/// Asks for a memory limit and an equal swap limit. Returns the memory and swap limits that the
/// plugin sets instead, or 0 for a limit that the plugin does not set.
async fn limits(runtime: &Runtime, pod: &Pod, limit: i64) -> (i64, i64) {
    let mut resources = memory_limit(limit);
    resources.memory.as_mut().unwrap().swap =
        Some(OptionalInt64 { value: limit, ..Default::default() }).into();
    let (sandbox, container) = (pod.sandbox.clone(), pod.container.clone());
    let reply = runtime
        .connection
        .update_container(sandbox, container, cpu(resources, 20_000))
        .await
        .unwrap();
    let memory = reply.update[0].linux.resources.memory.get_or_default();
    (memory.limit.get_or_default().value, memory.swap.get_or_default().value)
}

#[tokio::test]
async fn deferred_decreases_apply_through_the_runtime() {
    let (_node, mut daemon, mut runtime, pod) = deferring("10m").await;
    let before = files(&runtime.cgroup(&pod));
    assert_eq!(limits(&runtime, &pod, 100 * MIB).await, (250 * MIB, 250 * MIB));
    let line = daemon.says("deferred a limit decrease").await;
    for part in [
        "desired=104857600",
        "observed=262144000",
        "usage=134217728",
        "reclaimable=10485760",
        "outcome=deferred",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    runtime.updated(&pod).await;
    assert_eq!(files(&runtime.cgroup(&pod)), before);
    runtime.uses(&pod, 60 * MIB, 0);
    let request = runtime.updates.recv().await.unwrap();
    let resources = request.update[0].linux.resources.get_or_default();
    assert_eq!(resources.memory.limit.value, 100 * MIB);
    assert_eq!(
        runtime.read(&pod, "memory.high"),
        (60 * MIB).to_string(),
        "memory.high must equal the usage"
    );
    fs::write(runtime.cgroup(&pod).join("memory.max"), format!("{}\n", 100 * MIB)).unwrap();
    request.succeed(Vec::new());
    // The plugin then requests the `memory.high` for the new limit.
    let asked = runtime.serve_update(&[&pod]).await;
    let high: i64 = asked["id-b"]["memory.high"].parse().unwrap();
    assert!(high < 100 * MIB, "{high}");
    let line = daemon.says("applied the deferred limit decrease").await;
    assert!(line.contains("observed=104857600"), "{line}");
}

#[tokio::test]
async fn deferred_decreases_restore_high_under_constant_events() {
    let (_node, mut daemon, runtime, pod) = deferring("10m").await;
    let before = files(&runtime.cgroup(&pod));
    limits(&runtime, &pod, 100 * MIB).await;
    runtime.updated(&pod).await;
    let other = Pod::new("besteffort", "other", 0);
    runtime.make_cgroup(&other);
    let restless = async {
        loop {
            runtime.pod_event(Event::RUN_POD_SANDBOX, &other).await;
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    let held_and_let_go = async {
        runtime.uses(&pod, 60 * MIB, 0);
        runtime
            .holds(&format!("{}/{}", pod.cgroup(), pod.container.id), "memory.high", 60 * MIB)
            .await;
        daemon.says("was not quiet for").await;
        runtime
            .holds(&format!("{}/{}", pod.cgroup(), pod.container.id), "memory.high", &before[2])
            .await;
    };
    tokio::select! {
        () = restless => unreachable!("this future never ends"),
        () = held_and_let_go => {}
    }
}

#[tokio::test]
async fn deferred_decreases_expire_or_are_replaced() {
    let (_node, mut daemon, mut runtime, pod) = deferring("2s").await;
    let before = files(&runtime.cgroup(&pod));
    assert_eq!(limits(&runtime, &pod, 100 * MIB).await, (250 * MIB, 250 * MIB));
    let line = daemon.says("gave up the deferred limit").await;
    for part in ["desired=104857600", "observed=262144000", "usage=134217728", "outcome=rejected"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert_eq!(files(&runtime.cgroup(&pod)), before);
    // The limit decrease is deferred again. Then the user asks for a limit increase, which replaces
    // the deferred limit.
    limits(&runtime, &pod, 100 * MIB).await;
    assert_eq!(limits(&runtime, &pod, 300 * MIB).await, (0, 0));
    runtime.uses(&pod, 60 * MIB, 0);
    runtime.asks_for_no_limit(Duration::from_secs(4)).await;
}

#[tokio::test]
async fn observe_mode_gives_up_deferred_limits_once() {
    let (node, mut daemon, mut runtime, pod) = deferring("10m").await;
    assert_eq!(limits(&runtime, &pod, 100 * MIB).await, (250 * MIB, 250 * MIB));
    daemon.says("deferred a limit decrease").await;
    runtime.updated(&pod).await;
    node.replace(
        "plimsoll.yaml",
        "mode: observe\nnodeAllocatable: 4Gi\nlogLevel: debug\nshrink: defer\n",
    );
    let line = daemon.says("gave up the deferred limit").await;
    for part in ["desired=104857600", "observed=262144000", "usage=134217728", "outcome=rejected"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    runtime.uses(&pod, 60 * MIB, 0);
    runtime.asks_for_no_limit(Duration::from_secs(3)).await;
    daemon.signal(rustix::process::Signal::TERM);
    while let Some(line) = daemon.messages.recv().await {
        assert!(!line.contains("gave up the deferred limit"), "{line}");
    }
}

/// The unified maps that kubelets send with every request. The first map is from a kubelet without
/// MemoryQoS. The second map is from a kubelet with MemoryQoS and a policy that protects nothing.
const DEFAULTS: [&[(&str, &str)]; 2] =
    [&[("memory.high", "max")], &[("memory.min", "0"), ("memory.low", "0")]];

fn texts(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Runs a container with a request of 100 MiB and a limit of 200 MiB, created with the unified map
/// `sent`. Returns once the container has its desired values.
async fn runs_with(
    node: &Node,
    daemon: &mut Daemon,
    runtime: &mut Runtime,
    sent: &HashMap<String, String>,
) -> Pod {
    for file in ["actuated_pods_state", "allocated_pods_state"] {
        node.checkpoint(file, &[("b", "app", 100 * MIB)]);
    }
    let mut pod = Pod::new("burstable", "b", 200 * MIB);
    pod.linux().resources.as_mut().unwrap().unified.clone_from(sent);
    let created = runtime.create(&pod).await;
    assert!(
        created.keys().all(|key| !sent.contains_key(key)),
        "another plugin may have set the same key: {created:?}"
    );
    runtime.make_cgroup(&pod);
    runtime.apply(&pod, sent);
    runtime.apply(&pod, &created);
    runtime.started(&pod).await;
    let asked = runtime.serve_update(&[&pod]).await;
    assert!(asked["id-b"].keys().all(|key| sent.contains_key(key)), "{asked:?}");
    daemon.says("outcome=applied").await;
    assert_eq!(files(&runtime.cgroup(&pod)), wanted(), "{sent:?}");
    pod
}

fn wanted() -> Vec<String> {
    [100 * MIB, 0, 190 * MIB, 200 * MIB].map(|value| value.to_string()).into()
}

/// Ends the plugin, and checks that its remaining messages report no conflict and no repair.
async fn has_not_fought(mut daemon: Daemon) {
    daemon.signal(rustix::process::Signal::TERM);
    while let Some(line) = daemon.messages.recv().await {
        let is_of_fight = line.contains("outcome=contended") || line.contains("has set this");
        assert!(
            !is_of_fight && !line.contains("repaired a file that another program had changed"),
            "{line}"
        );
    }
}

#[tokio::test]
async fn resizes_with_default_claims_keep_every_value() {
    for defaults in DEFAULTS.map(texts) {
        let (node, mut daemon, mut runtime) = start().await;
        let pod = runs_with(&node, &mut daemon, &mut runtime, &defaults).await;
        for round in 0..20 {
            let mut resources = cpu(LinuxResources::default(), 20_000 + round);
            resources.unified.clone_from(&defaults);
            let stored = runtime.update(&pod, resources).await;
            runtime.apply(&pod, &defaults);
            runtime.apply(&pod, &stored);
            fs::write(runtime.cgroup(&pod).join("cpu.max"), format!("{} 100000\n", 20_000 + round))
                .unwrap();
            runtime.updated(&pod).await;
            daemon.says("outcome=unchanged").await;
            assert_eq!(files(&runtime.cgroup(&pod)), wanted(), "{defaults:?}");
        }
        assert!(
            runtime.updates.try_recv().is_err(),
            "the runtime has stored the right values already"
        );
        has_not_fought(daemon).await;
    }
}

/// The runtime does not apply the plugin's reply. NRI skips the reply's values if another plugin
/// has set the same keys. A runtime may also ignore the reply.
#[tokio::test]
async fn updates_that_undo_values_are_no_fight() {
    // The reply replaces only the kernel's defaults. The plugin overrides any other value after the
    // update.
    for (sent, is_replaced) in
        [(texts(DEFAULTS[0]), true), (texts(&[("memory.high", "4096")]), false)]
    {
        let (node, mut daemon, mut runtime) = start().await;
        let pod = runs_with(&node, &mut daemon, &mut runtime, &texts(DEFAULTS[0])).await;
        for round in 0..7 {
            let mut resources = cpu(LinuxResources::default(), 20_000 + round);
            resources.unified.clone_from(&sent);
            let stored = runtime.update(&pod, resources).await;
            assert_eq!(stored.contains_key("memory.high"), is_replaced, "{stored:?}");
            runtime.apply(&pod, &sent);
            fs::write(runtime.cgroup(&pod).join("cpu.max"), format!("{} 100000\n", 20_000 + round))
                .unwrap();
            runtime.updated(&pod).await;
            runtime.serve_update(&[&pod]).await;
            daemon.says("outcome=applied").await;
            assert_eq!(files(&runtime.cgroup(&pod)), wanted(), "{sent:?}");
        }
        has_not_fought(daemon).await;
    }
}

#[tokio::test]
async fn only_replaced_defaults_may_be_passed_over() {
    let (node, mut daemon, runtime, pod) = deferring("10m").await;
    node.checkpoint("allocated_pods_state", &[("b", "app", 64 * MIB)]);
    let parts = async |limit: i64, unified: &[(&str, &str)]| {
        let mut resources = memory_limit(limit);
        resources.unified = texts(unified);
        let (sandbox, container) = (pod.sandbox.clone(), pod.container.clone());
        let reply =
            runtime.connection.update_container(sandbox, container, resources).await.unwrap();
        let part = |update: &nri::api::ContainerUpdate| {
            let resources = update.linux.resources.get_or_default();
            let mut keys: Vec<_> = resources.unified.keys().cloned().collect();
            keys.sort_unstable();
            (update.ignore_failure, resources.memory.limit.as_ref().map(|limit| limit.value), keys)
        };
        reply.update.iter().map(part).collect::<Vec<_>>()
    };
    let keys = |keys: &[&str]| keys.iter().map(|&key| key.to_owned()).collect::<Vec<_>>();
    // The reply replaces no default, so the plugin must not allow the runtime to ignore a failure.
    let all = keys(&["memory.high", "memory.min"]);
    assert_eq!(parts(300 * MIB, &[]).await, [(false, None, all.clone())]);
    assert_eq!(
        parts(300 * MIB, &[("memory.high", "4096")]).await,
        [(false, None, keys(&["memory.min"]))]
    );
    assert_eq!(parts(300 * MIB, &[("memory.low", "0")]).await, [(false, None, all.clone())]);
    // The reply replaces a default and has no other required part, so the plugin allows the runtime
    // to ignore a failure.
    assert_eq!(parts(300 * MIB, &[("memory.high", "max")]).await, [(true, None, all.clone())]);
    // For a deferred decrease, the swap limit and the current memory limit are required. Both
    // values are in a separate update. The plugin must not allow the runtime to ignore the failure
    // of this update.
    fs::write(runtime.cgroup(&pod).join("memory.swap.max"), "0\n").unwrap();
    let deferred = parts(100 * MIB, &[("memory.high", "max")]).await;
    assert_eq!(deferred, [(false, Some(250 * MIB), keys(&["memory.swap.max"])), (true, None, all)]);
    daemon.says("deferred a limit decrease").await;
}

/// A lease on a file. While the test holds the lease, any other process that opens the file for
/// writing waits in the kernel.
struct Lease(std::fs::File);

impl Lease {
    /// Takes the lease. The kernel sends SIGIO to this process when a writer waits.
    fn on(path: &Path) -> Self {
        let ignored = signal_hook::flag::register(signal_hook::consts::SIGIO, Arc::default());
        ignored.unwrap();
        let file = std::fs::File::open(path).unwrap();
        assert_eq!(Self::control(&file, libc::F_SETLEASE, libc::F_RDLCK), 0, "{}", path.display());
        Self(file)
    }

    /// Waits until a writer waits for the file.
    async fn is_wanted(&self) {
        let waits = async {
            // The kernel answers with the kind of lease that would not block the writer.
            while Self::control(&self.0, libc::F_GETLEASE, 0) != libc::F_UNLCK {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(30), waits).await.expect("a writer opens the file");
    }

    fn control(file: &std::fs::File, command: i32, argument: i32) -> i32 {
        // SAFETY: both commands take an integer and touch no memory of this process.
        #[allow(unsafe_code)]
        unsafe {
            libc::fcntl(file.as_raw_fd(), command, argument)
        }
    }
}

#[tokio::test]
async fn hanging_memory_high_writes_block_no_create() {
    let (_node, _daemon, runtime) = start().await;
    let pod = Pod::new("burstable", "a", 256 * MIB);
    runtime.run(&pod).await;
    runtime.uses(&pod, 60 * MIB, 0);
    let lease = Lease::on(&runtime.cgroup(&pod).join("memory.high"));
    let (sandbox, container) = (pod.sandbox.clone(), pod.container.clone());
    let lowered = runtime.connection.update_container(sandbox, container, memory_limit(128 * MIB));
    let created = async {
        lease.is_wanted().await;
        let other = Pod::new("burstable", "b", 256 * MIB);
        let created = timeout(Duration::from_secs(30), runtime.create(&other)).await;
        created.expect("CreateContainer is answered while the write hangs");
        drop(lease);
    };
    let (lowered, ()) = tokio::join!(lowered, created);
    lowered.unwrap();
}

#[tokio::test]
async fn memory_high_is_written_despite_constant_events() {
    let (_node, _daemon, runtime) = start().await;
    let pod = Pod::new("burstable", "a", 256 * MIB);
    runtime.make_cgroup(&pod);
    runtime.run_unseen(&pod);
    runtime.synchronize(&[&pod]).await;
    let other = Pod::new("besteffort", "o", 0);
    // The plugin sends no request to the runtime within a second after an event.
    let events = async {
        loop {
            runtime.pod_event(Event::RUN_POD_SANDBOX, &other).await;
            sleep(Duration::from_millis(100)).await;
        }
    };
    let written = async {
        while runtime.read(&pod, "memory.high") == "max" {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let written = timeout(Duration::from_secs(60), async {
        tokio::select! {
            () = events => {}
            () = written => {}
        }
    });
    written.await.expect("memory.high is written");
}

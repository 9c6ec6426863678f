//! Tests of the states in which the plugin only reports its planned actions: `mode: observe`,
//! actions that the configuration switches off, and the brake.

use std::collections::HashMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::harness::{
    self, Daemon, MIB, Node, Pod, Runtime, memory_limit, overwrite, plimsoll, status_json,
};
use nri::api::{Event, LinuxResources};
use serde_json::Value;

/// Configuration that switches on all actions of the plugin.
const ALL: &str = "nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\nlogLevel: debug\nnodeGuard: 1Gi\nthrottleDeadline: 1s\n\
                   oomRescue: {kills: 1, ceiling: 1Gi}\n";

/// Configuration that switches off all actions of the plugin.
const PASSIVE: &str = "nodeAllocatable: 4Gi\nlogLevel: debug\nmemoryThrottlingFactor: null\n\
                       memoryReservationPolicy: None\nnodeGuard: null\nthrottleDeadline: null\nshrink: allow\n\
                       oomRescue: null\nraisePodLimits: false\nrepair: false\n";

/// Writes the kubelet's checkpoint of a container with a request of 64 MiB and a limit of 100 MiB.
/// The checkpoint has no pod-level resources.
fn checkpoint(node: &Node) {
    let resources =
        serde_json::json!({ "requests": { "memory": "64Mi" }, "limits": { "memory": "100Mi" } });
    let data =
        serde_json::json!({ "entries": { "b": { "ContainerResources": { "app": resources } } } })
            .to_string();
    let checkpoint = serde_json::json!({ "data": data, "checksum": 1 }).to_string();
    for file in ["actuated_pods_state", "allocated_pods_state"] {
        node.replace(&format!("host/var/lib/kubelet/{file}"), &checkpoint);
    }
}

/// Starts the program under strace, which lists the files that the program opens.
fn start_traced(node: &Node) -> Daemon {
    let mut command = Command::new("strace");
    // With -D, the test's child process is the plugin instead of strace.
    command.args(["-D", "-f", "-qq", "-y", "-e", "trace=open,openat,openat2,creat,truncate", "-o"]);
    command.arg(node.path("strace")).arg(env!("CARGO_BIN_EXE_plimsoll")).args(node.arguments());
    command.arg("--config").arg(node.path("plimsoll.yaml"));
    Daemon::spawn(command)
}

/// Returns the traced calls by which the program has opened a cgroup's file for writing.
fn writes(node: &Node) -> Vec<String> {
    let traced = fs::read_to_string(node.path("strace")).unwrap();
    assert!(traced.contains("memory.max"), "the program has read no cgroup");
    let is_write = |line: &&str| {
        line.contains("sys/fs/cgroup")
            && ["O_WRONLY", "O_RDWR", "creat(", "truncate("].iter().any(|word| line.contains(word))
    };
    traced.lines().filter(is_write).map(str::to_owned).collect()
}

/// Everything that the plugin has changed or requested.
#[derive(Debug, Default, PartialEq)]
struct Adjusted {
    created: HashMap<String, String>,
    updated: usize,
    refused: bool,
    asked: usize,
    /// The metrics in [`ACTIONS`] that are above 0.
    actions: Vec<&'static str>,
    /// The final values of the files that the test wrote as another program.
    files: Vec<String>,
}

impl Adjusted {
    /// Returns the expected changes of a plugin that does nothing. The files then contain the
    /// values of the other programs.
    fn nothing() -> Self {
        Self {
            files: vec!["4096".to_owned(), "8192".to_owned(), "max".to_owned()],
            ..Self::default()
        }
    }
}

/// Metrics that each count one kind of action.
const ACTIONS: [&str; 7] = [
    "plimsoll_resizes_total{outcome=\"rejected\"}",
    "plimsoll_pod_limits_raised_total",
    "plimsoll_repairs_total{level=\"container\",knob=\"memory.min\"}",
    "plimsoll_repairs_total{level=\"ancestor\",knob=\"memory.low\"}",
    "plimsoll_repairs_total{level=\"ancestor\",knob=\"memory.max\"}",
    "plimsoll_oom_rescues_total{outcome=\"applied\"}",
    "plimsoll_stalls_released_total",
];

/// Returns whether a metric is above 0.
fn is_counted(metrics: &str, name: &str) -> bool {
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name}:\n{metrics}")) != "0"
}

/// Updates a container's limit as a runtime does. Applies the values of the plugin's answer, or
/// changes nothing if the plugin refuses the update.
async fn update(runtime: &Runtime, pod: &Pod, limit: i64, adjusted: &mut Adjusted) {
    let (sandbox, container) = (pod.sandbox.clone(), pod.container.clone());
    match runtime.connection.update_container(sandbox, container, memory_limit(limit)).await {
        Ok(reply) => {
            adjusted.updated += reply.update.len();
            for update in &reply.update {
                runtime.apply(pod, &update.linux.resources.unified);
            }
            runtime.set_file(&cgroup(pod), "memory.max", &limit.to_string());
            runtime.updated(pod).await;
        }
        Err(_) => adjusted.refused = true,
    }
}

fn cgroup(pod: &Pod) -> String {
    format!("{}/{}", pod.cgroup(), pod.container.id)
}

/// Returns the content of `memory.events` with these counts. The text always has the same length.
fn events(high: u32, max: u32, oom: u32, kills: u32) -> String {
    format!(
        "low 0\nhigh {high:04}\nmax {max}\noom {oom:04}\noom_kill {kills:04}\noom_group_kill 0000"
    )
}

/// Sets `memory.events` of a pod and its container to this text.
fn set_events(runtime: &Runtime, pod: &Pod, text: &str) {
    for cgroup in [cgroup(pod), pod.cgroup()] {
        runtime.set_file(&cgroup, "memory.events", text);
    }
}

/// Sets the kill count of a pod and its container, as if their own limits had caused the kills.
fn kills(runtime: &Runtime, pod: &Pod, count: u32) {
    set_events(runtime, pod, &events(0, 7, count, count));
}

/// Sets the kill count of a pod and its container. The limit of all pods has caused the kills.
fn kills_by_limit_of_all(runtime: &Runtime, pod: &Pod, count: u32) {
    runtime.set_file("kubepods", "memory.events.local", &events(0, 7, count, 0));
    node_kills(runtime, pod, count);
}

/// Sets the kill count of a pod and its container, as if neither limit had caused the kills.
fn node_kills(runtime: &Runtime, pod: &Pod, count: u32) {
    set_events(runtime, pod, &events(0, 7, 0, count));
}

/// Sets the percentage of time in which a container waits for memory (`memory.pressure`).
fn pressure(runtime: &Runtime, pod: &Pod, percent: &str) {
    let rest = format!("avg10={percent} avg60=0.00 avg300=0.00 total=1");
    runtime.set_file(&cgroup(pod), "memory.pressure", &format!("some {rest}\nfull {rest}"));
}

/// Simulates a container that stalls at `memory.high` until its release from throttling is due,
/// while the node has spare memory.
async fn stands_still(node: &Node, runtime: &mut Runtime, pod: &Pod, asked: &mut usize) {
    node.write("host/proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 4000000 kB\n");
    pressure(runtime, pod, "90.00");
    let files = ["kubepods".to_owned(), pod.cgroup()]
        .map(|level| runtime.path(&level).join("memory.events"));
    let counting = tokio::spawn(async move {
        for count in 1.. {
            for file in &files {
                overwrite(file, &events(count, 0, 0, 0));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    // The plugin checks every 5 seconds. The deadline has passed at the second check.
    runtime.update_all(asked, pod, Duration::from_secs(12)).await;
    counting.abort();
    pressure(runtime, pod, "00.00");
}

/// Returns the files that other programs write, with the written values.
fn foreign(pod: &Pod) -> [(String, &'static str, &'static str); 3] {
    [
        (cgroup(pod), "memory.min", "4096"),
        (pod.cgroup(), "memory.low", "8192"),
        ("kubepods".into(), "memory.max", "max"),
    ]
}

/// Creates and throttles a container, and requests a limit decrease and a limit increase. After
/// that, changes the container's cgroups as other programs do, and sets kill counts. Returns the
/// plugin's changes.
async fn everything(
    node: &Node,
    daemon: &mut Daemon,
    runtime: &mut Runtime,
    rewrite: &str,
) -> Adjusted {
    let mut adjusted = Adjusted::default();
    let pod = Pod::new("burstable", "b", 100 * MIB);
    runtime.make_cgroup(&pod);
    runtime.set_file(&pod.cgroup(), "memory.max", &(100 * MIB).to_string());
    kills(runtime, &pod, 0);
    runtime.set_file("kubepods", "memory.events", &events(0, 0, 0, 0));
    runtime.pod_event(Event::RUN_POD_SANDBOX, &pod).await;
    adjusted.created = runtime.create(&pod).await;
    runtime.apply(&pod, &adjusted.created);
    runtime.started(&pod).await;
    daemon.says("verified").await;
    runtime.uses(&pod, 99 * MIB, 0);
    stands_still(node, runtime, &pod, &mut adjusted.asked).await;
    // A limit of 50 MiB would cause an OOM kill. A limit of 200 MiB exceeds the pod's limit.
    for limit in [50, 200] {
        update(runtime, &pod, limit * MIB, &mut adjusted).await;
    }
    // Give the plugin time to set its desired values.
    runtime.update_all(&mut adjusted.asked, &pod, Duration::from_secs(2)).await;
    // Write to the files as other programs do.
    for (cgroup, knob, value) in foreign(&pod) {
        runtime.set_file(&cgroup, knob, value);
    }
    kills(runtime, &pod, 2);
    daemon.says("killed processes").await;
    node.replace("plimsoll.yaml", rewrite);
    daemon.says("configuration changed").await;
    runtime.update_all(&mut adjusted.asked, &pod, Duration::from_secs(3)).await;
    adjusted.files = foreign(&pod).map(|(cgroup, knob, _)| runtime.file(&cgroup, knob)).into();
    let metrics = node.metrics().await;
    adjusted.actions = ACTIONS.into_iter().filter(|action| is_counted(&metrics, action)).collect();
    fs::remove_dir_all(runtime.cgroup(&pod)).unwrap();
    runtime.stop(&pod).await;
    adjusted
}

/// Handles the requests that the plugin sends without an event from the runtime.
trait Asks {
    /// Grants the plugin's requests within this time, and adds the number of requested updates to
    /// `asked`.
    async fn update_all(&mut self, asked: &mut usize, pod: &Pod, time: Duration);
}

impl Asks for Runtime {
    async fn update_all(&mut self, asked: &mut usize, pod: &Pod, time: Duration) {
        let asks = async {
            while let Some(request) = self.updates.recv().await {
                *asked += request.update.len();
                for update in &request.update {
                    for (name, value) in &update.linux.resources.unified {
                        fs::write(self.root.join(cgroup(pod)).join(name), format!("{value}\n"))
                            .unwrap();
                    }
                }
                request.succeed(Vec::new());
            }
        };
        let _ = tokio::time::timeout(time, asks).await;
    }
}

/// Returns a node with this configuration, whose kubepods uses only 4 KiB.
fn node(config: &str) -> Node {
    let node = Node::new();
    node.write("plimsoll.yaml", config);
    let kubepods = node.path("host/sys/fs/cgroup/kubepods");
    harness::make_files(&kubepods, "max");
    fs::write(kubepods.join("memory.stat"), "inactive_anon 4096\ninactive_file 0\n").unwrap();
    checkpoint(&node);
    node
}

async fn run(config: &str) -> (Node, Vec<String>, Adjusted) {
    let node = node(config);
    let mut daemon = start_traced(&node);
    let mut runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    let adjusted =
        everything(&node, &mut daemon, &mut runtime, &format!("{config}containerMetrics: true\n"))
            .await;
    drop(daemon);
    let writes = writes(&node);
    (node, writes, adjusted)
}

#[tokio::test]
async fn observing_writes_and_adjusts_nothing() {
    let (node, writes, adjusted) = run(&format!("mode: observe\n{ALL}")).await;
    assert_eq!(writes, Vec::<String>::new());
    assert_eq!(adjusted, Adjusted::nothing());
    assert!(!node.path("host/run/plimsoll/originals").exists());
}

#[tokio::test]
async fn enforcing_the_same_writes_and_adjusts() {
    let (_node, writes, adjusted) = run(ALL).await;
    for file in [
        "kubepods>, \"memory.max\"",
        "podb>, \"memory.max\"",
        "podb>, \"memory.min\"",
        "podb>, \"memory.low\"",
    ] {
        assert!(writes.iter().any(|line| line.contains(file)), "{file}: {writes:#?}");
    }
    assert_eq!(adjusted.created["memory.min"], (64 * MIB).to_string());
    assert!(adjusted.refused && adjusted.updated > 0 && adjusted.asked > 0, "{adjusted:?}");
    assert_eq!(adjusted.actions, ACTIONS);
    assert_eq!(adjusted.files, [64 * MIB, 0, 7168 * MIB].map(|value| value.to_string()));
}

#[tokio::test]
async fn all_switches_off_is_passive() {
    let (node, writes, adjusted) = run(PASSIVE).await;
    assert_eq!(writes, Vec::<String>::new());
    assert_eq!(adjusted, Adjusted::nothing());
    assert!(!node.path("host/run/plimsoll/originals").exists());
}

async fn start(config: &str) -> (Node, Daemon, Runtime) {
    let node = node(config);
    let daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    (node, daemon, runtime)
}

const OBSERVE: &str =
    "mode: observe\nnodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\nlogLevel: debug\nnodeGuard: 1Gi\n";

#[tokio::test]
async fn status_shows_what_would_be() {
    let (node, mut daemon, runtime) = start(OBSERVE).await;
    daemon.says("mode is observe").await;
    let pod = Pod::new("burstable", "b", 100 * MIB);
    runtime.make_cgroup(&pod);
    runtime.run(&pod).await;
    let update = |limit| {
        runtime.connection.update_container(pod.sandbox.clone(), pod.container.clone(), limit)
    };
    runtime.uses(&pod, 99 * MIB, 0);
    let refused: LinuxResources = memory_limit(50 * MIB);
    assert_eq!(update(refused).await.unwrap().update, []);
    let line = daemon.says("observe mode, not done: rejected a limit decrease").await;
    assert!(line.contains("outcome=planned") && line.contains("usage=103809024"), "{line}");
    // The kubelet has not raised the pod's limit.
    runtime.set_file(&pod.cgroup(), "memory.max", &(100 * MIB).to_string());
    assert_eq!(update(memory_limit(200 * MIB)).await.unwrap().update, []);
    let line = daemon.says("observe mode, not done: raised the pod's limit").await;
    assert!(line.contains("desired=209715200") && line.contains("observed=104857600"), "{line}");
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), (100 * MIB).to_string());
    // The runtime has not set the 200 MiB, so the container still has 100 MiB.
    assert_eq!(update(memory_limit(100 * MIB)).await.unwrap().update, []);
    runtime.updated(&pod).await;
    daemon.says("outcome=unchanged").await;

    let all = status_json(&node).await;
    let node_status = &all["node"];
    assert_eq!(node_status["mode"], "observe");
    assert_eq!(node_status["brake"], Value::Null);
    assert_eq!(node_status["wouldThrottle"], 1);
    assert_eq!(node_status["wouldRefuse"], 1);
    assert_eq!(node_status["guard"], Value::Null);
    assert_eq!(node_status["plannedGuard"], 7168 * MIB);
    let container = &all["containers"][0];
    assert_eq!(container["state"], "would-throttle");
    assert_eq!(container["desired"]["min"], 64 * MIB);
    assert_eq!(container["observed"]["min"], 0);
    assert_eq!(container["observed"]["high"], "max");
    let reports = container["reports"].as_array().unwrap();
    for kind in ["CutRejected", "PodRaised"] {
        assert!(
            reports.iter().any(|report| report["kind"] == kind && report["planned"] == true),
            "{kind}: {reports:?}"
        );
    }
    let pod_level =
        all["cgroups"].as_array().unwrap().iter().find(|level| level["level"] == "pod").unwrap();
    assert_eq!(pod_level["desired"]["min"], 64 * MIB);
    assert_eq!(pod_level["observed"]["min"], 0);

    let (text, _) = plimsoll(&node, &["status"]).await;
    for part in [
        "observe mode: the plugin sets, raises and refuses nothing",
        "1 containers would be throttled now, 1 limit decreases would have been refused",
        "all pods together might use 7Gi (nodeGuard)",
        "64Mi!=0",
        "would-throttle",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    let (text, code) = plimsoll(&node, &["status", "--ready"]).await;
    assert_eq!((text.as_str(), code), ("ready\n", 0));
    let metrics = node.metrics().await;
    for line in [
        "plimsoll_observe_mode 1",
        "plimsoll_brake_applied 0",
        "plimsoll_would_throttle_containers 1",
        "plimsoll_observed_actions_total{kind=\"CutRejected\"} 1",
        "plimsoll_resizes_total{outcome=\"rejected\"} 0",
        "plimsoll_protection_bytes{level=\"pod\",knob=\"memory.min\",value=\"desired\"} 67108864",
        "plimsoll_protection_bytes{level=\"pod\",knob=\"memory.min\",value=\"observed\"} 0",
        "plimsoll_differing_files{level=\"container\"} 0",
    ] {
        assert!(metrics.lines().any(|other| other == line), "{line}:\n{metrics}");
    }
}

/// Runs a pod, and waits until memory.min of kubepods includes the pod's request.
async fn run_pod(runtime: &Runtime) -> Pod {
    let pod = Pod::new("burstable", "b", 100 * MIB);
    runtime.make_cgroup(&pod);
    runtime.run(&pod).await;
    runtime.holds("kubepods", "memory.min", 64 * MIB).await;
    pod
}

/// Runs a pod without kills.
async fn run_counted(daemon: &mut Daemon, runtime: &Runtime) -> Pod {
    let pod = Pod::new("burstable", "b", 100 * MIB);
    runtime.make_cgroup(&pod);
    kills(runtime, &pod, 0);
    for file in ["memory.events", "memory.events.local"] {
        runtime.set_file("kubepods", file, &events(0, 0, 0, 0));
    }
    runtime.run(&pod).await;
    daemon.says("verified").await;
    pod
}

#[tokio::test]
async fn doctor_reports_the_running_plugins_mode() {
    // The plugin runs with a configuration file that `doctor` does not know.
    let (node, mut daemon, _runtime) = start(OBSERVE).await;
    daemon.says("mode is observe").await;
    let (text, _) = plimsoll(&node, &["doctor", "--json"]).await;
    let report: Value = serde_json::from_str(&text).unwrap();
    let of = |check: &str| {
        let found = report["checks"]
            .as_array()
            .unwrap()
            .iter()
            .find(|finding| finding["check"] == check)
            .unwrap();
        format!("{}: {}", found["mark"].as_str().unwrap(), found["found"].as_str().unwrap())
    };
    assert!(of("mode").starts_with("ok: observe"), "{text}");
    assert!(of("configuration").starts_with("unknown: "), "{text}");
}

#[tokio::test]
async fn switching_to_observe_restores_first() {
    let enforce = "nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\nlogLevel: debug\nnodeGuard: 1Gi\n";
    let (node, mut daemon, mut runtime) = start(enforce).await;
    let pod = run_pod(&runtime).await;
    let container = cgroup(&pod);
    assert_eq!(runtime.file(&container, "memory.min"), (64 * MIB).to_string());
    runtime.holds("kubepods", "memory.max", 7168 * MIB).await;

    node.replace("plimsoll.yaml", OBSERVE);
    daemon.says("mode is observe").await;
    // The plugin restores the container's files at once, without waiting for a quiet runtime.
    runtime.holds(&container, "memory.high", "max").await;
    runtime.holds(&container, "memory.min", 0).await;
    // The runtime also gets the restored values, because the runtime would otherwise set its stored
    // values again.
    let asked = runtime.serve_update(&[&pod]).await;
    assert_eq!(asked[&pod.container.id]["memory.min"], "0");
    assert_eq!(asked[&pod.container.id]["memory.high"], "max");
    for cgroup in
        ["kubepods".to_owned(), "kubepods/burstable".to_owned(), pod.cgroup(), container.clone()]
    {
        runtime.holds(&cgroup, "memory.min", 0).await;
    }
    runtime.holds("kubepods", "memory.max", "max").await;
    assert_eq!(runtime.file(&container, "memory.high"), "max");

    node.replace("plimsoll.yaml", enforce);
    let asked = runtime.serve_update(&[&pod]).await;
    assert_eq!(asked[&pod.container.id]["memory.min"], (64 * MIB).to_string());
    for cgroup in ["kubepods".to_owned(), pod.cgroup(), container] {
        runtime.holds(&cgroup, "memory.min", 64 * MIB).await;
    }
    runtime.holds("kubepods", "memory.max", 7168 * MIB).await;
}

#[tokio::test]
async fn switching_to_observe_reports_limits_left_raised() {
    let (node, mut daemon, runtime) =
        start("nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\nlogLevel: debug\n").await;
    let pod = run_pod(&runtime).await;
    runtime.set_file(&pod.cgroup(), "memory.max", &(100 * MIB).to_string());
    // The container's limit increase makes the plugin raise the pod's limit.
    runtime.update(&pod, memory_limit(200 * MIB)).await;
    daemon.says("raised the pod's limit").await;
    node.replace("plimsoll.yaml", OBSERVE);
    let line = daemon.says("the raised limit stays, because lowering it could kill").await;
    let raised = format!("{} memory.max: {}, raised from {}", pod.cgroup(), 200 * MIB, 100 * MIB);
    assert!(line.contains(&raised), "{line}");
}

#[tokio::test]
async fn a_rescue_is_only_reported_while_observing() {
    let (_node, mut daemon, mut runtime) =
        start(&format!("{OBSERVE}oomRescue: {{kills: 2, ceiling: 1Gi}}\n")).await;
    let pod = run_counted(&mut daemon, &runtime).await;
    kills(&runtime, &pod, 2);
    let line = daemon.says("observe mode, not done: raised the limit of a container").await;
    assert!(line.contains("desired=209715200") && line.contains("kills=2"), "{line}");
    runtime.asks_for_no_limit(Duration::from_secs(2)).await;
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), "max");
}

#[tokio::test]
async fn a_foreign_change_stays_without_repair() {
    let config = "nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\nlogLevel: debug\nrepair: false\n";
    let (_node, mut daemon, runtime) = start(config).await;
    let pod = run_pod(&runtime).await;
    daemon.says("verified").await;
    let container = cgroup(&pod);
    runtime.set_file(&container, "memory.min", "4096");
    daemon.says("so the plugin leaves the changed value").await;
    runtime.set_file(&pod.cgroup(), "memory.min", "8192");
    daemon.says("so the plugin leaves the changed value").await;
    assert_eq!(runtime.file(&container, "memory.min"), "4096");
    assert_eq!(runtime.file(&pod.cgroup(), "memory.min"), "8192");
}

#[tokio::test]
async fn what_was_left_without_repair_stays_left() {
    let config = "nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\nlogLevel: debug\nrepair: false\n";
    let (node, mut daemon, mut runtime) = start(config).await;
    let pod = run_pod(&runtime).await;
    daemon.says("verified").await;
    runtime.set_file(&pod.cgroup(), "memory.min", "8192");
    daemon.says("so the plugin leaves the changed value").await;
    // Another program writes once more. Each new configuration makes the plugin check everything.
    // The second request shows that the first check has ended.
    runtime.set_file(&pod.cgroup(), "memory.min", "12288");
    for factor in [0.5, 0.6] {
        node.replace("plimsoll.yaml", &format!("{config}memoryThrottlingFactor: {factor}\n"));
        runtime.serve_update(&[&pod]).await;
    }
    assert_eq!(runtime.file(&pod.cgroup(), "memory.min"), "12288");
}

const ONE_REPAIR: &str =
    "nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\nlogLevel: debug\nbrake: {repairs: 1}\n";

/// Changes two files of a pod as another program does. With `repairs: 1`, the two repairs trigger
/// the brake.
async fn two_repairs(daemon: &mut Daemon, runtime: &Runtime, pod: &Pod) {
    for knob in ["memory.min", "memory.low"] {
        runtime.set_file(&pod.cgroup(), knob, "4096");
        daemon.says("repaired").await;
    }
}

#[tokio::test]
async fn too_many_repairs_apply_the_brake() {
    let (node, mut daemon, mut runtime) = start(ONE_REPAIR).await;
    let pod = run_pod(&runtime).await;
    daemon.says("verified").await;
    two_repairs(&mut daemon, &runtime, &pod).await;
    let line = daemon.says("the brake is applied").await;
    assert!(line.contains("2 repairs within 10m") && line.contains("reset-brake"), "{line}");
    runtime.serve_update(&[&pod]).await;
    for cgroup in ["kubepods".to_owned(), pod.cgroup(), cgroup(&pod)] {
        runtime.holds(&cgroup, "memory.min", 0).await;
    }
    let all = status_json(&node).await;
    assert_eq!(all["node"]["mode"], "observe");
    assert_eq!(all["node"]["brake"], "2 repairs within 10m");
    let (text, _) = plimsoll(&node, &["status"]).await;
    assert!(
        text.contains(
            "brake applied after 2 repairs within 10m: the plugin sets no values until 'plimsoll reset-brake'"
        ),
        "{text}"
    );
    assert!(node.metrics().await.contains("plimsoll_brake_applied 1"));

    // The brake is still applied when the plugin has restarted.
    drop((daemon, runtime));
    let mut daemon = node.start();
    let mut runtime = node.accept().await;
    runtime.synchronize(&[&pod]).await;
    daemon.says("the brake is applied").await;
    assert_eq!(status_json(&node).await["node"]["mode"], "observe");

    assert_eq!(
        plimsoll(&node, &["reset-brake"]).await,
        ("the brake was reset: a running plugin sets values again\n".to_owned(), 0)
    );
    daemon.says("the brake was reset").await;
    runtime.serve_update(&[&pod]).await;
    runtime.holds(&cgroup(&pod), "memory.min", 64 * MIB).await;
    assert_eq!(
        plimsoll(&node, &["reset-brake"]).await,
        ("the brake was not applied\n".to_owned(), 0)
    );
}

#[tokio::test]
async fn shrink_allow_accepts_decreases_below_usage() {
    let (_node, mut daemon, runtime) =
        start("nodeAllocatable: 4Gi\nlogLevel: debug\nshrink: allow\n").await;
    let pod = run_pod(&runtime).await;
    daemon.says("verified").await;
    runtime.uses(&pod, 99 * MIB, 0);
    let update = runtime.connection.update_container(
        pod.sandbox.clone(),
        pod.container.clone(),
        memory_limit(50 * MIB),
    );
    assert!(update.await.is_ok());
    assert_eq!(runtime.file(&cgroup(&pod), "memory.max"), (100 * MIB).to_string());
}

#[tokio::test]
async fn observe_mode_only_reports_pod_limit_decreases() {
    let node = Node::new();
    checkpoint(&node);
    node.replace("plimsoll.yaml", OBSERVE);
    let mut daemon = node.start();
    let runtime = node.serve(node.trunk().await, harness::crio()).await;
    runtime.synchronize(&[]).await;
    let pod = Pod::new("burstable", "b", 100 * MIB);
    runtime.make_cgroup(&pod);
    runtime.set_file(&pod.cgroup(), "memory.max", &(250 * MIB).to_string());
    runtime.run(&pod).await;
    let pods = runtime.path(&pod.cgroup());
    fs::write(
        pods.join("memory.stat"),
        format!("inactive_anon {}\ninactive_file {}\n", 118 * MIB, 10 * MIB),
    )
    .unwrap();
    fs::write(pods.join("memory.current"), format!("{}\n", 128 * MIB)).unwrap();
    let (overhead, limit) = (memory_limit(0), memory_limit(100 * MIB));
    runtime.connection.update_pod_sandbox(pod.sandbox.clone(), overhead, limit).await.unwrap();
    let line = daemon.says("observe mode, not done: rejected a limit decrease").await;
    assert!(line.contains("desired=104857600") && line.contains("observed=262144000"), "{line}");
    assert_eq!(status_json(&node).await["node"]["wouldRefuse"], 1);
    assert_eq!(
        runtime.file(&pod.cgroup(), "memory.current"),
        (128 * MIB).to_string(),
        "the plugin must reclaim nothing"
    );
}

#[tokio::test]
async fn a_null_deadline_releases_no_throttled_container() {
    let config = |deadline: &str| {
        format!("nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\nthrottleDeadline: {deadline}\n")
    };
    let node = Node::new();
    checkpoint(&node);
    node.replace("plimsoll.yaml", &config("null"));
    node.write("host/proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 4000000 kB\n");
    let mut daemon = node.start();
    let mut runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    let pod = run_pod(&runtime).await;
    runtime.uses(&pod, runtime.file(&cgroup(&pod), "memory.high").parse().unwrap(), 0);
    pressure(&runtime, &pod, "90.00");
    for level in ["kubepods".to_owned(), pod.cgroup()] {
        fs::write(runtime.path(&level).join("memory.events"), events(1, 0, 0, 0)).unwrap();
    }
    assert!(tokio::time::timeout(Duration::from_secs(4), runtime.updates.recv()).await.is_err());
    // With a deadline of 1 s the plugin releases the container from throttling.
    node.replace("plimsoll.yaml", &config("1s"));
    daemon.says("released a container that was stalled at memory.high").await;
}

#[tokio::test]
async fn a_pods_limit_stays_without_the_switch() {
    let (_node, _daemon, runtime) = start("nodeAllocatable: 4Gi\nraisePodLimits: false\n").await;
    let pod = Pod::new("burstable", "b", 100 * MIB);
    runtime.make_cgroup(&pod);
    runtime.set_file(&pod.cgroup(), "memory.max", &(100 * MIB).to_string());
    runtime.run(&pod).await;
    runtime.update(&pod, memory_limit(200 * MIB)).await;
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), (100 * MIB).to_string());
}

#[tokio::test]
async fn repairs_through_the_runtime_apply_the_brake() {
    let (node, mut daemon, mut runtime) = start(ONE_REPAIR).await;
    let pod = run_pod(&runtime).await;
    daemon.says("verified").await;
    let container = cgroup(&pod);
    // The plugin writes the first repair to the file itself. For the second repair, the plugin
    // sends a request to the runtime.
    runtime.set_file(&container, "memory.min", "4096");
    runtime.holds(&container, "memory.min", 64 * MIB).await;
    daemon.says("repaired").await;
    runtime.set_file(&container, "memory.min", "4096");
    let asked = runtime.serve_update(&[&pod]).await;
    assert_eq!(asked[&pod.container.id]["memory.min"], (64 * MIB).to_string());
    let line = daemon.says("the brake is applied").await;
    assert!(line.contains("2 repairs within 10m"), "{line}");
    let line = "plimsoll_repairs_total{level=\"container\",knob=\"memory.min\"} 2";
    let metrics = node.metrics().await;
    assert!(metrics.lines().any(|other| other == line), "{metrics}");
}

#[tokio::test]
async fn the_brake_stays_applied_without_its_record() {
    let (node, mut daemon, mut runtime) = start(ONE_REPAIR).await;
    let pod = run_pod(&runtime).await;
    daemon.says("verified").await;
    let obstacle = node.path("host/run/plimsoll/brake.new");
    fs::create_dir_all(&obstacle).unwrap();
    two_repairs(&mut daemon, &runtime, &pod).await;
    daemon.says("cannot store the brake's record").await;
    daemon.says("the brake is applied").await;
    runtime.serve_update(&[&pod]).await;
    node.replace("plimsoll.yaml", &format!("{ONE_REPAIR}maxLimitRequestRatio: 5\n"));
    daemon.says("configuration changed").await;
    assert_eq!(status_json(&node).await["node"]["brake"], "2 repairs within 10m");
    assert!(!node.path("host/run/plimsoll/brake").exists());
    // The plugin stores the brake in a file as soon as it can, because `reset-brake` needs this
    // file.
    fs::remove_dir(&obstacle).unwrap();
    node.replace("plimsoll.yaml", ONE_REPAIR);
    daemon.says("configuration changed").await;
    assert_eq!(
        plimsoll(&node, &["reset-brake"]).await,
        ("the brake was reset: a running plugin sets values again\n".to_owned(), 0)
    );
    daemon.says("the brake was reset").await;
    assert_eq!(status_json(&node).await["node"]["mode"], "enforce");
}

#[tokio::test]
async fn a_reset_brake_is_applied_again() {
    let (node, mut daemon, mut runtime) = start(ONE_REPAIR).await;
    let pod = run_pod(&runtime).await;
    daemon.says("verified").await;
    two_repairs(&mut daemon, &runtime, &pod).await;
    daemon.says("the brake is applied").await;
    runtime.serve_update(&[&pod]).await;
    // Wait until the plugin has verified the values, because the plugin may send another request
    // until then.
    daemon.says("verified").await;
    // The operator resets the brake while `plimsoll restore` still prevents the plugin from setting
    // values. The plugin is stopped, so that the plugin sees both removed files as one change.
    let [restored, brake] =
        ["restored", "brake"].map(|mark| node.path("host/run/plimsoll").join(mark));
    fs::write(&restored, "").unwrap();
    daemon.says("'plimsoll restore' was called").await;
    daemon.while_it_is_stopped(|| {
        fs::remove_file(&restored).unwrap();
        fs::remove_file(&brake).unwrap();
    });
    daemon.says("'plimsoll restore' was undone").await;
    runtime.serve_update(&[&pod]).await;
    // Wait until the plugin has verified the values. Until then, the plugin may take another
    // program's value for the original value and would repair nothing.
    daemon.says("verified").await;
    runtime.holds(&pod.cgroup(), "memory.min", 64 * MIB).await;
    two_repairs(&mut daemon, &runtime, &pod).await;
    daemon.says("the brake is applied").await;
}

#[tokio::test]
async fn too_many_conflicts_apply_the_brake() {
    let config =
        "nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\nlogLevel: debug\nbrake: {conflicts: 1}\n";
    let (node, mut daemon, runtime) = start(config).await;
    let pod = run_pod(&runtime).await;
    daemon.says("verified").await;
    // Another program keeps writing two files.
    let fight = async {
        loop {
            for knob in ["memory.min", "memory.low"] {
                runtime.set_file(&pod.cgroup(), knob, "4096");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let line = tokio::select! {
        () = fight => unreachable!("this future never ends"),
        line = daemon.says("the brake is applied") => line,
    };
    assert!(line.contains("2 conflicts with other writers within 10m"), "{line}");
    assert_eq!(status_json(&node).await["node"]["mode"], "observe");
}

const ONE_KILL: &str = "nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\nlogLevel: debug\nnodeGuard: 1Gi\nbrake: {kills: 1}\n";

/// Runs a pod in which the kernel has killed one process because of the limit of kubepods.
async fn run_with_a_kill(daemon: &mut Daemon, runtime: &Runtime) -> Pod {
    let pod = run_counted(daemon, runtime).await;
    kills_by_limit_of_all(runtime, &pod, 1);
    daemon.says("killed processes").await;
    pod
}

/// Waits until the metrics have this count of kills that no limit of a pod or container has caused.
async fn node_kills_are_counted(node: &Node, count: u32) {
    let counted = format!("plimsoll_oom_kills_total{{by=\"node\"}} {count}");
    while !node.metrics().await.contains(&counted) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn excessive_guard_kills_apply_the_brake() {
    let (node, mut daemon, runtime) = start(ONE_KILL).await;
    runtime.holds("kubepods", "memory.max", 7168 * MIB).await;
    let pod = run_with_a_kill(&mut daemon, &runtime).await;
    kills_by_limit_of_all(&runtime, &pod, 3);
    let line = daemon.says("the brake is applied").await;
    assert!(line.contains("2 kills by limits that plimsoll has set within 10m"), "{line}");
    assert_eq!(status_json(&node).await["node"]["mode"], "observe");
}

#[tokio::test]
async fn node_wide_kills_apply_no_brake() {
    let (node, mut daemon, runtime) = start(ONE_KILL).await;
    runtime.holds("kubepods", "memory.max", 7168 * MIB).await;
    let pod = run_with_a_kill(&mut daemon, &runtime).await;
    node_kills(&runtime, &pod, 5);
    node_kills_are_counted(&node, 5).await;
    assert_eq!(status_json(&node).await["node"]["brake"], Value::Null);
}

#[tokio::test]
async fn kills_before_the_start_apply_no_brake() {
    let (node, mut daemon, runtime) = start(ONE_KILL).await;
    runtime.holds("kubepods", "memory.max", 7168 * MIB).await;
    let pod = run_with_a_kill(&mut daemon, &runtime).await;
    drop((daemon, runtime));
    let mut daemon = {
        for cgroup in [cgroup(&pod), pod.cgroup()] {
            overwrite(
                &node.path("host/sys/fs/cgroup").join(cgroup).join("memory.events"),
                &events(0, 7, 0, 5),
            );
        }
        node.start()
    };
    let runtime = node.accept().await;
    runtime.synchronize(&[&pod]).await;
    daemon.says("killed processes").await;
    assert_eq!(status_json(&node).await["node"]["brake"], Value::Null);
    // Later kills count.
    kills_by_limit_of_all(&runtime, &pod, 7);
    daemon.says("the brake is applied").await;
}

#[tokio::test]
async fn kills_during_guard_deferral_apply_no_brake() {
    let node = node(ONE_KILL);
    let kubepods = node.path("host/sys/fs/cgroup/kubepods");
    fs::write(kubepods.join("memory.current"), format!("{}\n", 8192 * MIB)).unwrap();
    let stat = format!("inactive_anon {}\ninactive_file 0\n", 8192 * MIB);
    fs::write(kubepods.join("memory.stat"), stat).unwrap();
    let mut daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    daemon.says("deferred the limit of nodeGuard").await;
    let pod = run_with_a_kill(&mut daemon, &runtime).await;
    kills_by_limit_of_all(&runtime, &pod, 4);
    node_kills_are_counted(&node, 4).await;
    assert_eq!(runtime.file("kubepods", "memory.max"), "max");
    assert_eq!(status_json(&node).await["node"]["brake"], Value::Null);
}

#[tokio::test]
async fn pod_level_limits_prevent_observed_rescues() {
    let (node, mut daemon, runtime) =
        start(&format!("{OBSERVE}oomRescue: {{kills: 2, ceiling: 1Gi}}\n")).await;
    node.checkpoint_with_pod_limit("b", "64Mi", "100Mi", "150Mi");
    let pod = run_counted(&mut daemon, &runtime).await;
    kills(&runtime, &pod, 2);
    daemon.says("the pod has pod-level limits, which stay").await;
    assert!(!is_counted(
        &node.metrics().await,
        "plimsoll_observed_actions_total{kind=\"Rescued\"}"
    ));
}

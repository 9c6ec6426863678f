//! Tests of OOM kills: the plugin reports and counts the kills. With `oomRescue`, the plugin raises
//! the limit of a container that is OOM-killed repeatedly.

use std::fs;

use crate::harness::{Daemon, MIB, Node, Pod, Runtime, memory_limit, start, status_json};
use nri::api::{Event, LinuxMemory, OptionalInt64};

const RESCUE: &str =
    "nodeAllocatable: 4Gi\nlogLevel: debug\noomRescue: {kills: 3, ceiling: 250Mi}\n";

/// Sets the kill counts in a cgroup's `memory.events`, as the kernel does. The limit of the cgroup
/// or of a descendant has caused all kills.
fn count(runtime: &Runtime, cgroup: &str, processes: u64, groups: u64) {
    count_by(runtime, cgroup, processes, processes, groups);
}

/// Sets the kill counts as [`count`] does. `limits` is the number of times that usage reached a
/// limit (`oom`).
fn count_by(runtime: &Runtime, cgroup: &str, limits: u64, processes: u64, groups: u64) {
    let text = format!(
        "low 0\nhigh 0\nmax 7\noom {limits:04}\noom_kill {processes:04}\noom_group_kill {groups:04}"
    );
    runtime.set_file(cgroup, "memory.events", &text);
}

/// Sets the kill counts of a container and then of its pod, in the same order as the kernel.
fn count_up(runtime: &Runtime, pod: &Pod, processes: u64, groups: u64) {
    count(runtime, &container(pod), processes, groups);
    count(runtime, &pod.cgroup(), processes, groups);
}

/// Kills a container and removes its cgroup while the plugin is stopped. Only the pod's counts then
/// show the kill.
fn dies_unseen(daemon: &Daemon, runtime: &Runtime, pod: &Pod, processes: u64, groups: u64) {
    daemon.while_it_is_stopped(|| {
        fs::remove_dir_all(runtime.cgroup(pod)).unwrap();
        count(runtime, &pod.cgroup(), processes, groups);
    });
}

/// Returns the kill history that the plugin has stored for the container `app` of a pod.
fn history(node: &Node, uid: &str) -> serde_json::Value {
    let text = fs::read_to_string(node.path("host/run/plimsoll/kills")).unwrap_or_default();
    let counted: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    counted["pods"][format!("kubepods/burstable/pod{uid}")]["histories"]["app"].clone()
}

/// Waits until the stored history of the container `app` has this number of kills.
async fn counts(node: &Node, uid: &str, kills: u64) {
    until(&format!("{kills} kills"), || {
        history(node, uid)["kills"].as_array().map_or(0, Vec::len) as u64 == kills
    })
    .await;
}

/// Waits until the plugin has read these counts of the only container.
async fn has_read(node: &Node, processes: u64, groups: u64) {
    let counted = format!(r#""counted":{{"processes":{processes},"groups":{groups}}}"#);
    until(&counted, || {
        let text = fs::read_to_string(node.path("host/run/plimsoll/kills"));
        text.is_ok_and(|text| text.contains(&counted))
    })
    .await;
}

async fn forgotten(node: &Node, uid: &str) {
    until("forgotten", || history(node, uid)["rescued"].is_null()).await;
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let looks = async {
        while !is_so() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    assert!(
        tokio::time::timeout(std::time::Duration::from_secs(30), looks).await.is_ok(),
        "{what}"
    );
}

fn container(pod: &Pod) -> String {
    format!("{}/{}", pod.cgroup(), pod.container.id)
}

/// Runs a pod without kills. `limit` is the limit of the pod's cgroup, which the kubelet sets to
/// the container's limit.
async fn run(runtime: &Runtime, pod: &Pod, limit: i64) {
    runtime.make_cgroup(pod);
    runtime.set_file(&pod.cgroup(), "memory.max", &limit.to_string());
    for cgroup in ["kubepods".to_owned(), pod.cgroup(), container(pod)] {
        count(runtime, &cgroup, 0, 0);
    }
    runtime.run(pod).await;
}

/// Creates and starts the next container of the same name with a new ID, as the kubelet does after
/// a kill. The user asks for `limit`. Returns the memory limits that the plugin sets instead, or
/// `None` if the plugin sets no limit.
async fn again(runtime: &Runtime, pod: &mut Pod, limit: i64) -> Option<LinuxMemory> {
    let _ = fs::remove_dir_all(runtime.cgroup(pod));
    runtime.stop(pod).await;
    pod.container.id.push('x');
    let path = format!("/{}", container(pod));
    pod.linux().cgroups_path = path;
    pod.linux().resources = Some(memory_limit(limit)).into();
    let swap = Some(OptionalInt64 { value: limit, ..Default::default() });
    pod.linux().resources.as_mut().unwrap().memory.as_mut().unwrap().swap = swap.into();
    let reply = runtime
        .connection
        .create_container(pod.sandbox.clone(), pod.container.clone())
        .await
        .unwrap();
    let memory = reply
        .adjust
        .unwrap_or_default()
        .linux
        .unwrap_or_default()
        .resources
        .unwrap_or_default()
        .memory;
    runtime.make_cgroup(pod);
    if let Some(memory) = memory.as_ref() {
        runtime.set_file(&container(pod), "memory.max", &memory.limit.value.to_string());
    }
    count(runtime, &container(pod), 0, 0);
    runtime.started(pod).await;
    memory.into_option()
}

fn limits(memory: &LinuxMemory) -> (i64, i64) {
    (memory.limit.value, memory.swap.get_or_default().value)
}

/// Waits until the plugin asks the runtime for a limit. Applies this limit and returns it.
async fn asked(runtime: &mut Runtime, pod: &Pod) -> i64 {
    let request =
        tokio::time::timeout(std::time::Duration::from_secs(60), runtime.updates.recv()).await;
    let request = request.expect("the plugin updates containers").expect("the plugin is connected");
    let [update] = &request.update[..] else {
        panic!("one container is updated: {:?}", request.update)
    };
    assert_eq!(update.container_id, pod.container.id);
    let limit = update.linux.resources.memory.limit.value;
    runtime.set_file(&container(pod), "memory.max", &limit.to_string());
    request.succeed(Vec::new());
    limit
}

#[tokio::test]
async fn kills_are_attributed_and_counted_across_restarts() {
    let (node, mut daemon, runtime) = start("logLevel: debug\n").await;
    let mut pod = Pod::new("burstable", "b", 100 * MIB);
    run(&runtime, &pod, 100 * MIB).await;
    let mut side = pod.clone();
    side.container.id = "id-side".into();
    side.container.name = "side".into();
    side.linux().cgroups_path = format!("/{}/id-side", pod.cgroup());
    runtime.make_cgroup(&side);
    count(&runtime, &container(&side), 0, 0);
    runtime.run(&side).await;

    // The kernel counts a kill in the container's `memory.events` first. The later change of the
    // pod's `memory.events` triggers the plugin's inotify watch.
    count_up(&runtime, &side, 1, 0);
    let line = daemon.says("the kernel OOM-killed processes of the container").await;
    for part in ["container=\"side\"", "pod=\"default/b\"", "kills=1", "limit=104857600", "podb"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    // The runtime removes the cgroup before the plugin reads it, so only the pod's counts remain.
    // With `memory.oom.group`, a kill of all processes of the container counts as one kill.
    dies_unseen(&daemon, &runtime, &pod, 4, 1);
    let line = daemon.says("the kernel OOM-killed processes of the container").await;
    assert!(line.contains("container=\"app\"") && line.contains("kills=1"), "{line}");

    // While no plugin runs, the kubelet creates the container once more, and the kernel kills the
    // container once more.
    daemon.kill().await;
    pod.container.id.push('x');
    let path = format!("/{}", container(&pod));
    pod.linux().cgroups_path = path;
    runtime.make_cgroup(&pod);
    count(&runtime, &container(&pod), 2, 1);
    count(&runtime, &pod.cgroup(), 6, 2);
    let mut daemon = node.start_with(&["--config", node.path("plimsoll.yaml").to_str().unwrap()]);
    let runtime = node.accept().await;
    runtime.synchronize(&[&pod, &side]).await;
    let line = daemon.says("the kernel OOM-killed processes of the container").await;
    assert!(line.contains("container=\"app\"") && line.contains("kills=2"), "{line}");
    // Without `oomRescue` the plugin only reports kills and raises no limit.
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), (100 * MIB).to_string());
}

#[tokio::test]
async fn kills_before_the_first_start_are_ignored() {
    let node = Node::new();
    node.replace("plimsoll.yaml", RESCUE);
    let mut daemon = node.start();
    let runtime = node.accept().await;
    let pod = Pod::new("burstable", "b", 100 * MIB);
    runtime.make_cgroup(&pod);
    for cgroup in ["kubepods".to_owned(), pod.cgroup(), container(&pod)] {
        count(&runtime, &cgroup, 70, 0);
    }
    runtime.synchronize(&[&pod]).await;
    until("written down", || node.path("host/run/plimsoll/kills").exists()).await;
    count_up(&runtime, &pod, 71, 0);
    let line = daemon.says("the kernel OOM-killed processes of the container").await;
    assert!(line.contains("kills=1"), "{line}");
}

#[tokio::test]
async fn repeated_kills_raise_limits_to_the_ceiling() {
    let (node, mut daemon, runtime) = start(RESCUE).await;
    let mut pod = Pod::new("burstable", "b", 100 * MIB);
    run(&runtime, &pod, 100 * MIB).await;
    for kills in 1..=3 {
        assert_eq!(again(&runtime, &mut pod, 100 * MIB).await, None);
        // The runtime removes the container's cgroup before the plugin can read it.
        dies_unseen(&daemon, &runtime, &pod, 2 * kills, kills);
        // Wait until the plugin has counted this kill. The third kill triggers the rescue, which
        // resets the count.
        if kills < 3 {
            counts(&node, "b", kills).await;
        }
    }
    let line = daemon.says("raised the limit of a container that is OOM-killed repeatedly").await;
    for part in [
        "desired=209715200",
        "observed=104857600",
        "asked=104857600",
        "kills=3",
        "container=\"app\"",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    // The plugin also raises the combined limit of memory and swap.
    assert_eq!(
        again(&runtime, &mut pod, 100 * MIB).await.as_ref().map(limits),
        Some((200 * MIB, 200 * MIB))
    );
    assert_eq!(
        runtime.file(&pod.cgroup(), "memory.max"),
        (200 * MIB).to_string(),
        "the plugin raises the pod's limit first"
    );
    // The limit stays raised when the container and the plugin restart.
    assert_eq!(
        again(&runtime, &mut pod, 100 * MIB).await.as_ref().map(limits),
        Some((200 * MIB, 200 * MIB))
    );
    daemon.kill().await;
    let mut daemon = node.start();
    let runtime = node.accept().await;
    pod.linux().resources = Some(memory_limit(200 * MIB)).into();
    runtime.synchronize(&[&pod]).await;
    for (kills, expected, said) in [
        (4, 200, ""),
        (5, 200, ""),
        (6, 250, "raised the limit of a container"),
        (7, 250, ""),
        (8, 250, ""),
        (9, 250, "may not be raised further"),
    ] {
        dies_unseen(&daemon, &runtime, &pod, 2 * kills, kills);
        if said.is_empty() {
            counts(&node, "b", kills % 3).await;
        } else {
            let line = daemon.says(said).await;
            assert!(
                kills == 6
                    || line.contains("ceiling=262144000") && line.contains("observed=262144000"),
                "{line}"
            );
        }
        let memory = again(&runtime, &mut pod, 100 * MIB).await;
        assert_eq!(memory.as_ref().map(limits), Some((expected * MIB, expected * MIB)), "{kills}");
    }
    // If the user requests another limit, the user's limit applies. The plugin forgets the rescue.
    assert_eq!(again(&runtime, &mut pod, 120 * MIB).await, None);
    forgotten(&node, "b").await;
    assert_eq!(again(&runtime, &mut pod, 100 * MIB).await, None);
}

#[tokio::test]
async fn surviving_containers_are_raised_after_their_pod() {
    let (_node, mut daemon, mut runtime) = start(RESCUE).await;
    let pod = Pod::new("burstable", "b", 100 * MIB);
    run(&runtime, &pod, 100 * MIB).await;
    count_up(&runtime, &pod, 3, 0);
    let limit = asked(&mut runtime, &pod).await;
    assert_eq!(limit, 200 * MIB);
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), (200 * MIB).to_string());
    daemon.says("raised the pod's limit").await;
    // After the plugin has read back the limit, it requests the `memory.high` for this limit.
    let asked = runtime.serve_update(&[&pod]).await;
    let high: i64 = asked["id-b"]["memory.high"].parse().unwrap();
    assert!((170 * MIB..=180 * MIB).contains(&high), "{high}");
    // The kubelet sends the user's unchanged limit once more. The raised limit stays.
    let (sandbox, updated) = (pod.sandbox.clone(), pod.container.clone());
    let reply = runtime
        .connection
        .update_container(sandbox, updated, memory_limit(100 * MIB))
        .await
        .unwrap();
    let resources = reply.update[0].linux.resources.get_or_default();
    assert_eq!(resources.memory.limit.value, 200 * MIB);
    // If the user requests another limit, the user's limit applies.
    let (sandbox, updated) = (pod.sandbox.clone(), pod.container.clone());
    let reply = runtime
        .connection
        .update_container(sandbox, updated, memory_limit(150 * MIB))
        .await
        .unwrap();
    assert!(reply.update[0].linux.resources.get_or_default().memory.is_none());
}

#[tokio::test]
async fn observing_shows_a_raised_limit_as_rescued() {
    let (node, daemon, mut runtime) = start(RESCUE).await;
    let pod = Pod::new("burstable", "b", 100 * MIB);
    run(&runtime, &pod, 100 * MIB).await;
    count_up(&runtime, &pod, 3, 0);
    assert_eq!(asked(&mut runtime, &pod).await, 200 * MIB);
    runtime.serve_update(&[&pod]).await;
    // Restart the plugin, so that it forgets the kill. A known kill would determine the container's
    // state.
    drop(runtime);
    daemon.kill().await;
    node.replace("plimsoll.yaml", &format!("{RESCUE}mode: observe\n"));
    let mut daemon = node.start();
    let mut runtime = node.accept().await;
    let mut pod = pod;
    pod.linux().resources = Some(memory_limit(200 * MIB)).into();
    runtime.synchronize(&[&pod]).await;
    runtime.serve_update(&[&pod]).await;
    daemon.says("the raised limit stays, because lowering it could kill").await;
    assert_eq!(status_json(&node).await["containers"][0]["state"], "rescued");
}

#[tokio::test]
async fn a_simultaneous_stop_event_hides_no_kill() {
    let (_node, mut daemon, runtime) = start(RESCUE).await;
    let mut pod = Pod::new("burstable", "b", 100 * MIB);
    run(&runtime, &pod, 100 * MIB).await;
    daemon.signal(rustix::process::Signal::STOP);
    let (end, goes_on) = (runtime.stop(&pod), async {
        // When the plugin continues, it finds both the kill and the end that the runtime reported.
        count_up(&runtime, &pod, 3, 0);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        daemon.signal(rustix::process::Signal::CONT);
    });
    tokio::join!(end, goes_on);
    let line = daemon.says("raised the limit of a container").await;
    assert!(line.contains("pod=\"default/b\"") && line.contains("desired=209715200"), "{line}");
    assert_eq!(
        again(&runtime, &mut pod, 100 * MIB).await.map(|memory| memory.limit.value),
        Some(200 * MIB)
    );
}

#[tokio::test]
async fn annotations_or_pod_limits_restrict_the_rescue() {
    let (node, mut daemon, runtime) = start(RESCUE).await;
    let off = Pod::new("burstable", "off", 100 * MIB).annotate("oom-rescue.plimsoll.nri.io", "off");
    let less = Pod::new("burstable", "less", 100 * MIB)
        .annotate("oom-rescue.plimsoll.nri.io/container.app", "120Mi");
    let own = Pod::new("burstable", "own", 100 * MIB);
    node.checkpoint_with_pod_limit("own", "100Mi", "100Mi", "150Mi");
    for (pod, expected, said) in [
        (off, None, "the kernel OOM-killed processes of the container"),
        (own, None, "the pod has pod-level limits, which stay"),
        (less, Some(120 * MIB), "raised the limit of a container"),
    ] {
        let mut pod = pod;
        run(&runtime, &pod, 100 * MIB).await;
        dies_unseen(&daemon, &runtime, &pod, 3, 3);
        daemon.says(said).await;
        let memory = again(&runtime, &mut pod, 100 * MIB).await;
        assert_eq!(memory.map(|memory| memory.limit.value), expected, "{}", pod.sandbox.name);
    }
}

#[tokio::test]
async fn a_percentage_ceiling_uses_unrequested_memory() {
    let config = "nodeAllocatable: 1Gi\nlogLevel: debug\noomRescue: {kills: 1, ceiling: 10%}\n";
    let (node, mut daemon, runtime) = start(config).await;
    for file in ["actuated_pods_state", "allocated_pods_state"] {
        let app = |request: &str, limit: &str| {
            let resources = serde_json::json!({ "requests": { "memory": request }, "limits": { "memory": limit } });
            serde_json::json!({ "ContainerResources": { "app": resources } })
        };
        let entries =
            serde_json::json!({ "b": app("24Mi", "100Mi"), "other": app("500Mi", "600Mi") });
        let data = serde_json::json!({ "entries": entries }).to_string();
        let checkpoint = serde_json::json!({ "data": data, "checksum": 1 }).to_string();
        node.replace(&format!("host/var/lib/kubelet/{file}"), &checkpoint);
    }
    let other = Pod::new("burstable", "other", 600 * MIB);
    run(&runtime, &other, 600 * MIB).await;
    let mut pod = Pod::new("burstable", "b", 100 * MIB);
    run(&runtime, &pod, 100 * MIB).await;
    dies_unseen(&daemon, &runtime, &pod, 1, 1);
    daemon.says("raised the limit of a container").await;
    let memory = again(&runtime, &mut pod, 100 * MIB).await.unwrap();
    // The plugin raises the limit by a tenth of the free 500 MiB. The container's own request also
    // counts while the container is down.
    assert_eq!(memory.limit.value, 150 * MIB);
    // Memory of one raise is not available for the next raise, so 450 MiB are free.
    let mut other = other;
    dies_unseen(&daemon, &runtime, &other, 1, 1);
    daemon.says("raised the limit of a container").await;
    let memory = again(&runtime, &mut other, 600 * MIB).await.unwrap();
    assert_eq!(memory.limit.value, 645 * MIB);
}

#[tokio::test]
async fn a_partially_seen_kill_counts_once() {
    let (node, daemon, runtime) = start(RESCUE).await;
    let pod = Pod::new("burstable", "b", 100 * MIB);
    run(&runtime, &pod, 100 * MIB).await;
    // The kernel first counts one process, then the group, and then the other processes. The kernel
    // increases each count in the container before it increases the count in the pod.
    for (processes, groups) in [(1, 0), (1, 1), (5, 1)] {
        count_up(&runtime, &pod, processes, groups);
        has_read(&node, processes, groups).await;
        counts(&node, "b", 1).await;
    }
    // The plugin sees a part of the next kill in the container's file. The plugin sees the whole
    // kill in the pod's file after the container's cgroup is gone.
    count_up(&runtime, &pod, 6, 1);
    has_read(&node, 6, 1).await;
    dies_unseen(&daemon, &runtime, &pod, 9, 2);
    counts(&node, "b", 2).await;
}

#[tokio::test]
async fn missing_or_replaced_files_lose_no_kill() {
    let (node, mut daemon, runtime) = start("logLevel: debug\n").await;
    let mut pod = Pod::new("burstable", "b", 100 * MIB);
    run(&runtime, &pod, 100 * MIB).await;
    count_up(&runtime, &pod, 1, 0);
    counts(&node, "b", 1).await;
    // The plugin cannot read the pod's `memory.events`. During this time, only the container's file
    // shows a kill. The plugin must count this kill once it can read the pod's file.
    let events = runtime.cgroup(&pod).parent().unwrap().join("memory.events");
    let away = events.with_extension("away");
    fs::rename(&events, &away).unwrap();
    fs::create_dir(&events).unwrap();
    count(&runtime, &container(&pod), 2, 0);
    fs::write(&away, "to be woken up by").unwrap();
    daemon.says("cannot read the kills of a pod").await;
    fs::remove_dir(&events).unwrap();
    fs::rename(&away, &events).unwrap();
    count(&runtime, &pod.cgroup(), 2, 0);
    counts(&node, "b", 2).await;
    // The test replaces the pod's file before the next container starts. The plugin must still
    // count a later kill.
    fs::remove_file(&events).unwrap();
    count(&runtime, &pod.cgroup(), 2, 0);
    assert_eq!(again(&runtime, &mut pod, 100 * MIB).await, None);
    count(&runtime, &container(&pod), 1, 0);
    count(&runtime, &pod.cgroup(), 3, 0);
    counts(&node, "b", 3).await;
}

#[tokio::test]
async fn node_caused_kills_raise_no_limit() {
    let (node, mut daemon, runtime) =
        start("nodeAllocatable: 4Gi\nlogLevel: debug\noomRescue: {kills: 1}\n").await;
    let pod = Pod::new("burstable", "b", 100 * MIB);
    run(&runtime, &pod, 100 * MIB).await;
    count_by(&runtime, &container(&pod), 0, 3, 0);
    count_by(&runtime, &pod.cgroup(), 0, 3, 0);
    let line = daemon.says("the kernel OOM-killed processes of the container").await;
    assert!(line.contains("by=\"the node or kubepods") && line.contains("kills=0"), "{line}");
    assert!(history(&node, "b").is_null());
    // The plugin counts a kill by the container's own limit.
    count_by(&runtime, &container(&pod), 1, 4, 0);
    count_by(&runtime, &pod.cgroup(), 1, 4, 0);
    daemon.says("raised the limit of a container").await;
}

#[tokio::test]
async fn what_the_user_asks_for_meanwhile_counts() {
    let (_node, mut daemon, mut runtime) = start(RESCUE).await;
    let pod = Pod::new("burstable", "b", 100 * MIB);
    run(&runtime, &pod, 100 * MIB).await;
    count_up(&runtime, &pod, 3, 0);
    daemon.says("raised the limit of a container").await;
    // The plugin requests the raised limit only after one second without events (`QUIET` in
    // `agent/reconciler/updater.rs`). The user asks for another limit before this second has
    // passed.
    runtime.update(&pod, memory_limit(220 * MIB)).await;
    fs::write(runtime.cgroup(&pod).join("memory.max"), format!("{}\n", 220 * MIB)).unwrap();
    runtime.updated(&pod).await;
    runtime.asks_for_no_limit(std::time::Duration::from_secs(3)).await;
}

#[tokio::test]
async fn a_lowered_pod_limit_is_raised_again() {
    let (_node, mut daemon, mut runtime) = start(RESCUE).await;
    let pod = Pod::new("burstable", "b", 100 * MIB);
    run(&runtime, &pod, 100 * MIB).await;
    count_up(&runtime, &pod, 3, 0);
    asked(&mut runtime, &pod).await;
    runtime.serve_update(&[&pod]).await;
    daemon.says("outcome=applied").await;
    for _ in 0..2 {
        runtime.set_file(&pod.cgroup(), "memory.max", &(100 * MIB).to_string());
        runtime.holds(&pod.cgroup(), "memory.max", 200 * MIB).await;
    }
}

#[tokio::test]
async fn observe_mode_drops_unsent_raised_limits() {
    let (node, mut daemon, mut runtime) = start(RESCUE).await;
    let pod = Pod::new("burstable", "b", 100 * MIB);
    run(&runtime, &pod, 100 * MIB).await;
    let switched = async {
        count_up(&runtime, &pod, 3, 0);
        daemon.says("raised the limit of a container").await;
        node.replace("plimsoll.yaml", &format!("mode: observe\n{RESCUE}"));
        daemon.says("mode is observe").await;
    };
    // Pod events delay the plugin's request for the limit, because the plugin waits until the
    // runtime is quiet.
    let restless = async {
        loop {
            runtime.pod_event(Event::RUN_POD_SANDBOX, &pod).await;
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = restless => unreachable!("this future never ends"),
        () = switched => {}
    }
    runtime.asks_for_no_limit(std::time::Duration::from_secs(4)).await;
    assert_eq!(runtime.file(&container(&pod), "memory.max"), (100 * MIB).to_string());
}

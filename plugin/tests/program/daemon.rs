//! Tests that run the program on a temporary directory tree. The tests play the role of the
//! runtime.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::{self, Daemon, MIB, Node, Pod, memory_limit, unified};
use nri::NriVersion;
use nri::api::LinuxResources;
use nri::runtime::Options;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixDatagram;
use tokio::time::{sleep, timeout};

/// Kills `daemon`, which plays the role of the runtime that launched the plugin. Checks that the
/// plugin ends and does not reconnect.
async fn ends_with_its_runtime(node: &Node, daemon: &mut Daemon, runtime: &harness::Runtime) {
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    runtime.connection.closed().await;
    tokio::select! {
        biased;
        _ = node.trunk() => panic!("the plugin outlived the runtime that launched it"),
        _ = async { while daemon.messages.recv().await.is_some() {} } => {}
    }
}

#[tokio::test]
async fn containers_first_seen_at_start_get_values() {
    let node = Node::new();
    node.checkpoint("actuated_pods_state", &[("late", "app", 32 * MIB)]);
    let _daemon = node.start();
    let mut runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    let pod = Pod::new("burstable", "late", 64 * MIB);
    runtime.make_cgroup(&pod);
    runtime.started(&pod).await;
    let updates = runtime.serve_update(&[&pod]).await;
    assert_eq!(updates[&pod.container.id]["memory.min"], (32 * MIB).to_string());
    runtime.holds(&pod.cgroup(), "memory.min", 32 * MIB).await;
    // Only the unified map that the runtime's client sends contains this request, so the plugin
    // uses it.
    let mut pod = Pod::new("burstable", "told", 64 * MIB);
    pod.linux().resources.as_mut().unwrap().unified = unified(&[("memory.min", 48 * MIB)]);
    runtime.make_cgroup(&pod);
    runtime.started(&pod).await;
    let updates = runtime.serve_update(&[&pod]).await;
    assert_eq!(updates[&pod.container.id]["memory.min"], (48 * MIB).to_string());
}

#[tokio::test]
async fn each_qos_class_gets_values_at_create() {
    let node = Node::new();
    let mut daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    daemon.says("synchronized").await;
    node.checkpoint("actuated_pods_state", &[("b", "app", 100 * MIB), ("n", "app", 64 * MIB)]);

    let guaranteed = Pod::new("guaranteed", "g", 200 * MIB);
    assert_eq!(runtime.create(&guaranteed).await, unified(&[("memory.min", 200 * MIB)]));
    // memory.high is 100 + 0.9 x (200 - 100) MiB.
    let burstable = Pod::new("burstable", "b", 200 * MIB);
    let expected = unified(&[("memory.min", 100 * MIB), ("memory.high", 190 * MIB)]);
    assert_eq!(runtime.create(&burstable).await, expected);
    // Without a limit, memory.high is 64 MiB + 0.9 x (4 GiB - 64 MiB), in whole pages.
    let unlimited = Pod::new("burstable", "n", 0);
    let high = (64 * MIB * 10 + 9 * (4096 - 64) * MIB) / 10 / 4096 * 4096;
    assert_eq!(
        runtime.create(&unlimited).await,
        unified(&[("memory.min", 64 * MIB), ("memory.high", high)])
    );
    let best_effort = Pod::new("besteffort", "e", 0);
    let high = 4096 * MIB * 9 / 10 / 4096 * 4096;
    assert_eq!(runtime.create(&best_effort).await, unified(&[("memory.high", high)]));
}

#[tokio::test]
async fn unapplied_values_are_repaired_keeping_swap_max() {
    let node = Node::new();
    let mut daemon = node.start();
    let mut runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    let pod = Pod::new("guaranteed", "g", 200 * MIB);
    let wanted = runtime.create(&pod).await;
    runtime.make_cgroup(&pod);
    runtime.apply(&pod, &wanted);
    runtime.started(&pod).await;
    assert!(daemon.says("outcome=unchanged").await.contains("min=\"209715200\""));

    // This runtime does not apply the plugin's values.
    let pod = Pod::new("guaranteed", "h", 200 * MIB);
    runtime.create(&pod).await;
    runtime.make_cgroup(&pod);
    fs::write(runtime.cgroup(&pod).join("memory.swap.max"), "0\n").unwrap();
    runtime.started(&pod).await;
    // Without memory.swap.max, the update would remove the swap limit.
    let expected = unified(&[("memory.min", 200 * MIB), ("memory.swap.max", 0)]);
    assert_eq!(runtime.serve_update(&[&pod]).await["id-h"], expected);
    daemon.says("outcome=applied").await;
    assert_eq!(runtime.read(&pod, "memory.min"), (200 * MIB).to_string());
}

#[tokio::test]
async fn ineffective_updates_are_reported_as_contended() {
    let node = Node::new();
    let mut daemon = node.start();
    let mut runtime = node.accept().await;
    let pod = Pod::new("guaranteed", "g", 200 * MIB);
    runtime.make_cgroup(&pod);
    runtime.synchronize(&[&pod]).await;
    for _ in 0..5 {
        // The runtime reports success but changes nothing.
        runtime.serve_update(&[]).await;
    }
    let line = daemon.says("outcome=contended").await;
    assert!(
        line.contains("memory.min")
            && line.contains("desired=209715200")
            && line.contains("observed=0"),
        "{line}"
    );
}

#[tokio::test]
async fn a_refused_update_blocks_no_other_container() {
    let node = Node::new();
    let mut daemon = node.start();
    let mut runtime = node.accept().await;
    let (bad, good) =
        (Pod::new("guaranteed", "bad", 100 * MIB), Pod::new("guaranteed", "good", 100 * MIB));
    runtime.make_cgroup(&bad);
    runtime.make_cgroup(&good);
    runtime.synchronize(&[&bad, &good]).await;
    let min = runtime.cgroup(&good).join("memory.min");
    let serve = async {
        while let Some(request) = runtime.updates.recv().await {
            if request.update.iter().any(|update| update.container_id == bad.container.id) {
                request.fail("this container is not there");
            } else {
                fs::write(&min, "104857600\n").unwrap();
                request.succeed(Vec::new());
            }
        }
    };
    let (mut rejected, mut applied) = (false, false);
    let read = async {
        while !(rejected && applied) {
            let line = daemon.says("outcome=").await;
            rejected |= line.contains("default/bad")
                && line.contains("outcome=rejected")
                && line.contains("not there");
            applied |= line.contains("default/good") && line.contains("outcome=applied");
        }
    };
    tokio::select! { () = serve => panic!("the connection ended"), () = read => {} }
}

#[tokio::test]
async fn updates_use_the_new_limit_and_request() {
    let node = Node::new();
    let _daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    node.checkpoint("actuated_pods_state", &[("b", "app", 100 * MIB)]);
    node.checkpoint("allocated_pods_state", &[("b", "app", 100 * MIB)]);
    let pod = Pod::new("burstable", "b", 200 * MIB);
    let created = runtime.create(&pod).await;
    runtime.make_cgroup(&pod);
    runtime.apply(&pod, &created);

    // The update changes only the limit.
    let expected = unified(&[("memory.min", 100 * MIB), ("memory.high", 280 * MIB)]);
    assert_eq!(runtime.update(&pod, memory_limit(300 * MIB)).await, expected);
    // The update changes only the request, so it contains no memory values.
    node.checkpoint("allocated_pods_state", &[("b", "app", 200 * MIB)]);
    let expected = unified(&[("memory.min", 200 * MIB), ("memory.high", 290 * MIB)]);
    assert_eq!(runtime.update(&pod, LinuxResources::default()).await, expected);
}

#[tokio::test]
async fn unneeded_values_are_reset_to_defaults() {
    let node = Node::new();
    let _daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    for file in ["actuated_pods_state", "allocated_pods_state"] {
        node.checkpoint(file, &[("b", "app", 100 * MIB)]);
    }
    let pod = Pod::new("burstable", "b", 200 * MIB);
    let created = runtime.create(&pod).await;
    runtime.make_cgroup(&pod);
    runtime.apply(&pod, &created);
    // The request equals the limit, so there is no range to throttle.
    let updated = runtime.update(&pod, memory_limit(100 * MIB)).await;
    let mut expected = unified(&[("memory.min", 100 * MIB)]);
    expected.insert("memory.high".into(), "max".into());
    assert_eq!(updated, expected);
    // The request is 0, so the plugin protects no memory.
    node.checkpoint("allocated_pods_state", &[("b", "app", 0)]);
    let updated = runtime.update(&pod, memory_limit(100 * MIB)).await;
    assert_eq!(updated["memory.min"], "0");
}

#[tokio::test]
async fn a_stale_actuated_record_undoes_no_update() {
    let node = Node::new();
    let mut daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    node.checkpoint("actuated_pods_state", &[("b", "app", 100 * MIB)]);
    node.checkpoint("allocated_pods_state", &[("b", "app", 150 * MIB)]);
    let pod = Pod::new("burstable", "b", 200 * MIB);
    let created = runtime.create(&pod).await;
    assert_eq!(created["memory.min"], (100 * MIB).to_string());
    runtime.make_cgroup(&pod);
    runtime.apply(&pod, &created);
    let updated = runtime.update(&pod, LinuxResources::default()).await;
    assert_eq!(updated["memory.min"], (150 * MIB).to_string());
    runtime.apply(&pod, &updated);
    runtime.updated(&pod).await;
    assert!(daemon.says("outcome=").await.contains("outcome=unchanged"));
}

#[tokio::test]
async fn the_kernels_limit_decides_after_failed_updates() {
    let node = Node::new();
    let mut daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    for file in ["actuated_pods_state", "allocated_pods_state"] {
        node.checkpoint(file, &[("b", "app", 100 * MIB)]);
    }
    let pod = Pod::new("burstable", "b", 200 * MIB);
    let created = runtime.create(&pod).await;
    runtime.make_cgroup(&pod);
    runtime.apply(&pod, &created);
    // The runtime announces the update to the plugin, and then fails for a reason outside the
    // plugin. No event reports this failure.
    let updated = runtime.update(&pod, memory_limit(300 * MIB)).await;
    assert_eq!(updated["memory.high"], (280 * MIB).to_string());
    let line = daemon.says("outcome=unchanged").await;
    assert!(line.contains(&format!("high=\"{}\"", 190 * MIB)), "{line}");
}

#[tokio::test]
async fn running_containers_get_values_once_across_restarts() {
    let node = Node::new();
    node.checkpoint("actuated_pods_state", &[("b", "app", 100 * MIB)]);
    let pods = [
        Pod::new("guaranteed", "g", 200 * MIB),
        Pod::new("burstable", "b", 200 * MIB),
        Pod::new("besteffort", "e", 0),
    ];
    let pods: Vec<&Pod> = pods.iter().collect();
    for round in 0..2 {
        let mut daemon = node.start();
        let mut runtime = node.accept().await;
        if round == 0 {
            pods.iter().for_each(|pod| runtime.make_cgroup(pod));
        }
        runtime.synchronize(&pods).await;
        if round == 0 {
            let asked = runtime.serve_update(&pods).await;
            assert_eq!(asked.len(), 3);
            for _ in 0..3 {
                daemon.says("outcome=applied").await;
            }
        } else {
            for _ in 0..3 {
                daemon.says("outcome=unchanged").await;
            }
        }
        assert_eq!(runtime.read(pods[0], "memory.min"), (200 * MIB).to_string());
        assert_eq!(runtime.read(pods[1], "memory.high"), (190 * MIB).to_string());
        assert_ne!(runtime.read(pods[2], "memory.high"), "max");
        daemon.signal(rustix::process::Signal::KILL);
        runtime.connection.closed().await;
    }
}

#[tokio::test]
async fn kubelet_values_reveal_requests_and_are_reset() {
    let node = Node::new();
    node.write(
        "plimsoll.yaml",
        "memoryReservationPolicy: TieredReservation\nmemoryThrottlingFactor: null\n",
    );
    let mut daemon = node.start();
    let mut runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    let mut pod = Pod::new("burstable", "b", 200 * MIB);
    // A kubelet with its own MemoryQoS sends these values. Some runtimes show the values to
    // plugins.
    let sent = unified(&[("memory.min", 100 * MIB), ("memory.high", 190 * MIB)]);
    pod.linux().resources.as_mut().unwrap().unified = sent;
    // Another plugin may have set these keys already. If two plugins set the same key, the runtime
    // refuses to create the container.
    let created = runtime.create(&pod).await;
    assert_eq!(created, unified(&[("memory.low", 100 * MIB)]));
    assert!(daemon.says("once the container runs").await.contains("memory.min"));
    runtime.make_cgroup(&pod);
    runtime.apply(&pod, &unified(&[("memory.min", 100 * MIB), ("memory.high", 190 * MIB)]));
    runtime.apply(&pod, &created);
    runtime.started(&pod).await;
    // Without a throttling factor, the plugin does not manage memory.high.
    assert_eq!(runtime.serve_update(&[&pod]).await["id-b"], unified(&[("memory.min", 0)]));
    // An update may contain a new memory.min from the kubelet.
    let mut resources = memory_limit(300 * MIB);
    resources.unified = unified(&[("memory.min", 150 * MIB)]);
    assert_eq!(runtime.update(&pod, resources).await["memory.low"], (150 * MIB).to_string());
}

#[tokio::test]
async fn annotations_are_honoured_and_bad_ones_reported() {
    let node = Node::new();
    let mut daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    let pod = Pod::new("burstable", "b", 200 * MIB)
        .scored(100 * MIB)
        .annotate("memory-request.plimsoll.nri.io/container.app", "100Mi")
        .annotate("memory-request.plimsoll.nri.io/pod", "50Mi")
        .annotate("throttling-factor.plimsoll.nri.io", "0.5")
        .annotate("reservation.plimsoll.nri.io/pod", "tiered");
    let expected = unified(&[("memory.low", 100 * MIB), ("memory.high", 150 * MIB)]);
    assert_eq!(runtime.create(&pod).await, expected);
    let bad = Pod::new("burstable", "c", 200 * MIB)
        .scored(100 * MIB)
        .annotate("memory-request.plimsoll.nri.io", "100Mi")
        .annotate("throttling-factor.plimsoll.nri.io", "75%");
    let expected = unified(&[("memory.min", 100 * MIB), ("memory.high", 190 * MIB)]);
    assert_eq!(runtime.create(&bad).await, expected);
    let line = daemon.says("75%").await;
    assert!(line.contains("default/c") && line.contains("ignored"), "{line}");
}

#[tokio::test]
async fn containers_with_invalid_data_are_still_created() {
    let node = Node::new();
    let mut daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;

    let mut without_linux = Pod::new("burstable", "a", 0);
    without_linux.container.linux = None.into();
    assert_eq!(runtime.create(&without_linux).await, HashMap::new());
    daemon.says("has no linux section").await;

    for (limit, message) in
        [(-1, None), (0, None), (i64::MAX, None), (-5, Some("memory limit -5 is negative"))]
    {
        let pod = Pod::new("besteffort", "l", limit);
        assert_eq!(
            runtime.create(&pod).await,
            unified(&[("memory.high", 4096 * MIB * 9 / 10 / 4096 * 4096)]),
            "{limit}"
        );
        if let Some(message) = message {
            daemon.says(message).await;
        }
    }
    let above = Pod::new("burstable", "r", 100 * MIB).scored(200 * MIB);
    let above = above.annotate("memory-request.plimsoll.nri.io", "200Mi");
    assert_eq!(runtime.create(&above).await, unified(&[("memory.min", 100 * MIB)]));
    daemon.says("exceeds the limit").await;

    for path in ["/kubepods/../../etc", "..", "a-.slice:x:y"] {
        let mut outside = Pod::new("guaranteed", "o", 100 * MIB);
        outside.linux().cgroups_path = path.into();
        assert_eq!(runtime.create(&outside).await, unified(&[("memory.min", 100 * MIB)]));
        assert!(daemon.says("the container's values cannot be verified").await.contains(path));
        runtime.started(&outside).await;
    }

    let mut annotated = Pod::new("guaranteed", "m", 100 * MIB);
    for i in 0..10_000 {
        annotated = annotated.annotate(&format!("a{i}.plimsoll.nri.io"), &"x".repeat(50));
    }
    assert_eq!(runtime.create(&annotated).await, unified(&[("memory.min", 100 * MIB)]));
    daemon.says("9995 more annotations").await;

    // The plugin still handles valid containers.
    assert_eq!(
        runtime.create(&Pod::new("guaranteed", "g", MIB)).await,
        unified(&[("memory.min", MIB)])
    );
}

#[tokio::test]
async fn a_cgroup_that_vanishes_is_no_failure() {
    let node = Node::new();
    let mut daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    let pod = Pod::new("guaranteed", "g", 100 * MIB);
    runtime.run(&pod).await;
    daemon.says("outcome=unchanged").await;
    fs::remove_dir_all(runtime.cgroup(&pod)).unwrap();
    let line = daemon.says("outcome=gone").await;
    assert!(line.contains("default/g") && line.contains("has ended"), "{line}");
    runtime.update(&pod, memory_limit(200 * MIB)).await;
}

#[tokio::test]
async fn unreadable_checkpoints_fall_back_to_oom_scores() {
    let node = Node::new();
    let mut daemon = node.start();
    let mut runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    let pod = Pod::new("burstable", "b", 200 * MIB).scored(50 * MIB);
    let pod = pod.annotate("memory-request.plimsoll.nri.io", "51Mi");
    // oom_score_adj is 994, so the request is at least 6 thousandths of 8 GiB.
    let low = 8192 * MIB * 6 / 1000 + 1;
    let from_score = unified(&[
        ("memory.min", low),
        ("memory.high", (low + (200 * MIB - low) * 9 / 10) / 4096 * 4096),
    ]);
    let from_annotation = unified(&[
        ("memory.min", 51 * MIB),
        ("memory.high", (51 * MIB + 149 * MIB * 9 / 10) / 4096 * 4096),
    ]);
    let from_checkpoint = unified(&[("memory.min", 100 * MIB), ("memory.high", 190 * MIB)]);

    assert_eq!(runtime.create(&pod).await, from_annotation);
    node.checkpoint("actuated_pods_state", &[("b", "app", 100 * MIB)]);
    assert_eq!(runtime.create(&pod).await, from_checkpoint);

    let good = fs::read_to_string(node.path("host/var/lib/kubelet/actuated_pods_state")).unwrap();
    node.replace("host/var/lib/kubelet/actuated_pods_state", &good[..good.len() / 2]);
    assert_eq!(runtime.create(&pod).await, from_score, "the kubelet may have a record");
    daemon.says("actuated_pods_state").await;
    daemon
        .says("annotation memory-request is ignored while the kubelet's checkpoint cannot be read")
        .await;

    let newer = good.replacen('{', r#"{"version":"v9","somethingNew":[1,2,{}],"#, 1);
    node.replace("host/var/lib/kubelet/actuated_pods_state", &newer);
    assert_eq!(runtime.create(&pod).await, from_checkpoint);

    let huge = good.replacen('{', &format!(r#"{{"padding":"{}","#, "x".repeat(10 << 20)), 1);
    node.replace("host/var/lib/kubelet/actuated_pods_state", &huge);
    // If the plugin has not read the file in time, it answers the create event without the values
    // that depend on the file. The plugin then sets these values after the start. The plugin
    // ignores the pod author's annotation, because the checkpoint has an entry for the container.
    let created = runtime.create(&pod).await;
    runtime.make_cgroup(&pod);
    runtime.apply(&pod, &created);
    runtime.started(&pod).await;
    if created != from_checkpoint {
        assert_ne!(created, from_annotation);
        runtime.serve_update(&[&pod]).await;
    }
    daemon.says("outcome=").await;
    assert_eq!(runtime.read(&pod, "memory.min"), from_checkpoint["memory.min"]);
    assert_eq!(runtime.read(&pod, "memory.high"), from_checkpoint["memory.high"]);

    // The first content of the file has a newer version, and the plugin cannot read its data. The
    // next content of the file is too large. Then a directory replaces the file.
    let path = node.path("host/var/lib/kubelet/actuated_pods_state");
    node.replace(
        "host/var/lib/kubelet/actuated_pods_state",
        r#"{"version":"v9","data":"{\"podList\":\"x\"}"}"#,
    );
    assert_eq!(runtime.create(&pod).await, from_score);
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len((64 << 20) + 1).unwrap();
    assert_eq!(runtime.create(&pod).await, from_score);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(runtime.create(&pod).await, from_score);

    fs::remove_dir(&path).unwrap();
    assert_eq!(runtime.create(&pod).await, from_annotation);
}

#[tokio::test]
async fn the_oom_score_bounds_an_annotated_request() {
    let node = Node::new();
    let mut daemon = node.start();
    let mut runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    // oom_score_adj is 990, so the request is below 11 thousandths of 8 GiB. The plugin adds one
    // thousandth to this maximum, because the kubelet may have read another MemTotal.
    let greedy = Pod::new("burstable", "b", 0)
        .scored(82 * MIB)
        .annotate("memory-request.plimsoll.nri.io", "3Gi");
    let most = 8192 * MIB * 11 / 1000 + 8192 * MIB / 1000;
    let created = runtime.create(&greedy).await;
    assert_eq!(created["memory.min"], most.to_string());
    daemon.says("exceeds what the kubelet's oom_score_adj allows").await;
    runtime.make_cgroup(&greedy);
    runtime.apply(&greedy, &created);
    runtime.started(&greedy).await;
    daemon.says("outcome=unchanged").await;
    // While the plugin cannot read a checkpoint, it ignores the annotation in every check.
    node.write("host/var/lib/kubelet/actuated_pods_state", "torn");
    node.replace("plimsoll.yaml", "nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\n");
    let asked = runtime.serve_update(&[&greedy]).await;
    assert_eq!(asked["id-b"]["memory.min"], (8192 * MIB / 100 + 1).to_string());
}

#[tokio::test]
async fn configuration_changes_apply_without_restart() {
    let node = Node::new();
    let mut daemon = node.start();
    let mut runtime = node.accept().await;
    node.checkpoint("actuated_pods_state", &[("b", "app", 100 * MIB)]);
    let pod = Pod::new("burstable", "b", 200 * MIB);
    runtime.make_cgroup(&pod);
    runtime.synchronize(&[&pod]).await;
    runtime.serve_update(&[&pod]).await;
    daemon.says("outcome=applied").await;

    node.replace(
        "plimsoll.yaml",
        "nodeAllocatable: 4Gi\nmemoryReservationPolicy: TieredReservation\nmemoryThrottlingFactor: 0.5\n",
    );
    let asked = runtime.serve_update(&[&pod]).await;
    let expected =
        unified(&[("memory.min", 0), ("memory.low", 100 * MIB), ("memory.high", 150 * MIB)]);
    assert_eq!(asked["id-b"], expected);
    daemon.says("outcome=applied").await;

    // `install` and some editors create a new file and write the content afterwards.
    fs::remove_file(node.path("plimsoll.yaml")).unwrap();
    let text = "nodeAllocatable: 4Gi\nmemoryReservationPolicy: TieredReservation\nmemoryThrottlingFactor: 0.5\n";
    let mut file = fs::File::create(node.path("plimsoll.yaml")).unwrap();
    assert_eq!(runtime.create(&pod).await["memory.high"], (150 * MIB).to_string());
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    drop(file);

    // The test overwrites the file in place with two mistakes. The plugin keeps the previous
    // configuration.
    node.write("plimsoll.yaml", "memoryThrottlingFactor: 2\nmemoryReservationPolcy: None\n");
    let first = daemon.says("plimsoll.yaml:1: memoryThrottlingFactor").await;
    assert!(first.contains("found the number 2"), "{first}");
    daemon.says("plimsoll.yaml:2: memoryReservationPolcy").await;
    daemon.says("stays in force").await;
    assert_eq!(runtime.create(&pod).await["memory.high"], (150 * MIB).to_string());

    // Throttling and protection are off, so the values are the same as without the plugin.
    node.replace("plimsoll.yaml", "memoryThrottlingFactor: null\nmemoryReservationPolicy: None\n");
    let asked = runtime.serve_update(&[&pod]).await;
    assert_eq!(asked["id-b"]["memory.high"], "max");
    assert_eq!(asked["id-b"]["memory.low"], "0");

    fs::remove_file(node.path("plimsoll.yaml")).unwrap();
    daemon.says("was removed; the previous configuration stays in force").await;
    assert_eq!(runtime.create(&pod).await, HashMap::new());
}

const TIGHT: &str = "nodeAllocatable: 4Gi\nmemoryThrottlingFactor: 0.5\nlogLevel: debug\n";

/// Returns memory.high of a new container without a limit, in MiB. With a factor of 0.5 the value
/// is 2048.
async fn high(runtime: &harness::Runtime) -> i64 {
    let created = runtime.create(&Pod::new("besteffort", "e", 0)).await;
    created["memory.high"].parse::<i64>().unwrap() / MIB
}

#[tokio::test]
async fn hangup_reloads_what_no_watch_sees() {
    let node = Node::new();
    fs::create_dir(node.path("elsewhere")).unwrap();
    node.write("elsewhere/real.yaml", "nodeAllocatable: 4Gi\nlogLevel: debug\n");
    std::os::unix::fs::symlink(node.path("elsewhere/real.yaml"), node.path("link.yaml")).unwrap();
    let mut daemon = node.start_with(&["--config", node.path("link.yaml").to_str().unwrap()]);
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    assert_eq!(high(&runtime).await, 3686);
    // Only the target of the symbolic link changes, and the plugin watches the directory of the
    // link.
    node.write("elsewhere/real.yaml", TIGHT);
    daemon.signal(Signal::HUP);
    daemon.says("configuration changed").await;
    assert_eq!(high(&runtime).await, 2048);
    daemon.signal(Signal::HUP);
    daemon.says("the configuration is in force already").await;
    node.write("elsewhere/real.yaml", "memoryThrottlingFactor: 2\n");
    daemon.signal(Signal::HUP);
    daemon.says("stays in force").await;
    fs::remove_file(node.path("elsewhere/real.yaml")).unwrap();
    daemon.signal(Signal::HUP);
    daemon.says("stays in force").await;
    assert_eq!(high(&runtime).await, 2048);
}

#[tokio::test]
async fn signals_that_reload_others_end_nothing() {
    let node = Node::new();
    let mut daemon = node.start();
    // The plugin also survives the signals while it waits for an answer from the runtime.
    let trunk = node.trunk().await;
    daemon.signal(Signal::HUP);
    daemon.signal(Signal::USR1);
    daemon.says("SIGUSR1").await;
    let runtime = node
        .serve(trunk, Options { request_timeout: Duration::from_secs(30), ..Options::default() })
        .await;
    runtime.synchronize(&[]).await;
    daemon.says("reading the configuration again").await;
    for signal in [Signal::USR1, Signal::HUP] {
        daemon.signal(signal);
        daemon.says(if signal == Signal::HUP { "SIGHUP" } else { "SIGUSR1" }).await;
    }
    assert_eq!(high(&runtime).await, 3686);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ends().await.code(), Some(0));
}

#[tokio::test]
async fn launched_processes_survive_reload_signals() {
    let node = Node::new();
    let (mut daemon, trunk) = node.launch();
    let runtime = node.serve(trunk, Options::default()).await;
    runtime.synchronize(&[]).await;
    daemon.says("synchronized").await;
    let waits = launched_process(&daemon);
    let children = format!("/proc/{0}/task/{0}/children", waits.as_raw_nonzero());
    let plugin =
        Pid::from_raw(fs::read_to_string(children).unwrap().trim().parse().unwrap()).unwrap();
    for signal in [Signal::HUP, Signal::USR1] {
        kill_process(waits, signal).unwrap();
        kill_process(plugin, signal).unwrap();
        daemon.says(if signal == Signal::HUP { "SIGHUP" } else { "SIGUSR1" }).await;
    }
    kill_process(plugin, Signal::TERM).unwrap();
    // The waiting process exits with the plugin's exit code.
    assert_eq!(timeout(Duration::from_secs(60), daemon.ends()).await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn signals_without_a_meaning_end_nothing() {
    let node = Node::new();
    let mut daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    for signal in [Signal::WINCH, Signal::PIPE] {
        daemon.signal(signal);
    }
    for (signal, name) in
        [(Signal::ALARM, "SIGALRM"), (Signal::VTALARM, "SIGVTALRM"), (Signal::IO, "SIGIO")]
    {
        daemon.signal(signal);
        let line = daemon.says(name).await;
        assert!(line.contains("SIGHUP reloads the configuration"), "{line}");
    }
    assert_eq!(high(&runtime).await, 3686);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ends().await.code(), Some(0));
}

#[tokio::test]
async fn an_empty_file_replaces_no_configuration() {
    let node = Node::new();
    node.write("plimsoll.yaml", TIGHT);
    let mut daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    for empty in ["", " \n\t\n", "# nodeAllocatable: 8Gi\n---\n", "\u{feff}# made by hand"] {
        node.replace("plimsoll.yaml", empty);
        let line = daemon.says("is empty").await;
        assert!(line.contains("WARN") && line.contains("stays in force"), "{line}");
        assert_eq!(high(&runtime).await, 2048, "{empty:?}");
    }
    // The plugin also ignores an empty file when the user requests a reload.
    daemon.signal(Signal::HUP);
    daemon.says("is empty").await;
    assert_eq!(high(&runtime).await, 2048);
    node.replace("plimsoll.yaml", "{}");
    daemon.says("configuration changed").await;
    assert_ne!(high(&runtime).await, 2048);
}

#[tokio::test]
async fn an_empty_file_at_start_means_defaults() {
    let node = Node::new();
    node.write("plimsoll.yaml", "# Nothing yet.\n");
    let mut daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    assert!(!runtime.create(&Pod::new("besteffort", "e", 0)).await.is_empty());
    node.replace("plimsoll.yaml", TIGHT);
    daemon.says("configuration changed").await;
    assert_eq!(high(&runtime).await, 2048);
}

#[tokio::test]
async fn a_configuration_directory_that_appears_is_watched() {
    let node = Node::new();
    let directory = node.path("etc/nri/conf.d");
    let file = directory.join("plimsoll.yaml");
    fs::create_dir_all(&directory).unwrap();
    fs::write(&file, "nodeAllocatable: 4Gi\nlogLevel: debug\n").unwrap();
    let mut daemon = node.start_with(&["--config", file.to_str().unwrap()]);
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    for (config, expected) in [(TIGHT, 2048), ("nodeAllocatable: 4Gi\nlogLevel: debug\n", 3686)] {
        fs::remove_dir_all(node.path("etc")).unwrap();
        daemon.says("was removed; the previous configuration stays in force").await;
        // The directories appear one by one in the first round, and all at once in the second
        // round.
        if expected == 2048 {
            fs::create_dir(node.path("etc")).unwrap();
            sleep(Duration::from_millis(300)).await;
        }
        fs::create_dir_all(&directory).unwrap();
        fs::write(&file, config).unwrap();
        daemon.says("configuration changed").await;
        assert_eq!(high(&runtime).await, expected);
    }
}

#[tokio::test]
async fn a_file_removed_before_watching_is_reported() {
    let node = Node::new();
    let file = node.path("plimsoll.yaml");
    fs::write(&file, "nodeAllocatable: 4Gi\n").unwrap();
    let mut daemon = node.start_with(&["--config", file.to_str().unwrap()]);
    // The plugin reads the file before it connects, and watches it once the runtime has configured
    // the plugin.
    let trunk = node.trunk().await;
    fs::remove_file(&file).unwrap();
    let runtime = node.serve(trunk, Options::default()).await;
    daemon.says("was removed; the previous configuration stays in force").await;
    assert_eq!(high(&runtime).await, 3686);
}

#[tokio::test]
async fn a_later_kubelet_updates_node_allocatable() {
    let node = Node::new();
    node.write("plimsoll.yaml", "nodeAllocatable: auto\n");
    let mut daemon = node.start();
    let mut runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    daemon.says("no sign of a kubelet").await;
    let pod = Pod::new("besteffort", "e", 0);
    let created = runtime.create(&pod).await;
    assert_eq!(created, unified(&[("memory.high", 8192 * MIB * 9 / 10 / 4096 * 4096)]));
    runtime.make_cgroup(&pod);
    runtime.apply(&pod, &created);

    fs::create_dir_all(node.path("host/sys/fs/cgroup/kubepods")).unwrap();
    node.write("host/sys/fs/cgroup/kubepods/memory.max", &format!("{}\n", 4196 * MIB));
    let later = unified(&[("memory.high", 4096 * MIB * 9 / 10 / 4096 * 4096)]);
    assert_eq!(runtime.create(&Pod::new("besteffort", "f", 0)).await, later);
    // Running containers also get the new value.
    assert_eq!(runtime.serve_update(&[&pod]).await["id-e"], later);
    daemon.says("outcome=applied").await;
}

#[tokio::test]
async fn configuration_errors_at_start_exit_with_2() {
    let node = Node::new();
    node.write("plimsoll.yaml", "memoryThrottlingFactor: 0\nnodeAllocatable: lots\n");
    let mut daemon = node.start();
    daemon.says("plimsoll.yaml:1: memoryThrottlingFactor").await;
    daemon.says("plimsoll.yaml:2: nodeAllocatable").await;
    assert_eq!(daemon.ends().await.code(), Some(2));

    let mut daemon = node.start_with(&["--config", "/no/such/file"]);
    daemon.says("/no/such/file").await;
    assert_eq!(daemon.ends().await.code(), Some(2));
}

#[tokio::test]
async fn sigterm_leads_to_exit_code_0() {
    let node = Node::new();
    let mut daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    daemon.says("synchronized").await;
    daemon.signal(rustix::process::Signal::TERM);
    runtime.connection.closed().await;
    assert_eq!(daemon.ends().await.code(), Some(0));
}

#[tokio::test]
async fn launched_plugins_use_the_runtimes_configuration() {
    let node = Node::new();
    let (_daemon, trunk) = node.launch();
    let config = "memoryThrottlingFactor: 0.5\nnodeAllocatable: 4Gi\n".to_owned();
    let runtime = node.serve(trunk, Options { config, ..Options::default() }).await;
    runtime.synchronize(&[]).await;
    let high = 4096 * MIB / 2;
    assert_eq!(
        runtime.create(&Pod::new("besteffort", "e", 0)).await,
        unified(&[("memory.high", high)])
    );
}

#[tokio::test]
async fn misconfigured_launched_plugins_register_and_exit_2() {
    let node = Node::new();
    let (daemon, trunk) = node.launch();
    let config = "memoryThrottlingFactor: [\n".to_owned();
    // If the plugin failed in this case, a runtime with NRI 0.6.1 would not start.
    let runtime = node
        .serve(trunk, Options { config, nri_version: NriVersion(0, 6, 1), ..Options::default() })
        .await;
    runtime.connection.closed().await;
    assert_eq!(daemon.ends().await.code(), Some(2));
}

#[tokio::test]
async fn launched_plugins_without_cgroup_v2_register_first() {
    let node = Node::new();
    fs::remove_file(node.path("host/sys/fs/cgroup/cgroup.controllers")).unwrap();
    let (mut daemon, trunk) = node.launch();
    // If a plugin exits without an answer, NRI 0.6.1 fails to start. Then containerd does not start
    // either.
    let runtime =
        node.serve(trunk, Options { nri_version: NriVersion(0, 6, 1), ..Options::default() }).await;
    runtime.connection.closed().await;
    daemon.says("expected a cgroup v2 hierarchy").await;
    assert_eq!(daemon.ends().await.code(), Some(1));
}

/// Returns the process that the runtime launched. This process only waits for the second process,
/// which runs the plugin.
fn launched_process(of: &Daemon) -> rustix::process::Pid {
    let children =
        fs::read_to_string(format!("/proc/{0}/task/{0}/children", of.child.id())).unwrap();
    rustix::process::Pid::from_raw(children.trim().parse().unwrap()).unwrap()
}

#[tokio::test]
async fn dropped_launched_plugins_reconnect_over_the_socket() {
    let node = Node::new();
    let (mut daemon, trunk) = node.launch();
    let config = "nodeAllocatable: 4Gi\nmemoryThrottlingFactor: 0.5\n".to_owned();
    let runtime = node.serve(trunk, Options { config, ..Options::default() }).await;
    runtime.synchronize(&[]).await;
    // A runtime closes the connection like this when a reply comes too late.
    runtime.connection.close();
    rustix::process::kill_process(launched_process(&daemon), rustix::process::Signal::KILL)
        .unwrap();

    let runtime = node.accept().await;
    let pod = Pod::new("besteffort", "e", 0);
    runtime.make_cgroup(&pod);
    runtime.synchronize(&[&pod]).await;
    // The plugin keeps the configuration that it received at its launch.
    let mut runtime = runtime;
    assert_eq!(
        runtime.serve_update(&[&pod]).await["id-e"],
        unified(&[("memory.high", 2048 * MIB)])
    );

    ends_with_its_runtime(&node, &mut daemon, &runtime).await;
}

#[tokio::test]
async fn plugins_launched_by_nri_0_6_reconnect() {
    let node = Node::new();
    let (_daemon, trunk) = node.launch();
    let options = Options {
        version: "1.7.24".into(),
        nri_version: NriVersion(0, 6, 1),
        config: "nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\n".into(),
        ..Options::default()
    };
    let launched = node.serve(trunk, options.clone()).await;
    let trunk = node.trunk().await;
    launched.connection.closed().await;
    let mut runtime = node.serve(trunk, options).await;
    let pod = Pod::new("guaranteed", "g", 100 * MIB);
    runtime.make_cgroup(&pod);
    runtime.synchronize(&[&pod]).await;
    assert_eq!(runtime.serve_update(&[&pod]).await["id-g"], unified(&[("memory.min", 100 * MIB)]));
}

#[tokio::test]
async fn a_launched_plugin_waits_for_another_instance() {
    let node = Node::new();
    let mut external = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    external.says("synchronized").await;

    let (mut daemon, trunk) = node.launch();
    // The second plugin answers so that the runtime can start, and then disconnects.
    let second = node.serve(trunk, Options::default()).await;
    second.connection.closed().await;
    daemon.says("another instance of this plugin is running").await;

    external.signal(rustix::process::Signal::TERM);
    runtime.connection.closed().await;
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    drop(daemon);
    runtime.connection.closed().await;
}

#[test]
fn run_without_cgroup_v2_exits_with_1() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(["run", "--host", directory.path().to_str().unwrap()])
        .args(["--config", "/dev/null"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains(&Path::new("sys/fs/cgroup").display().to_string()), "{message}");
}

/// Returns a plugin that runs as a systemd service, and the service manager's socket. The plugin
/// pings the watchdog every 50 ms.
fn service(node: &Node) -> (Daemon, UnixDatagram) {
    let path = node.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    command.args(node.arguments()).arg("--config").arg(node.path("plimsoll.yaml"));
    command.env("NOTIFY_SOCKET", path).env("WATCHDOG_USEC", "100000");
    (Daemon::spawn(command), manager)
}

/// Waits until the service manager has received `text`. Returns all text received until then.
async fn told(manager: &UnixDatagram, text: &str) -> String {
    let mut said = String::new();
    while !said.contains(text) {
        let mut bytes = [0; 4096];
        let length =
            timeout(Duration::from_secs(60), manager.recv(&mut bytes)).await.expect(&said).unwrap();
        said += &String::from_utf8_lossy(&bytes[..length]);
    }
    said
}

#[tokio::test]
async fn the_service_is_ready_once_synchronized() {
    let node = Node::new();
    let (daemon, manager) = service(&node);
    let runtime = node.accept().await;
    let said = told(&manager, "WATCHDOG=1").await;
    assert!(said.contains("STATUS=waiting for the container runtime\n"), "{said}");
    // The plugin is connected, registered and configured, but the runtime has not sent its
    // containers yet.
    assert!(!said.contains("READY=1"), "{said}");
    runtime.synchronize(&[]).await;
    let said = told(&manager, "READY=1").await;
    assert!(
        said.ends_with("STATUS=connected to the container runtime and synchronized\n"),
        "{said}"
    );
    drop(runtime);
    told(&manager, "STATUS=waiting for the container runtime").await;
    daemon.signal(Signal::TERM);
    told(&manager, "STOPPING=1").await;
    assert!(daemon.ends().await.success());
}

#[tokio::test]
async fn a_hanging_reconcile_task_stops_watchdog_messages() {
    let node = Node::new();
    let (_daemon, manager) = service(&node);
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    told(&manager, "READY=1").await;
    let pod = Pod::new("burstable", "a", 256 << 20);
    runtime.run(&pod).await;
    told(&manager, "WATCHDOG=1").await;
    // The reconcile task reads the limits of each container. The task's read of a FIFO blocks until
    // a writer writes or closes the FIFO. The test can open the FIFO without blocking only while
    // the plugin has it open for reading.
    let file = runtime.cgroup(&pod).join("memory.max");
    let status = Command::new("mkfifo").arg(node.path("new")).status().unwrap();
    assert!(status.success());
    fs::rename(node.path("new"), &file).unwrap();
    fs::write(node.path("plimsoll.yaml"), "memoryThrottlingFactor: 0.5").unwrap();
    let writer = timeout(Duration::from_secs(60), async {
        loop {
            let flags = OFlags::WRONLY | OFlags::NONBLOCK;
            if let Ok(writer) = rustix::fs::open(&file, flags, Mode::empty()) {
                return writer;
            }
            sleep(Duration::from_millis(10)).await;
        }
    });
    let writer = writer.await.expect("the container's limit is read");
    while manager.try_recv(&mut [0; 4096]).is_ok() {}
    let told_while_hanging = timeout(Duration::from_secs(1), manager.recv(&mut [0; 4096])).await;
    assert!(told_while_hanging.is_err());
    // Remove the FIFO first, because a second read of it would block without a writer.
    fs::remove_file(&file).unwrap();
    drop(writer);
    told(&manager, "WATCHDOG=1").await;
}

#[tokio::test]
async fn usr2_replaces_a_launched_plugin_in_place() {
    let node = Node::new();
    let (mut daemon, trunk) = node.launch();
    let runtime = node.serve(trunk, Options::default()).await;
    runtime.synchronize(&[]).await;
    daemon.says("synchronized").await;
    let waits = launched_process(&daemon).as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{waits}/task/{waits}/children")).unwrap();
    let plugin = Pid::from_raw(children.trim().parse().unwrap()).unwrap();
    let started = || fs::metadata(format!("/proc/{waits}/exe")).is_ok();

    kill_process(plugin, Signal::USR2).unwrap();
    daemon.says("executing the new program").await;
    runtime.connection.closed().await;
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    daemon.says("synchronized").await;
    // The process ID does not change, so the launched process still waits for this process.
    assert!(started());
    let line = fs::read_to_string(format!("/proc/{}/cmdline", plugin.as_raw_nonzero())).unwrap();
    assert!(line.contains("\0run\0"), "{line}");

    ends_with_its_runtime(&node, &mut daemon, &runtime).await;
}

#[tokio::test]
async fn further_replacements_at_the_start_end_nothing() {
    let node = Node::new();
    let (mut daemon, trunk) = node.launch();
    let runtime = node.serve(trunk, Options::default()).await;
    runtime.synchronize(&[]).await;
    daemon.says("synchronized").await;
    let waits = launched_process(&daemon).as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{waits}/task/{waits}/children")).unwrap();
    let plugin = Pid::from_raw(children.trim().parse().unwrap()).unwrap();
    // Many of these signals arrive while the process executes the program.
    for _ in 0..300 {
        kill_process(plugin, Signal::USR2).expect("the plugin still runs");
        sleep(Duration::from_millis(1)).await;
    }
    sleep(Duration::from_millis(500)).await;
    let line = fs::read_to_string(format!("/proc/{}/cmdline", plugin.as_raw_nonzero())).unwrap();
    assert!(line.contains("\0run\0"), "{line}");
}

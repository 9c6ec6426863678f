//! Tests of the cgroups above containers: the plugin sets, repairs and restores the values of these
//! cgroups.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{self, Daemon, MIB, Node, Pod, Runtime, restore, unified};
use nri::api::Event;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

const KUBEPODS: &str = "kubepods";
const BURSTABLE: &str = "kubepods/burstable";

/// Starts the plugin on a node with the cgroups of the QoS classes, as the kubelet makes them.
async fn start() -> (Node, Daemon, Runtime) {
    let node = Node::new();
    let daemon = node.start();
    let runtime = node.accept().await;
    for class in ["guaranteed", "burstable", "besteffort"] {
        runtime.make_cgroup(&Pod::new(class, "first", 0));
        fs::remove_dir_all(runtime.cgroup(&Pod::new(class, "first", 0)).parent().unwrap()).unwrap();
    }
    runtime.synchronize(&[]).await;
    (node, daemon, runtime)
}

fn burstable(node: &Node, uid: &str, request: i64) -> Pod {
    node.checkpoint("actuated_pods_state", &[(uid, "app", request)]);
    node.checkpoint("allocated_pods_state", &[(uid, "app", request)]);
    Pod::new("burstable", uid, 2 * request)
}

/// The test reads the files as soon as the plugin has answered, so the plugin must write the files
/// before it answers.
#[tokio::test]
async fn ancestors_include_containers_from_create_to_stop() {
    let (node, _daemon, runtime) = start().await;
    let low = burstable(&node, "b", 100 * MIB).overhead(10 * MIB);
    runtime.make_cgroup(&low);
    runtime.pod_event(Event::RUN_POD_SANDBOX, &low).await;
    assert_eq!(runtime.file(&low.cgroup(), "memory.min"), (10 * MIB).to_string());
    runtime.create(&low).await;
    let high = Pod::new("guaranteed", "g", 200 * MIB);
    runtime.make_cgroup(&high);
    runtime.pod_event(Event::RUN_POD_SANDBOX, &high).await;
    runtime.create(&high).await;
    let read = |cgroup: &str| runtime.file(cgroup, "memory.min").parse::<i64>().unwrap() / MIB;
    assert_eq!(
        [&low.cgroup(), BURSTABLE, &high.cgroup(), KUBEPODS].map(read),
        [110, 110, 200, 310]
    );

    fs::remove_dir_all(runtime.cgroup(&low)).unwrap();
    runtime.stop(&low).await;
    assert_eq!([&low.cgroup(), BURSTABLE, &high.cgroup(), KUBEPODS].map(read), [10, 10, 200, 210]);
    runtime.pod_event(Event::STOP_POD_SANDBOX, &low).await;
    assert_eq!([&low.cgroup(), BURSTABLE, &high.cgroup(), KUBEPODS].map(read), [0, 0, 200, 200]);
    for (cgroup, name) in
        [(KUBEPODS, "memory.high"), (BURSTABLE, "memory.high"), (KUBEPODS, "memory.max")]
    {
        assert_eq!(
            runtime.file(cgroup, name),
            "max",
            "the plugin must not set memory.high above containers"
        );
    }
}

#[tokio::test]
async fn tiered_reservation_gives_burstable_only_memory_low() {
    let (node, mut daemon, runtime) = start().await;
    node.replace(
        "plimsoll.yaml",
        "memoryReservationPolicy: TieredReservation\nmemoryMinHeadroom: 0\n",
    );
    daemon.says("configuration changed").await;
    let (low, high) = (burstable(&node, "b", 100 * MIB), Pod::new("guaranteed", "g", 200 * MIB));
    runtime.make_cgroup(&low);
    runtime.make_cgroup(&high);
    runtime.run(&low).await;
    runtime.run(&high).await;
    for (cgroup, min, soft) in [
        (KUBEPODS, 300, 100),
        (BURSTABLE, 0, 100),
        (&low.cgroup(), 0, 100),
        (&high.cgroup(), 200, 0),
    ] {
        assert_eq!(runtime.file(cgroup, "memory.min"), (min * MIB).to_string(), "{cgroup}");
        assert_eq!(runtime.file(cgroup, "memory.low"), (soft * MIB).to_string(), "{cgroup}");
    }
}

#[tokio::test]
async fn ancestors_rise_before_updates_and_fall_afterwards() {
    let (node, mut daemon, runtime) = start().await;
    let pod = burstable(&node, "b", 100 * MIB);
    run(&runtime, &mut daemon, &pod).await;
    for (request, before) in [(150, 150), (50, 150)] {
        node.checkpoint("allocated_pods_state", &[("b", "app", request * MIB)]);
        let updated = runtime.update(&pod, harness::memory_limit(300 * MIB)).await;
        assert_eq!(updated["memory.min"], (request * MIB).to_string());
        // The container does not have its new value yet, so the cgroups above it keep the larger
        // protection.
        for cgroup in [&pod.cgroup(), BURSTABLE, KUBEPODS] {
            assert_eq!(
                runtime.file(cgroup, "memory.min"),
                (before * MIB).to_string(),
                "{cgroup} {request}"
            );
        }
        runtime.apply(&pod, &updated);
        runtime.set_file(&format!("{}/id-b", pod.cgroup()), "memory.max", &(300 * MIB).to_string());
        runtime.updated(&pod).await;
        // Wait until the plugin has checked this update. Without this wait, the plugin might
        // already read the next request from the checkpoint.
        daemon.says("outcome=unchanged").await;
        for cgroup in [&pod.cgroup(), BURSTABLE, KUBEPODS] {
            runtime.holds(cgroup, "memory.min", request * MIB).await;
        }
    }
}

#[tokio::test]
async fn claims_above_allocatable_are_shared_and_reported() {
    let (_node, mut daemon, runtime) = start().await;
    // The requests of the pods add up to 6 GiB, and node allocatable is 4 GiB.
    let pods = ["a", "b", "c"].map(|uid| Pod::new("guaranteed", uid, 2048 * MIB));
    for pod in &pods {
        runtime.make_cgroup(pod);
        runtime.run(pod).await;
    }
    // The division by three loses fractions of a byte. The plugin then rounds down to whole pages.
    assert_eq!(runtime.file(KUBEPODS, "memory.min"), (4096 * MIB - 4096).to_string());
    for pod in &pods {
        assert_eq!(
            runtime.file(&pod.cgroup(), "memory.min"),
            (4096 * MIB / 3 / 4096 * 4096).to_string()
        );
        assert_eq!(
            runtime.read(pod, "memory.min"),
            (2048 * MIB).to_string(),
            "the kernel distributes the pod's protection among its containers"
        );
    }
    assert!(daemon.says("gets less than its claim").await.contains("asked_min=\"2Gi\""));
    runtime.end(&pods[2]).await;
    assert_eq!(runtime.file(KUBEPODS, "memory.min"), (4096 * MIB).to_string());
    daemon.says("gets its full claim again").await;
}

#[tokio::test]
async fn foreign_writes_are_repaired_at_every_level() {
    let (node, mut daemon, runtime) = start().await;
    let pod = burstable(&node, "b", 100 * MIB);
    run(&runtime, &mut daemon, &pod).await;
    for cgroup in [KUBEPODS, BURSTABLE, &pod.cgroup()] {
        runtime.set_file(cgroup, "memory.min", "0");
        runtime.holds(cgroup, "memory.min", 100 * MIB).await;
        let line = daemon.says("repaired a file that another program had changed").await;
        assert!(
            line.contains(&format!("cgroup=/{cgroup} ")) && line.contains("observed=0"),
            "{line}"
        );
    }
    let container = format!("{}/id-b", pod.cgroup());
    // The runtime has already stored this value, so the plugin repairs only the file.
    runtime.set_file(&container, "memory.high", "max");
    runtime.holds(&container, "memory.high", 190 * MIB).await;
    daemon.says("outcome=applied").await;
    // After the pod's cgroup was removed, kubepods has no protection for the pod.
    fs::remove_dir_all(runtime.cgroup(&pod).parent().unwrap()).unwrap();
    runtime.holds(KUBEPODS, "memory.min", 0).await;
}

/// crun puts the container's processes into a separate cgroup inside the scope.
#[tokio::test]
async fn inner_cgroups_of_scopes_are_repaired() {
    let (node, mut daemon, runtime) = start().await;
    let mut pod = burstable(&node, "b", 100 * MIB);
    let scope = format!("{}/crio-b.scope", pod.cgroup());
    pod.linux().cgroups_path = format!("/{scope}");
    let inner = format!("{scope}/container");
    runtime.pod_event(Event::RUN_POD_SANDBOX, &pod).await;
    let wanted = runtime.create(&pod).await;
    runtime.make_cgroup(&pod);
    runtime.make_cgroup_at(&inner);
    for (name, value) in &wanted {
        for cgroup in [&scope, &inner] {
            runtime.set_file(cgroup, name, value);
        }
    }
    runtime.started(&pod).await;
    daemon.says("outcome=unchanged").await;
    runtime.set_file(&inner, "memory.high", "0");
    runtime.holds(&inner, "memory.high", 190 * MIB).await;
}

#[tokio::test]
async fn persistent_writers_are_reported_with_both_values() {
    let (node, mut daemon, runtime) = start().await;
    let pod = burstable(&node, "b", 100 * MIB);
    run(&runtime, &mut daemon, &pod).await;
    for _ in 0..5 {
        runtime.set_file(KUBEPODS, "memory.min", "4096");
        runtime.holds(KUBEPODS, "memory.min", 100 * MIB).await;
    }
    runtime.set_file(KUBEPODS, "memory.min", "4096");
    let line = daemon.says("outcome=contended").await;
    for part in [
        "cgroup=/kubepods",
        "memory.min",
        "desired=104857600",
        "observed=4096",
        "repairs=5",
        "The kubelet's own MemoryQoS may be the other program",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    // The other program's value stays, and new pods start as usual.
    runtime.set_file(KUBEPODS, "memory.min", "8192");
    let other = Pod::new("guaranteed", "g", 200 * MIB);
    runtime.make_cgroup(&other);
    runtime.run(&other).await;
    assert_eq!(runtime.file(&other.cgroup(), "memory.min"), (200 * MIB).to_string());
    assert_eq!(
        runtime.file(KUBEPODS, "memory.min"),
        (300 * MIB).to_string(),
        "the plugin must write a new value once"
    );
}

#[tokio::test]
async fn unreported_container_ends_lower_ancestor_protection() {
    let (node, mut daemon, runtime) = start().await;
    let pod = burstable(&node, "b", 100 * MIB);
    run(&runtime, &mut daemon, &pod).await;
    fs::remove_dir_all(runtime.cgroup(&pod)).unwrap();
    for cgroup in [&pod.cgroup(), BURSTABLE, KUBEPODS] {
        runtime.holds(cgroup, "memory.min", 0).await;
    }
    // An update of an ended container does not raise the protection of the cgroups above it.
    let mut ended = pod.clone();
    ended.container.state = nri::api::ContainerState::CONTAINER_STOPPED.into();
    runtime.stop(&ended).await;
    let (sandbox, container) = (ended.sandbox.clone(), ended.container.clone());
    let reply = runtime
        .connection
        .update_container(sandbox, container, harness::memory_limit(300 * MIB))
        .await;
    assert_eq!(reply.unwrap().update, []);
    assert_eq!(runtime.file(KUBEPODS, "memory.min"), "0");
}

/// Returns another container of the same name in the pod's sandbox.
fn next(pod: &Pod, id: &str) -> Pod {
    let mut next = pod.clone();
    next.container.id = id.into();
    let path = format!("/{}/{id}", pod.cgroup());
    next.linux().cgroups_path = path;
    next
}

/// containerd creates the task before it calls plugins. If the creation of the task fails,
/// containerd sends no event.
#[tokio::test]
async fn a_failed_start_does_not_count() {
    let (node, _daemon, runtime) = start().await;
    let pod = burstable(&node, "b", 100 * MIB);
    runtime.make_cgroup(&pod);
    fs::remove_dir_all(runtime.cgroup(&pod)).unwrap();
    runtime.pod_event(Event::RUN_POD_SANDBOX, &pod).await;
    runtime.create(&pod).await;
    let mut second = next(&pod, "id-second");
    for (id, name) in [("id-second", "app"), ("id-third", "app"), ("id-other", "other")] {
        let mut next = next(&pod, id);
        next.container.name = name.into();
        runtime.create(&next).await;
        assert_eq!(runtime.file(KUBEPODS, "memory.min"), (100 * MIB).to_string(), "{id}");
        second = if name == "app" { next } else { second };
    }
    // The plugin has forgotten the first container, so an update of this container raises no
    // protection.
    let (sandbox, first) = (pod.sandbox.clone(), pod.container.clone());
    let reply =
        runtime.connection.update_container(sandbox, first, harness::memory_limit(300 * MIB)).await;
    assert_eq!(reply.unwrap().update, []);
    assert_eq!(runtime.file(KUBEPODS, "memory.min"), (100 * MIB).to_string());
    // A runtime may still report all of these containers, in any order.
    drop(runtime);
    let runtime = node.accept().await;
    let mut first = pod.clone();
    for (container, created_at) in [(&mut first, 1), (&mut second, 2)] {
        container.container.created_at = created_at;
        container.container.state = nri::api::ContainerState::CONTAINER_CREATED.into();
    }
    for order in [[&first, &second], [&second, &first]] {
        runtime.synchronize(&order).await;
        runtime.holds(KUBEPODS, "memory.min", 100 * MIB).await;
    }
    runtime.stop(&second).await;
    // The plugin does not count the first container again.
    runtime.holds(KUBEPODS, "memory.min", 0).await;
}

#[tokio::test]
async fn inherited_pod_limits_are_claimed_only_once() {
    let (node, _daemon, runtime) = start().await;
    // The kubelet gives both containers the limit of their Guaranteed pod. The kubelet's
    // checkpoints have no entry for the pod.
    let pod = Pod::new("guaranteed", "g", 200 * MIB)
        .created_with(harness::memory_limit(200 * MIB))
        .overhead(8 * MIB);
    let mut side = next(&pod, "id-side");
    side.container.name = "side".into();
    runtime.make_cgroup(&pod);
    runtime.set_file(&pod.cgroup(), "memory.max", &(208 * MIB).to_string());
    runtime.run(&pod).await;
    runtime.make_cgroup(&side);
    runtime.run(&side).await;
    for cgroup in [&pod.cgroup(), KUBEPODS] {
        runtime.holds(cgroup, "memory.min", 208 * MIB).await;
    }
    // The runtime reports both containers once more, and then one of them ends.
    drop(runtime);
    let runtime = node.accept().await;
    runtime.synchronize(&[&pod, &side]).await;
    runtime.holds(KUBEPODS, "memory.min", 208 * MIB).await;
    fs::remove_dir_all(runtime.cgroup(&side)).unwrap();
    runtime.stop(&side).await;
    assert_eq!(runtime.file(KUBEPODS, "memory.min"), (208 * MIB).to_string());
}

#[tokio::test]
async fn pod_limits_bound_protection_despite_torn_checkpoints() {
    let (node, _daemon, runtime) = start().await;
    node.replace("host/var/lib/kubelet/actuated_pods_state", "torn");
    let pod = Pod::new("guaranteed", "g", 200 * MIB);
    let mut side = next(&pod, "id-side");
    side.container.name = "side".into();
    runtime.make_cgroup(&pod);
    runtime.set_file(&pod.cgroup(), "memory.max", &(200 * MIB).to_string());
    runtime.run(&pod).await;
    runtime.make_cgroup(&side);
    runtime.run(&side).await;
    for cgroup in [&pod.cgroup(), KUBEPODS] {
        runtime.holds(cgroup, "memory.min", 200 * MIB).await;
    }
    // The kubelet raises a pod's limit before the limits of its containers.
    runtime.set_file(&pod.cgroup(), "memory.max", &(300 * MIB).to_string());
    runtime.holds(KUBEPODS, "memory.min", 300 * MIB).await;
}

/// With Kata, all processes of a pod are in the sandbox's cgroup and containers have no cgroups.
/// gVisor makes empty cgroups for containers.
#[tokio::test]
async fn containers_without_own_processes_stay_protected() {
    let (node, mut daemon, runtime) = start().await;
    let mut kata = burstable(&node, "kata", 100 * MIB).overhead(10 * MIB);
    let mut gvisor = Pod::new("guaranteed", "gvisor", 200 * MIB);
    kata.sandbox.runtime_handler = "kata".into();
    gvisor.sandbox.runtime_handler = "runsc".into();
    for pod in [&kata, &gvisor] {
        runtime.make_cgroup(pod);
        fs::remove_dir_all(runtime.cgroup(pod)).unwrap();
        let sandbox = format!("{}/kata_{}", pod.cgroup(), pod.sandbox.id);
        runtime.make_cgroup_at(&sandbox);
        runtime.set_file(&sandbox, "memory.current", &(90 * MIB).to_string());
        runtime.pod_event(Event::RUN_POD_SANDBOX, pod).await;
        runtime.create(pod).await;
    }
    runtime.make_cgroup(&gvisor);
    runtime.set_file(
        &format!("{}/id-gvisor", gvisor.cgroup()),
        "cgroup.events",
        "populated 0\nfrozen 0",
    );
    runtime.set_file(&format!("{}/id-gvisor", gvisor.cgroup()), "memory.max", "max");
    for pod in [&kata, &gvisor] {
        runtime.started(pod).await;
    }
    let line = daemon.says("outcome=").await;
    assert!(
        line.contains("default/gvisor") && line.contains("outcome=unresolved"),
        "the plugin must not report a read value: {line}"
    );
    // Update the container, then let the runtime report everything again. The plugin then checks
    // everything.
    runtime.update(&gvisor, harness::memory_limit(300 * MIB)).await;
    runtime.updated(&gvisor).await;
    drop(runtime);
    let mut runtime = node.accept().await;
    gvisor.linux().resources = Some(harness::memory_limit(300 * MIB)).into();
    runtime.synchronize(&[&kata, &gvisor]).await;
    runtime.holds(KUBEPODS, "memory.min", 410 * MIB).await;
    assert_eq!(runtime.file(&kata.cgroup(), "memory.min"), (110 * MIB).to_string());
    assert_eq!(runtime.file(&gvisor.cgroup(), "memory.min"), (300 * MIB).to_string());
    // The plugin sends no request to the runtime and repairs nothing. The 12 s exceed the delay
    // before the first inspection of an unknown cgroup. The delay is 10 s (`UNKNOWN_CGROUP_DELAY`
    // in `agent/reconciler/mod.rs`).
    let asked = tokio::time::timeout(Duration::from_secs(12), async {
        tokio::select! {
            _ = runtime.updates.recv() => "an update",
            _ = node.trunk() => "a new synchronization",
        }
    });
    assert_eq!(asked.await.ok(), None);
    // The removal of gVisor's empty cgroup does not mean that the container has ended. Only the
    // runtime reports the end of a container.
    fs::remove_dir_all(runtime.cgroup(&gvisor)).unwrap();
    node.replace("plimsoll.yaml", "nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\n");
    daemon.says("configuration changed").await;
    runtime.stop(&kata).await;
    runtime.holds(KUBEPODS, "memory.min", 310 * MIB).await;
    runtime.stop(&gvisor).await;
    runtime.holds(KUBEPODS, "memory.min", 10 * MIB).await;
}

/// CRI-O reports a cgroup path for a sandbox, but creates no cgroup at this path.
#[tokio::test]
async fn protection_does_not_depend_on_sandbox_cgroups() {
    let (node, _daemon, runtime) = start().await;
    let (mut alive, mut ended) =
        (Pod::new("guaranteed", "alive", 100 * MIB), Pod::new("guaranteed", "ended", 200 * MIB));
    for pod in [&mut alive, &mut ended] {
        pod.sandbox.linux.as_mut().unwrap().cgroups_path =
            format!("/{}/crio-sandbox", pod.cgroup());
    }
    for pod in [&alive, &ended] {
        runtime.make_cgroup(pod);
        runtime.run(pod).await;
    }
    runtime.holds(KUBEPODS, "memory.min", 300 * MIB).await;
    drop(runtime);
    let runtime = node.accept().await;
    ended.container.state = nri::api::ContainerState::CONTAINER_STOPPED.into();
    runtime.synchronize(&[&alive, &ended]).await;
    runtime.holds(KUBEPODS, "memory.min", 100 * MIB).await;
}

#[tokio::test]
async fn unreported_containers_trigger_a_new_synchronization() {
    let (node, mut daemon, runtime) = start().await;
    let lost = Pod::new("guaranteed", "lost", 200 * MIB);
    let known = burstable(&node, "b", 100 * MIB);
    run(&runtime, &mut daemon, &known).await;
    runtime.make_cgroup(&lost);
    runtime.run_unseen(&lost);
    let line = daemon.says("has not reported the container in this cgroup").await;
    assert!(line.contains("/kubepods/podlost/id-lost"), "{line}");
    let mut runtime = node.accept().await;
    runtime.synchronize(&[&known, &lost]).await;
    assert_eq!(
        runtime.serve_update(&[&lost]).await["id-lost"],
        unified(&[("memory.min", 200 * MIB)])
    );
    runtime.holds(KUBEPODS, "memory.min", 300 * MIB).await;
}

#[tokio::test]
async fn reserved_cgroup_protection_reduces_pod_protection() {
    let (node, mut daemon, runtime) = start().await;
    runtime.make_cgroup_at("system.slice");
    // The node has 8 GiB of memory.
    let config =
        "nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\nsystemReservedCgroup: /system.slice\n";
    node.replace(
        "plimsoll.yaml",
        &format!("{config}systemReserved: {{memory: 5Gi}}\nlogLevel: debug\n"),
    );
    daemon.says("less than node allocatable").await;
    runtime.holds("system.slice", "memory.min", 5120 * MIB).await;
    runtime.set_file("system.slice", "memory.min", "0");
    runtime.holds("system.slice", "memory.min", 5120 * MIB).await;
    let pod = Pod::new("guaranteed", "g", 4096 * MIB);
    runtime.make_cgroup(&pod);
    runtime.run(&pod).await;
    assert_eq!(runtime.file(KUBEPODS, "memory.min"), (3072 * MIB).to_string());
    node.replace("plimsoll.yaml", "nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\n");
    runtime.holds("system.slice", "memory.min", 0).await;
    runtime.holds(KUBEPODS, "memory.min", 4096 * MIB).await;
}

#[tokio::test]
async fn protection_blocked_by_an_ancestor_is_reported() {
    let (node, mut daemon, runtime) = start().await;
    let mut pod = Pod::new("guaranteed", "g", 200 * MIB);
    let parent = format!("/outer{}", pod.sandbox.linux.cgroup_parent);
    pod.linux().cgroups_path = format!("{parent}/{}", pod.container.id);
    pod.sandbox.linux.as_mut().unwrap().cgroup_parent = parent;
    runtime.make_cgroup(&pod);
    runtime.make_cgroup_at("outer/inner");
    runtime.run(&pod).await;
    runtime.holds("outer/kubepods", "memory.min", 200 * MIB).await;
    runtime.holds("outer", "memory.min", 200 * MIB).await;
    // Another program takes the protection away from the cgroup above, and the plugin must not
    // repair it. Overwrite all digits at once, because a reader may see a truncated file.
    let config = "nodeAllocatable: 4Gi\nrepair: false\nlogLevel: debug\n\
                  systemReservedCgroup: /outer/inner\nsystemReserved: {memory: 100Mi}\n";
    let overwrite = |digits: &str| {
        let path = runtime.path("outer/memory.min");
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(digits.as_bytes(), 0).unwrap();
    };
    node.replace("plimsoll.yaml", config);
    daemon.says("configuration changed").await;
    runtime.holds("outer", "memory.min", 300 * MIB).await;
    overwrite("000000000");
    let reports = tokio::time::timeout(Duration::from_secs(60), async {
        let mut reports = Vec::new();
        while reports.len() < 2 {
            let line = daemon.messages.recv().await.unwrap();
            if line.contains("the protection of the cgroup has no effect") {
                reports.push(line);
            } else if line.contains("written cgroup=/outer knob") {
                // The check after the change of the configuration came later than the other
                // program, and writes all values.
                overwrite("000000000");
            } else if line.contains("the plugin leaves the changed value") {
                node.replace("plimsoll.yaml", &format!("{config}maxLimitRequestRatio: 3\n"));
            }
        }
        reports
    });
    let reports = reports.await.expect("two reports");
    let [line, of_container] = &reports[..] else { panic!("{reports:?}") };
    assert!(line.contains("cgroup=/outer/inner ") && !line.contains("pod="), "{line}");
    let line = of_container;
    assert!(line.contains("container=\"app\"") && line.contains("effective_min=\"0\""), "{line}");
    // Once the cgroup above has enough protection, the values take effect. The plugin then logs a
    // debug message instead of a warning.
    overwrite(&(300 * MIB).to_string());
    node.replace("plimsoll.yaml", &format!("{config}maxLimitRequestRatio: 5\n"));
    daemon.says("standing=protected").await;
}

#[tokio::test]
async fn restarts_correct_any_partly_written_protection() {
    let (node, daemon, runtime) = start().await;
    let pods = [burstable(&node, "a", 100 * MIB), Pod::new("guaranteed", "g", 200 * MIB)];
    for pod in &pods {
        runtime.make_cgroup(pod);
        runtime.run(pod).await;
    }
    node.checkpoint("actuated_pods_state", &[("a", "app", 100 * MIB)]);
    let levels = [KUBEPODS.to_owned(), BURSTABLE.to_owned(), pods[0].cgroup(), pods[1].cgroup()];
    let expected = [300, 100, 100, 200];
    daemon.kill().await;
    drop(runtime);
    // Another pod may have ended while no plugin ran, so the cgroups above still include the ended
    // pod's protection. A new pod may have started, so the cgroups above include no protection for
    // the new pod.
    for half_done in 0..1 << levels.len() {
        let mut daemon = node.start();
        let runtime = node.accept().await;
        for (index, level) in levels.iter().enumerate() {
            let wrong = if half_done >> index & 1 == 0 { 0 } else { 700 * MIB };
            runtime.set_file(level, "memory.min", &wrong.to_string());
        }
        runtime.synchronize(&[&pods[0], &pods[1]]).await;
        for (level, expected) in levels.iter().zip(expected) {
            runtime.holds(level, "memory.min", expected * MIB).await;
        }
        daemon.says("connected to the runtime").await;
        daemon.kill().await;
    }
}

#[tokio::test]
async fn synchronization_never_lowers_ancestor_protection() {
    let (node, daemon, runtime) = start().await;
    let pods: Vec<_> =
        (0..40).map(|index| Pod::new("guaranteed", &format!("g{index}"), 10 * MIB)).collect();
    for pod in &pods {
        runtime.make_cgroup(pod);
        runtime.run(pod).await;
    }
    daemon.kill().await;
    drop(runtime);
    let mut inotify = inotify::Inotify::init().unwrap();
    let _daemon = node.start();
    let runtime = node.accept().await;
    inotify
        .watches()
        .add(runtime.root.join(KUBEPODS).join("memory.min"), inotify::WatchMask::CLOSE_WRITE)
        .unwrap();
    runtime.synchronize(&pods.iter().collect::<Vec<_>>()).await;
    let other = Pod::new("guaranteed", "other", 10 * MIB);
    runtime.make_cgroup(&other);
    runtime.run(&other).await;
    runtime.holds(KUBEPODS, "memory.min", 410 * MIB).await;
    let mut buffer = [0; 4096];
    assert_eq!(
        inotify.read_events(&mut buffer).unwrap().count(),
        1,
        "it was 400 MiB, and becomes 410 MiB"
    );
}

/// Pods start and end at random. At the end, every cgroup above containers must protect exactly as
/// much memory as its live pods together.
#[tokio::test]
async fn ancestor_protection_is_exact_after_random_churn() {
    let (node, mut daemon, mut runtime) = start().await;
    let mut runner = TestRunner::deterministic();
    let mut random = move |below: usize| (0..below).new_tree(&mut runner).unwrap().current();
    let mut alive: Vec<(Pod, i64)> = Vec::new();
    let mut requests: HashMap<String, i64> = HashMap::new();
    for number in 0..200 {
        let uid = format!("p{number}");
        let request = (1 + random(20) as i64) * MIB;
        let class = ["guaranteed", "burstable", "besteffort"][random(3)];
        if class != "besteffort" {
            requests.insert(uid.clone(), request);
        }
        let entries: Vec<_> =
            requests.iter().map(|(uid, request)| (uid.as_str(), "app", *request)).collect();
        node.checkpoint("actuated_pods_state", &entries);
        node.checkpoint("allocated_pods_state", &entries);
        let (pod, request) = match class {
            "guaranteed" => (Pod::new(class, &uid, request), request),
            "burstable" => (Pod::new(class, &uid, 2 * request), request),
            _ => (Pod::new(class, &uid, 0), 0),
        };
        let overhead = random(3) as i64 * MIB;
        let pod = pod.overhead(overhead);
        runtime.make_cgroup(&pod);
        runtime.run(&pod).await;
        alive.push((pod, request + overhead));
        while alive.len() > 30 || (!alive.is_empty() && random(3) == 0) {
            let (pod, _) = alive.swap_remove(random(alive.len()));
            requests.remove(&pod.sandbox.uid);
            runtime.end(&pod).await;
        }
        if number == 100 {
            daemon.kill().await;
            daemon = node.start();
            runtime = node.accept().await;
            runtime.synchronize(&alive.iter().map(|(pod, _)| pod).collect::<Vec<_>>()).await;
        }
    }
    assert!(alive.len() > 3, "{}", alive.len());
    let sum = |within: &str| {
        alive
            .iter()
            .filter(|(pod, _)| pod.cgroup().starts_with(within))
            .map(|(_, claim)| claim)
            .sum::<i64>()
    };
    for level in [KUBEPODS, BURSTABLE, "kubepods/besteffort"] {
        runtime.holds(level, "memory.min", sum(level)).await;
    }
    for (pod, claim) in &alive {
        runtime.holds(&pod.cgroup(), "memory.min", *claim).await;
    }
}

fn defaults() -> HashMap<String, String> {
    let defaults = [("memory.min", "0"), ("memory.low", "0"), ("memory.high", "max")];
    HashMap::from(defaults.map(|(key, value)| (key.into(), value.into())))
}

#[tokio::test]
async fn undo_reapplies_values_reset_by_restore() {
    let (node, mut daemon, mut runtime) = start().await;
    // Another program has set this value before.
    runtime.set_file(KUBEPODS, "memory.min", &(7 * MIB).to_string());
    let pod = burstable(&node, "b", 100 * MIB);
    run(&runtime, &mut daemon, &pod).await;
    let container = format!("{}/id-b", pod.cgroup());

    let served = [&pod];
    let (update, (code, said)) = tokio::join!(runtime.serve_update(&served), restore(&node, &[]));
    assert_eq!(update["id-b"], defaults());
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("/kubepods memory.min: 104857600 -> 7340032\n"), "{said}");
    assert!(said.contains(&format!("/{container} memory.high: 199229440 -> max\n")), "{said}");
    assert_eq!(runtime.file(BURSTABLE, "memory.min"), "0");
    assert_eq!(runtime.file(KUBEPODS, "memory.min"), (7 * MIB).to_string());

    let (code, said) = restore(&node, &[]).await;
    assert_eq!(code, Some(0));
    assert!(said.contains("nothing had to be changed"), "{said}");

    // After `restore`, the plugin also sets no values for new pods.
    let other = Pod::new("guaranteed", "g", 200 * MIB);
    runtime.make_cgroup(&other);
    assert_eq!(runtime.create(&other).await, HashMap::new());
    assert_eq!(runtime.file(&other.cgroup(), "memory.min"), "0");

    let (code, said) = restore(&node, &["--undo"]).await;
    assert_eq!(code, Some(0), "{said}");
    runtime.serve_update(&[&pod, &other]).await;
    runtime.holds(&container, "memory.min", 100 * MIB).await;
    runtime.holds(KUBEPODS, "memory.min", 300 * MIB).await;
}

/// Runs a pod, and waits until the pod has its desired values.
async fn run(runtime: &Runtime, daemon: &mut Daemon, pod: &Pod) {
    runtime.make_cgroup(pod);
    runtime.run(pod).await;
    daemon.says("outcome=unchanged").await;
}

/// Runs `plimsoll restore` with a runtime without containers. Returns the exit code and the output.
async fn restore_without_containers(node: &Node) -> (Option<i32>, String) {
    let serve = async {
        let runtime = node.accept().await;
        runtime.synchronize(&[]).await;
        runtime
    };
    let (_runtime, restored) = tokio::join!(serve, restore(node, &[]));
    restored
}

#[tokio::test]
async fn restore_resets_values_of_a_killed_plugin() {
    let (node, mut daemon, runtime) = start().await;
    let pod = burstable(&node, "b", 100 * MIB);
    run(&runtime, &mut daemon, &pod).await;
    daemon.kill().await;
    drop(runtime);
    // The plugin has never changed this pod. Another program has set the pod's value, which must
    // stay.
    let foreign = Pod::new("guaranteed", "foreign", 200 * MIB);
    let serve = async {
        let mut runtime = node.accept().await;
        runtime.make_cgroup(&foreign);
        runtime.apply(&foreign, &unified(&[("memory.min", 50 * MIB)]));
        runtime.synchronize(&[&pod, &foreign]).await;
        let update = runtime.serve_update(&[&pod]).await;
        (runtime, update)
    };
    let ((runtime, update), (code, said)) = tokio::join!(serve, restore(&node, &[]));
    assert_eq!(update, HashMap::from([("id-b".to_owned(), defaults())]));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(runtime.file(KUBEPODS, "memory.min"), "0");
    assert_eq!(runtime.read(&foreign, "memory.min"), (50 * MIB).to_string());
    drop(runtime);

    // A plugin that starts later sets nothing until `restore --undo`.
    let mut daemon = node.start();
    let mut runtime = node.accept().await;
    runtime.synchronize(&[&pod]).await;
    daemon.says("'plimsoll restore' was called").await;
    assert_eq!(runtime.create(&Pod::new("guaranteed", "g", 200 * MIB)).await, HashMap::new());
    restore(&node, &["--undo"]).await;
    runtime.serve_update(&[&pod]).await;
    runtime.holds(KUBEPODS, "memory.min", 300 * MIB).await;
}

/// Answers the next status request in place of a plugin.
async fn answer_status(listener: &tokio::net::UnixListener, status: &serde_json::Value) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        assert_ne!(stream.read_buf(&mut asked).await.unwrap(), 0);
    }
    let text = status.to_string();
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", text.len());
    stream.write_all((head + &text).as_bytes()).await.unwrap();
}

#[tokio::test]
async fn restore_covers_changes_until_the_plugin_pauses() {
    let (node, mut daemon, runtime) = start().await;
    let pod = burstable(&node, "b", 100 * MIB);
    run(&runtime, &mut daemon, &pod).await;
    let mut status = harness::status_json(&node).await;
    daemon.kill().await;
    drop(runtime);

    // The plugin of this test has recorded no original value yet when it gets the first status
    // request.
    let originals = node.path("host/run/plimsoll/originals");
    let remembered = fs::read(&originals).unwrap();
    fs::remove_file(&originals).unwrap();
    let socket = node.path("host/run/plimsoll/plimsoll.sock");
    fs::remove_file(&socket).unwrap();
    let plugin = tokio::net::UnixListener::bind(socket).unwrap();
    let changes = async {
        answer_status(&plugin, &status).await;
        assert!(node.path("host/run/plimsoll/restored").exists());
        fs::write(&originals, remembered).unwrap();
        status["node"]["standsAside"] = true.into();
        answer_status(&plugin, &status).await;
        let mut runtime = node.accept().await;
        runtime.synchronize(&[&pod]).await;
        runtime.serve_update(&[&pod]).await;
        std::future::pending().await
    };
    let (code, said) =
        tokio::select! { restored = restore(&node, &[]) => restored, never = changes => never };
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("/kubepods memory.min: 104857600 -> 0\n"), "{said}");
    assert_eq!(
        fs::read_to_string(node.path("host/sys/fs/cgroup/kubepods/memory.min")).unwrap(),
        "0"
    );
}

/// Returns the pod with its cgroups below another cgroup root.
fn below(mut pod: Pod, root: &str) -> Pod {
    let parent = format!("/{root}{}", pod.sandbox.linux.cgroup_parent);
    pod.linux().cgroups_path = format!("{parent}/{}", pod.container.id);
    pod.sandbox.linux.as_mut().unwrap().cgroup_parent = parent;
    pod
}

#[tokio::test]
async fn restore_fails_while_the_plugin_hangs() {
    let node = Node::new();
    fs::create_dir_all(node.path("host/run/plimsoll")).unwrap();
    // The kernel accepts the connection, but the plugin hangs.
    let socket = node.path("host/run/plimsoll/plimsoll.sock");
    let hangs = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (code, said) = restore(&node, &[]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("a running plugin may set values again"), "{said}");
    assert!(said.contains("did not answer within 10s") && said.contains("restart it"), "{said}");
    for claim in ["nothing had to be changed", "sets no values until"] {
        assert!(!said.contains(claim), "{said}");
    }
    // The plugin's process has ended and left its socket behind.
    drop(hangs);
    assert!(socket.exists());
    let (code, said) = restore(&node, &[]).await;
    assert_eq!(code, Some(0), "{said}");
}

#[tokio::test]
async fn restore_finds_containers_below_a_cgroup_root() {
    let (node, mut daemon, runtime) = start().await;
    // Remove the kubepods that `start` has created at the top. The pods are below `/kubelet`, so
    // this kubepods would look like a leftover of another cgroup driver.
    fs::remove_dir_all(runtime.path(KUBEPODS)).unwrap();
    let pod = below(burstable(&node, "b", 100 * MIB), "kubelet");
    run(&runtime, &mut daemon, &pod).await;
    daemon.kill().await;
    drop(runtime);
    let serve = async {
        let mut runtime = node.accept().await;
        runtime.synchronize(&[&pod]).await;
        let update = runtime.serve_update(&[&pod]).await;
        (runtime, update)
    };
    let ((runtime, update), (code, said)) = tokio::join!(serve, restore(&node, &[]));
    assert_eq!(update, HashMap::from([("id-b".to_owned(), defaults())]));
    assert_eq!(code, Some(0), "{said}");
    let container = format!("{}/id-b", pod.cgroup());
    assert!(said.contains(&format!("/{container} memory.high: 199229440 -> max\n")), "{said}");
    assert_eq!(runtime.file("kubelet/kubepods", "memory.min"), "0");
    assert!(!said.contains("nothing had to be changed") && !said.contains("not found"), "{said}");
}

#[tokio::test]
async fn restore_names_what_it_did_not_find() {
    let (node, mut daemon, runtime) = start().await;
    let pod = burstable(&node, "b", 100 * MIB);
    run(&runtime, &mut daemon, &pod).await;
    daemon.kill().await;
    drop(runtime);
    // The pod and its container ended while no plugin ran.
    fs::remove_dir_all(runtime_path(&node, &pod.cgroup())).unwrap();
    let (code, said) = restore_without_containers(&node).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("not found: container id-b; it has ended\n"), "{said}");
    assert!(
        said.contains(&format!("not found: cgroup /{}; it has ended\n", pod.cgroup())),
        "{said}"
    );
    assert!(!said.contains("nothing had to be changed"), "{said}");
}

#[tokio::test]
async fn restore_fails_where_it_could_not_look() {
    let (node, mut daemon, runtime) = start().await;
    let pod = burstable(&node, "b", 100 * MIB);
    run(&runtime, &mut daemon, &pod).await;
    daemon.kill().await;
    drop(runtime);
    // The program does not follow symbolic links in cgroup paths, so even root cannot read this
    // cgroup.
    let pod_cgroup = runtime_path(&node, &pod.cgroup());
    let elsewhere = node.path("elsewhere");
    fs::rename(&pod_cgroup, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &pod_cgroup).unwrap();
    let (code, said) = restore_without_containers(&node).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("could not check all changed cgroups"), "{said}");
    assert!(said.contains(&pod.cgroup()), "{said}");
    assert!(!said.contains("nothing had to be changed"), "{said}");
}

#[tokio::test]
async fn restore_outside_kubepods_needs_the_runtime() {
    let (node, mut daemon, runtime) = start().await;
    let outside = burstable(&node, "b", 100 * MIB);
    run(&runtime, &mut daemon, &outside).await;
    let inside = burstable(&node, "c", 100 * MIB);
    run(&runtime, &mut daemon, &inside).await;
    daemon.kill().await;
    // One container's cgroup is outside kubepods. A cgroup is outside kubepods if the runtime uses
    // another cgroup driver than the kubelet.
    let [from, to] = [format!("{}/id-b", outside.cgroup()), "elsewhere".to_owned()]
        .map(|path| runtime.path(&path));
    fs::rename(&from, &to).unwrap();
    // All other cgroups already have their original values.
    for cgroup in [
        KUBEPODS,
        "kubepods/burstable",
        &outside.cgroup(),
        &inside.cgroup(),
        &format!("{}/id-c", inside.cgroup()),
    ] {
        for (file, value) in [("memory.min", "0"), ("memory.low", "0"), ("memory.high", "max")] {
            runtime.set_file(cgroup, file, value);
        }
    }
    drop(runtime);
    let (code, said) = restore(&node, &[]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains(
            "among them those of 1 containers: the container runtime did not report whether they have ended"
        ),
        "{said}"
    );
    assert!(said.contains("start the runtime, and call this again"), "{said}");
    assert!(said.contains("not found: container id-b; its cgroup may have ended"), "{said}");
    assert_ne!(fs::read_to_string(to.join("memory.high")).unwrap().trim(), "max");
}

fn runtime_path(node: &Node, cgroup: &str) -> std::path::PathBuf {
    node.path("host/sys/fs/cgroup").join(cgroup)
}

#[tokio::test]
async fn restore_names_limits_that_stay_raised() {
    let (node, mut daemon, runtime) = start().await;
    let pod = Pod::new("burstable", "b", 100 * MIB);
    runtime.make_cgroup(&pod);
    runtime.run(&pod).await;
    runtime.set_file(&pod.cgroup(), "memory.max", &(100 * MIB).to_string());
    // The container's limit increase makes the plugin raise the pod's limit.
    runtime.update(&pod, harness::memory_limit(200 * MIB)).await;
    daemon.says("raised the pod's limit").await;
    let inode =
        std::os::unix::fs::MetadataExt::ino(&fs::metadata(runtime.path(&pod.cgroup())).unwrap());
    let rescued = serde_json::json!({"asked": 1048576, "limit": 2097152});
    let history = serde_json::json!({"asked": 1048576, "kills": [], "rescued": rescued});
    let counts = serde_json::json!({"processes": 0, "groups": 0});
    let counted = serde_json::json!({"inode": inode, "accounted": counts, "limits_reached": 0, "running": {},
        "histories": {"app": history}});
    daemon.kill().await;
    let kills = serde_json::json!({"pods": {pod.cgroup(): counted}});
    node.replace("host/run/plimsoll/kills", &kills.to_string());
    drop(runtime);
    let serve = async {
        let mut runtime = node.accept().await;
        runtime.synchronize(&[&pod]).await;
        let update = runtime.serve_update(&[&pod]).await;
        (runtime, update)
    };
    let (_, (code, said)) = tokio::join!(serve, restore(&node, &[]));
    assert_eq!(code, Some(0), "{said}");
    let stays =
        format!("stays raised, because lowering it could kill: /{} memory.max: ", pod.cgroup());
    let raised = format!("{stays}{}, raised from {} for", 200 * MIB, 100 * MIB);
    assert!(said.contains(&raised), "{said}");
    let rescued = format!(
        "container app in /{} memory.max: 2097152, raised from 1048576 by oomRescue",
        pod.cgroup()
    );
    assert!(said.contains(&rescued), "{said}");
}

#[tokio::test]
async fn restore_fails_with_a_truncated_guard_record() {
    let node = Node::new();
    fs::create_dir_all(node.path("host/run/plimsoll")).unwrap();
    node.write("host/run/plimsoll/guard", "{\"cgroup\":");
    let (code, said) = restore(&node, &[]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("/run/plimsoll/guard: ") && !said.contains("nothing had to be changed"),
        "{said}"
    );
}

#[tokio::test]
async fn restore_removes_drop_ins_after_observe_mode() {
    let (node, _daemon, runtime) = start().await;
    runtime.make_cgroup_at("system.slice");
    runtime.make_cgroup_at("other.slice");
    let enforce = "nodeAllocatable: 4Gi\nsystemReservedCgroup: /system.slice\nsystemReserved: {memory: 500Mi}\n";
    node.replace("plimsoll.yaml", enforce);
    runtime.holds("system.slice", "memory.min", 500 * MIB).await;
    // A drop-in file as systemd makes it for a unit whose properties the plugin has set.
    let drop_in = |unit: &str| {
        let path = node
            .path("host/run/systemd/system.control")
            .join(format!("{unit}.d/50-MemoryMin.conf"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "[Slice]\nMemoryMin=0\n").unwrap();
        path
    };
    let [ours, others] = ["system.slice", "other.slice"].map(drop_in);
    node.replace("plimsoll.yaml", &format!("mode: observe\n{enforce}"));
    runtime.holds("system.slice", "memory.min", 0).await;
    // The plugin writes this line when it no longer manages the cgroup.
    let is_left = || {
        let originals = fs::read_to_string(node.path("host/run/plimsoll/originals")).unwrap();
        originals
            .lines()
            .any(|line| line.contains("system.slice") && line.contains("\"restored\":true"))
    };
    while !is_left() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(ours.exists());
    let (code, said) = restore(&node, &[]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(!ours.exists() && others.exists(), "{said}");
}

#[tokio::test]
async fn an_unreadable_mark_of_restore_sets_nothing() {
    let node = Node::new();
    fs::create_dir_all(node.path("host/run/plimsoll")).unwrap();
    // Even root cannot resolve this symbolic link, because it points to itself.
    std::os::unix::fs::symlink("restored", node.path("host/run/plimsoll/restored")).unwrap();
    let mut daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    daemon.says("cannot find out whether 'plimsoll restore' was called").await;
    let pod = burstable(&node, "b", 100 * MIB);
    runtime.make_cgroup(&pod);
    assert_eq!(runtime.create(&pod).await, HashMap::new());
    assert_eq!(runtime.file(KUBEPODS, "memory.min"), "0");
}

#[tokio::test]
async fn restore_fails_with_unreadable_originals() {
    let node = Node::new();
    fs::create_dir_all(node.path("host/run/plimsoll")).unwrap();
    let unreadable = "{\"container\":\"a\",\"memory.min\":{\"v\":1}}\nGARBAGE\n";
    // The last line is incomplete, as after a crash.
    node.write("host/run/plimsoll/originals", &format!("{unreadable}{{\"container\":\"b\",\"memo"));
    let (code, said) = restore(&node, &[]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("/run/plimsoll/originals: 2 lines cannot be read"), "{said}");
    assert!(!said.contains("nothing had to be changed"), "{said}");
    restore(&node, &["--undo"]).await;
    let mut daemon = node.start();
    daemon.says("cannot read lines of /run/plimsoll/originals").await;
}

#[tokio::test]
async fn restore_and_undo_report_nothing_to_change() {
    let (code, said) = restore(&Node::new(), &[]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("nothing had to be changed"), "{said}");
    let (code, said) = restore(&Node::new(), &["--undo"]).await;
    assert_eq!(code, Some(0));
    assert!(said.contains("nothing to undo"), "{said}");
}

#[tokio::test]
async fn disabling_the_policy_restores_all_values() {
    let (node, mut daemon, mut runtime) = start().await;
    runtime.set_file(KUBEPODS, "memory.low", &(7 * MIB).to_string());
    let pod = burstable(&node, "b", 100 * MIB);
    run(&runtime, &mut daemon, &pod).await;
    node.replace("plimsoll.yaml", "memoryReservationPolicy: None\nmemoryThrottlingFactor: null\n");
    assert_eq!(runtime.serve_update(&[&pod]).await["id-b"], defaults());
    for cgroup in [&pod.cgroup(), BURSTABLE, KUBEPODS] {
        runtime.holds(cgroup, "memory.min", 0).await;
    }
    assert_eq!(runtime.file(KUBEPODS, "memory.low"), (7 * MIB).to_string());
}

#[tokio::test]
async fn unusable_files_are_reported_and_pods_protected() {
    let (node, mut daemon, runtime) = start().await;
    let pods = [burstable(&node, "b", 100 * MIB), Pod::new("guaranteed", "g", 200 * MIB)];
    fs::write(runtime.root.join(BURSTABLE).join("memory.min"), "garbage").unwrap();
    fs::remove_file(runtime.root.join(KUBEPODS).join("memory.low")).unwrap();
    for pod in &pods {
        runtime.make_cgroup(pod);
        runtime.run(pod).await;
    }
    let line = daemon.says("cannot set the protection of a cgroup").await;
    assert!(line.contains("cgroup=/kubepods ") && line.contains("outcome=unsupported"), "{line}");
    let line = daemon.says("cannot set the protection of a cgroup").await;
    assert!(
        line.contains("cgroup=/kubepods/burstable ") && line.contains("outcome=failed"),
        "{line}"
    );
    assert_eq!(runtime.file(&pods[0].cgroup(), "memory.min"), (100 * MIB).to_string());
    assert_eq!(runtime.file(&pods[1].cgroup(), "memory.min"), (200 * MIB).to_string());
}

#[tokio::test]
async fn enabled_kubelet_memory_qos_causes_a_warning() {
    let node = Node::new();
    let config = "featureGates:\n  MemoryQoS: true\nmemoryReservationPolicy: None\n";
    node.write("host/var/lib/kubelet/config.yaml", config);
    let mut daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    let line = daemon.says("MemoryQoS").await;
    assert!(
        line.contains("WARN")
            && line.contains("when it starts")
            && line.contains("set featureGates.MemoryQoS"),
        "{line}"
    );
}

#[tokio::test]
async fn undetermined_memory_qos_is_reported_at_start() {
    for (config, said) in [
        (Some("kind: KubeletConfiguration\n"), "on by default from Kubernetes 1.37 on"),
        (None, "found no configuration of the kubelet at /var/lib/kubelet/config.yaml"),
    ] {
        let node = Node::new();
        if let Some(config) = config {
            node.write("host/var/lib/kubelet/config.yaml", config);
        }
        let mut daemon = node.start();
        let runtime = node.accept().await;
        runtime.synchronize(&[]).await;
        let line = daemon.says("it is unknown whether the kubelet's own MemoryQoS is on").await;
        assert!(line.contains(said), "{line}");
    }
}

fn pods_use(runtime: &Runtime, current: i64, cache: i64) {
    let stat = format!("inactive_anon {}\ninactive_file {cache}\n", current - cache);
    runtime.set_file(KUBEPODS, "memory.stat", &stat);
    runtime.set_file(KUBEPODS, "memory.current", &current.to_string());
}

/// Waits until the file with the node guard's state is gone. The plugin removes this file at its
/// next check of kubepods.
async fn nothing_is_kept_from_pods(node: &Node) {
    let record = node.path("host/run/plimsoll/guard");
    let looks = async {
        while record.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), looks)
        .await
        .expect("the record of the guard is removed");
}

#[tokio::test]
async fn guarding_limits_pods_and_protects_the_system() {
    let (node, mut daemon, runtime) = start().await;
    runtime.make_cgroup_at("system.slice");
    pods_use(&runtime, 100 * MIB, 0);
    // The node has 8 GiB of memory.
    let config = "nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\n";
    node.replace("plimsoll.yaml", &format!("{config}nodeGuard: 5Gi\n"));
    let line = daemon.says("set the memory limit of all pods together").await;
    assert!(line.contains("observed=max") && line.contains("desired=3221225472"), "{line}");
    runtime.holds(KUBEPODS, "memory.max", 3072 * MIB).await;
    runtime.holds("system.slice", "memory.min", 3840 * MIB).await;
    // The protection of pods does not exceed the node guard's limit.
    let pod = Pod::new("guaranteed", "g", 4096 * MIB);
    runtime.make_cgroup(&pod);
    runtime.run(&pod).await;
    assert_eq!(runtime.file(KUBEPODS, "memory.min"), (3072 * MIB).to_string());

    // If another program sets a higher limit, the plugin lowers the limit again. When nodeGuard is
    // removed, the plugin restores the other program's value.
    runtime.set_file(KUBEPODS, "memory.max", &(7000 * MIB).to_string());
    let line = daemon.says("repaired").await;
    assert!(line.contains("knob=\"memory.max\"") && line.contains("observed=7340032000"), "{line}");
    runtime.holds(KUBEPODS, "memory.max", 3072 * MIB).await;
    node.replace("plimsoll.yaml", &format!("{config}nodeGuard: 2Gi\n"));
    runtime.holds(KUBEPODS, "memory.max", 6144 * MIB).await;
    node.replace("plimsoll.yaml", config);
    runtime.holds(KUBEPODS, "memory.max", 7000 * MIB).await;
    runtime.holds("system.slice", "memory.min", 0).await;
    nothing_is_kept_from_pods(&node).await;

    // The kubelet has set a limit below the node guard's limit. The plugin does not change this
    // limit, with or without nodeGuard.
    node.replace("plimsoll.yaml", &format!("{config}nodeGuard: 5Gi\n"));
    runtime.holds(KUBEPODS, "memory.max", 3072 * MIB).await;
    runtime.set_file(KUBEPODS, "memory.max", &(2000 * MIB).to_string());
    nothing_is_kept_from_pods(&node).await;
    assert_eq!(runtime.file(KUBEPODS, "memory.max"), (2000 * MIB).to_string());
}

#[tokio::test]
async fn immediately_overwritten_guard_limits_leave_no_record() {
    let (node, _daemon, runtime) = start().await;
    runtime.make_cgroup_at("system.slice");
    pods_use(&runtime, 100 * MIB, 0);
    // Another program replaces the plugin's value as soon as possible.
    let file = runtime.path(KUBEPODS).join("memory.max");
    let theirs = (2000 * MIB).to_string();
    let ended = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (file, theirs, ended) = (file.clone(), theirs.clone(), ended.clone());
        move || {
            while !ended.load(Ordering::Relaxed) {
                let now = fs::read_to_string(&file).unwrap();
                if !["max", &theirs].contains(&now.trim()) {
                    harness::overwrite(&file, &theirs);
                }
            }
        }
    });
    for guard in (3..13).map(|half| half * 512) {
        fs::write(&file, "max\n").unwrap();
        node.replace("plimsoll.yaml", &format!("nodeAllocatable: 4Gi\nnodeGuard: {guard}Mi\n"));
        runtime.holds(KUBEPODS, "memory.max", &theirs).await;
        nothing_is_kept_from_pods(&node).await;
    }
    ended.store(true, Ordering::Relaxed);
    writer.join().unwrap();
}

#[tokio::test]
async fn the_guard_limit_waits_until_reclaim_suffices() {
    let (node, mut daemon, runtime) = start().await;
    runtime.make_cgroup_at("system.slice");
    pods_use(&runtime, 4000 * MIB, 500 * MIB);
    node.replace("plimsoll.yaml", "nodeAllocatable: 4Gi\nnodeGuard: 5Gi\n");
    let line = daemon.says("the plugin sets the limit when pods use less").await;
    assert!(line.contains("usage=4194304000") && line.contains("reclaimable=524288000"), "{line}");
    assert_eq!(runtime.file(KUBEPODS, "memory.max"), "max");
    assert_eq!(
        fs::read_to_string(node.path("host/run/plimsoll/guard")).ok(),
        None,
        "the plugin must keep no record"
    );
    // The plugin reclaims memory, but not more than needed.
    pods_use(&runtime, 4000 * MIB, 1500 * MIB);
    harness::reclaims(runtime.path(KUBEPODS), 4000 * MIB, 1500 * MIB);
    runtime.holds(KUBEPODS, "memory.max", 3072 * MIB).await;
    let used: i64 = runtime.file(KUBEPODS, "memory.current").parse().unwrap();
    assert!(used <= 3072 * MIB - 3072 * MIB / 25 && used > 2800 * MIB, "{used}");
}

#[tokio::test]
async fn contended_guard_limits_are_reported_and_abandoned() {
    let (node, mut daemon, runtime) = start().await;
    runtime.make_cgroup_at("system.slice");
    pods_use(&runtime, 100 * MIB, 0);
    node.replace("plimsoll.yaml", "nodeAllocatable: 4Gi\nnodeGuard: 5Gi\n");
    // The loop has no fixed number of rounds, because the plugin does not count every write as a
    // conflict. The plugin may find another program's write when it reads back the value that it
    // has written. The plugin does not count a write that it finds in this check.
    let fight = async {
        loop {
            runtime.holds(KUBEPODS, "memory.max", 3072 * MIB).await;
            runtime.set_file(KUBEPODS, "memory.max", "max");
        }
    };
    let line = tokio::select! {
        line = daemon.says("another program keeps changing this file") => line,
        never = fight => never,
    };
    assert!(line.contains("knob=\"memory.max\"") && line.contains("repairs=5"), "{line}");
    assert!(line.contains("with enforceNodeAllocatable it sets the limit of all pods"), "{line}");
    assert_eq!(runtime.file(KUBEPODS, "memory.max"), "max");
}

#[tokio::test]
async fn a_killed_plugins_guard_limit_is_restored() {
    let (node, daemon, runtime) = start().await;
    runtime.make_cgroup_at("system.slice");
    pods_use(&runtime, 100 * MIB, 0);
    runtime.set_file(KUBEPODS, "memory.max", &(7000 * MIB).to_string());
    let guarded = "nodeAllocatable: 4Gi\nnodeGuard: 5Gi\n";
    node.replace("plimsoll.yaml", guarded);
    runtime.holds(KUBEPODS, "memory.max", 3072 * MIB).await;
    daemon.kill().await;
    // The next plugin restores the value, because its configuration has no nodeGuard.
    node.replace("plimsoll.yaml", "nodeAllocatable: 4Gi\n");
    let daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    runtime.holds(KUBEPODS, "memory.max", 7000 * MIB).await;
    nothing_is_kept_from_pods(&node).await;

    // `plimsoll restore` restores the value while no plugin runs.
    node.replace("plimsoll.yaml", guarded);
    runtime.holds(KUBEPODS, "memory.max", 3072 * MIB).await;
    daemon.kill().await;
    let (code, said) = restore_without_containers(&node).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(runtime.file(KUBEPODS, "memory.max"), (7000 * MIB).to_string());
}

#[tokio::test]
async fn guard_limit_increases_apply_without_free_memory() {
    let (node, mut daemon, runtime) = start().await;
    runtime.make_cgroup_at("system.slice");
    pods_use(&runtime, 100 * MIB, 0);
    node.replace("plimsoll.yaml", "nodeAllocatable: 4Gi\nnodeGuard: 5Gi\n");
    runtime.holds(KUBEPODS, "memory.max", 3072 * MIB).await;
    // Pods use all memory below the node guard's limit, and the kernel can reclaim nothing.
    pods_use(&runtime, 3072 * MIB, 0);
    node.replace("plimsoll.yaml", "nodeAllocatable: 4Gi\nnodeGuard: 5000Mi\n");
    runtime.holds(KUBEPODS, "memory.max", 3192 * MIB).await;
    // The plugin cannot set a lower limit yet, so the node guard keeps its old limit.
    node.replace("plimsoll.yaml", "nodeAllocatable: 4Gi\nnodeGuard: 6Gi\n");
    daemon.says("the plugin sets the limit when pods use less").await;
    assert_eq!(runtime.file(KUBEPODS, "memory.max"), (3192 * MIB).to_string());
    node.replace("plimsoll.yaml", "nodeAllocatable: 4Gi\n");
    daemon.says("restored the memory limit that all pods together have").await;
    assert_eq!(runtime.file(KUBEPODS, "memory.max"), "max");
}

#[tokio::test]
async fn restore_resets_the_guard_limit_until_undo() {
    let (node, mut daemon, runtime) = start().await;
    runtime.make_cgroup_at("system.slice");
    pods_use(&runtime, 100 * MIB, 0);
    runtime.set_file(KUBEPODS, "memory.max", &(7000 * MIB).to_string());
    node.replace("plimsoll.yaml", "nodeAllocatable: 4Gi\nnodeGuard: 5Gi\n");
    runtime.holds(KUBEPODS, "memory.max", 3072 * MIB).await;
    let (code, said) = restore(&node, &[]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("/kubepods memory.max: 3221225472 -> 7340032000"), "{said}");
    daemon.says("'plimsoll restore' was called").await;
    assert_eq!(runtime.file(KUBEPODS, "memory.max"), (7000 * MIB).to_string());
    restore(&node, &["--undo"]).await;
    runtime.holds(KUBEPODS, "memory.max", 3072 * MIB).await;
}

#[tokio::test]
async fn the_guard_moves_to_the_used_kubepods() {
    let (node, mut daemon, runtime) = start().await;
    runtime.make_cgroup_at("system.slice");
    runtime.make_cgroup_at("kubepods.slice");
    let lies_idle = runtime.path("kubepods.slice");
    fs::write(lies_idle.join("memory.stat"), "anon 4096\n").unwrap();
    pods_use(&runtime, 100 * MIB, 0);
    node.replace("plimsoll.yaml", "nodeAllocatable: 4Gi\nnodeGuard: 5Gi\n");
    // The plugin knows no pod yet, and its search finds `kubepods.slice` first.
    runtime.holds("kubepods.slice", "memory.max", 3072 * MIB).await;
    runtime.run(&Pod::new("guaranteed", "g", 100 * MIB)).await;
    node.replace("plimsoll.yaml", "nodeAllocatable: 4Gi\nnodeGuard: 6Gi\n");
    runtime.holds(KUBEPODS, "memory.max", 2048 * MIB).await;
    runtime.holds("kubepods.slice", "memory.max", "max").await;
    daemon.says("set the memory limit of all pods together").await;
}

#[tokio::test]
async fn node_guard_without_system_slice_is_said() {
    let (node, mut daemon, runtime) = start().await;
    pods_use(&runtime, 100 * MIB, 0);
    node.replace("plimsoll.yaml", "nodeAllocatable: 4Gi\nnodeGuard: 5Gi\n");
    let line = daemon.says("nodeGuard found no cgroup system.slice").await;
    assert!(line.contains("WARN") && line.contains("systemReservedCgroup"), "{line}");
    runtime.holds(KUBEPODS, "memory.max", 3072 * MIB).await;
    // Later checks do not repeat the warning. The plugin warns again only if the cgroup appears and
    // then disappears.
    runtime.make_cgroup_at("system.slice");
    node.replace("plimsoll.yaml", "nodeAllocatable: 4Gi\nnodeGuard: 6Gi\n");
    runtime.holds(KUBEPODS, "memory.max", 2048 * MIB).await;
    runtime.holds("system.slice", "memory.min", 4608 * MIB).await;
    while let Ok(line) = daemon.messages.try_recv() {
        assert!(!line.contains("found no cgroup system.slice"), "{line}");
    }
}

#[tokio::test]
async fn a_missing_reserved_cgroup_is_reported() {
    let (node, mut daemon, _runtime) = start().await;
    let config = "nodeAllocatable: 4Gi\nsystemReservedCgroup: /podruntime\nsystemReserved: {memory: 100Mi}\n";
    node.replace("plimsoll.yaml", config);
    let line = daemon.says("names a cgroup that does not exist").await;
    assert!(line.contains("WARN") && line.contains("cgroup=/podruntime"), "{line}");
}

#[tokio::test]
async fn guarding_all_memory_is_reported_without_effect() {
    let (node, mut daemon, runtime) = start().await;
    runtime.make_cgroup_at("system.slice");
    pods_use(&runtime, 100 * MIB, 0);
    node.replace("plimsoll.yaml", "nodeAllocatable: 4Gi\nnodeGuard: 8Gi\n");
    daemon.says("expected less than all memory, 8Gi, found 8Gi").await;
    assert_eq!(runtime.file("system.slice", "memory.min"), "0");
    assert_eq!(runtime.file(KUBEPODS, "memory.max"), "max");
}

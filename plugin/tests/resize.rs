//! Resizes: that limits reach the cgroups.

#![allow(clippy::unwrap_used)]

mod harness;

use std::fs;

use harness::{Daemon, MIB, Node, Pod, Runtime, memory_limit};
use nri::api::{LinuxCPU, LinuxResources, OptionalInt64, OptionalUInt64};

/// A node, the plugin on it, and a runtime that has told of everything.
async fn start() -> (Node, Daemon, Runtime) {
    let node = Node::new();
    let daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    (node, daemon, runtime)
}

/// 100000 us are one processor.
fn cpu(mut resources: LinuxResources, quota: i64) -> LinuxResources {
    let quota = Some(OptionalInt64 { value: quota, ..Default::default() }).into();
    let period = Some(OptionalUInt64 { value: 100_000, ..Default::default() }).into();
    resources.cpu = Some(LinuxCPU { quota, period, ..Default::default() }).into();
    resources
}

/// Another container of a pod.
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
async fn a_limit_that_was_raised_while_the_container_was_down_reaches_its_pod_before_it_starts() {
    let (_node, mut daemon, runtime) = start().await;
    let mut hungry = Pod::new("burstable", "h", 100 * MIB);
    *hungry.linux().resources.as_mut().unwrap() = cpu(memory_limit(100 * MIB), 10_000);
    runtime.make_cgroup(&hungry);
    runtime.set_file(&hungry.cgroup(), "memory.max", &(100 * MIB).to_string());
    runtime.set_file(&hungry.cgroup(), "cpu.max", "10000 100000\n");
    runtime.run(&hungry).await;
    // It is killed, and what the kubelet makes anew has another id, and a limit that the pod's cgroup knows nothing of.
    fs::remove_dir_all(runtime.cgroup(&hungry)).unwrap();
    let mut again = beside(&hungry, "again", 0);
    again.container.name = hungry.container.name.clone();
    *again.linux().resources.as_mut().unwrap() = cpu(memory_limit(200 * MIB), 30_000);
    runtime.create(&again).await;
    assert_eq!(runtime.file(&hungry.cgroup(), "memory.max"), (200 * MIB).to_string());
    assert_eq!(runtime.file(&hungry.cgroup(), "cpu.max"), "30000 100000");
    for (knob, from) in [("memory.max", "observed=\"104857600\""), ("cpu.max", "observed=\"10000 100000\"")] {
        let line = daemon.says("raised the pod's limit").await;
        assert!(line.contains(&format!("knob=\"{knob}\"")) && line.contains(from), "{line}");
    }
}

#[tokio::test]
async fn a_pods_limit_is_raised_to_the_sum_before_an_update_and_never_lowered() {
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
        assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), (expected * MIB).to_string(), "limit {limit} MiB");
        fs::write(runtime.cgroup(&pod).join("memory.max"), format!("{}\n", limit * MIB)).unwrap();
        runtime.updated(&pod).await;
    }
    // Processor time is not limited in the pod, so nothing of it is set there.
    runtime.update(&pod, cpu(LinuxResources::default(), 20_000)).await;
    assert_eq!(runtime.file(&pod.cgroup(), "cpu.max"), "max 100000");
}

#[tokio::test]
async fn a_pod_has_no_limit_while_one_of_its_containers_has_none_and_gets_none_where_it_has_none() {
    let (_node, _daemon, runtime) = start().await;
    let pod = Pod::new("burstable", "b", 100 * MIB);
    runtime.make_cgroup(&pod);
    runtime.run(&pod).await;
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), "max");
    runtime.set_file(&pod.cgroup(), "memory.max", &(100 * MIB).to_string());
    let side = beside(&pod, "side", 0);
    runtime.make_cgroup(&side);
    runtime.run(&side).await;
    assert_eq!(runtime.file(&pod.cgroup(), "memory.max"), "max");
}

#[tokio::test]
async fn a_pod_without_a_cgroup_yet_refuses_nobody() {
    let (_node, _daemon, runtime) = start().await;
    let pod = Pod::new("burstable", "b", 100 * MIB);
    let adjusted = runtime.create(&pod).await;
    assert!(!adjusted.is_empty());
}

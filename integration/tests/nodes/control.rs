//! The control group: tests on nodes without the plugin. The control group proves that the plugin
//! causes the results of the other tests.

use std::time::Duration;

use anyhow::{Context, Result};
use integration::kubelet::{ContainerSpec, Kubelet, MIB, PodSpec, Qos, SYSTEM_RESERVED};
use integration::machine::Node;
use integration::probe::cgroup::{self, Expected, MAX, Memory};
use integration::probe::crictl;
use integration::runtime::Driver;
use integration::stories::pressure::{self, Contest, Left};
use integration::{node_tests, stories};

node_tests!(control: {
    requested_unified_values_reach_the_kernel,
}, every: {
    the_runtime_answers_and_offers_nri,
}, once: {
    decreases_kill_and_increases_while_down_fail,
    resizes_change_cgroup_limits_and_checkpoints,
    every_qos_class_gets_only_its_limit,
    systemd_overwrites_values_written_to_files,
    one_unlimited_container_leaves_the_pod_unlimited,
    pods_created_together_get_limits_and_disappear,
    workload_memory_and_cache_are_charged,
    pods_exhaust_the_node_and_system_cache,
    protection_needs_every_level,
    page_cache_kills_containers_without_headroom,
    memory_high_keeps_a_container_throttled,
});

fn the_runtime_answers_and_offers_nri(node: &Node, _: Driver) -> Result<()> {
    let version = node.run("crictl version; crictl --version; test -S /var/run/nri/nri.sock")?;
    let (name, minor) = node
        .runtime()
        .name()
        .split_once('-')
        .context("splitting the runtime's name and version")?;
    let name = if name == "crio" { "cri-o" } else { name };
    let said = format!("RuntimeName:  {name}");
    assert!(
        version.stdout.contains(&said) && version.stdout.contains(&format!(" {minor}.")),
        "{}",
        version.stdout
    );
    let controllers = node.read("/sys/fs/cgroup/cgroup.controllers")?;
    assert!(controllers.split_whitespace().any(|name| name == "memory"), "{controllers}");
    Ok(())
}

fn every_qos_class_gets_only_its_limit(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let top = match driver {
        Driver::Systemd => "kubepods.slice",
        Driver::Cgroupfs => "kubepods",
    };
    let [kubepods] = cgroup::memory(node, &[top])?[..] else { unreachable!("one was asked for") };
    assert_eq!(kubepods.max, (kubelet.capacity() - SYSTEM_RESERVED) / 4096 * 4096);

    let guaranteed = ContainerSpec::new("c").limit(64 * MIB).cpu(100);
    let burstable = ContainerSpec::new("c").request(32 * MIB).limit(96 * MIB);
    let best_effort = ContainerSpec::new("c");
    for (class, container, limit) in [
        (Qos::Guaranteed, guaranteed, Some(64 * MIB)),
        (Qos::Burstable, burstable, Some(96 * MIB)),
        (Qos::BestEffort, best_effort, None),
    ] {
        let oom_score_adj = kubelet.oom_score_adj(class, &container);
        let pod = kubelet.run_pod(PodSpec::new(class.name()).container(container))?;
        assert_eq!(pod.spec.qos(), class);
        let container = pod.container("c")?;
        let [of_pod, of_container] = cgroup::memory(node, &[&pod.cgroup, &container.cgroup])?[..]
        else {
            unreachable!("two were asked for")
        };
        let max = limit.unwrap_or(MAX);
        // The kubelet never limits a pod's swap. The kubelet limits a container's swap if the
        // container has a memory limit.
        assert_eq!(
            of_pod,
            Memory { min: 0, low: 0, high: MAX, max, swap_max: MAX },
            "{class:?} pod"
        );
        let swap_max = limit.map_or(MAX, |_| 0);
        assert_eq!(of_container, Memory { min: 0, low: 0, high: MAX, max, swap_max }, "{class:?}");

        let inspected = crictl::inspect(node, &container.id)?;
        let unified = crictl::stored_unified(&inspected).as_object();
        let keys: Vec<&String> =
            unified.context("the stored specification has no unified map")?.keys().collect();
        assert_eq!(keys, ["memory.oom.group"], "{class:?}");
        let score = &inspected["info"]["runtimeSpec"]["process"]["oomScoreAdj"];
        assert_eq!(score.as_i64(), Some(oom_score_adj), "{class:?}");
    }
    Ok(())
}

fn one_unlimited_container_leaves_the_pod_unlimited(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let pod = kubelet.run_pod(
        PodSpec::new("mixed")
            .container(ContainerSpec::new("limited").limit(64 * MIB))
            .container(ContainerSpec::new("free").request(32 * MIB)),
    )?;
    let (limited, free) = (pod.container("limited")?, pod.container("free")?);
    let memory = cgroup::memory(node, &[&pod.cgroup, &limited.cgroup, &free.cgroup])?;
    let limits: Vec<u64> = memory.iter().map(|memory| memory.max).collect();
    assert_eq!(limits, [MAX, 64 * MIB, MAX]);
    Ok(())
}

fn requested_unified_values_reach_the_kernel(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let container = ContainerSpec::new("c")
        .request(32 * MIB)
        .limit(64 * MIB)
        .unified("memory.min", 32 * MIB)
        .unified("memory.high", 60 * MIB);
    let pod = kubelet.run_pod(PodSpec::new("unified").container(container))?;
    let memory = cgroup::memory(node, &[&pod.container("c")?.cgroup])?;
    assert_eq!((memory[0].min, memory[0].high), (32 * MIB, 60 * MIB));
    Ok(())
}

fn resizes_change_cgroup_limits_and_checkpoints(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let container = ContainerSpec::new("c").request(32 * MIB).limit(64 * MIB);
    let mut pod = kubelet.run_pod(PodSpec::new("resized").container(container))?;
    for limit in [128 * MIB, 96 * MIB] {
        kubelet.resize(&mut pod, "c", Some(48 * MIB), Some(limit))?;
        let memory = cgroup::memory(node, &[&pod.cgroup, &pod.container("c")?.cgroup])?;
        assert_eq!((memory[0].max, memory[1].max), (limit, limit));
    }
    for state in ["allocated_pods_state", "actuated_pods_state"] {
        let file = node.read(&format!("/var/lib/kubelet/{state}"))?;
        let file: serde_json::Value = serde_json::from_str(&file)?;
        let data: serde_json::Value =
            serde_json::from_str(file["data"].as_str().context("the checkpoint has no data")?)?;
        let resources = &data["entries"][&pod.uid]["ContainerResources"]["c"];
        assert_eq!(resources["requests"]["memory"], "48Mi", "{state}");
        assert_eq!(resources["limits"]["memory"], "96Mi", "{state}");
    }
    kubelet.remove_pod(&pod)?;
    assert!(!node.try_run(&format!("test -e /sys/fs/cgroup/{}", pod.cgroup))?.status.success());
    Ok(())
}

fn workload_memory_and_cache_are_charged(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let pod =
        kubelet.run_pod(PodSpec::new("busy").container(ContainerSpec::new("c").limit(96 * MIB)))?;
    let container = pod.container("c")?;
    let charged = |field: &str| -> Result<u64> {
        let script = format!(
            "awk '$1 == \"{field}\" {{print $2}}' /sys/fs/cgroup/{}/memory.stat",
            container.cgroup
        );
        node.run(&script)?.stdout.trim().parse().context("reading memory.stat")
    };
    let idle = charged("anon")?;
    assert_eq!(container.call(node, &format!("alloc {}", 20 * MIB))?, format!("ok {}", 20 * MIB));
    // memory.stat may be up to 2 s old in the worst case, but a read of the file flushes large
    // changes.
    assert!(charged("anon")? >= idle + 19 * MIB);
    container.call(node, "free")?;
    assert!(charged("anon")? < idle + 5 * MIB);
    container.call(node, &format!("write /cache {}", 20 * MIB))?;
    assert!(charged("file")? >= 19 * MIB);
    assert_eq!(
        container.call(node, &format!("alloc {}", 200 * MIB))?,
        "gone",
        "an allocation beyond the limit must end the workload"
    );
    Ok(())
}

/// Writes memory.min of several cgroups with the shell.
fn write_min(node: &Node, values: &[(&str, u64)]) -> Result<()> {
    let commands = values
        .iter()
        .map(|(group, bytes)| format!("echo {bytes} > {}/{group}/memory.min\n", cgroup::ROOT));
    node.run(&commands.collect::<String>()).map(|_| ())
}

fn protection_needs_every_level(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let contest = Contest::run(node, &mut kubelet)?;
    let chain = cgroup::chain(&contest.protected.container("app")?.cgroup);
    let [top, class, pod, container] = chain[..] else { unreachable!("four levels") };
    let values = [top, class, pod, container].map(|group| (group, pressure::REQUEST));

    let left = contest.below_the_limit_of_all_pods(Left::is_shared)?;
    assert!(left.is_shared(), "without protection: {left:?}");
    write_min(node, &values)?;
    let left = contest.below_the_limit_of_all_pods(Left::is_protected)?;
    assert!(left.is_protected(), "below the limit of all pods: {left:?}");
    let left = contest.on_a_full_node(Left::is_protected)?;
    assert!(left.is_protected(), "on a full node: {left:?}");

    write_min(node, &[(class, 0)])?;
    let left = contest.below_the_limit_of_all_pods(Left::is_shared)?;
    assert!(left.is_shared(), "without memory.min of the class: {left:?}");
    write_min(node, &[(class, pressure::REQUEST), (top, 0)])?;
    let left = contest.on_a_full_node(Left::is_shared)?;
    assert!(left.is_shared(), "without memory.min of all pods: {left:?}");
    Ok(())
}

fn page_cache_kills_containers_without_headroom(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    for (below, lives) in [(0, false), (2 * MIB, true)] {
        let container =
            pressure::small_container().unified("memory.min", pressure::SMALL_LIMIT - below);
        let pod = kubelet.run_pod(PodSpec::new("small").container(container))?;
        let answer = pressure::read_more_than_fits(&kubelet, node, &pod)?;
        let expected = if lives { pressure::read_it_all() } else { "gone".to_owned() };
        assert_eq!(answer, expected, "memory.min {below} below the limit");
        kubelet.remove_pod(&pod)?;
    }
    Ok(())
}

fn systemd_overwrites_values_written_to_files(node: &Node, driver: Driver) -> Result<()> {
    let kubelet = Kubelet::start(node, driver)?;
    let (top, value) = (kubelet.top_cgroup(), 64 * MIB);
    let becomes = |script: &str, left| {
        let expected = [Expected::new(top, "memory.min", left)];
        cgroup::settle(node, script, &expected, Duration::from_millis(300), Duration::from_secs(60))
            .map(|_| ())
    };
    let (reload, left) = match driver {
        // After a daemon-reload, systemd 257 writes the values of a unit's properties only when the
        // unit changes next.
        Driver::Systemd => (
            "systemctl daemon-reload; systemctl set-property --runtime kubepods.slice CPUWeight=50",
            0,
        ),
        Driver::Cgroupfs => ("systemctl daemon-reload", value),
    };
    for writer in [reload, &kubelet.qos_update()] {
        write_min(node, &[(top, value)])?;
        becomes(writer, left)?;
    }
    if driver == Driver::Systemd {
        // systemd keeps a value that was set as a property of the unit.
        let set = format!("systemctl set-property --runtime {top} MemoryMin={value}");
        becomes(&format!("{set}; systemctl daemon-reload; {}", kubelet.qos_update()), value)?;
    }
    Ok(())
}

fn pods_created_together_get_limits_and_disappear(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let two = PodSpec::new("two")
        .container(ContainerSpec::new("a").limit(32 * MIB))
        .container(ContainerSpec::new("b"));
    let one = PodSpec::new("one")
        .overhead(8 * MIB)
        .container(ContainerSpec::new("a").limit(32 * MIB).cpu(100));
    let mut pods = kubelet.run_pods(vec![two, one])?;
    let (a, b, only) = (pods[0].container("a")?, pods[0].container("b")?, pods[1].container("a")?);
    let paths = [&a.cgroup, &b.cgroup, &only.cgroup, &pods[1].cgroup].map(String::as_str);
    let limits: Vec<u64> = cgroup::memory(node, &paths)?.iter().map(|memory| memory.max).collect();
    assert_eq!(limits, [32 * MIB, MAX, 32 * MIB, 40 * MIB]);

    // A container ends before its pod, like an init container.
    kubelet.run_container(&mut pods[1], &ContainerSpec::new("init").limit(16 * MIB))?;
    let init = pods[1].container("init")?.cgroup.clone();
    assert_eq!(cgroup::memory(node, &[&init])?[0].max, 16 * MIB);
    kubelet.remove_container(&mut pods[1], "init")?;
    kubelet.remove_pods(&pods)?;
    for pod in &pods {
        assert!(
            !node.try_run(&format!("test -e {}/{}", cgroup::ROOT, pod.cgroup))?.status.success(),
            "{}",
            pod.cgroup
        );
    }
    Ok(())
}

fn decreases_kill_and_increases_while_down_fail(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let mut pod = stories::run_satisfied(&mut kubelet, node)?;
    // containerd reports success, or an error because the container is gone. CRI-O refuses the
    // limit decrease.
    let cut = stories::decrease_limit(&mut kubelet, &mut pod);
    println!("{} {driver}: the runtime answers the limit decrease: {cut:?}", node.runtime());
    let (lives, kills) = stories::read_fate(node, &pod)?;
    if node.runtime().refuses_limit_decreases() {
        assert!(cut.is_err() && lives && kills == 0, "{cut:?}, lives: {lives}, kills: {kills}");
    } else {
        assert!(!lives && kills > 0, "lives: {lives}, kills: {kills}");
    }
    kubelet.remove_pod(&pod)?;

    // The container must grow while the runtime writes the limit. The right speed of this growth
    // depends on the machine. If the runtime refuses the limit decrease, the container has grown
    // too fast. If the limit decrease causes no kill, the container has grown too slowly. Even at
    // the right speed only some attempts hit the moment between the runtime's check and its write.
    let (mut pace, mut tried) = (8.0, Vec::new());
    while tried.len() < 60 {
        let app = ContainerSpec::new("app").request(64 * MIB).limit(250 * MIB);
        let pod = kubelet.run_pod(PodSpec::new("growing").container(app))?;
        let (made, kills) = stories::grow_during_decrease(node, &pod, pace as u64)?;
        println!(
            "{} {driver}: {pace:.1} ms for each MiB: success {made}, kills {kills}",
            node.runtime()
        );
        kubelet.remove_pod(&pod)?;
        tried.push((pace as u64, made, kills));
        if kills > 0 {
            break;
        }
        pace *= if made { 0.8 } else { 1.25 };
    }
    assert!(
        tried.last().is_some_and(|&(.., kills)| kills > 0),
        "the container must grow during the limit decrease: {tried:?}"
    );

    let (pod, answer) = stories::run_oom_killed(&mut kubelet, node)?;
    assert_eq!(answer, "gone", "the limits are 200 MiB of the container and 100 MiB of the pod");
    kubelet.remove_pod(&pod)
}

fn memory_high_keeps_a_container_throttled(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let app = ContainerSpec::new("app")
        .request(40 * MIB)
        .limit(200 * MIB)
        .unified("memory.high", stories::MEMORY_HIGH);
    let pod = kubelet.run_pod(PodSpec::new("pinned").container(app))?;
    let standing = stories::stall_at_high(node, &pod)?;
    println!("{} {driver}: {standing:?}", node.runtime());
    assert!(
        !standing.is_satisfied && standing.times > 0,
        "memory.high must throttle the container: {standing:?}"
    );
    assert!(
        standing.current < stories::MEMORY_HIGH + 45 * MIB,
        "memory.high must throttle the container: {standing:?}"
    );
    // The container is throttled far below its own limit, while the node has memory to spare.
    let [memory] = cgroup::memory(node, &[&pod.container("app")?.cgroup])?[..] else {
        unreachable!("one was asked for")
    };
    assert_eq!((memory.high, memory.max), (stories::MEMORY_HIGH, 200 * MIB));
    Ok(())
}

fn pods_exhaust_the_node_and_system_cache(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    // This number of pages is 32 MiB of page cache. The service in system.slice reads 40 MiB.
    let most = 8192;
    let balloon = stories::balloon(&mut kubelet, node, most)?;
    println!("{} {driver}: without the plugin: {balloon:?}", node.runtime());
    assert!(balloon.node_kills > 0, "the node must be out of memory: {balloon:?}");
    assert!(
        balloon.refaults >= most,
        "the kernel must reclaim the system's page cache: {balloon:?}"
    );
    Ok(())
}

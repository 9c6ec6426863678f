//! Tests of in-place resizes on real nodes: limit increases, limit decreases, and containers whose
//! usage changes during a resize.
//!
//! The control group in `control.rs` shows that these scenarios end differently without the plugin.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::kubelet::{ContainerSpec, Kubelet, MIB, PodSpec};
use integration::machine::Node;
use integration::node_tests;
use integration::placement::{self, journal};
use integration::probe::cgroup::{self, Expected};
use integration::probe::crictl;
use integration::runtime::Driver;
use integration::stories::{self, Random};

node_tests!(external: {
    latest_resizes_survive_plugin_and_runtime_restarts,
}, every: {
    resizes_apply_unless_a_decrease_would_kill,
}, once: {
    increases_during_downtime_prevent_another_oom_kill,
    invalid_updates_leave_containers_unharmed,
    a_deferred_decrease_applies_once_it_fits,
    decreases_during_growth_cause_no_kills,
    oom_rescue_raises_limits_to_the_ceiling,
    page_cache_makes_room_for_a_cut,
    throttled_containers_are_temporarily_released,
    concurrent_decreases_are_decided_per_container,
});

/// Time for which values must stay right.
const HOLD: Duration = Duration::from_millis(400);
/// Timeout for values to become right.
const PATIENCE: Duration = Duration::from_secs(60);

/// Returns the default configuration.
fn config() -> String {
    "{}\n".to_owned()
}

fn resizes_apply_unless_a_decrease_would_kill(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let mut pod = stories::run_satisfied(&mut kubelet, node)?;
    let id = pod.container("app")?.id.clone();
    let cpu_max = format!("/sys/fs/cgroup/{}/cpu.max", pod.container("app")?.cgroup);
    for quota in ["30000", "10000", "30000"] {
        node.run(&format!("crictl update --cpu-period 100000 --cpu-quota {quota} {id}"))?;
        assert_eq!(node.read(&cpu_max)?.trim_end(), format!("{quota} 100000"));
    }
    for limit in [300 * MIB, 250 * MIB, 150 * MIB] {
        kubelet.resize(&mut pod, "app", Some(64 * MIB), Some(limit))?;
        let [of_pod, of_container] = stories::memory(node, &pod)?;
        assert_eq!((of_pod.max, of_container.max), (limit, limit));
        assert_eq!(of_container.swap_max, 0, "the kubelet's swap limit must not change");
    }
    // Change only the request. The plugin changes memory.min and memory.high of the container, and
    // memory.min of the pod.
    for request in [96 * MIB, 64 * MIB] {
        kubelet.resize(&mut pod, "app", Some(request), Some(150 * MIB))?;
        let cgroup = &pod.container("app")?.cgroup;
        let expected = [
            Expected::new(cgroup, "memory.min", request),
            Expected::new(cgroup, "memory.high", stories::memory_high(request, 150 * MIB)),
            Expected::new(&pod.cgroup, "memory.min", request),
        ];
        cgroup::settle(node, "", &expected, HOLD, PATIENCE)?;
    }

    let before = stories::memory(node, &pod)?;
    let so_far = journal(node, 0)?.len();
    for _ in 0..2 {
        let Err(refused) = stories::decrease_limit(&mut kubelet, &mut pod) else {
            anyhow::bail!("the limit decrease must be refused")
        };
        assert!(format!("{refused:#}").contains("would be killed"), "{refused:#}");
    }
    assert_eq!(stories::read_fate(node, &pod)?, (true, 0));
    assert_eq!(stories::memory(node, &pod)?, before);
    let said = journal(node, so_far)?;
    let said: Vec<_> = said.iter().filter(|line| line.contains("outcome=rejected")).collect();
    ensure!(said.len() == 2, "the plugin must report two refusals: {said:#?}");
    for part in ["memory.max", "desired=104857600", "observed=157286400", "usage=", "reclaimable="]
    {
        assert!(said[0].contains(part), "{part}: {}", said[0]);
    }
    let status = node.run("plimsoll status")?.stdout;
    println!("{} {driver}:\n{status}", node.runtime());
    let row = status
        .lines()
        .find(|line| line.starts_with("refused "))
        .context("the status has no refusals")?;
    assert!(row.contains("default/satisfied/app") && row.contains("150Mi"), "{status}");
    let story = node.run(&format!("plimsoll status {}", pod.spec.name))?.stdout;
    assert!(
        story.contains("CutRejected: rejected a memory limit decrease from 150Mi to 100Mi"),
        "{story}"
    );

    // Once the container has freed memory, the same limit decrease succeeds.
    pod.container("app")?.call(node, "free")?;
    stories::decrease_limit(&mut kubelet, &mut pod)?;
    let [of_pod, of_container] = stories::memory(node, &pod)?;
    assert_eq!((of_pod.max, of_container.max), (100 * MIB, 100 * MIB));
    assert_eq!(stories::read_fate(node, &pod)?, (true, 0));
    assert_eq!(of_container.high, stories::memory_high(64 * MIB, 100 * MIB));
    Ok(())
}

fn increases_during_downtime_prevent_another_oom_kill(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let (pod, answer) = stories::run_oom_killed(&mut kubelet, node)?;
    assert!(answer.starts_with("ok"), "{answer}");
    let [of_pod, of_container] = stories::memory(node, &pod)?;
    assert_eq!((of_pod.max, of_container.max), (200 * MIB, 200 * MIB));
    // The pod's raised limit survives systemd's writes.
    node.run("systemctl daemon-reload")?;
    if driver == Driver::Systemd {
        let unit = pod.cgroup.rsplit('/').next().unwrap_or_default();
        node.run(&format!("systemctl set-property --runtime {unit} CPUWeight=77"))?;
    }
    let [of_pod, _] = stories::memory(node, &pod)?;
    assert_eq!(of_pod.max, 200 * MIB);
    Ok(())
}

fn page_cache_makes_room_for_a_cut(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let (pod, cut) = stories::decrease_limit_below_cache(&mut kubelet, node)?;
    cut?;
    let [of_pod, of_container] = stories::memory(node, &pod)?;
    assert_eq!(
        (of_pod.max, of_container.max, of_container.high),
        (60 * MIB, 60 * MIB, cgroup::MAX)
    );
    assert_eq!(stories::read_fate(node, &pod)?, (true, 0));
    Ok(())
}

fn throttled_containers_are_temporarily_released(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    // With this factor memory.high has the same value as in the control group.
    let factor = (stories::MEMORY_HIGH - 40 * MIB) as f64 / (160 * MIB) as f64;
    placement::configure(
        node,
        &format!("memoryThrottlingFactor: {factor}\nthrottleDeadline: 5s\n"),
    )?;
    let app = ContainerSpec::new("app").request(40 * MIB).limit(200 * MIB);
    let pod = kubelet.run_pod(PodSpec::new("pinned").container(app))?;
    let [_, of_container] = stories::memory(node, &pod)?;
    assert_eq!(of_container.high, stories::MEMORY_HIGH);
    let so_far = journal(node, 0)?.len();
    assert!(
        stories::exceed_high(node, &pod)?,
        "the plugin must release the container: {:#?}",
        journal(node, so_far)?
    );
    let said = journal(node, so_far)?;
    assert!(said.iter().any(|line| line.contains("released a container")), "{said:#?}");
    let [_, of_container] = stories::memory(node, &pod)?;
    assert!(
        of_container.high > stories::MEMORY_HIGH && of_container.max == 200 * MIB,
        "{of_container:?}"
    );
    // Once the usage is below memory.high again, the plugin restores the previous memory.high.
    let free = format!("workload call {} free", pod.container("app")?.control);
    placement::wait_for_journal(
        node,
        "plimsoll",
        "restored memory.high of a released container",
        &free,
    )?;
    cgroup::settle(
        node,
        "",
        &[Expected::new(&pod.container("app")?.cgroup, "memory.high", stories::MEMORY_HIGH)],
        HOLD,
        PATIENCE,
    )?;
    placement::configure(node, &config())
}

fn decreases_during_growth_cause_no_kills(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    for pace in [4, 8, 16] {
        let app = ContainerSpec::new("app").request(64 * MIB).limit(250 * MIB);
        let pod = kubelet.run_pod(PodSpec::new(&format!("growing-{pace}")).container(app))?;
        let (made, killed) = stories::grow_during_decrease(node, &pod, pace)?;
        println!(
            "{} {driver}: {pace} ms for each MiB: success {made}, kills {killed}",
            node.runtime()
        );
        assert_eq!(killed, 0);
        kubelet.remove_pod(&pod)?;
    }
    Ok(())
}

fn concurrent_decreases_are_decided_per_container(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let names = ["idle", "busy", "cached"];
    let container = |name| ContainerSpec::new(name).limit(150 * MIB).cpu(1000);
    let pod = kubelet.run_pod(
        names.iter().fold(PodSpec::new("three"), |pod, name| pod.container(container(name))),
    )?;
    let containers = [pod.container("idle")?, pod.container("busy")?, pod.container("cached")?];
    for (container, work) in [(containers[1], "alloc"), (containers[2], "write /cache")] {
        let answer = container.call(node, &format!("{work} {}", 110 * MIB))?;
        ensure!(answer.starts_with("ok"), "the workload must do {work:?}, but answered {answer:?}");
    }
    let cut_all: String = containers
        .iter()
        .map(|container| {
            let id = &container.id;
            format!("(crictl update --memory {} {id} >/dev/null 2>&1 && echo 0 || echo 1) >/tmp/{id} & ", 60 * MIB)
        })
        .collect();
    let told = |script: &str| -> Result<String> {
        let ids: String =
            containers.iter().map(|container| format!("/tmp/{} ", container.id)).collect();
        Ok(node
            .run(&format!("{script} wait; cat {ids}"))?
            .stdout
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" "))
    };
    let limits = || -> Result<Vec<u64>> {
        let cgroups: Vec<_> =
            containers.iter().map(|container| container.cgroup.as_str()).collect();
        Ok(cgroup::memory(node, &cgroups)?.iter().map(|memory| memory.max / MIB).collect())
    };
    // A slow node does not write back the whole page cache while the runtime waits. Repeat the
    // updates in this case, as the kubelet does.
    let mut answers = told(&cut_all)?;
    for _ in 0..20 {
        if answers != "0 1 1" {
            break;
        }
        answers = told(&cut_all)?;
    }
    assert_eq!(answers, "0 1 0");
    assert_eq!(limits()?, [60, 150, 60]);
    containers[1].call(node, "free")?;
    assert_eq!(told(&cut_all)?, "0 0 0");
    assert_eq!(limits()?, [60, 60, 60]);
    // The kubelet then lowers the pod's limit, and the plugin does not raise that limit again.
    kubelet.limit_pod(&pod, Some(180 * MIB))?;
    cgroup::settle(
        node,
        "",
        &[Expected::new(&pod.cgroup, "memory.max", 180 * MIB)],
        HOLD,
        PATIENCE,
    )?;
    assert_eq!(cgroup::events(node, &pod.cgroup)?["oom_kill"], 0);
    Ok(())
}

fn a_deferred_decrease_applies_once_it_fits(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    placement::configure(node, "shrink: defer\n")?;
    let pod = stories::run_satisfied(&mut kubelet, node)?;
    let container = pod.container("app")?.clone();
    let cut = format!(
        "crictl update --memory {} --cpu-period 100000 --cpu-quota 30000 {}",
        100 * MIB,
        container.id
    );
    placement::wait_for_journal(node, "plimsoll", "outcome=deferred", &cut)?;
    let [_, memory] = stories::memory(node, &pod)?;
    assert_eq!(memory.max, 250 * MIB);
    assert_eq!(
        node.read(&format!("/sys/fs/cgroup/{}/cpu.max", container.cgroup))?.trim_end(),
        "30000 100000"
    );
    assert_eq!(stories::read_fate(node, &pod)?, (true, 0));
    let free = format!("workload call {} free", container.control);
    placement::wait_for_journal(node, "plimsoll", "applied the deferred limit decrease", &free)?;
    let expected =
        [("memory.max", 100 * MIB), ("memory.high", stories::memory_high(64 * MIB, 100 * MIB))];
    let expected = expected.map(|(name, value)| Expected::new(&container.cgroup, name, value));
    cgroup::settle(node, "", &expected, HOLD, PATIENCE)?;
    assert_eq!(stored_limit(node, &container.id)?, 100 * MIB);
    assert_eq!(
        stories::memory(node, &pod)?[1].swap_max,
        0,
        "the kubelet's swap limit must not change"
    );
    assert_eq!(stories::read_fate(node, &pod)?, (true, 0));
    placement::configure(node, &config())
}

/// Returns the memory limit that the runtime has stored for a container, in bytes.
fn stored_limit(node: &Node, container: &str) -> Result<u64> {
    let inspected = crictl::inspect(node, container)?;
    let limit = &inspected["info"]["runtimeSpec"]["linux"]["resources"]["memory"]["limit"];
    limit.as_u64().with_context(|| format!("the stored limit is {limit}"))
}

fn oom_rescue_raises_limits_to_the_ceiling(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let rescue = format!(
        "memoryThrottlingFactor: null\noomRescue: {{kills: 2, factor: 1.2, minimum: 20Mi, ceiling: {}}}\n",
        110 * MIB
    );
    placement::configure(node, &rescue)?;
    let app = ContainerSpec::new("app").request(32 * MIB).limit(60 * MIB);
    let mut pod = kubelet.run_pod(PodSpec::new("looping").container(app.clone()))?;
    // The limits in MiB of successive containers `app`, and whether 70 MiB fit into each limit.
    for (limit, fits) in [(60, false), (60, false), (80, true)] {
        let memory = stories::memory(node, &pod)?;
        assert_eq!(memory[1].max, limit * MIB);
        assert_eq!(memory[0].max, limit * MIB, "memory.max of the pod");
        let answer = stories::alloc(node, &pod, 70 * MIB)?;
        assert_eq!(answer.starts_with("ok"), fits, "{limit} MiB: {answer}");
        if !fits {
            kubelet.remove_container(&mut pod, "app")?;
            kubelet.run_container(&mut pod, &app)?;
        }
    }
    kubelet.remove_pod(&pod)?;

    // The kernel OOM-kills a child process, and the container keeps running. The plugin raises the
    // container's limit in place, at most to the ceiling.
    kubelet.group_kill = false;
    let pod = kubelet.run_pod(PodSpec::new("forking").container(app))?;
    let container = pod.container("app")?;
    let limits = |limit: u64| {
        [&pod.cgroup, &container.cgroup]
            .map(|cgroup| Expected::new(cgroup, "memory.max", limit * MIB))
            .to_vec()
    };
    let twice =
        format!("for _ in 1 2; do workload call {} child {}; done", container.control, 150 * MIB);
    for limit in [80, 100, 110] {
        cgroup::settle(node, &twice, &limits(limit), HOLD, PATIENCE)?;
    }
    assert_eq!(stored_limit(node, &container.id)?, 110 * MIB);
    // The plugin does not raise the limit above the ceiling.
    placement::wait_for_journal(node, "plimsoll", "may not be raised further", &twice)?;
    cgroup::settle(node, "", &limits(110), HOLD, PATIENCE)?;
    assert_eq!(container.call(node, "ping")?, "ok");
    placement::configure(node, &config())
}

fn latest_resizes_survive_plugin_and_runtime_restarts(node: &Node, driver: Driver) -> Result<()> {
    const CONTAINERS: usize = 6;
    let mut kubelet = Kubelet::start(node, driver)?;
    let name = |index: usize| format!("app-{index}");
    let container = |index| ContainerSpec::new(&name(index)).request(16 * MIB).limit(20 * MIB);
    let pod = kubelet.run_pod(
        (0..CONTAINERS).fold(PodSpec::new("many"), |pod, index| pod.container(container(index))),
    )?;
    let ids: Vec<&str> = (0..CONTAINERS)
        .map(|index| Ok(pod.container(&name(index))?.id.as_str()))
        .collect::<Result<_>>()?;
    let mut limits = [30 * MIB; CONTAINERS];
    let expected = |limits: &[u64]| -> Result<Vec<Expected>> {
        let of_container = |(index, limit): (usize, &u64)| {
            let cgroup = &pod.container(&name(index))?.cgroup;
            let high = stories::memory_high(16 * MIB, *limit);
            Ok([
                Expected::new(cgroup, "memory.max", *limit),
                Expected::new(cgroup, "memory.high", high),
            ])
        };
        let of_containers: Vec<_> =
            limits.iter().enumerate().map(of_container).collect::<Result<_>>()?;
        Ok(of_containers.into_iter().flatten().collect())
    };
    // The kubelet double does not raise the limit of the pod's cgroup here, so the plugin must
    // raise it.
    let at_once: String = ids.iter().map(|id| format!("cri update {id} {} & ", 30 * MIB)).collect();
    cgroup::settle(node, &format!("{at_once} wait"), &expected(&limits)?, HOLD, PATIENCE)?;
    let sum = [Expected::new(&pod.cgroup, "memory.max", limits.iter().sum())];
    cgroup::settle(node, "", &sum, HOLD, PATIENCE)?;

    let mut random = Random::new(20_260_000);
    let mut is_stored = [true; CONTAINERS];
    for part in 0..5 {
        let mut script = String::new();
        for _ in 0..8 {
            let index = random.below(CONTAINERS as u64) as usize;
            (limits[index], is_stored[index]) = ((20 + random.below(40)) * MIB, true);
            let _ = writeln!(script, "cri update {} {}", ids[index], limits[index]);
        }
        // If `part` is even, kill the plugin in the middle of the updates. systemd then restarts
        // the plugin. If `part` is odd, restart the runtime after the updates.
        if part % 2 == 0 {
            let middle = script.len() / 2;
            let line = middle + script[middle..].find('\n').unwrap_or_default() + 1;
            script.insert_str(line, "systemctl kill --signal KILL plimsoll\n");
            placement::until_synchronised(node, &script)?;
        } else {
            node.run(&script)?;
            placement::restart_runtime(node)?;
            is_stored = [!node.runtime().may_forget_updates(); CONTAINERS];
        }
    }
    cgroup::settle(node, "", &expected(&limits)?, HOLD, PATIENCE)?;
    for ((id, limit), _) in
        ids.iter().zip(limits).zip(is_stored).filter(|(_, is_stored)| *is_stored)
    {
        let inspected = crictl::inspect(node, id)?;
        let high = stories::memory_high(16 * MIB, limit);
        assert_eq!(stored_limit(node, id)?, limit);
        assert_eq!(crictl::stored_unified(&inspected)["memory.high"], high.to_string());
    }
    let [of_pod] = cgroup::memory(node, &[&pod.cgroup])?[..] else {
        unreachable!("one was asked for")
    };
    assert!(of_pod.max >= limits.iter().sum(), "{of_pod:?} {limits:?}");
    assert_eq!(cgroup::events(node, &pod.cgroup)?["oom_kill"], 0);
    Ok(())
}

fn invalid_updates_leave_containers_unharmed(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let app = ContainerSpec::new("app").request(32 * MIB).limit(100 * MIB);
    let mut pod = kubelet.run_pod(PodSpec::new("odd").container(app.clone()))?;
    let id = pod.container("app")?.id.clone();
    let before = stories::memory(node, &pod)?;
    for limit in ["4096", "1"] {
        let output = node.try_run(&format!("crictl update --memory {limit} {id}"))?;
        ensure!(!output.status.success(), "a limit of {limit} must be refused");
        assert_eq!(stories::memory(node, &pod)?, before, "{limit}");
    }
    // A limit of 0 means that the request does not change the limit.
    node.run(&format!("crictl update --memory 0 --cpu-share 77 {id}"))?;
    assert_eq!(stories::memory(node, &pod)?, before);
    // The first limit is far above the node's memory. The second limit means no limit.
    for limit in ["9223372036854775807", "-1"] {
        let output = node.try_run(&format!("crictl update --memory={limit} {id}"))?;
        println!(
            "{} {driver}: --memory={limit}: {} {}",
            node.runtime(),
            output.status,
            output.stderr.trim_end()
        );
        let [_, memory] = stories::memory(node, &pod)?;
        assert!(memory.max == cgroup::MAX || memory.max >= 100 * MIB, "{memory:?}");
        assert_eq!(stories::read_fate(node, &pod)?, (true, 0));
    }
    // Update three containers: a removed container, a container that never existed, and an ended
    // container that the runtime still has.
    kubelet.remove_container(&mut pod, "app")?;
    for id in [id.as_str(), "0123456789abcdef"] {
        ensure!(
            !node.try_run(&format!("crictl update --memory {} {id}", 200 * MIB))?.status.success()
        );
    }
    kubelet.run_container(&mut pod, &app)?;
    let id = pod.container("app")?.id.clone();
    node.run(&format!("crictl stop --timeout 0 {id} >/dev/null"))?;
    let output = node.try_run(&format!("crictl update --memory {} {id}", 200 * MIB))?;
    println!(
        "{} {driver}: update of a container that has ended: {} {}",
        node.runtime(),
        output.status,
        output.stderr.trim_end()
    );
    kubelet.remove_container(&mut pod, "app")?;
    kubelet.run_container(&mut pod, &app)?;
    assert_eq!(stories::memory(node, &pod)?[1], before[1]);
    Ok(())
}

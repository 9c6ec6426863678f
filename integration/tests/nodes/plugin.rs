//! Tests of the plugin's main job on real nodes: the kernel and crictl must show the values that
//! follow from requests and limits.
//!
//! The control group in `control.rs` shows the values of a container without the plugin.

use std::time::Duration;

use anyhow::{Context, Result};
use integration::kubelet::{ContainerSpec, Kubelet, MIB, Pod, PodSpec};
use integration::machine::Node;
use integration::node_tests;
use integration::placement::{self, Mode};
use integration::probe::cgroup::{self, Expected, MAX, Memory};
use integration::probe::crictl;
use integration::runtime::Driver;

node_tests!(plugin: {}, once: {
    restarts_repair_values_changed_while_stopped,
    a_changed_configuration_reaches_running_containers,
    doctor_passes_and_status_matches_the_kernel,
});

/// Tests whose results do not depend on whether systemd or the runtime starts the plugin.
mod values_of {
    use super::*;

    node_tests!(external: {}, every: {
        every_class_gets_its_values,
    }, once: {
        requests_come_from_wherever_they_are_known,
        resizes_update_memory_min_and_high,
        observe_mode_changes_nothing_and_shows_all,
        only_valid_annotations_override_the_configuration,
    });
}

/// Returns the default configuration. The text is not empty, because a running plugin ignores an
/// empty file and keeps its current configuration.
fn config() -> String {
    "{}\n".to_owned()
}

const FACTOR: f64 = 0.9;
const PAGE: u64 = 4096;
/// Distance between memory.min and the limit, in bytes: the default of `memoryMinHeadroom`.
const HEADROOM: u64 = 2 * MIB;

/// Returns the memory.high that KEP-2570 defines: floor((request + factor * (limit - request)) /
/// page) * page.
fn high(request: u64, ceiling: u64, factor: f64) -> u64 {
    ((request as f64 + factor * (ceiling as f64 - request as f64)) / PAGE as f64).floor() as u64
        * PAGE
}

fn app() -> ContainerSpec {
    ContainerSpec::new("app")
}

/// Returns the placement of the plugin: whether systemd or the runtime has started the plugin. No
/// parameter of a test case contains this information.
fn mode(node: &Node) -> Result<Mode> {
    let external = node.try_run("systemctl --quiet is-active plimsoll")?.status.success();
    Ok(if external { Mode::External } else { Mode::Launched })
}

fn values(node: &Node, pod: &Pod) -> Result<(u64, u64, u64, u64)> {
    let memory = cgroup::memory(node, &[&pod.container("app")?.cgroup])?;
    let [Memory { min, low, high, max, .. }] = memory[..] else {
        unreachable!("one was asked for")
    };
    Ok((min, low, high, max))
}

/// Returns the memory values that the runtime has stored and would set again. Omits keys for which
/// the runtime has stored no value.
fn stored(node: &Node, pod: &Pod) -> Result<Vec<(String, String)>> {
    let inspected = crictl::inspect(node, &pod.container("app")?.id)?;
    let unified = crictl::stored_unified(&inspected).as_object().cloned().unwrap_or_default();
    let ours = unified
        .into_iter()
        .filter(|(key, _)| ["memory.min", "memory.low", "memory.high"].contains(&key.as_str()));
    ours.map(|(key, value)| {
        Ok((key, value.as_str().context("a stored value is not text")?.to_owned()))
    })
    .collect()
}

fn pairs(pairs: &[(&str, u64)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.to_string())).collect()
}

fn every_class_gets_its_values(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let allocatable = kubelet.allocatable();

    let guaranteed =
        kubelet.run_pod(PodSpec::new("guaranteed").container(app().limit(64 * MIB).cpu(100)))?;
    assert_eq!(values(node, &guaranteed)?, (64 * MIB - HEADROOM, 0, MAX, 64 * MIB), "Guaranteed");
    assert_eq!(
        stored(node, &guaranteed)?,
        pairs(&[("memory.min", 64 * MIB - HEADROOM)]),
        "Guaranteed"
    );

    // The request is not a multiple of the page size. memory.min is rounded to whole pages, but the
    // runtime stores the exact request.
    let request = 33_333_333;
    let burstable = kubelet
        .run_pod(PodSpec::new("burstable").container(app().request(request).limit(96 * MIB)))?;
    let throttled = high(request, 96 * MIB, FACTOR);
    assert_eq!(
        values(node, &burstable)?,
        (request / PAGE * PAGE, 0, throttled, 96 * MIB),
        "Burstable"
    );
    assert_eq!(
        stored(node, &burstable)?,
        pairs(&[("memory.high", throttled), ("memory.min", request)]),
        "Burstable"
    );

    let unlimited =
        kubelet.run_pod(PodSpec::new("unlimited").container(app().request(32 * MIB)))?;
    let expected = (32 * MIB, 0, high(32 * MIB, allocatable, FACTOR), MAX);
    assert_eq!(values(node, &unlimited)?, expected, "Burstable without a limit");

    let best_effort = kubelet.run_pod(PodSpec::new("besteffort").container(app()))?;
    assert_eq!(
        values(node, &best_effort)?,
        (0, 0, high(0, allocatable, FACTOR), MAX),
        "BestEffort"
    );
    Ok(())
}

fn requests_come_from_wherever_they_are_known(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let spec = |name: &str| PodSpec::new(name).container(app().request(40 * MIB).limit(80 * MIB));
    let annotation = "memory-request.plimsoll.nri.io/container.app";

    // The kubelet's checkpoint takes precedence over the annotation of the pod's author.
    let pod = kubelet.run_pod(spec("recorded").annotation(annotation, "20Mi"))?;
    assert_eq!(values(node, &pod)?.0, 40 * MIB, "checkpoint");

    kubelet.checkpoints = false;
    kubelet.remove_checkpoints()?;
    let pod = kubelet.run_pod(spec("annotated").annotation(annotation, "20Mi"))?;
    assert_eq!(
        values(node, &pod)?,
        (20 * MIB, 0, high(20 * MIB, 80 * MIB, FACTOR), 80 * MIB),
        "annotation"
    );

    // A request that the plugin derives from the OOM score is accurate only to 1/1000 of the node's
    // memory. The plugin uses the lowest of the possible requests.
    let pod = kubelet.run_pod(spec("scored"))?;
    let score = kubelet.oom_score_adj(pod.spec.qos(), &pod.spec.containers[0]);
    let lowest = ((1000 - score).unsigned_abs() * kubelet.capacity()).div_ceil(1000);
    assert!(lowest <= 40 * MIB && 40 * MIB - lowest <= kubelet.capacity() / 1000, "{lowest}");
    assert_eq!(values(node, &pod)?.0, lowest / PAGE * PAGE, "oom_score_adj");

    let pod =
        kubelet.run_pod(PodSpec::new("guaranteed").container(app().limit(64 * MIB).cpu(100)))?;
    assert_eq!(values(node, &pod)?.0, 64 * MIB - HEADROOM, "QoS class");

    // A kubelet with its own MemoryQoS sends these values. The plugin's values still take
    // precedence.
    let sent = app()
        .request(40 * MIB)
        .limit(80 * MIB)
        .unified("memory.min", 40 * MIB)
        .unified("memory.high", 44 * MIB);
    let pod = kubelet.run_pod(PodSpec::new("sent").container(sent))?;
    // If the runtime does not show plugins the unified map of a create request, the plugin uses the
    // next best source. If the runtime shows the map, the plugin replaces the map's values once the
    // container runs.
    let request = if node.runtime().shows_unified() { 40 * MIB } else { lowest };
    let cgroup = &pod.container("app")?.cgroup;
    let expected =
        [("memory.min", request / PAGE * PAGE), ("memory.high", high(request, 80 * MIB, FACTOR))];
    let expected = expected.map(|(file, value)| Expected::new(cgroup, file, value));
    cgroup::settle(node, "", &expected, Duration::from_millis(400), Duration::from_secs(60))
        .context("waiting for the values of the pod with a unified map")?;
    Ok(())
}

fn only_valid_annotations_override_the_configuration(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let spec = |name: &str| PodSpec::new(name).container(app().request(32 * MIB).limit(96 * MIB));
    let pod = kubelet.run_pod(
        spec("soft")
            .annotation("reservation.plimsoll.nri.io/pod", "tiered")
            .annotation("throttling-factor.plimsoll.nri.io/container.app", "0.5"),
    )?;
    assert_eq!(values(node, &pod)?, (0, 32 * MIB, 64 * MIB, 96 * MIB), "tiered, half");
    let pod = kubelet.run_pod(
        spec("bad")
            .annotation("reservation.plimsoll.nri.io", "lots")
            .annotation("throttling-factor.plimsoll.nri.io", "none"),
    )?;
    assert_eq!(values(node, &pod)?, (32 * MIB, 0, MAX, 96 * MIB), "ignored, none");
    Ok(())
}

/// Waits until the container has these values.
///
/// A long time may pass between the runtime's request to the plugin and the runtime's own write.
/// The plugin then assumes that the runtime does not write, and sets the values itself. The
/// runtime's late write then sets other values for a moment.
fn holds(node: &Node, pod: &Pod, values: [(&'static str, u64); 3]) -> Result<()> {
    let cgroup = &pod.container("app")?.cgroup;
    let expected = values.map(|(file, value)| Expected::new(cgroup, file, value));
    cgroup::settle(node, "", &expected, Duration::ZERO, Duration::from_secs(60)).map(|_| ())
}

fn resizes_update_memory_min_and_high(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let mut pod = kubelet
        .run_pod(PodSpec::new("resized").container(app().request(32 * MIB).limit(96 * MIB)))?;
    for (request, limit) in [(48 * MIB, 128 * MIB), (40 * MIB, 80 * MIB)] {
        kubelet.resize(&mut pod, "app", Some(request), Some(limit))?;
        holds(
            node,
            &pod,
            [
                ("memory.min", request),
                ("memory.high", high(request, limit, FACTOR)),
                ("memory.max", limit),
            ],
        )?;
    }
    // The request equals the limit, so there is nothing to throttle. The plugin must reset the old
    // memory.high.
    kubelet.resize(&mut pod, "app", Some(80 * MIB), Some(80 * MIB))?;
    holds(
        node,
        &pod,
        [("memory.min", 80 * MIB - HEADROOM), ("memory.high", MAX), ("memory.max", 80 * MIB)],
    )?;
    let stored = stored(node, &pod)?;
    assert!(stored.contains(&("memory.high".to_owned(), "max".to_owned())), "{stored:?}");
    Ok(())
}

fn a_changed_configuration_reaches_running_containers(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let pod = kubelet
        .run_pod(PodSpec::new("running").container(app().request(32 * MIB).limit(96 * MIB)))?;
    let mode = mode(node)?;
    let file = placement::CONFIG;
    let change = |config: &str, said: &str| {
        // Replace the file by renaming, as editors and ConfigMap volumes do.
        let script = format!("printf '{config}' >{file}.new && mv {file}.new {file}");
        placement::wait_for_journal(node, unit(node, mode), said, &script)
    };
    change(
        "memoryReservationPolicy: TieredReservation\\nmemoryThrottlingFactor: 0.5\\n",
        "verified",
    )?;
    assert_eq!(values(node, &pod)?, (0, 32 * MIB, 64 * MIB, 96 * MIB));
    change("memoryThrottlingFactor: 7\\n", "stays in force")?;
    assert_eq!(values(node, &pod)?, (0, 32 * MIB, 64 * MIB, 96 * MIB));
    change("memoryReservationPolicy: None\\nmemoryThrottlingFactor: null\\n", "verified")?;
    assert_eq!(
        values(node, &pod)?,
        (0, 0, MAX, 96 * MIB),
        "the values must be those without the plugin"
    );
    change("{}\\n", "verified")?;
    assert_eq!(values(node, &pod)?, (32 * MIB, 0, high(32 * MIB, 96 * MIB, FACTOR), 96 * MIB));
    Ok(())
}

fn restarts_repair_values_changed_while_stopped(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let pod = kubelet
        .run_pod(PodSpec::new("running").container(app().request(32 * MIB).limit(96 * MIB)))?;
    let expected = (32 * MIB, 0, high(32 * MIB, 96 * MIB, FACTOR), 96 * MIB);
    assert_eq!(values(node, &pod)?, expected);
    let mode = mode(node)?;
    // Change the files while the plugin or the runtime is stopped, so that no repair follows.
    let runtime =
        ["stop", "start"].map(|verb| format!("systemctl {verb} {}", node.runtime().unit()));
    let plugin = [
        "systemctl kill --signal KILL plimsoll; systemctl stop plimsoll",
        "systemctl start plimsoll",
    ];
    let restarts = match mode {
        Mode::Launched => vec![runtime],
        Mode::External => vec![plugin.map(str::to_owned), runtime],
    };
    for [stop, restart] in restarts {
        let cgroup = format!("{}/{}", cgroup::ROOT, pod.container("app")?.cgroup);
        let script = format!(
            "{stop}; echo 0 >{cgroup}/memory.min; echo max >{cgroup}/memory.high; {restart}"
        );
        placement::wait_for_journal(node, unit(node, mode), "verified", &script)?;
        assert_eq!(values(node, &pod)?, expected, "{restart}");
    }
    // The plugin's processes from before the restart have ended. An external plugin has one
    // process, which connects over the socket. A launched plugin has two processes. The runtime
    // launched the first process, and the second process survives when the runtime closes the
    // connection.
    let processes = node
        .run("for exe in /proc/[0-9]*/exe; do readlink $exe; done | grep -c plimsoll || true")?
        .stdout;
    let expected_processes = match mode {
        Mode::Launched => "2",
        Mode::External => "1",
    };
    assert_eq!(processes.trim(), expected_processes);
    // The restarted plugin is connected, so new containers get their values.
    let pod = kubelet.run_pod(PodSpec::new("new").container(app().limit(64 * MIB).cpu(100)))?;
    assert_eq!(values(node, &pod)?.0, 64 * MIB - HEADROOM);
    Ok(())
}

fn observe_mode_changes_nothing_and_shows_all(node: &Node, driver: Driver) -> Result<()> {
    let program = placement::binary(Mode::External);
    let status = || -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&node.run(&format!("{program} status --json"))?.stdout)?)
    };
    // In observe mode the plugin first restores the values that it wrote before. The plugin
    // restores the container's files, the ancestor cgroups and the values in the runtime's store.
    let mut kubelet = Kubelet::start(node, driver)?;
    let spec = |name: &str| PodSpec::new(name).container(app().request(32 * MIB).limit(96 * MIB));
    let before = kubelet.run_pod(spec("before"))?;
    assert_eq!(values(node, &before)?.0, 32 * MIB);
    placement::configure(node, "mode: observe\n")?;
    let untouched = |pod: &Pod| -> Result<()> {
        let cgroup = &pod.container("app")?.cgroup;
        let files =
            cgroup::chain(cgroup).into_iter().map(|level| Expected::new(level, "memory.min", 0));
        let files: Vec<_> =
            files.chain([Expected::new(cgroup.as_str(), "memory.high", MAX)]).collect();
        cgroup::settle(node, "", &files, Duration::from_millis(200), Duration::from_secs(60))?;
        let stored = stored(node, pod)?;
        let defaults = [("memory.min", "0"), ("memory.low", "0"), ("memory.high", "max")];
        let is_default =
            |(key, value): &(String, String)| defaults.contains(&(key.as_str(), value.as_str()));
        assert!(stored.iter().all(is_default), "{stored:?}");
        Ok(())
    };
    untouched(&before).context("checking the container that ran before observe mode")?;

    let pod = kubelet.run_pod(spec("observed"))?;
    untouched(&pod)?;
    assert_eq!(stored(node, &pod)?, pairs(&[]), "the plugin must not adjust the container");
    let all = status()?;
    assert_eq!(all["node"]["mode"], "observe");
    let shown = all["containers"].as_array().context("the status has no containers")?;
    let shown = shown
        .iter()
        .find(|container| container["pod"] == "observed")
        .context("the status does not show the pod")?;
    assert_eq!(
        (&shown["desired"]["min"], &shown["observed"]["min"]),
        (&(32 * MIB).into(), &0.into())
    );
    // The plugin would refuse this limit decrease in enforce mode. The answer of the runtime does
    // not matter here.
    let answer = pod.container("app")?.call(node, &format!("alloc {}", 60 * MIB))?;
    assert!(answer.starts_with("ok"), "{answer}");
    crictl::try_update_memory(node, &pod.container("app")?.id, 40 * MIB)?;
    let all = status()?;
    println!("{}", node.run(&format!("{program} status"))?.stdout);
    assert_eq!(all["node"]["wouldRefuse"], 1, "{all:#}");

    placement::configure(node, &config())?;
    let expected = Expected::new(&before.container("app")?.cgroup, "memory.min", 32 * MIB);
    cgroup::settle(node, "", &[expected], Duration::from_millis(200), Duration::from_secs(60))
        .context("waiting for values after observe mode")?;
    Ok(())
}

/// Returns the systemd unit whose journal has the plugin's messages.
fn unit(node: &Node, mode: Mode) -> &'static str {
    match mode {
        Mode::Launched => node.runtime().unit(),
        Mode::External => "plimsoll",
    }
}

fn doctor_passes_and_status_matches_the_kernel(node: &Node, driver: Driver) -> Result<()> {
    let program = placement::binary(mode(node)?);
    let mut kubelet = Kubelet::start(node, driver)?;
    let pod = kubelet
        .run_pod(PodSpec::new("shown").container(app().request(32 * MIB).limit(64 * MIB)))?;
    let doctor = node.try_run(&format!("{program} doctor"))?;
    println!("{} {driver}:\n{}", node.runtime(), doctor.stdout);
    assert!(doctor.status.success(), "{}", doctor.stdout);
    // The observed values in the status are the values in the kernel's files.
    let status: serde_json::Value =
        serde_json::from_str(&node.run(&format!("{program} status --json"))?.stdout)?;
    let [container] = &status["containers"].as_array().context("the status has no containers")?[..]
    else {
        anyhow::bail!("the status must have one container: {status:#}")
    };
    let (min, low, high, max) = values(node, &pod)?;
    let observed = serde_json::json!({ "min": min, "low": low, "high": high, "max": max });
    assert_eq!((&container["observed"], &container["desired"]), (&observed, &observed));
    assert_eq!(container["cgroup"], pod.container("app")?.cgroup);
    assert_eq!(container["state"], "protected");
    assert!(
        container["usage"].as_u64() > Some(0) && container["stalledSeconds"].is_number(),
        "{container:#}"
    );
    let levels = status["cgroups"].as_array().context("the status has no cgroups")?;
    let of_pod = levels
        .iter()
        .find(|level| level["level"] == "pod")
        .context("the status has no cgroup of the pod")?;
    assert_eq!(
        (&of_pod["observed"]["min"], &of_pod["standing"]),
        (&(32 * MIB).into(), &"protected".into())
    );
    println!("{}", node.run(&format!("{program} status"))?.stdout);
    Ok(())
}

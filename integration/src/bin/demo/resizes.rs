//! The outcomes of in-place resizes that caused problems for users.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use integration::kubelet::{self, ContainerSpec, Kubelet, MIB, Pod, PodSpec};
use integration::machine::Node;
use integration::placement;
use integration::probe::{cgroup, crictl};
use integration::stories;

/// Resizes containers in place. Returns a text about all outcomes, and the number of wrong
/// outcomes.
///
/// Without the plugin no outcome counts as wrong. The function does not remove the pods, because
/// the pods end with the node.
pub(crate) fn resizes(
    node: &Node,
    kubelet: &mut Kubelet<'_>,
    has_plugin: bool,
) -> Result<(String, usize)> {
    let mut report = Report { has_plugin, text: String::new(), wrong: 0 };
    let satisfied = decreases(node, kubelet, &mut report)?;
    killed_while_down(node, kubelet, &mut report)?;
    throttled(node, kubelet, &mut report)?;
    if has_plugin {
        deferred(node, &satisfied, &mut report)?;
        rescued(node, kubelet, &mut report)?;
    }
    Ok((report.text, report.wrong))
}

/// The text about all outcomes, and the number of wrong outcomes.
struct Report {
    has_plugin: bool,
    text: String,
    wrong: usize,
}

impl Report {
    fn add(&mut self, action: &str, outcome: &str, is_right: bool) {
        let mark = match self.has_plugin {
            false => "-",
            true if is_right => "=",
            true => {
                self.wrong += 1;
                "WRONG"
            }
        };
        let _ = writeln!(self.text, "  {action}\n    {mark} {outcome}");
    }
}

/// Returns a text that says whether the runtime has accepted a resize.
fn answer_text(result: &Result<()>) -> String {
    match result {
        Ok(()) => "the runtime reports success".to_owned(),
        Err(error) => format!("the runtime refuses: {}", crictl::reason(error)),
    }
}

/// Returns a text that says whether a container survived.
fn fate_text((lives, killed): (bool, u64)) -> String {
    match (lives, killed) {
        (true, 0) => "the container lives".to_owned(),
        (_, killed) => format!("{killed} of its processes were OOM-killed"),
    }
}

/// Decreases limits below the usage, first of anonymous memory and then of page cache.
fn decreases(node: &Node, kubelet: &mut Kubelet<'_>, report: &mut Report) -> Result<Pod> {
    let mut satisfied = stories::run_satisfied(kubelet, node)?;
    let resize = stories::decrease_limit(kubelet, &mut satisfied);
    let fate = stories::read_fate(node, &satisfied)?;
    report.add(
        "A container uses 128 MiB. Its limit is decreased from 250 to 100 MiB:",
        &format!("{}; {}", answer_text(&resize), fate_text(fate)),
        resize.is_err() && fate == (true, 0),
    );

    let (pod, resize) = stories::decrease_limit_below_cache(kubelet, node)?;
    let fate = stories::read_fate(node, &pod)?;
    report.add(
        "A container has 120 MiB of page cache. Its limit is decreased from 150 to 60 MiB:",
        &format!("{}; {}", answer_text(&resize), fate_text(fate)),
        resize.is_ok() && fate == (true, 0),
    );
    Ok(satisfied)
}

/// Raises the limit of a container that is down.
fn killed_while_down(node: &Node, kubelet: &mut Kubelet<'_>, report: &mut Report) -> Result<()> {
    let (_, answer) = stories::run_oom_killed(kubelet, node)?;
    let fits = answer.starts_with("ok");
    report.add(
        "A container needs 128 MiB and is OOM-killed at its limit of 100 MiB. \
         While the container is down, the limit is raised to 200 MiB:",
        if fits {
            "the container starts and gets the memory"
        } else {
            "the container is OOM-killed again, at the limit of its pod"
        },
        fits,
    );
    Ok(())
}

/// Lets a container allocate beyond its memory.high.
fn throttled(node: &Node, kubelet: &mut Kubelet<'_>, report: &mut Report) -> Result<()> {
    let has_plugin = report.has_plugin;
    let app = ContainerSpec::new("app").request(40 * MIB).limit(200 * MIB);
    let app = if has_plugin {
        // This factor makes memory.high equal to `stories::MEMORY_HIGH`, as in the run without the
        // plugin.
        let factor = (stories::MEMORY_HIGH - 40 * MIB) as f64 / (160 * MIB) as f64;
        placement::configure(
            node,
            &format!("memoryThrottlingFactor: {factor}\nthrottleDeadline: 5s\n"),
        )?;
        app
    } else {
        app.unified("memory.high", stories::MEMORY_HIGH)
    };
    let pod = kubelet.run_pod(PodSpec::new("pinned").container(app))?;
    let (outcome, is_released) = if has_plugin {
        let is_released = stories::exceed_high(node, &pod)?;
        let outcome = if is_released {
            "the plugin releases the container, which gets the memory"
        } else {
            "the container stays throttled"
        };
        (outcome.to_owned(), is_released)
    } else {
        let stories::Stall { stalled, current, .. } = stories::stall_at_high(node, &pod)?;
        let (seconds, current) = (stalled as f64 / 1e6, current / MIB);
        let outcome = format!(
            "the container stays throttled: after {seconds:.0} s of stalls it has {current} MiB"
        );
        (outcome, false)
    };
    report.add(
        "A container with a limit of 200 MiB needs 150 MiB and is throttled at its \
         memory.high of 90 MiB (with 'throttleDeadline: 5s'):",
        &outcome,
        is_released,
    );
    Ok(())
}

/// Decreases the limit of a container in `satisfied`, with `shrink: defer` in the configuration.
fn deferred(node: &Node, satisfied: &Pod, report: &mut Report) -> Result<()> {
    placement::configure(
        node,
        "shrink: defer\noomRescue: {kills: 1, minimum: 20Mi, ceiling: 1Gi}\n",
    )?;
    let container = satisfied.container("app")?.clone();
    node.run(&format!("crictl update --memory {} {}", 100 * MIB, container.id))?;
    let before = stories::memory(node, satisfied)?[1].max;
    let free = format!("workload call {} free", container.control);
    let expected = [cgroup::Expected::new(&container.cgroup, "memory.max", 100 * MIB)];
    let took = cgroup::settle(node, &free, &expected, Duration::ZERO, Duration::from_secs(60))?;
    report.add(
        "The first limit decrease again, with 'shrink: defer'. Then the container frees memory:",
        &format!(
            "the limit stays {}, and becomes 100Mi {:.1} s after the container freed memory",
            kubelet::quantity(before),
            took.after.as_secs_f64()
        ),
        before == 250 * MIB,
    );
    Ok(())
}

/// Runs a container that is OOM-killed until the plugin raises its limit.
fn rescued(node: &Node, kubelet: &mut Kubelet<'_>, report: &mut Report) -> Result<()> {
    let app = ContainerSpec::new("app").request(32 * MIB).limit(60 * MIB);
    let mut pod = kubelet.run_pod(PodSpec::new("looping").container(app.clone()))?;
    let first = stories::alloc(node, &pod, 70 * MIB)?;
    kubelet.remove_container(&mut pod, "app")?;
    kubelet.run_container(&mut pod, &app)?;
    let limit = stories::memory(node, &pod)?[1].max;
    let second = stories::alloc(node, &pod, 70 * MIB)?;
    report.add(
        "A container needs 70 MiB and is OOM-killed at its limit of 60 MiB \
         (with 'oomRescue' after one kill):",
        &format!(
            "the next container has a limit of {} and gets the memory: {}",
            kubelet::quantity(limit),
            second.starts_with("ok")
        ),
        first == "gone" && second.starts_with("ok"),
    );
    Ok(())
}

//! The outcomes of in-place resizes that caused problems for users.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use integration::kubelet::{self, ContainerSpec, Kubelet, MIB, Pod, PodSpec};
use integration::machine::Node;
use integration::placement;
use integration::probe::{cgroup, crictl};
use integration::stories;

/// Resizes containers in place. Returns a text about the outcomes and the number of wrong ones.
///
/// Without the plugin no outcome counts as wrong. The pods are not removed: they end with the node.
pub(crate) fn resizes(
    node: &Node,
    kubelet: &mut Kubelet<'_>,
    has_plugin: bool,
) -> Result<(String, usize)> {
    let mut report = Report { has_plugin, told: String::new(), wrong: 0 };
    let satisfied = cuts(node, kubelet, &mut report)?;
    killed_while_down(node, kubelet, &mut report)?;
    throttled(node, kubelet, &mut report)?;
    if has_plugin {
        deferred(node, &satisfied, &mut report)?;
        rescued(node, kubelet, &mut report)?;
    }
    Ok((report.told, report.wrong))
}

/// The text about the outcomes and the number of wrong ones.
struct Report {
    has_plugin: bool,
    told: String,
    wrong: usize,
}

impl Report {
    fn tell(&mut self, what: &str, became: &str, is_right: bool) {
        let mark = match self.has_plugin {
            false => "-",
            true if is_right => "=",
            true => {
                self.wrong += 1;
                "WRONG"
            }
        };
        let _ = writeln!(self.told, "  {what}\n    {mark} {became}");
    }
}

/// Returns a text about the runtime's answer to a resize.
fn says(result: &Result<()>) -> String {
    match result {
        Ok(()) => "the runtime says that it did so".to_owned(),
        Err(error) => format!("the runtime says: {}", crictl::reason(error)),
    }
}

/// Returns a text about the fate of a container.
fn lives((lives, killed): (bool, u64)) -> String {
    match (lives, killed) {
        (true, 0) => "it lives".to_owned(),
        (_, killed) => format!("{killed} of its processes were killed"),
    }
}

/// Decreases a limit below the usage, once with anonymous memory and once with page cache.
fn cuts(node: &Node, kubelet: &mut Kubelet<'_>, report: &mut Report) -> Result<Pod> {
    let mut satisfied = stories::run_satisfied(kubelet, node)?;
    let cut = stories::decrease_limit(kubelet, &mut satisfied);
    let fate = stories::read_fate(node, &satisfied)?;
    report.tell(
        "A container uses 128 of its 250 MiB, and its limit is cut to 100 MiB:",
        &format!("{}; {}", says(&cut), lives(fate)),
        cut.is_err() && fate == (true, 0),
    );

    let (pod, cut) = stories::decrease_limit_below_cache(kubelet, node)?;
    let fate = stories::read_fate(node, &pod)?;
    report.tell(
        "A container has 120 MiB of page cache, and its limit is cut from 150 to 60 MiB:",
        &format!("{}; {}", says(&cut), lives(fate)),
        cut.is_ok() && fate == (true, 0),
    );
    Ok(satisfied)
}

/// Raises the limit of a container that is down.
fn killed_while_down(node: &Node, kubelet: &mut Kubelet<'_>, report: &mut Report) -> Result<()> {
    let (_, answer) = stories::run_oom_killed(kubelet, node)?;
    let fits = answer.starts_with("ok");
    report.tell(
        "A container needs 128 MiB and is killed at its limit of 100; while it is down that is raised to 200 MiB:",
        if fits {
            "it starts and has what it needs"
        } else {
            "it is killed again, by the limit of its pod"
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
        // This factor results in the same memory.high, `stories::MEMORY_HIGH`.
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
    let (became, is_released) = if has_plugin {
        let is_released = stories::exceed_high(node, &pod)?;
        (
            if is_released { "it is released, and has what it needs" } else { "it stands there" }
                .to_owned(),
            is_released,
        )
    } else {
        let stories::Stall { stalled, current, .. } = stories::stall_at_high(node, &pod)?;
        let (seconds, current) = (stalled as f64 / 1e6, current / MIB);
        (format!("it stands there: after {seconds:.0} s of waiting it has {current} MiB"), false)
    };
    report.tell(
        "A container with a limit of 200 MiB needs 150, and stands at its memory.high of 90 (with 'throttleDeadline: 5s'):",
        &became,
        is_released,
    );
    Ok(())
}

/// Decreases the limit of the container of [`cuts`] with `shrink: defer`.
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
    report.tell(
        "The first one again, with 'shrink: defer'; then it frees its memory:",
        &format!(
            "its limit stays {}, and becomes 100Mi {:.1} s after that",
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
    report.tell(
        "A container needs 70 MiB and is killed at its limit of 60, with 'oomRescue' after one kill:",
        &format!(
            "it is made anew with {}, and has what it needs: {}",
            kubelet::quantity(limit),
            second.starts_with("ok")
        ),
        first == "gone" && second.starts_with("ok"),
    );
    Ok(())
}

//! A demonstration of the plugin's main job on a real node, without and with the plugin.
//!
//! The demo runs pods of each QoS class and shows the memory values that the kernel holds for them.
//! Then it shows the outcomes of in-place resizes that caused problems for users.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use clap::Parser;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use integration::image::Image;
use integration::kubelet::{self, ContainerSpec, Kubelet, MIB, Pod, PodSpec, Qos};
use integration::machine::Node;
use integration::placement::{self, Mode};
use integration::probe::cgroup::{self, Expected, MAX, Memory};
use integration::probe::crictl;
use integration::runtime::{Driver, Runtime};
use integration::stories;
use integration::tools::progress::progress;

/// The plugin's configuration in the demo. All values are the defaults.
const CONFIG: &str = "memoryThrottlingFactor: 0.9\nmemoryReservationPolicy: HardReservation\nnodeAllocatable: auto\n";
const FACTOR: f64 = 0.9;
const PAGE: u64 = 4096;
/// The distance in bytes that memory.min keeps below the limit.
const HEADROOM: u64 = 2 * MIB;

/// Boots a throwaway node, runs pods of each class on it, and shows the memory values that the kernel holds for them:
/// first without the plugin, then with it, each value marked right (=) or wrong against the formula. Then it tells what becomes
/// of containers that are resized, likewise.
#[derive(Parser)]
struct Arguments {
    /// Leave the node up at the end, with pods and plugin, and say how to get in.
    #[arg(long)]
    keep: bool,
}

/// The source from which the plugin can read a container's memory request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Checkpoint,
    Class,
    Annotation,
    OomScoreAdj,
}

impl Source {
    /// Returns the plugin's name for the source in its log.
    fn label(self) -> &'static str {
        match self {
            Source::Checkpoint => "checkpoint-actuated",
            Source::Class => "qos-class",
            Source::Annotation => "annotation",
            Source::OomScoreAdj => "oom-score-adj",
        }
    }
}

struct Case {
    pod: PodSpec,
    source: Source,
}

/// Returns the pods of the demo and the source of each memory request.
///
/// No request is in the CRI unified map, because containerd 2.1 does not show that map to plugins.
fn cases() -> Vec<Case> {
    let app = || ContainerSpec::new("app");
    let case = |pod, source| Case { pod, source };
    vec![
        case(
            PodSpec::new("database").container(app().limit(128 * MIB).cpu(100)),
            Source::Checkpoint,
        ),
        case(
            PodSpec::new("web").container(app().request(64 * MIB).limit(128 * MIB)),
            Source::Checkpoint,
        ),
        case(PodSpec::new("cache").container(app().request(96 * MIB)), Source::Checkpoint),
        case(PodSpec::new("batch").container(app()), Source::Class),
        case(
            PodSpec::new("annotated")
                .annotation(
                    "memory-request.plimsoll.nri.io/container.app",
                    &kubelet::quantity(40 * MIB),
                )
                .container(app().request(40 * MIB).limit(80 * MIB)),
            Source::Annotation,
        ),
        case(
            PodSpec::new("legacy").container(app().request(100 * MIB).limit(200 * MIB)),
            Source::OomScoreAdj,
        ),
    ]
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let started = Instant::now();
    // Both nodes run at the same time, but their results are printed one after the other.
    let (node, wrong) = thread::scope(|scope| {
        let with = scope.spawn(|| with_plugin(arguments.keep));
        println!("{}", without_plugin()?);
        let (node, shown, wrong) =
            with.join().map_err(|_| anyhow!("the node with the plugin: a panic"))??;
        println!("{shown}");
        anyhow::Ok((node, wrong))
    })?;
    println!(
        "{} in {:.0} s.",
        if wrong == 0 {
            "All of it is right".to_owned()
        } else {
            format!("{wrong} of it are WRONG")
        },
        started.elapsed().as_secs_f64()
    );
    if arguments.keep {
        println!(
            "\nThe node is up. To get in:\n    {}\nTo end it:\n    kill {}",
            node.way_in(),
            node.process_id()
        );
    }
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn without_plugin() -> Result<String> {
    let node = Node::start(Runtime::Containerd21)?;
    let versions = Image::obtain(Runtime::Containerd21)?.versions()?;
    kubelet::clear(&node)?;
    let mut kubelet = Kubelet::start(&node, Driver::Systemd)?;
    let (table, _) = run(&node, &mut kubelet, |_, _| None)?;
    let (resizes, _) = resizes(&node, &mut kubelet, false)?;
    Ok(format!(
        "\nThe nodes, virtual machines:\n{}\n\nWithout the plugin:\n\n{table}\n\nResizes without the plugin:\n\n{resizes}",
        indent(&versions)
    ))
}

/// Runs the demo with the plugin.
///
/// Returns the node, the text to print and the number of wrong values.
fn with_plugin(keep: bool) -> Result<(Node, String, usize)> {
    let node = thread::scope(|scope| {
        let building = scope.spawn(|| {
            progress("building the plugin");
            placement::build()
        });
        let node = if keep {
            Node::start_kept(Runtime::Containerd21)
        } else {
            Node::start(Runtime::Containerd21)
        };
        building.join().map_err(|_| anyhow!("building the plugin: a panic"))??;
        node
    })?;
    kubelet::clear(&node)?;
    progress("installing the plugin, to be launched by containerd");
    placement::install(&node, Mode::Launched, CONFIG)?;
    let mut kubelet = Kubelet::start(&node, Driver::Systemd)?;
    let (table, wrong_values) =
        run(&node, &mut kubelet, |kubelet, case| Some(expected(kubelet, case)))?;
    let (resizes, wrong_stories) = resizes(&node, &mut kubelet, true)?;
    drop(kubelet);
    let shown = format!(
        "\nWith the plugin, launched by containerd and configured so:\n{}\n\n{table}\n\
         Values in bytes. = as the formula says; anything else is marked WRONG with the value expected.\n\
         \nResizes with the plugin:\n\n{resizes}",
        indent(CONFIG)
    );
    Ok((node, shown, wrong_values + wrong_stories))
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// Runs all pods, reads the kernel's values and compares them with the values of `expected`.
///
/// Nothing is compared if `expected` returns `None`. Returns the table and the number of wrong
/// values.
fn run(
    node: &Node,
    kubelet: &mut Kubelet<'_>,
    expected: impl Fn(&Kubelet<'_>, &Case) -> Option<Memory>,
) -> Result<(Table, usize)> {
    let (recorded, unrecorded): (Vec<Case>, Vec<Case>) =
        cases().into_iter().partition(|case| case.source == Source::Checkpoint);
    let mut pods: Vec<(Case, Pod)> = Vec::new();
    for (has_checkpoints, cases) in [(true, recorded), (false, unrecorded)] {
        kubelet.checkpoints = has_checkpoints;
        let running = kubelet.run_pods(cases.iter().map(|case| case.pod.clone()).collect())?;
        pods.extend(cases.into_iter().zip(running));
    }
    kubelet.checkpoints = true;
    if pods.iter().any(|(case, _)| expected(kubelet, case).is_some()) {
        // The plugin writes the sums right after the values of the containers. A timeout is ignored
        // here, because the table then shows the wrong sums.
        let sums = sums(kubelet, &pods).map(|(name, sum)| Expected::new(name, "memory.min", sum));
        let _ = cgroup::settle(node, "", &sums, Duration::ZERO, Duration::from_secs(10));
    }
    let paths: Vec<&str> = pods.iter().map(|(_, pod)| pod.containers[0].cgroup.as_str()).collect();
    let values = cgroup::memory(node, &paths)?;
    let log = node.run("journalctl --identifier plimsoll --output cat")?.stdout;

    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header([
        "pod",
        "class",
        "request",
        "from",
        "limit",
        "memory.min",
        "memory.low",
        "memory.high",
        "memory.max",
    ]);
    let mut wrong = 0;
    for ((case, _), value) in pods.iter().zip(&values) {
        let want = expected(kubelet, case);
        let from = match (want, source_in_log(&log, &case.pod.name)) {
            (None, _) => "-".to_owned(),
            (Some(_), Some(label)) if label == case.source.label() => format!("{label} ="),
            (Some(_), label) => {
                wrong += 1;
                format!("{} WRONG: {}", label.unwrap_or("nowhere"), case.source.label())
            }
        };
        let mut cell = |read: u64, want: Option<u64>| match want {
            None => show(read),
            Some(want) if want == read => format!("{} =", show(read)),
            Some(want) => {
                wrong += 1;
                format!("{} WRONG: {}", show(read), show(want))
            }
        };
        let container = &case.pod.containers[0];
        let quantity = |bytes: Option<u64>| bytes.map_or("none".to_owned(), kubelet::quantity);
        table.add_row([
            case.pod.name.clone(),
            format!("{:?}", case.pod.qos()),
            quantity(container.effective_request()),
            from,
            quantity(container.memory_limit),
            cell(value.min, want.map(|want| want.min)),
            cell(value.low, want.map(|want| want.low)),
            cell(value.high, want.map(|want| want.high)),
            cell(value.max, want.map(|want| want.max)),
        ]);
    }
    // memory.min of a container protects nothing unless the ancestor cgroups have memory.min too.
    for (name, want) in sums(kubelet, &pods) {
        let value = cgroup::memory(node, &[&name])?[0];
        let unchecked = pods.first().is_some_and(|(case, _)| expected(kubelet, case).is_none());
        let min = match value.min {
            min if unchecked => show(min),
            min if min == want => format!("{} =", show(min)),
            min => {
                wrong += 1;
                format!("{} WRONG: {}", show(min), show(want))
            }
        };
        let name = name.rsplit('/').next().unwrap_or_default().to_owned();
        let sums = [
            "sum of below",
            "",
            "",
            "",
            &min,
            &show(value.low),
            &show(value.high),
            &show(value.max),
        ];
        table.add_row([&name].into_iter().map(String::as_str).chain(sums));
    }
    for column in table.column_iter_mut().skip(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    Ok((table, wrong))
}

/// Returns the cgroups of all pods and of the burstable pods, with their expected memory.min.
fn sums(kubelet: &Kubelet<'_>, pods: &[(Case, Pod)]) -> [(String, u64); 2] {
    let levels = [
        (kubelet.top_cgroup().to_owned(), None),
        (kubelet.class_cgroup(Qos::Burstable), Some(Qos::Burstable)),
    ];
    levels.map(|(name, class)| {
        let below =
            pods.iter().filter(|(case, _)| class.is_none_or(|class| case.pod.qos() == class));
        let sum: u64 = below.map(|(case, _)| request(kubelet, case)).sum();
        (name, sum / PAGE * PAGE)
    })
}

/// Resizes containers in place. Returns a text about the outcomes and the number of wrong ones.
///
/// Without the plugin no outcome counts as wrong. The pods are not removed: they end with the node.
fn resizes(node: &Node, kubelet: &mut Kubelet<'_>, has_plugin: bool) -> Result<(String, usize)> {
    let (mut told, mut wrong) = (String::new(), 0);
    let mut tell = |what: &str, became: &str, is_right: bool| {
        let mark = match has_plugin {
            false => "-",
            true if is_right => "=",
            true => {
                wrong += 1;
                "WRONG"
            }
        };
        let _ = writeln!(told, "  {what}\n    {mark} {became}");
    };
    let says = |result: &Result<()>| match result {
        Ok(()) => "the runtime says that it did so".to_owned(),
        Err(error) => format!("the runtime says: {}", crictl::reason(error)),
    };
    let lives = |(lives, killed): (bool, u64)| match (lives, killed) {
        (true, 0) => "it lives".to_owned(),
        (_, killed) => format!("{killed} of its processes were killed"),
    };

    let mut satisfied = stories::satisfied(kubelet, node)?;
    let cut = stories::cut(kubelet, &mut satisfied);
    let fate = stories::fate(node, &satisfied)?;
    tell(
        "A container uses 128 of its 250 MiB, and its limit is cut to 100 MiB:",
        &format!("{}; {}", says(&cut), lives(fate)),
        cut.is_err() && fate == (true, 0),
    );

    let (pod, cut) = stories::cached(kubelet, node)?;
    let fate = stories::fate(node, &pod)?;
    tell(
        "A container has 120 MiB of page cache, and its limit is cut from 150 to 60 MiB:",
        &format!("{}; {}", says(&cut), lives(fate)),
        cut.is_ok() && fate == (true, 0),
    );

    let (_, answer) = stories::hungry(kubelet, node)?;
    let fits = answer.starts_with("ok");
    tell(
        "A container needs 128 MiB and is killed at its limit of 100; while it is down that is raised to 200 MiB:",
        if fits {
            "it starts and has what it needs"
        } else {
            "it is killed again, by the limit of its pod"
        },
        fits,
    );

    let app = ContainerSpec::new("app").request(40 * MIB).limit(200 * MIB);
    let app = if has_plugin {
        // This factor results in the same memory.high, `stories::LINE`.
        let factor = (stories::LINE - 40 * MIB) as f64 / (160 * MIB) as f64;
        placement::configure(
            node,
            &format!("memoryThrottlingFactor: {factor}\nthrottleDeadline: 5s\n"),
        )?;
        app
    } else {
        app.unified("memory.high", stories::LINE)
    };
    let pod = kubelet.run_pod(PodSpec::new("pinned").container(app))?;
    let (became, is_released) = if has_plugin {
        let is_released = stories::goes_beyond(node, &pod)?;
        (
            if is_released { "it is released, and has what it needs" } else { "it stands there" }
                .to_owned(),
            is_released,
        )
    } else {
        let stories::Standing { stalled, current, .. } = stories::stands(node, &pod)?;
        let (seconds, current) = (stalled as f64 / 1e6, current / MIB);
        (format!("it stands there: after {seconds:.0} s of waiting it has {current} MiB"), false)
    };
    tell(
        "A container with a limit of 200 MiB needs 150, and stands at its memory.high of 90 (with 'throttleDeadline: 5s'):",
        &became,
        is_released,
    );
    if !has_plugin {
        return Ok((told, wrong));
    }

    placement::configure(
        node,
        "shrink: defer\noomRescue: {kills: 1, minimum: 20Mi, ceiling: 1Gi}\n",
    )?;
    let container = satisfied.container("app")?.clone();
    node.run(&format!("crictl update --memory {} {}", 100 * MIB, container.id))?;
    let before = stories::memory(node, &satisfied)?[1].max;
    let free = format!("workload call {} free", container.control);
    let expected = [cgroup::Expected::new(&container.cgroup, "memory.max", 100 * MIB)];
    let took = cgroup::settle(node, &free, &expected, Duration::ZERO, Duration::from_secs(60))?;
    tell(
        "The first one again, with 'shrink: defer'; then it frees its memory:",
        &format!(
            "its limit stays {}, and becomes 100Mi {:.1} s after that",
            kubelet::quantity(before),
            took.after.as_secs_f64()
        ),
        before == 250 * MIB,
    );

    let app = ContainerSpec::new("app").request(32 * MIB).limit(60 * MIB);
    let mut pod = kubelet.run_pod(PodSpec::new("looping").container(app.clone()))?;
    let first = stories::alloc(node, &pod, 70 * MIB)?;
    kubelet.remove_container(&mut pod, "app")?;
    kubelet.run_container(&mut pod, &app)?;
    let limit = stories::memory(node, &pod)?[1].max;
    let second = stories::alloc(node, &pod, 70 * MIB)?;
    tell(
        "A container needs 70 MiB and is killed at its limit of 60, with 'oomRescue' after one kill:",
        &format!(
            "it is made anew with {}, and has what it needs: {}",
            kubelet::quantity(limit),
            second.starts_with("ok")
        ),
        first == "gone" && second.starts_with("ok"),
    );
    Ok((told, wrong))
}

/// Returns the source of the container's request by the plugin's log.
///
/// The log line contains, for example, `request=64Mi (checkpoint-actuated)`.
fn source_in_log<'l>(log: &'l str, pod: &str) -> Option<&'l str> {
    let of_pod = format!("/{pod}\"");
    let line = log.lines().rfind(|line| line.contains("create ") && line.contains(&of_pod))?;
    let (_, request) = line.split_once("request=")?;
    request.split_once('(')?.1.split_once(')').map(|(label, _)| label)
}

fn show(bytes: u64) -> String {
    if bytes == MAX { "max".to_owned() } else { bytes.to_string() }
}

/// Returns the request in bytes that the plugin can know.
///
/// The demo computes the request without the plugin's code.
fn request(kubelet: &Kubelet<'_>, case: &Case) -> u64 {
    let container = &case.pod.containers[0];
    match case.source {
        // oom_score_adj gives the request to a thousandth of the node's memory. The plugin may
        // reserve only the lowest request that fits.
        Source::OomScoreAdj => {
            let thousandths = 1000 - kubelet.oom_score_adj(Qos::Burstable, container);
            (thousandths.unsigned_abs() * kubelet.capacity()).div_ceil(1000)
        }
        _ => container.effective_request().unwrap_or(0),
    }
}

/// Returns the memory values by the formula of Kubernetes.
///
/// memory.min is at most the limit minus the headroom.
fn expected(kubelet: &Kubelet<'_>, case: &Case) -> Memory {
    let container = &case.pod.containers[0];
    let request = request(kubelet, case);
    let ceiling = container.memory_limit.unwrap_or(kubelet.allocatable());
    let throttled = request as f64 + FACTOR * (ceiling as f64 - request as f64);
    let high = match case.pod.qos() {
        Qos::Guaranteed => MAX,
        _ => (throttled / PAGE as f64).floor() as u64 * PAGE,
    };
    let most = container.memory_limit.map_or(MAX, |limit| limit - HEADROOM);
    Memory {
        min: request.min(most) / PAGE * PAGE,
        low: 0,
        high,
        max: container.memory_limit.unwrap_or(MAX),
        swap_max: 0, // not shown
    }
}

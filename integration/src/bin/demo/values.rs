//! Compares the memory values of pods of each QoS class with the formula of Kubernetes.

use std::time::Duration;

use anyhow::Result;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use integration::kubelet::{self, ContainerSpec, Kubelet, MIB, Pod, PodSpec, Qos};
use integration::machine::Node;
use integration::probe::cgroup::{self, Expected, MAX, Memory};

const FACTOR: f64 = 0.9;

const PAGE: u64 = 4096;

/// The minimum distance in bytes between memory.min and the limit.
const HEADROOM: u64 = 2 * MIB;

/// The source from which the plugin can read a container's memory request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Checkpoint,
    Class,
    Annotation,
    OomScoreAdj,
}

impl Source {
    /// Returns the name that the plugin's log uses for this source.
    fn label(self) -> &'static str {
        match self {
            Source::Checkpoint => "checkpoint-actuated",
            Source::Class => "qos-class",
            Source::Annotation => "annotation",
            Source::OomScoreAdj => "oom-score-adj",
        }
    }
}

pub(crate) struct Case {
    pod: PodSpec,
    source: Source,
}

/// Returns the pods of the demo and the source of each memory request.
///
/// The CRI unified map is no source here, because containerd 2.1 does not show it to plugins.
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

/// Runs all pods, reads the kernel's values and compares them with the values of `expected`.
///
/// If `expected` returns `None`, the function compares nothing. Returns the table and the number of
/// wrong values.
pub(crate) fn run(
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
        // The plugin writes memory.min of the ancestor cgroups right after the values of the
        // containers. Ignore a timeout, because the table shows wrong values anyway.
        let sums = sums(kubelet, &pods).map(|(name, sum)| Expected::new(name, "memory.min", sum));
        let _ = cgroup::settle(node, "", &sums, Duration::ZERO, Duration::from_secs(10));
    }
    let paths: Vec<&str> = pods.iter().map(|(_, pod)| pod.containers[0].cgroup.as_str()).collect();
    let values = cgroup::memory(node, &paths)?;
    let log = node.run("journalctl --identifier plimsoll --output cat")?.stdout;

    let mut table = new_table();
    let mut wrong = 0;
    for ((case, _), value) in pods.iter().zip(&values) {
        let source = source_in_log(&log, &case.pod.name);
        wrong += add_container(&mut table, case, value, expected(kubelet, case), source);
    }
    wrong += add_sums(&mut table, node, kubelet, &pods, &expected)?;
    for column in table.column_iter_mut().skip(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    Ok((table, wrong))
}

/// Returns a table without rows.
fn new_table() -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header([
        "pod",
        "class",
        "request",
        "source",
        "limit",
        "memory.min",
        "memory.low",
        "memory.high",
        "memory.max",
    ]);
    table
}

/// Adds the row of a container to the table and returns the number of wrong values.
fn add_container(
    table: &mut Table,
    case: &Case,
    value: &Memory,
    want: Option<Memory>,
    source: Option<&str>,
) -> usize {
    let mut wrong = 0;
    let from = match (want, source) {
        (None, _) => "-".to_owned(),
        (Some(_), Some(label)) if label == case.source.label() => format!("{label} ="),
        (Some(_), label) => {
            wrong += 1;
            format!("{} WRONG: {}", label.unwrap_or("unknown"), case.source.label())
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
    wrong
}

/// Adds the rows of the ancestor cgroups to the table and returns the number of wrong values.
fn add_sums(
    table: &mut Table,
    node: &Node,
    kubelet: &Kubelet<'_>,
    pods: &[(Case, Pod)],
    expected: &impl Fn(&Kubelet<'_>, &Case) -> Option<Memory>,
) -> Result<usize> {
    let mut wrong = 0;
    // memory.min of a container protects nothing unless the ancestor cgroups have memory.min too.
    for (name, want) in sums(kubelet, pods) {
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
            "sum of its children",
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
    Ok(wrong)
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

/// Returns the source that the plugin's log names for the container's request.
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

/// Returns the request in bytes, as precisely as the plugin can know it.
///
/// The demo computes the request without the plugin's code.
fn request(kubelet: &Kubelet<'_>, case: &Case) -> u64 {
    let container = &case.pod.containers[0];
    match case.source {
        // A request that is derived from oom_score_adj is accurate only to 1/1000 of the node's
        // memory. The plugin may protect only the lowest of the possible requests.
        Source::OomScoreAdj => {
            let thousandths = 1000 - kubelet.oom_score_adj(Qos::Burstable, container);
            (thousandths.unsigned_abs() * kubelet.capacity()).div_ceil(1000)
        }
        _ => container.effective_request().unwrap_or(0),
    }
}

/// Returns the memory values that result from the formula of Kubernetes.
///
/// memory.min is at most the limit minus the headroom.
pub(crate) fn expected(kubelet: &Kubelet<'_>, case: &Case) -> Memory {
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

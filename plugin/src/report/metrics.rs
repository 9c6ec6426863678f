//! Counters and gauges in the OpenMetrics format.
//!
//! No series names a pod or a container by default. 10,000 containers have as many series as one.
//! With `containerMetrics` there are series for each container. A series that cAdvisor also has
//! uses cAdvisor's name and labels after the prefix `plimsoll_`.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use plimsoll_core::incident::IncidentKind;
use plimsoll_core::outcome::Outcome;
use plimsoll_core::policy::Protection;
use plimsoll_core::policy::hierarchy::Standing;
use plimsoll_core::units::{Bytes, CPU_MAX, Knob, Limit, printable};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::config::Mode;
use crate::report::status::{self, ContainerStatus, State, Status, Values};

/// Upper bounds of the latency buckets in seconds. The bound 0.2 is a tenth of the runtime's
/// default timeout.
const LATENCIES: [f64; 12] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.2, 1.0, 2.0];

/// Levels above the containers, and the level of the reserved cgroups beside the pods.
const LEVELS: [status::Level; 4] =
    [status::Level::Kubepods, status::Level::Class, status::Level::Pod, status::Level::Reserved];

/// Provenance label of a request that is unknown.
const UNKNOWN: &str = "unknown";

/// All counters of the plugin.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Resizes by outcome.
    pub resizes: Family<OfOutcome, Counter>,
    /// Sum of the differences between the limits in force and the lower limits that were refused.
    pub rejected_bytes: Counter,
    /// Deferred limits that the plugin gave up.
    pub deferrals_given_up: Counter,
    /// Pod limits that were raised to what the pod's containers may use.
    pub pod_limits_raised: Counter,
    /// Files that another program had changed and that the plugin repaired.
    pub repairs: Family<OfLevel, Counter>,
    /// Files that the plugin left to another writer.
    pub contended: Family<OfLevel, Counter>,
    /// OOM kills of containers.
    pub oom_kills: Family<OfKill, Counter>,
    /// OOM rescues by outcome: limits that were raised, and raises that the ceiling prevented.
    pub rescues: Family<OfOutcome, Counter>,
    /// Releases of containers that were throttled at `memory.high`.
    pub stalls_released: Counter,
    /// Time to answer NRI events.
    pub events: Events,
    /// Connections to a runtime.
    pub connections: Counter,
    /// Kubernetes Events that were not written.
    pub events_dropped: Counter,
    /// Actions that observe mode left undone.
    pub planned: Family<OfKind, Counter>,
}

/// Labels of an action that observe mode left undone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfKind {
    /// IncidentKind of the incident.
    pub kind: String,
}

/// Labels of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfOutcome {
    /// Outcome of the attempt.
    pub outcome: OutcomeLabel,
}

/// Labels of OOM kills.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfKill {
    /// Limit that caused the kill.
    pub by: By,
}

/// Limit that caused an OOM kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "as it is written")]
pub enum By {
    /// Limit of the container or of its pod.
    limit,
    /// Limit of a cgroup above the pod, or the node's memory.
    node,
}

/// Labels of a cgroup file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfLevel {
    /// Level of the cgroup.
    pub level: Level,
    /// Name of the file.
    pub knob: File,
}

/// Level of the cgroup that a file belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// Cgroup of a container.
    Container,
    /// Cgroup above the containers, or a reserved cgroup beside the pods.
    Ancestor,
}

impl EncodeLabelValue for Level {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(match self {
            Self::Container => "container",
            Self::Ancestor => "ancestor",
        })
    }
}

/// Name of a cgroup file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct File(&'static str);

impl From<Knob> for File {
    fn from(knob: Knob) -> Self {
        Self(knob.file_name())
    }
}

impl File {
    /// `cpu.max` of a pod.
    pub const CPU_MAX: Self = Self(CPU_MAX);
}

impl EncodeLabelValue for File {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.0)
    }
}

/// Outcome as the value of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OutcomeLabel(pub Outcome);

impl EncodeLabelValue for OutcomeLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        write!(encoder, "{}", self.0)
    }
}

/// Labels of NRI events.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfEvent {
    /// NRI's name of the event.
    pub event: &'static str,
}

/// Latency histogram for each NRI event.
#[derive(Clone, Debug)]
pub struct Events(Family<OfEvent, Histogram, fn() -> Histogram>);

impl Default for Events {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(LATENCIES)))
    }
}

impl Metrics {
    /// Records the time that the answer to an NRI event took.
    pub fn answered(&self, event: &'static str, took: Duration) {
        self.events.0.get_or_create(&OfEvent { event }).observe(took.as_secs_f64());
    }

    /// Counts a resize.
    pub fn resized(&self, outcome: Outcome) {
        self.resizes.get_or_create(&OfOutcome { outcome: OutcomeLabel(outcome) }).inc();
    }

    /// Counts an action that observe mode left undone.
    pub fn planned(&self, kind: IncidentKind) {
        self.planned.get_or_create(&OfKind { kind: kind.to_string() }).inc();
    }

    /// Counts an OOM rescue.
    pub fn rescued(&self, outcome: Outcome) {
        self.rescues.get_or_create(&OfOutcome { outcome: OutcomeLabel(outcome) }).inc();
    }

    /// Registers every counter under its name.
    pub fn register(&self, registry: &mut Registry) {
        // Start these series at 0. An increase is invisible in a series that appears with its first
        // event.
        for outcome in [Outcome::Applied, Outcome::Rejected, Outcome::Deferred, Outcome::Failed] {
            let _ = self.resizes.get_or_create(&OfOutcome { outcome: OutcomeLabel(outcome) });
        }
        for outcome in [Outcome::Applied, Outcome::Rejected] {
            let _ = self.rescues.get_or_create(&OfOutcome { outcome: OutcomeLabel(outcome) });
        }
        for by in [By::limit, By::node] {
            let _ = self.oom_kills.get_or_create(&OfKill { by });
        }
        let levels = [
            (Level::Container, &[Knob::Min, Knob::Low, Knob::High][..]),
            (Level::Ancestor, &[Knob::Min, Knob::Low, Knob::Max]),
        ];
        for (level, knobs) in levels {
            for knob in knobs {
                let labels = OfLevel { level, knob: (*knob).into() };
                let _ = self.repairs.get_or_create(&labels);
                let _ = self.contended.get_or_create(&labels);
            }
        }
        let _ =
            self.contended.get_or_create(&OfLevel { level: Level::Ancestor, knob: File::CPU_MAX });
        registry.register(
            "resizes",
            "Resizes of containers, by what became of them",
            self.resizes.clone(),
        );
        registry.register_with_unit(
            "resize_rejected",
            "How much lower than those in force the limits were that would have killed and were refused",
            Unit::Bytes,
            self.rejected_bytes.clone(),
        );
        registry.register(
            "resizes_given_up",
            "Deferred memory limits that were given up",
            self.deferrals_given_up.clone(),
        );
        registry.register(
            "pod_limits_raised",
            "Limits of pods that were raised to what their containers may use",
            self.pod_limits_raised.clone(),
        );
        registry.register(
            "repairs",
            "Files that somebody else had changed and that were repaired",
            self.repairs.clone(),
        );
        registry.register(
            "contended",
            "Files that somebody else keeps changing and that were left to them",
            self.contended.clone(),
        );
        registry.register(
            "oom_kills",
            "How often containers were killed for want of memory, by whose limit it was: that of container or pod, or the node's",
            self.oom_kills.clone(),
        );
        registry.register(
            "oom_rescues",
            "Limits that were raised, or would have been but for their ceiling, of containers killed again and again",
            self.rescues.clone(),
        );
        registry.register(
            "stalls_released",
            "Releases of containers that stood at memory.high",
            self.stalls_released.clone(),
        );
        registry.register_with_unit(
            "nri_request_duration",
            "How long the runtime's events took to be answered",
            Unit::Seconds,
            self.events.0.clone(),
        );
        registry.register(
            "nri_connections",
            "How often a runtime was connected to",
            self.connections.clone(),
        );
        registry.register(
            "events_dropped",
            "Kubernetes Events that were not written: too many at once, refused, or too old when the API server was back",
            self.events_dropped.clone(),
        );
        for kind in [IncidentKind::CutRejected, IncidentKind::PodRaised, IncidentKind::Rescued] {
            let _ = self.planned.get_or_create(&OfKind { kind: kind.to_string() });
        }
        registry.register(
            "observed_actions",
            "What the plugin would have done and did not, as it only observes, by the kind of report",
            self.planned.clone(),
        );
    }
}

/// Labels of the protection of a level.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfProtection {
    level: &'static str,
    knob: File,
    value: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCgroup {
    level: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfProvenance {
    provenance: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDifference {
    level: Level,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfVersion {
    version: String,
}

/// Labels of a container, named as in cAdvisor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfContainer {
    namespace: String,
    pod: String,
    container: String,
}

type Bytewise<S> = Family<S, Gauge>;
type Real = Gauge<f64, AtomicU64>;

/// Encodes all metrics as OpenMetrics 1.0 text.
///
/// # Errors
///
/// Never, because the text can always grow.
pub fn encode(
    metrics: &Metrics,
    status: &Status,
    of_containers: bool,
) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("plimsoll");
    let build = Family::<OfVersion, Gauge>::default();
    build.get_or_create(&OfVersion { version: status.plimsoll.clone() }).set(1);
    registry.register("build_info", "The program's version", build);
    metrics.register(&mut registry);
    register_node(status, &mut registry);
    register_levels(status, &mut registry);
    if of_containers {
        register_containers(status, &mut registry);
    }
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

fn gauge(bytes: Bytes) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(number(bytes));
    gauge
}

fn number(bytes: Bytes) -> i64 {
    i64::try_from(bytes.get()).unwrap_or(i64::MAX)
}

fn register_node(status: &Status, registry: &mut Registry) {
    let node = &status.node;
    let ratio = |part: Bytes, whole: Bytes| {
        let ratio = Real::default();
        ratio.set(part.get() as f64 / whole.get() as f64);
        ratio
    };
    if let Some(allocatable) = node.allocatable {
        registry.register_with_unit(
            "node_allocatable",
            "What pods may use altogether",
            Unit::Bytes,
            gauge(allocatable),
        );
        if allocatable > Bytes::ZERO {
            registry.register(
                "limits_to_allocatable_ratio",
                "The sum of all containers' memory limits, by node allocatable; containers without one do not count",
                ratio(node.limits, allocatable),
            );
            registry.register(
                "requests_to_allocatable_ratio",
                "The sum of all containers' memory requests, by node allocatable",
                ratio(node.requests, allocatable),
            );
        }
    }
    if let Some(line) = node.guard {
        registry.register_with_unit(
            "guard",
            "What nodeGuard leaves all pods together",
            Unit::Bytes,
            gauge(line),
        );
    }
    if let Some(max) = node.pods_max {
        let gauge = Real::default();
        gauge.set(max.bytes().map_or(f64::INFINITY, |max| max.get() as f64));
        registry.register_with_unit("kubepods_max", "memory.max of kubepods", Unit::Bytes, gauge);
    }
    if node.requests > Bytes::ZERO {
        registry.register(
            "usage_to_requests_ratio",
            "What all containers use, by the sum of their memory requests",
            ratio(node.usage, node.requests),
        );
    }
    let synchronized = Gauge::<i64>::default();
    synchronized.set(i64::from(node.synchronized));
    let help = "1 while the container runtime is connected and has told of its pods and containers";
    registry.register("synchronized", help, synchronized);
    let stands_aside = Gauge::<i64>::default();
    stands_aside.set(i64::from(node.stands_aside));
    registry.register(
        "stands_aside",
        "1 after 'plimsoll restore', when nothing is set",
        stands_aside,
    );
    let one_if = |is_so: bool| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::from(is_so));
        gauge
    };
    let observes = node.mode == Mode::Observe;
    registry.register(
        "observe_mode",
        "1 while nothing is set, as the plugin only observes",
        one_if(observes),
    );
    let help = "1 while the plugin only observes because it did too much, until an operator resets the brake";
    registry.register("brake_applied", help, one_if(node.brake.is_some()));
    if let Some(line) = node.planned_guard {
        let help =
            "What nodeGuard would leave all pods together if the plugin did not only observe";
        registry.register_with_unit("planned_guard", help, Unit::Bytes, gauge(line));
    }
    let over = status.containers.iter().map(|container| container.over_request);
    registry.register_with_unit(
        "over_request",
        "How much more than their requests containers use, without page cache that was not used lately",
        Unit::Bytes,
        gauge(over.fold(Bytes::ZERO, Bytes::saturating_add)),
    );
    let is_beyond = |container: &ContainerStatus, allocatable: Bytes| {
        let request = container.request.as_ref().map(|request| request.bytes);
        container
            .desired
            .max
            .and_then(Limit::bytes)
            .max(request)
            .is_some_and(|most| most > allocatable)
    };
    for (name, help, is_counted) in [
        (
            "over_request_containers",
            "Containers that use more memory than they requested",
            &(|container: &ContainerStatus| container.over_request > Bytes::ZERO)
                as &dyn Fn(&ContainerStatus) -> bool,
        ),
        (
            "overcommitted_containers",
            "Containers whose memory limit is more than maxLimitRequestRatio times their request",
            &|container| container.overcommitted,
        ),
        ("unlimited_containers", "Containers without a memory limit", &|container| {
            container.desired.max == Some(Limit::Max)
        }),
        (
            "would_throttle_containers",
            "Containers that use more than the memory.high that they would have if the plugin did not only observe",
            &|container| container.would_throttle,
        ),
        (
            "inert_containers",
            "Containers of whose protection a part or all is without effect, since a cgroup above has less",
            &|container| matches!(container.standing, Some(Standing::Inert | Standing::Partly)),
        ),
    ] {
        let count = status.containers.iter().filter(|container| is_counted(container)).count();
        let containers = Gauge::<i64>::default();
        containers.set(i64::try_from(count).unwrap_or(i64::MAX));
        registry.register(name, help, containers);
    }
    // Without node allocatable this count is unknown, so leave out the metric.
    if let Some(allocatable) = node.allocatable {
        let count =
            status.containers.iter().filter(|container| is_beyond(container, allocatable)).count();
        let containers = Gauge::<i64>::default();
        containers.set(i64::try_from(count).unwrap_or(i64::MAX));
        let help = "Containers whose memory limit or request is more than node allocatable";
        registry.register("beyond_node_containers", help, containers);
    }
    let states = Family::<OfState, Gauge>::default();
    for state in State::ALL {
        let count = status.containers.iter().filter(|container| container.state == state).count();
        let state = state.word();
        states.get_or_create(&OfState { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    registry.register("containers", "Containers, by what plimsoll status says of them", states);
    let provenances = Family::<OfProvenance, Gauge>::default();
    // Export this series even at 0, because it is worth an alert.
    let _ = provenances.get_or_create(&OfProvenance { provenance: UNKNOWN.to_owned() });
    for container in &status.containers {
        let provenance =
            container.request.as_ref().map_or(UNKNOWN, |request| &request.provenance).to_owned();
        provenances.get_or_create(&OfProvenance { provenance }).inc();
    }
    registry.register(
        "container_requests",
        "Containers, by where their memory requests were learnt",
        provenances,
    );
}

/// Registers the protection by level and the number of files that differ from their desired values.
fn register_levels(status: &Status, registry: &mut Registry) {
    let mut sums: BTreeMap<(&'static str, Knob, &'static str), Bytes> = BTreeMap::new();
    let mut add = |level, value, of: Protection| {
        for (knob, bytes) in [(Knob::Min, of.min), (Knob::Low, of.low)] {
            let sum = sums.entry((level, knob, value)).or_default();
            *sum = sum.saturating_add(bytes);
        }
    };
    let mut differing = [0, 0];
    for cgroup in &status.cgroups {
        let level = cgroup.level.word();
        add(level, "desired", cgroup.desired);
        add(level, "observed", cgroup.observed.unwrap_or_default());
        add(level, "effective", cgroup.effective.unwrap_or_default());
        if status.node.mode == Mode::Observe {
            continue;
        }
        // The plugin leaves a file alone if its desired value is 0. An unread cgroup does not
        // count.
        let observed = cgroup.observed.unwrap_or(cgroup.desired);
        let pairs = [(cgroup.desired.min, observed.min), (cgroup.desired.low, observed.low)];
        let differs =
            |(desired, observed): &&(Bytes, Bytes)| *desired > Bytes::ZERO && desired != observed;
        differing[1] += pairs.iter().filter(differs).count();
    }
    let amount = |limit: Option<Limit>| {
        limit.map_or(Bytes::ZERO, |limit| limit.bytes().unwrap_or(Bytes::MAX))
    };
    for container in &status.containers {
        let of = |values: Values| Protection { min: amount(values.min), low: amount(values.low) };
        add("container", "desired", of(container.desired));
        add("container", "observed", of(container.observed.unwrap_or_default()));
        add("container", "effective", container.effective.unwrap_or_default());
        if status.node.mode == Mode::Enforce {
            differing[0] +=
                container.observed.map_or(0, |observed| container.desired.differs_from(observed));
        }
    }
    let protection = Bytewise::<OfProtection>::default();
    for ((level, knob, value), sum) in sums {
        protection
            .get_or_create(&OfProtection { level, knob: knob.into(), value })
            .set(number(sum));
    }
    registry.register_with_unit(
        "protection",
        "What memory.min and memory.low of all cgroups of a level add up to: as it should be, as it was read, and as far as it is \
         effective by the kernel's rule",
        Unit::Bytes,
        protection,
    );
    let unread = Family::<OfCgroup, Gauge>::default();
    for level in LEVELS {
        let _ = unread.get_or_create(&OfCgroup { level: level.word() });
    }
    for cgroup in status.cgroups.iter().filter(|cgroup| cgroup.observed.is_none()) {
        unread.get_or_create(&OfCgroup { level: cgroup.level.word() }).inc();
    }
    let containers =
        status.containers.iter().filter(|container| container.observed.is_none()).count();
    unread
        .get_or_create(&OfCgroup { level: "container" })
        .set(i64::try_from(containers).unwrap_or(i64::MAX));
    registry.register(
        "unread_cgroups",
        "Cgroups that could not be read, or are not there: what they hold is unknown, and they count in no sum and as no difference",
        unread,
    );
    let problems = Gauge::<i64>::default();
    problems.set(i64::try_from(status.node.problems.len()).unwrap_or(i64::MAX));
    registry.register(
        "unknown_facts",
        "What of the node could not be read and decides about values, such as the kubelet's records; plimsoll status names it",
        problems,
    );
    let differences = Family::<OfDifference, Gauge>::default();
    for (level, count) in [Level::Container, Level::Ancestor].into_iter().zip(differing) {
        differences
            .get_or_create(&OfDifference { level })
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    registry.register("differing_files", "Files that are not as they should be", differences);
}

fn register_containers(status: &Status, registry: &mut Registry) {
    type Series = Bytewise<OfContainer>;
    let [
        usage,
        working_set,
        limit,
        request,
        min,
        low,
        high,
        over,
        desired_min,
        desired_low,
        desired_high,
    ] = std::array::from_fn(|_| Series::default());
    let kills = Family::<OfContainer, Counter>::default();
    let stalled = Family::<OfContainer, Counter<f64, AtomicU64>>::default();
    let mut seen = HashSet::new();
    for container in &status.containers {
        // Two containers can have the same name for a moment while one ends and the next one
        // starts.
        let name = (&container.namespace, &container.pod, &container.container);
        if container.observed.is_none() || !seen.insert(name) {
            continue;
        }
        let labels = OfContainer {
            namespace: printable(&container.namespace),
            pod: printable(&container.pod),
            container: printable(&container.container),
        };
        let observed = container.observed.unwrap_or_default();
        for (series, value) in [
            (&usage, container.usage),
            (&working_set, container.working_set),
            (&limit, observed.max.and_then(Limit::bytes)),
            (&request, container.request.as_ref().map(|request| request.bytes)),
            (&min, observed.min.and_then(Limit::bytes)),
            (&low, observed.low.and_then(Limit::bytes)),
            (&high, observed.high.and_then(Limit::bytes)),
            (&over, Some(container.over_request)),
            (&desired_min, container.desired.min.and_then(Limit::bytes)),
            (&desired_low, container.desired.low.and_then(Limit::bytes)),
            (&desired_high, container.desired.high.and_then(Limit::bytes)),
        ] {
            if let Some(value) = value {
                series.get_or_create(&labels).set(number(value));
            }
        }
        if let Some(count) = container.oom_kills {
            kills.get_or_create(&labels).inc_by(count);
        }
        if let Some(seconds) = container.stalled_seconds {
            stalled.get_or_create(&labels).inc_by(seconds);
        }
    }
    for (name, help, series) in [
        ("container_memory_usage", "What the container uses (memory.current)", usage),
        (
            "container_memory_working_set",
            "The same without page cache that was not used lately",
            working_set,
        ),
        ("container_spec_memory_limit", "Its memory.max, if that is a number", limit),
        ("container_memory_request", "Its memory request, or the least that it can be", request),
        ("container_memory_min", "Its memory.min", min),
        ("container_memory_low", "Its memory.low", low),
        ("container_memory_high", "Its memory.high, if that is a number", high),
        ("container_memory_min_desired", "What its memory.min should be", desired_min),
        ("container_memory_low_desired", "What its memory.low should be", desired_low),
        (
            "container_memory_high_desired",
            "What its memory.high should be, if that is a number",
            desired_high,
        ),
        ("container_over_request", "How much more than its request it uses", over),
    ] {
        registry.register_with_unit(name, help, Unit::Bytes, series);
    }
    registry.register(
        "container_oom_events",
        "Processes of the container that were killed for want of memory",
        kills,
    );
    registry.register_with_unit(
        "container_pressure_memory_stalled",
        "How long all of the container has waited for memory, as it does when memory.high throttles it",
        Unit::Seconds,
        stalled,
    );
}

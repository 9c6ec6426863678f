//! Counters of the plugin's actions.

use std::time::Duration;

use plimsoll_core::incident::IncidentKind;
use plimsoll_core::outcome::Outcome;
use plimsoll_core::units::Knob;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::report::metrics::labels::{
    By, File, Level, OfEvent, OfKill, OfKind, OfLevel, OfOutcome, OutcomeLabel,
};
use crate::report::metrics::rows::{self, Row, bytes, plain, seconds};

/// Upper bounds of the latency buckets in seconds. The bound 0.2 is a tenth of the runtime's
/// default timeout.
const LATENCIES: [f64; 12] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.2, 1.0, 2.0];

/// All counters of the plugin.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Resizes by outcome.
    pub resizes: Family<OfOutcome, Counter>,
    /// Sum of the bytes by which the rejected resizes would have decreased limits.
    pub rejected_bytes: Counter,
    /// Deferred limit decreases that the plugin gave up.
    pub deferrals_given_up: Counter,
    /// Pod limits that the plugin raised to the sum of the containers' limits.
    pub pod_limits_raised: Counter,
    /// Files that another program had changed and that the plugin repaired.
    pub repairs: Family<OfLevel, Counter>,
    /// Files that the plugin no longer repairs, because another program kept changing the files.
    pub contended: Family<OfLevel, Counter>,
    /// OOM kills of containers.
    pub oom_kills: Family<OfKill, Counter>,
    /// OOM rescues by outcome: the plugin raised the limit, or the configured maximum or a lack of
    /// free memory prevented the raise.
    pub rescues: Family<OfOutcome, Counter>,
    /// Releases of containers from throttling at `memory.high`.
    pub stalls_released: Counter,
    /// Time that the plugin took to answer NRI events.
    pub events: Events,
    /// Connections of the plugin to a runtime.
    pub connections: Counter,
    /// Kubernetes Events that the plugin did not write, because there were too many Events, or
    /// because the Event was refused or too old.
    pub events_dropped: Counter,
    /// Actions that the plugin only planned in observe mode.
    pub planned: Family<OfKind, Counter>,
}

/// Latency histogram for each kind of NRI event.
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

    /// Counts an action that the plugin only planned in observe mode.
    pub fn planned(&self, kind: IncidentKind) {
        self.planned.get_or_create(&OfKind { kind: kind.to_string() }).inc();
    }

    /// Counts an OOM rescue.
    pub fn rescued(&self, outcome: Outcome) {
        self.rescues.get_or_create(&OfOutcome { outcome: OutcomeLabel(outcome) }).inc();
    }

    /// Registers every counter under its name.
    pub fn register(&self, registry: &mut Registry) {
        self.start_at_zero();
        rows::register(registry, self.rows_of_limits());
        rows::register(registry, self.rows_of_protection());
        rows::register(registry, self.rows_of_the_plugin());
    }

    /// Creates each series whose labels are known in advance, with the value 0. If a series first
    /// appeared with the value 1, a monitoring system would see no increase.
    fn start_at_zero(&self) {
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
        for kind in [IncidentKind::CutRejected, IncidentKind::PodRaised, IncidentKind::Rescued] {
            let _ = self.planned.get_or_create(&OfKind { kind: kind.to_string() });
        }
    }

    /// Returns the counters of changed limits.
    fn rows_of_limits(&self) -> [Row; 4] {
        [
            plain("resizes", "Resizes of containers, by outcome", self.resizes.clone()),
            bytes(
                "resize_rejected",
                "Sum of the differences between the limits in force and the lower limits that \
                 the plugin rejected",
                self.rejected_bytes.clone(),
            ),
            plain(
                "resizes_given_up",
                "Deferred limit decreases that the plugin gave up",
                self.deferrals_given_up.clone(),
            ),
            plain(
                "pod_limits_raised",
                "Pod limits that the plugin raised to what the pod's containers may use",
                self.pod_limits_raised.clone(),
            ),
        ]
    }

    /// Returns the counters of repairs, conflicts, OOM kills, OOM rescues and releases from
    /// throttling.
    fn rows_of_protection(&self) -> [Row; 5] {
        [
            plain(
                "repairs",
                "Cgroup files that another program changed and the plugin repaired",
                self.repairs.clone(),
            ),
            plain(
                "contended",
                "Cgroup files that the plugin left to another program, which keeps changing them",
                self.contended.clone(),
            ),
            plain(
                "oom_kills",
                "OOM kills of containers, by the limit that caused the kill: of the container or \
                 its pod, or of the node",
                self.oom_kills.clone(),
            ),
            plain(
                "oom_rescues",
                "OOM rescues of containers: limits that the plugin raised, and raises that the \
                 ceiling prevented",
                self.rescues.clone(),
            ),
            plain(
                "stalls_released",
                "Releases of containers that were throttled at memory.high",
                self.stalls_released.clone(),
            ),
        ]
    }

    /// Returns the counters of answered NRI events, connections, dropped Kubernetes Events and
    /// planned actions.
    fn rows_of_the_plugin(&self) -> [Row; 4] {
        [
            seconds(
                "nri_request_duration",
                "Time that the plugin took to answer events of the runtime",
                self.events.0.clone(),
            ),
            plain(
                "nri_connections",
                "Connections of the plugin to a runtime",
                self.connections.clone(),
            ),
            plain(
                "events_dropped",
                "Kubernetes Events that the plugin did not write, because they were too many, \
                 refused or too old",
                self.events_dropped.clone(),
            ),
            plain(
                "observed_actions",
                "Actions that observe mode left undone, by kind of incident",
                self.planned.clone(),
            ),
        ]
    }
}

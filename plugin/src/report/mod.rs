//! Reports of incidents in the log, the metrics, `plimsoll status` and Kubernetes Events. Users can
//! also request the current status ([`status`]), which [`serve`] provides.
//!
//! Code that detects an incident calls [`Reports::tell`] with a [`Incident`]. This module alone chooses
//! where the incident appears.

pub mod events;
pub(crate) mod log;
pub mod metrics;
pub mod serve;
pub mod status;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use plimsoll_core::incident::{Incident, IncidentKind, Occurrence, Subject};
use plimsoll_core::outcome::Outcome;
use plimsoll_core::pod::{CgroupPath, PodUid};
use plimsoll_core::units::Limit;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::config::Config;
use crate::lock;
use crate::report::events::Events;
use crate::report::metrics::{File, Level, Metrics, OfLevel};
use crate::state::brake::{Cause, Tally};

/// Maximum number of different incidents that are remembered for one container or cgroup.
const REMEMBERED: usize = 16;

/// Time in seconds during which a report is recent.
pub const LATELY: u64 = 600;

/// Maximum number of times that are remembered for one incident. The kubelet retries a resize every
/// 10 to 15 seconds.
const TIMES: usize = 128;

/// Whether an action was done, or only planned in observe mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Deed {
    /// The action was done, or the incident is a plain fact.
    #[default]
    Done,
    /// Observe mode: the action was not done.
    Planned,
}

impl Deed {
    /// Returns the message prefix of a planned action.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Done => "",
            Self::Planned => "observe mode, not done: ",
        }
    }
}

/// An incident that was reported, possibly several times.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The latest incident; only for this program.
    #[serde(skip)]
    pub what: Option<Incident>,
    /// IncidentKind of the incident.
    pub kind: IncidentKind,
    /// Message for people.
    pub message: String,
    /// Observe mode: the action was planned but not done.
    #[serde(default)]
    pub planned: bool,
    /// Time of the first incident, in seconds since 1970.
    pub first: u64,
    /// Time of the latest incident, in seconds since 1970.
    pub last: u64,
    /// Number of incidents since the first one.
    pub count: u64,
    /// Recent times of the incident; only for this program.
    #[serde(skip)]
    lately: Times,
}

/// Times of an incident within the last [`LATELY`] seconds, at most [`TIMES`].
#[derive(Clone, Debug, Default)]
struct Times(VecDeque<u64>);

impl Times {
    fn add(&mut self, now: u64) {
        let surplus = (self.0.len() + 1).saturating_sub(TIMES);
        self.0.drain(..surplus);
        self.0.retain(|at| now.saturating_sub(*at) <= LATELY);
        self.0.push_back(now);
    }

    fn count(&self, now: u64) -> u64 {
        self.0.iter().filter(|at| now.saturating_sub(**at) <= LATELY).count() as u64
    }
}

/// Owner of reports: a pod's UID with a container's name, or a cgroup's path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Whose {
    Container(PodUid, String),
    Cgroup(CgroupPath),
}

/// Destination of all incidents.
#[derive(Debug, Default)]
pub struct Reports {
    /// Counters.
    pub metrics: Metrics,
    /// Counts for the automatic brake.
    pub brake: Arc<Tally>,
    events: Events,
    recent: Mutex<HashMap<Whose, Told>>,
}

/// Reports of one container or cgroup.
#[derive(Debug, Default)]
struct Told {
    /// Namespace and name of the pod.
    pod: Option<String>,
    /// Latest first.
    reports: VecDeque<Report>,
}

impl Reports {
    /// Reports an incident.
    pub fn tell(&self, subject: &Subject, what: &Incident) {
        let what = &what.of_subject(subject);
        say(subject, what, Deed::Done);
        self.count(subject, what);
        self.remember(subject, what, Deed::Done);
        self.events.put(subject, what, Deed::Done, &self.metrics.events_dropped);
    }

    /// Reports an action that observe mode left undone. The metrics count planned actions
    /// separately, and every output marks them.
    pub fn tell_planned(&self, subject: &Subject, what: &Incident) {
        say(subject, what, Deed::Planned);
        self.metrics.planned(what.kind());
        self.remember(subject, what, Deed::Planned);
        self.events.put(subject, what, Deed::Planned, &self.metrics.events_dropped);
    }

    /// Reports incidents that code has returned which held a lock.
    pub fn report_all(&self, occurrences: impl IntoIterator<Item = Occurrence>) {
        for Occurrence { subject, incident, is_planned } in occurrences {
            if is_planned {
                self.tell_planned(&subject, &incident);
            } else {
                self.tell(&subject, &incident);
            }
        }
    }

    /// Applies another configuration.
    pub fn configure(&self, config: &Config) {
        self.brake.configure(config.brake);
        self.events.configure(config.kubeconfig.as_deref(), &self.metrics.events_dropped);
    }

    fn count(&self, subject: &Subject, what: &Incident) {
        let metrics = &self.metrics;
        let level = if subject.container.is_some() { Level::Container } else { Level::Ancestor };
        match what {
            Incident::CutRejected(cut) => {
                metrics.resized(Outcome::Rejected);
                if let (Limit::Bytes(limit), Limit::Bytes(in_force)) = (cut.limit, cut.in_force) {
                    metrics.rejected_bytes.inc_by(in_force.saturating_sub(limit).get());
                }
            }
            Incident::CutDeferred(_) => metrics.resized(Outcome::Deferred),
            Incident::CutGivenUp(_) => _ = metrics.deferrals_given_up.inc(),
            Incident::CutApplied { .. } => metrics.resized(Outcome::Applied),
            Incident::PodRaised { .. } => _ = metrics.pod_limits_raised.inc(),
            Incident::Repaired { knob, .. } => {
                self.brake.count(Cause::Repairs, Instant::now());
                _ = metrics.repairs.get_or_create(&OfLevel { level, knob: (*knob).into() }).inc()
            }
            Incident::Contended { knob, .. } | Incident::ContendedWithKubelet { knob, .. } => {
                self.brake.count(Cause::Conflicts, Instant::now());
                _ = metrics.contended.get_or_create(&OfLevel { level, knob: (*knob).into() }).inc();
            }
            Incident::CpuContended { .. } => {
                self.brake.count(Cause::Conflicts, Instant::now());
                _ = metrics.contended.get_or_create(&OfLevel { level, knob: File::CPU_MAX }).inc();
            }
            Incident::Rescued { .. } => metrics.rescued(Outcome::Applied),
            Incident::AtCeiling { .. } => metrics.rescued(Outcome::Rejected),
            Incident::Released(_) => _ = metrics.stalls_released.inc(),
            // Other code counts two of these: an update once for all its files, and every single
            // kill.
            Incident::NotResized { .. }
            | Incident::Killed { .. }
            | Incident::BeyondNode { .. }
            | Incident::Overcommitted { .. }
            | Incident::Guarded { .. }
            | Incident::GuardWaits(_)
            | Incident::Unguarded { .. }
            | Incident::PutBack(_) => {}
        }
    }

    fn remember(&self, subject: &Subject, what: &Incident, deed: Deed) {
        let Some(whose) = Whose::of(subject) else { return };
        let now = now();
        let (kind, message) = (what.kind(), format!("{}{what}", deed.prefix()));
        let planned = deed == Deed::Planned;
        let mut recent = lock(&self.recent);
        let Told { pod, reports } = recent.entry(whose).or_default();
        if subject.pod.is_some() {
            pod.clone_from(&subject.pod);
        }
        let before = reports.iter().position(|report| {
            let is_it = |before: &Incident| what.identity() == before.identity();
            report.planned == planned && report.what.as_ref().is_some_and(is_it)
        });
        let (what, count, lately) = (Some(what.clone()), 1, Times::default());
        let mut report = match before.and_then(|at| reports.remove(at)) {
            Some(before) => Report { what, message, last: now, count: before.count + 1, ..before },
            None => Report { what, kind, message, planned, first: now, last: now, count, lately },
        };
        report.lately.add(now);
        reports.truncate(REMEMBERED - 1);
        reports.push_front(report);
    }

    /// Returns the reports of a container, whose id may have changed. Latest first.
    pub fn of_container(&self, uid: &PodUid, name: &str) -> Vec<Report> {
        self.of(&Whose::Container(uid.clone(), name.to_owned()))
    }

    /// Returns the reports of a cgroup above the containers. Latest first.
    pub fn of_cgroup(&self, cgroup: &CgroupPath) -> Vec<Report> {
        self.of(&Whose::Cgroup(cgroup.clone()))
    }

    /// Returns how often the matching incidents occurred recently.
    pub fn count_lately(&self, is_it: impl Fn(&Report) -> bool) -> u64 {
        let recent = lock(&self.recent);
        let reports = recent.values().flat_map(|told| &told.reports);
        let now = now();
        reports.filter(|report| is_it(report)).map(|report| report.lately.count(now)).sum()
    }

    fn of(&self, whose: &Whose) -> Vec<Report> {
        lock(&self.recent)
            .get(whose)
            .map(|told| told.reports.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// Returns the recent reports of containers that are not in `known`, because they are down.
    pub fn of_others(&self, known: &HashSet<(PodUid, String)>) -> Vec<(Subject, Vec<Report>)> {
        let recent = lock(&self.recent);
        let others = recent.iter().filter_map(|(whose, told)| match whose {
            Whose::Container(uid, name) if !known.contains(&(uid.clone(), name.clone())) => {
                let late: Vec<_> =
                    told.reports.iter().filter(|report| report.is_late()).cloned().collect();
                let (uid, container) = (Some(uid.clone()), Some(name.clone()));
                (!late.is_empty()).then(|| {
                    (Subject { pod: told.pod.clone(), uid, container, cgroup: None }, late)
                })
            }
            _ => None,
        });
        others.collect()
    }

    /// Forgets the reports of pods and cgroups that no longer exist. Recent reports of containers
    /// stay.
    pub fn retain(
        &self,
        is_there: impl Fn(&PodUid) -> bool,
        is_level: impl Fn(&CgroupPath) -> bool,
    ) {
        lock(&self.recent).retain(|whose, told| match whose {
            // The container may only be down at the moment.
            Whose::Container(uid, _) => is_there(uid) || told.reports.iter().any(Report::is_late),
            Whose::Cgroup(cgroup) => is_level(cgroup),
        });
    }
}

impl Report {
    /// Returns whether the latest incident is recent: at most [`LATELY`] seconds old.
    pub fn is_late(&self) -> bool {
        self.is_within(LATELY)
    }

    /// Returns whether the latest incident is at most `seconds` old.
    pub fn is_within(&self, seconds: u64) -> bool {
        now().saturating_sub(self.last) <= seconds
    }
}

impl Whose {
    fn of(subject: &Subject) -> Option<Self> {
        match (&subject.uid, &subject.container, &subject.cgroup) {
            (Some(uid), Some(name), _) => Some(Self::Container(uid.clone(), name.clone())),
            (_, _, Some(cgroup)) => Some(Self::Cgroup(cgroup.clone())),
            _ => None,
        }
    }
}

/// Returns the seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Writes one log message.
fn say(subject: &Subject, what: &Incident, deed: Deed) {
    let fields = what.fields();
    // The pod and the container name identify a container, so only a kill also shows the cgroup.
    let cgroup = subject
        .cgroup
        .as_ref()
        .filter(|_| subject.container.is_none() || matches!(what, Incident::Killed { .. }));
    let outcome = if deed == Deed::Planned { Some(Outcome::Planned) } else { fields.outcome };
    macro_rules! say {
        ($say:ident) => {
            $say!(
                pod = subject.pod,
                container = subject.container,
                cgroup = cgroup.map(tracing::field::display),
                knob = fields.knob,
                desired = fields.desired.as_deref().map(tracing::field::display),
                observed = fields.observed.as_deref().map(tracing::field::display),
                asked = fields.asked.map(tracing::field::display),
                usage = fields.usage.map(tracing::field::display),
                reclaimable = fields.reclaimable.map(tracing::field::display),
                request = fields.request.as_deref().map(tracing::field::display),
                most = fields.most,
                limit = fields.limit.as_deref().map(tracing::field::display),
                allocatable = fields.allocatable.as_deref().map(tracing::field::display),
                stalled = fields.stalled,
                repairs = fields.repairs,
                by = fields.by,
                ceiling = fields.ceiling.map(tracing::field::display),
                free = fields.free.map(tracing::field::display),
                kills = fields.kills,
                window = fields.window.map(tracing::field::debug),
                outcome = outcome.map(tracing::field::display),
                "{}{}",
                deed.prefix(),
                what.text()
            )
        };
    }
    if what.is_warning() { say!(warn) } else { say!(info) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_recent_times_are_counted() {
        let mut times = Times::default();
        for at in [1000, 1300, 1900] {
            times.add(at);
        }
        assert_eq!(times.count(1900), 2, "the first is more than {LATELY} s ago");
        assert_eq!(times.count(1901), 1);
        assert_eq!(times.count(1900 + LATELY + 1), 0);
        for _ in 0..3 * TIMES {
            times.add(2000);
        }
        assert_eq!(times.count(2000), TIMES as u64);
    }
}

//! Recent reports about containers and cgroups, which `plimsoll status` shows.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Mutex;
use std::time::SystemTime;

use plimsoll_core::incident::{Incident, IncidentKind, Subject};
use plimsoll_core::pod::{CgroupPath, PodUid};
use serde::{Deserialize, Serialize};

use crate::lock;
use crate::report::mode::ReportMode;

/// Maximum number of different incidents that the plugin remembers for one container or cgroup.
const MOST_REPORTS: usize = 16;

/// Age in seconds up to which a report counts as recent.
pub const RECENT: u64 = 600;

/// Maximum number of timestamps that the plugin remembers for one incident. The kubelet retries a
/// resize every 10 to 15 seconds.
const MOST_TIMES: usize = 128;

/// An incident that the plugin reported once or several times.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The latest incident, which the serialized report omits.
    #[serde(skip)]
    pub what: Option<Incident>,
    /// Kind of the incident.
    pub kind: IncidentKind,
    /// Message for people.
    pub message: String,
    /// Whether the plugin only planned the action in observe mode.
    #[serde(default)]
    pub planned: bool,
    /// Time of the first incident, in seconds since 1970.
    pub first: u64,
    /// Time of the latest incident, in seconds since 1970.
    pub last: u64,
    /// Number of incidents, including the first one.
    pub count: u64,
    /// Timestamps of recent incidents, which the serialized report omits.
    #[serde(skip)]
    pub(super) times: RecentTimes,
}

impl Report {
    /// Returns whether the latest incident is recent: at most [`RECENT`] seconds old.
    pub fn is_recent(&self) -> bool {
        self.is_within(RECENT)
    }

    /// Returns whether the latest incident is at most `seconds` old.
    pub fn is_within(&self, seconds: u64) -> bool {
        now().saturating_sub(self.last) <= seconds
    }
}

/// At most [`MOST_TIMES`] timestamps at which an incident occurred within the last [`RECENT`]
/// seconds.
#[derive(Clone, Debug, Default)]
pub(super) struct RecentTimes(VecDeque<u64>);

impl RecentTimes {
    fn add(&mut self, now: u64) {
        let surplus = (self.0.len() + 1).saturating_sub(MOST_TIMES);
        self.0.drain(..surplus);
        self.0.retain(|at| now.saturating_sub(*at) <= RECENT);
        self.0.push_back(now);
    }

    fn count(&self, now: u64) -> u64 {
        self.0.iter().filter(|at| now.saturating_sub(**at) <= RECENT).count() as u64
    }
}

/// Subject of reports: a container, identified by pod UID and name, or a cgroup, by its path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ReportOwner {
    Container(PodUid, String),
    Cgroup(CgroupPath),
}

impl ReportOwner {
    fn of(subject: &Subject) -> Option<Self> {
        match (&subject.uid, &subject.container, &subject.cgroup) {
            (Some(uid), Some(name), _) => Some(Self::Container(uid.clone(), name.clone())),
            (_, _, Some(cgroup)) => Some(Self::Cgroup(cgroup.clone())),
            _ => None,
        }
    }
}

/// Reports about one container or cgroup.
#[derive(Debug, Default)]
struct RecentReports {
    /// Namespace and name of the pod.
    pod: Option<String>,
    /// Reports, latest first.
    reports: VecDeque<Report>,
}

/// Recent reports about all containers and cgroups.
#[derive(Debug, Default)]
pub(super) struct ReportsByOwner(Mutex<HashMap<ReportOwner, RecentReports>>);

impl ReportsByOwner {
    pub(super) fn remember(&self, subject: &Subject, what: &Incident, mode: ReportMode) {
        let Some(owner) = ReportOwner::of(subject) else { return };
        let now = now();
        let (kind, message) = (what.kind(), format!("{}{what}", mode.prefix()));
        let planned = mode == ReportMode::Planned;
        let mut by_owner = lock(&self.0);
        let RecentReports { pod, reports } = by_owner.entry(owner).or_default();
        if subject.pod.is_some() {
            pod.clone_from(&subject.pod);
        }
        let before = reports.iter().position(|report| {
            let is_it = |before: &Incident| what.identity() == before.identity();
            report.planned == planned && report.what.as_ref().is_some_and(is_it)
        });
        let (what, count, times) = (Some(what.clone()), 1, RecentTimes::default());
        let mut report = match before.and_then(|at| reports.remove(at)) {
            Some(before) => Report { what, message, last: now, count: before.count + 1, ..before },
            None => Report { what, kind, message, planned, first: now, last: now, count, times },
        };
        report.times.add(now);
        reports.truncate(MOST_REPORTS - 1);
        reports.push_front(report);
    }

    /// Returns the reports about a container, latest first. A restarted container has a new id, so
    /// the pod's UID and the container's name identify the container.
    pub(super) fn of_container(&self, uid: &PodUid, name: &str) -> Vec<Report> {
        self.of(&ReportOwner::Container(uid.clone(), name.to_owned()))
    }

    /// Returns the reports about an ancestor cgroup of containers, latest first.
    pub(super) fn of_cgroup(&self, cgroup: &CgroupPath) -> Vec<Report> {
        self.of(&ReportOwner::Cgroup(cgroup.clone()))
    }

    /// Returns the number of recent incidents in the reports for which `is_it` returns true.
    pub(super) fn count_recent(&self, is_it: impl Fn(&Report) -> bool) -> u64 {
        let by_owner = lock(&self.0);
        let reports = by_owner.values().flat_map(|of_owner| &of_owner.reports);
        let now = now();
        reports.filter(|report| is_it(report)).map(|report| report.times.count(now)).sum()
    }

    fn of(&self, owner: &ReportOwner) -> Vec<Report> {
        lock(&self.0)
            .get(owner)
            .map(|of_owner| of_owner.reports.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// Returns the recent reports about containers that are not in `known`, because they ended.
    pub(super) fn of_others(
        &self,
        known: &HashSet<(PodUid, String)>,
    ) -> Vec<(Subject, Vec<Report>)> {
        let by_owner = lock(&self.0);
        let others = by_owner.iter().filter_map(|(owner, of_owner)| match owner {
            ReportOwner::Container(uid, name) if !known.contains(&(uid.clone(), name.clone())) => {
                let recent: Vec<_> =
                    of_owner.reports.iter().filter(|report| report.is_recent()).cloned().collect();
                let (uid, container) = (Some(uid.clone()), Some(name.clone()));
                (!recent.is_empty()).then(|| {
                    (Subject { pod: of_owner.pod.clone(), uid, container, cgroup: None }, recent)
                })
            }
            _ => None,
        });
        others.collect()
    }

    /// Removes the reports about pods and cgroups that no longer exist. Keeps all reports about a
    /// container with a recent report, even if its pod no longer exists.
    pub(super) fn retain(
        &self,
        is_there: impl Fn(&PodUid) -> bool,
        is_level: impl Fn(&CgroupPath) -> bool,
    ) {
        lock(&self.0).retain(|owner, of_owner| match owner {
            // Keep recent reports, because the container may start again soon.
            ReportOwner::Container(uid, _) => {
                is_there(uid) || of_owner.reports.iter().any(Report::is_recent)
            }
            ReportOwner::Cgroup(cgroup) => is_level(cgroup),
        });
    }
}

/// Returns the seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_recent_times_are_counted() {
        let mut times = RecentTimes::default();
        for at in [1000, 1300, 1900] {
            times.add(at);
        }
        assert_eq!(times.count(1900), 2, "the first is more than {RECENT} s ago");
        assert_eq!(times.count(1901), 1);
        assert_eq!(times.count(1900 + RECENT + 1), 0);
        for _ in 0..3 * MOST_TIMES {
            times.add(2000);
        }
        assert_eq!(times.count(2000), MOST_TIMES as u64);
    }
}

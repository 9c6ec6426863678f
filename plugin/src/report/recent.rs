//! Recent reports of containers and cgroups, which `plimsoll status` shows.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Mutex;
use std::time::SystemTime;

use plimsoll_core::incident::{Incident, IncidentKind, Subject};
use plimsoll_core::pod::{CgroupPath, PodUid};
use serde::{Deserialize, Serialize};

use crate::lock;
use crate::report::mode::Deed;

/// Maximum number of different incidents that are remembered for one container or cgroup.
const REMEMBERED: usize = 16;

/// Time in seconds during which a report is recent.
pub const LATELY: u64 = 600;

/// Maximum number of times that are remembered for one incident. The kubelet retries a resize every
/// 10 to 15 seconds.
const TIMES: usize = 128;

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
    pub(super) lately: Times,
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

/// Times of an incident within the last [`LATELY`] seconds, at most [`TIMES`].
#[derive(Clone, Debug, Default)]
pub(super) struct Times(VecDeque<u64>);

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

impl Whose {
    fn of(subject: &Subject) -> Option<Self> {
        match (&subject.uid, &subject.container, &subject.cgroup) {
            (Some(uid), Some(name), _) => Some(Self::Container(uid.clone(), name.clone())),
            (_, _, Some(cgroup)) => Some(Self::Cgroup(cgroup.clone())),
            _ => None,
        }
    }
}

/// Reports of one container or cgroup.
#[derive(Debug, Default)]
struct Told {
    /// Namespace and name of the pod.
    pod: Option<String>,
    /// Latest first.
    reports: VecDeque<Report>,
}

/// Recent reports of all containers and cgroups.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<HashMap<Whose, Told>>);

impl Recent {
    pub(super) fn remember(&self, subject: &Subject, what: &Incident, deed: Deed) {
        let Some(whose) = Whose::of(subject) else { return };
        let now = now();
        let (kind, message) = (what.kind(), format!("{}{what}", deed.prefix()));
        let planned = deed == Deed::Planned;
        let mut recent = lock(&self.0);
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
    pub(super) fn of_container(&self, uid: &PodUid, name: &str) -> Vec<Report> {
        self.of(&Whose::Container(uid.clone(), name.to_owned()))
    }

    /// Returns the reports of a cgroup above the containers. Latest first.
    pub(super) fn of_cgroup(&self, cgroup: &CgroupPath) -> Vec<Report> {
        self.of(&Whose::Cgroup(cgroup.clone()))
    }

    /// Returns how often the matching incidents occurred recently.
    pub(super) fn count_lately(&self, is_it: impl Fn(&Report) -> bool) -> u64 {
        let recent = lock(&self.0);
        let reports = recent.values().flat_map(|told| &told.reports);
        let now = now();
        reports.filter(|report| is_it(report)).map(|report| report.lately.count(now)).sum()
    }

    fn of(&self, whose: &Whose) -> Vec<Report> {
        lock(&self.0)
            .get(whose)
            .map(|told| told.reports.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// Returns the recent reports of containers that are not in `known`, because they are down.
    pub(super) fn of_others(
        &self,
        known: &HashSet<(PodUid, String)>,
    ) -> Vec<(Subject, Vec<Report>)> {
        let recent = lock(&self.0);
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
    pub(super) fn retain(
        &self,
        is_there: impl Fn(&PodUid) -> bool,
        is_level: impl Fn(&CgroupPath) -> bool,
    ) {
        lock(&self.0).retain(|whose, told| match whose {
            // The container may only be down at the moment.
            Whose::Container(uid, _) => is_there(uid) || told.reports.iter().any(Report::is_late),
            Whose::Cgroup(cgroup) => is_level(cgroup),
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

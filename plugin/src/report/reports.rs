//! Receiver of all incidents.
//!
//! Code that detects an incident calls [`Reports::report`] with an [`Incident`]. Only this file
//! chooses the outputs that show the incident.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use plimsoll_core::incident::{Incident, Occurrence, Subject};
use plimsoll_core::outcome::Outcome;
use plimsoll_core::pod::{CgroupPath, PodUid};
use plimsoll_core::units::Limit;

use crate::config::Config;
use crate::report::events::Events;
use crate::report::message::log_incident;
use crate::report::metrics::{File, Level, Metrics, OfLevel};
use crate::report::mode::ReportMode;
use crate::report::recent::{Report, ReportsByOwner};
use crate::state::brake::{Cause, Tally};

/// Receiver of all incidents.
#[derive(Debug, Default)]
pub struct Reports {
    /// Counters of the plugin's actions.
    pub metrics: Metrics,
    /// Counts of the incidents that trigger the automatic brake.
    pub brake: Arc<Tally>,
    events: Events,
    recent: ReportsByOwner,
}

impl Reports {
    /// Reports an incident.
    pub fn report(&self, subject: &Subject, what: &Incident) {
        let what = &what.of_subject(subject);
        log_incident(subject, what, ReportMode::Done);
        self.count(subject, what);
        self.recent.remember(subject, what, ReportMode::Done);
        self.events.enqueue(subject, what, ReportMode::Done, &self.metrics.events_dropped);
    }

    /// Reports an action that the plugin only planned in observe mode. The metrics count planned
    /// actions separately, and every output marks these actions as planned.
    pub fn report_planned(&self, subject: &Subject, what: &Incident) {
        log_incident(subject, what, ReportMode::Planned);
        self.metrics.planned(what.kind());
        self.recent.remember(subject, what, ReportMode::Planned);
        self.events.enqueue(subject, what, ReportMode::Planned, &self.metrics.events_dropped);
    }

    /// Reports the incidents that other code collected while it held a lock. The caller must
    /// have released this lock.
    pub fn report_all(&self, occurrences: impl IntoIterator<Item = Occurrence>) {
        for Occurrence { subject, incident, is_planned } in occurrences {
            if is_planned {
                self.report_planned(&subject, &incident);
            } else {
                self.report(&subject, &incident);
            }
        }
    }

    /// Applies a new configuration.
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
            // Other code counts `NotResized` (once per update, even with several files) and
            // `Killed` (every single kill).
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

    /// Returns the reports about a container, latest first. A restarted container has a new id, so
    /// the pod's UID and the container's name identify the container.
    pub fn of_container(&self, uid: &PodUid, name: &str) -> Vec<Report> {
        self.recent.of_container(uid, name)
    }

    /// Returns the reports about an ancestor cgroup of containers, latest first.
    pub fn of_cgroup(&self, cgroup: &CgroupPath) -> Vec<Report> {
        self.recent.of_cgroup(cgroup)
    }

    /// Returns the number of recent incidents in the reports for which `is_it` returns true.
    pub fn count_recent(&self, is_it: impl Fn(&Report) -> bool) -> u64 {
        self.recent.count_recent(is_it)
    }

    /// Returns the recent reports about containers that are not in `known`, because they ended.
    pub fn of_others(&self, known: &HashSet<(PodUid, String)>) -> Vec<(Subject, Vec<Report>)> {
        self.recent.of_others(known)
    }

    /// Removes the reports about pods and cgroups that no longer exist. Keeps all reports about a
    /// container with a recent report, even if its pod no longer exists.
    pub fn retain(
        &self,
        is_there: impl Fn(&PodUid) -> bool,
        is_level: impl Fn(&CgroupPath) -> bool,
    ) {
        self.recent.retain(is_there, is_level);
    }
}

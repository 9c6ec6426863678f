//! The report about the values that the command has or has not restored.

use std::fmt::Write as _;

use plimsoll_core::units::excerpt;

use crate::cgroup::CgroupRoot;
use crate::commands::restore::survey::{ChangedCgroup, Survey};
use crate::commands::restore::wait::RESTORE_LIMIT;
use crate::state::originals::Values;
use crate::state::settings::RESTORE_MARKER;
use plimsoll_core::policy::KNOBS;

/// Maximum number of missing cgroups and containers that the report names.
const MOST_NAMED: usize = 20;

/// Returns a message with the number of cgroups and containers that were not restored in time.
pub(super) fn describe_unfinished(left: usize) -> String {
    format!(
        "{left} cgroups or containers were not restored within {} s: expected the container \
         runtime and a running plugin to answer; see their logs, and call this again",
        RESTORE_LIMIT.as_secs()
    )
}

impl Survey {
    /// Returns the reason why the command must not report success, although all found cgroups and
    /// containers are restored. Returns `None` if the command may report success.
    pub(super) fn describe_unresolved(&self) -> Option<String> {
        // Only the runtime knows whether a container has ended, because the container's cgroup may
        // be outside the kubelet's cgroups.
        let runtime = "the container runtime did not report whether they have ended".to_owned();
        let elsewhere =
            (!self.missing.is_empty()).then(|| self.unsearched.iter().chain([&runtime]));
        let why: Vec<_> = self
            .problems
            .iter()
            .chain(elsewhere.into_iter().flatten())
            .map(String::as_str)
            .collect();
        (!why.is_empty()).then(|| {
            format!(
                "could not check all changed cgroups, among them those of {} containers: {}; \
                 expected to read every cgroup, or the container runtime to report which \
                 containers have ended: start the runtime, and call this again",
                self.missing.len(),
                why.into_iter().take(MOST_NAMED).collect::<Vec<_>>().join("; ")
            )
        })
    }

    /// Returns the reason why a running plugin may still set values, with advice. Returns `None` if
    /// no plugin may set values.
    pub(super) fn describe_unknown_plugin(&self) -> Option<String> {
        self.unknown_plugin.as_ref().map(|why| {
            format!(
                "a running plugin may set values again: {why}; expected it to answer and to \
                 notice /{RESTORE_MARKER}: stop it or restart it, and call this again"
            )
        })
    }

    /// Returns the report. The report has one line for each changed file, each missing cgroup or
    /// container, and each limit that stays raised.
    pub(super) fn write_report(
        &self,
        root: &CgroupRoot,
        guarded: bool,
        staying: &[String],
    ) -> String {
        let mut report = String::new();
        for ChangedCgroup { cgroup, before, .. } in &self.changed {
            let Ok(held) = root.cgroup(cgroup).and_then(|cgroup| Values::read(&cgroup)) else {
                continue;
            };
            for knob in KNOBS {
                if let (Some(before), Some(held)) = (before.get(knob), held.get(knob))
                    && before != held
                {
                    let _ = writeln!(report, "{cgroup} {knob}: {before} -> {held}");
                }
            }
        }
        let missing = self
            .missing
            .iter()
            .map(|id| format!("container {}; its cgroup may have ended", excerpt(id)));
        let not_found: Vec<_> = self
            .ended
            .iter()
            .map(|target| format!("{target}; it has ended"))
            .chain(missing)
            .collect();
        for target in not_found.iter().take(MOST_NAMED) {
            let _ = writeln!(report, "not found: {target}");
        }
        if not_found.len() > MOST_NAMED {
            let _ = writeln!(report, "not found: {} more", not_found.len() - MOST_NAMED);
        }
        for limit in staying {
            let _ = writeln!(report, "stays raised, because lowering it could kill: {limit}");
        }
        if self.unknown_plugin.is_some() {
            return report;
        }
        if report.is_empty() && !guarded && self.describe_unresolved().is_none() {
            report.push_str("nothing had to be changed\n");
        }
        report.push_str("plimsoll sets no values until 'plimsoll restore --undo'\n");
        report
    }
}

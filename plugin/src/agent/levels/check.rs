//! Compares a cgroup with the kernel and repairs it.

use std::time::Duration;

use plimsoll_core::incident::Incident;
use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::Protection;
use plimsoll_core::policy::contention::Verdict;
use plimsoll_core::units::{Knob, Limit};
use tokio::time::Instant;
use tracing::debug;

use super::apply::Change;
use super::{Levels, InForce, KNOBS, State};
use crate::cgroup::CgroupError;
use crate::lock;

/// Result of [`Levels::check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// The cgroup has its desired values, or the plugin leaves them as they are.
    Settled,
    /// The cgroup must be checked again after this time.
    Again(Duration),
    /// The cgroup no longer exists.
    Gone,
}

impl Levels {
    /// Compares a cgroup with the kernel and repairs it. `touched` lists the files for which
    /// inotify reported a write.
    pub fn check(&self, cgroup: &CgroupPath, touched: &[Knob]) -> Checked {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let believed = state.in_force.get(cgroup).copied();
        let observed = self.root.cgroup(cgroup).and_then(|open| InForce::read(&open));
        let observed = match observed {
            Ok(observed) => observed,
            Err(error) => {
                state.in_force.remove(cgroup);
                return match error {
                    CgroupError::Gone(_) => Checked::Gone,
                    error => {
                        self.failed(state, cgroup, None, &error);
                        Checked::Settled
                    }
                };
            }
        };
        state.in_force.insert(cgroup.clone(), observed);
        let mut checked = Checked::Settled;
        state.failing.remove(&(cgroup.clone(), None));
        let wanted = self.changes(state, cgroup, &observed);
        for knob in KNOBS {
            // A file with the desired value no longer counts as failing.
            if !wanted.iter().any(|change| change.knob == knob) {
                state.failing.remove(&(cgroup.clone(), Some(knob)));
            }
        }
        let (mut changes, mut repairs) = (Vec::new(), Vec::new());
        for change in wanted {
            if state.failing.contains_key(&(cgroup.clone(), Some(change.knob))) {
                // inotify also reports the plugin's own failed write. Such a report must not cause
                // another retry.
                if !touched.contains(&change.knob) {
                    changes.push(change);
                }
                continue;
            }
            let key = (cgroup.clone(), change.knob);
            let is_foreign = believed.is_some_and(|before| {
                before.inode == observed.inode && before.get(change.knob) == change.to
            });
            let late = |told: &Protection| {
                let told = if change.knob == Knob::Low { told.low } else { told.min };
                change.from == Limit::Bytes(told)
            };
            if state.told.get(cgroup).is_some_and(|told| told.iter().any(late)) {
                debug!(%cgroup, knob = change.knob.file_name(), "systemd was late with an earlier value");
                changes.push(change);
                continue;
            }
            if state.leaves_changes && is_foreign {
                debug!(%cgroup, knob = change.knob.file_name(), observed = %change.from, "left as another program set it");
                state.left.insert(key, (observed.inode, change.to));
                continue;
            }
            match state.contention.judge(
                key.clone(),
                (),
                touched.contains(&change.knob),
                Instant::now().into_std(),
            ) {
                Verdict::Repair => {
                    repairs.push(change.clone());
                    changes.push(change);
                }
                Verdict::Wait(wait) => checked = Checked::Again(wait),
                Verdict::GiveUp => self.tell_contended(state, &key, change.to, change.from),
                Verdict::Leave => {}
            }
        }
        self.write(state, changes);
        for Change { cgroup, knob, from, to } in repairs {
            if state.in_force.get(&cgroup).is_some_and(|in_force| in_force.get(knob) == to) {
                self.reports.tell(
                    &(&cgroup).into(),
                    &Incident::Repaired { knob, desired: to, observed: from },
                );
            }
        }
        checked
    }

    /// Reports that the plugin leaves a file to the program that keeps changing it.
    fn tell_contended(
        &self,
        state: &State,
        file: &(CgroupPath, Knob),
        desired: Limit,
        observed: Limit,
    ) {
        let (cgroup, knob) = file;
        let repairs = state.contention.repairs(file);
        self.reports
            .tell(&cgroup.into(), &Incident::Contended { knob: *knob, desired, observed, repairs });
    }
}

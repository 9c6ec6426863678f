//! Compares a cgroup's files with the desired values and repairs the files.

use std::time::Duration;

use plimsoll_core::incident::{Incident, Occurrence};
use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::Protection;
use plimsoll_core::policy::contention::RepairDecision;
use plimsoll_core::units::{Knob, Limit};
use tokio::time::Instant;
use tracing::debug;

use super::apply::FileChange;
use super::{InForce, KNOBS, Levels, State};
use crate::cgroup::CgroupError;
use crate::lock;

/// Result of [`Levels::check`].
#[derive(Clone, Debug)]
pub struct Checked {
    /// Action that the caller must take next.
    pub next: CheckNext,
    /// Incidents to report.
    pub incidents: Vec<Occurrence>,
}

/// Next action after a check of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckNext {
    /// The cgroup has its desired values, or the plugin tolerates the other values.
    Settled,
    /// The caller must check the cgroup again after this time.
    Again(Duration),
    /// The cgroup no longer exists.
    Gone,
}

/// Decision about a file that does not have its desired value.
enum FileDecision {
    /// Write the file. The write does not count as a repair of another program's change.
    Write,
    /// Write the file, and report the repair.
    Repair,
    /// Leave the file unchanged for now. Check the file again after this time.
    Wait(Duration),
    /// Leave the file unchanged, and report that another program keeps changing it.
    GiveUp,
    /// Leave the file.
    Leave,
}

impl Levels {
    /// Compares a cgroup's files with the desired values and repairs the files. `touched` lists the
    /// files for which inotify reported a write.
    pub fn check(&self, cgroup: &CgroupPath, touched: &[Knob]) -> Checked {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let mut incidents = Vec::new();
        let believed = state.in_force.get(cgroup).copied();
        let observed = match self.root.cgroup(cgroup).and_then(|open| InForce::read(&open)) {
            Ok(observed) => observed,
            Err(error) => {
                state.in_force.remove(cgroup);
                let next = match error {
                    CgroupError::Gone(_) => CheckNext::Gone,
                    error => {
                        self.failed(state, cgroup, None, &error);
                        CheckNext::Settled
                    }
                };
                return Checked { next, incidents };
            }
        };
        state.in_force.insert(cgroup.clone(), observed);
        state.failing.remove(&(cgroup.clone(), None));
        let wanted = self.changes(state, cgroup, &observed);
        for knob in KNOBS {
            // A file with the desired value no longer counts as failing.
            if !wanted.iter().any(|change| change.knob == knob) {
                state.failing.remove(&(cgroup.clone(), Some(knob)));
            }
        }
        let mut next = CheckNext::Settled;
        let (mut changes, mut repairs) = (Vec::new(), Vec::new());
        for change in wanted {
            let is_touched = touched.contains(&change.knob);
            match decide(state, &change, believed, observed.inode, is_touched) {
                FileDecision::Write => changes.push(change),
                FileDecision::Repair => {
                    repairs.push(change.clone());
                    changes.push(change);
                }
                FileDecision::Wait(wait) => next = CheckNext::Again(wait),
                FileDecision::GiveUp => incidents.push(contended(state, &change)),
                FileDecision::Leave => {}
            }
        }
        self.write(state, changes);
        for FileChange { cgroup, knob, from, to } in repairs {
            if state.in_force.get(&cgroup).is_some_and(|in_force| in_force.get(knob) == to) {
                let incident = Incident::Repaired { knob, desired: to, observed: from };
                incidents.push(Occurrence::new(&cgroup, incident));
            }
        }
        Checked { next, incidents }
    }
}

/// Decides what to do about a file. `believed` are the values that the files had when the plugin
/// last read or wrote them. `inode` is the current inode of the cgroup.
fn decide(
    state: &mut State,
    change: &FileChange,
    believed: Option<InForce>,
    inode: u64,
    is_touched: bool,
) -> FileDecision {
    let FileChange { cgroup, knob, from, to } = change;
    let key = (cgroup.clone(), *knob);
    if state.failing.contains_key(&(cgroup.clone(), Some(*knob))) {
        // inotify also reports the plugin's own failed write. This report must not cause another
        // retry.
        return if is_touched { FileDecision::Leave } else { FileDecision::Write };
    }
    let is_from_systemd = |sent: &Protection| {
        let sent = if *knob == Knob::Low { sent.low } else { sent.min };
        *from == Limit::Bytes(sent)
    };
    if state.sent_to_systemd.get(cgroup).is_some_and(|sent| sent.iter().any(is_from_systemd)) {
        debug!(%cgroup, knob = knob.file_name(), "systemd was late with an earlier value");
        return FileDecision::Write;
    }
    let believed = believed.filter(|before| before.inode == inode).map(|before| before.get(*knob));
    let is_foreign = believed == Some(*to);
    if !is_foreign && state.contention.repairs(&key) == 0 {
        // The plugin has not seen the desired value in this file, so no other program has changed
        // it. The cgroup may be new, or the plugin's write may have failed because the kernel was
        // about to remove the former cgroup.
        debug!(%cgroup, knob = knob.file_name(), "the file does not have its value yet");
        return FileDecision::Write;
    }
    if state.leaves_changes && is_foreign {
        debug!(%cgroup, knob = knob.file_name(), observed = %from, "repair is false, so the \
            plugin leaves the changed value");
        state.left.insert(key, (inode, *to));
        return FileDecision::Leave;
    }
    match state.contention.judge(key, (), is_touched, Instant::now().into_std()) {
        RepairDecision::Repair => FileDecision::Repair,
        RepairDecision::Wait(wait) => FileDecision::Wait(wait),
        RepairDecision::GiveUp => FileDecision::GiveUp,
        RepairDecision::Leave => FileDecision::Leave,
    }
}

/// Returns the incident to report when another program keeps changing a file and the plugin
/// therefore stops writing it.
fn contended(state: &State, change: &FileChange) -> Occurrence {
    let &FileChange { ref cgroup, knob, from: observed, to: desired } = change;
    let repairs = state.contention.repairs(&(cgroup.clone(), knob));
    Occurrence::new(cgroup, Incident::Contended { knob, desired, observed, repairs })
}

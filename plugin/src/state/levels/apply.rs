//! Writes the desired values of cgroups. Raises parents before their children, and lowers children
//! before their parents.

use std::io;

use plimsoll_core::outcome::Outcome;
use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::hierarchy::Level;
use plimsoll_core::units::{Bytes, Knob, Limit};
use tracing::{debug, warn};

use super::{InForce, KNOBS, Levels, State};
use crate::cgroup::CgroupError;
use crate::lock;
use crate::state::originals::{Target, Values};

/// A change of one file.
#[derive(Clone, Debug)]
pub(super) struct FileChange {
    pub(super) cgroup: CgroupPath,
    pub(super) knob: Knob,
    pub(super) from: Limit,
    pub(super) to: Limit,
}

impl FileChange {
    pub(super) fn raises(&self) -> bool {
        self.to > self.from
    }
}

/// Maximum number of cgroups whose files the plugin writes before it answers an event. If the pods
/// need more protection than the plugin may give, each new or removed pod changes the protection of
/// all other pods. The reconcile task writes these other pods later.
pub(super) const AT_ONCE: usize = 8;

/// Maximum number of quick retries after a failure to write a file. The retries happen within
/// seconds. Afterwards the plugin retries with the next event.
const TRIES: u32 = 10;

impl Levels {
    /// Writes the desired values that an event has changed in cgroups above containers. Writes the
    /// event's pod and the cgroups above it at once. The reconcile task writes the other pods soon
    /// afterwards.
    pub(super) fn apply_levels(
        &self,
        state: &mut State,
        levels: Vec<Level>,
        pod: Option<&CgroupPath>,
    ) {
        let mut cgroups: Vec<_> = levels.into_iter().map(|level| level.cgroup).collect();
        if cgroups.len() > AT_ONCE {
            cgroups.retain(|cgroup| Some(cgroup) == pod || !state.tree.is_pod(cgroup));
            self.shares_changed.notify_one();
        } else if state.tree.is_short() || !state.short.is_empty() {
            self.shares_changed.notify_one();
        }
        self.apply_cgroups(state, cgroups);
    }

    /// Writes the desired values of `cgroups`. The caller lists parents before their children.
    pub(super) fn apply_cgroups(&self, state: &mut State, cgroups: Vec<CgroupPath>) {
        let mut changes = Vec::new();
        for cgroup in cgroups {
            let observed = match state.in_force.get(&cgroup) {
                Some(observed) => *observed,
                None => match self.root.cgroup(&cgroup).and_then(|open| InForce::read(&open)) {
                    Ok(observed) => {
                        state.failing.remove(&(cgroup.clone(), None));
                        state.in_force.insert(cgroup.clone(), observed);
                        observed
                    }
                    Err(error) => {
                        self.failed(state, &cgroup, None, &error);
                        continue;
                    }
                },
            };
            changes.extend(self.changes(state, &cgroup, &observed));
        }
        self.write(state, changes);
    }

    /// Stops managing a cgroup that has no desired value and has its original values again.
    pub(super) fn unmanage(&self, state: &mut State, cgroup: &CgroupPath) {
        let Some(in_force) = state.in_force.get(cgroup).copied() else { return };
        if self.wanted(state, cgroup) != [Bytes::ZERO; 2] {
            return;
        }
        let target = Target::Cgroup(cgroup.clone(), in_force.inode);
        let mut originals = lock(&self.originals);
        let is_back = |values: Values| {
            KNOBS.into_iter().all(|knob| values.get(knob) == Some(in_force.get(knob)))
        };
        if originals.get(&target).is_some_and(is_back) {
            let result = originals.restored(&target);
            drop(originals);
            self.complain(state, result);
        }
    }

    /// Returns the `memory.min` and `memory.low` that a cgroup needs for the pods and the reserved
    /// cgroups in it. An ancestor needs the sum of both, because the kernel protects no more in a
    /// cgroup than the cgroup's ancestors have.
    pub(super) fn wanted(&self, state: &State, cgroup: &CgroupPath) -> [Bytes; 2] {
        let sum = |is_counted: &dyn Fn(&CgroupPath) -> bool| {
            let counted = state.reserved.iter().filter(|reserved| is_counted(&reserved.cgroup));
            counted.fold(Bytes::ZERO, |sum, reserved| sum.saturating_add(reserved.memory))
        };
        let own = sum(&|reserved| reserved == cgroup);
        let below = sum(&|reserved| reserved.is_below(cgroup));
        let pods = state.tree.desired(cgroup).unwrap_or_default();
        let min = if state.tree.is_above_kubepods(cgroup) {
            own.saturating_add(pods.min)
        } else {
            own.max(pods.min)
        };
        [min.saturating_add(below), pods.low]
    }

    /// Returns the changes that give a cgroup its desired values.
    pub(super) fn changes(
        &self,
        state: &State,
        cgroup: &CgroupPath,
        observed: &InForce,
    ) -> Vec<FileChange> {
        let targets = KNOBS.into_iter().zip(self.targets(state, cgroup, observed));
        let changes = targets.map(|(knob, to)| FileChange {
            cgroup: cgroup.clone(),
            knob,
            from: observed.get(knob),
            to,
        });
        let is_left = |change: &FileChange| {
            state.is_left(&(cgroup.clone(), change.knob), observed.inode, change.to)
        };
        let is_due = |change: &FileChange| {
            change.from != change.to && (change.raises() || !state.hold) && !is_left(change)
        };
        changes.filter(is_due).collect()
    }

    /// Returns the values that the cgroup's `memory.min` and `memory.low` should have.
    pub(super) fn targets(
        &self,
        state: &State,
        cgroup: &CgroupPath,
        observed: &InForce,
    ) -> [Limit; 2] {
        let wanted = self.wanted(state, cgroup);
        let is_ancestor = state.is_ancestor(cgroup);
        [0, 1].map(|index| {
            let wanted = Limit::Bytes(wanted[index].floor_to(self.page_size));
            if wanted > Limit::Bytes(Bytes::ZERO) && !is_ancestor {
                return wanted;
            }
            let target = Target::Cgroup(cgroup.clone(), observed.inode);
            let original = match lock(&self.originals).get(&target) {
                Some(values) => values.get(KNOBS[index]).unwrap_or(Limit::Bytes(Bytes::ZERO)),
                // The plugin has never changed the cgroup.
                None => observed.get(KNOBS[index]),
            };
            // An ancestor may protect other programs, too.
            original.max(wanted)
        })
    }

    /// Writes `changes` in an order in which no child loses protection. The caller lists parents
    /// before their children.
    pub(super) fn write(&self, state: &mut State, changes: Vec<FileChange>) {
        let (raising, mut lowering): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(FileChange::raises);
        lowering.reverse();
        for change in raising.into_iter().chain(lowering) {
            let FileChange { cgroup, knob, from, to } = &change;
            match self.write_one(state, &change) {
                Ok(()) => {
                    self.unmanage(state, cgroup);
                    state.failing.remove(&(cgroup.clone(), Some(*knob)));
                    let knob = knob.file_name();
                    debug!(%cgroup, knob, desired = %to, observed = %from, "written");
                }
                Err(error) => {
                    state.in_force.remove(cgroup);
                    self.failed(state, cgroup, Some(&change), &error);
                }
            }
        }
    }

    fn write_one(&self, state: &mut State, change: &FileChange) -> Result<(), CgroupError> {
        let cgroup = self.root.cgroup(&change.cgroup)?;
        let inode = cgroup.inode()?;
        let in_force = match state.in_force.get(&change.cgroup) {
            Some(in_force) if in_force.inode == inode => *in_force,
            // Another cgroup has the same path now.
            _ => InForce::read(&cgroup)?,
        };
        let target = Target::Cgroup(change.cgroup.clone(), inode);
        let values = Values { min: Some(in_force.min), low: Some(in_force.low), high: None };
        let remembered = lock(&self.originals).remember(target, values);
        self.complain(state, remembered);
        cgroup.write_knob(change.knob, change.to)?;
        let mut in_force = in_force;
        in_force.set(change.knob, change.to);
        state.in_force.insert(change.cgroup.clone(), in_force);
        self.queue_for_systemd(state, &change.cgroup, &in_force, None);
        Ok(())
    }

    /// Handles a cgroup that the plugin cannot read or write. Logs the first failure, and requests
    /// a quick retry.
    pub(super) fn failed(
        &self,
        state: &mut State,
        cgroup: &CgroupPath,
        change: Option<&FileChange>,
        error: &CgroupError,
    ) {
        if let CgroupError::Gone(_) = error {
            // The runtime may create a pod's cgroup with the first container, and may remove the
            // cgroup before it reports the end of the pod.
            debug!(%cgroup, "no such cgroup");
            return;
        }
        let failures =
            state.failing.entry((cgroup.clone(), change.map(|change| change.knob))).or_default();
        *failures += 1;
        if *failures <= TRIES {
            self.shares_changed.notify_one();
        }
        if *failures == 1 {
            warn!(
                %cgroup,
                knob = change.map(|change| change.knob.file_name()),
                desired = change.map(|change| tracing::field::display(change.to)),
                observed = change.map(|change| tracing::field::display(change.from)),
                %error,
                outcome = %Outcome::from(error),
                "cannot set the protection of a cgroup; the plugin tries again soon, and then \
                 with every event. Check that cgroupfs is mounted read-write and that the plugin \
                 runs as root. Logged once"
            );
        }
    }

    pub(super) fn complain(&self, state: &mut State, result: io::Result<()>) {
        if let Err(error) = &result
            && !state.originals_failing
        {
            warn!(%error, "cannot store the original values of cgroups; after a restart, \
                           'plimsoll restore' cannot restore them");
        }
        state.originals_failing = result.is_err();
    }
}

//! Values that systemd should store for the cgroups of its units.

use std::collections::BTreeMap;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::Protection;
use plimsoll_core::policy::limit_decrease::Raise;

use super::{InForce, Levels, State};
use crate::cgroup::systemd::{Persistence, SystemdError};
use crate::lock;

/// Maximum number of unconfirmed values per cgroup that the plugin remembers. systemd may still
/// write an unconfirmed value to the files.
const MAX_UNCONFIRMED: usize = 4;

/// Values that systemd should store for one cgroup.
#[derive(Clone, Copy, Debug)]
pub struct PersistentValues {
    /// Protection of the cgroup.
    pub protection: Protection,
    /// Raised limits. With `Some`, systemd should also store the limits that are in the files.
    pub raise: Option<Raise>,
}

impl PersistentValues {
    /// Returns the values that replace `older`. If `self` has no raise, they contain the raise from
    /// `older`, which the plugin has not sent to systemd yet.
    #[must_use]
    pub fn replacing(self, older: Option<Self>) -> Self {
        Self { raise: self.raise.or(older.and_then(|older| older.raise)), ..self }
    }
}

impl Levels {
    /// Returns the newest values to send to systemd for a cgroup. Remembers that systemd may write
    /// these values to the files.
    pub fn begin_call(&self, cgroup: &CgroupPath, values: PersistentValues) -> PersistentValues {
        let newer = lock(&self.lasting).remove(cgroup);
        let values = newer.map_or(values, |newer| newer.replacing(Some(values)));
        lock(&self.state)
            .sent_to_systemd
            .entry(cgroup.clone())
            .or_default()
            .push(values.protection);
        values
    }

    /// Handles systemd's answer for a cgroup.
    pub fn end_call(
        &self,
        cgroup: &CgroupPath,
        values: PersistentValues,
        result: &Result<Persistence, SystemdError>,
    ) {
        let mut state = lock(&self.state);
        match result {
            Ok(set @ (Persistence::Set | Persistence::Unchanged)) => {
                state.sent_to_systemd.insert(cgroup.clone(), vec![values.protection]);
                if *set == Persistence::Set {
                    // systemd has written these values to the files, but the plugin may desire
                    // newer values.
                    state.in_force.remove(cgroup);
                    self.apply_cgroups(&mut state, vec![cgroup.clone()]);
                }
                // Raise the limits again, because systemd may have written older limits before it
                // received these limits. The plugin has already reported the first raise.
                if let Some(raise) = values.raise {
                    let _ = self.raise(&mut state, cgroup, raise);
                }
            }
            // systemd may still write these values later.
            Err(SystemdError::Timeout { .. } | SystemdError::Lost { .. }) => {
                if let Some(sent) = state.sent_to_systemd.get_mut(cgroup) {
                    let surplus = sent.len().saturating_sub(MAX_UNCONFIRMED);
                    sent.drain(..surplus);
                }
            }
            // systemd did not accept these values. systemd may still write earlier values that it
            // did not confirm.
            Err(_) => {
                if let Some(sent) = state.sent_to_systemd.get_mut(cgroup) {
                    if let Some(at) = sent.iter().rposition(|one| *one == values.protection) {
                        sent.remove(at);
                    }
                    if sent.is_empty() {
                        state.sent_to_systemd.remove(cgroup);
                    }
                }
            }
            // The cgroup has no systemd unit, so systemd writes no value to its files.
            Ok(Persistence::NoUnit) => _ = state.sent_to_systemd.remove(cgroup),
        }
    }

    /// Waits until there are values to send to systemd, and returns them.
    pub async fn next_lasting(&self) -> BTreeMap<CgroupPath, PersistentValues> {
        loop {
            let changed = self.lasting_changed.notified();
            let lasting = std::mem::take(&mut *lock(&self.lasting));
            if !lasting.is_empty() {
                return lasting;
            }
            changed.await;
        }
    }

    /// Queues the desired values of a cgroup for systemd if the cgroup may belong to a systemd
    /// unit. Ignores the current values of the files, because the plugin may be about to repair
    /// them.
    pub(super) fn queue_for_systemd(
        &self,
        state: &State,
        cgroup: &CgroupPath,
        in_force: &InForce,
        raise: Option<Raise>,
    ) {
        if ![".slice", ".scope", ".service"].iter().any(|suffix| cgroup.name().ends_with(suffix)) {
            return;
        }
        let [mut min, mut low] = self.targets(state, cgroup, in_force);
        if state.hold {
            (min, low) = (min.max(in_force.min), low.max(in_force.low));
        }
        let protection = Protection::of_files(min, low);
        let mut lasting = lock(&self.lasting);
        let values = PersistentValues { protection, raise }.replacing(lasting.get(cgroup).copied());
        lasting.insert(cgroup.clone(), values);
        self.lasting_changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_core::units::Bytes;

    use super::*;

    fn values(min: u64, raise: Option<Raise>) -> PersistentValues {
        PersistentValues {
            protection: Protection { min: Bytes::new(min), low: Bytes::ZERO },
            raise,
        }
    }

    #[test]
    fn newer_values_keep_an_older_raise() {
        let raise = |memory| Some(Raise { memory: Some(Bytes::new(memory)), ..Raise::NONE });
        for (newer, older, expected) in [
            (None, None, None),
            (None, Some(values(1, None)), None),
            (None, Some(values(1, raise(3))), raise(3)),
            (raise(4), Some(values(1, raise(3))), raise(4)),
            (raise(4), None, raise(4)),
        ] {
            let merged = values(2, newer).replacing(older);
            assert_eq!(merged.protection.min, Bytes::new(2), "{older:?}");
            assert_eq!(merged.raise, expected, "{older:?}");
        }
    }
}

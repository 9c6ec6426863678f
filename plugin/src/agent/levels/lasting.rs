//! Makes systemd keep the values of the cgroups that it owns.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::Protection;
use plimsoll_core::policy::resize::Raise;
use tracing::{debug, info, warn};

use super::{InForce, Last, Levels, State};
use crate::cgroup::systemd::{Lasting, Systemd, SystemdError};
use crate::lock;

/// Maximum number of concurrent calls to systemd.
const CALLS: usize = 8;

/// Maximum number of unconfirmed values per cgroup that the plugin remembers. systemd may still
/// write these values to the files.
const LATE: usize = 4;

/// Returns the delay before the next try of a failed call; `None` if a retry is useless.
fn again(error: &SystemdError) -> Option<Duration> {
    match error {
        SystemdError::Paused { pause, .. } => Some(*pause),
        SystemdError::Connect { .. } | SystemdError::Timeout { .. } | SystemdError::Lost { .. } => {
            Some(Duration::from_secs(1))
        }
        SystemdError::Denied { .. } | SystemdError::Failed { .. } => None,
    }
}

impl Levels {
    /// Makes systemd keep the values of the cgroups that it owns. This is a separate task, because
    /// systemd may answer slowly.
    ///
    /// The files hold the values already, so a slow answer loses no protection. If systemd is
    /// unreachable, only the files hold the values. The plugin then repairs them when it sees a
    /// change.
    pub async fn make_last(self: Arc<Self>, systemd: Systemd) {
        let mut failing = HashSet::new();
        loop {
            let lasting = self.next_lasting().await;
            let calls = lasting.into_iter().map(|(cgroup, last)| {
                let (levels, systemd) = (&self, &systemd);
                async move {
                    // A newer value may have arrived, which replaces this one.
                    let newer = lock(&levels.lasting).remove(&cgroup);
                    let last = newer
                        .map_or(last, |newer| Last { raise: newer.raise.or(last.raise), ..newer });
                    lock(&levels.state)
                        .told
                        .entry(cgroup.clone())
                        .or_default()
                        .push(last.protection);
                    let result = match levels.root.cgroup(&cgroup) {
                        Ok(open) => systemd.set(&open, last.protection, last.raise.is_some()).await,
                        Err(_) => Ok(Lasting::NoUnit),
                    };
                    levels.told(&cgroup, last, &result);
                    (cgroup, last, result)
                }
            });
            let done: Vec<_> = futures::stream::iter(calls).buffer_unordered(CALLS).collect().await;
            let mut pause = None;
            for (cgroup, last, result) in done {
                match result {
                    Ok(lasting) => {
                        debug!(%cgroup, ?lasting, "systemd");
                        if failing.remove(&cgroup) && failing.is_empty() {
                            info!("systemd keeps the values of its cgroups again");
                        }
                    }
                    Err(error) => {
                        if failing.is_empty() {
                            warn!(
                                %cgroup,
                                %error,
                                "systemd does not keep the values of its cgroups; they are written to the files alone, and \
                                 repaired when they change. Said once"
                            );
                        }
                        failing.insert(cgroup.clone());
                        if let Some(again) = again(&error) {
                            // Keep a newer value if there is one.
                            lock(&self.lasting)
                                .entry(cgroup)
                                .and_modify(|newer| newer.raise = newer.raise.or(last.raise))
                                .or_insert(last);
                            pause = pause.max(Some(again));
                        }
                    }
                }
            }
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
                self.lasting_changed.notify_one();
            }
        }
    }

    /// Handles systemd's answer for a cgroup.
    fn told(&self, cgroup: &CgroupPath, last: Last, result: &Result<Lasting, SystemdError>) {
        let mut state = lock(&self.state);
        match result {
            Ok(set @ (Lasting::Set | Lasting::Unchanged)) => {
                state.told.insert(cgroup.clone(), vec![last.protection]);
                if *set == Lasting::Set {
                    // systemd has written this value to the files, where a newer value may be
                    // desired now.
                    state.in_force.remove(cgroup);
                    self.apply(&mut state, vec![cgroup.clone()]);
                }
                // systemd may have written older limits before it got these, so raise the limits
                // again. The first raise has been reported already.
                if let Some(raise) = last.raise {
                    let _ = self.raise(&mut state, cgroup, raise);
                }
            }
            // systemd may still write these values later.
            Err(SystemdError::Timeout { .. } | SystemdError::Lost { .. }) => {
                if let Some(told) = state.told.get_mut(cgroup) {
                    let surplus = told.len().saturating_sub(LATE);
                    told.drain(..surplus);
                }
            }
            // systemd has not accepted the value, so values in the files do not come from systemd.
            Ok(Lasting::NoUnit) | Err(_) => _ = state.told.remove(cgroup),
        }
    }

    async fn next_lasting(&self) -> BTreeMap<CgroupPath, Last> {
        loop {
            let changed = self.lasting_changed.notified();
            let lasting = std::mem::take(&mut *lock(&self.lasting));
            if !lasting.is_empty() {
                return lasting;
            }
            changed.await;
        }
    }

    /// Queues the desired values of a cgroup for systemd, if a systemd unit may own the cgroup. The
    /// values in the files do not count, because the plugin may be about to repair a file.
    pub(super) fn tell_systemd(
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
        let last = lasting.entry(cgroup.clone()).or_insert(Last { protection, raise });
        *last = Last { protection, raise: raise.or(last.raise) };
        self.lasting_changed.notify_one();
    }
}

//! Writes all managed cgroups once the plugin knows every container. Forgets removed cgroups, and
//! reports pods with less protection than they need.

use std::collections::HashSet;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::Policy;
use tokio::time::Instant;
use tracing::{info, warn};

use super::apply::AT_ONCE;
use super::{Levels, State, is_ours};
use crate::cgroup::CgroupError;
use crate::lock;
use crate::state::originals::Target;

/// Maximum number of pod names in a report about missing protection.
const NAMED: usize = 20;

impl Levels {
    /// Writes the desired values of all managed cgroups. Restores the original values of cgroups
    /// that the plugin has changed but no longer manages.
    ///
    /// The caller must first examine all containers. Removes the protection claims of unknown
    /// containers. `synchronized` is the result of [`Levels::synchronized`] before this
    /// examination. Does nothing if there was no synchronization yet, or if there was a newer one.
    /// In these two cases, the caller does not know all containers.
    ///
    /// Event handlers can take the lock between two batches of cgroups.
    pub fn settle(&self, is_known: impl Fn(&str) -> bool, policy: &Policy, synchronized: u64) {
        let Some(cgroups) = self.begin_settling(is_known, policy, synchronized) else { return };
        let current = || {
            let state = lock(&self.state);
            (state.synchronized == synchronized).then_some(state)
        };
        // First raise all values, parents before their children.
        for batch in cgroups.chunks(AT_ONCE) {
            let Some(mut state) = current() else { return };
            self.apply_cgroups(&mut state, batch.to_vec());
        }
        let Some(mut state) = current() else { return };
        state.hold = false;
        drop(state);
        // Then lower values, children before their parents.
        for batch in cgroups.rchunks(AT_ONCE) {
            let Some(mut state) = current() else { return };
            self.apply_cgroups(&mut state, batch.to_vec());
        }
        if let Some(mut state) = current() {
            self.report_shortfalls(&mut state);
        }
    }

    /// Removes unknown containers and pods from the tree. Returns the cgroups to write. After this
    /// call, the plugin lowers no value until [`Levels::settle`] has raised all values.
    fn begin_settling(
        &self,
        is_known: impl Fn(&str) -> bool,
        policy: &Policy,
        synchronized: u64,
    ) -> Option<Vec<CgroupPath>> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if synchronized == 0 || state.synchronized != synchronized {
            return None;
        }
        let gone: Vec<_> =
            state.tree.containers().filter(|id| !is_known(id)).map(str::to_owned).collect();
        for id in gone {
            state.tree.release(&id);
        }
        let mut pods: HashSet<_> = state.tree.pods().cloned().collect();
        for sandbox in state.sandboxes.values() {
            state.tree.set_overhead(&sandbox.place, sandbox.protection(policy));
            let request = state.origins.get(&sandbox.id).and_then(|origins| origins.own_request);
            let own = sandbox.own_protection(request, policy);
            state.tree.set_own(sandbox.place.cgroup(), own);
            pods.remove(sandbox.place.cgroup());
        }
        for pod in pods {
            state.tree.remove_pod(&pod);
        }
        state.hold = true;
        // Other programs may have changed the files, so read them again.
        state.in_force.clear();
        let mut cgroups = state.cgroups();
        let known: HashSet<_> = cgroups.iter().cloned().collect();
        let changed_once = {
            let originals = lock(&self.originals);
            let cgroups = originals.targets().filter_map(|target| match target {
                Target::Cgroup(path, _) if !known.contains(path) => Some(path.clone()),
                _ => None,
            });
            cgroups.collect::<Vec<_>>()
        };
        cgroups.extend(changed_once);
        Some(cgroups)
    }

    /// Forgets unknown containers, and cgroups that no longer exist.
    pub fn prune(&self, is_known: impl Fn(&str) -> bool) {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if state.synchronized == 0 {
            return;
        }
        let now = Instant::now().into_std();
        state.contention.forget_quiet(now);
        state.limits.forget_quiet(now);
        let State { tree, in_force, failing, reserved, sent_to_systemd, left, left_limits, .. } =
            state;
        let is_ours = |cgroup: &CgroupPath| is_ours(tree, reserved, cgroup);
        in_force.retain(|cgroup, _| is_ours(cgroup));
        sent_to_systemd.retain(|cgroup, _| is_ours(cgroup));
        left.retain(|(cgroup, _), _| is_ours(cgroup));
        left_limits.retain(|(cgroup, _), _| is_ours(cgroup));
        failing.retain(|(cgroup, _), _| is_ours(cgroup));
        let root = &self.root;
        let kept = lock(&self.originals).retain(|target| match target {
            Target::Container(id) => is_known(id),
            // Keep the original values if the plugin cannot find out whether the cgroup exists.
            Target::Cgroup(path, inode) => {
                match root.cgroup(path).and_then(|cgroup| cgroup.inode()) {
                    Ok(now) => now == *inode,
                    Err(error) => !matches!(error, CgroupError::Gone(_)),
                }
            }
        });
        self.complain(state, kept);
    }

    /// Writes the desired values of all managed cgroups in batches. Then reports the pods that now
    /// get less protection than they need, and the pods that get enough again.
    pub async fn share(&self) {
        for cgroups in self.cgroups().chunks(AT_ONCE) {
            self.apply_cgroups(&mut lock(&self.state), cgroups.to_vec());
            // Event handlers may take the lock between two batches.
            tokio::task::yield_now().await;
        }
        let mut state = lock(&self.state);
        if !state.hold {
            self.report_shortfalls(&mut state);
        }
    }

    pub(super) fn report_shortfalls(&self, state: &mut State) {
        let shortfalls = state.tree.shortfalls();
        let (old, new): (Vec<_>, Vec<_>) =
            shortfalls.into_iter().partition(|shortfall| state.short.contains(&shortfall.pod));
        for shortfall in new.iter().take(NAMED) {
            warn!(
                cgroup = %shortfall.pod,
                asked_min = shortfall.asked.min.quantity(),
                gets_min = shortfall.gets.min.quantity(),
                asked_low = shortfall.asked.low.quantity(),
                gets_low = shortfall.gets.low.quantity(),
                "pods claim more protection than node allocatable, so this pod gets less than \
                 its claim"
            );
        }
        if new.len() > NAMED {
            warn!("{} more pods get less protection than their claims", new.len() - NAMED);
        }
        let short: HashSet<_> = old.into_iter().chain(new).map(|shortfall| shortfall.pod).collect();
        for pod in state.short.difference(&short).take(NAMED) {
            info!(cgroup = %pod, "the pod gets its full claim again, or is gone");
        }
        state.short = short;
    }

    /// Waits until the protection of other pods has changed, or a file needs a quick retry.
    pub async fn shares_changed(&self) {
        self.shares_changed.notified().await;
    }

    /// Returns the number of synchronizations with the runtime.
    pub fn synchronized(&self) -> u64 {
        lock(&self.state).synchronized
    }
}

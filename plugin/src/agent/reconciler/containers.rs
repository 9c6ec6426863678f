//! Compares containers with the kernel, repairs their values and handles the results.

use std::sync::Arc;
use std::time::Duration;

use plimsoll_core::incident::Incident;
use plimsoll_core::outcome::Outcome;
use plimsoll_core::policy::Protection;
use plimsoll_core::policy::contention::{REPAIRS, RepairDecision};
use plimsoll_core::units::{Bytes, CPU_MAX, Knob, Limit};
use tracing::{debug, info, warn};

use super::compare::{Compared, InForce, Write, compare};
use super::updater::{Done, Pending};
use super::work::Work;
use super::{BATCH, BUSY, Due, REPAIRED, Reconciler};
use crate::cgroup::{CPU_WEIGHT, CgroupError, SWAP_MAX};
use crate::in_own_thread;
use crate::state::container::{Container, Decided, KNOBS, Update};

/// Returns writes of all desired values of a container, whatever its files hold.
fn all_writes(decided: &Decided) -> impl Iterator<Item = Write> {
    decided.values().into_iter().map(|(knob, value)| Write {
        knob,
        observed: value,
        desired: value,
    })
}

fn unreadable(container: &Container, error: &CgroupError) {
    let Container { pod, name, .. } = container;
    let outcome = Outcome::from(error);
    if outcome == Outcome::Gone {
        debug!(pod, container = name, %error, %outcome, "cannot read the container's cgroup");
    } else {
        warn!(pod, container = name, %error, %outcome, "cannot read the container's cgroup");
    }
}

impl Reconciler {
    /// Compares containers with the kernel and repairs them. The flags say whether inotify has
    /// reported a write to the container's files.
    pub(super) async fn look_at(&mut self, batch: &[(String, bool)]) {
        let enforces = self.containers.settings().enforces();
        let mut pending = Vec::new();
        for (id, touched) in batch {
            let Some(container) = self.containers.get(id) else { continue };
            // A container that is being updated is checked after the update.
            if matches!(container.update, Update::UnderWay(_)) || self.is_waiting(id) {
                continue;
            }
            let result = compare(&self.containers, &self.root, &container);
            if !self.containers.is_current(&container) {
                // A newer event has changed the container, so this comparison is outdated.
                self.again(Duration::ZERO, Work::Container(id.clone()));
                continue;
            }
            match result {
                Ok(compared) => {
                    pending.extend(self.compared(&container, compared, *touched, enforces));
                }
                Err(CgroupError::Gone(_)) if container.started && container.has_had_processes => {
                    self.ended(&container);
                }
                Err(CgroupError::Gone(_)) => self.without_cgroup(&container),
                Err(error) => unreadable(&container, &error),
            }
        }
        while !pending.is_empty() {
            let batch = pending.drain(..BATCH.min(pending.len())).collect();
            // The receiver lives as long as this task.
            let _ = self.updater.send(batch);
        }
    }

    /// Handles a container that was compared with the kernel. Returns a request for the runtime if
    /// one is due.
    fn compared(
        &mut self,
        container: &Arc<Container>,
        compared: Compared,
        touched: bool,
        enforces: bool,
    ) -> Option<Pending> {
        self.watch_container(container);
        let is_in_force = compared.in_force.is_some();
        if let Some(in_force) = compared.in_force {
            if container.started {
                self.containers.set_has_had_processes(&container.id);
            }
            self.limits_read_back(container, in_force);
        }
        if compared.writes.is_empty() {
            let pending = if compared.decided.is_let_go() {
                self.let_go(container, &compared, enforces)
            } else {
                None
            };
            self.claim(container, compared.claim);
            self.settled(container, &compared.decided, is_in_force);
            return pending;
        }
        let swap_max = compared.swap_max;
        let (writes, is_foreign) = self.repair(container, compared, touched)?;
        // A repair after the runtime's own write is not counted, but it is also a first attempt.
        let attempt = self.contention.repairs(&container.id).max(1);
        self.progress(&container.id).is_waiting = true;
        let container = container.clone();
        Some(Pending { container, writes, attempt, swap_max, enforces, is_foreign })
    }

    /// Sets a container's claim unless a newer event has its own.
    fn claim(&self, container: &Container, claim: Protection) {
        if let Some(place) = &container.place {
            let is_current = || self.containers.is_current(container);
            self.levels.claim_if(place, &container.id, claim, is_current);
        }
    }

    /// Checks whether an update that the runtime reported as made has taken effect. After a failed
    /// or unconfirmed update, the plugin adopts the limits in force. It does not ask for the update
    /// again, because a late limit decrease may kill.
    pub(super) fn limits_read_back(&mut self, container: &Container, in_force: InForce) {
        let page = self.containers.settings().node.page_size;
        let InForce { memory, cpu, weight, swap_max } = in_force;
        let is_memory = memory.is_same(container.limit, page);
        let is_cpu = cpu.is(container.cpu);
        // Without an update, another program has changed the limit. The limit of the runtime stays
        // the desired one, and the pod's limit follows it.
        if container.update == Update::Over {
            return;
        }
        if container.update == Update::Made {
            // The runtime has stored new values with the update.
            self.progress(&container.id).verified = None;
            let is_weight = weight.is_none_or(|weight| container.cpu_shares.is(weight));
            let is_swap = container.swap_max.is_none_or(|wanted| swap_max == Some(wanted));
            let mut is_made = true;
            let text = |swap_max: Option<Bytes>| {
                swap_max.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string())
            };
            for (knob, desired, observed, is_so) in [
                (Knob::Max.file_name(), container.limit.to_string(), memory.to_string(), is_memory),
                (CPU_MAX, container.cpu.to_string(), cpu.to_string(), is_cpu),
                (
                    CPU_WEIGHT,
                    container.cpu_shares.to_string(),
                    weight.unwrap_or_default().to_string(),
                    is_weight,
                ),
                (SWAP_MAX, text(container.swap_max), text(swap_max), is_swap),
            ] {
                if is_so {
                    continue;
                }
                is_made = false;
                self.reports
                    .report(&container.into(), &Incident::NotResized { knob, desired, observed });
            }
            // A deferred limit decrease is counted as deferred.
            let outcome = if is_made { Outcome::Applied } else { Outcome::Failed };
            if !is_made || container.limit <= container.asked {
                self.reports.metrics.resized(outcome);
            }
        }
        self.containers.read_back(
            container,
            (!is_memory).then_some(memory),
            (!is_cpu).then_some(cpu),
        );
    }

    /// Handles a container that is unmanaged and restored. Updates the runtime's stored values
    /// once, then forgets the container.
    pub(super) fn let_go(
        &mut self,
        container: &Arc<Container>,
        compared: &Compared,
        enforces: bool,
    ) -> Option<Pending> {
        let progress = self.progress(&container.id);
        if std::mem::take(&mut progress.is_released) {
            self.containers.restored(container);
            return None;
        }
        progress.is_released = true;
        progress.is_waiting = true;
        let writes = all_writes(&compared.decided).collect();
        let (container, swap_max) = (container.clone(), compared.swap_max);
        Some(Pending { container, writes, attempt: 1, swap_max, enforces, is_foreign: false })
    }

    /// Sets the claim of a container without a cgroup. The container gets its values at its start,
    /// or its processes are elsewhere (Kata).
    pub(super) fn without_cgroup(&self, container: &Container) {
        let record = self.containers.record(container);
        let decided = self.containers.decide(container, &record);
        if let Some(claim) = decided.desired.claim {
            self.claim(container, claim);
        }
    }

    /// Returns the writes for the runtime if they are due now, and whether another program has
    /// changed the values.
    pub(super) fn repair(
        &mut self,
        container: &Arc<Container>,
        compared: Compared,
        touched: bool,
    ) -> Option<(Vec<Write>, bool)> {
        let Compared { decided, mut writes, claim, held, .. } = compared;
        let desired = decided.values();
        let is_stored = self.progress(&container.id).verified.as_ref() == Some(&desired);
        if is_stored && !self.containers.settings().config.repair {
            let Container { pod, name, .. } = container.as_ref();
            debug!(pod, container = name, "left as another program set it");
            return None;
        }
        // The runtime's writes for its client are not foreign.
        let is_foreign = is_stored && !self.contention.is_expected(&container.id);
        let now = std::time::Instant::now();
        match self.contention.judge(container.id.clone(), desired, touched, now) {
            // The runtime and systemd hold the values already. Only the files were changed, so
            // write only the files.
            RepairDecision::Repair if is_stored && self.contention.repairs(&container.id) <= 1 => {
                self.write_files(container, writes, is_foreign);
                return None;
            }
            RepairDecision::Repair => {
                if let Some(place) = &container.place {
                    // The current values count until the container has the new ones.
                    let claim = claim.max(held.protection());
                    let is_current = || self.containers.is_current(container);
                    self.levels.claim_at_least_if(place, &container.id, claim, is_current);
                }
                if decided.is_let_go() {
                    // Send all values, because the runtime may have stored other ones.
                    self.progress(&container.id).is_released = true;
                    // The runtime may have to be quiet first. The container must not stay throttled
                    // at its memory.high meanwhile.
                    self.write_files(container, writes, false);
                    writes = all_writes(&decided).collect();
                }
                self.containers.remember(container, held);
                return Some((writes, is_foreign));
            }
            RepairDecision::Wait(wait) => self.again(wait, Work::Container(container.id.clone())),
            RepairDecision::GiveUp => {
                self.progress(&container.id).is_unverified = false;
                for Write { knob, observed, desired } in writes {
                    let what = Incident::Contended { knob, desired, observed, repairs: REPAIRS };
                    self.reports.report(&container.as_ref().into(), &what);
                }
            }
            RepairDecision::Leave => {}
        }
        None
    }

    /// Writes a container's files without the runtime, in a thread. Lowering memory.high takes as
    /// long as the kernel reclaims memory.
    pub(super) fn write_files(
        &mut self,
        container: &Arc<Container>,
        writes: Vec<Write>,
        is_foreign: bool,
    ) {
        let Some(path) = container.cgroup.clone() else { return };
        let (root, reports) = (self.root.clone(), self.reports.clone());
        let (containers, decided_for) = (self.containers.clone(), container.clone());
        // The watch on the files shows the result.
        in_own_thread("write", move || {
            for Write { knob, desired, observed } in writes {
                // An event has changed the container since the decision, or it has ended. Another
                // check follows the event.
                if !containers.is_current(&decided_for) {
                    return;
                }
                match root.cgroup(&path).and_then(|cgroup| cgroup.write(knob, desired)) {
                    Ok(()) if is_foreign => {
                        let repaired = Incident::Repaired { knob, desired, observed };
                        reports.report(&decided_for.as_ref().into(), &repaired);
                    }
                    Ok(()) => {
                        let knob = knob.file_name();
                        debug!(cgroup = %path, knob, "written again after an update");
                    }
                    Err(error) => debug!(cgroup = %path, %error, "cannot repair the file"),
                }
            }
        });
        self.progress(&container.id).is_unverified = true;
        self.again(REPAIRED, Work::Container(container.id.clone()));
    }

    /// Handles a batch that the runtime has done or tried to do, by scheduling checks of its
    /// containers.
    pub(super) fn written(&mut self, done: Done, due: &mut Due) {
        for pending in &done.batch {
            let container = &pending.container;
            let progress = self.progress(&container.id);
            progress.is_waiting = false;
            let Some(fates) = &done.fates else {
                progress.is_released = false;
                // The next synchronization checks all containers.
                self.contention.forget(&container.id);
                continue;
            };
            let was_sent = fates.was_sent(&container.id);
            progress.is_released &= !fates.dropped.contains(&container.id);
            progress.is_unverified |= was_sent;
            if pending.is_foreign && was_sent {
                for &Write { knob, desired, observed } in pending.changes() {
                    let repaired = Incident::Repaired { knob, desired, observed };
                    self.reports.report(&container.as_ref().into(), &repaired);
                }
            }
            if pending.writes.iter().any(|write| write.knob == Knob::Max) {
                self.containers.swap_update(&container.id, Update::Over, Update::Unconfirmed);
            } else if fates.busy.contains(&container.id) {
                let writes = pending.changes().copied().collect();
                self.write_files(container, writes, pending.is_foreign);
                continue;
            }
            due.containers.entry(container.id.clone()).or_default();
        }
    }

    pub(super) fn settled(&mut self, container: &Container, decided: &Decided, is_in_force: bool) {
        self.containers.forget_high_before(container);
        let progress = self.progress(&container.id);
        progress.verified = Some(decided.values());
        let is_unverified = std::mem::take(&mut progress.is_unverified);
        self.contention.settle(&container.id);
        let outcome = match is_unverified {
            _ if !is_in_force => Outcome::Unresolved,
            false => Outcome::Unchanged,
            true => Outcome::Applied,
        };
        let values = KNOBS.map(|knob| decided.value(knob).map(|value| value.to_string()));
        let [min, low, high] = values.map(|value| value.unwrap_or_else(|| "unknown".to_owned()));
        let Container { pod, name, .. } = container;
        if outcome == Outcome::Applied {
            info!(pod, container = name, min, low, high, %outcome, "verified");
        } else {
            debug!(pod, container = name, min, low, high, %outcome, "verified");
        }
    }

    /// Handles a container whose cgroup is gone. The runtime may report the end later, or never.
    pub(super) fn ended(&mut self, container: &Container) {
        debug!(pod = container.pod, container = container.name, outcome = %Outcome::Gone, "the \
            container has ended");
        self.levels.release(&container.id);
        self.contention.forget(&container.id);
        self.progress.remove(&container.id);
        if let Some(cgroup) = &container.cgroup {
            self.unwatch(cgroup);
        }
    }

    /// Asks the runtime for another limit of a running container.
    pub(super) fn ask_for_limit(&mut self, id: String, limit: Bytes, revision: u64) {
        let known = self.containers.get(&id).filter(|container| container.revision == revision);
        let Some(container) = known else { return };
        let is_changing =
            matches!(container.update, Update::UnderWay(_)) && container.update != Update::OURS;
        if is_changing || self.is_waiting(&id) {
            return self.again(BUSY, Work::Limit { id, limit, revision });
        }
        self.containers.swap_update(&id, Update::OURS, Update::Over);
        let swap_max = container
            .cgroup
            .as_ref()
            .and_then(|cgroup| self.root.cgroup(cgroup).ok()?.swap_max().ok());
        let write =
            Write { knob: Knob::Max, observed: container.limit, desired: Limit::Bytes(limit) };
        self.progress(&id).is_waiting = true;
        // Send the request alone, so that the runtime gives the reason of a failure.
        let swap_max = swap_max.and_then(Limit::bytes);
        // Only a plugin that enforces asks for limits.
        let pending = Pending {
            container,
            writes: vec![write],
            attempt: 2,
            swap_max,
            enforces: true,
            is_foreign: false,
        };
        let _ = self.updater.send(vec![pending]);
    }
}

#[cfg(test)]
mod tests {
    use nri::{Identity, Stub};
    use plimsoll_core::units::{Bytes, CpuMax};

    use super::*;
    use crate::agent::node::Node;
    use crate::config::Config;
    use crate::state::testing::{TestNode, container};

    fn limit(mib: u64) -> Limit {
        Limit::Bytes(Bytes::new(mib << 20))
    }

    #[tokio::test]
    async fn a_foreign_limit_is_not_the_users_limit() {
        let host = TestNode::new("").host;
        let node = Node::open(host.path(), Config::default()).unwrap();
        let containers = node.containers().clone();
        let (service, tasks) = node.into_service(Box::new(|_| {}));
        let stub = Stub::external(Identity::new("90", "plimsoll").unwrap(), service);
        let (mut reconciler, _reader) = tasks.reconciler(stub.runtime());
        containers.insert(Container { started: true, ..container("1", 100) });
        let in_force =
            InForce { memory: limit(200), cpu: CpuMax::NONE, weight: None, swap_max: None };
        reconciler.limits_read_back(&containers.get("1").unwrap(), in_force);
        assert_eq!(containers.get("1").unwrap().limit, limit(100));
        // After an update whose result is unknown, the kernel's limit counts.
        containers.set_update("1", Update::Unconfirmed);
        reconciler.limits_read_back(&containers.get("1").unwrap(), in_force);
        let now = containers.get("1").unwrap();
        assert_eq!((now.limit, now.update), (limit(200), Update::Over));
    }
}

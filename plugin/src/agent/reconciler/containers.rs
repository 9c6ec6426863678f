//! Compares the containers' desired values with their cgroup files, and repairs the files.

use std::sync::Arc;
use std::time::Duration;

use plimsoll_core::incident::Incident;
use plimsoll_core::outcome::Outcome;
use plimsoll_core::policy::contention::{REPAIRS, RepairDecision};
use plimsoll_core::policy::{KNOBS, Protection};
use plimsoll_core::units::{Bytes, CPU_MAX, Knob};
use tracing::{debug, info, warn};

use super::compare::{Comparison, LimitsInForce, Write, all_writes, compare};
use super::updater::{FinishedBatch, PendingUpdate, QUIET};
use super::work::WorkItem;
use super::{BATCH, DueChecks, REPAIR_CHECK_DELAY, Reconciler, STORE_RETRY_DELAY};
use crate::cgroup::{CPU_WEIGHT, CgroupError, SWAP_MAX};
use crate::in_own_thread;
use crate::state::container::{Container, DesiredState};
use crate::state::update_phase::{LimitMeaning, UpdatePhase, UpdateResult};

fn log_unreadable(container: &Container, error: &CgroupError) {
    let Container { pod, name, .. } = container;
    let outcome = Outcome::from(error);
    if outcome == Outcome::Gone {
        debug!(pod, container = name, %error, %outcome, "cannot read the container's cgroup");
    } else {
        warn!(pod, container = name, %error, %outcome, "cannot read the container's cgroup");
    }
}

impl Reconciler {
    /// Compares the containers' desired values with their files, and repairs the files. Each flag
    /// in `batch` says whether inotify has reported a write to the container's files.
    pub(super) fn check_containers(&mut self, batch: &[(String, bool)]) {
        let enforces = self.containers.settings().enforces();
        let mut pending = Vec::new();
        for (id, touched) in batch {
            let Some(container) = self.containers.get(id) else { continue };
            // Skip the container: its next check follows at the end of its update.
            if !container.phase.may_check() {
                continue;
            }
            // Watch before the comparison, because another program may write the files afterwards.
            self.watch_container(&container);
            let result = compare(&self.containers, &self.root, &container);
            if !self.containers.is_current(&container) {
                // A newer event has changed the container, so this comparison is outdated.
                self.schedule(Duration::ZERO, WorkItem::Container(id.clone()));
                continue;
            }
            match result {
                Ok(comparison) => {
                    pending
                        .extend(self.handle_comparison(&container, comparison, *touched, enforces));
                }
                Err(CgroupError::Gone(_)) if container.started && container.has_had_processes => {
                    self.on_ended(&container);
                }
                Err(CgroupError::Gone(_)) => {
                    if let Some(cgroup) = &container.cgroup {
                        // The cgroup does not exist yet, so there is nothing to watch.
                        self.unwatch(cgroup);
                    }
                    self.claim_without_cgroup(&container);
                }
                Err(error) => log_unreadable(&container, &error),
            }
        }
        while !pending.is_empty() {
            let batch = pending.drain(..BATCH.min(pending.len())).collect();
            // This send cannot fail, because the receiver exists until this task ends.
            let _ = self.updater.send(batch);
        }
    }

    /// Handles the result of a container's comparison. Returns a request if the runtime must store
    /// values.
    fn handle_comparison(
        &mut self,
        container: &Arc<Container>,
        comparison: Comparison,
        touched: bool,
        enforces: bool,
    ) -> Option<PendingUpdate> {
        let is_in_force = comparison.in_force.is_some();
        if let Some(in_force) = comparison.in_force {
            if container.started {
                self.containers.set_has_had_processes(&container.id);
            }
            self.limits_read_back(container, in_force);
        }
        // The plugin may have adopted the limit in force as the container's limit.
        let now = self.containers.get(&container.id)?;
        if !now.phase.is_current(&container.phase) {
            self.schedule(Duration::ZERO, WorkItem::Container(container.id.clone()));
            return None;
        }
        let container = &now;
        if comparison.writes.is_empty() {
            if comparison.desired_state.is_unmanaged() {
                return self.unmanage(container, &comparison, enforces, is_in_force);
            }
            let high = comparison.desired_state.value(Knob::High);
            if container.phase.is_in_files_only(high) && may_request(container, &comparison) {
                // The runtime may be busy for a long time, or refuse the request each time.
                let retry_from = tokio::time::Instant::now().checked_sub(STORE_RETRY_DELAY);
                let is_recent =
                    retry_from.is_none_or(|from| container.phase.has_requested_values_since(from));
                if !is_recent && self.containers.until_quiet(QUIET).is_zero() {
                    let writes = all_writes(&comparison.desired_state);
                    return self.request_values(container, &comparison, writes, enforces, false);
                }
                self.containers.on_phase(&container.id, UpdatePhase::write_files_only);
                self.schedule(STORE_RETRY_DELAY, WorkItem::Container(container.id.clone()));
            }
            self.set_claim(container, comparison.claim);
            self.settle(container, &comparison.desired_state, is_in_force);
            return None;
        }
        self.repair(container, comparison, touched, enforces)
    }

    /// Sets the protection that a container needs, unless a newer event has changed the container.
    fn set_claim(&self, container: &Container, claim: Protection) {
        if let Some(place) = &container.place {
            let is_current = || self.containers.is_current(container);
            self.levels.claim_if(place, &container.id, claim, is_current);
        }
    }

    /// Checks whether an update has taken effect after the runtime reported it as applied. After a
    /// failed or unconfirmed update, the plugin treats the limits in force as desired. The plugin
    /// does not request the update again, because a late limit decrease may cause an OOM kill.
    pub(super) fn limits_read_back(&mut self, container: &Container, in_force: LimitsInForce) {
        let page = self.containers.settings().node.page_size;
        let LimitsInForce { memory, cpu, weight, swap_max } = in_force;
        let is_memory = memory.is_same(container.limit, page);
        let is_cpu = cpu.is(container.cpu);
        let (meaning, result) = (container.phase.limit_meaning(), container.phase.result());
        if meaning == LimitMeaning::Foreign && result != Some(UpdateResult::Applied) {
            return;
        }
        if result == Some(UpdateResult::Applied) {
            let is_weight = weight.is_none_or(|weight| container.cpu_shares.is(weight));
            let is_swap = container.swap_max.is_none_or(|wanted| swap_max == Some(wanted));
            let mut is_made = true;
            let text = |swap_max: Option<Bytes>| {
                swap_max.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string())
            };
            // Whether the plugin itself has requested another limit meanwhile.
            let is_own = meaning != LimitMeaning::Result;
            for (knob, desired, observed, is_so) in [
                (
                    Knob::Max.file_name(),
                    container.limit.to_string(),
                    memory.to_string(),
                    is_memory || is_own,
                ),
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
            // The metrics count a deferred limit decrease as deferred, not as applied.
            let outcome = if is_made { Outcome::Applied } else { Outcome::Failed };
            if !is_made || container.limit <= container.asked {
                self.reports.metrics.resized(outcome);
            }
        }
        let is_adopted = !is_memory && meaning != LimitMeaning::Overtaken;
        if !is_memory && !is_adopted {
            self.request_again(container, memory);
        }
        self.containers.read_back(
            container,
            is_adopted.then_some(memory),
            (!is_cpu).then_some(cpu),
        );
    }

    /// Handles an unmanaged container whose files have their original values. Sends these values to
    /// the runtime once, then forgets the original values.
    fn unmanage(
        &mut self,
        container: &Arc<Container>,
        comparison: &Comparison,
        enforces: bool,
        is_in_force: bool,
    ) -> Option<PendingUpdate> {
        let was_sent = self.containers.on_phase(&container.id, UpdatePhase::end_unmanaging);
        let pending = if was_sent == Some(true) {
            self.containers.restored(container);
            None
        } else {
            self.containers.on_phase(&container.id, UpdatePhase::begin_unmanaging);
            let writes = all_writes(&comparison.desired_state);
            self.request_values(container, comparison, writes, enforces, false)
        };
        self.set_claim(container, comparison.claim);
        if pending.is_none() {
            self.settle(container, &comparison.desired_state, is_in_force);
        }
        pending
    }

    /// Returns a request that makes the runtime set these values of a container.
    fn request_values(
        &mut self,
        container: &Arc<Container>,
        comparison: &Comparison,
        mut writes: Vec<Write>,
        enforces: bool,
        is_foreign: bool,
    ) -> Option<PendingUpdate> {
        let now = tokio::time::Instant::now();
        let begin = |phase: &mut UpdatePhase| phase.begin_values_request(now);
        let begun = self.containers.on_phase(&container.id, begin)?;
        if begun && let Some(LimitsInForce { memory, .. }) = comparison.in_force {
            writes.push(Write { knob: Knob::Max, observed: memory, desired: memory });
        }
        // The repair history does not count a repair after a write by the runtime itself. Such a
        // repair counts as attempt 1 here.
        let attempt = self.contention.repairs(&container.id).max(1);
        Some(PendingUpdate {
            container: self.containers.get(&container.id)?,
            writes,
            is_limit_request: false,
            attempt,
            queued_at: now,
            swap_max: comparison.swap_max,
            enforces,
            is_foreign,
        })
    }

    /// Sets the protection that a container without a cgroup needs from the cgroups above it.
    /// Either the container has not started yet, or its processes are in another cgroup (Kata).
    pub(super) fn claim_without_cgroup(&self, container: &Container) {
        let record = self.containers.record(container);
        let desired_state = self.containers.decide(container, &record);
        if let Some(claim) = desired_state.desired.claim {
            self.set_claim(container, claim);
        }
    }

    /// Repairs each file of a container that does not have its desired value. Returns a request if
    /// the runtime must set values.
    fn repair(
        &mut self,
        container: &Arc<Container>,
        comparison: Comparison,
        touched: bool,
        enforces: bool,
    ) -> Option<PendingUpdate> {
        let is_stored = container.phase.has_stored(&comparison.desired_state.stored_values());
        if is_stored && !self.containers.settings().config.repair {
            let Container { pod, name, .. } = container.as_ref();
            debug!(
                pod,
                container = name,
                "repair is false, so the plugin leaves the changed value"
            );
            return None;
        }
        // Writes by the runtime for its client do not count as changes by another program.
        let is_foreign = is_stored && !self.contention.is_expected(&container.id);
        let desired = comparison.desired_state.values();
        let now = std::time::Instant::now();
        match self.contention.judge(container.id.clone(), desired, touched, now) {
            // The runtime and systemd already store the desired values. Another program changed
            // only the files, so write only the files.
            RepairDecision::Repair if is_stored && self.contention.repairs(&container.id) <= 1 => {
                self.write_files(container, comparison.writes, is_foreign);
            }
            RepairDecision::Repair => {
                if let Some(place) = &container.place {
                    // Until the container has the new values, the cgroups above it must provide the
                    // larger of the current and the new protection.
                    let claim = comparison.claim.max(comparison.held.protection());
                    let is_current = || self.containers.is_current(container);
                    self.levels.claim_at_least_if(place, &container.id, claim, is_current);
                }
                self.containers.remember(container, comparison.held);
                return self.repair_in_runtime(container, comparison, enforces, is_foreign);
            }
            RepairDecision::Wait(wait) => {
                self.schedule(wait, WorkItem::Container(container.id.clone()))
            }
            RepairDecision::GiveUp => {
                self.containers.on_phase(&container.id, UpdatePhase::give_up_values);
                for Write { knob, observed, desired } in comparison.writes {
                    let what = Incident::Contended { knob, desired, observed, repairs: REPAIRS };
                    self.reports.report(&container.as_ref().into(), &what);
                }
            }
            RepairDecision::Leave => {}
        }
        None
    }

    /// Repairs a container through the runtime. Writes the files directly if the runtime would
    /// lower the memory limit.
    fn repair_in_runtime(
        &mut self,
        container: &Arc<Container>,
        mut comparison: Comparison,
        enforces: bool,
        is_foreign: bool,
    ) -> Option<PendingUpdate> {
        if !may_request(container, &comparison) {
            self.containers.on_phase(&container.id, UpdatePhase::write_files_only);
            self.write_files(container, comparison.writes, is_foreign);
            return None;
        }
        let writes = std::mem::take(&mut comparison.writes);
        if comparison.desired_state.is_unmanaged() {
            self.containers.on_phase(&container.id, UpdatePhase::begin_unmanaging);
            let all = all_writes(&comparison.desired_state);
            let pending = self.request_values(container, &comparison, all, enforces, false);
            // The request may have to wait until the runtime sends no events. Write the files now,
            // so that memory.high does not throttle the container meanwhile.
            if let Some(pending) = &pending {
                self.write_files(&pending.container, writes, false);
            }
            return pending;
        }
        self.request_values(container, &comparison, writes, enforces, is_foreign)
    }

    /// Writes a container's files without the runtime, in a thread. A write that lowers memory.high
    /// returns only after the kernel has reclaimed memory.
    pub(super) fn write_files(
        &mut self,
        container: &Arc<Container>,
        writes: Vec<Write>,
        is_foreign: bool,
    ) {
        let Some(path) = container.cgroup.clone() else { return };
        let (root, reports) = (self.root.clone(), self.reports.clone());
        let (containers, decided_for) = (self.containers.clone(), container.clone());
        // inotify reports the written files, and the next check reads the result.
        in_own_thread("write", move || {
            for Write { knob, desired, observed } in writes {
                // Since the decision, an event has changed the container, or the container has
                // ended. Another check follows that event.
                if !containers.is_current(&decided_for) {
                    return;
                }
                match root.cgroup(&path).and_then(|cgroup| cgroup.write_knob(knob, desired)) {
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
        self.containers.on_phase(&container.id, UpdatePhase::write);
        self.schedule(REPAIR_CHECK_DELAY, WorkItem::Container(container.id.clone()));
    }

    /// Handles the result of a batch of requests. Schedules checks of the batch's containers.
    pub(super) fn on_finished_batch(&mut self, done: FinishedBatch, due: &mut DueChecks) {
        for pending in &done.batch {
            let container = &pending.container;
            let id = &container.id;
            let was_sent = done.result.as_ref().is_some_and(|result| result.was_sent(id));
            self.containers.on_phase(id, |phase| phase.answered(was_sent));
            let Some(result) = &done.result else {
                self.containers.on_phase(id, UpdatePhase::end_unmanaging);
                // The next synchronization checks all containers.
                self.contention.forget(id);
                continue;
            };
            if result.dropped.contains(id) {
                self.containers.on_phase(id, UpdatePhase::end_unmanaging);
            }
            if pending.is_foreign && was_sent {
                for &Write { knob, desired, observed } in pending.changes() {
                    let repaired = Incident::Repaired { knob, desired, observed };
                    self.reports.report(&container.as_ref().into(), &repaired);
                }
            }
            if !pending.is_limit_request && result.busy.contains(id) {
                self.containers.on_phase(id, UpdatePhase::write_files_only);
                let writes = pending.changes().copied().collect();
                self.write_files(container, writes, pending.is_foreign);
                continue;
            }
            due.containers.entry(container.id.clone()).or_default();
        }
    }

    pub(super) fn settle(
        &mut self,
        container: &Container,
        desired_state: &DesiredState,
        is_in_force: bool,
    ) {
        let is_unverified = self.containers.settle(container, desired_state);
        self.contention.settle(&container.id);
        let outcome = match is_unverified {
            _ if !is_in_force => Outcome::Unresolved,
            false => Outcome::Unchanged,
            true => Outcome::Applied,
        };
        let values = KNOBS.map(|knob| desired_state.value(knob).map(|value| value.to_string()));
        let [min, low, high] = values.map(|value| value.unwrap_or_else(|| "unknown".to_owned()));
        let Container { pod, name, .. } = container;
        if outcome == Outcome::Applied {
            info!(pod, container = name, min, low, high, %outcome, "verified");
        } else {
            debug!(pod, container = name, min, low, high, %outcome, "verified");
        }
    }

    /// Handles a container whose cgroup was removed. The runtime may report the container's end
    /// later, or never.
    pub(super) fn on_ended(&mut self, container: &Container) {
        debug!(pod = container.pod, container = container.name, outcome = %Outcome::Gone, "the \
            container has ended");
        self.levels.release(&container.id);
        self.contention.forget(&container.id);
        self.containers.on_phase(&container.id, UpdatePhase::lose_cgroup);
        if let Some(cgroup) = &container.cgroup {
            self.unwatch(cgroup);
        }
    }
}

/// Returns whether a request to the runtime is safe. With each update, the runtime writes the limit
/// that it has stored. A stored limit below the limit in force could cause an OOM kill.
fn may_request(container: &Container, comparison: &Comparison) -> bool {
    comparison.in_force.is_none_or(|in_force| in_force.memory <= container.limit)
}

#[cfg(test)]
mod tests {
    use nri::{Identity, Stub};
    use plimsoll_core::units::{Bytes, CpuMax, Limit};

    use super::*;
    use crate::agent::node::Node;
    use crate::config::Config;
    use crate::state::testing::{TestNode, container};

    fn limit(mib: u64) -> Limit {
        Limit::Bytes(Bytes::new(mib << 20))
    }

    #[tokio::test]
    async fn observed_limits_are_adopted_only_after_updates() {
        let host = TestNode::new("").host;
        let node = Node::open(host.path(), Config::default()).unwrap();
        let containers = node.containers().clone();
        let (service, tasks) = node.into_service(Box::new(|_| {}));
        let stub = Stub::external(Identity::new("90", "plimsoll").unwrap(), service);
        let (mut reconciler, _reader, _memory) = tasks.reconciler(stub.runtime());
        containers.insert(Container { started: true, ..container("1", 100) });
        let in_force =
            LimitsInForce { memory: limit(200), cpu: CpuMax::NONE, weight: None, swap_max: None };
        reconciler.limits_read_back(&containers.get("1").unwrap(), in_force);
        assert_eq!(containers.get("1").unwrap().limit, limit(100));
        // The plugin knows no update that the runtime could report as applied, so the result is
        // unknown. The plugin then adopts the limit in force.
        containers.on_phase("1", UpdatePhase::applied);
        reconciler.limits_read_back(&containers.get("1").unwrap(), in_force);
        let now = containers.get("1").unwrap();
        assert_eq!((now.limit, now.phase.result()), (limit(200), Some(UpdateResult::ReadBack)));
    }
}

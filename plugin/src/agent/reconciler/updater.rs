//! The task that updates containers through the runtime.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use nri::UpdateError;
use nri::api::ContainerUpdate;
use plimsoll_core::outcome::Outcome;
use plimsoll_core::units::{Bytes, Knob};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::compare::Write;
use super::wire::update;
use crate::state::container::Container;
use crate::state::containers::Containers;

/// The task that updates containers through the runtime. The runtime stores the values of each
/// update, so later updates do not undo these values. The task is separate from the reconcile task,
/// because a runtime may need a long time for an update.
pub(super) struct Updater {
    pub(super) containers: Arc<Containers>,
    pub(super) runtime: nri::Runtime,
    pub(super) updates: mpsc::UnboundedReceiver<Vec<PendingUpdate>>,
    pub(super) done: mpsc::UnboundedSender<FinishedBatch>,
}

impl Updater {
    pub(super) async fn run(mut self) {
        while let Some(batch) = self.updates.recv().await {
            let result = self.write(&batch).await;
            if self.done.send(FinishedBatch { batch, result }).is_err() {
                return;
            }
        }
    }

    /// Sends a batch of requests. Returns the results. Returns `None` if no runtime is connected.
    pub(super) async fn write(&self, batch: &[PendingUpdate]) -> Option<BatchResult> {
        let mut result = BatchResult::default();
        let (first, mut single): (Vec<&PendingUpdate>, Vec<&PendingUpdate>) =
            batch.iter().partition(|pending| pending.attempt == 1);
        if !first.is_empty() {
            match self.send(&first, true).await {
                Ok(dropped) => result.dropped.extend(dropped),
                Err(SendError::NotConnected) => return None,
                Err(SendError::Busy) => first.iter().for_each(|pending| result.was_busy(pending)),
                // The runtime does not say for which container the update failed.
                Err(SendError::Failed(_)) => single.extend(first),
            }
        }
        for pending in single {
            // containerd gives the reason of a failure only for a request without `ignore_failure`.
            match self.send(&[pending], false).await {
                Ok(dropped) => result.dropped.extend(dropped),
                Err(SendError::NotConnected) => return None,
                Err(SendError::Busy) => result.was_busy(pending),
                Err(SendError::Failed(error)) => {
                    log_rejected(&pending.container, &error);
                    result.rejected.insert(pending.container.id.clone());
                }
            }
        }
        let sent = batch.iter().filter(|pending| result.was_sent(&pending.container.id));
        for pending in sent {
            let PendingUpdate { container, attempt, .. } = pending;
            for Write { knob, observed, desired } in pending.changes() {
                info!(
                    pod = container.pod,
                    container = container.name,
                    knob = knob.file_name(),
                    %desired,
                    %observed,
                    attempt,
                    "changing a running container"
                );
            }
        }
        Some(result)
    }

    /// Sends the requests that are still valid, once the runtime has sent no event for [`QUIET`].
    /// Returns the IDs of the containers whose requests were outdated.
    pub(super) async fn send(
        &self,
        pending: &[&PendingUpdate],
        ignore_failure: bool,
    ) -> Result<Vec<String>, SendError> {
        let lowers = |write: &Write| write.knob == Knob::Max && write.desired < write.observed;
        let is_decrease = pending.iter().flat_map(|pending| &pending.writes).any(lowers);
        let since = Instant::now();
        loop {
            let wait = self.containers.until_quiet(QUIET);
            if wait.is_zero() {
                break;
            }
            // Do not wait longer, because memory.high throttles the container's growth meanwhile.
            if is_decrease && since.elapsed() >= DECREASE_TIMEOUT {
                return Err(SendError::Failed(format!(
                    "the runtime was not quiet for {QUIET:?} within {DECREASE_TIMEOUT:?}; the \
                     plugin tries again later"
                )));
            }
            if since.elapsed() >= VALUES_TIMEOUT {
                return Err(SendError::Busy);
            }
            tokio::time::sleep(wait).await;
        }
        let (current, outdated): (Vec<&PendingUpdate>, Vec<&PendingUpdate>) =
            pending.iter().partition(|pending| self.is_current(pending));
        let dropped = outdated.into_iter().map(|pending| pending.container.id.clone()).collect();
        let updates: Vec<_> =
            current.into_iter().map(|pending| pending.update(ignore_failure)).collect();
        if updates.is_empty() {
            return Ok(dropped);
        }
        match timeout(UPDATE_TIMEOUT, self.runtime.update_containers(updates)).await {
            Ok(Ok(failed)) if failed.is_empty() => Ok(dropped),
            Ok(Ok(failed)) => Err(SendError::Failed(format!(
                "the runtime failed to update {} containers",
                failed.len()
            ))),
            Ok(Err(UpdateError::NotConnected)) => Err(SendError::NotConnected),
            Ok(Err(error)) => Err(SendError::Failed(error.to_string())),
            Err(_) => Err(SendError::Failed(format!(
                "no answer from the runtime within {UPDATE_TIMEOUT:?}"
            ))),
        }
    }

    /// Returns whether a request is still valid after its wait. During the wait, the plugin may
    /// have changed to observe mode, or the container may have got another limit.
    pub(super) fn is_current(&self, pending: &PendingUpdate) -> bool {
        if pending.enforces && !self.containers.settings().enforces() {
            return false;
        }
        // A request for another limit is no longer valid after a newer update by the user. A
        // request for the policy's values is no longer valid after any event, because another check
        // follows.
        if pending.is_limit_request {
            let now = self.containers.get(&pending.container.id);
            now.is_some_and(|now| {
                now.phase.limit_origin() == pending.container.phase.limit_origin()
            })
        } else {
            self.containers.is_current(&pending.container)
        }
    }
}

impl BatchResult {
    /// Returns whether the runtime has accepted the request for a container.
    pub(super) fn was_sent(&self, id: &str) -> bool {
        !self.dropped.contains(id) && !self.rejected.contains(id)
    }

    /// Records that the plugin dropped a request because the runtime kept sending events.
    fn was_busy(&mut self, pending: &PendingUpdate) {
        let Container { id, pod, name, .. } = pending.container.as_ref();
        debug!(
            pod,
            container = name,
            "the runtime was not quiet for {QUIET:?} within {VALUES_TIMEOUT:?}; the plugin does \
             not send the request"
        );
        self.rejected.insert(id.clone());
        self.busy.insert(id.clone());
    }
}

/// Reason why the runtime has not made an update.
pub(super) enum SendError {
    NotConnected,
    /// The runtime kept sending events for [`VALUES_TIMEOUT`].
    Busy,
    Failed(String),
}

impl PendingUpdate {
    /// Returns the writes that change a file's value.
    pub(super) fn changes(&self) -> impl Iterator<Item = &Write> {
        self.writes.iter().filter(|write| write.observed != write.desired)
    }

    pub(super) fn update(&self, ignore_failure: bool) -> ContainerUpdate {
        let values = self.writes.iter().map(|write| (write.knob, write.desired));
        ContainerUpdate { ignore_failure, ..update(&self.container.id, values, self.swap_max) }
    }
}

/// A pending update of a container.
#[derive(Debug)]
pub(super) struct PendingUpdate {
    pub(super) container: Arc<Container>,
    pub(super) writes: Vec<Write>,
    /// Whether the plugin requests another limit. With `false`, the plugin requests the values of
    /// the policy.
    pub(super) is_limit_request: bool,
    pub(super) attempt: u32,
    /// Swap limit of the container, if there is one.
    pub(super) swap_max: Option<Bytes>,
    /// Whether the plugin was in enforce mode when it decided the writes.
    pub(super) enforces: bool,
    /// Whether another program has overwritten file values that the runtime had also stored.
    pub(super) is_foreign: bool,
}

/// A batch of requests that the task has finished.
#[derive(Debug)]
pub(super) struct FinishedBatch {
    pub(super) batch: Vec<PendingUpdate>,
    /// Results of the containers. `None` if no runtime was connected.
    pub(super) result: Option<BatchResult>,
}

/// Containers of a batch that the runtime did not update, by ID.
#[derive(Debug, Default)]
pub(super) struct BatchResult {
    /// Containers whose request was outdated before the plugin could send it.
    pub(super) dropped: HashSet<String>,
    /// Containers whose request failed: the runtime refused it, did not answer, or kept sending
    /// events.
    pub(super) rejected: HashSet<String>,
    /// Containers whose request the plugin did not send, because the runtime kept sending events.
    pub(super) busy: HashSet<String>,
}

/// Maximum time that a runtime may take for one request.
pub(super) const UPDATE_TIMEOUT: Duration = Duration::from_secs(30);

/// Time without events after which the plugin may ask the runtime to update containers. Without the
/// fix containerd/nri#301, a runtime takes its two locks in one order for events, and in the
/// opposite order for requests of plugins. This runtime deadlocks if a request arrives while a
/// plugin answers one event and another event waits (containerd/containerd#13733).
pub(super) const QUIET: Duration = Duration::from_secs(1);

/// Maximum time for which a request for values waits until the runtime sends no more events.
/// Afterwards, the plugin writes the files itself.
const VALUES_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum time for which a request for a limit decrease waits until the runtime sends no more
/// events.
pub(super) const DECREASE_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn log_rejected(container: &Container, error: &str) {
    warn!(
        pod = container.pod,
        container = container.name,
        error,
        outcome = %Outcome::Rejected,
        "the runtime did not update the container"
    );
}

#[cfg(test)]
mod tests {
    use plimsoll_core::units::Limit;

    use super::*;
    use crate::state::testing::{TestNode, container};

    fn pending(container: &Arc<Container>, knob: Knob) -> PendingUpdate {
        let write = Write { knob, observed: Limit::Max, desired: Limit::Bytes(Bytes::ZERO) };
        PendingUpdate {
            container: container.clone(),
            writes: vec![write],
            is_limit_request: knob == Knob::Max,
            attempt: 1,
            swap_max: None,
            enforces: true,
            is_foreign: false,
        }
    }

    #[test]
    fn requests_are_outdated_by_newer_events() {
        let TestNode { containers, .. } = TestNode::new("");
        let state = containers.insert(container("1", 100));
        let [values, limit] = [Knob::High, Knob::Max].map(|knob| pending(&state, knob));
        let (_, updates) = mpsc::unbounded_channel();
        let (done, _) = mpsc::unbounded_channel();
        let runtime = nri::Runtime::default();
        let updater = Updater { containers: containers.clone(), runtime, updates, done };
        assert!(updater.is_current(&values) && updater.is_current(&limit));
        // The release of a container from throttling does not change the limit that the user asks
        // for.
        containers.on_phase("1", |phase| phase.release(Limit::Max));
        assert!(!updater.is_current(&values) && updater.is_current(&limit));
        let update = containers.next_update();
        containers.accept("1", update, false, |_| {});
        assert!(updater.is_current(&limit), "the update sets no limit");
        containers.accept("1", update, true, |_| {});
        assert!(!updater.is_current(&values) && !updater.is_current(&limit));
        containers.remove("1");
        assert!(!updater.is_current(&values) && !updater.is_current(&limit));
    }
}

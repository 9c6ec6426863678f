//! The task that updates containers through the runtime.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use nri::UpdateError;
use nri::api::ContainerUpdate;
use plimsoll_core::outcome::Outcome;
use plimsoll_core::units::{Bytes, Knob};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::compare::Write;
use super::wire::update;
use crate::state::container::Container;
use crate::state::containers::Containers;

/// The task that updates containers through the runtime. The runtime stores the values of each
/// update, so later updates do not undo these values. The task is separate from the reconcile task,
/// because a runtime may need a long time for an update.
pub(super) struct Updater {
    containers: Arc<Containers>,
    runtime: nri::Runtime,
    updates: mpsc::UnboundedReceiver<Vec<PendingUpdate>>,
    done: mpsc::UnboundedSender<FinishedBatch>,
    /// Requests that wait for a quiet runtime. Requests for limits come first, because a container
    /// that needs another limit may be OOM-killed meanwhile.
    queue: VecDeque<Request>,
}

/// One request to the runtime.
#[derive(Debug)]
struct Request {
    batch: Vec<PendingUpdate>,
    /// Whether the request is for one container, so that the runtime gives the reason of a failure.
    is_alone: bool,
}

impl Request {
    fn alone(pending: PendingUpdate) -> Self {
        Self { batch: vec![pending], is_alone: true }
    }

    fn is_for_limit(&self) -> bool {
        self.batch.iter().any(|pending| pending.is_limit_request)
    }

    fn is_decrease(&self) -> bool {
        let lowers = |write: &Write| write.knob == Knob::Max && write.desired < write.observed;
        self.batch.iter().flat_map(|pending| &pending.writes).any(lowers)
    }

    /// Maximum time for which the request waits for a quiet runtime.
    fn timeout(&self) -> Duration {
        if self.is_decrease() { DECREASE_TIMEOUT } else { VALUES_TIMEOUT }
    }

    /// Returns the time until which the request waits for a quiet runtime.
    fn deadline(&self, now: Instant) -> Instant {
        let oldest = self.batch.iter().map(|pending| pending.queued_at).min();
        oldest.unwrap_or(now) + self.timeout()
    }
}

impl Updater {
    pub(super) fn new(
        containers: Arc<Containers>,
        runtime: nri::Runtime,
        updates: mpsc::UnboundedReceiver<Vec<PendingUpdate>>,
        done: mpsc::UnboundedSender<FinishedBatch>,
    ) -> Self {
        Self { containers, runtime, updates, done, queue: VecDeque::new() }
    }

    pub(super) async fn run(mut self) {
        while let Some((request, is_quiet)) = self.next().await {
            let result = if is_quiet { self.send(&request).await } else { Err(SendError::Busy) };
            if let Some(finished) = self.finish(request, result)
                && self.done.send(finished).is_err()
            {
                return;
            }
        }
    }

    /// Waits until the runtime has sent no event for [`QUIET`], or a request has waited too long.
    /// Returns the request, and whether the runtime is quiet. Returns `None` once no more requests
    /// can arrive.
    async fn next(&mut self) -> Option<(Request, bool)> {
        loop {
            while let Ok(batch) = self.updates.try_recv() {
                self.enqueue(batch);
            }
            let wait = self.containers.until_quiet(QUIET);
            if wait.is_zero()
                && let Some(request) = self.queue.pop_front()
            {
                return Some((request, true));
            }
            let now = Instant::now();
            if let Some(late) = self.queue.iter().position(|request| request.deadline(now) <= now) {
                return Some((self.queue.remove(late)?, false));
            }
            let deadline = self.queue.iter().map(|request| request.deadline(now)).min();
            let until = deadline.map(|deadline| deadline.min(now + wait));
            tokio::select! {
                batch = self.updates.recv() => self.enqueue(batch?),
                () = sleep_until(until.unwrap_or(now)), if until.is_some() => {}
            }
        }
    }

    /// Adds requests to the queue. The runtime gives the reason of a failure only for a request
    /// about one container, so each repeated attempt becomes a request of its own.
    fn enqueue(&mut self, batch: Vec<PendingUpdate>) {
        let (batch, repeated): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|pending| pending.attempt == 1);
        if !batch.is_empty() {
            self.queue.push_back(Request { batch, is_alone: false });
        }
        for request in repeated.into_iter().map(Request::alone) {
            if request.is_for_limit() {
                self.queue.insert(self.first_values(), request);
            } else {
                self.queue.push_back(request);
            }
        }
    }

    /// Returns the position in the queue after all requests for limits.
    fn first_values(&self) -> usize {
        self.queue.partition_point(Request::is_for_limit)
    }

    /// Returns the results of a request. Returns `None` if the containers of a failed request need
    /// a request each.
    fn finish(
        &mut self,
        request: Request,
        sent: Result<Vec<String>, SendError>,
    ) -> Option<FinishedBatch> {
        let mut result = BatchResult::default();
        match sent {
            Ok(dropped) => result.dropped.extend(dropped),
            Err(SendError::NotConnected) => {
                return Some(FinishedBatch { batch: request.batch, result: None });
            }
            // Without a limit decrease, the plugin writes the files itself.
            Err(SendError::Busy) if !request.is_decrease() => {
                request.batch.iter().for_each(|pending| result.was_busy(pending));
            }
            Err(SendError::Busy) => result.was_rejected(
                &request,
                &format!(
                    "the runtime was not quiet for {QUIET:?} within {DECREASE_TIMEOUT:?}; the \
                     plugin tries again later"
                ),
            ),
            // Do not send a request for each container now: each could take as long again.
            Err(SendError::NoAnswer) => result.was_rejected(
                &request,
                &format!("no answer from the runtime within {UPDATE_TIMEOUT:?}"),
            ),
            // The runtime does not say for which container the update failed.
            Err(SendError::Failed(_)) if !request.is_alone => {
                for pending in request.batch.into_iter().rev() {
                    self.queue.insert(self.first_values(), Request::alone(pending));
                }
                return None;
            }
            Err(SendError::Failed(error)) => result.was_rejected(&request, &error),
        }
        let sent = request.batch.iter().filter(|pending| result.was_sent(&pending.container.id));
        sent.for_each(PendingUpdate::log_sent);
        Some(FinishedBatch { batch: request.batch, result: Some(result) })
    }

    /// Sends the parts of a request that are still valid. Returns the IDs of the containers for
    /// which the request was outdated.
    async fn send(&self, request: &Request) -> Result<Vec<String>, SendError> {
        let (current, outdated): (Vec<&PendingUpdate>, Vec<&PendingUpdate>) =
            request.batch.iter().partition(|pending| self.is_current(pending));
        let dropped = outdated.into_iter().map(|pending| pending.container.id.clone()).collect();
        // containerd gives the reason of a failure only for a request without `ignore_failure`.
        let ignore_failure = !request.is_alone;
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
            Err(_) => Err(SendError::NoAnswer),
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

    /// Records that the runtime has not accepted a request.
    fn was_rejected(&mut self, request: &Request, error: &str) {
        for PendingUpdate { container, .. } in &request.batch {
            warn!(
                pod = container.pod,
                container = container.name,
                error,
                outcome = %Outcome::Rejected,
                "the runtime did not update the container"
            );
            self.rejected.insert(container.id.clone());
        }
    }
}

/// Reason why the runtime has not made an update.
#[derive(Debug)]
enum SendError {
    NotConnected,
    /// The runtime kept sending events for [`VALUES_TIMEOUT`].
    Busy,
    /// The runtime did not answer within [`UPDATE_TIMEOUT`].
    NoAnswer,
    Failed(String),
}

impl PendingUpdate {
    /// Returns the writes that change a file's value.
    pub(super) fn changes(&self) -> impl Iterator<Item = &Write> {
        self.writes.iter().filter(|write| write.observed != write.desired)
    }

    fn log_sent(&self) {
        let Self { container, attempt, .. } = self;
        for Write { knob, observed, desired } in self.changes() {
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
    /// Time of the decision. The wait for a quiet runtime counts from this time.
    pub(super) queued_at: Instant,
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
            attempt: if knob == Knob::Max { 2 } else { 1 },
            queued_at: Instant::now(),
            swap_max: None,
            enforces: true,
            is_foreign: false,
        }
    }

    fn updater(
        containers: &Arc<Containers>,
    ) -> (Updater, mpsc::UnboundedSender<Vec<PendingUpdate>>) {
        let (sender, updates) = mpsc::unbounded_channel();
        let (done, _) = mpsc::unbounded_channel();
        (Updater::new(containers.clone(), nri::Runtime::default(), updates, done), sender)
    }

    #[tokio::test]
    async fn limit_requests_go_before_waiting_values() {
        let TestNode { containers, .. } = TestNode::new("");
        let [first, second] = ["1", "2"].map(|id| containers.insert(container(id, 100)));
        let (mut updater, updates) = updater(&containers);
        for (container, knob) in [(&first, Knob::High), (&first, Knob::Max), (&second, Knob::Max)] {
            updates.send(vec![pending(container, knob)]).unwrap();
        }
        let mut order = Vec::new();
        while order.len() < 3 {
            let (request, is_quiet) = updater.next().await.unwrap();
            assert!(is_quiet);
            order.push((request.is_for_limit(), request.batch[0].container.id.clone()));
        }
        let expected = [(true, "1"), (true, "2"), (false, "1")];
        assert_eq!(order, expected.map(|(is_limit, id)| (is_limit, id.to_owned())));
    }

    #[tokio::test(start_paused = true)]
    async fn all_batches_wait_at_the_same_time() {
        let TestNode { containers, .. } = TestNode::new("");
        let state = containers.insert(container("1", 100));
        let (mut updater, updates) = updater(&containers);
        let _busy = containers.event();
        let start = Instant::now();
        for _ in 0..10 {
            updates.send(vec![pending(&state, Knob::High)]).unwrap();
        }
        for _ in 0..10 {
            assert!(!updater.next().await.unwrap().1, "the runtime is busy");
        }
        assert!(start.elapsed() < VALUES_TIMEOUT + QUIET, "{:?}", start.elapsed());
    }

    #[test]
    fn only_a_failed_batch_is_split() {
        let TestNode { containers, .. } = TestNode::new("");
        let both = ["1", "2"].map(|id| containers.insert(container(id, 100)));
        let (mut updater, _updates) = updater(&containers);
        let request = || Request {
            batch: both.iter().map(|container| pending(container, Knob::High)).collect(),
            is_alone: false,
        };
        let finished = updater.finish(request(), Err(SendError::NoAnswer)).unwrap();
        assert_eq!(finished.result.unwrap().rejected.len(), 2);
        assert!(updater.queue.is_empty(), "each request could take the whole time again");
        let failed = Err(SendError::Failed("refused".to_owned()));
        assert!(updater.finish(request(), failed).is_none());
        let ids = updater.queue.iter().map(|request| request.batch[0].container.id.as_str());
        assert_eq!(ids.collect::<Vec<_>>(), ["1", "2"]);
        assert!(updater.queue.iter().all(|request| request.is_alone));
    }

    #[test]
    fn requests_are_outdated_by_newer_events() {
        let TestNode { containers, .. } = TestNode::new("");
        let state = containers.insert(container("1", 100));
        let [values, limit] = [Knob::High, Knob::Max].map(|knob| pending(&state, knob));
        let (updater, _updates) = updater(&containers);
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

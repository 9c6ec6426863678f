//! Compare what running containers should have with what the kernel holds, and make it so.
//!
//! One task does this, apart from the events: a runtime cannot update containers while it waits for an event's answer. It
//! looks at a container after each start and update, and at all of them after a synchronisation or a change of the
//! configuration. A value counts as applied when it was read back.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use nri::UpdateError;
use nri::api::{ContainerUpdate, LinuxContainerUpdate, LinuxResources};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::cgroup::{CgroupError, CgroupRoot, Knob};
use crate::containers::{Container, Containers, Decided, KNOBS};
use crate::units::{Limit, PageSize};

/// Containers in one request to the runtime, which takes some tenths of a second for each and holds its lock meanwhile.
const BATCH: usize = 8;

/// How long a runtime may take for one request.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(30);

/// After how long to look at a container that was to be updated. The kubelet tries an update again after 10 s.
const LATER: Duration = Duration::from_secs(5);

/// How often a container's values are written before they are left as they are.
const ATTEMPTS: usize = 5;

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// One container.
    Container(String),
    /// One container, after a while: see that an update came about.
    Later(String),
    /// Every container.
    All,
}

/// What became of one container's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// They were changed, and read back as they should be.
    Applied,
    /// They were as they should be.
    Unchanged,
    /// What they should be is not known.
    Unresolved,
    /// The container is gone.
    Gone,
    /// The kernel or the cgroup lacks the file.
    Unsupported,
    /// Somebody else keeps changing them.
    Contended,
    /// The runtime refused to change them.
    Rejected,
    /// They could not be read.
    Failed,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Unresolved => "unresolved",
            Self::Gone => "gone",
            Self::Unsupported => "unsupported",
            Self::Contended => "contended",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
        })
    }
}

/// One file of a container that is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// The file.
    pub knob: Knob,
    /// What it holds.
    pub observed: Limit,
    /// What it should hold.
    pub desired: Limit,
}

/// Compares one container with the kernel.
///
/// # Errors
///
/// When its cgroup cannot be read.
pub fn compare(
    containers: &Containers,
    root: &CgroupRoot,
    container: &Container,
) -> Result<(Decided, Vec<Write>), CgroupError> {
    let page = containers.settings().node.page_size;
    let record = containers.record(&container.uid, &container.name, container.moment);
    let Some(path) = &container.cgroup else {
        return Ok((containers.decide(container, record.as_ref()), Vec::new()));
    };
    let cgroup = root.cgroup(path)?;
    let in_force = cgroup.read(Knob::Max)?;
    let decided = if same(in_force, container.limit, page) {
        containers.decide(container, record.as_ref())
    } else {
        // An update that failed after it was told of, or one that nobody told of: the kernel is right.
        containers.decide(&Container { limit: in_force, ..container.clone() }, record.as_ref())
    };
    let mut writes = Vec::new();
    for knob in KNOBS {
        if let Some(desired) = decided.value(knob) {
            let observed = cgroup.read(knob)?;
            if !same(observed, desired, page) {
                writes.push(Write { knob, observed, desired });
            }
        }
    }
    Ok((decided, writes))
}

/// The kernel keeps whole pages, rounded down.
fn same(observed: Limit, desired: Limit, page: PageSize) -> bool {
    match (observed, desired) {
        (Limit::Bytes(observed), Limit::Bytes(desired)) => observed.floor_to(page) == desired.floor_to(page),
        (observed, desired) => observed == desired,
    }
}

/// The update that brings a container's files to their values.
pub fn update(id: &str, values: impl IntoIterator<Item = (Knob, Limit)>) -> ContainerUpdate {
    let unified = values.into_iter().map(|(knob, value)| (knob.file_name().to_owned(), value.to_string())).collect();
    let resources = LinuxResources { unified, ..Default::default() };
    let linux = LinuxContainerUpdate { resources: Some(resources).into(), ..Default::default() };
    ContainerUpdate { container_id: id.to_owned(), linux: Some(linux).into(), ..Default::default() }
}

/// The task.
#[derive(Debug)]
pub struct Reconciler {
    containers: Arc<Containers>,
    root: Arc<CgroupRoot>,
    runtime: nri::Runtime,
    work: mpsc::UnboundedReceiver<Work>,
    /// Containers to look at again, and how often they were written already.
    retries: BTreeMap<Instant, Vec<(String, usize)>>,
    /// Delays before the second and each later attempt.
    delays: Vec<Duration>,
}

/// What to do about one container.
struct Pending {
    container: Arc<Container>,
    attempt: usize,
    writes: Vec<Write>,
}

impl Reconciler {
    /// A task that takes its work from `work`.
    pub fn new(
        containers: Arc<Containers>,
        root: Arc<CgroupRoot>,
        runtime: nri::Runtime,
        work: mpsc::UnboundedReceiver<Work>,
    ) -> Self {
        let backoff = ExponentialBuilder::new().with_min_delay(Duration::from_millis(200)).with_max_times(ATTEMPTS - 1);
        Self { containers, root, runtime, work, retries: BTreeMap::new(), delays: backoff.build().collect() }
    }

    /// Works until nobody can give it work any more.
    pub async fn run(mut self) {
        loop {
            let due = self.retries.first_key_value().map(|(due, _)| *due);
            // What is new comes first, and with it a new count of attempts.
            let mut todo: Vec<(String, usize)> = Vec::new();
            let mut all = false;
            tokio::select! {
                work = self.work.recv() => match work {
                    Some(work) => all |= self.add(work, &mut todo),
                    None => return,
                },
                () = async { match due { Some(due) => sleep_until(due).await, None => std::future::pending().await } } => {}
            }
            while let Ok(work) = self.work.try_recv() {
                all |= self.add(work, &mut todo);
            }
            while let Some(retries) = self.retries.first_entry().filter(|entry| *entry.key() <= Instant::now()) {
                todo.extend(retries.remove());
            }
            // The same container may be due for several reasons.
            let mut seen = HashSet::new();
            todo.retain(|(id, _)| seen.insert(id.clone()));
            for batch in todo.chunks(BATCH * 16) {
                self.look_at(batch).await;
            }
            if all {
                give_memory_back();
            }
        }
    }

    /// Tells whether it is about all containers.
    fn add(&mut self, work: Work, todo: &mut Vec<(String, usize)>) -> bool {
        match work {
            Work::Container(id) => todo.push((id, 0)),
            Work::Later(id) => self.again(LATER, id, 0),
            Work::All => {
                todo.extend(self.containers.ids().into_iter().map(|id| (id, 0)));
                return true;
            }
        }
        false
    }

    fn again(&mut self, delay: Duration, id: String, attempt: usize) {
        self.retries.entry(Instant::now() + delay).or_default().push((id, attempt));
    }

    /// Before the second look at once, to read back; before later ones longer and longer.
    fn delay(&self, attempt: usize) -> Duration {
        match attempt {
            0 => Duration::ZERO,
            n => self.delays.get(n - 1).copied().unwrap_or(LATER),
        }
    }

    async fn look_at(&mut self, batch: &[(String, usize)]) {
        let known: Vec<_> =
            batch.iter().filter_map(|(id, attempt)| Some((self.containers.get(id)?, *attempt))).collect();
        let (containers, root) = (self.containers.clone(), self.root.clone());
        // The kubelet's checkpoint may be large.
        let looked = tokio::task::spawn_blocking(move || {
            let compared = known.into_iter().map(|(container, attempt)| {
                let result = compare(&containers, &root, &container);
                (container, attempt, result)
            });
            compared.collect::<Vec<_>>()
        });
        let Ok(looked) = looked.await else {
            warn!("looking at containers panicked; they are left as they are until the next event");
            return;
        };
        let mut pending = Vec::new();
        for (container, attempt, result) in looked {
            match result {
                Ok((decided, writes)) if writes.is_empty() => settled(&container, &decided, attempt),
                Ok((_, writes)) if attempt == ATTEMPTS => gave_up(&container, &writes),
                Ok((_, writes)) => pending.push(Pending { container, attempt, writes }),
                // Its cgroup goes a little before the runtime tells.
                Err(CgroupError::Gone(_)) if container.started && attempt < ATTEMPTS => {
                    self.again(self.delay(attempt + 1), container.id.clone(), attempt + 1);
                }
                Err(error) => unreadable(&container, &error),
            }
        }
        for batch in pending.chunks(BATCH) {
            self.write(batch).await;
        }
    }

    /// Writes by way of the runtime, which stores the values, so that later updates do not undo them.
    async fn write(&mut self, batch: &[Pending]) {
        let (first, repeated): (Vec<_>, Vec<_>) = batch.iter().partition(|pending| pending.attempt == 0);
        let mut single: Vec<&Pending> = repeated;
        if !first.is_empty() {
            match self.send(first.iter().map(|pending| pending.update(true)).collect()).await {
                Ok(()) => {}
                // All are brought up with the next synchronisation.
                Err(Unsent::NotConnected) => return,
                // It does not say whose fault it was.
                Err(Unsent::Failed(_)) => single.extend(first),
            }
        }
        for pending in single {
            // Only so does containerd tell why.
            match self.send(vec![pending.update(false)]).await {
                Ok(()) => {}
                Err(Unsent::NotConnected) => return,
                Err(Unsent::Failed(error)) => rejected(&pending.container, &error),
            }
        }
        for Pending { container, attempt, writes } in batch {
            for Write { knob, observed, desired } in writes {
                info!(
                    pod = container.pod,
                    container = container.name,
                    knob = knob.file_name(),
                    %desired,
                    %observed,
                    attempt = attempt + 1,
                    "changing a running container"
                );
            }
            self.again(self.delay(*attempt), container.id.clone(), attempt + 1);
        }
    }

    async fn send(&self, updates: Vec<ContainerUpdate>) -> Result<(), Unsent> {
        match timeout(UPDATE_TIMEOUT, self.runtime.update_containers(updates)).await {
            Ok(Ok(failed)) if failed.is_empty() => Ok(()),
            Ok(Ok(failed)) => Err(Unsent::Failed(format!("the runtime failed to update {} containers", failed.len()))),
            Ok(Err(UpdateError::NotConnected)) => Err(Unsent::NotConnected),
            Ok(Err(error)) => Err(Unsent::Failed(error.to_string())),
            Err(_) => Err(Unsent::Failed(format!("no answer from the runtime within {UPDATE_TIMEOUT:?}"))),
        }
    }
}

/// Why an update was not made.
enum Unsent {
    NotConnected,
    Failed(String),
}

impl Pending {
    fn update(&self, ignore_failure: bool) -> ContainerUpdate {
        let values = self.writes.iter().map(|write| (write.knob, write.desired));
        ContainerUpdate { ignore_failure, ..update(&self.container.id, values) }
    }
}

/// A synchronisation brings every container of the node at once, with all that the runtime knows of it; a fraction stays.
fn give_memory_back() {
    // SAFETY: malloc_trim has no preconditions, and takes the allocator's own locks.
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code)]
    unsafe {
        libc::malloc_trim(0);
    }
}

fn settled(container: &Container, decided: &Decided, attempt: usize) {
    let outcome = match attempt {
        _ if container.cgroup.is_none() => Outcome::Unresolved,
        0 => Outcome::Unchanged,
        _ => Outcome::Applied,
    };
    let values = KNOBS.map(|knob| decided.value(knob).map(|value| value.to_string()));
    let [min, low, high] = values.map(|value| value.unwrap_or_else(|| "unknown".to_owned()));
    if outcome == Outcome::Applied {
        info!(pod = container.pod, container = container.name, min, low, high, %outcome, "verified");
    } else {
        debug!(pod = container.pod, container = container.name, min, low, high, %outcome, "verified");
    }
}

fn gave_up(container: &Container, writes: &[Write]) {
    for Write { knob, observed, desired } in writes {
        warn!(
            pod = container.pod,
            container = container.name,
            knob = knob.file_name(),
            %desired,
            %observed,
            outcome = %Outcome::Contended,
            "the value is not what it was set to after {ATTEMPTS} attempts, leaving it; see above what the runtime said, or who else sets it"
        );
    }
}

fn rejected(container: &Container, error: &str) {
    warn!(
        pod = container.pod,
        container = container.name,
        error,
        outcome = %Outcome::Rejected,
        "the runtime did not update the container"
    );
}

fn unreadable(container: &Container, error: &CgroupError) {
    let outcome = match error {
        CgroupError::Gone(_) => Outcome::Gone,
        CgroupError::Unsupported { .. } => Outcome::Unsupported,
        CgroupError::Malformed { .. } | CgroupError::Io { .. } => Outcome::Failed,
    };
    if outcome == Outcome::Gone && !container.started {
        debug!(pod = container.pod, container = container.name, %error, %outcome, "cannot look at the container");
    } else {
        warn!(pod = container.pod, container = container.name, %error, %outcome, "cannot look at the container");
    }
}

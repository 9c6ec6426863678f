//! Reconciliation of the containers and the cgroups above them. The plugin compares desired and
//! observed values, and writes the desired ones.
//!
//! One task does this, separately from the event handlers. A runtime cannot update containers while
//! it waits for an event's answer. The task checks a container after each start and update. Through
//! inotify, it checks every cgroup that another program writes to or removes. It checks everything
//! periodically and after each synchronization or change of the configuration. A value counts as
//! applied when it was read back.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use nri::UpdateError;
use nri::api::{ContainerUpdate, LinuxContainerUpdate, LinuxMemory, LinuxResources, OptionalInt64};
use plimsoll_core::incident::{Incident, Subject};
use plimsoll_core::outcome::Outcome;
use plimsoll_core::pod::{CgroupPath, PodCgroup};
use plimsoll_core::policy::Protection;
use plimsoll_core::policy::contention::{Contention, REPAIRS, Verdict};
use plimsoll_core::policy::hierarchy::{self, Observed, Standing};
use plimsoll_core::units::{Bytes, CPU_MAX, CpuMax, Knob, Limit};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::agent::levels::{Ancestors, Checked};
use crate::cgroup::watch::{Change, Watch};
use crate::cgroup::{CPU_WEIGHT, CgroupError, CgroupRoot, SWAP_MAX, systemd};
use crate::kubelet::kubepods::{self, Found, id_in};
use crate::report::Reports;
use crate::state::container::{Container, Decided, KNOBS, Update};
use crate::state::containers::Containers;
use crate::state::originals::Values;
use crate::state::pod_view::PodView;

/// Maximum number of containers in one request to the runtime. The runtime takes some tenths of a
/// second for each container, and holds its lock meanwhile.
const BATCH: usize = 8;

/// Time that a runtime may take for one request.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(30);

/// Time without events after which the plugin may ask the runtime to update containers. Without
/// containerd/nri#301, the runtime takes its two locks in one order for events. For requests from
/// plugins it takes them in the other order. If such a request arrives while one event is being
/// answered and another one waits, the runtime deadlocks (containerd/containerd#13733).
const QUIET: Duration = Duration::from_secs(1);

/// Time that a limit decrease waits for a quiet runtime.
const CUT_PATIENCE: Duration = Duration::from_secs(5);

/// Delay before the check of a container whose update the runtime has announced. The runtime does
/// not report a failed update, so the plugin cannot wait forever. But a busy runtime may take long.
/// Until the runtime has set a lower limit, memory.high must stay lowered so that new allocations
/// cause no OOM kill. A request of the plugin during the client's update may also make both stall
/// (containerd/nri#301, and the same in CRI-O).
const LATER: Duration = Duration::from_secs(15);

/// Delay before the next request for a limit while the container is being updated.
const BUSY: Duration = Duration::from_secs(1);

/// Interval of the check of everything. It finds changes to a file that a program keeps open, and
/// changes whose inotify event was lost.
const TICK: Duration = Duration::from_secs(600);

/// Delay before the inspection of a cgroup that the runtime has not reported. A container's cgroup
/// goes a little after the runtime reports the end. The runtime may report a container a little
/// late if it was made during the synchronization.
const PATIENCE: Duration = Duration::from_secs(10);

/// Delay before the check of a repaired file, if inotify reports no change before.
const REPAIRED: Duration = Duration::from_millis(500);

/// Time in which changes of the pods' shares are collected, because each change affects all pods.
const SHARE: Duration = Duration::from_millis(500);

/// Work for the reconcile task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Check a container.
    Container(String),
    /// Check a container whose files the runtime has just written for its client, at a start or by
    /// an update.
    Written(String),
    /// Check later whether the container's update with this number has taken effect.
    Later(String, u64),
    /// Check a container whose update with this number should have taken effect by now.
    Updated(String, u64),
    /// Ask the runtime for another limit of a container.
    Limit {
        /// ID of the container.
        id: String,
        /// The new limit, which does not kill the container.
        limit: Bytes,
        /// Revision of the container at the time of the decision. After a newer revision the
        /// request is void.
        revision: u64,
    },
    /// Check a cgroup above the containers.
    Cgroup(CgroupPath),
    /// Check a file of a cgroup above the containers that another program wrote some time ago.
    Touched(CgroupPath, Knob),
    /// Inspect a cgroup that the runtime may not have reported, or a reserved cgroup that may be
    /// missing.
    Stranger(CgroupPath),
    /// Write the shares of pods that ask for more than the budget.
    Share,
    /// Check every container and every cgroup above.
    All,
}

impl Work {
    /// Requests another limit for a container. The request is void once the user asks for another
    /// limit.
    pub fn limit(container: &Container, limit: Bytes) -> Self {
        Self::Limit { id: container.id.clone(), limit, revision: container.revision }
    }
}

/// A file of a container that does not hold its desired value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// The file.
    pub knob: Knob,
    /// Observed value.
    pub observed: Limit,
    /// Desired value.
    pub desired: Limit,
}

/// A container, compared with the kernel.
#[derive(Debug)]
pub struct Compared {
    /// Desired values.
    pub decided: Decided,
    /// Files that differ.
    pub writes: Vec<Write>,
    /// Protection that the cgroups above must provide for the container.
    pub claim: Protection,
    /// Values that the container's files hold.
    pub held: Values,
    /// Swap limit, if there is one.
    pub swap_max: Option<Bytes>,
    /// Limits that the container's files hold. `None` without a cgroup, or if the container's
    /// processes are not in the cgroup.
    pub in_force: Option<InForce>,
}

/// Observed values of the files that hold the user's limits.
#[derive(Clone, Copy, Debug)]
pub struct InForce {
    /// `memory.max`.
    pub memory: Limit,
    /// `cpu.max`.
    pub cpu: CpuMax,
    /// `cpu.weight`; `None` unless an update was just made, and without the CPU controller.
    pub weight: Option<u64>,
    /// `memory.swap.max`, if it is limited.
    pub swap_max: Option<Bytes>,
}

/// Compares a container with the kernel.
///
/// # Errors
///
/// When the container's cgroup cannot be read.
pub fn compare(
    containers: &Containers,
    root: &CgroupRoot,
    container: &Container,
) -> Result<Compared, CgroupError> {
    let page = containers.settings().node.page_size;
    let record = containers.record(&container.uid, &container.name, container.moment);
    let without_cgroup = || {
        let decided = containers.decide(container, &record);
        let claim = decided.desired.claim.unwrap_or_default();
        let (writes, held) = (Vec::new(), Values::default());
        Compared { decided, writes, claim, held, swap_max: None, in_force: None }
    };
    let Some(path) = &container.cgroup else { return Ok(without_cgroup()) };
    let cgroup = root.cgroup(path)?;
    // The values of an empty cgroup apply to no process (gVisor).
    if container.started && !cgroup.has_processes()? {
        return Ok(without_cgroup());
    }
    let in_force = cgroup.read(Knob::Max)?;
    let decided = if in_force.is_same(container.limit, page) {
        containers.decide(container, &record)
    } else {
        // An announced update has failed, or an update was not announced. The kernel's value
        // counts.
        containers.decide(&Container { limit: in_force, ..container.clone() }, &record)
    };
    let mut writes = Vec::new();
    let held = Values::read(&cgroup)?;
    for knob in KNOBS {
        if let (Some(observed), Some(desired)) = (held.get(knob), decided.value(knob))
            && !observed.is_same(desired, page)
        {
            writes.push(Write { knob, observed, desired });
        }
    }
    // Values that the policy leaves alone also protect.
    let claim = decided.desired.claim.unwrap_or(held.protection());
    // Without swap accounting there is no swap limit to lose.
    let swap_max = cgroup.swap_max().ok().and_then(Limit::bytes);
    // Without the CPU controller there is no CPU limit.
    let cpu = cgroup.cpu_max().unwrap_or(CpuMax::NONE);
    // The weight is compared only with an update.
    let weight = if container.update == Update::Made { cgroup.cpu_weight().ok() } else { None };
    let in_force = InForce { memory: in_force, cpu, weight, swap_max };
    Ok(Compared { decided, writes, claim, held, swap_max, in_force: Some(in_force) })
}

/// Returns the update that sets a container's files to `values`. It carries `memory.max` as the
/// memory limit, because the runtime keeps account of this limit.
///
/// `swap_max` is the swap limit, if there is one. An update without a swap limit makes containerd
/// and runc remove the limit, so the update repeats the value in force.
pub fn update(
    id: &str,
    values: impl IntoIterator<Item = (Knob, Limit)>,
    swap_max: Option<Bytes>,
) -> ContainerUpdate {
    let (limit, values): (Vec<_>, Vec<_>) =
        values.into_iter().partition(|(knob, _)| *knob == Knob::Max);
    let memory = limit.first().map(|(_, limit)| memory_limit(*limit, None));
    let values =
        values.into_iter().map(|(knob, value)| (knob.file_name().to_owned(), value.to_string()));
    let unified = values
        .chain(swap_max.map(|swap_max| (SWAP_MAX.to_owned(), swap_max.to_string())))
        .collect();
    let resources = LinuxResources { unified, memory: memory.into(), ..Default::default() };
    let linux = LinuxContainerUpdate { resources: Some(resources).into(), ..Default::default() };
    ContainerUpdate { container_id: id.to_owned(), linux: Some(linux).into(), ..Default::default() }
}

/// Returns a memory limit in the form of the runtime. `asked` is the limit that the client asked
/// for. The client's swap limit includes memory, so it is adapted to the new limit.
pub fn memory_limit(limit: Limit, asked: Option<&LinuxMemory>) -> LinuxMemory {
    let number = |value| Some(OptionalInt64 { value, ..Default::default() }).into();
    // The runtime's maximum is 2^63-1.
    let limit = limit.bytes().map_or(-1, |bytes| i64::try_from(bytes.get()).unwrap_or(i64::MAX));
    let [asked_limit, asked_swap] = asked.map_or([0, 0], |asked| {
        [&asked.limit, &asked.swap].map(|value| value.as_ref().map_or(0, |value| value.value))
    });
    let swap = match asked_swap {
        1.. if limit < 0 => number(-1),
        1.. => number(limit.saturating_add(asked_swap.saturating_sub(asked_limit).max(0))),
        _ => None.into(),
    };
    LinuxMemory { limit: number(limit), swap, ..Default::default() }
}

/// The reconcile task.
#[derive(Debug)]
pub struct Reconciler {
    containers: Arc<Containers>,
    ancestors: Arc<Ancestors>,
    root: Arc<CgroupRoot>,
    reports: Arc<Reports>,
    runtime: nri::Runtime,
    work: mpsc::UnboundedReceiver<Work>,
    watch: Option<Watch>,
    /// Containers by their watched cgroups.
    by_cgroup: HashMap<CgroupPath, String>,
    /// Scheduled work, by time.
    again: BTreeMap<Instant, Vec<Work>>,
    /// Time of the next check of everything.
    tick: Instant,
    contention: Contention<String, Vec<(Knob, Limit)>>,
    /// Progress by container ID.
    progress: HashMap<String, Progress>,
    /// Batches for the runtime, which handles one after the other.
    updater: mpsc::UnboundedSender<Vec<Pending>>,
    /// Batches that are done.
    done: mpsc::UnboundedReceiver<Done>,
    /// Cgroups that the runtime has not reported. The value says whether the plugin has asked the
    /// runtime.
    strangers: HashMap<CgroupPath, bool>,
    share_is_due: bool,
    /// Whether the last search for such cgroups could not read some directories.
    is_census_incomplete: bool,
    /// Reserved cgroups that do not exist, as the log has said.
    missing_reserved: HashSet<CgroupPath>,
    /// Last state of each cgroup: whether its protection is effective.
    standings: HashMap<CgroupPath, Standing>,
}

/// Progress of a container.
#[derive(Debug, Default)]
struct Progress {
    /// Whether the runtime has not answered a request for an update yet.
    is_waiting: bool,
    /// Whether the values were written and not read back yet.
    is_unverified: bool,
    /// Whether the container is unmanaged and the runtime got its original values.
    is_released: bool,
    /// Desired values at the last check that found no drift.
    verified: Option<Vec<(Knob, Limit)>>,
}

/// Checks that are due.
#[derive(Debug, Default)]
struct Due {
    /// Container IDs, and whether inotify has reported a write to the container's files.
    containers: BTreeMap<String, bool>,
    /// Cgroups above the containers, and the files for which inotify has reported a write.
    cgroups: BTreeMap<CgroupPath, Vec<Knob>>,
    removed: Vec<CgroupPath>,
    share: bool,
    all: bool,
}

/// A request to the runtime that is done.
#[derive(Debug)]
struct Done {
    batch: Vec<Pending>,
    /// Results of the containers; `None` if no runtime was connected.
    fates: Option<Fates>,
}

/// Containers of a batch that the runtime did not update, by ID.
#[derive(Debug, Default)]
struct Fates {
    /// The request was outdated before it could be sent.
    dropped: HashSet<String>,
    /// The request failed: the runtime refused it, did not answer, or was not quiet in time.
    rejected: HashSet<String>,
}

/// A pending update of a container.
#[derive(Debug)]
struct Pending {
    container: Arc<Container>,
    writes: Vec<Write>,
    attempt: u32,
    /// Swap limit, if there is one.
    swap_max: Option<Bytes>,
    /// Whether the plugin was in enforce mode when it decided the writes.
    enforces: bool,
    /// Whether another program has changed values that the runtime and the files held.
    is_foreign: bool,
}

impl Reconciler {
    /// Creates the task, which takes its work from `work`.
    pub fn new(
        containers: Arc<Containers>,
        ancestors: Arc<Ancestors>,
        root: Arc<CgroupRoot>,
        reports: Arc<Reports>,
        runtime: nri::Runtime,
        work: mpsc::UnboundedReceiver<Work>,
    ) -> Self {
        let watch = Watch::new()
            .inspect_err(|error| {
                warn!(%error, "cannot watch cgroups; what others change is found only every {TICK:?}");
            })
            .ok();
        let (updater, updates) = mpsc::unbounded_channel();
        let (tell, done) = mpsc::unbounded_channel();
        tokio::spawn(
            Updater {
                containers: containers.clone(),
                runtime: runtime.clone(),
                updates,
                done: tell,
            }
            .run(),
        );
        Self {
            updater,
            done,
            containers,
            ancestors,
            root,
            reports,
            runtime,
            work,
            watch,
            by_cgroup: HashMap::new(),
            again: BTreeMap::new(),
            tick: Instant::now() + TICK,
            contention: Contention::default(),
            progress: HashMap::new(),
            strangers: HashMap::new(),
            share_is_due: false,
            is_census_incomplete: false,
            missing_reserved: HashSet::new(),
            standings: HashMap::new(),
        }
    }

    /// Runs until all senders of work are gone.
    pub async fn run(mut self) {
        loop {
            let mut due = Due::default();
            let next = self.again.first_key_value().map_or(self.tick, |(at, _)| self.tick.min(*at));
            tokio::select! {
                work = self.work.recv() => match work {
                    Some(work) => self.add(work, &mut due),
                    None => return,
                },
                change = changed(&mut self.watch) => self.notice(change, &mut due),
                Some(done) = self.done.recv() => self.written(done, &mut due),
                () = self.ancestors.shares_changed(), if !self.share_is_due => {
                    self.share_is_due = true;
                    self.again(SHARE, Work::Share);
                }
                () = sleep_until(next) => {}
            }
            // Collect everything that has arrived meanwhile, so that each item is checked once.
            while let Ok(work) = self.work.try_recv() {
                self.add(work, &mut due);
            }
            while let Some(change) = changed(&mut self.watch).now_or_never() {
                self.notice(change, &mut due);
            }
            let now = Instant::now();
            while let Some(entry) = self.again.first_entry().filter(|entry| *entry.key() <= now) {
                for work in entry.remove() {
                    self.add(work, &mut due);
                }
            }
            let tick = now >= self.tick;
            if tick {
                self.everything(&mut due);
            }
            let all = due.all;
            self.look(due).await;
            if tick || all {
                self.tick = Instant::now() + TICK;
                self.forget_who_is_gone();
                self.take_census();
                self.survey().await;
            }
        }
    }

    fn add(&mut self, work: Work, due: &mut Due) {
        match work {
            Work::Container(id) => _ = due.containers.entry(id).or_default(),
            Work::Written(id) => {
                self.contention.expect(id.clone(), std::time::Instant::now());
                due.containers.entry(id).or_default();
            }
            Work::Later(id, number) => self.again(LATER, Work::Updated(id, number)),
            Work::Updated(id, number) => {
                // The runtime does not report a failed update, which may have written some of the
                // files.
                if self.containers.swap_update(&id, Update::UnderWay(number), Update::Over) {
                    self.contention.expect(id.clone(), std::time::Instant::now());
                }
                due.containers.entry(id).or_default();
            }
            Work::Limit { id, limit, revision } => self.ask_for_limit(id, limit, revision),
            Work::Cgroup(path) => _ = due.cgroups.entry(path).or_default(),
            Work::Touched(path, knob) => due.cgroups.entry(path).or_default().push(knob),
            Work::Stranger(path) => self.meet(path),
            Work::Share => due.share = true,
            Work::All => due.all = true,
        }
    }

    fn notice(&mut self, change: Option<Change>, due: &mut Due) {
        match change {
            Some(Change::Written(path, knob)) => {
                if let Some(id) = self.by_cgroup.get(&path) {
                    due.containers.insert(id.clone(), true);
                } else if self.ancestors.contains(&path) {
                    due.cgroups.entry(path).or_default().push(knob);
                }
            }
            Some(Change::Removed(path)) => due.removed.push(path),
            // The runtime usually reports the cgroup as well.
            Some(Change::Made(path)) if self.ancestors.contains(&path) => {
                _ = due.cgroups.entry(path).or_default()
            }
            Some(Change::Made(path)) => self.again(PATIENCE, Work::Stranger(path)),
            Some(Change::Overflow) => self.everything(due),
            None => {
                warn!(
                    "cannot watch cgroups any longer; what others change is found only every {TICK:?}"
                );
                self.watch = None;
            }
        }
    }

    /// Schedules checks of all containers and all managed cgroups. Unlike [`Work::All`], this does
    /// not call [`Ancestors::settle`].
    fn everything(&mut self, due: &mut Due) {
        for id in self.containers.ids() {
            due.containers.entry(id).or_default();
        }
        for cgroup in self.ancestors.cgroups() {
            due.cgroups.entry(cgroup).or_default();
        }
    }

    fn progress(&mut self, id: &str) -> &mut Progress {
        self.progress.entry(id.to_owned()).or_default()
    }

    fn is_waiting(&self, id: &str) -> bool {
        self.progress.get(id).is_some_and(|progress| progress.is_waiting)
    }

    fn again(&mut self, delay: Duration, work: Work) {
        self.again.entry(Instant::now() + delay).or_default().push(work);
    }

    /// Asks the runtime for another limit of a running container.
    fn ask_for_limit(&mut self, id: String, limit: Bytes, revision: u64) {
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

    async fn look(&mut self, mut due: Due) {
        for path in std::mem::take(&mut due.removed) {
            self.removed(&path);
        }
        if due.all {
            // Forget all repair histories: the other writer may be gone, and another runtime may be
            // connected.
            self.contention = Contention::default();
            for id in self.containers.ids() {
                due.containers.entry(id).or_default();
            }
        }
        let synchronized = self.ancestors.synchronized();
        let containers: Vec<_> = due.containers.into_iter().collect();
        for batch in containers.chunks(BATCH * 16) {
            self.look_at(batch).await;
        }
        if due.all {
            let policy = self.containers.settings().policy();
            // A program may have set a pod's limit while the plugin did not watch. The kubelet 1.27
            // to 1.36 may have forgotten to set it.
            for containers in self.by_pod().into_values() {
                if let Some((container, pod)) = self.view_pod(containers) {
                    self.ancestors.raise_limits(&container, &pod);
                }
                // Let events run between two pods.
                tokio::task::yield_now().await;
            }
            self.ancestors.settle(
                &self.containers.ids().into_iter().collect(),
                &policy,
                synchronized,
            );
            for cgroup in self.ancestors.cgroups() {
                self.watch_cgroup(&cgroup);
            }
            // Remove drop-ins of pods that ended while the plugin did not watch.
            match systemd::drop_ins(self.root.host()) {
                Ok(left) => left.iter().for_each(|cgroup| self.remove_drop_ins(cgroup)),
                Err(error) => debug!(%error, "cannot look for drop-ins of pods that are gone"),
            }
            give_memory_back();
        }
        if due.share {
            self.share_is_due = false;
            self.ancestors.share().await;
        }
        for (cgroup, touched) in due.cgroups {
            self.watch_cgroup(&cgroup);
            // The kubelet adds up the limits that users ask for. The sum is too low where the
            // plugin raised limits.
            if touched.contains(&Knob::Max)
                && let Some((container, pod)) = self.view_pod(self.in_pod(&cgroup))
                && let Some(wait) = self.ancestors.raise_limits_again(&container, &pod)
            {
                self.again(wait, Work::Touched(cgroup.clone(), Knob::Max));
            }
            match self.ancestors.check(&cgroup, &touched) {
                Checked::Settled => {}
                Checked::Again(wait) => self.again(wait, Work::Cgroup(cgroup)),
                Checked::Gone => self.unwatch(&cgroup),
            }
        }
    }

    /// Returns a live container of a pod, and the evidence about the pod's limit.
    fn view_pod(&self, mut containers: Vec<Arc<Container>>) -> Option<(Arc<Container>, PodView)> {
        containers.retain(|container| self.ancestors.is_alive(container));
        let alive = containers;
        // One container is enough, because the record and the sum cover all containers.
        let (container, alive) = alive.split_first()?;
        let recorded = self.containers.record(&container.uid, &container.name, container.moment);
        let pod = self.containers.view_pod(container, None, alive, &recorded);
        Some((container.clone(), pod))
    }

    fn in_pod(&self, pod: &CgroupPath) -> Vec<Arc<Container>> {
        let of_pod = |container: &Arc<Container>| {
            container.place.as_ref().is_some_and(|place| place.cgroup() == pod)
        };
        self.containers.all().into_iter().filter(of_pod).collect()
    }

    /// Returns the containers of each pod.
    fn by_pod(&self) -> HashMap<CgroupPath, Vec<Arc<Container>>> {
        let mut pods: HashMap<_, Vec<_>> = HashMap::new();
        for container in self.containers.all() {
            if let Some(place) = &container.place {
                pods.entry(place.cgroup().clone()).or_default().push(container);
            }
        }
        pods
    }

    async fn look_at(&mut self, batch: &[(String, bool)]) {
        // A container that is being updated is checked after the update.
        let known =
            batch.iter().filter_map(|(id, touched)| Some((self.containers.get(id)?, *touched)));
        let known: Vec<_> = known
            .filter(|(container, _)| {
                !matches!(container.update, Update::UnderWay(_)) && !self.is_waiting(&container.id)
            })
            .collect();
        let (containers, root) = (self.containers.clone(), self.root.clone());
        let enforces = containers.settings().enforces();
        // The kubelet's checkpoint may be large, so use a blocking thread.
        let looked = tokio::task::spawn_blocking(move || {
            let compared = known.into_iter().map(|(container, touched)| {
                let result = compare(&containers, &root, &container);
                (container, touched, result)
            });
            compared.collect::<Vec<_>>()
        });
        let Ok(looked) = looked.await else {
            warn!("looking at containers panicked; they are left as they are until the next event");
            return;
        };
        let mut pending = Vec::new();
        for (container, touched, result) in looked {
            match self.containers.get(&container.id) {
                Some(now) if Arc::ptr_eq(&now, &container) => {}
                // A newer event has changed the container, so this comparison is outdated.
                Some(_) => {
                    self.again(Duration::ZERO, Work::Container(container.id.clone()));
                    continue;
                }
                None => continue,
            }
            match result {
                Ok(compared) => {
                    self.watch_container(&container);
                    let is_in_force = compared.in_force.is_some();
                    if let Some(in_force) = compared.in_force {
                        if container.started {
                            self.containers.set_has_had_processes(&container.id);
                        }
                        self.limits_read_back(&container, in_force);
                    }
                    if compared.writes.is_empty() {
                        if compared.decided.is_let_go() {
                            pending.extend(self.let_go(&container, &compared, enforces));
                        }
                        if let Some(place) = &container.place {
                            self.ancestors.claim(place, &container.id, compared.claim);
                        }
                        self.settled(&container, &compared.decided, is_in_force);
                    } else {
                        let swap_max = compared.swap_max;
                        let Some((writes, is_foreign)) = self.repair(&container, compared, touched)
                        else {
                            continue;
                        };
                        // A repair after the runtime's own write is not counted, but it is also a
                        // first attempt.
                        let attempt = self.contention.repairs(&container.id).max(1);
                        self.progress(&container.id).is_waiting = true;
                        pending.push(Pending {
                            container,
                            writes,
                            attempt,
                            swap_max,
                            enforces,
                            is_foreign,
                        });
                    }
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

    /// Checks whether an update that the runtime reported as made has taken effect. After a failed
    /// or unconfirmed update, the plugin adopts the limits in force. It does not ask for the update
    /// again, because a late limit decrease may kill.
    fn limits_read_back(&mut self, container: &Container, in_force: InForce) {
        let page = self.containers.settings().node.page_size;
        let InForce { memory, cpu, weight, swap_max } = in_force;
        let is_memory = memory.is_same(container.limit, page);
        let is_cpu = cpu.is(container.cpu);
        if is_memory && is_cpu && container.update == Update::Over {
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
                    .tell(&container.into(), &Incident::NotResized { knob, desired, observed });
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
    fn let_go(
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
    fn without_cgroup(&self, container: &Container) {
        let record = self.containers.record(&container.uid, &container.name, container.moment);
        let decided = self.containers.decide(container, &record);
        if let (Some(place), Some(claim)) = (&container.place, decided.desired.claim) {
            self.ancestors.claim(place, &container.id, claim);
        }
    }

    /// Returns the writes for the runtime if they are due now, and whether another program has
    /// changed the values.
    fn repair(
        &mut self,
        container: &Container,
        compared: Compared,
        touched: bool,
    ) -> Option<(Vec<Write>, bool)> {
        let Compared { decided, mut writes, claim, held, .. } = compared;
        let desired = decided.values();
        let is_stored = self.progress(&container.id).verified.as_ref() == Some(&desired);
        if is_stored && !self.containers.settings().config.repair {
            debug!(
                pod = container.pod,
                container = container.name,
                "left as another program set it"
            );
            return None;
        }
        // The runtime's writes for its client are not foreign.
        let is_foreign = is_stored && !self.contention.is_expected(&container.id);
        match self.contention.judge(
            container.id.clone(),
            desired,
            touched,
            std::time::Instant::now(),
        ) {
            // The runtime and systemd hold the values already. Only the files were changed, so
            // write only the files.
            Verdict::Repair if is_stored && self.contention.repairs(&container.id) <= 1 => {
                self.write_files(container, writes, is_foreign);
                return None;
            }
            Verdict::Repair => {
                if let Some(place) = &container.place {
                    // The current values count until the container has the new ones.
                    self.ancestors.claim_at_least(
                        place,
                        &container.id,
                        claim.max(held.protection()),
                    );
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
            Verdict::Wait(wait) => self.again(wait, Work::Container(container.id.clone())),
            Verdict::GiveUp => {
                self.progress(&container.id).is_unverified = false;
                for Write { knob, observed, desired } in writes {
                    let what = Incident::Contended { knob, desired, observed, repairs: REPAIRS };
                    self.reports.tell(&container.into(), &what);
                }
            }
            Verdict::Leave => {}
        }
        None
    }

    /// Writes a container's files without the runtime. Lowering memory.high takes as long as the
    /// kernel reclaims memory.
    fn write_files(&mut self, container: &Container, writes: Vec<Write>, is_foreign: bool) {
        let Some(path) = container.cgroup.clone() else { return };
        let (root, reports, subject) =
            (self.root.clone(), self.reports.clone(), Subject::from(container));
        // The watch on the files shows the result.
        tokio::task::spawn_blocking(move || {
            for Write { knob, desired, observed } in writes {
                match root.cgroup(&path).and_then(|cgroup| cgroup.write(knob, desired)) {
                    Ok(()) if is_foreign => {
                        reports.tell(&subject, &Incident::Repaired { knob, desired, observed })
                    }
                    Ok(()) => {
                        debug!(cgroup = %path, knob = knob.file_name(), "written again after an update")
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
    fn written(&mut self, done: Done, due: &mut Due) {
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
            let is_dropped = fates.dropped.contains(&container.id);
            progress.is_released &= !is_dropped;
            progress.is_unverified |= !is_dropped;
            if pending.is_foreign && !is_dropped && !fates.rejected.contains(&container.id) {
                for &Write { knob, desired, observed } in pending.changes() {
                    self.reports.tell(
                        &container.as_ref().into(),
                        &Incident::Repaired { knob, desired, observed },
                    );
                }
            }
            due.containers.entry(container.id.clone()).or_default();
        }
    }

    fn settled(&mut self, container: &Container, decided: &Decided, is_in_force: bool) {
        if container.high_before.is_some() {
            self.containers.set_high_before(&container.id, None);
        }
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
        if outcome == Outcome::Applied {
            info!(pod = container.pod, container = container.name, min, low, high, %outcome, "verified");
        } else {
            debug!(pod = container.pod, container = container.name, min, low, high, %outcome, "verified");
        }
    }

    /// Handles a container whose cgroup is gone. The runtime may report the end later, or never.
    fn ended(&mut self, container: &Container) {
        debug!(pod = container.pod, container = container.name, outcome = %Outcome::Gone, "the container has ended");
        self.ancestors.release(&container.id);
        self.contention.forget(&container.id);
        self.progress.remove(&container.id);
        if let Some(cgroup) = &container.cgroup {
            self.unwatch(cgroup);
        }
    }

    /// Removes the drop-ins that systemd keeps for a cgroup that is gone. The next unit of the same
    /// name would inherit them.
    fn remove_drop_ins(&self, cgroup: &CgroupPath) {
        match systemd::remove_drop_ins(self.root.host(), &self.root, cgroup) {
            Ok(false) => {}
            Ok(true) => debug!(%cgroup, "removed the drop-ins of a unit that is gone"),
            Err(error) => {
                warn!(%cgroup, %error, "cannot remove the drop-ins of a unit that is gone")
            }
        }
    }

    fn removed(&mut self, cgroup: &CgroupPath) {
        self.remove_drop_ins(cgroup);
        let id = self.by_cgroup.get(cgroup).cloned();
        self.unwatch(cgroup);
        self.strangers.remove(cgroup);
        self.standings.remove(cgroup);
        // Another cgroup with the same path may exist now.
        match id.and_then(|id| self.containers.get(&id)) {
            Some(container)
                if container.cgroup.as_ref() == Some(cgroup)
                    && (!container.started || container.has_had_processes)
                    && self.root.cgroup(cgroup).is_err() =>
            {
                self.ended(&container);
            }
            Some(container) => self.again(Duration::ZERO, Work::Container(container.id.clone())),
            None if self.ancestors.contains(cgroup) => {
                self.again(Duration::ZERO, Work::Cgroup(cgroup.clone()))
            }
            None => {}
        }
    }

    fn watch_container(&mut self, container: &Container) {
        if let Some(place) = &container.place {
            for cgroup in [Some(place.kubepods()), place.class_cgroup(), Some(place.cgroup())]
                .into_iter()
                .flatten()
            {
                self.watch_cgroup(cgroup);
            }
        }
        if let Some(cgroup) = &container.cgroup
            && self.by_cgroup.get(cgroup) != Some(&container.id)
        {
            for cgroup in [Some(cgroup.clone()), cgroup.subgroup()].into_iter().flatten() {
                self.watch_cgroup(&cgroup);
                self.by_cgroup.insert(cgroup, container.id.clone());
            }
        }
    }

    fn watch_cgroup(&mut self, cgroup: &CgroupPath) {
        let Some(watch) = &mut self.watch else { return };
        if let Err(error) = watch.add(&self.root, cgroup) {
            debug!(%cgroup, %error, "cannot watch the cgroup; what others change in it is found only every {TICK:?}");
        }
    }

    fn unwatch(&mut self, cgroup: &CgroupPath) {
        for cgroup in [Some(cgroup.clone()), cgroup.subgroup()].into_iter().flatten() {
            self.by_cgroup.remove(&cgroup);
            if let Some(watch) = &mut self.watch {
                watch.remove(&cgroup);
            }
        }
    }

    fn forget_who_is_gone(&mut self) {
        let known: HashSet<_> = self.containers.ids().into_iter().collect();
        self.ancestors.prune(&known);
        self.progress.retain(|id, _| known.contains(id));
        let uids: HashSet<_> =
            self.containers.all().iter().map(|container| container.uid.clone()).collect();
        // `Ancestors` may hold its lock while it reports. Get its cgroups before `retain` takes the
        // reports' lock, or both could deadlock.
        let cgroups: HashSet<_> = self.ancestors.cgroups().into_iter().collect();
        self.reports.retain(|uid| uids.contains(uid), |cgroup| cgroups.contains(cgroup));
        self.contention.forget_quiet(std::time::Instant::now());
    }

    /// Searches the tree for containers that the runtime has not reported. The runtime may be about
    /// to report such a container, or its cgroup may be about to go. Therefore it is inspected
    /// after a delay.
    fn take_census(&mut self) {
        let Found { found, problems } = kubepods::containers(&self.root, self.ancestors.kubepods());
        for (_, cgroup) in found {
            if !self.is_known(&cgroup) {
                self.again(PATIENCE, Work::Stranger(cgroup));
            }
        }
        let is_incomplete = !problems.is_empty();
        if is_incomplete && !self.is_census_incomplete {
            let error = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            warn!(error, "cannot look for containers that the runtime did not tell of. Said once");
        }
        self.is_census_incomplete = is_incomplete;
        for cgroup in self.ancestors.reserved() {
            if !self.missing_reserved.contains(&cgroup) && self.is_gone(&cgroup) {
                // The kubelet may make the cgroup soon, because it starts after the runtime.
                self.again(PATIENCE, Work::Stranger(cgroup));
            }
        }
        let mut missing = std::mem::take(&mut self.missing_reserved);
        missing.retain(|cgroup| self.is_gone(cgroup));
        self.missing_reserved = missing;
    }

    /// Inspects a cgroup. If the runtime has not reported its content, the plugin requests a new
    /// synchronization. It does so once per cgroup.
    fn meet(&mut self, cgroup: CgroupPath) {
        if self.ancestors.is_reserved(&cgroup) {
            return self.miss_reserved(cgroup);
        }
        if PodCgroup::parse(cgroup.as_str()).is_some() {
            // The cgroup of a pod, which was not watched until now.
            for child in children(&self.root, &cgroup) {
                self.meet(child);
            }
            return;
        }
        let of_pod = cgroup.parent().is_some_and(|pod| PodCgroup::parse(pod.as_str()).is_some());
        if !of_pod || self.is_known(&cgroup) || !self.is_in_use(&cgroup) {
            return;
        }
        // The cgroup may be about to go, and the runtime may have reported its end already.
        match self.strangers.get(&cgroup) {
            None => {
                self.strangers.insert(cgroup.clone(), false);
                self.again(PATIENCE, Work::Stranger(cgroup));
                return;
            }
            Some(true) => return,
            Some(false) => _ = self.strangers.insert(cgroup.clone(), true),
        }
        warn!(%cgroup, "the runtime has not told of what is in this cgroup; asking it for everything anew");
        self.runtime.reconnect();
    }

    /// Warns once that a reserved cgroup does not exist, so that nothing protects the services in
    /// question.
    fn miss_reserved(&mut self, cgroup: CgroupPath) {
        // The guard itself warns about the cgroup that it chose.
        let is_named = !self.containers.settings().config.reserved.is_empty();
        if is_named && self.is_gone(&cgroup) && self.missing_reserved.insert(cgroup.clone()) {
            warn!(
                %cgroup,
                "systemReservedCgroup or kubeReservedCgroup names a cgroup that is not there: nothing protects what it should hold. Name the \
                 cgroup in which the services are. Said once"
            );
        }
    }

    fn is_gone(&self, cgroup: &CgroupPath) -> bool {
        matches!(self.root.cgroup(cgroup), Err(CgroupError::Gone(_)))
    }

    fn is_known(&self, cgroup: &CgroupPath) -> bool {
        let id = id_in(cgroup.name());
        self.containers.get(id).is_some()
            || self.ancestors.is_sandbox(id)
            || self.by_cgroup.contains_key(cgroup)
    }

    fn is_in_use(&self, cgroup: &CgroupPath) -> bool {
        self.root
            .cgroup(cgroup)
            .and_then(|cgroup| cgroup.usage())
            .is_ok_and(|usage| usage > Bytes::ZERO)
    }

    /// Checks by the kernel's rule whether the written values protect, and warns when they no
    /// longer do.
    async fn survey(&mut self) {
        let containers = self.containers.all();
        let (root, cgroups) = (self.root.clone(), self.ancestors.cgroups());
        let names: HashMap<_, _> = containers
            .iter()
            .filter_map(|container| {
                Some((container.cgroup.clone()?, (container.pod.clone(), container.name.clone())))
            })
            .collect();
        let surveyed = tokio::task::spawn_blocking(move || {
            let containers = containers.iter().filter_map(|container| container.cgroup.clone());
            let mut observed = BTreeMap::new();
            root.observe_all(containers.chain(cgroups), &mut observed);
            let effective = hierarchy::effective_tree(None, &observed, root.recursive_protection());
            (observed, effective)
        });
        let Ok((observed, effective)) = surveyed.await else { return };
        for (cgroup, protection) in effective {
            let Some(Observed { setting, usage }) = observed.get(&cgroup) else { continue };
            let standing = Standing::of(*setting, *usage, protection);
            let before = self.standings.insert(cgroup.clone(), standing);
            let of = names.get(&cgroup);
            if of.is_none() && !self.ancestors.is_reserved(&cgroup) {
                continue;
            }
            let (pod, container) =
                of.map(|(pod, container)| (pod.as_str(), container.as_str())).unzip();
            if standing == Standing::Inert && before != Some(Standing::Inert) {
                warn!(
                    pod,
                    container,
                    %cgroup,
                    usage = usage.quantity(),
                    min = setting.min.quantity(),
                    low = setting.low.quantity(),
                    effective_min = protection.min.quantity(),
                    effective_low = protection.low.quantity(),
                    %standing,
                    "what is written does not protect: a cgroup above has less"
                );
            } else if before.is_some_and(|before| before != standing) {
                debug!(pod, container, %cgroup, %standing, "standing");
            }
        }
    }
}

/// The task that updates containers through the runtime. The runtime stores the values, so later
/// updates do not undo them. The task is separate, because a runtime may take long.
struct Updater {
    containers: Arc<Containers>,
    runtime: nri::Runtime,
    updates: mpsc::UnboundedReceiver<Vec<Pending>>,
    done: mpsc::UnboundedSender<Done>,
}

impl Updater {
    async fn run(mut self) {
        while let Some(batch) = self.updates.recv().await {
            let fates = self.write(&batch).await;
            if self.done.send(Done { batch, fates }).is_err() {
                return;
            }
        }
    }

    /// Sends a batch. Returns the results; `None` if no runtime is connected.
    async fn write(&self, batch: &[Pending]) -> Option<Fates> {
        let mut fates = Fates::default();
        let (first, mut single): (Vec<&Pending>, Vec<&Pending>) =
            batch.iter().partition(|pending| pending.attempt == 1);
        if !first.is_empty() {
            match self.send(&first, true).await {
                Ok(dropped) => fates.dropped.extend(dropped),
                Err(Unsent::NotConnected) => return None,
                // The runtime does not say which container failed.
                Err(Unsent::Failed(_)) => single.extend(first),
            }
        }
        for pending in single {
            // containerd gives the reason only for such a request.
            match self.send(&[pending], false).await {
                Ok(dropped) => fates.dropped.extend(dropped),
                Err(Unsent::NotConnected) => return None,
                Err(Unsent::Failed(error)) => {
                    rejected(&pending.container, &error);
                    fates.rejected.insert(pending.container.id.clone());
                }
            }
        }
        let sent = batch.iter().filter(|pending| !fates.dropped.contains(&pending.container.id));
        for pending in sent {
            let Pending { container, attempt, .. } = pending;
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
        Some(fates)
    }

    /// Sends the requests that are still wanted, once the runtime is quiet. Returns the IDs of the
    /// containers whose requests were dropped.
    async fn send(
        &self,
        pending: &[&Pending],
        ignore_failure: bool,
    ) -> Result<Vec<String>, Unsent> {
        let lowers = |write: &Write| write.knob == Knob::Max && write.desired < write.observed;
        let is_cut = pending.iter().flat_map(|pending| &pending.writes).any(lowers);
        let since = Instant::now();
        loop {
            let wait = self.containers.until_quiet(QUIET);
            if wait.is_zero() {
                break;
            }
            // Meanwhile memory.high keeps the container from growing.
            if is_cut && since.elapsed() >= CUT_PATIENCE {
                return Err(Unsent::Failed(format!(
                    "it was not quiet for {QUIET:?} within {CUT_PATIENCE:?}; trying again later"
                )));
            }
            tokio::time::sleep(wait).await;
        }
        let (current, outdated): (Vec<&Pending>, Vec<&Pending>) =
            pending.iter().partition(|pending| self.is_current(pending));
        let dropped = outdated.into_iter().map(|pending| pending.container.id.clone()).collect();
        let updates: Vec<_> =
            current.into_iter().map(|pending| pending.update(ignore_failure)).collect();
        if updates.is_empty() {
            return Ok(dropped);
        }
        match timeout(UPDATE_TIMEOUT, self.runtime.update_containers(updates)).await {
            Ok(Ok(failed)) if failed.is_empty() => Ok(dropped),
            Ok(Ok(failed)) => Err(Unsent::Failed(format!(
                "the runtime failed to update {} containers",
                failed.len()
            ))),
            Ok(Err(UpdateError::NotConnected)) => Err(Unsent::NotConnected),
            Ok(Err(error)) => Err(Unsent::Failed(error.to_string())),
            Err(_) => {
                Err(Unsent::Failed(format!("no answer from the runtime within {UPDATE_TIMEOUT:?}")))
            }
        }
    }

    /// Returns whether a request that has waited is still wanted. The plugin may only observe now,
    /// or the container may have another limit.
    fn is_current(&self, pending: &Pending) -> bool {
        if pending.enforces && !self.containers.settings().enforces() {
            return false;
        }
        // A limit is void if a newer update came after the decision.
        let has_same_revision = || {
            let now = self.containers.get(&pending.container.id);
            now.is_some_and(|now| now.revision == pending.container.revision)
        };
        pending.writes.iter().all(|write| write.knob != Knob::Max) || has_same_revision()
    }
}

/// Returns writes of all desired values of a container, whatever its files hold.
fn all_writes(decided: &Decided) -> impl Iterator<Item = Write> {
    decided.values().into_iter().map(|(knob, value)| Write {
        knob,
        observed: value,
        desired: value,
    })
}

/// Returns the next change of a watched cgroup; `None` if inotify fails. Waits forever without a
/// watch.
async fn changed(watch: &mut Option<Watch>) -> Option<Change> {
    match watch {
        Some(watch) => watch.next().await.inspect_err(|error| warn!(%error, "inotify")).ok(),
        None => std::future::pending().await,
    }
}

/// Returns the cgroups in a cgroup; none if it cannot be read.
fn children(root: &CgroupRoot, cgroup: &CgroupPath) -> Vec<CgroupPath> {
    root.cgroup(cgroup).and_then(|cgroup| cgroup.children()).unwrap_or_default()
}

/// Reason why an update was not made.
enum Unsent {
    NotConnected,
    Failed(String),
}

impl Pending {
    /// Returns the writes that change a value.
    fn changes(&self) -> impl Iterator<Item = &Write> {
        self.writes.iter().filter(|write| write.observed != write.desired)
    }

    fn update(&self, ignore_failure: bool) -> ContainerUpdate {
        let values = self.writes.iter().map(|write| (write.knob, write.desired));
        ContainerUpdate { ignore_failure, ..update(&self.container.id, values, self.swap_max) }
    }
}

/// Returns freed memory to the kernel. A synchronization delivers all containers of the node with
/// all that the runtime knows about them. The plugin keeps only a fraction of this.
pub(crate) fn give_memory_back() {
    // SAFETY: malloc_trim has no preconditions, and takes the allocator's own locks.
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code)]
    unsafe {
        libc::malloc_trim(0);
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
    let outcome = Outcome::from(error);
    if outcome == Outcome::Gone {
        debug!(pod = container.pod, container = container.name, %error, %outcome, "cannot look at the container");
    } else {
        warn!(pod = container.pod, container = container.name, %error, %outcome, "cannot look at the container");
    }
}

//! Reconciles the containers and the cgroups above them. The plugin compares desired and observed
//! values, and writes the desired values.
//!
//! One task reconciles, separately from the event handlers, because a runtime cannot update
//! containers while it waits for the answer to an event. The task checks a container after each
//! start and update. The task watches cgroups with inotify, and checks a cgroup when another
//! program writes to it or removes it. The task checks all cgroups periodically, and after each
//! synchronization and each change of the configuration. A value counts as applied once the plugin
//! has read it from the file.

mod census;
mod compare;
mod containers;
pub mod guard;
mod limits;
mod survey;
mod unknown_cgroups;
mod updater;
mod watching;
mod wire;
mod work;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::contention::Contention;
use plimsoll_core::policy::hierarchy::Standing;
use plimsoll_core::units::{Knob, Limit};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, warn};

pub use self::compare::{Comparison, LimitsInForce, Write, compare};
use self::unknown_cgroups::UnknownCgroups;
use self::updater::{FinishedBatch, PendingUpdate, Updater};
pub use self::wire::{memory_limit, update};
pub use self::work::WorkItem;
use crate::agent::memory::give_memory_back;
use crate::agent::notify::Ping;
use crate::cgroup::watch::{CgroupChange, Watch};
use crate::cgroup::{CgroupError, CgroupRoot, systemd};
use crate::report::Reports;
use crate::state::container::Container;
use crate::state::containers::Containers;
use crate::state::deferred::DeferredLimits;
use crate::state::levels::{CheckNext, Levels};
use crate::state::pod_view::PodView;
use crate::state::shared::SharedState;

/// Maximum number of containers in one request to the runtime. The runtime takes some tenths of a
/// second for each container, and its lock blocks other requests meanwhile.
pub(super) const BATCH: usize = 8;

/// Delay before the check of an update that the runtime has announced. The runtime does not report
/// a failed update, so the plugin must check without a report. The delay must be long, because a
/// busy runtime may need several seconds for an update. Until the runtime has set a lower limit,
/// memory.high must stay lowered, so that new allocations cause no OOM kill. Also, a request of the
/// plugin during the user's update may deadlock with this update (containerd/nri#301, and the same
/// in CRI-O).
pub(super) const UPDATE_CHECK_DELAY: Duration = Duration::from_secs(15);

/// Delay before the plugin tries again to change the limit of a container that is being updated.
pub(super) const LIMIT_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Interval of the check of all containers and all managed cgroups. This check finds changes whose
/// inotify event was lost, and changes by a program that keeps a file open.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(600);

/// Delay before the plugin checks again whether a busy runtime can store the values. Until then,
/// only the files have the values.
pub(super) const STORE_RETRY_DELAY: Duration = Duration::from_secs(60);

/// Delay before the check of a repaired file. inotify may cause an earlier check.
pub(super) const REPAIR_CHECK_DELAY: Duration = Duration::from_millis(500);

/// Time for which the plugin collects changes of the protection of each pod. The plugin writes
/// these changes together, because each change affects all pods.
pub(super) const SHARE_DELAY: Duration = Duration::from_millis(500);

/// The reconcile task.
#[derive(Debug)]
pub struct Reconciler {
    containers: Arc<Containers>,
    levels: Arc<Levels>,
    root: Arc<CgroupRoot>,
    reports: Arc<Reports>,
    deferred: Arc<DeferredLimits>,
    runtime: nri::Runtime,
    work: mpsc::UnboundedReceiver<WorkItem>,
    /// Pings for the watchdog. An answer shows that this loop runs.
    pings: mpsc::UnboundedReceiver<Ping>,
    watch: Option<Watch>,
    /// Watched cgroups of containers, with the containers' IDs.
    by_cgroup: HashMap<CgroupPath, String>,
    /// Scheduled work, by time.
    scheduled: BTreeMap<Instant, Vec<WorkItem>>,
    /// Time of the next check of all containers and all managed cgroups.
    tick: Instant,
    contention: Contention<String, Vec<(Knob, Limit)>>,
    /// Batches of requests for the runtime, which handles one batch after the other.
    updater: mpsc::UnboundedSender<Vec<PendingUpdate>>,
    /// The task that sends the batches.
    updater_task: JoinHandle<()>,
    /// Batches that the task has finished.
    done: mpsc::UnboundedReceiver<FinishedBatch>,
    /// Cgroups of containers that the runtime has not reported.
    unknown_cgroups: UnknownCgroups,
    share_is_due: bool,
    /// Whether some directories were unreadable during the last search for unknown cgroups.
    is_search_incomplete: bool,
    /// Reserved cgroups that do not exist and whose absence the log has reported.
    missing_reserved: HashSet<CgroupPath>,
    /// Whether the protection of each cgroup had an effect at the last check.
    standings: HashMap<CgroupPath, Standing>,
}

/// Checks that are due.
#[derive(Debug, Default)]
struct DueChecks {
    /// Container IDs, and whether inotify has reported a write to the container's files.
    containers: BTreeMap<String, bool>,
    /// Cgroups above containers and reserved cgroups, each with the files for which inotify has
    /// reported a write.
    cgroups: BTreeMap<CgroupPath, Vec<Knob>>,
    removed: Vec<CgroupPath>,
    share: bool,
    all: bool,
}

impl Reconciler {
    /// Creates the task, which takes its work from `work`.
    pub fn new(
        state: SharedState,
        reports: Arc<Reports>,
        runtime: nri::Runtime,
        work: mpsc::UnboundedReceiver<WorkItem>,
        pings: mpsc::UnboundedReceiver<Ping>,
    ) -> Self {
        let SharedState { containers, levels, root, deferred, .. } = state;
        let watch = Watch::new()
            .inspect_err(|error| {
                warn!(%error, "cannot watch cgroups; the plugin finds changes by other programs \
                               only every {CHECK_INTERVAL:?}");
            })
            .ok();
        let (updater, updates) = mpsc::unbounded_channel();
        let (finished, done) = mpsc::unbounded_channel();
        let updates = Updater::new(containers.clone(), runtime.clone(), updates, finished);
        let updater_task = tokio::spawn(updates.run());
        Self {
            updater,
            updater_task,
            done,
            containers,
            levels,
            root,
            reports,
            deferred,
            runtime,
            work,
            pings,
            watch,
            by_cgroup: HashMap::new(),
            scheduled: BTreeMap::new(),
            tick: Instant::now() + CHECK_INTERVAL,
            contention: Contention::default(),
            unknown_cgroups: UnknownCgroups::default(),
            share_is_due: false,
            is_search_incomplete: false,
            missing_reserved: HashSet::new(),
            standings: HashMap::new(),
        }
    }

    /// Runs until all senders of work are dropped, or the task that sends batches has failed. Must
    /// run in a thread that may block, because there may be many files and the kubelet's checkpoint
    /// may be large.
    pub async fn run(mut self) {
        loop {
            let mut due = DueChecks::default();
            let next =
                self.scheduled.first_key_value().map_or(self.tick, |(at, _)| self.tick.min(*at));
            tokio::select! {
                work = self.work.recv() => match work {
                    Some(work) => self.add(work, &mut due),
                    None => return,
                },
                change = changed(&mut self.watch) => self.on_change(change, &mut due),
                Some(ping) = self.pings.recv() => {
                    // The task that sent the ping may have ended.
                    let _ = ping.send(());
                }
                Some(done) = self.done.recv() => self.on_finished_batch(done, &mut due),
                () = self.levels.shares_changed(), if !self.share_is_due => {
                    self.share_is_due = true;
                    self.schedule(SHARE_DELAY, WorkItem::Share);
                }
                () = sleep_until(next) => {}
                ended = &mut self.updater_task => {
                    error!(?ended, "the task that updates containers through the runtime ended");
                    return;
                }
            }
            // Collect all work that has arrived meanwhile, so that each container is checked only
            // once.
            while let Ok(work) = self.work.try_recv() {
                self.add(work, &mut due);
            }
            while let Some(change) = changed(&mut self.watch).now_or_never() {
                self.on_change(change, &mut due);
            }
            let now = Instant::now();
            while let Some(entry) = self.scheduled.first_entry().filter(|entry| *entry.key() <= now)
            {
                for work in entry.remove() {
                    self.add(work, &mut due);
                }
            }
            let tick = now >= self.tick;
            if tick {
                self.check_everything(&mut due);
            }
            let all = due.all;
            self.check(due).await;
            if tick || all {
                self.tick = Instant::now() + CHECK_INTERVAL;
                self.forget_gone();
                self.find_unknown_cgroups();
                self.survey();
            }
        }
    }

    fn add(&mut self, work: WorkItem, due: &mut DueChecks) {
        match work {
            WorkItem::Container(id) => _ = due.containers.entry(id).or_default(),
            WorkItem::RuntimeWrote(id) => {
                self.contention.expect(id.clone(), std::time::Instant::now());
                due.containers.entry(id).or_default();
            }
            WorkItem::CheckUpdateLater(id, update) => {
                self.schedule(UPDATE_CHECK_DELAY, WorkItem::CheckUpdate(id, update))
            }
            WorkItem::CheckUpdate(id, update) => {
                // The runtime does not report a failed update. This update may have written some of
                // the files.
                let has_given_up = self.containers.on_phase(&id, |phase| phase.give_up(update));
                if has_given_up == Some(true) {
                    self.contention.expect(id.clone(), std::time::Instant::now());
                }
                due.containers.entry(id).or_default();
            }
            work @ WorkItem::Limit { .. } => self.request_limit(work, due),
            WorkItem::Cgroup(path) => _ = due.cgroups.entry(path).or_default(),
            WorkItem::CheckFile(path, knob) => due.cgroups.entry(path).or_default().push(knob),
            WorkItem::UnknownCgroup(path) => self.inspect_unknown_cgroup(path),
            WorkItem::Share => due.share = true,
            WorkItem::All => due.all = true,
        }
    }

    /// Schedules checks of all containers and all managed cgroups. Does not call
    /// [`Levels::settle`], unlike [`WorkItem::All`].
    fn check_everything(&mut self, due: &mut DueChecks) {
        for id in self.containers.ids() {
            due.containers.entry(id).or_default();
        }
        for cgroup in self.levels.cgroups() {
            due.cgroups.entry(cgroup).or_default();
        }
    }

    fn schedule(&mut self, delay: Duration, work: WorkItem) {
        self.scheduled.entry(Instant::now() + delay).or_default().push(work);
    }

    /// Raises the pod limits that are too low, and writes all managed cgroups. `synchronized` is
    /// the number of synchronizations before the task compared the containers.
    fn settle_levels(&mut self, synchronized: u64) {
        let policy = self.containers.settings().policy();
        // Another program may have set a pod's limit while the plugin did not watch the cgroup. A
        // kubelet from 1.27 to 1.36 may have failed to set the limit.
        for containers in self.by_pod().into_values() {
            if let Some((container, pod)) = self.view_pod(containers) {
                let raise = self.levels.raise_limits(&container, &pod, false);
                self.reports.report_all(raise.incidents);
            }
        }
        let is_known = |id: &str| self.containers.get(id).is_some();
        self.levels.settle(is_known, &policy, synchronized);
        for cgroup in self.levels.cgroups() {
            self.watch_cgroup(&cgroup);
        }
        // Remove systemd drop-ins of pods that ended while the plugin did not watch their cgroups.
        match systemd::drop_ins(self.root.host()) {
            Ok(left) => left.iter().for_each(|cgroup| self.remove_drop_ins(cgroup)),
            Err(error) => debug!(%error, "cannot search for drop-ins of pods that are gone"),
        }
        give_memory_back();
    }

    async fn check(&mut self, mut due: DueChecks) {
        // A later synchronization reports containers that this check does not examine, so `settle`
        // must then do nothing.
        let synchronized = self.levels.synchronized();
        for path in std::mem::take(&mut due.removed) {
            self.on_removed(&path);
        }
        if due.all {
            // Forget all repair histories, because the program that changed the files may have
            // stopped, or another runtime may be connected.
            self.contention = Contention::default();
            for id in self.containers.ids() {
                due.containers.entry(id).or_default();
            }
        }
        let containers: Vec<_> = due.containers.into_iter().collect();
        for batch in containers.chunks(BATCH * 16) {
            self.check_containers(batch);
        }
        if due.all {
            self.settle_levels(synchronized);
        }
        if due.share {
            self.share_is_due = false;
            self.levels.share().await;
        }
        for (cgroup, touched) in due.cgroups {
            self.watch_cgroup(&cgroup);
            // The kubelet sets a pod's limit to the sum of the limits that users ask for. This sum
            // is too low if the plugin has raised a container's limit.
            if touched.contains(&Knob::Max)
                && let Some((container, pod)) = self.view_pod(self.in_pod(&cgroup))
            {
                let raise = self.levels.raise_limits(&container, &pod, true);
                self.reports.report_all(raise.incidents);
                if let Some(wait) = raise.again {
                    self.schedule(wait, WorkItem::CheckFile(cgroup.clone(), Knob::Max));
                }
            }
            let checked = self.levels.check(&cgroup, &touched);
            self.reports.report_all(checked.incidents);
            match checked.next {
                CheckNext::Settled => {}
                CheckNext::Again(wait) => self.schedule(wait, WorkItem::Cgroup(cgroup)),
                CheckNext::Gone => self.unwatch(&cgroup),
            }
        }
    }

    /// Returns one container that has not ended, and what the plugin knows about its pod's limits.
    fn view_pod(&self, mut containers: Vec<Arc<Container>>) -> Option<(Arc<Container>, PodView)> {
        containers.retain(|container| self.levels.is_alive(container));
        let alive = containers;
        // One container is enough, because the kubelet's checkpoint entry and the sum of limits
        // cover all containers of the pod.
        let (container, alive) = alive.split_first()?;
        let recorded = self.containers.record(container);
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

    fn forget_gone(&mut self) {
        self.levels.prune(|id| self.containers.get(id).is_some());
        let uids: HashSet<_> =
            self.containers.all().iter().map(|container| container.uid.clone()).collect();
        // Hold only one lock at a time: get the cgroups before `retain` takes the reports' lock.
        let cgroups: HashSet<_> = self.levels.cgroups().into_iter().collect();
        self.reports.retain(|uid| uids.contains(uid), |cgroup| cgroups.contains(cgroup));
        self.contention.forget_quiet(std::time::Instant::now());
        // inotify may have lost the event for the removal of a cgroup.
        let root = &self.root;
        let is_gone =
            |cgroup: &CgroupPath| matches!(root.cgroup(cgroup), Err(CgroupError::Gone(_)));
        self.unknown_cgroups.retain(|cgroup| !is_gone(cgroup));
        self.standings.retain(|cgroup, _| !is_gone(cgroup));
    }
}

/// Returns the next change of a watched cgroup. Returns `None` if inotify fails. Waits forever if
/// there is no watch.
async fn changed(watch: &mut Option<Watch>) -> Option<CgroupChange> {
    match watch {
        Some(watch) => watch.next().await.inspect_err(|error| warn!(%error, "inotify")).ok(),
        None => std::future::pending().await,
    }
}

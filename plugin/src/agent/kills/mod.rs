//! OOM kills in containers. The plugin notices each kill at once. The plugin counts kills by pod
//! and container name, so that the counts survive container restarts and plugin restarts. With
//! `oomRescue`, the plugin raises the limit of a container that is OOM-killed repeatedly.
//!
//! A pod's `memory.events` counts the kills in the pod's containers. The file exists longer than
//! the containers. inotify reports each change of the file. The containers' own `memory.events`
//! show in which container the kernel killed a process. The runtime removes a container's files
//! after the container's end. Therefore the plugin reads these files when inotify reports a change,
//! and before it forgets a container. The kernel counts a kill first in the container, then in the
//! ancestor cgroups. With `memory.oom.group`, the kernel counts the killed processes one by one.
//! Therefore the plugin may read the files when the kernel has counted only a part of a kill.
//!
//! One task counts kills and raises limits. Event handlers read the raised limits from memory. The
//! task stores the counts under `/run`, so a reboot removes both the counts and the cgroups.

mod count;
mod rescue;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use plimsoll_core::pod::CgroupPath;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::warn;

use self::watch::{CHECK_INTERVAL, Wakes, next};
use crate::agent::memory::give_memory_back;
use crate::agent::reconciler::WorkItem;
use crate::cgroup::CgroupRoot;
use crate::report::Reports;
use crate::state::atomic_file;
use crate::state::container::Container;
use crate::state::containers::Containers;
use crate::state::kill_counts::{Counted, Counts, FILE, LastReported, Pod, Running};
use crate::state::levels::Levels;
use crate::state::originals;
use crate::state::rescues::Rescues;

/// Minimum time between two checks. Throttling at `memory.high` also changes `memory.events`, so it
/// can cause many inotify events.
const CHECK_PAUSE: Duration = Duration::from_millis(40);

/// Time in seconds after which the plugin asks the runtime again to set a raised limit.
const RAISE_RETRY: u64 = 30;

/// Time in seconds for which a deferred limit counts as the cause of each kill after the plugin has
/// set the limit.
const DECREASE_KILL_WINDOW: u64 = 60;

/// Minimum time between two reports about a container, in seconds.
const REPORT_INTERVAL: u64 = 10;

/// Sender that reports changes of containers to the task that watches for kills.
#[derive(Debug)]
pub struct KillNotifier {
    changes: mpsc::UnboundedSender<ContainerChange>,
}

/// A change that the event handlers report to the task that watches for kills.
#[derive(Debug)]
enum ContainerChange {
    /// The container was started, or the user has asked for another limit.
    Runs(Arc<Container>),
    /// The container with this pod cgroup and ID has ended.
    Ended(CgroupPath, String),
    /// The runtime has reported all running containers.
    All(Vec<Arc<Container>>),
}

impl KillNotifier {
    /// Tells the task which containers run.
    pub fn synchronize(&self, containers: Vec<Arc<Container>>) {
        // This send cannot fail, because the receiver exists until the program ends.
        let _ = self.changes.send(ContainerChange::All(containers));
    }

    /// Tells the task that a container was started, or that the user has asked for another limit.
    pub fn runs(&self, container: &Arc<Container>) {
        let _ = self.changes.send(ContainerChange::Runs(container.clone()));
    }

    /// Tells the task that a container has ended.
    pub fn ended(&self, container: &Container) {
        if let Some(place) = &container.place {
            let _ = self
                .changes
                .send(ContainerChange::Ended(place.cgroup().clone(), container.id.clone()));
        }
    }
}

/// Returns whether the next report about a container is due. `reported` is the time of the last
/// report.
fn is_due(reported: Option<u64>, now: u64) -> bool {
    reported.is_none_or(|reported| now.saturating_sub(reported) >= REPORT_INTERVAL)
}

/// The task that watches for kills and counts them.
#[derive(Debug)]
pub struct Watcher {
    root: Arc<CgroupRoot>,
    containers: Arc<Containers>,
    levels: Arc<Levels>,
    rescues: Arc<Rescues>,
    reports: Arc<Reports>,
    work: mpsc::UnboundedSender<WorkItem>,
    changed: mpsc::UnboundedReceiver<ContainerChange>,
    path: PathBuf,
    counted: Counted,
    /// Whether no stored counts existed at the start. Without stored counts, the kills in the
    /// cgroup files may be old.
    is_first: bool,
    /// Time when an earlier plugin process last stored the counts, in seconds since the boot. A
    /// kill that this process finds at its first look happened after this time.
    away_since: u64,
    is_failing: bool,
    /// Counts that the plugin has already handled, for each kubepods.
    totals: BTreeMap<CgroupPath, Total>,
    /// Pods to check again in the next periodic check.
    again: BTreeSet<CgroupPath>,
}

/// Counts that the plugin has already handled, for one kubepods.
#[derive(Debug, Default)]
struct Total {
    /// Kills below the cgroup.
    kills: Counts,
    /// Number of times that usage reached the cgroup's own limit. `None` until the plugin first
    /// reads this number.
    reached: Option<u64>,
}

/// Returns how often usage reached the cgroup's own limit. Returns `None` if the file cannot be
/// read.
fn times_reached(root: &CgroupRoot, cgroup: &CgroupPath) -> Option<u64> {
    root.cgroup(cgroup).and_then(|cgroup| cgroup.local_events()).map(|events| events.oom).ok()
}

/// Pods to check, each with the IDs of its containers that have ended.
type Due = BTreeMap<CgroupPath, BTreeSet<String>>;

impl Watcher {
    /// Loads the counts that are stored on the node whose file system is at `host`. The task
    /// watches nothing until [`Watcher::run`].
    pub fn load(
        host: &Path,
        root: Arc<CgroupRoot>,
        containers: Arc<Containers>,
        levels: Arc<Levels>,
        reports: Arc<Reports>,
        work: mpsc::UnboundedSender<WorkItem>,
    ) -> (Arc<KillNotifier>, Arc<Rescues>, Self) {
        let path = host.join(originals::DIRECTORY).join(FILE);
        let read = fs::read(&path).and_then(|text| Ok(serde_json::from_slice::<Counted>(&text)?));
        let (counted, is_first) = match read {
            Ok(counted) => (counted, false),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    warn!(file = %path.display(), %error, "cannot read the stored counts of \
                                                           kills; the counts restart at 0");
                }
                (Counted::default(), true)
            }
        };
        let rescued = counted.pods.iter().flat_map(|(path, pod)| {
            pod.histories.iter().filter_map(move |(name, history)| {
                Some(((path.clone(), name.clone()), history.rescued()?))
            })
        });
        let (changes, changed) = mpsc::unbounded_channel();
        let rescues = Arc::new(Rescues::new(containers.clone(), rescued));
        let kills = Arc::new(KillNotifier { changes });
        let watcher = Self {
            root,
            containers,
            levels,
            rescues: rescues.clone(),
            reports,
            work,
            changed,
            path,
            away_since: counted.stored_at,
            counted,
            is_first,
            is_failing: false,
            totals: BTreeMap::new(),
            again: BTreeSet::new(),
        };
        (kills, rescues, watcher)
    }

    /// Runs forever, in a thread that may block. The task may read many files, and the kubelet's
    /// checkpoint may be large.
    pub async fn run(mut self) {
        let mut wakes = Wakes::new()
            .inspect_err(|error| {
                warn!(%error, "cannot watch for kills; the plugin finds kills only every \
                               {CHECK_INTERVAL:?}")
            })
            .ok();
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (mut changes, mut woken, mut is_tick) = (Vec::new(), BTreeSet::new(), false);
            tokio::select! {
                Some(change) = self.changed.recv() => changes.push(change),
                pod = next(&mut wakes) => { woken.insert(pod); }
                _ = ticks.tick() => is_tick = true,
            }
            while let Ok(change) = self.changed.try_recv() {
                changes.push(change);
            }
            while let Some(pod) = next(&mut wakes).now_or_never() {
                woken.insert(pod);
            }
            if is_tick {
                woken.extend(std::mem::take(&mut self.again));
                // A call of `suspects` usually reads only one file.
                woken.extend(self.suspects());
                if woken.is_empty() && changes.is_empty() {
                    continue;
                }
            }
            self.work(changes, woken, &mut wakes);
            sleep(CHECK_PAUSE).await;
        }
    }

    fn work(
        &mut self,
        changes: Vec<ContainerChange>,
        woken: BTreeSet<CgroupPath>,
        wakes: &mut Option<Wakes>,
    ) {
        let is_about_all = changes.iter().any(|change| matches!(change, ContainerChange::All(_)));
        let mut due: Due = woken.into_iter().map(|pod| (pod, BTreeSet::new())).collect();
        for change in changes {
            match change {
                ContainerChange::Runs(container) => self.on_runs(&container, true, wakes, &mut due),
                ContainerChange::Ended(pod, id) => _ = due.entry(pod).or_default().insert(id),
                ContainerChange::All(containers) => {
                    containers
                        .iter()
                        .for_each(|container| self.on_runs(container, false, wakes, &mut due));
                    let known: BTreeSet<_> =
                        containers.iter().map(|container| &container.id).collect();
                    for (pod, counted) in &self.counted.pods {
                        let gone = counted.running.keys().filter(|id| !known.contains(id)).cloned();
                        due.entry(pod.clone()).or_default().extend(gone);
                    }
                    if std::mem::take(&mut self.is_first) {
                        self.store();
                    }
                }
            }
        }
        for (pod, ended) in due {
            if !self.check_pod(&pod, &ended) {
                if let Some(wakes) = wakes {
                    wakes.remove(&pod);
                }
                self.forget(&pod);
            }
        }
        if is_about_all {
            give_memory_back();
        }
    }

    /// Handles a container that was started, or for which the user has asked for another limit.
    /// `is_event` is false if a synchronization reports the container, which may be old.
    fn on_runs(
        &mut self,
        container: &Arc<Container>,
        is_event: bool,
        wakes: &mut Option<Wakes>,
        due: &mut Due,
    ) {
        let (Some(place), Some(cgroup)) = (&container.place, &container.cgroup) else { return };
        let path = place.cgroup();
        // Watch before reading the counts, because the kernel may kill a process in between.
        if let Some(wakes) = wakes
            && let Err(error) = wakes.add(&self.root, path)
        {
            warn!(cgroup = %path, %error, "cannot watch for kills of a pod; the plugin finds \
                                           kills only every {CHECK_INTERVAL:?}");
        }
        let Ok(open) = self.root.cgroup(path) else { return };
        let (Ok(inode), Ok(events)) = (open.inode(), open.events()) else { return };
        let total = self.totals.entry(place.kubepods().clone()).or_default();
        total.reached = total.reached.or_else(|| times_reached(&self.root, place.kubepods()));
        let is_first = self.is_first;
        let pod = self.counted.pods.entry(path.clone()).or_default();
        if pod.inode != inode {
            *pod = Pod { inode, ..Pod::default() };
            if is_first {
                (pod.accounted, pod.limits_reached) = (events.into(), events.oom);
            }
        }
        let counted = || {
            self.root
                .cgroup(cgroup)
                .and_then(|cgroup| cgroup.events())
                .map(Counts::from)
                .unwrap_or_default()
        };
        pod.running.entry(container.id.clone()).or_insert_with(|| Running {
            name: container.name.clone(),
            cgroup: cgroup.clone(),
            counted: if is_first { counted() } else { Counts::default() },
            is_seen: is_event || is_first,
            container: None,
        });
        if let Some(running) = pod.running.get_mut(&container.id) {
            running.container = Some(container.clone());
        }
        let page = self.containers.settings().node.page_size;
        let is_forgotten = pod
            .histories
            .get_mut(&container.name)
            .is_some_and(|history| history.asks_for(container.asked, page));
        if is_forgotten {
            self.publish(path, &container.name);
            self.store();
        }
        due.entry(path.clone()).or_default();
        // The last kill in an earlier container with this name may require a higher limit. The task
        // may have read this kill only after it forgot the earlier container.
        self.raise_if_due(path, container);
    }

    fn last_reported(&mut self, path: &CgroupPath, name: &str) -> &mut LastReported {
        self.counted
            .pods
            .entry(path.clone())
            .or_default()
            .last_reported
            .entry(name.to_owned())
            .or_default()
    }

    /// Publishes a container's raised limit for the event handlers.
    fn publish(&self, path: &CgroupPath, name: &str) {
        let rescued =
            self.counted.pods.get(path).and_then(|pod| pod.histories.get(name)?.rescued());
        self.rescues.set(path, name, rescued);
    }

    /// Forgets a pod that no longer exists.
    fn forget(&mut self, path: &CgroupPath) {
        self.rescues.forget_pod(path);
        if self.counted.pods.remove(path).is_some_and(|pod| pod.accounted != Counts::default()) {
            self.store();
        }
    }

    fn store(&mut self) {
        self.counted.stored_at = now();
        let text = serde_json::to_vec(&self.counted).map_err(io::Error::from);
        let result = text.and_then(|text| atomic_file::replace(&self.path, &text));
        if let Err(error) = &result
            && !self.is_failing
        {
            warn!(file = %self.path.display(), %error, "cannot store the counts of kills; after \
                                                        a restart the plugin does not know them");
        }
        self.is_failing = result.is_err();
    }
}

/// Returns the seconds since the boot, including suspended time.
fn now() -> u64 {
    u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use plimsoll_core::incident::IncidentKind;
    use plimsoll_core::units::Bytes;

    use super::*;
    use crate::state::testing::{POD, TestNode};

    /// Lets a plugin start that finds three new kills. An earlier plugin stored the counts at
    /// `stored_at`. Returns the limit that the plugin requests.
    fn limit_after_outage(window: &str, stored_at: u64) -> Option<Bytes> {
        let config = format!(
            "nodeAllocatable: 4Gi\noomRescue: {{kills: 3, window: {window}, ceiling: 250Mi}}\n"
        );
        let node = TestNode::new(&config);
        let stored = format!(r#"{{"stored_at": {stored_at}, "pods": {{}}}}"#);
        node.write(&format!("{}/{FILE}", originals::DIRECTORY), &stored);
        let container = node.run("1", 100, 10);
        for cgroup in [POD.to_owned(), format!("{POD}/1")] {
            node.set(&cgroup, "memory.events", "high 0\noom 3\noom_kill 3\noom_group_kill 0\n");
        }
        let reports = Arc::<Reports>::default();
        let levels = node.levels(reports.brake.clone());
        let (work, mut requests) = mpsc::unbounded_channel();
        let (root, containers) = (node.root.clone(), node.containers.clone());
        let (_kills, _rescues, mut watcher) =
            Watcher::load(node.host.path(), root, containers, levels, reports.clone(), work);
        let all = ContainerChange::All(vec![container.clone()]);
        watcher.work(vec![all], BTreeSet::new(), &mut None);
        let reported = reports.of_container(&container.uid, &container.name);
        assert!(reported.iter().any(|report| report.kind == IncidentKind::Killed));
        requests.try_recv().ok().map(|work| match work {
            WorkItem::Limit { limit, .. } => limit,
            work => panic!("{work:?}"),
        })
    }

    #[test]
    fn kills_of_unknown_time_cause_no_rescue() {
        assert_eq!(limit_after_outage("1s", 0), None);
        let raised = Some(Bytes::new(200 << 20));
        assert_eq!(limit_after_outage("1h", now()), raised, "the kills lie in the window");
    }
}

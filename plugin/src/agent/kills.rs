//! OOM kills of containers. The plugin notices each kill at once. It counts the kills of a
//! container over all its IDs, and over restarts of the plugin. If the configuration asks for it
//! (`oomRescue`), the plugin raises the limit of a container that is killed too often.
//!
//! A pod's `memory.events` counts the kills of its containers and outlives them. Each change
//! triggers inotify. The containers' own files show which container was killed. These files exist
//! only until the runtime has cleaned up after a process that ended. So the plugin reads them when
//! inotify reports a change, and before it forgets a container. The kernel counts first in the
//! container, then in its ancestor cgroups. With `memory.oom.group`, it counts the killed processes
//! one by one. The plugin may therefore see only a part of a kill.
//!
//! One task does all of this. Event handlers find its results in memory. The task stores the counts
//! under `/run`, which lives as long as the cgroups.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{FutureExt as _, StreamExt as _};
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use plimsoll_core::incident::{Incident, IncidentKind, Subject};
use plimsoll_core::pod::{CgroupPath, PodCgroup};
use plimsoll_core::policy::rescue::{History, Rescued, Verdict};
use plimsoll_core::units::{Bytes, Limit};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, error, warn};

use crate::agent::guard;
use crate::agent::levels::Ancestors;
use crate::agent::reconcile::{Work, give_memory_back};
use crate::cgroup::{CgroupError, CgroupRoot, EVENTS, Events};
use crate::lock;
use crate::report::metrics::{By, OfKill};
use crate::report::{Report, Reports};
use crate::state::brake::Cause;
use crate::state::container::Container;
use crate::state::containers::Containers;
use crate::state::originals;

/// Name of the file with the counts.
const FILE: &str = "kills";

/// Interval of the check for kills that inotify has not reported.
const EVERY: Duration = Duration::from_secs(10);

/// Minimum time between two checks. A container that is throttled at `memory.high` triggers inotify
/// as often as a container that is killed.
const PAUSE: Duration = Duration::from_millis(40);

/// Time after which the plugin asks the runtime again for a limit that is not set, in seconds.
const RAISE_AGAIN: u64 = 30;

/// Time after a deferred limit decrease in which the decrease counts as the cause of a kill, in
/// seconds.
const AFTER_A_CUT: u64 = 60;

/// Minimum time between two reports about a container, in seconds.
const TELL_EVERY: u64 = 10;

/// Data about kills that the event handlers need.
#[derive(Debug)]
pub struct Kills {
    containers: Arc<Containers>,
    /// Raised limits, by pod and container name.
    rescued: Mutex<HashMap<(CgroupPath, String), Rescued>>,
    changes: mpsc::UnboundedSender<Change>,
}

/// A change that the task must know of.
#[derive(Debug)]
enum Change {
    /// The container was started, or its user has asked for a limit.
    Runs(Arc<Container>),
    /// The container with this pod cgroup and ID has ended.
    Ended(CgroupPath, String),
    /// The runtime has reported all running containers.
    All(Vec<Arc<Container>>),
}

impl Kills {
    /// Informs the task of all running containers.
    pub fn synchronize(&self, containers: Vec<Arc<Container>>) {
        // The receiver lives as long as the program.
        let _ = self.changes.send(Change::All(containers));
    }

    /// Informs the task that a container was started, or that its user has asked for a limit.
    pub fn runs(&self, container: &Arc<Container>) {
        let _ = self.changes.send(Change::Runs(container.clone()));
    }

    /// Informs the task that a container has ended.
    pub fn ended(&self, container: &Container) {
        if let Some(place) = &container.place {
            let _ = self.changes.send(Change::Ended(place.cgroup().clone(), container.id.clone()));
        }
    }

    /// Returns the raised limit of an active rescue, if the user still asks for the same limit. A
    /// running container keeps the raised limit even if rescues are off now, because lowering it
    /// could kill. In observe mode there is no raised limit.
    pub fn limit_for(&self, container: &Container) -> Option<Limit> {
        let rescued = self.rescue_of_request(container)?;
        if self.containers.settings().observes() {
            return None;
        }
        (container.started || is_wanted(&self.containers, container))
            .then_some(rescued.limit.into())
    }

    /// Whether the container has the raised limit of a rescue. Observe mode does not matter: the
    /// limit stays raised there.
    pub fn is_rescued(&self, container: &Container) -> bool {
        let page = self.containers.settings().node.page_size;
        self.rescue_of_request(container)
            .is_some_and(|rescued| container.limit.is_same(rescued.limit.into(), page))
    }

    /// Returns the limit that the container's user asks for. The container's known limit comes from
    /// the runtime, which may have stored a raised limit.
    pub fn asked(&self, container: &Container) -> Limit {
        let rescued =
            self.rescued(container).filter(|rescued| container.limit == rescued.limit.into());
        rescued.map_or(container.limit, |rescued| rescued.asked.into())
    }

    /// Returns the container's rescue if the user still asks for the limit that was raised.
    fn rescue_of_request(&self, container: &Container) -> Option<Rescued> {
        let page = self.containers.settings().node.page_size;
        self.rescued(container)
            .filter(|rescued| container.asked.is_same(rescued.asked.into(), page))
    }

    fn rescued(&self, container: &Container) -> Option<Rescued> {
        let pod = container.place.as_ref()?.cgroup().clone();
        lock(&self.rescued).get(&(pod, container.name.clone())).copied()
    }
}

fn is_wanted(containers: &Containers, container: &Container) -> bool {
    let settings = containers.settings();
    settings.config.oom_rescue.is_some()
        && settings.enforces()
        && container.overrides.oom_rescue != Some(None)
}

/// The counts, as they are stored.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Counted {
    pods: BTreeMap<CgroupPath, Pod>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Pod {
    inode: u64,
    /// Counts of the pod's `memory.events` that are attributed to a container, or reported without
    /// one.
    accounted: Counts,
    /// Number of times that the pod or a container had reached its limit, as of the last kill.
    limits_reached: u64,
    /// Running containers of the pod, by ID.
    running: BTreeMap<String, Running>,
    /// Histories of the pod's containers, by name.
    histories: BTreeMap<String, History>,
    /// Whether this process has checked the pod before. The first check may find kills from before
    /// its start.
    #[serde(skip)]
    is_seen: bool,
    #[serde(skip)]
    unexplained: Counts,
    #[serde(skip)]
    told: HashMap<String, Told>,
}

impl Pod {
    /// Stores the counts of a container's file as accounted for. Returns the new kills.
    fn account(&mut self, id: String, counts: Counts) -> Option<Killed> {
        let running = self.running.get_mut(&id)?;
        let times = counts.kills().saturating_sub(running.counted.kills());
        self.accounted = self.accounted.plus(counts.since(running.counted));
        running.counted = counts;
        Some(Killed { id, name: running.name.clone(), times, container: running.container.clone() })
    }
}

/// Times of the last reports about a container, in seconds since the boot.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// Report of kills.
    kills: Option<u64>,
    /// Report that the limit cannot be raised further.
    ceiling: Option<u64>,
    /// Request to the runtime for a raised limit.
    raised: Option<u64>,
    /// Report of a raise that observe mode left undone.
    planned: Option<u64>,
}

/// Returns whether the next report is due.
fn is_due(told: Option<u64>, now: u64) -> bool {
    told.is_none_or(|told| now.saturating_sub(told) >= TELL_EVERY)
}

#[derive(Debug, Serialize, Deserialize)]
struct Running {
    name: String,
    cgroup: CgroupPath,
    counted: Counts,
    /// The container as of its last event. The runtime may report its end before the task sees its
    /// last kill.
    #[serde(skip)]
    container: Option<Arc<Container>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counts {
    processes: u64,
    groups: u64,
}

impl From<Events> for Counts {
    fn from(events: Events) -> Self {
        Self { processes: events.oom_kill, groups: events.oom_group_kill }
    }
}

impl Counts {
    fn plus(self, other: Self) -> Self {
        Self { processes: self.processes + other.processes, groups: self.groups + other.groups }
    }

    fn since(self, before: Self) -> Self {
        let Self { processes, groups } = before;
        Self {
            processes: self.processes.saturating_sub(processes),
            groups: self.groups.saturating_sub(groups),
        }
    }

    /// Returns the number of kills. With `memory.oom.group`, all processes of a container together
    /// are one kill. The kernel may count the processes before the group.
    fn kills(self) -> u64 {
        if self.groups > 0 { self.groups } else { self.processes }
    }
}

/// Kills of one container.
#[derive(Debug)]
struct Killed {
    id: String,
    name: String,
    times: u64,
    container: Option<Arc<Container>>,
}

/// The task that watches for kills and counts them.
#[derive(Debug)]
pub struct Watcher {
    root: Arc<CgroupRoot>,
    containers: Arc<Containers>,
    ancestors: Arc<Ancestors>,
    kills: Arc<Kills>,
    reports: Arc<Reports>,
    work: mpsc::UnboundedSender<Work>,
    changed: mpsc::UnboundedReceiver<Change>,
    path: PathBuf,
    counted: Counted,
    /// Whether there were no stored counts at the start. Kills in the cgroup files may then be old.
    is_first: bool,
    is_failing: bool,
    /// Accounted counts of each kubepods.
    totals: BTreeMap<CgroupPath, Total>,
    /// Pods to check with the next tick.
    again: BTreeSet<CgroupPath>,
}

/// Accounted counts of one kubepods.
#[derive(Debug, Default)]
struct Total {
    /// Kills below the cgroup.
    kills: Counts,
    /// Number of times that the cgroup's own limit was reached; `None` until the first read.
    reached: Option<u64>,
}

/// Returns how often the cgroup's own limit was reached; `None` if this cannot be read.
fn times_reached(root: &CgroupRoot, cgroup: &CgroupPath) -> Option<u64> {
    root.cgroup(cgroup).and_then(|cgroup| cgroup.local_events()).map(|events| events.oom).ok()
}

/// Returns the raised limits of containers that are stored on the node whose file system is at
/// `host`, with pod and container name.
///
/// # Errors
///
/// When the file exists and cannot be read.
pub fn rescued_on(host: &Path) -> io::Result<Vec<(CgroupPath, String, Rescued)>> {
    let text = match fs::read(host.join(originals::DIRECTORY).join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let Counted { pods } = serde_json::from_slice(&text)?;
    let rescued = pods.into_iter().flat_map(|(path, pod)| {
        let histories = pod.histories.into_iter();
        histories.filter_map(move |(name, history)| Some((path.clone(), name, history.rescued()?)))
    });
    Ok(rescued.collect())
}

/// Pods to check, with the IDs of their containers that have ended.
type Due = BTreeMap<CgroupPath, BTreeSet<String>>;

impl Watcher {
    /// Loads the counts that are stored on the node whose file system is at `host`. The task
    /// watches nothing until [`Watcher::run`].
    pub fn load(
        host: &Path,
        root: Arc<CgroupRoot>,
        containers: Arc<Containers>,
        ancestors: Arc<Ancestors>,
        reports: Arc<Reports>,
        work: mpsc::UnboundedSender<Work>,
    ) -> (Arc<Kills>, Self) {
        let path = host.join(originals::DIRECTORY).join(FILE);
        let read = fs::read(&path).and_then(|text| Ok(serde_json::from_slice::<Counted>(&text)?));
        let (counted, is_first) = match read {
            Ok(counted) => (counted, false),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    warn!(file = %path.display(), %error, "cannot read the kills that were counted before; counting anew");
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
        let rescued = Mutex::new(rescued.collect());
        let kills = Arc::new(Kills { containers: containers.clone(), rescued, changes });
        let watcher = Self {
            root,
            containers,
            ancestors,
            kills: kills.clone(),
            reports,
            work,
            changed,
            path,
            counted,
            is_first,
            is_failing: false,
            totals: BTreeMap::new(),
            again: BTreeSet::new(),
        };
        (kills, watcher)
    }

    /// Runs forever.
    pub async fn run(mut self) {
        let mut wakes = Wakes::new()
            .inspect_err(|error| warn!(%error, "cannot watch for kills; they are found only every {EVERY:?}"))
            .ok();
        let mut ticks = interval(EVERY);
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
                // This usually reads one file.
                woken.extend(self.suspects());
                if woken.is_empty() && changes.is_empty() {
                    continue;
                }
            }
            // The kubelet's checkpoint may be large and there may be many files, so use a blocking
            // thread.
            let worked = tokio::task::spawn_blocking(move || {
                self.work(changes, woken, &mut wakes);
                (self, wakes)
            });
            match worked.await {
                Ok(worked) => (self, wakes) = worked,
                Err(error) => {
                    error!(%error, "looking for containers that were killed failed; they are not counted any more");
                    return;
                }
            }
            sleep(PAUSE).await;
        }
    }

    fn work(
        &mut self,
        changes: Vec<Change>,
        woken: BTreeSet<CgroupPath>,
        wakes: &mut Option<Wakes>,
    ) {
        let is_about_all = changes.iter().any(|change| matches!(change, Change::All(_)));
        let mut due: Due = woken.into_iter().map(|pod| (pod, BTreeSet::new())).collect();
        for change in changes {
            match change {
                Change::Runs(container) => self.runs(&container, wakes, &mut due),
                Change::Ended(pod, id) => _ = due.entry(pod).or_default().insert(id),
                Change::All(containers) => {
                    containers.iter().for_each(|container| self.runs(container, wakes, &mut due));
                    let known: BTreeSet<_> =
                        containers.iter().map(|container| &container.id).collect();
                    for (pod, counted) in &self.counted.pods {
                        let gone = counted.running.keys().filter(|id| !known.contains(id)).cloned();
                        due.entry(pod.clone()).or_default().extend(gone);
                    }
                    if std::mem::take(&mut self.is_first) {
                        self.write_down();
                    }
                }
            }
        }
        for (pod, ended) in due {
            if !self.look(&pod, &ended) {
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

    /// Handles a container that runs, and whose user may just have asked for a limit.
    fn runs(&mut self, container: &Arc<Container>, wakes: &mut Option<Wakes>, due: &mut Due) {
        let (Some(place), Some(cgroup)) = (&container.place, &container.cgroup) else { return };
        let path = place.cgroup();
        let Ok(open) = self.root.cgroup(path) else { return };
        let (Ok(inode), Ok(events)) = (open.inode(), open.events()) else { return };
        if let Some(wakes) = wakes
            && let Err(error) = wakes.add(&self.root, path)
        {
            warn!(cgroup = %path, %error, "cannot watch for kills, which are found only every {EVERY:?}");
        }
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
            self.write_down();
        }
        due.entry(path.clone()).or_default();
        // The container's predecessor may have been forgotten before the task saw its last kill.
        self.consider(path, container);
    }

    /// Returns the pods to check without a report from inotify: all pods, after a new kill below a
    /// kubepods.
    fn suspects(&mut self) -> Vec<CgroupPath> {
        let mut has_more = false;
        for (top, total) in &mut self.totals {
            let count = self
                .root
                .cgroup(top)
                .and_then(|top| top.events())
                .map(Counts::from)
                .unwrap_or_default();
            has_more |= std::mem::replace(&mut total.kills, count) != count;
        }
        if has_more { self.counted.pods.keys().cloned().collect() } else { Vec::new() }
    }

    /// Checks a pod for kills, and forgets its containers in `ended`. Returns `false` if the pod is
    /// gone.
    fn look(&mut self, path: &CgroupPath, ended: &BTreeSet<String>) -> bool {
        let Some(pod) = self.counted.pods.get_mut(path) else {
            return self.root.cgroup(path).is_ok();
        };
        let before = (pod.accounted, pod.limits_reached);
        // Read the containers before the pod, because the kernel counts upwards.
        let (counts, gone) = look_at_containers(&self.root, pod);
        let events = match self.root.cgroup(path).and_then(|pod| pod.events()) {
            Ok(events) => events,
            Err(CgroupError::Gone(_)) => return false,
            Err(error) => {
                debug!(cgroup = %path, %error, "cannot tell whether anybody was killed");
                return true;
            }
        };
        let was_seen = std::mem::replace(&mut pod.is_seen, true);
        let mut killed: Vec<_> =
            counts.into_iter().filter_map(|(id, counts)| pod.account(id, counts)).collect();
        let rest = Counts::from(events).since(pod.accounted);
        if rest.kills() > 0 {
            let names: BTreeSet<_> =
                gone.iter().filter_map(|id| Some(&pod.running.get(id)?.name)).collect();
            match (names.len(), gone.last().and_then(|id| Some((id, pod.running.get(id)?)))) {
                (1, Some((id, last))) => {
                    // A part of the kill may have been counted before the container's cgroup was
                    // gone.
                    let times =
                        last.counted.plus(rest).kills().saturating_sub(last.counted.kills());
                    let container = last.container.clone();
                    killed.push(Killed {
                        id: id.clone(),
                        name: last.name.clone(),
                        times,
                        container,
                    });
                    pod.accounted = events.into();
                }
                (0, _) if pod.unexplained != rest => {
                    pod.unexplained = rest;
                    self.again.insert(path.clone());
                }
                _ => {
                    let might_be =
                        names.into_iter().map(String::as_str).collect::<Vec<_>>().join(" or ");
                    warn!(
                        cgroup = %path,
                        processes = rest.processes,
                        might_be,
                        "the kernel killed processes of the pod for want of memory; whose they were cannot be told"
                    );
                    pod.accounted = events.into();
                }
            }
        }
        gone.iter().chain(ended).for_each(|id| _ = pod.running.remove(id));
        if pod.running.is_empty() {
            // The pod may be about to go.
            self.again.insert(path.clone());
        }
        killed.retain(|killed| killed.times > 0);
        let is_by_its_limit = events.oom > pod.limits_reached;
        let mut forgotten = Vec::new();
        if !killed.is_empty() {
            pod.limits_reached = events.oom;
            let now = now();
            for Killed { id, name, times, .. } in killed.iter().filter(|_| is_by_its_limit) {
                let history = pod.histories.entry(name.clone()).or_default();
                if let Some(container) = self.containers.get(id)
                    && history.asks_for(container.asked, self.containers.settings().node.page_size)
                {
                    forgotten.push(name.clone());
                }
                history.killed(*times, now);
            }
        }
        let has_changed = (pod.accounted, pod.limits_reached) != before;
        forgotten.iter().for_each(|name| self.publish(path, name));
        if has_changed {
            // Store the counts before the reports.
            self.write_down();
        }
        for killed in killed {
            let by_ours = self.kills_by_our_limits(path, &killed, is_by_its_limit);
            // The brake counts only kills during this process.
            if was_seen {
                (0..by_ours).for_each(|_| self.reports.brake.count(Cause::Kills, Instant::now()));
            }
            self.killed(path, &killed, is_by_its_limit);
        }
        true
    }

    /// Reports a container's kills, and raises its limit if a raise is due.
    fn killed(&mut self, path: &CgroupPath, killed: &Killed, is_by_its_limit: bool) {
        let Some(pod) = self.counted.pods.get_mut(path) else { return };
        let settings = self.containers.settings();
        let rescue = settings.config.oom_rescue.unwrap_or_default();
        let now = now();
        let kills =
            pod.histories.get(&killed.name).map_or(0, |history| history.kills(rescue.window, now));
        // The runtime may have created a new container of this name, or reported the end of this
        // one.
        let is_it = |container: &Arc<Container>| {
            container.name == killed.name
                && container.place.as_ref().is_some_and(|place| place.cgroup() == path)
        };
        let container = self
            .containers
            .all()
            .into_iter()
            .filter(is_it)
            .max_by_key(|container| container.id != killed.id);
        let container = container.or_else(|| killed.container.clone());
        let by = if is_by_its_limit { By::limit } else { By::node };
        self.reports.metrics.oom_kills.get_or_create(&OfKill { by }).inc_by(killed.times);
        if is_due(self.told(path, &killed.name).kills, now) {
            self.told(path, &killed.name).kills = Some(now);
            let subject = match &container {
                Some(container) => container.as_ref().into(),
                None => {
                    let uid = PodCgroup::parse(path.as_str()).map(|pod| pod.uid);
                    Subject { uid, container: Some(killed.name.clone()), ..Subject::default() }
                }
            };
            let limit = container.as_ref().map(|container| container.limit);
            let what = Incident::Killed {
                limit,
                by_own_limit: is_by_its_limit,
                kills,
                window: rescue.window,
            };
            self.reports.tell(&Subject { cgroup: Some(path.clone()), ..subject }, &what);
        }
        if let Some(container) = container {
            self.consider(path, &container);
        }
    }

    /// Raises a container's limit if a raise is due. The pod's limit is raised first. Later
    /// containers of the same name also get the raised limit.
    fn consider(&mut self, path: &CgroupPath, container: &Arc<Container>) {
        if self.containers.settings().observes() {
            return self.plan(path, container, now());
        }
        let Some(limit) = self.judge(path, container, now()) else { return };
        let raised = Container { limit: Limit::Bytes(limit), ..(**container).clone() };
        let mut others = self.containers.in_sandbox(&container.sandbox);
        others.retain(|other| other.name != container.name && self.ancestors.is_alive(other));
        let recorded = self.containers.record(&container.uid, &container.name, container.moment);
        let pod = self.containers.view_pod(&raised, None, &others, &recorded);
        self.ancestors.raise_limits(&raised, &pod);
        // The receiver lives as long as the program.
        let _ = self.work.send(Work::limit(container, limit));
    }

    /// Reports the raise that observe mode leaves undone.
    fn plan(&mut self, path: &CgroupPath, container: &Container, now: u64) {
        let settings = self.containers.settings();
        let (Some(rescue), Some(asked)) =
            (settings.config.oom_rescue.as_ref(), container.asked.bytes())
        else {
            return;
        };
        let own_ceiling = container.overrides.oom_rescue;
        let Some(pod) = self.counted.pods.get(path) else { return };
        let Some(history) = pod.histories.get(&container.name) else { return };
        let is_told = pod.told.get(&container.name).is_some_and(|told| !is_due(told.planned, now));
        let (kills, window) = (history.kills(rescue.window, now), rescue.window);
        if is_told
            || kills < rescue.kills as usize
            || own_ceiling == Some(None)
            || self.is_bounded_by_its_pod(container)
        {
            return;
        }
        let free = self.free(container);
        let page = settings.node.page_size;
        // Judge a copy of the history, so that the decision is not stored.
        let what =
            match history.clone().judge(rescue, asked, own_ceiling.flatten(), free, page, now) {
                Verdict::NotYet => return,
                Verdict::Raise(desired) => {
                    Incident::Rescued { asked, observed: asked, desired, kills, window }
                }
                Verdict::AtCeiling(ceiling) => {
                    Incident::AtCeiling { observed: asked, ceiling, free, kills, window }
                }
            };
        self.told(path, &container.name).planned = Some(now);
        self.reports.tell_planned(&container.into(), &what);
    }

    /// Returns how many of these kills were caused by a limit that the plugin has set. This is the
    /// limit of all pods, or a deferred limit decrease that was applied shortly before.
    fn kills_by_our_limits(
        &mut self,
        path: &CgroupPath,
        killed: &Killed,
        is_by_its_limit: bool,
    ) -> u64 {
        if !is_by_its_limit {
            let times = self.limit_of_all_reached();
            return if guard::is_in_force(&self.root, &self.ancestors) { times } else { 0 };
        }
        let Some(pod) = PodCgroup::parse(path.as_str()) else { return 0 };
        let is_ours = |report: &Report| {
            report.kind == IncidentKind::CutApplied && report.is_within(AFTER_A_CUT)
        };
        if self.reports.of_container(&pod.uid, &killed.name).iter().any(is_ours) {
            killed.times
        } else {
            0
        }
    }

    /// Returns how often the limit of all pods was reached since the last call. A memory shortage
    /// of the whole node does not count, though the kernel then also kills in pods.
    fn limit_of_all_reached(&mut self) -> u64 {
        let root = &self.root;
        let since = |(kubepods, total): (&CgroupPath, &mut Total)| {
            let now = times_reached(root, kubepods)?;
            Some(now.saturating_sub(total.reached.replace(now)?))
        };
        self.totals.iter_mut().filter_map(since).sum()
    }

    fn told(&mut self, path: &CgroupPath, name: &str) -> &mut Told {
        self.counted.pods.entry(path.clone()).or_default().told.entry(name.to_owned()).or_default()
    }

    /// Returns a raised limit if a raise is due.
    fn judge(&mut self, path: &CgroupPath, container: &Container, now: u64) -> Option<Bytes> {
        if !is_wanted(&self.containers, container) {
            return None;
        }
        let settings = self.containers.settings();
        let rescue = settings.config.oom_rescue.as_ref()?;
        let asked = container.asked.bytes()?;
        let pod = self.counted.pods.get(path)?;
        let kills = pod.histories.get(&container.name)?.kills(rescue.window, now);
        let told = pod.told.get(&container.name).copied().unwrap_or_default();
        let rescued = pod.histories.get(&container.name).and_then(History::rescued);
        if let Some(Rescued { limit, .. }) = rescued
            && container.started
            && container.limit.is_same(asked.into(), settings.node.page_size)
            && told.raised.is_none_or(|raised| now.saturating_sub(raised) >= RAISE_AGAIN)
        {
            // The runtime has not set the requested limit.
            self.told(path, &container.name).raised = Some(now);
            return Some(limit);
        }
        if kills < rescue.kills as usize || !is_due(told.ceiling, now) {
            return None;
        }
        if self.is_bounded_by_its_pod(container) {
            return None;
        }
        let free = self.free(container);
        let own_ceiling = container.overrides.oom_rescue.flatten();
        let history = self.counted.pods.get_mut(path)?.histories.get_mut(&container.name)?;
        let limit = history.rescued().map_or(asked, |rescued| rescued.limit);
        let page = settings.node.page_size;
        // The last raised limit is not in force yet, or the limit that the user asks for is
        // deferred.
        if !container.limit.is_same(limit.into(), page) {
            return None;
        }
        let verdict = history.judge(rescue, asked, own_ceiling, free, page, now);
        let raised = match verdict {
            Verdict::NotYet => return None,
            Verdict::Raise(raised) => {
                self.publish(path, &container.name);
                self.told(path, &container.name).raised = Some(now);
                let window = rescue.window;
                let what =
                    Incident::Rescued { asked, observed: limit, desired: raised, kills, window };
                self.reports.tell(&container.into(), &what);
                Some(raised)
            }
            Verdict::AtCeiling(most) => {
                let what = Incident::AtCeiling {
                    observed: limit,
                    ceiling: most,
                    free,
                    kills,
                    window: rescue.window,
                };
                self.reports.tell(&container.into(), &what);
                self.told(path, &container.name).ceiling = Some(now);
                None
            }
        };
        self.write_down();
        raised
    }

    /// Returns whether the pod's own limit prevents a raise, and logs this.
    fn is_bounded_by_its_pod(&self, container: &Container) -> bool {
        let is_bounded = self.ancestors.has_own_memory_limit(&container.sandbox);
        if is_bounded {
            debug!(
                pod = container.pod,
                container = container.name,
                "its pod has limits of its own, which stay"
            );
        }
        is_bounded
    }

    /// Returns the part of node allocatable that is neither requested nor taken by other raised
    /// limits. The requests include the one of this container. Returns zero if node allocatable is
    /// unknown.
    fn free(&self, container: &Container) -> Bytes {
        let Some(allocatable) = self.containers.settings().node.allocatable else {
            return Bytes::ZERO;
        };
        let request = |container: &Container| {
            let record = self.containers.record(&container.uid, &container.name, container.moment);
            self.containers
                .decide(container, &record)
                .request
                .map_or(Bytes::ZERO, |request| request.bytes)
        };
        let mut all = self.containers.all();
        all.retain(|other| self.ancestors.is_alive(other));
        let others = all
            .iter()
            .filter(|other| (&other.uid, &other.name) != (&container.uid, &container.name));
        let requests =
            others.map(|other| request(other)).fold(request(container), Bytes::saturating_add);
        let own =
            container.place.as_ref().map(|place| (place.cgroup().clone(), container.name.clone()));
        let raised = lock(&self.kills.rescued);
        let others = raised.iter().filter(|(whose, _)| Some(*whose) != own.as_ref());
        let raised = others.map(|(_, rescued)| rescued.limit.saturating_sub(rescued.asked));
        allocatable
            .saturating_sub(requests)
            .saturating_sub(raised.fold(Bytes::ZERO, Bytes::saturating_add))
    }

    /// Publishes a container's raised limit for the event handlers.
    fn publish(&self, path: &CgroupPath, name: &str) {
        let rescued =
            self.counted.pods.get(path).and_then(|pod| pod.histories.get(name)?.rescued());
        let key = (path.clone(), name.to_owned());
        match rescued {
            Some(rescued) => lock(&self.kills.rescued).insert(key, rescued),
            None => lock(&self.kills.rescued).remove(&key),
        };
    }

    /// Forgets a pod that is gone.
    fn forget(&mut self, path: &CgroupPath) {
        lock(&self.kills.rescued).retain(|(pod, _), _| pod != path);
        if self.counted.pods.remove(path).is_some_and(|pod| pod.accounted != Counts::default()) {
            self.write_down();
        }
    }

    fn write_down(&mut self) {
        let save = || {
            if let Some(directory) = self.path.parent() {
                fs::create_dir_all(directory)?;
            }
            let new = self.path.with_extension("new");
            fs::write(&new, serde_json::to_vec(&self.counted)?)?;
            fs::rename(&new, &self.path)
        };
        let result: io::Result<()> = save();
        if let Err(error) = &result
            && !self.is_failing
        {
            warn!(file = %self.path.display(), %error, "cannot write down kills; after a restart they are not known any more");
        }
        self.is_failing = result.is_err();
    }
}

/// Returns the counts of the pod's containers, and the IDs of the containers that have no cgroup
/// any more.
fn look_at_containers(root: &CgroupRoot, pod: &Pod) -> (Vec<(String, Counts)>, Vec<String>) {
    let (mut counts, mut gone) = (Vec::new(), Vec::new());
    for (id, running) in &pod.running {
        match root.cgroup(&running.cgroup).and_then(|cgroup| cgroup.events()) {
            Ok(events) => counts.push((id.clone(), events.into())),
            Err(CgroupError::Gone(_)) => gone.push(id.clone()),
            Err(error) => {
                debug!(cgroup = %running.cgroup, %error, "cannot tell whether it was killed")
            }
        }
    }
    (counts, gone)
}

/// The inotify watches of the pods' `memory.events`.
struct Wakes {
    watches: Watches,
    events: EventStream<Vec<u8>>,
    pods: HashMap<WatchDescriptor, CgroupPath>,
}

impl Wakes {
    fn new() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        Ok(Self {
            watches,
            events: inotify.into_event_stream(vec![0; 16 << 10])?,
            pods: HashMap::new(),
        })
    }

    fn add(&mut self, root: &CgroupRoot, pod: &CgroupPath) -> io::Result<()> {
        let file = root.path().join(pod.as_str()).join(EVENTS);
        match self.watches.add(file, WatchMask::MODIFY) {
            Ok(descriptor) => _ = self.pods.insert(descriptor, pod.clone()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Removes a pod's watch. The watch of a removed cgroup does not always end by itself.
    fn remove(&mut self, pod: &CgroupPath) {
        let watches = &mut self.watches;
        self.pods.retain(|descriptor, path| {
            let is_it = path == pod;
            if is_it {
                // The watch may have ended already.
                let _ = watches.remove(descriptor.clone());
            }
            !is_it
        });
    }

    async fn next(&mut self) -> io::Result<CgroupPath> {
        loop {
            let event = self.events.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
            // inotify also reports that a pod is gone.
            if let Some(pod) = self.pods.get(&event.wd).cloned() {
                if event.mask.contains(EventMask::IGNORED) {
                    self.pods.remove(&event.wd);
                }
                return Ok(pod);
            }
        }
    }
}

/// Returns the next pod whose `memory.events` has changed. Waits forever without inotify.
async fn next(wakes: &mut Option<Wakes>) -> CgroupPath {
    if let Some(some) = wakes {
        match some.next().await {
            Ok(pod) => return pod,
            Err(error) => {
                warn!(%error, "cannot watch for kills any longer; they are found only every {EVERY:?}")
            }
        }
        *wakes = None;
    }
    std::future::pending().await
}

/// Returns the seconds since the boot, including suspended time.
fn now() -> u64 {
    u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or_default()
}

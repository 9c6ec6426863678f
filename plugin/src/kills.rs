//! Containers that the kernel kills for want of memory: seen at once, counted over all ids that a container has had and over
//! restarts of this plugin, and given more memory where the configuration has it so (`oomRescue`).
//!
//! A pod's `memory.events` counts what happens to its containers, outlives them, and wakes up who watches it. Whose kill it was,
//! the containers' own files tell, as long as they are there: that is until the runtime has cleaned up behind a process that
//! has ended, so they are looked at when the kernel wakes, and before a container is forgotten.
//!
//! What is counted is written down under `/run`, which lives as long as the cgroups do.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, error, warn};

use crate::ancestors::Ancestors;
use crate::cgroup::{CgroupError, CgroupPath, CgroupRoot, EVENTS, Events, Knob};
use crate::containers::{Container, Containers};
use crate::originals;
use crate::outcome::Outcome;
use crate::reconcile::Work;
use crate::rescue::{History, Verdict};
use crate::units::{Bytes, Limit};

/// The file that it is written down in.
const FILE: &str = "kills";

/// How often to look whether there was a kill that the kernel has not woken anybody for.
const EVERY: Duration = Duration::from_secs(10);

/// The least time between two looks: a container that is held back at `memory.high` wakes up as often as one that is killed.
const PAUSE: Duration = Duration::from_millis(20);

/// How often a container's kills are told of, in seconds.
const TELL_EVERY: u64 = 10;

/// Kills on this node.
#[derive(Debug)]
pub struct Kills {
    root: Arc<CgroupRoot>,
    containers: Arc<Containers>,
    ancestors: Arc<Ancestors>,
    work: mpsc::UnboundedSender<Work>,
    path: PathBuf,
    state: Mutex<State>,
    changes: mpsc::UnboundedSender<Change>,
}

/// A container has come or gone.
#[derive(Debug)]
enum Change {
    Started(CgroupPath),
    Ended(CgroupPath, String),
}

/// What is known, and written down.
#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    pods: BTreeMap<String, Pod>,
    /// What all pods lie in.
    #[serde(skip)]
    tops: BTreeSet<CgroupPath>,
    /// Nothing was ever written down: what was counted before is not known to have happened lately.
    #[serde(skip)]
    is_first: bool,
    #[serde(skip)]
    is_failing: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Pod {
    inode: u64,
    counted: Counts,
    /// Its containers that run, by id.
    running: BTreeMap<String, Running>,
    /// What has happened to its containers, by name.
    histories: BTreeMap<String, History>,
    /// When a kill of a container was last told of.
    #[serde(skip)]
    told: HashMap<String, u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Running {
    name: String,
    cgroup: String,
    counted: Counts,
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
    fn since(self, before: Self) -> Self {
        let Self { processes, groups } = before;
        Self { processes: self.processes.saturating_sub(processes), groups: self.groups.saturating_sub(groups) }
    }

    /// How often somebody was killed: all processes of a container together are one kill.
    fn kills(self) -> u64 {
        if self.groups > 0 { self.groups } else { self.processes }
    }
}

/// A container that was killed.
struct Killed {
    id: String,
    name: String,
    times: u64,
    /// It lives on, or is not cleaned up yet.
    lives: bool,
}

impl Kills {
    /// Goes on from what is written down on the node whose file system is at `host`. Nobody is watched until [`Kills::run`], which
    /// takes the second value.
    pub fn load(
        host: &Path,
        root: Arc<CgroupRoot>,
        containers: Arc<Containers>,
        ancestors: Arc<Ancestors>,
        work: mpsc::UnboundedSender<Work>,
    ) -> (Arc<Self>, Watcher) {
        let path = host.join(originals::DIRECTORY).join(FILE);
        let state = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                warn!(file = %path.display(), %error, "cannot make sense of the kills that were counted before");
                State::default()
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    warn!(file = %path.display(), %error, "cannot read the kills that were counted before");
                }
                State { is_first: true, ..State::default() }
            }
        };
        let (changes, changed) = mpsc::unbounded_channel();
        let kills = Arc::new(Self { root, containers, ancestors, work, path, state: Mutex::new(state), changes });
        (kills.clone(), Watcher { kills, changed })
    }

    /// These are all containers that run.
    pub fn synchronize(&self, containers: &[Arc<Container>]) {
        for container in containers {
            self.started(container);
        }
        let mut state = self.lock();
        if std::mem::take(&mut state.is_first) {
            self.write_down(&mut state);
        }
    }

    /// A container was started.
    pub fn started(&self, container: &Container) {
        let (Some(place), Some(cgroup)) = (&container.place, &container.cgroup) else { return };
        let path = place.cgroup();
        let Ok(inode) = self.root.cgroup(path).and_then(|pod| pod.inode()) else { return };
        let mut state = self.lock();
        let counted = |cgroup| if state.is_first { self.count(cgroup).unwrap_or_default() } else { Counts::default() };
        let (of_pod, of_container) = (counted(path), counted(cgroup));
        state.tops.insert(place.kubepods().clone());
        let pod = state.pods.entry(path.as_str().to_owned()).or_default();
        if pod.inode != inode {
            *pod = Pod { inode, counted: of_pod, ..Pod::default() };
        }
        pod.running.entry(container.id.clone()).or_insert_with(|| Running {
            name: container.name.clone(),
            cgroup: cgroup.as_str().to_owned(),
            counted: of_container,
        });
        // The task ends only with the program.
        let _ = self.changes.send(Change::Started(path.clone()));
    }

    /// A container has ended.
    pub fn ended(&self, container: &Container) {
        if let Some(place) = &container.place {
            let _ = self.changes.send(Change::Ended(place.cgroup().clone(), container.id.clone()));
        }
    }

    /// Whether a container is in a pod in which another one has run, so that it may have been killed.
    pub fn may_have_history(&self, container: &Container) -> bool {
        container.place.as_ref().is_some_and(|place| self.lock().pods.contains_key(place.cgroup().as_str()))
    }

    /// The limit of a container that is about to be made, or updated, instead of what its user asks for, if it was killed too often
    /// with that. May take as long as to read the kubelet's checkpoint.
    pub fn limit_for(&self, container: &Container, asked: Bytes) -> Option<Bytes> {
        let path = container.place.as_ref()?.cgroup();
        // The last kill may be news.
        self.look(path, &BTreeSet::new());
        let mut state = self.lock();
        let history = state.pods.get_mut(path.as_str())?.histories.get_mut(&container.name)?;
        let before = history.clone();
        let standing = history.limit_for(asked);
        let is_forgotten = *history != before;
        let limit = standing.unwrap_or(asked);
        let raised = self.judge(container, history, limit);
        if raised.is_some() || is_forgotten {
            self.write_down(&mut state);
        }
        // Switched off since, or in a pod that does not want it.
        self.is_wanted(container).then(|| raised.or(standing))?
    }

    fn is_wanted(&self, container: &Container) -> bool {
        let settings = self.containers.settings();
        settings.config.oom_rescue.is_some() && !settings.stand_aside && container.overrides.oom_rescue != Some(None)
    }

    /// A higher limit, if it is due.
    fn judge(&self, container: &Container, history: &mut History, limit: Bytes) -> Option<Bytes> {
        if !self.is_wanted(container) {
            return None;
        }
        let settings = self.containers.settings();
        let rescue = settings.config.oom_rescue.as_ref()?;
        let now = now();
        let kills = history.kills(rescue.window, now);
        if kills < rescue.kills as usize {
            return None;
        }
        let record = self.containers.record(&container.uid, &container.name, container.moment);
        if record.is_some_and(|record| record.pod_limits) {
            debug!(pod = container.pod, container = container.name, "its pod has limits of its own, which stay");
            return None;
        }
        let free = self.free(container);
        let own_ceiling = container.overrides.oom_rescue.flatten();
        let verdict = history.judge(rescue, limit, own_ceiling, free, settings.node.page_size, now);
        match verdict {
            Verdict::NotYet => None,
            Verdict::Raise(raised) => {
                warn!(
                    pod = container.pod,
                    container = container.name,
                    knob = Knob::Max.file_name(),
                    desired = %raised,
                    observed = %limit,
                    asked = %history.asked(raised),
                    kills,
                    window = ?rescue.window,
                    "raising the limit of a container that is killed again and again; set it to what the container needs"
                );
                Some(raised)
            }
            Verdict::AtCeiling(most) => {
                warn!(
                    pod = container.pod,
                    container = container.name,
                    knob = Knob::Max.file_name(),
                    observed = %limit,
                    ceiling = %most,
                    free = %free,
                    kills,
                    window = ?rescue.window,
                    outcome = %Outcome::Rejected,
                    "the container is killed again and again, and may not get more memory: that is its ceiling, or all that node \
                     allocatable leaves free; set its limit to what it needs"
                );
                None
            }
        }
    }

    /// What nobody has requested of node allocatable, this container included; nothing if that is not known.
    fn free(&self, container: &Container) -> Bytes {
        let Some(allocatable) = self.containers.settings().node.allocatable else { return Bytes::ZERO };
        let request = |container: &Container| {
            let record = self.containers.record(&container.uid, &container.name, container.moment);
            self.containers.decide(container, record.as_ref()).request.map_or(Bytes::ZERO, |request| request.bytes)
        };
        let all = self.containers.all();
        let others = all.iter().filter(|other| (&other.uid, &other.name) != (&container.uid, &container.name));
        let requests = others.map(|other| request(other)).fold(request(container), Bytes::saturating_add);
        allocatable.saturating_sub(requests)
    }

    fn count(&self, cgroup: &CgroupPath) -> Result<Counts, CgroupError> {
        self.root.cgroup(cgroup)?.events().map(Counts::from)
    }

    /// The pods to look at when the kernel has not woken anybody: all, once there was another kill below a kubepods.
    fn suspects(&self, totals: &mut HashMap<CgroupPath, Counts>) -> Vec<CgroupPath> {
        let state = self.lock();
        let mut has_more = |top: &CgroupPath| {
            let count = self.count(top).unwrap_or_default();
            totals.insert(top.clone(), count) != Some(count)
        };
        // All of them, not only the first that has.
        if state.tops.iter().filter(|top| has_more(top)).count() == 0 {
            return Vec::new();
        }
        state.pods.keys().filter_map(|pod| CgroupPath::parse(pod).ok()).collect()
    }

    /// Looks whether there were kills in a pod, and forgets containers of it that have `ended`.
    fn look(&self, path: &CgroupPath, ended: &BTreeSet<String>) {
        let counts = self.count(path);
        let mut guard = self.lock();
        let state = &mut *guard;
        let counts = match counts {
            Ok(counts) => counts,
            Err(CgroupError::Gone(_)) => {
                if state.pods.remove(path.as_str()).is_some_and(|pod| !pod.histories.is_empty()) {
                    self.write_down(state);
                }
                return;
            }
            Err(error) => return debug!(cgroup = %path, %error, "cannot tell whether anybody was killed"),
        };
        let Some(pod) = state.pods.get_mut(path.as_str()) else { return };
        let new = counts.since(pod.counted);
        pod.counted = counts;
        let killed = if new.kills() > 0 { self.whose(path, pod, new) } else { Vec::new() };
        pod.running.retain(|id, _| !ended.contains(id));
        if killed.is_empty() {
            return;
        }
        let now = now();
        for Killed { name, times, .. } in &killed {
            pod.histories.entry(name.clone()).or_default().killed(*times, now);
        }
        // Before anybody hears of them.
        self.write_down(state);
        let Some(pod) = state.pods.get_mut(path.as_str()) else { return };
        let raised: Vec<_> = killed.iter().filter_map(|killed| self.killed(path, pod, killed, now)).collect();
        if !raised.is_empty() {
            self.write_down(state);
        }
        drop(guard);
        for (container, limit) in raised {
            self.raise(&container, limit);
        }
    }

    /// Whose the kills are that a pod has counted.
    fn whose(&self, path: &CgroupPath, pod: &mut Pod, counted: Counts) -> Vec<Killed> {
        let mut rest = counted;
        let (mut killed, mut gone) = (Vec::new(), Vec::new());
        for (id, running) in &mut pod.running {
            let Ok(cgroup) = CgroupPath::parse(&running.cgroup) else { continue };
            let of = |times, lives| Killed { id: id.clone(), name: running.name.clone(), times, lives };
            match self.count(&cgroup) {
                Ok(counts) => {
                    let new = counts.since(running.counted);
                    rest = rest.since(new);
                    if new.kills() > 0 {
                        killed.push(of(new.kills(), true));
                    }
                    running.counted = counts;
                }
                Err(CgroupError::Gone(_)) => gone.push(of(0, false)),
                Err(error) => debug!(%cgroup, %error, "cannot tell whether it was killed"),
            }
        }
        gone.iter().for_each(|gone| _ = pod.running.remove(&gone.id));
        match &mut gone[..] {
            _ if rest.kills() == 0 => {}
            [one] => {
                one.times = rest.kills();
                killed.append(&mut gone);
            }
            several => warn!(
                cgroup = %path,
                processes = rest.processes,
                might_be = ?several.iter().map(|gone| &gone.name).collect::<Vec<_>>(),
                "the kernel killed processes of the pod for want of memory; whose they were can no longer be told"
            ),
        }
        killed
    }

    /// Tells of a container's kills, and decides about a container that lives on.
    fn killed(&self, path: &CgroupPath, pod: &mut Pod, killed: &Killed, now: u64) -> Option<(Arc<Container>, Bytes)> {
        let history = pod.histories.get_mut(&killed.name)?;
        let container = self.containers.get(&killed.id);
        if pod.told.get(&killed.name).is_none_or(|told| now.saturating_sub(*told) >= TELL_EVERY) {
            pod.told.insert(killed.name.clone(), now);
            let window = self.containers.settings().config.oom_rescue.unwrap_or_default().window;
            warn!(
                pod = container.as_ref().map(|container| &container.pod),
                container = killed.name,
                cgroup = %path,
                limit = container.as_ref().map(|container| tracing::field::display(container.limit)),
                kills = history.kills(window, now),
                ?window,
                "the kernel killed processes of the container for want of memory"
            );
        }
        // Of one that is gone it is decided when it is made anew.
        let container = container.filter(|_| killed.lives)?;
        let raised = self.judge(&container, history, container.limit.bytes()?)?;
        Some((container, raised))
    }

    /// Gives a container that lives on its higher limit, its pod first.
    fn raise(&self, container: &Container, limit: Bytes) {
        let raised = Container { limit: Limit::Bytes(limit), ..container.clone() };
        let siblings = self.containers.in_sandbox(&container.sandbox);
        self.ancestors.raise_limits(&raised, Some(container.limits()), &siblings);
        let _ = self.work.send(Work::Limit(container.id.clone(), limit));
    }

    fn write_down(&self, state: &mut State) {
        let result = self.save(state);
        if let Err(error) = &result
            && !state.is_failing
        {
            warn!(file = %self.path.display(), %error, "cannot write down kills; after a restart they are not known any more");
        }
        state.is_failing = result.is_err();
    }

    fn save(&self, state: &State) -> io::Result<()> {
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)?;
        }
        let new = self.path.with_extension("new");
        fs::write(&new, serde_json::to_vec(state)?)?;
        fs::rename(&new, &self.path)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs while it is held, so a poisoned one holds good data.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that watches.
#[derive(Debug)]
pub struct Watcher {
    kills: Arc<Kills>,
    changed: mpsc::UnboundedReceiver<Change>,
}

/// What to look at: pods, and which of their containers have ended.
type Due = BTreeMap<CgroupPath, BTreeSet<String>>;

impl Watcher {
    /// Works for ever.
    pub async fn run(mut self) {
        let mut wakes = Wakes::new()
            .inspect_err(|error| warn!(%error, "cannot watch for kills; they are found only every {EVERY:?}"))
            .ok();
        let mut totals = HashMap::new();
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut due = Due::new();
            tokio::select! {
                Some(change) = self.changed.recv() => self.add(change, &mut wakes, &mut due),
                pod = next(&mut wakes) => { due.entry(pod).or_default(); }
                _ = ticks.tick() => {
                    due.extend(self.kills.suspects(&mut totals).into_iter().map(|pod| (pod, BTreeSet::new())));
                }
            }
            while let Ok(change) = self.changed.try_recv() {
                self.add(change, &mut wakes, &mut due);
            }
            while let Some(pod) = next(&mut wakes).now_or_never() {
                due.entry(pod).or_default();
            }
            let kills = self.kills.clone();
            // The kubelet's checkpoint may be large, and the files many.
            let looked =
                tokio::task::spawn_blocking(move || due.iter().for_each(|(pod, ended)| kills.look(pod, ended)));
            if let Err(error) = looked.await {
                error!(%error, "looking for containers that were killed failed; they are not counted any more");
                return;
            }
            sleep(PAUSE).await;
        }
    }

    fn add(&self, change: Change, wakes: &mut Option<Wakes>, due: &mut Due) {
        match change {
            Change::Started(pod) => {
                if let Some(wakes) = wakes
                    && let Err(error) = wakes.add(&self.kills.root, &pod)
                {
                    debug!(cgroup = %pod, %error, "cannot watch for kills, which are found only every {EVERY:?}");
                }
                due.entry(pod).or_default();
            }
            Change::Ended(pod, id) => _ = due.entry(pod).or_default().insert(id),
        }
    }
}

/// Pods whose `memory.events` has changed.
struct Wakes {
    watches: Watches,
    events: EventStream<Vec<u8>>,
    pods: HashMap<WatchDescriptor, CgroupPath>,
}

impl Wakes {
    fn new() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        Ok(Self { watches, events: inotify.into_event_stream(vec![0; 16 << 10])?, pods: HashMap::new() })
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

    async fn next(&mut self) -> io::Result<CgroupPath> {
        loop {
            let event = self.events.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
            if event.mask.contains(EventMask::IGNORED) {
                self.pods.remove(&event.wd);
            } else if let Some(pod) = self.pods.get(&event.wd) {
                return Ok(pod.clone());
            }
        }
    }
}

/// The next pod whose `memory.events` has changed. Waits for ever where that is not to be known.
async fn next(wakes: &mut Option<Wakes>) -> CgroupPath {
    if let Some(some) = wakes {
        match some.next().await {
            Ok(pod) => return pod,
            Err(error) => warn!(%error, "cannot watch for kills any longer; they are found only every {EVERY:?}"),
        }
        *wakes = None;
    }
    std::future::pending().await
}

/// Seconds since the machine was started, also those that it slept.
fn now() -> u64 {
    u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or_default()
}

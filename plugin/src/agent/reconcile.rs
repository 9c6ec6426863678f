//! Compare what containers and the cgroups above them should have with what the kernel holds, and make it so.
//!
//! One task does this, apart from the events: a runtime cannot update containers while it waits for an event's answer. It
//! looks at a container after each start and update, at whatever somebody writes to or removes (by inotify), at everything
//! after a synchronisation or a change of the configuration, and now and then. A value counts as applied when it was read
//! back.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use nri::UpdateError;
use nri::api::{ContainerUpdate, LinuxContainerUpdate, LinuxMemory, LinuxResources, OptionalInt64};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::agent::ancestors::{Ancestors, Checked};
use crate::cgroup::systemd;
use crate::cgroup::watch::{Change, Watch};
use crate::cgroup::{CPU_MAX, CPU_WEIGHT, CgroupError, CgroupPath, CgroupRoot, Knob, SWAP_MAX};
use crate::core::outcome::Outcome;
use crate::core::pod::PodCgroup;
use crate::core::policy::Protection;
use crate::core::policy::contention::{Contention, REPAIRS, Verdict};
use crate::core::policy::hierarchy::{self, Observed, Standing};
use crate::core::units::{Bytes, CpuMax, Limit};
use crate::kubelet::kubepods::{self, Found, id_in};
use crate::report::{Reports, Subject, What};
use crate::state::containers::{Container, Containers, Decided, KNOBS, PodView, Update};
use crate::state::originals::Values;

/// Containers in one request to the runtime, which takes some tenths of a second for each and holds its lock meanwhile.
const BATCH: usize = 8;

/// How long a runtime may take for one request.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the runtime has to be quiet before it is asked to update containers. Without containerd/nri#301 it takes its two locks in one order
/// for events and in the other for what plugins ask for: with one event being answered, and another one waiting, such a request
/// stops it for ever (containerd/containerd#13733).
const QUIET: Duration = Duration::from_secs(1);

/// How long a lower limit waits for that.
const CUT_PATIENCE: Duration = Duration::from_secs(5);

/// After how long to look at a container that was to be updated. There is no word of an update that fails, so it is not for ever. But a
/// runtime that is busy takes its time: until it has set a lower limit, memory.high keeps what the container allocates from killing
/// it, and a request of the plugin's own while its client's update is under way may make both stand still (containerd/nri#301, and
/// the same in CRI-O).
const LATER: Duration = Duration::from_secs(15);

/// After how long to ask for a container's limit that is being changed.
const BUSY: Duration = Duration::from_secs(1);

/// How often everything is looked at without any reason: a file that somebody keeps open, a lost event.
const TICK: Duration = Duration::from_secs(600);

/// After how long a cgroup that the runtime has not told of is missed. A container's cgroup goes a little later than the
/// runtime tells, and one that is made while the runtime synchronises may be told of a little later.
const PATIENCE: Duration = Duration::from_secs(10);

/// After how long a file that was repaired is looked at again, if it is not seen to change before.
const REPAIRED: Duration = Duration::from_millis(500);

/// How long changes of pods' shares are gathered: each one is about all pods.
const SHARE: Duration = Duration::from_millis(500);

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// One container.
    Container(String),
    /// One container whose files the runtime has just written for its client, at its start or by an update.
    Written(String),
    /// One container, after a while: see that the update with this number came about.
    Later(String, u64),
    /// One container, of which the update with this number should have come about by now.
    Updated(String, u64),
    /// One container, whose limit is to be another.
    Limit {
        /// Its id.
        id: String,
        /// The limit, which does not kill it.
        limit: Bytes,
        /// The update that its limit came with when that was decided: nothing of it counts after another.
        revision: u64,
    },
    /// A cgroup above the containers.
    Cgroup(CgroupPath),
    /// A file of a cgroup above the containers, which somebody has written some time ago.
    Touched(CgroupPath, Knob),
    /// A cgroup of which the runtime may not have told.
    Stranger(CgroupPath),
    /// The shares of pods that ask for more than there is.
    Share,
    /// Every container and every cgroup above.
    All,
}

impl Work {
    /// A container is to have another limit, unless its user asks for one before.
    pub fn limit(container: &Container, limit: Bytes) -> Self {
        Self::Limit { id: container.id.clone(), limit, revision: container.revision }
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

/// A container beside the kernel.
#[derive(Debug)]
pub struct Compared {
    /// What it should have.
    pub decided: Decided,
    /// What differs.
    pub writes: Vec<Write>,
    /// What the cgroups above have to protect for it.
    pub claim: Protection,
    /// What its files hold.
    pub held: Values,
    /// How much swap it may use, if that is limited.
    pub swap_max: Option<Bytes>,
    /// Its limits, as its files hold them; `None` without a cgroup, or where its processes are not in that.
    pub in_force: Option<InForce>,
}

/// What a container's files hold of what its user asks for.
#[derive(Clone, Copy, Debug)]
pub struct InForce {
    /// `memory.max`.
    pub memory: Limit,
    /// `cpu.max`.
    pub cpu: CpuMax,
    /// `cpu.weight`, after an update; `None` without the processor controller.
    pub weight: Option<u64>,
    /// `memory.swap.max`, if that is limited.
    pub swap_max: Option<Bytes>,
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
    // What the files of an empty cgroup hold is in force for nobody (gVisor).
    if container.started && !cgroup.has_processes()? {
        return Ok(without_cgroup());
    }
    let in_force = cgroup.read(Knob::Max)?;
    let decided = if in_force.is_same(container.limit, page) {
        containers.decide(container, &record)
    } else {
        // An update that failed after it was told of, or one that nobody told of: the kernel is right.
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
    // What is left alone protects all the same.
    let claim = decided.desired.claim.unwrap_or(held.protection());
    // Where swap is not accounted for, there is nothing to lose.
    let swap_max = cgroup.swap_max().ok().and_then(Limit::bytes);
    // Without the processor controller there is no such limit.
    let cpu = cgroup.cpu_max().unwrap_or(CpuMax::NONE);
    // Only an update is compared with it.
    let weight = if container.update == Update::Made { cgroup.cpu_weight().ok() } else { None };
    let in_force = InForce { memory: in_force, cpu, weight, swap_max };
    Ok(Compared { decided, writes, claim, held, swap_max, in_force: Some(in_force) })
}

/// The update that brings a container's files to their values; `memory.max` by its limit, which the runtime keeps an account of.
///
/// `swap_max` is how much swap it may use, if that is limited: a runtime that is asked for an update without swap lifts that
/// limit (containerd and runc), so it is asked for what is in force.
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

/// A limit as a runtime takes it. Where its client has asked for another one, `asked`, together with one of swap, which counts
/// memory too, that goes with it.
pub fn memory_limit(limit: Limit, asked: Option<&LinuxMemory>) -> LinuxMemory {
    let number = |value| Some(OptionalInt64 { value, ..Default::default() }).into();
    // 2^63-1 is the most that there is.
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

/// The task.
#[derive(Debug)]
pub struct Reconciler {
    containers: Arc<Containers>,
    ancestors: Arc<Ancestors>,
    root: Arc<CgroupRoot>,
    reports: Arc<Reports>,
    runtime: nri::Runtime,
    work: mpsc::UnboundedReceiver<Work>,
    watch: Option<Watch>,
    /// Who has a cgroup that is watched.
    by_cgroup: HashMap<CgroupPath, String>,
    /// What to look at again.
    again: BTreeMap<Instant, Vec<Work>>,
    /// When everything is looked at next.
    tick: Instant,
    contention: Contention<String, Vec<(Knob, Limit)>>,
    /// By container.
    progress: HashMap<String, Progress>,
    /// What the runtime has to do, one request after the other.
    updater: mpsc::UnboundedSender<Vec<Pending>>,
    /// What it has done.
    done: mpsc::UnboundedReceiver<Done>,
    /// Cgroups of which the runtime has not told, and whether it was asked about them.
    strangers: HashMap<CgroupPath, bool>,
    share_is_due: bool,
    /// Some place could not be looked into for such cgroups.
    is_census_incomplete: bool,
    /// Cgroups beside the pods that are not there, of which that was said.
    missing_reserved: HashSet<CgroupPath>,
    /// What was said last of whether protection helps.
    standings: HashMap<CgroupPath, Standing>,
}

/// How far a container has come.
#[derive(Debug, Default)]
struct Progress {
    /// The runtime was asked to update it, and has not answered yet.
    is_waiting: bool,
    /// It was written, and not read back yet.
    is_unverified: bool,
    /// Nothing is wanted of it any more, and the runtime was told so.
    is_released: bool,
    /// What it was last found to have, as it should.
    verified: Option<Vec<(Knob, Limit)>>,
}

/// What is due.
#[derive(Debug, Default)]
struct Due {
    /// By id, and whether somebody wrote to it.
    containers: BTreeMap<String, bool>,
    /// And the files that somebody wrote.
    cgroups: BTreeMap<CgroupPath, Vec<Knob>>,
    removed: Vec<CgroupPath>,
    share: bool,
    all: bool,
}

/// What was asked of the runtime.
#[derive(Debug)]
struct Done {
    batch: Vec<Pending>,
    /// The fates of its containers; `None` where there was no runtime to ask.
    fates: Option<Fates>,
}

/// The containers of a batch that the runtime did not update, by id.
#[derive(Debug, Default)]
struct Fates {
    /// The request was outdated before it could be sent.
    dropped: HashSet<String>,
    /// The runtime refused the request.
    rejected: HashSet<String>,
}

/// What to do about one container.
#[derive(Debug)]
struct Pending {
    container: Arc<Container>,
    writes: Vec<Write>,
    attempt: u32,
    /// How much swap it may use, if that is limited.
    swap_max: Option<Bytes>,
    /// The settings that the writes were decided by enforce.
    enforces: bool,
    /// Another program has changed what the runtime and the files held.
    is_foreign: bool,
}

impl Reconciler {
    /// A task that takes its work from `work`.
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

    /// Works until nobody can give it work any more.
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
            // What has come meanwhile is looked at together, and once.
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
                // There is no word of an update that fails, perhaps after it has written some of the files.
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
            // Usually the runtime tells of it, too.
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

    /// Compares everything, without bringing levels above to new values out of turn.
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

    /// Asks the runtime for another limit of a container that runs.
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
        // Alone, so that the runtime tells why if it does not.
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
            // Whoever set what it should not may be gone, and there may be another runtime.
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
            // Somebody may have set a pod's limit while nobody looked, or forgotten to (the kubelet 1.27 to 1.36).
            for containers in self.by_pod().into_values() {
                if let Some((container, pod)) = self.view_pod(containers) {
                    self.ancestors.raise_limits(&container, &pod);
                }
                // Events do not wait for all of them.
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
            // Of pods that ended while nobody looked.
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
            // The kubelet adds up what users ask for, which is too little where limits were raised.
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

    /// One container of a pod that lives, and what decides the pod's limit.
    fn view_pod(&self, mut containers: Vec<Arc<Container>>) -> Option<(Arc<Container>, PodView)> {
        containers.retain(|container| self.ancestors.is_alive(container));
        let alive = containers;
        // One is enough: the record and the sum are of all.
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

    /// The containers of each pod.
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
        // What is being changed is looked at when that is done.
        let known =
            batch.iter().filter_map(|(id, touched)| Some((self.containers.get(id)?, *touched)));
        let known: Vec<_> = known
            .filter(|(container, _)| {
                !matches!(container.update, Update::UnderWay(_)) && !self.is_waiting(&container.id)
            })
            .collect();
        let (containers, root) = (self.containers.clone(), self.root.clone());
        let enforces = containers.settings().enforces();
        // The kubelet's checkpoint may be large.
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
                // An event came meanwhile, which knows better.
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
                        // The first one that is not counted is one, too.
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
            // It ends only with this task.
            let _ = self.updater.send(batch);
        }
    }

    /// Sees whether an update has come about that the runtime says it has made. Of one that has not, or of which there was no
    /// word, what the kernel has counts from now on: it is not asked for again, since to lower a limit late may kill.
    fn limits_read_back(&mut self, container: &Container, in_force: InForce) {
        let page = self.containers.settings().node.page_size;
        let InForce { memory, cpu, weight, swap_max } = in_force;
        let is_memory = memory.is_same(container.limit, page);
        let is_cpu = cpu.is(container.cpu);
        if is_memory && is_cpu && container.update == Update::Over {
            return;
        }
        if container.update == Update::Made {
            // What the runtime has stored now came with the update.
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
                self.reports.tell(&container.into(), &What::NotResized { knob, desired, observed });
            }
            // One that is deferred is counted as such.
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

    /// Nothing is wanted of a container any more, and its files hold what they held before. What the runtime has stored may not:
    /// it is told once. Then the container is left alone.
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

    /// Its values come with its start, or its processes are elsewhere (Kata).
    fn without_cgroup(&self, container: &Container) {
        let record = self.containers.record(&container.uid, &container.name, container.moment);
        let decided = self.containers.decide(container, &record);
        if let (Some(place), Some(claim)) = (&container.place, decided.desired.claim) {
            self.ancestors.claim(place, &container.id, claim);
        }
    }

    /// Returns what the runtime has to write, if it is to be written now, and whether another program has changed it.
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
            // The runtime has the values already, and systemd from it: the files are all that somebody else has changed.
            Verdict::Repair if is_stored && self.contention.repairs(&container.id) <= 1 => {
                self.write_files(container, writes, is_foreign);
                return None;
            }
            Verdict::Repair => {
                if let Some(place) = &container.place {
                    // What it has counts until it has something else.
                    self.ancestors.claim_at_least(
                        place,
                        &container.id,
                        claim.max(held.protection()),
                    );
                }
                if decided.is_let_go() {
                    // All of it, for what the runtime has stored.
                    self.progress(&container.id).is_released = true;
                    // The runtime may have to be waited for, and a container is not to stand at its memory.high meanwhile.
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
                    let what = What::Contended { knob, desired, observed, repairs: REPAIRS };
                    self.reports.tell(&container.into(), &what);
                }
            }
            Verdict::Leave => {}
        }
        None
    }

    /// Writes a container's files, without the runtime. To lower memory.high takes as long as there is memory to reclaim.
    fn write_files(&mut self, container: &Container, writes: Vec<Write>, is_foreign: bool) {
        let Some(path) = container.cgroup.clone() else { return };
        let (root, reports, subject) =
            (self.root.clone(), self.reports.clone(), Subject::from(container));
        // What comes of it is seen by watching the files.
        tokio::task::spawn_blocking(move || {
            for Write { knob, desired, observed } in writes {
                match root.cgroup(&path).and_then(|cgroup| cgroup.write(knob, desired)) {
                    Ok(()) if is_foreign => {
                        reports.tell(&subject, &What::Repaired { knob, desired, observed })
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

    /// The runtime has done, or tried to do, what it was asked: see what came of it.
    fn written(&mut self, done: Done, due: &mut Due) {
        for pending in &done.batch {
            let container = &pending.container;
            let progress = self.progress(&container.id);
            progress.is_waiting = false;
            let Some(fates) = &done.fates else {
                progress.is_released = false;
                // All are looked at with the next synchronisation.
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
                        &What::Repaired { knob, desired, observed },
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

    /// Its cgroup is gone, which the runtime may tell later, or never.
    fn ended(&mut self, container: &Container) {
        debug!(pod = container.pod, container = container.name, outcome = %Outcome::Gone, "the container has ended");
        self.ancestors.release(&container.id);
        self.contention.forget(&container.id);
        self.progress.remove(&container.id);
        if let Some(cgroup) = &container.cgroup {
            self.unwatch(cgroup);
        }
    }

    /// What systemd keeps of a unit, the next one of that name would inherit.
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
        // Another one of its path may have been made since.
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
        // Whoever tells of cgroups may hold what knows them.
        let cgroups: HashSet<_> = self.ancestors.cgroups().into_iter().collect();
        self.reports.retain(|uid| uids.contains(uid), |cgroup| cgroups.contains(cgroup));
        self.contention.forget_quiet(std::time::Instant::now());
    }

    /// Looks at the tree for containers of which the runtime has not told. What is found may be about to be told of, or to
    /// go, so it is looked at again.
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
                // The kubelet may make it soon: it starts after the runtime.
                self.again(PATIENCE, Work::Stranger(cgroup));
            }
        }
        let mut missing = std::mem::take(&mut self.missing_reserved);
        missing.retain(|cgroup| self.is_gone(cgroup));
        self.missing_reserved = missing;
    }

    /// Asks the runtime for everything anew if it has not told of what is in a cgroup; once about each.
    fn meet(&mut self, cgroup: CgroupPath) {
        if self.ancestors.is_reserved(&cgroup) {
            return self.miss_reserved(cgroup);
        }
        if PodCgroup::parse(cgroup.as_str()).is_some() {
            // A pod's, which was not watched until now.
            for child in children(&self.root, &cgroup) {
                self.meet(child);
            }
            return;
        }
        let of_pod = cgroup.parent().is_some_and(|pod| PodCgroup::parse(pod.as_str()).is_some());
        if !of_pod || self.is_known(&cgroup) || !self.is_in_use(&cgroup) {
            return;
        }
        // It may be about to go, of which the runtime has told already.
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

    /// Says once that a cgroup beside the pods is not there, so that nothing protects what should be in it.
    fn miss_reserved(&mut self, cgroup: CgroupPath) {
        // The guard says so itself of the cgroup that it chose.
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

    /// Finds out whether what is written protects, by the kernel's rule, and says when that changes for the worse.
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

/// Writes by way of the runtime, which stores the values, so that later updates do not undo them. A task of its own, since a
/// runtime takes its time.
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

    /// Returns what became of the batch; `None` where there is no runtime.
    async fn write(&self, batch: &[Pending]) -> Option<Fates> {
        let mut fates = Fates::default();
        let (first, mut single): (Vec<&Pending>, Vec<&Pending>) =
            batch.iter().partition(|pending| pending.attempt == 1);
        if !first.is_empty() {
            match self.send(&first, true).await {
                Ok(dropped) => fates.dropped.extend(dropped),
                Err(Unsent::NotConnected) => return None,
                // It does not say whose fault it was.
                Err(Unsent::Failed(_)) => single.extend(first),
            }
        }
        for pending in single {
            // Only so does containerd tell why.
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

    /// Sends what is still wanted once the runtime is quiet. Returns the ids of containers whose request was dropped.
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
            // Meanwhile memory.high holds the container where it is.
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

    /// Whether a request that has waited is still wanted: the plugin may only observe by now, or the container have another limit.
    fn is_current(&self, pending: &Pending) -> bool {
        if pending.enforces && !self.containers.settings().enforces() {
            return false;
        }
        // A limit that was decided on before another update is not what is wanted any more.
        let has_same_revision = || {
            let now = self.containers.get(&pending.container.id);
            now.is_some_and(|now| now.revision == pending.container.revision)
        };
        pending.writes.iter().all(|write| write.knob != Knob::Max) || has_same_revision()
    }
}

/// Every value that a container should have, whatever its files hold.
fn all_writes(decided: &Decided) -> impl Iterator<Item = Write> {
    decided.values().into_iter().map(|(knob, value)| Write {
        knob,
        observed: value,
        desired: value,
    })
}

/// Tells what happens to a cgroup; `None` when that cannot be told any more. Waits for ever without a watch.
async fn changed(watch: &mut Option<Watch>) -> Option<Change> {
    match watch {
        Some(watch) => watch.next().await.inspect_err(|error| warn!(%error, "inotify")).ok(),
        None => std::future::pending().await,
    }
}

/// The cgroups in a cgroup; none if it cannot be looked into.
fn children(root: &CgroupRoot, cgroup: &CgroupPath) -> Vec<CgroupPath> {
    root.cgroup(cgroup).and_then(|cgroup| cgroup.children()).unwrap_or_default()
}

/// Why an update was not made.
enum Unsent {
    NotConnected,
    Failed(String),
}

impl Pending {
    /// The writes that change something.
    fn changes(&self) -> impl Iterator<Item = &Write> {
        self.writes.iter().filter(|write| write.observed != write.desired)
    }

    fn update(&self, ignore_failure: bool) -> ContainerUpdate {
        let values = self.writes.iter().map(|write| (write.knob, write.desired));
        ContainerUpdate { ignore_failure, ..update(&self.container.id, values, self.swap_max) }
    }
}

/// A synchronisation brings every container of the node at once, with all that the runtime knows of it; a fraction stays.
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
    let outcome = Outcome::of(error);
    if outcome == Outcome::Gone {
        debug!(pod = container.pod, container = container.name, %error, %outcome, "cannot look at the container");
    } else {
        warn!(pod = container.pod, container = container.name, %error, %outcome, "cannot look at the container");
    }
}

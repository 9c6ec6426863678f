//! The plugin as the runtime sees it: translate, delegate, reply.
//!
//! Events are answered from memory, but for the kubelet's checkpoint, which is read anew when it has changed, for as long
//! as a tenth of the runtime's request timeout. Nothing here fails a request: what cannot be understood is
//! reported and left out.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nri::api::{
    self, ContainerAdjustment, ContainerState, ContainerUpdate, LinuxContainerAdjustment,
    LinuxResources, PodSandbox,
};
use nri::{Configuration, Creation, EventMask, Plugin, Refusal};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{debug, error, info, warn};

use crate::agent::ancestors::{Ancestors, Sandbox};
use crate::agent::cut::{Attempted, Cuts};
use crate::agent::defer::Deferrals;
use crate::agent::kills::Kills;
use crate::agent::reconcile::{Work, memory_limit, update};
use crate::cgroup::{CgroupError, CgroupPath, CgroupRoot, Knob, SWAP_MAX};
use crate::config::{Config, NodeAllocatable, Shrink};
use crate::core::pod::{PodCgroup, PodUid, Request};
use crate::core::policy::Setting;
use crate::core::policy::hierarchy::PodPlace;
use crate::core::policy::resize::{self, Limits};
use crate::core::requests::annotation::{self, Overrides};
use crate::core::units::{Bytes, CpuMax, CpuShares, Limit, PageSize, excerpt, printable};
use crate::kubelet::checkpoint::{Inconclusive, Moment, Recorded};
use crate::kubelet::node::NodeMemory;
use crate::lock;
use crate::report::{LowerLimit, Reports, Subject, What};
use crate::state::brake;
use crate::state::containers::{Container, Containers, Decided, Event, KNOBS, Settings, Update};
use crate::state::originals::Values;
use crate::state::raised;

/// Part of the runtime's request timeout within which an event is answered.
pub(crate) const BUDGET: u32 = 10;

/// How many times as long a cut may take that is reclaiming: up to half of the timeout, with what comes after it.
pub(crate) const CUT_BUDGET: u32 = 3;

/// Why a cut is refused. Constant, since the kubelet makes an Event of each new text and tries again every 10 to 15 s.
const WOULD_KILL: &str = "memory limit not lowered: the container uses more than that and would be killed; it has to free memory \
                          first, or the limit to be higher (plimsoll's log has the numbers)";

/// The same of a pod, also constant.
const WOULD_KILL_IN_POD: &str = "memory limit of the pod not lowered: it uses more than that and would have processes killed; it has to free \
                                 memory first, or the limit to be higher (plimsoll's log has the numbers)";

/// What the plugin does about a configuration that came into force.
pub type OnConfig = Box<dyn Fn(&Config) + Send + Sync>;

/// The plugin.
pub struct Service {
    containers: Arc<Containers>,
    ancestors: Arc<Ancestors>,
    root: Arc<CgroupRoot>,
    work: mpsc::UnboundedSender<Work>,
    host: PathBuf,
    on_config: OnConfig,
    budget: Mutex<Duration>,
    /// The runtime's text was taken over.
    configured: AtomicBool,
    /// How many updates there were.
    updates: AtomicU64,
    cuts: Arc<Cuts>,
    deferrals: Arc<Deferrals>,
    kills: Arc<Kills>,
    reports: Arc<Reports>,
    synchronized: watch::Sender<bool>,
    /// The brake's record, as long as its file could not be written.
    unstored: Mutex<Option<brake::Record>>,
}

/// What the plugin consists of besides the events.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The containers.
    pub containers: Arc<Containers>,
    /// The levels above them.
    pub ancestors: Arc<Ancestors>,
    /// The node's cgroups.
    pub root: Arc<CgroupRoot>,
    /// Room for lower limits.
    pub cuts: Arc<Cuts>,
    /// Limits that wait for room.
    pub deferrals: Arc<Deferrals>,
    /// Containers that are killed.
    pub kills: Arc<Kills>,
    /// What people are told.
    pub reports: Arc<Reports>,
    /// Work for the reconcile task.
    pub work: mpsc::UnboundedSender<Work>,
    /// Whether the runtime has told of its pods and containers, and is still connected.
    pub synchronized: watch::Sender<bool>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("containers", &self.containers).finish_non_exhaustive()
    }
}

impl Service {
    /// A plugin on the node whose file system is at `host`, usually `/`. `on_config` is called with each configuration that comes
    /// into force.
    pub fn new(parts: Parts, host: impl Into<PathBuf>, on_config: OnConfig) -> Self {
        let Parts {
            containers,
            ancestors,
            root,
            cuts,
            deferrals,
            kills,
            reports,
            work,
            synchronized,
        } = parts;
        let budget = Mutex::new(Duration::from_millis(200));
        let (host, configured, updates) = (host.into(), AtomicBool::new(false), AtomicU64::new(0));
        Self {
            containers,
            ancestors,
            root,
            work,
            host,
            on_config,
            budget,
            configured,
            updates,
            cuts,
            deferrals,
            kills,
            reports,
            synchronized,
            unstored: Mutex::default(),
        }
    }

    /// Whether the runtime has told of its pods and containers, and is still connected.
    pub fn synchronized(&self) -> watch::Receiver<bool> {
        self.synchronized.subscribe()
    }

    /// Goes on with another configuration, and brings all containers to it.
    pub fn reconfigure(&self, config: Config) {
        self.take_over(config);
        self.enqueue(Work::All);
    }

    /// Looks again whether `plimsoll restore` was called or the brake reset, and brings all containers to what follows.
    pub fn look_whether_to_stand_aside(&self) {
        let before = self.containers.settings();
        let (settings, _) = self.discover(before.config.clone());
        if settings.stand_aside != before.stand_aside {
            self.tell_whether_it_stands_aside(&settings);
        } else if settings.brake != before.brake {
            self.say_mode(&settings);
        } else {
            return;
        }
        self.set(settings);
        self.enqueue(Work::All);
    }

    /// Applies the brake: nothing is written from now on, until an operator resets it.
    pub fn apply_brake(&self, record: &brake::Record) {
        if let Err(error) = record.store(&self.host) {
            error!(%error, "cannot keep the brake's record below /run/plimsoll: a plugin that is started again acts again");
            *lock(&self.unstored) = Some(record.clone());
        }
        let before = self.containers.settings();
        let (settings, _) = self.discover(before.config.clone());
        self.say_mode(&settings);
        self.set(settings);
        self.enqueue(Work::All);
    }

    /// Says so where the plugin does not act, and which of its changes stay.
    fn say_mode(&self, settings: &Settings) {
        if !settings.observes() {
            return;
        }
        match &settings.brake {
            Some(brake) => error!(
                brake,
                "the brake is applied: nothing is set, raised or refused any more; find out why there was so much, then call \
                 'plimsoll reset-brake'"
            ),
            None => warn!(
                "mode is observe: nothing is set, raised or refused; 'plimsoll status' shows what would be"
            ),
        }
        for limit in raised::staying(&self.root, &self.ancestors.raised_limits()) {
            warn!(limit, "stays, as lowering it could kill");
        }
    }

    fn tell_whether_it_stands_aside(&self, settings: &Settings) {
        if settings.stand_aside {
            warn!(
                "'plimsoll restore' was called: nothing is set any more, until 'plimsoll restore --undo'"
            );
        } else {
            info!("'plimsoll restore' was undone");
        }
    }

    /// The settings by a configuration. A brake whose record could not be stored stays applied, and storing is tried again.
    fn discover(&self, config: Config) -> (Settings, NodeMemory) {
        let (mut settings, memory) = Settings::discover(config, &self.host);
        let mut unstored = lock(&self.unstored);
        match unstored.as_ref() {
            Some(record) if settings.brake.is_none() => {
                settings.brake = Some(record.to_string());
                if record.store(&self.host).is_ok() {
                    *unstored = None;
                }
            }
            // From now on the file counts, and an operator can remove it.
            _ => *unstored = None,
        }
        (settings, memory)
    }

    fn set(&self, settings: Settings) {
        if self.containers.settings().brake.is_some() && settings.brake.is_none() {
            // Without this the brake would never be applied again.
            self.reports.brake.clear();
            info!("the brake was reset");
        }
        self.ancestors.set_node(&settings);
        self.containers.set_settings(settings);
    }

    fn take_over(&self, config: Config) {
        let (settings, memory) = self.discover(config);
        let config = &settings.config;
        for problem in &memory.problems {
            warn!(%problem, "node memory");
        }
        match config.node_allocatable {
            NodeAllocatable::Auto => info!("{memory}"),
            NodeAllocatable::Fixed(bytes) => {
                info!("node allocatable is {bytes} bytes, as configured")
            }
        }
        if settings.stand_aside {
            self.tell_whether_it_stands_aside(&settings);
        } else {
            self.say_mode(&settings);
        }
        if let (Some(kept), None, false) =
            (config.node_guard, settings.planned_guard_line(), settings.stand_aside)
        {
            let all = settings.usable.map_or_else(|| "unknown".to_owned(), Bytes::quantity);
            warn!(
                "nodeGuard would leave pods nothing: expected less than all memory, {all}, found {}; no memory is kept from pods",
                kept.quantity()
            );
        }
        for conflict in &memory.conflicts {
            warn!(%conflict, "the kubelet");
        }
        if let Some(unsettled) = &memory.unsettled {
            info!(%unsettled, "it is unknown whether the kubelet's own MemoryQoS is on");
        }
        (self.on_config)(config);
        self.set(settings);
    }

    /// Looks again at what pods may use altogether, which stands in for the limit of a container without one. A runtime
    /// starts its plugins before the kubelet, which makes up its mind later, and may do so anew.
    fn refresh_node(&self) {
        let before = self.containers.settings();
        if before.config.node_allocatable != NodeAllocatable::Auto {
            return;
        }
        let (settings, memory) = self.discover(before.config.clone());
        if settings.node != before.node {
            info!("{memory}");
            self.set(settings);
            self.enqueue(Work::All);
        }
    }

    fn enqueue(&self, work: Work) {
        // The task ends only with the program.
        let _ = self.work.send(work);
    }

    /// An event by NRI's name is answered for as long as what is returned is kept.
    fn event(&self, name: &'static str) -> Answering {
        Answering {
            _event: self.containers.event(),
            reports: self.reports.clone(),
            name,
            since: Instant::now(),
        }
    }

    fn page_size(&self) -> PageSize {
        self.containers.settings().node.page_size
    }

    /// The kubelet's records of a container and its pod; inconclusive also where they cannot be read in time.
    async fn record(&self, container: &Container) -> Recorded {
        let moment = container.moment;
        if let Some(record) = self.containers.fresh_record(&container.uid, &container.name, moment)
        {
            return record;
        }
        let budget = *lock(&self.budget);
        let (containers, uid, name) =
            (self.containers.clone(), container.uid.clone(), container.name.clone());
        let lookup = tokio::task::spawn_blocking(move || containers.record(&uid, &name, moment));
        match timeout(budget, lookup).await {
            Ok(Ok(record)) => record,
            Ok(Err(error)) => {
                warn!(pod = container.pod, container = container.name, %error, "looking up the kubelet's record failed");
                Err(Inconclusive)
            }
            Err(_) => {
                // The task looks again after the start or update.
                warn!(
                    pod = container.pod,
                    container = container.name,
                    "the kubelet's checkpoint could not be read within {budget:?}, going on without it"
                );
                Err(Inconclusive)
            }
        }
    }

    /// A container that was created without this plugin, or before it was started anew: where it has changed it, its unified map holds
    /// what it has set, and no more the client's words.
    fn found(&self, pod: &PodSandbox, container: &api::Container) -> Container {
        let mut found = translate(pod, container, self.page_size());
        if let Some(before) = self.containers.before(&container.id) {
            found.unified = before.to_unified();
        }
        found
    }

    /// Remembers a container and decides about it.
    async fn resolve(&self, container: Container) -> (Arc<Container>, Decided) {
        if container.limit == Limit::Max {
            self.refresh_node();
        }
        let record = self.record(&container).await;
        let former = self.containers.last_limits(&container.sandbox, &container.name);
        let container = self.containers.insert(container);
        let decided = self.containers.decide(&container, &record);
        for notice in &decided.notices {
            warn!(pod = container.pod, container = container.name, "{notice}");
        }
        if former != Some(container.limits()) {
            self.say_if_beyond_the_node(&container);
            self.say_if_overcommitted(&container, decided.request.as_ref());
        }
        self.raise_pod(&container, former, &record);
        // Before the container has it, and what it had before counts until it is known to have it.
        if let (Some(place), Some(claim)) = (&container.place, decided.desired.claim) {
            self.ancestors.claim_at_least(place, &container.id, claim);
        }
        (container, decided)
    }

    /// A limit that the node cannot keep is set all the same. Of requests the sums of their protection tell.
    fn say_if_beyond_the_node(&self, container: &Container) {
        if let (Limit::Bytes(limit), Some(allocatable)) =
            (container.limit, self.containers.settings().node.allocatable)
            && limit > allocatable
        {
            self.reports.tell(&container.into(), &What::BeyondNode { limit, allocatable });
        }
    }

    /// Nobody is kept from anything by that.
    fn say_if_overcommitted(&self, container: &Container, request: Option<&Request>) {
        if let (Limit::Bytes(limit), Some(request), Some(most)) =
            (container.limit, request, self.containers.settings().config.max_limit_request_ratio)
            && resize::is_overcommitted(limit, request.at_most, most)
        {
            let what = What::Overcommitted { request: request.at_most, limit, most };
            self.reports.tell(&container.into(), &what);
        }
    }

    /// A container's limits are worth nothing where its pod's are tighter. `former` are those that it, or one of its name before it,
    /// was last to have.
    fn raise_pod(&self, container: &Container, former: Option<Limits>, recorded: &Recorded) {
        let mut others = self.containers.in_sandbox(&container.sandbox);
        others.retain(|other| other.name != container.name && self.ancestors.is_alive(other));
        let pod = self.containers.view_pod(container, former, &others, recorded);
        self.ancestors.raise_limits(container, &pod);
    }

    /// Makes room for a limit that is lower than the one in force, and tells which one is to stay for now, if it is.
    ///
    /// # Errors
    ///
    /// When the container would be killed, and that is to be said.
    async fn make_room(&self, container: &Container) -> Result<Option<Limit>, Refusal> {
        let settings = self.containers.settings();
        if settings.stand_aside || settings.config.shrink == Shrink::Allow {
            return Ok(None);
        }
        if settings.observes() {
            if let Some(cut) = self.cuts.judge(container) {
                let is_deferred = settings.config.shrink == Shrink::Defer;
                let what =
                    if is_deferred { What::CutDeferred(cut) } else { What::CutRejected(cut) };
                self.reports.tell_planned(&container.into(), &what);
            }
            return Ok(None);
        }
        let budget = *lock(&self.budget) * CUT_BUDGET;
        let (in_force, usage) = match self.cuts.make_room(container, container.update, budget).await
        {
            Ok(Attempted::NoCut | Attempted::Made) => return Ok(None),
            Ok(Attempted::NotMade { in_force, usage }) => (in_force, usage),
            Err(error) => {
                // Whoever asks for it may do so.
                debug!(pod = container.pod, container = container.name, %error, "cannot make room for a lower limit");
                return Ok(None);
            }
        };
        let is_deferred = settings.config.shrink == Shrink::Defer;
        if let Some(usage) = usage {
            let cut = LowerLimit { limit: container.limit, in_force, usage };
            let what = if is_deferred { What::CutDeferred(cut) } else { What::CutRejected(cut) };
            self.reports.tell(&container.into(), &what);
            // What happened to it meanwhile was passed over.
            self.enqueue(Work::Container(container.id.clone()));
        }
        if !is_deferred {
            return Err(Refusal::new(WOULD_KILL));
        }
        if let Limit::Bytes(limit) = container.limit {
            self.deferrals.put(&container.id, limit, settings.config.shrink_deadline);
        }
        Ok(Some(in_force))
    }

    fn meet_sandbox(&self, pod: &PodSandbox) {
        if let Some(sandbox) = sandbox(pod)
            && !self.ancestors.is_sandbox(&sandbox.id)
        {
            self.ancestors.sandbox(sandbox, &self.containers.settings().policy());
        }
    }

    fn sandbox_ended(&self, id: &str) {
        for container in self.containers.remove_sandbox(id) {
            self.ancestors.release(&container);
        }
        self.ancestors.sandbox_ended(id);
    }

    /// Of several containers with one name in a sandbox only the newest is alive: the kubelet makes another one only when the last
    /// has ended, of which the runtime does not tell where it failed to start.
    fn forget_older(&self, sandbox: &str, newest: &api::Container) {
        for older in self.others_of_its_name(sandbox, newest) {
            debug!(
                pod = older.pod,
                container = older.name,
                id = older.id,
                "another one has taken its place"
            );
            self.forget(&older.id);
        }
    }

    fn others_of_its_name(
        &self,
        sandbox: &str,
        container: &api::Container,
    ) -> impl Iterator<Item = Arc<Container>> + use<> {
        let (id, name) = (container.id.clone(), printable(&container.name));
        self.containers
            .in_sandbox(sandbox)
            .into_iter()
            .filter(move |other| other.name == name && other.id != id)
    }

    fn has_processes(&self, cgroup: &CgroupPath) -> bool {
        self.root.cgroup(cgroup).and_then(|cgroup| cgroup.has_processes()).unwrap_or(false)
    }

    fn forget(&self, id: &str) {
        if let Some(container) = self.containers.get(id) {
            self.kills.ended(&container);
        }
        self.containers.remove(id);
        self.ancestors.release(id);
    }
}

/// An event that is being answered.
struct Answering {
    _event: Event,
    reports: Arc<Reports>,
    name: &'static str,
    since: Instant,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.reports.metrics.answered(self.name, self.since.elapsed());
    }
}

/// The sandbox of a pod of the kubelet; `None` for any other.
fn sandbox(pod: &PodSandbox) -> Option<Sandbox> {
    let linux = pod.linux.get_or_default();
    let place = place(&linux.cgroup_parent)?;
    let memory = |resources: &LinuxResources| {
        u64::try_from(resources.memory.get_or_default().limit.get_or_default().value)
            .ok()
            .filter(|limit| *limit > 0)
    };
    let (overhead, limits) =
        (linux.pod_overhead.get_or_default(), linux.pod_resources.get_or_default());
    let (overrides, _) = Overrides::read(&pod.annotations, "");
    Some(Sandbox {
        id: pod.id.clone(),
        place,
        overhead: Bytes::new(memory(overhead).unwrap_or(0)),
        cpu_overhead: cpu(overhead, CpuMax::NONE).rate().unwrap_or(0),
        memory_limit: memory(limits).map(Bytes::new),
        cpu_limit: cpu(limits, CpuMax::NONE).rate(),
        overrides,
    })
}

fn place(cgroup_parent: &str) -> Option<PodPlace> {
    let class = PodCgroup::parse(cgroup_parent)?.class;
    PodPlace::new(CgroupPath::of_parent(cgroup_parent).ok()?, class)
}

impl Plugin for Service {
    fn events(&self) -> EventMask {
        EventMask::RUN_POD_SANDBOX
            | EventMask::STOP_POD_SANDBOX
            | EventMask::REMOVE_POD_SANDBOX
            | EventMask::UPDATE_POD_SANDBOX
            | EventMask::CREATE_CONTAINER
            | EventMask::START_CONTAINER
            | EventMask::UPDATE_CONTAINER
            | EventMask::POST_UPDATE_CONTAINER
            | EventMask::STOP_CONTAINER
            | EventMask::REMOVE_CONTAINER
    }

    async fn configure(&self, configuration: Configuration) -> Result<(), Refusal> {
        self.reports.metrics.connections.inc();
        *lock(&self.budget) = configuration.request_timeout / BUDGET;
        // What was launched gets the same text on every connection, and watches the file for anything newer. What was not
        // has read the file itself.
        let config = match &configuration.drop_in {
            Some(text) if !self.configured.swap(true, Ordering::Relaxed) => {
                Config::parse(text.as_bytes(), "configuration from the runtime")
                    .map_err(|errors| Refusal::new(errors.to_string()))?
            }
            _ => self.containers.settings().config.clone(),
        };
        // All containers follow with the synchronisation.
        self.take_over(config);
        Ok(())
    }

    async fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        containers: Vec<api::Container>,
    ) -> Result<Vec<ContainerUpdate>, Refusal> {
        // What else the runtime is at is not known yet: it is not to be asked for anything at once.
        let _event = self.event("Synchronize");
        let alive = newest(containers.into_iter().filter(|container| !has_ended(container)));
        // Runtimes also tell of sandboxes that have ended and were not removed yet.
        // That of CRI-O has no process, and with that not the cgroup that is named: whoever has a container that lives does, too.
        let live: HashSet<&str> =
            alive.iter().map(|container| container.pod_sandbox_id.as_str()).collect();
        let is_over = |pod: &PodSandbox| {
            let cgroup = CgroupPath::parse(&pod.linux.get_or_default().cgroups_path).ok();
            !live.contains(pod.id.as_str())
                && cgroup.is_some_and(|cgroup| {
                    matches!(self.root.cgroup(&cgroup), Err(CgroupError::Gone(_)))
                })
        };
        self.ancestors
            .synchronize(pods.iter().filter(|pod| !is_over(pod)).filter_map(sandbox).collect());
        let pods: HashMap<&str, &PodSandbox> =
            pods.iter().map(|pod| (pod.id.as_str(), pod)).collect();
        let known = alive.into_iter().filter_map(|container| {
            let Some(pod) = pods.get(container.pod_sandbox_id.as_str()) else {
                warn!(
                    container = container.id,
                    pod = container.pod_sandbox_id,
                    "the runtime told of no such pod"
                );
                return None;
            };
            Some(self.found(pod, &container))
        });
        let known =
            known.map(|container| Container { asked: self.kills.asked(&container), ..container });
        self.containers.replace(known);
        let running = self.containers.all().into_iter().filter(|container| container.started);
        self.kills.synchronize(running.collect());
        // In the reply it would keep the runtime locked until the last container is updated.
        self.enqueue(Work::All);
        self.synchronized.send_replace(true);
        Ok(Vec::new())
    }

    async fn disconnected(&self) {
        self.synchronized.send_replace(false);
    }

    async fn run_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refusal> {
        let _event = self.event("RunPodSandbox");
        self.meet_sandbox(&pod);
        Ok(())
    }

    async fn stop_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refusal> {
        let _event = self.event("StopPodSandbox");
        self.sandbox_ended(&pod.id);
        Ok(())
    }

    async fn remove_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refusal> {
        let _event = self.event("RemovePodSandbox");
        self.sandbox_ended(&pod.id);
        Ok(())
    }

    /// The kubelet is about to set the pod's own limit, by itself: all that is asked is whether it may (from Kubernetes 1.37 on it heeds
    /// the answer). It sets nothing that is lower before the containers have theirs.
    async fn update_pod_sandbox(
        &self,
        pod: PodSandbox,
        overhead: LinuxResources,
        resources: LinuxResources,
    ) -> Result<(), Refusal> {
        let _event = self.event("UpdatePodSandbox");
        let of_memory = |resources: &LinuxResources| {
            resources.memory.get_or_default().limit.get_or_default().value
        };
        // Processor time alone, or no limit.
        let (Ok(limit @ 1..), Some(sandbox)) =
            (u64::try_from(of_memory(&resources)), sandbox(&pod))
        else {
            return Ok(());
        };
        let settings = self.containers.settings();
        if settings.stand_aside || settings.config.shrink == Shrink::Allow {
            return Ok(());
        }
        let overhead = u64::try_from(of_memory(&overhead)).unwrap_or(0);
        let limit = self.page_size().round_down(Bytes::new(limit.saturating_add(overhead)));
        let cgroup = sandbox.place.cgroup();
        let subject = || Subject {
            pod: Some(format!("{}/{}", printable(&pod.namespace), printable(&pod.name))),
            uid: Some(PodUid::new(pod.uid.clone())),
            container: None,
            cgroup: Some(cgroup.clone()),
        };
        if settings.observes() {
            if let Some(cut) = self.cuts.judge_pod(&sandbox.id, cgroup, limit) {
                self.reports.tell_planned(&subject(), &What::CutRejected(cut));
            }
            return Ok(());
        }
        let budget = *lock(&self.budget) * CUT_BUDGET;
        match self.cuts.make_room_in_pod(&sandbox.id, cgroup, limit, budget).await {
            Ok(Attempted::NoCut | Attempted::Made) => Ok(()),
            Ok(Attempted::NotMade { in_force, usage }) => {
                if let Some(usage) = usage {
                    let cut = LowerLimit { limit: Limit::Bytes(limit), in_force, usage };
                    self.reports.tell(&subject(), &What::CutRejected(cut));
                }
                Err(Refusal::new(WOULD_KILL_IN_POD))
            }
            Err(error) => {
                // Whoever asks for it may do so.
                debug!(pod = printable(&pod.name), %error, "cannot make room for a pod's lower limit");
                Ok(())
            }
        }
    }

    async fn create_container(
        &self,
        pod: PodSandbox,
        container: api::Container,
    ) -> Result<Creation, Refusal> {
        let _event = self.event("CreateContainer");
        for notice in annotation::unknown(&pod.annotations) {
            warn!(pod = printable(&pod.name), "{notice}");
        }
        if container.linux.is_none() {
            warn!(
                pod = printable(&pod.name),
                container = printable(&container.name),
                "the container has no linux section, it is left as it is"
            );
            return Ok(Creation::default());
        }
        self.meet_sandbox(&pod);
        self.forget_older(&pod.id, &container);
        let asked = container.linux.get_or_default().resources.get_or_default().memory.clone();
        // Whatever the runtime says of its state.
        let mut container =
            Container { started: false, ..translate(&pod, &container, self.page_size()) };
        let rescued = self.kills.limit_for(&container);
        container.limit = rescued.unwrap_or(container.limit);
        let (container, decided) = self.resolve(container).await;
        // The kernel's defaults need not be set.
        //
        // A key that is set already is left, whatever its value: a runtime refuses to create a container of which two plugins set
        // the same key. It keeps account of what plugins set and not of what its client has asked for, so the client's values
        // could be replaced. But containerd from 2.2 on shows both in one map, and a plugin does not learn who has set what
        // (containerd/nri, pkg/adaptation/result.go: adjustResources claims each key of a reply and copies it into the request
        // that the next plugin gets). The container is brought to its value once it runs, and that is no fight.
        let wanted = KNOBS.into_iter().filter_map(|knob| {
            let value = decided.value(knob)?;
            match container.unified.get(knob.file_name()) {
                Some(claimed) if claimed.parse() == Ok(value) => None,
                // The kubelet sends these with every container.
                Some(_) if !is_claimed(&container.unified, knob) => None,
                Some(claimed) => {
                    warn!(
                        pod = container.pod,
                        container = container.name,
                        knob = knob.file_name(),
                        desired = %value,
                        observed = excerpt(claimed),
                        "the runtime's client or another plugin has set this; it is changed once the container runs"
                    );
                    None
                }
                None => (decided.setting(knob) != Setting::Default).then_some((knob, value)),
            }
        });
        let unified: HashMap<_, _> =
            wanted.map(|(knob, value)| (knob.file_name().to_owned(), value.to_string())).collect();
        info!(
            pod = container.pod,
            container = container.name,
            class = %decided.class,
            request = decided.request.map(tracing::field::display),
            limit = %container.limit,
            ?unified,
            "create"
        );
        let mut adjust = ContainerAdjustment::new();
        let memory = rescued.map(|limit| memory_limit(limit, asked.as_ref()));
        if !unified.is_empty() || memory.is_some() {
            self.containers.remember(&container, Values::of_unified(&container.unified));
            let resources = LinuxResources { unified, memory: memory.into(), ..Default::default() };
            let linux = LinuxContainerAdjustment {
                resources: Some(resources).into(),
                ..Default::default()
            };
            adjust.linux = Some(linux).into();
        }
        Ok(Creation { adjust, update: Vec::new() })
    }

    async fn start_container(
        &self,
        pod: PodSandbox,
        container: api::Container,
    ) -> Result<(), Refusal> {
        let _event = self.event("StartContainer");
        // It was being created while this plugin registered: CRI-O asks the plugins that there are first, and tells of it in a
        // synchronization only when it is done.
        if self.containers.get(&container.id).is_none() && container.linux.is_some() {
            self.meet_sandbox(&pod);
            self.forget_older(&pod.id, &container);
            self.resolve(Container { started: false, ..self.found(&pod, &container) }).await;
        }
        self.containers.started(&container.id);
        if let Some(container) = self.containers.get(&container.id) {
            // The runtime has made its first process, which waits for this answer.
            if container.cgroup.as_ref().is_some_and(|path| self.has_processes(path)) {
                self.containers.set_has_had_processes(&container.id);
            }
            self.kills.runs(&container);
        }
        self.enqueue(Work::Written(container.id));
        Ok(())
    }

    async fn update_container(
        &self,
        pod: PodSandbox,
        container: api::Container,
        resources: LinuxResources,
    ) -> Result<Vec<ContainerUpdate>, Refusal> {
        let _event = self.event("UpdateContainer");
        let page = self.page_size();
        let mut updated = match self.containers.get(&container.id) {
            Some(known) => (*known).clone(),
            None if has_ended(&container)
                || self.others_of_its_name(&pod.id, &container).next().is_some() =>
            {
                return Ok(Vec::new());
            }
            None => self.found(&pod, &container),
        };
        updated.moment = Moment::Update;
        let number = self.updates.fetch_add(1, Ordering::Relaxed);
        updated.update = Update::UnderWay(number);
        // With other limits it may do.
        updated.released = None;
        let asked = resources.memory.limit.as_ref().map_or(0, |limit| limit.value);
        if asked != 0 {
            updated.limit = limit(asked, page, &updated);
        }
        updated.cpu = cpu(&resources, updated.cpu);
        updated.cpu_shares = shares(&resources, updated.cpu_shares);
        updated.swap_max = None;
        let claimed = resources.unified.clone();
        if !claimed.is_empty() {
            updated.unified.clone_from(&claimed);
        }
        let mut instead = None;
        if asked != 0 {
            (updated.asked, updated.revision) = (updated.limit, number + 1);
            instead = self.kills.limit_for(&updated);
            updated.limit = instead.unwrap_or(updated.limit);
            // Nothing of a cut that is refused is remembered.
            match self.make_room(&updated).await? {
                Some(in_force) => {
                    instead = Some(in_force);
                    updated.limit = in_force;
                }
                None => self.deferrals.forget(&updated.id),
            }
            updated.high_before =
                self.containers.get(&updated.id).and_then(|known| known.high_before);
        }
        let (container, decided) = self.resolve(updated).await;
        if asked != 0 && container.started {
            self.kills.runs(&container);
        }
        // The runtime keeps what was set before and sets it again with every update. So all that is wanted is said, and of
        // the defaults those that the kernel does not have.
        let cgroup = container.cgroup.as_ref().and_then(|path| self.root.cgroup(path).ok());
        let values: Vec<(Knob, Limit)> = KNOBS
            .into_iter()
            .filter_map(|knob| Some((knob, decided.value(knob)?)))
            // As at create; it is looked at when the update is done.
            .filter(|(knob, _)| !is_claimed(&claimed, *knob))
            .filter(|(knob, value)| {
                if claimed.contains_key(knob.file_name()) {
                    // The client's update writes the default.
                    return *value != knob.default_value();
                }
                let in_force = || cgroup.as_ref().and_then(|cgroup| cgroup.read(*knob).ok());
                decided.setting(*knob) != Setting::Default || in_force() != Some(*value)
            })
            .collect();
        info!(
            pod = container.pod,
            container = container.name,
            class = %decided.class,
            request = decided.request.map(tracing::field::display),
            limit = %container.limit,
            ?values,
            "update"
        );
        // There is no event for an update that fails, and then the kernel has values that do not go with its limit.
        self.enqueue(Work::Later(container.id.clone(), number));
        if values.is_empty() && instead.is_none() {
            return Ok(Vec::new());
        }
        if decided.before.is_none() {
            let unknown = || Values::of_unified(&container.unified);
            let before = cgroup
                .as_ref()
                .and_then(|cgroup| Values::read(cgroup).ok())
                .unwrap_or_else(unknown);
            self.containers.remember(&container, before);
        }
        // Unless the client has a word on it.
        let cgroup = cgroup.filter(|_| !claimed.contains_key(SWAP_MAX));
        let swap_max = cgroup.and_then(|cgroup| cgroup.swap_max().ok()).and_then(Limit::bytes);
        self.containers.set_swap_max(&container.id, swap_max);
        let memory = instead.map(|limit| memory_limit(limit, resources.memory.as_ref()));
        let has_to_be = |values: Vec<_>| {
            let mut update = update(&container.id, values, swap_max);
            if let (Some(memory), Some(linux)) = (memory.clone(), update.linux.as_mut()) {
                linux.resources.mut_or_insert_default().memory = Some(memory).into();
            }
            update
        };
        // The kubelet sends the kernel's defaults with every update. They are replaced here, and what the runtime stores is the
        // plugin's. Had another plugin set one of them, the runtime would refuse the update, unless a failure may be ignored: then
        // it passes over this part, and the container is brought to its values afterwards. (containerd/nri,
        // pkg/adaptation/result.go: updateResources works on a copy, which counts only where no key is claimed twice.)
        if !values.iter().any(|(knob, _)| claimed.contains_key(knob.file_name())) {
            return Ok(vec![has_to_be(values)]);
        }
        let is_needed = memory.is_some() || swap_max.is_some();
        let may_be =
            ContainerUpdate { ignore_failure: true, ..update(&container.id, values, None) };
        Ok(is_needed.then(|| has_to_be(Vec::new())).into_iter().chain([may_be]).collect())
    }

    async fn post_update_container(
        &self,
        _: PodSandbox,
        container: api::Container,
    ) -> Result<(), Refusal> {
        let _event = self.event("PostUpdateContainer");
        self.containers.set_update(&container.id, Update::Made);
        self.enqueue(Work::Written(container.id));
        Ok(())
    }

    async fn stop_container(
        &self,
        _: PodSandbox,
        container: api::Container,
    ) -> Result<Vec<ContainerUpdate>, Refusal> {
        let _event = self.event("StopContainer");
        debug!(container = container.id, "stopped");
        self.forget(&container.id);
        Ok(Vec::new())
    }

    async fn remove_container(
        &self,
        _: PodSandbox,
        container: api::Container,
    ) -> Result<(), Refusal> {
        let _event = self.event("RemoveContainer");
        self.forget(&container.id);
        Ok(())
    }
}

/// Whether a unified map has a value of its own for a file. The kernel's default is none: the kubelet sends it with every request,
/// `memory.high=max` without its MemoryQoS, zeros with it where its policy protects nothing.
/// Source: Kubernetes 1.37, `pkg/kubelet/kuberuntime/kuberuntime_container_linux.go`.
fn is_claimed(unified: &HashMap<String, String>, knob: Knob) -> bool {
    unified.get(knob.file_name()).is_some_and(|claimed| claimed.parse() != Ok(knob.default_value()))
}

/// Leaves of containers with one name in a sandbox the newest. Runtimes with NRI before 0.9 do not tell when one was created: then one
/// that runs, or was told of last.
fn newest(containers: impl Iterator<Item = api::Container>) -> Vec<api::Container> {
    let age = |container: &api::Container| {
        let runs = matches!(container.state.enum_value(), Ok(ContainerState::CONTAINER_RUNNING));
        (container.created_at, runs)
    };
    let mut newest: Vec<api::Container> = Vec::new();
    let mut places: HashMap<(String, String), usize> = HashMap::new();
    for container in containers {
        match places.entry((container.pod_sandbox_id.clone(), container.name.clone())) {
            Entry::Vacant(vacant) => {
                vacant.insert(newest.len());
                newest.push(container);
            }
            Entry::Occupied(place) => {
                let other = &mut newest[*place.get()];
                if age(&container) >= age(other) {
                    *other = container;
                }
            }
        }
    }
    newest
}

fn has_ended(container: &api::Container) -> bool {
    matches!(container.state.enum_value(), Ok(ContainerState::CONTAINER_STOPPED))
}

/// Takes what matters here from what the runtime tells. What makes no sense is reported and left out.
fn translate(pod: &PodSandbox, container: &api::Container, page: PageSize) -> Container {
    let linux = container.linux.get_or_default();
    let resources = linux.resources.get_or_default();
    let cgroup_parent = &pod.linux.get_or_default().cgroup_parent;
    let parent = PodCgroup::parse(cgroup_parent);
    let (overrides, notices) = Overrides::read(&pod.annotations, &container.name);
    let uid = match &parent {
        Some(parent) if pod.uid.is_empty() => parent.uid.clone(),
        _ => PodUid::new(pod.uid.clone()),
    };
    let mut translated = Container {
        id: container.id.clone(),
        // Those of Kubernetes are as they were.
        name: printable(&container.name),
        pod: format!("{}/{}", printable(&pod.namespace), printable(&pod.name)),
        uid,
        sandbox: pod.id.clone(),
        limit: Limit::Max,
        asked: Limit::Max,
        revision: 0,
        cpu: CpuMax::NONE,
        cpu_shares: shares(resources, CpuShares::default()),
        swap_max: None,
        unified: resources.unified.clone(),
        overrides,
        oom_score_adj: linux.oom_score_adj.as_ref().map(|adj| adj.value),
        moment: Moment::Create,
        update: Update::Over,
        released: None,
        high_before: None,
        has_had_processes: false,
        started: matches!(container.state.enum_value(), Ok(ContainerState::CONTAINER_RUNNING)),
        cgroup: None,
        place: place(cgroup_parent),
    };
    for notice in notices {
        warn!(pod = translated.pod, container = translated.name, "{notice}");
    }
    let asked = resources.memory.get_or_default().limit.get_or_default().value;
    translated.limit = limit(asked, page, &translated);
    translated.asked = translated.limit;
    translated.cpu = cpu(resources, CpuMax::NONE);
    if !linux.cgroups_path.is_empty() {
        match CgroupPath::parse(&linux.cgroups_path) {
            Ok(path) => translated.cgroup = Some(path),
            Err(error) => warn!(
                pod = translated.pod,
                container = translated.name,
                %error,
                "the container's values cannot be verified"
            ),
        }
    }
    translated
}

/// What part of the processor time is asked for.
fn shares(resources: &LinuxResources, known: CpuShares) -> CpuShares {
    match resources.cpu.get_or_default().shares.get_or_default().value {
        0 => known,
        shares => CpuShares(shares),
    }
}

/// How much processor time is asked for.
fn cpu(resources: &LinuxResources, known: CpuMax) -> CpuMax {
    let cpu = resources.cpu.get_or_default();
    known.updated(cpu.quota.get_or_default().value, cpu.period.get_or_default().value)
}

fn limit(asked: i64, page: PageSize, container: &Container) -> Limit {
    Limit::from_cri(asked, page).unwrap_or_else(|error| {
        warn!(pod = container.pod, container = container.name, "{error}");
        Limit::Max
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_one_name_is_left() {
        let container = |id: &str, name: &str, sandbox: &str, created_at, state: ContainerState| {
            api::Container {
                id: id.into(),
                name: name.into(),
                pod_sandbox_id: sandbox.into(),
                created_at,
                state: state.into(),
                ..Default::default()
            }
        };
        let (created, running) =
            (ContainerState::CONTAINER_CREATED, ContainerState::CONTAINER_RUNNING);
        for (containers, expected) in [
            (vec![], ""),
            (vec![container("a", "x", "1", 1, running), container("b", "x", "1", 2, created)], "b"),
            (vec![container("b", "x", "1", 2, created), container("a", "x", "1", 1, running)], "b"),
            (vec![container("a", "x", "1", 0, running), container("b", "x", "1", 0, created)], "a"),
            (vec![container("a", "x", "1", 0, created), container("b", "x", "1", 0, created)], "b"),
            (
                vec![container("a", "x", "1", 1, running), container("b", "x", "2", 2, running)],
                "a b",
            ),
            (
                vec![container("a", "x", "1", 1, running), container("b", "y", "1", 2, running)],
                "a b",
            ),
        ] {
            let left: Vec<_> =
                newest(containers.into_iter()).into_iter().map(|container| container.id).collect();
            assert_eq!(left.join(" "), expected);
        }
    }
}

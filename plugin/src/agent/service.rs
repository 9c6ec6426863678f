//! The NRI plugin: it translates the runtime's events, delegates the work and replies.
//!
//! The plugin answers events from memory. It reads the kubelet's checkpoint again if the checkpoint
//! has changed, for at most a tenth of the runtime's request timeout. Reclaiming memory for a limit
//! decrease may take longer (`CUT_BUDGET`). Invalid data about pods and containers fails no event:
//! the plugin reports the data and ignores it.

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
use plimsoll_core::incident::{Incident, LowerLimit, Subject};
use plimsoll_core::pod::{CgroupPath, PodCgroup, PodUid, Request};
use plimsoll_core::policy::Setting;
use plimsoll_core::policy::hierarchy::PodPlace;
use plimsoll_core::policy::resize::{self, Limits};
use plimsoll_core::requests::Inconclusive;
use plimsoll_core::requests::annotation::{self, Overrides};
use plimsoll_core::units::{Bytes, CpuMax, CpuShares, Knob, Limit, PageSize, excerpt, printable};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{debug, error, info, warn};

use crate::agent::cut::{Attempted, Cuts};
use crate::agent::defer::Deferrals;
use crate::agent::kills::Kills;
use crate::agent::levels::{Ancestors, Sandbox};
use crate::agent::reconcile::{Work, memory_limit, update};
use crate::cgroup::{CgroupError, CgroupRoot, SWAP_MAX};
use crate::config::{Config, NodeAllocatable, Shrink};
use crate::kubelet::checkpoint::{Moment, Recorded};
use crate::kubelet::node::NodeMemory;
use crate::lock;
use crate::report::Reports;
use crate::state::container::{Container, Decided, KNOBS, Update};
use crate::state::containers::Containers;
use crate::state::originals::Values;
use crate::state::settings::Settings;
use crate::state::traffic::Event;
use crate::state::{brake, raised};

/// Divisor of the runtime's request timeout: an event is answered within this part.
pub(crate) const BUDGET: u32 = 10;

/// Factor by which an event may take longer if it reclaims memory for a limit decrease. Together
/// with the rest of the event, this is up to half of the timeout.
pub(crate) const CUT_BUDGET: u32 = 3;

/// Reason for the refusal of a limit decrease. The text is constant, because the kubelet makes an
/// Event of each new text and retries every 10 to 15 s.
const WOULD_KILL: &str = "memory limit not lowered: the container uses more than that and would be killed; it has to free memory \
                          first, or the limit to be higher (plimsoll's log has the numbers)";

/// Reason for the refusal of a pod's limit decrease, also constant.
const WOULD_KILL_IN_POD: &str = "memory limit of the pod not lowered: it uses more than that and would have processes killed; it has to free \
                                 memory first, or the limit to be higher (plimsoll's log has the numbers)";

/// Function that is called with each configuration that comes into force.
pub type OnConfig = Box<dyn Fn(&Config) + Send + Sync>;

/// The NRI plugin.
pub struct Service {
    containers: Arc<Containers>,
    ancestors: Arc<Ancestors>,
    root: Arc<CgroupRoot>,
    work: mpsc::UnboundedSender<Work>,
    host: PathBuf,
    on_config: OnConfig,
    budget: Mutex<Duration>,
    /// Whether the plugin has applied the runtime's configuration text.
    configured: AtomicBool,
    /// Number of updates so far.
    updates: AtomicU64,
    cuts: Arc<Cuts>,
    deferrals: Arc<Deferrals>,
    kills: Arc<Kills>,
    reports: Arc<Reports>,
    synchronized: watch::Sender<bool>,
    /// The brake's record, as long as its file could not be written.
    unstored: Mutex<Option<brake::Record>>,
}

/// State that the event handlers share with the other tasks.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The containers.
    pub containers: Arc<Containers>,
    /// The cgroups above the containers.
    pub ancestors: Arc<Ancestors>,
    /// The node's cgroups.
    pub root: Arc<CgroupRoot>,
    /// Preparation of limit decreases.
    pub cuts: Arc<Cuts>,
    /// Deferred limit decreases.
    pub deferrals: Arc<Deferrals>,
    /// OOM kills and raised limits.
    pub kills: Arc<Kills>,
    /// Reports to users.
    pub reports: Arc<Reports>,
    /// Work for the reconcile task.
    pub work: mpsc::UnboundedSender<Work>,
    /// Whether the runtime is connected and has reported its pods and containers.
    pub synchronized: watch::Sender<bool>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("containers", &self.containers).finish_non_exhaustive()
    }
}

impl Service {
    /// Creates the plugin on the node whose file system is at `host`, usually `/`. The plugin calls
    /// `on_config` with each configuration that comes into force.
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

    /// Returns a channel that says whether the runtime is connected and has reported its pods and
    /// containers.
    pub fn synchronized(&self) -> watch::Receiver<bool> {
        self.synchronized.subscribe()
    }

    /// Applies another configuration to all containers.
    pub fn reconfigure(&self, config: Config) {
        self.take_over(config);
        self.enqueue(Work::All);
    }

    /// Checks again whether `plimsoll restore` was called or the brake was reset, and reconciles
    /// all containers after a change.
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

    /// Applies the brake: the plugin behaves as in observe mode until an operator resets the brake.
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

    /// Logs that the plugin only observes, and which raised limits stay.
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

    /// Returns the settings for a configuration. If the brake's record could not be stored, the
    /// brake stays applied. The plugin then tries again to store the record.
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
            // From now on the file decides whether the brake is applied. An operator can remove the
            // file.
            _ => *unstored = None,
        }
        (settings, memory)
    }

    fn set(&self, settings: Settings) {
        if self.containers.settings().brake.is_some() && settings.brake.is_none() {
            // Without this the brake could never be applied again.
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

    /// Determines node allocatable again. It stands in for the limit of a container without a
    /// limit. A runtime starts its plugins before the kubelet. The kubelet determines node
    /// allocatable later and may change it.
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
        // The receiver lives as long as the program.
        let _ = self.work.send(work);
    }

    /// Begins the answer to an event with the NRI name `name`. The answer ends when the returned
    /// value is dropped.
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

    /// Returns the kubelet's records of a container and its pod. The result is inconclusive if they
    /// cannot be read in time.
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
                // The reconcile task reads the record again after the start or update.
                warn!(
                    pod = container.pod,
                    container = container.name,
                    "the kubelet's checkpoint could not be read within {budget:?}, going on without it"
                );
                Err(Inconclusive)
            }
        }
    }

    /// Translates a container that was created without this plugin, or before the plugin restarted.
    /// If the plugin has changed the container, its unified map holds the plugin's values. The
    /// original values then replace them.
    fn found(&self, pod: &PodSandbox, container: &api::Container) -> Container {
        let mut found = translate(pod, container, self.page_size());
        if let Some(before) = self.containers.before(&container.id) {
            found.unified = before.to_unified();
        }
        found
    }

    /// Stores a container and decides its values.
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
        // Reserve the larger of the old and new claim until the new values are verified.
        if let (Some(place), Some(claim)) = (&container.place, decided.desired.claim) {
            self.ancestors.claim_at_least(place, &container.id, claim);
        }
        (container, decided)
    }

    /// Warns about a limit above node allocatable, but the limit is applied. Excessive requests
    /// appear as shortfalls of protection.
    fn say_if_beyond_the_node(&self, container: &Container) {
        if let (Limit::Bytes(limit), Some(allocatable)) =
            (container.limit, self.containers.settings().node.allocatable)
            && limit > allocatable
        {
            self.reports.tell(&container.into(), &Incident::BeyondNode { limit, allocatable });
        }
    }

    /// Warns about a limit that is too many times the request, but the limit is applied.
    fn say_if_overcommitted(&self, container: &Container, request: Option<&Request>) {
        if let (Limit::Bytes(limit), Some(request), Some(most)) =
            (container.limit, request, self.containers.settings().config.max_limit_request_ratio)
            && resize::is_overcommitted(limit, request.at_most, most)
        {
            let what = Incident::Overcommitted { request: request.at_most, limit, most };
            self.reports.tell(&container.into(), &what);
        }
    }

    /// Raises the pod's limits, because a lower pod limit would make the container's limits
    /// useless. `former` are the last limits of this container, or of its predecessor with the same
    /// name.
    fn raise_pod(&self, container: &Container, former: Option<Limits>, recorded: &Recorded) {
        let mut others = self.containers.in_sandbox(&container.sandbox);
        others.retain(|other| other.name != container.name && self.ancestors.is_alive(other));
        let pod = self.containers.view_pod(container, former, &others, recorded);
        self.ancestors.raise_limits(container, &pod);
    }

    /// Prepares the container for a limit decrease. Returns the limit that stays for now if the
    /// decrease is deferred.
    ///
    /// # Errors
    ///
    /// When the decrease would kill the container and must be refused.
    async fn make_room(&self, container: &Container) -> Result<Option<Limit>, Refusal> {
        let settings = self.containers.settings();
        if settings.stand_aside || settings.config.shrink == Shrink::Allow {
            return Ok(None);
        }
        if settings.observes() {
            if let Some(cut) = self.cuts.judge(container) {
                let is_deferred = settings.config.shrink == Shrink::Defer;
                let what = if is_deferred {
                    Incident::CutDeferred(cut)
                } else {
                    Incident::CutRejected(cut)
                };
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
                // The plugin does not refuse a limit that it cannot prepare for.
                debug!(pod = container.pod, container = container.name, %error, "cannot make room for a lower limit");
                return Ok(None);
            }
        };
        let is_deferred = settings.config.shrink == Shrink::Defer;
        if let Some(usage) = usage {
            let cut = LowerLimit { limit: container.limit, in_force, usage };
            let what =
                if is_deferred { Incident::CutDeferred(cut) } else { Incident::CutRejected(cut) };
            self.reports.tell(&container.into(), &what);
            // The reconcile task has skipped the container during the attempt.
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

    /// Forgets older containers of the same name in the sandbox. The kubelet creates the next
    /// container only when the last one has ended. The runtime does not report the end of a
    /// container that failed to start.
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

/// Returns the sandbox of a pod of the kubelet; `None` for any other pod.
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
        // A plugin that the runtime launched gets the same text with every connection, and watches
        // the file for newer text. Any other plugin has read the file itself.
        let config = match &configuration.drop_in {
            Some(text) if !self.configured.swap(true, Ordering::Relaxed) => {
                Config::parse(text.as_bytes(), "configuration from the runtime")
                    .map_err(|errors| Refusal::new(errors.to_string()))?
            }
            _ => self.containers.settings().config.clone(),
        };
        // The synchronization applies the configuration to all containers.
        self.take_over(config);
        Ok(())
    }

    async fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        containers: Vec<api::Container>,
    ) -> Result<Vec<ContainerUpdate>, Refusal> {
        // The runtime may be busy with other events, so this counts as one and delays requests to
        // the runtime.
        let _event = self.event("Synchronize");
        let alive = newest(containers.into_iter().filter(|container| !has_ended(container)));
        // Runtimes also report sandboxes that have ended and were not removed yet. A live sandbox
        // of CRI-O has no process, and so the named cgroup does not exist. Therefore a sandbox with
        // a live container also counts as live.
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
        // Updates in the reply would keep the runtime locked until the last container is updated.
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

    /// Decides whether the kubelet may set the pod's own limit. The kubelet sets the limit itself,
    /// and heeds the answer from Kubernetes 1.37 on. It lowers the pod's limit only after the
    /// containers' limits.
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
        // The update is about CPU alone, or without a limit.
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
                self.reports.tell_planned(&subject(), &Incident::CutRejected(cut));
            }
            return Ok(());
        }
        let budget = *lock(&self.budget) * CUT_BUDGET;
        match self.cuts.make_room_in_pod(&sandbox.id, cgroup, limit, budget).await {
            Ok(Attempted::NoCut | Attempted::Made) => Ok(()),
            Ok(Attempted::NotMade { in_force, usage }) => {
                if let Some(usage) = usage {
                    let cut = LowerLimit { limit: Limit::Bytes(limit), in_force, usage };
                    self.reports.tell(&subject(), &Incident::CutRejected(cut));
                }
                Err(Refusal::new(WOULD_KILL_IN_POD))
            }
            Err(error) => {
                // The plugin does not refuse a limit that it cannot prepare for.
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
        // The container has not started, whatever state the runtime reports.
        let mut container =
            Container { started: false, ..translate(&pod, &container, self.page_size()) };
        let rescued = self.kills.limit_for(&container);
        container.limit = rescued.unwrap_or(container.limit);
        let (container, decided) = self.resolve(container).await;
        // The kernel's defaults need not be set.
        //
        // Leave a key that is set already, whatever its value. A runtime refuses to create a
        // container if two plugins set the same key. It records the keys of plugins but not the
        // keys of its client, so the client's values could be replaced. But containerd 2.2 and
        // later shows both in one map, and a plugin cannot see which program set a key.
        // (containerd/nri, pkg/adaptation/result.go: adjustResources claims each key of a reply and
        // copies it into the request for the next plugin.) The plugin sets its value once the
        // container runs. This write does not count as a repair.
        let wanted = KNOBS.into_iter().filter_map(|knob| {
            let value = decided.value(knob)?;
            match container.unified.get(knob.file_name()) {
                Some(claimed) if claimed.parse() == Ok(value) => None,
                // The kubelet sends the defaults with every container.
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
        // The runtime was creating the container while this plugin registered. CRI-O asks only the
        // plugins that were registered before. A synchronization of CRI-O contains only containers
        // whose creation is complete.
        if self.containers.get(&container.id).is_none() && container.linux.is_some() {
            self.meet_sandbox(&pod);
            self.forget_older(&pod.id, &container);
            self.resolve(Container { started: false, ..self.found(&pod, &container) }).await;
        }
        self.containers.started(&container.id);
        if let Some(container) = self.containers.get(&container.id) {
            // The runtime has made the container's first process, which waits for this answer.
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
        // With its new limits, the container may no longer need a raised memory.high.
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
            // The plugin stores nothing of a limit decrease that it refuses.
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
        // The runtime keeps earlier values and sets them again with every update. So the reply
        // contains all desired values. It contains a default only if the kernel holds another
        // value.
        let cgroup = container.cgroup.as_ref().and_then(|path| self.root.cgroup(path).ok());
        let values: Vec<(Knob, Limit)> = KNOBS
            .into_iter()
            .filter_map(|knob| Some((knob, decided.value(knob)?)))
            // Leave the client's values, as at creation. The reconcile task checks them after the
            // update.
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
        // The runtime does not report a failed update. Then the kernel holds values that do not
        // match the limit.
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
        // Keep the swap limit unless the client sets it.
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
        // The kubelet sends the kernel's defaults with every update. The reply replaces them, so
        // that the runtime stores the plugin's values. If another plugin has set one of these keys,
        // the runtime refuses the update. If the failure may be ignored, the runtime skips only
        // this part and the plugin writes the values afterwards. (containerd/nri,
        // pkg/adaptation/result.go: updateResources works on a copy, which counts only if no key is
        // claimed twice.)
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

/// Returns whether a unified map sets a file to another value than the kernel's default. The
/// default does not count, because the kubelet sends it with every request. Without its MemoryQoS
/// the kubelet sends `memory.high=max`, and with it zeros where its policy protects nothing.
/// Source: Kubernetes 1.37, `pkg/kubelet/kuberuntime/kuberuntime_container_linux.go`.
fn is_claimed(unified: &HashMap<String, String>, knob: Knob) -> bool {
    unified.get(knob.file_name()).is_some_and(|claimed| claimed.parse() != Ok(knob.default_value()))
}

/// Returns the newest of all containers that share a name and a sandbox. Runtimes with NRI before
/// 0.9 do not report the time of creation. Then a running container counts as the newest, or else
/// the last one reported.
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

/// Translates a container of the runtime. Invalid data is reported and ignored.
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
        // Names of Kubernetes stay unchanged.
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

/// Returns the CPU shares that `resources` asks for, or else `known`.
fn shares(resources: &LinuxResources, known: CpuShares) -> CpuShares {
    match resources.cpu.get_or_default().shares.get_or_default().value {
        0 => known,
        shares => CpuShares(shares),
    }
}

/// Returns the CPU limit that `resources` asks for, or else `known`.
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

//! The NRI plugin: it translates the runtime's events, delegates the work and replies.
//!
//! The plugin answers events from memory. It reads the kubelet's checkpoint again if the checkpoint
//! has changed, for at most a tenth of the runtime's request timeout. Reclaiming memory for a limit
//! decrease may take longer (`CUT_BUDGET`). Invalid data about pods and containers fails no event:
//! the plugin reports the data and ignores it.

mod forget;
mod resolve;
mod translate;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nri::api::{
    self, ContainerAdjustment, ContainerUpdate, LinuxContainerAdjustment, LinuxResources,
    PodSandbox,
};
use nri::{Configuration, Creation, EventMask, Plugin, Refusal};
use plimsoll_core::incident::{Incident, LowerLimit, Subject};
use plimsoll_core::pod::PodUid;
use plimsoll_core::policy::Setting;
use plimsoll_core::requests::annotation;
use plimsoll_core::units::{Bytes, Knob, Limit, PageSize, excerpt, printable};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use self::translate::{cpu, has_ended, is_claimed, limit, newest, sandbox, shares, translate};
use crate::agent::configurator::{Configurator, OnConfig};
use crate::agent::cut::{Attempted, Cuts};
use crate::agent::kills::Kills;
use crate::agent::node::Agent;
use crate::agent::reconciler::{Work, memory_limit, update};
use crate::cgroup::SWAP_MAX;
use crate::config::{Config, Shrink};
use crate::kubelet::checkpoint::Moment;
use crate::report::Reports;
use crate::state::container::{Container, KNOBS, Update};
use crate::state::originals::Values;
use crate::state::shared::SharedState;
use crate::state::traffic::Event;
use crate::{in_own_thread, lock};

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

/// The NRI plugin.
pub struct Service {
    state: SharedState,
    work: mpsc::UnboundedSender<Work>,
    configurator: Arc<Configurator>,
    budget: Mutex<Duration>,
    /// Whether the plugin has applied the runtime's configuration text.
    configured: AtomicBool,
    /// Number of updates so far.
    updates: AtomicU64,
    cuts: Arc<Cuts>,
    kills: Arc<Kills>,
    reports: Arc<Reports>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service")
            .field("containers", &self.state.containers)
            .finish_non_exhaustive()
    }
}

impl Service {
    /// Creates the plugin on the node whose file system is at `host`, usually `/`. The plugin calls
    /// `on_config` with each configuration that comes into force.
    pub fn new(agent: Agent, host: impl Into<PathBuf>, on_config: OnConfig) -> Self {
        let configurator = Arc::new(Configurator::new(&agent, host.into(), on_config));
        let Agent { state, cuts, kills, reports, work } = agent;
        Self {
            state,
            work,
            configurator,
            budget: Mutex::new(Duration::from_millis(200)),
            configured: AtomicBool::new(false),
            updates: AtomicU64::new(0),
            cuts,
            kills,
            reports,
        }
    }

    /// Returns a channel that says whether the runtime is connected and has reported its pods and
    /// containers.
    pub fn synchronized(&self) -> watch::Receiver<bool> {
        self.state.synchronized.subscribe()
    }

    /// Returns what applies configurations, the brake and the marker of `plimsoll restore`.
    pub fn configurator(&self) -> Arc<Configurator> {
        self.configurator.clone()
    }

    /// Runs `work` in a thread, and waits for its end for at most `budget`. Later work takes effect
    /// all the same.
    async fn off_the_loop(
        &self,
        budget: Duration,
        work: impl FnOnce(&Configurator) + Send + 'static,
    ) {
        let configurator = self.configurator.clone();
        let (tell, told) = oneshot::channel();
        in_own_thread("settings", move || {
            work(&configurator);
            // The receiver may have stopped waiting.
            let _ = tell.send(());
        });
        if timeout(budget, told).await.is_err() {
            warn!(
                "the node's settings were not read within {budget:?}; the plugin goes on with the \
                 former ones until they are. See whether the file system of the kubelet's \
                 directory answers"
            );
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
            _event: self.state.containers.event(),
            reports: self.reports.clone(),
            name,
            since: Instant::now(),
        }
    }

    fn page_size(&self) -> PageSize {
        self.state.containers.settings().node.page_size
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
            _ => self.state.containers.settings().config.clone(),
        };
        let budget = configuration.request_timeout / BUDGET * CUT_BUDGET;
        let work = self.work.clone();
        let apply = move |configurator: &Configurator| {
            configurator.apply_config(config);
            // The synchronization may have come before. The receiver lives as long as the program.
            let _ = work.send(Work::All);
        };
        self.off_the_loop(budget, apply).await;
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
        let ended = self.ended_sandboxes(&pods, &live).await;
        let is_over = |pod: &PodSandbox| ended.contains(&pod.id);
        self.state
            .levels
            .synchronize(pods.iter().filter(|pod| !is_over(pod)).filter_map(sandbox).collect());
        let pods: HashMap<&str, &PodSandbox> =
            pods.iter().map(|pod| (pod.id.as_str(), pod)).collect();
        let sandboxes = pods.keys().map(|id| (*id).to_owned()).collect();
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
        let known = known.map(|container| Container {
            asked: self.state.rescues.asked(&container),
            ..container
        });
        self.state.containers.replace(known, &sandboxes);
        let running = self.state.containers.all().into_iter().filter(|container| container.started);
        self.kills.synchronize(running.collect());
        // Updates in the reply would keep the runtime locked until the last container is updated.
        self.enqueue(Work::All);
        self.state.synchronized.send_replace(true);
        Ok(Vec::new())
    }

    async fn disconnected(&self) {
        self.state.synchronized.send_replace(false);
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
        let settings = self.state.containers.settings();
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
        let rescued = self.state.rescues.limit_for(&container);
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
            self.state.containers.remember(&container, Values::of_unified(&container.unified));
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
        if self.state.containers.get(&container.id).is_none() && container.linux.is_some() {
            self.meet_sandbox(&pod);
            self.forget_older(&pod.id, &container);
            self.resolve(Container { started: false, ..self.found(&pod, &container) }).await;
        }
        self.state.containers.started(&container.id);
        if let Some(container) = self.state.containers.get(&container.id) {
            // The runtime has made the container's first process, which waits for this answer.
            if container.cgroup.as_ref().is_some_and(|path| self.has_processes(path)) {
                self.state.containers.set_has_had_processes(&container.id);
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
        let mut updated = match self.state.containers.get(&container.id) {
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
            instead = self.state.rescues.limit_for(&updated);
            updated.limit = instead.unwrap_or(updated.limit);
            // The plugin stores nothing of a limit decrease that it refuses.
            match self.make_room(&updated).await? {
                Some(in_force) => {
                    instead = Some(in_force);
                    updated.limit = in_force;
                }
                None => self.state.deferred.forget(&updated.id),
            }
            updated.high_before =
                self.state.containers.get(&updated.id).and_then(|known| known.high_before);
        }
        let (container, decided) = self.resolve(updated).await;
        if asked != 0 && container.started {
            self.kills.runs(&container);
        }
        // The runtime keeps earlier values and sets them again with every update. So the reply
        // contains all desired values. It contains a default only if the kernel holds another
        // value.
        let cgroup = container.cgroup.as_ref().and_then(|path| self.state.root.cgroup(path).ok());
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
            self.state.containers.remember(&container, before);
        }
        // Keep the swap limit unless the client sets it.
        let cgroup = cgroup.filter(|_| !claimed.contains_key(SWAP_MAX));
        let swap_max = cgroup.and_then(|cgroup| cgroup.swap_max().ok()).and_then(Limit::bytes);
        self.state.containers.set_swap_max(&container.id, swap_max);
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
        self.state.containers.set_update(&container.id, Update::Made);
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

//! The NRI plugin, which translates the runtime's events, delegates the work and replies.
//!
//! The plugin answers events from the data that it has in memory. If the kubelet's checkpoint has
//! changed, the plugin reads it again, for at most a tenth of the runtime's request timeout. The
//! reclaim of memory for a limit decrease may take longer (`DECREASE_BUDGET`). Invalid data about
//! pods and containers does not make an event fail: the plugin reports the data and ignores it.

mod create;
mod forget;
mod pod_resize;
mod resolve;
mod synchronize;
mod translate;
mod update;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nri::api::{self, ContainerUpdate, LinuxResources, PodSandbox};
use nri::{Configuration, Creation, EventMask, Plugin, Refusal};
use plimsoll_core::units::PageSize;
use tokio::sync::{mpsc, watch};
use tracing::debug;

use crate::agent::configurator::Configurator;
use crate::agent::decrease::LimitDecreases;
use crate::agent::handles::Agent;
use crate::agent::kills::KillNotifier;
use crate::agent::reconciler::WorkItem;
use crate::config::Config;
use crate::lock;
use crate::report::Reports;
use crate::state::container::Container;
use crate::state::shared::SharedState;
use crate::state::traffic::Event;
use crate::state::update_phase::UpdatePhase;

/// Divisor of the runtime's request timeout. The plugin answers an event within the timeout divided
/// by this number.
pub(crate) const BUDGET: u32 = 10;

/// Factor by which the answer to an event may take longer if the plugin reclaims memory for a limit
/// decrease. Including all other work, the answer takes up to half of the timeout.
pub(crate) const DECREASE_BUDGET: u32 = 3;

/// The NRI plugin.
pub struct Service {
    state: SharedState,
    work: mpsc::UnboundedSender<WorkItem>,
    configurator: Arc<Configurator>,
    budget: Mutex<Duration>,
    /// Whether the plugin has applied the runtime's configuration text.
    configured: AtomicBool,
    decreases: Arc<LimitDecreases>,
    kills: Arc<KillNotifier>,
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
    /// Creates the plugin, which applies the runtime's configuration text with `configurator`.
    pub fn new(agent: Agent, configurator: Arc<Configurator>) -> Self {
        let Agent { state, decreases, kills, reports, work } = agent;
        Self {
            state,
            work,
            configurator,
            budget: Mutex::new(Duration::from_millis(200)),
            configured: AtomicBool::new(false),
            decreases,
            kills,
            reports,
        }
    }

    /// Returns a channel that tells whether the runtime is connected and has reported all
    /// containers.
    pub fn synchronized(&self) -> watch::Receiver<bool> {
        self.state.synchronized.subscribe()
    }

    /// Returns the object that applies configurations, the brake and the marker file of `plimsoll
    /// restore`.
    pub fn configurator(&self) -> Arc<Configurator> {
        self.configurator.clone()
    }

    fn enqueue(&self, work: WorkItem) {
        // This send cannot fail, because the receiver exists until the program ends.
        let _ = self.work.send(work);
    }

    /// Begins the answer to an event. `name` is the event's name in NRI. The answer ends when the
    /// returned value is dropped.
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

/// An event that the plugin is answering.
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
        // A runtime that has launched the plugin sends the same configuration text on every
        // connection. The plugin then watches the configuration file for newer text. If the runtime
        // has not launched the plugin, the plugin has read the file itself.
        let config = match &configuration.drop_in {
            Some(text) if !self.configured.swap(true, Ordering::Relaxed) => {
                let config = Config::parse(text.as_bytes(), "configuration from the runtime");
                Some(config.map_err(|errors| Refusal::new(errors.to_string()))?)
            }
            _ => None,
        };
        // The configuration takes effect before the plugin reads any file of the kubelet, because
        // this read may hang.
        self.configurator.apply_config(config);
        let budget = configuration.request_timeout / BUDGET * DECREASE_BUDGET;
        self.configurator.await_memory(budget, true).await;
        Ok(())
    }

    async fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        containers: Vec<api::Container>,
    ) -> Result<Vec<ContainerUpdate>, Refusal> {
        // The runtime may be busy with other events. Therefore the synchronization counts as an
        // event and delays requests to the runtime.
        let _event = self.event("Synchronize");
        self.adopt(pods, containers).await;
        Ok(Vec::new())
    }

    async fn disconnected(&self) {
        self.state.synchronized.send_replace(false);
    }

    async fn run_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refusal> {
        let _event = self.event("RunPodSandbox");
        self.add_sandbox(&pod);
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
    /// and obeys the answer only since Kubernetes 1.37. The kubelet lowers the pod's limit only
    /// after the containers' limits.
    async fn update_pod_sandbox(
        &self,
        pod: PodSandbox,
        overhead: LinuxResources,
        resources: LinuxResources,
    ) -> Result<(), Refusal> {
        let _event = self.event("UpdatePodSandbox");
        self.update_pod(&pod, &overhead, &resources).await
    }

    async fn create_container(
        &self,
        pod: PodSandbox,
        container: api::Container,
    ) -> Result<Creation, Refusal> {
        let _event = self.event("CreateContainer");
        Ok(self.create(pod, container).await)
    }

    async fn start_container(
        &self,
        pod: PodSandbox,
        container: api::Container,
    ) -> Result<(), Refusal> {
        let _event = self.event("StartContainer");
        // The runtime was creating the container while this plugin registered. CRI-O sends the
        // create event only to plugins that registered before the creation. CRI-O's synchronization
        // contains only containers whose creation is complete.
        if self.state.containers.get(&container.id).is_none() && container.linux.is_some() {
            self.add_sandbox(&pod);
            self.forget_older(&pod.id, &container);
            let found = Container { started: false, ..self.found(&pod, &container) };
            self.resolve(&found, |containers| Some(containers.insert_found(found.clone()))).await;
        }
        self.state.containers.started(&container.id);
        if let Some(container) = self.state.containers.get(&container.id) {
            // The runtime has created the container's first process, which waits for this answer.
            if container.cgroup.as_ref().is_some_and(|path| self.has_processes(path)) {
                self.state.containers.set_has_had_processes(&container.id);
            }
            self.kills.runs(&container);
        }
        self.enqueue(WorkItem::RuntimeWrote(container.id));
        Ok(())
    }

    async fn update_container(
        &self,
        pod: PodSandbox,
        container: api::Container,
        resources: LinuxResources,
    ) -> Result<Vec<ContainerUpdate>, Refusal> {
        let _event = self.event("UpdateContainer");
        self.update(pod, container, resources).await
    }

    async fn post_update_container(
        &self,
        _: PodSandbox,
        container: api::Container,
    ) -> Result<(), Refusal> {
        let _event = self.event("PostUpdateContainer");
        self.state.containers.on_phase(&container.id, UpdatePhase::applied);
        self.enqueue(WorkItem::RuntimeWrote(container.id));
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

#[cfg(test)]
mod tests {
    use nri::{Identity, Stub, api};
    use tokio::time::timeout;

    use super::*;
    use crate::agent::node::Node;
    use crate::agent::supervise::Supervisor;

    const CHECKPOINT: &str = "var/lib/kubelet/actuated_pods_state";

    /// Returns a directory that looks like a node with cgroups and a checkpoint.
    fn host() -> tempfile::TempDir {
        let host = tempfile::tempdir().unwrap();
        for file in ["sys/fs/cgroup/cgroup.controllers", CHECKPOINT] {
            let file = host.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "memory").unwrap();
        }
        host
    }

    /// Returns the create event of a container without a limit.
    fn unlimited(id: &str) -> (PodSandbox, api::Container) {
        let mut pod = PodSandbox { id: "s".into(), uid: "b".into(), ..Default::default() };
        pod.linux.mut_or_insert_default().cgroup_parent = "/kubepods/burstable/podb".into();
        let mut container =
            api::Container { id: id.into(), pod_sandbox_id: "s".into(), ..Default::default() };
        container.linux.mut_or_insert_default().cgroups_path =
            format!("/kubepods/burstable/podb/{id}");
        (pod, container)
    }

    #[tokio::test]
    async fn a_create_succeeds_while_kubelet_files_hang() {
        let host = host();
        let node = Node::open(host.path(), Config::default()).unwrap();
        let containers = node.containers().clone();
        let (service, tasks) = node.into_service(Box::new(|_| {}));
        let stub = Stub::external(Identity::new("90", "plimsoll").unwrap(), service);
        let (_reconciler, reader, _memory) = tasks.reconciler(stub.runtime());
        let (supervisor, _ends) = Supervisor::new();
        supervisor.spawn_thread("records", || reader.run()).unwrap();

        let _held = containers.records.hold();
        let (pod, container) = unlimited("1");
        let created = stub.plugin().create_container(pod, container);
        let created = timeout(Duration::from_secs(60), created).await;
        assert!(created.expect("the files are held closed").is_ok());
        assert!(containers.get("1").is_some());
    }
}

//! What a plugin implements.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use crate::api::{
    Container, ContainerAdjustment, ContainerUpdate, LinuxResources, PodSandbox,
    ValidateContainerAdjustmentRequest,
};
use crate::event::EventMask;
use crate::version::NriVersion;

/// Why a plugin says no to a request.
///
/// It fails what the event is about: the creation, start or update of a container, or the start of a pod, and the text
/// reaches who asked for it (as `NRI container update failed: …` with containerd). Plugins after this one do not get the
/// event. For what is about to end or has happened already, runtimes only log it. A plugin that merely has trouble of its
/// own should not refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(String);

impl Refusal {
    /// A refusal for this reason. Keep the text constant for a constant cause: the kubelet makes an Event of each new one.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// The runtime at the other end, and what it wants the plugin to know about the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Configuration {
    /// Content of the plugin's drop-in file, as the runtime had it when it launched the plugin: the same on every connection.
    /// `None` for a plugin that the runtime did not launch: it gets none.
    pub drop_in: Option<String>,
    /// Name of the runtime: `containerd`, `cri-o`.
    pub runtime_name: String,
    /// Version of the runtime, as it prints it.
    pub runtime_version: String,
    /// Version of NRI in the runtime, told or inferred. `None` when neither was possible.
    pub nri_version: Option<NriVersion>,
    /// How long the runtime waits for a reply before it drops the plugin. NRI's default of 2 s where it does not tell.
    pub request_timeout: Duration,
}

/// What to do about a container that is being created.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Creation {
    /// Changes to the container itself.
    pub adjust: ContainerAdjustment,
    /// Changes to other containers.
    pub update: Vec<ContainerUpdate>,
}

/// A plugin: one method per event, of which it implements those that it subscribes to.
///
/// Events reach the same method whichever way the runtime sends them: NRI before 0.12 wraps most of them in a
/// StateChange, newer ones have an RPC for each.
///
/// # Time
///
/// The runtime waits for each reply while it holds a lock that every other pod and container event needs, 2 s by default, and
/// would then drop the plugin. So a method is cancelled at an await after nine tenths of that, or when the connection is
/// lost, and the event is answered as if the plugin had nothing to say. Answer from memory and leave work to a task;
/// [`Runtime::update_containers`] in particular cannot be called from within an event, since the runtime would wait for
/// itself.
///
/// # Order
///
/// Runtimes send events one after the other. Within an event that was cancelled the next may begin while the old one is
/// still between two awaits.
///
/// [`Runtime::update_containers`]: crate::Runtime::update_containers
pub trait Plugin: Send + Sync + 'static {
    /// The events that the plugin wants. Events that the runtime's version does not know are left out.
    fn events(&self) -> EventMask;

    /// The plugin was registered. The first call on every connection.
    ///
    /// # Errors
    ///
    /// A refusal ends [`Stub::run`](crate::Stub::run) with [`Error::Configure`](crate::Error::Configure). The runtime is not
    /// told, since NRI 0.6.1 does not start at all when a plugin that it launched fails here.
    fn configure(
        &self,
        configuration: Configuration,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = configuration;
        async { Ok(()) }
    }

    /// All pods and containers that exist, whole. Called after every (re)connection, before any event. The reply changes
    /// containers; failures of these are ignored, since they would make the runtime forget the plugin, or not start.
    ///
    /// # Errors
    ///
    /// A refusal makes the runtime drop the plugin, which then connects again.
    fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        containers: Vec<Container>,
    ) -> impl Future<Output = Result<Vec<ContainerUpdate>, Refusal>> + Send {
        let _ = (pods, containers);
        async { Ok(Vec::new()) }
    }

    /// The runtime goes down or drops the plugin.
    fn shutdown(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// The connection is gone. Called after every connection that was configured, before the next one is tried; not when
    /// [`Stub::run`](crate::Stub::run) ends.
    fn disconnected(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// A pod sandbox was started.
    fn run_pod_sandbox(&self, pod: PodSandbox) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = pod;
        async { Ok(()) }
    }

    /// The resources of a pod are about to become `resources` and `overhead`.
    ///
    /// # Errors
    ///
    /// A refusal fails the update.
    fn update_pod_sandbox(
        &self,
        pod: PodSandbox,
        overhead: LinuxResources,
        resources: LinuxResources,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = (pod, overhead, resources);
        async { Ok(()) }
    }

    /// The resources of a pod have changed.
    fn post_update_pod_sandbox(
        &self,
        pod: PodSandbox,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = pod;
        async { Ok(()) }
    }

    /// A pod sandbox was stopped.
    fn stop_pod_sandbox(
        &self,
        pod: PodSandbox,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = pod;
        async { Ok(()) }
    }

    /// A pod sandbox was removed.
    fn remove_pod_sandbox(
        &self,
        pod: PodSandbox,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = pod;
        async { Ok(()) }
    }

    /// A container is about to be created.
    ///
    /// # Errors
    ///
    /// A refusal fails the creation. Two plugins that set the same value fail it, too.
    fn create_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> impl Future<Output = Result<Creation, Refusal>> + Send {
        let _ = (pod, container);
        async { Ok(Creation::default()) }
    }

    /// A container was created. Its cgroup may not exist yet.
    fn post_create_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = (pod, container);
        async { Ok(()) }
    }

    /// A container is about to be started. Its cgroup exists.
    fn start_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = (pod, container);
        async { Ok(()) }
    }

    /// A container was started.
    fn post_start_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = (pod, container);
        async { Ok(()) }
    }

    /// The resources of a container are about to become `resources`, in which a value of 0 means "not asked for". The
    /// reply changes containers; what it says of this one is merged over `resources`.
    ///
    /// # Errors
    ///
    /// A refusal fails the update.
    fn update_container(
        &self,
        pod: PodSandbox,
        container: Container,
        resources: LinuxResources,
    ) -> impl Future<Output = Result<Vec<ContainerUpdate>, Refusal>> + Send {
        let _ = (pod, container, resources);
        async { Ok(Vec::new()) }
    }

    /// The resources of a container have changed.
    fn post_update_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = (pod, container);
        async { Ok(()) }
    }

    /// A container has stopped or is about to be stopped. The reply changes other containers.
    fn stop_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> impl Future<Output = Result<Vec<ContainerUpdate>, Refusal>> + Send {
        let _ = (pod, container);
        async { Ok(Vec::new()) }
    }

    /// A container was removed.
    fn remove_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = (pod, container);
        async { Ok(()) }
    }

    /// What all plugins together want of a container that is being created.
    ///
    /// # Errors
    ///
    /// A refusal fails the creation.
    fn validate_container_adjustment(
        &self,
        request: ValidateContainerAdjustmentRequest,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = request;
        async { Ok(()) }
    }
}

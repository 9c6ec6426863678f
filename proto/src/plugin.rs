//! The trait that a plugin implements, and its types.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use crate::api::{
    Container, ContainerAdjustment, ContainerUpdate, LinuxResources, PodSandbox,
    ValidateContainerAdjustmentRequest,
};
use crate::event::EventMask;
use crate::version::NriVersion;

/// The reason why a plugin refuses a request.
///
/// If a plugin refuses an event, the announced operation fails: the creation, start or update of a
/// container, or the start of a pod. The client of the runtime gets the text of the refusal. With
/// containerd, the text begins with `NRI container update failed: …`. The runtime does not send the
/// refused event to the plugins with higher indexes.
///
/// Some events report an operation that is already done, or the end of a container or pod. A
/// runtime only logs the refusal of these events. A plugin should not refuse an event because of a
/// problem in the plugin itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(String);

impl Refusal {
    /// Returns a refusal with this reason. Use the same text for the same cause, because the
    /// kubelet creates an Event for each new text.
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

/// The configuration that the runtime sends to the plugin on each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Configuration {
    /// Content of the plugin's drop-in file at the time when the runtime launched the plugin. The
    /// content is the same on every connection. `None` for a plugin that the runtime did not
    /// launch.
    pub drop_in: Option<String>,
    /// Name of the runtime: `containerd`, `cri-o`.
    pub runtime_name: String,
    /// Version of the runtime, as the runtime reports it.
    pub runtime_version: String,
    /// Version of NRI in the runtime. Either the runtime reports this version, or the crate infers
    /// it from the runtime's version. `None` if the version is unknown.
    pub nri_version: Option<NriVersion>,
    /// Time that the runtime waits for a reply before it drops the plugin. If the runtime sends no
    /// value, this time is NRI's default of 2 s.
    pub request_timeout: Duration,
}

/// The reply to [`Plugin::create_container`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Creation {
    /// Changes to the container itself.
    pub adjust: ContainerAdjustment,
    /// Changes to other containers.
    pub update: Vec<ContainerUpdate>,
}

/// A plugin, with one method per event. A plugin implements the methods of the events to which it
/// subscribes.
///
/// An event reaches the same method in all versions of NRI. NRI before 0.12 wraps most events in a
/// StateChange, and newer versions have an RPC for each event.
///
/// # Time
///
/// The runtime waits for each reply, by default for 2 s. If the reply does not arrive in time, the
/// runtime drops the plugin. During the wait the runtime holds a lock that every other pod and
/// container event needs.
///
/// Therefore the crate cancels a method after nine tenths of this time, or when the connection is
/// lost. A method can be cancelled only at an await. The runtime then gets an empty reply. A method
/// should reply from memory and start a task for longer work. A method cannot call
/// [`Runtime::update_containers`], because the runtime would deadlock.
///
/// # Order
///
/// A runtime sends its events one at a time. After a cancelled event, the next event may begin
/// while the cancelled method still runs up to its next await.
///
/// [`Runtime::update_containers`]: crate::Runtime::update_containers
pub trait Plugin: Send + Sync + 'static {
    /// Returns the events to which the plugin subscribes. The crate omits events that the runtime's
    /// version does not support.
    fn events(&self) -> EventMask;

    /// Configures the plugin after its registration. The crate calls this method first on every
    /// connection.
    ///
    /// # Errors
    ///
    /// A refusal ends [`Stub::run`](crate::Stub::run) with
    /// [`Error::Configure`](crate::Error::Configure). The crate does not report the refusal to the
    /// runtime. A runtime with NRI 0.6.1 would not start if a launched plugin failed in this call.
    fn configure(
        &self,
        configuration: Configuration,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = configuration;
        async { Ok(()) }
    }

    /// Gets all existing pods and containers. Called after every connection or reconnection, before
    /// any event.
    ///
    /// The reply updates containers. The crate tells the runtime to ignore failed updates.
    /// Otherwise a failed update would make the runtime drop the plugin, or would prevent the start
    /// of the runtime.
    ///
    /// # Errors
    ///
    /// A refusal makes the runtime drop the plugin. The plugin then reconnects.
    fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        containers: Vec<Container>,
    ) -> impl Future<Output = Result<Vec<ContainerUpdate>, Refusal>> + Send {
        let _ = (pods, containers);
        async { Ok(Vec::new()) }
    }

    /// Called when the runtime shuts down or drops the plugin.
    fn shutdown(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Called after the end of every connection over which the runtime has configured the plugin,
    /// before the next attempt to connect. Not called if the future of
    /// [`Stub::run`](crate::Stub::run) is dropped, or if the runtime that launched the plugin ends.
    fn disconnected(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Called after the runtime has started a pod sandbox.
    fn run_pod_sandbox(&self, pod: PodSandbox) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = pod;
        async { Ok(()) }
    }

    /// Called before the runtime changes the resources of a pod to `resources` and `overhead`.
    ///
    /// # Errors
    ///
    /// If the plugin refuses, the update fails.
    fn update_pod_sandbox(
        &self,
        pod: PodSandbox,
        overhead: LinuxResources,
        resources: LinuxResources,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = (pod, overhead, resources);
        async { Ok(()) }
    }

    /// Called after the runtime has changed the resources of a pod.
    fn post_update_pod_sandbox(
        &self,
        pod: PodSandbox,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = pod;
        async { Ok(()) }
    }

    /// Called after the runtime has stopped a pod sandbox.
    fn stop_pod_sandbox(
        &self,
        pod: PodSandbox,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = pod;
        async { Ok(()) }
    }

    /// Called after the runtime has removed a pod sandbox.
    fn remove_pod_sandbox(
        &self,
        pod: PodSandbox,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = pod;
        async { Ok(()) }
    }

    /// Called before the runtime creates a container.
    ///
    /// # Errors
    ///
    /// If the plugin refuses, the creation fails. The creation also fails if two plugins set the
    /// same value.
    fn create_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> impl Future<Output = Result<Creation, Refusal>> + Send {
        let _ = (pod, container);
        async { Ok(Creation::default()) }
    }

    /// Called after the runtime has created a container. The container's cgroup may not exist yet.
    fn post_create_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = (pod, container);
        async { Ok(()) }
    }

    /// Called before the runtime starts a container. The container's cgroup exists.
    fn start_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = (pod, container);
        async { Ok(()) }
    }

    /// Called after the runtime has started a container.
    fn post_start_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = (pod, container);
        async { Ok(()) }
    }

    /// Called before the runtime changes the resources of a container to `resources`. A value of 0
    /// means that the client requests no value. The reply updates containers. For this container,
    /// the values in the reply replace those in `resources`.
    ///
    /// # Errors
    ///
    /// If the plugin refuses, the update fails.
    fn update_container(
        &self,
        pod: PodSandbox,
        container: Container,
        resources: LinuxResources,
    ) -> impl Future<Output = Result<Vec<ContainerUpdate>, Refusal>> + Send {
        let _ = (pod, container, resources);
        async { Ok(Vec::new()) }
    }

    /// Called after the runtime has changed the resources of a container.
    fn post_update_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = (pod, container);
        async { Ok(()) }
    }

    /// Called after the runtime has stopped a container, or before it stops the container. The
    /// reply updates other containers.
    fn stop_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> impl Future<Output = Result<Vec<ContainerUpdate>, Refusal>> + Send {
        let _ = (pod, container);
        async { Ok(Vec::new()) }
    }

    /// Called after the runtime has removed a container.
    fn remove_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = (pod, container);
        async { Ok(()) }
    }

    /// Validates the combined adjustments of all plugins to a container that the runtime is about
    /// to create.
    ///
    /// # Errors
    ///
    /// If the plugin refuses, the creation fails.
    fn validate_container_adjustment(
        &self,
        request: ValidateContainerAdjustmentRequest,
    ) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = request;
        async { Ok(()) }
    }
}

//! The runtime's side of the protocol, which drives a plugin in tests and benchmarks.
//!
//! This module behaves like containerd and CRI-O in these respects:
//!
//! - The module sends only events that the plugin has subscribed to.
//! - The module drops the plugin when a deadline passes.
//! - The module splits a synchronisation that is too large for one message.
//! - Before 0.12 the module wraps events in a StateChange.
//!
//! Unlike containerd and CRI-O, the module sends events concurrently if the caller makes concurrent
//! calls.
//!
//! ```
//! # async fn example(trunk: tokio::net::UnixStream) -> Result<(), Box<dyn std::error::Error>> {
//! use nri::runtime::{Connection, Options};
//!
//! let (plugin, _updates) = Connection::accept(trunk, Options::default()).await?;
//! plugin.synchronize(Vec::new(), Vec::new()).await?;
//! let reply = plugin.create_container(Default::default(), Default::default()).await?;
//! println!("{} wants {:?}", plugin.identity(), reply.adjust);
//! # Ok(())
//! # }
//! ```

mod options;
mod service;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use protobuf::{Message as _, MessageField};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;
use ttrpc::r#async::transport::{Listener, Socket};
use ttrpc::r#async::{Client, Server};
use ttrpc::context::Context;

pub use self::options::{Options, RequestError};
use self::service::RuntimeService;
pub use self::service::UpdateRequest;
use crate::api::*;
use crate::event::EventMask;
use crate::generated::nri_ttrpc::{PluginClient, create_runtime};
use crate::identity::Identity;
use crate::mux::{Closed, Mux};
use crate::version::NriVersion;

/// Maximum number of bytes of pods and containers in one part of a synchronisation. A ttrpc message
/// has at most 4 MiB.
const SYNCHRONIZE_PART: u64 = 3 << 20;

/// A registered and configured plugin.
pub struct Connection {
    identity: Identity,
    events: EventMask,
    options: Options,
    client: PluginClient,
    mux: Mux,
    /// The server, which runs until it is dropped. No code locks the mutex, which only makes
    /// `Connection` `Sync`.
    _server: std::sync::Mutex<Server>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("identity", &self.identity)
            .field("events", &self.events)
            .finish()
    }
}

macro_rules! request {
    ($self:ident, $event:ident, $method:ident, $request:expr) => {{
        if $self.events.contains(EventMask::$event) {
            $self
                .call(|client, context| async move { client.$method(context, &$request).await })
                .await
        } else {
            Ok(Default::default())
        }
    }};
}

impl Connection {
    /// Waits for a plugin to register over `trunk`, and configures the plugin. The receiver yields
    /// the plugin's requests to update containers.
    ///
    /// # Errors
    ///
    /// Fails if the plugin does not register in time, or registers with an invalid identity. Also
    /// fails if Configure fails, or if the plugin subscribes to unknown events.
    pub async fn accept<T>(
        trunk: T,
        options: Options,
    ) -> Result<(Self, mpsc::UnboundedReceiver<UpdateRequest>), RequestError>
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (mux, plugin_conn, runtime_conn) = Mux::new(trunk);
        let (registered, mut registration) = mpsc::channel(1);
        let (updates, requested) = mpsc::unbounded_channel();
        let connections = stream::iter([io::Result::Ok(runtime_conn)]).chain(stream::pending());
        let mut server = Server::new()
            .register_service(create_runtime(Arc::new(RuntimeService { registered, updates })))
            .add_listener(Listener::new(connections));
        server.start().await.map_err(|error| RequestError::Closed(error.to_string()))?;
        let client = PluginClient::new(Client::new(Socket::new(plugin_conn)));

        let registration = tokio::select! {
            received = timeout(options.registration_timeout, registration.recv()) => received,
            reason = mux.closed() => return Err(RequestError::Closed(reason.to_string())),
        };
        let registration = match registration {
            Ok(Some(registration)) => registration,
            Ok(None) => return Err(RequestError::Closed("the server ended".into())),
            Err(_) => return Err(RequestError::Deadline(options.registration_timeout)),
        };
        let identity = Identity::new(registration.plugin_idx, registration.plugin_name)
            .map_err(|error| RequestError::Misbehaved(error.to_string()))?;
        let mut connection = Self {
            identity,
            events: EventMask::empty(),
            options,
            client,
            mux,
            _server: server.into(),
        };

        connection.configure().await?;
        Ok((connection, requested))
    }

    /// Sends the configuration, and stores the events to which the plugin subscribes.
    async fn configure(&mut self) -> Result<(), RequestError> {
        let configure = ConfigureRequest {
            config: self.options.config.clone(),
            runtime_name: self.options.name.clone(),
            runtime_version: self.options.version.clone(),
            registration_timeout: millis(self.options.registration_timeout),
            request_timeout: millis(self.options.request_timeout),
            NRI_version: if self.speaks(NriVersion::RPC_PER_EVENT) {
                self.options.nri_version.to_string()
            } else {
                String::new()
            },
            ..Default::default()
        };
        let response = self
            .call(|client, context| async move { client.configure(context, &configure).await })
            .await?;
        let known = self.options.nri_version.events();
        self.events = match EventMask::from_bits_retain(response.events) {
            events if events.is_empty() => known,
            events if known.contains(events) => events,
            events => {
                self.close();
                return Err(RequestError::Misbehaved(format!(
                    "subscribed to unknown events {}",
                    events.difference(known)
                )));
            }
        };
        Ok(())
    }

    /// Returns the plugin's index and name.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns the events that the plugin has subscribed to.
    pub fn events(&self) -> EventMask {
        self.events
    }

    /// Drops the plugin.
    pub fn close(&self) {
        self.mux.close();
    }

    /// Waits until the connection is closed.
    pub async fn closed(&self) -> Closed {
        self.mux.closed().await
    }

    /// Sends all pods and containers to the plugin. Splits the message if it is too large and the
    /// NRI version supports parts.
    ///
    /// # Errors
    ///
    /// Fails if one part fails, or if the plugin does not support parts.
    pub async fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        containers: Vec<Container>,
    ) -> Result<Vec<ContainerUpdate>, RequestError> {
        let part =
            if self.speaks(NriVersion::SPLITS_SYNCHRONIZE) { SYNCHRONIZE_PART } else { u64::MAX };
        let mut parts = vec![SynchronizeRequest::default()];
        let mut size = 0;
        let mut next = |bytes: u64, parts: &mut Vec<SynchronizeRequest>| {
            if size > 0 && size + bytes > part {
                parts.push(SynchronizeRequest::default());
                size = 0;
            }
            size += bytes;
        };
        for pod in pods {
            next(pod.compute_size(), &mut parts);
            parts.last_mut().expect("there is a part").pods.push(pod);
        }
        for container in containers {
            next(container.compute_size(), &mut parts);
            parts.last_mut().expect("there is a part").containers.push(container);
        }
        let count = parts.len();
        let whole = async {
            for (i, mut request) in parts.into_iter().enumerate() {
                request.more = i + 1 < count;
                let more = request.more;
                let response =
                    self.call(|client, context| async move {
                        client.synchronize(context, &request).await
                    })
                    .await?;
                if !more {
                    return Ok(response.update);
                }
                if !response.more || !response.update.is_empty() {
                    self.close();
                    return Err(RequestError::Misbehaved(
                        "the plugin does not handle split synchronizations".into(),
                    ));
                }
            }
            Ok(Vec::new())
        };
        // One deadline applies to all parts together.
        timeout(self.options.request_timeout, whole).await.unwrap_or_else(|_| {
            self.close();
            Err(RequestError::Deadline(self.options.request_timeout))
        })
    }

    /// Sends CreateContainer: the runtime is about to create a container.
    ///
    /// # Errors
    ///
    /// Fails if the plugin refuses, does not reply in time or has closed the connection.
    pub async fn create_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<CreateContainerResponse, RequestError> {
        let request = CreateContainerRequest {
            pod: MessageField::some(pod),
            container: MessageField::some(container),
            ..Default::default()
        };
        request!(self, CREATE_CONTAINER, create_container, request)
    }

    /// Sends UpdateContainer: the runtime is about to change the resources of a container.
    ///
    /// # Errors
    ///
    /// Fails if the plugin refuses, does not reply in time or has closed the connection.
    pub async fn update_container(
        &self,
        pod: PodSandbox,
        container: Container,
        resources: LinuxResources,
    ) -> Result<UpdateContainerResponse, RequestError> {
        let request = UpdateContainerRequest {
            pod: MessageField::some(pod),
            container: MessageField::some(container),
            linux_resources: MessageField::some(resources),
            ..Default::default()
        };
        request!(self, UPDATE_CONTAINER, update_container, request)
    }

    /// Sends StopContainer: the runtime has stopped a container.
    ///
    /// # Errors
    ///
    /// Fails if the plugin refuses, does not reply in time or has closed the connection.
    pub async fn stop_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<StopContainerResponse, RequestError> {
        let request = StopContainerRequest {
            pod: MessageField::some(pod),
            container: MessageField::some(container),
            ..Default::default()
        };
        request!(self, STOP_CONTAINER, stop_container, request)
    }

    /// Sends UpdatePodSandbox: the runtime is about to change the resources of a pod.
    ///
    /// # Errors
    ///
    /// Fails if the plugin refuses, does not reply in time or has closed the connection.
    pub async fn update_pod_sandbox(
        &self,
        pod: PodSandbox,
        overhead: LinuxResources,
        resources: LinuxResources,
    ) -> Result<(), RequestError> {
        let request = UpdatePodSandboxRequest {
            pod: MessageField::some(pod),
            overhead_linux_resources: MessageField::some(overhead),
            linux_resources: MessageField::some(resources),
            ..Default::default()
        };
        let reply: Result<UpdatePodSandboxResponse, _> =
            request!(self, UPDATE_POD_SANDBOX, update_pod_sandbox, request);
        reply.map(drop)
    }

    /// Sends ValidateContainerAdjustment: the plugin validates the combined adjustments of all
    /// plugins.
    ///
    /// # Errors
    ///
    /// Fails if the plugin does not reply in time or has closed the connection.
    pub async fn validate_container_adjustment(
        &self,
        request: ValidateContainerAdjustmentRequest,
    ) -> Result<ValidateContainerAdjustmentResponse, RequestError> {
        request!(self, VALIDATE_CONTAINER_ADJUSTMENT, validate_container_adjustment, request)
    }

    /// Sends an event that has no reply. Before 0.12 the event is a StateChange. Since 0.12 each
    /// event has its own RPC.
    ///
    /// # Errors
    ///
    /// Fails if the plugin refuses, does not reply in time or has closed the connection.
    ///
    /// # Panics
    ///
    /// With NRI 0.12 or newer, panics for an event that has its own method on [`Connection`].
    pub async fn event(
        &self,
        event: Event,
        pod: PodSandbox,
        container: Container,
    ) -> Result<(), RequestError> {
        if !self.events.contains(event.into()) {
            return Ok(());
        }
        let pod = MessageField::some(pod);
        let container =
            if is_of_pod(event) { MessageField::none() } else { MessageField::some(container) };
        if !self.speaks(NriVersion::RPC_PER_EVENT) {
            return self.state_change(event, pod, container).await;
        }
        macro_rules! of_pod {
            ($method:ident, $request:ident) => {{
                let request = $request { pod, ..Default::default() };
                self.call(|client, context| async move {
                    client.$method(context, &request).await.map(drop)
                })
                .await
            }};
        }
        macro_rules! of_container {
            ($method:ident, $request:ident) => {{
                let request = $request { pod, container, ..Default::default() };
                self.call(|client, context| async move {
                    client.$method(context, &request).await.map(drop)
                })
                .await
            }};
        }
        match event {
            Event::RUN_POD_SANDBOX => of_pod!(run_pod_sandbox, RunPodSandboxRequest),
            Event::STOP_POD_SANDBOX => of_pod!(stop_pod_sandbox, StopPodSandboxRequest),
            Event::REMOVE_POD_SANDBOX => of_pod!(remove_pod_sandbox, RemovePodSandboxRequest),
            Event::POST_UPDATE_POD_SANDBOX => {
                of_pod!(post_update_pod_sandbox, PostUpdatePodSandboxRequest)
            }
            Event::POST_CREATE_CONTAINER => {
                of_container!(post_create_container, PostCreateContainerRequest)
            }
            Event::START_CONTAINER => of_container!(start_container, StartContainerRequest),
            Event::POST_START_CONTAINER => {
                of_container!(post_start_container, PostStartContainerRequest)
            }
            Event::POST_UPDATE_CONTAINER => {
                of_container!(post_update_container, PostUpdateContainerRequest)
            }
            Event::REMOVE_CONTAINER => of_container!(remove_container, RemoveContainerRequest),
            other => panic!("{other:?} is not an event without a reply"),
        }
    }

    /// Sends an event as NRI before 0.12 does.
    async fn state_change(
        &self,
        event: Event,
        pod: MessageField<PodSandbox>,
        container: MessageField<Container>,
    ) -> Result<(), RequestError> {
        let request =
            StateChangeEvent { event: event.into(), pod, container, ..Default::default() };
        self.call(|client, context| async move {
            client.state_change(context, &request).await.map(drop)
        })
        .await
    }

    /// Sends Shutdown: the runtime shuts down.
    ///
    /// # Errors
    ///
    /// Fails if the plugin does not reply in time or has closed the connection.
    pub async fn shutdown(&self) -> Result<(), RequestError> {
        self.call(|client, context| async move {
            client.shutdown(context, &Empty::default()).await.map(drop)
        })
        .await
    }

    fn speaks(&self, version: NriVersion) -> bool {
        self.options.nri_version >= version
    }

    async fn call<T, F>(
        &self,
        request: impl FnOnce(PluginClient, Context) -> F,
    ) -> Result<T, RequestError>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        let deadline = self.options.request_timeout;
        let context = ttrpc::context::with_duration(deadline);
        let reply = tokio::select! {
            // If a reply has arrived, return it even if the connection was closed afterwards.
            biased;
            reply = timeout(deadline, request(self.client.clone(), context)) => reply,
            reason = self.mux.closed() => return Err(RequestError::Closed(reason.to_string())),
        };
        match reply {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(ttrpc::Error::RpcStatus(status))) if status.code() == ttrpc::Code::UNKNOWN => {
                Err(RequestError::Refused(status.message))
            }
            Ok(Err(ttrpc::Error::RpcStatus(status)))
                if status.code() == ttrpc::Code::DEADLINE_EXCEEDED =>
            {
                self.close();
                Err(RequestError::Deadline(deadline))
            }
            Ok(Err(error)) => {
                // The ttrpc client has the same deadline, and may report the timeout before this
                // code does.
                self.close();
                match error {
                    ttrpc::Error::Others(text) if text.contains("deadline") => {
                        Err(RequestError::Deadline(deadline))
                    }
                    error => Err(RequestError::Closed(error.to_string())),
                }
            }
            Err(_) => {
                self.close();
                Err(RequestError::Deadline(deadline))
            }
        }
    }
}

/// Returns whether an event without a reply is about a pod.
fn is_of_pod(event: Event) -> bool {
    matches!(
        event,
        Event::RUN_POD_SANDBOX
            | Event::STOP_POD_SANDBOX
            | Event::REMOVE_POD_SANDBOX
            | Event::POST_UPDATE_POD_SANDBOX
    )
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

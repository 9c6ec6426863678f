//! From [`Plugin`] to the ttrpc service that the runtime calls.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use protobuf::MessageField;
use tokio::sync::watch;
use tracing::{debug, error, info};
use ttrpc::r#async::TtrpcContext;

use crate::api::*;
use crate::event::EventMask;
use crate::generated::nri_ttrpc as wire;
use crate::plugin::{Configuration, Creation, Plugin, Refusal};
use crate::version::NriVersion;

/// NRI's default for the time that a runtime waits for a reply.
/// Source: containerd/nri `pkg/api/timeouts.go`.
const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

tokio::task_local! {
    /// Set while a plugin handles an event.
    static IN_EVENT: ();
}

/// True within a plugin's event handler, where the runtime holds its lock.
pub(crate) fn in_event() -> bool {
    IN_EVENT.try_with(|()| ()).is_ok()
}

/// How far a connection has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    Connected,
    Configured(Option<NriVersion>),
    /// The plugin refused its configuration.
    Refused(Refusal),
    Synchronized,
    /// The runtime's synchronisation failed, and it forgets the plugin without closing the connection (NRI before 0.12).
    Forgotten(String),
}

/// The plugin's end of one connection.
pub(crate) struct Service<P> {
    plugin: Arc<P>,
    launched: bool,
    progress: watch::Sender<Progress>,
    /// Parts of a split synchronisation.
    parts: Mutex<(Vec<PodSandbox>, Vec<Container>)>,
}

impl<P: Plugin> Service<P> {
    pub(crate) fn new(plugin: Arc<P>, launched: bool, progress: watch::Sender<Progress>) -> Self {
        Self { plugin, launched, progress, parts: Mutex::default() }
    }

    fn collect(&self, pods: Vec<PodSandbox>, containers: Vec<Container>) {
        // Nothing that can panic runs while this lock is held.
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.0.extend(pods);
        parts.1.extend(containers);
    }
}

/// Runs a plugin's handler. A panic is answered like an event that the plugin had nothing to say to: without an answer
/// the runtime would stall until its deadline and drop the plugin.
async fn answer<T: Default>(
    event: &'static str,
    handler: impl Future<Output = Result<T, Refusal>>,
) -> ttrpc::Result<T> {
    match AssertUnwindSafe(IN_EVENT.scope((), handler)).catch_unwind().await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(refusal)) => Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::UNKNOWN, refusal))),
        Err(_) => {
            error!(event, "the plugin panicked; the event is answered as if it had nothing to say");
            Ok(T::default())
        }
    }
}

fn owned<T: Default>(field: MessageField<T>) -> T {
    field.into_option().unwrap_or_default()
}

#[async_trait]
impl<P: Plugin> wire::Plugin for Service<P> {
    async fn configure(&self, _: &TtrpcContext, request: ConfigureRequest) -> ttrpc::Result<ConfigureResponse> {
        let told = request.NRI_version.parse().ok();
        let nri_version = told.or_else(|| NriVersion::infer(&request.runtime_name, &request.runtime_version));
        let request_timeout = match u64::try_from(request.request_timeout) {
            Ok(millis) if millis > 0 => Duration::from_millis(millis),
            _ => DEFAULT_REQUEST_TIMEOUT,
        };
        info!(
            runtime = request.runtime_name,
            version = request.runtime_version,
            nri = nri_version.map(tracing::field::display),
            ?request_timeout,
            "configured by the runtime"
        );
        let known = nri_version.unwrap_or(NriVersion(0, 0, 0)).events();
        let mut events = self.plugin.events() & known;
        let configuration = Configuration {
            config: self.launched.then_some(request.config),
            runtime_name: request.runtime_name,
            runtime_version: request.runtime_version,
            nri_version,
            request_timeout,
        };
        let configured =
            AssertUnwindSafe(IN_EVENT.scope((), self.plugin.configure(configuration))).catch_unwind().await;
        let progress = match configured {
            Ok(Ok(())) => Progress::Configured(nri_version),
            Ok(Err(refusal)) => Progress::Refused(refusal),
            Err(_) => Progress::Refused(Refusal::new("the plugin panicked while it was configured")),
        };
        if matches!(progress, Progress::Refused(_)) || events.is_empty() {
            // An error would keep the whole of NRI 0.6.1 from starting, and 0 would subscribe to everything: so ask for the
            // event that costs least.
            events = EventMask::REMOVE_POD_SANDBOX;
        }
        debug!(%events, "subscribing");
        self.progress.send_replace(progress);
        Ok(ConfigureResponse { events: events.bits(), ..Default::default() })
    }

    async fn synchronize(&self, _: &TtrpcContext, request: SynchronizeRequest) -> ttrpc::Result<SynchronizeResponse> {
        self.collect(request.pods, request.containers);
        if request.more {
            return Ok(SynchronizeResponse { more: true, ..Default::default() });
        }
        if matches!(*self.progress.borrow(), Progress::Refused(_)) {
            return Ok(SynchronizeResponse::default());
        }
        let (pods, containers) = std::mem::take(&mut *self.parts.lock().unwrap_or_else(PoisonError::into_inner));
        debug!(pods = pods.len(), containers = containers.len(), "synchronizing");

        // The runtime may pass its deadline meanwhile, which drops this future.
        let mut unfinished = Unfinished { progress: &self.progress, outcome: None };
        let reply = answer("Synchronize", self.plugin.synchronize(pods, containers)).await;
        unfinished.outcome = Some(match &reply {
            Ok(_) => Progress::Synchronized,
            Err(error) => Progress::Forgotten(error.to_string()),
        });
        drop(unfinished);
        Ok(SynchronizeResponse { update: reply?, ..Default::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        answer("Shutdown", self.plugin.shutdown().map(Ok)).await?;
        Ok(Empty::default())
    }

    async fn run_pod_sandbox(&self, _: &TtrpcContext, r: RunPodSandboxRequest) -> ttrpc::Result<RunPodSandboxResponse> {
        answer("RunPodSandbox", self.plugin.run_pod_sandbox(owned(r.pod))).await?;
        Ok(RunPodSandboxResponse::default())
    }

    async fn update_pod_sandbox(
        &self,
        _: &TtrpcContext,
        r: UpdatePodSandboxRequest,
    ) -> ttrpc::Result<UpdatePodSandboxResponse> {
        let (overhead, resources) = (owned(r.overhead_linux_resources), owned(r.linux_resources));
        answer("UpdatePodSandbox", self.plugin.update_pod_sandbox(owned(r.pod), overhead, resources)).await?;
        Ok(UpdatePodSandboxResponse::default())
    }

    async fn post_update_pod_sandbox(
        &self,
        _: &TtrpcContext,
        r: PostUpdatePodSandboxRequest,
    ) -> ttrpc::Result<PostUpdatePodSandboxResponse> {
        answer("PostUpdatePodSandbox", self.plugin.post_update_pod_sandbox(owned(r.pod))).await?;
        Ok(PostUpdatePodSandboxResponse::default())
    }

    async fn stop_pod_sandbox(
        &self,
        _: &TtrpcContext,
        r: StopPodSandboxRequest,
    ) -> ttrpc::Result<StopPodSandboxResponse> {
        answer("StopPodSandbox", self.plugin.stop_pod_sandbox(owned(r.pod))).await?;
        Ok(StopPodSandboxResponse::default())
    }

    async fn remove_pod_sandbox(
        &self,
        _: &TtrpcContext,
        r: RemovePodSandboxRequest,
    ) -> ttrpc::Result<RemovePodSandboxResponse> {
        answer("RemovePodSandbox", self.plugin.remove_pod_sandbox(owned(r.pod))).await?;
        Ok(RemovePodSandboxResponse::default())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        r: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        let handler = self.plugin.create_container(owned(r.pod), owned(r.container));
        let Creation { adjust, update } = answer("CreateContainer", handler).await?;
        Ok(CreateContainerResponse { adjust: Some(adjust).into(), update, ..Default::default() })
    }

    async fn post_create_container(
        &self,
        _: &TtrpcContext,
        r: PostCreateContainerRequest,
    ) -> ttrpc::Result<PostCreateContainerResponse> {
        answer("PostCreateContainer", self.plugin.post_create_container(owned(r.pod), owned(r.container))).await?;
        Ok(PostCreateContainerResponse::default())
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        r: StartContainerRequest,
    ) -> ttrpc::Result<StartContainerResponse> {
        answer("StartContainer", self.plugin.start_container(owned(r.pod), owned(r.container))).await?;
        Ok(StartContainerResponse::default())
    }

    async fn post_start_container(
        &self,
        _: &TtrpcContext,
        r: PostStartContainerRequest,
    ) -> ttrpc::Result<PostStartContainerResponse> {
        answer("PostStartContainer", self.plugin.post_start_container(owned(r.pod), owned(r.container))).await?;
        Ok(PostStartContainerResponse::default())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        r: UpdateContainerRequest,
    ) -> ttrpc::Result<UpdateContainerResponse> {
        let handler = self.plugin.update_container(owned(r.pod), owned(r.container), owned(r.linux_resources));
        let update = answer("UpdateContainer", handler).await?;
        Ok(UpdateContainerResponse { update, ..Default::default() })
    }

    async fn post_update_container(
        &self,
        _: &TtrpcContext,
        r: PostUpdateContainerRequest,
    ) -> ttrpc::Result<PostUpdateContainerResponse> {
        answer("PostUpdateContainer", self.plugin.post_update_container(owned(r.pod), owned(r.container))).await?;
        Ok(PostUpdateContainerResponse::default())
    }

    async fn stop_container(&self, _: &TtrpcContext, r: StopContainerRequest) -> ttrpc::Result<StopContainerResponse> {
        let update = answer("StopContainer", self.plugin.stop_container(owned(r.pod), owned(r.container))).await?;
        Ok(StopContainerResponse { update, ..Default::default() })
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        r: RemoveContainerRequest,
    ) -> ttrpc::Result<RemoveContainerResponse> {
        answer("RemoveContainer", self.plugin.remove_container(owned(r.pod), owned(r.container))).await?;
        Ok(RemoveContainerResponse::default())
    }

    async fn state_change(&self, _: &TtrpcContext, r: StateChangeEvent) -> ttrpc::Result<Empty> {
        let (plugin, pod, container) = (&self.plugin, owned(r.pod), owned(r.container));
        match r.event.enum_value() {
            Ok(Event::RUN_POD_SANDBOX) => answer("RunPodSandbox", plugin.run_pod_sandbox(pod)).await?,
            Ok(Event::POST_UPDATE_POD_SANDBOX) => {
                answer("PostUpdatePodSandbox", plugin.post_update_pod_sandbox(pod)).await?;
            }
            Ok(Event::STOP_POD_SANDBOX) => answer("StopPodSandbox", plugin.stop_pod_sandbox(pod)).await?,
            Ok(Event::REMOVE_POD_SANDBOX) => answer("RemovePodSandbox", plugin.remove_pod_sandbox(pod)).await?,
            Ok(Event::POST_CREATE_CONTAINER) => {
                answer("PostCreateContainer", plugin.post_create_container(pod, container)).await?;
            }
            Ok(Event::START_CONTAINER) => answer("StartContainer", plugin.start_container(pod, container)).await?,
            Ok(Event::POST_START_CONTAINER) => {
                answer("PostStartContainer", plugin.post_start_container(pod, container)).await?;
            }
            Ok(Event::POST_UPDATE_CONTAINER) => {
                answer("PostUpdateContainer", plugin.post_update_container(pod, container)).await?;
            }
            Ok(Event::REMOVE_CONTAINER) => answer("RemoveContainer", plugin.remove_container(pod, container)).await?,
            // The rest are requests of their own in every version, or newer than this crate.
            other => debug!(event = ?other, "ignoring a state change"),
        }
        Ok(Empty::default())
    }

    async fn validate_container_adjustment(
        &self,
        _: &TtrpcContext,
        request: ValidateContainerAdjustmentRequest,
    ) -> ttrpc::Result<ValidateContainerAdjustmentResponse> {
        let handler = self.plugin.validate_container_adjustment(request);
        let verdict = answer("ValidateContainerAdjustment", handler.map(|verdict| Ok(verdict.err()))).await?;
        Ok(match verdict {
            None => ValidateContainerAdjustmentResponse::default(),
            Some(refusal) => {
                ValidateContainerAdjustmentResponse { reject: true, reason: refusal.to_string(), ..Default::default() }
            }
        })
    }
}

/// Reports how a synchronisation ended, also when it is dropped before its end.
struct Unfinished<'a> {
    progress: &'a watch::Sender<Progress>,
    outcome: Option<Progress>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let outcome = self.outcome.take();
        let cancelled = || Progress::Forgotten("the runtime's deadline passed".to_owned());
        self.progress.send_replace(outcome.unwrap_or_else(cancelled));
    }
}

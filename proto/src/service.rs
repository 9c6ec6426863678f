//! The ttrpc service that receives the calls of the runtime and passes them to a [`Plugin`].

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use tokio::sync::watch;
use tracing::{debug, info};
use ttrpc::r#async::TtrpcContext;

use crate::answer::{Failure, answer, owned, run, status};
use crate::api::*;
use crate::event::EventMask;
use crate::generated::nri_ttrpc as wire;
use crate::plugin::{Configuration, Creation, Plugin, Refusal};
use crate::version::NriVersion;

/// NRI's default for the time that a runtime waits for a reply. Source: containerd/nri
/// `pkg/api/timeouts.go`.
const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// The progress of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    Connected,
    Configured(Option<NriVersion>),
    /// The plugin refused its configuration.
    Refused(Refusal),
    Synchronized,
    /// The synchronisation failed. NRI before 0.12 then drops the plugin without closing the
    /// connection.
    Forgotten(String),
}

/// The plugin's side of one connection.
pub(crate) struct Service<P> {
    plugin: Arc<P>,
    launched: bool,
    /// Content of the drop-in file, which the runtime sends to a plugin that it launched.
    drop_in: Arc<OnceLock<String>>,
    progress: watch::Sender<Progress>,
    /// The parts of a split synchronisation that have arrived.
    parts: Mutex<(Vec<PodSandbox>, Vec<Container>)>,
}

impl<P: Plugin> Service<P> {
    pub(crate) fn new(
        plugin: Arc<P>,
        launched: bool,
        drop_in: Arc<OnceLock<String>>,
        progress: watch::Sender<Progress>,
    ) -> Self {
        Self { plugin, launched, drop_in, progress, parts: Mutex::default() }
    }

    fn collect(&self, pods: Vec<PodSandbox>, containers: Vec<Container>) {
        // The data is valid even if the lock is poisoned, because code that owns the lock cannot
        // panic.
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.0.extend(pods);
        parts.1.extend(containers);
    }
}

#[async_trait]
impl<P: Plugin> wire::Plugin for Service<P> {
    async fn configure(
        &self,
        context: &TtrpcContext,
        request: ConfigureRequest,
    ) -> ttrpc::Result<ConfigureResponse> {
        let told = request.NRI_version.parse().ok();
        let nri_version =
            told.or_else(|| NriVersion::infer(&request.runtime_name, &request.runtime_version));
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
        if self.launched {
            // The runtime sends the drop-in file only over the first connection, so keep the first
            // value.
            let _ = self.drop_in.set(request.config);
        }
        let configuration = Configuration {
            drop_in: self.drop_in.get().cloned(),
            runtime_name: request.runtime_name,
            runtime_version: request.runtime_version,
            nri_version,
            request_timeout,
        };
        let configured = run(context, async {
            self.plugin.configure(configuration).await?;
            Ok(self.plugin.events() & known)
        });
        let (mut events, progress) = match configured.await {
            Ok(events) => (events, Progress::Configured(nri_version)),
            Err(failure) => {
                let refusal = match failure {
                    Failure::Refused(refusal) => refusal,
                    Failure::Panicked => {
                        Refusal::new("the plugin panicked while it was configured")
                    }
                    Failure::TooSlow(after) => {
                        Refusal::new(format!("the plugin was not configured within {after:?}"))
                    }
                };
                (EventMask::empty(), Progress::Refused(refusal))
            }
        };
        if events.is_empty() {
            // After an error, a runtime with NRI 0.6.1 would not start. A value of 0 would
            // subscribe to all events. Therefore subscribe to the event that costs least.
            events = EventMask::REMOVE_POD_SANDBOX;
        }
        debug!(%events, "subscribing");
        self.progress.send_replace(progress);
        Ok(ConfigureResponse { events: events.bits(), ..Default::default() })
    }

    async fn synchronize(
        &self,
        context: &TtrpcContext,
        request: SynchronizeRequest,
    ) -> ttrpc::Result<SynchronizeResponse> {
        self.collect(request.pods, request.containers);
        if request.more {
            return Ok(SynchronizeResponse { more: true, ..Default::default() });
        }
        if matches!(*self.progress.borrow(), Progress::Refused(_)) {
            return Ok(SynchronizeResponse::default());
        }
        let (pods, containers) =
            std::mem::take(&mut *self.parts.lock().unwrap_or_else(PoisonError::into_inner));
        debug!(pods = pods.len(), containers = containers.len(), "synchronizing");

        // If the runtime's deadline passes, the server drops this future. Then `unfinished` reports
        // the failure.
        let mut unfinished = Unfinished { progress: &self.progress, outcome: None };
        let result = run(context, async { self.plugin.synchronize(pods, containers).await }).await;
        let result = result.map_err(|failure| match failure {
            Failure::Refused(refusal) => refusal.to_string(),
            Failure::Panicked => "the plugin panicked".to_owned(),
            Failure::TooSlow(after) => format!("the plugin took longer than {after:?}"),
        });
        unfinished.outcome = Some(match &result {
            Ok(_) => Progress::Synchronized,
            Err(error) => Progress::Forgotten(error.clone()),
        });
        drop(unfinished);
        let mut update = result.map_err(status)?;
        for update in &mut update {
            // A failed update would make the runtime drop the plugin. A runtime that launched the
            // plugin would not start at all.
            update.ignore_failure = true;
        }
        Ok(SynchronizeResponse { update, ..Default::default() })
    }

    async fn shutdown(&self, context: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        let handler = async {
            self.plugin.shutdown().await;
            Ok(())
        };
        answer("Shutdown", context, handler).await?;
        Ok(Empty::default())
    }

    async fn run_pod_sandbox(
        &self,
        context: &TtrpcContext,
        r: RunPodSandboxRequest,
    ) -> ttrpc::Result<RunPodSandboxResponse> {
        answer("RunPodSandbox", context, async { self.plugin.run_pod_sandbox(owned(r.pod)).await })
            .await?;
        Ok(RunPodSandboxResponse::default())
    }

    async fn update_pod_sandbox(
        &self,
        context: &TtrpcContext,
        r: UpdatePodSandboxRequest,
    ) -> ttrpc::Result<UpdatePodSandboxResponse> {
        let (overhead, resources) = (owned(r.overhead_linux_resources), owned(r.linux_resources));
        answer("UpdatePodSandbox", context, async {
            self.plugin.update_pod_sandbox(owned(r.pod), overhead, resources).await
        })
        .await?;
        Ok(UpdatePodSandboxResponse::default())
    }

    async fn post_update_pod_sandbox(
        &self,
        context: &TtrpcContext,
        r: PostUpdatePodSandboxRequest,
    ) -> ttrpc::Result<PostUpdatePodSandboxResponse> {
        answer("PostUpdatePodSandbox", context, async {
            self.plugin.post_update_pod_sandbox(owned(r.pod)).await
        })
        .await?;
        Ok(PostUpdatePodSandboxResponse::default())
    }

    async fn stop_pod_sandbox(
        &self,
        context: &TtrpcContext,
        r: StopPodSandboxRequest,
    ) -> ttrpc::Result<StopPodSandboxResponse> {
        answer("StopPodSandbox", context, async {
            self.plugin.stop_pod_sandbox(owned(r.pod)).await
        })
        .await?;
        Ok(StopPodSandboxResponse::default())
    }

    async fn remove_pod_sandbox(
        &self,
        context: &TtrpcContext,
        r: RemovePodSandboxRequest,
    ) -> ttrpc::Result<RemovePodSandboxResponse> {
        answer("RemovePodSandbox", context, async {
            self.plugin.remove_pod_sandbox(owned(r.pod)).await
        })
        .await?;
        Ok(RemovePodSandboxResponse::default())
    }

    async fn create_container(
        &self,
        context: &TtrpcContext,
        r: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        let handler =
            async { self.plugin.create_container(owned(r.pod), owned(r.container)).await };
        let Creation { adjust, update } = answer("CreateContainer", context, handler).await?;
        Ok(CreateContainerResponse { adjust: Some(adjust).into(), update, ..Default::default() })
    }

    async fn post_create_container(
        &self,
        context: &TtrpcContext,
        r: PostCreateContainerRequest,
    ) -> ttrpc::Result<PostCreateContainerResponse> {
        answer("PostCreateContainer", context, async {
            self.plugin.post_create_container(owned(r.pod), owned(r.container)).await
        })
        .await?;
        Ok(PostCreateContainerResponse::default())
    }

    async fn start_container(
        &self,
        context: &TtrpcContext,
        r: StartContainerRequest,
    ) -> ttrpc::Result<StartContainerResponse> {
        answer("StartContainer", context, async {
            self.plugin.start_container(owned(r.pod), owned(r.container)).await
        })
        .await?;
        Ok(StartContainerResponse::default())
    }

    async fn post_start_container(
        &self,
        context: &TtrpcContext,
        r: PostStartContainerRequest,
    ) -> ttrpc::Result<PostStartContainerResponse> {
        answer("PostStartContainer", context, async {
            self.plugin.post_start_container(owned(r.pod), owned(r.container)).await
        })
        .await?;
        Ok(PostStartContainerResponse::default())
    }

    async fn update_container(
        &self,
        context: &TtrpcContext,
        r: UpdateContainerRequest,
    ) -> ttrpc::Result<UpdateContainerResponse> {
        let handler = async {
            self.plugin
                .update_container(owned(r.pod), owned(r.container), owned(r.linux_resources))
                .await
        };
        let update = answer("UpdateContainer", context, handler).await?;
        Ok(UpdateContainerResponse { update, ..Default::default() })
    }

    async fn post_update_container(
        &self,
        context: &TtrpcContext,
        r: PostUpdateContainerRequest,
    ) -> ttrpc::Result<PostUpdateContainerResponse> {
        answer("PostUpdateContainer", context, async {
            self.plugin.post_update_container(owned(r.pod), owned(r.container)).await
        })
        .await?;
        Ok(PostUpdateContainerResponse::default())
    }

    async fn stop_container(
        &self,
        context: &TtrpcContext,
        r: StopContainerRequest,
    ) -> ttrpc::Result<StopContainerResponse> {
        let update = answer("StopContainer", context, async {
            self.plugin.stop_container(owned(r.pod), owned(r.container)).await
        })
        .await?;
        Ok(StopContainerResponse { update, ..Default::default() })
    }

    async fn remove_container(
        &self,
        context: &TtrpcContext,
        r: RemoveContainerRequest,
    ) -> ttrpc::Result<RemoveContainerResponse> {
        answer("RemoveContainer", context, async {
            self.plugin.remove_container(owned(r.pod), owned(r.container)).await
        })
        .await?;
        Ok(RemoveContainerResponse::default())
    }

    async fn state_change(
        &self,
        context: &TtrpcContext,
        r: StateChangeEvent,
    ) -> ttrpc::Result<Empty> {
        let (plugin, pod, container) = (&self.plugin, owned(r.pod), owned(r.container));
        macro_rules! pass_on {
            ($name:literal, $method:ident($($argument:ident),*)) => {{
                answer($name, context, async { plugin.$method($($argument),*).await }).await?;
            }};
        }
        match r.event.enum_value() {
            Ok(Event::RUN_POD_SANDBOX) => pass_on!("RunPodSandbox", run_pod_sandbox(pod)),
            Ok(Event::POST_UPDATE_POD_SANDBOX) => {
                pass_on!("PostUpdatePodSandbox", post_update_pod_sandbox(pod));
            }
            Ok(Event::STOP_POD_SANDBOX) => pass_on!("StopPodSandbox", stop_pod_sandbox(pod)),
            Ok(Event::REMOVE_POD_SANDBOX) => pass_on!("RemovePodSandbox", remove_pod_sandbox(pod)),
            Ok(Event::POST_CREATE_CONTAINER) => {
                pass_on!("PostCreateContainer", post_create_container(pod, container));
            }
            Ok(Event::START_CONTAINER) => {
                pass_on!("StartContainer", start_container(pod, container));
            }
            Ok(Event::POST_START_CONTAINER) => {
                pass_on!("PostStartContainer", post_start_container(pod, container));
            }
            Ok(Event::POST_UPDATE_CONTAINER) => {
                pass_on!("PostUpdateContainer", post_update_container(pod, container));
            }
            Ok(Event::REMOVE_CONTAINER) => {
                pass_on!("RemoveContainer", remove_container(pod, container));
            }
            // In every version, the other known events have their own RPCs. An unknown event is
            // newer than this crate.
            other => debug!(event = ?other, "ignoring a state change"),
        }
        Ok(Empty::default())
    }

    async fn validate_container_adjustment(
        &self,
        context: &TtrpcContext,
        request: ValidateContainerAdjustmentRequest,
    ) -> ttrpc::Result<ValidateContainerAdjustmentResponse> {
        let handler = async { self.plugin.validate_container_adjustment(request).await };
        let verdict = answer(
            "ValidateContainerAdjustment",
            context,
            handler.map(|verdict| Ok(verdict.err())),
        )
        .await?;
        Ok(match verdict {
            None => ValidateContainerAdjustmentResponse::default(),
            Some(refusal) => ValidateContainerAdjustmentResponse {
                reject: true,
                reason: refusal.to_string(),
                ..Default::default()
            },
        })
    }
}

/// Reports the outcome of a synchronisation when this value is dropped, even if the synchronisation
/// was cancelled.
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

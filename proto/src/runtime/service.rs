//! The service that receives the plugin's requests.

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use ttrpc::r#async::TtrpcContext;

use crate::answer::status;
use crate::api::*;
use crate::generated::nri_ttrpc as wire;

/// A plugin's request to update containers. The plugin waits for the answer.
#[derive(Debug)]
pub struct UpdateRequest {
    /// The requested updates.
    pub update: Vec<ContainerUpdate>,
    reply: oneshot::Sender<Result<Vec<ContainerUpdate>, String>>,
}

impl UpdateRequest {
    /// Reports that all updates succeeded, except for `failed`.
    pub fn succeed(self, failed: Vec<ContainerUpdate>) {
        // The plugin may have cancelled the request or closed the connection.
        let _ = self.reply.send(Ok(failed));
    }

    /// Reports that the whole request failed.
    pub fn fail(self, message: impl Into<String>) {
        let _ = self.reply.send(Err(message.into()));
    }
}

pub(super) struct RuntimeService {
    pub(super) registered: mpsc::Sender<RegisterPluginRequest>,
    pub(super) updates: mpsc::UnboundedSender<UpdateRequest>,
}

#[async_trait]
impl wire::Runtime for RuntimeService {
    async fn register_plugin(
        &self,
        _: &TtrpcContext,
        request: RegisterPluginRequest,
    ) -> ttrpc::Result<Empty> {
        self.registered.send(request).await.map_err(|_| status("registration came too late"))?;
        Ok(Empty::default())
    }

    async fn update_containers(
        &self,
        _: &TtrpcContext,
        request: UpdateContainersRequest,
    ) -> ttrpc::Result<UpdateContainersResponse> {
        let (reply, answer) = oneshot::channel();
        let gone = "the test does not handle updates";
        self.updates
            .send(UpdateRequest { update: request.update, reply })
            .map_err(|_| status(gone))?;
        let failed = answer.await.map_err(|_| status(gone))?.map_err(status)?;
        Ok(UpdateContainersResponse { failed, ..Default::default() })
    }
}

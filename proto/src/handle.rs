//! The handle with which a plugin sends requests to the runtime.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::answer::in_event;
use crate::api::{ContainerUpdate, UpdateContainersRequest};
use crate::generated::nri_ttrpc::RuntimeClient;

/// The reason why containers could not be updated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// The plugin has no connection to a runtime.
    #[error("not connected to a runtime")]
    NotConnected,
    /// The plugin called [`Runtime::update_containers`] in an event handler. The runtime is locked
    /// during the event, so this call would deadlock.
    #[error("containers cannot be updated from within an event, leave it to a task")]
    InEvent,
    /// The runtime reported a failure. The runtime may have applied some of the updates.
    #[error("the runtime failed to update containers: {0}")]
    Runtime(String),
}

/// A handle with which the plugin sends requests to the runtime.
///
/// The handle stays valid across reconnections.
#[derive(Clone, Debug, Default)]
pub struct Runtime {
    client: Arc<Mutex<Option<RuntimeClient>>>,
    /// A lock that allows one request at a time, because Go's ttrpc closes a connection on which
    /// requests arrive out of order.
    turn: Arc<tokio::sync::Mutex<()>>,
    pub(crate) renewal: Arc<Notify>,
}

impl fmt::Debug for RuntimeClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RuntimeClient")
    }
}

impl Runtime {
    /// Updates running containers. Returns the updates that the runtime reports as failed.
    ///
    /// Success does not prove that the runtime applied all other updates. containerd does not
    /// report the failure of an update with `ignore_failure`. If an update without `ignore_failure`
    /// fails, containerd fails the whole request and does not try the remaining updates. To verify
    /// the values, read them from the kernel.
    ///
    /// The function waits until the runtime replies, and the runtime first waits for events that it
    /// is processing. Drop the future to cancel. The runtime sends no plugin an UpdateContainer
    /// event for these updates.
    ///
    /// # Errors
    ///
    /// Fails if the plugin has no connection, if an event handler calls the function, or if the
    /// runtime fails. If the runtime fails, it may have applied some of the updates.
    pub async fn update_containers(
        &self,
        update: Vec<ContainerUpdate>,
    ) -> Result<Vec<ContainerUpdate>, UpdateError> {
        if in_event() {
            return Err(UpdateError::InEvent);
        }
        let _turn = self.turn.lock().await;
        let client = self.client().ok_or(UpdateError::NotConnected)?;
        let request = UpdateContainersRequest { update, ..Default::default() };
        match client.update_containers(ttrpc::context::Context::default(), &request).await {
            Ok(response) => Ok(response.failed),
            Err(ttrpc::Error::RpcStatus(status)) => Err(UpdateError::Runtime(status.message)),
            Err(error) => Err(UpdateError::Runtime(error.to_string())),
        }
    }

    /// Closes the connection and makes a new connection, over which the runtime synchronises all
    /// pods and containers. Call this function if the plugin has missed an event. Without a
    /// connection the function does nothing, because the stub is connecting already.
    pub fn reconnect(&self) {
        self.renewal.notify_waiters();
    }

    fn client(&self) -> Option<RuntimeClient> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set(&self, client: Option<RuntimeClient>) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }
}

//! Limited places for the clients of a listener.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

/// Maximum number of clients that a listener serves at a time.
const AT_A_TIME: usize = 8;

/// Maximum duration of a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum duration of a connection while another client waits.
const SHARE: Duration = Duration::from_secs(1);

/// Limited places for the clients of one listener.
#[derive(Debug)]
pub(super) struct Places {
    places: Arc<Semaphore>,
    /// Notifies one client that another client waits for its place.
    is_full: Notify,
}

impl Places {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { places: Arc::new(Semaphore::new(AT_A_TIME)), is_full: Notify::new() })
    }

    /// Waits for a place. If all places are taken, asks a client that has had its place for
    /// [`SHARE`] to leave.
    pub(super) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Some(place);
        }
        self.is_full.notify_one();
        // The semaphore is never closed.
        let place = self.places.clone().acquire_owned().await.ok();
        // Withdraw the request if a client left before it received the request.
        let _ = self.is_full.notified().now_or_never();
        place
    }

    /// Waits until the client must leave. This is after [`CONNECTION_TIMEOUT`], or after [`SHARE`]
    /// if another client waits.
    pub(super) async fn must_leave(&self) {
        let asked_to_go = async {
            sleep(SHARE).await;
            self.is_full.notified().await;
        };
        tokio::select! {
            () = asked_to_go => {}
            () = sleep(CONNECTION_TIMEOUT) => {}
        }
    }
}

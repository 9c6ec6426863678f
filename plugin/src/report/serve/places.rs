//! Limit on the number of clients that a listener serves at a time.

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

/// Limited number of permits ("places") for the clients of one listener.
#[derive(Debug)]
pub(super) struct Places {
    places: Arc<Semaphore>,
    /// Notification to one served client that another client waits for a place.
    is_full: Notify,
}

impl Places {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { places: Arc::new(Semaphore::new(AT_A_TIME)), is_full: Notify::new() })
    }

    /// Waits for a free place. If all places are taken, asks one client to leave after the client
    /// has had its place for [`SHARE`].
    pub(super) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Some(place);
        }
        self.is_full.notify_one();
        // `acquire_owned` never fails, because no code closes the semaphore.
        let place = self.places.clone().acquire_owned().await.ok();
        // If a client left before it received the request to leave, withdraw the request.
        let _ = self.is_full.notified().now_or_never();
        place
    }

    /// Waits until the client must leave: after [`CONNECTION_TIMEOUT`], or after [`SHARE`] if
    /// another client waits.
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

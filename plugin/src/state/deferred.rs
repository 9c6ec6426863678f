//! Limit decreases that wait until the container uses less memory (`shrink: defer`).

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use plimsoll_core::units::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::lock;

/// Deferred limits, by container ID. The lock protects only the map. Code that holds the lock does
/// no I/O.
#[derive(Debug, Default)]
pub struct DeferredLimits {
    waiting: Mutex<HashMap<String, Deferral>>,
    added: Notify,
}

/// A deferred limit decrease.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deferral {
    /// Limit that the user asks for.
    pub limit: Bytes,
    /// Time when the user first asked for this limit.
    pub since: Instant,
    /// Time after `since` until the plugin drops the deferred limit.
    pub timeout: Duration,
}

impl DeferredLimits {
    /// Defers a container's limit decrease for at most `timeout`.
    pub fn put(&self, id: &str, limit: Bytes, timeout: Duration) {
        let new = Deferral { limit, since: Instant::now(), timeout };
        let mut waiting = lock(&self.waiting);
        // If the user asks for the same limit again, keep the time of the first attempt.
        let same = waiting.get(id).filter(|before| before.limit == limit).copied();
        let deferral = same.map_or(new, |before| Deferral { timeout, ..before });
        waiting.insert(id.to_owned(), deferral);
        drop(waiting);
        self.added.notify_one();
    }

    /// Returns whether the container has a deferred limit.
    pub fn is_waiting(&self, id: &str) -> bool {
        lock(&self.waiting).contains_key(id)
    }

    /// Drops the container's deferred limit.
    pub fn forget(&self, id: &str) {
        lock(&self.waiting).remove(id);
    }

    /// Returns all deferred limits, with their container IDs.
    pub fn all(&self) -> Vec<(String, Deferral)> {
        lock(&self.waiting).iter().map(|(id, deferral)| (id.clone(), *deferral)).collect()
    }

    /// Waits until the plugin defers another limit.
    pub async fn added(&self) {
        self.added.notified().await;
    }

    /// Drops the container's deferred limit if it is still the one in `deferral`.
    pub fn settle(&self, id: &str, deferral: Deferral) {
        let mut waiting = lock(&self.waiting);
        let is_same = waiting
            .get(id)
            .is_some_and(|now| now.limit == deferral.limit && now.since == deferral.since);
        if is_same {
            waiting.remove(id);
        }
    }
}

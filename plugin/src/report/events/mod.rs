//! Kubernetes Events about pods, which the plugin writes to the API server for the pod's owner.
//!
//! No caller waits for the API server. `Events::enqueue` adds an incident to a queue of [`QUEUE`]
//! entries. An incident that does not fit is dropped and counted.
//!
//! A separate thread sends the incidents and exists only with credentials. Name resolution, TLS
//! handshakes and token programs therefore never delay an answer to the runtime. The thread ends
//! with the process, even if incidents are still unsent.
//!
//! The same incident of the same container within [`RECENT`](crate::report::RECENT) is one Event,
//! whose series counts the repetitions. The thread retries an unreachable API server with growing
//! delays. It stops when every incident is older than [`STALE`].

mod credentials;
mod draft;
mod failure;
#[cfg(test)]
mod fixtures;
mod history;
mod names;
mod publisher;
mod queue;
mod rates;

pub use draft::action;
pub use publisher::STALE;
pub use queue::{Events, QUEUE};

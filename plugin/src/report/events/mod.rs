//! Kubernetes Events about pods, which the plugin writes to the API server for the pod's owner.
//!
//! No caller waits for the API server. `Events::enqueue` adds an incident to a queue of [`QUEUE`]
//! entries. If the queue is full, the plugin drops the incident and counts it.
//!
//! A separate thread sends the incidents and exists only with credentials. So name resolution, TLS
//! handshakes and token programs never delay an answer to the runtime. The thread ends with the
//! process, even if it has not sent all incidents.
//!
//! The same incident of the same container within [`RECENT`](crate::report::RECENT) is one Event,
//! whose series counts the repetitions. The thread retries an unreachable API server with growing
//! delays. The thread stops its retries when every incident is older than [`STALE`].

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

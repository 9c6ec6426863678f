//! Kubernetes Events about pods, which the plugin writes to the API server for the pod's owner.
//!
//! No code that reports an incident waits for the API server. `Events::enqueue` adds the incident
//! to a queue of [`QUEUE`] entries. If the queue is full, the plugin drops and counts the incident.
//!
//! If the plugin has credentials, a separate thread sends the incidents. Name resolution, TLS
//! handshakes and token programs therefore never delay an answer to the runtime. The thread ends
//! with the process, even if some incidents are unsent.
//!
//! If an incident of a container repeats within [`RECENT`](crate::report::RECENT), the plugin
//! increases the count of the existing Event. If the API server is unreachable, the thread tries
//! again with growing delays. The thread repeats a failed write until the incident is older than
//! [`STALE`].

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

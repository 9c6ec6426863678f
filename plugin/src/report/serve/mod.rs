//! Serves `/status` (JSON) and `/metrics` (OpenMetrics) over a unix socket that only root can use.
//! If `metricsAddress` is configured, the plugin also serves `/metrics` over TCP.
//!
//! A slow or busy client delays only other clients of the same listener. Each listener serves few
//! clients at a time, and each client only for a limited time. A separate thread reads the node's
//! state for one client at a time, so reading never delays NRI events.

mod answer;
mod ask;
mod listeners;
mod places;
mod socket;

pub use answer::Server;
pub use ask::{StatusRequestError, ask};
pub use socket::socket;

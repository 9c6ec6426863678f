//! Reports of incidents in the log, the metrics, `plimsoll status` and Kubernetes Events. Users can
//! also request the current status ([`status`]), which [`serve`] provides.
//!
//! Code that detects an incident calls [`Reports::report`] with an
//! [`Incident`](plimsoll_core::incident::Incident).

pub mod events;
pub(crate) mod log;
mod message;
pub mod metrics;
mod mode;
mod recent;
mod reports;
pub mod serve;
pub mod status;

pub use recent::{RECENT, Report, now};
pub use reports::Reports;

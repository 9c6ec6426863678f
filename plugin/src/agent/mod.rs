//! The running plugin: the service that answers the runtime's events, and the background tasks.

pub mod configurator;
pub mod decrease;
pub mod deferrals;
pub mod handles;
pub mod kills;
pub(crate) mod memory;
pub mod node;
pub(crate) mod notify;
pub mod reconciler;
pub mod service;
pub mod supervise;
pub mod systemd;
pub mod throttling;

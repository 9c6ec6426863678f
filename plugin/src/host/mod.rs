//! Facts about the node that do not depend on the plugin: container runtimes and their
//! configuration, systemd units, sockets and NRI plugins.
//!
//! This code reads files, connects to sockets, and runs a runtime's program to get its version.
//! [`crate::commands::doctor`] uses the facts to find problems, and [`crate::commands::install`]
//! changes the configuration of the node.

pub(crate) mod files;
#[cfg(test)]
mod fixture;
pub(crate) mod nri_plugins;
pub(crate) mod plugin_lock;
pub(crate) mod runtime;
pub(crate) mod socket;
pub(crate) mod units;
pub(crate) mod version;

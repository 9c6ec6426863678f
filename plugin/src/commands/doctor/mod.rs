//! Checks whether a node can run the plugin, and what to change if not (`plimsoll doctor`).
//!
//! [`NodeFacts::collect`] gathers facts, and [`NodeFacts::judge`] turns the facts into findings.
//! Findings name paths as they are on the node, without the prefix of `--host`.
//!
//! Sources: the kernel's `Documentation/admin-guide/cgroup-v2.rst`; Kubernetes' KEP-2570;
//! containerd/nri `pkg/adaptation`.

pub(crate) mod command;
pub(crate) mod facts;
pub(crate) mod finding;
mod findings;
#[cfg(test)]
mod fixture;
mod report;

pub use crate::commands::doctor::facts::NodeFacts;
pub use crate::commands::doctor::facts::NodeFacts as Facts;
pub use crate::commands::doctor::finding::{Finding, Mark};
pub use crate::commands::doctor::report::Report;
pub(crate) use crate::host::files::{below, names};
pub(crate) use crate::host::nri_plugins::{NriPlugin as Program, PLUGINS};
pub(crate) use crate::host::plugin_lock::holder;
pub(crate) use crate::host::socket::Socket;
pub(crate) use crate::host::units::PACKAGE_UNIT_DIRECTORIES;

/// Names of [`crate::host`] for the command `install`.
pub(crate) mod runtime {
    pub(crate) use crate::host::runtime::containerd::containerd_config;
    pub(crate) use crate::host::runtime::detect::Runtime;
    pub(crate) use crate::host::runtime::kind::{CONTAINERD, CRIO, RuntimeKind as Kind};
    pub(crate) use crate::host::runtime::nri_settings::NriSettings as Settings;
    pub(crate) use crate::host::units::start_command;
    pub(crate) use crate::host::version::Version;
}

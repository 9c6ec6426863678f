//! Checks whether a node can run the plugin, and advises the operator (`plimsoll doctor`).
//!
//! [`NodeFacts::collect`] gathers facts, and [`NodeFacts::judge`] turns the facts into findings.
//! Findings show paths from the node's point of view, without the prefix of `--host`.
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
pub use crate::commands::doctor::finding::{Finding, Mark};
pub use crate::commands::doctor::report::Report;

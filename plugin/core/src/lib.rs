//! The decisions of Plimsoll: what the memory values of containers, pods and nodes should be.
//!
//! All functions are pure. The functions read no files, no clock and no environment, start no
//! threads and write no log. The dependencies of this crate and its `clippy.toml` enforce the rule.
//! Numbers are whole bytes unless a type says otherwise.
//!
//! The modules, lowest first:
//!
//! - [`units`]: amounts of memory and CPU, with the formats of Kubernetes and the kernel.
//! - [`pod`]: pods, containers, and the cgroups that the kubelet and the runtime give them.
//! - [`policy`]: desired values, effective protection, pod limits, limit decreases, rescue.
//! - [`requests`]: which source of a memory request to trust.
//! - [`incident`]: incidents that the plugin reports.

pub mod incident;
pub mod outcome;
pub mod pod;
pub mod policy;
pub mod requests;
pub mod units;

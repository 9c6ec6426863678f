//! The decisions of Plimsoll: what the memory values of containers, pods and nodes should be.
//!
//! All functions are pure. The functions read no files, no clock and no environment, start no
//! threads and write no log. The list of dependencies and the `clippy.toml` of this crate enforce
//! this rule. Amounts are whole bytes unless their type says otherwise.
//!
//! The modules, lowest first:
//!
//! - [`units`]: amounts of memory and CPU, with the formats of Kubernetes and the kernel.
//! - [`pod`]: pods, containers, and the cgroups that the kubelet and the runtime give them.
//! - [`policy`]: desired values, effective protection, pod limits, limit decreases, OOM rescue.
//! - [`requests`]: which source of a container's memory request the plugin trusts.
//! - [`incident`]: incidents that the plugin reports.

pub mod incident;
pub mod outcome;
pub mod pod;
pub mod policy;
pub mod requests;
pub mod units;

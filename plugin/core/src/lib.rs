//! Plimsoll's decisions: which memory values containers, pods and nodes should have.
//!
//! All functions are pure. The functions do not read files, the clock or environment variables,
//! start no threads and write no logs. The list of dependencies and the `clippy.toml` of this crate
//! enforce this rule. Amounts are whole bytes unless their type says otherwise.
//!
//! The modules, in an order in which each module uses only earlier ones:
//!
//! - [`units`]: amounts of memory and CPU, in the formats of Kubernetes and the kernel.
//! - [`pod`]: pods, containers, and the cgroups that the kubelet and the runtime give them.
//! - [`policy`]: desired values, effective protection, pod limits, limit decreases, OOM rescue.
//! - [`requests`]: choice of the most reliable source for a container's memory request.
//! - [`incident`]: incidents that the plugin reports.

pub mod incident;
pub mod outcome;
pub mod pod;
pub mod policy;
pub mod requests;
pub mod units;

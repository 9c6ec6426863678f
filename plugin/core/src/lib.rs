//! Plimsoll's decisions: which memory values containers, pods and nodes should have.
//!
//! All functions are pure. The functions do not read files, environment variables or the clock, do
//! not start threads and do not write logs. The list of dependencies and the `clippy.toml` of this
//! crate enforce this rule. Amounts are whole bytes unless their type says otherwise.
//!
//! Each module uses only modules that come before it in this list:
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

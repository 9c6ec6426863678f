//! Decision on a container's `memory.min`, `memory.low` and `memory.high`: the desired values and
//! the reasons.
//!
//! [`desired`] is a total function of its arguments. The arithmetic equals the kubelet's to the
//! byte, with its float64 operations in their order on amd64. Source: KEP-2570,
//! `pkg/kubelet/kuberuntime/kuberuntime_container_linux.go`.

mod container;
pub mod contention;
mod decision;
pub mod guard;
pub mod hierarchy;
pub mod limit_decrease;
mod node_policy;
pub mod pod_limit;
mod protection;
mod reason;
pub mod rescue;
pub mod stall;

pub use self::container::{desired, overhead};
pub use self::decision::{Decision, Desired, KNOBS, Setting};
pub use self::node_policy::{FactorError, Node, Policy, ReservationPolicy, ThrottlingFactor};
pub use self::protection::Protection;
pub use self::reason::{Ceiling, Formula, Reason};

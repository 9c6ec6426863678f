//! Decision on a container's `memory.min`, `memory.low` and `memory.high`: the desired values and
//! the reasons.
//!
//! [`desired`] never fails, and its result depends only on its arguments. The results equal those
//! of a kubelet on amd64 to the byte, because the code uses the same float64 operations in the same
//! order. Source: KEP-2570, `pkg/kubelet/kuberuntime/kuberuntime_container_linux.go`.

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

pub use self::container::{desired, pod_protection};
pub use self::decision::{Decision, Desired, KNOBS, Setting};
pub use self::node_policy::{FactorError, Node, Policy, ReservationPolicy, ThrottlingFactor};
pub use self::protection::Protection;
pub use self::reason::{Ceiling, Formula, Reason};

//! Protection of all levels from kubepods down to the containers: desired values of the ancestor
//! cgroups, and effective protection in the kernel.
//!
//! A container's `memory.min` and `memory.low` protect at most as much as its pod, its class's
//! cgroup and kubepods do. All amounts are bytes. The kernel rounds each file down to pages, but a
//! parent never falls short. The children's rounded values never add up to more than their rounded
//! sum.
//!
//! # Desired values of each level
//!
//! [`Tree`] keeps the claims. `memory.min` and `memory.low` have separate sums:
//!
//! - A pod gets the sum of its containers' claims plus its overhead (from the RuntimeClass). A
//!   pod-level limit bounds this sum, because the kubelet gives the whole pod-level limit to each
//!   container without a limit.
//! - The cgroup of a class (Burstable, BestEffort) gets the sum of its pods.
//! - kubepods gets the sum of `memory.min` **and** `memory.low` below it as its `memory.min`. This
//!   is Kubernetes' tiered rule: no process outside kubepods may use memory promised to pods.
//! - kubepods also gets the sum of `memory.low` below it as its `memory.low`. The kernel
//!   distributes `memory.min` and `memory.low` separately, so 0 here would make every `memory.low`
//!   below ineffective.
//!
//! The protection of all pods, `memory.min` plus `memory.low`, never exceeds the budget (node
//! allocatable):
//!
//! - Guaranteed pods come first. If they alone claim more than the budget, each gets a share in
//!   proportion to its claim. Other pods then get nothing.
//! - Burstable and BestEffort pods share the remaining budget. If they claim more, each gets a
//!   share in proportion to its claim.
//! - A pod's shares of `memory.min` and `memory.low` are each rounded down to a byte. The ancestors
//!   add up the pods' shares, so that the sums are exact at every level.
//!
//! Without a budget, [`Bytes::MAX`](crate::units::Bytes::MAX) is the budget.
//!
//! The files of a container keep its full claim, even if its pod gets less. The kernel bounds the
//! children's protection by their parent's effective protection. The kernel distributes the
//! parent's protection by the part of its claim that each child uses at the time. A fixed
//! distribution by the plugin would be worse.
//!
//! Sources: KEP-2570 of Kubernetes ("Support Memory QoS with cgroups v2", as of 1.36) for the sums.
//! The kernel's `Documentation/admin-guide/cgroup-v2.rst` defines `memory.min`, `memory.low` and
//! `memory_recursiveprot`. The budget is this plugin's addition.
//!
//! # Effective protection in the kernel
//!
//! [`effective()`] follows `effective_protection` in the kernel's `mm/page_counter.c` (formerly in
//! `mm/memcontrol.c`) for one cgroup and one file. [`effective_tree`] applies the rule to a whole
//! tree. [`Standing`] classifies the effect of the written values. The kernel counts in pages, so
//! its values may differ by less than one page for each level.

mod effective;
mod standing;
mod sums;
#[cfg(test)]
mod testing;
mod tree;

pub use self::effective::{ObservedCgroup, Step, effective, effective_tree};
pub use self::standing::Standing;
pub use self::tree::{Level, Shortfall, Tree};
pub use crate::pod::PodPlace;

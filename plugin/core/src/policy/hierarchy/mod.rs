//! Protection of all cgroups from kubepods down to the containers: desired values of the cgroups
//! above containers, and effective protection in the kernel.
//!
//! The kernel never protects more of a container's memory than its pod, its QoS class and kubepods
//! protect. All amounts are bytes. The kernel rounds each file down to pages. A parent's value is
//! still large enough, because a sum of rounded values never exceeds the rounded sum.
//!
//! # Desired values of the cgroups above containers
//!
//! [`Tree`] adds up the protection that containers and pod overheads need from the cgroups above
//! them, separately for `memory.min` and `memory.low`:
//!
//! - A pod gets the protection that its containers need, plus its overhead (from the RuntimeClass).
//!   A pod-level limit is the upper bound of this sum, because the kubelet gives the whole
//!   pod-level limit to each container without a limit.
//! - The cgroup of a class (Burstable, BestEffort) gets the sum of its pods' values.
//! - The `memory.min` of kubepods is the sum of `memory.min` **and** `memory.low` of all pods. This
//!   is Kubernetes' tiered rule: no process outside kubepods may use memory promised to pods.
//! - The `memory.low` of kubepods is the sum of `memory.low` of all pods. The kernel distributes
//!   `memory.min` and `memory.low` separately, so a value of 0 would make the `memory.low` of every
//!   pod ineffective.
//!
//! The protection of all pods, `memory.min` plus `memory.low`, never exceeds the budget (node
//! allocatable):
//!
//! - Guaranteed pods come first. If Guaranteed pods alone need more than the budget, each gets a
//!   share in proportion to its need, and other pods get nothing.
//! - Burstable and BestEffort pods share the remaining budget. If these pods need more than the
//!   rest, each gets a share in proportion to its need.
//! - A pod's shares of `memory.min` and `memory.low` are each rounded down to a byte. The cgroups
//!   above the pods get sums of the rounded shares, so that every sum is exact.
//!
//! If node allocatable is unknown, the budget is [`Bytes::MAX`](crate::units::Bytes::MAX).
//!
//! Even if a pod gets less protection than it needs, the files of its containers keep their values.
//! The kernel limits the children's total protection to the parent's effective protection. The
//! kernel distributes this protection in proportion to each child's current protected usage. A
//! fixed distribution by the plugin could not follow the usage.
//!
//! Sources: KEP-2570 of Kubernetes ("Support Memory QoS with cgroups v2", as of 1.36) defines how
//! the values add up. The kernel's `Documentation/admin-guide/cgroup-v2.rst` defines `memory.min`,
//! `memory.low` and `memory_recursiveprot`. The budget is this plugin's addition.
//!
//! # Effective protection in the kernel
//!
//! [`effective()`] follows `effective_protection` in the kernel's `mm/page_counter.c` (formerly in
//! `mm/memcontrol.c`) for one cgroup and one file. [`effective_tree`] applies this function to a
//! whole tree. [`Standing`] says how well a cgroup is protected. The kernel counts in pages, so its
//! values may differ from these results by less than one page for each ancestor.

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

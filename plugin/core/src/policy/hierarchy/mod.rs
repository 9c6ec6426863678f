//! Protection of all cgroups from kubepods down to the containers: desired values of the cgroups
//! above containers, and effective protection in the kernel.
//!
//! A container's `memory.min` and `memory.low` protect no more memory than those of its pod, of its
//! QoS class and of kubepods. All amounts are bytes. The kernel rounds each file down to pages. A
//! parent still protects enough, because a sum of rounded values never exceeds the rounded sum.
//!
//! # Desired values of the cgroups above containers
//!
//! A protection claim is the protection that a container or a pod's overhead needs from the cgroups
//! above it. [`Tree`] adds up the protection claims, separately for `memory.min` and `memory.low`:
//!
//! - A pod gets the sum of its containers' protection claims plus its overhead (from the
//!   RuntimeClass). A pod-level limit is the upper bound of this sum, because the kubelet gives the
//!   whole pod-level limit to each container without a limit.
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
//!   share in proportion to its protection claim. Other pods then get nothing.
//! - Burstable and BestEffort pods share the remaining budget. If these pods need more, each gets a
//!   share in proportion to its protection claim.
//! - A pod's shares of `memory.min` and `memory.low` are each rounded down to a byte. The cgroups
//!   above the pods get sums of the rounded shares, so that every sum is exact.
//!
//! If node allocatable is unknown, the budget is [`Bytes::MAX`](crate::units::Bytes::MAX).
//!
//! A small budget does not lower the values in the files of a container, even if its pod gets less.
//! In the kernel, the parent's effective protection is the upper bound of the children's
//! protection. The kernel distributes the parent's protection in proportion to each child's
//! protected usage at the time. A fixed distribution by the plugin would be worse.
//!
//! Sources: KEP-2570 of Kubernetes ("Support Memory QoS with cgroups v2", as of 1.36) defines the
//! sums. The kernel's `Documentation/admin-guide/cgroup-v2.rst` defines `memory.min`, `memory.low`
//! and `memory_recursiveprot`. The budget is this plugin's addition.
//!
//! # Effective protection in the kernel
//!
//! [`effective()`] follows `effective_protection` in the kernel's `mm/page_counter.c` (formerly in
//! `mm/memcontrol.c`) for one cgroup and one file. [`effective_tree`] applies the rule to a whole
//! tree. [`Standing`] classifies the effect of the written values. The kernel counts in pages, so
//! the kernel's values may differ from these results by less than one page for each ancestor.

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

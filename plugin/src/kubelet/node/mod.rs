//! Node allocatable memory, determined on the node itself (`nodeAllocatable: auto`).
//!
//! The kubelet computes node allocatable as total memory minus system-reserved, kube-reserved,
//! hugepages and the hard eviction threshold (`pkg/kubelet/cm/node_container_manager_linux.go`).
//! The kubelet does not store the result where a plugin could read it, but leaves two traces:
//!
//! - its configuration file, which may be incomplete because flags and drop-in files override it;
//! - `memory.max` of the `kubepods` cgroup, rounded down to pages. The eviction threshold is not
//!   subtracted from this value. If node allocatable is not enforced for pods, the value is all
//!   memory.
//!
//! If the configuration explains the value of the cgroup, the exact number from the configuration
//! is used. If they disagree, the cgroup shows what is in force. If both are missing, this is no
//! Kubernetes node. Pods may then use all memory except hugepages.

mod allocatable;
mod file;
mod kubelet_config;
mod meminfo;
mod memory;
mod memory_qos;
mod paths;

pub use self::allocatable::AllocatableSource;
pub use self::kubelet_config::{KubeletReservations, Threshold};
pub use self::meminfo::MemInfo;
pub use self::memory::{NodeError, NodeMemory};
pub use self::memory_qos::{Conflict, MemoryQos, UnknownMemoryQos};

//! Node allocatable memory, which the plugin determines from files on the node (`nodeAllocatable:
//! auto`).
//!
//! The kubelet computes node allocatable as total memory minus system-reserved, kube-reserved,
//! hugepages and the hard eviction threshold (`pkg/kubelet/cm/node_container_manager_linux.go`).
//! The kubelet does not write the result to a file, so the plugin uses two sources:
//!
//! - the kubelet's configuration file, which flags and drop-in files may override;
//! - `memory.max` of the `kubepods` cgroup, rounded down to pages. This value includes the eviction
//!   threshold. A kubelet that does not enforce node allocatable for pods sets this value to all
//!   memory of the node.
//!
//! If the configuration matches the `memory.max` of kubepods, the plugin uses the exact amount from
//! the configuration. If configuration and `memory.max` disagree, the plugin uses `memory.max`,
//! because this is the limit in force. If both are missing, the node is no Kubernetes node, and
//! pods may use all memory except hugepages.

mod allocatable;
mod file;
mod flags;
mod kubelet_config;
mod meminfo;
mod memory;
mod memory_qos;
mod merge;
mod paths;
mod settings;

pub use self::allocatable::AllocatableSource;
pub use self::kubelet_config::{KubeletReservations, MinorVersion, Threshold};
pub use self::meminfo::MemInfo;
pub use self::memory::{NodeError, NodeMemory};
pub use self::memory_qos::{Conflict, MemoryQos, UnknownMemoryQos};
pub use self::settings::{KubeletFiles, KubeletSettings};

//! Protection of cgroups outside kubepods.

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::units::Bytes;

/// A cgroup outside kubepods, and the protection of this cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Owner of the reservation.
    pub owner: Owner,
    /// Path of the cgroup.
    pub cgroup: CgroupPath,
    /// `memory.min` of the cgroup, more than 0.
    pub memory: Bytes,
}

/// Owner of a memory reservation that is not for pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The operating system (`systemReserved`).
    System,
    /// The kubelet and the container runtime (`kubeReserved`).
    Kube,
}

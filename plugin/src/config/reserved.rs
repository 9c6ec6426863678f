//! Protection of cgroups beside the pods.

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::units::Bytes;

/// A cgroup beside the pods and its protection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Owner of the reservation.
    pub owner: Owner,
    /// Path of the cgroup.
    pub cgroup: CgroupPath,
    /// `memory.min` of the cgroup, more than 0.
    pub memory: Bytes,
}

/// Owner of a reservation beside the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The operating system (`systemReserved`).
    System,
    /// The kubelet and the container runtime (`kubeReserved`).
    Kube,
}

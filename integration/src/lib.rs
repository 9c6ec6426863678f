//! Throwaway nodes for Plimsoll: a real kernel, systemd, containerd and crictl in QEMU, and a double of the kubelet; and a
//! real API server without a node.

pub mod apiserver;
pub mod cache;
pub mod cgroup;
pub mod crictl;
pub mod fleet;
pub mod image;
pub mod kubelet;
pub mod node;
pub mod oci;
pub mod placement;
pub mod pressure;
pub mod recording;
pub mod stories;

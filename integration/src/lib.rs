//! Throwaway nodes for Plimsoll: a real kernel, systemd, container runtime and crictl in QEMU, and a double of the kubelet; and a
//! real API server without a node.

pub mod apiserver;
pub mod cache;
pub mod cgroup;
pub mod cluster;
pub mod crictl;
pub mod durations;
pub mod fleet;
pub mod go;
pub mod image;
pub mod kubelet;
pub mod node;
pub mod oci;
pub mod peers;
pub mod placement;
pub mod pressure;
pub mod recording;
pub mod runtime;
pub mod stories;
pub mod support;

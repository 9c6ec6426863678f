//! Throwaway nodes and a real API server for the tests of Plimsoll.
//!
//! A node is a QEMU virtual machine with a real kernel, systemd, container runtime and crictl. A
//! double replaces the kubelet. The API server runs without a node, or with one node and a real
//! kubelet.

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

//! Throwaway nodes and a real API server for the tests of Plimsoll.
//!
//! A node is a QEMU virtual machine with a real kernel, systemd, container runtime and crictl. A
//! double replaces the kubelet. The API server runs without a node, or with one node and a real
//! kubelet.

pub mod cluster;
pub mod fleet;
pub mod image;
pub mod kubelet;
pub mod machine;
pub mod placement;
pub mod probe;
pub mod runtime;
pub mod stories;
pub mod tools;

//! Throwaway nodes and a real API server for the tests of Plimsoll.
//!
//! A node is a QEMU virtual machine with a real kernel, systemd, container runtime and crictl. A
//! double replaces the kubelet. The API server runs without a node, or with one node and a real
//! kubelet.
//!
//! A folder imports only from the folders that precede it in this table:
//!
//! | folder | content |
//! |---|---|
//! | [`tools`] | the cache, Go builds, child processes: helpers that do not depend on nodes |
//! | [`runtime`] | container runtimes: versions, differences and programs; cgroup drivers |
//! | [`image`] | boot files of a node: packages, kernel, disk and container images |
//! | [`machine`] | a node: QEMU, its hardware, its snapshot and the shell |
//! | [`probe`] | clients for a node: memory files of cgroups, and crictl |
//! | [`kubelet`] | the double of the kubelet: pods, cgroups, checkpoints and resizes |
//! | [`placement`] | programs that tests install on a node: Plimsoll and other NRI plugins |
//! | [`fleet`] | the nodes that test cases share, and the records of the cases |
//! | [`cluster`] | a real API server, and a cluster with a real kubelet |
//! | [`stories`] | sequences of steps for several tests: resizes, OOM kills, memory pressure |
//!
//! Tests in `tests/nodes` use these folders, and so do the programs in `src/bin`. A file imports
//! from another file of its own folder by the file's path, never through the folder's `mod.rs`.

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

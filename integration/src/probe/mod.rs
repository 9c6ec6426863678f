//! The memory files of cgroups, and crictl, on a node.

pub mod cgroup;
pub mod crictl;

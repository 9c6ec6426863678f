//! Clients for a node: they read the memory files of cgroups and call crictl.

pub mod cgroup;
pub mod crictl;

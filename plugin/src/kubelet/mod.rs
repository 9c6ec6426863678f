//! Information from this node's kubelet: its configuration, its records and the cgroups of its
//! pods. This folder only reads.

pub mod checkpoint;
pub mod kubepods;
pub mod node;

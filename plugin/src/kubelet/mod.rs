//! Information from this node's kubelet: the kubelet's configuration, its checkpoints and the
//! cgroups of its pods. This folder only reads.

pub mod checkpoint;
pub mod kubepods;
pub mod node;
pub(crate) mod process;

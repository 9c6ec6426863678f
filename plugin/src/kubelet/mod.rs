//! What this node's kubelet says: its configuration, its records, and where its pods' cgroups are. Read only.

pub mod checkpoint;
pub mod kubepods;
pub mod node;

//! Kind of a level.

use serde::{Deserialize, Serialize};

/// Level of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LevelKind {
    /// Cgroup of all pods.
    Kubepods,
    /// Cgroup of all pods of a QoS class.
    Class,
    /// Cgroup of a pod.
    Pod,
    /// Cgroup beside the pods that the operator named.
    Reserved,
}

impl LevelKind {
    /// Returns the word for the level.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Kubepods => "kubepods",
            Self::Class => "class",
            Self::Pod => "pod",
            Self::Reserved => "reserved",
        }
    }
}

//! Kinds of cgroups above containers.

use serde::{Deserialize, Serialize};

/// Kind of a cgroup above containers, or of a reserved cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LevelKind {
    /// Cgroup above kubepods or above a reserved cgroup, such as the kubelet's `--cgroup-root`.
    Outer,
    /// Cgroup of all pods.
    Kubepods,
    /// Cgroup that contains all pods with one QoS class.
    Class,
    /// Cgroup of a pod.
    Pod,
    /// Cgroup outside kubepods that the plugin protects for the system or for Kubernetes.
    Reserved,
}

impl LevelKind {
    /// Returns the name that metrics and `plimsoll status` use for this kind.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Outer => "outer",
            Self::Kubepods => "kubepods",
            Self::Class => "class",
            Self::Pod => "pod",
            Self::Reserved => "reserved",
        }
    }
}

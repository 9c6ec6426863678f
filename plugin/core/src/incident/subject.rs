//! Pod, container or cgroup that an incident concerns.

use crate::pod::{CgroupPath, PodUid};

/// Pod, container or cgroup that an incident concerns.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// Namespace and name of the pod, as `namespace/name`.
    pub pod: Option<String>,
    /// UID of the pod.
    pub uid: Option<PodUid>,
    /// Name of the container.
    pub container: Option<String>,
    /// Path of the cgroup.
    pub cgroup: Option<CgroupPath>,
}

impl From<&CgroupPath> for Subject {
    fn from(cgroup: &CgroupPath) -> Self {
        Self { cgroup: Some(cgroup.clone()), ..Self::default() }
    }
}

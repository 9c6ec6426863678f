//! Position of a pod's cgroup in the cgroup hierarchy.

use super::path::CgroupPath;
use super::qos::QosClass;

/// Position of a pod's cgroup in the cgroup hierarchy: the cgroup itself and its ancestors up to
/// kubepods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPlace {
    cgroup: CgroupPath,
    class: QosClass,
    class_cgroup: Option<CgroupPath>,
    kubepods: CgroupPath,
}

impl PodPlace {
    /// Creates the position of the `cgroup` of a pod. `class` is the pod's QoS class. The cgroups
    /// of Guaranteed pods lie directly in kubepods, and the cgroups of other pods lie in the cgroup
    /// of their QoS class. Returns `None` if the path has too few parts.
    pub fn new(cgroup: CgroupPath, class: QosClass) -> Option<Self> {
        let parent = cgroup.parent()?;
        let (class_cgroup, kubepods) = match class {
            QosClass::Guaranteed => (None, parent),
            QosClass::Burstable | QosClass::BestEffort => {
                let kubepods = parent.parent()?;
                (Some(parent), kubepods)
            }
        };
        Some(Self { cgroup, class, class_cgroup, kubepods })
    }

    /// Returns the pod's cgroup.
    pub fn cgroup(&self) -> &CgroupPath {
        &self.cgroup
    }

    /// Returns the pod's class.
    pub const fn class(&self) -> QosClass {
        self.class
    }

    /// Returns the cgroup of the pod's class. Returns `None` for a Guaranteed pod.
    pub fn class_cgroup(&self) -> Option<&CgroupPath> {
        self.class_cgroup.as_ref()
    }

    /// Returns the cgroup of all pods.
    pub fn kubepods(&self) -> &CgroupPath {
        &self.kubepods
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: &str) -> CgroupPath {
        CgroupPath::parse(path).unwrap()
    }

    fn place(cgroup: &str, class: QosClass) -> PodPlace {
        PodPlace::new(path(cgroup), class).unwrap()
    }

    #[test]
    fn the_path_determines_class_cgroup_and_kubepods() {
        let pod = place("kubepods.slice/kubepods-burstable.slice/pod.slice", QosClass::Burstable);
        assert_eq!(pod.class_cgroup(), Some(&path("kubepods.slice/kubepods-burstable.slice")));
        assert_eq!(pod.kubepods(), &path("kubepods.slice"));
        assert_eq!(pod.kubepods().lineage().skip(1).count(), 0);
        let pod = place("a/b/kubepods/pod1", QosClass::Guaranteed);
        assert_eq!(pod.kubepods().lineage().skip(1).collect::<Vec<_>>(), [path("a/b"), path("a")]);
        let pod = place("custom/kubepods/pod1", QosClass::Guaranteed);
        assert_eq!(pod.class_cgroup(), None);
        assert_eq!((pod.kubepods(), pod.class()), (&path("custom/kubepods"), QosClass::Guaranteed));
        assert_eq!(pod.cgroup(), &path("custom/kubepods/pod1"));
        for (cgroup, class) in [
            ("pod1", QosClass::Guaranteed),
            ("pod1", QosClass::Burstable),
            ("burstable/pod1", QosClass::Burstable),
            ("besteffort/pod1", QosClass::BestEffort),
        ] {
            assert_eq!(PodPlace::new(path(cgroup), class), None, "{cgroup}");
        }
    }
}

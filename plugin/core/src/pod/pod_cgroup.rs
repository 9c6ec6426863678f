//! Class and identifier of a pod, read from the name of the pod's cgroup.

use std::borrow::Borrow;
use std::fmt;

use super::qos::QosClass;

/// Unique identifier of a pod as the kubelet writes it: a UUID, or the hash of a static pod's file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid(String);

impl PodUid {
    /// Creates an identifier from unchecked text. The plugin only compares identifiers and never
    /// builds a path from one.
    pub fn new(uid: impl Into<String>) -> Self {
        Self(uid.into())
    }

    /// Returns the identifier as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for PodUid {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Class and identifier of a pod. The kubelet encodes both in the name of the pod's cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodCgroup {
    /// The pod's QoS class, which determines the parent of the pod's cgroup.
    pub class: QosClass,
    /// The pod's identifier.
    pub uid: PodUid,
}

impl PodCgroup {
    /// Parses the cgroup parent that the runtime reports for a pod (`pod.linux.cgroup_parent` in
    /// NRI).
    ///
    /// Accepts the names that the kubelet uses with each cgroup driver, below any `--cgroup-root`:
    ///
    /// - systemd: `kubepods-burstable-pod<uid with _ for ->.slice`, alone or at the end of a path;
    /// - cgroupfs: `/kubepods/burstable/pod<uid>`.
    ///
    /// The cgroups of Guaranteed pods have no class in their names and lie directly below
    /// `kubepods`. Returns `None` if the kubelet did not create this cgroup. Sources: Kubernetes
    /// `pkg/kubelet/cm/cgroup_manager_linux.go` and `pod_container_manager_linux.go`.
    pub fn parse(cgroup_parent: &str) -> Option<Self> {
        let path = cgroup_parent.trim_end_matches('/');
        let name = path.rsplit('/').next()?;
        if let Some(stem) = name.strip_suffix(".slice") {
            // systemd splits slice names at "-", so the kubelet writes "_" for each "-" of the
            // identifier.
            let uid = stem.rsplit('-').next()?.strip_prefix("pod")?;
            return Self::below(stem.rsplit('-').skip(1), uid.replace('_', "-"));
        }
        Self::below(path.rsplit('/').skip(1), name.strip_prefix("pod")?.to_owned())
    }

    /// Builds the result from the pod's identifier and from `ancestors`. `ancestors` are the names
    /// of the cgroups above the pod's cgroup, nearest first.
    fn below<'a>(mut ancestors: impl Iterator<Item = &'a str>, uid: String) -> Option<Self> {
        let class = match ancestors.next()? {
            "kubepods" => QosClass::Guaranteed,
            nearest => {
                let class = match nearest {
                    "burstable" => QosClass::Burstable,
                    "besteffort" => QosClass::BestEffort,
                    _ => return None,
                };
                if ancestors.next()? != "kubepods" {
                    return None;
                }
                class
            }
        };
        (!uid.is_empty()).then(|| Self { class, uid: PodUid::new(uid) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(parent: &str) -> Option<(QosClass, String)> {
        PodCgroup::parse(parent).map(|pod| (pod.class, pod.uid.to_string()))
    }

    #[test]
    fn kubelet_cgroup_names_give_class_and_uid() {
        const UID: &str = "0f3c2d6e-1a2b-4c5d-8e9f-001122334455";
        const ESCAPED: &str = "0f3c2d6e_1a2b_4c5d_8e9f_001122334455";
        for (parent, class) in [
            (format!("kubepods-burstable-pod{ESCAPED}.slice"), QosClass::Burstable),
            (format!("kubepods-besteffort-pod{ESCAPED}.slice"), QosClass::BestEffort),
            (format!("kubepods-pod{ESCAPED}.slice"), QosClass::Guaranteed),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{ESCAPED}.slice"
                ),
                QosClass::Burstable,
            ),
            (format!("/kubepods.slice/kubepods-pod{ESCAPED}.slice/"), QosClass::Guaranteed),
            (
                format!(
                    "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort-\
                     pod{ESCAPED}.slice"
                ),
                QosClass::BestEffort,
            ),
            (format!("kubelet-kubepods-pod{ESCAPED}.slice"), QosClass::Guaranteed),
            (format!("/kubepods/burstable/pod{UID}"), QosClass::Burstable),
            (format!("/kubepods/besteffort/pod{UID}"), QosClass::BestEffort),
            (format!("/kubepods/pod{UID}"), QosClass::Guaranteed),
            (format!("kubepods/pod{UID}"), QosClass::Guaranteed),
            (format!("/custom/root/kubepods/burstable/pod{UID}/"), QosClass::Burstable),
        ] {
            assert_eq!(parsed(&parent), Some((class, UID.to_owned())), "{parent}");
        }
    }

    #[test]
    fn a_static_pods_hash_is_its_uid() {
        assert_eq!(
            parsed("kubepods-burstable-pod09ad8fb0e5d34b4a6e1f3a2b1c0d9e8f.slice"),
            Some((QosClass::Burstable, "09ad8fb0e5d34b4a6e1f3a2b1c0d9e8f".to_owned()))
        );
    }

    #[test]
    fn other_parents_give_no_class_or_uid() {
        for parent in [
            "",
            "/",
            "///",
            "system.slice",
            "/system.slice/foo.service",
            "kubepods.slice",
            "kubepods-burstable.slice",
            "/kubepods/burstable",
            "/kubepods/burstable/pod",
            "kubepods-pod.slice",
            "kubepods-unknown-pod1.slice",
            "burstable-pod1.slice",
            "/burstable/pod1",
            "/pod1",
            "pod1.slice",
            "/machine/pod1",
            "/kubepods/burstable/extra/pod1",
            "kubepods-burstable-pod1.scope",
            "podman-pod1.slice",
        ] {
            assert_eq!(parsed(parent), None, "{parent}");
        }
    }

    proptest! {
        #[test]
        fn parsing_arbitrary_text_causes_no_panic(text in ".{0,60}") {
            let _ = PodCgroup::parse(&text);
        }

        #[test]
        fn a_parsed_parent_has_a_nonempty_uid(text in "(/|kubepods|burstable|besteffort|\
            -|pod|[.]slice|_|x){0,12}") {
            if let Some(pod) = PodCgroup::parse(&text) {
                prop_assert!(!pod.uid.as_str().is_empty());
            }
        }
    }
}

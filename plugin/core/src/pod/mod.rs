//! Facts about a pod and its containers, with the source of each number.

pub mod kubepods;
mod path;

use std::borrow::Borrow;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::path::{CgroupPath, InvalidPath, SUBGROUP};
use crate::units::{Bytes, Limit, MilliCpu};

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

/// Quality of service class of a pod, as Kubernetes defines it.
///
/// `Display` writes the name that the Kubernetes API uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum QosClass {
    /// Every container has a CPU limit and a memory limit, and its requests equal its limits.
    Guaranteed,
    /// At least one container has a request or a limit, but the pod is not Guaranteed.
    Burstable,
    /// No container has a request or a limit.
    BestEffort,
}

impl QosClass {
    /// Returns the class of a pod from the CPU and memory requests and limits of its containers.
    ///
    /// The rule is `ComputePodQOS` in Kubernetes' `pkg/apis/core/v1/helper/qos`. Init containers
    /// count, ephemeral containers do not. Zero counts as not set.
    ///
    /// The caller must first default missing requests to the limits, as the API server does.
    pub fn from_resources<'a>(containers: impl IntoIterator<Item = &'a Stated>) -> Self {
        let mut any = false;
        let mut every_limit_given = true;
        let (mut cpu_requests, mut cpu_limits) = (0u128, 0u128);
        let (mut memory_requests, mut memory_limits) = (0u128, 0u128);
        for container in containers {
            let [cpu_request, cpu_limit] = [container.cpu_request, container.cpu_limit]
                .map(|amount| amount.map_or(0, MilliCpu::get));
            let [memory_request, memory_limit] = [container.memory_request, container.memory_limit]
                .map(|amount| amount.map_or(0, Bytes::get));
            any |= [cpu_request, cpu_limit, memory_request, memory_limit]
                .iter()
                .any(|&amount| amount != 0);
            every_limit_given &= cpu_limit != 0 && memory_limit != 0;
            cpu_requests += u128::from(cpu_request);
            cpu_limits += u128::from(cpu_limit);
            memory_requests += u128::from(memory_request);
            memory_limits += u128::from(memory_limit);
        }
        if !any {
            Self::BestEffort
        } else if every_limit_given
            && cpu_requests == cpu_limits
            && memory_requests == memory_limits
        {
            Self::Guaranteed
        } else {
            Self::Burstable
        }
    }
}

impl fmt::Display for QosClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        })
    }
}

/// Requests and limits as stated in a pod's specification. They belong to one container, or to the
/// pod where it has pod-level resources. `None` means not set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stated {
    /// CPU request.
    pub cpu_request: Option<MilliCpu>,
    /// CPU limit.
    pub cpu_limit: Option<MilliCpu>,
    /// Memory request.
    pub memory_request: Option<Bytes>,
    /// Memory limit.
    pub memory_limit: Option<Bytes>,
}

impl Stated {
    /// Sets missing requests to the limits, as the API server does when it stores a pod.
    #[must_use]
    pub fn with_defaults(self) -> Self {
        Self {
            cpu_request: self.cpu_request.or(self.cpu_limit),
            memory_request: self.memory_request.or(self.memory_limit),
            ..self
        }
    }
}

/// Class and identifier of a pod, which the kubelet encodes in the name of the pod's cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodCgroup {
    /// The pod's class, which decides under which parent cgroup the kubelet puts the pod.
    pub class: QosClass,
    /// The pod's identifier.
    pub uid: PodUid,
}

impl PodCgroup {
    /// Parses the cgroup parent that the runtime reports for a pod (`pod.linux.cgroup_parent` in
    /// NRI).
    ///
    /// The names of both kubelet cgroup drivers are accepted, below any `--cgroup-root`:
    ///
    /// - systemd: `kubepods-burstable-pod<uid with _ for ->.slice`, alone or at the end of a path;
    /// - cgroupfs: `/kubepods/burstable/pod<uid>`.
    ///
    /// Names of Guaranteed pods contain no class, and their cgroups lie directly below `kubepods`.
    /// Returns `None` if no kubelet made this parent. Sources: Kubernetes
    /// `pkg/kubelet/cm/cgroup_manager_linux.go` and `pod_container_manager_linux.go`.
    pub fn parse(cgroup_parent: &str) -> Option<Self> {
        let path = cgroup_parent.trim_end_matches('/');
        let name = path.rsplit('/').next()?;
        if let Some(stem) = name.strip_suffix(".slice") {
            // In slice names "-" means nesting, so the kubelet writes "_" for each "-" of the
            // identifier.
            let uid = stem.rsplit('-').next()?.strip_prefix("pod")?;
            return Self::below(stem.rsplit('-').skip(1), uid.replace('_', "-"));
        }
        Self::below(path.rsplit('/').skip(1), name.strip_prefix("pod")?.to_owned())
    }

    /// Builds the result from the pod's identifier and its `ancestors`. `ancestors` are the names
    /// above the pod, nearest first.
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

/// Checkpoint file of the kubelet that holds a record. The files lie in the kubelet's root
/// directory (`/var/lib/kubelet`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CheckpointFile {
    /// `actuated_pods_state` (1.33 and later): written just before the kubelet creates a container.
    Actuated,
    /// `allocated_pods_state` (1.33 and later): written when the kubelet admits a pod or accepts a
    /// resize.
    Allocated,
    /// `pod_status_manager_state` (1.32): written only with the alpha feature gate for in-place
    /// resize.
    StatusManager,
}

impl CheckpointFile {
    /// Returns the name of the file.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Actuated => "actuated_pods_state",
            Self::Allocated => "allocated_pods_state",
            Self::StatusManager => "pod_status_manager_state",
        }
    }
}

/// Source of a memory request. `Display` writes a stable lowercase label for logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Provenance {
    /// The kubelet's checkpoint. Exact.
    Checkpoint(CheckpointFile),
    /// `memory.min` or `memory.low` in the unified map that the kubelet sent. Exact.
    Unified,
    /// The pod's annotation `memory-request.plimsoll.nri.io`. Exact, but only as reliable as the
    /// author of the pod.
    Annotation,
    /// The QoS class alone: a Guaranteed container requests its limit, a BestEffort container 0.
    /// Exact.
    QosClass,
    /// The container's `oom_score_adj`, inverted. The bounds lie a thousandth of the node's memory
    /// apart, and up to three thousandths for the values 3 and 999.
    OomScoreAdj,
    /// The pod's own specification, which only `plimsoll explain` reads. Exact.
    PodSpec,
}

impl Provenance {
    /// Returns the label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Checkpoint(CheckpointFile::Actuated) => "checkpoint-actuated",
            Self::Checkpoint(CheckpointFile::Allocated) => "checkpoint-allocated",
            Self::Checkpoint(CheckpointFile::StatusManager) => "checkpoint-status-manager",
            Self::Unified => "unified",
            Self::Annotation => "annotation",
            Self::QosClass => "qos-class",
            Self::OomScoreAdj => "oom-score-adj",
            Self::PodSpec => "pod-spec",
        }
    }
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Memory request of a container, with its source and its error bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The request in bytes. If the request is not exact, this is its lower bound. So no container
    /// is protected beyond its request.
    pub bytes: Bytes,
    /// The upper bound of the request. Equals `bytes` if the request is exact.
    pub at_most: Bytes,
    /// The source of the request.
    pub provenance: Provenance,
}

impl Request {
    /// Creates a request that is known to the byte.
    pub const fn exact(bytes: Bytes, provenance: Provenance) -> Self {
        Self { bytes, at_most: bytes, provenance }
    }

    /// Returns by how many bytes the true request may exceed `bytes`.
    pub const fn error_bound(&self) -> Bytes {
        self.at_most.saturating_sub(self.bytes)
    }

    /// Returns the request with each bound lowered to at most `ceiling`.
    #[must_use]
    pub fn capped(self, ceiling: Bytes) -> Self {
        Self { bytes: self.bytes.min(ceiling), at_most: self.at_most.min(ceiling), ..self }
    }
}

/// Writes for example `128Mi (annotation)` or `62Mi to 64Mi (oom-score-adj)`.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.bytes.quantity())?;
        if self.at_most != self.bytes {
            write!(f, " to {}", self.at_most.quantity())?;
        }
        write!(f, " ({})", self.provenance)
    }
}

/// Known memory request and limit of one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// The request. `None` means unknown, which differs from zero.
    pub request: Option<Request>,
    /// The limit (`memory.max`).
    pub limit: Limit,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(parent: &str) -> Option<(QosClass, String)> {
        PodCgroup::parse(parent).map(|pod| (pod.class, pod.uid.to_string()))
    }

    #[test]
    fn the_class_is_read_from_the_kubelets_cgroup_names() {
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
                    "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort-pod{ESCAPED}.slice"
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
    fn a_static_pods_hash_is_an_identifier_too() {
        assert_eq!(
            parsed("kubepods-burstable-pod09ad8fb0e5d34b4a6e1f3a2b1c0d9e8f.slice"),
            Some((QosClass::Burstable, "09ad8fb0e5d34b4a6e1f3a2b1c0d9e8f".to_owned()))
        );
    }

    #[test]
    fn without_a_kubelet_parent_there_is_no_class() {
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

    fn stated(cpu: (u64, u64), memory: (u64, u64)) -> Stated {
        let some = |amount: u64| (amount != 0).then_some(amount);
        Stated {
            cpu_request: some(cpu.0)
                .map(|milli| MilliCpu::from_quantity(&format!("{milli}m")).unwrap()),
            cpu_limit: some(cpu.1)
                .map(|milli| MilliCpu::from_quantity(&format!("{milli}m")).unwrap()),
            memory_request: some(memory.0).map(Bytes::new),
            memory_limit: some(memory.1).map(Bytes::new),
        }
    }

    #[test]
    fn the_class_follows_from_requests_and_limits() {
        let guaranteed = stated((100, 100), (64, 64));
        let nothing = Stated::default();
        for (containers, class) in [
            (vec![], QosClass::BestEffort),
            (vec![nothing], QosClass::BestEffort),
            (vec![guaranteed], QosClass::Guaranteed),
            (vec![guaranteed, guaranteed], QosClass::Guaranteed),
            (vec![guaranteed, nothing], QosClass::Burstable),
            (vec![stated((0, 0), (64, 64))], QosClass::Burstable),
            (vec![stated((100, 0), (0, 0))], QosClass::Burstable),
            (vec![stated((0, 0), (32, 64))], QosClass::Burstable),
            (vec![stated((50, 100), (64, 64))], QosClass::Burstable),
            (vec![stated((0, 100), (0, 64)).with_defaults()], QosClass::Guaranteed),
        ] {
            assert_eq!(QosClass::from_resources(&containers), class, "{containers:?}");
        }
    }

    #[test]
    fn a_request_shows_its_error() {
        let mib = |amount: u64| Bytes::new(amount << 20);
        assert_eq!(
            Request::exact(mib(128), Provenance::Annotation).to_string(),
            "128Mi (annotation)"
        );
        let vague =
            Request { bytes: mib(62), at_most: mib(64), provenance: Provenance::OomScoreAdj };
        assert_eq!(vague.to_string(), "62Mi to 64Mi (oom-score-adj)");
        assert_eq!(vague.error_bound(), mib(2));
        assert_eq!(vague.capped(mib(63)).at_most, mib(63));
    }

    proptest! {
        #[test]
        fn any_text_is_a_kubelet_parent_or_not(text in ".{0,60}") {
            let _ = PodCgroup::parse(&text);
        }

        #[test]
        fn anything_like_a_kubelet_parent_is_one_or_not(text in "(/|kubepods|burstable|besteffort|-|pod|[.]slice|_|x){0,12}") {
            if let Some(pod) = PodCgroup::parse(&text) {
                prop_assert!(!pod.uid.as_str().is_empty());
            }
        }
    }
}

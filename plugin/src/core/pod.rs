//! What is known of a pod and its containers, and where each number came from.

use std::borrow::Borrow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::core::units::{Bytes, Limit, MilliCpu};

/// A pod's unique identifier as the kubelet writes it: a UUID, or the hash of a static pod's file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid(String);

impl PodUid {
    /// An identifier, taken as it is: it is only ever compared, never made a path of.
    pub fn new(uid: impl Into<String>) -> Self {
        Self(uid.into())
    }

    /// The identifier as text.
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

/// A pod's quality of service class, in the sense of Kubernetes.
///
/// `Display` gives the name that the Kubernetes API uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum QosClass {
    /// Every container has a processor and a memory limit, and requests equal to them.
    Guaranteed,
    /// Some container has a request or a limit.
    Burstable,
    /// No container has a request or a limit.
    BestEffort,
}

impl QosClass {
    /// The class of a pod by the requests and limits of all its containers, init containers included and
    /// ephemeral ones not. Zero counts as not given. This is the rule of `ComputePodQOS` in Kubernetes'
    /// `pkg/apis/core/v1/helper/qos`, for processor and memory.
    ///
    /// Requests must already be defaulted to limits, as the API server does.
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

/// Requests and limits as a pod's specification states them, for one container or, where the pod has resources of
/// its own, for the pod. `None` is not given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stated {
    /// Processor request.
    pub cpu_request: Option<MilliCpu>,
    /// Processor limit.
    pub cpu_limit: Option<MilliCpu>,
    /// Memory request.
    pub memory_request: Option<Bytes>,
    /// Memory limit.
    pub memory_limit: Option<Bytes>,
}

impl Stated {
    /// Fills in requests that were not given from the limits, as the API server does when it stores a pod.
    #[must_use]
    pub fn with_defaults(self) -> Self {
        Self {
            cpu_request: self.cpu_request.or(self.cpu_limit),
            memory_request: self.memory_request.or(self.memory_limit),
            ..self
        }
    }
}

/// What a pod's cgroup says about it: the kubelet encodes class and identifier in its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodCgroup {
    /// The class, which decides under which parent the kubelet puts the pod.
    pub class: QosClass,
    /// The pod's identifier.
    pub uid: PodUid,
}

impl PodCgroup {
    /// Reads the cgroup parent that the runtime reports for a pod (`pod.linux.cgroup_parent` in NRI).
    ///
    /// Both of the kubelet's drivers are understood, below any `--cgroup-root`:
    ///
    /// - systemd: `kubepods-burstable-pod<uid with _ for ->.slice`, alone or at the end of a path;
    /// - cgroupfs: `/kubepods/burstable/pod<uid>`.
    ///
    /// Guaranteed pods have no class in the name and sit directly below `kubepods`. `None` means that no kubelet
    /// made this parent. See `pkg/kubelet/cm/cgroup_manager_linux.go` and `pod_container_manager_linux.go`.
    pub fn parse(cgroup_parent: &str) -> Option<Self> {
        let path = cgroup_parent.trim_end_matches('/');
        let name = path.rsplit('/').next()?;
        if let Some(stem) = name.strip_suffix(".slice") {
            // systemd nests slices by "-", so the driver writes the identifier's own "-" as "_".
            let uid = stem.rsplit('-').next()?.strip_prefix("pod")?;
            return Self::below(stem.rsplit('-').skip(1), uid.replace('_', "-"));
        }
        Self::below(path.rsplit('/').skip(1), name.strip_prefix("pod")?.to_owned())
    }

    /// `ancestors` are the names above the pod, nearest first.
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

/// Which of the kubelet's checkpoint files, below its root directory (`/var/lib/kubelet`), holds a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CheckpointFile {
    /// `actuated_pods_state` (1.33 and later): written just before a container is created.
    Actuated,
    /// `allocated_pods_state` (1.33 and later): written when a pod is admitted or a resize accepted.
    Allocated,
    /// `pod_status_manager_state` (1.32, only with the alpha gate for in-place resize).
    StatusManager,
}

impl CheckpointFile {
    /// The name of the file.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Actuated => "actuated_pods_state",
            Self::Allocated => "allocated_pods_state",
            Self::StatusManager => "pod_status_manager_state",
        }
    }
}

/// Where a memory request was learnt. `Display` gives a stable lowercase label, fit for logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Provenance {
    /// The kubelet's checkpoint: exact.
    Checkpoint(CheckpointFile),
    /// `memory.min` or `memory.low` in the unified map that the kubelet sent: exact.
    Unified,
    /// The pod's annotation `memory-request.plimsoll.nri.io`: exact, and as true as its author.
    Annotation,
    /// The QoS class alone: a Guaranteed container requests its limit, a BestEffort one nothing. Exact.
    QosClass,
    /// The container's `oom_score_adj`, inverted: within a thousandth of the node's memory.
    OomScoreAdj,
    /// The pod's own specification, which only `plimsoll explain` sees: exact.
    PodSpec,
}

impl Provenance {
    /// The label.
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

/// A container's memory request, with where it came from and how far it may be off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The request in bytes; where it is not exact, the lowest that it can be, so that no container is protected
    /// beyond what it asked for.
    pub bytes: Bytes,
    /// The highest that the request can be; equal to `bytes` where it is exact.
    pub at_most: Bytes,
    /// Where it came from.
    pub provenance: Provenance,
}

impl Request {
    /// A request known to the byte.
    pub const fn exact(bytes: Bytes, provenance: Provenance) -> Self {
        Self { bytes, at_most: bytes, provenance }
    }

    /// By how many bytes the true request may exceed `bytes`.
    pub const fn error_bound(&self) -> Bytes {
        self.at_most.saturating_sub(self.bytes)
    }

    /// The request with both bounds brought down to `ceiling` where they exceed it.
    #[must_use]
    pub fn capped(self, ceiling: Bytes) -> Self {
        Self { bytes: self.bytes.min(ceiling), at_most: self.at_most.min(ceiling), ..self }
    }
}

/// As in `128Mi (annotation)` and `62Mi to 64Mi (oom-score-adj)`.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.bytes.quantity())?;
        if self.at_most != self.bytes {
            write!(f, " to {}", self.at_most.quantity())?;
        }
        write!(f, " ({})", self.provenance)
    }
}

/// What is known of one container's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// The request; `None` is unknown, which is not zero.
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

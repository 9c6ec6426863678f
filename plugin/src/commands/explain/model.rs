//! Data types of explanations, and of the mistakes that prevent an explanation.

use std::fmt;

use plimsoll_core::pod::{ContainerRole, QosClass, SpecResources};
use plimsoll_core::policy::{Decision, Node, Policy, Setting};
use plimsoll_core::units::{Bytes, Limit};
use serde::Serialize;
use thiserror::Error;

use crate::yaml::SyntaxError;

/// Maximum size of a manifest, in bytes.
pub const LARGEST: usize = 4 << 20;

/// Settings that apply to every explained pod.
#[derive(Clone, Debug)]
pub struct Basis {
    /// Memory policy of the node.
    pub policy: Policy,
    /// Node allocatable and page size of the node.
    pub node: Node,
    /// Description of the source of node allocatable.
    pub allocatable_source: String,
}

/// Reason why a manifest cannot be explained.
#[derive(Debug, Error)]
pub enum ExplainError {
    /// The manifest is too large. Contains the size in bytes.
    #[error("expected a manifest of at most {LARGEST} bytes, found {0}")]
    TooLarge(usize),
    /// The manifest is not YAML or JSON.
    #[error("line {}: expected {_0}", _0.place.line)]
    Syntax(SyntaxError),
    /// The manifest contains no pod.
    #[error("expected a Pod, or an object with a pod template such as a Deployment; found {0}")]
    NoPod(String),
    /// A pod or one of its quantities is invalid. Contains one line for each mistake.
    #[error("{}", .0.join("\n"))]
    Pods(Vec<String>),
}

/// Explanation of a whole manifest. `Display` writes text for 80 columns. The serialized
/// explanation has the format of `--json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Node allocatable in bytes, if known.
    pub node_allocatable: Option<Bytes>,
    /// Source of node allocatable.
    pub node_allocatable_source: String,
    /// Page size in bytes.
    pub page_size: u64,
    /// Throttling factor from the node's configuration, if any.
    pub memory_throttling_factor: Option<f64>,
    /// Reservation policy from the node's configuration.
    pub memory_reservation_policy: String,
    /// Names of the objects in the manifest that are not pods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<String>,
    /// Explanations of the pods, in the order of the manifest.
    pub pods: Vec<PodExplanation>,
}

/// Explanation of one pod.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodExplanation {
    /// Kind and name of the object, such as `Pod web`.
    pub object: String,
    /// QoS class of the pod.
    pub qos_class: QosClass,
    /// Notes for the owner of the pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Explanations of the containers, init containers first.
    pub containers: Vec<ContainerExplanation>,
    /// Requests and limits of the whole pod as the manifest states them, without defaults.
    #[serde(skip)]
    pub(crate) typed: SpecResources,
    /// The part of `notes` that reports annotations without effect.
    #[serde(skip)]
    pub(crate) without_effect: Vec<String>,
}

/// Explanation of one container.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerExplanation {
    /// Name of the container.
    pub name: String,
    /// Kind of the container.
    pub kind: ContainerKind,
    /// Memory request in bytes.
    pub request: Bytes,
    /// Whether the API server copies the request from the limit.
    pub request_defaulted_to_limit: bool,
    /// Memory limit in bytes (`memory.max`), if any.
    pub limit: Option<Bytes>,
    /// Whether the container has no limit of its own, so that the kubelet gives it the pod's limit.
    pub limit_from_pod: bool,
    /// Value for `memory.min`.
    pub memory_min: KnobExplanation,
    /// Value for `memory.low`.
    pub memory_low: KnobExplanation,
    /// Value for `memory.high`.
    pub memory_high: KnobExplanation,
    /// Notes for the owner of the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// End of the drawing's scale: the limit, or node allocatable if the container has no limit.
    #[serde(skip)]
    pub(super) scale: Option<Bytes>,
    /// JSON pointer from the pod to the container.
    #[serde(skip)]
    pub(crate) pointer: String,
    /// Requests and limits of the container as the manifest states them, without defaults.
    #[serde(skip)]
    pub(crate) typed: SpecResources,
    /// The part of `notes` that reports annotations without effect.
    #[serde(skip)]
    pub(crate) without_effect: Vec<String>,
}

/// Kind of a container in a pod's specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerKind {
    /// Init container that ends before the ordinary containers start.
    Init,
    /// Init container that keeps running (`restartPolicy: Always`).
    Sidecar,
    /// Ordinary container.
    Container,
}

impl ContainerKind {
    /// Returns the role of the container in the sum of the pod's requests.
    pub(super) fn role(self) -> ContainerRole {
        match self {
            Self::Init => ContainerRole::Init,
            Self::Sidecar => ContainerRole::Sidecar,
            Self::Container => ContainerRole::Ordinary,
        }
    }
}

impl fmt::Display for ContainerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Init => "init container",
            Self::Sidecar => "sidecar",
            Self::Container => "container",
        })
    }
}

/// Explanation of one cgroup v2 file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KnobExplanation {
    /// Value before the kernel rounds it to pages: bytes or `"max"`. `None` if the plugin does not
    /// write the file.
    pub value: Option<Limit>,
    /// Action of the plugin for the file: `set`, `default` or `leave-alone`.
    pub setting: &'static str,
    /// Reason for the action, in one sentence.
    pub reason: String,
    #[serde(skip)]
    pub(super) bytes: Option<Bytes>,
}

impl KnobExplanation {
    pub(super) fn new(decision: Decision, value: Option<Limit>) -> Self {
        let (setting, bytes) = match decision.setting {
            Setting::Set(limit) => ("set", limit.bytes()),
            Setting::Default => ("default", None),
            Setting::LeaveAlone => ("leave-alone", None),
        };
        Self { value, setting, reason: decision.reason.to_string(), bytes }
    }
}

/// Mistake in a pod's manifest.
pub(crate) struct Mistake {
    /// JSON pointer from the pod to the mistake. The pod may lack the pointer's last fields.
    pub(crate) pointer: String,
    /// Kind and name of the container, if the mistake concerns only one container.
    pub(crate) container: Option<(ContainerKind, String)>,
    /// Description of the expected and the found value.
    pub(crate) problem: String,
}

impl Mistake {
    /// Returns a mistake that concerns the whole pod.
    pub(super) fn of_pod(pointer: &str, problem: String) -> Self {
        Self { pointer: pointer.to_owned(), container: None, problem }
    }
}

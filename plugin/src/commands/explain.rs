//! Explains the values that a pod's containers would get, from the manifest alone (`plimsoll
//! explain`).

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use plimsoll_core::pod::{Provenance, QosClass, Request, Resources, Stated};
use plimsoll_core::policy::{Decision, Node, Policy, Setting, desired};
use plimsoll_core::requests::annotation::{self, Overrides};
use plimsoll_core::requests::{Notice, overridden};
use plimsoll_core::units::{Bytes, Limit, MilliCpu, QuantityError, excerpt};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_path_to_error::Segment;
use thiserror::Error;

/// Maximum size of a manifest, in bytes.
pub const LARGEST: usize = 4 << 20;

/// Settings that apply to every explained pod.
#[derive(Clone, Debug)]
pub struct Basis {
    /// Policy of the node.
    pub policy: Policy,
    /// Node allocatable and page size of the node.
    pub node: Node,
    /// Source of node allocatable, for readers.
    pub allocatable_source: String,
}

/// Reason why a manifest cannot be explained.
#[derive(Debug, Error)]
pub enum ExplainError {
    /// The manifest is too large. Holds the size in bytes.
    #[error("expected a manifest of at most {LARGEST} bytes, found {0}")]
    TooLarge(usize),
    /// The manifest is not YAML or JSON.
    #[error("expected pods as YAML or JSON: {0}")]
    Syntax(String),
    /// The manifest contains no pod.
    #[error("expected a Pod, or an object with a pod template such as a Deployment; found {0}")]
    NoPod(String),
    /// A pod or one of its quantities is invalid. Holds one line for each mistake.
    #[error("{}", .0.join("\n"))]
    Pods(Vec<String>),
}

/// Explanation of a whole manifest. `Display` writes text for 80 columns. Serialized, the
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
    /// Throttling factor of the node, if any.
    pub memory_throttling_factor: Option<f64>,
    /// Reservation policy of the node.
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
    pub(crate) typed: Stated,
    /// Subset of the notes that report annotations without effect.
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
    /// Value for `memory.min`.
    pub memory_min: KnobExplanation,
    /// Value for `memory.low`.
    pub memory_low: KnobExplanation,
    /// Value for `memory.high`.
    pub memory_high: KnobExplanation,
    /// Notes for the owner of the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// End of the drawing's scale: the limit, or else node allocatable.
    #[serde(skip)]
    scale: Option<Bytes>,
    /// JSON pointer to the container in the pod.
    #[serde(skip)]
    pub(crate) pointer: String,
    /// Requests and limits of the container as the manifest states them, without defaults.
    #[serde(skip)]
    pub(crate) typed: Stated,
    /// Subset of the notes that report annotations without effect.
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
    /// Value before the kernel rounds it to pages: bytes or `"max"`. `None` if the plugin leaves
    /// the file alone.
    pub value: Option<Limit>,
    /// Action for the file: `set`, `default` or `leave-alone`.
    pub setting: &'static str,
    /// Reason for the action, in one sentence.
    pub reason: String,
    #[serde(skip)]
    bytes: Option<Bytes>,
}

impl KnobExplanation {
    fn new(decision: Decision, value: Option<Limit>) -> Self {
        let (setting, bytes) = match decision.setting {
            Setting::Set(limit) => ("set", limit.bytes()),
            Setting::Default => ("default", None),
            Setting::LeaveAlone => ("leave-alone", None),
        };
        Self { value, setting, reason: decision.reason.to_string(), bytes }
    }
}

/// Explains every pod in a manifest: YAML with one or more documents, or JSON. Each item of a list
/// is explained like a document. An object with a pod template counts as a pod (Deployments, Jobs,
/// CronJobs and so on). Other objects are skipped and named in the result.
///
/// # Errors
///
/// If the manifest is too large or cannot be parsed. If the manifest contains no pod. If a pod has
/// mistakes: then the error lists the mistakes of all pods.
pub fn explain(manifest: &str, basis: &Basis) -> Result<Explanation, ExplainError> {
    if manifest.len() > LARGEST {
        return Err(ExplainError::TooLarge(manifest.len()));
    }
    // Read an unquoted `n` or `on` as a string, not as a boolean.
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(manifest, options)
        .map_err(|error| ExplainError::Syntax(error.to_string()))?;

    let mut pods = Vec::new();
    let mut skipped = Vec::new();
    let mut errors = Vec::new();
    for (_, document) in documents.into_iter().flat_map(opened) {
        if document.is_null() {
            continue;
        }
        let object = object_name(&document);
        let Some((_, template)) = pod_template(document) else {
            skipped.push(object);
            continue;
        };
        match explain_template(&object, &template, basis) {
            Ok(pod) => pods.push(pod),
            Err(mistakes) => {
                errors.extend(mistakes.into_iter().map(|mistake| match mistake.container {
                    Some((kind, name)) => format!("{object}, {kind} {name}: {}", mistake.problem),
                    None => format!("{object}: {}", mistake.problem),
                }));
            }
        }
    }
    if !errors.is_empty() {
        return Err(ExplainError::Pods(errors));
    }
    if pods.is_empty() {
        let found = if skipped.is_empty() { "nothing".to_owned() } else { skipped.join(", ") };
        return Err(ExplainError::NoPod(found));
    }
    Ok(Explanation {
        node_allocatable: basis.node.allocatable,
        node_allocatable_source: basis.allocatable_source.clone(),
        page_size: basis.node.page_size.get(),
        memory_throttling_factor: basis.policy.throttling.map(|factor| factor.get()),
        memory_reservation_policy: basis.policy.reservation.to_string(),
        skipped,
        pods,
    })
}

/// Mistake in a pod's manifest.
pub(crate) struct Mistake {
    /// JSON pointer to the mistake in the pod. The last parts of the pointer may not exist.
    pub(crate) pointer: String,
    /// Kind and name of the container, if the mistake concerns only one container.
    pub(crate) container: Option<(ContainerKind, String)>,
    /// Description of the expected and the found value.
    pub(crate) problem: String,
}

/// Returns the items of a list, or the document itself if it is not a list. Each value has its JSON
/// pointer in the document.
///
/// Items of a typed list such as a PodList may omit their kind. The function then adds the kind.
pub(crate) fn opened(mut document: Value) -> Vec<(String, Value)> {
    let kind = document.get("kind").and_then(Value::as_str);
    let Some(of_items) = kind.and_then(|kind| kind.strip_suffix("List")).map(str::to_owned) else {
        return vec![(String::new(), document)];
    };
    match document.get_mut("items") {
        Some(Value::Array(items)) => {
            let opened = items.drain(..).enumerate().map(|(index, mut item)| {
                if let Value::Object(item) = &mut item
                    && !of_items.is_empty()
                {
                    item.entry("kind").or_insert_with(|| of_items.clone().into());
                }
                (format!("/items/{index}"), item)
            });
            opened.collect()
        }
        _ if of_items.is_empty() => Vec::new(),
        _ => vec![(String::new(), document)],
    }
}

pub(crate) fn object_name(document: &Value) -> String {
    let text = |pointer: &str, otherwise: &str| {
        excerpt(document.pointer(pointer).and_then(Value::as_str).unwrap_or(otherwise))
    };
    let name = match text("/metadata/name", "") {
        name if name.is_empty() => text("/metadata/generateName", "without a name"),
        name => name,
    };
    match text("/metadata/namespace", "") {
        namespace if namespace.is_empty() => format!("{} {name}", text("/kind", "object")),
        namespace => format!("{} {namespace}/{name}", text("/kind", "object")),
    }
}

/// Returns the pod in an object, with the pod's JSON pointer in the object. The pod is the object
/// itself or the pod template of a controller.
pub(crate) fn pod_template(mut document: Value) -> Option<(&'static str, Value)> {
    let kind = document.get("kind")?.as_str()?;
    if kind == "Pod" {
        return Some(("", document));
    }
    ["/spec/template", "/spec/jobTemplate/spec/template"].into_iter().find_map(|pointer| {
        let template =
            document.pointer_mut(pointer).filter(|template| template.get("spec").is_some())?;
        Some((pointer, template.take()))
    })
}

/// Explains one pod, or returns all mistakes in the pod.
pub(crate) fn explain_template(
    object: &str,
    template: &Value,
    basis: &Basis,
) -> Result<PodExplanation, Vec<Mistake>> {
    let of_pod = |pointer: &str, problem: String| Mistake {
        pointer: pointer.to_owned(),
        container: None,
        problem,
    };
    // Tracking the path of a mistake is slow, so only the second attempt tracks the path.
    let pod = Pod::deserialize(template)
        .or_else(|_| serde_path_to_error::deserialize(template))
        .map_err(|error: serde_path_to_error::Error<serde_json::Error>| {
            vec![of_pod(&pointer(error.path()), format!("expected a pod: {}", error.inner()))]
        })?;
    let Some(spec) = &pod.spec else {
        return Err(vec![of_pod(
            "/spec",
            "expected a spec with containers, found none".to_owned(),
        )]);
    };
    let init = spec.init_containers.iter().flatten().enumerate().map(|(index, container)| {
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        let kind = if sidecar { ContainerKind::Sidecar } else { ContainerKind::Init };
        (kind, container, format!("/spec/initContainers/{index}"))
    });
    let ordinary = spec.containers.iter().enumerate().map(|(index, container)| {
        (ContainerKind::Container, container, format!("/spec/containers/{index}"))
    });
    let containers: Vec<(ContainerKind, &Container, String)> = init.chain(ordinary).collect();
    let mut mistakes = Vec::new();
    if spec.containers.is_empty() {
        mistakes.push(of_pod(
            "/spec/containers",
            "expected at least one container, found none".to_owned(),
        ));
    }

    let mut stated = |resources: Option<&ResourceRequirements>,
                      pointer: &str,
                      container: Option<(ContainerKind, &str)>| {
        let mut problems = Vec::new();
        let stated = stated(resources, &mut problems);
        mistakes.extend(problems.into_iter().map(|(field, problem)| Mistake {
            pointer: format!("{pointer}/{}", field.replace('.', "/")),
            container: container.map(|(kind, name)| (kind, excerpt(name))),
            problem: format!("{field}: {problem}"),
        }));
        stated
    };
    let as_typed: Vec<Stated> = containers
        .iter()
        .map(|(kind, container, pointer)| {
            stated(container.resources.as_ref(), pointer, Some((*kind, &container.name)))
        })
        .collect();
    let typed = stated(spec.resources.as_ref(), "/spec", None);
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let defaulted: Vec<Stated> = as_typed.iter().map(|stated| stated.with_defaults()).collect();

    let annotations: HashMap<String, String> =
        pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect();
    let mut without_effect: Vec<String> =
        annotation::unknown(&annotations).iter().map(ToString::to_string).collect();
    without_effect.extend(without_container(&annotations, &containers));
    let mut notes = without_effect.clone();
    let class = if typed == Stated::default() {
        QosClass::from_resources(&defaulted)
    } else {
        notes.push("the pod has resources of its own, which decide its class".to_owned());
        QosClass::from_resources([&typed.with_defaults()])
    };

    let containers = containers
        .into_iter()
        .zip(as_typed)
        .map(|((kind, container, pointer), typed)| ContainerExplanation {
            pointer,
            ..explain_container(kind, &container.name, typed, class, &annotations, basis)
        })
        .collect();
    Ok(PodExplanation {
        object: object.to_owned(),
        qos_class: class,
        notes,
        containers,
        typed,
        without_effect,
    })
}

/// Converts a path to a JSON pointer.
fn pointer(path: &serde_path_to_error::Path) -> String {
    path.iter().fold(String::new(), |pointer, segment| match segment {
        Segment::Seq { index } => format!("{pointer}/{index}"),
        Segment::Map { key } => format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1")),
        Segment::Enum { .. } | Segment::Unknown => pointer,
    })
}

fn explain_container(
    kind: ContainerKind,
    name: &str,
    typed: Stated,
    class: QosClass,
    annotations: &HashMap<String, String>,
    basis: &Basis,
) -> ContainerExplanation {
    let stated = typed.with_defaults();
    let (overrides, mut notices) = Overrides::read(annotations, name);
    let (policy, overruled) = overridden(&basis.policy, &overrides);
    notices.extend(overruled);
    if overrides.memory_request.is_some() {
        notices.push(Notice::AnnotationOutranked { by: Provenance::PodSpec });
    }
    let request = Request::exact(stated.memory_request.unwrap_or(Bytes::ZERO), Provenance::PodSpec);
    // Kubernetes treats a limit of 0 as no limit.
    let limit = stated.memory_limit.filter(|&limit| limit > Bytes::ZERO);
    if let Some(limit) = limit
        && request.bytes > limit
    {
        notices.push(Notice::RequestAboveLimit { request, limit });
    }
    let without_effect = notices
        .iter()
        .filter(|notice| {
            matches!(
                notice,
                Notice::InvalidAnnotation { .. }
                    | Notice::ReservationAboveNode { .. }
                    | Notice::ThrottlingOff
            )
        })
        .map(ToString::to_string)
        .collect();
    let mut notes: Vec<String> = notices.iter().map(ToString::to_string).collect();
    if let Some(throttling) = overrides.throttling
        && throttling == policy.throttling
    {
        let factor = throttling.map_or("none".to_owned(), |factor| factor.to_string());
        notes.push(format!("throttling factor {factor} by annotation"));
    }
    if policy.reservation != basis.policy.reservation {
        notes.push(format!("reservation policy {} by annotation", policy.reservation));
    }
    let resources =
        Resources { request: Some(request), limit: limit.map_or(Limit::Max, Limit::Bytes) };
    let wanted = desired(&resources, class, &basis.node, &policy);
    ContainerExplanation {
        name: excerpt(name),
        kind,
        request: request.bytes,
        request_defaulted_to_limit: typed.memory_request != stated.memory_request,
        limit,
        memory_min: KnobExplanation::new(wanted.min, wanted.min_value()),
        memory_low: KnobExplanation::new(wanted.low, wanted.low_value()),
        memory_high: KnobExplanation::new(wanted.high, wanted.high_value()),
        notes,
        scale: limit.or(basis.node.allocatable),
        pointer: String::new(),
        typed,
        without_effect,
    }
}

/// Returns a message for each annotation for a container that the pod does not have.
fn without_container(
    annotations: &HashMap<String, String>,
    containers: &[(ContainerKind, &Container, String)],
) -> Vec<String> {
    let mut keys: Vec<&String> = annotations
        .keys()
        .filter(|key| {
            key.split_once('/').is_some_and(|(what, target)| {
                what.ends_with(annotation::DOMAIN)
                    && target.strip_prefix("container.").is_some_and(|name| {
                        containers.iter().all(|(_, container, _)| container.name != name)
                    })
            })
        })
        .collect();
    keys.sort_unstable();
    keys.into_iter()
        .map(|key| format!("annotation {}: the pod has no such container", excerpt(key)))
        .collect()
}

/// Parses requests and limits. Adds the field and the error of each invalid quantity to `problems`.
fn stated(
    resources: Option<&ResourceRequirements>,
    problems: &mut Vec<(&'static str, QuantityError)>,
) -> Stated {
    fn read<T>(
        list: Option<&BTreeMap<String, Quantity>>,
        field: &'static str,
        parse: impl Fn(&str) -> Result<T, QuantityError>,
        problems: &mut Vec<(&'static str, QuantityError)>,
    ) -> Option<T> {
        let quantity = list?.get(field.rsplit('.').next()?)?;
        parse(&quantity.0).map_err(|error| problems.push((field, error))).ok()
    }
    let (requests, limits) = resources
        .map_or((None, None), |resources| (resources.requests.as_ref(), resources.limits.as_ref()));
    Stated {
        cpu_request: read(requests, "resources.requests.cpu", MilliCpu::from_quantity, problems),
        cpu_limit: read(limits, "resources.limits.cpu", MilliCpu::from_quantity, problems),
        memory_request: read(requests, "resources.requests.memory", Bytes::from_quantity, problems),
        memory_limit: read(limits, "resources.limits.memory", Bytes::from_quantity, problems),
    }
}

/// Width of the text, in columns.
const COLUMNS: usize = 80;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allocatable = match self.node_allocatable {
            Some(bytes) => format!("{} ({bytes} bytes)", bytes.approx()),
            None => "unknown".to_owned(),
        };
        let factor =
            self.memory_throttling_factor.map_or("none".to_owned(), |factor| factor.to_string());
        wrap(f, 0, &format!("Node allocatable {allocatable}: {}.", self.node_allocatable_source))?;
        wrap(
            f,
            0,
            &format!(
                "Throttling factor {factor}, reservation policy {}, pages of {} bytes.",
                self.memory_reservation_policy, self.page_size
            ),
        )?;
        for skipped in &self.skipped {
            writeln!(f, "Skipped {skipped}: it holds no pod.")?;
        }
        for pod in &self.pods {
            write!(f, "\n{pod}")?;
        }
        if self
            .pods
            .iter()
            .flat_map(|pod| &pod.containers)
            .any(|container| container.scale.is_some())
        {
            f.write_str(
                "\nDrawn to scale: m memory.min, l memory.low, H memory.high, M memory.max, A node\n\
                 allocatable where there is no limit. = is protected, ~ is throttled.\n",
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for PodExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.object, self.qos_class)?;
        for note in &self.notes {
            wrap(f, 2, &format!("note: {note}"))?;
        }
        for container in &self.containers {
            container.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for ContainerExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let defaulted =
            if self.request_defaulted_to_limit { " (defaulted to the limit)" } else { "" };
        let limit = self.limit.map_or("none".to_owned(), Bytes::quantity);
        writeln!(
            f,
            "  {} {}: request {}{defaulted}, limit {limit}",
            self.kind,
            self.name,
            self.request.quantity()
        )?;
        for (name, knob) in [
            ("memory.min", &self.memory_min),
            ("memory.low", &self.memory_low),
            ("memory.high", &self.memory_high),
        ] {
            let value = match (&knob.value, knob.bytes) {
                (Some(value), Some(bytes)) => format!("{value} ({})", bytes.approx()),
                (Some(value), None) => format!("{value} (default)"),
                (None, _) => "left alone".to_owned(),
            };
            writeln!(f, "    {name:<12} {value}")?;
            wrap(f, 17, &knob.reason)?;
        }
        for note in &self.notes {
            wrap(f, 4, &format!("note: {note}"))?;
        }
        match self.drawing() {
            Some(drawing) => writeln!(f, "    {drawing}"),
            None => Ok(()),
        }
    }
}

impl ContainerExplanation {
    /// Returns a line that shows protection, throttling and the end of the scale. Returns `None` if
    /// the scale is 0 or unknown.
    fn drawing(&self) -> Option<String> {
        const CELLS: usize = 60;
        let scale = self.scale.filter(|&scale| scale > Bytes::ZERO)?;
        let cell = |bytes: Bytes| {
            let scale = u128::from(scale.get());
            let share = (u128::from(bytes.get()) * CELLS as u128 + scale / 2) / scale;
            usize::try_from(share).unwrap_or(CELLS).min(CELLS)
        };
        let (protected, mark) = match (self.memory_min.bytes, self.memory_low.bytes) {
            (Some(min), _) => (Some(min), 'm'),
            (None, low) => (low, 'l'),
        };
        let high = self.memory_high.bytes.map(cell);
        let mut line: Vec<char> = (0..=CELLS)
            .map(|at| {
                if protected.is_some_and(|bytes| at < cell(bytes)) {
                    '='
                } else if high.is_some_and(|high| at > high) {
                    '~'
                } else {
                    '-'
                }
            })
            .collect();
        // Marks in the same cell would hide each other. The mark at the end keeps its cell, and the
        // other marks move to the left.
        line[CELLS] = if self.limit.is_some() { 'M' } else { 'A' };
        let mut free = CELLS - 1;
        if let Some(high) = high {
            free = high.min(free);
            line[free] = 'H';
            free = free.saturating_sub(1);
        }
        if let Some(protected) = protected {
            line[cell(protected).min(free)] = mark;
        }
        Some(format!("0 {} {}", line.into_iter().collect::<String>(), scale.approx()))
    }
}

/// Writes indented text in lines of at most [`COLUMNS`]. A longer word stays whole.
pub(crate) fn wrap(f: &mut fmt::Formatter<'_>, indent: usize, text: &str) -> fmt::Result {
    let mut used = 0;
    for word in text.split(' ') {
        let width = word.chars().count();
        if used == 0 {
            write!(f, "{:indent$}{word}", "")?;
            used = indent + width;
        } else if used + 1 + width <= COLUMNS {
            write!(f, " {word}")?;
            used += 1 + width;
        } else {
            write!(f, "\n{:indent$}{word}", "")?;
            used = indent + width;
        }
    }
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use plimsoll_core::policy::ReservationPolicy;
    use plimsoll_core::units::PageSize;
    use proptest::prelude::*;

    use super::*;

    fn basis() -> Basis {
        Basis {
            policy: Policy::default(),
            node: Node { allocatable: Some(Bytes::new(8 << 30)), page_size: PageSize::KIB4 },
            allocatable_source: "given".to_owned(),
        }
    }

    fn pod(body: &str) -> String {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n{body}")
    }

    fn explained(manifest: &str) -> Explanation {
        explain(manifest, &basis()).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_request_defaults_to_the_limit_and_says_so() {
        let explanation =
            explained(&pod("  containers: [{name: a, resources: {limits: {memory: 64Mi}}}]"));
        let container = &explanation.pods[0].containers[0];
        assert_eq!(
            (container.request, container.request_defaulted_to_limit),
            (Bytes::new(64 << 20), true)
        );
        assert_eq!(explanation.pods[0].qos_class, QosClass::Burstable);
        assert_eq!(container.memory_high.setting, "default");
        assert!(
            explanation.to_string().contains("request 64Mi (defaulted to the limit), limit 64Mi")
        );
    }

    #[test]
    fn init_containers_and_sidecars_are_explained_and_count_for_the_class() {
        let explanation = explained(&pod(
            "  initContainers:\n  - {name: setup}\n  - {name: mesh, restartPolicy: Always}\n  containers:\n  - {name: a, resources: {limits: {cpu: 1, memory: 64Mi}}}\n",
        ));
        let kinds: Vec<_> =
            explanation.pods[0].containers.iter().map(|container| container.kind).collect();
        assert_eq!(kinds, [ContainerKind::Init, ContainerKind::Sidecar, ContainerKind::Container]);
        assert_eq!(explanation.pods[0].qos_class, QosClass::Burstable);
    }

    #[test]
    fn a_pods_own_resources_decide_its_class() {
        let explanation = explained(&pod(
            "  resources: {limits: {cpu: 1, memory: 1Gi}}\n  containers: [{name: a}]",
        ));
        assert_eq!(explanation.pods[0].qos_class, QosClass::Guaranteed);
        assert_eq!(explanation.pods[0].containers[0].memory_min.setting, "default");
    }

    #[test]
    fn annotations_are_honoured_and_their_mistakes_named() {
        let manifest = "\
kind: Pod
metadata:
  name: web
  annotations:
    throttling-factor.plimsoll.nri.io/container.a: '0.5'
    reservation.plimsoll.nri.io: tiered
    memory-request.plimsoll.nri.io: 1Gi
    memory-request.plimsoll.nri.io/container.b: 1Gi
    memory-requests.plimsoll.nri.io: 1Gi
spec:
  containers: [{name: a, resources: {requests: {memory: 0}, limits: {memory: 64Mi}}}]
";
        let explanation = explained(manifest);
        let container = &explanation.pods[0].containers[0];
        assert_eq!(container.memory_high.value, Some(Limit::Bytes(Bytes::new(33_554_432))));
        assert_eq!(
            container.notes,
            [
                "annotation memory-request is ignored, as the request is known better (pod-spec)",
                "throttling factor 0.5 by annotation",
                "reservation policy TieredReservation by annotation",
            ]
        );
        assert_eq!(explanation.pods[0].notes.len(), 2, "{:?}", explanation.pods[0].notes);
    }

    #[test]
    fn lists_and_templates_are_opened_and_other_objects_skipped() {
        let template = "{metadata: {}, spec: {containers: [{name: a}]}}";
        let manifest = format!(
            "---\nkind: Service\nmetadata: {{name: s, namespace: n}}\n---\nkind: Deployment\nmetadata: {{name: d}}\nspec: {{template: {template}}}\n---\n\
             kind: List\nitems:\n- {{kind: CronJob, metadata: {{name: c}}, spec: {{jobTemplate: {{spec: {{template: {template}}}}}}}}}\n---\n"
        );
        let explanation = explained(&manifest);
        let objects: Vec<_> = explanation.pods.iter().map(|pod| pod.object.as_str()).collect();
        assert_eq!(objects, ["Deployment d", "CronJob c"]);
        assert_eq!(explanation.skipped, ["Service n/s"]);
        // The API server returns such lists, whose items omit their kind.
        for (kind, item) in [
            ("PodList", "{metadata: {name: p}, spec: {containers: [{name: a}]}}".to_owned()),
            (
                "DeploymentList",
                format!("{{metadata: {{name: d}}, spec: {{template: {template}}}}}"),
            ),
        ] {
            let explanation = explained(&format!("kind: {kind}\nitems: [{item}, {item}]"));
            assert_eq!((explanation.pods.len(), explanation.skipped.len()), (2, 0), "{kind}");
            assert!(
                explanation.pods[0].object.starts_with(kind.trim_end_matches("List")),
                "{}",
                explanation.pods[0].object
            );
        }
    }

    #[test]
    fn manifests_that_cannot_be_explained_say_why() {
        for (manifest, expected) in [
            (
                "",
                "expected a Pod, or an object with a pod template such as a Deployment; found nothing",
            ),
            (
                "kind: Service",
                "expected a Pod, or an object with a pod template such as a Deployment; found Service without a name",
            ),
            ("kind: [", "expected pods as YAML or JSON: "),
            ("kind: Pod", "Pod without a name: expected a spec with containers, found none"),
            (
                "kind: Pod\nspec: {containers: []}",
                "Pod without a name: expected at least one container, found none",
            ),
            ("kind: Pod\nmetadata: 3", "Pod without a name: expected a pod: "),
            (
                "kind: Pod\nspec: {containers: [{name: a, resources: {limits: {memory: 1GB}, requests: {cpu: -1}}}]}",
                "Pod without a name, container a: resources.requests.cpu: expected a quantity of zero or more, found '-1'\n\
                 Pod without a name, container a: resources.limits.memory: expected a quantity such as 128Mi, 1.5Gi, 500M or 1e9, found '1GB'",
            ),
        ] {
            let error = explain(manifest, &basis()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{manifest}: {error}");
        }
    }

    #[test]
    fn the_drawing_is_to_scale_and_its_marks_stay_apart() {
        let drawing = |request: u64, limit: Option<u64>, policy: ReservationPolicy| {
            let basis =
                Basis { policy: Policy { reservation: policy, ..Policy::default() }, ..basis() };
            let stated = Stated {
                memory_request: Some(Bytes::new(request << 20)),
                memory_limit: limit.map(|limit| Bytes::new(limit << 20)),
                ..Stated::default()
            };
            let class = QosClass::Burstable;
            explain_container(ContainerKind::Container, "a", stated, class, &HashMap::new(), &basis)
                .drawing()
        };
        let expect = |left: &str, fill: char, right: &str, end: &str| {
            let fill = fill.to_string().repeat(61 - left.len() - right.len());
            Some(format!("0 {left}{fill}{right} {end}"))
        };
        use ReservationPolicy::{HardReservation, None as Nothing, TieredReservation};
        assert_eq!(
            drawing(500, Some(1000), HardReservation),
            expect(&format!("{}m", "=".repeat(30)), '-', "H~~M", "1000Mi")
        );
        assert_eq!(
            drawing(500, Some(1000), TieredReservation),
            expect(&format!("{}l", "=".repeat(30)), '-', "H~~M", "1000Mi")
        );
        assert_eq!(drawing(0, Some(1000), Nothing), expect("", '-', "H~~~~~M", "1000Mi"));
        assert_eq!(drawing(1000, Some(1000), HardReservation), expect("", '=', "mM", "1000Mi"));
        assert_eq!(drawing(999, Some(1000), HardReservation), expect("", '=', "mHM", "1000Mi"));
        assert_eq!(
            drawing(4096, None, HardReservation),
            expect(&format!("{}m", "=".repeat(30)), '-', "H~~A", "8Gi")
        );
        assert_eq!(drawing(1, Some(1000), HardReservation), expect("m", '-', "H~~~~~M", "1000Mi"));
    }

    #[test]
    fn the_text_fits_80_columns() {
        let manifest = pod(
            "  containers: [{name: a, resources: {requests: {memory: '1234567890'}, limits: {memory: 1234567890123}}}, {name: b}]",
        );
        let text = explained(&manifest).to_string();
        for line in text.lines() {
            assert!(line.chars().count() <= COLUMNS, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_explained_or_refused(text in "(kind: Pod|spec:|containers:|- name: a|resources:|memory: 1|metadata:|annotations:|[{}\\[\\],]|\n|  |.){0,25}") {
            let _ = explain(&text, &basis());
        }
    }
}

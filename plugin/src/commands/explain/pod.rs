//! Explanation of one pod.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use plimsoll_core::pod::{QosClass, SpecResources};
use plimsoll_core::requests::annotation;
use plimsoll_core::units::excerpt;
use serde_json::Value;

use crate::commands::explain::container::{PodContext, explain_container};
use crate::commands::explain::model::{
    Basis, ContainerExplanation, ContainerKind, Mistake, PodExplanation,
};
use crate::commands::explain::read::read_pod;
use crate::commands::explain::resources::stated;

/// Kind of a container, the container itself, and the JSON pointer from the pod to the container.
type PlacedContainer<'a> = (ContainerKind, &'a Container, String);

/// Explains one pod, or returns all mistakes in the pod.
pub(crate) fn explain_template(
    object: &str,
    template: Value,
    basis: &Basis,
) -> Result<PodExplanation, Vec<Mistake>> {
    let pod = read_pod(template).map_err(|mistake| vec![mistake])?;
    let Some(spec) = &pod.spec else {
        return Err(vec![Mistake::of_pod(
            "/spec",
            "expected a spec with containers, found none".to_owned(),
        )]);
    };
    let containers = containers(spec);
    let (typed, as_typed) = read_resources(spec, &containers)?;
    let defaulted: Vec<SpecResources> =
        as_typed.iter().map(|stated| stated.with_defaults()).collect();

    let annotations: HashMap<String, String> =
        pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect();
    let mut without_effect: Vec<String> =
        annotation::unknown(&annotations).iter().map(ToString::to_string).collect();
    without_effect.extend(unknown_containers(&annotations, &containers));
    let mut notes = without_effect.clone();
    let roles = containers.iter().map(|(kind, ..)| kind.role());
    let of_pod = typed.with_pod_defaults(&roles.zip(defaulted.iter().copied()).collect::<Vec<_>>());
    let class = if typed == SpecResources::default() {
        QosClass::from_resources(&defaulted)
    } else {
        notes.push("the resources of the pod itself decide its QoS class".to_owned());
        QosClass::from_resources([&of_pod])
    };
    if let Some(request) = of_pod.memory_request {
        notes.push(format!(
            "the cgroup of the pod protects the pod's own request, {}",
            request.quantity()
        ));
    }

    let context =
        PodContext { class, memory_limit: of_pod.memory_limit, annotations: &annotations, basis };
    let containers = containers
        .into_iter()
        .zip(as_typed)
        .map(|((kind, container, pointer), typed)| ContainerExplanation {
            pointer,
            ..explain_container(kind, &container.name, typed, &context)
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

/// Returns the containers of a pod, init containers first.
fn containers(spec: &PodSpec) -> Vec<PlacedContainer<'_>> {
    let init = spec.init_containers.iter().flatten().enumerate().map(|(index, container)| {
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        let kind = if sidecar { ContainerKind::Sidecar } else { ContainerKind::Init };
        (kind, container, format!("/spec/initContainers/{index}"))
    });
    let ordinary = spec.containers.iter().enumerate().map(|(index, container)| {
        (ContainerKind::Container, container, format!("/spec/containers/{index}"))
    });
    init.chain(ordinary).collect()
}

/// Reads the requests and limits of the pod and of each of its containers. The error contains all
/// mistakes.
fn read_resources(
    spec: &PodSpec,
    containers: &[PlacedContainer<'_>],
) -> Result<(SpecResources, Vec<SpecResources>), Vec<Mistake>> {
    let mut mistakes = Vec::new();
    if spec.containers.is_empty() {
        mistakes.push(Mistake::of_pod(
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
    let as_typed: Vec<SpecResources> = containers
        .iter()
        .map(|(kind, container, pointer)| {
            stated(container.resources.as_ref(), pointer, Some((*kind, &container.name)))
        })
        .collect();
    let typed = stated(spec.resources.as_ref(), "/spec", None);
    if mistakes.is_empty() { Ok((typed, as_typed)) } else { Err(mistakes) }
}

/// Returns a message for each annotation that names a container, if the pod has no container with
/// this name.
fn unknown_containers(
    annotations: &HashMap<String, String>,
    containers: &[PlacedContainer<'_>],
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

#[cfg(test)]
mod tests {
    use plimsoll_core::units::{Bytes, Limit};

    use super::*;
    use crate::commands::explain::testing::{explained, pod};

    #[test]
    fn init_containers_and_sidecars_affect_the_class() {
        let explanation = explained(&pod(
            "  initContainers:\n  - {name: setup}\n  - {name: mesh, restartPolicy: Always}\n  \
             containers:\n  - {name: a, resources: {limits: {cpu: 1, memory: 64Mi}}}\n",
        ));
        let kinds: Vec<_> =
            explanation.pods[0].containers.iter().map(|container| container.kind).collect();
        assert_eq!(kinds, [ContainerKind::Init, ContainerKind::Sidecar, ContainerKind::Container]);
        assert_eq!(explanation.pods[0].qos_class, QosClass::Burstable);
    }

    #[test]
    fn a_container_without_limit_has_the_pods() {
        let explanation = explained(&pod(
            "  resources: {requests: {cpu: 100m, memory: 256Mi}, limits: {cpu: 1, memory: 1Gi}}\n  \
             containers: [{name: a, resources: {requests: {memory: 256Mi}}}, {name: b, resources: \
             {limits: {memory: 64Mi}}}]",
        ));
        let [first, second] = &explanation.pods[0].containers[..] else { panic!() };
        let high = Some(Limit::Bytes(Bytes::new(993_210_368)));
        assert_eq!((first.limit, first.limit_from_pod), (Some(Bytes::new(1 << 30)), true));
        assert_eq!(first.memory_high.value, high);
        assert_eq!((second.limit, second.limit_from_pod), (Some(Bytes::new(64 << 20)), false));
        assert!(explanation.to_string().contains("limit 1Gi (of the pod)"), "{explanation}");
    }

    #[test]
    fn a_missing_pod_request_is_no_guarantee() {
        let explanation = explained(&pod(
            "  resources: {limits: {cpu: 1, memory: 1Gi}}\n  containers: [{name: a, resources: \
             {requests: {cpu: 100m, memory: 128Mi}}}]",
        ));
        let pod = &explanation.pods[0];
        assert_eq!(pod.qos_class, QosClass::Burstable);
        let high = Some(Limit::Bytes(Bytes::new(979_787_776)));
        assert_eq!(pod.containers[0].memory_high.value, high);
        assert!(pod.notes.iter().any(|note| note.contains("own request, 128Mi")), "{pod:?}");
    }

    #[test]
    fn a_pods_own_resources_decide_its_class() {
        let explanation = explained(&pod(
            "  resources: {limits: {cpu: 1, memory: 1Gi}}\n  containers: [{name: a}]",
        ));
        assert_eq!(explanation.pods[0].qos_class, QosClass::Guaranteed);
        assert_eq!(explanation.pods[0].containers[0].memory_min.setting, "default");
    }
}

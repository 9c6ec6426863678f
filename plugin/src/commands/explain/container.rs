//! Explanation of one container.

use std::collections::HashMap;

use plimsoll_core::pod::{Provenance, QosClass, Request, Resources, SpecResources};
use plimsoll_core::policy::{Policy, desired};
use plimsoll_core::requests::annotation::Overrides;
use plimsoll_core::requests::{Notice, overridden};
use plimsoll_core::units::{Bytes, Limit, excerpt};

use crate::commands::explain::model::{
    Basis, ContainerExplanation, ContainerKind, KnobExplanation,
};

/// Facts about the pod of a container.
pub(super) struct PodContext<'a> {
    pub(super) class: QosClass,
    /// Memory limit of the whole pod, if any.
    pub(super) memory_limit: Option<Bytes>,
    pub(super) annotations: &'a HashMap<String, String>,
    pub(super) basis: &'a Basis,
}

/// Explains one container. `typed` contains the amounts that the manifest states, without defaults.
pub(super) fn explain_container(
    kind: ContainerKind,
    name: &str,
    typed: SpecResources,
    pod: &PodContext<'_>,
) -> ContainerExplanation {
    let &PodContext { class, annotations, basis, .. } = pod;
    let stated = typed.with_defaults();
    let (overrides, mut notices) = Overrides::read(annotations, name);
    let (policy, overruled) = overridden(&basis.policy, &overrides);
    notices.extend(overruled);
    if overrides.memory_request.is_some() {
        notices.push(Notice::AnnotationOutranked { by: Provenance::PodSpec });
    }
    let request = Request::exact(stated.memory_request.unwrap_or(Bytes::ZERO), Provenance::PodSpec);
    // In Kubernetes, a limit of 0 means no limit.
    let own_limit = stated.memory_limit.filter(|&limit| limit > Bytes::ZERO);
    // The kubelet gives the pod's limit to a container without a limit.
    let limit = own_limit.or(pod.memory_limit.filter(|&limit| limit > Bytes::ZERO));
    if let Some(limit) = limit
        && request.bytes > limit
    {
        notices.push(Notice::RequestAboveLimit { request, limit });
    }
    let without_effect = without_effect(&notices);
    let notes = notes(&notices, &overrides, &policy, &basis.policy);
    let resources =
        Resources { request: Some(request), limit: limit.map_or(Limit::Max, Limit::Bytes) };
    let wanted = desired(&resources, class, &basis.node, &policy);
    ContainerExplanation {
        name: excerpt(name),
        kind,
        request: request.bytes,
        request_defaulted_to_limit: typed.memory_request != stated.memory_request,
        limit,
        limit_from_pod: limit.is_some() && own_limit.is_none(),
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

/// Returns the notices about annotations without effect.
fn without_effect(notices: &[Notice]) -> Vec<String> {
    notices
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
        .collect()
}

/// Returns the notices as text, and a note for each setting that comes from an annotation.
fn notes(
    notices: &[Notice],
    overrides: &Overrides,
    policy: &Policy,
    of_node: &Policy,
) -> Vec<String> {
    let mut notes: Vec<String> = notices.iter().map(ToString::to_string).collect();
    if let Some(throttling) = overrides.throttling
        && throttling == policy.throttling
    {
        let factor = throttling.map_or("none".to_owned(), |factor| factor.to_string());
        notes.push(format!("throttling factor {factor} by annotation"));
    }
    if policy.reservation != of_node.reservation {
        notes.push(format!("reservation policy {} by annotation", policy.reservation));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::explain::testing::{explained, pod};

    #[test]
    fn a_missing_request_defaults_to_the_limit() {
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
                "annotation memory-request is ignored, because a better source has the request (pod-spec)",
                "throttling factor 0.5 by annotation",
                "reservation policy TieredReservation by annotation",
            ]
        );
        assert_eq!(explanation.pods[0].notes.len(), 2, "{:?}", explanation.pods[0].notes);
    }
}

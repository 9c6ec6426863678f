//! Checks of one pod against the rules.

use std::collections::BTreeSet;

use plimsoll_core::pod::SpecResources;
use plimsoll_core::units::Bytes;

use crate::commands::explain::{ContainerExplanation, PodExplanation};
use crate::commands::lint::finding::Subject;
use crate::commands::lint::place::File;
use crate::commands::lint::report::{CheckedContainer, Report};
use crate::commands::lint::rule::Rule;
use crate::yaml::Place;

impl Report {
    /// Checks one pod. `at` converts the JSON pointer of a value in the pod to the value's position
    /// in the file.
    pub(super) fn check_pod(
        &mut self,
        file: &File,
        pod: PodExplanation,
        at: impl Fn(&str) -> Place,
    ) {
        let PodExplanation { object, qos_class, containers, typed: of_pod, without_effect, .. } =
            pod;
        let subject = Subject { object: object.clone(), container: None };
        // Each container repeats the messages about annotations of the whole pod, so report equal
        // messages only once.
        let of_containers = containers.iter().flat_map(|container| &container.without_effect);
        let messages: BTreeSet<&String> = without_effect.iter().chain(of_containers).collect();
        for message in messages {
            let place = at("/metadata/annotations");
            self.add(file, place, Rule::AnnotationIgnored, Some(subject.clone()), message.clone());
        }
        self.check_amounts(file, &subject, of_pod, |field| {
            at(&format!("/spec/resources/{field}/memory"))
        });
        for container in containers {
            let place = at(&format!("{}/name", container.pointer));
            self.check_container(file, &object, of_pod.with_defaults(), &container, &at);
            let (request, limit) =
                (nonzero(container.request), container.typed.memory_limit.and_then(nonzero));
            self.containers.push(CheckedContainer {
                file: file.clone(),
                place,
                object: object.clone(),
                qos_class,
                ratio: limit_request_ratio(request, limit),
                container,
            });
        }
    }

    /// Checks one container of a pod. `of_pod` contains the requests and limits of the whole pod,
    /// with defaults.
    fn check_container(
        &mut self,
        file: &File,
        object: &str,
        of_pod: SpecResources,
        container: &ContainerExplanation,
        at: impl Fn(&str) -> Place,
    ) {
        let place = at(&format!("{}/name", container.pointer));
        let subject = Subject {
            object: object.to_owned(),
            container: Some((container.kind, container.name.clone())),
        };
        let typed = container.typed;
        let field = |field: &str| at(&format!("{}/resources/{field}/memory", container.pointer));
        self.check_amounts(file, &subject, typed, field);
        let (request, limit) = (nonzero(container.request), typed.memory_limit.and_then(nonzero));
        if request.is_none() && of_pod.memory_request.and_then(nonzero).is_none() {
            let message = match typed.memory_request {
                Some(_) => "expected a memory request above 0, found 0",
                None => "expected a memory request, found none",
            };
            let subject = Some(subject.clone());
            self.add(file, place, Rule::MemoryRequestMissing, subject, message.to_owned());
        }
        if limit.is_none() && of_pod.memory_limit.and_then(nonzero).is_none() {
            let message = match typed.memory_limit {
                Some(_) => "expected a memory limit above 0, found 0",
                None => "expected a memory limit, found none",
            };
            let subject = Some(subject.clone());
            self.add(file, place, Rule::MemoryLimitMissing, subject, message.to_owned());
        }
        if let (None, Some(limit)) = (typed.memory_request, limit) {
            let message = format!(
                "expected a memory request, found only a limit: Kubernetes uses {} for both",
                limit.quantity()
            );
            let place = field("limits");
            self.add(file, place, Rule::MemoryRequestDefaulted, Some(subject), message);
        }
    }

    /// Compares the memory request of a container or pod with its memory limit. `field` returns the
    /// position of the memory value in `requests` or `limits`.
    fn check_amounts(
        &mut self,
        file: &File,
        subject: &Subject,
        typed: SpecResources,
        field: impl Fn(&str) -> Place,
    ) {
        let Some((request, limit)) = typed.memory_request.zip(typed.memory_limit) else {
            return;
        };
        let (requested, limited) = (request.quantity(), limit.quantity());
        if request > limit {
            let message = format!(
                "expected a memory request of at most the limit {limited}, found {requested}"
            );
            self.add(
                file,
                field("requests"),
                Rule::MemoryRequestAboveLimit,
                Some(subject.clone()),
                message,
            );
        } else if let Some(ratio) = limit_request_ratio(nonzero(request), nonzero(limit))
            .filter(|&ratio| ratio > self.max_ratio)
        {
            let message = format!(
                "memory limit {limited} is {} times the request {requested}, expected at most {} \
                 times",
                round_up(ratio),
                self.max_ratio
            );
            self.add(
                file,
                field("limits"),
                Rule::LimitRequestRatio,
                Some(subject.clone()),
                message,
            );
        }
    }
}

/// Returns `None` for 0, because Kubernetes treats 0 as not set.
fn nonzero(bytes: Bytes) -> Option<Bytes> {
    (bytes > Bytes::ZERO).then_some(bytes)
}

/// Returns the limit divided by the request, if both are set.
fn limit_request_ratio(request: Option<Bytes>, limit: Option<Bytes>) -> Option<f64> {
    Some(limit?.get() as f64 / request?.get() as f64)
}

/// Rounds a ratio up to two decimals for readers. As a result, a ratio above the maximum never
/// looks equal to the maximum.
pub(super) fn round_up(ratio: f64) -> f64 {
    (ratio * 100.0).ceil() / 100.0
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::commands::lint::testing::{DEPLOYMENT, found, of_container, report};

    #[test]
    fn resources_trigger_only_their_own_rules() {
        for (resources, expected) in [
            ("{requests: {memory: 256Mi}, limits: {memory: 1Gi}}", &[][..]),
            (
                "{requests: {memory: 256Mi}, limits: {memory: '1073741825'}}",
                &["limit-request-ratio"],
            ),
            ("{requests: {memory: 1Gi}, limits: {memory: 1Gi}}", &[]),
            (
                "{requests: {memory: 1073741825}, limits: {memory: 1Gi}}",
                &["memory-request-above-limit"],
            ),
            ("{limits: {memory: 1Gi}}", &["memory-request-defaulted"]),
            ("{requests: {memory: 1Gi}}", &["memory-limit-missing"]),
            (
                "{requests: {cpu: 1}, limits: {cpu: 1}}",
                &["memory-request-missing", "memory-limit-missing"],
            ),
            ("{}", &["memory-request-missing", "memory-limit-missing"]),
            ("null", &["memory-request-missing", "memory-limit-missing"]),
            (
                "{requests: {memory: 0}, limits: {memory: 0}}",
                &["memory-request-missing", "memory-limit-missing"],
            ),
            ("{requests: {memory: 0}, limits: {memory: 1Gi}}", &["memory-request-missing"]),
            (
                "{requests: {memory: 1Gi}, limits: {memory: 0}}",
                &["memory-limit-missing", "memory-request-above-limit"],
            ),
            ("{requests: {memory: 1GB}}", &["invalid"]),
            ("{requests: {memory: 99999999999999999999}}", &["invalid"]),
            ("{limits: {memory: -1, cpu: lots}}", &["invalid", "invalid"]),
            ("[]", &["invalid"]),
        ] {
            assert_eq!(of_container(resources, ""), expected, "{resources}");
        }
    }

    #[test]
    fn pod_resources_replace_missing_container_resources() {
        let of_pod = |resources: &str| of_container("{}", &format!("resources: {resources}"));
        assert_eq!(of_pod("{limits: {memory: 1Gi}}"), [""; 0]);
        assert_eq!(of_pod("{requests: {memory: 1Gi}}"), ["memory-limit-missing"]);
        assert_eq!(
            of_pod("{requests: {memory: 1Mi}, limits: {memory: 1Gi}}"),
            ["limit-request-ratio"]
        );
        assert_eq!(
            of_pod("{requests: {memory: 2Gi}, limits: {memory: 1Gi}}"),
            ["memory-request-above-limit"]
        );
        assert_eq!(
            of_pod("{limits: {cpu: 1}}"),
            ["memory-request-missing", "memory-limit-missing"]
        );
    }

    #[test]
    fn every_finding_has_its_source_line() {
        let text = format!(
            "kind: Service\n---\n{DEPLOYMENT}---\nkind: List\nitems:\n- kind: Pod\n  spec:\n    \
             containers:\n    - name: x\n      resources:\n        limits:\n          memory: 1GB\n"
        );
        let effect = "annotation throttling-factor.plimsoll.nri.io: expected a number above 0 and \
                      at most 1, or none, found '2'; it is \
                      ignored [annotation-ignored]";
        assert_eq!(
            found(&text),
            [
                format!("f.yaml:13: warning: Deployment shop/web: {effect}"),
                "f.yaml:17: warning: Deployment shop/web, init container setup: expected a memory \
                 request, found none \
                 [memory-request-missing]"
                    .to_owned(),
                "f.yaml:17: warning: Deployment shop/web, init container setup: expected a memory \
                 limit, found none \
                 [memory-limit-missing]"
                    .to_owned(),
                "f.yaml:20: note: Deployment shop/web, sidecar mesh: expected a memory request, \
                 found only a limit: Kubernetes uses 64Mi for both [memory-request-defaulted]"
                    .to_owned(),
                "f.yaml:28: warning: Deployment shop/web, container app: memory limit 1Gi is 8 \
                 times the request 128Mi, \
                 expected at most 4 times [limit-request-ratio]"
                    .to_owned(),
                "f.yaml:38: error: Pod without a name, container x: resources.limits.memory: \
                 expected a quantity such as \
                 128Mi, 1.5Gi, 500M or 1e9, found '1GB' [invalid]"
                    .to_owned(),
            ]
        );
    }

    #[test]
    fn json_and_text_report_class_and_ratio() {
        let report = report(DEPLOYMENT);
        let json = serde_json::to_value(&report).unwrap();
        let app = &json["containers"][2];
        assert_eq!(
            (&app["name"], &app["line"], &app["qosClass"]),
            (&json!("app"), &json!(20), &json!("Burstable"))
        );
        assert_eq!((&app["ratio"], &app["memoryMin"]["value"]), (&json!(8.0), &json!(134_217_728)));
        assert_eq!(json["containers"][1]["kind"], "sidecar");
        assert_eq!(json["containers"][0]["ratio"], Value::Null);
        let finding = &json["findings"][4];
        assert_eq!(
            (&finding["rule"], &finding["level"]),
            (&json!("limit-request-ratio"), &json!("warning"))
        );
        assert_eq!(
            (&finding["file"], &finding["line"], &finding["column"]),
            (&json!("f.yaml"), &json!(26), &json!(21))
        );
        assert_eq!(
            (&finding["object"], &finding["container"]),
            (&json!("Deployment shop/web"), &json!("app"))
        );
        let text = report.text(true).to_string();
        assert!(
            text.ends_with(
                "f.yaml:20: Deployment shop/web, container app:\n  Burstable, limit 8 times the \
                 request; min 128Mi, low 0, \
                 high 934.4Mi, max 1Gi\n1 file, 1 pod, 3 containers: 4 warnings, 1 note\n"
            ),
            "{text}"
        );
    }
}

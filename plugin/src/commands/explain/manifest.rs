//! Pods of a manifest: lists, objects with a pod template, and the explanation of all of them.

use plimsoll_core::units::excerpt;
use serde_json::Value;

use crate::commands::explain::model::{Basis, ExplainError, Explanation, LARGEST};
use crate::commands::explain::pod::explain_template;
use crate::yaml;

/// Explains every pod in a manifest: YAML with one or more documents, or JSON. Treats each item of
/// a list like a document. An object with a pod template counts as a pod (Deployments, Jobs,
/// CronJobs and so on). The explanation lists all other objects as skipped.
///
/// # Errors
///
/// Fails if the manifest is too large, cannot be parsed, or contains no pod. Also fails if a pod
/// has mistakes. The error then lists the mistakes of all pods.
pub fn explain(manifest: &str, basis: &Basis) -> Result<Explanation, ExplainError> {
    if manifest.len() > LARGEST {
        return Err(ExplainError::TooLarge(manifest.len()));
    }
    let documents = yaml::values(manifest).map_err(ExplainError::Syntax)?;

    let mut pods = Vec::new();
    let mut skipped = Vec::new();
    let mut errors = Vec::new();
    for (_, document) in documents.into_iter().flat_map(list_items) {
        if document.is_null() {
            continue;
        }
        let object = object_name(&document);
        let Some((_, template)) = pod_template(document) else {
            skipped.push(object);
            continue;
        };
        match explain_template(&object, template, basis) {
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

/// Returns the items of a list, or the document itself if the document is not a list. Each value
/// comes with its JSON pointer in the document.
///
/// Items of a typed list such as a PodList may omit their kind. The function then adds the kind.
pub(crate) fn list_items(mut document: Value) -> Vec<(String, Value)> {
    let kind = document.get("kind").and_then(Value::as_str);
    let Some(of_items) = kind.and_then(|kind| kind.strip_suffix("List")).map(str::to_owned) else {
        return vec![(String::new(), document)];
    };
    match document.get_mut("items") {
        Some(Value::Array(items)) => {
            let items = items.drain(..).enumerate().map(|(index, mut item)| {
                if let Value::Object(item) = &mut item
                    && !of_items.is_empty()
                {
                    item.entry("kind").or_insert_with(|| of_items.clone().into());
                }
                (format!("/items/{index}"), item)
            });
            items.collect()
        }
        _ if of_items.is_empty() => Vec::new(),
        _ => vec![(String::new(), document)],
    }
}

/// Returns the text by which messages refer to an object: kind, namespace and name.
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

/// Kinds of Kubernetes with a pod template, each with the JSON pointer of the template.
const KINDS: [(&str, &str); 8] = [
    ("Deployment", "/spec/template"),
    ("StatefulSet", "/spec/template"),
    ("DaemonSet", "/spec/template"),
    ("ReplicaSet", "/spec/template"),
    ("ReplicationController", "/spec/template"),
    ("Job", "/spec/template"),
    ("CronJob", "/spec/jobTemplate/spec/template"),
    ("PodTemplate", "/template"),
];

/// Returns the pod in an object, and the JSON pointer from the object to the pod. The pod is the
/// object itself or the pod template of a controller.
///
/// Many custom resources have a template of something else. A kind that Kubernetes does not define
/// counts only if its template contains a list of containers. A template without a field
/// `containers` is a patch of another object, so it does not count either.
pub(crate) fn pod_template(mut document: Value) -> Option<(&'static str, Value)> {
    let kind = document.get("kind")?.as_str()?;
    if kind == "Pod" {
        return Some(("", document));
    }
    let known = KINDS.iter().find(|(known, _)| *known == kind);
    let pointers = match known {
        Some((_, pointer)) => vec![*pointer],
        None => vec!["/spec/template", "/spec/jobTemplate/spec/template"],
    };
    pointers.into_iter().find_map(|pointer| {
        let template = document.pointer_mut(pointer)?;
        let containers = template.pointer("/spec/containers")?;
        (known.is_some() || containers.is_array()).then(|| (pointer, template.take()))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::commands::explain::testing::{basis, explained};

    #[test]
    fn lists_and_templates_yield_their_pods() {
        let template = "{metadata: {}, spec: {containers: [{name: a}]}}";
        let manifest = format!(
            "---\nkind: Service\nmetadata: {{name: s, namespace: ns}}\n---\nkind: \
             Deployment\nmetadata: {{name: d}}\nspec: {{template: {template}}}\n---\n\
             kind: List\nitems:\n- {{kind: CronJob, metadata: {{name: c}}, spec: {{jobTemplate: \
             {{spec: {{template: {template}}}}}}}}}\n---\n"
        );
        let explanation = explained(&manifest);
        let objects: Vec<_> = explanation.pods.iter().map(|pod| pod.object.as_str()).collect();
        assert_eq!(objects, ["Deployment d", "CronJob c"]);
        assert_eq!(explanation.skipped, ["Service ns/s"]);
        // The API server returns typed lists, whose items omit their kind.
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
                "expected a Pod, or an object with a pod template such as a Deployment; found \
                 nothing",
            ),
            (
                "kind: Service",
                "expected a Pod, or an object with a pod template such as a Deployment; found \
                 Service without a name",
            ),
            ("a: 1\nkind: [", "line 2: expected a comma or a closing bracket"),
            ("kind: Pod", "Pod without a name: expected a spec with containers, found none"),
            (
                "kind: Pod\nspec: {containers: []}",
                "Pod without a name: expected at least one container, found none",
            ),
            (
                "kind: Pod\nmetadata: 3",
                "Pod without a name: metadata: expected a mapping, found the number 3",
            ),
            (
                "kind: Pod\nspec: {containers: [{name: a, resources: {limits: {memory: 1GB}, \
                 requests: {cpu: -1}}}]}",
                "Pod without a name, container a: resources.requests.cpu: expected a quantity of \
                 zero or more, found '-1'\n\
                 Pod without a name, container a: resources.limits.memory: expected a quantity \
                 such as 128Mi, 1.5Gi, 500M or 1e9, found '1GB'",
            ),
        ] {
            let error = explain(manifest, &basis()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{manifest}: {error}");
        }
    }

    /// Regular expression for random text that resembles manifests.
    const LIKE_MANIFESTS: &str = concat!(
        r"(kind: Pod|spec:|containers:|- name: a|resources:|memory: 1|metadata:|annotations:",
        "|[{}\\[\\],]|\n|  |.){0,25}",
    );

    proptest! {
        #[test]
        fn any_text_is_explained_or_refused(text in LIKE_MANIFESTS) {
            let _ = explain(&text, &basis());
        }
    }
}

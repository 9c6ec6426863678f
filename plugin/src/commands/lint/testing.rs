//! Helpers for the tests of this folder.

use std::path::Path;

use plimsoll_core::policy::{Node, Policy};
use plimsoll_core::units::{Bytes, PageSize};

use crate::commands::explain::Basis;
use crate::commands::lint::report::Report;
use crate::config::Config;

pub(super) fn report(text: &str) -> Report {
    let node = Node { allocatable: Some(Bytes::new(8 << 30)), page_size: PageSize::KIB4 };
    let basis = Basis { policy: Policy::default(), node, allocatable_source: "given".to_owned() };
    let mut report = Report::new(basis, Config::MAX_LIMIT_REQUEST_RATIO);
    report.lint(Path::new("f.yaml"), text.as_bytes());
    report
}

pub(super) fn found(text: &str) -> Vec<String> {
    report(text).findings.iter().map(ToString::to_string).collect()
}

/// Returns the line and the rule of each finding.
pub(super) fn rules(text: &str) -> Vec<(u64, &'static str)> {
    report(text).findings.iter().map(|finding| (finding.line(), finding.rule().id())).collect()
}

/// Returns the rules that a pod with one container violates. `resources` contains the container's
/// resources, and `of_pod` contains other fields of the pod's specification.
pub(super) fn of_container(resources: &str, of_pod: &str) -> Vec<&'static str> {
    let text = format!(
        "kind: Pod\nspec: {{containers: [{{name: a, resources: {resources}}}], {of_pod}}}\n"
    );
    rules(&text).into_iter().map(|(_, rule)| rule).collect()
}

pub(super) const DEPLOYMENT: &str = "\
# A comment.
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  namespace: shop
spec:
  template:
    metadata:
      annotations:
        throttling-factor.plimsoll.nri.io: '2'
    spec:
      initContainers:
      - image: setup
        name: setup
      - name: mesh
        restartPolicy: Always
        resources: {limits: {memory: 64Mi}}
      containers:
      - name: app
        image: app
        resources:
          requests:
            memory: 128Mi
          limits:
            memory: 1Gi
";

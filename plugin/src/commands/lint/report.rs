//! Report: the findings about several files, and the code that checks documents for the report.

use std::io;
use std::path::Path;

use plimsoll_core::pod::QosClass;
use serde::Serialize;

use crate::commands::explain::{
    Basis, ContainerExplanation, explain_template, list_items, object_name, pod_template,
};
use crate::commands::lint::finding::{Finding, Subject};
use crate::commands::lint::place::{File, LONGEST_PROBLEM, shown};
use crate::commands::lint::rule::{Level, Rule};
use crate::yaml::{self, DocumentText, Place, PlacedValue};

/// Maximum size of a file, in bytes.
pub const LARGEST: usize = 64 << 20;

/// A checked container, with the values that the container would get.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CheckedContainer {
    pub(super) file: File,
    #[serde(flatten)]
    pub(super) place: Place,
    pub(super) object: String,
    pub(super) qos_class: QosClass,
    /// Limit divided by request, if both are set.
    pub(super) ratio: Option<f64>,
    #[serde(flatten)]
    pub(super) container: ContainerExplanation,
}

/// Findings about several files. The serialized report has the format of `--format json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    #[serde(skip)]
    pub(super) basis: Basis,
    pub(super) max_ratio: f64,
    pub(super) files: usize,
    pub(super) pods: usize,
    pub(super) findings: Vec<Finding>,
    pub(super) containers: Vec<CheckedContainer>,
}

impl Report {
    /// Creates an empty report. The report will contain a finding for each limit above `max_ratio`
    /// times the request.
    pub const fn new(basis: Basis, max_ratio: f64) -> Self {
        Self { basis, max_ratio, files: 0, pods: 0, findings: Vec::new(), containers: Vec::new() }
    }

    /// Returns the findings, ordered by file and then by line.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Returns the highest level of the findings, or `None` without findings.
    pub fn worst(&self) -> Option<Level> {
        self.findings.iter().map(|finding| finding.rule.level()).max()
    }

    /// Adds a finding for a file that cannot be read.
    pub fn add_unreadable(&mut self, path: &Path, error: &io::Error) {
        self.files += 1;
        let message = format!("cannot read the file: {error}");
        self.add(&File::new(path), Place::START, Rule::Unreadable, None, message);
    }

    /// Checks a file: YAML with one or more documents, or JSON. Treats each item of a list like a
    /// document. An object with a pod template counts as a pod (Deployments, Jobs, CronJobs and so
    /// on). Ignores other objects.
    ///
    /// `path` only names the file in findings; `-` means standard input.
    pub fn lint(&mut self, path: &Path, text: &[u8]) {
        self.files += 1;
        let file = File::new(path);
        if text.len() > LARGEST {
            let message =
                format!("expected a file of at most {LARGEST} bytes, found more; split it");
            return self.add(&file, Place::START, Rule::Unreadable, None, message);
        }
        let known = self.findings.len();
        for document in yaml::documents(text) {
            self.check_document(&file, document);
        }
        self.findings[known..].sort_by_key(|finding| finding.place);
    }

    pub(super) fn add(
        &mut self,
        file: &File,
        place: Place,
        rule: Rule,
        subject: Option<Subject>,
        message: String,
    ) {
        self.findings.push(Finding { file: file.clone(), place, rule, subject, message });
    }

    /// Checks one document. Reports a mistake in its YAML, or checks its objects.
    fn check_document(&mut self, file: &File, document: DocumentText<'_>) {
        let DocumentText { before, text } = document;
        let text = match std::str::from_utf8(text) {
            Ok(text) => text,
            Err(error) => {
                let (valid, rest) = text.split_at(error.valid_up_to());
                let lines = valid.iter().filter(|&&byte| byte == b'\n').count();
                let place = Place { line: before + 1 + lines as u64, column: 1 };
                let found = rest.first().copied().unwrap_or_default();
                let problem = format!("expected UTF-8 text, found byte 0x{found:02x}");
                return self.add(file, place, Rule::Syntax, None, problem);
            }
        };
        let parsed = yaml::parse(text, before);
        if let Some(error) = parsed.error {
            let advice =
                if text.contains("{{") { "; if it is a template, render it first" } else { "" };
            let problem = format!("expected {error}{advice}");
            return self.add(file, error.place, Rule::Syntax, None, problem);
        }
        let pods = self.pods;
        for document in parsed.documents {
            self.check_objects(file, document);
        }
        if self.pods == pods {
            return;
        }
        for duplicate in parsed.duplicates {
            let field = shown(&duplicate.field, LONGEST_PROBLEM);
            let problem = format!(
                "expected each field once, found {field} again after line {}: Kubernetes uses \
                 only the last value",
                duplicate.first.line
            );
            self.add(file, duplicate.place, Rule::DuplicateField, None, problem);
        }
    }

    /// Checks the pods of one document.
    fn check_objects(&mut self, file: &File, document: PlacedValue) {
        let PlacedValue { value, places } = document;
        for (in_document, object) in list_items(value) {
            let name = object_name(&object);
            let Some((in_object, template)) = pod_template(object) else {
                continue;
            };
            self.pods += 1;
            let at = |in_pod: &str| places.of(&[&in_document, in_object, in_pod].concat());
            match explain_template(&name, template, &self.basis) {
                Ok(pod) => self.check_pod(file, pod, at),
                Err(mistakes) => {
                    for mistake in mistakes {
                        let subject =
                            Some(Subject { object: name.clone(), container: mistake.container });
                        let problem = shown(&mistake.problem, LONGEST_PROBLEM);
                        self.add(file, at(&mistake.pointer), Rule::Invalid, subject, problem);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::commands::lint::testing::{found, report, rules};

    #[test]
    fn a_wrong_field_type_reports_its_line() {
        let text = "kind: Job\nspec:\n  template:\n    spec:\n      containers:\n      - name: \
                    a\n        tty: 3\n";
        assert_eq!(rules(text), [(7, "invalid")]);
        assert!(
            found(text)[0]
                .contains("spec.containers[0].tty: expected true or false, found the number 3"),
            "{:?}",
            found(text)
        );
        assert_eq!(rules("metadata: {name: a}\nkind: Pod\n"), [(1, "invalid")]);
        assert_eq!(rules("kind: Pod\nspec:\n  nodeName: a\n"), [(3, "invalid")]);
    }

    #[test]
    fn a_broken_document_hides_no_other_findings() {
        let text = "kind: Pod\nspec: {containers: []}\n---\nkind: [\n--- # third\na: b: \
                    c\n...\n%YAML 1.2\n---\nkind: Pod\nspec: {containers: []}\n";
        assert_eq!(rules(text), [(2, "invalid"), (4, "syntax"), (6, "syntax"), (11, "invalid")]);
        let mut latin = report("");
        latin.lint(Path::new("g.yaml"), b"a: b\nc: \xe9\n---\nkind: Pod");
        let latin: Vec<String> = latin.findings.iter().map(ToString::to_string).collect();
        assert_eq!(latin[0], "g.yaml:2: error: expected UTF-8 text, found byte 0xe9 [syntax]");
        assert!(
            latin[1].starts_with("g.yaml:4: error: Pod without a name: expected a spec"),
            "{latin:?}"
        );
    }

    #[test]
    fn what_is_no_workload_is_passed_over() {
        for text in [
            "",
            "# nothing\n",
            "---\n---\n",
            "kind: ConfigMap\ndata: {a: b}\n",
            "a: 1\n",
            "- a\n- b\n",
            "text\n",
            "kind: 3\n",
            "{\"name\": \"package\", \"version\": \"1\"}\n",
            "\u{feff}kind: Service\n",
            "kind: Deployment\nspec: {replicas: 3}\n",
            "1: a\ntrue: b\n",
        ] {
            let report = report(text);
            assert_eq!((report.pods, found(text)), (0, vec![]), "{text:?}");
            assert_eq!(
                report.text(true).to_string(),
                "1 file, 0 pods, 0 containers: nothing found\n"
            );
        }
    }

    #[test]
    fn all_kinds_of_workloads_are_opened() {
        let spec = "spec: {containers: [{name: a}]}";
        for kind in ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "Rollout"] {
            assert_eq!(
                report(&format!("kind: {kind}\nspec: {{template: {{{spec}}}}}")).containers.len(),
                1,
                "{kind}"
            );
        }
        assert_eq!(
            report(&format!(
                "kind: CronJob\nspec: {{jobTemplate: {{spec: {{template: {{{spec}}}}}}}}}"
            ))
            .pods,
            1
        );
        assert_eq!(
            report(&format!(
                "{{\"kind\": \"List\", \"items\": [{{kind: Pod, {spec}}}, {{kind: Pod, {spec}}}]}}"
            ))
            .pods,
            2
        );
        // The finding has the right line even if an item of a list omits its kind.
        assert_eq!(
            rules("kind: PodList\nitems:\n- spec:\n    containers: [{name: a}]\n"),
            rules("kind: List\nitems:\n- spec:\n    containers: [{name: a}]\n  kind: Pod\n")
        );
        assert_eq!(
            report("kind: PodList\n---\nkind: AllowList\nitems: {a: 1}\n---\nkind: List").pods,
            0
        );
    }

    /// Regular expression for random text that resembles manifests.
    const LIKE_MANIFESTS: &str = concat!(
        r"(kind: Pod|spec:|containers:|- name: a|resources:|limits:|memory: 1|metadata:",
        r"|annotations:|&a|\*a|<<: |---|\.\.\.",
        "|[{}\\[\\],]|\n|  |.){0,25}",
    );

    proptest! {
        #[test]
        fn any_text_is_taken(text in LIKE_MANIFESTS) {
            for finding in report(&text).findings {
                prop_assert!(finding.line() <= text.lines().count().max(1) as u64 + 1, "{finding}");
                prop_assert_eq!(finding.to_string().lines().count(), 1);
            }
        }

        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let mut report = report("");
            report.lint(Path::new("f.yaml"), &bytes);
        }
    }
}

//! Checks the memory settings of pods in Kubernetes manifests (`plimsoll lint`).
//!
//! [`Report::lint`] takes the text of one file after another and collects findings. Each document
//! of a file is parsed on its own, so a broken document hides no findings in the others.
//! [`crate::commands::explain`] decides which objects are pods and which values their containers
//! would get.

pub(crate) mod command;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::ValueEnum;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use plimsoll_core::pod::{QosClass, Stated};
use plimsoll_core::units::{Bytes, Limit, harmless};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Number, Value, json};
use serde_saphyr::{Budget, Spanned};

use crate::commands::explain::{
    Basis, ContainerExplanation, ContainerKind, KnobExplanation, PodExplanation, explain_template,
    object_name, opened, pod_template,
};
use crate::config::complaint;

/// Maximum size of a file, in bytes.
pub const LARGEST: usize = 64 << 20;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Good to know.
    Note,
    /// Works, but perhaps not as it was meant.
    Warning,
    /// Cannot be read, or Kubernetes would refuse it.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Rule that manifests are checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The file cannot be read.
    Unreadable,
    /// The document is not YAML or JSON.
    Syntax,
    /// An object that is a pod or has a pod template is invalid.
    Invalid,
    /// The memory request is above the limit.
    MemoryRequestAboveLimit,
    /// The memory limit is too many times the request.
    LimitRequestRatio,
    /// The memory request is missing.
    MemoryRequestMissing,
    /// The memory limit is missing.
    MemoryLimitMissing,
    /// An annotation of the domain `plimsoll.nri.io` has no effect.
    AnnotationIgnored,
    /// A container has a limit but no request, so Kubernetes uses the limit as the request too.
    MemoryRequestDefaulted,
}

impl Rule {
    /// All rules, the most important first.
    pub const ALL: [Self; 9] = [
        Self::Unreadable,
        Self::Syntax,
        Self::Invalid,
        Self::MemoryRequestAboveLimit,
        Self::LimitRequestRatio,
        Self::MemoryRequestMissing,
        Self::MemoryLimitMissing,
        Self::AnnotationIgnored,
        Self::MemoryRequestDefaulted,
    ];

    /// Returns the name of the rule, which stays the same in all versions.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Syntax => "syntax",
            Self::Invalid => "invalid",
            Self::MemoryRequestAboveLimit => "memory-request-above-limit",
            Self::LimitRequestRatio => "limit-request-ratio",
            Self::MemoryRequestMissing => "memory-request-missing",
            Self::MemoryLimitMissing => "memory-limit-missing",
            Self::AnnotationIgnored => "annotation-ignored",
            Self::MemoryRequestDefaulted => "memory-request-defaulted",
        }
    }

    /// Returns the level of the rule's findings.
    pub const fn level(self) -> Level {
        match self {
            Self::Unreadable | Self::Syntax | Self::Invalid | Self::MemoryRequestAboveLimit => {
                Level::Error
            }
            Self::LimitRequestRatio
            | Self::MemoryRequestMissing
            | Self::MemoryLimitMissing
            | Self::AnnotationIgnored => Level::Warning,
            Self::MemoryRequestDefaulted => Level::Note,
        }
    }

    /// Returns a short description of the rule.
    pub const fn summary(self) -> &'static str {
        match self {
            Self::Unreadable => "a file that cannot be read",
            Self::Syntax => "a document that is no YAML or JSON",
            Self::Invalid => "a pod without containers, or with wrong values",
            Self::MemoryRequestAboveLimit => "a memory request above the limit",
            Self::LimitRequestRatio => "a memory limit too many times the request",
            Self::MemoryRequestMissing => "a container without memory request",
            Self::MemoryLimitMissing => "a container without memory limit",
            Self::AnnotationIgnored => "an annotation of plimsoll.nri.io without effect",
            Self::MemoryRequestDefaulted => "a memory limit without request",
        }
    }

    /// Returns the consequence of a violation and what to do.
    pub const fn help(self) -> &'static str {
        match self {
            Self::Unreadable => {
                "Nothing is known of what is in the file. See to its path and its permissions."
            }
            Self::Syntax => {
                "Nothing is known of what is in the document. Correct it; a template has to be rendered first."
            }
            Self::Invalid => "Kubernetes would refuse the pod. Correct the field.",
            Self::MemoryRequestAboveLimit => {
                "Kubernetes refuses such a pod. Lower the request or raise the limit."
            }
            Self::LimitRequestRatio => {
                "The scheduler counts the request, but up to the limit may be used: the node may run short, and nothing \
                 beyond the request is protected. Raise the request or lower the limit."
            }
            Self::MemoryRequestMissing => {
                "The scheduler counts nothing for the container, and nothing of it is protected. Request what it needs."
            }
            Self::MemoryLimitMissing => {
                "The container may use all that the node has; throttling starts only near node allocatable. Set a limit."
            }
            Self::AnnotationIgnored => {
                "The container gets what it would get without the annotation. Correct or remove it."
            }
            Self::MemoryRequestDefaulted => {
                "Kubernetes takes the limit for the request, so that all of it is protected and memory.high is not set. \
                 State the request if it is not meant to be the limit."
            }
        }
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}

/// Names of a file. Serialized, a file is its name for readers.
#[derive(Clone, Debug)]
struct File {
    /// Path for readers, with all characters escaped that a terminal would act on.
    shown: String,
    /// Path as a URI, relative if the path is relative.
    uri: String,
}

impl File {
    fn new(path: &Path) -> Self {
        const ENCODED: &AsciiSet =
            &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');
        if path == Path::new("-") {
            return Self { shown: "standard input".to_owned(), uri: "stdin".to_owned() };
        }
        let encoded = percent_encode(path.as_os_str().as_bytes(), ENCODED);
        let scheme = if path.is_absolute() { "file://" } else { "" };
        Self {
            shown: shown(&path.to_string_lossy(), usize::MAX),
            uri: format!("{scheme}{encoded}"),
        }
    }
}

impl Serialize for File {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown)
    }
}

/// Position in a file: line and column, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Place {
    line: u64,
    column: u64,
}

impl Place {
    const START: Self = Self { line: 1, column: 1 };
}

/// Subject of a finding: kind and name of the object. Includes the container if the finding
/// concerns only one container.
#[derive(Clone, Debug)]
struct Owner {
    object: String,
    container: Option<(ContainerKind, String)>,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.object)?;
        match &self.container {
            Some((kind, name)) => write!(f, ", {kind} {name}"),
            None => Ok(()),
        }
    }
}

/// Violation of a rule at a place in a file.
#[derive(Clone, Debug)]
pub struct Finding {
    file: File,
    place: Place,
    rule: Rule,
    owner: Option<Owner>,
    message: String,
}

impl Finding {
    /// Returns the violated rule.
    pub const fn rule(&self) -> Rule {
        self.rule
    }

    /// Returns the line, counted from 1.
    pub const fn line(&self) -> u64 {
        self.place.line
    }

    /// Returns the message with its subject, without the file.
    fn text(&self) -> String {
        match &self.owner {
            Some(owner) => format!("{owner}: {}", self.message),
            None => self.message.clone(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (file, line, level) = (&self.file.shown, self.place.line, self.rule.level());
        write!(f, "{file}:{line}: {level}: {} [{}]", self.text(), self.rule.id())
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Form<'a> {
            file: &'a File,
            #[serde(flatten)]
            place: Place,
            level: Level,
            rule: Rule,
            object: Option<&'a str>,
            container: Option<&'a str>,
            message: &'a str,
        }
        let owner = self.owner.as_ref();
        Form {
            file: &self.file,
            place: self.place,
            level: self.rule.level(),
            rule: self.rule,
            object: owner.map(|owner| owner.object.as_str()),
            container: owner
                .and_then(|owner| owner.container.as_ref())
                .map(|(_, name)| name.as_str()),
            message: &self.message,
        }
        .serialize(serializer)
    }
}

/// Checked container with the values that the container would get.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Looked {
    file: File,
    #[serde(flatten)]
    place: Place,
    object: String,
    qos_class: QosClass,
    /// Limit divided by request, if both are set.
    ratio: Option<f64>,
    #[serde(flatten)]
    container: ContainerExplanation,
}

/// Findings about a number of files. Serialized, the report has the format of `--format json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    #[serde(skip)]
    basis: Basis,
    max_ratio: f64,
    files: usize,
    pods: usize,
    findings: Vec<Finding>,
    containers: Vec<Looked>,
}

impl Report {
    /// Creates an empty report. A limit above `max_ratio` times the request will be a finding.
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
    pub fn unreadable(&mut self, path: &Path, error: &io::Error) {
        self.files += 1;
        let message = format!("cannot read it: {error}");
        self.find(&File::new(path), Place::START, Rule::Unreadable, None, message);
    }

    /// Checks a file: YAML with one or more documents, or JSON. Each item of a list is checked like
    /// a document. An object with a pod template counts as a pod (Deployments, Jobs, CronJobs and
    /// so on). Other objects are ignored.
    ///
    /// `path` only names the file in findings; `-` means standard input.
    pub fn lint(&mut self, path: &Path, text: &[u8]) {
        self.files += 1;
        let file = File::new(path);
        if text.len() > LARGEST {
            let message =
                format!("expected a file of at most {LARGEST} bytes, found more; split it");
            return self.find(&file, Place::START, Rule::Unreadable, None, message);
        }
        let known = self.findings.len();
        for (before, document) in documents(text) {
            self.document(&file, before, document);
        }
        self.findings[known..].sort_by_key(|finding| finding.place);
    }

    fn find(
        &mut self,
        file: &File,
        place: Place,
        rule: Rule,
        owner: Option<Owner>,
        message: String,
    ) {
        self.findings.push(Finding { file: file.clone(), place, rule, owner, message });
    }

    /// Checks one document. `before` is the number of lines before the document in its file.
    fn document(&mut self, file: &File, before: u64, text: &[u8]) {
        let documents = match parse(text) {
            Ok(documents) => documents,
            Err((place, problem)) => {
                let place = Place { line: place.line + before, ..place };
                return self.find(file, place, Rule::Syntax, None, problem);
            }
        };
        for Located { value, place, parts } in documents {
            let places = Places { place, parts };
            for (in_document, object) in opened(value) {
                let name = object_name(&object);
                let Some((in_object, template)) = pod_template(object) else {
                    continue;
                };
                self.pods += 1;
                let at = |in_pod: &str| {
                    let Place { line, column } =
                        places.of(&[&in_document, in_object, in_pod].concat());
                    Place { line: line + before, column }
                };
                match explain_template(&name, &template, &self.basis) {
                    Ok(pod) => self.pod(file, pod, at),
                    Err(mistakes) => {
                        for mistake in mistakes {
                            let owner =
                                Owner { object: name.clone(), container: mistake.container };
                            let problem = shown(&mistake.problem, LONGEST_PROBLEM);
                            self.find(
                                file,
                                at(&mistake.pointer),
                                Rule::Invalid,
                                Some(owner),
                                problem,
                            );
                        }
                    }
                }
            }
        }
    }

    /// Checks one pod. `at` returns the place of a value from the value's JSON pointer in the pod.
    fn pod(&mut self, file: &File, pod: PodExplanation, at: impl Fn(&str) -> Place) {
        let PodExplanation { object, qos_class, containers, typed: of_pod, without_effect, .. } =
            pod;
        let owner = Owner { object: object.clone(), container: None };
        // A message about an annotation of the whole pod occurs once per container, so report equal
        // messages once.
        let of_containers = containers.iter().flat_map(|container| &container.without_effect);
        let messages: BTreeSet<&String> = without_effect.iter().chain(of_containers).collect();
        for message in messages {
            let place = at("/metadata/annotations");
            self.find(file, place, Rule::AnnotationIgnored, Some(owner.clone()), message.clone());
        }
        self.amounts(file, &owner, of_pod, |field| at(&format!("/spec/resources/{field}/memory")));
        let of_pod = of_pod.with_defaults();
        for container in containers {
            let place = at(&format!("{}/name", container.pointer));
            let owner = Owner {
                object: object.clone(),
                container: Some((container.kind, container.name.clone())),
            };
            let typed = container.typed;
            let field =
                |field: &str| at(&format!("{}/resources/{field}/memory", container.pointer));
            self.amounts(file, &owner, typed, field);
            let (request, limit) = (some(container.request), some_of(typed.memory_limit));
            if request.is_none() && some_of(of_pod.memory_request).is_none() {
                let message = match typed.memory_request {
                    Some(_) => "expected a memory request above 0, which is none",
                    None => "expected a memory request, found none",
                };
                self.find(
                    file,
                    place,
                    Rule::MemoryRequestMissing,
                    Some(owner.clone()),
                    message.to_owned(),
                );
            }
            if limit.is_none() && some_of(of_pod.memory_limit).is_none() {
                let message = match typed.memory_limit {
                    Some(_) => "expected a memory limit above 0, which is none",
                    None => "expected a memory limit, found none",
                };
                self.find(
                    file,
                    place,
                    Rule::MemoryLimitMissing,
                    Some(owner.clone()),
                    message.to_owned(),
                );
            }
            if let (None, Some(limit)) = (typed.memory_request, limit) {
                let message =
                    format!("without a memory request it is the limit, {}", limit.quantity());
                self.find(
                    file,
                    field("limits"),
                    Rule::MemoryRequestDefaulted,
                    Some(owner),
                    message,
                );
            }
            self.containers.push(Looked {
                file: file.clone(),
                place,
                object: object.clone(),
                qos_class,
                ratio: ratio(request, limit),
                container,
            });
        }
    }

    /// Checks the memory request of a container or pod against its limit. `field` returns the place
    /// of the memory value in `requests` or `limits`.
    fn amounts(
        &mut self,
        file: &File,
        owner: &Owner,
        typed: Stated,
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
            self.find(
                file,
                field("requests"),
                Rule::MemoryRequestAboveLimit,
                Some(owner.clone()),
                message,
            );
        } else if let Some(ratio) =
            ratio(some(request), some(limit)).filter(|&ratio| ratio > self.max_ratio)
        {
            let message = format!(
                "memory limit {limited} is {} times the request {requested}, expected at most {} times",
                times(ratio),
                self.max_ratio
            );
            self.find(file, field("limits"), Rule::LimitRequestRatio, Some(owner.clone()), message);
        }
    }

    /// Returns the findings as text: one line per finding, then a line with the counts. With
    /// `values`, the text also shows the values of each container.
    pub const fn text(&self, values: bool) -> impl fmt::Display {
        Text { report: self, values }
    }

    /// Returns the findings as SARIF 2.1.0, with the fields that GitHub's code scanning requires.
    pub fn sarif(&self) -> Value {
        let rules = Rule::ALL.map(|rule| {
            json!({
                "id": rule.id(),
                "shortDescription": { "text": rule.summary() },
                "fullDescription": { "text": rule.help() },
                "help": { "text": rule.help() },
                "defaultConfiguration": { "level": rule.level() },
            })
        });
        let results: Vec<Value> = self
            .findings
            .iter()
            .map(|finding| {
                let Finding { file, place, rule, .. } = finding;
                // SARIF messages use brackets for links, so escape brackets.
                let text =
                    finding.text().replace('\\', r"\\").replace('[', r"\[").replace(']', r"\]");
                json!({
                    "ruleId": rule.id(),
                    "ruleIndex": Rule::ALL.iter().position(|other| other == rule),
                    "level": rule.level(),
                    "message": { "text": text },
                    "locations": [{
                        "physicalLocation": {
                            "artifactLocation": { "uri": file.uri },
                            "region": { "startLine": place.line, "startColumn": place.column },
                        },
                    }],
                })
            })
            .collect();
        json!({
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [{
                "tool": {
                    "driver": {
                        "name": "plimsoll",
                        "version": env!("CARGO_PKG_VERSION"),
                        "informationUri": env!("CARGO_PKG_REPOSITORY"),
                        "rules": rules,
                    },
                },
                "columnKind": "unicodeCodePoints",
                "results": results,
            }],
        })
    }
}

struct Text<'a> {
    report: &'a Report,
    values: bool,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { files, pods, findings, containers, .. } = self.report;
        for finding in findings {
            writeln!(f, "{finding}")?;
        }
        for container in containers.iter().filter(|_| self.values) {
            container.fmt(f)?;
        }
        let of_level = |level: Level| {
            let count = findings.iter().filter(|finding| finding.rule.level() == level).count();
            (count > 0).then(|| counted(count, &level.to_string()))
        };
        let counts: Vec<String> =
            [Level::Error, Level::Warning, Level::Note].into_iter().filter_map(of_level).collect();
        let counts = if counts.is_empty() { "nothing found".to_owned() } else { counts.join(", ") };
        let [files, pods, containers] =
            [(*files, "file"), (*pods, "pod"), (containers.len(), "container")]
                .map(|(count, what)| counted(count, what));
        writeln!(f, "{files}, {pods}, {containers}: {counts}")
    }
}

impl fmt::Display for Looked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, place, object, qos_class, ratio, container } = self;
        let ratio = ratio
            .map_or(String::new(), |ratio| format!(", limit {} times the request", times(ratio)));
        writeln!(
            f,
            "{}:{}: {object}, {} {}:",
            file.shown, place.line, container.kind, container.name
        )?;
        let value = |knob: &KnobExplanation| match knob.value {
            Some(Limit::Bytes(bytes)) => bytes.approx(),
            Some(Limit::Max) => "max".to_owned(),
            None => "unknown".to_owned(),
        };
        let [min, low, high] =
            [&container.memory_min, &container.memory_low, &container.memory_high].map(value);
        let max = container.limit.map_or("max".to_owned(), Bytes::approx);
        writeln!(f, "  {qos_class}{ratio}; min {min}, low {low}, high {high}, max {max}")
    }
}

/// Returns `None` for 0, because Kubernetes treats 0 as not set.
fn some(bytes: Bytes) -> Option<Bytes> {
    (bytes > Bytes::ZERO).then_some(bytes)
}

fn some_of(bytes: Option<Bytes>) -> Option<Bytes> {
    bytes.and_then(some)
}

fn ratio(request: Option<Bytes>, limit: Option<Bytes>) -> Option<f64> {
    Some(limit?.get() as f64 / request?.get() as f64)
}

/// Rounds a ratio up to two decimals for readers. A ratio above the maximum then never looks equal
/// to the maximum.
fn times(ratio: f64) -> f64 {
    (ratio * 100.0).ceil() / 100.0
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Maximum length of the description of a mistake, in characters.
const LONGEST_PROBLEM: usize = 300;

/// Escapes foreign text so that a terminal only displays it. Keeps quotes and backslashes, and
/// shortens the text to `most` characters.
fn shown(text: &str, most: usize) -> String {
    harmless(text, most, &['\'', '"', '\\'])
}

/// Splits a file into documents, each with the number of lines before it.
///
/// YAML allows a line that starts with `---` or `...` only between documents. The split therefore
/// needs no further knowledge of YAML.
fn documents(text: &[u8]) -> Vec<(u64, &[u8])> {
    let is = |line: &[u8], marker: &[u8; 3]| {
        line.strip_prefix(marker)
            .is_some_and(|rest| rest.first().is_none_or(u8::is_ascii_whitespace))
    };
    let mut documents = Vec::new();
    let (mut start, mut before, mut end) = (0, 0, 0);
    // Directives and comments before a `---` belong to the document that starts there.
    let mut preamble = true;
    for (line, lines) in text.split_inclusive(|&byte| byte == b'\n').zip(0..) {
        if is(line, b"---") && !preamble {
            documents.push((before, &text[start..end]));
            (start, before) = (end, lines);
        }
        end += line.len();
        let content = line.trim_ascii_start();
        preamble &= content.is_empty() || content.starts_with(b"#") || line.starts_with(b"%");
        if is(line, b"...") {
            documents.push((before, &text[start..end]));
            (start, before, preamble) = (end, lines + 1, true);
        }
    }
    documents.push((before, &text[start..]));
    documents
}

/// Parses the YAML or JSON in `text`. Text with nothing but comments contains no document. The
/// error holds the place and the problem.
fn parse(text: &[u8]) -> Result<Vec<Located>, (Place, String)> {
    let text = std::str::from_utf8(text).map_err(|error| {
        let (valid, rest) = text.split_at(error.valid_up_to());
        let line = 1 + valid.iter().filter(|&&byte| byte == b'\n').count();
        let found = rest.first().copied().unwrap_or_default();
        (
            Place { line: line as u64, column: 1 },
            format!("expected UTF-8 text, found byte 0x{found:02x}"),
        )
    })?;
    let mut budget = Budget::default();
    // Large Lists are allowed. Aliases may not expand to much more than the text itself.
    budget.max_nodes = budget.max_nodes.max(text.len());
    budget.max_events = budget.max_events.max(2 * text.len());
    let options = serde_saphyr::options! {
        with_snippet: false,
        // Read an unquoted `n` or `on` as a string, not as a boolean.
        strict_booleans: true,
        budget: Some(budget),
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let place = error.location().map_or(Place::START, |location| Place {
            line: location.line().max(1),
            column: location.column().max(1),
        });
        let first = if text.contains("{{") { "; if it is a template, render it first" } else { "" };
        let found = shown(complaint(&error.to_string()), LONGEST_PROBLEM);
        (place, format!("expected YAML or JSON, found: {found}{first}"))
    })
}

/// Place of a value and of its parts.
struct Places {
    place: Place,
    /// Places of the parts, by field name or by index.
    parts: BTreeMap<String, Places>,
}

impl Places {
    /// Returns the place of the value at a JSON pointer. If the value does not exist, returns the
    /// place of its nearest existing ancestor.
    fn of(&self, pointer: &str) -> Place {
        let mut at = self;
        for field in pointer.split('/').skip(1) {
            match at.parts.get(&field.replace("~1", "/").replace("~0", "~")) {
                Some(part) => at = part,
                None => break,
            }
        }
        at.place
    }
}

/// Value with its place and with the places of its parts.
struct Located {
    value: Value,
    place: Place,
    parts: BTreeMap<String, Places>,
}

impl<'de> Deserialize<'de> for Located {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value: Inner { value, parts }, referenced, .. } =
            Spanned::deserialize(deserializer)?;
        let place = Place { line: referenced.line().max(1), column: referenced.column().max(1) };
        Ok(Self { value, place, parts })
    }
}

/// Value with the places of its parts.
struct Inner {
    value: Value,
    parts: BTreeMap<String, Places>,
}

impl From<Value> for Inner {
    fn from(value: Value) -> Self {
        Self { value, parts: BTreeMap::new() }
    }
}

impl<'de> Deserialize<'de> for Inner {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;

        impl<'de> Visitor<'de> for AnyValue {
            type Value = Inner;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Inner, E> {
                Ok(Value::Null.into())
            }

            fn visit_none<E>(self) -> Result<Inner, E> {
                Ok(Value::Null.into())
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Inner, D::Error> {
                Inner::deserialize(deserializer)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Inner, E> {
                Ok(Value::from(value).into())
            }

            fn visit_i64<E>(self, value: i64) -> Result<Inner, E> {
                Ok(Value::from(value).into())
            }

            fn visit_u64<E>(self, value: u64) -> Result<Inner, E> {
                Ok(Value::from(value).into())
            }

            fn visit_i128<E>(self, value: i128) -> Result<Inner, E> {
                Ok(Value::from(value.to_string()).into())
            }

            fn visit_u128<E>(self, value: u128) -> Result<Inner, E> {
                Ok(Value::from(value.to_string()).into())
            }

            fn visit_f64<E>(self, value: f64) -> Result<Inner, E> {
                Ok(Number::from_f64(value).map_or(Value::Null, Value::Number).into())
            }

            fn visit_str<E>(self, value: &str) -> Result<Inner, E> {
                Ok(Value::from(value).into())
            }

            fn visit_string<E>(self, value: String) -> Result<Inner, E> {
                Ok(Value::from(value).into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Inner, A::Error> {
                let (mut values, mut places) = (Vec::new(), BTreeMap::new());
                while let Some(Located { value, place, parts }) = list.next_element()? {
                    places.insert(values.len().to_string(), Places { place, parts });
                    values.push(value);
                }
                Ok(Inner { value: Value::Array(values), parts: places })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Inner, A::Error> {
                let (mut values, mut places) = (serde_json::Map::new(), BTreeMap::new());
                while let Some((field, Located { value, place, parts })) =
                    map.next_entry::<String, _>()?
                {
                    places.insert(field.clone(), Places { place, parts });
                    values.insert(field, value);
                }
                Ok(Inner { value: Value::Object(values), parts: places })
            }
        }

        deserializer.deserialize_any(AnyValue)
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_core::policy::{Node, Policy};
    use plimsoll_core::units::PageSize;
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;

    fn report(text: &str) -> Report {
        let node = Node { allocatable: Some(Bytes::new(8 << 30)), page_size: PageSize::KIB4 };
        let basis =
            Basis { policy: Policy::default(), node, allocatable_source: "given".to_owned() };
        let mut report = Report::new(basis, Config::MAX_LIMIT_REQUEST_RATIO);
        report.lint(Path::new("f.yaml"), text.as_bytes());
        report
    }

    fn found(text: &str) -> Vec<String> {
        report(text).findings.iter().map(ToString::to_string).collect()
    }

    /// Returns line and rule of each finding.
    fn rules(text: &str) -> Vec<(u64, &'static str)> {
        report(text).findings.iter().map(|finding| (finding.line(), finding.rule().id())).collect()
    }

    /// Returns the rules that a pod with one container violates. `resources` are the container's
    /// resources, and `of_pod` are further fields of the pod's specification.
    fn of_container(resources: &str, of_pod: &str) -> Vec<&'static str> {
        let text = format!(
            "kind: Pod\nspec: {{containers: [{{name: a, resources: {resources}}}], {of_pod}}}\n"
        );
        rules(&text).into_iter().map(|(_, rule)| rule).collect()
    }

    #[test]
    fn each_rule_finds_what_it_is_for_and_nothing_else() {
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
    fn what_a_pod_has_for_all_of_its_containers_need_not_be_said_for_each() {
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

    const DEPLOYMENT: &str = "\
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

    #[test]
    fn a_finding_has_the_line_of_what_it_is_about() {
        let text = format!(
            "kind: Service\n---\n{DEPLOYMENT}---\nkind: List\nitems:\n- kind: Pod\n  spec:\n    containers:\n    - name: x\n      resources:\n        limits:\n          memory: 1GB\n"
        );
        let effect = "annotation throttling-factor.plimsoll.nri.io: expected a number above 0 and at most 1, or none, found '2'; it is \
                      ignored [annotation-ignored]";
        assert_eq!(
            found(&text),
            [
                format!("f.yaml:13: warning: Deployment shop/web: {effect}"),
                "f.yaml:17: warning: Deployment shop/web, init container setup: expected a memory request, found none \
                 [memory-request-missing]"
                    .to_owned(),
                "f.yaml:17: warning: Deployment shop/web, init container setup: expected a memory limit, found none \
                 [memory-limit-missing]"
                    .to_owned(),
                "f.yaml:20: note: Deployment shop/web, sidecar mesh: without a memory request it is the limit, 64Mi \
                 [memory-request-defaulted]"
                    .to_owned(),
                "f.yaml:28: warning: Deployment shop/web, container app: memory limit 1Gi is 8 times the request 128Mi, \
                 expected at most 4 times [limit-request-ratio]"
                    .to_owned(),
                "f.yaml:38: error: Pod without a name, container x: resources.limits.memory: expected a quantity such as \
                 128Mi, 1.5Gi, 500M or 1e9, found '1GB' [invalid]"
                    .to_owned(),
            ]
        );
    }

    #[test]
    fn a_field_of_the_wrong_type_is_found_on_its_line() {
        let text = "kind: Job\nspec:\n  template:\n    spec:\n      containers:\n      - name: a\n        tty: 3\n";
        assert_eq!(rules(text), [(7, "invalid")]);
        assert!(
            found(text)[0]
                .contains("expected a pod: invalid type: integer `3`, expected a boolean"),
            "{:?}",
            found(text)
        );
        assert_eq!(rules("metadata: {name: a}\nkind: Pod\n"), [(1, "invalid")]);
        assert_eq!(rules("kind: Pod\nspec:\n  nodeName: a\n"), [(3, "invalid")]);
    }

    #[test]
    fn a_broken_document_hides_nothing_of_the_others() {
        let text = "kind: Pod\nspec: {containers: []}\n---\nkind: [\n--- # third\na: b: c\n...\n%YAML 1.2\n---\nkind: Pod\nspec: {containers: []}\n";
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
    fn documents_are_where_yaml_has_them() {
        let split = |text: &'static str| -> Vec<(u64, &str)> {
            documents(text.as_bytes())
                .into_iter()
                .map(|(line, part)| (line, std::str::from_utf8(part).unwrap()))
                .collect()
        };
        assert_eq!(split(""), [(0, "")]);
        assert_eq!(split("a: 1"), [(0, "a: 1")]);
        assert_eq!(
            split("---\na: |\n  ---\n---b\n---\r\nc\n"),
            [(0, "---\na: |\n  ---\n---b\n"), (4, "---\r\nc\n")]
        );
        assert_eq!(split("# x\n\n---\na\n---"), [(0, "# x\n\n---\na\n"), (4, "---")]);
        assert_eq!(split("a\n...\nb"), [(0, "a\n...\n"), (2, "b")]);
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
        // The finding has the right line even if the item of a list omits its kind.
        assert_eq!(
            rules("kind: PodList\nitems:\n- spec:\n    containers: [{name: a}]\n"),
            rules("kind: List\nitems:\n- spec:\n    containers: [{name: a}]\n  kind: Pod\n")
        );
        assert_eq!(
            report("kind: PodList\n---\nkind: AllowList\nitems: {a: 1}\n---\nkind: List").pods,
            0
        );
    }

    #[test]
    fn a_template_is_told_to_be_rendered() {
        let [finding] = &found("kind: Pod\n{{- if .Values.x }}\nspec: {{ .Values.y }}\n")[..]
        else {
            panic!()
        };
        assert!(
            finding.starts_with("f.yaml:")
                && finding.ends_with("; if it is a template, render it first [syntax]"),
            "{finding}"
        );
    }

    #[test]
    fn exploding_input_is_refused() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let previous = format!("*a{},", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{previous}]\n"));
        }
        assert_eq!(rules(&bomb).len(), 1);
        assert_eq!(rules(&"[".repeat(100_000)), [(1, "syntax")]);
        assert_eq!(rules(&"---\n".repeat(5000)), []);
    }

    #[test]
    fn values_class_and_ratio_are_those_of_an_explanation() {
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
                "f.yaml:20: Deployment shop/web, container app:\n  Burstable, limit 8 times the request; min 128Mi, low 0, \
                 high 934.4Mi, max 1Gi\n1 file, 1 pod, 3 containers: 4 warnings, 1 note\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn sarif_is_what_code_scanning_takes() {
        let mut report = report(DEPLOYMENT);
        report.unreadable(Path::new("a b/\u{e9}#.yaml"), &io::Error::other("no"));
        report.lint(Path::new("-"), b"[");
        report.lint(Path::new("/x.yaml"), b"kind: Pod\nmetadata: {name: '[a](b)'}");
        let sarif = report.sarif();
        assert_eq!(sarif["version"], "2.1.0");
        let run = &sarif["runs"][0];
        let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
        assert_eq!(run["tool"]["driver"]["name"], "plimsoll");
        for (rule, described) in Rule::ALL.iter().zip(rules) {
            assert_eq!(described["id"], rule.id());
            for text in ["shortDescription", "fullDescription", "help"] {
                assert!(
                    described[text]["text"].as_str().is_some_and(|text| !text.is_empty()),
                    "{text}"
                );
            }
        }
        let results = run["results"].as_array().unwrap();
        assert_eq!(results.len(), report.findings.len());
        for result in results {
            let rule = &rules[usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap()];
            assert_eq!(result["ruleId"], rule["id"]);
            assert_eq!(result["level"], rule["defaultConfiguration"]["level"]);
            assert!(["note", "warning", "error"].contains(&result["level"].as_str().unwrap()));
            let place = &result["locations"][0]["physicalLocation"];
            assert!(place["region"]["startLine"].as_u64().unwrap() >= 1);
            assert!(place["region"]["startColumn"].as_u64().unwrap() >= 1);
        }
        let uris: Vec<&str> = results[4..]
            .iter()
            .map(|result| {
                result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
                    .as_str()
                    .unwrap()
            })
            .collect();
        assert_eq!(uris, ["f.yaml", "a%20b/%C3%A9%23.yaml", "stdin", "file:///x.yaml"]);
        assert!(
            results[7]["message"]["text"].as_str().unwrap().starts_with(r"Pod \[a\](b): expected"),
            "{}",
            results[7]
        );
    }

    #[test]
    fn every_rule_is_in_the_list_under_a_name_of_its_own() {
        let mut ids = Rule::ALL.map(Rule::id);
        ids.sort_unstable();
        assert!(ids.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(ids.iter().all(|id| {
            id.chars().all(|character| character.is_ascii_lowercase() || character == '-')
        }));
    }

    #[test]
    fn hostile_names_do_no_harm_in_any_form() {
        let hostile = format!("\\e[31m\\nf.yaml:1: error: x\\u202e\\x85{}", "x".repeat(1 << 20));
        // YAML limits such a key to 1024 characters.
        let key = &hostile[..50];
        let text = format!(
            "kind: \"{hostile}\"\nmetadata: {{name: \"{hostile}\", namespace: \"{hostile}\", annotations: {{\"{key}.plimsoll.nri.io\": \"{hostile}\", \
             throttling-factor.plimsoll.nri.io: \"{hostile}\", \"reservation.plimsoll.nri.io/container.{key}\": hard}}}}\n\
             spec: {{template: {{metadata: {{annotations: {{throttling-factor.plimsoll.nri.io: \"{hostile}\"}}}}, spec: {{containers: [{{name: \"{hostile}\"}}]}}}}}}\n---\n\
             kind: Pod\nspec: {{containers: [{{name: \"{hostile}\", resources: {{limits: {{memory: \"{hostile}\"}}}}}}]}}\n---\n\
             kind: Pod\nspec: \"{hostile}\"\n---\n{{\"{key}\": 1, \"{key}\": 2}}\n---\n*{hostile}\n---\n\"{hostile}\" : \"{hostile}\n"
        );
        let mut report = report(&text);
        report.unreadable(Path::new("\u{1b}[31m\n.yaml"), &io::Error::other("no"));
        assert_eq!(report.findings.len(), 9, "{}", report.text(false));
        let lines = report.findings.len() + 2 * report.containers.len() + 1;
        for (form, expected) in [
            (report.text(true).to_string(), Some(lines)),
            (serde_json::to_string_pretty(&report).unwrap(), None),
            (serde_json::to_string_pretty(&report.sarif()).unwrap(), None),
        ] {
            assert!(form.len() < 50_000, "{}", form.len());
            let harmful =
                |character: &char| matches!(character, '\u{1b}' | '\u{202e}' | '\u{85}' | '\u{7}');
            assert_eq!(form.chars().find(harmful), None, "{form}");
            if let Some(expected) = expected {
                assert_eq!(form.lines().count(), expected, "{form}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "(kind: Pod|spec:|containers:|- name: a|resources:|limits:|memory: 1|metadata:|annotations:|&a|\\*a|<<: |---|\\.\\.\\.|[{}\\[\\],]|\n|  |.){0,25}") {
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

//! Tests of the files for Prometheus and Grafana in deploy/kustomize/monitoring against the metrics
//! that the plugin serves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::harness::{self, MIB, Node, Pod, start};
use promql_parser::label::{Matcher, Matchers};
use promql_parser::parser::{self, Expr, LabelModifier, token};
use serde_json::Value;

/// Labels that Prometheus adds to every scraped series.
const OF_SCRAPES: [&str; 2] = ["instance", "job"];

/// A series: its name and labels.
type Series = (String, BTreeMap<String, String>);

fn deploy(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../deploy/kustomize/monitoring", name].iter().collect()
}

fn yaml(name: &str) -> Value {
    harness::yaml(&fs::read_to_string(deploy(name)).unwrap())
}

fn dashboard() -> Value {
    serde_json::from_str(&fs::read_to_string(deploy("dashboard.json")).unwrap()).unwrap()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().expect("a list").iter()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

fn promtool(arguments: &[&str], input: &str) {
    let mut child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is there after hack/prepare");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(status.success(), "promtool {arguments:?}: {status}\n{stdout}\n{stderr}");
}

/// Returns the metrics of a node with one container of each QoS class. The Burstable container uses
/// more than its request, and the BestEffort container has no limit.
async fn metrics(of_containers: bool) -> String {
    let config =
        format!("nodeAllocatable: 4Gi\nnodeGuard: 1Gi\ncontainerMetrics: {of_containers}\n");
    let (node, _daemon, runtime) = start(&config).await;
    node.checkpoint("actuated_pods_state", &[("b", "app", 64 * MIB), ("g", "app", 100 * MIB)]);
    let pods = [("burstable", "b", 250), ("guaranteed", "g", 100), ("besteffort", "e", 0)];
    for (class, uid, limit) in pods {
        let pod = Pod::new(class, uid, limit * MIB);
        runtime.make_cgroup(&pod);
        runtime.run(&pod).await;
        runtime.uses(&pod, 90 * MIB, 0);
        let cgroup = runtime.cgroup(&pod);
        fs::write(
            cgroup.join("memory.events"),
            "low 0\nhigh 0\nmax 0\noom 0\noom_kill 2\noom_group_kill 0\n",
        )
        .unwrap();
        let pressure = "full avg10=1.50 avg60=0.00 avg300=0.00 total=2500000\n";
        fs::write(cgroup.join("memory.pressure"), pressure).unwrap();
    }
    node.metrics().await
}

/// Returns the series in the text of a metrics endpoint. Each sample starts with a series in the
/// syntax of a PromQL selector.
fn series(exposition: &str) -> Vec<Series> {
    let samples = exposition.lines().filter(|line| !line.starts_with('#'));
    let parsed = samples.map(|line| {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let Ok(Expr::VectorSelector(selector)) = parser::parse(series) else { panic!("{line}") };
        let labels =
            selector.matchers.matchers.into_iter().map(|Matcher { name, value, .. }| (name, value));
        (selector.name.unwrap(), labels.collect())
    });
    parsed.collect()
}

/// Returns the labels of an expression's result. Checks that every selector in the expression
/// matches a series in `known`.
fn labels_of(expr: &Expr, known: &[Series]) -> BTreeSet<String> {
    match expr {
        Expr::VectorSelector(selector) => {
            let name = selector.name.as_deref().expect("selectors have a name");
            selected(name, &selector.matchers, known)
        }
        Expr::MatrixSelector(selector) => {
            labels_of(&Expr::VectorSelector(selector.vs.clone()), known)
        }
        Expr::Aggregate(aggregate) => {
            let inner = labels_of(&aggregate.expr, known);
            match &aggregate.modifier {
                Some(LabelModifier::Include(by)) => {
                    let by: BTreeSet<_> = by.labels.iter().cloned().collect();
                    assert!(
                        by.is_subset(&inner),
                        "{expr}: {by:?} must be a subset of the labels {inner:?}"
                    );
                    by
                }
                Some(LabelModifier::Exclude(_)) => panic!("{expr}: write what is kept"),
                None if aggregate.op.id() == token::T_TOPK => inner,
                None => BTreeSet::new(),
            }
        }
        Expr::Binary(binary) => {
            let right = labels_of(&binary.rhs, known);
            let left = labels_of(&binary.lhs, known);
            let is_number = matches!(*binary.rhs, Expr::NumberLiteral(_));
            assert!(
                is_number || left == right,
                "{expr}: the labels {left:?} and {right:?} must be equal"
            );
            left
        }
        Expr::Call(call) => {
            call.args.args.iter().flat_map(|argument| labels_of(argument, known)).collect()
        }
        Expr::Paren(paren) => labels_of(&paren.expr, known),
        Expr::NumberLiteral(_) => BTreeSet::new(),
        _ => panic!("{expr}: not known to this test"),
    }
}

fn selected(name: &str, matchers: &Matchers, known: &[Series]) -> BTreeSet<String> {
    assert!(matchers.or_matchers.is_empty(), "{name}: use two selectors instead of 'or'");
    let (of_scrapes, ours): (Vec<_>, Vec<_>) =
        matchers.matchers.iter().partition(|matcher| OF_SCRAPES.contains(&matcher.name.as_str()));
    let mut labels: BTreeSet<_> = OF_SCRAPES.map(str::to_owned).into();
    // Prometheus itself creates this series.
    if name == "up" {
        assert!(
            !of_scrapes.is_empty() && ours.is_empty(),
            "the selector of 'up' must name the job"
        );
        return labels;
    }
    let matching = |(other, labels): &&Series| {
        other == name
            && ours
                .iter()
                .all(|matcher| labels.get(&matcher.name).is_some_and(|is| matcher.is_match(is)))
    };
    let found: Vec<_> = known.iter().filter(matching).collect();
    assert!(!found.is_empty(), "the plugin has no series {name} with {ours:?}");
    labels.extend(found.iter().flat_map(|(_, labels)| labels.keys().cloned()));
    labels
}

fn parse(expr: &str) -> Expr {
    parser::parse(expr).unwrap_or_else(|error| panic!("{expr}: {error}"))
}

/// Returns the texts between double braces.
fn templates(text: &str) -> impl Iterator<Item = &str> {
    text.split("{{").skip(1).map(|rest| rest.split_once("}}").expect("braces are closed").0.trim())
}

#[tokio::test]
async fn metrics_are_named_as_prometheus_has_it() {
    // promtool reads the text format from before OpenMetrics. In that format the name of a counter
    // includes the suffix of its sample.
    let converted = metrics(true).await.lines().fold(String::new(), |all, line| {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        all + &match words[..] {
            ["#", "TYPE", name, "counter"] => format!("# TYPE {name}_total counter\n"),
            ["#", "HELP", name, help] => {
                format!("# HELP {name} {help}\n# HELP {name}_total {help}\n")
            }
            _ => format!("{line}\n"),
        }
    });
    promtool(&["check", "metrics"], &converted);
}

#[tokio::test]
async fn alerts_use_existing_metrics_and_labels() {
    // Container metrics are optional, so no alert may depend on them.
    let known = series(&metrics(false).await);
    promtool(&["check", "rules", deploy("alerts.yaml").to_str().unwrap()], "");
    let rules = yaml("alerts.yaml");
    let mut names = BTreeSet::new();
    for rule in list(&rules["groups"]).flat_map(|group| list(&group["rules"])) {
        let name = text(&rule["alert"]);
        assert!(names.insert(name), "{name} twice");
        assert!(
            ["critical", "warning", "info"].contains(&text(&rule["labels"]["severity"])),
            "{name}"
        );
        let labels = labels_of(&parse(text(&rule["expr"])), &known);
        for annotation in ["summary", "description"] {
            for template in templates(text(&rule["annotations"][annotation])) {
                let label = template.strip_prefix("$labels.");
                assert!(
                    label.is_none_or(|label| labels.contains(label)),
                    "{name}: {template}, and there are {labels:?}"
                );
            }
        }
    }
    assert!(!names.is_empty());
}

#[tokio::test]
async fn each_alert_fires_for_bad_instances_only() {
    let known = series(&metrics(true).await);
    promtool(&["test", "rules", deploy("alerts-test.yaml").to_str().unwrap()], "");
    let (rules, tests) = (yaml("alerts.yaml"), yaml("alerts-test.yaml"));
    let mut tested = BTreeSet::new();
    for test in list(&tests["tests"]) {
        let name = text(&test["name"]);
        let mut instances = BTreeSet::new();
        for series in list(&test["input_series"]) {
            let Expr::VectorSelector(selector) = parse(text(&series["series"])) else {
                panic!("{series}")
            };
            let instance = selector.matchers.find_matchers("instance").remove(0).value;
            selected(&selector.name.unwrap(), &selector.matchers, &known);
            instances.insert(instance);
        }
        assert_eq!(instances, ["bad", "fine"].map(str::to_owned).into(), "{name}");
        // Only this alert fires, and only for the instance `bad`.
        let expected: Vec<_> = list(&test["promql_expr_test"]).collect();
        assert_eq!(text(&expected[0]["expr"]), "ALERTS{alertstate=\"firing\"}", "{name}");
        let fires: Vec<_> =
            list(&expected[0]["exp_samples"]).map(|sample| text(&sample["labels"])).collect();
        assert!(
            fires[0].contains(&format!("alertname=\"{name}\"")) && fires[0].contains("\"bad\""),
            "{fires:?}"
        );
        assert_eq!(fires.len(), 1, "{name}");
        tested.insert(name.to_owned());
    }
    let alerts = list(&rules["groups"])
        .flat_map(|group| list(&group["rules"]))
        .map(|rule| text(&rule["alert"]).to_owned());
    assert_eq!(tested, alerts.collect());
}

#[tokio::test]
async fn dashboard_queries_use_existing_metrics_and_labels() {
    let known = series(&metrics(true).await);
    let dashboard = dashboard();
    let mut shown = BTreeSet::new();
    for variable in
        list(&dashboard["templating"]["list"]).filter(|variable| variable["type"] == "query")
    {
        let definition = text(&variable["definition"]);
        assert_eq!(definition, text(&variable["query"]["query"]));
        let arguments = definition
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(")"))
            .unwrap();
        let (metric, label) = arguments.split_once(", ").unwrap();
        assert!(labels_of(&parse(metric), &known).contains(label), "{definition}");
    }
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in list(&dashboard["panels"]) {
        let title = text(&panel["title"]);
        assert!(
            ids.insert(panel["id"].as_u64().unwrap()),
            "{title}: another panel has the same id"
        );
        let [x, y, w, h] =
            ["x", "y", "w", "h"].map(|field| panel["gridPos"][field].as_u64().unwrap());
        for place in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(
                place.0 < 24 && taken.insert(place),
                "{title} lies on another panel, or outside"
            );
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(!text(&panel["description"]).is_empty(), "{title}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        for target in list(&panel["targets"]) {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            // Grafana replaces these variables.
            let expr =
                text(&target["expr"]).replace("$__rate_interval", "5m").replace("$instance", ".*");
            let labels = labels_of(&parse(&expr), &known);
            for template in templates(text(&target["legendFormat"])) {
                assert!(
                    labels.contains(template),
                    "{title}: the result has no label {template}, only {labels:?}"
                );
            }
            let names = expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            shown.extend(names.filter(|name| name.starts_with("plimsoll_")).map(str::to_owned));
        }
    }
    assert!(!shown.is_empty());
    // Every metric of an alert must have a panel, so that an operator finds the cause on the
    // dashboard.
    let silent = ["plimsoll_stands_aside", "plimsoll_brake_applied"];
    for rule in list(&yaml("alerts.yaml")["groups"]).flat_map(|group| list(&group["rules"])) {
        let names = text(&rule["expr"]).split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in names.filter(|name| name.starts_with("plimsoll_") && !silent.contains(name)) {
            assert!(shown.contains(name), "{name} has an alert but no panel");
        }
    }
}

#[tokio::test]
async fn more_pods_add_no_metric_series() {
    let (node, _daemon, runtime) = start("nodeAllocatable: 4Gi\n").await;
    let mut counts = Vec::new();
    for uid in ["a", "b", "c", "d", "e"] {
        let pod = Pod::new("burstable", uid, 250 * MIB);
        runtime.make_cgroup(&pod);
        runtime.run(&pod).await;
        counts.push(series(&Node::metrics(&node).await).len());
    }
    assert_eq!(counts, [counts[0]; 5]);
}

/// Kustomize cannot insert a file into an object, so prometheusrule.yaml repeats alerts.yaml.
#[test]
fn the_operator_rule_repeats_the_alerts_file() {
    let rule = fs::read_to_string(deploy("prometheusrule.yaml")).unwrap();
    let alerts = fs::read_to_string(deploy("alerts.yaml")).unwrap();
    let (head, _) = rule.split_once("\nspec:\n").unwrap();
    let groups = alerts.lines().skip_while(|line| !line.starts_with("groups:"));
    let indented =
        groups.map(|line| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") });
    let expected = format!("{head}\nspec:\n{}", indented.collect::<String>());
    if std::env::var_os("PLIMSOLL_REGENERATE").is_some() {
        fs::write(deploy("prometheusrule.yaml"), expected).unwrap();
        return;
    }
    assert!(
        rule == expected,
        "run: PLIMSOLL_REGENERATE=1 cargo test -p plimsoll --test program operator"
    );
    assert_eq!(yaml("prometheusrule.yaml")["spec"], yaml("alerts.yaml"));
}

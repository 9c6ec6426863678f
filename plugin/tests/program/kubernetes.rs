//! Tests of the files for Kubernetes in deploy/. kustomize and Helm render the files, and a real
//! API server validates the objects.
//!
//! The usual validators (kubeconform, kubeval) take their schemas from repositories that no package
//! registry has. An API server contains the schemas itself. With strict validation an API server
//! also refuses unknown fields.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::harness::{self, Node};
use integration::cluster::{ADMINISTRATOR, ApiServer};
use integration::tools::go::Programs;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::discovery::{Scope, pinned_kind};
use kube::{Client, Config as ClientConfig};
use plimsoll::config::Config;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

const HELM: Programs = programs("helm", "helm.sh/helm/v4", "v4.3.1", &["./cmd/helm"]);

/// The newest version that does not need a newer Go than the other programs.
const KUSTOMIZE: Programs =
    programs("kustomize", "sigs.k8s.io/kustomize/kustomize/v5", "v5.8.2", &["."]);

/// The Prometheus operator. The tests build no program of the operator, and read only the custom
/// resource definitions in its module.
const OPERATOR: Programs = programs(
    "prometheus-operator",
    "github.com/prometheus-operator/prometheus-operator",
    "v0.85.0",
    &[],
);

const fn programs(
    name: &'static str,
    module: &'static str,
    version: &'static str,
    packages: &'static [&'static str],
) -> Programs {
    Programs { name, module, version, tags: &[], version_variable: None, packages, tests: &[] }
}

const PATIENCE: Duration = Duration::from_secs(300);

/// Labels that Helm adds to every object.
const OF_HELM: [&str; 4] = [
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
    "helm.sh/chart",
];

/// Chart values that are off by default. Some of these values need resource definitions that not
/// every cluster has.
const ALL: [&str; 3] =
    ["podMonitor.enabled=true", "prometheusRule.enabled=true", "dashboard.enabled=true"];

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy").join(path)
}

fn helm(arguments: &[&str]) -> Output {
    let helm = HELM.obtain().unwrap().join("helm");
    // Hide the Helm settings of the user who runs the test.
    let home = tempfile::tempdir().unwrap();
    Command::new(helm)
        .env("HOME", home.path())
        .env_remove("KUBECONFIG")
        .args(arguments)
        .output()
        .unwrap()
}

/// Runs `helm template` with these values, in the syntax of `--set-json`.
fn template(values: &[&str]) -> Output {
    let chart = deploy("helm/plimsoll");
    let mut arguments =
        vec!["template", "plimsoll", chart.to_str().unwrap(), "--namespace", "kube-system"];
    arguments.extend(values.iter().flat_map(|value| ["--set-json", value]));
    helm(&arguments)
}

fn chart(values: &[&str]) -> Vec<Value> {
    objects(template(values))
}

/// Renders the base with these components, as a user's own kustomization does.
fn kustomize(components: &[&str]) -> Vec<Value> {
    let kustomize = KUSTOMIZE.obtain().unwrap().join("kustomize");
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().canonicalize().unwrap();
    // Paths in a kustomization are relative.
    let up = "../".repeat(directory.components().count() - 1);
    let path = |name: &str| format!("{up}{}", deploy(&format!("kustomize/{name}")).display());
    let components: Vec<_> = components.iter().map(|name| path(name)).collect();
    let kustomization = json!({ "resources": [path("base")], "components": components });
    fs::write(directory.join("kustomization.yaml"), kustomization.to_string()).unwrap();
    objects(Command::new(kustomize).arg("build").arg(&directory).output().unwrap())
}

fn objects(output: Output) -> Vec<Value> {
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{stderr}");
    plimsoll::yaml::values(&stdout).unwrap()
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_else(|| panic!("no text {pointer} in {object:#}"))
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

/// Returns the plugin's configuration in the ConfigMap.
fn config(objects: &[Value]) -> Config {
    let text = text(of_kind(objects, "ConfigMap"), "/data/90-plimsoll.conf");
    Config::parse(text.as_bytes(), "the ConfigMap")
        .unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

/// Removes the labels that Helm adds to objects and selectors, and the comments of the
/// configuration.
fn plain(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !OF_HELM.contains(&name.as_str()));
            if let Some(Value::String(text)) = fields.get_mut("90-plimsoll.conf") {
                *text = Config::parse(text.as_bytes(), "the ConfigMap").unwrap().to_string();
            }
            fields.values_mut().for_each(plain);
        }
        Value::Array(values) => values.iter_mut().for_each(plain),
        _ => {}
    }
}

/// Returns the objects by kind and name.
fn by_name(objects: Vec<Value>) -> BTreeMap<(String, String), Value> {
    let mut named = BTreeMap::new();
    for mut object in objects {
        plain(&mut object);
        let name = (text(&object, "/kind").to_owned(), text(&object, "/metadata/name").to_owned());
        assert!(named.insert(name.clone(), object).is_none(), "{name:?} twice");
    }
    named
}

fn same(left: Vec<Value>, right: Vec<Value>) {
    let (left, right) = (by_name(left), by_name(right));
    assert_eq!(left.keys().collect::<Vec<_>>(), right.keys().collect::<Vec<_>>());
    for (name, object) in &left {
        assert_eq!(object, &right[name], "{name:?}: {object:#}\nand {:#}", right[name]);
    }
}

/// Starts an API server and adds the custom resource definitions of the Prometheus operator.
async fn api_server() -> (ApiServer, Client) {
    let server = ApiServer::start().unwrap();
    let ready = async {
        loop {
            let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig(ADMINISTRATOR)).unwrap();
            // The configuration is invalid until the server has written its certificate.
            if let Ok(config) =
                ClientConfig::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                    .await
            {
                let client = Client::try_from(config).unwrap();
                let request = hyper::Request::get("/readyz").body(Vec::new()).unwrap();
                if client.request_text(request).await.is_ok_and(|answer| answer == "ok") {
                    return client;
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let Ok(client) = timeout(PATIENCE, ready).await else {
        panic!("the API server is not ready:\n{}", server.log());
    };
    let operator = OPERATOR.source().unwrap();
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    for name in ["podmonitors", "prometheusrules"] {
        let file = format!("example/prometheus-operator-crd/monitoring.coreos.com_{name}.yaml");
        let definition = harness::yaml(&fs::read_to_string(operator.join(file)).unwrap());
        let name = text(&definition, "/metadata/name").to_owned();
        definitions
            .patch(&name, &PatchParams::apply("test"), &Patch::Apply(definition))
            .await
            .unwrap();
        let established = async {
            while !is_established(&definitions.get(&name).await.unwrap()) {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, established).await.expect("what is defined is served");
    }
    (server, client)
}

fn is_established(definition: &CustomResourceDefinition) -> bool {
    let conditions = definition.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions
        .is_some_and(|all| all.iter().any(|one| one.type_ == "Established" && one.status == "True"))
}

/// Applies an object like `kubectl apply --server-side --dry-run=server --validate=strict`.
async fn apply(client: &Client, object: &Value) -> Result<DynamicObject, kube::Error> {
    let (group, version) =
        text(object, "/apiVersion").split_once('/').unwrap_or(("", text(object, "/apiVersion")));
    let kind = GroupVersionKind::gvk(group, version, text(object, "/kind"));
    let looked_up = async {
        // The API server may list a new kind only after a delay.
        loop {
            match pinned_kind(client, &kind).await {
                Ok(found) => return found,
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let (resource, capabilities) = timeout(PATIENCE, looked_up)
        .await
        .unwrap_or_else(|_| panic!("the API server has no {kind:?}"));
    let api = match capabilities.scope {
        Scope::Cluster => {
            assert_eq!(object["metadata"]["namespace"], Value::Null, "{kind:?} is in no namespace");
            Api::<DynamicObject>::all_with(client.clone(), &resource)
        }
        Scope::Namespaced => {
            Api::namespaced_with(client.clone(), text(object, "/metadata/namespace"), &resource)
        }
    };
    let strictly = PatchParams::apply("test").dry_run().validation_strict();
    api.patch(text(object, "/metadata/name"), &strictly, &Patch::Apply(object)).await
}

/// Returns the pod that the DaemonSet would create. The API server has admission plugins that check
/// pods but not DaemonSets.
fn pod(objects: &[Value]) -> Value {
    let daemon_set = of_kind(objects, "DaemonSet");
    let mut pod = daemon_set["spec"]["template"].clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = daemon_set["metadata"]["name"].clone();
    pod["metadata"]["namespace"] = daemon_set["metadata"]["namespace"].clone();
    pod
}

#[tokio::test]
async fn a_strict_api_server_accepts_every_object() {
    let (server, client) = api_server().await;
    let everything = chart(&[&ALL[..], &["enableNRI=true"]].concat());
    let mut rendered = [kustomize(&["monitoring", "enable-nri"]), everything];
    for objects in &mut rendered {
        objects.push(pod(objects));
        for object in &*objects {
            if let Err(error) = apply(&client, object).await {
                panic!("{error}: {object:#}\n{}", server.log());
            }
        }
    }
    // The API server refuses each of these mistakes, so a successful validation is meaningful.
    for (kind, field, value) in [
        (
            "DaemonSet",
            "/spec/template/spec/containers/0/securityContext/readOnlyRootFilesystem",
            json!("yes"),
        ),
        ("DaemonSet", "/spec/updateStrategy/rollingUpdate/maxSurge", json!(1)),
        (
            "DaemonSet",
            "/spec/template/spec/containers/0",
            json!({ "name": "x", "image": "x", "imagePolicy": "x" }),
        ),
        ("PodMonitor", "/spec/podMetricsEndpoints/0", json!({ "ports": "metrics" })),
        ("PrometheusRule", "/spec/groups/0/rules/0/alert", json!(1)),
        ("Pod", "/spec/priorityClassName", json!("system-nod-critical")),
    ] {
        let mut object = of_kind(&rendered[0], kind).clone();
        *object.pointer_mut(field).unwrap() = value;
        let answer = apply(&client, &object).await;
        assert!(matches!(&answer, Err(kube::Error::Api(_))), "{kind} {field}: {answer:?}");
    }
}

#[test]
fn kustomize_and_helm_make_the_same() {
    same(kustomize(&[]), chart(&[]));
    same(kustomize(&["monitoring"]), chart(&ALL));
    same(kustomize(&["enable-nri"]), chart(&["enableNRI=true"]));
}

#[test]
fn the_version_is_the_same_everywhere() {
    let version = env!("CARGO_PKG_VERSION");
    let chart = harness::yaml(&fs::read_to_string(deploy("helm/plimsoll/Chart.yaml")).unwrap());
    assert_eq!([&chart["version"], &chart["appVersion"]], [version; 2]);
    let image = kustomize(&[]);
    let image = text(of_kind(&image, "DaemonSet"), "/spec/template/spec/containers/0/image");
    assert_eq!(image, format!("ghcr.io/plimsoll-nri/plimsoll:{version}"));
}

#[test]
fn the_chart_passes_every_field_except_kubeconfig() {
    let whole = json!({
        "mode": "observe", "raisePodLimits": true, "repair": false,
        "brake": { "repairs": 7, "conflicts": 6, "kills": 5, "window": "1m" },
        "memoryThrottlingFactor": null, "memoryReservationPolicy": "TieredReservation", "memoryMinHeadroom": "1Mi",
        "nodeAllocatable": "60Gi", "systemReservedCgroup": "/system.slice", "systemReserved": { "memory": "500Mi" },
        "kubeReservedCgroup": "/kubelet.slice", "kubeReserved": { "memory": "1.5Gi" }, "nodeGuard": "2Gi",
        "kubelet": { "config": "/c", "configDir": "/d", "rootDir": "/r", "version": "1.36" },
        "throttleDeadline": null, "shrink": "defer", "shrinkDeadline": "1h 30m",
        "oomRescue": { "kills": 2, "window": "5m", "factor": 1.5, "minimum": "50Mi", "ceiling": "20%" },
        "maxLimitRequestRatio": null, "metricsAddress": "[::1]:9000", "containerMetrics": true, "logLevel": "debug",
    });
    let objects = chart(&[&format!("config={whole}")]);
    assert_eq!(config(&objects), Config::parse(whole.to_string().as_bytes(), "").unwrap());
    // Every value except raisePodLimits differs from its default, so the chart cannot lose a field
    // unnoticed. oomRescue requires raisePodLimits. The chart refuses kubeconfig, because a pod has
    // no use for this field.
    let complaint = Config::parse(b"unknown: 1", "").unwrap_err().to_string();
    let (_, list) = complaint.split_once("expected one of ").unwrap();
    let (list, _) = list.split_once(", found").unwrap();
    let known: BTreeSet<_> = list.split(", ").collect();
    let given = whole.as_object().unwrap().keys().map(String::as_str);
    assert_eq!(known, given.chain(["kubeconfig"]).collect(), "{complaint}");
    assert!(!template(&["config.kubeconfig=\"/k\""]).status.success());
}

#[test]
fn the_chart_rejects_misspelt_and_invalid_values() {
    for (value, complaint) in [
        ("imagePullPolicy=\"Always\"", "imagePullPolicy"),
        ("image.tag=1.0", "tag"),
        ("image.pullPolicy=\"Sometimes\"", "pullPolicy"),
        ("maxUnavailable=0", "maxUnavailable"),
        ("maxUnavailable=\"ten\"", "maxUnavailable"),
        ("config.memoryThrotlingFactor=0.8", "memoryThrotlingFactor"),
        ("config.memoryThrottlingFactor=1.5", "memoryThrottlingFactor"),
        ("config.nodeGuard=536870912", "nodeGuard"),
        ("config.nodeGuard=\"much\"", "nodeGuard"),
        ("config.throttleDeadline=30", "throttleDeadline"),
        ("config.oomRescue={\"kill\":3}", "kill"),
        ("config.mode=\"off\"", "mode"),
        ("config.shrink=\"never\"", "shrink"),
        ("config.repair=\"yes\"", "repair"),
        ("config.brake={\"repairs\":0}", "repairs"),
        ("config.nodeGuard=\"0Mi\"", "nodeGuard"),
        ("config.nodeGuard=\"1.2.3Gi\"", "nodeGuard"),
        ("config.throttleDeadline=\"0s\"", "throttleDeadline"),
        ("config.throttleDeadline=\"30 apples\"", "throttleDeadline"),
        ("config.oomRescue={\"ceiling\":\"150%\"}", "ceiling"),
        ("config.systemReserved={\"cpu\":\"1\"}", "cpu"),
        ("config={\"systemReserved\":{},\"systemReservedCgroup\":\"/system.slice\"}", "memory"),
        ("config.systemReserved={\"memory\":\"1Gi\"}", "systemReservedCgroup"),
        ("config.kubeReservedCgroup=\"/kubelet.slice\"", "kubeReserved"),
        ("config.metricsAddress=\"9477\"", "metricsAddress"),
        ("config.metricsAddress=\":9477\"", "metricsAddress"),
        ("config.metricsAddress=\"localhost:9477\"", "metricsAddress"),
        ("config.metricsAddress=\"0.0.0.0:99999\"", "metricsAddress"),
        ("config.logLevel=\"loud\"", "logLevel"),
        ("tolerations={}", "tolerations"),
        ("podMonitor=true", "podMonitor"),
        ("podMonitor.interval=\"often\"", "interval"),
        ("dashboard.enabled=\"yes\"", "enabled"),
        ("kubeletDirectory=\"var/lib/kubelet\"", "kubeletDirectory"),
        ("enableNRI=\"yes\"", "enableNRI"),
    ] {
        let Output { status, stderr, .. } = template(&[value]);
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(
            !status.success() && stderr.contains(complaint) && stderr.contains("schema"),
            "{value}: {stderr}"
        );
        // The plugin must refuse each of these values too. Skip numbers: Helm changes the format of
        // large numbers, so the schema refuses numbers that the plugin would accept.
        if let Some((field, value)) =
            value.strip_prefix("config.").and_then(|field| field.split_once('='))
            && value.parse::<f64>().is_err()
        {
            Config::parse(format!("{field}: {value}").as_bytes(), "").unwrap_err();
        }
    }
}

/// Returns the TCP address where the plugin serves metrics, and the container ports in the
/// DaemonSet.
fn metrics(objects: &[Value]) -> (Option<SocketAddr>, &Value) {
    let ports =
        &of_kind(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]["ports"];
    (config(objects).metrics_address, ports)
}

#[test]
fn metrics_ports_open_only_when_requested() {
    for objects in [kustomize(&[]), chart(&[]), chart(&["config.metricsAddress=null"])] {
        assert_eq!(metrics(&objects), (None, &Value::Null));
    }
    let port =
        |number: u16| json!([{ "name": "metrics", "containerPort": number, "protocol": "TCP" }]);
    let monitored = "podMonitor.enabled=true";
    for objects in [
        kustomize(&["monitoring"]),
        chart(&[monitored]),
        chart(&[monitored, "config.metricsAddress=null"]),
    ] {
        assert_eq!(metrics(&objects), ("0.0.0.0:9477".parse().ok(), &port(9477)));
    }
    for more in [&[][..], &[monitored]] {
        let objects = chart(&[&["config.metricsAddress=\"127.0.0.1:1234\""], more].concat());
        assert_eq!(metrics(&objects), ("127.0.0.1:1234".parse().ok(), &port(1234)));
    }
}

#[test]
fn the_status_probes_fail_without_a_plugin() {
    let objects = kustomize(&[]);
    let container = &of_kind(&objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0];
    let node = tempfile::tempdir().unwrap();
    for (probe, expected) in [("livenessProbe", "--json"), ("readinessProbe", "--ready")] {
        let command: Vec<_> =
            container[probe]["exec"]["command"].as_array().unwrap().iter().collect();
        assert_eq!(command, ["plimsoll", "status", expected], "{probe}");
        // The program accepts these arguments. The exit code is 1 because no plugin answers here.
        let mut program = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        let output =
            program.args(["status", expected, "--host"]).arg(node.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{probe}: {output:?}");
    }
}

#[test]
fn only_the_nri_init_container_is_privileged() {
    for objects in [kustomize(&["enable-nri"]), chart(&["enableNRI=true"])] {
        let pod = &of_kind(&objects, "DaemonSet")["spec"]["template"]["spec"];
        let [first] = pod["initContainers"].as_array().unwrap().as_slice() else {
            panic!("{pod:#}")
        };
        assert_eq!(first["image"], pod["containers"][0]["image"]);
        assert_eq!(
            (&first["securityContext"]["privileged"], &pod["hostPID"]),
            (&json!(true), &json!(true))
        );
        assert_eq!(pod["containers"][0]["securityContext"]["privileged"], Value::Null);
        // The program accepts these arguments.
        let arguments =
            first["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap());
        let output = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
            .args(arguments)
            .arg("--help")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    for objects in [kustomize(&[]), chart(&[])] {
        let pod = &of_kind(&objects, "DaemonSet")["spec"]["template"]["spec"];
        assert_eq!((&pod["initContainers"], &pod["hostPID"]), (&Value::Null, &Value::Null));
    }
}

#[test]
fn custom_kubelet_directories_keep_the_mount_path() {
    let objects = chart(&["kubeletDirectory=\"/var/lib/k0s/kubelet\""]);
    let pod = &of_kind(&objects, "DaemonSet")["spec"]["template"]["spec"];
    let of = |list: &Value| {
        list.as_array().unwrap().iter().find(|one| one["name"] == "kubelet").unwrap().clone()
    };
    assert_eq!(of(&pod["volumes"])["hostPath"]["path"], "/var/lib/k0s/kubelet");
    assert_eq!(of(&pod["containers"][0]["volumeMounts"])["mountPath"], "/var/lib/kubelet");
}

#[test]
fn the_notes_state_the_configured_mode() {
    let chart = deploy("helm/plimsoll");
    let notes = |mode: &str| {
        let output = helm(&[
            "install",
            "plimsoll",
            chart.to_str().unwrap(),
            "--dry-run=client",
            "--set-json",
            mode,
        ]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    for enforces in ["config={}", "config.mode=\"enforce\""] {
        let notes = notes(enforces);
        assert!(
            notes.contains("runs in enforce mode") && !notes.contains("runs in observe mode"),
            "{notes}"
        );
    }
    let notes = notes("config.mode=\"observe\"");
    assert!(
        notes.contains("runs in observe mode") && !notes.contains("runs in enforce mode"),
        "{notes}"
    );
}

#[test]
fn two_releases_share_no_names_or_selectors() {
    let chart = deploy("helm/plimsoll");
    let release = |name| {
        let mut arguments = vec!["template", name, chart.to_str().unwrap(), "--namespace", "nodes"];
        arguments.extend(ALL.iter().flat_map(|value| ["--set-json", value]));
        objects(helm(&arguments))
    };
    let (plain, other) = (release("plimsoll"), release("arm"));
    for object in &other {
        let name = text(object, "/metadata/name");
        assert!(name.starts_with("arm-plimsoll"), "{name}");
        assert!(
            object["kind"].as_str().unwrap().starts_with("Cluster")
                || object["metadata"]["namespace"] == "nodes"
        );
    }
    assert_eq!(plain.len(), other.len());
    let selector = |objects: &[Value]| of_kind(objects, "DaemonSet")["spec"]["selector"].clone();
    assert_ne!(selector(&plain), selector(&other));
    let volumes =
        of_kind(&other, "DaemonSet").pointer("/spec/template/spec/volumes/0/configMap/name");
    assert_eq!(volumes.unwrap(), "arm-plimsoll");
}

#[test]
fn the_chart_is_as_helm_wants_it() {
    let output = helm(&["lint", "--strict", deploy("helm/plimsoll").to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Updates the volume of a ConfigMap as the kubelet does. The kubelet writes the files into a new
/// directory. Then the kubelet makes `..data` point to this directory by renaming a symbolic link.
/// Source: `pkg/volume/util/atomic_writer.go` of Kubernetes.
fn bring(volume: &Path, generation: &str, config: &str) {
    let directory = volume.join(generation);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("90-plimsoll.conf"), config).unwrap();
    symlink(generation, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    let visible = volume.join("90-plimsoll.conf");
    if !visible.is_symlink() {
        symlink("..data/90-plimsoll.conf", visible).unwrap();
    }
}

#[tokio::test]
async fn configmap_changes_apply_unless_invalid() {
    let node = Node::new();
    let volume = node.path("config");
    bring(&volume, "..2026_1", "nodeAllocatable: 4Gi\n");
    let mut daemon =
        node.start_with(&["--config", volume.join("90-plimsoll.conf").to_str().unwrap()]);
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    bring(&volume, "..2026_2", "nodeAllocatable: 3Gi\n");
    fs::remove_dir_all(volume.join("..2026_1")).unwrap();
    daemon.says("configuration changed").await;
    bring(&volume, "..2026_3", "nodeAllocatabel: 2Gi\n");
    fs::remove_dir_all(volume.join("..2026_2")).unwrap();
    daemon.says("the previous configuration stays in force").await;
    bring(&volume, "..2026_4", "nodeAllocatable: 1Gi\n");
    fs::remove_dir_all(volume.join("..2026_3")).unwrap();
    daemon.says("configuration changed").await;
}

//! Tests of Kubernetes Events with a real API server.

use std::fs;
use std::time::Duration;

use crate::harness::{self, Daemon, MIB, Node, Pod, Runtime, memory_limit, start};
use integration::cluster::{ADMINISTRATOR, ApiServer};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::authorization::v1::{ResourceRule, SelfSubjectRulesReview};
use k8s_openapi::api::core::v1::{
    ConfigMap, Event as OldEvent, Namespace, Pod as ApiPod, Secret, ServiceAccount,
};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

const CONFIG: &str = "nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\nlogLevel: debug\n";

const PATIENCE: Duration = Duration::from_secs(300);

/// An API server with the roles of `deploy/kustomize/base/rbac.yaml`.
struct Cluster {
    server: ApiServer,
    administrator: Client,
    token: String,
}

impl Cluster {
    async fn start() -> Self {
        let server = ApiServer::start().unwrap();
        let ready = async {
            loop {
                // The server creates its certificate while it starts, so the client may fail at
                // first.
                if let Some(client) = client(&server, ADMINISTRATOR).await
                    && is_ready(&client).await
                {
                    return client;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        let Ok(administrator) = timeout(PATIENCE, ready).await else {
            panic!("the API server is not ready:\n{}", server.log());
        };
        apply(&administrator).await;
        let nobody: ServiceAccount =
            from(json!({ "metadata": { "name": "nobody", "namespace": "kube-system" } }));
        let accounts = Api::<ServiceAccount>::namespaced(administrator.clone(), "kube-system");
        accounts.create(&PostParams::default(), &nobody).await.unwrap();
        let token = token(&administrator, "plimsoll").await;
        Self { server, administrator, token }
    }

    /// Starts the plugin on a node, and gives it credentials while it runs.
    async fn plugin(&self) -> (Node, Daemon, Runtime) {
        self.plugin_with(CONFIG).await
    }

    /// Starts the plugin as [`Self::plugin`] does, with this configuration.
    async fn plugin_with(&self, config: &str) -> (Node, Daemon, Runtime) {
        let (node, mut daemon, runtime) = start(config).await;
        daemon.says("the plugin writes no Kubernetes Events").await;
        node.write("kubeconfig", &self.server.kubeconfig(&self.token));
        let kubeconfig = node.path("kubeconfig");
        node.replace("plimsoll.yaml", &format!("{config}kubeconfig: {}\n", kubeconfig.display()));
        daemon.says("the plugin writes Kubernetes Events with the credentials of").await;
        (node, daemon, runtime)
    }

    /// Creates a pod in the API server. Returns the pod as the runtime reports it.
    async fn pod(&self, name: &str, limit: i64) -> Pod {
        let containers = json!([{ "name": "app", "image": "app" }]);
        let pod = json!({ "metadata": { "name": name }, "spec": { "nodeName": "n", "containers": containers } });
        let pods = Api::<ApiPod>::namespaced(self.administrator.clone(), "default");
        let made = pods.create(&PostParams::default(), &from(pod)).await.unwrap();
        let mut pod = Pod::new("burstable", &made.metadata.uid.unwrap(), limit);
        pod.sandbox.name = name.to_owned();
        pod
    }

    async fn events(&self) -> Vec<Event> {
        let events = Api::<Event>::namespaced(self.administrator.clone(), "default");
        let mut events = events.list(&ListParams::default()).await.unwrap().items;
        // A slow API server writes Events about its own problems to this namespace.
        events.retain(|event| event.reporting_controller.as_deref() == Some("plimsoll"));
        events
    }

    /// Waits for the Event about this pod with this reason and this count.
    async fn event(&self, pod: &Pod, reason: &str, count: i32) -> Event {
        let looks = async {
            loop {
                let events = self.events().await.into_iter().find(|event| {
                    event.reason.as_deref() == Some(reason)
                        && event.regarding.as_ref().unwrap().name.as_ref()
                            == Some(&pod.sandbox.name)
                        && event.series.as_ref().map_or(1, |series| series.count) == count
                });
                if let Some(event) = events {
                    return event;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        let Ok(event) = timeout(PATIENCE, looks).await else {
            panic!(
                "expected an Event {reason} of {} with the count {count}, found {:#?}",
                pod.sandbox.name,
                self.events().await
            );
        };
        event
    }
}

fn from<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Creates a token, as `kubectl create token --namespace kube-system` does.
async fn token(administrator: &Client, account: &str) -> String {
    let accounts = Api::<ServiceAccount>::namespaced(administrator.clone(), "kube-system");
    let request: TokenRequest = from(json!({ "metadata": {}, "spec": { "audiences": [] } }));
    let answer =
        accounts.create_token_request(account, &PostParams::default(), &request).await.unwrap();
    answer.status.unwrap().token.unwrap()
}

/// Returns the client's permissions, as `kubectl auth can-i --list` does.
async fn rules(client: Client) -> Vec<ResourceRule> {
    let asked: SelfSubjectRulesReview = from(json!({ "spec": { "namespace": "default" } }));
    let review = Api::<SelfSubjectRulesReview>::all(client)
        .create(&PostParams::default(), &asked)
        .await
        .unwrap();
    review.status.unwrap().resource_rules
}

async fn client(server: &ApiServer, token: &str) -> Option<Client> {
    let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig(token)).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    Client::try_from(config.ok()?).ok()
}

/// Returns whether the API server is ready and has its namespaces. The server makes the namespaces
/// itself shortly after it is ready.
async fn is_ready(client: &Client) -> bool {
    let request = hyper::Request::get("/readyz").body(Vec::new()).unwrap();
    let namespaces = Api::<Namespace>::all(client.clone());
    client.request_text(request).await.is_ok_and(|answer| answer == "ok")
        && namespaces.get("kube-system").await.is_ok()
        && namespaces.get("default").await.is_ok()
}

/// Creates the objects of the file, as `kubectl apply -f deploy/kustomize/base/rbac.yaml` does.
async fn apply(administrator: &Client) {
    let text = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../deploy/kustomize/base/rbac.yaml"
    ))
    .unwrap();
    let new = PostParams::default();
    for document in text.split("\n---\n") {
        let object = harness::yaml(document);
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        match object["kind"].as_str().unwrap() {
            "ServiceAccount" => {
                let accounts = Api::<ServiceAccount>::namespaced(administrator.clone(), &namespace);
                drop(accounts.create(&new, &from(object)).await.unwrap());
            }
            "ClusterRole" => {
                let roles = Api::<ClusterRole>::all(administrator.clone());
                drop(roles.create(&new, &from(object)).await.unwrap());
            }
            "ClusterRoleBinding" => {
                let bindings = Api::<ClusterRoleBinding>::all(administrator.clone());
                drop(bindings.create(&new, &from(object)).await.unwrap());
            }
            other => panic!("{other} is none of the rights that are needed"),
        }
    }
}

/// Runs a pod whose usage does not allow a limit decrease to 100 MiB.
async fn run(runtime: &Runtime, pod: &Pod) {
    runtime.make_cgroup(pod);
    runtime.run(pod).await;
    runtime.uses(pod, 128 * MIB, 10 * MIB);
}

/// Requests a limit that is too low. The plugin must refuse the limit at once, even if the API
/// server is unreachable.
async fn refused(runtime: &Runtime, pod: &Pod) {
    let cut = runtime.connection.update_container(
        pod.sandbox.clone(),
        pod.container.clone(),
        memory_limit(100 * MIB),
    );
    // An attempt to reach the API server may take 10 s (`REQUEST_TIMEOUT` in
    // `report/events/publisher.rs`). The plugin must not wait for the attempt.
    let answer = timeout(Duration::from_secs(5), cut).await.expect("the plugin answers");
    assert!(answer.unwrap_err().to_string().contains("would be killed"));
}

#[tokio::test]
async fn rejections_share_one_event_with_minimal_rights() {
    let cluster = Cluster::start().await;
    let (node, _daemon, runtime) = cluster.plugin().await;
    let pod = cluster.pod("shop", 250 * MIB).await;
    run(&runtime, &pod).await;
    for _ in 0..3 {
        refused(&runtime, &pod).await;
    }
    let event = cluster.event(&pod, "CutRejected", 3).await;
    let of_the_pod: Vec<_> = cluster.events().await;
    assert_eq!(
        of_the_pod.iter().filter(|event| event.reason.as_deref() == Some("CutRejected")).count(),
        1
    );
    let event = serde_json::to_value(event).unwrap();
    let regarding = json!({
        "apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "shop", "uid": pod.sandbox.uid,
        "fieldPath": "spec.containers{app}",
    });
    assert_eq!(event["regarding"], regarding);
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for (field, expected) in [
        ("type", "Warning"),
        ("action", "Resize"),
        ("reportingController", "plimsoll"),
        ("reportingInstance", host.trim_end()),
        (
            "note",
            "container app: rejected a memory limit decrease from 250Mi to 100Mi, which would OOM-kill: 128Mi in use, 10Mi reclaimable",
        ),
    ] {
        assert_eq!(event[field], expected, "{field}");
    }

    // The creation of a container also causes these kinds of Events.
    let greedy = cluster.pod("greedy", 8192 * MIB).await;
    node.checkpoint("actuated_pods_state", &[(&greedy.sandbox.uid, "app", 64 * MIB)]);
    run(&runtime, &greedy).await;
    cluster.event(&greedy, "BeyondNode", 1).await;
    cluster.event(&greedy, "Overcommitted", 1).await;

    let plimsoll = client(&cluster.server, &cluster.token).await.unwrap();
    // Compare with an account without roles: every account has these permissions.
    let nobody = token(&cluster.administrator, "nobody").await;
    let common = rules(client(&cluster.server, &nobody).await.unwrap()).await;
    let own: Vec<_> =
        rules(plimsoll.clone()).await.into_iter().filter(|rule| !common.contains(rule)).collect();
    let only = json!([{ "apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"] }]);
    assert_eq!(serde_json::to_value(own).unwrap(), only);
    let of_pods = Api::<ApiPod>::default_namespaced(plimsoll.clone())
        .list(&ListParams::default())
        .await
        .map(drop);
    let of_secrets = Api::<Secret>::default_namespaced(plimsoll.clone())
        .list(&ListParams::default())
        .await
        .map(drop);
    let of_events = Api::<Event>::default_namespaced(plimsoll.clone())
        .list(&ListParams::default())
        .await
        .map(drop);
    let name = event["metadata"]["name"].as_str().unwrap();
    let removal = Api::<Event>::default_namespaced(plimsoll.clone())
        .delete(name, &DeleteParams::default())
        .await
        .map(drop);
    let config: ConfigMap = from(json!({ "metadata": { "name": "x" } }));
    let creation = Api::default_namespaced(plimsoll.clone())
        .create(&PostParams::default(), &config)
        .await
        .map(drop);
    let old: OldEvent =
        from(json!({ "metadata": { "name": "x" }, "involvedObject": { "namespace": "default" } }));
    let old_creation =
        Api::default_namespaced(plimsoll).create(&PostParams::default(), &old).await.map(drop);
    for result in [of_pods, of_secrets, of_events, removal, creation, old_creation] {
        assert!(
            matches!(&result, Err(kube::Error::Api(status)) if status.code == 403),
            "{result:?}"
        );
    }
}

#[tokio::test]
async fn events_of_observe_mode_are_marked() {
    let cluster = Cluster::start().await;
    let (_node, _daemon, runtime) = cluster.plugin_with(&format!("{CONFIG}mode: observe\n")).await;
    let pod = cluster.pod("shop", 250 * MIB).await;
    run(&runtime, &pod).await;
    let cut = memory_limit(100 * MIB);
    runtime
        .connection
        .update_container(pod.sandbox.clone(), pod.container.clone(), cut)
        .await
        .unwrap();
    let event = cluster.event(&pod, "ObservedCutRejected", 1).await;
    let note = event.note.unwrap();
    assert!(
        note.contains(
            "observe mode, not done: rejected a memory limit decrease from 250Mi to 100Mi"
        ),
        "{note}"
    );
    let reasons: Vec<_> =
        cluster.events().await.into_iter().filter_map(|event| event.reason).collect();
    assert!(!reasons.iter().any(|reason| reason == "CutRejected"), "{reasons:?}");
}

#[tokio::test]
async fn an_api_server_outage_only_delays_events() {
    let mut cluster = Cluster::start().await;
    let (_node, mut daemon, mut runtime) = cluster.plugin().await;
    let pod = cluster.pod("shop", 250 * MIB).await;
    run(&runtime, &pod).await;
    refused(&runtime, &pod).await;
    cluster.event(&pod, "CutRejected", 1).await;
    cluster.server.kill();
    for _ in 0..2 {
        refused(&runtime, &pod).await;
    }
    daemon.says("cannot write Kubernetes Events").await;
    cluster.server.start_again().unwrap();
    // The plugin retries with growing delays, at first about 1 s.
    daemon.says("Kubernetes Events reach the API server again").await;
    cluster.event(&pod, "CutRejected", 3).await;

    // The plugin ends at once, even with unsent Events.
    cluster.server.kill();
    refused(&runtime, &pod).await;
    daemon.says("cannot write Kubernetes Events").await;
    runtime.outlives_plugin = true;
    daemon.signal(rustix::process::Signal::TERM);
    assert!(
        timeout(Duration::from_secs(5), daemon.ends()).await.expect("the plugin ends").success()
    );
}

#[tokio::test]
async fn hostile_names_corrupt_no_event_or_log() {
    let cluster = Cluster::start().await;
    let (_node, mut daemon, runtime) = cluster.plugin().await;
    let huge = "x".repeat(1 << 20);
    for (number, name) in
        ["\u{1b}[2Jred", "a\nb", "../../../v1/pods", "a/b", &huge].into_iter().enumerate()
    {
        for part in 0..3 {
            let mut pod = Pod::new("burstable", &format!("hostile-{number}-{part}"), 250 * MIB);
            match part {
                0 => pod.sandbox.name = name.to_owned(),
                1 => pod.sandbox.namespace = name.to_owned(),
                _ => pod.container.name = name.to_owned(),
            }
            let pod = pod.annotate("plimsoll.dev/x", name).annotate(name, "\u{1b}[2J\n");
            run(&runtime, &pod).await;
            refused(&runtime, &pod).await;
        }
    }
    // The longest possible name of a pod, 253 characters. The Event's name has the same maximum
    // length and a suffix, so the Event's name contains only a part of the pod's name.
    let longest = cluster.pod(&"a".repeat(253), 250 * MIB).await;
    run(&runtime, &longest).await;
    refused(&runtime, &longest).await;
    let event = cluster.event(&longest, "CutRejected", 1).await;
    assert_eq!(event.metadata.name.unwrap().len(), 253);
    // Among the hostile pods, only the pod with the overlong name may have Events. The name of this
    // pod is shortened to 253 characters.
    for event in cluster.events().await {
        let regarding = event.regarding.unwrap();
        let (name, note) = (regarding.name.unwrap(), event.note.unwrap());
        let is_plain =
            |name: &str| name.chars().all(|char| char.is_ascii_alphanumeric() || char == '-');
        assert!(
            is_plain(&name) && name.len() <= 253 && regarding.namespace.unwrap() == "default",
            "{name:.300}"
        );
        assert!(note.len() <= 1024 && !note.chars().any(char::is_control), "{note:.2000}");
    }
    while let Ok(line) = daemon.messages.try_recv() {
        assert!(
            !line.contains('\u{1b}') && !line.contains("cannot write Kubernetes Events"),
            "{line:.200}"
        );
    }
}

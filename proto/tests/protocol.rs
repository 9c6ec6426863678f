//! Tests of the stub with the runtime's side of the protocol, over real sockets.

use std::sync::Arc;
use std::time::Duration;

use nri::api::{
    Container, ContainerAdjustment, ContainerState, ContainerUpdate, Event, LinuxResources,
    PodSandbox, ValidateContainerAdjustmentRequest,
};
use nri::runtime::{Connection, Options, RequestError, UpdateRequest};
use nri::{
    Configuration, Creation, Error, EventMask, Identity, NriVersion, Plugin, Refusal, Runtime,
    Stub, UpdateError,
};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const EVERYTHING: EventMask = EventMask::from_bits_retain(0x3fff);

const V0_6: NriVersion = NriVersion(0, 6, 1);
const V0_12: NriVersion = NriVersion(0, 12, 0);

/// A plugin that reports each call to the test. Pods and containers with certain names get certain
/// answers.
struct Recorder {
    calls: mpsc::UnboundedSender<String>,
    events: EventMask,
    refuse_configuration: bool,
    runtime: std::sync::OnceLock<Runtime>,
}

impl Recorder {
    fn record(&self, call: impl Into<String>) -> Result<(), Refusal> {
        self.calls.send(call.into()).expect("the test listens");
        Ok(())
    }
}

impl Plugin for Recorder {
    fn events(&self) -> EventMask {
        self.events
    }

    async fn configure(&self, configuration: Configuration) -> Result<(), Refusal> {
        if self.refuse_configuration {
            return Err(Refusal::new("factor: expected a number"));
        }
        self.record(format!(
            "configure {:?} {:?}",
            configuration.drop_in, configuration.nri_version
        ))
    }

    async fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        containers: Vec<Container>,
    ) -> Result<Vec<ContainerUpdate>, Refusal> {
        self.record(format!("synchronize {} {}", pods.len(), containers.len()))?;
        match pods.first() {
            Some(pod) if pod.name == "refuse" => Err(Refusal::new("no")),
            Some(pod) if pod.name == "hang" => std::future::pending().await,
            _ => Ok(containers.iter().take(1).map(|c| update(&c.id)).collect()),
        }
    }

    async fn disconnected(&self) {
        let _ = self.record("disconnected");
    }

    async fn shutdown(&self) {
        let _ = self.record("shutdown");
    }

    async fn run_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refusal> {
        self.record(format!("run_pod_sandbox {}", pod.id))
    }

    async fn update_pod_sandbox(
        &self,
        pod: PodSandbox,
        _: LinuxResources,
        _: LinuxResources,
    ) -> Result<(), Refusal> {
        self.record(format!("update_pod_sandbox {}", pod.id))
    }

    async fn post_update_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refusal> {
        self.record(format!("post_update_pod_sandbox {}", pod.id))
    }

    async fn stop_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refusal> {
        self.record(format!("stop_pod_sandbox {}", pod.id))
    }

    async fn remove_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refusal> {
        self.record(format!("remove_pod_sandbox {}", pod.id))
    }

    async fn create_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<Creation, Refusal> {
        self.record(format!("create_container {} {}", pod.id, container.id))?;
        match container.name.as_str() {
            "refuse" => Err(Refusal::new("this container is refused")),
            "panic" => panic!("this container makes the plugin panic"),
            "hang" => std::future::pending().await,
            "update-others" => {
                let runtime = self.runtime.get().expect("the test set the runtime");
                let error = runtime
                    .update_containers(vec![update("other")])
                    .await
                    .expect_err("within an event");
                self.record(error.to_string())?;
                Ok(Creation::default())
            }
            _ => {
                let mut adjust = ContainerAdjustment::new();
                adjust.annotations.insert("id".into(), container.id);
                Ok(Creation { adjust, update: Vec::new() })
            }
        }
    }

    async fn post_create_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<(), Refusal> {
        self.record(format!("post_create_container {} {}", pod.id, container.id))
    }

    async fn start_container(&self, pod: PodSandbox, container: Container) -> Result<(), Refusal> {
        self.record(format!("start_container {} {}", pod.id, container.id))
    }

    async fn post_start_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<(), Refusal> {
        self.record(format!("post_start_container {} {}", pod.id, container.id))
    }

    async fn update_container(
        &self,
        pod: PodSandbox,
        container: Container,
        resources: LinuxResources,
    ) -> Result<Vec<ContainerUpdate>, Refusal> {
        self.record(format!(
            "update_container {} {} {}",
            pod.id,
            container.id,
            resources.unified.len()
        ))?;
        Ok(vec![update(&container.id)])
    }

    async fn post_update_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<(), Refusal> {
        self.record(format!("post_update_container {} {}", pod.id, container.id))
    }

    async fn stop_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<Vec<ContainerUpdate>, Refusal> {
        self.record(format!("stop_container {} {}", pod.id, container.id))?;
        Ok(Vec::new())
    }

    async fn remove_container(&self, pod: PodSandbox, container: Container) -> Result<(), Refusal> {
        self.record(format!("remove_container {} {}", pod.id, container.id))
    }

    async fn validate_container_adjustment(
        &self,
        request: ValidateContainerAdjustmentRequest,
    ) -> Result<(), Refusal> {
        self.record(format!("validate_container_adjustment {}", request.container.id))?;
        Err(Refusal::new("not these"))
    }
}

fn update(id: &str) -> ContainerUpdate {
    ContainerUpdate { container_id: id.into(), ..Default::default() }
}

fn pod(id: &str) -> PodSandbox {
    PodSandbox { id: id.into(), ..Default::default() }
}

fn container(id: &str) -> Container {
    Container { id: id.into(), ..Default::default() }
}

fn named(name: &str) -> Container {
    Container { name: name.into(), ..container("c") }
}

/// A directory with the socket of a runtime, to which plugins connect.
struct Node {
    directory: tempfile::TempDir,
    listener: UnixListener,
}

struct Running {
    calls: mpsc::UnboundedReceiver<String>,
    runtime: Runtime,
    stub: JoinHandle<Result<(), Error>>,
}

impl Running {
    async fn next(&mut self) -> String {
        self.calls.recv().await.expect("the plugin runs")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stub.abort();
    }
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(directory.path().join("nri.sock")).expect("a socket");
        Self { directory, listener }
    }

    fn start(&self) -> Running {
        self.start_with(EVERYTHING, false)
    }

    fn start_with(&self, events: EventMask, refuse_configuration: bool) -> Running {
        self.start_as("10", events, refuse_configuration)
    }

    fn start_as(&self, index: &str, events: EventMask, refuse_configuration: bool) -> Running {
        let (sender, calls) = mpsc::unbounded_channel();
        let recorder =
            Recorder { calls: sender, events, refuse_configuration, runtime: Default::default() };
        let stub = Stub::external(Identity::new(index, "recorder").expect("an identity"), recorder)
            .socket(self.directory.path().join("nri.sock"));
        let runtime = stub.runtime();
        stub.plugin().runtime.set(runtime.clone()).expect("not set before");
        Running { calls, runtime, stub: tokio::spawn(stub.run()) }
    }

    async fn trunk(&self) -> UnixStream {
        self.listener.accept().await.expect("a connection").0
    }

    async fn accept(
        &self,
        options: Options,
    ) -> (Connection, mpsc::UnboundedReceiver<UpdateRequest>) {
        Connection::accept(self.trunk().await, options).await.expect("a plugin that registers")
    }
}

fn version(nri_version: NriVersion) -> Options {
    Options { nri_version, ..Options::default() }
}

#[tokio::test]
async fn every_nri_version_reaches_the_same_handlers() {
    for nri_version in [V0_6, NriVersion(0, 8, 0), NriVersion(0, 10, 0), V0_12] {
        let node = Node::new();
        let mut plugin = node.start();
        let options = Options { version: "1.7.24".into(), ..version(nri_version) };
        let options = if nri_version == NriVersion(0, 10, 0) {
            Options { version: "2.2.0".into(), ..options }
        } else {
            options
        };
        let (runtime, _updates) = node.accept(options).await;
        let told = if nri_version == NriVersion(0, 8, 0) { V0_6 } else { nri_version };
        assert_eq!(plugin.next().await, format!("configure None {:?}", Some(told)));
        assert_eq!(runtime.events(), told.events(), "{nri_version}");
        runtime.synchronize(vec![pod("p")], vec![container("c")]).await.expect("a reply");
        assert_eq!(plugin.next().await, "synchronize 1 1");

        let without_reply = [
            (Event::RUN_POD_SANDBOX, "run_pod_sandbox p"),
            (Event::POST_CREATE_CONTAINER, "post_create_container p c"),
            (Event::START_CONTAINER, "start_container p c"),
            (Event::POST_START_CONTAINER, "post_start_container p c"),
            (Event::POST_UPDATE_CONTAINER, "post_update_container p c"),
            (Event::REMOVE_CONTAINER, "remove_container p c"),
            (Event::STOP_POD_SANDBOX, "stop_pod_sandbox p"),
            (Event::REMOVE_POD_SANDBOX, "remove_pod_sandbox p"),
            (Event::POST_UPDATE_POD_SANDBOX, "post_update_pod_sandbox p"),
        ];
        for (event, call) in without_reply {
            if runtime.events().contains(event.into()) {
                runtime.event(event, pod("p"), container("c")).await.expect("a reply");
                assert_eq!(plugin.next().await, call);
            }
        }
        let created = runtime.create_container(pod("p"), container("c")).await.expect("a reply");
        assert_eq!(plugin.next().await, "create_container p c");
        assert_eq!(created.adjust.annotations["id"], "c");
        let mut resources = LinuxResources::new();
        resources.unified.insert("memory.high".into(), "max".into());
        let updated =
            runtime.update_container(pod("p"), container("c"), resources).await.expect("a reply");
        assert_eq!(plugin.next().await, "update_container p c 1");
        assert_eq!(updated.update, [update("c")]);
        runtime.stop_container(pod("p"), container("c")).await.expect("a reply");
        assert_eq!(plugin.next().await, "stop_container p c");
        if nri_version >= NriVersion(0, 10, 0) {
            runtime
                .update_pod_sandbox(pod("p"), Default::default(), Default::default())
                .await
                .expect("a reply");
            assert_eq!(plugin.next().await, "update_pod_sandbox p");
            let request = ValidateContainerAdjustmentRequest::default();
            let verdict = runtime.validate_container_adjustment(request).await.expect("a reply");
            assert_eq!(plugin.next().await, "validate_container_adjustment ");
            assert!(verdict.reject);
            assert_eq!(verdict.reason, "not these");
        }
        runtime.shutdown().await.expect("a reply");
        assert_eq!(plugin.next().await, "shutdown");
    }
}

#[tokio::test]
async fn unknown_runtimes_get_only_common_events() {
    let node = Node::new();
    let _plugin = node.start();
    let options = Options { name: "frobnicator".into(), ..version(NriVersion(0, 8, 0)) };
    let (runtime, _updates) = node.accept(options).await;
    assert_eq!(runtime.events(), V0_6.events());
}

#[tokio::test]
async fn plugins_without_known_events_get_pod_removal() {
    let node = Node::new();
    let _plugin = node.start_with(EventMask::VALIDATE_CONTAINER_ADJUSTMENT, false);
    let (runtime, _updates) = node.accept(Options::default()).await;
    assert_eq!(runtime.events(), EventMask::REMOVE_POD_SANDBOX);
}

#[tokio::test]
async fn unknown_and_unset_values_are_tolerated() {
    let node = Node::new();
    let mut plugin = node.start();
    let (runtime, _updates) = node.accept(Options::default()).await;
    runtime.synchronize(vec![], vec![]).await.expect("a reply");
    let mut unknown = container("c");
    unknown.state = nri::api::protobuf::EnumOrUnknown::from_i32(99);
    assert!(
        unknown.state.enum_value_or(ContainerState::CONTAINER_UNKNOWN)
            == ContainerState::CONTAINER_UNKNOWN
    );
    unknown
        .special_fields
        .mut_unknown_fields()
        .add_length_delimited(4000, b"from the future".to_vec());
    runtime.create_container(PodSandbox::default(), unknown).await.expect("a reply");
    while plugin.next().await != "create_container  c" {}
}

#[tokio::test]
async fn a_synchronization_in_parts_arrives_whole() {
    let node = Node::new();
    let mut plugin = node.start();
    let (runtime, _updates) = node.accept(Options::default()).await;
    plugin.next().await;
    let pods = (0..1000).map(|i| pod(&format!("pod-{i}"))).collect();
    let containers = (0..5000)
        .map(|i| Container { args: vec!["x".repeat(2000)], ..container(&format!("c{i}")) })
        .collect();
    let updates = runtime.synchronize(pods, containers).await.expect("10 MB in parts");
    assert_eq!(plugin.next().await, "synchronize 1000 5000");
    // Without `ignore_failure`, a failed update would make the runtime forget the plugin.
    assert_eq!(updates, [ContainerUpdate { ignore_failure: true, ..update("c0") }]);
}

#[tokio::test]
async fn a_refusal_leaves_the_connection_open() {
    let node = Node::new();
    let _plugin = node.start();
    let (runtime, _updates) = node.accept(Options::default()).await;
    runtime.synchronize(vec![], vec![]).await.expect("a reply");
    let error = runtime.create_container(pod("p"), named("refuse")).await.expect_err("refused");
    assert_eq!(error, RequestError::Refused("this container is refused".into()));
    runtime.create_container(pod("p"), named("fine")).await.expect("a reply");
}

#[tokio::test]
async fn panicking_handlers_yield_empty_replies() {
    let node = Node::new();
    let _plugin = node.start();
    let (runtime, _updates) = node.accept(Options::default()).await;
    runtime.synchronize(vec![], vec![]).await.expect("a reply");
    let reply = runtime.create_container(pod("p"), named("panic")).await.expect("a reply");
    assert_eq!(reply.adjust.unwrap_or_default(), ContainerAdjustment::default());
    runtime.create_container(pod("p"), named("fine")).await.expect("a reply");
}

#[tokio::test]
async fn lost_connections_are_reopened_and_synchronized() {
    let node = Node::new();
    let mut plugin = node.start();
    for _ in 0..3 {
        let (runtime, _updates) = node.accept(Options::default()).await;
        assert!(plugin.next().await.starts_with("configure"));
        runtime.synchronize(vec![pod("p")], vec![]).await.expect("a reply");
        assert_eq!(plugin.next().await, "synchronize 1 0");
        runtime.close();
        assert_eq!(plugin.next().await, "disconnected");
    }
}

#[tokio::test]
async fn a_requested_reconnect_synchronizes_again() {
    let node = Node::new();
    let mut plugin = node.start();
    for _ in 0..2 {
        let (runtime, _updates) = node.accept(Options::default()).await;
        assert!(plugin.next().await.starts_with("configure"));
        runtime.synchronize(vec![pod("p")], vec![]).await.expect("a reply");
        assert_eq!(plugin.next().await, "synchronize 1 0");
        plugin.runtime.reconnect();
        assert_eq!(plugin.next().await, "disconnected");
    }
}

#[tokio::test]
async fn a_runtime_that_comes_later_is_found() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let socket = directory.path().join("run/nri/nri.sock");
    let (calls, _received) = mpsc::unbounded_channel();
    let recorder = Recorder {
        calls,
        events: EVERYTHING,
        refuse_configuration: false,
        runtime: Default::default(),
    };
    let identity = Identity::new("10", "recorder").expect("an identity");
    let stub = tokio::spawn(Stub::external(identity, recorder).socket(&socket).run());
    while !socket.with_file_name("recorder.lock").exists() {
        tokio::task::yield_now().await;
    }
    let listener = UnixListener::bind(&socket).expect("a socket");
    let (trunk, _) = listener.accept().await.expect("a connection");
    Connection::accept(trunk, Options::default()).await.expect("a plugin that registers");
    stub.abort();
}

#[tokio::test(start_paused = true)]
async fn silent_connections_are_closed_and_retried() {
    let node = Node::new();
    let _plugin = node.start();
    // This runtime accepts the connection, but does not answer the registration.
    let mut mute = node.trunk().await;
    // This runtime registers the plugin, but never synchronizes it.
    let (forgetful, _updates) = node.accept(Options::default()).await;
    let mut rest = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut mute, &mut rest).await.expect("the plugin closed it");
    forgetful.closed().await;
    let (runtime, _updates) = node.accept(Options::default()).await;
    runtime.synchronize(vec![], vec![]).await.expect("a reply");
}

#[tokio::test]
async fn the_plugin_reconnects_after_garbage_input() {
    let node = Node::new();
    let _plugin = node.start();
    for garbage in [
        &b"\0\0\0\x01\xff\xff\xff\xff"[..],
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0\0\0\x01\0\0\0\x02\x01",
    ] {
        let mut trunk = node.trunk().await;
        tokio::io::AsyncWriteExt::write_all(&mut trunk, garbage).await.expect("an open trunk");
    }
    let (runtime, _updates) = node.accept(Options::default()).await;
    runtime.synchronize(vec![], vec![]).await.expect("a reply");
}

#[tokio::test]
async fn it_registers_again_after_refusing_synchronization() {
    // Before NRI 0.12, the connection stays open after a failed synchronization, but the runtime
    // sends no more events.
    let node = Node::new();
    let _plugin = node.start();
    let (runtime, _updates) = node.accept(Options::default()).await;
    let refuse = PodSandbox { name: "refuse".into(), ..pod("p") };
    runtime.synchronize(vec![refuse], vec![]).await.expect_err("refused");
    runtime.closed().await;
    node.accept(Options::default()).await;
}

#[tokio::test]
async fn hanging_handlers_yield_empty_replies_in_time() {
    let node = Node::new();
    let _plugin = node.start();
    let options = Options { request_timeout: Duration::from_millis(300), ..Options::default() };
    let (runtime, _updates) = node.accept(options).await;
    runtime.synchronize(vec![], vec![]).await.expect("a reply");
    let reply = runtime.create_container(pod("p"), named("hang")).await.expect("a reply in time");
    assert_eq!(reply.adjust.unwrap_or_default(), ContainerAdjustment::default());
    runtime.create_container(pod("p"), named("fine")).await.expect("a reply");
}

#[tokio::test]
async fn it_registers_again_after_slow_synchronization() {
    let node = Node::new();
    let _plugin = node.start();
    let options = Options { request_timeout: Duration::from_millis(300), ..Options::default() };
    let (runtime, _updates) = node.accept(options).await;
    runtime
        .synchronize(vec![PodSandbox { name: "hang".into(), ..pod("p") }], vec![])
        .await
        .expect_err("too slow");
    runtime.closed().await;
    node.accept(Options::default()).await;
}

#[tokio::test]
async fn a_refused_configuration_ends_only_the_plugin() {
    let node = Node::new();
    let mut plugin = node.start_with(EVERYTHING, true);
    let (runtime, _updates) = node.accept(Options::default()).await;
    assert_eq!(runtime.events(), EventMask::REMOVE_POD_SANDBOX);
    runtime.closed().await;
    let result = (&mut plugin.stub).await.expect("the stub");
    assert_eq!(result.expect_err("refused").to_string(), "factor: expected a number");
}

#[tokio::test]
async fn two_instances_are_never_registered_at_once() {
    let node = Node::new();
    let first = node.start();
    let (connection, _updates) = node.accept(Options::default()).await;
    connection.synchronize(vec![], vec![]).await.expect("a reply");
    // An instance with another index would still set the same values.
    let second = node.start_as("20", EVERYTHING, false);
    tokio::select! {
        biased;
        _ = node.trunk() => panic!("a second instance connected"),
        () = async { for _ in 0..1000 { tokio::task::yield_now().await } } => {}
    }
    assert!(!second.stub.is_finished());
    drop(first);
    connection.closed().await;
    node.accept(Options::default()).await;
}

#[tokio::test]
async fn dropping_the_future_closes_the_connection() {
    let node = Node::new();
    let plugin = node.start();
    let (runtime, _updates) = node.accept(Options::default()).await;
    drop(plugin);
    runtime.closed().await;
}

#[tokio::test]
async fn updates_need_and_use_the_current_connection() {
    let node = Node::new();
    let mut plugin = node.start();
    assert_eq!(plugin.runtime.update_containers(vec![]).await, Err(UpdateError::NotConnected));
    for _ in 0..2 {
        let (connection, mut updates) = node.accept(Options::default()).await;
        connection.synchronize(vec![], vec![]).await.expect("a reply");
        while !plugin.next().await.starts_with("synchronize") {}
        let handle = plugin.runtime.clone();
        let updating =
            tokio::spawn(
                async move { handle.update_containers(vec![update("a"), update("b")]).await },
            );
        let request = updates.recv().await.expect("a request");
        assert_eq!(request.update, [update("a"), update("b")]);
        request.succeed(vec![update("b")]);
        assert_eq!(updating.await.expect("a task"), Ok(vec![update("b")]));

        let handle = plugin.runtime.clone();
        let updating =
            tokio::spawn(async move { handle.update_containers(vec![update("a")]).await });
        updates.recv().await.expect("a request").fail("no such container");
        assert_eq!(
            updating.await.expect("a task"),
            Err(UpdateError::Runtime("no such container".into()))
        );
        connection.close();
        while plugin.next().await != "disconnected" {}
        assert_eq!(plugin.runtime.update_containers(vec![]).await, Err(UpdateError::NotConnected));
    }
}

#[tokio::test]
async fn a_pending_update_fails_on_disconnection() {
    let node = Node::new();
    let mut plugin = node.start();
    let (connection, mut updates) = node.accept(Options::default()).await;
    connection.synchronize(vec![], vec![]).await.expect("a reply");
    while !plugin.next().await.starts_with("synchronize") {}
    let handle = plugin.runtime.clone();
    let updating = tokio::spawn(async move { handle.update_containers(vec![update("a")]).await });
    let _unanswered = updates.recv().await.expect("a request");
    connection.close();
    assert!(matches!(updating.await.expect("a task"), Err(UpdateError::Runtime(_))));
}

#[tokio::test]
async fn updates_within_an_event_are_refused() {
    let node = Node::new();
    let mut plugin = node.start();
    let (connection, _updates) = node.accept(Options::default()).await;
    connection.synchronize(vec![], vec![]).await.expect("a reply");
    connection.create_container(pod("p"), named("update-others")).await.expect("a reply");
    while plugin.next().await != UpdateError::InEvent.to_string() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn many_concurrent_events_are_all_answered() {
    let node = Node::new();
    let _plugin = node.start();
    let (connection, _updates) = node.accept(Options::default()).await;
    connection.synchronize(vec![], vec![]).await.expect("a reply");
    let connection = Arc::new(connection);
    let mut requests = tokio::task::JoinSet::new();
    for i in 0..500 {
        let connection = connection.clone();
        requests.spawn(async move {
            let id = format!("container-{i}");
            let large = Container { args: vec!["x".repeat(i * 20)], ..container(&id) };
            let reply = connection.create_container(pod("p"), large).await.expect("a reply");
            assert_eq!(reply.adjust.annotations["id"], id);
        });
    }
    while let Some(result) = requests.join_next().await {
        result.expect("a request");
    }
}

#[test]
fn identities_require_two_digits_and_a_name() {
    for (index, name) in
        [("1", "a"), ("100", "a"), ("x1", "a"), ("", "a"), ("10", ""), ("10", "a b"), ("10", "a/b")]
    {
        assert!(Identity::new(index, name).is_err(), "{index} {name}");
    }
    assert_eq!(Identity::new("09", "a_b.c+d-e").expect("an identity").to_string(), "09-a_b.c+d-e");
}

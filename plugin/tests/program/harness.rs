//! Doubles for a node and its runtime, and the program that runs on them. A temporary directory
//! tree is the node's file system. The runtime writes a unified map to the container's files, as
//! containerd and runc do.

#![allow(missing_docs)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nri::NriVersion;
use nri::api::{
    self, ContainerState, ContainerUpdate, Event, LinuxContainer, LinuxMemory, LinuxPodSandbox,
    LinuxResources, OptionalInt, OptionalInt64, PodSandbox,
};
use nri::runtime::{Connection, Options, RequestError, UpdateRequest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

pub const MIB: i64 = 1 << 20;

/// Shell script that starts the plugin with the script's standard input as descriptor 3, as a
/// runtime passes a connection. The script keeps running after a signal has killed the plugin.
pub const LAUNCHER: &str = r#"
exec 3<&0 0</dev/null
"$0" "$@" &
exec 3<&-
wait $!
code=$?
[ $code -le 128 ] || exec tail -f /dev/null
exit $code
"#;

/// A directory with the layout of a node's file system, and the socket of the node's runtime.
pub struct Node {
    pub directory: tempfile::TempDir,
    pub listener: UnixListener,
}

impl Node {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for path in ["host/sys/fs/cgroup", "host/proc", "host/var/lib/kubelet", "run"] {
            fs::create_dir_all(directory.path().join(path)).unwrap();
        }
        let listener = UnixListener::bind(directory.path().join("run/nri.sock")).unwrap();
        let node = Self { directory, listener };
        node.write("host/sys/fs/cgroup/cgroup.controllers", "memory\n");
        node.write(
            "host/proc/meminfo",
            "MemTotal:        8388608 kB\nHugetlb:               0 kB\n",
        );
        node.write(
            "plimsoll.yaml",
            "nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\nlogLevel: debug\n",
        );
        node
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    pub fn write(&self, path: &str, content: &str) {
        fs::write(self.path(path), content).unwrap();
    }

    /// Replaces a file by a rename, as the kubelet and editors do.
    pub fn replace(&self, path: &str, content: &str) {
        self.write("new", content);
        fs::rename(self.path("new"), self.path(path)).unwrap();
    }

    /// Writes a checkpoint file of the kubelet. Each element of `requests` is a pod UID, a
    /// container name and a memory request in bytes.
    pub fn checkpoint(&self, file: &str, requests: &[(&str, &str, i64)]) {
        let mut entries = serde_json::Map::new();
        for (uid, container, request) in requests {
            let resources = serde_json::json!({ "requests": { "memory": request.to_string() } });
            let entry = serde_json::json!({ "ContainerResources": { *container: resources } });
            entries.insert((*uid).to_owned(), entry);
        }
        let data = serde_json::json!({ "entries": entries }).to_string();
        let checkpoint = serde_json::json!({ "data": data, "checksum": 1 }).to_string();
        self.replace(&format!("host/var/lib/kubelet/{file}"), &checkpoint);
    }

    /// Writes the kubelet's checkpoint of a pod with its own memory limit (`spec.resources`), to
    /// both files.
    pub fn checkpoint_with_pod_limit(
        &self,
        uid: &str,
        request: &str,
        limit: &str,
        pod_limit: &str,
    ) {
        let app =
            serde_json::json!({ "requests": { "memory": request }, "limits": { "memory": limit } });
        self.checkpoint_of_pod(
            uid,
            &serde_json::json!({ "app": app }),
            &serde_json::json!({ "limits": { "memory": pod_limit } }),
        );
    }

    /// Writes the kubelet's checkpoint of a pod whose containers have these limits in MiB, to both
    /// files. 0 means no limit. The checkpoint has no pod-level resources, as in Kubernetes 1.34.
    pub fn checkpoint_with_limits(&self, uid: &str, limits: &[(&str, i64)]) {
        let of_container = |(name, limit): &(&str, i64)| {
            let limits = if *limit > 0 {
                serde_json::json!({ "limits": { "memory": format!("{limit}Mi") } })
            } else {
                serde_json::json!({})
            };
            ((*name).to_owned(), limits)
        };
        let containers: serde_json::Map<_, _> = limits.iter().map(of_container).collect();
        self.checkpoint_of_pod(uid, &containers.into(), &serde_json::Value::Null);
    }

    /// Writes the kubelet's checkpoint of one pod, to both files.
    pub fn checkpoint_of_pod(
        &self,
        uid: &str,
        containers: &serde_json::Value,
        pod_level: &serde_json::Value,
    ) {
        let entry = serde_json::json!({ "entries": { uid: {
            "ContainerResources": containers,
            "PodLevelResources": pod_level,
        } } });
        let checkpoint =
            serde_json::json!({ "data": entry.to_string(), "checksum": 1 }).to_string();
        for file in ["actuated_pods_state", "allocated_pods_state"] {
            self.replace(&format!("host/var/lib/kubelet/{file}"), &checkpoint);
        }
    }

    pub fn start(&self) -> Daemon {
        self.start_with(&["--config", self.path("plimsoll.yaml").to_str().unwrap()])
    }

    pub fn start_with(&self, arguments: &[&str]) -> Daemon {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        command.args(self.arguments()).args(arguments);
        Daemon::spawn(command)
    }

    pub fn arguments(&self) -> Vec<String> {
        let path = |path| self.path(path).to_str().unwrap().to_owned();
        ["run".into(), "--host".into(), path("host"), "--socket".into(), path("run/nri.sock")]
            .into()
    }

    /// Launches the plugin as a runtime does. A shell with [`LAUNCHER`] is the parent process, in
    /// the role of the runtime.
    pub fn launch(&self) -> (Daemon, UnixStream) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-c", LAUNCHER])
            .arg(env!("CARGO_BIN_EXE_plimsoll"))
            .args(self.arguments())
            .env_clear()
            .env("NRI_PLUGIN_NAME", "plimsoll")
            .env("NRI_PLUGIN_IDX", "90")
            .env("NRI_PLUGIN_SOCKET", "3")
            // The shell finds `tail` through PATH.
            .env("PATH", std::env::var_os("PATH").unwrap())
            .stdin(Stdio::from(OwnedFd::from(theirs)));
        let daemon = Daemon::spawn(command);
        ours.set_nonblocking(true).unwrap();
        (daemon, UnixStream::from_std(ours).unwrap())
    }

    pub async fn trunk(&self) -> UnixStream {
        self.listener.accept().await.unwrap().0
    }

    /// Accepts the plugin's connection. The runtime has not reported any container yet.
    pub async fn accept(&self) -> Runtime {
        // Use long timeouts, because other programs may slow down the machine.
        let patience = Duration::from_secs(30);
        let options = Options {
            request_timeout: patience,
            registration_timeout: patience,
            ..Options::default()
        };
        self.serve(self.trunk().await, options).await
    }

    /// Returns the metrics from the socket, without the HTTP header.
    pub async fn metrics(&self) -> String {
        let socket = self.path("host/run/plimsoll/plimsoll.sock");
        let connect = || std::os::unix::net::UnixStream::connect(socket).unwrap();
        let answer = tokio::task::spawn_blocking(move || get(connect(), "/metrics")).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 200") && head.contains("application/openmetrics-text"),
            "{head}"
        );
        body.to_owned()
    }

    pub async fn serve(&self, trunk: UnixStream, options: Options) -> Runtime {
        let (connection, updates) = Connection::accept(trunk, options).await.unwrap();
        Runtime {
            connection,
            updates,
            root: self.path("host/sys/fs/cgroup"),
            outlives_plugin: false,
        }
    }
}

/// Sends an HTTP request for `path` and returns the complete response.
pub fn get(mut stream: impl Read + Write, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Starts the plugin with this configuration and a runtime without containers.
pub async fn start(config: &str) -> (Node, Daemon, Runtime) {
    let node = Node::new();
    node.replace("plimsoll.yaml", config);
    let daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    (node, daemon, runtime)
}

/// Runs `plimsoll restore`. Returns its exit code and its output.
pub async fn restore(node: &Node, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    command.arg("restore").args(node.arguments().into_iter().skip(1)).args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let said = [output.stdout, output.stderr]
        .map(|said| String::from_utf8_lossy(&said).into_owned())
        .concat();
    (output.status.code(), said)
}

/// Runs the program with these arguments on this node. Returns its output and its exit code.
pub async fn plimsoll(node: &Node, arguments: &[&str]) -> (String, i32) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    command.args(arguments).arg("--host").arg(node.path("host"));
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text =
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (text, output.status.code().unwrap())
}

/// Runs `plimsoll status`. Returns its output and its exit code.
pub async fn status(node: &Node, arguments: &[&str]) -> (String, i32) {
    plimsoll(node, &[&["status"], arguments].concat()).await
}

/// Returns the output of `plimsoll status --json`.
pub async fn status_json(node: &Node) -> serde_json::Value {
    let (text, code) = status(node, &["--json"]).await;
    assert_eq!(code, 0, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// A running program, with the lines of its standard error.
pub struct Daemon {
    pub child: Child,
    pub messages: mpsc::UnboundedReceiver<String>,
}

impl Daemon {
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, messages) = mpsc::unbounded_channel();
        let stderr = child.stderr.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // The test may have ended.
                let _ = sender.send(line);
            }
        });
        Self { child, messages }
    }

    /// Waits for a message that contains `text`, and returns the message.
    pub async fn says(&mut self, text: &str) -> String {
        let mut before = Vec::new();
        let found = tokio::time::timeout(Duration::from_secs(60), async {
            while let Some(line) = self.messages.recv().await {
                if line.contains(text) {
                    return Some(line);
                }
                before.push(line);
            }
            None
        });
        match found.await {
            Ok(Some(line)) => line,
            _ => panic!("the program did not say {text:?}, but:\n{}", before.join("\n")),
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Kills the program, and waits until it has ended.
    pub async fn kill(self) {
        self.signal(rustix::process::Signal::KILL);
        self.ends().await;
    }

    /// Calls `act` while the program is stopped, so that the program sees all changes at once.
    pub fn while_it_is_stopped(&self, act: impl FnOnce()) {
        use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
        self.signal(Signal::STOP);
        waitid(WaitId::Pid(Pid::from_child(&self.child)), WaitIdOptions::STOPPED).unwrap();
        act();
        self.signal(Signal::CONT);
    }

    pub async fn ends(mut self) -> ExitStatus {
        let mut rest = Vec::new();
        while let Some(line) = self.messages.recv().await {
            rest.push(line);
        }
        self.child.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connected runtime, with the cgroup files of its containers.
pub struct Runtime {
    pub connection: Connection,
    pub updates: mpsc::UnboundedReceiver<UpdateRequest>,
    pub root: PathBuf,
    /// Whether the plugin may end during a call. A failed call then waits for 60 s before it
    /// panics, so that the test can end first.
    pub outlives_plugin: bool,
}

/// A pod with one container.
#[derive(Clone)]
pub struct Pod {
    pub sandbox: PodSandbox,
    pub container: api::Container,
}

impl Pod {
    pub fn new(class: &str, uid: &str, limit: i64) -> Self {
        let parent = match class {
            "guaranteed" => format!("/kubepods/pod{uid}"),
            class => format!("/kubepods/{class}/pod{uid}"),
        };
        let mut sandbox = PodSandbox {
            id: format!("sandbox-{uid}"),
            uid: uid.into(),
            name: uid.into(),
            ..Default::default()
        };
        sandbox.namespace = "default".into();
        let linux = LinuxPodSandbox { cgroup_parent: parent.clone(), ..Default::default() };
        sandbox.linux = Some(linux).into();
        let mut container =
            api::Container { id: format!("id-{uid}"), name: "app".into(), ..Default::default() };
        container.pod_sandbox_id = sandbox.id.clone();
        container.state = ContainerState::CONTAINER_RUNNING.into();
        let linux = LinuxContainer {
            resources: Some(memory_limit(limit)).into(),
            oom_score_adj: Some(OptionalInt { value: 999, ..Default::default() }).into(),
            cgroups_path: format!("{parent}/{}", container.id),
            ..Default::default()
        };
        container.linux = Some(linux).into();
        Self { sandbox, container }
    }

    pub fn annotate(mut self, key: &str, value: &str) -> Self {
        self.sandbox.annotations.insert(key.into(), value.into());
        self
    }

    /// Sets the `oom_score_adj` that the kubelet gives a Burstable container with this memory
    /// request. A [`Node`] has 8 GiB.
    pub fn scored(mut self, request: i64) -> Self {
        self.linux().oom_score_adj.as_mut().unwrap().value = 1000 - 1000 * request / (8 << 30);
        self
    }

    pub fn cgroup(&self) -> String {
        self.sandbox.linux.cgroup_parent.trim_start_matches('/').to_owned()
    }

    /// Sets the pod limits that the runtime's client passes when it creates the sandbox.
    pub fn created_with(mut self, resources: LinuxResources) -> Self {
        self.sandbox.linux.as_mut().unwrap().pod_resources = Some(resources).into();
        self
    }

    pub fn overhead(mut self, bytes: i64) -> Self {
        self.sandbox.linux.as_mut().unwrap().pod_overhead = Some(memory_limit(bytes)).into();
        self
    }

    pub fn linux(&mut self) -> &mut LinuxContainer {
        self.container.linux.as_mut().unwrap()
    }
}

pub fn memory_limit(limit: i64) -> LinuxResources {
    let limit = Some(OptionalInt64 { value: limit, ..Default::default() }).into();
    LinuxResources {
        memory: Some(LinuxMemory { limit, ..Default::default() }).into(),
        ..Default::default()
    }
}

pub fn unified(pairs: &[(&str, i64)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.to_string())).collect()
}

/// Simulates the kernel's reclaim: a write to `memory.reclaim` lowers the usage by the written
/// amount, at most by the page cache.
pub fn reclaims(cgroup: PathBuf, mut current: i64, mut cache: i64) {
    fs::write(cgroup.join("memory.reclaim"), "").unwrap();
    let mut inotify = inotify::Inotify::init().unwrap();
    inotify.watches().add(cgroup.join("memory.reclaim"), inotify::WatchMask::CLOSE_WRITE).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while inotify.read_events_blocking(&mut buffer).is_ok() {
            let Ok(asked) = fs::read_to_string(cgroup.join("memory.reclaim")) else { return };
            let less = asked.trim().parse().unwrap_or(0).min(cache);
            (current, cache) = (current - less, cache - less);
            let replace = |name: &str, text: String| {
                fs::write(cgroup.join("new"), text).unwrap();
                fs::rename(cgroup.join("new"), cgroup.join(name)).unwrap();
            };
            replace("memory.current", format!("{current}\n"));
            replace(
                "memory.stat",
                format!("inactive_anon {}\ninactive_file {cache}\n", current - cache),
            );
        }
    });
}

/// Overwrites a file with a single write and without truncation, because a concurrent reader must
/// not see an empty file. Newlines pad the value to the old length.
pub fn overwrite(path: &Path, value: &str) {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
    let length = usize::try_from(file.metadata().unwrap().len()).unwrap().max(value.len() + 1);
    file.write_all_at(format!("{value:\n<length$}").as_bytes(), 0).unwrap();
}

pub fn make_files(cgroup: &Path, max: &str) {
    fs::create_dir_all(cgroup).unwrap();
    let files = [
        ("memory.min", "0"),
        ("memory.low", "0"),
        ("memory.high", "max"),
        ("memory.current", "4096"),
    ];
    for (name, value) in files.into_iter().chain([("memory.max", max)]) {
        fs::write(cgroup.join(name), format!("{value}\n")).unwrap();
    }
}

impl Runtime {
    async fn answer<T>(&self, call: impl Future<Output = Result<T, RequestError>>) -> T {
        let answer = call.await;
        if answer.is_err() && self.outlives_plugin {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        answer.unwrap()
    }

    pub async fn create(&self, pod: &Pod) -> HashMap<String, String> {
        let call = self.connection.create_container(pod.sandbox.clone(), pod.container.clone());
        let reply = self.answer(call).await;
        reply
            .adjust
            .unwrap_or_default()
            .linux
            .unwrap_or_default()
            .resources
            .unwrap_or_default()
            .unified
    }

    pub async fn update(&self, pod: &Pod, resources: LinuxResources) -> HashMap<String, String> {
        let (sandbox, container) = (pod.sandbox.clone(), pod.container.clone());
        let reply =
            self.answer(self.connection.update_container(sandbox, container, resources)).await;
        let [update] =
            <[ContainerUpdate; 1]>::try_from(reply.update).expect("one container is updated");
        assert_eq!(update.container_id, pod.container.id);
        update.linux.unwrap_or_default().resources.unwrap_or_default().unified
    }

    pub async fn synchronize(&self, pods: &[&Pod]) {
        let sandboxes = pods.iter().map(|pod| pod.sandbox.clone()).collect();
        let containers = pods.iter().map(|pod| pod.container.clone()).collect();
        let updates = self.connection.synchronize(sandboxes, containers).await.unwrap();
        assert_eq!(updates, [], "the runtime would keep its lock while it updates them all");
    }

    pub async fn started(&self, pod: &Pod) {
        let event = Event::START_CONTAINER;
        self.answer(self.connection.event(event, pod.sandbox.clone(), pod.container.clone())).await;
    }

    pub async fn updated(&self, pod: &Pod) {
        let event = Event::POST_UPDATE_CONTAINER;
        self.answer(self.connection.event(event, pod.sandbox.clone(), pod.container.clone())).await;
    }

    pub fn cgroup(&self, pod: &Pod) -> PathBuf {
        self.root.join(pod.container.linux.cgroups_path.trim_start_matches('/'))
    }

    /// Makes the container's cgroup with its memory limit, and missing ancestor cgroups. The other
    /// values are the kernel's defaults.
    pub fn make_cgroup(&self, pod: &Pod) {
        let cgroup = self.cgroup(pod);
        for above in cgroup.ancestors().skip(1).take_while(|above| **above != *self.root) {
            if !above.join("memory.min").exists() {
                make_files(above, "max");
            }
        }
        let limit = pod.container.linux.resources.memory.limit.value;
        make_files(&cgroup, &if limit > 0 { limit.to_string() } else { "max".into() });
    }

    /// Sets the memory usage of a container to `current`. The kernel can reclaim `cache` of this.
    pub fn uses(&self, pod: &Pod, current: i64, cache: i64) {
        let cgroup = self.cgroup(pod);
        let stat = format!(
            "anon {}\nfile {cache}\ninactive_anon {}\ninactive_file {cache}\n",
            current - cache,
            current - cache
        );
        fs::write(cgroup.join("new"), stat).unwrap();
        fs::rename(cgroup.join("new"), cgroup.join("memory.stat")).unwrap();
        fs::write(cgroup.join("new"), format!("{current}\n")).unwrap();
        fs::rename(cgroup.join("new"), cgroup.join("memory.current")).unwrap();
        // The usage of an ancestor cgroup is the sum over its children.
        for above in cgroup.ancestors().skip(1).take_while(|above| **above != *self.root) {
            let children = fs::read_dir(above).unwrap().map(|entry| entry.unwrap().path());
            let usage = |child: PathBuf| {
                fs::read_to_string(child.join("memory.current")).ok()?.trim().parse::<i64>().ok()
            };
            let sum: i64 = children.filter_map(usage).sum();
            fs::write(above.join("memory.current"), format!("{sum}\n")).unwrap();
        }
    }

    pub fn apply(&self, pod: &Pod, unified: &HashMap<String, String>) {
        for (name, value) in unified {
            fs::write(self.cgroup(pod).join(name), format!("{value}\n")).unwrap();
        }
    }

    /// Returns the path of a cgroup in the file system.
    pub fn path(&self, cgroup: &str) -> PathBuf {
        self.root.join(cgroup)
    }

    /// Returns the content of a cgroup's file without trailing white space. The result may be empty
    /// while another program truncates and writes the file.
    pub fn file(&self, cgroup: &str, name: &str) -> String {
        let path = self.root.join(cgroup).join(name);
        fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            .trim_end()
            .to_owned()
    }

    pub fn set_file(&self, cgroup: &str, name: &str, value: &str) {
        overwrite(&self.root.join(cgroup).join(name), value);
    }

    /// Waits until a cgroup's file holds `value`.
    pub async fn holds(&self, cgroup: &str, name: &str, value: impl ToString) {
        let wanted = value.to_string();
        let looks = async {
            while self.file(cgroup, name) != wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(30), looks).await.is_err() {
            panic!("{cgroup}/{name} is {}, expected {wanted}", self.file(cgroup, name));
        }
    }

    /// Creates and starts a pod with its container as a runtime does, with the values that the
    /// plugin asks for.
    pub async fn run(&self, pod: &Pod) {
        self.pod_event(Event::RUN_POD_SANDBOX, pod).await;
        let wanted = self.create(pod).await;
        self.make_cgroup(pod);
        self.apply(pod, &wanted);
        self.started(pod).await;
    }

    /// Sets the memory usage of a container's cgroup as if the container ran, without an event for
    /// the plugin.
    pub fn run_unseen(&self, pod: &Pod) {
        fs::write(self.cgroup(pod).join("memory.current"), "4096\n").unwrap();
    }

    /// Makes a cgroup that belongs to no container.
    pub fn make_cgroup_at(&self, cgroup: &str) {
        make_files(&self.root.join(cgroup), "max");
    }

    /// Ends a pod as the runtime and the kubelet do.
    pub async fn end(&self, pod: &Pod) {
        fs::remove_dir_all(self.cgroup(pod)).unwrap();
        self.stop(pod).await;
        self.pod_event(Event::STOP_POD_SANDBOX, pod).await;
        self.pod_event(Event::REMOVE_POD_SANDBOX, pod).await;
        fs::remove_dir_all(self.cgroup(pod).parent().unwrap()).unwrap();
    }

    pub async fn stop(&self, pod: &Pod) {
        self.answer(self.connection.stop_container(pod.sandbox.clone(), pod.container.clone()))
            .await;
    }

    pub async fn pod_event(&self, event: Event, pod: &Pod) {
        self.answer(self.connection.event(event, pod.sandbox.clone(), api::Container::default()))
            .await;
    }

    pub fn read(&self, pod: &Pod, name: &str) -> String {
        fs::read_to_string(self.cgroup(pod).join(name)).unwrap().trim_end().to_owned()
    }

    /// Waits for the plugin's next request and applies the requested values to these pods. Returns
    /// the requested values by container ID.
    pub async fn serve_update(
        &mut self,
        pods: &[&Pod],
    ) -> HashMap<String, HashMap<String, String>> {
        let request = tokio::time::timeout(Duration::from_secs(60), self.updates.recv()).await;
        self.serve(
            request.expect("the plugin updates containers").expect("the plugin is connected"),
            pods,
        )
    }

    /// Checks that the plugin asks for no memory limit within this time. Other requests are
    /// allowed.
    pub async fn asks_for_no_limit(&mut self, time: Duration) {
        let asked = tokio::time::timeout(time, async {
            while let Some(request) = self.updates.recv().await {
                let memory = request.update[0].linux.resources.memory.clone();
                assert!(memory.is_none(), "{memory:?}");
                request.succeed(Vec::new());
            }
        });
        assert!(asked.await.is_err(), "the plugin is gone");
    }

    /// Applies the plugin's requests to these pods until `done` is ready.
    pub async fn serve_until<T>(&mut self, pods: &[&Pod], done: impl Future<Output = T>) -> T {
        tokio::pin!(done);
        loop {
            tokio::select! {
                done = &mut done => return done,
                Some(request) = self.updates.recv() => drop(self.serve(request, pods)),
            }
        }
    }

    fn serve(
        &self,
        request: UpdateRequest,
        pods: &[&Pod],
    ) -> HashMap<String, HashMap<String, String>> {
        let mut asked = HashMap::new();
        for update in &request.update {
            let unified = update.linux.resources.unified.clone();
            if let Some(pod) = pods.iter().find(|pod| pod.container.id == update.container_id) {
                self.apply(pod, &unified);
            }
            asked.insert(update.container_id.clone(), unified);
        }
        request.succeed(Vec::new());
        asked
    }
}

/// Returns the options of CRI-O with NRI 0.11. From NRI 0.10 on, the runtime reports in-place
/// resizes of pods to its plugins.
pub fn crio() -> Options {
    Options {
        name: "cri-o".into(),
        version: "1.36.3".into(),
        nri_version: NriVersion(0, 11, 0),
        ..Options::default()
    }
}

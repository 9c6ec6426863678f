//! What the plugin costs a node, beside a plugin that does nothing, in one run: `cargo bench -p plimsoll`.
//!
//! Both are processes of their own and are driven over real sockets by the runtime's side of the protocol. Machines differ
//! and are shared, so look at the ratios.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nri::api::{
    Container, ContainerState, CreateContainerResponse, LinuxContainer, LinuxMemory, LinuxPodSandbox, LinuxResources,
    OptionalInt, OptionalInt64, PodSandbox,
};
use nri::runtime::{Connection, Options};
use nri::{Creation, EventMask, Identity, Plugin, Refusal, Stub};
use tokio::net::UnixListener;

const KNOWN: usize = 1000;
const SAMPLES: usize = 3000;
const MIB: i64 = 1 << 20;

/// Subscribes to what Plimsoll subscribes to, and does nothing.
struct Empty;

impl Plugin for Empty {
    fn events(&self) -> EventMask {
        EventMask::CREATE_CONTAINER | EventMask::UPDATE_CONTAINER
    }

    async fn create_container(&self, _: PodSandbox, _: Container) -> Result<Creation, Refusal> {
        Ok(Creation::default())
    }
}

/// A directory that looks like a node, the socket of its runtime, and a plugin that is connected to it.
struct Bench {
    plugin: Child,
    connection: Connection,
    directory: tempfile::TempDir,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.plugin.kill();
        let _ = self.plugin.wait();
    }
}

impl Bench {
    async fn start(command: impl FnOnce(&Path) -> Command) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for path in ["sys/fs/cgroup", "proc", "var/lib/kubelet"] {
            fs::create_dir_all(directory.path().join(path)).unwrap();
        }
        fs::write(directory.path().join("sys/fs/cgroup/cgroup.controllers"), "memory\n").unwrap();
        fs::write(directory.path().join("proc/meminfo"), "MemTotal:       65536000 kB\n").unwrap();
        fs::write(directory.path().join("config"), "nodeAllocatable: 60Gi\nlogLevel: warn\n").unwrap();
        let listener = UnixListener::bind(directory.path().join("nri.sock")).unwrap();
        let plugin = command(directory.path()).stdin(Stdio::null()).spawn().unwrap();
        let (trunk, _) = listener.accept().await.unwrap();
        let options = Options { request_timeout: Duration::from_secs(60), ..Options::default() };
        let (connection, mut updates) = Connection::accept(trunk, options).await.unwrap();
        tokio::spawn(async move {
            while let Some(request) = updates.recv().await {
                request.succeed(Vec::new());
            }
        });
        Self { plugin, connection, directory }
    }

    async fn empty() -> Self {
        Self::start(|directory| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.arg("empty-plugin").arg(directory.join("nri.sock"));
            command
        })
        .await
    }

    async fn plimsoll() -> Self {
        Self::start(|directory| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
            command.arg("run").arg("--host").arg(directory).arg("--socket").arg(directory.join("nri.sock"));
            command.arg("--config").arg(directory.join("config"));
            command
        })
        .await
    }

    /// Pods with one container each, known to the kubelet and with the values that they should have.
    async fn make(&self, count: usize) -> Vec<(PodSandbox, Container)> {
        let pods: Vec<_> = (0..count).map(pod).collect();
        self.write_checkpoint(&pods);
        self.connection.synchronize(Vec::new(), Vec::new()).await.unwrap();
        for (pod, container) in &pods {
            let unified = self.create(pod, container).await;
            let cgroup = self.cgroup(container);
            fs::create_dir_all(&cgroup).unwrap();
            for (name, value) in [("memory.min", "0"), ("memory.low", "0"), ("memory.high", "max")] {
                let value = unified.get(name).map_or(value, String::as_str);
                fs::write(cgroup.join(name), format!("{value}\n")).unwrap();
            }
            fs::write(cgroup.join("memory.max"), format!("{}\n", 256 * MIB)).unwrap();
        }
        pods
    }

    fn cgroup(&self, container: &Container) -> PathBuf {
        self.directory.path().join("sys/fs/cgroup").join(container.linux.cgroups_path.trim_start_matches('/'))
    }

    fn write_checkpoint(&self, pods: &[(PodSandbox, Container)]) {
        let mut entries = serde_json::Map::new();
        for (pod, container) in pods {
            let resources = serde_json::json!({
                "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "cpu": "1", "memory": "256Mi" }
            });
            entries
                .insert(pod.uid.clone(), serde_json::json!({ "ContainerResources": { &container.name: resources } }));
        }
        let data = serde_json::json!({ "entries": entries }).to_string();
        let checkpoint = serde_json::json!({ "data": data, "checksum": 1 }).to_string();
        let kubelet = self.directory.path().join("var/lib/kubelet");
        for file in ["actuated_pods_state", "allocated_pods_state"] {
            fs::write(kubelet.join("new"), &checkpoint).unwrap();
            fs::rename(kubelet.join("new"), kubelet.join(file)).unwrap();
        }
    }

    async fn create(&self, pod: &PodSandbox, container: &Container) -> HashMap<String, String> {
        let CreateContainerResponse { adjust, .. } =
            self.connection.create_container(pod.clone(), container.clone()).await.unwrap();
        adjust.unwrap_or_default().linux.unwrap_or_default().resources.unwrap_or_default().unified
    }

    async fn creates(&self, pods: &[(PodSandbox, Container)], rewrite: bool) -> Latencies {
        let mut latencies = Vec::new();
        let samples = if rewrite { SAMPLES / 10 } else { SAMPLES };
        for (pod, container) in pods.iter().cycle().take(samples) {
            if rewrite {
                self.write_checkpoint(pods);
            }
            let start = Instant::now();
            self.connection.create_container(pod.clone(), container.clone()).await.unwrap();
            latencies.push(start.elapsed());
        }
        Latencies::of(latencies)
    }

    async fn updates(&self, pods: &[(PodSandbox, Container)]) -> Latencies {
        let mut latencies = Vec::new();
        for (pod, container) in pods.iter().cycle().take(SAMPLES) {
            let resources = container.linux.resources.clone().unwrap();
            let start = Instant::now();
            self.connection.update_container(pod.clone(), container.clone(), resources).await.unwrap();
            latencies.push(start.elapsed());
        }
        Latencies::of(latencies)
    }
}

fn pod(i: usize) -> (PodSandbox, Container) {
    let uid = format!("0f3c2d6e-1a2b-4c5d-8e9f-{i:012}");
    let parent = format!("/kubepods/burstable/pod{uid}");
    let mut pod = PodSandbox { id: format!("{i:064x}"), name: format!("pod-{i}"), uid, ..Default::default() };
    pod.namespace = "default".into();
    pod.linux = Some(LinuxPodSandbox { cgroup_parent: parent.clone(), ..Default::default() }).into();
    for key in 0..5 {
        pod.annotations.insert(format!("example.com/annotation-{key}"), "a value of usual length".into());
    }
    let mut container = Container { id: format!("{:064x}", i + (1 << 40)), name: "app".into(), ..Default::default() };
    container.pod_sandbox_id = pod.id.clone();
    container.state = ContainerState::CONTAINER_RUNNING.into();
    container.args = vec!["/usr/bin/app".into(), "--flag".into()];
    container.env = (0..20).map(|key| format!("VARIABLE_{key}=a value of usual length")).collect();
    let limit = OptionalInt64 { value: 256 * MIB, ..Default::default() };
    let memory = LinuxMemory { limit: Some(limit).into(), ..Default::default() };
    let linux = LinuxContainer {
        resources: Some(LinuxResources { memory: Some(memory).into(), ..Default::default() }).into(),
        oom_score_adj: Some(OptionalInt { value: 998, ..Default::default() }).into(),
        cgroups_path: format!("{parent}/{}", container.id),
        ..Default::default()
    };
    container.linux = Some(linux).into();
    (pod, container)
}

#[derive(Clone, Copy)]
struct Latencies {
    p50: Duration,
    p99: Duration,
}

impl Latencies {
    fn of(mut samples: Vec<Duration>) -> Self {
        samples.sort_unstable();
        let at = |percent: usize| samples[samples.len() * percent / 100];
        Self { p50: at(50), p99: at(99) }
    }
}

fn compare(what: &str, ours: Latencies, empty: Latencies) {
    let ratio = |ours: Duration, empty: Duration| ours.as_secs_f64() / empty.as_secs_f64();
    println!(
        "{what:<44} p50 {:>6.1} us, {:.2} x   p99 {:>6.1} us, {:.2} x",
        ours.p50.as_secs_f64() * 1e6,
        ratio(ours.p50, empty.p50),
        ours.p99.as_secs_f64() * 1e6,
        ratio(ours.p99, empty.p99),
    );
}

async fn synchronization(count: usize) -> Duration {
    let bench = Bench::plimsoll().await;
    let pods: Vec<_> = (0..count).map(pod).collect();
    bench.write_checkpoint(&pods);
    let (pods, containers) = pods.into_iter().unzip();
    let start = Instant::now();
    bench.connection.synchronize(pods, containers).await.unwrap();
    start.elapsed()
}

/// Resident memory in kB with this many containers, after each was looked at, and all of it that is not the program's file.
async fn resident(count: usize) -> (u64, u64) {
    let mut read = None;
    let mut bench = Bench::start(|directory| {
        fs::write(directory.join("config"), "nodeAllocatable: 60Gi\nlogLevel: debug\n").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        command.arg("run").arg("--host").arg(directory).arg("--socket").arg(directory.join("nri.sock"));
        command.arg("--config").arg(directory.join("config")).stderr(Stdio::piped());
        command
    })
    .await;
    let stderr = bench.plugin.stderr.take().unwrap();
    let (sender, mut looked_at) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if line.contains("outcome=") {
                let _ = sender.send(());
            }
        }
    });
    let pods = bench.make(count).await;
    let (sandboxes, containers) = pods.into_iter().unzip();
    bench.connection.synchronize(sandboxes, containers).await.unwrap();
    for _ in 0..count {
        looked_at.recv().await.unwrap();
    }
    let status = fs::read_to_string(format!("/proc/{}/status", bench.plugin.id())).unwrap();
    for line in status.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["VmRSS:", kb, _] => read = Some((kb.parse().unwrap(), 0)),
            ["RssAnon:", kb, _] => read = read.map(|(all, _)| (all, kb.parse().unwrap())),
            _ => {}
        }
    }
    read.unwrap()
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, empty, socket] = arguments.as_slice()
        && empty == "empty-plugin"
    {
        Stub::external(Identity::new("10", "empty").unwrap(), Empty).socket(socket).run().await.unwrap();
        return;
    }

    println!("{KNOWN} containers known, {SAMPLES} samples; ratios to a plugin that does nothing");
    let (empty, ours) = (Bench::empty().await, Bench::plimsoll().await);
    let known = ours.make(KNOWN).await;
    empty.make(KNOWN).await;
    // In turns, so that whatever else the machine does meets both.
    let (mut creates, mut updates) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        creates.push((ours.creates(&known, false).await, empty.creates(&known, false).await));
        updates.push((ours.updates(&known).await, empty.updates(&known).await));
    }
    let best = |rounds: &[(Latencies, Latencies)]| {
        rounds.iter().copied().min_by_key(|(ours, empty)| ours.p99 + empty.p99).unwrap()
    };
    let (create, nothing) = best(&creates);
    compare("CreateContainer", create, nothing);
    let rewritten = ours.creates(&known, true).await;
    compare("CreateContainer, checkpoint just rewritten", rewritten, nothing);
    let (update, nothing) = best(&updates);
    compare("UpdateContainer", update, nothing);
    println!("empty handler: create p50 {:?} p99 {:?}", best(&creates).1.p50, best(&creates).1.p99);

    let synchronized = synchronization(2000).await;
    println!("Synchronize of 2000 containers {:.1} ms", synchronized.as_secs_f64() * 1e3);
    let (resident, anonymous) = resident(500).await;
    println!("resident memory with 500 containers {resident} kB, of which {anonymous} kB anonymous");
}

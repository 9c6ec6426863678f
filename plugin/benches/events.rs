//! Measures the cost of the plugin on a node, compared with a plugin that does nothing.
//!
//! `cargo bench -p plimsoll`
//!
//! Both plugins run as separate processes in the same run. The runtime's side of the protocol
//! drives them over real sockets. Machines differ and are shared, so compare only the ratios.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nri::api::{
    Container, ContainerState, CreateContainerResponse, LinuxContainer, LinuxMemory,
    LinuxPodSandbox, LinuxResources, OptionalInt, OptionalInt64, PodSandbox,
};
use nri::runtime::{Connection, Options};
use nri::{Creation, EventMask, Identity, Plugin, Refusal, Stub};
use tokio::net::UnixListener;

const KNOWN: usize = 1000;
const SAMPLES: usize = 3000;
const MIB: i64 = 1 << 20;

/// A plugin that subscribes to the measured events and does nothing.
struct Empty;

impl Plugin for Empty {
    fn events(&self) -> EventMask {
        EventMask::CREATE_CONTAINER | EventMask::UPDATE_CONTAINER
    }

    async fn create_container(&self, _: PodSandbox, _: Container) -> Result<Creation, Refusal> {
        Ok(Creation::default())
    }
}

/// A directory that looks like a node, the connection of its runtime, and the connected plugin.
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
        // Use a file system in memory, because cgroupfs and /run are in memory too.
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        for path in ["sys/fs/cgroup", "proc", "var/lib/kubelet"] {
            fs::create_dir_all(directory.path().join(path)).unwrap();
        }
        fs::write(directory.path().join("sys/fs/cgroup/cgroup.controllers"), "memory\n").unwrap();
        fs::write(directory.path().join("proc/meminfo"), "MemTotal:     1073741824 kB\n").unwrap();
        fs::write(directory.path().join("config"), "nodeAllocatable: 1Ti\nlogLevel: warn\n")
            .unwrap();
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
            command
                .arg("run")
                .arg("--host")
                .arg(directory)
                .arg("--socket")
                .arg(directory.join("nri.sock"));
            command.arg("--config").arg(directory.join("config"));
            command
        })
        .await
    }

    /// Creates pods with one container each. The kubelet's checkpoint lists all containers, and
    /// their cgroups hold the desired values.
    async fn make(&self, count: usize) -> Vec<(PodSandbox, Container)> {
        let pods: Vec<_> = (0..count).map(pod).collect();
        self.write_checkpoint(&pods);
        for (_, container) in &pods {
            self.make_cgroup(container);
        }
        self.connection.synchronize(Vec::new(), Vec::new()).await.unwrap();
        for (pod, container) in &pods {
            let unified = self.create(pod, container).await;
            for (name, value) in unified {
                fs::write(self.cgroup(container).join(name), format!("{value}\n")).unwrap();
            }
        }
        pods
    }

    /// Creates the container's cgroup and its ancestor cgroups, with the values that they have
    /// without the plugin.
    fn make_cgroup(&self, container: &Container) {
        let (root, cgroup) = (self.directory.path().join("sys/fs/cgroup"), self.cgroup(container));
        fs::create_dir_all(&cgroup).unwrap();
        for cgroup in cgroup.ancestors().take_while(|cgroup| **cgroup != *root) {
            if cgroup.join("memory.current").exists() {
                break;
            }
            for (name, value) in [
                ("min", "0"),
                ("low", "0"),
                ("high", "max"),
                ("max", "268435456"),
                ("current", "0"),
            ] {
                fs::write(cgroup.join(format!("memory.{name}")), format!("{value}\n")).unwrap();
            }
            fs::write(cgroup.join("memory.events"), killed(0)).unwrap();
            let stat: String =
                (0..60).map(|field| format!("some_field_{field} 123456789\n")).collect();
            fs::write(cgroup.join("memory.stat"), format!("{stat}inactive_file 0\n")).unwrap();
            let pressure = "avg10=0.00 avg60=0.00 avg300=0.00 total=0";
            fs::write(
                cgroup.join("memory.pressure"),
                format!("some {pressure}\nfull {pressure}\n"),
            )
            .unwrap();
        }
    }

    /// Returns the CPU time that the plugin's process has used. Threads that have ended count too.
    #[allow(unsafe_code)]
    fn cpu(&self) -> Duration {
        let pid = i32::try_from(self.plugin.id()).unwrap();
        let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
        // SAFETY: both functions write only to the given pointers, which point to local variables.
        let results = unsafe {
            [
                libc::clock_getcpuclockid(pid, &raw mut clock),
                libc::clock_gettime(clock, &raw mut time),
            ]
        };
        assert_eq!(results, [0, 0]);
        Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
    }

    fn cgroup(&self, container: &Container) -> PathBuf {
        self.directory
            .path()
            .join("sys/fs/cgroup")
            .join(container.linux.cgroups_path.trim_start_matches('/'))
    }

    fn write_checkpoint(&self, pods: &[(PodSandbox, Container)]) {
        let mut entries = serde_json::Map::new();
        for (pod, container) in pods {
            let resources = serde_json::json!({
                "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "cpu": "1", "memory": "256Mi" }
            });
            entries.insert(
                pod.uid.clone(),
                serde_json::json!({ "ContainerResources": { &container.name: resources } }),
            );
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

    /// Measures one CreateContainer event.
    async fn time_create(&self, (pod, container): &(PodSandbox, Container)) -> Duration {
        let (pod, container) = (pod.clone(), container.clone());
        let start = Instant::now();
        self.connection.create_container(pod, container).await.unwrap();
        start.elapsed()
    }

    /// Measures one UpdateContainer event.
    async fn time_update(&self, (pod, container): &(PodSandbox, Container)) -> Duration {
        let (pod, container) = (pod.clone(), container.clone());
        let resources = container.linux.resources.clone().unwrap();
        let start = Instant::now();
        self.connection.update_container(pod, container, resources).await.unwrap();
        start.elapsed()
    }
}

fn pod(i: usize) -> (PodSandbox, Container) {
    let uid = format!("0f3c2d6e-1a2b-4c5d-8e9f-{i:012}");
    let parent = format!("/kubepods/burstable/pod{uid}");
    let mut pod =
        PodSandbox { id: format!("{i:064x}"), name: format!("pod-{i}"), uid, ..Default::default() };
    pod.namespace = "default".into();
    pod.linux =
        Some(LinuxPodSandbox { cgroup_parent: parent.clone(), ..Default::default() }).into();
    for key in 0..5 {
        pod.annotations
            .insert(format!("example.com/annotation-{key}"), "a value of usual length".into());
    }
    let mut container = Container {
        id: format!("{:064x}", i + (1 << 40)),
        name: "app".into(),
        ..Default::default()
    };
    container.pod_sandbox_id = pod.id.clone();
    container.state = ContainerState::CONTAINER_RUNNING.into();
    container.args = vec!["/usr/bin/app".into(), "--flag".into()];
    container.env = (0..20).map(|key| format!("VARIABLE_{key}=a value of usual length")).collect();
    let limit = OptionalInt64 { value: 256 * MIB, ..Default::default() };
    let memory = LinuxMemory { limit: Some(limit).into(), ..Default::default() };
    let linux = LinuxContainer {
        resources: Some(LinuxResources { memory: Some(memory).into(), ..Default::default() })
            .into(),
        oom_score_adj: Some(OptionalInt { value: 998, ..Default::default() }).into(),
        cgroups_path: format!("{parent}/{}", container.id),
        ..Default::default()
    };
    container.linux = Some(linux).into();
    (pod, container)
}

/// Durations of the same event with Plimsoll and with the plugin that does nothing.
#[derive(Default)]
struct Pair {
    ours: Vec<Duration>,
    empty: Vec<Duration>,
}

impl Pair {
    fn print(mut self, what: &str) {
        let mut line = format!("{what:<44}");
        for percent in [50, 99] {
            let [ours, empty] = [&mut self.ours, &mut self.empty].map(|samples| {
                samples.sort_unstable();
                samples[samples.len() * percent / 100].as_secs_f64() * 1e6
            });
            line +=
                &format!(" p{percent} {ours:>7.1} us to {empty:>6.1} us, {:.2} x;", ours / empty);
        }
        println!("{}", line.trim_end_matches(';'));
    }
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

/// Measures the time to create and stop a container beside these numbers of other containers. The
/// time includes the writes to every ancestor cgroup.
async fn beside(counts: &[usize]) {
    let mut benches = Vec::new();
    for &count in counts {
        let bench = Bench::plimsoll().await;
        let pods = bench.make(count).await;
        let (sandboxes, containers) = pods.into_iter().unzip();
        bench.connection.synchronize(sandboxes, containers).await.unwrap();
        bench.make_cgroup(&pod(count).1);
        benches.push((count, bench, Vec::new()));
    }
    for _ in 0..SAMPLES / 3 {
        // Alternate between the nodes, so that other load on the machine affects all of them.
        for (count, bench, samples) in &mut benches {
            let (sandbox, container) = pod(*count);
            let (again, ended) = (sandbox.clone(), container.clone());
            let start = Instant::now();
            bench.connection.create_container(sandbox, container).await.unwrap();
            bench.connection.stop_container(again, ended).await.unwrap();
            samples.push(start.elapsed());
        }
    }
    let mut first = None;
    for (count, _, mut samples) in benches {
        samples.sort_unstable();
        let [p50, p99] =
            [50, 99].map(|percent| samples[samples.len() * percent / 100].as_secs_f64() * 1e6);
        let (first50, first99) = *first.get_or_insert((p50, p99));
        let ratios = format!("{:.2} x and {:.2} x", p50 / first50, p99 / first99);
        println!(
            "a container comes and goes beside {count:>5}: p50 {p50:>6.1} us, p99 {p99:>6.1} us, {ratios}"
        );
    }
}

/// Returns the content of `memory.events` after this number of kills.
fn killed(times: u64) -> String {
    format!("low 0\nhigh 0\nmax 0\noom {times:04}\noom_kill {times:04}\noom_group_kill 0\n")
}

/// Measures the time from the kernel's count of a kill until the plugin raises the pod's limit. The
/// pods follow one after the other.
async fn rescues(count: usize) {
    let bench = Bench::plimsoll().await;
    let pods = bench.make(count).await;
    let config = "nodeAllocatable: 1Ti\nlogLevel: error\noomRescue: {kills: 1, ceiling: 1Ti}\n";
    fs::write(bench.directory.path().join("config"), config).unwrap();
    let (sandboxes, containers): (Vec<_>, Vec<_>) = pods.iter().cloned().unzip();
    bench.connection.synchronize(sandboxes, containers).await.unwrap();
    // The plugin writes this file after its first synchronization.
    while !bench.directory.path().join("run/plimsoll/kills").exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The plugin applies the configuration once the directory has not changed for a short time.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut samples = Vec::new();
    for (_, container) in &pods {
        let container = bench.cgroup(container);
        let pod = container.parent().unwrap();
        for cgroup in [&container, pod] {
            let file =
                fs::OpenOptions::new().write(true).open(cgroup.join("memory.events")).unwrap();
            file.write_all_at(killed(1).as_bytes(), 0).unwrap();
        }
        let start = Instant::now();
        let limit = || fs::read_to_string(pod.join("memory.max")).unwrap_or_default();
        while limit().trim_end().parse().is_ok_and(|limit: i64| limit <= 256 * MIB)
            && start.elapsed().as_secs() < 60
        {
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        samples.push(start.elapsed());
    }
    samples.sort_unstable();
    let [p50, p99] =
        [50, 99].map(|percent| samples[samples.len() * percent / 100].as_secs_f64() * 1e3);
    println!(
        "from a kill to the raised limit of the pod, one of {count}: p50 {p50:.1} ms, p99 {p99:.1} ms"
    );
}

/// Measures the time of `plimsoll status` from the call to the end of the table.
async fn status(count: usize) {
    let bench = Bench::plimsoll().await;
    bench.make(count).await;
    let mut samples = Vec::new();
    for _ in 0..50 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        command.args(["status", "--wide", "--host"]).arg(bench.directory.path());
        let start = Instant::now();
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        samples.push(start.elapsed());
        let lines = output.stdout.iter().filter(|byte| **byte == b'\n').count();
        assert!(lines > count, "{lines} lines: {}", String::from_utf8_lossy(&output.stderr));
    }
    samples.sort_unstable();
    let [p50, p90] =
        [50, 90].map(|percent| samples[samples.len() * percent / 100].as_secs_f64() * 1e3);
    println!("plimsoll status of {count} containers: p50 {p50:.1} ms, p90 {p90:.1} ms");
}

/// Measures the CPU usage of the plugin while nothing happens, and the CPU time for one check of
/// everything.
async fn at_rest(count: usize) {
    let bench = Bench::plimsoll().await;
    let pods = bench.make(count).await;
    let (sandboxes, containers): (Vec<_>, Vec<_>) = pods.into_iter().unzip();
    let before = bench.cpu();
    bench.connection.synchronize(sandboxes, containers).await.unwrap();
    // The check of everything is over when the plugin uses no more CPU time.
    let mut now = bench.cpu();
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let then = std::mem::replace(&mut now, bench.cpu());
        if now == then {
            break;
        }
    }
    let look = now - before;
    let rest = Duration::from_secs(20);
    tokio::time::sleep(rest).await;
    let share = (bench.cpu() - now).as_secs_f64() / rest.as_secs_f64();
    let every = Duration::from_secs(600);
    println!(
        "at rest with {count} containers {:.4} % of a processor, and {:.1} ms every {} s to look at all: {:.4} %",
        share * 100.0,
        look.as_secs_f64() * 1e3,
        every.as_secs(),
        (share + look.as_secs_f64() / every.as_secs_f64()) * 100.0
    );
}

/// Returns the time from a synchronization until the plugin has checked every one of `count`
/// containers. Also returns the resident memory afterwards, in kB: all of it, and the anonymous
/// part.
async fn looked_at(count: usize) -> (Duration, u64, u64) {
    let mut read = None;
    let mut bench = Bench::start(|directory| {
        fs::write(directory.join("config"), "nodeAllocatable: 1Ti\nlogLevel: debug\n").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        command
            .arg("run")
            .arg("--host")
            .arg(directory)
            .arg("--socket")
            .arg(directory.join("nri.sock"));
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
    let start = Instant::now();
    bench.connection.synchronize(sandboxes, containers).await.unwrap();
    for _ in 0..count {
        looked_at.recv().await.unwrap();
    }
    let took = start.elapsed();
    // This round trip gives the plugin time for the work that follows the checks. The reply may
    // come before that work is done, because the reconcile task yields between two pods.
    bench.connection.synchronize(Vec::new(), Vec::new()).await.unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", bench.plugin.id())).unwrap();
    for line in status.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["VmRSS:", kb, _] => read = Some((kb.parse().unwrap(), 0)),
            ["RssAnon:", kb, _] => read = read.map(|(all, _)| (all, kb.parse().unwrap())),
            _ => {}
        }
    }
    let (all, anonymous) = read.unwrap();
    (took, all, anonymous)
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, empty, socket] = arguments.as_slice()
        && empty == "empty-plugin"
    {
        Stub::external(Identity::new("10", "empty").unwrap(), Empty)
            .socket(socket)
            .run()
            .await
            .unwrap();
        return;
    }

    println!("{KNOWN} containers known, {SAMPLES} samples; ratios to a plugin that does nothing");
    let (empty, ours) = (Bench::empty().await, Bench::plimsoll().await);
    let known = ours.make(KNOWN).await;
    empty.make(KNOWN).await;
    // Alternate between the plugins, so that other load on the machine affects both.
    let (mut create, mut update, mut rewritten) =
        (Pair::default(), Pair::default(), Pair::default());
    for pod in known.iter().cycle().take(SAMPLES) {
        create.ours.push(ours.time_create(pod).await);
        create.empty.push(empty.time_create(pod).await);
        update.ours.push(ours.time_update(pod).await);
        update.empty.push(empty.time_update(pod).await);
    }
    // A kubelet rewrites the checkpoint before it creates a container. The plugin then reads the
    // whole file again.
    for pod in known.iter().take(SAMPLES / 10) {
        ours.write_checkpoint(&known);
        rewritten.ours.push(ours.time_create(pod).await);
        rewritten.empty.push(empty.time_create(pod).await);
    }
    create.print("CreateContainer");
    rewritten.print("CreateContainer, checkpoint just rewritten");
    update.print("UpdateContainer");

    beside(&[100, 1000, 5000]).await;
    rescues(500).await;
    status(1000).await;
    at_rest(500).await;
    let synchronized = synchronization(2000).await;
    println!(
        "Synchronize of 2000 containers, until the reply {:.1} ms",
        synchronized.as_secs_f64() * 1e3
    );
    let (took, _, _) = looked_at(2000).await;
    println!("until each of the 2000 was looked at {:.1} ms", took.as_secs_f64() * 1e3);
    let (_, resident, anonymous) = looked_at(500).await;
    println!(
        "resident memory with 500 containers {resident} kB, of which {anonymous} kB anonymous"
    );
}

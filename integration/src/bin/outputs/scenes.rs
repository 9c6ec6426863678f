//! The commands whose output the documents show, and the state of the node before each command.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration::cluster::{ADMINISTRATOR, ApiServer};
use integration::kubelet::{self, ContainerSpec, Kubelet, MIB, Pod, PodSpec};
use integration::machine::Node;
use integration::placement;
use integration::probe::cgroup::{self, Expected};
use integration::runtime::{Driver, Runtime};
use integration::tools::blocks::OUTPUTS;
use integration::tools::progress::progress;

use crate::session::{Step, record as session};
use crate::stable::stable;

/// A map from the name of each output to its text.
type Outputs = BTreeMap<&'static str, String>;

/// The path on the node of the program that users build as the documents say.
const PROGRAM: &str = "/root/target/release/plimsoll";

/// The address that serves metrics on the node.
const METRICS: &str = "127.0.0.1:9477";

/// The path on the node of the plugin's credentials for Events.
const KUBECONFIG: &str = "/etc/plimsoll/kubeconfig";

/// The name of each output, and a text that the output must contain. An output without this text
/// does not show what the documents say.
const PARTS: [(&str, &str); OUTPUTS.len()] = [
    ("doctor", ": 0 failed, 0 warnings"),
    ("events", "CutRejected"),
    ("install", ": 0 failed, 0 warnings"),
    ("install-plan", "write /usr/local/bin/plimsoll"),
    ("log", r#""outcome":"applied""#),
    ("metrics", r#"plimsoll_resizes_total{outcome="rejected"} 1"#),
    ("refused", "memory limit not lowered"),
    ("status", "refused  default/shop/web"),
    ("status-observe", "would-throttle  default/shop/web"),
    ("status-pod", "CutRejected"),
    ("values", "memory.min:67108864"),
];

/// The number of lines of the `plimsoll install` plan that README.md shows.
const END_OF_EXCERPT: usize = 8;

/// The time within which the plugin applies and repairs values on an emulated node.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a node, prepares it for each command and returns the outputs of the commands.
pub(crate) fn record() -> Result<Outputs> {
    progress("building the plugin");
    let program = placement::build()?;
    // `plimsoll install` makes the most changes with containerd 1.7, where NRI is off.
    let node = Node::start(Runtime::Containerd17)?;
    kubelet::clear(&node)?;
    node.run(&format!(
        "sed -i '/nri.v1.nri/,/disable/d' /etc/containerd/config.toml\n{}\nrm -f /run/nri/nri.sock",
        placement::restart_script(&node)
    ))
    .context("switching NRI off")?;
    let program = fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
    node.write_file(PROGRAM, program, 0o755)?;
    let mut kubelet = Kubelet::start(&node, Driver::Systemd)?;
    let mut outputs = Outputs::new();
    // As on a node in use, the kubelet's checkpoint has entries before the plugin is installed.
    let app = ContainerSpec::new("web").request(64 * MIB).limit(150 * MIB);
    let pod = kubelet.run_pod(PodSpec::new("shop").container(app))?;
    install(&node, &mut outputs).context("the installation")?;
    observe(&node, &mut kubelet, pod, &mut outputs).context("observe mode")?;
    let pod = enforce(&node, &mut kubelet, &mut outputs).context("enforce mode")?;
    log(&node, &kubelet, &pod, &mut outputs).context("the log")?;
    for (name, expected) in PARTS {
        let output = outputs.get(name).map_or("", String::as_str);
        ensure!(
            output.contains(expected),
            "expected {expected:?} in the output {name}, found:\n{output}"
        );
    }
    Ok(outputs)
}

/// Installs the plugin in observe mode, as README.md says.
fn install(node: &Node, outputs: &mut Outputs) -> Result<()> {
    progress("installing the plugin");
    node.write_file(placement::CONFIG, "mode: observe\n", 0o644)?;
    let install = Step::new("sudo target/release/plimsoll install").input("y\n");
    let shown = session(node, &[], &[install])?;
    let lines: Vec<&str> = shown.lines().collect();
    let question = lines.iter().position(|line| line.starts_with("Execute these steps?"));
    let (Some(question), Some(last)) = (question, lines.last()) else {
        bail!("expected the plan and a question from plimsoll install, found:\n{shown}");
    };
    let question = lines[question];
    let plan = [&lines[..END_OF_EXCERPT], &["  …", question]].concat();
    outputs.insert("install-plan", plan.join("\n"));
    let whole = lines.iter().take_while(|line| **line != question).copied();
    let whole: Vec<&str> = whole.chain([question, "…", last]).collect();
    outputs.insert("install", whole.join("\n"));
    Ok(())
}

/// Lowers a limit to a value that Plimsoll would refuse in enforce mode. The container survives,
/// because it uses slightly less than the new limit.
fn observe(
    node: &Node,
    kubelet: &mut Kubelet<'_>,
    mut pod: Pod,
    outputs: &mut Outputs,
) -> Result<()> {
    progress("a limit decrease in observe mode");
    allocate(node, &pod, 98)?;
    kubelet.resize(&mut pod, "web", Some(64 * MIB), Some(100 * MIB))?;
    outputs.insert("status-observe", session(node, &[], &[Step::new("sudo plimsoll status")])?);
    outputs.insert("doctor", session(node, &[], &[Step::new("sudo plimsoll doctor")])?);
    kubelet.remove_pod(&pod)
}

/// Requests a lower limit, which Plimsoll refuses, and shows what each program reports about the
/// refusal.
fn enforce(node: &Node, kubelet: &mut Kubelet<'_>, outputs: &mut Outputs) -> Result<Pod> {
    progress("a limit decrease in enforce mode");
    let server = ApiServer::start()?;
    server.until_ready()?;
    server.connect(node, ADMINISTRATOR, KUBECONFIG)?;
    let config = format!("mode: enforce\nmetricsAddress: {METRICS}\nkubeconfig: {KUBECONFIG}\n");
    node.write_file(placement::CONFIG, config, 0o644)?;
    // After the restart, the plugin has forgotten the container that it saw in observe mode.
    placement::restart_plugin(node)?;
    let app = ContainerSpec::new("web").request(64 * MIB).limit(250 * MIB);
    let pod = kubelet.run_pod(PodSpec::new("shop").container(app))?;
    allocate(node, &pod, 128)?;
    let container = pod.container("web")?;
    // The path of the cgroup contains the container's ID. Replace the path first, because it would
    // not match after the ID is replaced.
    let names = [(container.cgroup.as_str(), "CGROUP"), (container.id.as_str(), "CONTAINER")];
    let update = format!("crictl update --memory {} CONTAINER 2>&1 | tail -n 1", 100 * MIB);
    outputs.insert("refused", session(node, &names, &[Step::new(&update)])?);
    outputs.insert("events", events(&server, "shop")?);
    outputs.insert("status", session(node, &names, &[Step::new("sudo plimsoll status")])?);
    outputs.insert(
        "status-pod",
        session(node, &names[1..], &[Step::new("sudo plimsoll status shop")])?,
    );
    let stored = "crictl inspect --output go-template \
        --template '{{.info.runtimeSpec.linux.resources.unified}}' CONTAINER";
    let files = "cd /sys/fs/cgroup/CGROUP && grep . memory.{min,low,high,max}";
    outputs.insert("values", session(node, &names, &[Step::new(stored), Step::new(files)])?);
    interfere(node, kubelet, &pod)?;
    let metrics = format!(
        "wget -qO- http://{METRICS}/metrics | \
         grep -E '^plimsoll_(resize.*rejected|repairs.*min|protection.*kubepods.*min)' | sort"
    );
    outputs.insert("metrics", session(node, &[], &[Step::new(&metrics)])?);
    Ok(pod)
}

/// Shows the Events of a pod, as the owner of the pod sees them.
fn events(server: &ApiServer, pod: &str) -> Result<String> {
    let object = format!("pod/{pod}");
    let command = ["events", "--for", &object];
    let deadline = Instant::now() + PATIENCE;
    loop {
        // The plugin writes Events in a separate thread, after its answer to the runtime.
        let shown = server.kubectl(&command)?;
        if shown.contains("CutRejected") {
            return stable(&format!("$ kubectl {}\n{shown}", command.join(" ")), &[]);
        }
        ensure!(
            Instant::now() < deadline,
            "expected the Event CutRejected of {object}, found:\n{shown}{}",
            server.log()
        );
    }
}

/// Sets memory.min of kubepods to 0, as the kubelet's MemoryQoS does, and waits for the repair.
fn interfere(node: &Node, kubelet: &Kubelet<'_>, pod: &Pod) -> Result<()> {
    let top = kubelet.top_cgroup();
    let request = pod.live_request();
    let expected = [Expected::new(top, "memory.min", request)];
    let write = format!("echo 0 > {}/{top}/memory.min", cgroup::ROOT);
    placement::wait_for_journal(node, "plimsoll", "repaired", &write)?;
    cgroup::settle(node, "", &expected, Duration::ZERO, PATIENCE)?;
    Ok(())
}

/// Shows a log line as JSON.
fn log(node: &Node, kubelet: &Kubelet<'_>, pod: &Pod, outputs: &mut Outputs) -> Result<()> {
    progress("a log line as JSON");
    let drop_in = "/run/systemd/system/plimsoll.service.d/log.conf";
    let command = "/usr/local/bin/plimsoll run --log-format json";
    node.write_file(drop_in, format!("[Service]\nExecStart=\nExecStart={command}\n"), 0o644)?;
    let restart = "systemctl daemon-reload; systemctl restart plimsoll";
    placement::until_synchronised(node, restart)?;
    interfere(node, kubelet, pod)?;
    let line = node.run(
        "journalctl --unit plimsoll --output cat | grep repaired | \
         grep 'kubepods.slice\"' | tail -n 1",
    )?;
    outputs.insert("log", stable(&line.stdout, &[])?);
    Ok(())
}

/// Lets the only container of a pod allocate memory.
fn allocate(node: &Node, pod: &Pod, mebibytes: u64) -> Result<()> {
    let [container] = pod.containers.as_slice() else {
        bail!("expected a pod with one container, found {:?}", pod.containers)
    };
    let answer = container.call(node, &format!("alloc {}", mebibytes * MIB))?;
    ensure!(
        answer.starts_with("ok"),
        "expected that the workload allocates {mebibytes} MiB, found {answer:?}"
    );
    Ok(())
}

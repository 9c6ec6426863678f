//! With the plugin connected: real plugins of containerd/nri go on beside it, and CRI-O's own tests of NRI pass.
//!
//! What the plugins and the tests are, and where they come from, is in `integration/src/peers.rs`.

#[cfg(feature = "every-combination")]
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cgroup;
use integration::crictl;
use integration::kubelet::{ContainerSpec, Driver, Kubelet, MIB, PodSpec};
use integration::node::Node;
#[cfg(feature = "every-combination")]
use integration::peers::NRI_TEST_IMAGE;
use integration::peers::{self, DIRECTORY};
use integration::placement::{self, EXTERNAL_BINARY};

/// How far memory.min stays below the limit.
const HEADROOM: u64 = 2 * MIB;

macro_rules! conformance {
    ($module:ident, $runtime:ident, $driver:ident) => {
        mod $module {
            use integration::fleet::{Plugin, on_node};
            use integration::kubelet::Driver;
            use integration::placement::Mode;
            use integration::runtime::Runtime;

            #[test]
            fn plugins_of_others_and_this_one_each_get_what_they_want() {
                let plugin = Plugin::Installed(Mode::External, String::new());
                on_node(Runtime::$runtime, Driver::$driver, &plugin, super::plugins_of_others);
            }

            /// They wait ten seconds for a pod, and no more, which a busy machine may take.
            #[cfg(feature = "every-combination")]
            #[test]
            fn the_tests_of_nri_that_cri_o_has_pass() {
                let plugin = Plugin::Installed(Mode::External, String::new());
                on_node(Runtime::$runtime, Driver::$driver, &plugin, super::tests_of_nri);
            }
        }
    };
}

// The tests take two minutes more on containerd, which they were not made for.
#[cfg(feature = "every-combination")]
conformance!(containerd_2_4, Containerd24, Systemd);
conformance!(crio_1_36, Crio136, Systemd);

/// The plugin's process, and how often it was connected to the runtime and synchronized. It still is.
fn connections(node: &Node) -> Result<String> {
    let script = format!(
        "{EXTERNAL_BINARY} status --ready >/dev/null
         process=$(systemctl show --property InvocationID --value plimsoll)
         # It says so right after it has become ready.
         timeout 60 bash -c \"until journalctl _SYSTEMD_INVOCATION_ID=$process --output cat |
             grep -c 'connected to the runtime and synchronized'; do sleep 0.2; done\" | tail -n 1
         echo $process"
    );
    Ok(node.run(&script).context("asking whether the plugin is connected")?.stdout)
}

fn plugins_of_others(node: &Node, driver: Driver) -> Result<()> {
    peers::put_plugins(node)?;
    let mut kubelet = Kubelet::start(node, driver)?;
    // The differ has one plugin before all others and one behind them.
    let plugins = [
        ("logger", "-idx 05 -log-file /tmp/logger.log", "05-logger"),
        ("ulimit-adjuster", "-idx 20", "20-ulimit-adjuster"),
        ("differ", "-indices 00,99 -yaml -log-file /tmp/differ.log", "99-"),
    ];
    for (program, arguments, name) in plugins {
        let start = format!(
            "systemd-run --quiet --collect --unit {program} {DIRECTORY}/{program} {arguments}"
        );
        placement::wait_for_journal(
            node,
            node.runtime().unit(),
            &format!("#[0-9]+: .*{name}"),
            &start,
        )
        .with_context(|| format!("starting {program}"))?;
    }
    let before = connections(node)?;
    let app = || ContainerSpec::new("app").limit(64 * MIB).cpu(100);
    let mut pod = kubelet.run_pod(PodSpec::new("adjusted").container(app()).annotation(
        "ulimits.nri.containerd.io/container.app",
        "[{\"type\": \"RLIMIT_NOFILE\", \"soft\": 123, \"hard\": 456}]",
    ))?;
    let container = pod.container("app")?.clone();
    assert_eq!(cgroup::memory(node, &[&container.cgroup])?[0].min, 64 * MIB - HEADROOM);
    let process =
        crictl::inspect(node, &container.id)?["info"]["pid"].as_u64().context("no process")?;
    let limits = node.read(&format!("/proc/{process}/limits"))?;
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .context("no limit of open files")?;
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["123", "456"]);

    kubelet.resize(&mut pod, "app", Some(96 * MIB), Some(96 * MIB))?;
    assert_eq!(cgroup::memory(node, &[&container.cgroup])?[0].min, 96 * MIB - HEADROOM);
    kubelet.remove_pod(&pod)?;

    let wanted = format!("{}", 64 * MIB - HEADROOM);
    let [seen, logged] = ["/tmp/differ.log", "/tmp/logger.log"].map(|file| node.read(file));
    let (seen, logged) = (seen?, logged?);
    ensure!(
        seen.contains("memory.min") && seen.contains(&wanted),
        "the differ has not seen memory.min {wanted}:\n{seen}"
    );
    for event in
        ["RunPodSandbox", "CreateContainer", "UpdateContainer", "StopContainer", "RemovePodSandbox"]
    {
        ensure!(logged.contains(event), "the logger has not heard of {event}:\n{logged}");
    }
    // Each of them goes on, and the plugin was connected all the time.
    node.run("systemctl is-active logger ulimit-adjuster differ >/dev/null")?;
    assert_eq!(connections(node)?, before);
    placement::until_synchronised(node, "systemctl restart plimsoll")?;
    node.run("systemctl stop logger ulimit-adjuster differ; rm /tmp/logger.log /tmp/differ.log")?;
    Ok(())
}

#[cfg(feature = "every-combination")]
fn tests_of_nri(node: &Node, driver: Driver) -> Result<()> {
    peers::put_nri_tests(node)?;
    node.run(&format!("crictl inspecti {NRI_TEST_IMAGE} >/dev/null"))?;
    let before = connections(node)?;
    let script = format!(
        "socket=$(sed -n 's/^runtime-endpoint: //p' /etc/crictl.yaml); cd $(mktemp -d)
         {DIRECTORY}/nri.test -crio-socket $socket -nri-socket unix:///var/run/nri/nri.sock \
             -cgroup-manager {driver} -test.v 2>&1"
    );
    let output = node.try_run_within(Duration::from_secs(300), &script, Vec::new())?;
    let said = output.stdout;
    let ended =
        |how: &str| said.lines().filter(|line| line.starts_with(&format!("--- {how}: "))).count();
    ensure!(output.status.success() && ended("FAIL") == 0, "{}:\n{said}", output.status);
    // Two want two processors, two want two NUMA nodes: this machine has one of each.
    let skipped: Vec<_> = said.lines().filter(|line| line.starts_with("--- SKIP: ")).collect();
    let wants_more = |line: &&str| line.contains("TestCpuset") || line.contains("TestMemset");
    ensure!(skipped.iter().all(wants_more), "skipped: {skipped:?}");
    ensure!(ended("PASS") >= 8, "{said}");
    println!(
        "{}: {} tests of NRI pass, {} are skipped",
        node.runtime(),
        ended("PASS"),
        skipped.len()
    );
    // The plugin was connected all the time.
    assert_eq!(connections(node)?, before);
    Ok(())
}

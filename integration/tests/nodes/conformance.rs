//! Tests with other NRI programs while the plugin is connected. Real plugins of containerd/nri work
//! beside the plugin, and CRI-O's own NRI tests pass.
//!
//! `integration/src/placement/peers.rs` describes these plugins and tests and says where their
//! sources are.

#[cfg(feature = "every-combination")]
use std::time::Duration;

use anyhow::{Context, Result, ensure};
#[cfg(feature = "every-combination")]
use integration::image::NRI_TEST_IMAGE;
use integration::kubelet::{ContainerSpec, Kubelet, MIB, PodSpec};
use integration::machine::Node;
use integration::placement::peers::{self, DIRECTORY};
use integration::placement::{self, EXTERNAL_BINARY};
use integration::probe::cgroup;
use integration::probe::crictl;
use integration::runtime::Driver;

/// Distance between memory.min and the limit, in bytes: the default of `memoryMinHeadroom`.
const HEADROOM: u64 = 2 * MIB;

macro_rules! conformance {
    ($module:ident, $runtime:ident, $driver:ident) => {
        mod $module {
            use integration::fleet::{Plugin, on_node};
            use integration::placement::Mode;
            use integration::runtime::{Driver, Runtime};

            #[test]
            fn upstream_nri_plugins_work_beside_plimsoll() {
                let plugin = Plugin::Installed(Mode::External, String::new());
                on_node(Runtime::$runtime, Driver::$driver, &plugin, super::plugins_of_others);
            }

            /// CRI-O's tests wait at most ten seconds for a pod. A busy machine may need longer, so
            /// this test runs only with the feature `every-combination`.
            #[cfg(feature = "every-combination")]
            #[test]
            fn crio_nri_tests_pass_beside_plimsoll() {
                let plugin = Plugin::Installed(Mode::External, String::new());
                on_node(Runtime::$runtime, Driver::$driver, &plugin, super::tests_of_nri);
            }
        }
    };
}

// CRI-O's tests take two minutes longer on containerd, for which they were not written.
#[cfg(feature = "every-combination")]
conformance!(containerd_2_4, Containerd24, Systemd);
conformance!(crio_1_36, Crio136, Systemd);

/// Returns how often the plugin's process has connected to the runtime and synchronized, and the
/// invocation ID of the plugin's systemd service.
///
/// # Errors
///
/// Fails if the plugin is not connected now.
fn connections(node: &Node) -> Result<String> {
    let script = format!(
        "{EXTERNAL_BINARY} status --ready >/dev/null
         process=$(systemctl show --property InvocationID --value plimsoll)
         # The plugin logs this line right after it has become ready.
         timeout 60 bash -c \"until journalctl _SYSTEMD_INVOCATION_ID=$process --output cat |
             grep -c 'connected to the runtime and synchronized'; do sleep 0.2; done\" | tail -n 1
         echo $process"
    );
    Ok(node.run(&script).context("reading the state of the plugin's connection")?.stdout)
}

fn plugins_of_others(node: &Node, driver: Driver) -> Result<()> {
    peers::put_plugins(node)?;
    let mut kubelet = Kubelet::start(node, driver)?;
    // The differ connects two plugins. The plugin with index 00 comes before all other plugins, and
    // the plugin with index 99 comes after them.
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
    let process = crictl::inspect(node, &container.id)?["info"]["pid"]
        .as_u64()
        .context("the container has no process ID")?;
    let limits = node.read(&format!("/proc/{process}/limits"))?;
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .context("the process has no limit of open files")?;
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["123", "456"]);

    kubelet.resize(&mut pod, "app", Some(96 * MIB), Some(96 * MIB))?;
    assert_eq!(cgroup::memory(node, &[&container.cgroup])?[0].min, 96 * MIB - HEADROOM);
    kubelet.remove_pod(&pod)?;

    let wanted = format!("{}", 64 * MIB - HEADROOM);
    let [seen, logged] = ["/tmp/differ.log", "/tmp/logger.log"].map(|file| node.read(file));
    let (seen, logged) = (seen?, logged?);
    ensure!(
        seen.contains("memory.min") && seen.contains(&wanted),
        "the differ must see memory.min {wanted}, but saw:\n{seen}"
    );
    for event in
        ["RunPodSandbox", "CreateContainer", "UpdateContainer", "StopContainer", "RemovePodSandbox"]
    {
        ensure!(logged.contains(event), "the logger must log {event}, but logged:\n{logged}");
    }
    // The three programs still run, and the plugin has kept its connection.
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
    ensure!(
        output.status.success() && ended("FAIL") == 0,
        "no test may fail ({}):\n{said}",
        output.status
    );
    // Two tests need two processors and two tests need two NUMA nodes. The test node has one
    // processor and one NUMA node.
    let skipped: Vec<_> = said.lines().filter(|line| line.starts_with("--- SKIP: ")).collect();
    let wants_more = |line: &&str| line.contains("TestCpuset") || line.contains("TestMemset");
    ensure!(
        skipped.iter().all(wants_more),
        "only tests for larger nodes may be skipped: {skipped:?}"
    );
    ensure!(ended("PASS") >= 8, "at least 8 tests must pass:\n{said}");
    println!(
        "{}: {} tests of NRI pass, {} are skipped",
        node.runtime(),
        ended("PASS"),
        skipped.len()
    );
    // The plugin has kept its connection.
    assert_eq!(connections(node)?, before);
    Ok(())
}

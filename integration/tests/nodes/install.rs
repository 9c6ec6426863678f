//! Tests of `plimsoll install`, of upgrades and of `plimsoll uninstall` on real nodes. NRI is on in
//! containerd 2, as by default. In containerd 1.7 and CRI-O NRI is off in the operator's
//! configuration.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::kubelet::{ContainerSpec, Kubelet, MIB, Pod, PodSpec};
use integration::machine::{Node, Output};
use integration::placement;
use integration::probe::cgroup::{self, Expected, Memory};
use integration::runtime::{Driver, Runtime};

// The cgroup driver does not matter, so each runtime has one driver in these cases. If NRI is
// already on, `install` has less to do, so cases with NRI on need the feature `every-combination`.
mod containerd_1_7 {
    integration::node_tests!(@driver Containerd17 cgroupfs Cgroupfs control [
        uninstall_and_failed_install_leave_no_trace;
        upgrades_never_drop_protection_in_either_mode
    ]);
}
mod containerd_2_1 {
    integration::node_tests!(@driver Containerd21 systemd Systemd control [
        ; uninstall_and_failed_install_leave_no_trace upgrades_never_drop_protection_in_either_mode
    ]);
}
mod containerd_2_4 {
    integration::node_tests!(@driver Containerd24 cgroupfs Cgroupfs control [
        ; uninstall_and_failed_install_leave_no_trace upgrades_never_drop_protection_in_either_mode
    ]);
}
mod crio_1_36 {
    integration::node_tests!(@driver Crio136 systemd Systemd control [
        uninstall_and_failed_install_leave_no_trace upgrades_never_drop_protection_in_either_mode;
    ]);
}

/// Path of the program that the operator has downloaded.
const DOWNLOAD: &str = "/root/plimsoll";
const LAUNCHED: &str = "/opt/nri/plugins/90-plimsoll";
const INSTALLED: &str = "/usr/local/bin/plimsoll";

fn app() -> ContainerSpec {
    ContainerSpec::new("app")
}

/// Returns three texts for a runtime in which the operator has switched NRI off, and `None` for a
/// runtime in which NRI stays on. The first text is the path of the operator's configuration file.
/// The second text is the command that switches NRI off in this file. The third text is the path of
/// the drop-in file that switches NRI on again.
fn switched_off(runtime: Runtime) -> Option<(&'static str, &'static str, &'static str)> {
    match runtime {
        // containerd 1.7 has NRI off by default, so removing the setting is enough.
        Runtime::Containerd17 => {
            let off = "sed -i '/nri.v1.nri/,/disable/d'";
            Some(("/etc/containerd/config.toml", off, "/etc/containerd/plimsoll/nri.toml"))
        }
        Runtime::Containerd21 | Runtime::Containerd24 => None,
        Runtime::Crio136 => {
            let off = "sed -i '$a enable_nri = false'";
            Some((
                "/etc/crio/crio.conf.d/10-node.conf",
                off,
                "/etc/crio/crio.conf.d/zz-plimsoll.conf",
            ))
        }
    }
}

/// Lists all files and units that an installation may leave on the node.
fn traces(node: &Node) -> Result<String> {
    let listed = node.run(&format!(
        "{{ find /etc /opt /usr/local /run/plimsoll /run/systemd/system -printf '%p %y %s %l\\n' 2>/dev/null || true; }} | sort
         {{ find /etc/containerd /etc/crio -type f -exec md5sum '{{}}' + 2>/dev/null || true; }} | sort
         systemctl show {} --property ExecStart --value | grep -o 'argv[^;]*'
         {{ readlink /proc/[0-9]*/exe || true; }} | grep plimsoll || true",
        node.runtime().unit()
    ))?;
    Ok(listed.stdout)
}

/// Returns the memory values of the container's cgroup and of its ancestor cgroups.
fn values(node: &Node, pod: &Pod) -> Result<Vec<Memory>> {
    cgroup::memory(node, &cgroup::chain(&pod.container("app")?.cgroup))
}

/// Waits until memory.min of the pod's container equals the request. The plugin reconciles the
/// containers that already ran. This work begins only after the plugin has become ready.
fn protected(node: &Node, pod: &Pod) -> Result<()> {
    let expected = [Expected::new(&pod.container("app")?.cgroup, "memory.min", 32 * MIB)];
    cgroup::settle(node, "", &expected, Duration::from_millis(200), Duration::from_secs(60))
        .map(|_| ())
}

fn install(node: &Node, arguments: &str) -> Result<Output> {
    node.run(&format!("{DOWNLOAD} install --yes {arguments}"))
}

/// Creates another version of the program by appending a byte. A byte at the end of an executable
/// has no effect.
fn another_version(node: &Node) -> Result<()> {
    node.run(&format!(
        "cp {DOWNLOAD} {DOWNLOAD}.new; echo >>{DOWNLOAD}.new; mv {DOWNLOAD}.new {DOWNLOAD}"
    ))?;
    Ok(())
}

fn process_of_runtime(node: &Node) -> Result<String> {
    Ok(node
        .run(&format!("systemctl show {} --property MainPID --value", node.runtime().unit()))?
        .stdout)
}

/// Installs another version of the program. Meanwhile a script reads memory.min of a container and
/// of its ancestor cgroups every 5 ms, and another container is created.
fn upgrade(
    node: &Node,
    kubelet: &mut Kubelet,
    pod: &Pod,
    name: &str,
    arguments: &str,
) -> Result<()> {
    another_version(node)?;
    let container = &pod.container("app")?.cgroup;
    let files: String = cgroup::chain(container)
        .iter()
        .map(|cgroup| format!(" {}/{cgroup}/memory.min", cgroup::ROOT))
        .collect();
    let cursor = placement::cursor(node)?;
    node.run(&format!(
        "cat >/root/watch <<'END'
files=({files}); lowest=(); times=0
exec {{pause}}<> <(:)
for file in ${{files[@]}}; do read now <$file; lowest+=($now); done
while [ ! -e /root/done ]; do
    for index in ${{!files[@]}}; do
        read now <${{files[index]}}
        [ $now -ge ${{lowest[index]}} ] || lowest[index]=$now
    done
    times=$((times + 1))
    read -r -t 0.005 -u $pause || true
done
echo $times ${{lowest[@]}} >/root/watched
END
         rm -f /root/done /root/watched /root/installed
         setsid bash /root/watch </dev/null >/dev/null 2>&1 &
         setsid sh -c '{DOWNLOAD} install --yes {arguments}; echo $? >/root/installed' </dev/null >/root/install.log 2>&1 &"
    ))?;
    let created =
        kubelet.run_pod(PodSpec::new(name).container(app().request(16 * MIB).limit(64 * MIB)))?;
    let ended = node.run(
        "timeout 100 bash -c 'until [ -e /root/installed ]; do sleep 0.1; done'; touch /root/done
         timeout 60 bash -c 'until [ -s /root/watched ]; do sleep 0.1; done'; cat /root/installed /root/watched; cat /root/install.log",
    )?;
    println!("{}", ended.stdout);
    let mut lines = ended.stdout.lines();
    ensure!(lines.next() == Some("0"), "the upgrade must succeed");
    let watched: Vec<u64> = lines
        .next()
        .context("reading the counts of the watcher")?
        .split(' ')
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    ensure!(watched[0] > 20, "{watched:?}");
    ensure!(
        watched[1..].iter().all(|lowest| *lowest >= 32 * MIB),
        "memory.min must never be 0: {watched:?}"
    );
    // The plugin may have reconnected only after the container was created.
    let expected = format!(
        "timeout 100 bash -c 'until [ $(cat {}/{}/memory.min) = {} ]; do sleep 0.1; done'",
        cgroup::ROOT,
        created.container("app")?.cgroup,
        16 * MIB
    );
    node.run(&expected).context("checking the container created during the upgrade")?;
    // The plugin logs this line right after it has become ready.
    let connections = format!(
        "timeout 100 bash -c \"until journalctl --identifier plimsoll --after-cursor '{cursor}' --output cat |
             grep -c 'connected to the runtime and synchronized'; do sleep 0.2; done\" | tail -n 1"
    );
    assert_eq!(node.run(&connections)?.stdout, "1\n", "the plugin must reconnect once");
    kubelet.remove_pod(&created)
}

/// Prepares a node with the operator's configuration, the downloaded program and a pod that already
/// runs.
fn prepare(node: &Node, driver: Driver) -> Result<(Kubelet<'_>, Pod)> {
    if let Some((file, off, _)) = switched_off(node.runtime()) {
        node.run(&format!(
            "cp {file} /root/config; {off} {file}; {}; rm /run/nri/nri.sock",
            placement::restart_script(node)
        ))?;
    }
    // Other cases on this node may have left the directories of launched plugins.
    node.run("rmdir /opt/nri/plugins /opt/nri 2>/dev/null || true")?;
    node.write_file(DOWNLOAD, fs::read(placement::build()?)?, 0o755)?;
    let mut kubelet = Kubelet::start(node, driver)?;
    let pod = kubelet
        .run_pod(PodSpec::new("before").container(app().request(32 * MIB).limit(96 * MIB)))?;
    Ok((kubelet, pod))
}

/// Uninstalls the plugin and checks that a second `uninstall` has nothing to do.
fn uninstall(node: &Node) -> Result<()> {
    let removed = node.run(&format!("{INSTALLED} uninstall --yes"))?.stdout;
    println!("{removed}");
    let nothing = node.run(&format!("{DOWNLOAD} uninstall --yes"))?.stdout;
    assert_eq!(nothing, "nothing to do: the plugin is not installed\n");
    Ok(())
}

/// Undoes the changes of [`prepare`].
fn clean_up(node: &Node, kubelet: &mut Kubelet, pod: &Pod) -> Result<()> {
    kubelet.remove_pod(pod)?;
    if let Some((file, ..)) = switched_off(node.runtime()) {
        node.run(&format!("mv /root/config {file}; {}", placement::restart_script(node)))?;
    }
    node.run("rm -rf /root/plimsoll /root/watch* /root/done /root/install*").map(|_| ())
}

fn uninstall_and_failed_install_leave_no_trace(node: &Node, driver: Driver) -> Result<()> {
    let (mut kubelet, pod) = prepare(node, driver)?;
    let (before, values_before) = (traces(node)?, values(node, &pod)?);
    // A runtime does not remove its socket when NRI is switched off, so `prepare` has removed the
    // socket. After `uninstall` the node may have this socket again. The socket is harmless and is
    // not made by the plugin, so `traces` does not list it.
    let switched_off = switched_off(node.runtime());
    let is_on = node.try_run("test -S /run/nri/nri.sock")?.status.success();
    assert_eq!(is_on, switched_off.is_none(), "whether NRI is enabled");

    // If nobody answers its question, `install` shows the plan and does nothing.
    let shown = node.try_run(&format!("{DOWNLOAD} install </dev/null"))?;
    assert_eq!(shown.status.code(), Some(1), "{}", shown.stderr);
    println!("{}", shown.stdout);
    match switched_off {
        Some((_, _, drop_in)) => assert!(shown.stdout.contains(drop_in), "{drop_in}"),
        None => assert!(
            !["/etc/containerd", "/etc/crio"]
                .iter()
                .any(|directory| shown.stdout.contains(directory))
        ),
    }
    assert_eq!(traces(node)?, before);

    // Make the last step fail, although the service has started.
    let fails = "mkdir -p /root/bin; printf '#!/bin/sh\\n/usr/bin/systemctl \"$@\"; test \"$1\" != start\\n' >/root/bin/systemctl
                 chmod 755 /root/bin/systemctl";
    let failed =
        node.try_run(&format!("{fails}; PATH=/root/bin:$PATH {DOWNLOAD} install --yes"))?;
    assert_eq!(failed.status.code(), Some(1), "{}", failed.stdout);
    assert!(failed.stderr.ends_with("all earlier steps were undone\n"), "{}", failed.stderr);
    node.run("rm -r /root/bin")?;
    assert_eq!(traces(node)?, before);
    assert_eq!(values(node, &pod)?, values_before);

    let installed = install(node, "")?;
    println!("{}", installed.stdout);
    // No kubelet runs on this node, so `install` cannot check the kubelet.
    let verdict = "Plimsoll can work on this node, but some checks are unknown: 0 failed";
    assert!(installed.stdout.contains(verdict), "{}", installed.stdout);
    protected(node, &pod)?;
    let again = install(node, "")?.stdout;
    assert!(again.starts_with("nothing to do"), "{again}");

    uninstall(node)?;
    assert_eq!(traces(node)?, before);
    assert_eq!(values(node, &pod)?, values_before);
    clean_up(node, &mut kubelet, &pod)
}

fn upgrades_never_drop_protection_in_either_mode(node: &Node, driver: Driver) -> Result<()> {
    let (mut kubelet, pod) = prepare(node, driver)?;
    let (before, values_before) = (traces(node)?, values(node, &pod)?);
    install(node, "")?;
    protected(node, &pod)?;

    // Check the promises of the systemd unit: hardening, readiness and ordering.
    let security =
        node.run("systemd-analyze security --no-pager plimsoll | grep 'Overall exposure'")?.stdout;
    let exposure = security
        .split(' ')
        .find_map(|word| word.parse::<f64>().ok())
        .context("reading the exposure of the unit")?;
    println!("{security}");
    assert!(exposure < 3.0, "{security}");
    let shown = node.run("systemctl show plimsoll --property StatusText,Type,ActiveState; systemctl show multi-user.target --property After")?;
    assert!(
        shown.stdout.contains("StatusText=connected to the container runtime and synchronized"),
        "{}",
        shown.stdout
    );
    assert!(
        shown.stdout.contains("Type=notify") && !shown.stdout.contains("plimsoll.service"),
        "{}",
        shown.stdout
    );
    // Despite the hardening, the plugin can open cgroup files and make systemd set properties.
    let reserve = format!(
        "printf 'systemReservedCgroup: /system.slice\\nsystemReserved: {{memory: 100Mi}}\\n' >{0}.new; mv {0}.new {0}
         timeout 100 bash -c 'until [ \"$(systemctl show system.slice --property MemoryMin --value)\" = 104857600 ]; do sleep 0.2; done'",
        placement::CONFIG
    );
    node.run(&reserve).context("checking the protection of system.slice")?;
    // The plugin can also remove the settings that systemd keeps for removed cgroups.
    let kept = "nsenter --mount --target $(systemctl show plimsoll --property MainPID --value) test -w /run/systemd/system.control";
    node.run(kept).context("removing the plugin's unit settings")?;
    let drop_in = "/run/systemd/system/plimsoll.service.d";
    node.run(&format!(
        "mkdir -p {drop_in}; printf '[Service]\\nWatchdogSec=2\\n' >{drop_in}/watchdog.conf; systemctl daemon-reload; systemctl restart plimsoll"
    ))?;
    placement::wait_for_journal(
        node,
        "plimsoll",
        "connected to the runtime",
        "systemctl kill --signal STOP plimsoll",
    )
    .context("waiting for the restart of a hanging plugin")?;
    node.run(&format!("rm -r {drop_in}; systemctl daemon-reload; systemctl restart plimsoll"))?;

    let runtime = process_of_runtime(node)?;
    upgrade(node, &mut kubelet, &pod, "external", "")?;
    assert_eq!(process_of_runtime(node)?, runtime, "the runtime must not be restarted");

    let moved = install(node, "--mode launched")?.stdout;
    println!("{moved}");
    let ways = node.run(&format!(
        "ls {LAUNCHED}; test ! -e /etc/systemd/system/plimsoll.service; systemctl is-active plimsoll || true"
    ))?;
    assert_eq!(ways.stdout, format!("{LAUNCHED}\ninactive\n"));
    protected(node, &pod)?;
    assert!(install(node, "--mode launched")?.stdout.starts_with("nothing to do"));
    let runtime = process_of_runtime(node)?;
    upgrade(node, &mut kubelet, &pod, "launched", "--mode launched")?;
    let moved_back = install(node, "")?.stdout;
    println!("{moved_back}");
    assert_eq!(process_of_runtime(node)?, runtime, "the runtime must not be restarted");
    protected(node, &pod)?;
    let programs = node.run("readlink /proc/[0-9]*/exe | grep plimsoll || true")?.stdout;
    assert_eq!(programs, format!("{INSTALLED}\n"));

    uninstall(node)?;
    assert_eq!(traces(node)?, before);
    assert_eq!(values(node, &pod)?, values_before);
    clean_up(node, &mut kubelet, &pod)
}

//! Files of a node in a temporary directory, for the tests of all checks.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::commands::doctor::facts::NodeFacts;
use crate::commands::doctor::facts::system::BUS;
use crate::commands::doctor::finding::{Finding, Mark};
use crate::host::version::Version;

/// Files of a node in a temporary directory. The result of every check of a new `Node` is ok.
pub(super) struct Node {
    pub(super) root: TempDir,
    pub(super) listeners: Vec<(&'static str, UnixListener)>,
}

pub(super) const CONTAINERD_SOCKET: &str = "run/containerd/containerd.sock";
pub(super) const CRIO_SOCKET: &str = "run/crio/crio.sock";
pub(super) const NRI_SOCKET: &str = "run/nri/nri.sock";
pub(super) const CONTAINERD_CONFIG: &str = "etc/containerd/config.toml";
pub(super) const DROP_IN: &str = "etc/nri/conf.d/90-plimsoll.conf";
pub(super) const BINARY: &str = "opt/nri/plugins/90-plimsoll";
pub(super) const KUBELET_CONFIG: &str = "var/lib/kubelet/config.yaml";
pub(super) const FILES: [(&str, &str); 30] = [
    ("sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n"),
    ("sys/fs/cgroup/cgroup.subtree_control", "cpu memory pids\n"),
    ("sys/fs/cgroup/kubepods.slice/cgroup.subtree_control", "cpu memory pids\n"),
    ("sys/fs/cgroup/kubepods.slice/memory.current", "0\n"),
    ("sys/fs/cgroup/kubepods.slice/memory.high", "max\n"),
    ("sys/fs/cgroup/kubepods.slice/memory.max", "max\n"),
    ("sys/fs/cgroup/kubepods.slice/memory.reclaim", ""),
    ("sys/fs/cgroup/kubepods.slice/memory.oom.group", "0\n"),
    ("sys/fs/cgroup/kubepods.slice/memory.pressure", "some avg10=0.00\n"),
    (
        "sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/cgroup.subtree_control",
        "cpu memory pids\n",
    ),
    (
        "sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/\
         kubepods-burstable-podx.slice/memory.max",
        "max\n",
    ),
    ("sys/fs/cgroup/kubepods.slice/kubepods-besteffort.slice/cgroup.subtree_control", ""),
    ("proc/sys/kernel/osrelease", "6.12.0-1-amd64\n"),
    ("proc/self/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate,memory_recursiveprot 0 0\n"),
    ("proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n"),
    ("proc/swaps", "Filename Type Size Used Priority\n"),
    ("proc/sys/fs/inotify/max_user_instances", "128\n"),
    ("proc/sys/fs/inotify/max_user_watches", "65536\n"),
    ("run/systemd/system/.keep", ""),
    ("run/nri/plimsoll.lock", ""),
    (CONTAINERD_CONFIG, "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n"),
    (DROP_IN, "memoryThrottlingFactor: 0.8\n"),
    (BINARY, ""),
    (KUBELET_CONFIG, "kind: KubeletConfiguration\nfeatureGates: {MemoryQoS: false}\n"),
    ("proc/4242/comm", "kubelet\n"),
    ("proc/4242/status", "Name:\tkubelet\nUid:\t0\t0\t0\t0\n"),
    ("proc/4242/cgroup", "0::/system.slice/kubelet.service\n"),
    (
        "proc/4242/cmdline",
        "/usr/bin/kubelet\0--config=/var/lib/kubelet/config.yaml\0--node-ip\0::1\0",
    ),
    ("sys/fs/cgroup/system.slice/memory.max", "max\n"),
    ("var/lib/kubelet/actuated_pods_state", r#"{"data": "{\"entries\": {}}", "checksum": 1}"#),
];

impl Node {
    pub(super) fn good() -> Self {
        let mut node = Self { root: TempDir::new().unwrap(), listeners: Vec::new() };
        for (path, text) in FILES {
            node.write(path, text);
        }
        fs::set_permissions(node.path(BINARY), fs::Permissions::from_mode(0o755)).unwrap();
        let lock = node.path("run/nri/plimsoll.lock").metadata().unwrap();
        let (major, minor) = (rustix::fs::major(lock.dev()), rustix::fs::minor(lock.dev()));
        let inode = lock.ino();
        node.write(
            "proc/locks",
            &format!(
                "1: POSIX  ADVISORY  WRITE 7 00:01:5 0 EOF\n\
                 2: FLOCK  ADVISORY  WRITE 4321 {major:02x}:{minor:02x}:{inode} 0 EOF\n"
            ),
        );
        for path in [CONTAINERD_SOCKET, NRI_SOCKET, BUS] {
            node.listen(path);
        }
        node
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    pub(super) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(super) fn remove(&self, path: &str) {
        let path = self.path(path);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }

    pub(super) fn listen(&mut self, path: &'static str) {
        let inside = self.path(path);
        fs::create_dir_all(inside.parent().unwrap()).unwrap();
        self.listeners.push((path, UnixListener::bind(inside).unwrap()));
    }

    /// Stops the listener but keeps the socket file.
    pub(super) fn die(&mut self, path: &str) {
        self.listeners.retain(|(listening, _)| *listening != path);
    }

    /// Stops the listener and removes the socket file.
    pub(super) fn close(&mut self, path: &str) {
        self.die(path);
        self.remove(path);
    }

    pub(super) fn facts(&self) -> NodeFacts {
        let mut facts = NodeFacts::collect(self.root.path(), &self.path(NRI_SOCKET));
        // Doctor runs no programs of a node at another root directory, so tests must set the
        // version of containerd.
        facts.runtimes[0].version.get_or_insert(Version(2, 1, 0));
        facts
    }

    pub(super) fn troubles(&self) -> Vec<Finding> {
        troubles(&self.facts())
    }
}

/// Returns the findings that are not ok. Ignores the check `root`, whose result depends on the user
/// that runs the tests.
pub(super) fn troubles(facts: &NodeFacts) -> Vec<Finding> {
    let report = facts.judge();
    assert_eq!(report.able, report.checks.iter().all(|finding| finding.mark != Mark::Failed));
    for finding in &report.checks {
        assert_eq!(finding.mark == Mark::Ok, finding.advice.is_none(), "{finding:?}");
    }
    report
        .checks
        .into_iter()
        .filter(|finding| finding.mark != Mark::Ok && finding.check != "root")
        .collect()
}

#[track_caller]
pub(super) fn expect(troubles: &[Finding], check: &str, mark: Mark, found: &str, advice: &str) {
    let [trouble] = troubles else { panic!("expected {check} alone: {troubles:#?}") };
    assert_eq!((trouble.check, trouble.mark), (check, mark), "{trouble:#?}");
    assert!(trouble.found.contains(found), "{trouble:#?}");
    assert!(trouble.advice.as_ref().unwrap().contains(advice), "{trouble:#?}");
}

#[track_caller]
pub(super) fn ok(facts: &NodeFacts, check: &str, found: &str) {
    let report = facts.judge();
    let finding = report.checks.iter().find(|finding| finding.check == check).unwrap();
    assert!(finding.mark == Mark::Ok && finding.found.contains(found), "{finding:#?}");
}

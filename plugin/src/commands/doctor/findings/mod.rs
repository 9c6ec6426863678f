//! Findings of all checks. Each topic has its own file.

mod access;
mod capacity;
mod cgroups;
mod configuration;
mod installation;
mod kernel_release;
mod kubelet;
mod nri;
mod runtime;
mod system;

use crate::commands::doctor::facts::NodeFacts;
use crate::commands::doctor::facts::cgroups::Hierarchy;
use crate::commands::doctor::finding::Mark;
use crate::commands::doctor::report::Report;

impl NodeFacts {
    /// Returns one finding for each check that applies.
    pub fn judge(&self) -> Report {
        let nri = self.nri();
        // If NRI is off, the runtime serves no NRI socket, so the finding about NRI suffices.
        let socket = if nri.as_ref().is_some_and(|nri| nri.mark == Mark::Failed) {
            None
        } else {
            self.nri_socket()
        };
        let is_v2 = matches!(self.cgroups.hierarchy, Ok(Hierarchy::V2));
        let checks = [
            Some(self.root()),
            Some(self.cgroup_v2()),
            is_v2.then(|| self.memory_controller()),
            Some(self.kernel()),
            is_v2.then(|| self.memory_files()).flatten(),
            is_v2.then(|| self.recursive_protection()),
            is_v2.then(|| self.pressure()),
            Some(self.runtime()),
            nri,
            socket,
            self.nri_timeouts(),
            Some(self.configuration()),
            Some(self.installation()),
            Some(self.other_plugins()),
            Some(self.kubelet_memory_qos()),
            Some(self.node_allocatable()),
            self.node_guard(),
            Some(self.checkpoints()),
            Some(self.d_bus()),
            Some(self.swap()),
            Some(self.restore()),
            Some(self.mode()),
            Some(self.inotify()),
        ];
        let checks: Vec<_> = checks.into_iter().flatten().collect();
        let unknown = checks.iter().filter(|finding| finding.mark == Mark::Unknown).count();
        Report { able: checks.iter().all(|finding| finding.mark != Mark::Failed), unknown, checks }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;
    use crate::commands::doctor::facts::system::BUS;
    use crate::commands::doctor::fixture::*;
    use crate::state::settings::RESTORE_MARKER;

    #[test]
    fn a_good_node_has_nothing_to_do() {
        let facts = Node::good().facts();
        assert_eq!(troubles(&facts), []);
        assert_eq!(facts.judge().checks.len(), 22);
        ok(
            &facts,
            "installation",
            "/opt/nri/plugins/90-plimsoll is installed and runs as process 4321",
        );
        ok(&facts, "kernel", "6.12.0-1-amd64");
        ok(
            &facts,
            "nri-timeouts",
            "waits 2s for an answer, so an event may take 200ms and a limit decrease 600ms",
        );
        ok(&facts, "node-allocatable", "(7.9Gi), from the kubelet's configuration");
    }

    #[test]
    fn an_empty_file_system_is_judged() {
        let root = TempDir::new().unwrap();
        let report = NodeFacts::collect(root.path(), &root.path().join("nri.sock")).judge();
        let failed: Vec<_> =
            report.checks.iter().filter(|finding| finding.mark == Mark::Failed).collect();
        assert_eq!(
            failed.iter().map(|finding| finding.check).collect::<Vec<_>>(),
            ["cgroup-v2", "nri-socket"]
        );
    }

    /// Without its file, no check may have the result ok.
    #[test]
    fn a_missing_file_makes_its_check_unknown() {
        for (path, check) in [
            ("sys/fs/cgroup/kubepods.slice/cgroup.subtree_control", "memory-controller"),
            ("proc/sys/kernel/osrelease", "kernel"),
            ("proc/self/mounts", "recursive-protection"),
            ("proc/locks", "installation"),
            ("proc/4242/comm", "kubelet-memory-qos"),
            ("proc/4242/cmdline", "kubelet-memory-qos"),
            ("proc/meminfo", "node-allocatable"),
            (KUBELET_CONFIG, "kubelet-memory-qos"),
            (KUBELET_CONFIG, "node-allocatable"),
            ("proc/swaps", "swap"),
            ("proc/sys/fs/inotify/max_user_instances", "inotify"),
            ("proc/sys/fs/inotify/max_user_watches", "inotify"),
        ] {
            let node = Node::good();
            node.remove(path);
            is_unknown(&node.facts(), path, check);
        }
        let mut node = Node::good();
        node.remove("run/systemd");
        node.listeners.clear();
        node.remove("run");
        is_unknown(&node.facts(), "run", "d-bus");
    }

    /// Not even root can read through a symbolic link that points to itself.
    #[test]
    fn unreadable_files_make_their_checks_unknown() {
        for (path, check) in [
            ("sys/fs/cgroup/cgroup.controllers", "cgroup-v2"),
            ("sys/fs/cgroup/kubepods.slice/memory.high", "memory-files"),
            ("sys/fs/cgroup/kubepods.slice/memory.pressure", "pressure"),
            ("proc/sys/kernel/osrelease", "kernel"),
            ("proc/self/mounts", "recursive-protection"),
            (CONTAINERD_CONFIG, "nri"),
            (CONTAINERD_CONFIG, "nri-timeouts"),
            ("opt/nri/plugins", "installation"),
            ("opt/nri/plugins", "other-plugins"),
            ("etc/nri/conf.d", "other-plugins"),
            ("proc/locks", "installation"),
            ("proc/4242/comm", "kubelet-memory-qos"),
            ("proc/4242/cmdline", "kubelet-memory-qos"),
            (KUBELET_CONFIG, "kubelet-memory-qos"),
            (KUBELET_CONFIG, "node-allocatable"),
            ("sys/fs/cgroup/kubepods.slice/memory.max", "node-allocatable"),
            ("var/lib/kubelet/actuated_pods_state", "checkpoints"),
            ("run/systemd/system", "d-bus"),
            ("proc/swaps", "swap"),
            (RESTORE_MARKER, "restore"),
            ("proc/sys/fs/inotify/max_user_instances", "inotify"),
        ] {
            let node = Node::good();
            let inside = node.path(path);
            if inside.exists() {
                node.remove(path);
            } else {
                fs::create_dir_all(inside.parent().unwrap()).unwrap();
            }
            std::os::unix::fs::symlink(&inside, &inside).unwrap();
            is_unknown(&node.facts(), path, check);
        }
    }

    #[track_caller]
    fn is_unknown(facts: &NodeFacts, path: &str, check: &str) {
        let report = facts.judge();
        let finding = report.checks.iter().find(|finding| finding.check == check);
        assert!(
            finding.is_some_and(|finding| finding.mark == Mark::Unknown),
            "{path}: {finding:#?}"
        );
        assert!(report.unknown > 0);
    }

    #[test]
    fn no_file_makes_it_fail_or_wait() {
        // Remove the path of the node's temporary directory, because the path differs for each
        // node.
        let judge = |node: &Node| {
            let report = node.facts().judge().to_string();
            report.replace(node.path("").to_str().unwrap(), "")
        };
        let good = judge(&Node::good());
        assert_eq!(judge(&Node::good()), good);
        let mut unnoticed = Vec::new();
        for (path, _) in FILES.into_iter().chain([
            ("proc/locks", ""),
            (CONTAINERD_SOCKET, ""),
            (NRI_SOCKET, ""),
            (BUS, ""),
        ]) {
            for what in ["directory", "pipe", "large", "binary", "loop"] {
                let node = Node::good();
                let inside = node.path(path);
                // Skip pipes at paths that only the kernel or root can create. `CgroupRoot` reads
                // proc/self/mounts with a blocking call, which would wait for a writer.
                if what == "pipe"
                    && ["proc/meminfo", "proc/self/mounts", KUBELET_CONFIG, "memory.max"]
                        .iter()
                        .any(|end| path.ends_with(end))
                {
                    continue;
                }
                node.remove(path);
                match what {
                    "directory" => fs::create_dir(&inside).unwrap(),
                    "pipe" => rustix::fs::mknodat(
                        rustix::fs::CWD,
                        &inside,
                        rustix::fs::FileType::Fifo,
                        rustix::fs::Mode::RWXU,
                        0,
                    )
                    .unwrap(),
                    "large" => fs::write(&inside, "x".repeat(2 << 20)).unwrap(),
                    "binary" => fs::write(&inside, [0, 0xff, 0x1b, b'\n', 0x7f]).unwrap(),
                    _ => std::os::unix::fs::symlink(&inside, &inside).unwrap(),
                }
                // Doctor only checks whether these files exist.
                let is_content_unused = path.starts_with("sys/fs/cgroup")
                    || [".keep", "plimsoll.lock", "90-plimsoll"]
                        .iter()
                        .any(|end| path.ends_with(end));
                if judge(&node) == good && !is_content_unused {
                    unnoticed.push(format!("{what} at {path}"));
                }
            }
        }
        assert_eq!(unnoticed, [""; 0]);
    }

    #[test]
    fn hostile_names_come_out_harmless() {
        let node = Node::good();
        let plugin = node.path("opt/nri/plugins/10-\u{1b}[31m\u{202e}\n");
        fs::write(&plugin, "").unwrap();
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(
            node.path("etc/nri/conf.d").join(std::ffi::OsStr::from_bytes(b"\xff\r koordlet")),
            "",
        )
        .unwrap();
        let long = "x".repeat(1 << 19);
        node.write(CONTAINERD_CONFIG, &format!("imports = [\"/\\u001b/*/*{long}\"]"));
        node.write("proc/sys/kernel/osrelease", &format!("\u{1b}{long}"));
        node.write("proc/swaps", &format!("\n\u{1b}{long}"));
        node.write(DROP_IN, &format!("\"\\e[31m{long}\": 1\n"));
        let report = node.facts().judge();
        let text = format!("{report}{}", serde_json::to_string(&report).unwrap());
        assert!(
            text.chars().all(|character| character == '\n'
                || !(character.is_control() || character == '\u{202e}')),
            "{text}"
        );
        assert!(text.len() < 20_000, "{}", text.len());
    }
}

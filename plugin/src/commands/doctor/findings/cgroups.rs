//! Findings about the cgroup hierarchy and the files of the memory controller.

use std::path::Path;

use plimsoll_core::units::excerpt;

use crate::commands::doctor::facts::NodeFacts;
use crate::commands::doctor::facts::cgroups::{CgroupLevel, Hierarchy, SampleCgroup, has_memory};
use crate::commands::doctor::facts::system::RECLAIM_KERNEL;
use crate::commands::doctor::finding::Finding;
use crate::host::version::Version;

/// Name of the check for the memory controller.
const MEMORY_CONTROLLER: &str = "memory-controller";

impl NodeFacts {
    pub(super) fn cgroup_v2(&self) -> Finding {
        const CHECK: &str = "cgroup-v2";
        const SWITCH: &str = "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's \
                              command line; without systemd, boot with cgroup_no_v1=all and mount \
                              cgroup2 at /sys/fs/cgroup";
        let (found, advice) = match &self.cgroups.hierarchy {
            Ok(Hierarchy::V2) => {
                return Finding::ok(CHECK, "cgroup v2 is mounted at /sys/fs/cgroup");
            }
            Ok(Hierarchy::Hybrid) => (
                "the hybrid hierarchy, which has the memory controller in version 1 and version 2 \
                 only at /sys/fs/cgroup/unified",
                SWITCH,
            ),
            Ok(Hierarchy::V1) => ("version 1, which has no memory.min or memory.high", SWITCH),
            Ok(Hierarchy::Missing) => (
                "no cgroups",
                "mount cgroup2 there, or set --host to the root of the node's file system",
            ),
            Err(error) => {
                let found = format!("/sys/fs/cgroup: {}", error.why);
                return Finding::unknown(CHECK, found, self.how_to_read());
            }
        };
        let found = format!("expected cgroup v2 at /sys/fs/cgroup, found {found}");
        Finding::failed(CHECK, found, advice)
    }

    pub(super) fn memory_controller(&self) -> Finding {
        if let Some(finding) = self.root_controller() {
            return finding;
        }
        let has_kubepods = self.cgroups.levels.iter().any(|level| !level.path.is_empty());
        let mut levels = self.cgroups.levels.iter();
        if let Some(finding) = levels.find_map(|level| self.level(level, has_kubepods)) {
            return finding;
        }
        if has_kubepods {
            let found = "the memory controller is enabled from the root to the QoS classes";
            return Finding::ok(MEMORY_CONTROLLER, found);
        }
        if !self.cgroups.unsearched.is_empty() {
            let found = format!(
                "the memory controller is enabled at the root; cannot search for kubepods: {}",
                self.cgroups.unsearched.join("; ")
            );
            return Finding::unknown(MEMORY_CONTROLLER, found, self.how_to_read());
        }
        Finding::warning(
            MEMORY_CONTROLLER,
            "the memory controller is enabled at the root, but no kubepods cgroup exists",
            "start the kubelet, which creates the cgroups above containers",
        )
    }

    /// Returns a finding if the cgroup root has no memory controller.
    fn root_controller(&self) -> Option<Finding> {
        const FILE: &str = "/sys/fs/cgroup/cgroup.controllers";
        Some(match &self.cgroups.controllers {
            Ok(text) if has_memory(text.as_deref()) => return None,
            Ok(_) if self.cgroups.disables_memory => Finding::failed(
                MEMORY_CONTROLLER,
                "the kernel's command line switches the memory controller off",
                "remove cgroup_disable=memory from the kernel's command line and reboot",
            ),
            Ok(_) => Finding::failed(
                MEMORY_CONTROLLER,
                format!("expected the memory controller in {FILE}, found none"),
                "boot a kernel with CONFIG_MEMCG with cgroup_enable=memory cgroup_no_v1=memory",
            ),
            Err(error) => {
                let found = format!("{FILE}: {}", error.why);
                Finding::unknown(MEMORY_CONTROLLER, found, self.how_to_read())
            }
        })
    }

    /// Returns a finding if a cgroup with children does not enable the memory controller.
    fn level(&self, level: &CgroupLevel, has_kubepods: bool) -> Option<Finding> {
        let directory = Path::new("/sys/fs/cgroup").join(&level.path);
        let file = directory.join("cgroup.subtree_control").display().to_string();
        let unknown =
            |found: String| Some(Finding::unknown(MEMORY_CONTROLLER, found, self.how_to_read()));
        // A cgroup without children does not have to enable the controller. The kubelet or systemd
        // enables the controller when it creates the first child.
        match &level.has_children {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => {
                return unknown(format!("cannot list {}: {}", directory.display(), error.why));
            }
        }
        match &level.enabled {
            Ok(true) => None,
            Ok(false) => {
                let found = format!(
                    "expected the memory controller in {file}, found none, so the cgroups below \
                     have no memory.* files"
                );
                let advice = format!(
                    "run 'echo +memory > {file}'; if the controller disappears again, read the \
                     logs of the kubelet and systemd"
                );
                let finding = if has_kubepods { Finding::failed } else { Finding::warning };
                Some(finding(MEMORY_CONTROLLER, found, advice))
            }
            Err(error) => unknown(format!("{file}: {}", error.why)),
        }
    }

    pub(super) fn memory_files(&self) -> Option<Finding> {
        const CHECK: &str = "memory-files";
        let Some(SampleCgroup { path, missing, unread }) = &self.cgroups.sample else {
            // Without the memory controller no cgroup has these files. The check
            // `memory-controller` already reports a missing memory controller.
            let has_controller =
                self.cgroups.controllers.as_ref().is_ok_and(|text| has_memory(text.as_deref()));
            return has_controller.then(|| {
                let found = "no cgroup below /sys/fs/cgroup has the memory controller";
                Finding::unknown(CHECK, found, "start the kubelet and run doctor again")
            });
        };
        let release =
            self.system.release.as_ref().ok().and_then(|text| Version::find(text.as_deref()?));
        let is_old = release.is_some_and(|release| release < RECLAIM_KERNEL);
        // A kernel before 5.19 has no memory.reclaim. The check `kernel` already reports such an
        // old kernel.
        let missing: Vec<_> = missing
            .iter()
            .filter(|file| !(is_old && **file == "memory.reclaim"))
            .copied()
            .collect();
        let place = format!("/sys/fs/cgroup/{}", excerpt(path));
        if !unread.is_empty() {
            let found = format!("{place}: {}", unread.join("; "));
            return Some(Finding::unknown(CHECK, found, self.how_to_read()));
        }
        if missing.is_empty() {
            let found = format!("{place} has all memory files that the plugin needs");
            return Some(Finding::ok(CHECK, found));
        }
        let found = format!("{place} has no {}", missing.join(", no "));
        let finding =
            if missing.contains(&"memory.high") { Finding::failed } else { Finding::warning };
        let advice = "boot a kernel of 5.19 or newer that was built with CONFIG_MEMCG";
        Some(finding(CHECK, found, advice))
    }

    pub(super) fn recursive_protection(&self) -> Finding {
        const CHECK: &str = "recursive-protection";
        match &self.cgroups.is_recursive {
            Ok(true) => Finding::ok(CHECK, "cgroup2 is mounted with memory_recursiveprot"),
            Ok(false) => Finding::warning(
                CHECK,
                "expected cgroup2 with memory_recursiveprot, found it without: systemReserved and \
                 kubeReserved then protect no cgroups below their own; containers stay protected",
                "run 'mount -o remount,nsdelegate,memory_recursiveprot /sys/fs/cgroup' (kernel \
                 5.7 or newer; systemd does so at boot)",
            ),
            Err(error) => Finding::unknown(
                CHECK,
                format!("/proc/self/mounts: {}", error.why),
                "check that 'mount -t cgroup2' shows memory_recursiveprot",
            ),
        }
    }

    pub(super) fn pressure(&self) -> Finding {
        const CHECK: &str = "pressure";
        match &self.cgroups.pressure {
            Ok(Some(_)) => Finding::ok(CHECK, "memory.pressure exists"),
            Ok(None) => Finding::warning(
                CHECK,
                "memory.pressure does not exist, so the plugin does not release throttled \
                 containers (throttleDeadline)",
                "boot with psi=1 on the kernel's command line",
            ),
            Err(error) => Finding::unknown(
                CHECK,
                format!("memory.pressure: {}", error.why),
                "check that 'cat /proc/pressure/memory' works; if not, boot with psi=1",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::commands::doctor::facts::cgroups::CGROUPS;
    use crate::commands::doctor::finding::Mark;
    use crate::commands::doctor::fixture::*;
    use crate::host::files::Unreadable;

    #[test]
    fn v1_hybrid_and_no_cgroups_fail_differently() {
        for (place, found) in [
            ("unified/cgroup.controllers", "found the hybrid hierarchy"),
            ("memory/tasks", "found version 1"),
            ("none", "cgroup v2 at /sys/fs/cgroup, found no cgroups"),
        ] {
            let node = Node::good();
            node.remove(CGROUPS);
            node.write(&format!("{CGROUPS}/{place}"), "");
            let advice = if place == "none" {
                "mount cgroup2"
            } else {
                "systemd.unified_cgroup_hierarchy=1"
            };
            expect(&node.troubles(), "cgroup-v2", Mark::Failed, found, advice);
        }
    }

    #[test]
    fn levels_with_children_need_the_memory_controller() {
        let controller = |path: &str, text: &str| {
            let node = Node::good();
            node.write(&format!("{CGROUPS}/{path}"), text);
            node.troubles()
        };
        let check = |path: &str, found: &str, advice: &str| {
            expect(
                &controller(path, "cpu memoryless\n"),
                "memory-controller",
                Mark::Failed,
                found,
                advice,
            );
        };
        check("cgroup.controllers", "cgroup.controllers, found none", "cgroup_enable=memory");
        for level in ["", "kubepods.slice/", "kubepods.slice/kubepods-burstable.slice/"] {
            let file = format!("{level}cgroup.subtree_control");
            check(&file, &file, &format!("echo +memory > /sys/fs/cgroup/{file}"));
        }
        // The cgroup of the BestEffort pods has no children.
        assert_eq!(
            controller("kubepods.slice/kubepods-besteffort.slice/cgroup.subtree_control", "cpu\n"),
            []
        );

        let node = Node::good();
        node.write(&format!("{CGROUPS}/cgroup.controllers"), "cpu\n");
        node.write("proc/cmdline", "quiet cgroup_disable=memory\n");
        expect(
            &node.troubles(),
            "memory-controller",
            Mark::Failed,
            "switches the memory controller off",
            "cgroup_disable=memory",
        );

        let node = Node::good();
        let cgroupfs = format!("{CGROUPS}/kubepods");
        fs::rename(node.path("sys/fs/cgroup/kubepods.slice"), node.path(&cgroupfs)).unwrap();
        assert_eq!(node.troubles(), []);
        node.write(&format!("{cgroupfs}/cgroup.subtree_control"), "");
        expect(
            &node.troubles(),
            "memory-controller",
            Mark::Failed,
            "kubepods/cgroup.subtree_control",
            "+memory",
        );
        node.remove(&cgroupfs);
        for file in [
            "memory.current",
            "memory.high",
            "memory.reclaim",
            "memory.oom.group",
            "memory.pressure",
        ] {
            node.write(&format!("{CGROUPS}/system.slice/{file}"), "");
        }
        node.write(&format!("{CGROUPS}/system.slice/cgroup.subtree_control"), "");
        expect(
            &node.troubles(),
            "memory-controller",
            Mark::Warning,
            "no kubepods cgroup",
            "start the kubelet",
        );
    }

    #[test]
    fn an_unlistable_level_is_unknown() {
        let mut facts = Node::good().facts();
        let level =
            facts.cgroups.levels.iter_mut().find(|level| level.path == "kubepods.slice").unwrap();
        level.has_children =
            Err(Unreadable { is_denied: false, why: "input/output error".to_owned() });
        expect(
            &troubles(&facts),
            "memory-controller",
            Mark::Unknown,
            "cannot list /sys/fs/cgroup/kubepods.slice",
            "",
        );
    }

    #[test]
    fn kubepods_below_a_cgroup_root_is_checked() {
        let node = Node::good();
        fs::create_dir(node.path("sys/fs/cgroup/kubelet.slice")).unwrap();
        let kubepods = "sys/fs/cgroup/kubelet.slice/kubelet-kubepods.slice";
        fs::rename(node.path("sys/fs/cgroup/kubepods.slice"), node.path(kubepods)).unwrap();
        for class in ["burstable", "besteffort"] {
            let [from, to] = ["kubepods", "kubelet-kubepods"]
                .map(|stem| format!("{kubepods}/{stem}-{class}.slice"));
            fs::rename(node.path(&from), node.path(&to)).unwrap();
        }
        node.write("sys/fs/cgroup/kubelet.slice/cgroup.subtree_control", "memory\n");
        assert_eq!(node.troubles(), []);
        ok(&node.facts(), "memory-files", "/sys/fs/cgroup/kubelet.slice/kubelet-kubepods.slice");
        // The check covers the cgroup above kubepods and the cgroups of the QoS classes below
        // kubepods.
        for level in [
            "kubelet.slice",
            "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice",
        ] {
            let file = format!("sys/fs/cgroup/{level}/cgroup.subtree_control");
            node.write(&file, "pids\n");
            expect(&node.troubles(), "memory-controller", Mark::Failed, &file, "+memory");
            node.write(&file, "memory\n");
        }
    }

    #[test]
    fn missing_kernel_files_fail_or_warn() {
        for (file, mark) in [
            ("memory.high", Mark::Failed),
            ("memory.reclaim", Mark::Warning),
            ("memory.oom.group", Mark::Warning),
        ] {
            let node = Node::good();
            node.remove(&format!("{CGROUPS}/kubepods.slice/{file}"));
            let found = format!("kubepods.slice has no {file}");
            expect(&node.troubles(), "memory-files", mark, &found, "kernel");
        }
        let node = Node::good();
        node.remove(&format!("{CGROUPS}/kubepods.slice/memory.reclaim"));
        node.write("proc/sys/kernel/osrelease", "5.15.0");
        expect(&node.troubles(), "kernel", Mark::Warning, "memory.reclaim", "5.19");
    }

    #[test]
    fn missing_recursive_protection_and_pressure_warn() {
        let node = Node::good();
        node.write("proc/self/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n");
        expect(
            &node.troubles(),
            "recursive-protection",
            Mark::Warning,
            "systemReserved",
            "remount,nsdelegate,memory_recursiveprot",
        );
        let node = Node::good();
        node.remove(&format!("{CGROUPS}/kubepods.slice/memory.pressure"));
        expect(&node.troubles(), "pressure", Mark::Warning, "throttleDeadline", "psi=1");
    }
}

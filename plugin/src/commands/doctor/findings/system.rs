//! Findings about D-Bus, swap and inotify.

use plimsoll_core::units::excerpt;

use crate::commands::doctor::facts::NodeFacts;
use crate::commands::doctor::facts::system::BUS;
use crate::commands::doctor::finding::{Finding, MOST_NAMES};
use crate::host::files::Text;
use crate::host::socket::Socket;

/// Below this limit of inotify instances, programs on the node may soon get no instance.
const FEW_INSTANCES: u64 = 32;

/// Below this limit of inotify watches, programs on the node may soon get no watch.
const FEW_WATCHES: u64 = 4096;

/// Name of the check for the inotify limits.
const INOTIFY: &str = "inotify";

impl NodeFacts {
    pub(super) fn d_bus(&self) -> Finding {
        const CHECK: &str = "d-bus";
        match &self.system.has_systemd {
            // A pod may mount the D-Bus socket but not /run/systemd/system, so a listening D-Bus
            // socket also shows that systemd is the init process.
            Ok(is_init) if *is_init || matches!(self.system.bus, Socket::Listens) => {}
            Ok(_) => {
                let found = "systemd is not the init process, so the plugin needs no D-Bus";
                return Finding::ok(CHECK, found);
            }
            Err(error) => {
                let found =
                    format!("cannot tell whether systemd is the init process: /run: {}", error.why);
                let advice = "set --host to the root of the node's file system, including /run";
                return Finding::unknown(CHECK, found, advice);
            }
        }
        let why = match &self.system.bus {
            Socket::Listens => return Finding::ok(CHECK, format!("/{BUS} accepts connections")),
            Socket::Absent => format!("/{BUS} does not exist"),
            Socket::Denied => {
                let found = format!("/{BUS}: permission denied");
                return Finding::unknown(CHECK, found, self.how_to_read());
            }
            Socket::Dead(why) => format!("/{BUS}: {why}"),
        };
        let found = format!(
            "{why}; a daemon-reload of systemd resets values of slices until the plugin repairs \
             the values"
        );
        Finding::warning(CHECK, found, "install dbus and run 'systemctl start dbus.socket'")
    }

    pub(super) fn swap(&self) -> Finding {
        const CHECK: &str = "swap";
        let swaps = match &self.system.swaps {
            Ok(Some(swaps)) => swaps,
            Ok(None) => {
                let advice = "check SwapTotal in /proc/meminfo: 0 means that swap is off";
                return Finding::unknown(CHECK, "/proc/swaps does not exist", advice);
            }
            Err(error) => {
                let found = format!("/proc/swaps: {}", error.why);
                return Finding::unknown(CHECK, found, self.how_to_read());
            }
        };
        let names: Vec<_> = swaps
            .lines()
            .skip(1)
            .filter_map(|line| line.split_ascii_whitespace().next())
            .take(MOST_NAMES)
            .map(excerpt)
            .collect();
        if names.is_empty() {
            return Finding::ok(CHECK, "swap is off");
        }
        let found = format!(
            "swap is on ({}): containers use swap only with the kubelet's swapBehavior \
             LimitedSwap, and keep their share over updates; the kernel then swaps out memory of \
             throttled containers first",
            names.join(", ")
        );
        Finding::ok(CHECK, found)
    }

    pub(super) fn inotify(&self) -> Finding {
        let limits = [
            ("max_user_instances", &self.system.instances, FEW_INSTANCES),
            ("max_user_watches", &self.system.watches, FEW_WATCHES),
        ];
        let mut findings = Vec::new();
        let mut fine = Vec::new();
        for (name, text, few) in limits {
            match inotify_limit(name, text, few) {
                Ok(limit) => fine.push(format!("{name} {limit}")),
                Err(finding) => findings.push(finding),
            }
        }
        Finding::all(INOTIFY, fine.join(", "), findings)
    }
}

/// Returns an inotify limit if it is at least `few`. Otherwise returns the finding about the limit.
fn inotify_limit(name: &str, text: &Text, few: u64) -> Result<u64, Finding> {
    let path = format!("/proc/sys/fs/inotify/{name}");
    let unknown = |found: String| {
        let advice = format!("check that 'sysctl fs.inotify.{name}' shows {} or more", few * 4);
        Finding::unknown(INOTIFY, found, advice)
    };
    let text = match text {
        Ok(Some(text)) => text,
        Ok(None) => return Err(unknown(format!("{path} does not exist"))),
        Err(error) => return Err(unknown(format!("{path}: {}", error.why))),
    };
    let found = match text.trim().parse::<u64>() {
        Ok(limit) if limit >= few => return Ok(limit),
        Ok(limit) => limit.to_string(),
        Err(_) => format!("'{}'", excerpt(text.trim())),
    };
    let found = format!("{path}: expected {few} or more, found {found}");
    let advice = format!("run 'sysctl fs.inotify.{name}={}'", few * 4);
    Err(Finding::warning(INOTIFY, found, advice))
}

#[cfg(test)]
mod tests {
    use crate::commands::doctor::facts::system::BUS;
    use crate::commands::doctor::finding::Mark;
    use crate::commands::doctor::fixture::*;
    use crate::state::settings::RESTORE_MARKER;

    #[test]
    fn a_listening_bus_needs_no_systemd_directory() {
        let node = Node::good();
        node.remove("run/systemd");
        ok(&node.facts(), "d-bus", &format!("/{BUS} accepts connections"));
    }

    #[test]
    fn d_bus_is_needed_where_systemd_is() {
        let mut node = Node::good();
        node.die(BUS);
        expect(&node.troubles(), "d-bus", Mark::Warning, "no process listens", "dbus");
        node.close(BUS);
        expect(
            &node.troubles(),
            "d-bus",
            Mark::Warning,
            "/run/dbus/system_bus_socket does not exist",
            "dbus",
        );
        node.remove("run/systemd");
        assert_eq!(node.troubles(), []);
    }

    #[test]
    fn swap_passes_but_other_obstacles_warn() {
        let node = Node::good();
        node.write(
            "proc/swaps",
            "Filename Type Size Used Priority\n/dev/sda2 partition 2097148 0 -2\n",
        );
        assert_eq!(node.troubles(), []);
        ok(
            &node.facts(),
            "swap",
            "swap is on (/dev/sda2): containers use swap only with the kubelet's swapBehavior",
        );
        node.write(RESTORE_MARKER, "");
        expect(
            &node.troubles(),
            "restore",
            Mark::Warning,
            "is in effect",
            "plimsoll restore --undo",
        );
        ok(&Node::good().facts(), "mode", "enforce");
        let node = Node::good();
        node.write("etc/nri/conf.d/90-plimsoll.conf", "mode: observe");
        ok(&node.facts(), "mode", "observe: the plugin sets nothing");
        node.write(
            "run/plimsoll/brake",
            r#"{"cause": "kills", "count": 21, "windowSeconds": 600, "at": 7}"#,
        );
        expect(
            &node.troubles(),
            "mode",
            Mark::Warning,
            "21 kills by limits that plimsoll has set",
            "reset-brake",
        );
        node.write("run/plimsoll/brake", "{");
        expect(&node.troubles(), "mode", Mark::Unknown, "/run/plimsoll/brake: ", "reset-brake");
        for name in ["max_user_instances", "max_user_watches"] {
            for (text, found) in [("8\n", "8"), ("many", "'many'")] {
                let node = Node::good();
                node.write(&format!("proc/sys/fs/inotify/{name}"), text);
                expect(
                    &node.troubles(),
                    "inotify",
                    Mark::Warning,
                    &format!("or more, found {found}"),
                    &format!("sysctl fs.inotify.{name}="),
                );
            }
        }
        let mut facts = Node::good().facts();
        facts.is_root = false;
        assert!(
            facts
                .judge()
                .checks
                .iter()
                .any(|finding| finding.check == "root" && finding.mark == Mark::Warning)
        );
    }
}

//! Findings about D-Bus, swap and inotify.

use plimsoll_core::units::excerpt;

use crate::commands::doctor::facts::NodeFacts;
use crate::commands::doctor::facts::system::BUS;
use crate::commands::doctor::finding::{Finding, MOST_NAMES};
use crate::host::socket::Socket;

/// Number of inotify instances below which programs on the node may soon fail to get one.
const FEW_INSTANCES: u64 = 32;

/// Number of inotify watches below which programs on the node may soon fail to get one.
const FEW_WATCHES: u64 = 4096;

impl NodeFacts {
    pub(super) fn d_bus(&self) -> Finding {
        const CHECK: &str = "d-bus";
        match &self.system.has_systemd {
            // A pod may have the D-Bus socket without /run/systemd/system. A socket that listens
            // therefore also shows that systemd is the init.
            Ok(is_init) if *is_init || matches!(self.system.bus, Socket::Listens) => {}
            Ok(_) => return Finding::ok(CHECK, "not needed, as systemd is not the init"),
            Err(error) => {
                let found =
                    format!("cannot find out whether systemd is the init: /run: {}", error.why);
                return Finding::unknown(
                    CHECK,
                    found,
                    "give --host where the node's file system is, with its /run",
                );
            }
        }
        let why = match &self.system.bus {
            Socket::Listens => return Finding::ok(CHECK, format!("/{BUS} is served")),
            Socket::Absent => format!("there is no /{BUS}"),
            Socket::Denied => {
                return Finding::unknown(
                    CHECK,
                    format!("/{BUS}: permission denied"),
                    self.how_to_read(),
                );
            }
            Socket::Dead(why) => format!("/{BUS}: {why}"),
        };
        let found = format!(
            "{why}; values of slices are gone after a daemon-reload, until they are repaired"
        );
        Finding::warning(CHECK, found, "install and start dbus (systemctl start dbus.socket)")
    }

    pub(super) fn swap(&self) -> Finding {
        const CHECK: &str = "swap";
        match &self.system.swaps {
            Ok(Some(swaps)) => {
                let swaps = swaps.lines().skip(1);
                let names: Vec<_> = swaps
                    .filter_map(|line| line.split_ascii_whitespace().next())
                    .take(MOST_NAMES)
                    .map(excerpt)
                    .collect();
                if names.is_empty() {
                    return Finding::ok(CHECK, "off");
                }
                let found = format!(
                    "on ({}); containers have some of it only with the kubelet's swapBehavior LimitedSwap, and keep their part over \
                     updates; what stands at memory.high is swapped out first then",
                    names.join(", ")
                );
                Finding::ok(CHECK, found)
            }
            Ok(None) => {
                let advice = "see SwapTotal in /proc/meminfo: 0 is off";
                Finding::unknown(CHECK, "/proc/swaps: it is not there", advice)
            }
            Err(error) => {
                Finding::unknown(CHECK, format!("/proc/swaps: {}", error.why), self.how_to_read())
            }
        }
    }

    pub(super) fn inotify(&self) -> Finding {
        const CHECK: &str = "inotify";
        let limits = [
            ("max_user_instances", &self.system.instances, FEW_INSTANCES),
            ("max_user_watches", &self.system.watches, FEW_WATCHES),
        ];
        let mut findings = Vec::new();
        let mut fine = Vec::new();
        for (name, text, few) in limits {
            let unread = |why: &str| {
                let found = format!("/proc/sys/fs/inotify/{name}: {why}");
                Finding::unknown(
                    CHECK,
                    found,
                    format!("see that it is {} or more (sysctl fs.inotify.{name})", few * 4),
                )
            };
            let why = match text {
                Ok(None) => {
                    findings.push(unread("it is not there"));
                    continue;
                }
                Ok(Some(text)) => match text.trim().parse::<u64>() {
                    Ok(limit) if limit >= few => {
                        fine.push(format!("{name} {limit}"));
                        continue;
                    }
                    Ok(limit) => format!("only {limit}"),
                    Err(_) => "expected a number".to_owned(),
                },
                Err(error) => {
                    findings.push(unread(&error.why));
                    continue;
                }
            };
            let found = format!("/proc/sys/fs/inotify/{name}: {why}");
            findings.push(Finding::warning(
                CHECK,
                found,
                format!("sysctl fs.inotify.{name}={}", few * 4),
            ));
        }
        Finding::all(CHECK, fine.join(", "), findings)
    }
}

#[cfg(test)]
mod tests {
    use crate::commands::doctor::facts::system::BUS;
    use crate::commands::doctor::finding::Mark;
    use crate::commands::doctor::fixture::*;
    use crate::state::containers::STAND_ASIDE;

    #[test]
    fn a_bus_without_systemds_directory_is_looked_at() {
        let node = Node::good();
        node.remove("run/systemd");
        ok(&node.facts(), "d-bus", &format!("/{BUS} is served"));
    }

    #[test]
    fn d_bus_is_needed_where_systemd_is() {
        let mut node = Node::good();
        node.die(BUS);
        expect(&node.troubles(), "d-bus", Mark::Warning, "nobody listens there", "dbus");
        node.close(BUS);
        expect(&node.troubles(), "d-bus", Mark::Warning, "there is no /run/dbus", "dbus");
        node.remove("run/systemd");
        assert_eq!(node.troubles(), []);
    }

    #[test]
    fn swap_is_noted_and_what_else_stands_in_the_way_said() {
        let node = Node::good();
        node.write(
            "proc/swaps",
            "Filename Type Size Used Priority\n/dev/sda2 partition 2097148 0 -2\n",
        );
        assert_eq!(node.troubles(), []);
        ok(
            &node.facts(),
            "swap",
            "on (/dev/sda2); containers have some of it only with the kubelet's swapBehavior LimitedSwap",
        );
        node.write(STAND_ASIDE, "");
        expect(&node.troubles(), "restore", Mark::Warning, "was called", "plimsoll restore --undo");
        ok(&Node::good().facts(), "mode", "enforce");
        let node = Node::good();
        node.write("etc/nri/conf.d/90-plimsoll.conf", "mode: observe");
        ok(&node.facts(), "mode", "observe: nothing is set");
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
            for (text, found) in [("8\n", "only 8"), ("many", "expected a number")] {
                let node = Node::good();
                node.write(&format!("proc/sys/fs/inotify/{name}"), text);
                expect(
                    &node.troubles(),
                    "inotify",
                    Mark::Warning,
                    &format!("{name}: {found}"),
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

//! Findings about the installed plugin and other NRI plugins.

use plimsoll_core::units::excerpt;

use crate::commands::doctor::facts::NodeFacts;
use crate::commands::doctor::finding::{Finding, MOST_NAMES};
use crate::host::nri_plugins::{NriPlugin, PLUGINS};
use crate::host::socket::Socket;

/// Parts of the names of plugins that also set memory values of containers.
const RIVALS: [&str; 3] = ["memory-qos", "koordlet", "koordinator"];

impl NodeFacts {
    pub(super) fn installation(&self) -> Finding {
        const CHECK: &str = "installation";
        let mut findings = Vec::new();
        let ours: Vec<_> =
            self.plugin.programs.iter().filter(|program| program.is_ours()).collect();
        for NriPlugin { path, .. } in ours.iter().filter(|program| !program.is_executable) {
            let found =
                format!("{} is not executable, so the runtime passes over it", excerpt(path));
            findings.push(Finding::warning(CHECK, found, format!("chmod 755 {}", excerpt(path))));
        }
        let launched =
            ours.iter().filter(|program| program.is_executable && program.index.is_some());
        let mut ways: Vec<_> = launched.map(|program| excerpt(&program.path)).collect();
        ways.extend(self.plugin.unit.clone());
        if ways.len() > 1 {
            findings.push(Finding::warning(
                CHECK,
                format!("{} are there, and only one of them works at a time", ways.join(" and ")),
                "remove all but one",
            ));
        }
        let process = self.plugin.process.as_ref().map(Option::as_deref);
        match (ways.first(), process) {
            (None, _) if !self.plugin.unlisted.is_empty() => {
                findings.push(Finding::unknown(CHECK, self.plugin.unlisted.join("; "), self.how_to_read()));
            }
            (None, Some(None) | None) if findings.is_empty() => findings.push(Finding::warning(
                CHECK,
                format!("neither {PLUGINS}/90-plimsoll nor a plimsoll.service is there"),
                "plimsoll install",
            )),
            (Some(way), Some(None)) if self.nri == Socket::Listens => findings.push(Finding::warning(
                CHECK,
                format!("{way} is there, but does not run"),
                match self.plugin.unit {
                    Some(_) => "systemctl enable --now plimsoll; its messages: journalctl -u plimsoll",
                    None => "restart the container runtime, which launches it; its messages: journalctl -t plimsoll",
                },
            )),
            (Some(way), None) => findings.push(Finding::unknown(
                CHECK,
                format!("{way} is there; cannot find out whether it runs, as /proc/locks or the lock beside the NRI socket cannot be read"),
                "see whether it does: pgrep -a plimsoll",
            )),
            _ => {}
        }
        let runs = match process {
            Some(Some(id)) => format!(" and runs as process {}", excerpt(id)),
            _ => String::new(),
        };
        let way = ways.first().map_or("it was started by somebody else", String::as_str);
        Finding::all(
            CHECK,
            if ways.is_empty() { format!("{way}{runs}") } else { format!("{way} is there{runs}") },
            findings,
        )
    }

    pub(super) fn other_plugins(&self) -> Finding {
        const CHECK: &str = "other-plugins";
        let programs: Vec<_> = self
            .plugin
            .programs
            .iter()
            .filter(|program| !program.is_ours() && program.is_executable)
            .collect();
        let mut findings = Vec::new();
        for NriPlugin { path, .. } in
            programs.iter().filter(|program| program.index.is_none()).take(MOST_NAMES)
        {
            findings.push(Finding::warning(
                CHECK,
                format!(
                    "{} has no name such as 10-name, and runtimes do not start NRI beside such a file",
                    excerpt(path)
                ),
                "rename it, or remove it",
            ));
        }
        if !self.plugin.unlisted.is_empty() {
            findings.push(Finding::unknown(
                CHECK,
                self.plugin.unlisted.join("; "),
                self.how_to_read(),
            ));
        }
        let mut known: Vec<_> = programs.iter().map(|program| program.path.as_str()).collect();
        known.extend(self.plugin.others.iter().map(String::as_str));
        let is_rival =
            |name: &&&str| RIVALS.iter().any(|rival| name.to_lowercase().contains(rival));
        let rivals: Vec<_> =
            known.iter().filter(is_rival).take(MOST_NAMES).map(|name| excerpt(name)).collect();
        if !rivals.is_empty() {
            findings.push(Finding::warning(
                CHECK,
                format!(
                    "{}: sets memory values of containers, too, and of two that set the same NRI refuses the container",
                    rivals.join(", ")
                ),
                "let only one of them set memory.min, memory.low and memory.high",
            ));
        }
        let mut shown: Vec<_> = known.iter().take(MOST_NAMES).map(|name| excerpt(name)).collect();
        if known.len() > MOST_NAMES {
            shown.push(format!("{} more", known.len() - MOST_NAMES));
        }
        let otherwise = if shown.is_empty() { "none".to_owned() } else { shown.join(", ") };
        let otherwise = format!(
            "{otherwise} in the runtime's directories; plugins that connect by themselves are not seen"
        );
        Finding::all(CHECK, otherwise, findings)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use crate::commands::doctor::finding::Mark;
    use crate::commands::doctor::fixture::*;

    #[test]
    fn the_plugin_is_there_once_and_runs() {
        let node = Node::good();
        node.write("etc/systemd/system/plimsoll.service", "");
        let found =
            "/opt/nri/plugins/90-plimsoll and /etc/systemd/system/plimsoll.service are there";
        expect(&node.troubles(), "installation", Mark::Warning, found, "remove all but one");
        node.remove(BINARY);
        assert_eq!(node.troubles(), []);
        node.remove("run/nri/plimsoll.lock");
        expect(
            &node.troubles(),
            "installation",
            Mark::Warning,
            "does not run",
            "systemctl enable --now plimsoll",
        );
        node.remove("etc/systemd/system/plimsoll.service");
        expect(&node.troubles(), "installation", Mark::Warning, "neither", "install");

        let node = Node::good();
        node.remove("run/nri/plimsoll.lock");
        expect(
            &node.troubles(),
            "installation",
            Mark::Warning,
            "does not run",
            "restart the container runtime",
        );
        // Without /proc/locks the holder of the lock is unknown.
        node.remove("proc/locks");
        expect(
            &node.troubles(),
            "installation",
            Mark::Unknown,
            "cannot find out whether it runs",
            "pgrep",
        );
        fs::set_permissions(node.path(BINARY), fs::Permissions::from_mode(0o644)).unwrap();
        expect(&node.troubles(), "installation", Mark::Warning, "not executable", "chmod 755");
        let node = Node::good();
        node.remove(BINARY);
        ok(&node.facts(), "installation", "started by somebody else and runs as process 4321");
    }

    #[test]
    fn other_plugins_are_named_and_rivals_warned_of() {
        let plugin = |name: &str| {
            let node = Node::good();
            let path = format!("opt/nri/plugins/{name}");
            node.write(&path, "");
            fs::set_permissions(node.path(&path), fs::Permissions::from_mode(0o755)).unwrap();
            node
        };
        let node = plugin("10-logger");
        node.write("etc/nri/conf.d/20-balloons.conf", "");
        assert_eq!(node.troubles(), []);
        ok(&node.facts(), "other-plugins", "/opt/nri/plugins/10-logger, 20-balloons.conf");
        expect(
            &plugin("40-nri-memory-qos").troubles(),
            "other-plugins",
            Mark::Warning,
            "sets memory values",
            "only one",
        );
        expect(
            &plugin("00-koordlet").troubles(),
            "other-plugins",
            Mark::Warning,
            "sets memory values",
            "only one",
        );
        expect(
            &plugin("logger").troubles(),
            "other-plugins",
            Mark::Warning,
            "no name such as 10-name",
            "rename",
        );
    }
}

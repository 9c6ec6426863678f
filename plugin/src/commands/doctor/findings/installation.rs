//! Findings about the installed plugin and other NRI plugins.

use plimsoll_core::units::excerpt;

use crate::commands::doctor::facts::NodeFacts;
use crate::commands::doctor::finding::{Finding, MOST_NAMES};
use crate::host::nri_plugins::{NriPlugin, PLUGINS};
use crate::host::socket::Socket;
use crate::host::units::{UnitError, how_to_unmask};

/// Name parts by which doctor recognizes other plugins that set memory values of containers.
const RIVALS: [&str; 3] = ["memory-qos", "koordlet", "koordinator"];

/// Name of the check for the installed plugin.
const INSTALLATION: &str = "installation";

impl NodeFacts {
    pub(super) fn installation(&self) -> Finding {
        let mut findings = Vec::new();
        let ours: Vec<_> =
            self.plugin.programs.iter().filter(|program| program.is_ours()).collect();
        for NriPlugin { path, .. } in ours.iter().filter(|program| !program.is_executable) {
            let path = excerpt(path);
            let found = format!("{path} is not executable, so the runtime ignores the file");
            let advice = format!("run 'chmod 755 {path}'");
            findings.push(Finding::warning(INSTALLATION, found, advice));
        }
        let launched =
            ours.iter().filter(|program| program.is_executable && program.index.is_some());
        let mut ways: Vec<_> = launched.map(|program| excerpt(&program.path)).collect();
        ways.extend(self.plugin.unit.as_ref().ok().cloned().flatten());
        if ways.len() > 1 {
            let found = format!("expected one installation, found {}", ways.join(" and "));
            let advice = "remove all but one, because only one plugin can run";
            findings.push(Finding::warning(INSTALLATION, found, advice));
        }
        let way = ways.first().map(String::as_str);
        let process = self.plugin.process.as_ref().map(Option::as_deref);
        findings.extend(self.process(way, process, !findings.is_empty()));
        let runs = match process {
            Some(Some(id)) => format!("runs as process {}", excerpt(id)),
            _ => "does not run".to_owned(),
        };
        let otherwise = match way {
            Some(way) => format!("{way} is installed and {runs}"),
            None => format!("another program started the plugin, which {runs}"),
        };
        Finding::all(INSTALLATION, otherwise, findings)
    }

    /// Returns a finding if the plugin is not installed or does not run. `way` is the installed
    /// program or unit. `process` is the process that runs the plugin.
    fn process(
        &self,
        way: Option<&str>,
        process: Option<Option<&str>>,
        has_finding: bool,
    ) -> Option<Finding> {
        Some(match (way, process) {
            (None, _) if !self.plugin.unlisted.is_empty() => {
                let found = self.plugin.unlisted.join("; ");
                Finding::unknown(INSTALLATION, found, self.how_to_read())
            }
            (None, Some(None) | None) if !has_finding => self.not_installed(),
            (Some(way), Some(None)) if self.nri == Socket::Listens => Finding::warning(
                INSTALLATION,
                format!("{way} is installed, but the plugin does not run"),
                match self.plugin.unit {
                    Ok(Some(_)) => {
                        "run 'systemctl enable --now plimsoll' and read 'journalctl -u plimsoll'"
                    }
                    Ok(None) | Err(_) => {
                        "restart the container runtime, which launches the plugin, and read \
                         'journalctl -t plimsoll'"
                    }
                },
            ),
            (Some(way), None) => Finding::unknown(
                INSTALLATION,
                format!(
                    "{way} is installed; cannot tell whether the plugin runs, because /proc/locks \
                     or the lock beside the NRI socket is unreadable"
                ),
                "check with 'pgrep -a plimsoll'",
            ),
            _ => return None,
        })
    }

    /// Returns the finding for a node without an installation.
    fn not_installed(&self) -> Finding {
        let expected = format!("expected {PLUGINS}/90-plimsoll or plimsoll.service");
        match &self.plugin.unit {
            Ok(_) => Finding::warning(
                INSTALLATION,
                format!("{expected}, found neither"),
                "run 'plimsoll install'",
            ),
            Err(error @ UnitError::Masked { path }) => Finding::warning(
                INSTALLATION,
                format!("{expected}; {error}, so systemd cannot start the plugin"),
                format!("{}, and run 'plimsoll install'", how_to_unmask(path)),
            ),
            Err(error @ UnitError::Unreadable { .. }) => {
                Finding::unknown(INSTALLATION, error.to_string(), self.how_to_read())
            }
        }
    }

    pub(super) fn other_plugins(&self) -> Finding {
        const CHECK: &str = "other-plugins";
        let programs: Vec<_> = self
            .plugin
            .programs
            .iter()
            .filter(|program| !program.is_ours() && program.is_executable)
            .collect();
        let nameless = programs.iter().filter(|program| program.index.is_none()).take(MOST_NAMES);
        let nameless = nameless.map(|program| {
            let path = excerpt(&program.path);
            let found = format!(
                "expected a name such as 10-name, found {path}; the runtime does not start NRI \
                 with such a file"
            );
            Finding::warning(CHECK, found, "rename the file, or remove it")
        });
        let mut findings: Vec<_> = nameless.collect();
        if !self.plugin.unlisted.is_empty() {
            let found = self.plugin.unlisted.join("; ");
            findings.push(Finding::unknown(CHECK, found, self.how_to_read()));
        }
        let mut known: Vec<_> = programs.iter().map(|program| program.path.as_str()).collect();
        known.extend(self.plugin.other_configurations.iter().map(String::as_str));
        let is_rival =
            |name: &&&str| RIVALS.iter().any(|rival| name.to_lowercase().contains(rival));
        let rivals: Vec<_> =
            known.iter().filter(is_rival).take(MOST_NAMES).map(|name| excerpt(name)).collect();
        if !rivals.is_empty() {
            let found = format!(
                "other plugins also set memory values of containers: {}; NRI rejects a container \
                 if two plugins set the same value",
                rivals.join(", ")
            );
            let advice = "let only one plugin set memory.min, memory.low and memory.high";
            findings.push(Finding::warning(CHECK, found, advice));
        }
        let mut shown: Vec<_> = known.iter().take(MOST_NAMES).map(|name| excerpt(name)).collect();
        if known.len() > MOST_NAMES {
            shown.push(format!("{} more", known.len() - MOST_NAMES));
        }
        let otherwise = if shown.is_empty() { "no file".to_owned() } else { shown.join(", ") };
        let otherwise = format!(
            "{otherwise} in the runtime's directories; doctor does not see plugins that connect \
             by themselves"
        );
        Finding::all(CHECK, otherwise, findings)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use crate::commands::doctor::finding::Mark;
    use crate::commands::doctor::fixture::*;

    #[test]
    fn the_plugin_is_there_once_and_runs() {
        let node = Node::good();
        node.write("etc/systemd/system/plimsoll.service", "[Service]\n");
        let found = "found /opt/nri/plugins/90-plimsoll and /etc/systemd/system/plimsoll.service";
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
        // Without /proc/locks, doctor cannot find the process that holds the plugin's lock.
        node.remove("proc/locks");
        expect(
            &node.troubles(),
            "installation",
            Mark::Unknown,
            "cannot tell whether the plugin runs",
            "pgrep",
        );
        fs::set_permissions(node.path(BINARY), fs::Permissions::from_mode(0o644)).unwrap();
        expect(&node.troubles(), "installation", Mark::Warning, "not executable", "chmod 755");
        let node = Node::good();
        node.remove(BINARY);
        ok(
            &node.facts(),
            "installation",
            "another program started the plugin, which runs as process 4321",
        );
    }

    #[test]
    fn a_masked_unit_is_no_installation() {
        for (path, advice) in [
            ("etc/systemd/system/plimsoll.service", "systemctl unmask plimsoll"),
            ("run/systemd/system/plimsoll.service", "systemctl unmask --runtime plimsoll"),
        ] {
            let node = Node::good();
            // The masked unit hides the package's unit in /usr/lib.
            node.write("usr/lib/systemd/system/plimsoll.service", "[Service]\n");
            fs::create_dir_all(node.path(path).parent().unwrap()).unwrap();
            symlink("/dev/null", node.path(path)).unwrap();
            assert_eq!(node.troubles(), [], "the runtime launches the plugin");
            node.remove(BINARY);
            node.remove("run/nri/plimsoll.lock");
            let found = format!("/{path} is masked");
            expect(&node.troubles(), "installation", Mark::Warning, &found, advice);
            fs::remove_file(node.path(path)).unwrap();
            expect(
                &node.troubles(),
                "installation",
                Mark::Warning,
                "/usr/lib/systemd/system/plimsoll.service is installed",
                "systemctl enable --now plimsoll",
            );
        }
    }

    #[test]
    fn other_plugins_that_set_memory_cause_warnings() {
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
            "set memory values",
            "only one",
        );
        expect(
            &plugin("00-koordlet").troubles(),
            "other-plugins",
            Mark::Warning,
            "set memory values",
            "only one",
        );
        expect(
            &plugin("logger").troubles(),
            "other-plugins",
            Mark::Warning,
            "expected a name such as 10-name",
            "rename",
        );
    }
}

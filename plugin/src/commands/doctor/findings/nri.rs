//! Findings about NRI: whether NRI is on, the NRI socket and the NRI timeouts.

use std::time::Duration;

use plimsoll_core::units::excerpt;

use crate::agent::service::{BUDGET, DECREASE_BUDGET};
use crate::commands::doctor::facts::NodeFacts;
use crate::commands::doctor::finding::{Finding, MOST_NAMES, shown};
use crate::config::DROP_INS;
use crate::host::runtime::detect::{NriOff, OffCause, Runtime};
use crate::host::runtime::kind::{RuntimeKind, RuntimeProduct};
use crate::host::runtime::nri_settings::NriSwitch;
use crate::host::socket::Socket;

/// Default time that a runtime waits for a plugin's answer to a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Shortest request or registration timeout that causes no warning.
const SHORT_TIMEOUT: Duration = Duration::from_secs(1);

/// Name of the check for the NRI settings.
const NRI: &str = "nri";
/// Name of the check for the NRI timeouts.
const TIMEOUTS: &str = "nri-timeouts";

impl NodeFacts {
    /// Returns the runtimes that listen at their socket, or whose socket denies access to doctor.
    /// If no such runtime exists, returns the runtimes with configuration files.
    pub(super) fn present(&self) -> Vec<&Runtime> {
        let by = |is: fn(&Runtime) -> bool| {
            self.runtimes.iter().filter(|runtime| is(runtime)).collect::<Vec<_>>()
        };
        let here = by(|runtime| matches!(runtime.socket, Socket::Listens | Socket::Denied));
        if here.is_empty() { by(|runtime| runtime.settings.files > 0) } else { here }
    }

    pub(super) fn nri(&self) -> Option<Finding> {
        let present = self.present();
        let mut findings = self.switched_off(&present);
        findings.extend(present.iter().flat_map(|runtime| nri_settings(runtime)));
        let on = present
            .iter()
            .filter(|runtime| runtime.why_off().is_none())
            .map(|runtime| runtime.kind.name);
        let on: Vec<_> = on.collect();
        (!present.is_empty()).then(|| {
            let otherwise = format!("NRI is not switched off in {}", on.join(" and "));
            Finding::all(NRI, otherwise, findings)
        })
    }

    /// Returns one finding for each runtime with NRI off. Returns no finding if another runtime has
    /// NRI on, because the plugin can connect to the other runtime.
    fn switched_off(&self, present: &[&Runtime]) -> Vec<Finding> {
        let off: Vec<_> = present.iter().filter_map(|runtime| runtime.why_off()).collect();
        if off.len() < present.len() {
            return Vec::new();
        }
        let findings = off.iter().map(|off| match self.nri {
            Socket::Listens => {
                let found = format!(
                    "{}, but still served until {} restarts",
                    describe_off(off),
                    off.kind.name
                );
                Finding::warning(NRI, found, how_to_switch_on(off))
            }
            _ => Finding::failed(NRI, describe_off(off), how_to_switch_on(off)),
        });
        findings.collect()
    }

    pub(super) fn nri_socket(&self) -> Option<Finding> {
        const CHECK: &str = "nri-socket";
        let shown = shown(&self.nri_path.display().to_string());
        let why = match &self.nri {
            Socket::Listens => {
                return Some(Finding::ok(CHECK, format!("{shown} accepts connections")));
            }
            Socket::Denied => {
                let found = format!("{shown}: permission denied");
                return Some(Finding::unknown(CHECK, found, self.how_to_read()));
            }
            Socket::Absent => format!("{shown} does not exist"),
            Socket::Dead(why) => format!("{shown}: {why}"),
        };
        let present = self.present();
        let has_launched =
            self.plugin.programs.iter().any(|program| program.is_ours() && program.is_executable);
        if has_launched && present.iter().any(|runtime| runtime.settings.takes_no_connections) {
            return None;
        }
        Some(Finding::failed(CHECK, why, self.how_to_serve(&present)))
    }

    /// Returns the advice for a node on which no runtime serves the NRI socket.
    fn how_to_serve(&self, present: &[&Runtime]) -> String {
        // /var/run is a symbolic link to /run.
        let short = |path: &str| path.strip_prefix("/var").unwrap_or(path).to_owned();
        let given = short(&self.nri_path.to_string_lossy());
        let mut configured =
            present.iter().filter_map(|runtime| runtime.settings.socket_path.as_deref());
        if let Some(path) = configured.find(|path| short(path) != given) {
            return format!("use --socket {}, also for plimsoll run", excerpt(path));
        }
        if self.runtimes.iter().all(|runtime| runtime.socket != Socket::Listens) {
            return "start the container runtime".to_owned();
        }
        "restart the container runtime and read its log about nri: NRI is off by default in \
         containerd before 2.0 and CRI-O before 1.30"
            .to_owned()
    }

    pub(super) fn nri_timeouts(&self) -> Option<Finding> {
        let present = self.present();
        let mut findings = Vec::new();
        let mut fine = Vec::new();
        for Runtime { kind, settings, .. } in &present {
            let RuntimeKind { name, keys, .. } = kind;
            let request = settings.request_timeout.unwrap_or(REQUEST_TIMEOUT);
            let found = request_timeout(name, request);
            if !settings.unread.is_empty() {
                let found = format!("{found}, unless an unread file sets another time");
                let advice = format!("check that {} is 2s or more", keys.request_timeout);
                findings.push(Finding::unknown(TIMEOUTS, found, advice));
                continue;
            }
            if request < SHORT_TIMEOUT {
                let advice = format!("set {} to \"2s\" and restart {name}", keys.request_timeout);
                findings.push(Finding::warning(TIMEOUTS, found, advice));
            } else {
                fine.push(found);
            }
            let registration = settings.registration_timeout;
            if let Some(timeout) = registration.filter(|timeout| *timeout < SHORT_TIMEOUT) {
                let timeout = humantime::format_duration(timeout);
                let found = format!(
                    "expected {name} to wait 1s or more for a plugin to register, found {timeout}"
                );
                let advice =
                    format!("set {} to \"5s\" and restart {name}", keys.registration_timeout);
                findings.push(Finding::warning(TIMEOUTS, found, advice));
            }
        }
        (!present.is_empty()).then(|| Finding::all(TIMEOUTS, fine.join("; "), findings))
    }
}

/// Describes the time that a runtime waits for an answer, and the parts of this time that the
/// plugin uses.
fn request_timeout(name: &str, timeout: Duration) -> String {
    let event = timeout / BUDGET;
    let shown = humantime::format_duration;
    format!(
        "{name} waits {} for an answer, so an event may take {} and a limit decrease {}",
        shown(timeout),
        shown(event),
        shown(event * DECREASE_BUDGET)
    )
}

/// Describes a runtime with NRI off.
fn describe_off(off: &NriOff) -> String {
    match off.cause {
        OffCause::Unsupported(_) => off.to_string(),
        OffCause::Switch(_) | OffCause::Default(_) => format!("NRI is {off}"),
    }
}

/// Returns the advice for a runtime with NRI off.
fn how_to_switch_on(NriOff { kind, plugin, cause }: &NriOff) -> String {
    let name = kind.name;
    match (cause, kind.product) {
        (OffCause::Unsupported(_), _) => format!("upgrade {name} to {} or newer", kind.on_from),
        (OffCause::Switch(NriSwitch::DisabledPlugins { path, plugin }), _) => {
            format!("remove {plugin} from disabled_plugins in {} and restart {name}", excerpt(path))
        }
        (_, RuntimeProduct::Containerd) => format!(
            "run 'plimsoll install', or set disable = false under [plugins.\"{plugin}\"] in \
             /etc/containerd/config.toml and restart containerd; begin a new file with version = 2"
        ),
        (_, RuntimeProduct::Crio) => {
            "run 'plimsoll install', or set enable_nri = true under [crio.nri] in a file in \
             /etc/crio/crio.conf.d and restart crio"
                .to_owned()
        }
    }
}

/// Returns the findings about all NRI settings of a runtime except the on/off setting.
fn nri_settings(Runtime { kind, settings, .. }: &Runtime) -> Vec<Finding> {
    let RuntimeKind { name, keys, .. } = kind;
    let mut findings = Vec::new();
    for problem in settings.unread.iter().take(MOST_NAMES) {
        let advice = format!(
            "check that {name} has NRI on; the findings about NRI ignore what doctor cannot read"
        );
        findings.push(Finding::unknown(NRI, problem, advice));
    }
    for problem in settings.problems.iter().take(MOST_NAMES) {
        let advice = format!(
            "correct the setting if {name} rejects it; the findings about NRI ignore the setting"
        );
        findings.push(Finding::warning(NRI, problem, advice));
    }
    if settings.takes_no_connections {
        let key = keys.no_connections;
        findings.push(Finding::warning(
            NRI,
            format!(
                "expected {key} = false in {name}, found true: the plugin works only if the \
                 runtime launches it, and cannot reconnect"
            ),
            format!("set {key} = false and restart {name}"),
        ));
    }
    let config_path = settings.config_path.as_deref();
    if let Some(path) = config_path.filter(|path| path.trim_end_matches('/') != DROP_INS) {
        let key = keys.config_path;
        findings.push(Finding::warning(
            NRI,
            format!(
                "{name} has {key} = '{}': the plugin reads changes of that configuration only \
                 when it starts",
                excerpt(path)
            ),
            format!("remove {key}, or run the plugin as a service with --config"),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use crate::commands::doctor::finding::Mark;
    use crate::commands::doctor::fixture::*;
    use crate::host::files::LARGEST;
    use crate::host::runtime::nri_settings::NriSettings;
    use crate::host::socket::Socket;
    use crate::host::version::Version;

    #[test]
    fn disabled_nri_is_reported_with_a_remedy() {
        let off = "[plugins.'io.containerd.nri.v1.nri']\ndisable = true\n";
        let mut node = Node::good();
        node.write(CONTAINERD_CONFIG, off);
        expect(
            &node.troubles(),
            "nri",
            Mark::Warning,
            "still served until containerd restarts",
            "disable = false",
        );
        node.close(NRI_SOCKET);
        expect(
            &node.troubles(),
            "nri",
            Mark::Failed,
            "/etc/containerd/config.toml has disable = true",
            "disable = false",
        );
        node.write(CONTAINERD_CONFIG, "disabled_plugins = ['io.containerd.nri.v1.nri']");
        expect(
            &node.troubles(),
            "nri",
            Mark::Failed,
            "disabled_plugins",
            "from disabled_plugins in /etc/containerd/config.toml",
        );

        // If the configuration does not set NRI, the default of the containerd version applies.
        node.write(CONTAINERD_CONFIG, "");
        let mut facts = node.facts();
        for (version, found) in [
            (Version(1, 7, 24), "off in containerd 1.7.24, as by default"),
            (Version(1, 6, 0), "has no NRI"),
        ] {
            facts.runtimes[0].version = Some(version);
            let advice = if version.1 == 6 { "upgrade containerd" } else { "disable = false" };
            let troubles = troubles(&facts);
            let nri: Vec<_> =
                troubles.into_iter().filter(|finding| finding.check != "runtime").collect();
            expect(&nri, "nri", Mark::Failed, found, advice);
        }

        node.close(CONTAINERD_SOCKET);
        node.listen(CRIO_SOCKET);
        node.write("etc/crio/crio.conf", "[crio.nri]\nenable_nri = true\n");
        node.write("etc/crio/crio.conf.d/99.conf", "[crio.nri]\nenable_nri = false\n");
        expect(
            &node.troubles(),
            "nri",
            Mark::Failed,
            "99.conf has enable_nri = false",
            "enable_nri = true",
        );
    }

    #[test]
    fn advice_names_the_section_containerd_expects() {
        let old = Some(Version(1, 7, 24));
        for (version, config, plugin) in [
            (old, "[plugins.nri]\ndisable = true\n", "nri"),
            (old, "[plugins.'io.containerd.nri.v1.nri']\ndisable = false\n", "nri"),
            (old, "version = 2\n", "io.containerd.nri.v1.nri"),
            (
                Some(Version(2, 1, 0)),
                "[plugins.'io.containerd.nri.v1.nri']\ndisable = true\n",
                "io.containerd.nri.v1.nri",
            ),
        ] {
            let mut node = Node::good();
            node.close(NRI_SOCKET);
            node.write(CONTAINERD_CONFIG, config);
            let mut facts = node.facts();
            let host = node.path("");
            facts.runtimes[0].version = version;
            facts.runtimes[0].settings = NriSettings::of_containerd(&host, version);
            let advice = format!("disable = false under [plugins.\"{plugin}\"]");
            expect(&troubles(&facts), "nri", Mark::Failed, "off in containerd", &advice);
        }
    }

    #[test]
    fn the_last_import_wins_despite_a_cycle() {
        let mut node = Node::good();
        node.close(NRI_SOCKET);
        let section = |is: bool| format!("[plugins.'io.containerd.nri.v1.nri']\ndisable = {is}\n");
        node.write(
            CONTAINERD_CONFIG,
            &format!(
                "imports = ['conf.d/*.toml', 'config.toml', '/../etc/containerd/x']\n{}",
                section(false)
            ),
        );
        node.write("etc/containerd/conf.d/a.toml", &section(false));
        node.write("etc/containerd/conf.d/b.toml", &section(true));
        expect(
            &node.troubles(),
            "nri",
            Mark::Failed,
            "/etc/containerd/conf.d/b.toml has disable = true",
            "",
        );
        node.write("etc/containerd/x", &section(false));
        let troubles = node.troubles();
        expect(
            &troubles,
            "nri-socket",
            Mark::Failed,
            "does not exist",
            "restart the container runtime",
        );
    }

    #[test]
    fn a_runtimes_configuration_with_mistakes_is_named() {
        for (text, found) in [
            ("plugins = [", "/etc/containerd/config.toml: "),
            ("imports = ['/*/*/x.toml']", "import /*/*/x.toml: expected at most one part with *"),
            (
                "[plugins.'io.containerd.nri.v1.nri']\ndisable = 'no'",
                "disable: expected true or false",
            ),
            (
                "[plugins.'io.containerd.nri.v1.nri']\nsocket_path = 3",
                "socket_path: expected a path",
            ),
            (
                "[plugins.'io.containerd.nri.v1.nri']\nplugin_request_timeout = 'soon'",
                "plugin_request_timeout: expected a duration",
            ),
        ] {
            let node = Node::good();
            node.write(CONTAINERD_CONFIG, text);
            expect(&node.troubles(), "nri", Mark::Warning, found, "correct the setting");
        }
        let node = Node::good();
        node.write(CONTAINERD_CONFIG, &"#".repeat(LARGEST + 1));
        let mut troubles = node.troubles();
        expect(
            &troubles.split_off(1),
            "nri-timeouts",
            Mark::Unknown,
            "unless an unread file sets another time",
            "plugin_request_timeout",
        );
        expect(&troubles, "nri", Mark::Unknown, "at most 1048576 bytes", "has NRI on");
    }

    #[test]
    fn settings_that_restrict_plugins_cause_warnings() {
        let with = |setting: &str| {
            let node = Node::good();
            node.write(
                CONTAINERD_CONFIG,
                &format!("[plugins.'io.containerd.nri.v1.nri']\n{setting}\n"),
            );
            node
        };
        expect(
            &with("disable_connections = true").troubles(),
            "nri",
            Mark::Warning,
            "only if the runtime launches it",
            "disable_connections = false",
        );
        let mut node = with("disable_connections = true");
        node.close(NRI_SOCKET);
        expect(
            &node.troubles(),
            "nri",
            Mark::Warning,
            "only if the runtime launches it",
            "disable_connections = false",
        );

        let short = with("plugin_request_timeout = '100ms'").troubles();
        expect(
            &short,
            "nri-timeouts",
            Mark::Warning,
            "an event may take 10ms and a limit decrease 30ms",
            "plugin_request_timeout to \"2s\"",
        );
        let short = with("plugin_registration_timeout = '100ms'").troubles();
        expect(
            &short,
            "nri-timeouts",
            Mark::Warning,
            "for a plugin to register, found 100ms",
            "plugin_registration_timeout",
        );

        // Doctor searches this directory and the default directory for the plugin's configuration.
        let node = with("plugin_config_path = '/etc/elsewhere'");
        expect(
            &node.troubles(),
            "nri",
            Mark::Warning,
            "plugin_config_path = '/etc/elsewhere'",
            "remove plugin_config_path",
        );
        node.write("etc/elsewhere/90-plimsoll.conf", "x: 1");
        assert!(
            node.troubles().iter().any(|finding| finding
                .found
                .contains("/etc/elsewhere/90-plimsoll.conf is invalid"))
        );

        let node = with("plugin_path = '/usr/nri'");
        assert_eq!(node.troubles(), []);
        node.write("usr/nri/10-x", "");
        fs::set_permissions(node.path("usr/nri/10-x"), fs::Permissions::from_mode(0o755)).unwrap();
        ok(&node.facts(), "other-plugins", "/usr/nri/10-x");

        let mut node = with("socket_path = '/run/other.sock'");
        node.close(NRI_SOCKET);
        expect(
            &node.troubles(),
            "nri-socket",
            Mark::Failed,
            "does not exist",
            "use --socket /run/other.sock",
        );
    }

    #[test]
    fn a_missing_or_dead_socket_fails() {
        let mut node = Node::good();
        node.die(NRI_SOCKET);
        expect(
            &node.troubles(),
            "nri-socket",
            Mark::Failed,
            "no process listens",
            "restart the container runtime",
        );
        node.close(NRI_SOCKET);
        expect(
            &node.troubles(),
            "nri-socket",
            Mark::Failed,
            "does not exist",
            "restart the container runtime",
        );
        let mut facts = node.facts();
        facts.nri = Socket::Denied;
        facts.is_root = false;
        expect(&troubles(&facts), "nri-socket", Mark::Unknown, "permission denied", "as root");
    }

    #[test]
    fn masked_unit_leaves_nri_unknown() {
        let node = Node::good();
        let unit = node.path("etc/systemd/system/containerd.service");
        fs::create_dir_all(unit.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("/dev/null", unit).unwrap();
        node.write(CONTAINERD_CONFIG, "disabled_plugins = ['io.containerd.nri.v1.nri']");
        let mut facts = node.facts();
        // This version has NRI off by default, but a file that doctor does not know may switch NRI
        // on.
        facts.runtimes[0].version = Some(Version(1, 7, 24));
        let mut troubles = troubles(&facts);
        let timeouts = troubles.split_off(1);
        expect(&timeouts, "nri-timeouts", Mark::Unknown, "", "plugin_request_timeout");
        let found = "/etc/systemd/system/containerd.service is masked";
        expect(&troubles, "nri", Mark::Unknown, found, "has NRI on");
    }
}

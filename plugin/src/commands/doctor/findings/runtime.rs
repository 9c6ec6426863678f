//! Finding about the container runtimes that run on the node.

use crate::commands::doctor::facts::NodeFacts;
use crate::commands::doctor::finding::Finding;
use crate::host::runtime::detect::Runtime;
use crate::host::runtime::kind::{CONTAINERD, CONTAINERD_1_7, RuntimeProduct};
use crate::host::socket::Socket;

impl NodeFacts {
    pub(super) fn runtime(&self) -> Finding {
        const CHECK: &str = "runtime";
        let mut findings = Vec::new();
        let here: Vec<_> =
            self.runtimes.iter().filter(|runtime| runtime.socket == Socket::Listens).collect();
        if here.is_empty() {
            let states = self.runtimes.iter().map(|Runtime { kind, socket, .. }| match socket {
                Socket::Denied => format!("/{}: permission denied", kind.socket),
                Socket::Dead(why) => format!("/{}: {why}", kind.socket),
                _ => format!("no /{}", kind.socket),
            });
            let found = states.collect::<Vec<_>>().join(", ");
            let is_denied = self.runtimes.iter().any(|runtime| runtime.socket == Socket::Denied);
            if is_denied {
                return Finding::unknown(CHECK, found, self.how_to_read());
            }
            let advice = "start containerd or CRI-O; elsewhere its settings are not looked at";
            return Finding::warning(CHECK, found, advice);
        }
        if here.len() > 1 {
            findings.push(Finding::warning(
                CHECK,
                "both containerd and CRI-O listen, and only the one that was started last has the NRI socket",
                "switch NRI off in the one that the kubelet does not use, or stop it",
            ));
        }
        for Runtime { kind, version, settings, .. } in &here {
            if settings.is_without_cri && here.len() == 1 {
                findings.push(Finding::warning(
                    CHECK,
                    format!("{} has its CRI plugin off, so that it serves no kubelet", kind.name),
                    "take cri out of disabled_plugins in /etc/containerd/config.toml, and restart containerd",
                ));
            }
            if version.is_none() && kind.product == RuntimeProduct::Containerd {
                findings.push(Finding::unknown(
                    CHECK,
                    "containerd, of unknown version: its NRI may be of before 0.6.1",
                    "see that 'containerd --version' says 1.7.16 or newer, or call this on the node itself, without --host",
                ));
            }
            if let Some(version) = version
                && kind.product == RuntimeProduct::Containerd
                && (CONTAINERD.oldest..CONTAINERD_1_7).contains(version)
            {
                findings.push(Finding::warning(
                    CHECK,
                    format!("{} {version} has an NRI of before 0.6.1", kind.name),
                    "upgrade to 1.7.16 or newer",
                ));
            }
        }
        let named = here.iter().map(|Runtime { kind, version, .. }| match version {
            Some(version) => format!("{} {version}", kind.name),
            None => format!("{}, of unknown version", kind.name),
        });
        Finding::all(CHECK, named.collect::<Vec<_>>().join(" and "), findings)
    }
}

#[cfg(test)]
mod tests {
    use crate::commands::doctor::finding::Mark;
    use crate::commands::doctor::fixture::*;
    use crate::host::runtime::nri_settings::NriSwitch;
    use crate::host::socket::Socket;
    use crate::host::version::Version;

    #[test]
    fn the_runtime_is_found_by_its_socket() {
        let mut node = Node::good();
        node.die(CONTAINERD_SOCKET);
        expect(
            &node.troubles(),
            "runtime",
            Mark::Warning,
            "containerd.sock: nobody listens there, no /run/crio",
            "start",
        );

        node.close(CONTAINERD_SOCKET);
        node.listen(CRIO_SOCKET);
        node.write("run/crio/version", "\"1.34.1\"");
        assert_eq!(node.troubles(), []);
        ok(&node.facts(), "runtime", "CRI-O 1.34.1");

        node.listen(CONTAINERD_SOCKET);
        expect(
            &node.troubles(),
            "runtime",
            Mark::Warning,
            "both containerd and CRI-O",
            "switch NRI off",
        );

        let node = Node::good();
        let mut facts = node.facts();
        facts.runtimes[0].socket = Socket::Denied;
        facts.is_root = false;
        expect(
            &troubles(&facts),
            "runtime",
            Mark::Unknown,
            "containerd.sock: permission denied",
            "as root",
        );

        let mut facts = node.facts();
        facts.runtimes[0].version = Some(Version(1, 7, 2));
        let path = "/etc/containerd/config.toml".to_owned();
        let switch = NriSwitch::Section { path, key: "disable", value: false };
        facts.runtimes[0].settings.is_off = Some((false, switch));
        expect(&troubles(&facts), "runtime", Mark::Warning, "containerd 1.7.2", "1.7.16");
        node.write(CONTAINERD_CONFIG, "disabled_plugins = ['cri']");
        expect(&node.troubles(), "runtime", Mark::Warning, "CRI plugin off", "disabled_plugins");
    }

    #[test]
    fn containerd_of_unknown_version_is_not_ok() {
        let mut facts = Node::good().facts();
        facts.runtimes[0].version = None;
        expect(
            &troubles(&facts),
            "runtime",
            Mark::Unknown,
            "of unknown version",
            "containerd --version",
        );
    }
}

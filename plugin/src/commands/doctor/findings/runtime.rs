//! Finding about the container runtimes that run on the node.

use crate::commands::doctor::facts::NodeFacts;
use crate::commands::doctor::finding::Finding;
use crate::host::runtime::detect::Runtime;
use crate::host::runtime::kind::{CONTAINERD, CONTAINERD_1_7, RuntimeProduct};
use crate::host::socket::Socket;

/// Name of the check for the container runtimes.
const RUNTIME: &str = "runtime";

impl NodeFacts {
    pub(super) fn runtime(&self) -> Finding {
        let here: Vec<_> =
            self.runtimes.iter().filter(|runtime| runtime.socket == Socket::Listens).collect();
        if here.is_empty() {
            return self.no_runtime();
        }
        let mut findings = Vec::new();
        if here.len() > 1 {
            findings.push(Finding::warning(
                RUNTIME,
                "expected one runtime, found containerd and CRI-O; only the runtime that started \
                 last serves the NRI socket",
                "switch NRI off in the runtime that the kubelet does not use, or stop that runtime",
            ));
        }
        for Runtime { kind, settings, .. } in &here {
            if settings.is_without_cri && here.len() == 1 {
                findings.push(Finding::warning(
                    RUNTIME,
                    format!("{}'s CRI plugin is disabled, so it serves no kubelet", kind.name),
                    "remove cri from disabled_plugins in /etc/containerd/config.toml and restart \
                     containerd",
                ));
            }
        }
        findings.extend(here.iter().filter_map(|runtime| nri_version(runtime)));
        let named = here.iter().map(|Runtime { kind, version, .. }| match version {
            Some(version) => format!("{} {version}", kind.name),
            None => format!("{} of unknown version", kind.name),
        });
        Finding::all(RUNTIME, named.collect::<Vec<_>>().join(" and "), findings)
    }

    /// Returns the finding for a node on which no container runtime listens.
    fn no_runtime(&self) -> Finding {
        let states = self.runtimes.iter().map(|Runtime { kind, socket, .. }| match socket {
            Socket::Denied => format!("/{}: permission denied", kind.socket),
            Socket::Dead(why) => format!("/{}: {why}", kind.socket),
            _ => format!("no /{}", kind.socket),
        });
        let found = states.collect::<Vec<_>>().join(", ");
        if self.runtimes.iter().any(|runtime| runtime.socket == Socket::Denied) {
            return Finding::unknown(RUNTIME, found, self.how_to_read());
        }
        let found = format!("expected a running containerd or CRI-O, found {found}");
        let advice = "start containerd or CRI-O; doctor does not check other runtimes";
        Finding::warning(RUNTIME, found, advice)
    }
}

/// Returns a finding if containerd may be too old to support the NRI features that the plugin
/// needs.
fn nri_version(Runtime { kind, version, .. }: &Runtime) -> Option<Finding> {
    match (kind.product, version) {
        (RuntimeProduct::Containerd, None) => Some(Finding::unknown(
            RUNTIME,
            "containerd of unknown version: before 1.7.16, its NRI is older than 0.6.1",
            "check that 'containerd --version' shows 1.7.16 or newer, or run doctor on the node \
             without --host",
        )),
        (RuntimeProduct::Containerd, Some(version))
            if (CONTAINERD.oldest..CONTAINERD_1_7).contains(version) =>
        {
            Some(Finding::warning(
                RUNTIME,
                format!("expected containerd 1.7.16 or newer, found containerd {version}"),
                "upgrade containerd, whose NRI is older than 0.6.1",
            ))
        }
        (RuntimeProduct::Containerd, Some(_)) | (RuntimeProduct::Crio, _) => None,
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
            "containerd.sock: no process listens, no /run/crio",
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
            "found containerd and CRI-O",
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
        expect(
            &troubles(&facts),
            "runtime",
            Mark::Warning,
            "containerd 1.7.2",
            "upgrade containerd",
        );
        node.write(CONTAINERD_CONFIG, "disabled_plugins = ['cri']");
        expect(
            &node.troubles(),
            "runtime",
            Mark::Warning,
            "CRI plugin is disabled",
            "disabled_plugins",
        );
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

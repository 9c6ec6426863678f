//! Findings about memory for pods: node allocatable and the node guard.

use plimsoll_core::units::Bytes;

use crate::agent::guard::{NAME_THE_SYSTEM, NO_SYSTEM_SLICE};
use crate::commands::doctor::facts::NodeFacts;
use crate::commands::doctor::finding::Finding;
use crate::commands::doctor::findings::kubelet::unread_configurations;
use crate::config::{Config, NodeAllocatable};
use crate::kubelet::node::AllocatableSource;

/// Kubelet flags that override the kubelet's configuration file and change node allocatable.
const ALLOCATABLE_FLAGS: [&str; 4] =
    ["--system-reserved", "--kube-reserved", "--eviction-hard", "--enforce-node-allocatable"];

impl NodeFacts {
    /// Describes kubelet settings that may make node allocatable differ from the kubelet's
    /// configuration file.
    fn allocatable_overrides(&self) -> Vec<String> {
        let kubelets = self.kubelet.kubelets.as_deref().unwrap_or_default();
        let overrides = kubelets.iter().flat_map(|kubelet| {
            let flags =
                ALLOCATABLE_FLAGS.into_iter().filter(|flag| kubelet.values(flag).next().is_some());
            let flags = flags.map(|flag| format!("the kubelet has the flag {flag}"));
            unread_configurations(kubelet).into_iter().chain(flags).collect::<Vec<_>>()
        });
        overrides.collect()
    }

    pub(super) fn node_allocatable(&self) -> Finding {
        const CHECK: &str = "node-allocatable";
        if let Some(Config { node_allocatable: NodeAllocatable::Fixed(bytes), .. }) =
            self.plugin.config()
        {
            return Finding::ok(
                CHECK,
                format!("{bytes} bytes ({}), given by the configuration", bytes.approx()),
            );
        }
        let advice =
            "see that these files are there and right, or set nodeAllocatable in the configuration";
        let problems = self
            .kubelet
            .memory
            .problems
            .iter()
            .map(|problem| Finding::unknown(CHECK, problem.to_string(), advice));
        let mut findings: Vec<_> = problems.collect();
        let source = self.kubelet.memory.source;
        let Some(bytes) = self.kubelet.memory.allocatable else {
            findings.push(Finding::unknown(CHECK, format!("unknown, from {source}"), advice));
            return Finding::all(CHECK, "", findings);
        };
        let found = format!("{bytes} bytes ({}), from {source}", bytes.approx());
        let from_kubectl = "set nodeAllocatable in the configuration to what 'kubectl describe node' has as allocatable memory";
        if matches!(
            source,
            AllocatableSource::KubeletConfig | AllocatableSource::KubeletConfigConfirmed
        ) {
            let overrides = self.allocatable_overrides().into_iter();
            findings.extend(
                overrides
                    .map(|why| Finding::unknown(CHECK, format!("{found}: {why}"), from_kubectl)),
            );
        }
        let no_config = "no configuration of the kubelet at /var/lib/kubelet/config.yaml";
        match source {
            AllocatableSource::KubepodsOverConfig => findings.push(Finding::warning(
                CHECK,
                format!(
                    "{found}: /var/lib/kubelet/config.yaml does not explain memory.max of kubepods, so flags or drop-ins of the \
                     kubelet may change its eviction threshold, too"
                ),
                from_kubectl,
            )),
            AllocatableSource::AllMemory => findings.push(Finding::unknown(
                CHECK,
                format!("{found}: there is no kubepods cgroup, and {no_config}"),
                "start the kubelet, or set nodeAllocatable in the configuration",
            )),
            AllocatableSource::Kubepods if findings.is_empty() => findings.push(Finding::unknown(
                CHECK,
                format!("{found} of 100Mi, the kubelet's default: there is {no_config}"),
                from_kubectl,
            )),
            _ => {}
        }
        Finding::all(CHECK, found, findings)
    }

    pub(super) fn node_guard(&self) -> Option<Finding> {
        const CHECK: &str = "node-guard";
        let config = self.plugin.config()?;
        let kept = config.node_guard?;
        let Some(usable) = self.kubelet.memory.usable else {
            let found = "cannot find out what nodeGuard leaves pods: /proc/meminfo cannot be read; nothing is kept from them";
            return Some(Finding::unknown(CHECK, found, self.how_to_read()));
        };
        let line = usable.saturating_sub(kept);
        let allocatable = match config.node_allocatable {
            NodeAllocatable::Auto => self.kubelet.memory.allocatable,
            NodeAllocatable::Fixed(bytes) => Some(bytes),
        };
        let mut found = format!("leaves pods {} of {}", line.approx(), usable.approx());
        if line == Bytes::ZERO {
            return Some(Finding::warning(CHECK, found, "set nodeGuard to less than all memory"));
        }
        let mut findings = Vec::new();
        match allocatable {
            Some(allocatable) if allocatable > line => findings.push(Finding::warning(
                CHECK,
                format!("{found}, and the scheduler counts on {}", allocatable.approx()),
                "let the kubelet reserve as much (systemReserved, evictionHard), or set nodeGuard to less",
            )),
            Some(_) => {}
            None => {
                found = format!("{found}; what the scheduler counts on is unknown");
                findings.push(Finding::unknown(CHECK, &found, "set nodeAllocatable in the configuration"));
            }
        }
        if config.reserved.is_empty() {
            match &self.cgroups.has_system_slice {
                Ok(true) => {}
                Ok(false) => findings.push(Finding::warning(
                    CHECK,
                    format!("{NO_SYSTEM_SLICE}: nothing protects the memory of the system"),
                    NAME_THE_SYSTEM,
                )),
                Err(error) => {
                    let found = format!("/sys/fs/cgroup/system.slice: {}", error.why);
                    findings.push(Finding::unknown(CHECK, found, self.how_to_read()));
                }
            }
        }
        Some(Finding::all(CHECK, found, findings))
    }
}

#[cfg(test)]
mod tests {
    use crate::commands::doctor::finding::Mark;
    use crate::commands::doctor::fixture::*;

    #[test]
    fn a_limit_that_the_configuration_does_not_explain_is_warned_of() {
        let node = Node::good();
        node.write("sys/fs/cgroup/kubepods.slice/memory.max", "4294967296\n");
        let found = "does not explain memory.max of kubepods";
        expect(&node.troubles(), "node-allocatable", Mark::Warning, found, "kubectl describe node");
    }

    #[test]
    fn what_is_kept_from_pods_is_no_more_than_the_kubelet_keeps() {
        let node = Node::good();
        node.write(DROP_IN, "nodeGuard: 90Mi\n");
        ok(&node.facts(), "node-guard", "leaves pods 7.9Gi of 8Gi");
        node.write(DROP_IN, "nodeGuard: 1Gi\n");
        let found = "leaves pods 7Gi of 8Gi, and the scheduler counts on 7.9Gi";
        expect(&node.troubles(), "node-guard", Mark::Warning, found, "systemReserved");
        node.write(DROP_IN, "nodeGuard: 1Gi\nnodeAllocatable: 6Gi\n");
        ok(&node.facts(), "node-guard", "leaves pods 7Gi of 8Gi");
        node.write(DROP_IN, "nodeGuard: 8Gi\n");
        expect(
            &node.troubles(),
            "node-guard",
            Mark::Warning,
            "leaves pods 0 of 8Gi",
            "less than all memory",
        );
    }

    #[test]
    fn a_guard_without_system_slice_is_said() {
        let node = Node::good();
        node.remove("sys/fs/cgroup/system.slice");
        assert_eq!(node.troubles(), []);
        node.write(DROP_IN, "nodeGuard: 90Mi\n");
        let found = "nodeGuard found no cgroup system.slice";
        expect(&node.troubles(), "node-guard", Mark::Warning, found, "systemReservedCgroup");
        node.write(
            DROP_IN,
            "nodeGuard: 90Mi\nsystemReservedCgroup: /init\nsystemReserved: {memory: 50Mi}\n",
        );
        assert_eq!(node.troubles(), []);
        node.write(DROP_IN, "nodeGuard: 90Mi\n");
        node.remove("proc/meminfo");
        let guard = node
            .troubles()
            .into_iter()
            .filter(|finding| finding.check == "node-guard")
            .collect::<Vec<_>>();
        expect(&guard, "node-guard", Mark::Unknown, "/proc/meminfo", "");
    }
}

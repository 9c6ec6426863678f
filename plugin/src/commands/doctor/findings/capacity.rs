//! Findings about the memory that all pods may use: node allocatable and the node guard.

use plimsoll_core::units::{Bytes, excerpt};

use crate::commands::doctor::facts::NodeFacts;
use crate::commands::doctor::finding::Finding;
use crate::config::{Config, NodeAllocatable};
use crate::kubelet::node::{AllocatableSource, NodeError};
use crate::state::settings::{NAME_THE_SYSTEM, NO_SYSTEM_SLICE};

/// Name of the check that determines node allocatable.
const ALLOCATABLE: &str = "node-allocatable";
/// Name of the check for the node guard.
const GUARD: &str = "node-guard";

/// Advice if doctor cannot determine node allocatable.
const USE_KUBECTL: &str = "set nodeAllocatable in the configuration to the allocatable memory that \
                           'kubectl describe node' shows";

/// Advice if the kubelet may have other settings than its files.
const NAME_THE_FILES: &str = "set kubelet.config or nodeAllocatable in the plugin's configuration; \
                              'kubectl describe node' shows the allocatable memory";

impl NodeFacts {
    pub(super) fn node_allocatable(&self) -> Finding {
        if let Some(Config { node_allocatable: NodeAllocatable::Fixed(bytes), .. }) =
            self.plugin.config()
        {
            let found = format!("{bytes} bytes ({}), from the configuration", bytes.approx());
            return Finding::ok(ALLOCATABLE, found);
        }
        let advice = "correct these files, or set nodeAllocatable in the configuration";
        let problems = self.kubelet.memory.problems.iter();
        let mut findings: Vec<_> = problems
            .map(|problem| Finding::unknown(ALLOCATABLE, describe_problem(problem), advice))
            .collect();
        let Some(bytes) = self.kubelet.memory.allocatable else {
            let found = "node allocatable is unknown, because doctor could read no source";
            findings.push(Finding::unknown(ALLOCATABLE, found, advice));
            return Finding::all(ALLOCATABLE, "", findings);
        };
        let source = describe_source(self.kubelet.memory.source);
        let found = format!("{bytes} bytes ({}), from {source}", bytes.approx());
        let doubts = self.allocatable_doubts(&found, !findings.is_empty());
        findings.extend(doubts);
        Finding::all(ALLOCATABLE, found, findings)
    }

    /// Returns findings with the reasons why node allocatable may differ from `found`.
    fn allocatable_doubts(&self, found: &str, has_problem: bool) -> Vec<Finding> {
        let unknown = |why: &str, advice: &str| {
            Finding::unknown(ALLOCATABLE, format!("{found}{why}"), advice)
        };
        let config = self.kubelet.memory.kubelet.config.as_deref();
        let config = excerpt(config.unwrap_or("the flags of a kubelet"));
        match self.kubelet.memory.source {
            AllocatableSource::KubeletConfig | AllocatableSource::KubeletConfigConfirmed => {
                let doubts = self.kubelet.memory.kubelet.doubts.iter();
                doubts.map(|why| unknown(&format!(", but {why}"), NAME_THE_FILES)).collect()
            }
            AllocatableSource::KubepodsOverConfig => vec![Finding::warning(
                ALLOCATABLE,
                format!(
                    "{found}: the kubelet's settings do not explain memory.max of kubepods, so \
                     the eviction threshold may also differ"
                ),
                USE_KUBECTL,
            )],
            AllocatableSource::AllMemory => vec![unknown(
                &format!(": expected a kubepods cgroup or {config}, found neither"),
                "start the kubelet, or set nodeAllocatable in the configuration",
            )],
            AllocatableSource::Kubepods if !has_problem => vec![unknown(
                &format!(" of 100Mi, the kubelet's default: expected {config}, found none"),
                USE_KUBECTL,
            )],
            AllocatableSource::Kubepods | AllocatableSource::Nowhere => Vec::new(),
        }
    }

    pub(super) fn node_guard(&self) -> Option<Finding> {
        let config = self.plugin.config()?;
        let kept = config.node_guard?;
        let Some(usable) = self.kubelet.memory.usable else {
            let found = "/proc/meminfo is unreadable, so nodeGuard keeps no memory from pods";
            return Some(Finding::unknown(GUARD, found, self.how_to_read()));
        };
        let left = usable.saturating_sub(kept);
        let found = format!("leaves pods {} of {}", left.approx(), usable.approx());
        if left == Bytes::ZERO {
            let advice = "set nodeGuard to less than all memory";
            return Some(Finding::warning(GUARD, found, advice));
        }
        let allocatable = match config.node_allocatable {
            NodeAllocatable::Auto => self.kubelet.memory.allocatable,
            NodeAllocatable::Fixed(bytes) => Some(bytes),
        };
        let mut findings = Vec::new();
        match allocatable {
            Some(allocatable) if allocatable > left => findings.push(Finding::warning(
                GUARD,
                format!("{found}, but the scheduler counts on {}", allocatable.approx()),
                "raise the kubelet's systemReserved or evictionHard, or lower nodeGuard",
            )),
            Some(_) => {}
            None => findings.push(Finding::unknown(
                GUARD,
                format!("{found}; node allocatable is unknown"),
                "set nodeAllocatable in the configuration",
            )),
        }
        if config.reserved.is_empty() {
            findings.extend(self.system_slice());
        }
        Some(Finding::all(GUARD, found, findings))
    }

    /// Returns a finding if the cgroup `system.slice` does not exist.
    fn system_slice(&self) -> Option<Finding> {
        match &self.cgroups.has_system_slice {
            Ok(true) => None,
            Ok(false) => Some(Finding::warning(
                GUARD,
                format!("{NO_SYSTEM_SLICE}, so nothing protects the memory of the system"),
                NAME_THE_SYSTEM,
            )),
            Err(error) => {
                let found = format!("/sys/fs/cgroup/system.slice: {}", error.why);
                Some(Finding::unknown(GUARD, found, self.how_to_read()))
            }
        }
    }
}

/// Describes a problem of a file from which the plugin computes node allocatable.
fn describe_problem(problem: &NodeError) -> String {
    match problem {
        NodeError::Io { path, error } => format!("{path}: {error}"),
        NodeError::Form { path, expected } => format!("{path}: {expected}"),
        NodeError::Root(error) => format!("cannot search for kubepods: {error}"),
        NodeError::Search(error) => format!("cannot search for kubepods: {error}"),
    }
}

/// Returns the source of node allocatable as a phrase for the middle of a sentence.
fn describe_source(source: AllocatableSource) -> &'static str {
    match source {
        AllocatableSource::KubeletConfig => "the kubelet's configuration",
        AllocatableSource::KubeletConfigConfirmed => {
            "the kubelet's configuration and memory.max of kubepods"
        }
        AllocatableSource::KubepodsOverConfig | AllocatableSource::Kubepods => {
            "memory.max of kubepods minus hard eviction"
        }
        AllocatableSource::AllMemory => "all memory minus hugepages",
        AllocatableSource::Nowhere => "no source",
    }
}

#[cfg(test)]
mod tests {
    use crate::commands::doctor::finding::Mark;
    use crate::commands::doctor::fixture::*;

    #[test]
    fn an_unexplained_kubepods_limit_is_a_warning() {
        let node = Node::good();
        node.write("sys/fs/cgroup/kubepods.slice/memory.max", "4294967296\n");
        let found = "do not explain memory.max of kubepods";
        expect(&node.troubles(), "node-allocatable", Mark::Warning, found, "kubectl describe node");
    }

    #[test]
    fn a_guard_above_reserved_memory_warns() {
        let node = Node::good();
        node.write(DROP_IN, "nodeGuard: 90Mi\n");
        ok(&node.facts(), "node-guard", "leaves pods 7.9Gi of 8Gi");
        node.write(DROP_IN, "nodeGuard: 1Gi\n");
        let found = "leaves pods 7Gi of 8Gi, but the scheduler counts on 7.9Gi";
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

//! Findings about the kubelet: its own MemoryQoS feature and its checkpoint files.

use plimsoll_core::units::excerpt;

use crate::commands::doctor::facts::NodeFacts;
use crate::commands::doctor::finding::Finding;
use crate::kubelet::node::{Conflict, KubeletSettings, UnknownMemoryQos};

/// Name of the check for the kubelet's own MemoryQoS feature.
const MEMORY_QOS: &str = "kubelet-memory-qos";

impl NodeFacts {
    pub(super) fn kubelet_memory_qos(&self) -> Finding {
        let memory = &self.kubelet.memory;
        if let Some(unsettled) = &memory.unsettled {
            return unsettled_memory_qos(unsettled, &memory.kubelet);
        }
        let conflicts = memory.conflicts.iter().copied().map(memory_qos_conflict);
        let otherwise = match &memory.kubelet.config {
            Some(path) => format!(
                "the kubelet's MemoryQoS is off, according to {}, drop-ins and flags",
                excerpt(path)
            ),
            None => "the kubelet's MemoryQoS is off, according to its flags".to_owned(),
        };
        Finding::all(MEMORY_QOS, otherwise, conflicts.collect())
    }

    pub(super) fn checkpoints(&self) -> Finding {
        const CHECK: &str = "checkpoints";
        let directory = excerpt(&self.kubelet.memory.kubelet.root_dir);
        if !self.kubelet.checkpoint_problems.is_empty() {
            let found = self.kubelet.checkpoint_problems.join("; ");
            let advice = if self.is_root {
                "read the kubelet's log; the kubelet writes these files again"
            } else {
                self.how_to_read()
            };
            return Finding::unknown(CHECK, found, advice);
        }
        if !self.kubelet.checkpoints.is_empty() {
            let files = self.kubelet.checkpoints.join(" and ");
            return Finding::ok(CHECK, format!("{directory} has {files}"));
        }
        let found = if self.kubelet.has_directory {
            format!(
                "{directory} has no checkpoints, as before Kubernetes 1.33: the plugin knows most \
                 requests only to 0.1 % of the node's memory"
            )
        } else {
            format!("{directory} does not exist, so the plugin estimates requests")
        };
        let advice = "use Kubernetes 1.33 or newer, or annotate pods with \
                      memory-request.plimsoll.nri.io";
        Finding::warning(CHECK, found, advice)
    }
}

/// Returns the finding for a kubelet whose settings do not show whether MemoryQoS is on.
fn unsettled_memory_qos(unsettled: &UnknownMemoryQos, kubelet: &KubeletSettings) -> Finding {
    let (found, advice) = match unsettled {
        UnknownMemoryQos::DefaultOfVersion(path) => (
            format!(
                "{} does not set featureGates.MemoryQoS, which is on by default since Kubernetes \
                 1.37: the kubelet then sets memory.min of kubepods and memory.low of the QoS \
                 classes to 0 when it starts",
                excerpt(path)
            ),
            "set featureGates.MemoryQoS to false in that file and restart the kubelet, or set \
             kubelet.version in the plugin's configuration",
        ),
        UnknownMemoryQos::NoConfig(path) => (
            format!("expected a kubelet configuration at {}, found none", excerpt(path)),
            "set kubelet.config in the plugin's configuration to the file that the kubelet's \
             --config names",
        ),
        UnknownMemoryQos::Unusable(path) => {
            let mut found = format!("cannot use {}", excerpt(path));
            if let Some((_, why)) = kubelet.unusable.first() {
                found = format!("{found}: {why}");
            }
            (found, "correct the file and set featureGates.MemoryQoS to false")
        }
        UnknownMemoryQos::Doubt(reasons) => (
            format!("the kubelet may have other settings than its files: {reasons}"),
            "check that no flag or drop-in of the kubelet sets featureGates.MemoryQoS: 'kubectl \
             get --raw /api/v1/nodes/NODE/proxy/configz' shows the gates in force; or set \
             kubelet.config in the plugin's configuration",
        ),
    };
    Finding::unknown(MEMORY_QOS, found, advice)
}

/// Returns the finding for a kubelet whose configuration shows that MemoryQoS is on.
fn memory_qos_conflict(conflict: Conflict) -> Finding {
    const RESTART: &str = "set featureGates.MemoryQoS to false and restart the kubelet";
    let (found, advice) = match conflict {
        Conflict::MemoryQos => (
            "the kubelet's MemoryQoS is on (featureGates): the kubelet sets memory.min, \
             memory.low and memory.high of the same cgroups",
            RESTART,
        ),
        Conflict::MemoryQosNone => (
            "the kubelet's MemoryQoS is on with memoryReservationPolicy None: the kubelet sets \
             memory.min of kubepods and memory.low of the QoS classes to 0, so the cgroups below \
             lose their protection",
            RESTART,
        ),
        Conflict::MemoryQosSign => (
            "the kubelet's configuration has memoryReservationPolicy or memoryThrottlingFactor, \
             so MemoryQoS is probably on: the kubelet then sets memory.min, memory.low and \
             memory.high of the same cgroups",
            "set featureGates.MemoryQoS to false, remove both fields and restart the kubelet",
        ),
    };
    Finding::warning(MEMORY_QOS, found, advice)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::commands::doctor::finding::Mark;
    use crate::commands::doctor::fixture::*;

    #[test]
    fn memory_qos_warns_and_errors_are_unknown() {
        for (policy, found) in [
            ("None", "lose their protection"),
            ("TieredReservation", "memory.high of the same cgroups"),
        ] {
            let node = Node::good();
            node.write(
                KUBELET_CONFIG,
                &format!("featureGates: {{MemoryQoS: true}}\nmemoryReservationPolicy: {policy}\n"),
            );
            expect(
                &node.troubles(),
                "kubelet-memory-qos",
                Mark::Warning,
                found,
                "set featureGates.MemoryQoS to false",
            );
        }
        let node = Node::good();
        node.write(KUBELET_CONFIG, "memoryThrottlingFactor: 0.9\n");
        expect(
            &node.troubles(),
            "kubelet-memory-qos",
            Mark::Warning,
            "probably on",
            "set featureGates.MemoryQoS to false",
        );
        let node = Node::good();
        node.write(KUBELET_CONFIG, "systemReserved: {memory: lots}");
        let found = "systemReserved.memory: expected a quantity";
        let mut troubles = node.troubles();
        expect(&troubles.split_off(1), "node-allocatable", Mark::Unknown, found, "nodeAllocatable");
        expect(&troubles, "kubelet-memory-qos", Mark::Unknown, found, "correct the file");
        node.write(DROP_IN, "nodeAllocatable: 4Gi\n");
        expect(&node.troubles(), "kubelet-memory-qos", Mark::Unknown, found, "correct the file");
        node.remove(KUBELET_CONFIG);
        fs::create_dir(node.path(KUBELET_CONFIG)).unwrap();
        let troubles = node.troubles();
        expect(
            &troubles,
            "kubelet-memory-qos",
            Mark::Unknown,
            "expected a regular file",
            "correct the file",
        );
        let node = Node::good();
        node.remove("proc/meminfo");
        expect(
            &node.troubles(),
            "node-allocatable",
            Mark::Unknown,
            "/proc/meminfo: expected it to exist",
            "nodeAllocatable",
        );
    }

    #[test]
    fn flags_and_drop_ins_count() {
        let config = "/usr/bin/kubelet\0--config\0/var/lib/kubelet/config.yaml\0";
        let drop_in = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                       featureGates: {MemoryQoS: true}\nsystemReserved: {memory: 1Gi}\n";
        for flags in [
            "--config-dir=/etc/kubernetes/kubelet.conf.d\0",
            "--config-dir\0/etc/kubernetes/kubelet.conf.d\0",
            "--feature-gates=MemoryQoS=true\0--system-reserved=memory=1Gi\0",
        ] {
            let node = Node::good();
            node.write("proc/4242/cmdline", &format!("{config}{flags}"));
            node.write("etc/kubernetes/kubelet.conf.d/20.conf", drop_in);
            let found = "the kubelet's MemoryQoS is on (featureGates)";
            expect(&node.troubles(), "kubelet-memory-qos", Mark::Warning, found, "to false");
            ok(&node.facts(), "node-allocatable", "7411335168 bytes");
        }
        let node = Node::good();
        node.write("proc/4242/cmdline", &format!("{config}--config-dir=/etc/kubernetes/empty\0"));
        assert_eq!(node.troubles(), []);
        node.write("proc/4242/cmdline", &format!("{config}--feature-gates=A=true,MemoryQoS=F\0"));
        assert_eq!(node.troubles(), []);
        node.write("proc/4242/cmdline", &format!("{config}--eviction-hard=memory.available<1Gi\0"));
        assert_eq!(node.troubles(), []);
        ok(&node.facts(), "node-allocatable", "7516192768 bytes");
    }

    /// Checks that both findings about the kubelet's settings are unknown.
    #[track_caller]
    fn expect_both_unknown(node: &Node, found: &str) {
        let troubles = node.troubles();
        let checks: Vec<_> = troubles.iter().map(|finding| finding.check).collect();
        assert_eq!(checks, ["kubelet-memory-qos", "node-allocatable"], "{troubles:#?}");
        for finding in &troubles {
            assert_eq!(finding.mark, Mark::Unknown, "{finding:#?}");
            assert!(finding.found.contains(found), "{finding:#?}");
        }
    }

    #[test]
    fn doubtful_settings_are_unknown() {
        let config = "/usr/bin/kubelet\0--config\0/var/lib/kubelet/config.yaml\0";
        let node = Node::good();
        node.write("proc/4242/cmdline", &format!("{config}--feature-gates=MemoryQoS=no\0"));
        expect_both_unknown(&node, "sets MemoryQoS to no, expected true or false");
        node.write("proc/4242/cmdline", &format!("{config}--config=/etc/kubelet.yaml\0"));
        expect_both_unknown(&node, "/etc/kubelet.yaml");
        node.write("proc/4242/cmdline", &format!("{config}--config-dir=/etc/kubelet.conf.d\0"));
        node.write("etc/kubelet.conf.d/1.conf", "systemReserved: {memory: 1Gi}\n");
        expect_both_unknown(&node, "/etc/kubelet.conf.d/1.conf: expected apiVersion and kind");
        node.write("proc/4242/cmdline", config);
        node.write("proc/4242/status", "Uid:\t1000\t1000\t1000\t1000\n");
        expect_both_unknown(&node, "process 4242 (kubelet) does not run as root");
        node.remove("proc/4242");
        expect_both_unknown(&node, "found no kubelet process");
        node.write(DROP_IN, "kubelet: {config: /var/lib/kubelet/config.yaml}\n");
        assert_eq!(node.troubles(), []);
    }

    #[test]
    fn a_kubelet_configured_elsewhere_is_found() {
        let node = Node::good();
        node.remove(KUBELET_CONFIG);
        expect_both_unknown(&node, "/var/lib/kubelet/config.yaml, found none");
        let json = r#"{"kind": "KubeletConfiguration", "featureGates": {"MemoryQoS": false},
                       "systemReserved": {"memory": "1Gi"}}"#;
        node.write("etc/kubernetes/kubelet/config.json", json);
        let line = "/usr/bin/kubelet\0--config=/etc/kubernetes/kubelet/config.json\0";
        node.write("proc/4242/cmdline", line);
        assert_eq!(node.troubles(), []);
        ok(&node.facts(), "node-allocatable", "7411335168 bytes");
        // Without a visible process, the plugin knows this path, but not the flags.
        node.remove("proc/4242");
        expect_both_unknown(&node, "found no kubelet process");
    }

    #[test]
    fn an_unset_memory_qos_gate_is_unknown() {
        let node = Node::good();
        node.write(KUBELET_CONFIG, "kind: KubeletConfiguration\n");
        let found =
            "does not set featureGates.MemoryQoS, which is on by default since Kubernetes 1.37";
        expect(
            &node.troubles(),
            "kubelet-memory-qos",
            Mark::Unknown,
            found,
            "set featureGates.MemoryQoS to false",
        );
        let text = node.facts().judge().to_string();
        let verdict = "Plimsoll can work on this node, but some checks are unknown: 0 failed, 0 \
                       warnings, 1 unknown.";
        assert!(text.ends_with(&format!("{verdict}\n")), "{text}");
    }

    #[test]
    fn unreadable_or_missing_checkpoints_are_reported() {
        let node = Node::good();
        node.write("var/lib/kubelet/actuated_pods_state", "{");
        expect(
            &node.troubles(),
            "checkpoints",
            Mark::Unknown,
            "kubelet checkpoint /var/lib/kubelet/actuated_pods_state: ",
            "",
        );
        node.remove("var/lib/kubelet/actuated_pods_state");
        let found = "before Kubernetes 1.33";
        expect(&node.troubles(), "checkpoints", Mark::Warning, found, "annotate");
        node.remove("var/lib/kubelet");
        node.write(DROP_IN, "nodeAllocatable: 4Gi\n");
        let troubles = node.troubles();
        expect(
            &troubles[1..],
            "checkpoints",
            Mark::Warning,
            "/var/lib/kubelet does not exist",
            "1.33",
        );
    }
}

//! Findings about the kubelet: its own MemoryQoS feature and its checkpoint files.

use std::path::Path;

use plimsoll_core::units::excerpt;

use crate::commands::doctor::facts::NodeFacts;
use crate::commands::doctor::facts::kubelet::KUBELET;
use crate::commands::doctor::finding::{Finding, MOST_NAMES};
use crate::host::kubelet_process::{GateFlag, KubeletProcess};
use crate::kubelet::node::{Conflict, KubeletReservations, UnknownMemoryQos};

/// Name of the check for the kubelet's own MemoryQoS feature.
const MEMORY_QOS: &str = "kubelet-memory-qos";

impl NodeFacts {
    pub(super) fn kubelet_memory_qos(&self) -> Finding {
        if let Some(unsettled) = &self.kubelet.memory.unsettled {
            return self.unsettled_memory_qos(unsettled);
        }
        let conflicts = self.kubelet.memory.conflicts.iter().copied().map(memory_qos_conflict);
        let overrides = self.memory_qos_overrides();
        let advice = "check that the flags and drop-ins of the kubelet set featureGates.MemoryQoS \
                      to false; 'kubectl get --raw /api/v1/nodes/NODE/proxy/configz' shows the \
                      gates in force";
        let unknown =
            overrides.into_iter().map(|found| Finding::unknown(MEMORY_QOS, found, advice));
        let otherwise = "the kubelet's MemoryQoS is off in /var/lib/kubelet/config.yaml, and no \
                         flag or drop-in overrides the file";
        Finding::all(MEMORY_QOS, otherwise, conflicts.chain(unknown).collect())
    }

    /// Returns the finding for a kubelet whose configuration does not show whether MemoryQoS is on.
    fn unsettled_memory_qos(&self, unsettled: &UnknownMemoryQos) -> Finding {
        let (found, advice) = match unsettled {
            UnknownMemoryQos::DefaultOfVersion => (
                format!(
                    "/{KUBELET}/config.yaml does not set featureGates.MemoryQoS, which is on by \
                     default since Kubernetes 1.37: the kubelet then sets memory.min of kubepods \
                     and memory.low of the QoS classes to 0 when it starts"
                ),
                "set featureGates.MemoryQoS to false in that file and restart the kubelet",
            ),
            UnknownMemoryQos::NoConfig(elsewhere) => {
                let elsewhere = match &elsewhere[..] {
                    [] => String::new(),
                    paths => format!(
                        "; found /{}, which flags and drop-ins may override",
                        paths.join(" and /")
                    ),
                };
                (
                    format!(
                        "expected a kubelet configuration at /{KUBELET}/config.yaml{elsewhere}"
                    ),
                    "check that featureGates.MemoryQoS is false in the file that the kubelet's \
                     --config names, and in the kubelet's flags",
                )
            }
            UnknownMemoryQos::Unreadable => (
                format!("cannot read /{KUBELET}/config.yaml"),
                "correct the file and set featureGates.MemoryQoS to false",
            ),
        };
        let problem = match &self.kubelet.config {
            Ok(text) => text.as_deref().and_then(|text| KubeletReservations::parse(text).err()),
            Err(error) => Some(error.why.clone()),
        };
        let found = match problem {
            Some(problem) => format!("{found}: {problem}"),
            None => found,
        };
        Finding::unknown(MEMORY_QOS, found, advice)
    }

    /// Describes the flags and unread files that may switch MemoryQoS on.
    fn memory_qos_overrides(&self) -> Vec<String> {
        let kubelets = match &self.kubelet.kubelets {
            Err(error) => {
                return vec![format!("cannot search /proc for the kubelet: {}", error.why)];
            }
            Ok(kubelets) => kubelets,
        };
        if kubelets.is_empty() {
            return vec![format!(
                "found no kubelet process: its flags and drop-ins may override \
                 /{KUBELET}/config.yaml"
            )];
        }
        let overrides = kubelets.iter().flat_map(|kubelet| {
            let flag = match kubelet.memory_qos() {
                GateFlag::Off => return Vec::new(),
                GateFlag::Unset => None,
                GateFlag::On => {
                    Some("the kubelet's flag --feature-gates sets MemoryQoS".to_owned())
                }
                GateFlag::Invalid(value) => Some(format!(
                    "the kubelet's flag --feature-gates sets MemoryQoS to {}, expected true or \
                     false",
                    excerpt(&value)
                )),
            };
            flag.into_iter().chain(unread_configurations(kubelet)).collect()
        });
        overrides.collect()
    }

    pub(super) fn checkpoints(&self) -> Finding {
        const CHECK: &str = "checkpoints";
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
            return Finding::ok(CHECK, format!("/{KUBELET} has {files}"));
        }
        let found = if self.kubelet.has_kubelet {
            format!(
                "/{KUBELET} has no checkpoints, as before Kubernetes 1.33: the plugin knows most \
                 requests only to 0.1 % of the node's memory"
            )
        } else {
            format!("/{KUBELET} does not exist, so the plugin estimates requests")
        };
        let advice = "use Kubernetes 1.33 or newer, or annotate pods with \
                      memory-request.plimsoll.nri.io";
        Finding::warning(CHECK, found, advice)
    }
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

/// Describes the parts of the kubelet's configuration that doctor does not read.
pub(super) fn unread_configurations(kubelet: &KubeletProcess) -> Vec<String> {
    let mut unread = Vec::new();
    match kubelet.values("--config").last() {
        Some(path) if Path::new(path) == Path::new("/").join(KUBELET).join("config.yaml") => {}
        Some(path) => unread.push(format!("the kubelet runs with --config {}", excerpt(path))),
        None => unread.push("the kubelet runs without --config".to_owned()),
    }
    let directory = excerpt(kubelet.values("--config-dir").last().unwrap_or_default());
    match &kubelet.drop_ins {
        Ok(names) if names.is_empty() => {}
        Ok(names) => {
            let names: Vec<_> = names.iter().take(MOST_NAMES).map(|name| excerpt(name)).collect();
            let names = names.join(", ");
            unread
                .push(format!("doctor does not read the kubelet's drop-ins {directory}: {names}"));
        }
        Err(error) => {
            unread.push(format!("cannot list the kubelet's drop-ins in {directory}: {}", error.why))
        }
    }
    unread
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::commands::doctor::facts::kubelet::KUBELET;
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
    fn overriding_flags_and_drop_ins_are_unknown() {
        let config = "/usr/bin/kubelet\0--config\0/var/lib/kubelet/config.yaml\0";
        for (flags, found) in [
            ("--config-dir=/etc/kubernetes/kubelet.conf.d\0", "kubelet.conf.d: 20.conf"),
            ("--config-dir\0/etc/kubernetes/kubelet.conf.d\0", "kubelet.conf.d: 20.conf"),
            ("--feature-gates=MemoryQoS=true\0", "flag --feature-gates sets MemoryQoS"),
            ("--feature-gates=MemoryQoS=no\0", "sets MemoryQoS to no, expected true or false"),
            ("--config=/etc/kubelet.yaml\0", "--config /etc/kubelet.yaml"),
        ] {
            let node = Node::good();
            node.write("proc/4242/cmdline", &format!("{config}{flags}"));
            node.write(
                "etc/kubernetes/kubelet.conf.d/20.conf",
                "featureGates: {MemoryQoS: true}\n",
            );
            let troubles = node.troubles();
            expect(&troubles[..1], "kubelet-memory-qos", Mark::Unknown, found, "configz");
            let allocatable =
                troubles.iter().filter(|finding| finding.check == "node-allocatable").count();
            assert_eq!(allocatable, usize::from(!flags.contains("gates")), "{troubles:#?}");
        }
        let node = Node::good();
        node.write("proc/4242/cmdline", &format!("{config}--config-dir=/etc/kubernetes/empty\0"));
        assert_eq!(node.troubles(), []);
        node.write("proc/4242/cmdline", &format!("{config}--feature-gates=A=true,MemoryQoS=F\0"));
        assert_eq!(node.troubles(), []);
        node.write("proc/4242/cmdline", &format!("{config}--eviction-hard=memory.available<1Gi\0"));
        expect(
            &node.troubles(),
            "node-allocatable",
            Mark::Unknown,
            "the flag --eviction-hard",
            "kubectl describe node",
        );
        node.remove("proc/4242");
        expect(
            &node.troubles(),
            "kubelet-memory-qos",
            Mark::Unknown,
            "found no kubelet process",
            "configz",
        );
    }

    #[test]
    fn a_kubelet_configured_elsewhere_is_not_ok() {
        let node = Node::good();
        node.remove(KUBELET_CONFIG);
        node.write("etc/kubernetes/kubelet/config.json", r#"{"kind": "KubeletConfiguration"}"#);
        let mut troubles = node.troubles();
        let found = "(7.9Gi), from memory.max of kubepods minus hard eviction of 100Mi, the \
                     kubelet's default";
        expect(
            &troubles.split_off(1),
            "node-allocatable",
            Mark::Unknown,
            found,
            "kubectl describe node",
        );
        let found = "expected a kubelet configuration at /var/lib/kubelet/config.yaml; found \
                     /etc/kubernetes/kubelet/config.json";
        expect(&troubles, "kubelet-memory-qos", Mark::Unknown, found, "--config");
        node.remove("sys/fs/cgroup/kubepods.slice/memory.max");
        let troubles = node.troubles();
        expect(
            &troubles[1..],
            "node-allocatable",
            Mark::Unknown,
            "from all memory minus hugepages",
            "start the kubelet",
        );
        assert_eq!(node.facts().judge().unknown, 2);
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
        node.remove(KUBELET);
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

//! Runs and removes many pods with as few steps as possible, and resets a node.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::kubelet::double::{
    BATCH_LIMIT, CONTROL, EVICTION_HARD, Kubelet, MESSAGES, STATE, SYSTEM_RESERVED,
};
use crate::kubelet::pod::Pod;
use crate::kubelet::script::{base_name, remove_sandboxes};
use crate::kubelet::spec::{PodSpec, quantity};
use crate::machine::Node;
use crate::probe::cgroup;
use crate::runtime::Driver;

/// The number of pods that start at the same time. A pod waits for systemd part of the time.
const AT_A_TIME: u32 = 3;

impl Kubelet<'_> {
    /// Runs many pods with as few steps as possible.
    ///
    /// A few pods start at the same time. The checkpoints are written once, before the first pod
    /// starts. This function does not wait for the workloads.
    pub fn run_pods(&mut self, specs: Vec<PodSpec>) -> Result<Vec<Pod>> {
        let handler = self.driver;
        let mut script = String::new();
        let mut admitted = Vec::new();
        for spec in specs {
            let (uid, cgroup, commands) = self.admit(&spec);
            script.push_str(&commands);
            let all: Map<String, Value> =
                spec.containers.iter().map(|c| (c.name.clone(), c.resources())).collect();
            self.actuated.insert(uid.clone(), json!({ "ContainerResources": all }));
            let sandbox = self.put_sandbox_message(&mut script, &spec, &uid, &cgroup);
            for container in &spec.containers {
                self.put_container_message(&mut script, &spec, &uid, container);
            }
            admitted.push((spec, uid, cgroup, sandbox));
        }
        self.write_checkpoint(&mut script, "allocated_pods_state", &self.allocated)?;
        self.write_checkpoint(&mut script, "actuated_pods_state", &self.actuated)?;
        for (spec, uid, _, sandbox) in &admitted {
            let messages: String = spec
                .containers
                .iter()
                .map(|container| format!(" {MESSAGES}/{uid}/{}.json", container.name))
                .collect();
            // Start each pod in a process of its own. If one of these processes fails, the script
            // fails. Each process prints its whole line with one write, so lines do not mix.
            let _ = writeln!(
                script,
                "{{ ids=$(cri run {handler} {sandbox}{messages}) && echo {uid} $ids; }} &\n\
                 if [ $((++jobs)) -ge {AT_A_TIME} ]; then wait -n; jobs=$((jobs - 1)); fi"
            );
        }
        script.push_str("while [ $((jobs--)) -gt 0 ]; do wait -n; done\n");
        let output = self.run_batch(script)?;
        let ids: BTreeMap<&str, Vec<&str>> = output
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(uid, ids)| (uid, ids.split(' ').collect()))
            .collect();
        let mut pods = Vec::new();
        for (spec, uid, cgroup, _) in admitted {
            let (sandbox, ids) = ids
                .get(&*uid)
                .and_then(|ids| ids.split_first())
                .context("the script must print the IDs of every pod")?;
            let containers = spec.containers.iter().zip(ids);
            let containers = containers
                .map(|(container, id)| self.container(&uid, &cgroup, &container.name, id))
                .collect();
            pods.push(Pod { spec, uid, sandbox: (*sandbox).to_owned(), cgroup, containers });
        }
        Ok(pods)
    }

    /// Runs the script of [`Kubelet::run_pods`] and returns its standard output.
    fn run_batch(&self, script: String) -> Result<String> {
        // Send the script on standard input, because it is too long for a command line argument.
        let file = format!("{MESSAGES}/batch");
        let run = format!("cat > {file}; jobs=0; . {file}");
        let output = self
            .node
            .try_run_within(BATCH_LIMIT, &run, script.into_bytes())
            .context("running pods")?;
        ensure!(
            output.status.success(),
            "running pods ({}): {}",
            output.status,
            output.stderr.trim_end()
        );
        Ok(output.stdout)
    }

    /// Removes many pods and their cgroups with as few steps as possible.
    pub fn remove_pods(&mut self, pods: &[Pod]) -> Result<()> {
        if pods.is_empty() {
            return Ok(());
        }
        for pod in pods {
            self.allocated.remove(&pod.uid);
            self.actuated.remove(&pod.uid);
        }
        let sandboxes: Vec<&str> = pods.iter().map(|pod| pod.sandbox.as_str()).collect();
        let mut script = remove_sandboxes(&format!("remove {}", sandboxes.join(" ")));
        script.push('\n');
        match self.driver {
            Driver::Systemd => {
                let slices: Vec<&str> = pods.iter().map(|pod| base_name(&pod.cgroup)).collect();
                let _ = writeln!(script, "systemctl stop {}", slices.join(" "));
            }
            Driver::Cgroupfs => {
                let groups: Vec<String> =
                    pods.iter().map(|pod| format!("{}/{}", cgroup::ROOT, pod.cgroup)).collect();
                let _ = writeln!(script, "rmdir {}", groups.join(" "));
            }
        }
        self.write_checkpoint(&mut script, "allocated_pods_state", &self.allocated)?;
        self.write_checkpoint(&mut script, "actuated_pods_state", &self.actuated)?;
        let output =
            self.node.try_run_within(BATCH_LIMIT, &script, Vec::new()).context("removing pods")?;
        ensure!(
            output.status.success(),
            "removing pods ({}): {}",
            output.status,
            output.stderr.trim_end()
        );
        Ok(())
    }

    /// Stops and removes a pod and its cgroup.
    pub fn remove_pod(&mut self, pod: &Pod) -> Result<()> {
        self.remove_pods(std::slice::from_ref(pod))
            .with_context(|| format!("removing pod {}", pod.spec.name))
    }
}

/// Resets a node to the state before the start of the kubelet.
///
/// The node then has the kubelet's configuration, but no pods, checkpoints or cgroups of pods.
pub fn clear(node: &Node) -> Result<()> {
    let root = cgroup::ROOT;
    let configuration = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         cgroupDriver: systemd\nenforceNodeAllocatable: [pods]\n\
         featureGates:\n  MemoryQoS: false\nsystemReserved:\n  memory: {}\n\
         evictionHard:\n  memory.available: {}\n",
        quantity(SYSTEM_RESERVED),
        quantity(EVICTION_HARD)
    );
    let script = format!(
        "{}
         if systemctl --quiet is-active kubepods.slice; then systemctl stop kubepods.slice; fi
         if [ -d {root}/kubepods ]; then
             find {root}/kubepods -depth -type d -exec rmdir '{{}}' +
         fi
         # Properties of a slice outlive the slice here. A new slice of this name would have them.
         left=$(find /run/systemd/system.control /run/systemd/transient -maxdepth 1 \
             -name 'kubepods*' 2>/dev/null || true)
         if [ -n \"$left\" ]; then rm -rf $left; systemctl daemon-reload; fi
         rm -rf {STATE} {MESSAGES} {CONTROL} /var/log/pods
         mkdir -p {STATE}
         printf '%s' '{configuration}' > {STATE}/config.yaml",
        remove_sandboxes("clear")
    );
    let output = node
        .try_run_within(BATCH_LIMIT, &script, Vec::new())
        .context("removing all pods from the node")?;
    ensure!(
        output.status.success(),
        "removing all pods ({}): {}",
        output.status,
        output.stderr.trim_end()
    );
    Ok(())
}

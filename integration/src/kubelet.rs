//! A double of the kubelet. It changes the node in the same ways and in the same order as the
//! kubelet.
//!
//! To run a pod, the double makes the pod's cgroup, writes the checkpoint of the allocated
//! resources and runs the sandbox. For each container it then writes the checkpoint of the actuated
//! resources, creates the container and starts the container.
//!
//! An in-place resize has these steps:
//!
//! 1. Write the checkpoint of the allocated resources.
//! 2. Raise the limit of the pod's cgroup, for a limit increase.
//! 3. Update the container through the runtime.
//! 4. Lower the limit of the pod's cgroup, for a limit decrease.
//! 5. Write the checkpoint of the actuated resources.
//!
//! A test can switch off or replace each part that it must do without.
//!
//! [`Kubelet::update_qos_classes`] writes the values that the kubelet writes every minute by
//! itself.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::cgroup;
use crate::crictl;
use crate::node::Node;
use crate::oci;

/// 1 MiB in bytes.
pub const MIB: u64 = 1 << 20;

/// The directory of the kubelet's state on the node.
pub const STATE: &str = "/var/lib/kubelet";

/// The directory on the node for messages to the runtime.
const MESSAGES: &str = "/run/kubelet-double";
/// The directory on the node with the directories that are shared with the workloads.
const CONTROL: &str = "/run/workload";
/// The number of pods of a batch that start at the same time. Some of them wait for systemd.
const AT_A_TIME: u32 = 3;
/// The time limit for a batch of pods.
const BATCH_LIMIT: Duration = Duration::from_secs(600);
/// The oom_score_adj of containers in guaranteed pods.
const GUARANTEED_OOM_SCORE_ADJ: i64 = -997;

/// The cgroup driver, which determines the program that makes the cgroups of pods and containers.
///
/// The runtime handler that uses the driver has the driver's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Driver {
    /// systemd makes them, on request over D-Bus.
    Systemd,
    /// The kubelet and the runtime make them directly.
    Cgroupfs,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Driver::Systemd => "systemd",
            Driver::Cgroupfs => "cgroupfs",
        })
    }
}

/// The QoS class of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Every container has limits for CPU and memory that equal its requests.
    Guaranteed,
    /// At least one container has a request or a limit, but the pod is not guaranteed.
    Burstable,
    /// No container has a request or a limit.
    BestEffort,
}

impl Qos {
    /// Returns the name of the class as in names of cgroups.
    pub fn name(self) -> &'static str {
        match self {
            Qos::Guaranteed => "guaranteed",
            Qos::Burstable => "burstable",
            Qos::BestEffort => "besteffort",
        }
    }
}

/// A container to run, as the pod's author specifies it.
#[derive(Clone, Debug, Default)]
pub struct ContainerSpec {
    /// The container's name in the pod.
    pub name: String,
    /// Memory request in bytes.
    pub memory_request: Option<u64>,
    /// Memory limit in bytes.
    pub memory_limit: Option<u64>,
    /// CPU request in thousandths of a processor.
    pub cpu_request: Option<u64>,
    /// CPU limit in thousandths of a processor.
    pub cpu_limit: Option<u64>,
    /// Unified cgroup values in the CRI request, as the kubelet's own MemoryQoS sends them.
    pub unified: BTreeMap<String, String>,
    /// The oom_score_adj to use instead of the result of the kubelet's formula.
    pub oom_score_adj: Option<i64>,
}

impl ContainerSpec {
    /// Returns a container without requests and limits.
    pub fn new(name: &str) -> ContainerSpec {
        ContainerSpec { name: name.to_owned(), ..ContainerSpec::default() }
    }

    /// Sets the memory request.
    pub fn request(mut self, bytes: u64) -> Self {
        self.memory_request = Some(bytes);
        self
    }

    /// Sets the memory limit.
    pub fn limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Sets the CPU request and limit to the same value, which a guaranteed pod needs.
    pub fn cpu(mut self, thousandths: u64) -> Self {
        self.cpu_request = Some(thousandths);
        self.cpu_limit = Some(thousandths);
        self
    }

    /// Adds a unified cgroup value to the CRI request.
    pub fn unified(mut self, key: &str, value: impl ToString) -> Self {
        self.unified.insert(key.to_owned(), value.to_string());
        self
    }

    /// Returns the memory request.
    ///
    /// If only the limit is set, the API server and this function set the request to the limit.
    pub fn effective_request(&self) -> Option<u64> {
        self.memory_request.or(self.memory_limit)
    }

    fn effective_cpu_request(&self) -> Option<u64> {
        self.cpu_request.or(self.cpu_limit)
    }

    /// Returns the resources as `ResourceRequirements` in a checkpoint.
    fn resources(&self) -> Value {
        let list = |cpu: Option<u64>, memory: Option<u64>| {
            let mut list = Map::new();
            list.extend(cpu.map(|cpu| ("cpu".to_owned(), json!(format!("{cpu}m")))));
            list.extend(memory.map(|memory| ("memory".to_owned(), json!(quantity(memory)))));
            list
        };
        let mut resources = Map::new();
        for (name, list) in [
            ("limits", list(self.cpu_limit, self.memory_limit)),
            ("requests", list(self.effective_cpu_request(), self.effective_request())),
        ] {
            if !list.is_empty() {
                resources.insert(name.to_owned(), list.into());
            }
        }
        resources.into()
    }
}

/// A pod to run.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// The pod's name in the namespace `default`.
    pub name: String,
    /// The pod's annotations.
    pub annotations: BTreeMap<String, String>,
    /// The memory overhead of the pod's runtime class in bytes, in addition to the containers.
    pub overhead: u64,
    /// The pod's containers.
    pub containers: Vec<ContainerSpec>,
}

impl PodSpec {
    /// Returns a pod without containers.
    pub fn new(name: &str) -> PodSpec {
        PodSpec {
            name: name.to_owned(),
            annotations: BTreeMap::new(),
            overhead: 0,
            containers: Vec::new(),
        }
    }

    /// Adds an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets the memory overhead. It is added to the pod's request, and to the limit if there is
    /// one.
    pub fn overhead(mut self, bytes: u64) -> Self {
        self.overhead = bytes;
        self
    }

    /// Adds a container.
    pub fn container(mut self, container: ContainerSpec) -> Self {
        self.containers.push(container);
        self
    }

    /// Returns the QoS class that the API server computes.
    pub fn qos(&self) -> Qos {
        let unset =
            |c: &ContainerSpec| c.effective_request().or(c.effective_cpu_request()).is_none();
        let equal = |c: &ContainerSpec| {
            c.memory_limit.is_some()
                && c.cpu_limit.is_some()
                && c.effective_request() == c.memory_limit
                && c.effective_cpu_request() == c.cpu_limit
        };
        if self.containers.iter().all(unset) {
            Qos::BestEffort
        } else if self.containers.iter().all(equal) {
            Qos::Guaranteed
        } else {
            Qos::Burstable
        }
    }

    /// Returns the pod's memory limit with the overhead, if every container has a memory limit.
    pub fn memory_limit(&self) -> Option<u64> {
        let limits: Option<u64> =
            self.containers.iter().map(|container| container.memory_limit).sum();
        limits.map(|limits| limits + self.overhead)
    }
}

/// A running pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The pod's specification. A resize changes it.
    pub spec: PodSpec,
    /// The pod's UID.
    pub uid: String,
    /// The runtime's ID of the pod's sandbox.
    pub sandbox: String,
    /// The path of the pod's cgroup below the cgroup root.
    pub cgroup: String,
    /// The containers in the order of the specification.
    pub containers: Vec<Container>,
}

impl Pod {
    /// Returns the container called `name`.
    pub fn container(&self, name: &str) -> Result<&Container> {
        let found = self.containers.iter().find(|container| container.name == name);
        found.with_context(|| format!("pod {} has no container {name}", self.spec.name))
    }

    /// Returns the sum of the specified requests of the running containers, plus the overhead.
    pub fn live_request(&self) -> u64 {
        let runs = |spec: &&ContainerSpec| {
            self.containers.iter().any(|container| container.name == spec.name)
        };
        let requests =
            self.spec.containers.iter().filter(runs).filter_map(ContainerSpec::effective_request);
        requests.sum::<u64>() + self.spec.overhead
    }
}

/// A running container.
#[derive(Clone, Debug)]
pub struct Container {
    /// The container's name in the pod.
    pub name: String,
    /// The runtime's ID of the container.
    pub id: String,
    /// The path of the container's cgroup below the cgroup root.
    pub cgroup: String,
    /// The directory on the node through which the workload receives commands.
    pub control: String,
}

impl Container {
    /// Sends a command to the workload (see `src/bin/workload.rs`) and returns the answer.
    ///
    /// The answer is `ok ...`, `error ...`, or `gone` if the workload ended meanwhile.
    pub fn call(&self, node: &Node, command: &str) -> Result<String> {
        let output = node.try_run(&format!("workload call {} {command}", self.control))?;
        let answer = output.stdout.trim_end().to_owned();
        ensure!(
            !answer.is_empty(),
            "no answer to {command:?} from container {} ({}): {}",
            self.name,
            output.status,
            output.stderr.trim_end()
        );
        Ok(answer)
    }
}

/// The kubelet double of a node.
pub struct Kubelet<'n> {
    node: &'n Node,
    driver: Driver,
    /// Whether checkpoints are written. If a test switches this off later, the old files become
    /// stale.
    pub checkpoints: bool,
    /// Whether the kernel kills all processes of a container together.
    ///
    /// This is the kubelet's default on cgroup v2 (memory.oom.group).
    pub group_kill: bool,
    memory_qos: bool,
    capacity: u64,
    allocated: Map<String, Value>,
    actuated: Map<String, Value>,
    pods_made: u32,
}

/// systemReserved for memory in the kubelet's configuration on the node, in bytes.
pub const SYSTEM_RESERVED: u64 = 100 * MIB;
/// evictionHard for memory.available in the same configuration, in bytes.
pub const EVICTION_HARD: u64 = 50 * MIB;

impl<'n> Kubelet<'n> {
    /// Starts the double and makes the cgroups of the QoS classes.
    ///
    /// The node must not have pods (see [`clear`]).
    pub fn start(node: &'n Node, driver: Driver) -> Result<Kubelet<'n>> {
        let mut script = format!(
            "mkdir -p {STATE} {MESSAGES} {CONTROL}\n\
             sed -i 's/^cgroupDriver: .*/cgroupDriver: {driver}/' {STATE}/config.yaml\n\
             awk '/^MemTotal:/ {{print $2 * 1024}}' /proc/meminfo\n"
        );
        // The node computes the limit, because this process learns the capacity only from the
        // script's output.
        let _ = writeln!(
            script,
            "top=$(awk '/^MemTotal:/ {{print $2 * 1024 - {SYSTEM_RESERVED}}}' /proc/meminfo)"
        );
        match driver {
            Driver::Systemd => {
                script.push_str(&start_slice("kubepods.slice", &[("MemoryMax", "t", "$top")]));
                for class in [Qos::Burstable, Qos::BestEffort] {
                    script.push_str(&start_slice(&format!("kubepods-{}.slice", class.name()), &[]));
                }
            }
            Driver::Cgroupfs => {
                let root = cgroup::ROOT;
                for group in ["", "/kubepods", "/kubepods/burstable", "/kubepods/besteffort"] {
                    script.push_str(&make_group(&format!("{root}{group}")));
                }
                let _ = writeln!(script, "echo $top > {root}/kubepods/memory.max");
            }
        }
        let output = node.run(&script).context("setting up the kubelet's part of the node")?;
        let capacity = output.stdout.lines().next().unwrap_or_default();
        let capacity = capacity.parse().with_context(|| format!("MemTotal is {capacity:?}"))?;
        Ok(Kubelet {
            node,
            driver,
            checkpoints: true,
            group_kill: true,
            memory_qos: false,
            capacity,
            allocated: Map::new(),
            actuated: Map::new(),
            pods_made: 0,
        })
    }

    /// Returns the cgroup driver.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// Returns the node's memory in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Returns node allocatable memory in bytes: capacity minus systemReserved minus evictionHard.
    pub fn allocatable(&self) -> u64 {
        self.capacity - SYSTEM_RESERVED - EVICTION_HARD
    }

    /// Returns the cgroup of all pods.
    pub fn top_cgroup(&self) -> &'static str {
        match self.driver {
            Driver::Systemd => "kubepods.slice",
            Driver::Cgroupfs => "kubepods",
        }
    }

    /// Returns the cgroup of a QoS class. Guaranteed pods are directly in the cgroup of all pods.
    pub fn class_cgroup(&self, class: Qos) -> String {
        let top = self.top_cgroup();
        match (self.driver, class) {
            (_, Qos::Guaranteed) => top.to_owned(),
            (Driver::Systemd, class) => format!("{top}/kubepods-{}.slice", class.name()),
            (Driver::Cgroupfs, class) => format!("{top}/{}", class.name()),
        }
    }

    /// Enables the kubelet's own MemoryQoS with the policy None.
    ///
    /// This changes the kubelet's configuration on the node and the values that the kubelet writes
    /// every minute.
    pub fn enable_memory_qos(&mut self) -> Result<()> {
        self.memory_qos = true;
        let script = format!("sed -i 's/MemoryQoS: false/MemoryQoS: true/' {STATE}/config.yaml");
        self.node.run(&script).context("switching MemoryQoS on")?;
        Ok(())
    }

    /// Writes the cgroup values that the kubelet writes every minute.
    pub fn update_qos_classes(&self) -> Result<()> {
        self.node.run(&self.qos_update()).context("updating the cgroups of the classes")?;
        Ok(())
    }

    /// Returns the script of [`Kubelet::update_qos_classes`].
    ///
    /// The script sets the limit of all pods and the CPU weights of all pods and of the classes.
    /// With MemoryQoS it also sets the protection of all pods and of the burstable class to 0.
    ///
    /// With the systemd driver the script first sets unit properties, as runc's library does.
    /// systemd then also writes all other values that it knows of the unit.
    pub fn qos_update(&self) -> String {
        let root = cgroup::ROOT;
        let top = self.top_cgroup();
        let limit = self.capacity - SYSTEM_RESERVED;
        let mut script = String::new();
        for (group, weight, limit, protection) in [
            (top.to_owned(), 79, Some(limit), Some("Min")),
            (self.class_cgroup(Qos::Burstable), 20, None, Some("Low")),
            (self.class_cgroup(Qos::BestEffort), 1, None, None),
        ] {
            let protection = protection.filter(|_| self.memory_qos);
            if self.driver == Driver::Systemd {
                let _ = write!(
                    script,
                    "systemctl set-property --runtime {} CPUWeight={weight}",
                    base_name(&group)
                );
                if let Some(limit) = limit {
                    let _ = write!(script, " MemoryMax={limit}");
                }
                if let Some(kind) = protection {
                    let _ = write!(script, " Memory{kind}=0");
                }
                script.push('\n');
            }
            let _ = writeln!(script, "echo {weight} > {root}/{group}/cpu.weight");
            if let Some(limit) = limit {
                let _ = writeln!(script, "echo {limit} > {root}/{group}/memory.max");
            }
            if let Some(kind) = protection {
                let _ = writeln!(script, "echo 0 > {root}/{group}/memory.{}", kind.to_lowercase());
            }
        }
        script
    }

    /// Runs a pod and waits until its workloads answer.
    pub fn run_pod(&mut self, spec: PodSpec) -> Result<Pod> {
        let handler = self.driver;
        let (uid, pod_cgroup, mut script) = self.admit(&spec);
        self.write_checkpoint(&mut script, "allocated_pods_state", &self.allocated)?;
        let sandbox = self.put_sandbox_message(&mut script, &spec, &uid, &pod_cgroup);
        let _ = writeln!(script, "pod=$(cri run {handler} {sandbox})\necho $pod");
        for container in &spec.containers {
            self.start_container(&mut script, &spec, &uid, container)?;
        }
        let output =
            self.node.run(&script).with_context(|| format!("running pod {}", spec.name))?;
        let mut ids = output.stdout.lines();
        let sandbox = ids.next().context("cri run printed no id")?.to_owned();
        let containers: Vec<Container> = spec
            .containers
            .iter()
            .zip(ids)
            .map(|(spec, id)| self.container(&uid, &pod_cgroup, &spec.name, id))
            .collect();
        Ok(Pod { spec, uid, sandbox, cgroup: pod_cgroup, containers })
    }

    /// Runs one more container in a pod, as init and ephemeral containers run.
    ///
    /// The pod's class, limit and specification do not change.
    pub fn run_container(&mut self, pod: &mut Pod, spec: &ContainerSpec) -> Result<()> {
        let mut script = format!("pod={}\n", pod.sandbox);
        self.allocated[&pod.uid]["ContainerResources"][&spec.name] = spec.resources();
        self.write_checkpoint(&mut script, "allocated_pods_state", &self.allocated)?;
        self.start_container(&mut script, &pod.spec, &pod.uid, spec)?;
        let output = self.node.run(&script);
        let output = output
            .with_context(|| format!("running container {} in pod {}", spec.name, pod.spec.name))?;
        pod.containers.push(self.container(
            &pod.uid,
            &pod.cgroup,
            &spec.name,
            output.stdout.trim(),
        ));
        Ok(())
    }

    /// Stops and removes one container of a pod. The pod keeps running with the same specification.
    pub fn remove_container(&mut self, pod: &mut Pod, name: &str) -> Result<()> {
        crictl::remove(self.node, &pod.container(name)?.id)
            .with_context(|| format!("removing container {name} of pod {}", pod.spec.name))?;
        pod.containers.retain(|container| container.name != name);
        Ok(())
    }

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
            // Start each pod in a process of its own. The script fails if one of them fails. Each
            // process prints its whole line with one write, so lines do not mix.
            let _ = writeln!(
                script,
                "{{ ids=$(cri run {handler} {sandbox}{messages}) && echo {uid} $ids; }} &\n\
                 if [ $((++jobs)) -ge {AT_A_TIME} ]; then wait -n; jobs=$((jobs - 1)); fi"
            );
        }
        script.push_str("while [ $((jobs--)) -gt 0 ]; do wait -n; done\n");
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
        let ids: BTreeMap<&str, Vec<&str>> = output
            .stdout
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(uid, ids)| (uid, ids.split(' ').collect()))
            .collect();
        let mut pods = Vec::new();
        for (spec, uid, cgroup, _) in admitted {
            let (sandbox, ids) = ids
                .get(&*uid)
                .and_then(|ids| ids.split_first())
                .context("no ids of a pod just run")?;
            let containers = spec.containers.iter().zip(ids);
            let containers = containers
                .map(|(container, id)| self.container(&uid, &cgroup, &container.name, id))
                .collect();
            pods.push(Pod { spec, uid, sandbox: (*sandbox).to_owned(), cgroup, containers });
        }
        Ok(pods)
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

    /// Resizes the memory of one container in place, in the kubelet's order.
    ///
    /// If the runtime's update fails, its error is returned and the later steps do not run. The
    /// kubelet does the same.
    pub fn resize(
        &mut self,
        pod: &mut Pod,
        container: &str,
        request: Option<u64>,
        limit: Option<u64>,
    ) -> Result<()> {
        let id = pod.container(container)?.id.clone();
        let before = pod.spec.memory_limit();
        let mut spec = pod.spec.clone();
        let target = spec
            .containers
            .iter_mut()
            .find(|c| c.name == container)
            .with_context(|| format!("pod {} has no container {container}", pod.spec.name))?;
        target.memory_request = request;
        target.memory_limit = limit;
        let resources = target.resources();
        let after = spec.memory_limit();

        let mut script = String::new();
        self.allocated[&pod.uid]["ContainerResources"][container] = resources.clone();
        self.write_checkpoint(&mut script, "allocated_pods_state", &self.allocated)?;
        let pod_limit = self.pod_limit(&pod.cgroup, after);
        let grows = after.unwrap_or(cgroup::MAX) > before.unwrap_or(cgroup::MAX);
        if grows {
            script.push_str(&pod_limit);
        }
        // In CRI, 0 leaves the limit unchanged. The kubelet cannot remove a limit in place either.
        let _ = writeln!(script, "cri update {id} {}", limit.unwrap_or(0));
        if !grows && after != before {
            script.push_str(&pod_limit);
        }
        self.actuated[&pod.uid]["ContainerResources"][container] = resources;
        self.write_checkpoint(&mut script, "actuated_pods_state", &self.actuated)?;
        self.node
            .run(&script)
            .with_context(|| format!("resizing container {container} of pod {}", pod.spec.name))?;
        pod.spec = spec;
        Ok(())
    }

    /// Returns the path of the sandbox's cgroup below the cgroup root.
    pub fn sandbox_cgroup(&self, pod: &Pod) -> String {
        format!(
            "{}/{}",
            pod.cgroup,
            self.node.runtime().sandbox_cgroup_name(self.driver, &pod.sandbox)
        )
    }

    /// Sets the memory limit of a pod's cgroup independently of the containers' limits.
    ///
    /// `None` removes the limit.
    pub fn limit_pod(&self, pod: &Pod, limit: Option<u64>) -> Result<()> {
        self.node.run(&self.pod_limit(&pod.cgroup, limit)).context("changing a pod's limit")?;
        Ok(())
    }

    /// Changes the memory limit of the cgroup of all pods.
    ///
    /// [`Kubelet::update_qos_classes`] restores the kubelet's limit.
    pub fn limit_pods(&self, limit: u64) -> Result<()> {
        self.node
            .run(&self.pod_limit(self.top_cgroup(), Some(limit)))
            .context("changing the limit of all pods")?;
        Ok(())
    }

    /// Stops and removes a pod and its cgroup.
    pub fn remove_pod(&mut self, pod: &Pod) -> Result<()> {
        self.remove_pods(std::slice::from_ref(pod))
            .with_context(|| format!("removing pod {}", pod.spec.name))
    }

    /// Removes the checkpoint files. They stay absent while [`Kubelet::checkpoints`] is off.
    pub fn remove_checkpoints(&self) -> Result<()> {
        self.node.run(&format!("rm -f {STATE}/*_pods_state")).map(|_| ())
    }

    /// Returns the oom_score_adj by the kubelet's formula.
    pub fn oom_score_adj(&self, qos: Qos, container: &ContainerSpec) -> i64 {
        match qos {
            Qos::Guaranteed => GUARANTEED_OOM_SCORE_ADJ,
            Qos::BestEffort => 1000,
            Qos::Burstable => {
                let request = container.effective_request().unwrap_or(0);
                let share = (1000 * request / self.capacity).try_into().unwrap_or(1000);
                (1000_i64 - share).clamp(1000 + GUARANTEED_OOM_SCORE_ADJ, 999)
            }
        }
    }

    /// Adds a pod to the allocated resources.
    ///
    /// Returns the pod's UID, its cgroup and the script that makes the cgroup.
    fn admit(&mut self, spec: &PodSpec) -> (String, String, String) {
        self.pods_made += 1;
        let uid = uid(&spec.name, self.pods_made);
        let cgroup = self.pod_cgroup(spec.qos(), &uid);
        let all: Map<String, Value> =
            spec.containers.iter().map(|c| (c.name.clone(), c.resources())).collect();
        self.allocated.insert(uid.clone(), json!({ "ContainerResources": all }));
        let script = self.make_pod_cgroup(spec, &cgroup);
        (uid, cgroup, script)
    }

    /// Adds commands to the script that write the sandbox's message to a file on the node.
    ///
    /// Returns the path of the file.
    fn put_sandbox_message(
        &self,
        script: &mut String,
        spec: &PodSpec,
        uid: &str,
        cgroup: &str,
    ) -> String {
        let directory = format!("{MESSAGES}/{uid}");
        let _ = writeln!(script, "mkdir -p {directory}");
        let message = format!("{directory}/pod.json");
        put(script, &message, &sandbox_message(spec, uid, cgroup));
        message
    }

    /// Adds commands to the script that write a container's message to a file on the node.
    ///
    /// The commands also make the directory through which the workload receives commands. Returns
    /// the path of the file.
    fn put_container_message(
        &self,
        script: &mut String,
        pod: &PodSpec,
        uid: &str,
        spec: &ContainerSpec,
    ) -> String {
        let control = format!("{CONTROL}/{uid}/{}", spec.name);
        let _ = writeln!(script, "rm -rf {control}; mkdir -p {control}; mkfifo {control}/started");
        let message = format!("{MESSAGES}/{uid}/{}.json", spec.name);
        put(script, &message, &self.container_message(pod, uid, spec, &control));
        message
    }

    /// Adds commands to the script that start a container in the sandbox `$pod`.
    ///
    /// The commands write the checkpoint of the actuated resources, create the container and start
    /// it. They then wait for the workload and print the container's ID.
    fn start_container(
        &mut self,
        script: &mut String,
        pod: &PodSpec,
        uid: &str,
        spec: &ContainerSpec,
    ) -> Result<()> {
        let message = self.put_container_message(script, pod, uid, spec);
        let entry = self.actuated.entry(uid).or_insert_with(|| json!({ "ContainerResources": {} }));
        entry["ContainerResources"][&spec.name] = spec.resources();
        self.write_checkpoint(script, "actuated_pods_state", &self.actuated)?;
        let _ = writeln!(
            script,
            "id=$(cri start $pod {MESSAGES}/{uid}/pod.json {message})\n\
             workload call {CONTROL}/{uid}/{} ping >/dev/null\necho $id",
            spec.name
        );
        Ok(())
    }

    fn container(&self, uid: &str, pod_cgroup: &str, name: &str, id: &str) -> Container {
        Container {
            name: name.to_owned(),
            cgroup: self.container_cgroup(pod_cgroup, id),
            control: format!("{CONTROL}/{uid}/{name}"),
            id: id.to_owned(),
        }
    }

    fn pod_cgroup(&self, qos: Qos, uid: &str) -> String {
        let class = self.class_cgroup(qos);
        match (self.driver, qos) {
            (Driver::Systemd, Qos::Guaranteed) => {
                format!("{class}/kubepods-pod{}.slice", uid.replace('-', "_"))
            }
            (Driver::Systemd, qos) => {
                format!("{class}/kubepods-{}-pod{}.slice", qos.name(), uid.replace('-', "_"))
            }
            (Driver::Cgroupfs, _) => format!("{class}/pod{uid}"),
        }
    }

    fn container_cgroup(&self, pod_cgroup: &str, id: &str) -> String {
        format!("{pod_cgroup}/{}", self.node.runtime().cgroup_name(self.driver, id))
    }

    fn make_pod_cgroup(&self, spec: &PodSpec, pod_cgroup: &str) -> String {
        let limit = spec.memory_limit();
        match self.driver {
            Driver::Systemd => {
                let limit = limit.map(|limit| limit.to_string());
                let properties: Vec<_> =
                    limit.iter().map(|limit| ("MemoryMax", "t", limit.as_str())).collect();
                start_slice(base_name(pod_cgroup), &properties)
            }
            Driver::Cgroupfs => {
                let mut script = make_group(&format!("{}/{pod_cgroup}", cgroup::ROOT));
                if limit.is_some() {
                    script.push_str(&self.pod_limit(pod_cgroup, limit));
                }
                script
            }
        }
    }

    fn pod_limit(&self, pod_cgroup: &str, limit: Option<u64>) -> String {
        match self.driver {
            Driver::Systemd => {
                let limit = limit.map_or("infinity".to_owned(), |limit| limit.to_string());
                format!(
                    "systemctl set-property --runtime {} MemoryMax={limit}\n",
                    base_name(pod_cgroup)
                )
            }
            Driver::Cgroupfs => {
                let limit = limit.map_or("max".to_owned(), |limit| limit.to_string());
                format!("echo {limit} > {}/{pod_cgroup}/memory.max\n", cgroup::ROOT)
            }
        }
    }

    fn write_checkpoint(
        &self,
        script: &mut String,
        name: &str,
        entries: &Map<String, Value>,
    ) -> Result<()> {
        if self.checkpoints {
            let checkpoint = checkpoint(entries)?;
            put(script, &format!("{STATE}/.{name}"), &checkpoint);
            let _ = writeln!(script, "mv {STATE}/.{name} {STATE}/{name}");
        }
        Ok(())
    }

    fn container_message(
        &self,
        pod: &PodSpec,
        uid: &str,
        container: &ContainerSpec,
        control: &str,
    ) -> Value {
        let name = &container.name;
        let mut unified: Map<String, Value> =
            container.unified.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        if self.group_kill {
            unified.entry("memory.oom.group").or_insert(json!("1"));
        }
        let oom_score_adj =
            container.oom_score_adj.unwrap_or_else(|| self.oom_score_adj(pod.qos(), container));
        let shares = container.effective_cpu_request().map_or(2, |cpu| (cpu * 1024 / 1000).max(2));
        let mut resources = json!({
            "cpu_period": 100_000,
            "cpu_shares": shares,
            "oom_score_adj": oom_score_adj,
            "unified": unified,
        });
        if let Some(cpu) = container.cpu_limit {
            resources["cpu_quota"] = json!(cpu * 100);
        }
        if let Some(limit) = container.memory_limit {
            // A swap limit equal to the memory limit allows no swap, as the kubelet's NoSwap does.
            resources["memory_limit_in_bytes"] = json!(limit);
            resources["memory_swap_limit_in_bytes"] = json!(limit);
        }
        json!({
            "metadata": { "name": name, "attempt": 0 },
            "image": { "image": oci::WORKLOAD },
            "labels": {
                "io.kubernetes.container.name": name,
                "io.kubernetes.pod.name": pod.name,
                "io.kubernetes.pod.namespace": "default",
                "io.kubernetes.pod.uid": uid,
            },
            "annotations": { "io.kubernetes.container.restartCount": "0" },
            "mounts": [{ "container_path": "/control", "host_path": control }],
            "log_path": format!("{name}.log"),
            "linux": { "resources": resources, "security_context": { "namespace_options": namespaces() } },
        })
    }
}

/// Resets a node to its state before the kubelet starts.
///
/// The node then has the kubelet's configuration, but no pods, checkpoints or cgroups of pods.
pub fn clear(node: &Node) -> Result<()> {
    let root = cgroup::ROOT;
    let configuration = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncgroupDriver: systemd\n\
         enforceNodeAllocatable: [pods]\nfeatureGates:\n  MemoryQoS: false\nsystemReserved:\n  memory: {}\nevictionHard:\n  memory.available: {}\n",
        quantity(SYSTEM_RESERVED),
        quantity(EVICTION_HARD)
    );
    let script = format!(
        "{}
         if systemctl --quiet is-active kubepods.slice; then systemctl stop kubepods.slice; fi
         if [ -d {root}/kubepods ]; then find {root}/kubepods -depth -type d -exec rmdir '{{}}' +; fi
         # Properties set on slices outlive them here and would be inherited by the next of the same name.
         left=$(find /run/systemd/system.control /run/systemd/transient -maxdepth 1 -name 'kubepods*' 2>/dev/null || true)
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

/// Returns a script that stops and removes sandboxes, with up to five attempts.
///
/// containerd fails (`ttrpc: closed`) for a container whose process just ended by itself. The
/// kubelet retries later, and so does the script. One request stops all sandboxes, so on a busy
/// machine it takes longer than other requests.
fn remove_sandboxes(request: &str) -> String {
    format!(
        "for attempt in 1 2 3 4 last; do
             if cri {request}; then break; fi
             [ $attempt != last ]
         done"
    )
}

/// Returns the content of a checkpoint file.
///
/// `data` is JSON in a string. The kubelet verifies the checksum of `data`.
pub fn checkpoint(entries: &Map<String, Value>) -> Result<Value> {
    let data =
        serde_json::to_string(&json!({ "entries": entries })).context("writing a checkpoint")?;
    // The checksum is the 32-bit FNV-1a hash of the value as Go prints it with its type.
    let checksum = format!("(string){data}")
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    Ok(json!({ "data": data, "checksum": checksum }))
}

/// Returns a number of bytes as a quantity in canonical form.
///
/// The quantity has the largest binary unit that leaves a whole number.
pub fn quantity(bytes: u64) -> String {
    for (unit, size) in [("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)] {
        if bytes > 0 && bytes.is_multiple_of(size) {
            return format!("{}{unit}", bytes / size);
        }
    }
    bytes.to_string()
}

/// Returns the namespaces of sandbox and containers.
///
/// The network namespace is the node's, so that no CNI plugin is needed.
fn namespaces() -> Value {
    // The numbers of the CRI: 0 is the pod's namespace, 1 the container's own, 2 the node's.
    json!({ "network": 2, "pid": 1, "ipc": 0 })
}

fn sandbox_message(spec: &PodSpec, uid: &str, pod_cgroup: &str) -> Value {
    let mut annotations: Map<String, Value> =
        spec.annotations.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    annotations.insert("kubernetes.io/config.source".to_owned(), json!("api"));
    let overhead = match spec.overhead {
        0 => json!({}),
        bytes => json!({ "memory_limit_in_bytes": bytes }),
    };
    // Sum the existing limits, even if another container has no limit.
    let mut resources = json!({ "cpu_period": 100_000 });
    let sum = |limit: fn(&ContainerSpec) -> Option<u64>| {
        spec.containers.iter().filter_map(limit).sum::<u64>()
    };
    for (name, limit) in [
        ("memory_limit_in_bytes", sum(|container| container.memory_limit)),
        ("cpu_quota", sum(|container| container.cpu_limit) * 100),
    ] {
        if limit > 0 {
            resources[name] = json!(limit);
        }
    }
    json!({
        "metadata": { "name": spec.name, "namespace": "default", "uid": uid, "attempt": 0 },
        "labels": {
            "io.kubernetes.pod.name": spec.name,
            "io.kubernetes.pod.namespace": "default",
            "io.kubernetes.pod.uid": uid,
        },
        "annotations": annotations,
        "log_directory": format!("/var/log/pods/default_{}_{uid}", spec.name),
        "linux": {
            "cgroup_parent": format!("/{pod_cgroup}"),
            "overhead": overhead,
            "resources": resources,
            "security_context": { "namespace_options": namespaces() },
        },
    })
}

/// Returns a script that starts a transient slice with the properties that the kubelet requests.
///
/// `systemctl start` waits for the job that `StartTransientUnit` began.
fn start_slice(name: &str, properties: &[(&str, &str, &str)]) -> String {
    let mut script = format!(
        "busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager \
         StartTransientUnit 'ssa(sv)a(sa(sv))' {name} replace {} DefaultDependencies b false \
         MemoryAccounting b true CPUAccounting b true TasksAccounting b true",
        4 + properties.len()
    );
    for (property, signature, value) in properties {
        let _ = write!(script, " {property} {signature} {value}");
    }
    let _ = writeln!(script, " 0 >/dev/null\nsystemctl start {name}");
    script
}

/// Returns a script that makes a cgroup.
///
/// The script enables the controllers that the kubelet enables for child cgroups.
fn make_group(path: &str) -> String {
    format!("mkdir -p {path}; echo '+cpu +memory +pids' > {path}/cgroup.subtree_control\n")
}

fn put(script: &mut String, path: &str, content: &Value) {
    let _ = writeln!(script, "cat > {path} <<'END-OF-JSON'\n{content}\nEND-OF-JSON");
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Returns a pod's UID in the API server's form.
///
/// The same name and turn always give the same UID.
fn uid(name: &str, turn: u32) -> String {
    let digest = Sha256::digest(format!("{name} {turn}"));
    let hex: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_has_the_checksum_that_go_computes() {
        let mut entries = Map::new();
        entries.insert("a".to_owned(), json!(1));
        let checkpoint = checkpoint(&entries).unwrap();
        assert_eq!(checkpoint["data"], r#"{"entries":{"a":1}}"#);
        assert_eq!(checkpoint["checksum"], 1_714_924_793_u32);
    }

    #[test]
    fn quantities_are_canonical() {
        for (bytes, text) in [
            (0, "0"),
            (1, "1"),
            (1024, "1Ki"),
            (MIB * 1536, "1536Mi"),
            (1 << 30, "1Gi"),
            (1000, "1000"),
        ] {
            assert_eq!(quantity(bytes), text);
        }
    }

    #[test]
    fn the_class_follows_requests_and_limits() {
        let pod = |container| PodSpec::new("p").container(container);
        assert_eq!(pod(ContainerSpec::new("c")).qos(), Qos::BestEffort);
        assert_eq!(pod(ContainerSpec::new("c").request(1)).qos(), Qos::Burstable);
        assert_eq!(pod(ContainerSpec::new("c").limit(1)).qos(), Qos::Burstable);
        assert_eq!(pod(ContainerSpec::new("c").limit(1).cpu(1)).qos(), Qos::Guaranteed);
        assert_eq!(pod(ContainerSpec::new("c").request(1).limit(2).cpu(1)).qos(), Qos::Burstable);
    }
}

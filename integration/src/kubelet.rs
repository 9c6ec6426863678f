//! A double of the kubelet: it does to the node what the kubelet does, in the same order.
//!
//! For a pod: its cgroup, the checkpoint of what is allocated, the sandbox; for each container the checkpoint of what is
//! actuated, then create and start. For an in-place resize: allocated, the pod's cgroup if it grows, the runtime's update,
//! the pod's cgroup if it shrinks, actuated. Whatever a test has to do without can be switched off or replaced.
//!
//! What it writes without being asked, each minute, is [`Kubelet::update_qos_classes`].

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

/// Where the kubelet keeps its state.
pub const STATE: &str = "/var/lib/kubelet";

/// Messages to the runtime, on the node.
const MESSAGES: &str = "/run/kubelet-double";
/// Directories shared with the workloads, on the node.
const CONTROL: &str = "/run/workload";
/// How many pods of a batch are made at a time: some of them wait for systemd.
const AT_A_TIME: u32 = 3;
/// For a batch of pods.
const BATCH_LIMIT: Duration = Duration::from_secs(600);
/// oom_score_adj of containers in guaranteed pods.
const GUARANTEED_OOM_SCORE_ADJ: i64 = -997;

/// Who makes the cgroups of pods and containers: also the name of the runtime handler that works this way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Driver {
    /// systemd, asked over D-Bus.
    Systemd,
    /// The kubelet and the runtime themselves.
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

/// The quality of service class of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Limits equal requests, for cpu and memory, in every container.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl Qos {
    /// As it appears in names of cgroups.
    pub fn name(self) -> &'static str {
        match self {
            Qos::Guaranteed => "guaranteed",
            Qos::Burstable => "burstable",
            Qos::BestEffort => "besteffort",
        }
    }
}

/// A container to be run: what the pod's author wrote.
#[derive(Clone, Debug, Default)]
pub struct ContainerSpec {
    /// Its name in the pod.
    pub name: String,
    /// Memory request in bytes.
    pub memory_request: Option<u64>,
    /// Memory limit in bytes.
    pub memory_limit: Option<u64>,
    /// CPU request in thousandths.
    pub cpu_request: Option<u64>,
    /// CPU limit in thousandths.
    pub cpu_limit: Option<u64>,
    /// Unified cgroup values in the CRI request, as the kubelet's own MemoryQoS sends them.
    pub unified: BTreeMap<String, String>,
    /// oom_score_adj in place of the one by the kubelet's formula.
    pub oom_score_adj: Option<i64>,
}

impl ContainerSpec {
    /// A container without requests and limits.
    pub fn new(name: &str) -> ContainerSpec {
        ContainerSpec { name: name.to_owned(), ..ContainerSpec::default() }
    }

    /// With a memory request.
    pub fn request(mut self, bytes: u64) -> Self {
        self.memory_request = Some(bytes);
        self
    }

    /// With a memory limit.
    pub fn limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// With equal cpu request and limit, which a guaranteed pod needs.
    pub fn cpu(mut self, thousandths: u64) -> Self {
        self.cpu_request = Some(thousandths);
        self.cpu_limit = Some(thousandths);
        self
    }

    /// With a unified value in the CRI request.
    pub fn unified(mut self, key: &str, value: impl ToString) -> Self {
        self.unified.insert(key.to_owned(), value.to_string());
        self
    }

    /// The memory request, which the API server takes from the limit where only that is given.
    pub fn effective_request(&self) -> Option<u64> {
        self.memory_request.or(self.memory_limit)
    }

    fn effective_cpu_request(&self) -> Option<u64> {
        self.cpu_request.or(self.cpu_limit)
    }

    /// As `ResourceRequirements` in a checkpoint.
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

/// A pod to be run.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Its name, in the namespace `default`.
    pub name: String,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// The memory that its runtime class takes beside the containers, in bytes.
    pub overhead: u64,
    /// Its containers.
    pub containers: Vec<ContainerSpec>,
}

impl PodSpec {
    /// A pod without containers.
    pub fn new(name: &str) -> PodSpec {
        PodSpec {
            name: name.to_owned(),
            annotations: BTreeMap::new(),
            overhead: 0,
            containers: Vec::new(),
        }
    }

    /// With an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With a memory overhead, which counts as requested and, where the pod is limited, as allowed.
    pub fn overhead(mut self, bytes: u64) -> Self {
        self.overhead = bytes;
        self
    }

    /// With one more container.
    pub fn container(mut self, container: ContainerSpec) -> Self {
        self.containers.push(container);
        self
    }

    /// The class that the API server computes.
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

    /// The pod's memory limit, overhead included: there is one only if every container has one.
    pub fn memory_limit(&self) -> Option<u64> {
        let limits: Option<u64> =
            self.containers.iter().map(|container| container.memory_limit).sum();
        limits.map(|limits| limits + self.overhead)
    }
}

/// A running pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// What it was made of; a resize changes it.
    pub spec: PodSpec,
    /// Its unique id.
    pub uid: String,
    /// The runtime's id of its sandbox.
    pub sandbox: String,
    /// Its cgroup below the root.
    pub cgroup: String,
    /// Its containers, in the order of the specification.
    pub containers: Vec<Container>,
}

impl Pod {
    /// The container called `name`.
    pub fn container(&self, name: &str) -> Result<&Container> {
        let found = self.containers.iter().find(|container| container.name == name);
        found.with_context(|| format!("pod {} has no container {name}", self.spec.name))
    }

    /// The requests of the containers that run, as the specification has them, and the overhead.
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
    /// Its name in the pod.
    pub name: String,
    /// The runtime's id.
    pub id: String,
    /// Its cgroup below the root.
    pub cgroup: String,
    /// The directory on the node through which its workload takes commands.
    pub control: String,
}

impl Container {
    /// Tells the workload inside to do something (see `src/bin/workload.rs`) and returns what it answered: `ok ...`,
    /// `error ...`, or `gone` if it ended meanwhile.
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

/// The kubelet's part of a node.
pub struct Kubelet<'n> {
    node: &'n Node,
    driver: Driver,
    /// Whether checkpoints are written. Turned off later, the files stay as they are: stale.
    pub checkpoints: bool,
    /// Whether all processes of a container are killed together (the kubelet's default on cgroup v2).
    pub group_kill: bool,
    memory_qos: bool,
    capacity: u64,
    allocated: Map<String, Value>,
    actuated: Map<String, Value>,
    pods_made: u32,
}

/// systemReserved in the kubelet's configuration on the node.
pub const SYSTEM_RESERVED: u64 = 100 * MIB;
/// evictionHard for memory.available there.
pub const EVICTION_HARD: u64 = 50 * MIB;

impl<'n> Kubelet<'n> {
    /// Starts on a node without pods (see [`clear`]): the cgroups of the classes.
    pub fn start(node: &'n Node, driver: Driver) -> Result<Kubelet<'n>> {
        let mut script = format!(
            "mkdir -p {STATE} {MESSAGES} {CONTROL}\n\
             sed -i 's/^cgroupDriver: .*/cgroupDriver: {driver}/' {STATE}/config.yaml\n\
             awk '/^MemTotal:/ {{print $2 * 1024}}' /proc/meminfo\n"
        );
        // The capacity is in the script's output: let the node subtract.
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

    /// The cgroup driver.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// The node's memory in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// What pods may request in total: capacity less reservation less hard eviction.
    pub fn allocatable(&self) -> u64 {
        self.capacity - SYSTEM_RESERVED - EVICTION_HARD
    }

    /// The cgroup of all pods.
    pub fn top_cgroup(&self) -> &'static str {
        match self.driver {
            Driver::Systemd => "kubepods.slice",
            Driver::Cgroupfs => "kubepods",
        }
    }

    /// The cgroup of a class's pods. Guaranteed pods lie in the one of all pods.
    pub fn class_cgroup(&self, class: Qos) -> String {
        let top = self.top_cgroup();
        match (self.driver, class) {
            (_, Qos::Guaranteed) => top.to_owned(),
            (Driver::Systemd, class) => format!("{top}/kubepods-{}.slice", class.name()),
            (Driver::Cgroupfs, class) => format!("{top}/{}", class.name()),
        }
    }

    /// Switches the kubelet's own MemoryQoS on, with the policy None: in its configuration on the node, and in what it
    /// writes each minute.
    pub fn enable_memory_qos(&mut self) -> Result<()> {
        self.memory_qos = true;
        let script = format!("sed -i 's/MemoryQoS: false/MemoryQoS: true/' {STATE}/config.yaml");
        self.node.run(&script).context("switching MemoryQoS on")?;
        Ok(())
    }

    /// Does what the kubelet does each minute.
    pub fn update_qos_classes(&self) -> Result<()> {
        self.node.run(&self.qos_update()).context("updating the cgroups of the classes")?;
        Ok(())
    }

    /// The script of [`Kubelet::update_qos_classes`]: it sets the weights of all pods and of the classes, the limit of all
    /// pods, and with MemoryQoS takes away their protection. With the systemd driver these become properties first, as
    /// runc's library does it, so that systemd sets anew whatever else it knows of the unit.
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

    /// Runs one more container in a pod, as init and ephemeral containers run: the pod's class, limit and specification stay.
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

    /// Stops and removes one container of a pod; the pod goes on, and its specification stays.
    pub fn remove_container(&mut self, pod: &mut Pod, name: &str) -> Result<()> {
        crictl::remove(self.node, &pod.container(name)?.id)
            .with_context(|| format!("removing container {name} of pod {}", pod.spec.name))?;
        pod.containers.retain(|container| container.name != name);
        Ok(())
    }

    /// Runs many pods at once, with as few steps as can be: some at a time, checkpoints written once before the first, and
    /// without waiting for the workloads.
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
            // Each in a process of its own; the script fails if one does. A line is printed at once, whole.
            let _ = writeln!(
                script,
                "{{ ids=$(cri run {handler} {sandbox}{messages}) && echo {uid} $ids; }} &\n\
                 if [ $((++jobs)) -ge {AT_A_TIME} ]; then wait -n; jobs=$((jobs - 1)); fi"
            );
        }
        script.push_str("while [ $((jobs--)) -gt 0 ]; do wait -n; done\n");
        // Too long for an argument.
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

    /// Removes many pods and their cgroups with as few steps as can be.
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

    /// Resizes the memory of one container in place, in the kubelet's order. An error of the runtime's update is returned
    /// and leaves the rest undone, as in the kubelet.
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
        // 0 stands for "as it is" in CRI; the kubelet cannot take a limit away in place either.
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

    /// The cgroup of a pod's sandbox below the root.
    pub fn sandbox_cgroup(&self, pod: &Pod) -> String {
        format!(
            "{}/{}",
            pod.cgroup,
            self.node.runtime().sandbox_cgroup_name(self.driver, &pod.sandbox)
        )
    }

    /// Gives a pod's cgroup another memory limit than the sum of its containers', or none.
    pub fn limit_pod(&self, pod: &Pod, limit: Option<u64>) -> Result<()> {
        self.node.run(&self.pod_limit(&pod.cgroup, limit)).context("changing a pod's limit")?;
        Ok(())
    }

    /// Gives the cgroup of all pods another memory limit; [`Kubelet::update_qos_classes`] takes it back.
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

    /// Removes the checkpoint files; with [`Kubelet::checkpoints`] off they stay away.
    pub fn remove_checkpoints(&self) -> Result<()> {
        self.node.run(&format!("rm -f {STATE}/*_pods_state")).map(|_| ())
    }

    /// The kubelet's formula.
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

    /// Gives the pod a uid and the script that makes its cgroup, and enters it into what is allocated.
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

    /// Puts the sandbox's message into a file on the node, whose path it returns.
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

    /// The same for a container, and the directory for its commands.
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

    /// Actuates, creates and starts a container in the sandbox `$pod`, waits for its workload and prints its id.
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
            // A swap limit equal to the memory limit is the kubelet's NoSwap.
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

/// Leaves the node as it is before its kubelet starts: configured, without pods, checkpoints or cgroups of pods.
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

/// Stops and removes sandboxes. containerd fails (`ttrpc: closed`) for a container whose process just ended by itself; the
/// kubelet tries again later, and so does this. All of them are stopped at once, which on a busy machine takes longer than other calls.
fn remove_sandboxes(request: &str) -> String {
    format!(
        "for attempt in 1 2 3 4 last; do
             if cri {request}; then break; fi
             [ $attempt != last ]
         done"
    )
}

/// A checkpoint file: `data` is JSON in a string, with the checksum that the kubelet verifies.
pub fn checkpoint(entries: &Map<String, Value>) -> Result<Value> {
    let data =
        serde_json::to_string(&json!({ "entries": entries })).context("writing a checkpoint")?;
    // FNV-1a in 32 bits over the value as Go prints it with its type.
    let checksum = format!("(string){data}")
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    Ok(json!({ "data": data, "checksum": checksum }))
}

/// A quantity of bytes in its canonical form: the largest binary unit that leaves a whole number.
pub fn quantity(bytes: u64) -> String {
    for (unit, size) in [("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)] {
        if bytes > 0 && bytes.is_multiple_of(size) {
            return format!("{}{unit}", bytes / size);
        }
    }
    bytes.to_string()
}

/// Namespaces of sandbox and containers: the node's network, so that no CNI plugin is needed.
fn namespaces() -> Value {
    // The CRI's numbers: 0 the pod's, 1 the container's own, 2 the node's.
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
    // The sums of what there is, also where a container has no limit.
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

/// A transient slice, as the kubelet asks for it; `systemctl start` waits for what that began.
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

/// A cgroup whose children have the controllers that the kubelet hands down.
fn make_group(path: &str) -> String {
    format!("mkdir -p {path}; echo '+cpu +memory +pids' > {path}/cgroup.subtree_control\n")
}

fn put(script: &mut String, path: &str, content: &Value) {
    let _ = writeln!(script, "cat > {path} <<'END-OF-JSON'\n{content}\nEND-OF-JSON");
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// A pod's uid: in the API server's form, the same for the same name and turn.
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

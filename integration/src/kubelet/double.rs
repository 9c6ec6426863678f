//! The double of the kubelet on a node, and the values that it writes every minute.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use crate::kubelet::script::{base_name, make_group, start_slice};
use crate::kubelet::spec::{MIB, Qos};
use crate::machine::Node;
use crate::probe::cgroup;
use crate::runtime::Driver;

/// The directory on the node with the kubelet's state.
pub const STATE: &str = "/var/lib/kubelet";

/// The directory on the node for messages to the runtime.
pub(super) const MESSAGES: &str = "/run/kubelet-double";

/// The directory on the node that contains the directories shared with the workloads.
pub(super) const CONTROL: &str = "/run/workload";

/// The time limit for a batch of pods.
pub(super) const BATCH_LIMIT: Duration = Duration::from_secs(600);

/// The kubelet double of a node.
pub struct Kubelet<'n> {
    pub(super) node: &'n Node,
    pub(super) driver: Driver,
    /// Whether the double writes checkpoints. If a test switches checkpoints off later, the old
    /// files become stale.
    pub checkpoints: bool,
    /// Whether the kernel kills all processes of a container together.
    ///
    /// The kubelet enables this group kill by default on cgroup v2 (memory.oom.group).
    pub group_kill: bool,
    memory_qos: bool,
    pub(super) capacity: u64,
    pub(super) allocated: Map<String, Value>,
    pub(super) actuated: Map<String, Value>,
    pub(super) pods_made: u32,
}

/// systemReserved for memory in the kubelet's configuration on the node, in bytes.
pub const SYSTEM_RESERVED: u64 = 100 * MIB;

/// evictionHard for memory.available in the kubelet's configuration on the node, in bytes.
pub const EVICTION_HARD: u64 = 50 * MIB;

impl<'n> Kubelet<'n> {
    /// Starts the double and makes the cgroups of the QoS classes.
    ///
    /// The node must not have pods (see `kubelet::clear`).
    pub fn start(node: &'n Node, driver: Driver) -> Result<Kubelet<'n>> {
        let mut script = format!(
            "mkdir -p {STATE} {MESSAGES} {CONTROL}\n\
             sed -i 's/^cgroupDriver: .*/cgroupDriver: {driver}/' {STATE}/config.yaml\n\
             awk '/^MemTotal:/ {{print $2 * 1024}}' /proc/meminfo\n"
        );
        // The node computes the limit, because the test program reads the capacity only in the
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
        let output = node.run(&script).context("making the cgroups of the QoS classes")?;
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
    /// The function changes the kubelet's configuration on the node and the values that the kubelet
    /// writes every minute.
    pub fn enable_memory_qos(&mut self) -> Result<()> {
        self.memory_qos = true;
        let script = format!("sed -i 's/MemoryQoS: false/MemoryQoS: true/' {STATE}/config.yaml");
        self.node.run(&script).context("enabling MemoryQoS")?;
        Ok(())
    }

    /// Writes the cgroup values that the kubelet writes every minute.
    pub fn update_qos_classes(&self) -> Result<()> {
        self.node.run(&self.qos_update()).context("updating the cgroups of the classes")?;
        Ok(())
    }

    /// Returns the script of [`Kubelet::update_qos_classes`].
    ///
    /// The script sets the memory limit of all pods and the CPU weights of all pods and of the
    /// classes. With MemoryQoS the script also sets the protection of all pods and of the burstable
    /// class to 0.
    ///
    /// With the systemd driver the script first sets unit properties, as runc's library does.
    /// systemd then also writes the values of all other properties of the unit.
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
}

//! The cgroups of pods and containers, as the kubelet names and makes them.

use anyhow::{Context, Result};

use crate::kubelet::double::Kubelet;
use crate::kubelet::pod::Pod;
use crate::kubelet::script::{base_name, make_group, start_slice};
use crate::kubelet::spec::{PodSpec, Qos};
use crate::probe::cgroup;
use crate::runtime::Driver;

impl Kubelet<'_> {
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

    pub(super) fn pod_cgroup(&self, qos: Qos, uid: &str) -> String {
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

    pub(super) fn container_cgroup(&self, pod_cgroup: &str, id: &str) -> String {
        format!("{pod_cgroup}/{}", self.node.runtime().cgroup_name(self.driver, id))
    }

    pub(super) fn make_pod_cgroup(&self, spec: &PodSpec, pod_cgroup: &str) -> String {
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

    pub(super) fn pod_limit(&self, pod_cgroup: &str, limit: Option<u64>) -> String {
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
}

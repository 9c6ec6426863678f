//! Paths of the files that determine the node's memory, relative to the root of the file system.

pub(super) const KUBELET_CONFIG: &str = "var/lib/kubelet/config.yaml";

/// Paths at which distributions keep the kubelet's configuration: EKS and Bottlerocket, GKE, AKS,
/// k3s and RKE2, kubespray, kOps, OpenShift, Talos, k0s and MicroK8s.
pub(super) const KUBELET_CONFIGS: [&str; 13] = [
    "etc/kubernetes/kubelet/config.json",
    "etc/kubernetes/kubelet/kubelet-config.json",
    "etc/kubernetes/kubelet/config",
    "home/kubernetes/kubelet-config.yaml",
    "etc/default/kubeletconfig.json",
    "var/lib/rancher/k3s/agent/etc/kubelet.conf.d",
    "var/lib/rancher/rke2/agent/etc/kubelet.conf.d",
    "etc/kubernetes/kubelet-config.yaml",
    "var/lib/kubelet/kubelet.conf",
    "etc/kubernetes/kubelet.conf",
    "etc/kubernetes/kubelet.yaml",
    "var/lib/k0s/kubelet/config.yaml",
    "var/snap/microk8s/current/args/kubelet",
];

pub(super) const CGROUPS: &str = "sys/fs/cgroup";

pub(super) const MEMINFO: &str = "proc/meminfo";

//! Paths of the files that determine the node's memory.

/// Files of the kubelet on one distribution: absolute paths on the node.
#[derive(Debug)]
pub(super) struct KnownFiles {
    /// The configuration file. `None` if the kubelet has only drop-ins.
    pub(super) config: Option<&'static str>,
    /// The directory with drop-ins. Empty if the distribution has none.
    pub(super) config_dir: &'static str,
    /// The kubelet's directory.
    pub(super) root_dir: &'static str,
}

impl KnownFiles {
    const fn file(config: &'static str) -> Self {
        Self { config: Some(config), config_dir: "", root_dir: "/var/lib/kubelet" }
    }

    const fn directory(config_dir: &'static str) -> Self {
        Self { config: None, config_dir, root_dir: "/var/lib/kubelet" }
    }
}

/// Files of the kubelet on the known distributions.
pub(super) const KNOWN_FILES: [KnownFiles; 13] = [
    // kubeadm
    KnownFiles::file("/var/lib/kubelet/config.yaml"),
    // EKS
    KnownFiles {
        config_dir: "/etc/kubernetes/kubelet/config.json.d",
        ..KnownFiles::file("/etc/kubernetes/kubelet/config.json")
    },
    KnownFiles::file("/etc/kubernetes/kubelet/kubelet-config.json"),
    // Bottlerocket
    KnownFiles::file("/etc/kubernetes/kubelet/config"),
    // GKE
    KnownFiles::file("/home/kubernetes/kubelet-config.yaml"),
    // AKS
    KnownFiles::file("/etc/default/kubeletconfig.json"),
    // k3s and RKE2
    KnownFiles::directory("/var/lib/rancher/k3s/agent/etc/kubelet.conf.d"),
    KnownFiles::directory("/var/lib/rancher/rke2/agent/etc/kubelet.conf.d"),
    // kubespray
    KnownFiles::file("/etc/kubernetes/kubelet-config.yaml"),
    // kOps
    KnownFiles::file("/var/lib/kubelet/kubelet.conf"),
    // OpenShift
    KnownFiles::file("/etc/kubernetes/kubelet.conf"),
    // Talos
    KnownFiles::file("/etc/kubernetes/kubelet.yaml"),
    // k0s
    KnownFiles {
        root_dir: "/var/lib/k0s/kubelet",
        ..KnownFiles::file("/var/lib/k0s/kubelet/config.yaml")
    },
];

pub(super) const CGROUPS: &str = "sys/fs/cgroup";

pub(super) const MEMINFO: &str = "proc/meminfo";

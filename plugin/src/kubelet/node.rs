//! Node allocatable memory, determined on the node itself (`nodeAllocatable: auto`).
//!
//! The kubelet computes node allocatable as total memory minus system-reserved, kube-reserved,
//! hugepages and the hard eviction threshold (`pkg/kubelet/cm/node_container_manager_linux.go`).
//! The kubelet does not store the result where a plugin could read it, but leaves two traces:
//!
//! - its configuration file, which may be incomplete because flags and drop-in files override it;
//! - `memory.max` of the `kubepods` cgroup, rounded down to pages. The eviction threshold is not
//!   subtracted from this value. If node allocatable is not enforced for pods, the value is all
//!   memory.
//!
//! If the configuration explains the value of the cgroup, the exact number from the configuration
//! is used. If they disagree, the cgroup shows what is in force. If both are missing, this is no
//! Kubernetes node. Pods may then use all memory except hugepages.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::guard::GuardRecord;
use plimsoll_core::units::{Bytes, Limit, PageSize, excerpt};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::Deserialize;
use thiserror::Error;

use crate::cgroup::{CgroupError, CgroupRoot, RootError};
use crate::kubelet::kubepods::{self, Found};

const KUBELET_CONFIG: &str = "var/lib/kubelet/config.yaml";
const CGROUPS: &str = "sys/fs/cgroup";
const MEMINFO: &str = "proc/meminfo";

/// Default of the kubelet's hard eviction threshold for memory: 100Mi.
const DEFAULT_EVICTION: Bytes = Bytes::new(100 << 20);

/// Maximum size of these files, in bytes.
const LARGEST_FILE: usize = 1 << 20;

/// Memory of the node, with the sources of this information.
#[derive(Debug)]
pub struct NodeMemory {
    /// Total memory (MemTotal), from which the kubelet computes `oom_score_adj`. `None` only if
    /// /proc/meminfo is unreadable.
    pub mem_total: Option<Bytes>,
    /// Total memory without hugepages.
    pub usable: Option<Bytes>,
    /// Memory available to all pods together; `None` if unknown.
    pub allocatable: Option<Bytes>,
    /// Source of `allocatable`.
    pub source: AllocatableSource,
    /// Files and places that could not be read and are ignored.
    pub problems: Vec<NodeError>,
    /// Signs in the kubelet's configuration that the kubelet sets the same files, with the
    /// solution.
    pub conflicts: Vec<Conflict>,
    /// Reason why it is unknown whether the kubelet sets the same files.
    pub unsettled: Option<Unsettled>,
    /// Whether the kubelet's configuration was read and understood.
    pub has_kubelet_config: bool,
}

/// Conflict with the kubelet, which sets the same files as this plugin. `Display` names the files
/// and the solution.
///
/// Source: `pkg/kubelet/cm/qos_container_manager_linux.go` and `helpers_linux.go` of Kubernetes
/// 1.36 and 1.37.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Conflict {
    /// The feature gate `MemoryQoS` is on, and its policy is not `None`.
    #[error(
        "has its own MemoryQoS on (featureGates), which sets memory.min, memory.low and memory.high of the same cgroups by its \
         own rules, and those of kubepods and the classes every minute; set featureGates.MemoryQoS to false and restart it"
    )]
    MemoryQos,
    /// The feature gate `MemoryQoS` is on, and its policy is `None`.
    #[error(
        "has its own MemoryQoS on with memoryReservationPolicy None: when it starts (Kubernetes 1.36.0: every minute) it sets \
         memory.min of kubepods and memory.low of the classes to 0, without which nothing below is protected; set \
         featureGates.MemoryQoS to false and restart it"
    )]
    MemoryQosNone,
    /// The feature gate is not set, but fields are set that have an effect only with it.
    #[error(
        "is configured with memoryReservationPolicy or memoryThrottlingFactor, a sign that its own MemoryQoS is on, which sets \
         memory.min, memory.low and memory.high of the same cgroups by its own rules; set featureGates.MemoryQoS to false, take \
         both fields out and restart it"
    )]
    MemoryQosSign,
}

/// Reason why it is unknown whether the kubelet's own MemoryQoS is on. `Display` includes the
/// solution.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unsettled {
    /// The feature gate is not set, and its default depends on the kubelet's version.
    #[error(
        "/{KUBELET_CONFIG} does not set featureGates.MemoryQoS, which is on by default from Kubernetes 1.37 on: the kubelet then sets \
         memory.min of kubepods and memory.low of the classes to 0 when it starts; set featureGates.MemoryQoS to false there and \
         restart the kubelet, whatever its version is"
    )]
    DefaultOfVersion,
    /// The kubelet's configuration is not at the expected path. The list has the other known paths
    /// that exist.
    #[error(
        "found no configuration of the kubelet at /{KUBELET_CONFIG}{}; see which file and flags the kubelet is started with (--config), \
         and that featureGates.MemoryQoS is false there",
        elsewhere(.0)
    )]
    NoConfig(Vec<&'static str>),
    /// The kubelet's configuration could not be read or understood.
    #[error(
        "cannot read /{KUBELET_CONFIG}; see that it is right and that featureGates.MemoryQoS is false there"
    )]
    Unreadable,
}

fn elsewhere(paths: &[&str]) -> String {
    match paths {
        [] => String::new(),
        paths => format!(
            ", but /{} (not read, as flags and drop-ins may override it)",
            paths.join(" and /")
        ),
    }
}

/// Paths at which distributions keep the kubelet's configuration: EKS and Bottlerocket, GKE, AKS,
/// k3s and RKE2, kubespray, kOps, OpenShift, Talos, k0s and MicroK8s.
const KUBELET_CONFIGS: [&str; 13] = [
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

/// State of the kubelet's own MemoryQoS according to its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryQos {
    /// MemoryQoS is off.
    Off,
    /// MemoryQoS is on.
    On(Conflict),
    /// The state depends on the version: MemoryQoS is on only since Kubernetes 1.37, or only
    /// before.
    ByVersion,
}

/// Source of node allocatable. `Display` is a phrase for the middle of a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocatableSource {
    /// The kubelet's configuration.
    KubeletConfig,
    /// The kubelet's configuration, confirmed by `memory.max` of kubepods.
    KubeletConfigConfirmed,
    /// `memory.max` of kubepods minus the eviction threshold. The kubelet's configuration does not
    /// explain this value.
    KubepodsOverConfig,
    /// `memory.max` of kubepods minus the eviction threshold. There is no readable configuration.
    Kubepods,
    /// Total memory without hugepages, because there is no sign of a kubelet.
    AllMemory,
    /// No source, because nothing could be read.
    Nowhere,
}

impl fmt::Display for AllocatableSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KubeletConfig => "the kubelet's configuration",
            Self::KubeletConfigConfirmed => "the kubelet's configuration, which kubepods memory.max confirms",
            Self::KubepodsOverConfig => {
                "kubepods memory.max less hard eviction, as the kubelet's configuration does not explain it"
            }
            Self::Kubepods => "kubepods memory.max less hard eviction",
            Self::AllMemory => "all memory less hugepages, as there is no sign of a kubelet",
            Self::Nowhere => "nowhere: nothing could be read; set nodeAllocatable",
        })
    }
}

/// Problem with a file that could have determined node allocatable.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The file could not be read.
    #[error("{path}: {error}; it is done without")]
    Io {
        /// Path of the file.
        path: String,
        /// The cause.
        error: io::Error,
    },
    /// The file has unexpected content.
    #[error("{path}: {expected}; it is done without")]
    Form {
        /// Path of the file.
        path: String,
        /// The expected and the observed content.
        expected: String,
    },
    /// The root of the cgroup hierarchy could not be opened.
    #[error("cannot look for kubepods: {0}; it is done without")]
    Root(#[from] RootError),
    /// A place that may contain kubepods could not be searched.
    #[error("cannot look for kubepods: {0}; it is done without")]
    Search(#[from] CgroupError),
}

/// Formats one sentence for the log.
impl fmt::Display for NodeMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.allocatable {
            Some(bytes) => write!(
                f,
                "node allocatable is {bytes} bytes ({}), from {}",
                bytes.approx(),
                self.source
            )?,
            None => write!(f, "node allocatable is unknown, from {}", self.source)?,
        }
        match self.mem_total {
            Some(total) => write!(f, "; all memory is {total} bytes ({})", total.approx()),
            None => Ok(()),
        }
    }
}

impl NodeMemory {
    /// Reads the node whose file system is at `root`, usually `/`. Never fails: unreadable files
    /// are ignored and listed in `problems`. A missing file is a problem only if no other source
    /// can replace it. `guard` is the stored record of the guard.
    pub fn discover(root: &Path, page: PageSize, guard: io::Result<Option<GuardRecord>>) -> Self {
        let mut problems = Vec::new();
        let mut use_file = |path: &str| match read(root, path) {
            Ok(text) => text,
            Err(error) => {
                problems.push(NodeError::Io { path: format!("/{path}"), error });
                None
            }
        };
        let meminfo = use_file(MEMINFO);
        let config = use_file(KUBELET_CONFIG);
        let (kubepods, unsearched) = find_kubepods(root);
        let kubepods = kubepods.into_iter().find_map(|cgroup| {
            let path = format!("{CGROUPS}{cgroup}/memory.max");
            let text = use_file(&path)?;
            Some((cgroup, path, text))
        });
        let record = guard.unwrap_or_else(|error| {
            problems.push(NodeError::Io { path: format!("/{}", GuardRecord::PATH), error });
            None
        });
        problems.extend(unsearched);

        let mut form = |path: &str, expected: String| {
            problems.push(NodeError::Form { path: format!("/{path}"), expected });
        };
        let meminfo = match meminfo.as_deref().map(MemInfo::parse) {
            Some(Ok(meminfo)) => Some(meminfo),
            Some(Err(error)) => {
                form(MEMINFO, error);
                None
            }
            None => {
                form(MEMINFO, "expected it to exist".to_owned());
                None
            }
        };
        let has_config = config.is_some();
        let config = match config.as_deref().map(KubeletReservations::parse) {
            Some(Ok(config)) => Some(config),
            Some(Err(error)) => {
                form(KUBELET_CONFIG, error);
                None
            }
            None => None,
        };
        let kubepods =
            kubepods.and_then(|(cgroup, path, text)| match text.trim_end().parse::<Limit>() {
                // A value that the plugin itself has set says nothing about the kubelet.
                Ok(limit) => Some(match record.filter(|record| record.cgroup == cgroup) {
                    Some(record) => record.without(limit),
                    None => limit,
                }),
                Err(error) => {
                    form(&path, error.to_string());
                    None
                }
            });
        let (allocatable, source) = choose(meminfo, config.as_ref(), kubepods, page);
        let (conflict, unsettled) = match config.map(|config| config.memory_qos) {
            Some(MemoryQos::Off) => (None, None),
            Some(MemoryQos::On(conflict)) => (Some(conflict), None),
            Some(MemoryQos::ByVersion) => (None, Some(Unsettled::DefaultOfVersion)),
            None if has_config || read(root, KUBELET_CONFIG).is_err() => {
                (None, Some(Unsettled::Unreadable))
            }
            None => {
                let elsewhere = KUBELET_CONFIGS.into_iter().filter(|path| root.join(path).exists());
                (None, Some(Unsettled::NoConfig(elsewhere.collect())))
            }
        };
        Self {
            mem_total: meminfo.map(|meminfo| meminfo.total),
            usable: meminfo.map(MemInfo::usable),
            allocatable,
            source,
            problems,
            conflicts: conflict.into_iter().collect(),
            unsettled,
            has_kubelet_config: config.is_some(),
        }
    }
}

/// Finds the cgroups of all pods on the node whose file system is at `root`. Also returns the
/// places that could not be searched.
fn find_kubepods(root: &Path) -> (Vec<CgroupPath>, Vec<NodeError>) {
    match CgroupRoot::open(&root.join(CGROUPS)) {
        Ok(root) => {
            let Found { found, problems } = kubepods::find(&root);
            (found, problems.into_iter().map(NodeError::from).collect())
        }
        Err(error) if error.is_absent() => (Vec::new(), Vec::new()),
        Err(error) => (Vec::new(), vec![error.into()]),
    }
}

fn choose(
    meminfo: Option<MemInfo>,
    config: Option<&KubeletReservations>,
    kubepods: Option<Limit>,
    page: PageSize,
) -> (Option<Bytes>, AllocatableSource) {
    let eviction =
        |total: Bytes| config.map_or(DEFAULT_EVICTION, |config| config.eviction.of(total));
    let enforced = kubepods.and_then(Limit::bytes);
    let Some(meminfo) = meminfo else {
        // The total memory is unknown, so a percentage is computed from memory.max of kubepods.
        return match enforced {
            Some(max) => (Some(max.saturating_sub(eviction(max))), AllocatableSource::Kubepods),
            None => (None, AllocatableSource::Nowhere),
        };
    };
    let usable = meminfo.usable();
    // If node allocatable is not enforced for pods, the kubelet sets memory.max of kubepods to all
    // memory.
    let enforced = enforced.filter(|&max| max < usable.floor_to(page));
    match (config, enforced) {
        (Some(config), enforced) => {
            let reserved = config.system.saturating_add(config.kube);
            let before_eviction = usable.saturating_sub(reserved);
            // Older kubelets did not subtract hugepages from memory.max of kubepods.
            let explained = |max| {
                max == before_eviction.floor_to(page)
                    || max == meminfo.total.saturating_sub(reserved).floor_to(page)
            };
            let from_config = Some(before_eviction.saturating_sub(eviction(meminfo.total)));
            match enforced {
                Some(max) if explained(max) => {
                    (from_config, AllocatableSource::KubeletConfigConfirmed)
                }
                Some(max) if config.enforced_for_pods => (
                    Some(max.saturating_sub(eviction(meminfo.total))),
                    AllocatableSource::KubepodsOverConfig,
                ),
                _ => (from_config, AllocatableSource::KubeletConfig),
            }
        }
        (None, Some(max)) => {
            (Some(max.saturating_sub(DEFAULT_EVICTION)), AllocatableSource::Kubepods)
        }
        (None, None) if kubepods.is_some() => {
            (Some(usable.saturating_sub(DEFAULT_EVICTION)), AllocatableSource::Kubepods)
        }
        (None, None) => (Some(usable), AllocatableSource::AllMemory),
    }
}

/// Reads a file below `root`. Returns `None` if there is no such file.
fn read(root: &Path, path: &str) -> io::Result<Option<String>> {
    let text = |bytes| {
        String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    };
    read_bytes(&root.join(path), LARGEST_FILE)?.map(text).transpose()
}

/// Reads a regular file of at most `most` bytes. Returns `None` if there is no such file.
pub(crate) fn read_bytes(path: &Path, most: usize) -> io::Result<Option<Vec<u8>>> {
    // A pipe in place of the file must not block this function.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("expected a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        return Err(io::Error::other(format!("expected at most {most} bytes")));
    }
    Ok(Some(bytes))
}

/// Values from /proc/meminfo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemInfo {
    /// `MemTotal`.
    pub total: Bytes,
    /// Memory set aside as hugepages of any size (`Hugetlb`). Kernels before 4.19 report only
    /// hugepages of the default size.
    pub hugepages: Bytes,
    /// `MemAvailable`: memory that could be used without swapping. 0 if the line is missing.
    pub available: Bytes,
}

impl MemInfo {
    /// Returns the total memory without hugepages.
    pub fn usable(self) -> Bytes {
        self.total.saturating_sub(self.hugepages)
    }

    /// Parses /proc/meminfo.
    ///
    /// # Errors
    ///
    /// Returns a sentence if there is no readable `MemTotal`. Other lines may be missing or
    /// malformed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.split_ascii_whitespace().next()?.parse::<u64>().ok()
        };
        let kib = |amount: u64| Bytes::new(amount.saturating_mul(1024));
        let total = field("MemTotal").filter(|&total| total > 0).map(kib);
        let hugepages = field("Hugetlb").map(kib).or_else(|| {
            let size = field("Hugepagesize")?;
            field("HugePages_Total").map(|pages| kib(pages.saturating_mul(size)))
        });
        match total {
            Some(total) => Ok(Self {
                total,
                hugepages: hugepages.unwrap_or(Bytes::ZERO),
                available: field("MemAvailable").map_or(Bytes::ZERO, kib),
            }),
            None => Err("expected a line such as 'MemTotal: 16303428 kB'".to_owned()),
        }
    }
}

/// Memory that the kubelet's configuration keeps from pods, and the state of MemoryQoS.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KubeletReservations {
    /// `systemReserved.memory`.
    pub system: Bytes,
    /// `kubeReserved.memory`.
    pub kube: Bytes,
    /// `evictionHard["memory.available"]`.
    pub eviction: Threshold,
    /// Whether `enforceNodeAllocatable` contains `pods`, as it does by default.
    pub enforced_for_pods: bool,
    /// State of the kubelet's own MemoryQoS.
    pub memory_qos: MemoryQos,
}

/// Eviction threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Threshold {
    /// Amount of memory.
    Bytes(Bytes),
    /// Share of the total memory as a 32-bit fraction of 1, the type that the kubelet uses.
    Share(f32),
}

impl Threshold {
    /// Returns the amount for a node with `total` memory, computed as in the kubelet
    /// (`GetThresholdQuantity`).
    pub fn of(self, total: Bytes) -> Bytes {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Share(share) => Bytes::new((total.get() as f64 * f64::from(share)) as u64),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let Some(number) = text.strip_suffix('%') else {
            return Bytes::from_quantity(text).map(Self::Bytes).map_err(|error| error.to_string());
        };
        match number.parse::<f32>() {
            Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Self::Share(percent / 100.0)),
            _ => Err(format!("expected a percentage from 0% to 100%, found '{}'", excerpt(text))),
        }
    }
}

impl KubeletReservations {
    /// Parses a `KubeletConfiguration` in YAML or JSON. Only fields about memory are read.
    ///
    /// # Errors
    ///
    /// Returns a sentence if the text is not YAML or if one of these fields is malformed.
    pub fn parse(text: &str) -> Result<Self, String> {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct Raw {
            system_reserved: Option<BTreeMap<String, Option<String>>>,
            kube_reserved: Option<BTreeMap<String, Option<String>>>,
            eviction_hard: Option<BTreeMap<String, Option<String>>>,
            merge_default_eviction_settings: Option<bool>,
            enforce_node_allocatable: Option<Vec<String>>,
            feature_gates: Option<BTreeMap<String, Option<bool>>>,
            memory_reservation_policy: Option<String>,
            memory_throttling_factor: Option<f64>,
        }

        let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
        let raw: Option<Raw> =
            serde_saphyr::from_str_with_options(text, options).map_err(|error| {
                format!(
                    "expected a KubeletConfiguration: {}",
                    error.to_string().lines().next().unwrap_or_default()
                )
            })?;
        let raw = raw.unwrap_or_default();
        let reserved = |field: &str, list: Option<BTreeMap<String, Option<String>>>| match list
            .and_then(|mut list| list.remove("memory").flatten())
        {
            Some(text) => {
                Bytes::from_quantity(&text).map_err(|error| format!("{field}.memory: {error}"))
            }
            None => Ok(Bytes::ZERO),
        };
        let eviction = match raw.eviction_hard {
            // Without memory.available in the map there is no threshold, unless the defaults are
            // merged in.
            Some(mut list) => match list.remove("memory.available").flatten() {
                Some(text) => Threshold::parse(&text)
                    .map_err(|error| format!("evictionHard[\"memory.available\"]: {error}"))?,
                None if raw.merge_default_eviction_settings == Some(true) => {
                    Threshold::Bytes(DEFAULT_EVICTION)
                }
                None => Threshold::Bytes(Bytes::ZERO),
            },
            None => Threshold::Bytes(DEFAULT_EVICTION),
        };
        let gates = raw.feature_gates.unwrap_or_default();
        let gate = |name: &str| gates.get(name).copied().flatten();
        let is_configured =
            raw.memory_reservation_policy.is_some() || raw.memory_throttling_factor.is_some();
        // The gate is alpha and off by default before 1.37. Since 1.37 it is beta and on by
        // default.
        let memory_qos = match (gate("MemoryQoS"), gate("AllAlpha"), gate("AllBeta")) {
            (Some(false), ..) => MemoryQos::Off,
            (Some(true), ..) | (None, Some(true), None | Some(true)) => {
                let is_none = raw.memory_reservation_policy.as_deref() == Some("None");
                MemoryQos::On(if is_none { Conflict::MemoryQosNone } else { Conflict::MemoryQos })
            }
            (None, None | Some(false), Some(false)) => MemoryQos::Off,
            _ if is_configured => MemoryQos::On(Conflict::MemoryQosSign),
            _ => MemoryQos::ByVersion,
        };
        Ok(Self {
            system: reserved("systemReserved", raw.system_reserved)?,
            kube: reserved("kubeReserved", raw.kube_reserved)?,
            eviction,
            enforced_for_pods: raw
                .enforce_node_allocatable
                .is_none_or(|list| list.iter().any(|target| target == "pods")),
            memory_qos,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBEPODS_MAX: [&str; 2] =
        ["sys/fs/cgroup/kubepods.slice/memory.max", "sys/fs/cgroup/kubepods/memory.max"];
    use proptest::prelude::*;
    use std::fs;
    use tempfile::TempDir;

    const MIB: u64 = 1 << 20;

    fn mib(amount: u64) -> Bytes {
        Bytes::new(amount * MIB)
    }

    /// Creates a file system with these files and reads the node in it.
    fn node(files: &[(&str, &str)]) -> (TempDir, NodeMemory) {
        let root = TempDir::new().unwrap();
        for (path, text) in [("sys/fs/cgroup/cgroup.controllers", "memory\n")].iter().chain(files) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let guard = fs::read(root.path().join(GuardRecord::PATH)).ok();
        let guard = guard.map(|text| serde_json::from_slice(&text).unwrap());
        let memory = NodeMemory::discover(root.path(), PageSize::KIB4, Ok(guard));
        (root, memory)
    }

    const MEMINFO_8G: &str = "MemTotal:        8388608 kB\nMemFree: 1 kB\nHugePages_Total:       0\nHugepagesize:       2048 kB\nHugetlb:               0 kB\n";
    const CONFIG: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
systemReserved: {cpu: 100m, memory: 300M}
kubeReserved:
  memory: 200Mi
evictionHard:
  memory.available: 500Mi
  nodefs.available: 10%
";
    /// 8Gi minus 300M and 200Mi.
    const BEFORE_EVICTION: u64 = (8 << 30) - 300_000_000 - (200 << 20);

    #[test]
    fn what_is_no_file_is_done_without() {
        let (root, _) = node(&[(MEMINFO, MEMINFO_8G), (KUBELET_CONFIG, CONFIG)]);
        let config = root.path().join(KUBELET_CONFIG);
        std::fs::remove_file(&config).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &config,
            rustix::fs::FileType::Fifo,
            Mode::from(0o600),
            0,
        )
        .unwrap();
        let memory = NodeMemory::discover(root.path(), crate::cgroup::page_size(), Ok(None));
        assert_eq!(memory.source, AllocatableSource::AllMemory);
        assert_eq!(
            memory.problems[0].to_string(),
            "/var/lib/kubelet/config.yaml: expected a regular file; it is done without"
        );
    }

    #[test]
    fn what_the_plugin_itself_has_set_says_nothing_of_the_kubelet() {
        let record =
            r#"{"cgroup": "kubepods", "inode": 7, "before": "max", "lines": [4294967296]}"#;
        let files = [(MEMINFO, MEMINFO_8G), ("run/plimsoll/guard", record)];
        let (_root, guarded) = node(&[files[0], files[1], (KUBEPODS_MAX[1], "4294967296\n")]);
        let (_root, before) = node(&[files[0], (KUBEPODS_MAX[1], "max\n")]);
        assert_eq!((guarded.allocatable, guarded.source), (before.allocatable, before.source));
        // A lower limit comes from the kubelet.
        let (_root, lower) = node(&[files[0], files[1], (KUBEPODS_MAX[1], "4290772992\n")]);
        assert_eq!(lower.allocatable, Some(Bytes::new(4_290_772_992 - (100 << 20))));
    }

    #[test]
    fn the_kubelets_configuration_gives_the_exact_number() {
        let (_root, memory) = node(&[(MEMINFO, MEMINFO_8G), (KUBELET_CONFIG, CONFIG)]);
        assert_eq!(memory.allocatable, Some(Bytes::new(BEFORE_EVICTION - (500 << 20))));
        assert_eq!(
            (memory.source, memory.mem_total),
            (AllocatableSource::KubeletConfig, Some(mib(8192)))
        );
        assert!(memory.problems.is_empty());
        assert_eq!(
            memory.to_string(),
            "node allocatable is 7555931392 bytes (7Gi), from the kubelet's configuration; all memory is 8589934592 bytes (8Gi)"
        );
    }

    #[test]
    fn kubepods_confirms_the_configuration_though_rounded_to_pages() {
        for path in KUBEPODS_MAX {
            let max = format!("{}\n", Bytes::new(BEFORE_EVICTION).floor_to(PageSize::KIB4));
            let (_root, memory) =
                node(&[(MEMINFO, MEMINFO_8G), (KUBELET_CONFIG, CONFIG), (path, &max)]);
            assert_eq!(memory.allocatable, Some(Bytes::new(BEFORE_EVICTION - (500 << 20))));
            assert_eq!(memory.source, AllocatableSource::KubeletConfigConfirmed);
        }
    }

    #[test]
    fn what_is_in_force_outranks_a_configuration_that_does_not_explain_it() {
        let (_root, memory) = node(&[
            (MEMINFO, MEMINFO_8G),
            (KUBELET_CONFIG, CONFIG),
            (KUBEPODS_MAX[0], "4294967296\n"),
        ]);
        assert_eq!(memory.allocatable, Some(mib(4096 - 500)));
        assert_eq!(memory.source, AllocatableSource::KubepodsOverConfig);
    }

    #[test]
    fn kubepods_counts_below_a_cgroup_root() {
        let path = "sys/fs/cgroup/kubelet.slice/kubelet-kubepods.slice/memory.max";
        let (_root, memory) = node(&[(MEMINFO, MEMINFO_8G), (path, "4294967296\n")]);
        assert_eq!(
            (memory.allocatable, memory.source),
            (Some(mib(3996)), AllocatableSource::Kubepods)
        );
    }

    #[test]
    fn a_place_that_cannot_be_searched_is_a_problem() {
        let (root, memory) = node(&[(MEMINFO, MEMINFO_8G)]);
        assert!(memory.problems.is_empty(), "{:?}", memory.problems);
        let cgroups = root.path().join(CGROUPS);
        fs::remove_dir_all(&cgroups).unwrap();
        fs::write(&cgroups, "").unwrap();
        let guard = fs::read(root.path().join(GuardRecord::PATH)).ok();
        let guard = guard.map(|text| serde_json::from_slice(&text).unwrap());
        let memory = NodeMemory::discover(root.path(), PageSize::KIB4, Ok(guard));
        let problem = memory.problems[0].to_string();
        assert!(problem.starts_with("cannot look for kubepods: cgroup root "), "{problem}");
    }

    #[test]
    fn an_absent_gate_is_off_only_where_every_version_has_it_so() {
        let of = |config: &str| KubeletReservations::parse(config).unwrap().memory_qos;
        let gates = |gates: &str| of(&format!("featureGates: {{{gates}}}"));
        assert_eq!(gates("MemoryQoS: false"), MemoryQos::Off);
        assert_eq!(gates("MemoryQoS: false, AllAlpha: true, AllBeta: true"), MemoryQos::Off);
        assert_eq!(gates("AllBeta: false"), MemoryQos::Off);
        assert_eq!(gates("AllBeta: false, AllAlpha: false"), MemoryQos::Off);
        for config in ["", "featureGates: {}", "featureGates: null", "featureGates: {Other: true}"]
        {
            assert_eq!(of(config), MemoryQos::ByVersion, "{config}");
        }
        assert_eq!(gates("AllAlpha: false"), MemoryQos::ByVersion);
        assert_eq!(gates("AllBeta: true"), MemoryQos::ByVersion);
        assert_eq!(
            gates("AllAlpha: true, AllBeta: false"),
            MemoryQos::ByVersion,
            "on only before 1.37"
        );
        assert_eq!(gates("AllAlpha: true"), MemoryQos::On(Conflict::MemoryQos));
        assert_eq!(gates("MemoryQoS: true"), MemoryQos::On(Conflict::MemoryQos));
        let none = "memoryReservationPolicy: None\n";
        assert_eq!(
            of(&format!("{none}featureGates: {{MemoryQoS: true}}")),
            MemoryQos::On(Conflict::MemoryQosNone)
        );
        assert_eq!(of(&format!("{none}featureGates: {{MemoryQoS: false}}")), MemoryQos::Off);
        for sign in
            [none, "memoryReservationPolicy: TieredReservation", "memoryThrottlingFactor: 0.9"]
        {
            assert_eq!(of(sign), MemoryQos::On(Conflict::MemoryQosSign), "{sign}");
        }
    }

    #[test]
    fn a_configuration_that_was_not_read_settles_nothing() {
        let unsettled =
            |files: &[(&str, &str)]| node(files).1.unsettled.map(|unsettled| unsettled.to_string());
        let nowhere = unsettled(&[]).unwrap();
        assert!(
            nowhere
                .contains("no configuration of the kubelet at /var/lib/kubelet/config.yaml; see"),
            "{nowhere}"
        );
        let elsewhere = unsettled(&[
            ("etc/kubernetes/kubelet.yaml", ""),
            ("var/lib/k0s/kubelet/config.yaml", ""),
        ]);
        let elsewhere = elsewhere.unwrap();
        assert!(
            elsewhere.contains(
                "but /etc/kubernetes/kubelet.yaml and /var/lib/k0s/kubelet/config.yaml (not read"
            ),
            "{elsewhere}"
        );
        let broken = unsettled(&[(KUBELET_CONFIG, "featureGates: 7")]);
        assert!(
            broken.is_some_and(
                |broken| broken.starts_with("cannot read /var/lib/kubelet/config.yaml")
            )
        );
        let unset = unsettled(&[(KUBELET_CONFIG, "")]);
        assert!(unset.is_some_and(|unset| unset.contains("on by default from Kubernetes 1.37 on")));
        assert_eq!(unsettled(&[(KUBELET_CONFIG, "featureGates: {MemoryQoS: false}")]), None);
    }

    #[test]
    fn without_enforcement_for_pods_kubepods_says_nothing() {
        let config = format!("{CONFIG}enforceNodeAllocatable: [none]\n");
        for max in ["8589934592\n", "max\n", "4294967296\n"] {
            let (_root, memory) =
                node(&[(MEMINFO, MEMINFO_8G), (KUBELET_CONFIG, &config), (KUBEPODS_MAX[0], max)]);
            assert_eq!(memory.source, AllocatableSource::KubeletConfig, "{max}");
            assert_eq!(
                memory.allocatable,
                Some(Bytes::new(BEFORE_EVICTION - (500 << 20))),
                "{max}"
            );
        }
    }

    #[test]
    fn kubepods_alone_has_only_the_default_eviction_threshold_left_to_subtract() {
        let (_root, memory) = node(&[(MEMINFO, MEMINFO_8G), (KUBEPODS_MAX[1], "4294967296\n")]);
        assert_eq!(
            (memory.allocatable, memory.source),
            (Some(mib(3996)), AllocatableSource::Kubepods)
        );
        let (_root, memory) = node(&[(MEMINFO, MEMINFO_8G), (KUBEPODS_MAX[1], "max\n")]);
        assert_eq!(
            (memory.allocatable, memory.source),
            (Some(mib(8092)), AllocatableSource::Kubepods)
        );
    }

    #[test]
    fn without_a_kubelet_all_memory_but_hugepages_is_allocatable() {
        let meminfo = MEMINFO_8G.replace("Hugetlb:               0", "Hugetlb:         1048576");
        let (_root, memory) = node(&[(MEMINFO, &meminfo)]);
        assert_eq!(
            (memory.allocatable, memory.source),
            (Some(mib(7168)), AllocatableSource::AllMemory)
        );
        assert!(memory.problems.is_empty());
    }

    #[test]
    fn hugepages_are_not_allocatable_either_way_kubepods_counts_them() {
        let meminfo = MEMINFO_8G.replace("Hugetlb:               0", "Hugetlb:         1048576");
        for before in [BEFORE_EVICTION, BEFORE_EVICTION - (1 << 30)] {
            let max = Bytes::new(before).floor_to(PageSize::KIB4).to_string();
            let (_root, memory) =
                node(&[(MEMINFO, &meminfo), (KUBELET_CONFIG, CONFIG), (KUBEPODS_MAX[0], &max)]);
            assert_eq!(
                memory.allocatable,
                Some(Bytes::new(BEFORE_EVICTION - (1 << 30) - (500 << 20))),
                "{before}"
            );
        }
    }

    #[test]
    fn nothing_readable_is_unknown() {
        let (_root, memory) = node(&[]);
        assert_eq!((memory.allocatable, memory.mem_total), (None, None));
        assert_eq!(memory.source, AllocatableSource::Nowhere);
        assert_eq!(
            memory.problems[0].to_string(),
            "/proc/meminfo: expected it to exist; it is done without"
        );
    }

    #[test]
    fn malformed_files_are_named_and_done_without() {
        let (_root, memory) = node(&[
            (MEMINFO, MEMINFO_8G),
            (KUBELET_CONFIG, "systemReserved: {memory: lots}"),
            (KUBEPODS_MAX[0], "soon"),
        ]);
        assert_eq!(memory.source, AllocatableSource::AllMemory);
        let problems: Vec<_> = memory.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "/var/lib/kubelet/config.yaml: systemReserved.memory: expected a quantity such as 128Mi, 1.5Gi, 500M or \
                 1e9, found 'lots'; it is done without",
                "/sys/fs/cgroup/kubepods.slice/memory.max: expected a whole number of bytes or 'max', found 'soon'; it is \
                 done without",
            ]
        );
        let (_root, memory) =
            node(&[(MEMINFO, "MemTotal: many kB"), (KUBEPODS_MAX[0], "4294967296")]);
        assert_eq!((memory.allocatable, memory.mem_total), (Some(mib(3996)), None));
    }

    #[test]
    fn a_directory_in_place_of_a_file_is_a_problem_and_no_panic() {
        let (root, _) = node(&[(MEMINFO, MEMINFO_8G)]);
        fs::create_dir_all(root.path().join(KUBELET_CONFIG)).unwrap();
        let guard = fs::read(root.path().join(GuardRecord::PATH)).ok();
        let guard = guard.map(|text| serde_json::from_slice(&text).unwrap());
        let memory = NodeMemory::discover(root.path(), PageSize::KIB4, Ok(guard));
        assert_eq!(memory.source, AllocatableSource::AllMemory);
        assert_eq!(memory.problems.len(), 1);
    }

    #[test]
    fn eviction_thresholds_have_the_kubelets_defaults_and_percentages() {
        for (config, total, expected) in [
            ("", 8192, mib(100)),
            ("evictionHard: null", 8192, mib(100)),
            ("evictionHard: {}", 8192, Bytes::ZERO),
            ("evictionHard: {nodefs.available: 10%}", 8192, Bytes::ZERO),
            (
                "evictionHard: {nodefs.available: 10%}\nmergeDefaultEvictionSettings: true",
                8192,
                mib(100),
            ),
            ("evictionHard: {memory.available: 1Gi}", 8192, mib(1024)),
            ("evictionHard: {memory.available: '0'}", 8192, Bytes::ZERO),
            ("evictionHard: {memory.available: 25%}", 8192, mib(2048)),
            // 0.05 as a 32-bit fraction is slightly more than 0.05.
            ("evictionHard: {memory.available: '5%'}", 8192, Bytes::new(429_496_736)),
        ] {
            let reservations = KubeletReservations::parse(config).unwrap();
            assert_eq!(reservations.eviction.of(mib(total)), expected, "{config}");
        }
        assert!(KubeletReservations::parse("evictionHard: {memory.available: 101%}").is_err());
        assert!(KubeletReservations::parse("evictionHard: {memory.available: x%}").is_err());
    }

    #[test]
    fn the_kubelets_configuration_may_be_json_and_may_hold_numbers() {
        let reservations = KubeletReservations::parse(
            r#"{"systemReserved": {"memory": 1048576}, "kubeReserved": null, "port": 10250}"#,
        );
        assert_eq!(reservations.map(|reservations| reservations.system), Ok(mib(1)));
    }

    #[test]
    fn reservations_beyond_all_memory_leave_nothing() {
        let (_root, memory) =
            node(&[(MEMINFO, MEMINFO_8G), (KUBELET_CONFIG, "systemReserved: {memory: 7Ei}")]);
        assert_eq!(memory.allocatable, Some(Bytes::ZERO));
    }

    #[test]
    fn old_kernels_have_hugepages_of_one_size() {
        let meminfo =
            MemInfo::parse("MemTotal: 1024 kB\nHugePages_Total: 2\nHugepagesize: 128 kB\n");
        assert_eq!(
            meminfo,
            Ok(MemInfo { total: mib(1), hugepages: Bytes::new(256 << 10), available: Bytes::ZERO })
        );
    }

    proptest! {
        #[test]
        fn any_text_is_meminfo_or_an_error(text in "(MemTotal|Hugetlb|HugePages_Total|Hugepagesize|:| |[0-9]{1,22}|kB|\n|.){0,20}") {
            let _ = MemInfo::parse(&text);
        }

        #[test]
        fn any_text_is_a_kubelet_configuration_or_an_error(text in "(systemReserved|kubeReserved|evictionHard|memory|memory.available|: |[{}%\\[\\],-]|[0-9]{1,22}|Mi|\n|.){0,20}") {
            let _ = KubeletReservations::parse(&text);
        }

        #[test]
        fn allocatable_is_at_most_all_memory(
            total in 1u64..1 << 40, hugepages in 0u64..1 << 40, max in proptest::option::of(0u64..1 << 40),
            reserved in proptest::option::of(0u64..1 << 40),
        ) {
            let meminfo = MemInfo { total: Bytes::new(total), hugepages: Bytes::new(hugepages), available: Bytes::ZERO };
            let config = reserved.map(|reserved| KubeletReservations {
                system: Bytes::new(reserved), kube: Bytes::ZERO, eviction: Threshold::Share(0.05), enforced_for_pods: true,
                memory_qos: MemoryQos::Off,
            });
            let max = max.map(|max| Limit::Bytes(Bytes::new(max)));
            let (allocatable, _) = choose(Some(meminfo), config.as_ref(), max, PageSize::KIB4);
            prop_assert!(allocatable.unwrap() <= meminfo.total);
        }
    }
}

//! Facts about the node's memory, from all sources together.

use std::fmt;
use std::io;
use std::path::Path;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::guard::GuardRecord;
use plimsoll_core::units::{Bytes, Limit, PageSize};
use thiserror::Error;

use super::allocatable::{AllocatableSource, choose};
use super::file::read;
use super::kubelet_config::KubeletReservations;
use super::meminfo::MemInfo;
use super::memory_qos::{Conflict, MemoryQos, UnknownMemoryQos};
use super::paths::{CGROUPS, MEMINFO};
use super::settings::{KubeletFiles, KubeletSettings};
use crate::cgroup::{CgroupError, CgroupRoot, RootError};
use crate::kubelet::kubepods::{self, CgroupSearch};

/// Facts about the node's memory, and the sources of these facts.
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
    /// Errors for files and cgroups that the plugin could not read and therefore ignores.
    pub problems: Vec<NodeError>,
    /// Conflicts: settings that make the kubelet set the same cgroup files as the plugin, each with
    /// the solution.
    pub conflicts: Vec<Conflict>,
    /// Reason why the plugin does not know whether the kubelet sets the same cgroup files as the
    /// plugin.
    pub unsettled: Option<UnknownMemoryQos>,
    /// The kubelet's settings.
    pub kubelet: KubeletSettings,
}

/// Problem with a file that could have determined node allocatable.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The file could not be read.
    #[error("{path}: {error}; the plugin ignores it")]
    Io {
        /// Path of the file.
        path: String,
        /// The cause.
        error: io::Error,
    },
    /// The file has unexpected content.
    #[error("{path}: {expected}; the plugin ignores it")]
    Form {
        /// Path of the file.
        path: String,
        /// The expected and the observed content.
        expected: String,
    },
    /// The plugin could not open the root of the cgroup hierarchy.
    #[error("cannot look for kubepods: {0}; the plugin ignores it")]
    Root(#[from] RootError),
    /// The plugin could not list a cgroup that may contain kubepods.
    #[error("cannot look for kubepods: {0}; the plugin ignores it")]
    Search(#[from] CgroupError),
}

/// Writes one sentence for the log.
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
    /// Examines the node whose file system is at `root`, usually `/`. Never fails, but lists
    /// unreadable files in `problems`. A missing file is a problem only if no other source can
    /// replace the file. `guard` describes how the node guard changed `memory.max` of kubepods.
    /// `named` are the files of the kubelet that the plugin's configuration names.
    pub fn discover(
        root: &Path,
        page: PageSize,
        guard: io::Result<Option<GuardRecord>>,
        named: &KubeletFiles,
    ) -> Self {
        let mut files = Files { root, problems: Vec::new() };
        let meminfo = files.read(MEMINFO);
        let kubelet = KubeletSettings::discover(root, named);
        files.problems.extend(kubelet.unusable.iter().map(|(path, expected)| NodeError::Form {
            path: path.clone(),
            expected: expected.clone(),
        }));
        let (kubepods, unsearched) = find_kubepods(root);
        let kubepods = kubepods.into_iter().find_map(|cgroup| {
            let path = format!("{CGROUPS}{cgroup}/memory.max");
            let text = files.read(&path)?;
            Some((cgroup, path, text))
        });
        let record = guard.unwrap_or_else(|error| {
            files.problems.push(NodeError::Io { path: format!("/{}", GuardRecord::PATH), error });
            None
        });
        files.problems.extend(unsearched);

        let meminfo = match meminfo {
            Some(text) => MemInfo::parse(&text),
            None => Err("expected it to exist".to_owned()),
        };
        let meminfo = files.parsed(MEMINFO, meminfo);
        let kubepods = kubepods.and_then(|(cgroup, path, text)| {
            let limit = files.parsed(&path, text.trim_end().parse::<Limit>())?;
            // A value that the node guard has set contains no information about the kubelet.
            let record = record.filter(|record| record.cgroup == cgroup);
            Some(record.map_or(limit, |record| record.without(limit)))
        });
        let (allocatable, source) = choose(meminfo, kubelet.reservations.as_ref(), kubepods, page);
        let (conflict, unsettled) = settle(&kubelet);
        Self {
            mem_total: meminfo.map(|meminfo| meminfo.total),
            usable: meminfo.map(MemInfo::usable),
            allocatable,
            source,
            problems: files.problems,
            conflicts: conflict.into_iter().collect(),
            unsettled,
            kubelet,
        }
    }
}

/// Reader of the node's files. Collects problems.
struct Files<'a> {
    /// Root of the node's file system.
    root: &'a Path,
    problems: Vec<NodeError>,
}

impl Files<'_> {
    /// Reads a file. Returns `None` if the file does not exist or cannot be read.
    fn read(&mut self, path: &str) -> Option<String> {
        read(self.root, path).unwrap_or_else(|error| {
            self.problems.push(NodeError::Io { path: format!("/{path}"), error });
            None
        })
    }

    /// Returns the parsed content of a file. Adds a parsing error to the problems.
    fn parsed<T>(&mut self, path: &str, parsed: Result<T, impl ToString>) -> Option<T> {
        parsed
            .map_err(|error| {
                let expected = error.to_string();
                self.problems.push(NodeError::Form { path: format!("/{path}"), expected });
            })
            .ok()
    }
}

/// Determines whether the kubelet's own MemoryQoS is on.
fn settle(kubelet: &KubeletSettings) -> (Option<Conflict>, Option<UnknownMemoryQos>) {
    let config = kubelet.config.clone().unwrap_or_else(|| "the kubelet".to_owned());
    let unknown = match &kubelet.reservations {
        Some(KubeletReservations { memory_qos: MemoryQos::On(conflict), .. }) => {
            return (Some(*conflict), None);
        }
        Some(KubeletReservations { memory_qos: MemoryQos::Off, .. }) => {
            (!kubelet.doubts.is_empty()).then(|| UnknownMemoryQos::Doubt(kubelet.doubts.join("; ")))
        }
        Some(_) => Some(UnknownMemoryQos::DefaultOfVersion(config)),
        None if kubelet.is_found => {
            let path = kubelet.unusable.first().map(|(path, _)| path.clone());
            Some(UnknownMemoryQos::Unusable(path.unwrap_or(config)))
        }
        None => Some(UnknownMemoryQos::NoConfig(config)),
    };
    (None, unknown)
}

/// Finds the kubepods cgroups on the node whose file system is at `root`. Also returns errors for
/// cgroups that the search could not list.
fn find_kubepods(root: &Path) -> (Vec<CgroupPath>, Vec<NodeError>) {
    match CgroupRoot::open(&root.join(CGROUPS)) {
        Ok(root) => {
            let CgroupSearch { found, problems } = kubepods::find(&root);
            (found, problems.into_iter().map(NodeError::from).collect())
        }
        Err(error) if error.is_absent() => (Vec::new(), Vec::new()),
        Err(error) => (Vec::new(), vec![error.into()]),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::Mode;
    use tempfile::TempDir;

    use super::*;

    const KUBEPODS_MAX: [&str; 2] =
        ["sys/fs/cgroup/kubepods.slice/memory.max", "sys/fs/cgroup/kubepods/memory.max"];

    const KUBELET_CONFIG: &str = "var/lib/kubelet/config.yaml";

    const MIB: u64 = 1 << 20;

    fn mib(amount: u64) -> Bytes {
        Bytes::new(amount * MIB)
    }

    /// Creates a directory with these files and reads it as the node's file system.
    fn node(files: &[(&str, &str)]) -> (TempDir, NodeMemory) {
        let root = TempDir::new().unwrap();
        let always = [
            ("sys/fs/cgroup/cgroup.controllers", "memory\n"),
            ("proc/42/comm", "kubelet\n"),
            ("proc/42/status", "Uid:\t0\t0\t0\t0\n"),
            ("proc/42/cgroup", "0::/system.slice/kubelet.service\n"),
            ("proc/42/cmdline", "kubelet\0--config=/var/lib/kubelet/config.yaml\0"),
        ];
        for (path, text) in always.iter().chain(files) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let guard = fs::read(root.path().join(GuardRecord::PATH)).ok();
        let guard = guard.map(|text| serde_json::from_slice(&text).unwrap());
        let memory =
            NodeMemory::discover(root.path(), PageSize::KIB4, Ok(guard), &KubeletFiles::default());
        (root, memory)
    }

    const MEMINFO_8G: &str = "MemTotal:        8388608 kB\nMemFree: 1 kB\n\
         HugePages_Total:       0\nHugepagesize:       2048 kB\n\
         Hugetlb:               0 kB\n";

    const CONFIG: &str = "apiVersion: kubelet.config.k8s.io/v1beta1
kind: \
                          KubeletConfiguration
systemReserved: {cpu: 100m, memory: \
                          300M}
kubeReserved:
  memory: 200Mi
evictionHard:
  memory.available: \
                          500Mi
  nodefs.available: 10%
";

    /// Node allocatable before the eviction threshold: 8Gi minus the reserved 300M and 200Mi.
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
        let memory = NodeMemory::discover(
            root.path(),
            crate::cgroup::page_size(),
            Ok(None),
            &KubeletFiles::default(),
        );
        assert_eq!(memory.source, AllocatableSource::AllMemory);
        assert_eq!(
            memory.problems[0].to_string(),
            "/var/lib/kubelet/config.yaml: expected a regular file; the plugin ignores it"
        );
    }

    #[test]
    fn the_node_guards_own_limit_is_ignored() {
        let record =
            r#"{"cgroup": "kubepods", "inode": 7, "before": "max", "lines": [4294967296]}"#;
        let files = [(MEMINFO, MEMINFO_8G), ("run/plimsoll/guard", record)];
        let (_root, guarded) = node(&[files[0], files[1], (KUBEPODS_MAX[1], "4294967296\n")]);
        let (_root, before) = node(&[files[0], (KUBEPODS_MAX[1], "max\n")]);
        assert_eq!((guarded.allocatable, guarded.source), (before.allocatable, before.source));
        // The kubelet has set a lower memory.max.
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
            "node allocatable is 7555931392 bytes (7Gi), from the kubelet's configuration; all \
             memory is 8589934592 bytes (8Gi)"
        );
    }

    #[test]
    fn page_rounded_kubepods_confirms_the_configuration() {
        for path in KUBEPODS_MAX {
            let max = format!("{}\n", Bytes::new(BEFORE_EVICTION).floor_to(PageSize::KIB4));
            let (_root, memory) =
                node(&[(MEMINFO, MEMINFO_8G), (KUBELET_CONFIG, CONFIG), (path, &max)]);
            assert_eq!(memory.allocatable, Some(Bytes::new(BEFORE_EVICTION - (500 << 20))));
            assert_eq!(memory.source, AllocatableSource::KubeletConfigConfirmed);
        }
    }

    #[test]
    fn contradicting_kubepods_outranks_the_configuration() {
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
    fn an_unsearchable_cgroup_root_is_a_problem() {
        let (root, memory) = node(&[(MEMINFO, MEMINFO_8G)]);
        assert!(memory.problems.is_empty(), "{:?}", memory.problems);
        let cgroups = root.path().join(CGROUPS);
        fs::remove_dir_all(&cgroups).unwrap();
        fs::write(&cgroups, "").unwrap();
        let guard = fs::read(root.path().join(GuardRecord::PATH)).ok();
        let guard = guard.map(|text| serde_json::from_slice(&text).unwrap());
        let memory =
            NodeMemory::discover(root.path(), PageSize::KIB4, Ok(guard), &KubeletFiles::default());
        let problem = memory.problems[0].to_string();
        assert!(problem.starts_with("cannot look for kubepods: cgroup root "), "{problem}");
    }

    #[test]
    fn an_unread_gate_leaves_memory_qos_unknown() {
        let unsettled =
            |files: &[(&str, &str)]| node(files).1.unsettled.map(|unsettled| unsettled.to_string());
        let nowhere = unsettled(&[]).unwrap();
        assert!(
            nowhere
                .contains("no configuration of the kubelet at /var/lib/kubelet/config.yaml; set"),
            "{nowhere}"
        );
        let broken = unsettled(&[(KUBELET_CONFIG, "featureGates: 7")]);
        assert!(
            broken.is_some_and(
                |broken| broken.starts_with("cannot use /var/lib/kubelet/config.yaml")
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
    fn default_eviction_is_subtracted_from_kubepods_alone() {
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
    fn without_kubelet_only_hugepages_are_subtracted() {
        let meminfo = MEMINFO_8G.replace("Hugetlb:               0", "Hugetlb:         1048576");
        let (_root, memory) = node(&[(MEMINFO, &meminfo)]);
        assert_eq!(
            (memory.allocatable, memory.source),
            (Some(mib(7168)), AllocatableSource::AllMemory)
        );
        assert!(memory.problems.is_empty());
    }

    #[test]
    fn hugepages_are_subtracted_exactly_once() {
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
            "/proc/meminfo: expected it to exist; the plugin ignores it"
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
                "/var/lib/kubelet/config.yaml: systemReserved.memory: expected a quantity such as \
                 128Mi, 1.5Gi, 500M or 1e9, found 'lots'; the plugin ignores it",
                "/sys/fs/cgroup/kubepods.slice/memory.max: expected a whole number of bytes or \
                 'max', found 'soon'; the plugin ignores it",
            ]
        );
        let (_root, memory) =
            node(&[(MEMINFO, "MemTotal: many kB"), (KUBEPODS_MAX[0], "4294967296")]);
        assert_eq!((memory.allocatable, memory.mem_total), (Some(mib(3996)), None));
    }

    #[test]
    fn a_directory_as_configuration_is_a_problem() {
        let (root, _) = node(&[(MEMINFO, MEMINFO_8G)]);
        fs::create_dir_all(root.path().join(KUBELET_CONFIG)).unwrap();
        let guard = fs::read(root.path().join(GuardRecord::PATH)).ok();
        let guard = guard.map(|text| serde_json::from_slice(&text).unwrap());
        let memory =
            NodeMemory::discover(root.path(), PageSize::KIB4, Ok(guard), &KubeletFiles::default());
        assert_eq!(memory.source, AllocatableSource::AllMemory);
        assert_eq!(memory.problems.len(), 1);
    }

    #[test]
    fn reservations_beyond_all_memory_leave_nothing() {
        let (_root, memory) =
            node(&[(MEMINFO, MEMINFO_8G), (KUBELET_CONFIG, "systemReserved: {memory: 7Ei}")]);
        assert_eq!(memory.allocatable, Some(Bytes::ZERO));
    }
}

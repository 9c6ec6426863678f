//! Facts about the cgroup hierarchy.

use std::collections::BTreeSet;
use std::path::Path;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::pod::kubepods::classes;

use crate::cgroup::CgroupRoot;
use crate::host::files::{Text, Unreadable, is_there, list, names, read};
use crate::kubelet::kubepods::{self, CgroupSearch};

/// Mount point of the cgroup hierarchy. The path is relative to the node's root directory.
pub(crate) const CGROUPS: &str = "sys/fs/cgroup";

/// Kind of the mounted cgroup hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hierarchy {
    V2,
    Hybrid,
    V1,
    Missing,
}

/// A cgroup above the pods, with the information whether it enables the memory controller for its
/// children.
#[derive(Debug)]
pub(crate) struct CgroupLevel {
    /// Path relative to the cgroup root; empty for the cgroup root itself.
    pub(crate) path: String,
    pub(crate) enabled: Result<bool, Unreadable>,
    pub(crate) has_children: Result<bool, Unreadable>,
}

/// A cgroup with the memory controller, and the names of necessary files that are missing there.
#[derive(Debug)]
pub(crate) struct SampleCgroup {
    pub(crate) path: String,
    pub(crate) missing: Vec<&'static str>,
    /// For each file whose existence doctor could not determine: the name and the error.
    pub(crate) unread: Vec<String>,
}

/// Facts about the cgroup hierarchy.
#[derive(Debug)]
pub(crate) struct CgroupFacts {
    pub(crate) hierarchy: Result<Hierarchy, Unreadable>,
    pub(crate) controllers: Text,
    pub(crate) disables_memory: bool,
    pub(crate) levels: Vec<CgroupLevel>,
    /// Errors of the search for the kubepods cgroup.
    pub(crate) unsearched: Vec<String>,
    pub(crate) sample: Option<SampleCgroup>,
    pub(crate) is_recursive: Result<bool, Unreadable>,
    pub(crate) pressure: Text,
    /// Whether the cgroup `system.slice` exists.
    pub(crate) has_system_slice: Result<bool, Unreadable>,
}

impl CgroupFacts {
    pub(super) fn collect(host: &Path) -> Self {
        let file = |path: &str| read(&host.join(path));
        let root = host.join(CGROUPS);
        let opened = CgroupRoot::open(&root);
        let CgroupSearch { found: kubepods, problems } =
            opened.as_ref().map(kubepods::find).unwrap_or_default();
        let mut unsearched: Vec<_> = problems.iter().map(ToString::to_string).collect();
        unsearched.extend(
            opened.as_ref().err().filter(|error| !error.is_absent()).map(ToString::to_string),
        );
        let sample = SampleCgroup::find(&root, &kubepods);
        let path = sample.as_ref().map_or("", |sample| sample.path.as_str());
        let pressure = format!("{CGROUPS}/{path}/memory.pressure");
        Self {
            hierarchy: Hierarchy::find(&root),
            controllers: read(&root.join("cgroup.controllers")),
            disables_memory: file("proc/cmdline").ok().flatten().is_some_and(|line| {
                line.split_ascii_whitespace().any(|word| word == "cgroup_disable=memory")
            }),
            levels: CgroupLevel::above_pods(&root, &kubepods),
            unsearched,
            sample,
            is_recursive: find_recursive_protection(host, opened.as_ref().ok()),
            pressure: file(&pressure),
            has_system_slice: is_there(&root.join("system.slice")),
        }
    }
}

impl Hierarchy {
    fn find(root: &Path) -> Result<Self, Unreadable> {
        let has = |path: &str| is_there(&root.join(path));
        Ok(if has("cgroup.controllers")? {
            Self::V2
        } else if has("unified/cgroup.controllers")? {
            Self::Hybrid
        } else if has("memory")? || has("cpu")? {
            Self::V1
        } else {
            Self::Missing
        })
    }
}

impl SampleCgroup {
    /// Returns a cgroup with the memory controller, preferably the cgroup of all pods.
    fn find(root: &Path, kubepods: &[CgroupPath]) -> Option<Self> {
        let tops = kubepods.iter().map(|cgroup| cgroup.as_str().to_owned());
        let path = tops.chain(names(root)).find(|name| {
            let path = root.join(name);
            path.is_dir() && path.join("memory.current").exists()
        })?;
        let mut sample = Self { path, missing: Vec::new(), unread: Vec::new() };
        for file in ["memory.high", "memory.reclaim", "memory.oom.group"] {
            match is_there(&root.join(&sample.path).join(file)) {
                Ok(true) => {}
                Ok(false) => sample.missing.push(file),
                Err(error) => sample.unread.push(format!("{file}: {}", error.why)),
            }
        }
        Some(sample)
    }
}

impl CgroupLevel {
    /// Returns kubepods, the cgroups of the QoS classes, and all ancestors of these cgroups up to
    /// the cgroup root.
    fn above_pods(root: &Path, kubepods: &[CgroupPath]) -> Vec<Self> {
        let mut above = BTreeSet::from([String::new()]);
        for cgroup in kubepods.iter().cloned().chain(kubepods.iter().flat_map(classes)) {
            above.extend(cgroup.lineage().map(|cgroup| cgroup.as_str().to_owned()));
        }
        let levels = above
            .into_iter()
            .filter(|path| root.join(path).try_exists().unwrap_or(true))
            .map(|path| {
                let text = read(&root.join(&path).join("cgroup.subtree_control"));
                let enabled = text.and_then(|text| text.ok_or_else(Unreadable::missing));
                Self {
                    enabled: enabled.map(|text| has_memory(Some(&text))),
                    has_children: list(&root.join(&path))
                        .map(|names| names.iter().any(|name| root.join(&path).join(name).is_dir())),
                    path,
                }
            });
        levels.collect()
    }
}

/// Returns whether cgroup2 is mounted with `memory_recursiveprot`. `opened` is the cgroup root, or
/// `None` if doctor could not open the cgroup root.
fn find_recursive_protection(host: &Path, opened: Option<&CgroupRoot>) -> Result<bool, Unreadable> {
    let mounts = read(&host.join("proc/self/mounts"))?;
    let is_cgroup2 = |line: &str| line.split_ascii_whitespace().nth(2) == Some("cgroup2");
    let has_it = mounts.is_some_and(|mounts| mounts.lines().any(is_cgroup2));
    let recursive = opened.filter(|_| has_it).map(CgroupRoot::recursive_protection);
    recursive.ok_or_else(|| Unreadable {
        is_denied: false,
        why: "expected a mount of cgroup2".to_owned(),
    })
}

/// Returns whether a list of cgroup controllers contains `memory`.
pub(crate) fn has_memory(controllers: Option<&str>) -> bool {
    controllers
        .unwrap_or_default()
        .split_ascii_whitespace()
        .any(|controller| controller == "memory")
}

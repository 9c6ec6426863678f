//! Finds the cgroups of the kubelet's pods. No other module searches the hierarchy for pods.
//!
//! The kubelet creates one kubepods cgroup, which contains all pods, below its `--cgroup-root`. Its
//! name depends on the kubelet's cgroup driver:
//!
//! - cgroupfs: `kubepods`, such as `/kubepods` or `/kubelet/kubepods`;
//! - systemd: `kubepods.slice`, or `PREFIX-kubepods.slice` below a cgroup root, such as
//!   `/kubelet.slice/kubelet-kubepods.slice`.
//!
//! The search goes down the hierarchy level by level and ends at the first level with one of these
//! names. A deeper cgroup with this name belongs to another Kubernetes node, which may run in a
//! container of this node. If the search cannot list a cgroup, it reports an error, because the
//! cgroup may contain pods. An empty result is reliable only if the search reports no error.
//!
//! Source: `pkg/kubelet/cm/cgroup_manager_linux.go` of Kubernetes (`NewCgroupName`, `ToSystemd`).

use std::io;

use plimsoll_core::pod::kubepods::is_kubepods;
use plimsoll_core::pod::{CgroupPath, PodCgroup};

use crate::cgroup::{CgroupError, CgroupRoot};

/// Maximum depth of the search, in components of a path.
const DEEPEST: usize = 5;

/// Maximum number of cgroups that one search lists.
const MAX_SEARCHED: usize = 4096;

/// Length of a container's ID, which consists of hexadecimal digits.
const ID: usize = 64;

/// Result of a search: the cgroups that the search found, and the errors for cgroups that the
/// search could not list.
#[derive(Debug)]
pub struct CgroupSearch<T> {
    /// Cgroups that the search found.
    pub found: Vec<T>,
    /// Errors for cgroups that the search could not list. If there are errors, more cgroups may
    /// exist than the search found.
    pub problems: Vec<CgroupError>,
}

impl<T> Default for CgroupSearch<T> {
    fn default() -> Self {
        Self { found: Vec::new(), problems: Vec::new() }
    }
}

/// Returns whether a cgroup with this name cannot contain pods of this node's kubelet, because it
/// is the cgroup of a container or a login session.
fn is_leaf(name: &str) -> bool {
    let is_id =
        name.len() >= ID && name.bytes().rev().take(ID).all(|byte| byte.is_ascii_hexdigit());
    is_id || name.ends_with(".scope")
}

/// Finds the kubepods cgroups. A node usually has exactly one. Several exist if the kubelet was
/// restarted with another cgroup driver since the node booted. Cgroups of the systemd driver come
/// first.
pub fn find(root: &CgroupRoot) -> CgroupSearch<CgroupPath> {
    let mut answer = CgroupSearch::default();
    let mut listed = 0;
    let mut level = match root.children() {
        Ok(children) => children,
        Err(error) => {
            answer.problems.push(error);
            return answer;
        }
    };
    for depth in 1..=DEEPEST {
        let (kubepods, others): (Vec<_>, Vec<_>) =
            level.into_iter().partition(|cgroup| is_kubepods(cgroup.name()));
        if !kubepods.is_empty() || depth == DEEPEST {
            answer.found = kubepods;
            break;
        }
        level = Vec::new();
        for cgroup in others.into_iter().filter(|cgroup| !is_leaf(cgroup.name())) {
            listed += 1;
            if listed > MAX_SEARCHED {
                let operation =
                    format!("look for pods in it: {MAX_SEARCHED} cgroups were searched already");
                let error = io::Error::other("expected fewer cgroups");
                answer.problems.push(CgroupError::Io { path: cgroup, operation, error });
                return answer;
            }
            level.extend(answer.children(root, &cgroup));
        }
    }
    answer.found.sort_by_key(|cgroup| (!cgroup.name().ends_with(".slice"), cgroup.clone()));
    answer
}

/// Finds the cgroups of single pods. Searches below each kubepods cgroup: those that [`find`]
/// finds, and those in `known`.
pub fn pods(
    root: &CgroupRoot,
    known: impl IntoIterator<Item = CgroupPath>,
) -> CgroupSearch<CgroupPath> {
    let CgroupSearch { found: mut kubepods, problems } = find(root);
    kubepods.extend(known);
    kubepods.sort();
    kubepods.dedup();
    let mut answer = CgroupSearch { found: Vec::new(), problems };
    for kubepods in kubepods {
        for child in answer.children(root, &kubepods) {
            if PodCgroup::parse(child.as_str()).is_some() {
                answer.found.push(child);
            } else {
                let pods = answer.children(root, &child).into_iter();
                answer.found.extend(pods.filter(|pod| PodCgroup::parse(pod.as_str()).is_some()));
            }
        }
    }
    answer
}

/// Finds the cgroups of containers and sandboxes, which are children of the pods' cgroups. Returns
/// each cgroup together with the ID in the cgroup's name.
pub fn containers(
    root: &CgroupRoot,
    known: impl IntoIterator<Item = CgroupPath>,
) -> CgroupSearch<(String, CgroupPath)> {
    let CgroupSearch { found: pods, problems } = pods(root, known);
    let mut answer = CgroupSearch { found: Vec::new(), problems };
    for pod in pods {
        let containers = answer.children(root, &pod).into_iter();
        answer.found.extend(containers.map(|cgroup| (id_in(cgroup.name()).to_owned(), cgroup)));
    }
    answer
}

impl<T> CgroupSearch<T> {
    /// Lists the children of a cgroup. Returns no children for a cgroup that is gone.
    fn children(&mut self, root: &CgroupRoot, cgroup: &CgroupPath) -> Vec<CgroupPath> {
        match root.cgroup(cgroup).and_then(|cgroup| cgroup.children()) {
            Ok(children) => children,
            Err(CgroupError::Gone(_)) => Vec::new(),
            Err(error) => {
                self.problems.push(error);
                Vec::new()
            }
        }
    }
}

/// Returns the ID in the name of the cgroup that a runtime created for a container or sandbox.
/// Known forms are `ID` and `PREFIX-ID.scope`. CRI-O with the cgroupfs driver uses `crio-ID` and
/// `crio-conmon-ID`. Kata uses `kata_ID`.
pub fn id_in(name: &str) -> &str {
    if let Some(id) = name.strip_prefix("kata_") {
        return id;
    }
    let scope = name.strip_suffix(".scope");
    let prefixed = scope.or_else(|| name.starts_with("crio-").then_some(name));
    prefixed.and_then(|name| Some(name.rsplit_once('-')?.1)).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Creates a hierarchy with these cgroups.
    fn tree(cgroups: &[&str]) -> (tempfile::TempDir, CgroupRoot) {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("cgroup.controllers"), "memory\n").unwrap();
        for cgroup in cgroups {
            fs::create_dir_all(tree.path().join(cgroup)).unwrap();
        }
        let root = CgroupRoot::open(tree.path()).unwrap();
        (tree, root)
    }

    fn paths(found: &[CgroupPath]) -> Vec<&str> {
        found.iter().map(CgroupPath::as_str).collect()
    }

    #[test]
    fn kubepods_is_found_below_any_cgroup_root() {
        for kubepods in [
            "kubepods",
            "kubepods.slice",
            "kubelet/kubepods",
            "kubelet.slice/kubelet-kubepods.slice",
            "a.slice/a-b.slice/a-b-kubepods.slice",
            "system.slice/k3s.service/kubepods",
            "a/b/c/d/kubepods",
        ] {
            let (_tree, root) =
                tree(&[kubepods, "system.slice/ssh.service", "user.slice", "init.scope"]);
            let CgroupSearch { found, problems } = find(&root);
            assert_eq!(paths(&found), [kubepods]);
            assert!(problems.is_empty(), "{kubepods}: {problems:?}");
        }
    }

    #[test]
    fn without_a_kubelet_nothing_is_found() {
        let id = "c0ffee00".repeat(8);
        let in_a_container = format!("docker/{id}/kubelet/kubepods");
        let in_a_scope = format!("system.slice/docker-{id}.scope/kubepods.slice");
        let deep = "a/b/c/d/e/kubepods";
        let odd = ["system.slice/mykubepods", "kubepods.service", "kubepods-burstable.slice"];
        let (_tree, root) =
            tree(&[&[in_a_container.as_str(), &in_a_scope, deep], &odd[..]].concat());
        let CgroupSearch { found, problems } = find(&root);
        assert_eq!(paths(&found), [""; 0]);
        assert!(problems.is_empty(), "{problems:?}");
    }

    #[test]
    fn only_the_highest_matching_level_is_found() {
        let (_tree, root) = tree(&["lxc/node/kubepods", "kubepods", "kubepods.slice"]);
        assert_eq!(paths(&find(&root).found), ["kubepods.slice", "kubepods"]);
    }

    #[test]
    fn what_cannot_be_listed_is_an_error() {
        // Replace the directory by a symbolic link, because not even root can open a link here.
        let (tree, root) = tree(&["kubepods.slice/kubepods-burstable.slice"]);
        let elsewhere = tempfile::tempdir().unwrap();
        let class = tree.path().join("kubepods.slice/kubepods-burstable.slice");
        let pod = CgroupPath::parse("kubepods.slice/kubepods-burstable.slice").unwrap();
        assert!(containers(&root, []).problems.is_empty());
        fs::remove_dir(&class).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), &class).unwrap();
        let found = containers(&root, [pod.clone()]);
        assert!(found.found.is_empty());
        assert!(
            matches!(&found.problems[..], [CgroupError::Io { path, .. }] if *path == pod),
            "{:?}",
            found.problems
        );
    }

    #[test]
    fn searching_over_4096_cgroups_is_an_error() {
        let many: Vec<_> =
            (0..=MAX_SEARCHED).map(|number| format!("system.slice/{number}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).chain(["z/kubepods"]).collect();
        let (_tree, root) = tree(&many);
        // kubepods is on the second level, so the search ends before it lists the other cgroups
        // there.
        assert_eq!(paths(&find(&root).found), ["z/kubepods"]);
        let (_tree, root) = tree(&many[..=MAX_SEARCHED]);
        let CgroupSearch { found, problems } = find(&root);
        assert!(found.is_empty());
        assert!(
            problems.len() == 1 && problems[0].to_string().contains("4096 cgroups"),
            "{problems:?}"
        );
    }

    #[test]
    fn containers_are_found_with_their_ids() {
        let uid = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";
        let escaped = uid.replace('-', "_");
        let systemd = "kubelet.slice/kubelet-kubepods.slice";
        let (_tree, root) = tree(&[
            &format!(
                "{systemd}/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-\
                 pod{escaped}.slice/cri-containerd-1.scope"
            ),
            &format!("{systemd}/kubelet-kubepods-pod{escaped}.slice/crio-2.scope"),
            &format!("{systemd}/other/3"),
            &format!("rootless/pods/kubepods/besteffort/pod{uid}/4"),
        ]);
        let ids = |known: Option<&str>| {
            let known = known.map(|path| CgroupPath::parse(path).unwrap());
            let mut ids: Vec<_> =
                containers(&root, known).found.into_iter().map(|(id, _)| id).collect();
            ids.sort();
            ids
        };
        assert_eq!(ids(None), ["1", "2"]);
        assert_eq!(ids(Some(systemd)), ["1", "2"]);
        assert_eq!(ids(Some("rootless/pods/kubepods")), ["1", "2", "4"]);
    }
}

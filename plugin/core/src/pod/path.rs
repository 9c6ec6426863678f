//! Paths of cgroups.

use std::{fmt, iter};

use serde::{Deserialize, Serialize};

use crate::units::excerpt;

/// Name of the inner cgroup that crun creates in a container's scope for the container's processes.
/// crun sets the same values twice: as systemd properties of the scope, and in the files of the
/// inner cgroup.
pub const SUBGROUP: &str = "container";

/// Path of a cgroup. The text is relative to the root cgroup and contains no `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct CgroupPath(String);

impl TryFrom<String> for CgroupPath {
    type Error = InvalidPath;

    fn try_from(path: String) -> Result<Self, InvalidPath> {
        Self::parse(&path)
    }
}

/// Error: the text is not a valid path of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cgroup path {0:?}: expected SLICE.slice:PREFIX:NAME, or a path beneath the cgroup root \
     without . or .."
)]
pub struct InvalidPath(String);

impl CgroupPath {
    /// Parses `linux.cgroupsPath` of OCI in both of its forms:
    ///
    /// - with the systemd driver: `SLICE:PREFIX:NAME`, which means the scope `PREFIX-NAME.scope` in
    ///   the slice `SLICE`;
    /// - otherwise a path, where a leading `/` means the root of the hierarchy.
    ///
    /// # Errors
    ///
    /// Fails if the text has neither form, or if the path would leave the root.
    ///
    /// Source: runc `libcontainer/cgroups/systemd/common.go` (`ExpandSlice`, `getUnitName`).
    pub fn parse(cgroups_path: &str) -> Result<Self, InvalidPath> {
        let invalid = || InvalidPath(excerpt(cgroups_path));
        let path = match cgroups_path.split(':').collect::<Vec<_>>()[..] {
            [slice, prefix, name] if slice.ends_with(".slice") && !slice.contains('/') => {
                let unit = if name.ends_with(".slice") {
                    name.to_owned()
                } else {
                    format!("{prefix}-{name}.scope")
                };
                match expand_slice(slice).ok_or_else(invalid)? {
                    // systemd's root slice is the root of the hierarchy.
                    root if root.is_empty() => unit,
                    slice => format!("{slice}/{unit}"),
                }
            }
            _ => cgroups_path.trim_matches('/').to_owned(),
        };
        if path.split('/').all(is_part) { Ok(Self(path)) } else { Err(invalid()) }
    }

    /// Returns the slice in which systemd runs system services. Source: systemd.special(7).
    pub fn system_slice() -> Self {
        Self("system.slice".to_owned())
    }

    /// Returns the direct child of the root with this name. Returns `None` if the name is not valid
    /// for a cgroup.
    pub fn top(name: &str) -> Option<Self> {
        is_part(name).then(|| Self(name.to_owned()))
    }

    /// Returns the root itself. The plugin uses this path only in messages and never opens it.
    pub const fn root() -> Self {
        Self(String::new())
    }

    /// Parses the cgroup parent of a pod (`pod.linux.cgroup_parent` in NRI). With the systemd
    /// driver, the text is the name or the path of a slice. With the cgroupfs driver, the text is a
    /// path.
    ///
    /// # Errors
    ///
    /// Fails if the text has neither form, or if the path would leave the root.
    pub fn of_parent(cgroup_parent: &str) -> Result<Self, InvalidPath> {
        if cgroup_parent.contains('/') || !cgroup_parent.ends_with(".slice") {
            return Self::parse(cgroup_parent);
        }
        let invalid = || InvalidPath(excerpt(cgroup_parent));
        Self::parse(&expand_slice(cgroup_parent).ok_or_else(invalid)?)
    }

    /// Returns the last component of the path.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// Returns the parent cgroup. Returns `None` if the parent is the root.
    pub fn parent(&self) -> Option<Self> {
        Some(Self(self.0.rsplit_once('/')?.0.to_owned()))
    }

    /// Returns this cgroup and its ancestors, the nearest first, without the root.
    pub fn lineage(&self) -> impl Iterator<Item = Self> + use<> {
        iter::successors(Some(self.clone()), Self::parent)
    }

    /// Returns whether this cgroup is a descendant of `other`.
    pub fn is_below(&self, other: &Self) -> bool {
        self.0.strip_prefix(&other.0).is_some_and(|rest| rest.starts_with('/'))
    }

    /// Returns the child cgroup with this name, or `None` if the name is not valid for a cgroup.
    pub fn join(&self, name: &str) -> Option<Self> {
        is_part(name).then(|| Self(format!("{}/{name}", self.0)))
    }

    /// Returns the inner cgroup in which crun puts the processes of a container. Returns `None` if
    /// this path is not a scope.
    pub fn subgroup(&self) -> Option<Self> {
        if self.0.ends_with(".scope") { self.join(SUBGROUP) } else { None }
    }

    /// Returns the path relative to the root.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}

fn is_part(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

/// Expands the name of a slice to its path. `a-b.slice` lies in `a.slice`, so its path is
/// `a.slice/a-b.slice`. The path of the root slice `-.slice` is empty.
fn expand_slice(slice: &str) -> Option<String> {
    let stem = slice.strip_suffix(".slice")?;
    if stem == "-" {
        return Some(String::new());
    }
    if stem.split('-').any(str::is_empty) {
        return None;
    }
    let ends = stem.match_indices('-').map(|(end, _)| end).chain([stem.len()]);
    let parts: Vec<String> = ends.map(|end| format!("{}.slice", &stem[..end])).collect();
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(path: &str) -> Option<String> {
        CgroupPath::parse(path).ok().map(|path| path.to_string())
    }

    #[test]
    fn systemd_and_cgroupfs_forms_are_parsed() {
        let scope = "kubepods-burstable-pod1_2.slice:cri-containerd:abc";
        let expected = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/\
                        cri-containerd-abc.scope";
        assert_eq!(parsed(scope).as_deref(), Some(expected));
        assert_eq!(
            parsed("system.slice:crio:abc").as_deref(),
            Some("/system.slice/crio-abc.scope")
        );
        assert_eq!(
            parsed("/kubepods/burstable/pod1/abc").as_deref(),
            Some("/kubepods/burstable/pod1/abc")
        );
        assert_eq!(parsed("kubepods/pod1/abc/").as_deref(), Some("/kubepods/pod1/abc"));
    }

    #[test]
    fn the_root_slice_is_the_root() {
        assert_eq!(parsed("-.slice:crio:abc").as_deref(), Some("/crio-abc.scope"));
        assert_eq!(parsed("-.slice::kubepods.slice").as_deref(), Some("/kubepods.slice"));
        for bad in ["-.slice:x:../../y", "-.slice::a//b.slice"] {
            assert_eq!(parsed(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn escaping_and_malformed_paths_are_refused() {
        for path in [
            "",
            "/",
            "..",
            "/../etc",
            "a/../../b",
            "a//b",
            "./a",
            "a/.",
            "a\0b",
            "a--b.slice:x:y",
            "-a.slice:x:y",
        ] {
            assert_eq!(parsed(path), None, "{path:?}");
        }
        assert_eq!(parsed("a.slice:x:../../y"), None);
    }

    proptest! {
        #[test]
        fn no_text_yields_empty_or_dot_components(text in "[a./:-]{0,30}|.*") {
            if let Ok(path) = CgroupPath::parse(&text) {
                prop_assert!(path.as_str().split('/').all(|part| !matches!(part, "" | "." | "..")));
            }
        }
    }

    #[test]
    fn parents_accept_paths_and_bare_slice_names() {
        let parent = |text| CgroupPath::of_parent(text).ok().map(|path| path.to_string());
        let pod = "/kubepods.slice/kubepods-pod1_2.slice";
        assert_eq!(parent("kubepods-pod1_2.slice").as_deref(), Some(pod));
        assert_eq!(parent(pod).as_deref(), Some(pod));
        assert_eq!(parent("/kubepods/burstable/pod1").as_deref(), Some("/kubepods/burstable/pod1"));
        for bad in ["", "/", "-.slice", "a--b.slice", "/a/../b"] {
            assert_eq!(parent(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_path_leads_up_and_down() {
        let pod = CgroupPath::parse("kubepods/burstable/pod1").unwrap();
        assert_eq!(pod.name(), "pod1");
        assert_eq!(pod.parent(), CgroupPath::parse("kubepods/burstable").ok());
        assert_eq!(CgroupPath::parse("kubepods").unwrap().parent(), None);
        assert_eq!(pod.join("abc"), CgroupPath::parse("kubepods/burstable/pod1/abc").ok());
        for bad in ["", ".", "..", "a/b", "/"] {
            assert_eq!(pod.join(bad), None, "{bad:?}");
        }
    }
}

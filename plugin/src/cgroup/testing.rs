//! Temporary cgroup hierarchy for tests.

use std::fs;

use plimsoll_core::pod::CgroupPath;

use super::directory::Cgroup;
use super::error::CgroupError;
use super::root::CgroupRoot;

/// Temporary directory tree that looks like a cgroup hierarchy.
pub(super) struct Tree(pub(super) tempfile::TempDir);

impl Tree {
    pub(super) fn new() -> Self {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("cgroup.controllers"), "memory\n").unwrap();
        Self(tree)
    }

    pub(super) fn root(&self) -> CgroupRoot {
        CgroupRoot::open(self.0.path()).unwrap()
    }

    pub(super) fn cgroup(&self, path: &str) -> Result<Cgroup, CgroupError> {
        self.root().cgroup(&CgroupPath::parse(path).unwrap())
    }

    pub(super) fn make(&self, path: &str, files: &[(&str, &str)]) {
        fs::create_dir_all(self.0.path().join(path)).unwrap();
        for (name, content) in files {
            fs::write(self.0.path().join(path).join(name), content).unwrap();
        }
    }
}

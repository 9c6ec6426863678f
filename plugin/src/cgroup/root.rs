//! Root of a cgroup v2 hierarchy.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use plimsoll_core::pod::{CgroupPath, SUBGROUP};
use plimsoll_core::policy::hierarchy::ObservedCgroup;
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::beneath::{CONTROLLERS, DIRECTORY, children, open_beneath};
use super::directory::Cgroup;
use super::error::{CgroupError, RootError};

/// Maximum number of bytes to read from the list of mounts.
const MOUNTS: u64 = 4 << 20;

/// Root of a cgroup v2 hierarchy.
#[derive(Debug)]
pub struct CgroupRoot {
    directory: OwnedFd,
    path: PathBuf,
}

impl CgroupRoot {
    /// Opens the root directory, usually `/sys/fs/cgroup`.
    ///
    /// # Errors
    ///
    /// Fails if the directory cannot be opened or is not the root of a cgroup v2 hierarchy.
    pub fn open(path: &Path) -> Result<Self, RootError> {
        let failed = |error: io::Error| RootError { path: path.to_owned(), error };
        let directory = rustix::fs::open(path, DIRECTORY, Mode::empty())
            .map_err(|error| failed(error.into()))?;
        // Only cgroup v2 has this file.
        rustix::fs::statat(&directory, CONTROLLERS, AtFlags::empty()).map_err(|error| {
            failed(io::Error::new(
                io::Error::from(error).kind(),
                "the directory has no cgroup.controllers",
            ))
        })?;
        Ok(Self { directory, path: path.to_owned() })
    }

    /// Returns the path of the root directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the root of the node's file system. In this file system, the cgroup hierarchy is at
    /// `/sys/fs/cgroup`.
    pub fn host(&self) -> &Path {
        self.path.ancestors().nth(3).unwrap_or(Path::new("/"))
    }

    /// Returns whether the hierarchy is mounted with `memory_recursiveprot`. With this option, a
    /// cgroup's protection also covers descendants whose own files set no protection.
    pub fn recursive_protection(&self) -> bool {
        let Ok(mounts) = File::open(self.host().join("proc/self/mounts")) else { return false };
        // The kernel lists the cgroup mount near the start, long before the mounts of containers.
        let lines = BufReader::new(mounts.take(MOUNTS)).split(b'\n').map_while(Result::ok);
        let fields = lines.map(|line| {
            let line = String::from_utf8_lossy(&line).into_owned();
            let mut fields = line.split_ascii_whitespace().skip(2).map(str::to_owned);
            (fields.next().unwrap_or_default(), fields.next().unwrap_or_default())
        });
        fields
            .filter(|(kind, _)| kind == "cgroup2")
            .any(|(_, options)| options.split(',').any(|option| option == "memory_recursiveprot"))
    }

    /// Lists the cgroups directly below the root.
    ///
    /// # Errors
    ///
    /// Fails if the root directory cannot be listed.
    pub fn children(&self) -> Result<Vec<CgroupPath>, CgroupError> {
        children(&self.directory, CgroupPath::top).map_err(|error| CgroupError::Io {
            path: CgroupPath::root(),
            operation: "list it".to_owned(),
            error: error.into(),
        })
    }

    /// Opens a cgroup.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] if no cgroup has this path.
    pub fn cgroup(&self, path: &CgroupPath) -> Result<Cgroup, CgroupError> {
        match open_beneath(&self.directory, path.as_str(), DIRECTORY) {
            Ok(directory) => {
                // Ignore errors from opening the inner cgroup, because the cgroup itself exists.
                let inner = path
                    .subgroup()
                    .and_then(|_| open_beneath(&directory, SUBGROUP, DIRECTORY).ok());
                Ok(Cgroup { directory, inner, path: path.clone() })
            }
            Err(Errno::NOENT | Errno::NODEV) => Err(CgroupError::Gone(path.clone())),
            Err(error) => Err(CgroupError::Io {
                path: path.clone(),
                operation: "open it".to_owned(),
                error: error.into(),
            }),
        }
    }

    /// Adds the given cgroups and all their ancestors to `observed`. Skips cgroups that cannot be
    /// read.
    pub fn observe_all(
        &self,
        cgroups: impl Iterator<Item = CgroupPath>,
        observed: &mut BTreeMap<CgroupPath, ObservedCgroup>,
    ) {
        for mut cgroup in cgroups {
            while !observed.contains_key(&cgroup) {
                if let Ok(found) = self.cgroup(&cgroup).and_then(|open| open.observe()) {
                    observed.insert(cgroup.clone(), found);
                }
                match cgroup.parent() {
                    Some(parent) => cgroup = parent,
                    None => break,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use plimsoll_core::units::Knob;

    use super::super::testing::Tree;
    use super::*;

    #[test]
    fn a_symbolic_link_does_not_lead_out() {
        let tree = Tree::new();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("memory.min"), "7\n").unwrap();
        std::os::unix::fs::symlink(outside.path(), tree.0.path().join("link")).unwrap();
        assert!(matches!(tree.cgroup("link"), Err(CgroupError::Io { .. })));
        tree.make("a", &[]);
        std::os::unix::fs::symlink(
            outside.path().join("memory.min"),
            tree.0.path().join("a/memory.min"),
        )
        .unwrap();
        assert!(tree.cgroup("a").unwrap().read(Knob::Min).is_err());
    }

    #[test]
    fn mounts_beyond_the_read_bound_are_ignored() {
        let host = tempfile::tempdir().unwrap();
        let cgroups = host.path().join("sys/fs/cgroup");
        fs::create_dir_all(&cgroups).unwrap();
        fs::write(cgroups.join("cgroup.controllers"), "").unwrap();
        fs::create_dir_all(host.path().join("proc/self")).unwrap();
        let root = CgroupRoot::open(&cgroups).unwrap();
        let mounts = |text: &str| fs::write(host.path().join("proc/self/mounts"), text).unwrap();
        assert!(!root.recursive_protection(), "no list");
        mounts("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n");
        assert!(!root.recursive_protection());
        let mount = "cgroup2 /sys/fs/cgroup cgroup2 rw,memory_recursiveprot 0 0\n";
        mounts(&format!("proc /proc proc rw 0 0\n{mount}"));
        assert!(root.recursive_protection());
        let long = "overlay / overlay rw 0 0\n".repeat(MOUNTS as usize / 24);
        mounts(&format!("{mount}{long}"));
        assert!(root.recursive_protection());
        mounts(&format!("{long}{mount}"));
        assert!(!root.recursive_protection(), "the mount lies beyond the read bytes");
    }

    #[test]
    fn a_hierarchy_of_version_1_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = CgroupRoot::open(directory.path()).unwrap_err().to_string();
        assert!(
            error.contains("cgroup.controllers")
                && error.contains("expected a cgroup v2 hierarchy"),
            "{error}"
        );
    }
}

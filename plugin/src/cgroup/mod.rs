//! The only code that touches cgroupfs.
//!
//! A cgroup is an open directory: its path may be taken by another cgroup once it is removed, the open directory never
//! is. Everything is opened beneath one root, and only the files that [`Knob`] names are read.
//!
//! Source: the kernel's Documentation/admin-guide/cgroup-v2.rst, "Memory Interface Files".

mod path;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

pub use self::path::{CgroupPath, InvalidPath};
use crate::units::{Limit, LimitError};

/// A file of the memory controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Knob {
    /// `memory.min`: what is never reclaimed.
    Min,
    /// `memory.low`: what is reclaimed last.
    Low,
    /// `memory.high`: where throttling starts.
    High,
    /// `memory.max`: the limit.
    Max,
}

impl Knob {
    /// The file's name, which is also the key in the unified map of OCI.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Min => "memory.min",
            Self::Low => "memory.low",
            Self::High => "memory.high",
            Self::Max => "memory.max",
        }
    }
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file_name())
    }
}

/// Why a cgroup could not be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The cgroup was removed.
    #[error("cgroup {0} is gone")]
    Gone(CgroupPath),
    /// The cgroup has no such file: the memory controller is not enabled for it, or the kernel is older than the file.
    #[error("cgroup {path} has no {knob}; enable the memory controller in its parent's cgroup.subtree_control")]
    Unsupported {
        /// The cgroup.
        path: CgroupPath,
        /// The file.
        knob: Knob,
    },
    /// The file holds something else than a number of bytes or `max`.
    #[error("cgroup {path}: {knob}: {error}")]
    Malformed {
        /// The cgroup.
        path: CgroupPath,
        /// The file.
        knob: Knob,
        /// What is wrong.
        error: LimitError,
    },
    /// Anything else that went wrong.
    #[error("cgroup {path}: cannot {operation}: {error}")]
    Io {
        /// The cgroup.
        path: CgroupPath,
        /// What was tried.
        operation: &'static str,
        /// What the operating system says.
        error: io::Error,
    },
}

/// The root of a cgroup v2 hierarchy.
#[derive(Debug)]
pub struct CgroupRoot {
    directory: OwnedFd,
    path: PathBuf,
}

/// The root of the cgroup hierarchy cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cgroup root {}: {error}; expected a cgroup v2 hierarchy", path.display())]
pub struct RootError {
    path: PathBuf,
    error: io::Error,
}

impl CgroupRoot {
    /// Opens the root, usually `/sys/fs/cgroup`.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, or is not of version 2.
    pub fn open(path: &Path) -> Result<Self, RootError> {
        let failed = |error: io::Error| RootError { path: path.to_owned(), error };
        let directory = rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(|error| failed(error.into()))?;
        // Only version 2 has it.
        rustix::fs::statat(&directory, "cgroup.controllers", rustix::fs::AtFlags::empty())
            .map_err(|error| failed(io::Error::new(io::Error::from(error).kind(), "it has no cgroup.controllers")))?;
        Ok(Self { directory, path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a cgroup.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] when there is none of this path.
    pub fn cgroup(&self, path: &CgroupPath) -> Result<Cgroup, CgroupError> {
        match open_beneath(&self.directory, path.as_str(), DIRECTORY) {
            Ok(directory) => Ok(Cgroup { directory, path: path.clone() }),
            Err(Errno::NOENT | Errno::NODEV) => Err(CgroupError::Gone(path.clone())),
            Err(error) => Err(CgroupError::Io { path: path.clone(), operation: "open it", error: error.into() }),
        }
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn open_beneath(directory: impl AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(directory, path, flags, Mode::empty(), resolve)
}

/// A cgroup: an open directory.
#[derive(Debug)]
pub struct Cgroup {
    directory: OwnedFd,
    path: CgroupPath,
}

impl Cgroup {
    /// Reads one of its files.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] when the cgroup was removed meanwhile.
    pub fn read(&self, knob: Knob) -> Result<Limit, CgroupError> {
        let failed = |error: Errno| match error {
            Errno::NODEV => CgroupError::Gone(self.path.clone()),
            error => CgroupError::Io { path: self.path.clone(), operation: "read it", error: error.into() },
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = match open_beneath(&self.directory, knob.file_name(), flags) {
            Ok(file) => file,
            Err(Errno::NOENT) if self.is_removed() => return Err(CgroupError::Gone(self.path.clone())),
            Err(Errno::NOENT) => return Err(CgroupError::Unsupported { path: self.path.clone(), knob }),
            Err(error) => return Err(failed(error)),
        };
        let mut buffer = [0; 32];
        // The kernel gives such a file whole or not at all. A number of 20 digits is the longest content.
        let length = rustix::io::read(&file, &mut buffer).map_err(failed)?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        let malformed = |error| CgroupError::Malformed { path: self.path.clone(), knob, error };
        text.trim_end_matches('\n').parse().map_err(malformed)
    }

    /// A directory that is removed while it is open has no links left.
    fn is_removed(&self) -> bool {
        rustix::fs::fstat(&self.directory).is_ok_and(|stat| stat.st_nlink == 0)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::units::Bytes;

    /// A temporary tree that looks like a hierarchy.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let tree = tempfile::tempdir().unwrap();
            fs::write(tree.path().join("cgroup.controllers"), "memory\n").unwrap();
            Self(tree)
        }

        fn root(&self) -> CgroupRoot {
            CgroupRoot::open(self.0.path()).unwrap()
        }

        fn cgroup(&self, path: &str) -> Result<Cgroup, CgroupError> {
            self.root().cgroup(&CgroupPath::parse(path).unwrap())
        }

        fn make(&self, path: &str, files: &[(&str, &str)]) {
            fs::create_dir_all(self.0.path().join(path)).unwrap();
            for (name, content) in files {
                fs::write(self.0.path().join(path).join(name), content).unwrap();
            }
        }
    }

    #[test]
    fn the_files_of_a_cgroup_are_read() {
        let tree = Tree::new();
        tree.make("a/b", &[("memory.min", "4096\n"), ("memory.max", "max\n"), ("memory.low", "0\n")]);
        let cgroup = tree.cgroup("a/b").unwrap();
        assert_eq!(cgroup.read(Knob::Min).unwrap(), Limit::Bytes(Bytes::new(4096)));
        assert_eq!(cgroup.read(Knob::Low).unwrap(), Limit::Bytes(Bytes::ZERO));
        assert_eq!(cgroup.read(Knob::Max).unwrap(), Limit::Max);
    }

    #[test]
    fn a_missing_file_a_malformed_one_and_a_removed_cgroup_are_told_apart() {
        let tree = Tree::new();
        tree.make("a", &[("memory.min", "many\n"), ("memory.low", &"9".repeat(100))]);
        let cgroup = tree.cgroup("a").unwrap();
        assert!(matches!(cgroup.read(Knob::Min), Err(CgroupError::Malformed { knob: Knob::Min, .. })));
        assert!(matches!(cgroup.read(Knob::Low), Err(CgroupError::Malformed { .. })));
        assert!(matches!(cgroup.read(Knob::High), Err(CgroupError::Unsupported { knob: Knob::High, .. })));
        assert!(matches!(tree.cgroup("b"), Err(CgroupError::Gone(_))));
        fs::remove_dir_all(tree.0.path().join("a")).unwrap();
        assert!(matches!(cgroup.read(Knob::High), Err(CgroupError::Gone(_))));
    }

    #[test]
    fn a_recreated_cgroup_is_not_mistaken_for_the_removed_one() {
        let tree = Tree::new();
        tree.make("a", &[("memory.min", "1\n")]);
        let old = tree.cgroup("a").unwrap();
        fs::remove_dir_all(tree.0.path().join("a")).unwrap();
        tree.make("a", &[("memory.min", "2\n")]);
        assert!(matches!(old.read(Knob::Min), Err(CgroupError::Gone(_))));
        assert_eq!(tree.cgroup("a").unwrap().read(Knob::Min).unwrap(), Limit::Bytes(Bytes::new(2)));
    }

    #[test]
    fn a_symbolic_link_does_not_lead_out() {
        let tree = Tree::new();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("memory.min"), "7\n").unwrap();
        std::os::unix::fs::symlink(outside.path(), tree.0.path().join("link")).unwrap();
        assert!(matches!(tree.cgroup("link"), Err(CgroupError::Io { .. })));
        tree.make("a", &[]);
        std::os::unix::fs::symlink(outside.path().join("memory.min"), tree.0.path().join("a/memory.min")).unwrap();
        assert!(tree.cgroup("a").unwrap().read(Knob::Min).is_err());
    }

    #[test]
    fn a_hierarchy_of_version_1_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = CgroupRoot::open(directory.path()).unwrap_err().to_string();
        assert!(error.contains("cgroup.controllers") && error.contains("expected a cgroup v2 hierarchy"), "{error}");
    }
}

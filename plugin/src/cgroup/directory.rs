//! A cgroup whose directory is open, and functions that access the files in it.

use std::os::fd::OwnedFd;

use plimsoll_core::pod::CgroupPath;
use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;

use super::beneath::{CONTROLLERS, children, open_beneath};
use super::error::CgroupError;

/// Magic number of the cgroup v2 file system (`statfs`).
const CGROUP2_SUPER_MAGIC: rustix::fs::FsWord = 0x6367_7270;

/// A cgroup whose directory is open.
#[derive(Debug)]
pub struct Cgroup {
    pub(super) directory: OwnedFd,
    /// Directory of the inner cgroup [`SUBGROUP`](plimsoll_core::pod::SUBGROUP), if there is one.
    pub(super) inner: Option<OwnedFd>,
    pub(super) path: CgroupPath,
}

impl Cgroup {
    /// Returns the path of the cgroup.
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// Returns the inode number, which distinguishes this cgroup from a later cgroup with the same
    /// path.
    ///
    /// # Errors
    ///
    /// Fails if the operating system cannot return the metadata.
    pub fn inode(&self) -> Result<u64, CgroupError> {
        rustix::fs::fstat(&self.directory)
            .map(|stat| stat.st_ino)
            .map_err(|error| self.failed("read its metadata", error))
    }

    /// Lists the child cgroups.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] if the cgroup was removed.
    pub fn children(&self) -> Result<Vec<CgroupPath>, CgroupError> {
        children(&self.directory, |name| self.path.join(name))
            .map_err(|error| self.failed("list it", error))
    }

    /// Reads at most `most` bytes of a file.
    pub(super) fn read_text(&self, name: &'static str, most: usize) -> Result<String, CgroupError> {
        self.read_in(&self.directory, name, most)
    }

    pub(super) fn read_in(
        &self,
        directory: &OwnedFd,
        name: &'static str,
        most: usize,
    ) -> Result<String, CgroupError> {
        let file = self.open_in(directory, name, OFlags::RDONLY)?;
        let mut buffer = vec![0; most];
        // The kernel returns the whole content of a cgroup file in one read.
        let length = rustix::io::read(&file, &mut buffer)
            .map_err(|error| self.failed(format!("read {name}"), error))?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    pub(super) fn write_text(&self, name: &'static str, text: &str) -> Result<(), CgroupError> {
        self.write_in(&self.directory, name, text)
    }

    pub(super) fn write_in(
        &self,
        directory: &OwnedFd,
        name: &'static str,
        text: &str,
    ) -> Result<(), CgroupError> {
        // The kernel ignores TRUNC for cgroup files, but the regular files in tests need this flag.
        let file = self.open_in(directory, name, OFlags::WRONLY | OFlags::TRUNC)?;
        rustix::io::write(&file, text.as_bytes())
            .map_err(|error| self.failed(format!("write {name}"), error))?;
        Ok(())
    }

    pub(super) fn open_in(
        &self,
        directory: &OwnedFd,
        name: &'static str,
        flags: OFlags,
    ) -> Result<OwnedFd, CgroupError> {
        match open_beneath(directory, name, flags | OFlags::CLOEXEC) {
            Err(Errno::NOENT) if self.is_removed() => Err(CgroupError::Gone(self.path.clone())),
            Err(Errno::NOENT) => {
                Err(CgroupError::Unsupported { path: self.path.clone(), file: name })
            }
            result => result.map_err(|error| self.failed(format!("open {name}"), error)),
        }
    }

    pub(super) fn malformed(&self, file: &'static str, error: impl ToString) -> CgroupError {
        CgroupError::Malformed { path: self.path.clone(), file, error: error.to_string() }
    }

    pub(super) fn failed(&self, operation: impl Into<String>, error: Errno) -> CgroupError {
        match error {
            Errno::NODEV => CgroupError::Gone(self.path.clone()),
            Errno::NOENT if self.is_removed() => CgroupError::Gone(self.path.clone()),
            error => CgroupError::Io {
                path: self.path.clone(),
                operation: operation.into(),
                error: error.into(),
            },
        }
    }

    pub(super) fn is_removed(&self) -> bool {
        // A removed directory that is still open has a link count of 0. In cgroupfs, a removed
        // directory also contains no files.
        rustix::fs::fstat(&self.directory).is_ok_and(|stat| stat.st_nlink == 0)
            || (rustix::fs::fstatfs(&self.directory)
                .is_ok_and(|stat| stat.f_type == CGROUP2_SUPER_MAGIC)
                && rustix::fs::statat(&self.directory, CONTROLLERS, AtFlags::empty()).err()
                    == Some(Errno::NOENT))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use plimsoll_core::units::{Bytes, Knob, Limit};

    use super::super::testing::Tree;
    use super::*;

    #[test]
    fn children_are_the_directories_in_it() {
        let tree = Tree::new();
        tree.make("a/b", &[]);
        tree.make("a/c/d", &[]);
        tree.make("a", &[("memory.min", "0\n")]);
        let cgroup = tree.cgroup("a").unwrap();
        let mut children: Vec<_> =
            cgroup.children().unwrap().iter().map(ToString::to_string).collect();
        children.sort();
        assert_eq!(children, ["/a/b", "/a/c"]);
        assert_ne!(cgroup.inode().unwrap(), tree.cgroup("a/b").unwrap().inode().unwrap());
        fs::remove_dir_all(tree.0.path().join("a")).unwrap();
        // For a removed cgroup, the function fails or returns no children.
        assert!(!matches!(cgroup.children(), Ok(children) if !children.is_empty()));
    }

    #[test]
    fn a_removed_cgroup_stays_gone_after_recreation() {
        let tree = Tree::new();
        tree.make("a", &[("memory.min", "1\n")]);
        let old = tree.cgroup("a").unwrap();
        fs::remove_dir_all(tree.0.path().join("a")).unwrap();
        tree.make("a", &[("memory.min", "2\n")]);
        assert!(matches!(old.read(Knob::Min), Err(CgroupError::Gone(_))));
        assert_eq!(tree.cgroup("a").unwrap().read(Knob::Min).unwrap(), Limit::Bytes(Bytes::new(2)));
    }
}

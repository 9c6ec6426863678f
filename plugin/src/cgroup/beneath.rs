//! Functions that open and list directories below a directory that is already open.

use std::os::fd::{AsFd, OwnedFd};

use plimsoll_core::pod::CgroupPath;
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// File that every cgroup v2 directory has.
pub(super) const CONTROLLERS: &str = "cgroup.controllers";

pub(super) const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

pub(super) fn open_beneath(
    directory: impl AsFd,
    path: &str,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(directory, path, flags, Mode::empty(), resolve)
}

/// Lists the subdirectories of `directory` as cgroups. `path` converts the name of a subdirectory
/// to a cgroup path, or returns `None` to skip the subdirectory.
pub(super) fn children(
    directory: &OwnedFd,
    path: impl Fn(&str) -> Option<CgroupPath>,
) -> Result<Vec<CgroupPath>, Errno> {
    let mut children = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if entry.file_type() == FileType::Directory
            && let Some(path) = entry.file_name().to_str().ok().and_then(&path)
        {
            children.push(path);
        }
    }
    Ok(children)
}

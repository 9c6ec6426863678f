//! Access to cgroupfs. No other code writes to cgroup files.
//!
//! A [`Cgroup`] holds an open directory. After a cgroup is removed, a new cgroup may take its path.
//! The open directory never refers to the new cgroup. Every directory and file is opened beneath
//! one root ([`CgroupRoot`]). Only the files of [`Knob`], `cpu.max` and `memory.reclaim` are
//! written. Other files are read only if this module or a submodule names them.
//!
//! Source: the kernel's Documentation/admin-guide/cgroup-v2.rst, "Memory Interface Files".

pub mod systemd;
pub mod watch;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use plimsoll_core::outcome::Outcome;
use plimsoll_core::pod::{CgroupPath, SUBGROUP};
use plimsoll_core::policy::Protection;
use plimsoll_core::policy::hierarchy::Observed;
use plimsoll_core::policy::resize::Usage;
use plimsoll_core::units::{
    Bytes, CPU_MAX, CpuMax, CpuMaxError, Knob, Limit, LimitError, PageSize,
};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// Returns the page size of the running kernel.
pub fn page_size() -> PageSize {
    PageSize::new(rustix::param::page_size() as u64).unwrap_or(PageSize::KIB4)
}

/// Error while opening, reading or writing a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The cgroup was removed.
    #[error("cgroup {0} is gone")]
    Gone(CgroupPath),
    /// The cgroup does not have this file. Either the memory controller is not enabled for the
    /// cgroup, or the kernel is too old for the file.
    #[error(
        "cgroup {path} has no {file}; enable the memory controller in its parent's cgroup.subtree_control"
    )]
    Unsupported {
        /// Path of the cgroup.
        path: CgroupPath,
        /// Name of the file.
        file: &'static str,
    },
    /// The file has unexpected content.
    #[error("cgroup {path}: {file}: {error}")]
    Malformed {
        /// Path of the cgroup.
        path: CgroupPath,
        /// Name of the file.
        file: &'static str,
        /// Description of the problem.
        error: String,
    },
    /// Any other I/O error.
    #[error("cgroup {path}: cannot {operation}: {error}")]
    Io {
        /// Path of the cgroup.
        path: CgroupPath,
        /// The attempted operation.
        operation: String,
        /// Error from the operating system.
        error: io::Error,
    },
}

/// File that every cgroup v2 directory has.
const CONTROLLERS: &str = "cgroup.controllers";

/// Magic number of the cgroup v2 file system (`statfs`).
const CGROUP2_SUPER_MAGIC: rustix::fs::FsWord = 0x6367_7270;

/// File with the swap limit of a cgroup.
pub const SWAP_MAX: &str = "memory.swap.max";

/// File with the memory usage of a cgroup and its descendants.
const USAGE: &str = "memory.current";

/// File with the memory usage by kind of memory.
const STAT: &str = "memory.stat";

/// File with the swap usage of a cgroup.
const SWAP_USAGE: &str = "memory.swap.current";

/// File that makes the kernel reclaim the written amount of memory. Exists since kernel 5.19.
const RECLAIM: &str = "memory.reclaim";

impl From<&CgroupError> for Outcome {
    /// Returns the outcome of an attempt that ended with this error.
    fn from(error: &CgroupError) -> Self {
        match error {
            CgroupError::Gone(_) => Self::Gone,
            CgroupError::Unsupported { .. } => Self::Unsupported,
            CgroupError::Malformed { .. } | CgroupError::Io { .. } => Self::Failed,
        }
    }
}

impl CgroupRoot {
    /// Adds the given cgroups and all their ancestors to `observed`. Skips cgroups that cannot be
    /// read.
    pub fn observe_all(
        &self,
        cgroups: impl Iterator<Item = CgroupPath>,
        observed: &mut BTreeMap<CgroupPath, Observed>,
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

/// File with event counters of a cgroup and its descendants. The kernel wakes watchers of this file
/// when a counter changes.
pub const EVENTS: &str = "memory.events";
const LOCAL_EVENTS: &str = "memory.events.local";

/// File with the time that the processes of a cgroup waited for memory.
const PRESSURE: &str = "memory.pressure";

/// File with the weight of a cgroup when cgroups compete for CPU time.
pub const CPU_WEIGHT: &str = "cpu.weight";

/// Root of a cgroup v2 hierarchy.
#[derive(Debug)]
pub struct CgroupRoot {
    directory: OwnedFd,
    path: PathBuf,
}

/// Error: the root of the cgroup hierarchy cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cgroup root {}: {error}; expected a cgroup v2 hierarchy", path.display())]
pub struct RootError {
    path: PathBuf,
    error: io::Error,
}

impl RootError {
    /// Returns whether there is no cgroup v2 hierarchy at all. A hierarchy that exists but cannot
    /// be opened is not absent.
    pub fn is_absent(&self) -> bool {
        self.error.kind() == io::ErrorKind::NotFound
    }
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
            failed(io::Error::new(io::Error::from(error).kind(), "it has no cgroup.controllers"))
        })?;
        Ok(Self { directory, path: path.to_owned() })
    }

    /// Returns the path of the root directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the root of the node's file system, in which this root directory is
    /// `/sys/fs/cgroup`.
    pub fn host(&self) -> &Path {
        self.path.ancestors().nth(3).unwrap_or(Path::new("/"))
    }

    /// Returns whether the hierarchy is mounted with `memory_recursiveprot`. With this option the
    /// kernel passes protection that no child of a cgroup claims on to all its children.
    pub fn recursive_protection(&self) -> bool {
        let mounts =
            std::fs::read_to_string(self.host().join("proc/self/mounts")).unwrap_or_default();
        let is_cgroup2 = |line: &&str| line.split_ascii_whitespace().nth(2) == Some("cgroup2");
        let mut cgroup2 = mounts.lines().filter(is_cgroup2);
        cgroup2.any(|line| {
            let options = line.split_ascii_whitespace().nth(3).unwrap_or_default();
            options.split(',').any(|option| option == "memory_recursiveprot")
        })
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
                // Ignore errors of the inner cgroup: the cgroup itself exists.
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
}

/// Lists the subdirectories of `directory` as cgroups. `path` converts a name to a cgroup path, and
/// names without a path are skipped.
fn children(
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

/// Event counters since the creation of a cgroup. [`Cgroup::events`] includes the descendants,
/// [`Cgroup::local_events`] does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Number of times that processes were throttled at `memory.high`.
    pub high: u64,
    /// Number of times that usage reached a limit and the kernel could reclaim nothing.
    pub oom: u64,
    /// Number of OOM-killed processes, whether for a cgroup limit or for lack of memory on the
    /// node.
    pub oom_kill: u64,
    /// Number of times that the kernel killed all processes of a cgroup with `memory.oom.group`
    /// together. Always 0 before kernel 5.17.
    pub oom_group_kill: u64,
}

/// Time during which all processes of a cgroup waited for memory at once (`full`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pressure {
    /// Share of the last ten seconds, in percent.
    pub percent: f64,
    /// Total time since the creation of the cgroup.
    pub total: Duration,
}

/// Buffer size for a file with one amount. The longest content is a number of 20 digits.
const AMOUNT: usize = 32;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn open_beneath(directory: impl AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(directory, path, flags, Mode::empty(), resolve)
}

/// Open directory of a cgroup.
#[derive(Debug)]
pub struct Cgroup {
    directory: OwnedFd,
    /// Directory of the inner cgroup [`SUBGROUP`], if there is one.
    inner: Option<OwnedFd>,
    path: CgroupPath,
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
            .map_err(|error| self.failed("look at it", error))
    }

    /// Reads the value of a file.
    ///
    /// If crun created the container, the processes are in the inner cgroup and both cgroups count.
    /// For a limit, the lower value of both is returned. For protection, the value of the scope is
    /// returned: the inner cgroup inherits all of this protection with `memory_recursiveprot`.
    /// systemd mounts the hierarchy with this option since kernel 5.7.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] if the cgroup was removed.
    pub fn read(&self, knob: Knob) -> Result<Limit, CgroupError> {
        match knob {
            Knob::Min | Knob::Low => self.read_amount(knob.file_name()),
            Knob::High | Knob::Max => self.read_lower(knob.file_name()),
        }
    }

    /// Reads `memory.current`, the memory usage of the cgroup and its descendants.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] if the cgroup was removed.
    pub fn usage(&self) -> Result<Bytes, CgroupError> {
        Ok(self.read_amount(USAGE)?.bytes().unwrap_or(Bytes::new(u64::MAX)))
    }

    /// Reads `memory.swap.max`, the swap limit. With an inner cgroup, returns the lower limit of
    /// both.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Unsupported`] if the kernel does not account for swap; [`CgroupError::Gone`].
    pub fn swap_max(&self) -> Result<Limit, CgroupError> {
        self.read_lower(SWAP_MAX)
    }

    fn read_lower(&self, name: &'static str) -> Result<Limit, CgroupError> {
        let own = self.read_amount(name)?;
        let Some(inner) = &self.inner else { return Ok(own) };
        match self.read_in(inner, name, AMOUNT).and_then(|text| self.amount(name, &text)) {
            Ok(inner) => Ok(own.min(inner)),
            // The inner cgroup is removed before its scope.
            Err(CgroupError::Gone(_) | CgroupError::Unsupported { .. }) => Ok(own),
            Err(error) => Err(error),
        }
    }

    fn read_amount(&self, name: &'static str) -> Result<Limit, CgroupError> {
        self.amount(name, &self.read_text(name, AMOUNT)?)
    }

    fn amount(&self, name: &'static str, text: &str) -> Result<Limit, CgroupError> {
        text.trim_end_matches('\n').parse().map_err(|error: LimitError| self.malformed(name, error))
    }

    /// Reads at most `most` bytes of a file.
    fn read_text(&self, name: &'static str, most: usize) -> Result<String, CgroupError> {
        self.read_in(&self.directory, name, most)
    }

    fn read_in(
        &self,
        directory: &OwnedFd,
        name: &'static str,
        most: usize,
    ) -> Result<String, CgroupError> {
        let file = self.open_in(directory, name, OFlags::RDONLY)?;
        let mut buffer = vec![0; most];
        // The kernel returns the whole content of such a file in one read.
        let length = rustix::io::read(&file, &mut buffer)
            .map_err(|error| self.failed(format!("read {name}"), error))?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    fn write_text(&self, name: &'static str, text: &str) -> Result<(), CgroupError> {
        self.write_in(&self.directory, name, text)
    }

    fn write_in(
        &self,
        directory: &OwnedFd,
        name: &'static str,
        text: &str,
    ) -> Result<(), CgroupError> {
        // The kernel ignores truncation of cgroup files. The regular files in tests need it.
        let file = self.open_in(directory, name, OFlags::WRONLY | OFlags::TRUNC)?;
        rustix::io::write(&file, text.as_bytes())
            .map_err(|error| self.failed(format!("write {name}"), error))?;
        Ok(())
    }

    /// Writes a file. The kernel rounds the value down to whole pages. If crun created the
    /// container, both cgroups are written.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] if the cgroup was removed; any other error of the kernel.
    pub fn write(&self, knob: Knob, value: Limit) -> Result<(), CgroupError> {
        let text = value.to_string();
        self.write_text(knob.file_name(), &text)?;
        match self.inner.as_ref().map(|inner| self.write_in(inner, knob.file_name(), &text)) {
            None | Some(Ok(()) | Err(CgroupError::Gone(_) | CgroupError::Unsupported { .. })) => {
                Ok(())
            }
            Some(Err(error)) => Err(error),
        }
    }

    /// Reads `cpu.max`.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Unsupported`] if the CPU controller is not enabled; [`CgroupError::Gone`].
    pub fn cpu_max(&self) -> Result<CpuMax, CgroupError> {
        let text = self.read_text(CPU_MAX, 64)?;
        text.trim_end().parse().map_err(|error: CpuMaxError| self.malformed(CPU_MAX, error))
    }

    /// Reads `cpu.weight`.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Unsupported`] if the CPU controller is not enabled; [`CgroupError::Gone`].
    pub fn cpu_weight(&self) -> Result<u64, CgroupError> {
        let text = self.read_text(CPU_WEIGHT, 32)?;
        text.trim_end()
            .parse()
            .map_err(|error: std::num::ParseIntError| self.malformed(CPU_WEIGHT, error))
    }

    /// Writes `cpu.max`.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] if the cgroup was removed; any other error of the kernel.
    pub fn set_cpu_max(&self, value: CpuMax) -> Result<(), CgroupError> {
        self.write_text(CPU_MAX, &value.to_string())
    }

    /// Reads the memory usage and the parts of it that the kernel could reclaim.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] if the cgroup was removed.
    pub fn usage_in_parts(&self) -> Result<Usage, CgroupError> {
        let stat = self.read_text(STAT, 16 << 10)?;
        let fields = stat.lines().filter_map(|line| line.split_once(' '));
        let fields: Vec<(&str, u64)> =
            fields.filter_map(|(name, value)| Some((name, value.parse().ok()?))).collect();
        let sum = |names: &[&str]| {
            let values =
                fields.iter().filter(|(name, _)| names.contains(name)).map(|(_, value)| *value);
            Bytes::new(values.fold(0, u64::saturating_add))
        };
        // Without swap accounting or without swap, the kernel cannot swap anything out.
        let swap_left = match (self.swap_max(), self.read_amount(SWAP_USAGE)) {
            (Ok(Limit::Bytes(max)), Ok(Limit::Bytes(used))) => max.saturating_sub(used),
            // Without a swap limit the free swap of the node would count. It is unknown here.
            _ => Bytes::ZERO,
        };
        Ok(Usage {
            current: self.usage()?,
            // These fields are the LRU lists, from which the kernel can evict. Shared memory is on
            // the lists of anonymous memory.
            cache: sum(&["inactive_file", "active_file", "slab_reclaimable"]),
            swappable: sum(&["inactive_anon", "active_anon"]),
            swap_left,
        })
    }

    /// Reads `memory.events`, the event counters of the cgroup and its descendants.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] if the cgroup was removed.
    pub fn events(&self) -> Result<Events, CgroupError> {
        self.read_events(EVENTS)
    }

    /// Reads `memory.events.local`, the event counters of this cgroup alone. `oom` counts how often
    /// usage reached the cgroup's own `memory.max` and the kernel had to kill. `oom` counts neither
    /// the limits of descendants nor a lack of memory on the node.
    ///
    /// Source: Documentation/admin-guide/cgroup-v2.rst.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] if the cgroup was removed.
    pub fn local_events(&self) -> Result<Events, CgroupError> {
        self.read_events(LOCAL_EVENTS)
    }

    fn read_events(&self, file: &'static str) -> Result<Events, CgroupError> {
        let events = self.read_text(file, 1 << 10)?;
        let count = |name: &str| {
            events.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
        };
        let expected =
            |name: &str| self.malformed(file, format!("expected a line '{name}' with a number"));
        Ok(Events {
            high: count("high").ok_or_else(|| expected("high"))?,
            oom: count("oom").ok_or_else(|| expected("oom"))?,
            oom_kill: count("oom_kill").ok_or_else(|| expected("oom_kill"))?,
            // Missing before kernel 5.17.
            oom_group_kill: count("oom_group_kill").unwrap_or_default(),
        })
    }

    /// Returns whether the cgroup or a descendant contains processes.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] or [`CgroupError::Io`].
    pub fn has_processes(&self) -> Result<bool, CgroupError> {
        match self.read_text("cgroup.events", 512) {
            Ok(events) => Ok(!events.lines().any(|line| line == "populated 0")),
            // Every kernel with cgroup v2 has this file. If it is missing, assume that there are
            // processes.
            Err(CgroupError::Unsupported { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Reads from `memory.pressure` how long all processes of the cgroup waited for memory
    /// (`full`).
    ///
    /// # Errors
    ///
    /// [`CgroupError::Unsupported`] if the kernel does not record pressure (boot option `psi=1`);
    /// [`CgroupError::Gone`].
    pub fn pressure(&self) -> Result<Pressure, CgroupError> {
        let pressure = self.read_text(PRESSURE, 512)?;
        let parse = || {
            let full = pressure.lines().find_map(|line| line.strip_prefix("full avg10="))?;
            let percent = full.split(' ').next()?.parse().ok()?;
            let total =
                full.split(' ').find_map(|part| part.strip_prefix("total="))?.parse().ok()?;
            Some(Pressure { percent, total: Duration::from_micros(total) })
        };
        parse()
            .ok_or_else(|| self.malformed(PRESSURE, "expected a line 'full avg10=' with numbers"))
    }

    /// Reads the protection settings and the memory usage of the cgroup.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] if the cgroup was removed.
    pub fn observe(&self) -> Result<Observed, CgroupError> {
        let setting = Protection::of_files(self.read(Knob::Min)?, self.read(Knob::Low)?);
        Ok(Observed { setting, usage: self.usage()? })
    }

    /// Reads how much page cache was not used recently. The kubelet calls the rest of the usage the
    /// working set.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] if the cgroup was removed.
    pub fn inactive_file(&self) -> Result<Bytes, CgroupError> {
        let stat = self.read_text(STAT, 16 << 10)?;
        let inactive =
            stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok());
        let inactive = inactive
            .ok_or_else(|| self.malformed(STAT, "expected a line 'inactive_file' with a number"))?;
        Ok(Bytes::new(inactive))
    }

    /// Reclaims memory with `memory.reclaim`, which never kills. Returns whether the kernel
    /// reclaimed the whole amount; otherwise the kernel reclaimed as much as it could.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Unsupported`] before kernel 5.19; [`CgroupError::Gone`].
    pub fn reclaim(&self, amount: Bytes) -> Result<bool, CgroupError> {
        // Reclaim in the inner cgroup if there is one, because all memory is there. A reclaim in
        // the scope would spare what memory.min of the inner cgroup protects.
        let reclaimed = match &self.inner {
            Some(inner) => self.write_in(inner, RECLAIM, &amount.to_string()),
            None => self.write_text(RECLAIM, &amount.to_string()),
        };
        match reclaimed {
            Ok(()) => Ok(true),
            Err(CgroupError::Io { error, .. }) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
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

    fn open_in(
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

    fn malformed(&self, file: &'static str, error: impl ToString) -> CgroupError {
        CgroupError::Malformed { path: self.path.clone(), file, error: error.to_string() }
    }

    fn failed(&self, operation: impl Into<String>, error: Errno) -> CgroupError {
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

    fn is_removed(&self) -> bool {
        // A removed directory that is still open has no links. In cgroupfs it has no files either.
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

    use plimsoll_core::units::Bytes;

    use super::*;

    /// Temporary directory tree that looks like a cgroup hierarchy.
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
        tree.make(
            "a/b",
            &[("memory.min", "4096\n"), ("memory.max", "max\n"), ("memory.low", "0\n")],
        );
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
        assert!(matches!(
            cgroup.read(Knob::Min),
            Err(CgroupError::Malformed { file: "memory.min", .. })
        ));
        assert!(matches!(cgroup.read(Knob::Low), Err(CgroupError::Malformed { .. })));
        assert!(matches!(
            cgroup.read(Knob::High),
            Err(CgroupError::Unsupported { file: "memory.high", .. })
        ));
        assert!(matches!(tree.cgroup("b"), Err(CgroupError::Gone(_))));
        fs::remove_dir_all(tree.0.path().join("a")).unwrap();
        assert!(matches!(cgroup.read(Knob::High), Err(CgroupError::Gone(_))));
    }

    #[test]
    fn a_written_file_is_read_back_and_nothing_is_made_by_writing() {
        let tree = Tree::new();
        tree.make("a", &[("memory.min", "1048576\n"), ("memory.current", "8192\n")]);
        let cgroup = tree.cgroup("a").unwrap();
        cgroup.write(Knob::Min, Limit::Bytes(Bytes::new(4096))).unwrap();
        assert_eq!(cgroup.read(Knob::Min).unwrap(), Limit::Bytes(Bytes::new(4096)));
        assert_eq!(cgroup.usage().unwrap(), Bytes::new(8192));
        assert!(matches!(
            cgroup.write(Knob::Low, Limit::Max),
            Err(CgroupError::Unsupported { .. })
        ));
        assert!(!tree.0.path().join("a/memory.low").exists());
        fs::remove_dir_all(tree.0.path().join("a")).unwrap();
        assert!(matches!(cgroup.write(Knob::Min, Limit::Max), Err(CgroupError::Gone(_))));
    }

    #[test]
    fn of_a_container_by_crun_the_scopes_protection_counts_and_the_lower_limit_of_both() {
        let tree = Tree::new();
        let files = |high: &'static str| {
            [("memory.high", high), ("memory.swap.max", "8192\n"), ("memory.current", "1\n")]
        };
        tree.make("a/crio-1.scope", &files("8192\n"));
        tree.make("a/crio-1.scope/container", &files("4096\n"));
        tree.make("a/other", &files("8192\n"));
        tree.make("a/other/container", &files("4096\n"));
        let bytes = |bytes| Limit::Bytes(Bytes::new(bytes));
        let cgroup = tree.cgroup("a/crio-1.scope").unwrap();
        assert_eq!(cgroup.read(Knob::High).unwrap(), bytes(4096));
        tree.make("a/crio-1.scope", &[("memory.min", "8192\n")]);
        tree.make("a/crio-1.scope/container", &[("memory.min", "0\n")]);
        assert_eq!(cgroup.read(Knob::Min).unwrap(), bytes(8192), "it has that, too");
        cgroup.write(Knob::High, Limit::Max).unwrap();
        for path in ["a/crio-1.scope", "a/crio-1.scope/container"] {
            assert_eq!(
                fs::read_to_string(tree.0.path().join(path).join("memory.high")).unwrap(),
                "max",
                "{path}"
            );
        }
        tree.make("a/crio-1.scope/container", &[("memory.reclaim", "")]);
        assert!(
            cgroup.reclaim(Bytes::new(4096)).unwrap(),
            "not where the inner one's memory.min counts"
        );
        tree.make("a/crio-1.scope/container", &[("memory.swap.max", "0\n")]);
        assert_eq!(cgroup.swap_max().unwrap(), bytes(0), "crun gives the scope more");
        fs::remove_dir_all(tree.0.path().join("a/crio-1.scope/container")).unwrap();
        assert_eq!(cgroup.read(Knob::High).unwrap(), Limit::Max);
        cgroup.write(Knob::High, bytes(8192)).unwrap();
        // Only a scope has an inner cgroup of crun. The workload itself created this cgroup named
        // `container`, so its value must not change.
        let other = tree.cgroup("a/other").unwrap();
        other.write(Knob::High, Limit::Max).unwrap();
        assert_eq!(
            tree.cgroup("a/other/container").unwrap().read(Knob::High).unwrap(),
            bytes(4096)
        );
    }

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
        // The open directory of a removed cgroup may still be listed, but is empty.
        assert!(!matches!(cgroup.children(), Ok(children) if !children.is_empty()));
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
        std::os::unix::fs::symlink(
            outside.path().join("memory.min"),
            tree.0.path().join("a/memory.min"),
        )
        .unwrap();
        assert!(tree.cgroup("a").unwrap().read(Knob::Min).is_err());
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

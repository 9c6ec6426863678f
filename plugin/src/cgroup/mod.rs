//! The only code that touches cgroupfs.
//!
//! A cgroup is an open directory: its path may be taken by another cgroup once it is removed, the open directory never
//! is. Everything is opened beneath one root. Only the files that [`Knob`] names, `cpu.max` and `memory.reclaim` are written,
//! and besides these only those named here are read.
//!
//! Source: the kernel's Documentation/admin-guide/cgroup-v2.rst, "Memory Interface Files".

mod path;
pub mod systemd;
pub mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

pub use self::path::{CgroupPath, InvalidPath};
use crate::core::policy::Protection;
use crate::core::policy::hierarchy::Observed;
use crate::core::policy::resize::Usage;
use crate::core::units::{Bytes, CpuMax, CpuMaxError, Limit, LimitError};

/// A file of the memory controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// Every file.
    pub const ALL: [Self; 4] = [Self::Min, Self::Low, Self::High, Self::Max];

    /// What a new cgroup has.
    pub const fn default_value(self) -> Limit {
        match self {
            Self::Min | Self::Low => Limit::Bytes(Bytes::ZERO),
            Self::High | Self::Max => Limit::Max,
        }
    }

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
    #[error(
        "cgroup {path} has no {file}; enable the memory controller in its parent's cgroup.subtree_control"
    )]
    Unsupported {
        /// The cgroup.
        path: CgroupPath,
        /// The file.
        file: &'static str,
    },
    /// The file holds something else than it should.
    #[error("cgroup {path}: {file}: {error}")]
    Malformed {
        /// The cgroup.
        path: CgroupPath,
        /// The file.
        file: &'static str,
        /// What is wrong.
        error: String,
    },
    /// Anything else that went wrong.
    #[error("cgroup {path}: cannot {operation}: {error}")]
    Io {
        /// The cgroup.
        path: CgroupPath,
        /// What was tried.
        operation: String,
        /// What the operating system says.
        error: io::Error,
    },
}

/// A file that every cgroup of version 2 has.
const CONTROLLERS: &str = "cgroup.controllers";

/// The type of file system that cgroups of version 2 are.
const CGROUP2_SUPER_MAGIC: rustix::fs::FsWord = 0x6367_7270;

/// How much swap a cgroup may use.
pub const SWAP_MAX: &str = "memory.swap.max";

/// What a cgroup uses, with everything below it.
const USAGE: &str = "memory.current";

/// What that is, in parts.
const STAT: &str = "memory.stat";

/// How much swap a cgroup uses.
const SWAP_USAGE: &str = "memory.swap.current";

/// Reclaims as much as is written to it. From kernel 5.19 on.
const RECLAIM: &str = "memory.reclaim";

impl CgroupRoot {
    /// Adds to `observed` these cgroups with all that lies above them. Those that cannot be read are left out.
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

/// What has happened to a cgroup and everything below it, counted. The kernel wakes up who watches it.
pub const EVENTS: &str = "memory.events";
const LOCAL_EVENTS: &str = "memory.events.local";

/// How long it has waited for memory.
const PRESSURE: &str = "memory.pressure";

/// How much processor time a cgroup may use.
pub const CPU_MAX: &str = "cpu.max";

/// Its part of the processor time that is contended for.
pub const CPU_WEIGHT: &str = "cpu.weight";

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

impl RootError {
    /// Whether there is no hierarchy of version 2 at all, which is something else than one that cannot be opened.
    pub fn is_absent(&self) -> bool {
        self.error.kind() == io::ErrorKind::NotFound
    }
}

impl CgroupRoot {
    /// Opens the root, usually `/sys/fs/cgroup`.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, or is not of version 2.
    pub fn open(path: &Path) -> Result<Self, RootError> {
        let failed = |error: io::Error| RootError { path: path.to_owned(), error };
        let directory = rustix::fs::open(path, DIRECTORY, Mode::empty())
            .map_err(|error| failed(error.into()))?;
        // Only version 2 has it.
        rustix::fs::statat(&directory, CONTROLLERS, AtFlags::empty()).map_err(|error| {
            failed(io::Error::new(io::Error::from(error).kind(), "it has no cgroup.controllers"))
        })?;
        Ok(Self { directory, path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The node's file system, in which this is `/sys/fs/cgroup`.
    pub fn host(&self) -> &Path {
        self.path.ancestors().nth(3).unwrap_or(Path::new("/"))
    }

    /// Whether what protects a cgroup, and no child of it lays claim to, protects its children too: the mount option
    /// `memory_recursiveprot`.
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

    /// The cgroups directly below the root.
    ///
    /// # Errors
    ///
    /// When the root cannot be listed.
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
    /// [`CgroupError::Gone`] when there is none of this path.
    pub fn cgroup(&self, path: &CgroupPath) -> Result<Cgroup, CgroupError> {
        match open_beneath(&self.directory, path.as_str(), DIRECTORY) {
            Ok(directory) => {
                // Whatever is the matter with it, the cgroup itself is there.
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

/// The directories in a directory, as cgroups; `path` makes a path of a name.
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

/// What has happened to a cgroup and everything below it, counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// How often somebody was held back at `memory.high`.
    pub high: u64,
    /// How often somebody had reached its limit, and nothing could be reclaimed.
    pub oom: u64,
    /// How many processes were killed for want of memory, by whatever limit, or the node's.
    pub oom_kill: u64,
    /// How often all processes of a cgroup with `memory.oom.group` were killed together; always 0 before kernel 5.17.
    pub oom_group_kill: u64,
}

/// How long a cgroup, all of it together, waited for memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pressure {
    /// How much of the last ten seconds, in percent.
    pub percent: f64,
    /// How long since it was made.
    pub total: Duration,
}

/// A number of 20 digits is the longest content of a file with an amount.
const AMOUNT: usize = 32;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn open_beneath(directory: impl AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(directory, path, flags, Mode::empty(), resolve)
}

/// In a container's scope, crun puts the processes into a cgroup of this name and gives both the same values: the scope as systemd's
/// properties, this as files. What is in force says [`Cgroup::read`].
const SUBGROUP: &str = "container";

/// A cgroup: an open directory.
#[derive(Debug)]
pub struct Cgroup {
    directory: OwnedFd,
    /// That of [`SUBGROUP`] in it.
    inner: Option<OwnedFd>,
    path: CgroupPath,
}

impl Cgroup {
    /// Where it is.
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// What tells it from another cgroup that has its path at another time.
    ///
    /// # Errors
    ///
    /// When the operating system does not say.
    pub fn inode(&self) -> Result<u64, CgroupError> {
        rustix::fs::fstat(&self.directory)
            .map(|stat| stat.st_ino)
            .map_err(|error| self.failed("look at it", error))
    }

    /// Reads one of its files. Of a container by crun, whose processes are in a cgroup of their own below, what counts of both: a limit
    /// is the lower one; protection is that of the scope, which the one below has all of (`memory_recursiveprot`, with which systemd mounts
    /// the hierarchy from kernel 5.7 on).
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] when the cgroup was removed meanwhile.
    pub fn read(&self, knob: Knob) -> Result<Limit, CgroupError> {
        match knob {
            Knob::Min | Knob::Low => self.read_amount(knob.file_name()),
            Knob::High | Knob::Max => self.read_lower(knob.file_name()),
        }
    }

    /// Reads `memory.current`: what it uses, with everything below it.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] when the cgroup was removed meanwhile.
    pub fn usage(&self) -> Result<Bytes, CgroupError> {
        Ok(self.read_amount(USAGE)?.bytes().unwrap_or(Bytes::new(u64::MAX)))
    }

    /// Reads `memory.swap.max`: how much swap it may use.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Unsupported`] where swap is not accounted for; [`CgroupError::Gone`].
    pub fn swap_max(&self) -> Result<Limit, CgroupError> {
        self.read_lower(SWAP_MAX)
    }

    fn read_lower(&self, name: &'static str) -> Result<Limit, CgroupError> {
        let own = self.read_amount(name)?;
        let Some(inner) = &self.inner else { return Ok(own) };
        match self.read_in(inner, name, AMOUNT).and_then(|text| self.amount(name, &text)) {
            Ok(inner) => Ok(own.min(inner)),
            // It goes before the scope does.
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

    /// Reads a file of which no more than `most` bytes matter.
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
        // The kernel gives such a file whole or not at all.
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
        // Truncation means nothing to the kernel here.
        let file = self.open_in(directory, name, OFlags::WRONLY | OFlags::TRUNC)?;
        rustix::io::write(&file, text.as_bytes())
            .map_err(|error| self.failed(format!("write {name}"), error))?;
        Ok(())
    }

    /// Writes one of its files. The kernel keeps whole pages, rounded down. Of a container by crun, both that there are.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] when the cgroup was removed meanwhile; what the kernel says otherwise.
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
    /// [`CgroupError::Unsupported`] where the processor controller is off; [`CgroupError::Gone`].
    pub fn cpu_max(&self) -> Result<CpuMax, CgroupError> {
        let text = self.read_text(CPU_MAX, 64)?;
        text.trim_end().parse().map_err(|error: CpuMaxError| self.malformed(CPU_MAX, error))
    }

    /// Reads `cpu.weight`.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Unsupported`] where the processor controller is off; [`CgroupError::Gone`].
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
    /// [`CgroupError::Gone`] when the cgroup was removed meanwhile; what the kernel says otherwise.
    pub fn set_cpu_max(&self, value: CpuMax) -> Result<(), CgroupError> {
        self.write_text(CPU_MAX, &value.to_string())
    }

    /// What it uses, and what of that could be reclaimed.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] when the cgroup was removed meanwhile.
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
        // Without swap accounting, or without swap, there is nothing to swap to.
        let swap_left = match (self.swap_max(), self.read_amount(SWAP_USAGE)) {
            (Ok(Limit::Bytes(max)), Ok(Limit::Bytes(used))) => max.saturating_sub(used),
            // What the node has left is not known here.
            _ => Bytes::ZERO,
        };
        Ok(Usage {
            current: self.usage()?,
            // The lists of what can be evicted: shared memory is on those of anonymous memory.
            cache: sum(&["inactive_file", "active_file", "slab_reclaimable"]),
            swappable: sum(&["inactive_anon", "active_anon"]),
            swap_left,
        })
    }

    /// Reads `memory.events`: what has happened to it and everything below it.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] when the cgroup was removed meanwhile.
    pub fn events(&self) -> Result<Events, CgroupError> {
        self.read_events(EVENTS)
    }

    /// Reads `memory.events.local`: what has happened to this cgroup alone. `oom` counts how often its own `memory.max` was reached and the
    /// kernel had to kill for it. It counts neither the limits below it nor a lack of memory on the whole node.
    /// Source: Documentation/admin-guide/cgroup-v2.rst.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] when the cgroup was removed meanwhile.
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
            // From kernel 5.17 on.
            oom_group_kill: count("oom_group_kill").unwrap_or_default(),
        })
    }

    /// Whether there are processes in it or below.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`], [`CgroupError::Malformed`] or [`CgroupError::Io`].
    pub fn has_processes(&self) -> Result<bool, CgroupError> {
        match self.read_text("cgroup.events", 512) {
            Ok(events) => Ok(!events.lines().any(|line| line == "populated 0")),
            // Every kernel with cgroup v2 has it.
            Err(CgroupError::Unsupported { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Reads how long all of it waited for memory (`full`) from `memory.pressure`.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Unsupported`] where the kernel does not keep account of that (`psi=1`); [`CgroupError::Gone`].
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

    /// Reads what decides about its protection.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] when the cgroup was removed meanwhile.
    pub fn observe(&self) -> Result<Observed, CgroupError> {
        let setting = Protection::of_files(self.read(Knob::Min)?, self.read(Knob::Low)?);
        Ok(Observed { setting, usage: self.usage()? })
    }

    /// How much page cache was not used lately. The kubelet calls what else is in use the working set.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] when the cgroup was removed meanwhile.
    pub fn inactive_file(&self) -> Result<Bytes, CgroupError> {
        let stat = self.read_text(STAT, 16 << 10)?;
        let inactive =
            stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok());
        let inactive = inactive
            .ok_or_else(|| self.malformed(STAT, "expected a line 'inactive_file' with a number"))?;
        Ok(Bytes::new(inactive))
    }

    /// Reclaims memory by `memory.reclaim`, which never kills. Whether all of it was reclaimed; what could be is in any case.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Unsupported`] before kernel 5.19; [`CgroupError::Gone`].
    pub fn reclaim(&self, amount: Bytes) -> Result<bool, CgroupError> {
        // Where all is in the inner cgroup, its memory.min would keep that from what is reclaimed further up.
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

    /// The cgroups in it.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] when the cgroup was removed meanwhile.
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
        // A directory that is removed while it is open has no links left, and in cgroupfs no files.
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

    use super::*;
    use crate::core::units::Bytes;

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
        // What a container's own processes make in another cgroup is theirs.
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
        // What is open still has its entries, of which there are none.
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

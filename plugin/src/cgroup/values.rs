//! Cgroup files for protection, limits and CPU time.

use std::io;
use std::thread;
use std::time::Duration;

use plimsoll_core::units::{Bytes, CPU_MAX, CpuMax, CpuMaxError, Knob, Limit, LimitError};

use super::directory::Cgroup;
use super::error::CgroupError;

/// File with the swap limit of a cgroup.
pub const SWAP_MAX: &str = "memory.swap.max";

/// File with the weight that a cgroup has when it competes for CPU time.
pub const CPU_WEIGHT: &str = "cpu.weight";

/// File that tells the kernel how much memory to reclaim. Exists since kernel 5.19.
const RECLAIM: &str = "memory.reclaim";

/// Size of the buffer for reading one amount. The longest content is a number of 20 digits.
const AMOUNT: usize = 32;

/// Number of times that the plugin reads an empty file again. The kernel never returns an empty
/// amount. The regular files in tests are empty between the truncation and the write.
const EMPTY_READS: u32 = 20;

/// Time between two reads of an empty file.
const EMPTY_WAIT: Duration = Duration::from_millis(1);

impl Cgroup {
    /// Reads the value of a file.
    ///
    /// If crun created the container, the processes are in the inner cgroup, and the values of both
    /// cgroups apply. For a limit, this function returns the lower of the two values. For
    /// protection, this function returns the value of the outer cgroup (the scope). With
    /// `memory_recursiveprot`, the inner cgroup inherits all of this protection. systemd uses this
    /// mount option on kernel 5.7 and newer.
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

    /// Writes a file. The kernel rounds the value down to whole pages. If crun created the
    /// container, this function writes to both cgroups.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] if the cgroup was removed; otherwise the error that the kernel
    /// returns.
    pub fn write_knob(&self, knob: Knob, value: Limit) -> Result<(), CgroupError> {
        let text = value.to_string();
        self.write_text(knob.file_name(), &text)?;
        match self.inner.as_ref().map(|inner| self.write_in(inner, knob.file_name(), &text)) {
            None | Some(Ok(()) | Err(CgroupError::Gone(_) | CgroupError::Unsupported { .. })) => {
                Ok(())
            }
            Some(Err(error)) => Err(error),
        }
    }

    /// Reads `memory.swap.max`, the swap limit. With an inner cgroup, returns the lower of the two
    /// limits.
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
            // The inner cgroup is removed before the scope that contains it.
            Err(CgroupError::Gone(_) | CgroupError::Unsupported { .. }) => Ok(own),
            Err(error) => Err(error),
        }
    }

    pub(super) fn read_amount(&self, name: &'static str) -> Result<Limit, CgroupError> {
        let mut text = self.read_text(name, AMOUNT)?;
        for _ in 0..EMPTY_READS {
            if !text.is_empty() {
                break;
            }
            thread::sleep(EMPTY_WAIT);
            text = self.read_text(name, AMOUNT)?;
        }
        self.amount(name, &text)
    }

    fn amount(&self, name: &'static str, text: &str) -> Result<Limit, CgroupError> {
        text.trim_end_matches('\n').parse().map_err(|error: LimitError| self.malformed(name, error))
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

    /// Writes `cpu.max`.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] if the cgroup was removed; otherwise the error that the kernel
    /// returns.
    pub fn set_cpu_max(&self, value: CpuMax) -> Result<(), CgroupError> {
        self.write_text(CPU_MAX, &value.to_string())
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

    /// Reclaims memory with `memory.reclaim`, which never kills. Returns whether the kernel
    /// reclaimed the whole amount. Otherwise, the kernel reclaimed as much as it could.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Unsupported`] before kernel 5.19; [`CgroupError::Gone`].
    pub fn reclaim(&self, amount: Bytes) -> Result<bool, CgroupError> {
        // Reclaim in the inner cgroup if crun created one, because it contains all memory. A
        // reclaim in the scope would not touch the memory that memory.min of the inner cgroup
        // protects.
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
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::testing::Tree;
    use super::*;

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
    fn malformed_unsupported_and_gone_are_different_errors() {
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
    fn writes_are_readable_but_create_no_file() {
        let tree = Tree::new();
        tree.make("a", &[("memory.min", "1048576\n"), ("memory.current", "8192\n")]);
        let cgroup = tree.cgroup("a").unwrap();
        cgroup.write_knob(Knob::Min, Limit::Bytes(Bytes::new(4096))).unwrap();
        assert_eq!(cgroup.read(Knob::Min).unwrap(), Limit::Bytes(Bytes::new(4096)));
        assert_eq!(cgroup.usage().unwrap(), Bytes::new(8192));
        assert!(matches!(
            cgroup.write_knob(Knob::Low, Limit::Max),
            Err(CgroupError::Unsupported { .. })
        ));
        assert!(!tree.0.path().join("a/memory.low").exists());
        fs::remove_dir_all(tree.0.path().join("a")).unwrap();
        assert!(matches!(cgroup.write_knob(Knob::Min, Limit::Max), Err(CgroupError::Gone(_))));
    }

    #[test]
    fn inner_crun_cgroups_lower_only_the_limits() {
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
        assert_eq!(cgroup.read(Knob::Min).unwrap(), bytes(8192), "the scope has the same value");
        cgroup.write_knob(Knob::High, Limit::Max).unwrap();
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
            "the reclaim must start in the inner cgroup"
        );
        tree.make("a/crio-1.scope/container", &[("memory.swap.max", "0\n")]);
        assert_eq!(
            cgroup.swap_max().unwrap(),
            bytes(0),
            "crun gives the scope a higher swap limit"
        );
        fs::remove_dir_all(tree.0.path().join("a/crio-1.scope/container")).unwrap();
        assert_eq!(cgroup.read(Knob::High).unwrap(), Limit::Max);
        cgroup.write_knob(Knob::High, bytes(8192)).unwrap();
        // crun creates inner cgroups only in scopes. Here, the workload created the cgroup named
        // `container`, so its value must not change.
        let other = tree.cgroup("a/other").unwrap();
        other.write_knob(Knob::High, Limit::Max).unwrap();
        assert_eq!(
            tree.cgroup("a/other/container").unwrap().read(Knob::High).unwrap(),
            bytes(4096)
        );
    }
}

//! Memory usage of a cgroup.

use plimsoll_core::policy::Protection;
use plimsoll_core::policy::hierarchy::ObservedCgroup;
use plimsoll_core::policy::limit_decrease::Usage;
use plimsoll_core::units::{Bytes, Knob, Limit};

use super::directory::Cgroup;
use super::error::CgroupError;

/// File with the memory usage of a cgroup and its descendants.
const USAGE: &str = "memory.current";

/// File that shows the usage of each kind of memory, such as page cache.
const STAT: &str = "memory.stat";

/// File with the swap usage of a cgroup.
const SWAP_USAGE: &str = "memory.swap.current";

impl Cgroup {
    /// Reads `memory.current`, the memory usage of the cgroup and its descendants.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] if the cgroup was removed.
    pub fn usage(&self) -> Result<Bytes, CgroupError> {
        Ok(self.read_amount(USAGE)?.bytes().unwrap_or(Bytes::new(u64::MAX)))
    }

    /// Reads the memory usage, and the parts of this usage that the kernel could reclaim.
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
        // Without swap, or without swap accounting, nothing counts as swappable.
        let swap_left = match (self.swap_max(), self.read_amount(SWAP_USAGE)) {
            (Ok(Limit::Bytes(max)), Ok(Limit::Bytes(used))) => max.saturating_sub(used),
            // Without a swap limit, the amount depends on the node's free swap, which this function
            // does not know.
            _ => Bytes::ZERO,
        };
        Ok(Usage {
            current: self.usage()?,
            // The fields for page cache count the pages on the LRU lists, which the kernel can
            // evict. The lists for anonymous memory include shared memory.
            cache: sum(&["inactive_file", "active_file", "slab_reclaimable"]),
            swappable: sum(&["inactive_anon", "active_anon"]),
            swap_left,
        })
    }

    /// Reads the amount of page cache that was not used recently. The kubelet subtracts this amount
    /// from the usage to compute the working set.
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

    /// Reads the protection settings and the memory usage of the cgroup.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Gone`] if the cgroup was removed.
    pub fn observe(&self) -> Result<ObservedCgroup, CgroupError> {
        let setting = Protection::of_files(self.read(Knob::Min)?, self.read(Knob::Low)?);
        Ok(ObservedCgroup { setting, usage: self.usage()? })
    }
}

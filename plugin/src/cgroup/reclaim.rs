//! Reclaims the memory of a cgroup until its usage is at most a given value.

use std::time::Instant;

use plimsoll_core::policy::limit_decrease::{self, DecreaseCheck, Usage};
use plimsoll_core::units::Bytes;

use crate::cgroup::{Cgroup, CgroupError};

/// Result of a reclaim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaimed {
    /// The usage is low enough.
    Fits,
    /// The usage is too high: the kernel cannot reclaim enough, or the deadline has passed.
    Above(Usage),
    /// The usage is too high, and the kernel is older than 5.19 and has no `memory.reclaim`.
    Unsupported(Usage),
}

impl Cgroup {
    /// Reclaims memory until the usage is at most `most`. Starts no write after `deadline`.
    ///
    /// `step` is the maximum amount per write to `memory.reclaim`. A write waits until the kernel
    /// has written back dirty pages, so a write can end after `deadline`.
    ///
    /// # Errors
    ///
    /// Fails if the usage cannot be read, or if the kernel fails to reclaim.
    pub fn reclaim_to(
        &self,
        most: Bytes,
        step: Bytes,
        deadline: Instant,
    ) -> Result<Reclaimed, CgroupError> {
        let is_late = || Instant::now() >= deadline;
        reclaim_to(most, step, is_late, || self.usage_in_parts(), |amount| self.reclaim(amount))
    }
}

/// Does the work of [`Cgroup::reclaim_to`]. Tests pass a fake clock and a fake kernel.
fn reclaim_to(
    most: Bytes,
    step: Bytes,
    is_late: impl Fn() -> bool,
    mut read_usage: impl FnMut() -> Result<Usage, CgroupError>,
    mut reclaim: impl FnMut(Bytes) -> Result<bool, CgroupError>,
) -> Result<Reclaimed, CgroupError> {
    let mut usage = read_usage()?;
    loop {
        match limit_decrease::fits(most, &usage) {
            DecreaseCheck::Fits => return Ok(Reclaimed::Fits),
            DecreaseCheck::Reclaim if !is_late() => {}
            DecreaseCheck::Reclaim | DecreaseCheck::Kills => return Ok(Reclaimed::Above(usage)),
        }
        let is_all = match reclaim(usage.current.saturating_sub(most).min(step)) {
            Err(CgroupError::Unsupported { .. }) => return Ok(Reclaimed::Unsupported(usage)),
            is_all => is_all?,
        };
        let before = std::mem::replace(&mut usage, read_usage()?);
        // The kernel may reclaim less than this amount. Continue if the usage has fallen.
        if !is_all && usage.current >= before.current {
            return Ok(Reclaimed::Above(usage));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::time::Duration;

    use super::super::testing::Tree;
    use super::*;

    const STEP: Bytes = Bytes::new(16);

    /// Result of [`run`]: the final usage in bytes if it is too high, and the amount of each write.
    type Outcome = (Option<u64>, Vec<u64>);

    /// Starts with this usage and page cache, and reclaims until the usage is 100 bytes. The kernel
    /// reclaims at most `per_write` bytes for each write. The deadline passes after `writes`
    /// writes.
    fn run(current: u64, cache: u64, per_write: u64, writes: usize) -> Outcome {
        let usage = Cell::new(Usage {
            current: Bytes::new(current),
            cache: Bytes::new(cache),
            ..Usage::default()
        });
        let amounts = RefCell::new(Vec::new());
        let is_late = || amounts.borrow().len() >= writes;
        let reclaim = |amount: Bytes| {
            amounts.borrow_mut().push(amount.get());
            let reclaimed = amount.min(Bytes::new(per_write));
            let Usage { current, cache, .. } = usage.get();
            usage.set(Usage {
                current: current.saturating_sub(reclaimed),
                cache: cache.saturating_sub(reclaimed),
                ..Usage::default()
            });
            Ok(reclaimed == amount)
        };
        let left = reclaim_to(Bytes::new(100), STEP, is_late, || Ok(usage.get()), reclaim).unwrap();
        let left = match left {
            Reclaimed::Above(usage) => Some(usage.current.get()),
            _ => None,
        };
        (left, amounts.into_inner())
    }

    #[test]
    fn steps_end_once_the_usage_fits() {
        for ((current, cache, per_write, writes), expected) in [
            ((100, 0, 16, 9), (None, vec![])),
            ((101, 1, 16, 9), (None, vec![1])),
            ((140, 60, 16, 9), (None, vec![16, 16, 8])),
            // For each write, the kernel reclaims only a part of the amount.
            ((120, 60, 10, 9), (None, vec![16, 10])),
            // The kernel reclaims nothing.
            ((140, 60, 0, 9), (Some(140), vec![16])),
            // The kernel cannot reclaim enough, so the function does not reclaim page cache in
            // vain.
            ((140, 39, 16, 9), (Some(140), vec![])),
            // The deadline has passed.
            ((140, 60, 16, 1), (Some(124), vec![16])),
            ((140, 60, 16, 0), (Some(140), vec![])),
        ] {
            let outcome = run(current, cache, per_write, writes);
            assert_eq!(outcome, expected, "{current} {cache} {per_write} {writes}");
        }
    }

    #[test]
    fn a_kernel_without_reclaim_is_reported() {
        let tree = Tree::new();
        let stat = [("memory.current", "200\n"), ("memory.stat", "inactive_file 150\n")];
        tree.make("a", &stat);
        let cgroup = tree.cgroup("a").unwrap();
        let (late, later) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        let usage = cgroup.usage_in_parts().unwrap();
        let reclaim = |most, deadline| cgroup.reclaim_to(Bytes::new(most), STEP, deadline).unwrap();
        assert_eq!(reclaim(200, later), Reclaimed::Fits);
        assert_eq!(reclaim(100, late), Reclaimed::Above(usage));
        assert_eq!(reclaim(100, later), Reclaimed::Unsupported(usage));
    }
}

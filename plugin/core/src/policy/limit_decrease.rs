//! Decisions on in-place resizes: whether a limit decrease is possible without an OOM kill, and how
//! far to raise a pod's limits.
//!
//! The functions are pure: they do not use files or the clock.

pub use super::stall::{STALLED, ThrottleState};
use crate::units::{Bytes, Limit};

/// Minimum distance between the usage and a new limit. In a pod, this margin covers the memory of
/// the pause process. The margin also covers memory that the container allocates between the last
/// check and the runtime's write.
const LEAST_MARGIN: Bytes = Bytes::new(2 << 20);

/// Divisor of a new limit: 1/25 of the limit, or 4 %, must stay free. The more the usage exceeds
/// `memory.high`, the longer the kernel delays the processes. An excess of 1 % causes no delay. An
/// excess of 4 % causes a delay of a tenth of a second for every 64 pages. Source:
/// `calculate_high_delay` in the kernel's `mm/memcontrol.c`.
const MARGIN_PART: u64 = 25;

/// Memory and CPU limits of a container or a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory limit.
    pub memory: Limit,
    /// CPU limit in microseconds of CPU time per second. `None` means no limit.
    pub cpu: Option<u64>,
}

/// Higher limits for a pod. `None` means that the plugin does not raise the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raise {
    /// New `memory.max` in bytes.
    pub memory: Option<Bytes>,
    /// New `cpu.max` in microseconds of CPU time per second.
    pub cpu: Option<u64>,
}

impl Raise {
    /// The plugin raises no limit.
    pub const NONE: Self = Self { memory: None, cpu: None };
}

/// Memory usage of a cgroup, with the parts that the kernel can reclaim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// `memory.current`.
    pub current: Bytes,
    /// Page cache without shared memory, plus reclaimable kernel memory.
    pub cache: Bytes,
    /// Memory that the kernel could swap out.
    pub swappable: Bytes,
    /// Swap that the cgroup may still use.
    pub swap_left: Bytes,
}

impl Usage {
    /// Returns the maximum amount of memory that the kernel can reclaim.
    pub fn reclaimable(&self) -> Bytes {
        self.cache.saturating_add(self.swappable.min(self.swap_left)).min(self.current)
    }
}

/// Whether the usage of a cgroup fits below a lower limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecreaseCheck {
    /// The usage fits already.
    Fits,
    /// The usage fits if the kernel reclaims enough.
    Reclaim,
    /// Even full reclaim is not enough, so the limit decrease would cause an OOM kill.
    Kills,
}

/// Returns whether a limit is more than `most` times the request. Returns false for a request of 0,
/// because it promises no memory.
pub fn is_overcommitted(limit: Bytes, request: Bytes, most: f64) -> bool {
    request > Bytes::ZERO && limit.get() as f64 > request.get() as f64 * most
}

/// Returns the memory that must stay free below a new limit: 4 % of the limit, but at least 2 MiB.
pub fn margin(limit: Bytes) -> Bytes {
    Bytes::new(limit.get() / MARGIN_PART).max(LEAST_MARGIN)
}

/// Checks a limit decrease to `limit`. The margin must stay free, because the usage may grow during
/// the decrease.
pub fn check_decrease(limit: Bytes, usage: &Usage) -> DecreaseCheck {
    fits(limit.saturating_sub(margin(limit)), usage)
}

/// Checks whether the usage is at most `most`, without a margin.
pub fn fits(most: Bytes, usage: &Usage) -> DecreaseCheck {
    if usage.current <= most {
        DecreaseCheck::Fits
    } else if usage.current.saturating_sub(usage.reclaimable()) <= most {
        DecreaseCheck::Reclaim
    } else {
        DecreaseCheck::Kills
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mib(mib: u64) -> Bytes {
        Bytes::new(mib << 20)
    }

    fn usage(current: u64, cache: u64) -> Usage {
        Usage { current: mib(current), cache: mib(cache), ..Usage::default() }
    }

    #[test]
    fn a_decrease_needs_margin_or_reclaimable_cache() {
        for (limit, current, cache, expected) in [
            (100, 96, 0, DecreaseCheck::Fits),
            (100, 97, 0, DecreaseCheck::Kills),
            (100, 97, 1, DecreaseCheck::Reclaim),
            (100, 128, 31, DecreaseCheck::Kills),
            (100, 128, 32, DecreaseCheck::Reclaim),
            // The margin is 4 % for large limits and 2 MiB for small ones.
            (1000, 960, 0, DecreaseCheck::Fits),
            (1000, 961, 0, DecreaseCheck::Kills),
            (20, 18, 0, DecreaseCheck::Fits),
            (20, 19, 0, DecreaseCheck::Kills),
            (1, 0, 0, DecreaseCheck::Fits),
            (1, 1, 0, DecreaseCheck::Kills),
        ] {
            assert_eq!(
                check_decrease(mib(limit), &usage(current, cache)),
                expected,
                "{limit} {current} {cache}"
            );
        }
    }

    #[test]
    fn free_swap_bounds_reclaimable_swappable_memory() {
        let usage = Usage { swappable: mib(60), swap_left: mib(20), ..usage(100, 10) };
        assert_eq!(usage.reclaimable(), mib(30));
        assert_eq!(check_decrease(mib(73), &usage), DecreaseCheck::Reclaim);
        assert_eq!(check_decrease(mib(72), &usage), DecreaseCheck::Kills);
    }

    proptest! {
        #[test]
        fn what_fits_fits_below_any_higher_limit(
            limit in 0..1000u64,
            more in 0..1000u64,
            current in 0..1000u64,
        ) {
            let usage = usage(current, 0);
            if check_decrease(mib(limit), &usage) == DecreaseCheck::Fits {
                prop_assert_eq!(check_decrease(mib(limit + more), &usage), DecreaseCheck::Fits);
            }
        }
    }
}

//! Decisions on in-place resizes: whether a limit decrease is possible without an OOM kill, and how
//! far to raise a pod's limits. The module also decides how to release a stalled container from
//! `memory.high`.
//!
//! The functions are pure: they use no files and no clock.

use crate::units::{Bytes, Limit};

/// Minimum free memory below a new limit. It covers the pause process below the pod's own limit. It
/// also covers memory charged between the last check and the runtime's write, while `memory.high`
/// throttles the container.
const LEAST_MARGIN: Bytes = Bytes::new(2 << 20);

/// Divisor for the free part of a limit: 1/25, or 4 %. Throttling by `memory.high` grows with the
/// relative excess: none at 1 %, a tenth of a second for every 64 pages at 4 %. Source:
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

/// Higher limits for a pod. `None` means that the limit is not raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raise {
    /// New `memory.max` in bytes.
    pub memory: Option<Bytes>,
    /// New `cpu.max` in microseconds of CPU time per second.
    pub cpu: Option<u64>,
}

impl Raise {
    /// No limit is raised.
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
    /// Returns the maximum that the kernel can reclaim.
    pub fn reclaimable(&self) -> Bytes {
        self.cache.saturating_add(self.swappable.min(self.swap_left)).min(self.current)
    }
}

/// Result of the check whether usage fits below a lower limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The usage fits already.
    Fits,
    /// The usage fits if the kernel reclaims enough.
    Reclaim,
    /// The usage does not fit even after all reclaim. The limit decrease would cause an OOM kill.
    Kills,
}

/// Returns whether a limit exceeds `most` times a request. A request of 0 promises nothing, so the
/// result is false.
pub fn is_overcommitted(limit: Bytes, request: Bytes, most: f64) -> bool {
    request > Bytes::ZERO && limit.get() as f64 > request.get() as f64 * most
}

/// Returns the memory that must stay free below a new limit: 4 %, at least 2 MiB.
pub fn margin(limit: Bytes) -> Bytes {
    Bytes::new(limit.get() / MARGIN_PART).max(LEAST_MARGIN)
}

/// Checks a limit decrease to `limit`, with the margin for growth during the decrease.
pub fn cut(limit: Bytes, usage: &Usage) -> Cut {
    fits(limit.saturating_sub(margin(limit)), usage)
}

/// Checks whether the usage is at most `most`, without a margin.
pub fn fits(most: Bytes, usage: &Usage) -> Cut {
    if usage.current <= most {
        Cut::Fits
    } else if usage.current.saturating_sub(usage.reclaimable()) <= most {
        Cut::Reclaim
    } else {
        Cut::Kills
    }
}

/// Memory state of a container that `memory.high` may throttle too much.
#[derive(Clone, Copy, Debug)]
pub struct Throttled {
    /// Memory usage.
    pub usage: Bytes,
    /// Desired `memory.high`.
    pub line: Bytes,
    /// Observed `memory.high`.
    pub high: Limit,
    /// The container's limit, or a substitute where it has none.
    pub max: Bytes,
    /// Percentage of the last ten seconds in which all tasks waited for memory (`memory.pressure`,
    /// full).
    pub stalled: f64,
}

impl Throttled {
    /// Returns whether the usage is near or above `memory.high` and the container is stalled for at
    /// least [`STALLED`] percent of the time.
    pub fn is_pinned(&self) -> bool {
        let near = |high: Bytes| self.usage >= high.saturating_sub(Bytes::new(high.get() / NEAR));
        self.stalled >= STALLED && self.high.bytes().is_some_and(near)
    }

    /// Returns whether the usage is far enough below the desired `memory.high` to restore that
    /// value.
    pub fn is_well_below(&self) -> bool {
        self.usage < self.line.saturating_sub(Bytes::new(self.line.get() / WELL_BELOW))
    }

    /// Returns the next `memory.high` and the size of the step, or `None` if `memory.high` is `max`
    /// already.
    ///
    /// A step is a quarter of the way from the desired `memory.high` to the limit, at least 4 MiB.
    /// Also returns `None` if the step exceeds `free`, the memory that the node can spare. The last
    /// step removes `memory.high`.
    pub fn release(&self, free: Bytes) -> Option<(Limit, Bytes)> {
        let high = self.high.bytes()?;
        let step =
            Bytes::new(self.max.saturating_sub(self.line).get().div_ceil(STEPS)).max(LEAST_STEP);
        if step > free {
            return None;
        }
        let next = high.saturating_add(step);
        Some((if next >= self.max { Limit::Max } else { Limit::Bytes(next) }, step))
    }
}

/// Divisor of `memory.high`: usage at most 1/32 below `memory.high` counts as throttled.
const NEAR: u64 = 32;

/// Stalled time from which a container counts as stalled, in percent of ten seconds.
pub const STALLED: f64 = 10.0;

/// Divisor of the desired `memory.high`: usage must be more than 1/10 below it before the plugin
/// restores it.
const WELL_BELOW: u64 = 10;

/// Number of steps from the desired `memory.high` to the limit.
const STEPS: u64 = 4;

/// Minimum size of a step.
const LEAST_STEP: Bytes = Bytes::new(4 << 20);

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
    fn a_cut_passes_is_made_room_for_or_would_kill() {
        for (limit, current, cache, expected) in [
            (100, 96, 0, Cut::Fits),
            (100, 97, 0, Cut::Kills),
            (100, 97, 1, Cut::Reclaim),
            (100, 128, 31, Cut::Kills),
            (100, 128, 32, Cut::Reclaim),
            // The margin is 4 % for large limits and 2 MiB for small ones.
            (1000, 960, 0, Cut::Fits),
            (1000, 961, 0, Cut::Kills),
            (20, 18, 0, Cut::Fits),
            (20, 19, 0, Cut::Kills),
            (1, 0, 0, Cut::Fits),
            (1, 1, 0, Cut::Kills),
        ] {
            assert_eq!(
                cut(mib(limit), &usage(current, cache)),
                expected,
                "{limit} {current} {cache}"
            );
        }
    }

    #[test]
    fn memory_counts_as_reclaimable_as_far_as_there_is_swap() {
        let usage = Usage { swappable: mib(60), swap_left: mib(20), ..usage(100, 10) };
        assert_eq!(usage.reclaimable(), mib(30));
        assert_eq!(cut(mib(73), &usage), Cut::Reclaim);
        assert_eq!(cut(mib(72), &usage), Cut::Kills);
    }

    proptest! {
        #[test]
        fn what_fits_fits_below_any_higher_limit(limit in 0..1000u64, more in 0..1000u64, current in 0..1000u64) {
            let usage = usage(current, 0);
            if cut(mib(limit), &usage) == Cut::Fits {
                prop_assert_eq!(cut(mib(limit + more), &usage), Cut::Fits);
            }
        }
    }

    fn throttled(usage: u64, high: u64, stalled: f64) -> Throttled {
        Throttled {
            usage: mib(usage),
            line: mib(100),
            high: mib(high).into(),
            max: mib(200),
            stalled,
        }
    }

    #[test]
    fn who_stands_at_the_line_and_does_nothing_else_is_pinned() {
        assert!(throttled(98, 100, 90.0).is_pinned());
        assert!(throttled(101, 100, 10.0).is_pinned());
        assert!(!throttled(98, 100, 9.9).is_pinned(), "it is merely slowed down");
        assert!(!throttled(90, 100, 90.0).is_pinned(), "it waits for something else");
        assert!(!Throttled { high: Limit::Max, ..throttled(98, 100, 90.0) }.is_pinned());
    }

    #[test]
    fn a_container_is_released_in_steps_as_far_as_the_node_has_memory() {
        let mut container = throttled(100, 100, 90.0);
        for expected in [mib(125).into(), mib(150).into(), mib(175).into(), Limit::Max] {
            assert_eq!(container.release(mib(25)), Some((expected, mib(25))));
            container.high = expected;
        }
        assert_eq!(container.release(mib(1000)), None);
        assert_eq!(throttled(100, 100, 90.0).release(mib(24)), None);
        let narrow = Throttled { max: mib(101), ..throttled(100, 100, 90.0) };
        assert_eq!(narrow.release(mib(4)), Some((Limit::Max, mib(4))));
    }

    #[test]
    fn the_line_is_put_back_only_where_it_would_not_throttle_again_at_once() {
        assert!(!throttled(90, 150, 0.0).is_well_below());
        assert!(throttled(89, 150, 0.0).is_well_below());
    }
}

//! Decisions on resizes: whether a lower limit can be reached without a kill, and how far a pod's limits are to be raised.
//!
//! Pure: no files, no clock.

use crate::core::units::{Bytes, Limit};

/// How much a limit has to leave free at least: for the pause process in the pod's own limit, and for what is charged between
/// the last look and the runtime's write while `memory.high` slows the container down.
const LEAST_MARGIN: Bytes = Bytes::new(2 << 20);

/// The part of a limit that has to stay free. By how much `memory.high` slows down depends on how far it is exceeded, in parts: by 1 %
/// not at all, by 4 % a tenth of a second for every 64 pages (kernel: `calculate_high_delay` in `mm/memcontrol.c`).
const MARGIN_PART: u64 = 25;

/// What a container, or a pod, may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory.
    pub memory: Limit,
    /// Processor time per second in microseconds; `None` is no limit.
    pub cpu: Option<u64>,
}

/// How far a pod's limits are to be raised; `None` is not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raise {
    /// `memory.max`, in bytes.
    pub memory: Option<Bytes>,
    /// `cpu.max`, as processor time per second in microseconds.
    pub cpu: Option<u64>,
}

impl Raise {
    /// Nothing is raised.
    pub const NONE: Self = Self { memory: None, cpu: None };
}

/// What a cgroup uses, and what of that can be had back without a kill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// `memory.current`.
    pub current: Bytes,
    /// Page cache that is not shared memory, and reclaimable kernel memory.
    pub cache: Bytes,
    /// Memory that could be swapped out.
    pub swappable: Bytes,
    /// How much more swap may be used.
    pub swap_left: Bytes,
}

impl Usage {
    /// What can be reclaimed at most.
    pub fn reclaimable(&self) -> Bytes {
        self.cache.saturating_add(self.swappable.min(self.swap_left)).min(self.current)
    }
}

/// Whether a container can have a lower limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It uses no more than that.
    Fits,
    /// If as much is reclaimed as can be.
    Reclaim,
    /// Whatever is reclaimed, it would be killed.
    Kills,
}

/// Whether a limit is more than `most` times a request. Nothing requested is no promise that could be broken.
pub fn is_overcommitted(limit: Bytes, request: Bytes, most: f64) -> bool {
    request > Bytes::ZERO && limit.get() as f64 > request.get() as f64 * most
}

/// How much has to stay free below a limit when it is set: 4 %, at least 2 MiB.
pub fn margin(limit: Bytes) -> Bytes {
    Bytes::new(limit.get() / MARGIN_PART).max(LEAST_MARGIN)
}

/// Judges a cut to `limit` of something that may grow while it is made.
pub fn cut(limit: Bytes, usage: &Usage) -> Cut {
    fits(limit.saturating_sub(margin(limit)), usage)
}

/// Judges whether it uses no more than `most`.
pub fn fits(most: Bytes, usage: &Usage) -> Cut {
    if usage.current <= most {
        Cut::Fits
    } else if usage.current.saturating_sub(usage.reclaimable()) <= most {
        Cut::Reclaim
    } else {
        Cut::Kills
    }
}

/// A container of which `memory.high` may be holding too much back.
#[derive(Clone, Copy, Debug)]
pub struct Throttled {
    /// What it uses.
    pub usage: Bytes,
    /// `memory.high` as it should be.
    pub line: Bytes,
    /// `memory.high` as it is.
    pub high: Limit,
    /// Its limit, or what stands in for one.
    pub max: Bytes,
    /// How much of the last ten seconds all of it waited for memory, in percent (`memory.pressure`, full).
    pub stalled: f64,
}

impl Throttled {
    /// It stands at `memory.high`, and does nothing else.
    pub fn is_pinned(&self) -> bool {
        let near = |high: Bytes| self.usage >= high.saturating_sub(Bytes::new(high.get() / NEAR));
        self.stalled >= STALLED && self.high.bytes().is_some_and(near)
    }

    /// It would not be throttled if `memory.high` were as it should be.
    pub fn is_well_below(&self) -> bool {
        self.usage < self.line.saturating_sub(Bytes::new(self.line.get() / WELL_BELOW))
    }

    /// The next value for `memory.high`, while the node has `free` memory to spare: a quarter of the way to the limit on, as far
    /// as the node has that, and none at all at the end; and how far that is. `None` if there is no room.
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

/// What part of `memory.high` usage may be below it and still be held back by it.
const NEAR: u64 = 32;

/// From what part of ten seconds on a container counts as standing still, in percent.
pub const STALLED: f64 = 10.0;

/// What part of the line usage has to be below it for the line to be put back.
const WELL_BELOW: u64 = 10;

/// In how many steps a container is released.
const STEPS: u64 = 4;

/// The least step.
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
            // 4 % of it, and 2 MiB.
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

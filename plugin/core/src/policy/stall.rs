//! Decides when a container that is throttled too much gets a higher `memory.high`.

use crate::units::{Bytes, Limit};

/// Memory state of a container that `memory.high` may throttle too much.
#[derive(Clone, Copy, Debug)]
pub struct ThrottleState {
    /// Memory usage.
    pub usage: Bytes,
    /// Desired `memory.high`.
    pub policy_high: Bytes,
    /// Observed `memory.high`.
    pub high: Limit,
    /// The container's limit. For a container without a limit, the caller passes another upper
    /// bound.
    pub max: Bytes,
    /// Percentage of the last ten seconds during which all tasks waited for memory
    /// (`memory.pressure`, full).
    pub stalled: f64,
}

impl ThrottleState {
    /// Returns whether the usage is near or above `memory.high` and all tasks of the container
    /// waited for memory for at least [`STALLED`] percent of the time.
    pub fn is_pinned(&self) -> bool {
        let near = |high: Bytes| self.usage >= high.saturating_sub(Bytes::new(high.get() / NEAR));
        self.stalled >= STALLED && self.high.bytes().is_some_and(near)
    }

    /// Returns whether the usage is so far below the desired `memory.high` that the plugin may
    /// restore the desired value.
    pub fn is_well_below(&self) -> bool {
        self.usage
            < self.policy_high.saturating_sub(Bytes::new(self.policy_high.get() / WELL_BELOW))
    }

    /// Returns the next `memory.high` and the size of the step. Returns `None` if `memory.high` is
    /// already `max`.
    ///
    /// A step is a quarter of the way from the desired `memory.high` to the limit, but at least 4
    /// MiB. Also returns `None` if the step exceeds `free`, the memory that the node can spare. The
    /// last step sets `memory.high` to `max`.
    pub fn release(&self, free: Bytes) -> Option<(Limit, Bytes)> {
        let high = self.high.bytes()?;
        let step = Bytes::new(self.max.saturating_sub(self.policy_high).get().div_ceil(STEPS))
            .max(LEAST_STEP);
        if step > free {
            return None;
        }
        let next = high.saturating_add(step);
        Some((if next >= self.max { Limit::Max } else { Limit::Bytes(next) }, step))
    }
}

/// Divisor of `memory.high`. Usage counts as near `memory.high` if it is at most 1/32 below
/// `memory.high`.
const NEAR: u64 = 32;

/// A container counts as stalled if all its tasks waited for memory during at least this percentage
/// of the last ten seconds.
pub const STALLED: f64 = 10.0;

/// Divisor of the desired `memory.high`. The plugin restores the desired value only while the usage
/// is more than 1/10 below this value.
const WELL_BELOW: u64 = 10;

/// Number of steps from the desired `memory.high` to the limit.
const STEPS: u64 = 4;

/// Minimum size of a step.
const LEAST_STEP: Bytes = Bytes::new(4 << 20);

#[cfg(test)]
mod tests {
    use super::*;

    fn mib(mib: u64) -> Bytes {
        Bytes::new(mib << 20)
    }

    fn throttled(usage: u64, high: u64, stalled: f64) -> ThrottleState {
        ThrottleState {
            usage: mib(usage),
            policy_high: mib(100),
            high: mib(high).into(),
            max: mib(200),
            stalled,
        }
    }

    #[test]
    fn a_pinned_container_stalls_near_memory_high() {
        assert!(throttled(98, 100, 90.0).is_pinned());
        assert!(throttled(101, 100, 10.0).is_pinned());
        assert!(!throttled(98, 100, 9.9).is_pinned(), "the stall is below the threshold");
        assert!(!throttled(90, 100, 90.0).is_pinned(), "the usage is not near memory.high");
        assert!(!ThrottleState { high: Limit::Max, ..throttled(98, 100, 90.0) }.is_pinned());
    }

    #[test]
    fn release_steps_never_exceed_free_memory() {
        let mut container = throttled(100, 100, 90.0);
        for expected in [mib(125).into(), mib(150).into(), mib(175).into(), Limit::Max] {
            assert_eq!(container.release(mib(25)), Some((expected, mib(25))));
            container.high = expected;
        }
        assert_eq!(container.release(mib(1000)), None);
        assert_eq!(throttled(100, 100, 90.0).release(mib(24)), None);
        let narrow = ThrottleState { max: mib(101), ..throttled(100, 100, 90.0) };
        assert_eq!(narrow.release(mib(4)), Some((Limit::Max, mib(4))));
    }

    #[test]
    fn restore_requires_usage_below_nine_tenths() {
        assert!(!throttled(90, 150, 0.0).is_well_below());
        assert!(throttled(89, 150, 0.0).is_well_below());
    }
}

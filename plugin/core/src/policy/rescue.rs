//! OOM rescue: decides whether a container that is OOM-killed repeatedly gets a higher limit, and
//! computes the limit.
//!
//! The module does not read the clock. The caller passes the time in seconds since boot.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Limit, PageSize};

/// Maximum number of kills that the plugin remembers for each container. Equals the highest value
/// that the configuration allows for `kills`.
const REMEMBERED: usize = 1000;

/// Rules for raising the limits of containers (`oomRescue`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OomRescue {
    /// Number of kills within `window` after which the plugin raises the limit, 1 to 1000.
    pub kills: u32,
    /// Time window in which the plugin counts kills.
    pub window: Duration,
    /// Factor by which a rescue multiplies the current limit, 1 to 10.
    pub factor: f64,
    /// Minimum increase of the limit.
    pub minimum: Bytes,
    /// Ceiling of the raised limit.
    pub ceiling: Ceiling,
}

/// Uses the factor and the minimum that the Vertical Pod Autoscaler uses after an OOM kill
/// (`--oom-bump-up-ratio`, `--oom-min-bump-up-bytes`).
impl Default for OomRescue {
    fn default() -> Self {
        Self {
            kills: 3,
            window: Duration::from_secs(600),
            factor: 1.2,
            minimum: Bytes::new(100 << 20),
            ceiling: Ceiling::Share(10),
        }
    }
}

/// Ceiling of a raised limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ceiling {
    /// The raised limit is at most this amount.
    Limit(Bytes),
    /// The increase is at most this percentage (1 to 100) of the node allocatable memory that no
    /// pod requests.
    Share(u64),
}

impl fmt::Display for Ceiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(limit) => f.write_str(&limit.quantity()),
            Self::Share(share) => write!(f, "{share}%"),
        }
    }
}

impl Ceiling {
    /// Returns the highest limit that a container may get if its user asks for `asked`. `free` is
    /// the node's memory that no pod requests.
    fn most(self, asked: Bytes, free: Bytes) -> Bytes {
        let all = asked.saturating_add(free);
        match self {
            Self::Limit(limit) => limit.min(all),
            Self::Share(share) => {
                let part = u128::from(free.get()) * u128::from(share.min(100)) / 100;
                asked.saturating_add(Bytes::new(u64::try_from(part).unwrap_or(u64::MAX)))
            }
        }
    }
}

/// OOM kills of a container, and its raised limit. The plugin keeps this history when the container
/// restarts, and clears it when the user asks for a different limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The limit that the user asks for. `None` means unknown or no limit.
    asked: Option<Bytes>,
    /// The times of the kills, in seconds since boot.
    kills: Vec<u64>,
    /// The raised limit.
    rescued: Option<Rescue>,
}

/// A raised limit of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rescue {
    /// The limit that the user asks for.
    pub asked: Bytes,
    /// The raised limit, which the container gets instead of `asked`.
    pub limit: Bytes,
}

/// Decision on a container that was OOM-killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RescueDecision {
    /// Wait for more kills.
    NotYet,
    /// Raise the limit to this value. The kill count restarts at 0.
    Raise(Bytes),
    /// The container's limit has reached this ceiling. The kill count restarts at 0.
    AtCeiling(Bytes),
}

impl History {
    /// Records OOM kills.
    pub fn killed(&mut self, times: u64, now: u64) {
        let times = usize::try_from(times).unwrap_or(REMEMBERED).min(REMEMBERED);
        self.kills.extend(std::iter::repeat_n(now, times));
        let surplus = self.kills.len().saturating_sub(REMEMBERED);
        self.kills.drain(..surplus);
    }

    /// Returns the number of kills within this window.
    pub fn kills(&self, window: Duration, now: u64) -> usize {
        self.kills.iter().filter(|kill| now.saturating_sub(**kill) <= window.as_secs()).count()
    }

    /// Returns the raised limit.
    pub fn rescued(&self) -> Option<Rescue> {
        self.rescued
    }

    /// Records the limit that the user asks for, and clears the history if that limit changed.
    /// Returns whether the limit changed. A limit after `None` does not count as a change.
    pub fn asks_for(&mut self, asked: Limit, page: PageSize) -> bool {
        let is_new = self.asked.is_some_and(|before| !asked.is_same(before.into(), page));
        if is_new {
            *self = Self::default();
        }
        self.asked = asked.bytes();
        is_new
    }

    /// Decides whether the container gets a higher limit. `asked` is the limit that the user asks
    /// for, and `own_ceiling` comes from the pod's annotation. `free` is the node's memory that no
    /// pod requests.
    pub fn judge(
        &mut self,
        rescue: &OomRescue,
        asked: Bytes,
        own_ceiling: Option<Bytes>,
        free: Bytes,
        page: PageSize,
        now: u64,
    ) -> RescueDecision {
        if self.kills(rescue.window, now) < rescue.kills as usize {
            return RescueDecision::NotYet;
        }
        self.kills.clear();
        let limit = self.rescued.map_or(asked, |rescued| rescued.limit);
        let most =
            own_ceiling.unwrap_or(Bytes::MAX).min(rescue.ceiling.most(asked, free)).floor_to(page);
        let next_page = limit.saturating_add(Bytes::new(page.get())).floor_to(page);
        if most < next_page {
            return RescueDecision::AtCeiling(most);
        }
        let by_factor = Bytes::new((limit.get() as f64 * rescue.factor) as u64);
        let wanted = by_factor.max(limit.saturating_add(rescue.minimum));
        let raised = wanted.min(most).floor_to(page).max(next_page);
        self.rescued = Some(Rescue { asked, limit: raised });
        RescueDecision::Raise(raised)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 100_000;

    fn mib(mib: u64) -> Bytes {
        Bytes::new(mib << 20)
    }

    fn rescue(ceiling: Ceiling) -> OomRescue {
        OomRescue { ceiling, ..OomRescue::default() }
    }

    /// Creates a history with enough kills for a rescue.
    fn killed() -> History {
        let mut history = History::default();
        history.killed(3, NOW);
        history
    }

    fn judge(history: &mut History, ceiling: Ceiling, asked: Bytes) -> RescueDecision {
        history.judge(&rescue(ceiling), asked, None, mib(1000), PageSize::KIB4, NOW)
    }

    #[test]
    fn only_kills_within_the_window_count() {
        let mut history = History::default();
        history.killed(1, NOW - 601);
        history.killed(2, NOW - 600);
        assert_eq!(history.kills(Duration::from_secs(600), NOW), 2);
        assert_eq!(
            judge(&mut history, Ceiling::Limit(mib(2000)), mib(100)),
            RescueDecision::NotYet
        );
        history.killed(1, NOW);
        assert_eq!(
            judge(&mut history, Ceiling::Limit(mib(2000)), mib(100)),
            RescueDecision::Raise(mib(200))
        );
        assert_eq!(
            judge(&mut history, Ceiling::Limit(mib(2000)), mib(100)),
            RescueDecision::NotYet,
            "counted anew"
        );
    }

    #[test]
    fn the_larger_increase_applies_up_to_ceiling() {
        let limit = Ceiling::Limit(mib(2000));
        assert_eq!(judge(&mut killed(), limit, mib(100)), RescueDecision::Raise(mib(200)));
        assert_eq!(judge(&mut killed(), limit, mib(1000)), RescueDecision::Raise(mib(1200)));
        assert_eq!(
            judge(&mut killed(), Ceiling::Limit(mib(150)), mib(100)),
            RescueDecision::Raise(mib(150))
        );
        assert_eq!(
            judge(&mut killed(), Ceiling::Limit(mib(100)), mib(100)),
            RescueDecision::AtCeiling(mib(100))
        );
        // The increase is 5 % of 1000 MiB.
        assert_eq!(
            judge(&mut killed(), Ceiling::Share(5), mib(100)),
            RescueDecision::Raise(mib(150))
        );
        // The node has so little free memory that the raised limit stays below the ceiling.
        assert_eq!(
            judge(&mut killed(), Ceiling::Limit(mib(5000)), mib(3950)),
            RescueDecision::Raise(mib(4740))
        );
        assert_eq!(
            judge(&mut killed(), Ceiling::Limit(mib(50_000)), mib(6000)),
            RescueDecision::Raise(mib(7000))
        );
        let none = killed().judge(&rescue(limit), mib(100), None, Bytes::ZERO, PageSize::KIB4, NOW);
        assert_eq!(none, RescueDecision::AtCeiling(mib(100)));
        let own = killed().judge(
            &rescue(limit),
            mib(100),
            Some(mib(120)),
            mib(1000),
            PageSize::KIB4,
            NOW,
        );
        assert_eq!(own, RescueDecision::Raise(mib(120)));
    }

    #[test]
    fn a_share_ceiling_ignores_earlier_raises() {
        let mut history = killed();
        let small =
            OomRescue { minimum: mib(30), ceiling: Ceiling::Share(5), ..OomRescue::default() };
        for expected in [
            RescueDecision::Raise(mib(130)),
            RescueDecision::Raise(mib(150)),
            RescueDecision::AtCeiling(mib(150)),
        ] {
            assert_eq!(
                history.judge(&small, mib(100), None, mib(1000), PageSize::KIB4, NOW),
                expected
            );
            history.killed(3, NOW);
        }
        assert_eq!(history.rescued(), Some(Rescue { asked: mib(100), limit: mib(150) }));
    }

    #[test]
    fn a_new_user_limit_clears_the_history() {
        let asks_for = |history: &mut History, limit| history.asks_for(limit, PageSize::KIB4);
        let mut history = killed();
        assert!(!asks_for(&mut history, mib(100).into()));
        judge(&mut history, Ceiling::Limit(mib(2000)), mib(100));
        // The kernel rounds this limit down to the limit that the user asked for before.
        assert!(!asks_for(&mut history, Limit::Bytes(Bytes::new(mib(100).get() + 4095))));
        assert!(history.rescued().is_some());
        for other in [mib(150).into(), Limit::Max] {
            let mut history = history.clone();
            history.killed(2, NOW);
            assert!(asks_for(&mut history, other));
            assert_eq!((history.rescued(), history.kills(Duration::MAX, NOW)), (None, 0));
        }
    }

    proptest! {
        #[test]
        fn raises_stay_within_ceiling_and_free_memory(
            limit in 1..4000u64,
            ceiling in 1..4000u64,
            free in 0..4000u64,
            factor in 1.0..10.0f64,
            minimum in 1..500u64,
        ) {
            let rescue = OomRescue {
                factor,
                minimum: mib(minimum),
                ceiling: Ceiling::Limit(mib(ceiling)),
                ..OomRescue::default()
            };
            match killed().judge(&rescue, mib(limit), None, mib(free), PageSize::KIB4, NOW) {
                RescueDecision::Raise(raised) => {
                    prop_assert!(
                        raised > mib(limit)
                            && raised <= mib(ceiling)
                            && raised <= mib(limit + free)
                    );
                }
                RescueDecision::AtCeiling(most) => prop_assert!(most <= mib(limit)),
                RescueDecision::NotYet => prop_assert!(false),
            }
        }
    }
}

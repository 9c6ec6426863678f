//! Whether a container that is killed again and again for want of memory gets more of it, and how much.
//!
//! Pure: the time is given, in seconds since the machine was started.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::units::{Bytes, Limit, PageSize};

/// How many kills of one container are remembered at most: more than can be asked for.
const REMEMBERED: usize = 1000;

/// How limits of containers are raised (`oomRescue`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OomRescue {
    /// How often a container has to be killed, 1 to 1000,
    pub kills: u32,
    /// and within what time.
    pub window: Duration,
    /// How many times as much it gets, 1 to 10.
    pub factor: f64,
    /// How much more at least.
    pub minimum: Bytes,
    /// How much at most.
    pub ceiling: Ceiling,
}

/// By factor and minimum as the Vertical Pod Autoscaler after a kill (`--oom-bump-up-ratio`, `--oom-min-bump-up-bytes`).
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

/// How far a limit is raised at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ceiling {
    /// To this.
    Limit(Bytes),
    /// By so many hundredths, 1 to 100, of what the requests of all pods leave of node allocatable.
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
    /// The highest limit for a container whose user asks for `asked`, on a node with `free` memory that nobody has requested.
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

/// What is remembered of a container, whatever ids it has had, for as long as its user asks for the same limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// What its user asks for, if that is known.
    asked: Option<Bytes>,
    /// When it was killed.
    kills: Vec<u64>,
    /// What it was raised to.
    rescued: Option<Rescued>,
}

/// A limit that was raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rescued {
    /// What its user asks for.
    pub asked: Bytes,
    /// What it has instead.
    pub limit: Bytes,
}

/// What to do about a container that was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet.
    NotYet,
    /// It gets this limit. Kills are counted anew.
    Raise(Bytes),
    /// It may not have more than it has. Kills are counted anew.
    AtCeiling(Bytes),
}

impl History {
    /// It was killed.
    pub fn killed(&mut self, times: u64, now: u64) {
        let times = usize::try_from(times).unwrap_or(REMEMBERED).min(REMEMBERED);
        self.kills.extend(std::iter::repeat_n(now, times));
        let surplus = self.kills.len().saturating_sub(REMEMBERED);
        self.kills.drain(..surplus);
    }

    /// How often it was killed within this time.
    pub fn kills(&self, window: Duration, now: u64) -> usize {
        self.kills.iter().filter(|kill| now.saturating_sub(**kill) <= window.as_secs()).count()
    }

    /// What it was raised to.
    pub fn rescued(&self) -> Option<Rescued> {
        self.rescued
    }

    /// Its user asks for this limit. Whether that is another one than before, with which nothing of what was has to do.
    pub fn asks_for(&mut self, asked: Limit, page: PageSize) -> bool {
        let is_new = self.asked.is_some_and(|before| !asked.is_same(before.into(), page));
        if is_new {
            *self = Self::default();
        }
        self.asked = asked.bytes();
        is_new
    }

    /// Whether it is to have a higher limit than it has, when its user asks for `asked`. `own_ceiling` is its pod's word on it, `free`
    /// what the node has left.
    pub fn judge(
        &mut self,
        rescue: &OomRescue,
        asked: Bytes,
        own_ceiling: Option<Bytes>,
        free: Bytes,
        page: PageSize,
        now: u64,
    ) -> Verdict {
        if self.kills(rescue.window, now) < rescue.kills as usize {
            return Verdict::NotYet;
        }
        self.kills.clear();
        let limit = self.rescued.map_or(asked, |rescued| rescued.limit);
        let most =
            own_ceiling.unwrap_or(Bytes::MAX).min(rescue.ceiling.most(asked, free)).floor_to(page);
        let next_page = limit.saturating_add(Bytes::new(page.get())).floor_to(page);
        if most < next_page {
            return Verdict::AtCeiling(most);
        }
        let by_factor = Bytes::new((limit.get() as f64 * rescue.factor) as u64);
        let wanted = by_factor.max(limit.saturating_add(rescue.minimum));
        let raised = wanted.min(most).floor_to(page).max(next_page);
        self.rescued = Some(Rescued { asked, limit: raised });
        Verdict::Raise(raised)
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

    /// Killed often enough.
    fn killed() -> History {
        let mut history = History::default();
        history.killed(3, NOW);
        history
    }

    fn judge(history: &mut History, ceiling: Ceiling, asked: Bytes) -> Verdict {
        history.judge(&rescue(ceiling), asked, None, mib(1000), PageSize::KIB4, NOW)
    }

    #[test]
    fn kills_count_for_as_long_as_the_window() {
        let mut history = History::default();
        history.killed(1, NOW - 601);
        history.killed(2, NOW - 600);
        assert_eq!(history.kills(Duration::from_secs(600), NOW), 2);
        assert_eq!(judge(&mut history, Ceiling::Limit(mib(2000)), mib(100)), Verdict::NotYet);
        history.killed(1, NOW);
        assert_eq!(
            judge(&mut history, Ceiling::Limit(mib(2000)), mib(100)),
            Verdict::Raise(mib(200))
        );
        assert_eq!(
            judge(&mut history, Ceiling::Limit(mib(2000)), mib(100)),
            Verdict::NotYet,
            "counted anew"
        );
    }

    #[test]
    fn a_limit_is_raised_by_the_factor_or_the_minimum_whichever_is_more_up_to_the_ceiling() {
        let limit = Ceiling::Limit(mib(2000));
        assert_eq!(judge(&mut killed(), limit, mib(100)), Verdict::Raise(mib(200)));
        assert_eq!(judge(&mut killed(), limit, mib(1000)), Verdict::Raise(mib(1200)));
        assert_eq!(
            judge(&mut killed(), Ceiling::Limit(mib(150)), mib(100)),
            Verdict::Raise(mib(150))
        );
        assert_eq!(
            judge(&mut killed(), Ceiling::Limit(mib(100)), mib(100)),
            Verdict::AtCeiling(mib(100))
        );
        // 5 % of 1000 MiB.
        assert_eq!(judge(&mut killed(), Ceiling::Share(5), mib(100)), Verdict::Raise(mib(150)));
        // Whatever the ceiling, the node has no more.
        assert_eq!(
            judge(&mut killed(), Ceiling::Limit(mib(5000)), mib(3950)),
            Verdict::Raise(mib(4740))
        );
        assert_eq!(
            judge(&mut killed(), Ceiling::Limit(mib(50_000)), mib(6000)),
            Verdict::Raise(mib(7000))
        );
        let none = killed().judge(&rescue(limit), mib(100), None, Bytes::ZERO, PageSize::KIB4, NOW);
        assert_eq!(none, Verdict::AtCeiling(mib(100)));
        let own = killed().judge(
            &rescue(limit),
            mib(100),
            Some(mib(120)),
            mib(1000),
            PageSize::KIB4,
            NOW,
        );
        assert_eq!(own, Verdict::Raise(mib(120)));
    }

    #[test]
    fn the_share_counts_from_what_the_user_asks_for_however_often_it_is_raised() {
        let mut history = killed();
        let small =
            OomRescue { minimum: mib(30), ceiling: Ceiling::Share(5), ..OomRescue::default() };
        for expected in
            [Verdict::Raise(mib(130)), Verdict::Raise(mib(150)), Verdict::AtCeiling(mib(150))]
        {
            assert_eq!(
                history.judge(&small, mib(100), None, mib(1000), PageSize::KIB4, NOW),
                expected
            );
            history.killed(3, NOW);
        }
        assert_eq!(history.rescued(), Some(Rescued { asked: mib(100), limit: mib(150) }));
    }

    #[test]
    fn all_of_it_is_forgotten_when_the_user_asks_for_another_limit() {
        let asks_for = |history: &mut History, limit| history.asks_for(limit, PageSize::KIB4);
        let mut history = killed();
        assert!(!asks_for(&mut history, mib(100).into()));
        judge(&mut history, Ceiling::Limit(mib(2000)), mib(100));
        // The same in whole pages, as the kernel has it.
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
        fn nobody_gets_less_than_before_or_more_than_the_ceiling(
            limit in 1..4000u64, ceiling in 1..4000u64, free in 0..4000u64, factor in 1.0..10.0f64, minimum in 1..500u64,
        ) {
            let rescue = OomRescue {
                factor, minimum: mib(minimum), ceiling: Ceiling::Limit(mib(ceiling)), ..OomRescue::default()
            };
            match killed().judge(&rescue, mib(limit), None, mib(free), PageSize::KIB4, NOW) {
                Verdict::Raise(raised) => {
                    prop_assert!(raised > mib(limit) && raised <= mib(ceiling) && raised <= mib(limit + free));
                }
                Verdict::AtCeiling(most) => prop_assert!(most <= mib(limit)),
                Verdict::NotYet => prop_assert!(false),
            }
        }
    }
}

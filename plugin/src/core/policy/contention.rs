//! Repairing what somebody else changes: a few times, ever more slowly, then no more.
//!
//! The runtime's writes for its client are no fight: the client cannot know what the plugin wants. [`Contention::expect`]
//! announces one, and its repair counts for nothing.
//!
//! Pure: the time is given.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// How often a value is repaired before it is left to whoever else sets it.
pub const REPAIRS: u32 = 5;

/// How long nobody must have changed a value for its history to be forgotten. The kubelet writes every minute.
const QUIET: Duration = Duration::from_secs(600);

/// What to do about a value that is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Repair it now.
    Repair,
    /// It was repaired just now: look again after this time.
    Wait(Duration),
    /// Leave it, and say so.
    GiveUp,
    /// It was left before.
    Leave,
}

/// The histories of values, by whose they are.
#[derive(Debug)]
pub struct Contention<K, V> {
    histories: HashMap<K, History<V>>,
    /// Values that the runtime has written for its client since they were last as they should be, and when.
    expected: HashMap<K, Instant>,
}

#[derive(Debug)]
struct History<V> {
    /// What the value should be; when that changes, the history begins anew.
    desired: V,
    repairs: u32,
    given_up: bool,
    last: Instant,
}

impl<K, V> Default for Contention<K, V> {
    fn default() -> Self {
        Self { histories: HashMap::new(), expected: HashMap::new() }
    }
}

impl<K: Eq + Hash, V: PartialEq> Contention<K, V> {
    /// The runtime has written a value for its client: where that is not the desired one, repairing it once is no fight.
    pub fn expect(&mut self, key: K, now: Instant) {
        self.expected.insert(key, now);
    }

    /// Whether the runtime has written a value for its client that was not found as it should be since.
    pub fn is_expected(&self, key: &K) -> bool {
        self.expected.contains_key(key)
    }

    /// The value is as it should be: whatever changes it from now on is somebody else.
    pub fn settle(&mut self, key: &K) {
        self.expected.remove(key);
    }

    /// Judges a value that is found not to be `desired`. `touched`: somebody has written it since it was last looked at, as
    /// far as is known.
    pub fn judge(&mut self, key: K, desired: V, touched: bool, now: Instant) -> Verdict {
        // Also where a fight was given up: nobody has written but the runtime, and once for each request of its client.
        if self.expected.remove(&key).is_some() {
            return Verdict::Repair;
        }
        let fresh = |desired| History { desired, repairs: 0, given_up: false, last: now };
        let history = match self.histories.entry(key) {
            std::collections::hash_map::Entry::Occupied(entry) => {
                let history = entry.into_mut();
                if history.desired != desired || now.duration_since(history.last) >= QUIET {
                    *history = fresh(desired);
                }
                history
            }
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(fresh(desired)),
        };
        if history.given_up {
            if touched {
                history.last = now;
            }
            return Verdict::Leave;
        }
        // The first repair at once, the second, too: it may have been set while something else was under way.
        let earliest = match history.repairs {
            0 | 1 => Duration::ZERO,
            repairs => Duration::from_millis(100 << repairs),
        };
        let since = now.duration_since(history.last);
        if history.repairs > 0 && since < earliest {
            return Verdict::Wait(earliest - since);
        }
        history.last = now;
        if history.repairs == REPAIRS {
            history.given_up = true;
            return Verdict::GiveUp;
        }
        history.repairs += 1;
        Verdict::Repair
    }

    /// Whether a value is left to whoever else sets it.
    pub fn is_left(&self, key: &K, desired: &V, now: Instant) -> bool {
        let is_so = |history: &History<V>| {
            history.given_up
                && history.desired == *desired
                && now.duration_since(history.last) < QUIET
        };
        self.histories.get(key).is_some_and(is_so)
    }

    /// How often a value was repaired lately.
    pub fn repairs(&self, key: &K) -> u32 {
        self.histories.get(key).map_or(0, |history| history.repairs)
    }

    /// The value is to be judged as if for the first time.
    pub fn forget(&mut self, key: &K) {
        self.histories.remove(key);
        self.expected.remove(key);
    }

    /// Forgets those who have been quiet, so that not all who ever were are kept.
    pub fn forget_quiet(&mut self, now: Instant) {
        self.histories.retain(|_, history| now.duration_since(history.last) < QUIET);
        self.expected.retain(|_, since| now.duration_since(*since) < QUIET);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Somebody writes again whenever it was repaired, `every` so often. Gives the verdicts until it is left.
    fn fight(
        every: Duration,
        contention: &mut Contention<&str, u32>,
        mut now: Instant,
    ) -> (Vec<Verdict>, Instant) {
        let mut verdicts = Vec::new();
        loop {
            let verdict = contention.judge("a", 1, true, now);
            verdicts.push(verdict);
            now += match verdict {
                Verdict::Wait(wait) => wait,
                Verdict::Leave => return (verdicts, now),
                _ => every,
            };
            assert!(verdicts.len() < 100);
        }
    }

    #[test]
    fn a_fight_ends_and_is_reported_once() {
        for every in [Duration::ZERO, SECOND / 3, 60 * SECOND] {
            let (verdicts, _) = fight(every, &mut Contention::default(), Instant::now());
            let count = |wanted| verdicts.iter().filter(|verdict| **verdict == wanted).count();
            assert_eq!(count(Verdict::Repair), REPAIRS as usize, "{every:?}");
            assert_eq!(count(Verdict::GiveUp), 1, "{every:?}");
        }
    }

    #[test]
    fn repairs_come_ever_more_slowly() {
        let mut contention = Contention::default();
        let (verdicts, _) = fight(Duration::ZERO, &mut contention, Instant::now());
        let waits: Vec<u128> = verdicts
            .iter()
            .filter_map(|verdict| {
                if let Verdict::Wait(wait) = verdict { Some(wait.as_millis()) } else { None }
            })
            .collect();
        assert_eq!(waits, [400, 800, 1600, 3200]);
    }

    #[test]
    fn who_goes_on_writing_is_left_for_ever_and_who_stops_is_repaired_once_more() {
        let mut contention = Contention::default();
        let (_, mut now) = fight(SECOND, &mut contention, Instant::now());
        for _ in 0..100 {
            now += 60 * SECOND;
            assert_eq!(contention.judge("a", 1, true, now), Verdict::Leave);
        }
        // A look without a new write in between.
        assert_eq!(contention.judge("a", 1, false, now + QUIET / 2), Verdict::Leave);
        assert_eq!(contention.judge("a", 1, false, now + QUIET), Verdict::Repair);
    }

    #[test]
    fn a_new_value_and_another_key_have_no_history() {
        let mut contention = Contention::default();
        let (_, now) = fight(SECOND, &mut contention, Instant::now());
        assert_eq!(contention.judge("b", 1, true, now), Verdict::Repair);
        assert_eq!(contention.judge("a", 2, true, now), Verdict::Repair);
    }

    #[test]
    fn quiet_ones_are_forgotten() {
        let mut contention = Contention::default();
        let now = Instant::now();
        contention.judge("a", 1, true, now);
        contention.expect("b", now);
        contention.forget_quiet(now + QUIET);
        assert_eq!(contention.repairs(&"a"), 0);
        assert!(contention.histories.is_empty() && contention.expected.is_empty());
    }

    #[test]
    fn writes_for_a_client_are_no_fight() {
        let mut contention = Contention::default();
        let mut now = Instant::now();
        for _ in 0..10 * REPAIRS {
            contention.expect("a", now);
            assert!(contention.is_expected(&"a"));
            // Without a wait, and without a trace.
            assert_eq!(contention.judge("a", 1, true, now), Verdict::Repair);
            assert_eq!(contention.repairs(&"a"), 0);
            assert!(!contention.is_expected(&"a"));
            now += SECOND / 100;
        }
        // Each excuses one repair.
        let (verdicts, _) = fight(Duration::ZERO, &mut contention, now);
        assert_eq!(
            verdicts.iter().filter(|verdict| **verdict == Verdict::Repair).count(),
            REPAIRS as usize
        );
    }

    #[test]
    fn a_settled_value_excuses_no_later_writer() {
        let mut contention = Contention::default();
        let now = Instant::now();
        contention.expect("a", now);
        contention.settle(&"a");
        assert_eq!(contention.judge("a", 1, true, now), Verdict::Repair);
        assert_eq!(contention.repairs(&"a"), 1);
    }

    #[test]
    fn a_client_does_not_end_a_fight() {
        let mut contention = Contention::default();
        let (_, now) = fight(SECOND, &mut contention, Instant::now());
        contention.expect("a", now);
        assert_eq!(contention.judge("a", 1, true, now), Verdict::Repair);
        assert_eq!(contention.judge("a", 1, true, now + SECOND), Verdict::Leave);
    }
}

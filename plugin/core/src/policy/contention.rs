//! Decides when to repair a value that another program changes. The plugin repairs a value a few
//! times with increasing delays and then gives up.
//!
//! The runtime also writes values on behalf of its client, the kubelet. The kubelet does not know
//! the plugin's desired values, so a write by the runtime is not a conflict. The caller announces
//! the write with [`Contention::expect`]. Then the next repair does not count as a conflict.
//!
//! The module does not read the clock. The caller passes the time.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Number of repairs of a value before the plugin gives up.
pub const REPAIRS: u32 = 5;

/// After this time without changes, the plugin forgets the earlier repairs of a value. The time
/// must exceed one minute, because the kubelet writes its values every minute.
const QUIET: Duration = Duration::from_secs(600);

/// Decision on a value that differs from the desired one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairDecision {
    /// Repair the value now.
    Repair,
    /// Check again after this time, because the plugin repaired the value recently.
    Wait(Duration),
    /// Give up: leave the value, and report the conflict.
    GiveUp,
    /// The plugin gave up earlier. Leave the value.
    Leave,
}

/// Earlier repairs of each value, by key.
#[derive(Debug)]
pub struct Contention<K, V> {
    histories: HashMap<K, History<V>>,
    /// Times of the writes that the runtime made on behalf of its client. `judge` and `settle`
    /// remove the entry of a value.
    expected: HashMap<K, Instant>,
}

#[derive(Debug)]
struct History<V> {
    /// The desired value. The history restarts when the desired value changes.
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
    /// Records that the runtime wrote a value on behalf of its client. If this value differs from
    /// the desired value, the next repair does not count as a conflict.
    pub fn expect(&mut self, key: K, now: Instant) {
        self.expected.insert(key, now);
    }

    /// Returns whether [`Contention::expect`] announced a write to this value, and no later call of
    /// `judge` or `settle` has handled the value.
    pub fn is_expected(&self, key: &K) -> bool {
        self.expected.contains_key(key)
    }

    /// Records that the value equals the desired value. Later changes count as changes by another
    /// program.
    pub fn settle(&mut self, key: &K) {
        self.expected.remove(key);
    }

    /// Decides what to do about a value that differs from `desired`. `touched` is true if a program
    /// has definitely written the value since the last check.
    pub fn judge(&mut self, key: K, desired: V, touched: bool, now: Instant) -> RepairDecision {
        // Repair even after `GiveUp`. The runtime writes only once for each request of its client,
        // so it does not overwrite the repair.
        if self.expected.remove(&key).is_some() {
            return RepairDecision::Repair;
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
            return RepairDecision::Leave;
        }
        // The first two repairs are immediate. A write that another program had already started may
        // have overwritten the first repair.
        let earliest = match history.repairs {
            0 | 1 => Duration::ZERO,
            repairs => Duration::from_millis(100 << repairs),
        };
        let since = now.duration_since(history.last);
        if history.repairs > 0 && since < earliest {
            return RepairDecision::Wait(earliest - since);
        }
        history.last = now;
        if history.repairs == REPAIRS {
            history.given_up = true;
            return RepairDecision::GiveUp;
        }
        history.repairs += 1;
        RepairDecision::Repair
    }

    /// Returns whether the plugin has given up on a value and no longer repairs it.
    pub fn is_left(&self, key: &K, desired: &V, now: Instant) -> bool {
        let is_so = |history: &History<V>| {
            history.given_up
                && history.desired == *desired
                && now.duration_since(history.last) < QUIET
        };
        self.histories.get(key).is_some_and(is_so)
    }

    /// Returns how often the plugin has repaired the value since its history started.
    pub fn repairs(&self, key: &K) -> u32 {
        self.histories.get(key).map_or(0, |history| history.repairs)
    }

    /// Removes the history of a value.
    pub fn forget(&mut self, key: &K) {
        self.histories.remove(key);
        self.expected.remove(key);
    }

    /// Forgets values without recent changes, so that the maps do not grow forever.
    pub fn forget_quiet(&mut self, now: Instant) {
        self.histories.retain(|_, history| now.duration_since(history.last) < QUIET);
        self.expected.retain(|_, since| now.duration_since(*since) < QUIET);
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "only the clock makes an Instant to count from")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Simulates a program that overwrites each repair after the time `every`. Returns all
    /// decisions until the plugin gives up.
    fn fight(
        every: Duration,
        contention: &mut Contention<&str, u32>,
        mut now: Instant,
    ) -> (Vec<RepairDecision>, Instant) {
        let mut verdicts = Vec::new();
        loop {
            let verdict = contention.judge("a", 1, true, now);
            verdicts.push(verdict);
            now += match verdict {
                RepairDecision::Wait(wait) => wait,
                RepairDecision::Leave => return (verdicts, now),
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
            assert_eq!(count(RepairDecision::Repair), REPAIRS as usize, "{every:?}");
            assert_eq!(count(RepairDecision::GiveUp), 1, "{every:?}");
        }
    }

    #[test]
    fn repairs_come_ever_more_slowly() {
        let mut contention = Contention::default();
        let (verdicts, _) = fight(Duration::ZERO, &mut contention, Instant::now());
        let waits: Vec<u128> = verdicts
            .iter()
            .filter_map(|verdict| {
                if let RepairDecision::Wait(wait) = verdict { Some(wait.as_millis()) } else { None }
            })
            .collect();
        assert_eq!(waits, [400, 800, 1600, 3200]);
    }

    #[test]
    fn a_contended_value_is_left_until_quiet() {
        let mut contention = Contention::default();
        let (_, mut now) = fight(SECOND, &mut contention, Instant::now());
        for _ in 0..100 {
            now += 60 * SECOND;
            assert_eq!(contention.judge("a", 1, true, now), RepairDecision::Leave);
        }
        // No program has written the value since the last check.
        assert_eq!(contention.judge("a", 1, false, now + QUIET / 2), RepairDecision::Leave);
        assert_eq!(contention.judge("a", 1, false, now + QUIET), RepairDecision::Repair);
    }

    #[test]
    fn other_keys_and_values_are_still_repaired() {
        let mut contention = Contention::default();
        let (_, now) = fight(SECOND, &mut contention, Instant::now());
        assert_eq!(contention.judge("b", 1, true, now), RepairDecision::Repair);
        assert_eq!(contention.judge("a", 2, true, now), RepairDecision::Repair);
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
            // The repair is immediate and does not count as a conflict.
            assert_eq!(contention.judge("a", 1, true, now), RepairDecision::Repair);
            assert_eq!(contention.repairs(&"a"), 0);
            assert!(!contention.is_expected(&"a"));
            now += SECOND / 100;
        }
        // After an announced write, only one repair does not count as a conflict.
        let (verdicts, _) = fight(Duration::ZERO, &mut contention, now);
        assert_eq!(
            verdicts.iter().filter(|verdict| **verdict == RepairDecision::Repair).count(),
            REPAIRS as usize
        );
    }

    #[test]
    fn a_settled_value_excuses_no_later_writer() {
        let mut contention = Contention::default();
        let now = Instant::now();
        contention.expect("a", now);
        contention.settle(&"a");
        assert_eq!(contention.judge("a", 1, true, now), RepairDecision::Repair);
        assert_eq!(contention.repairs(&"a"), 1);
    }

    #[test]
    fn a_client_does_not_end_a_fight() {
        let mut contention = Contention::default();
        let (_, now) = fight(SECOND, &mut contention, Instant::now());
        contention.expect("a", now);
        assert_eq!(contention.judge("a", 1, true, now), RepairDecision::Repair);
        assert_eq!(contention.judge("a", 1, true, now + SECOND), RepairDecision::Leave);
    }
}

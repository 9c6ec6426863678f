//! Automatic brake: after too many repairs, conflicts or OOM kills, the plugin stops writing.
//!
//! [`Tally`] counts repairs, conflicts, and the OOM kills that the plugin's own limits caused. When
//! one count exceeds its maximum ([`Bounds`]), the plugin behaves as in observe mode. A restarted
//! plugin applies the brake again if the file with the [`Record`] exists. The file is below `/run`,
//! so a reboot removes it. An operator removes the file with `plimsoll reset-brake`.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

pub use crate::config::Bounds;
use crate::lock;
use crate::state::atomic_file;
use crate::state::originals::DIRECTORY;

/// Name of the file with the [`Record`]. The file is in the plugin's directory.
pub const FILE: &str = "brake";

/// Kind of event that the brake counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The plugin restored a value that another program had changed.
    Repairs,
    /// The plugin stopped repairing a value that another program keeps changing.
    Conflicts,
    /// The kernel killed a process because of a limit that the plugin has set.
    Kills,
}

impl Cause {
    const ALL: [Self; 3] = [Self::Repairs, Self::Conflicts, Self::Kills];

    const fn bound(self, bounds: &Bounds) -> u32 {
        match self {
            Self::Repairs => bounds.repairs,
            Self::Conflicts => bounds.conflicts,
            Self::Kills => bounds.kills,
        }
    }

    /// Returns the name that messages use for this cause.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Repairs => "repairs",
            Self::Conflicts => "conflicts with other writers",
            Self::Kills => "kills by limits that plimsoll has set",
        }
    }
}

/// Reason why the plugin applied the brake. The plugin stores it in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Cause whose count exceeded its maximum.
    pub cause: Cause,
    /// Number of events with this cause within the window.
    pub count: u32,
    /// Length of the window in seconds.
    pub window_seconds: u64,
    /// Time when the brake was applied, in seconds since 1970.
    pub at: u64,
}

impl Record {
    fn file(host: &Path) -> PathBuf {
        host.join(DIRECTORY).join(FILE)
    }

    /// Loads the record of an applied brake on the node whose file system is at `host`. Returns
    /// `None` if no record exists.
    ///
    /// # Errors
    ///
    /// Fails if a record exists but cannot be read. The caller must then treat the brake as
    /// applied.
    pub fn load(host: &Path) -> io::Result<Option<Self>> {
        match fs::read(Self::file(host)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        }
    }

    /// Stores the record of the applied brake.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be written.
    pub fn store(&self, host: &Path) -> io::Result<()> {
        atomic_file::replace(&Self::file(host), &serde_json::to_vec(self)?)
    }

    /// Removes the record of the applied brake. Returns whether this record existed.
    ///
    /// # Errors
    ///
    /// Fails if a record exists but cannot be removed.
    pub fn remove(host: &Path) -> io::Result<bool> {
        match fs::remove_file(Self::file(host)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Formats the record as in `501 repairs within 10m`.
impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let window = humantime::format_duration(Duration::from_secs(self.window_seconds));
        write!(f, "{} {} within {window}", self.count, self.cause.word())
    }
}

/// Counts of the events within the last [`Bounds::window`].
#[derive(Debug, Default)]
pub struct Tally {
    // Code that holds this lock never waits, so it holds the lock only briefly.
    counts: Mutex<Counts>,
    exceeded: Notify,
}

#[derive(Debug, Default)]
struct Counts {
    bounds: Option<Bounds>,
    times: [VecDeque<Instant>; 3],
    exceeded: Option<(Cause, u32, Bounds)>,
    /// Whether a count has exceeded its maximum and [`Tally::exceeded`] has reported this.
    is_applied: bool,
}

impl Tally {
    /// Sets the maximum counts. With `None`, events do not count.
    pub fn configure(&self, bounds: Option<Bounds>) {
        lock(&self.counts).bounds = bounds;
    }

    /// Resets all counts. Must be called when an operator resets the brake.
    pub fn clear(&self) {
        let mut counts = lock(&self.counts);
        *counts = Counts { bounds: counts.bounds, ..Counts::default() };
    }

    /// Counts an event that happened at `now`.
    pub fn count(&self, cause: Cause, now: Instant) {
        let mut counts = lock(&self.counts);
        let Some(bounds) = counts.bounds.filter(|_| !counts.is_applied) else { return };
        let bound = cause.bound(&bounds);
        let index = Cause::ALL.iter().position(|other| *other == cause).unwrap_or_default();
        let times = &mut counts.times[index];
        times.push_back(now);
        while times.front().is_some_and(|first| now.duration_since(*first) > bounds.window) {
            times.pop_front();
        }
        // The counter never needs more entries than the maximum.
        while times.len() > bound as usize + 1 {
            times.pop_front();
        }
        if times.len() > bound as usize && counts.exceeded.is_none() {
            counts.exceeded = Some((cause, bound + 1, bounds));
            self.exceeded.notify_one();
        }
    }

    /// Waits until a count exceeds its maximum, then returns the record of the brake. Afterwards,
    /// events do not count until the caller calls [`Self::clear`].
    pub async fn exceeded(&self, at: impl Fn() -> u64) -> Record {
        loop {
            let exceeded = {
                let mut counts = lock(&self.counts);
                counts.is_applied |= counts.exceeded.is_some();
                counts.exceeded.take()
            };
            if let Some((cause, count, bounds)) = exceeded {
                return Record { cause, count, window_seconds: bounds.window.as_secs(), at: at() };
            }
            self.exceeded.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds() -> Bounds {
        Bounds { repairs: 3, conflicts: 1, kills: 1, window: Duration::from_secs(60) }
    }

    fn exceeded(tally: &Tally) -> Option<Cause> {
        lock(&tally.counts).exceeded.map(|(cause, ..)| cause)
    }

    #[test]
    fn more_than_the_bound_within_the_window() {
        let (tally, start) = (Tally::default(), Instant::now());
        tally.configure(Some(bounds()));
        // At most three repairs within any minute do not exceed the maximum.
        for at in 0..20 {
            tally.count(Cause::Repairs, start + Duration::from_secs(21 * at));
            assert_eq!(exceeded(&tally), None, "{at}");
        }
        tally.count(Cause::Repairs, start + Duration::from_secs(21 * 19 + 1));
        assert_eq!(exceeded(&tally), Some(Cause::Repairs));
        tally.clear();
        assert_eq!(exceeded(&tally), None);
    }

    #[test]
    fn causes_are_counted_apart() {
        let (tally, now) = (Tally::default(), Instant::now());
        tally.configure(Some(bounds()));
        for cause in Cause::ALL {
            tally.count(cause, now);
            assert_eq!(exceeded(&tally), None);
        }
        tally.count(Cause::Kills, now);
        assert_eq!(exceeded(&tally), Some(Cause::Kills));
    }

    #[test]
    fn nothing_counts_without_bounds() {
        let (tally, now) = (Tally::default(), Instant::now());
        for _ in 0..10_000 {
            tally.count(Cause::Kills, now);
        }
        tally.configure(Some(bounds()));
        assert_eq!(exceeded(&tally), None);
    }

    #[tokio::test]
    async fn whoever_waits_gets_the_record() {
        let (tally, now) = (Tally::default(), Instant::now());
        tally.configure(Some(bounds()));
        let (record, ()) = tokio::join!(tally.exceeded(|| 7), async {
            tally.count(Cause::Conflicts, now);
            tally.count(Cause::Conflicts, now);
        });
        let expected = Record { cause: Cause::Conflicts, count: 2, window_seconds: 60, at: 7 };
        assert_eq!(record, expected);
        assert_eq!(record.to_string(), "2 conflicts with other writers within 1m");
    }

    #[test]
    fn the_record_outlives_the_process() {
        let host = tempfile::tempdir().unwrap();
        assert_eq!(Record::load(host.path()).unwrap(), None);
        let record = Record { cause: Cause::Repairs, count: 4, window_seconds: 60, at: 7 };
        record.store(host.path()).unwrap();
        assert_eq!(Record::load(host.path()).unwrap(), Some(record));
        fs::write(Record::file(host.path()), "{").unwrap();
        assert!(Record::load(host.path()).is_err());
        assert!(Record::remove(host.path()).unwrap());
        assert!(!Record::remove(host.path()).unwrap());
    }
}

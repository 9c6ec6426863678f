//! Makes systemd store the values of the cgroups that belong to systemd units. A separate task
//! sends the values, because systemd may answer slowly.
//!
//! The files already have the values, so containers lose no protection during a slow answer. If
//! systemd is unreachable, only the files have the values. The plugin then repairs a file when it
//! notices a change.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use plimsoll_core::pod::CgroupPath;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::cgroup::CgroupRoot;
use crate::cgroup::systemd::{Persistence, Systemd, SystemdError};
use crate::state::levels::{Levels, PersistentValues};

/// Maximum number of concurrent calls to systemd.
const CALLS: usize = 8;

/// Runs forever. A slow or failed call for one cgroup delays no other cgroup.
pub async fn keep_values(levels: Arc<Levels>, root: Arc<CgroupRoot>, systemd: Systemd) {
    let mut queue = Queue::default();
    let mut failing = HashSet::new();
    let mut calls = FuturesUnordered::new();
    loop {
        while calls.len() < CALLS
            && let Some((cgroup, values)) = queue.pop()
        {
            calls.push(call(&levels, &root, &systemd, cgroup, values));
        }
        tokio::select! {
            lasting = levels.next_lasting() => {
                lasting.into_iter().for_each(|(cgroup, values)| queue.add(cgroup, values));
            }
            () = until(queue.next_retry()) => queue.add_retries(),
            Some((cgroup, values, result)) = calls.next(), if !calls.is_empty() => {
                queue.in_flight.remove(&cgroup);
                if let Some(pause) = handle(&cgroup, &result, &mut failing) {
                    queue.retries.entry(Instant::now() + pause).or_default().push((cgroup, values));
                }
            }
        }
    }
}

/// Values that systemd has not received yet.
#[derive(Default)]
struct Queue {
    waiting: BTreeMap<CgroupPath, PersistentValues>,
    /// Cgroups for which a call to systemd is under way. Newer values wait until the call ends.
    in_flight: HashSet<CgroupPath>,
    /// Values that the next try of a failed call sends, by the time of this try.
    retries: BTreeMap<Instant, Vec<(CgroupPath, PersistentValues)>>,
}

impl Queue {
    /// Adds values for a cgroup, which replace older values.
    fn add(&mut self, cgroup: CgroupPath, values: PersistentValues) {
        let values = values.replacing(self.waiting.get(&cgroup).copied());
        self.waiting.insert(cgroup, values);
    }

    /// Removes and returns the values of a cgroup for which no call is under way. Marks that a call
    /// for this cgroup is now under way.
    fn pop(&mut self) -> Option<(CgroupPath, PersistentValues)> {
        let cgroup = self.waiting.keys().find(|cgroup| !self.in_flight.contains(*cgroup))?.clone();
        let values = self.waiting.remove(&cgroup)?;
        self.in_flight.insert(cgroup.clone());
        Some((cgroup, values))
    }

    fn next_retry(&self) -> Option<Instant> {
        self.retries.first_key_value().map(|(at, _)| *at)
    }

    /// Adds the values whose next try is due, unless the queue has newer values for the same
    /// cgroup.
    fn add_retries(&mut self) {
        for (cgroup, values) in self.retries.pop_first().into_iter().flat_map(|(_, due)| due) {
            self.waiting
                .entry(cgroup)
                .and_modify(|newer| *newer = newer.replacing(Some(values)))
                .or_insert(values);
        }
    }
}

/// Result of a call to systemd about a cgroup.
type CallResult = (CgroupPath, PersistentValues, Result<Persistence, SystemdError>);

async fn call(
    levels: &Levels,
    root: &CgroupRoot,
    systemd: &Systemd,
    cgroup: CgroupPath,
    values: PersistentValues,
) -> CallResult {
    let values = levels.begin_call(&cgroup, values);
    let result = match root.cgroup(&cgroup) {
        Ok(open) => systemd.set(&open, values.protection, values.raise.is_some()).await,
        Err(_) => Ok(Persistence::NoUnit),
    };
    levels.end_call(&cgroup, values, &result);
    (cgroup, values, result)
}

/// Logs a result. Returns the time to wait before the next try of a failed call.
fn handle(
    cgroup: &CgroupPath,
    result: &Result<Persistence, SystemdError>,
    failing: &mut HashSet<CgroupPath>,
) -> Option<Duration> {
    match result {
        Ok(lasting) => {
            debug!(%cgroup, ?lasting, "systemd");
            if failing.remove(cgroup) && failing.is_empty() {
                info!("systemd stores the values of its cgroups again");
            }
            None
        }
        Err(error) => {
            if failing.is_empty() {
                warn!(
                    %cgroup,
                    %error,
                    "systemd does not store the values of its cgroups; the plugin writes only \
                     the files, and repairs them after a change. Logged once"
                );
            }
            failing.insert(cgroup.clone());
            retry_delay(error)
        }
    }
}

/// Waits until this time. Waits forever if `at` is `None`.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Returns the delay before the next try of a failed call. Returns `None` if a retry is useless.
fn retry_delay(error: &SystemdError) -> Option<Duration> {
    match error {
        SystemdError::Paused { pause, .. } => Some(*pause),
        SystemdError::Connect { .. } | SystemdError::Timeout { .. } | SystemdError::Lost { .. } => {
            Some(Duration::from_secs(1))
        }
        SystemdError::Denied { .. } | SystemdError::Failed { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_core::policy::Protection;
    use plimsoll_core::policy::limit_decrease::Raise;
    use plimsoll_core::units::Bytes;

    use super::*;

    fn path(name: &str) -> CgroupPath {
        CgroupPath::parse(name).unwrap()
    }

    fn values(min: u64, raise: Option<Raise>) -> PersistentValues {
        PersistentValues {
            protection: Protection { min: Bytes::new(min), low: Bytes::ZERO },
            raise,
        }
    }

    #[test]
    fn calls_in_flight_delay_only_their_cgroup() {
        let mut queue = Queue::default();
        queue.add(path("a"), values(1, None));
        assert_eq!(queue.pop().map(|(cgroup, _)| cgroup), Some(path("a")));
        queue.add(path("a"), values(2, None));
        queue.add(path("b"), values(3, None));
        assert_eq!(queue.pop().map(|(cgroup, _)| cgroup), Some(path("b")));
        assert!(queue.pop().is_none(), "both cgroups have a call in flight");
        queue.in_flight.remove(&path("a"));
        assert_eq!(queue.pop().map(|(_, values)| values.protection.min), Some(Bytes::new(2)));
    }

    #[test]
    fn a_retry_keeps_newer_values_and_raises() {
        let mut queue = Queue::default();
        let failed = values(1, Some(Raise::NONE));
        queue.retries.insert(Instant::now(), vec![(path("a"), failed), (path("b"), failed)]);
        queue.add(path("a"), values(2, None));
        queue.add_retries();
        let minima: Vec<_> = std::iter::from_fn(|| queue.pop())
            .map(|(_, values)| (values.protection.min.get(), values.raise.is_some()))
            .collect();
        assert_eq!(minima, [(2, true), (1, true)]);
    }
}

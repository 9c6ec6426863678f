//! Makes systemd keep the values of the cgroups that it owns. This is a separate task, because
//! systemd may answer slowly.
//!
//! The files hold the values already, so a slow answer loses no protection. If systemd is
//! unreachable, only the files hold the values. The plugin then repairs them when it sees a change.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use plimsoll_core::pod::CgroupPath;
use tracing::{debug, info, warn};

use crate::cgroup::CgroupRoot;
use crate::cgroup::systemd::{Lasting, Systemd, SystemdError};
use crate::state::levels::{Last, Levels};

/// Maximum number of concurrent calls to systemd.
const CALLS: usize = 8;

/// Runs forever.
pub async fn keep_values(levels: Arc<Levels>, root: Arc<CgroupRoot>, systemd: Systemd) {
    let mut failing = HashSet::new();
    loop {
        let lasting = levels.next_lasting().await;
        let calls = lasting.into_iter().map(|(cgroup, last)| {
            let (levels, root, systemd) = (&levels, &root, &systemd);
            async move {
                let last = levels.begin_call(&cgroup, last);
                let result = match root.cgroup(&cgroup) {
                    Ok(open) => systemd.set(&open, last.protection, last.raise.is_some()).await,
                    Err(_) => Ok(Lasting::NoUnit),
                };
                levels.end_call(&cgroup, last, &result);
                (cgroup, last, result)
            }
        });
        let done: Vec<_> = futures::stream::iter(calls).buffer_unordered(CALLS).collect().await;
        let mut pause = None;
        let mut retries: Vec<(CgroupPath, Last)> = Vec::new();
        for (cgroup, last, result) in done {
            match result {
                Ok(lasting) => {
                    debug!(%cgroup, ?lasting, "systemd");
                    if failing.remove(&cgroup) && failing.is_empty() {
                        info!("systemd keeps the values of its cgroups again");
                    }
                }
                Err(error) => {
                    if failing.is_empty() {
                        warn!(
                            %cgroup,
                            %error,
                            "systemd does not keep the values of its cgroups; they are written to \
                             the files alone, and repaired when they change. Said once"
                        );
                    }
                    failing.insert(cgroup.clone());
                    if let Some(again) = again(&error) {
                        retries.push((cgroup, last));
                        pause = pause.max(Some(again));
                    }
                }
            }
        }
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        retries.into_iter().for_each(|(cgroup, last)| levels.retry(cgroup, last));
    }
}

/// Returns the delay before the next try of a failed call; `None` if a retry is useless.
fn again(error: &SystemdError) -> Option<Duration> {
    match error {
        SystemdError::Paused { pause, .. } => Some(*pause),
        SystemdError::Connect { .. } | SystemdError::Timeout { .. } | SystemdError::Lost { .. } => {
            Some(Duration::from_secs(1))
        }
        SystemdError::Denied { .. } | SystemdError::Failed { .. } => None,
    }
}

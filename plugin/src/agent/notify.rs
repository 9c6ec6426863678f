//! What systemd is told of the plugin where it runs it as a service (`Type=notify`, sd_notify(3)).

use std::time::Duration;

use libsystemd::daemon::{self, NotifyState};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

const WAITS: &str = "waiting for the container runtime";
const SYNCHRONIZED: &str = "connected to the container runtime and synchronized";

/// Tells systemd that the plugin is ready once it is synchronized with the runtime, what it is at, and, for the watchdog, that the
/// loop turns which this runs in: a thread of its own would say so whatever happens to that. Ends where nobody wants to know.
pub(crate) async fn keep_informed(mut synchronized: watch::Receiver<bool>) {
    let mut state = state(*synchronized.borrow_and_update());
    // Only since an interval of nothing is none; without a watchdog nobody heeds it.
    let every =
        daemon::watchdog_enabled(false).map_or(Duration::from_secs(3600), |limit| limit / 2);
    let mut pings = interval(every.max(Duration::from_millis(1)));
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while tell(&state) {
        tokio::select! {
            _ = pings.tick() => state = vec![NotifyState::Watchdog],
            changed = synchronized.changed() => match changed {
                Ok(()) => state = self::state(*synchronized.borrow_and_update()),
                Err(_) => return,
            }
        }
    }
}

/// Tells systemd that the plugin is about to end.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn state(synchronized: bool) -> Vec<NotifyState> {
    match synchronized {
        false => vec![NotifyState::Status(WAITS.to_owned())],
        // Whether it was ready before makes no difference.
        true => vec![NotifyState::Ready, NotifyState::Status(SYNCHRONIZED.to_owned())],
    }
}

/// Tells if there is somebody to be told.
fn tell(state: &[NotifyState]) -> bool {
    daemon::notify(false, state).unwrap_or_else(|error| {
        debug!(%error, "cannot tell systemd how this goes");
        true
    })
}

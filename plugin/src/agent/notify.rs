//! Notifications to systemd if systemd runs the plugin as a service (`Type=notify`, sd_notify(3)).

use std::time::Duration;

use libsystemd::daemon::{self, NotifyState};
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

const WAITS: &str = "waiting for the container runtime";
const SYNCHRONIZED: &str = "connected to the container runtime and synchronized";

/// Ping to the reconcile task. An answer shows that the task's loop runs.
pub(crate) type Ping = oneshot::Sender<()>;

/// Sends the plugin's status and the watchdog pings to systemd. Reports the plugin as ready after
/// the synchronization with the runtime. Never returns. Sends nothing if systemd does not listen.
///
/// A watchdog ping shows that the loop that answers the runtime and the reconcile task's loop run.
/// Before each watchdog ping, the reconcile task must answer a [`Ping`].
pub(crate) async fn keep_informed(
    mut synchronized: watch::Receiver<bool>,
    reconciler: mpsc::UnboundedSender<Ping>,
) {
    let mut state = state(*synchronized.borrow_and_update());
    // `interval` needs a nonzero duration. Without a watchdog, systemd ignores the pings.
    let every =
        daemon::watchdog_enabled(false).map_or(Duration::from_secs(3600), |limit| limit / 2);
    let mut pings = interval(every.max(Duration::from_millis(1)));
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked: Option<oneshot::Receiver<()>> = None;
    while notify(&state) {
        state = tokio::select! {
            _ = pings.tick(), if asked.is_none() => {
                let (ping, answer) = oneshot::channel();
                // If the reconcile task ends, the process ends too.
                let _ = reconciler.send(ping);
                asked = Some(answer);
                Vec::new()
            }
            Ok(()) = answered(&mut asked) => {
                asked = None;
                vec![NotifyState::Watchdog]
            }
            changed = synchronized.changed() => match changed {
                Ok(()) => self::state(*synchronized.borrow_and_update()),
                Err(_) => break,
            }
        };
    }
    std::future::pending().await
}

/// Waits for the answer to a ping. Waits forever if `asked` is `None`.
async fn answered(asked: &mut Option<oneshot::Receiver<()>>) -> Result<(), RecvError> {
    match asked {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    }
}

/// Notifies systemd that the plugin is about to end.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

fn state(synchronized: bool) -> Vec<NotifyState> {
    match synchronized {
        false => vec![NotifyState::Status(WAITS.to_owned())],
        // systemd accepts a repeated READY=1.
        true => vec![NotifyState::Ready, NotifyState::Status(SYNCHRONIZED.to_owned())],
    }
}

/// Sends a notification. Returns whether systemd listens.
fn notify(state: &[NotifyState]) -> bool {
    if state.is_empty() {
        return true;
    }
    daemon::notify(false, state).unwrap_or_else(|error| {
        debug!(%error, "cannot send a notification to systemd");
        true
    })
}

//! The inotify watches of the pods' `memory.events`.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use futures::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use plimsoll_core::pod::CgroupPath;
use tracing::warn;

use crate::cgroup::{CgroupRoot, EVENTS};

/// Interval of the check for kills that inotify has not reported.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// The inotify watches of the pods' `memory.events`.
pub(super) struct Wakes {
    pub(super) watches: Watches,
    pub(super) events: EventStream<Vec<u8>>,
    pub(super) pods: HashMap<WatchDescriptor, CgroupPath>,
}

impl Wakes {
    pub(super) fn new() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        Ok(Self {
            watches,
            events: inotify.into_event_stream(vec![0; 16 << 10])?,
            pods: HashMap::new(),
        })
    }

    pub(super) fn add(&mut self, root: &CgroupRoot, pod: &CgroupPath) -> io::Result<()> {
        let file = root.path().join(pod.as_str()).join(EVENTS);
        match self.watches.add(file, WatchMask::MODIFY) {
            Ok(descriptor) => _ = self.pods.insert(descriptor, pod.clone()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Removes a pod's inotify watch. If the pod's cgroup was removed, the watch does not always
    /// end by itself.
    pub(super) fn remove(&mut self, pod: &CgroupPath) {
        let watches = &mut self.watches;
        self.pods.retain(|descriptor, path| {
            let is_it = path == pod;
            if is_it {
                // The watch may have ended already.
                let _ = watches.remove(descriptor.clone());
            }
            !is_it
        });
    }

    pub(super) async fn next(&mut self) -> io::Result<CgroupPath> {
        loop {
            let event = self.events.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
            // inotify also reports the removal of a pod's cgroup.
            if let Some(pod) = self.pods.get(&event.wd).cloned() {
                if event.mask.contains(EventMask::IGNORED) {
                    self.pods.remove(&event.wd);
                }
                return Ok(pod);
            }
        }
    }
}

/// Returns the next pod whose `memory.events` has changed. Waits forever if inotify is not
/// available.
pub(super) async fn next(wakes: &mut Option<Wakes>) -> CgroupPath {
    if let Some(some) = wakes {
        match some.next().await {
            Ok(pod) => return pod,
            Err(error) => {
                warn!(%error, "cannot watch for kills any longer; the plugin finds kills only \
                               every {CHECK_INTERVAL:?}")
            }
        }
        *wakes = None;
    }
    std::future::pending().await
}

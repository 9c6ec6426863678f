//! Waits until all values are restored.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use plimsoll_core::pod::CgroupPath;
use tokio::time::{Instant, timeout};

use crate::cgroup::CgroupRoot;
use crate::cgroup::watch::Watch;
use crate::commands::failure::Failure;
use crate::commands::restore::drop_ins::remove_drop_ins;
use crate::commands::restore::instance::{ANSWER_LIMIT, OwnInstance};
use crate::commands::restore::survey::{ChangedCgroup, Survey};
use crate::state::guard_record;
use crate::state::originals::Originals;

/// Time limit for restoring all values. A runtime needs some tenths of a second to update one
/// container.
pub(super) const RESTORE_LIMIT: Duration = Duration::from_secs(120);

/// The sum of this command's own deadlines.
pub(crate) const LONGEST_WAIT: Duration = ANSWER_LIMIT.saturating_add(RESTORE_LIMIT);

/// Poll interval while inotify reports no change.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A wait until all values are restored.
pub(super) struct RestoreWait<'a> {
    /// The node's file system.
    pub(super) host: &'a Path,
    /// The runtime's NRI socket.
    pub(super) socket: &'a Path,
    pub(super) root: &'a CgroupRoot,
    pub(super) originals: &'a Originals,
    /// The cgroup that the node guard has limited.
    pub(super) kubepods: Option<&'a CgroupPath>,
    /// Whether another instance of the plugin runs and updates the runtime's stored values.
    pub(super) has_plugin: bool,
}

impl RestoreWait<'_> {
    /// Waits until all values are restored. Returns the number of unrestored cgroups, plus the
    /// number of containers whose values the runtime has not yet updated in its own store.
    pub(super) async fn run(&self, survey: &mut Survey) -> Result<usize, Failure> {
        let instance = OwnInstance::start(self.host, self.socket)?;
        let mut watch = self.watch(survey)?;
        let deadline = Instant::now() + RESTORE_LIMIT;
        // After a complete search, a missing container has ended, or its cgroup is outside the
        // kubelet's cgroups.
        let answer_deadline = Instant::now()
            + if survey.unsearched.is_empty() { ANSWER_LIMIT } else { RESTORE_LIMIT };
        let unfinished = loop {
            let (left, unstored) = self.count(&survey.changed);
            let has_runtime = self.has_plugin || instance.is_synchronized();
            let now = Instant::now();
            if !((left > 0 && now < deadline)
                || (unstored > 0 && now < if has_runtime { deadline } else { answer_deadline })
                || (!survey.missing.is_empty() && now < answer_deadline))
            {
                break left + unstored;
            }
            // Read the cgroups again after an event, an error or a timeout.
            let _ = timeout(POLL_INTERVAL, watch.next()).await;
            if !survey.missing.is_empty()
                && let Some(containers) = instance.list_containers(self.host).await
            {
                survey.resolve_missing(self.root, self.originals, &containers);
            }
        };
        remove_drop_ins(self.host, self.root, self.originals, survey, self.kubepods).await;
        instance.stop().await;
        Ok(unfinished)
    }

    /// Watches the files of all changed cgroups.
    fn watch(&self, survey: &Survey) -> Result<Watch, Failure> {
        let mut watch = Watch::new().context("cannot start inotify").map_err(Failure::Runtime)?;
        let cgroups = survey.changed.iter().map(|changed| &changed.cgroup).chain(self.kubepods);
        for cgroup in cgroups {
            watch
                .add(self.root, cgroup)
                .context("cannot watch cgroups")
                .map_err(Failure::Runtime)?;
        }
        Ok(watch)
    }

    /// Returns the number of cgroups that do not have their original values yet, and the number of
    /// restored containers for which the runtime still stores the plugin's values.
    fn count(&self, changed: &[ChangedCgroup]) -> (usize, usize) {
        let known = Originals::load(self.host).ok();
        let is_stored = |changed: &ChangedCgroup| {
            known.as_ref().is_some_and(|known| !changed.is_awaiting_runtime(known, self.root))
        };
        let (restored, others): (Vec<_>, Vec<_>) =
            changed.iter().partition(|changed| changed.is_restored(self.root));
        let guarded = usize::from(guard_record::load(self.host).is_some());
        (guarded + others.len(), restored.into_iter().filter(|changed| !is_stored(changed)).count())
    }
}

//! The node guard (`nodeGuard`), which keeps memory for the programs outside the pods. The node
//! guard sets one limit for all pods together: `memory.max` of kubepods.
//!
//! The limits of pods may add up to many times the node's memory. When pods use all memory, the
//! kernel first reclaims memory on the whole node and then OOM-kills. The victim may be the runtime
//! or sshd, and all programs stall until the OOM kill. With the node guard's limit, the kernel
//! reclaims memory only from pods and OOM-kills only in pods. The kernel chooses a victim by usage
//! and `oom_score_adj`, so it prefers containers that use more than their requests. The node guard
//! also sets `memory.min` of the system's cgroups ([`crate::config::Config::reserved`]), which
//! protects their page cache.
//!
//! The node guard does not use `memory.high`. On Linux 7.2, throttled pods exceeded `memory.high`,
//! and the kernel OOM-killed processes on the whole node.
//!
//! The kubelet also sets `memory.max` of kubepods to the memory that it leaves for pods
//! (`enforceNodeAllocatable`, in Kubernetes' `pkg/kubelet/cm/node_container_manager_linux.go`). The
//! lower of the two limits applies. A file of the plugin ([`GuardRecord`]) stores the value that
//! `memory.max` had without the node guard. The plugin restores this value later.
//!
//! The node guard's limit does not OOM-kill a process at the moment when the plugin sets it. If
//! pods use more memory, the plugin first reclaims memory, and sets the limit only once the usage
//! is low enough.

use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use plimsoll_core::incident::{Incident, LowerLimit, Subject};
use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::contention::{Contention, RepairDecision};
use plimsoll_core::policy::limit_decrease::{self, Usage};
use plimsoll_core::units::{Bytes, Knob, Limit};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::cgroup::watch::{CgroupChange, Watch};
use crate::cgroup::{Cgroup, CgroupError, CgroupRoot, Reclaimed};
use crate::report::Reports;
use crate::state::containers::Containers;
use crate::state::guard_record;
use crate::state::levels::Levels;
use crate::state::settings::is_restored;
use crate::state::settings::{NAME_THE_SYSTEM, NO_SYSTEM_SLICE};
use plimsoll_core::policy::guard::{GuardRecord, GuardStep, guard_step};

/// Interval of the periodic check of kubepods. This check finds changes whose inotify event was
/// lost, and kubepods if it was created again.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Interval of the attempts to set the limit while the usage is too high.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Delay before the check of a file that has just changed.
const RECHECK_DELAY: Duration = Duration::from_millis(50);

/// Maximum time for one attempt to reclaim memory. Pods may allocate memory as fast as the kernel
/// reclaims it, so an attempt needs a maximum.
const RECLAIM_TIMEOUT: Duration = Duration::from_secs(10);

/// Time after which the log reports that an attempt hangs. Longer than [`RECLAIM_TIMEOUT`], and one
/// write may take longer than that on a slow disk.
const HANG_TIMEOUT: Duration = Duration::from_secs(60);

/// Maximum amount of memory per write to `memory.reclaim`. The write waits until the kernel has
/// written back dirty pages.
const RECLAIM_STEP: Bytes = Bytes::new(64 << 20);

/// Returns whether the node guard's record is about `cgroup`, and the node guard has set the
/// current `memory.max` of `cgroup`.
fn is_held_by(record: &GuardRecord, cgroup: &Cgroup) -> Result<bool, CgroupError> {
    Ok(cgroup.inode()? == record.inode && record.is_ours(cgroup.read(Knob::Max)?))
}

/// Returns whether the node guard has set the current `memory.max` of kubepods. Returns false while
/// the usage is too high for the node guard's limit.
pub fn is_in_force(root: &CgroupRoot, levels: &Levels) -> bool {
    let Ok(Some((path, cgroup))) = levels.open_kubepods() else { return false };
    guard_record::load(root.host()).is_some_and(|record| {
        record.cgroup == path && is_held_by(&record, &cgroup).unwrap_or(false)
    })
}

/// Result of an attempt to set the node guard's limit.
enum SetResult {
    /// The plugin has set the limit and read it back.
    Set,
    /// Pods use more than the limit, and the kernel could not reclaim enough.
    UsageAbove(Usage),
    /// The file or the desired limit has changed, so the plugin has not written the limit.
    Changed,
    /// The plugin has written the limit, but another program has written another value since then.
    Overwritten,
}

/// The task that keeps the node guard's limit in force.
#[derive(Clone, Debug)]
pub struct Guard {
    host: PathBuf,
    root: Arc<CgroupRoot>,
    containers: Arc<Containers>,
    levels: Arc<Levels>,
    reports: Arc<Reports>,
}

/// The cgroup of all pods, with its current limit.
struct Kubepods {
    path: CgroupPath,
    cgroup: Cgroup,
    inode: u64,
    observed: Limit,
}

/// State of the task.
#[derive(Debug, Default)]
struct State {
    record: Option<GuardRecord>,
    /// Whether the node guard's record contains a limit that may not be in `memory.max`.
    is_unsure: bool,
    contention: Contention<CgroupPath, Bytes>,
    /// Limit that the plugin has reported as too low for the usage, and the time of the next
    /// attempt.
    waits: Option<(Bytes, Instant)>,
    is_failing: bool,
    /// Whether the last attempt hung in the kernel, which the log has reported.
    has_hung: bool,
    /// Whether the log has reported that the node has no system.slice to protect.
    is_half: bool,
}

impl Guard {
    /// Creates the node guard's task for the node whose file system is at `host`.
    pub fn new(
        host: PathBuf,
        root: Arc<CgroupRoot>,
        containers: Arc<Containers>,
        levels: Arc<Levels>,
        reports: Arc<Reports>,
    ) -> Self {
        Self { host, root, containers, levels, reports }
    }

    /// Waits until the runtime has configured the plugin, then runs forever. Before the
    /// configuration, the desired limit is unknown, and another instance of the plugin may still
    /// use the node guard.
    ///
    /// `configured` receives changes of the settings. The caller must have created this receiver
    /// before the runtime connects.
    pub async fn run_when_configured(self, mut configured: watch::Receiver<()>) {
        // `self.containers` owns the sender, so the channel cannot close.
        let _ = configured.changed().await;
        self.run().await;
    }

    /// Runs forever.
    pub async fn run(self) {
        let mut settings = self.containers.settings_changed();
        let mut state = State { record: guard_record::load(&self.host), ..State::default() };
        let mut written = false;
        let mut watched = None;
        loop {
            settings.mark_unchanged();
            // Without the node's memory, the desired limit is unknown, except after `plimsoll
            // restore`.
            let known = self.containers.settings();
            if known.memory.is_none() && !known.is_restored {
                let _ = settings.changed().await;
                continue;
            }
            if self.desired_limit().is_none() && state.record.is_none() {
                watched = None;
                let changed = settings.changed();
                // The marker file of `plimsoll restore` exists, but the settings do not reflect it
                // yet. The user may remove the marker file before the settings change.
                if self.containers.settings().guard_limit().is_some() {
                    let _ = timeout(CHECK_INTERVAL, changed).await;
                } else {
                    let _ = changed.await;
                }
                continue;
            }
            self.warn_if_system_is_missing(&mut state);
            // Watch the cgroup before the check, so that the plugin misses no write in between. Add
            // the watch on each pass, because kubepods may have been created again.
            watched = self.watch(watched);
            let again = match self.step(&mut state, written).await {
                Ok(again) => {
                    state.is_failing = false;
                    again
                }
                Err(CgroupError::Gone(_)) => CHECK_INTERVAL,
                Err(error) => {
                    if !std::mem::replace(&mut state.is_failing, true) {
                        let seconds = CHECK_INTERVAL.as_secs();
                        warn!(%error, "cannot set the limit of all pods together (nodeGuard); \
                                       the plugin tries again every {seconds} s. Logged once");
                    }
                    CHECK_INTERVAL
                }
            };
            written = tokio::select! {
                _ = settings.changed() => false,
                is_max = max_written(&mut watched) => is_max,
                () = tokio::time::sleep(again) => false,
            };
        }
    }

    /// Returns the desired limit of the node guard. Returns `None` after `plimsoll restore`,
    /// because that command restores `memory.max` itself.
    fn desired_limit(&self) -> Option<Bytes> {
        self.containers
            .settings()
            .guard_limit()
            .filter(|_| matches!(is_restored(&self.host), Ok(false)))
    }

    /// Warns once if the node has no system.slice, because the node guard then protects no memory
    /// of the system.
    fn warn_if_system_is_missing(&self, state: &mut State) {
        let settings = self.containers.settings();
        let system = CgroupPath::system_slice();
        let is_wanted = settings.config.reserved.is_empty() && settings.guard_limit().is_some();
        let is_missing =
            is_wanted && matches!(self.root.cgroup(&system), Err(CgroupError::Gone(_)));
        if is_missing && !std::mem::replace(&mut state.is_half, is_missing) {
            warn!(
                cgroup = %system,
                "{NO_SYSTEM_SLICE}: the limit of all pods together is in force, but nothing \
                 protects the memory of the system. {NAME_THE_SYSTEM}. Logged once"
            );
        }
        state.is_half = is_missing;
    }

    fn watch(&self, watched: Option<Watch>) -> Option<Watch> {
        let watch = watched.map_or_else(Watch::new, Ok).and_then(|mut watch| {
            // The next check of kubepods reports errors, so ignore them here.
            if let Ok(Some((path, _))) = self.levels.open_kubepods() {
                watch.add(&self.root, &path)?;
            }
            Ok(watch)
        });
        watch.inspect_err(|error| debug!(%error, "cannot watch kubepods")).ok()
    }

    /// Does the next step of the task. `written` is true if inotify has reported a write to
    /// `memory.max`. Returns the delay before the next call.
    async fn step(&self, state: &mut State, written: bool) -> Result<Duration, CgroupError> {
        let Some((path, cgroup)) = self.levels.open_kubepods()? else { return Ok(CHECK_INTERVAL) };
        let inode = cgroup.inode()?;
        if let Some(record) = &state.record
            && (record.cgroup != path || record.inode != inode)
        {
            self.restore_former(record)?;
            self.forget(state);
        }
        let observed = cgroup.read(Knob::Max)?;
        match guard_step(self.desired_limit(), observed, state.record.as_ref()) {
            GuardStep::Nothing => state.waits = None,
            GuardStep::Forget => {
                state.waits = None;
                self.forget(state);
            }
            GuardStep::PutBack(before) => {
                state.waits = None;
                cgroup.write_knob(Knob::Max, before)?;
                let observed = cgroup.read(Knob::Max)?;
                self.levels.make_limits_last(&path);
                self.forget(state);
                let unguarded = Incident::Unguarded { desired: before, observed };
                self.reports.report(&Subject::from(&path), &unguarded);
            }
            GuardStep::Set { limit, before } => {
                let kubepods = Kubepods { path, cgroup, inode, observed };
                return self.set_limit(state, kubepods, limit, before, written).await;
            }
        }
        Ok(CHECK_INTERVAL)
    }

    /// Sets the node guard's limit if a change is due. `before` is the value of `memory.max`
    /// without the node guard. Returns the delay before the next step.
    async fn set_limit(
        &self,
        state: &mut State,
        kubepods: Kubepods,
        limit: Bytes,
        before: Limit,
        written: bool,
    ) -> Result<Duration, CgroupError> {
        let was_set = !state.is_unsure
            && state.record.as_ref().is_some_and(|record| record.limits == [limit]);
        if let Some(wait) = self.wait_before_set(state, &kubepods, limit, was_set, written) {
            return Ok(wait);
        }
        let Kubepods { path, cgroup, inode, observed } = kubepods;
        let limits = [observed.bytes().filter(|_| observed != before), Some(limit)];
        let limits = limits.into_iter().flatten().collect();
        let record = GuardRecord { cgroup: path.clone(), inode, before, limits };
        let attempt = self.set(cgroup, limit, observed, record.clone());
        let attempt = wait_for_attempt(attempt, &mut state.has_hung).await;
        if matches!(attempt, Ok(SetResult::Overwritten) | Err(_)) {
            // The file with the node guard's record may exist now. A later pass must either remove
            // this file or restore `memory.max`.
            (state.record, state.is_unsure) = (Some(record.clone()), true);
        }
        let subject = Subject::from(&path);
        match attempt? {
            SetResult::Changed | SetResult::Overwritten => return Ok(RECHECK_DELAY),
            SetResult::UsageAbove(usage) => {
                let due = Instant::now() + RETRY_INTERVAL;
                if state.waits.replace((limit, due)).is_none_or(|(former, _)| former != limit) {
                    let waits = LowerLimit { limit: limit.into(), in_force: observed, usage };
                    self.reports.report(&subject, &Incident::GuardWaits(waits));
                }
                return Ok(RETRY_INTERVAL);
            }
            SetResult::Set => {}
        }
        state.waits = None;
        let record = GuardRecord { limits: vec![limit], ..record };
        self.log_failure(guard_record::store(&record, &self.host));
        (state.record, state.is_unsure) = (Some(record), false);
        self.levels.make_limits_last(&path);
        let incident = if was_set {
            Incident::Repaired { knob: Knob::Max, desired: limit.into(), observed }
        } else {
            Incident::Guarded { desired: limit, observed }
        };
        self.reports.report(&subject, &incident);
        Ok(CHECK_INTERVAL)
    }

    /// Returns the waiting time if the plugin must not set the node guard's limit now. Either the
    /// usage is too high, or another program has changed the file and the next repair is not due
    /// yet.
    fn wait_before_set(
        &self,
        state: &mut State,
        kubepods: &Kubepods,
        limit: Bytes,
        was_set: bool,
        written: bool,
    ) -> Option<Duration> {
        let Kubepods { path, observed, .. } = kubepods;
        let now = Instant::now();
        if let Some((waits, due)) = state.waits
            && waits == limit
            && now < due
        {
            return Some(due - now);
        }
        if !was_set || state.waits.is_some() {
            return None;
        }
        if !self.containers.settings().config.repair {
            return Some(CHECK_INTERVAL);
        }
        match state.contention.judge(path.clone(), limit, written, now) {
            RepairDecision::Repair => None,
            RepairDecision::Wait(wait) => Some(wait),
            RepairDecision::Leave => Some(CHECK_INTERVAL),
            RepairDecision::GiveUp => {
                let incident = Incident::Contended {
                    knob: Knob::Max,
                    desired: limit.into(),
                    observed: *observed,
                    repairs: state.contention.repairs(path),
                };
                self.reports.report(&Subject::from(path), &incident);
                Some(CHECK_INTERVAL)
            }
        }
    }

    /// Restores `memory.max` of the previous kubepods if this cgroup still exists. The caller has
    /// found that kubepods is another cgroup now.
    fn restore_former(&self, record: &GuardRecord) -> Result<(), CgroupError> {
        let restore = || {
            let cgroup = self.root.cgroup(&record.cgroup)?;
            if is_held_by(record, &cgroup)? {
                cgroup.write_knob(Knob::Max, record.before)?;
                self.levels.make_limits_last(&record.cgroup);
            }
            Ok(())
        };
        match restore() {
            Err(CgroupError::Gone(_)) => Ok(()),
            result => result,
        }
    }

    /// Reclaims memory until the usage is below `limit`. Then sets `limit` if `memory.max` still
    /// has the value `observed`.
    async fn set(
        &self,
        cgroup: Cgroup,
        limit: Bytes,
        observed: Limit,
        record: GuardRecord,
    ) -> Result<SetResult, CgroupError> {
        let (sender, receiver) = oneshot::channel();
        let (guard, path) = (self.clone(), record.cgroup.clone());
        // Use a separate thread, because tokio has few threads for blocking work and a reclaim may
        // take a long time.
        let thread = std::thread::Builder::new().spawn(move || {
            let set = || {
                if observed > Limit::Bytes(limit)
                    && let Some(usage) = reclaim_below(&cgroup, limit)?
                {
                    return Ok(SetResult::UsageAbove(usage));
                }
                if guard.desired_limit() != Some(limit) || cgroup.read(Knob::Max)? != observed {
                    return Ok(SetResult::Changed);
                }
                // Store the record before the write, so that a restarted plugin can undo the write
                // after a crash.
                guard.log_failure(guard_record::store(&record, &guard.host));
                cgroup.write_knob(Knob::Max, limit.into())?;
                let is_set = cgroup.read(Knob::Max)? == Limit::Bytes(limit);
                Ok(if is_set { SetResult::Set } else { SetResult::Overwritten })
            };
            // The receiver is dropped when the program ends.
            let _ = sender.send(set());
        });
        let failed = |error| CgroupError::Io {
            path: path.clone(),
            operation: "start a thread".to_owned(),
            error,
        };
        thread.map_err(failed)?;
        receiver.await.map_err(|_| failed(io::Error::other("the thread has ended")))?
    }

    fn forget(&self, state: &mut State) {
        if state.record.take().is_some() {
            self.log_failure(guard_record::remove(&self.host));
        }
    }

    fn log_failure(&self, result: io::Result<()>) {
        if let Err(error) = result {
            let file = guard_record::file(&self.host);
            warn!(
                "cannot write {}: {error}; 'plimsoll restore' will not know the original \
                 memory.max of kubepods. Free space on the file system, or make it writable",
                file.display()
            );
        }
    }
}

/// Waits for the end of an attempt, and reports once that it hangs in the kernel. Meanwhile, the
/// task starts no other attempt, because each could hang in a thread of its own. New settings take
/// effect after the attempt.
async fn wait_for_attempt<T>(attempt: impl Future<Output = T>, has_hung: &mut bool) -> T {
    let mut attempt = pin!(attempt);
    if let Ok(result) = timeout(HANG_TIMEOUT, &mut attempt).await {
        *has_hung = false;
        return result;
    }
    if !std::mem::replace(has_hung, true) {
        warn!(
            "the kernel has not set the limit of all pods together (nodeGuard) for \
             {HANG_TIMEOUT:?}; look for blocked tasks and disk errors in the kernel's log. Until \
             the kernel answers, changes of nodeGuard have no effect. Logged once"
        );
    }
    attempt.await
}

/// Waits for the next change. Returns whether a program wrote `memory.max`.
async fn max_written(watch: &mut Option<Watch>) -> bool {
    let Some(watched) = watch else { return std::future::pending().await };
    match watched.next().await {
        Ok(change) => matches!(change, CgroupChange::Written(_, Knob::Max)),
        Err(error) => {
            debug!(%error, "cannot watch kubepods");
            *watch = None;
            false
        }
    }
}

/// Reclaims memory until the plugin can set `limit` without an OOM kill. Returns the usage if it
/// stays too high.
fn reclaim_below(cgroup: &Cgroup, limit: Bytes) -> Result<Option<Usage>, CgroupError> {
    let most = limit.saturating_sub(limit_decrease::margin(limit));
    Ok(match cgroup.reclaim_to(most, RECLAIM_STEP, Instant::now() + RECLAIM_TIMEOUT)? {
        Reclaimed::Fits => None,
        // The node guard does not lower memory.high, so the kernel has no other reason to reclaim
        // memory.
        Reclaimed::Above(usage) | Reclaimed::Unsupported(usage) => Some(usage),
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;
    use crate::config::Config;
    use crate::state::settings::Settings;
    use crate::state::testing::TestNode;

    /// With paused time, tokio advances the clock as soon as every task waits.
    #[tokio::test(start_paused = true)]
    async fn new_settings_apply_after_a_hanging_write() {
        let node = TestNode::new("nodeGuard: 1Gi\n");
        node.set("kubepods", "memory.max", "max");
        node.set("kubepods", "memory.stat", format!("inactive_file {}\n", 8u64 << 30));
        node.set("kubepods", "memory.current", 8u64 << 30);
        // A write to this file hangs until a reader opens the file.
        let kubepods = node.host.path().join("sys/fs/cgroup/kubepods");
        let file = kubepods.join("memory.reclaim");
        mknodat(CWD, &file, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let reports = Arc::<Reports>::default();
        let levels = node.levels(reports.brake.clone());
        let (root, containers) = (node.root.clone(), node.containers.clone());
        let host = node.host.path().to_owned();
        let guard = Guard::new(host, root, containers, levels, reports);
        let mut state = State::default();
        let mut step = Box::pin(guard.step(&mut state, false));
        assert!(timeout(2 * HANG_TIMEOUT, &mut step).await.is_err(), "the write hangs");
        let off = Settings::clone(&node.containers.settings()).with_config(Config::default());
        node.containers.set_settings(off);
        // This call returns once the thread writes. The thread then reads the usage again.
        let _reader = File::open(file).unwrap();
        node.set("kubepods", "new", 0);
        fs::rename(kubepods.join("new"), kubepods.join("memory.current")).unwrap();
        assert_eq!(step.await.unwrap(), RECHECK_DELAY);
        assert!(state.has_hung, "the log has reported the hanging write");
        assert_eq!(node.get("kubepods", "memory.max"), "max");
        assert!(guard.step(&mut state, false).await.is_ok());
        assert_eq!(state.record, None);
    }
}

//! Keeping memory from pods for the rest of the node (`nodeGuard`): all pods together have a limit, `memory.max` of kubepods.
//!
//! Limits of pods may add up to many times what the node has. When they are used, the kernel looks for memory on the whole
//! node, and at last for somebody to kill there: it may be the runtime or sshd, and all of them wait until then. With a line
//! for all pods it reclaims from pods, and kills among pods, by their `oom_score_adj`, which goes by what they use beyond their
//! requests. `memory.min` of the system's cgroups is the other half ([`crate::config::Config::reserved`]): their page cache
//! stays.
//!
//! Not `memory.high`: seen on Linux 7.2, pods overshoot that while they wait, and the kernel kills on the whole node.
//!
//! The kubelet sets the same file, to what it leaves for pods (`enforceNodeAllocatable`, in the kubelet's
//! `pkg/kubelet/cm/node_container_manager_linux.go`). Whichever is lower counts. What was there before is kept in a file
//! ([`Record`]), and is what kubepods gets back.
//!
//! Nobody is killed for the line itself: where pods use more than that, what can be reclaimed is, and the line waits for the
//! rest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::agent::ancestors::Ancestors;
use crate::cgroup::watch::{Change, Watch};
use crate::cgroup::{Cgroup, CgroupError, CgroupPath, CgroupRoot, Knob};
use crate::core::policy::contention::{Contention, Verdict};
use crate::core::policy::resize::{self, Cut, Usage};
use crate::core::units::{Bytes, Limit};
use crate::kubelet::kubepods::{Found, find};
use crate::report::{LowerLimit, Reports, Subject, What};
use crate::state::containers::{Containers, is_restored};

/// Half of the guard is missing, and what to do about that.
pub const NO_SYSTEM_SLICE: &str = "nodeGuard found no cgroup system.slice";
/// Advice for it.
pub const NAME_THE_SYSTEM: &str = "Name the cgroups of the runtime and the kubelet as systemReservedCgroup and kubeReservedCgroup in the \
                                   configuration, with the amounts systemReserved and kubeReserved";

/// How often kubepods is looked at, beside being watched: inotify may have lost something, or there is another one by now.
const EVERY: Duration = Duration::from_secs(10);

/// How often a line that waits is tried.
const SOON: Duration = Duration::from_secs(5);

/// When a file is looked at again that has just changed.
const AT_ONCE: Duration = Duration::from_millis(50);

/// How long room is made at a time. Pods may fill it again as fast as that.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much is reclaimed at a time: what is written back is waited for.
const STEP: Bytes = Bytes::new(64 << 20);

/// What was changed of kubepods, in a file, so that it can be taken back by whoever runs later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    cgroup: CgroupPath,
    inode: u64,
    /// What it would hold without the guard.
    before: Limit,
    /// What it was set to: while that changes, both.
    lines: Vec<Bytes>,
}

impl Record {
    /// Where it is on a node.
    pub const PATH: &str = "run/plimsoll/guard";

    fn file(host: &Path) -> PathBuf {
        host.join(Self::PATH)
    }

    /// The record on the node whose file system is at `host`; `None` if there is none that can be read.
    pub fn load(host: &Path) -> Option<Self> {
        Self::read(host).ok().flatten()
    }

    /// The record on the node whose file system is at `host`; `None` if there is none.
    ///
    /// # Errors
    ///
    /// When there is one that cannot be read.
    pub fn read(host: &Path) -> io::Result<Option<Self>> {
        match fs::read(Self::file(host)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The cgroup.
    pub fn cgroup(&self) -> &CgroupPath {
        &self.cgroup
    }

    /// Whether what kubepods holds is what it was set to.
    fn is_ours(&self, observed: Limit) -> bool {
        self.lines.iter().any(|line| observed == Limit::Bytes(*line))
    }

    /// Whether `cgroup` is the one that was kubepods, and holds what it was set to.
    fn is_in_force(&self, cgroup: &Cgroup) -> Result<bool, CgroupError> {
        Ok(cgroup.inode()? == self.inode && self.is_ours(cgroup.read(Knob::Max)?))
    }

    /// What kubepods would hold without the guard, when it holds `observed`.
    pub fn without(&self, observed: Limit) -> Limit {
        if self.is_ours(observed) { self.before } else { observed }
    }

    fn store(&self, host: &Path) -> io::Result<()> {
        let file = Self::file(host);
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory)?;
        }
        let new = file.with_extension("new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, file)
    }

    fn remove(host: &Path) -> io::Result<()> {
        match fs::remove_file(Self::file(host)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// The cgroup of all pods, if there is one: that of the pods that are known, or else where the kubelet made it.
///
/// # Errors
///
/// When none was found, and there are places that could not be looked into.
pub fn kubepods(
    root: &CgroupRoot,
    ancestors: &Ancestors,
) -> Result<Option<(CgroupPath, Cgroup)>, CgroupError> {
    let open = |path: CgroupPath| match root.cgroup(&path) {
        Ok(cgroup) => Some(Ok((path, cgroup))),
        Err(CgroupError::Gone(_)) => None,
        Err(error) => Some(Err(error)),
    };
    if let Some(known) = ancestors.kubepods().and_then(open) {
        return known.map(Some);
    }
    let Found { found, problems } = find(root);
    match found.into_iter().find_map(open) {
        Some(found) => found.map(Some),
        None => problems.into_iter().next().map_or(Ok(None), Err),
    }
}

/// Whether `memory.max` of kubepods holds a limit that the guard has set, and not only is to have one.
pub fn is_in_force(root: &CgroupRoot, ancestors: &Ancestors) -> bool {
    let Ok(Some((path, cgroup))) = kubepods(root, ancestors) else { return false };
    Record::load(root.host())
        .is_some_and(|record| record.cgroup == path && record.is_in_force(&cgroup).unwrap_or(false))
}

/// What is to be done about `memory.max` of kubepods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is as it should be.
    Nothing,
    /// It gets the line; without the guard it would hold `before`.
    Set { line: Bytes, before: Limit },
    /// It gets back what it would hold without the guard.
    PutBack(Limit),
    /// Somebody has set it since, and it is theirs.
    Forget,
}

/// Decides what is to be done where `line` is wanted, or nothing is.
fn step(line: Option<Bytes>, observed: Limit, record: Option<&Record>) -> Step {
    let ours = record.filter(|record| record.is_ours(observed));
    let before = ours.map_or(observed, |record| record.before);
    match line {
        Some(line) if Limit::Bytes(line) < before => {
            if observed == Limit::Bytes(line) && ours.is_some() {
                Step::Nothing
            } else {
                Step::Set { line, before }
            }
        }
        _ if ours.is_some() => Step::PutBack(before),
        _ if record.is_some() => Step::Forget,
        _ => Step::Nothing,
    }
}

/// What became of a line.
enum Attempt {
    /// It was read back.
    Set,
    /// Pods use more, and not enough of it can be reclaimed.
    NoRoom(Usage),
    /// The file holds something else than it did, or another line is wanted by now. Nothing was written.
    Changed,
    /// It was written, and another program has written something else since.
    Overwritten,
}

/// The task that keeps the line.
#[derive(Clone, Debug)]
pub struct Guard {
    host: PathBuf,
    root: Arc<CgroupRoot>,
    containers: Arc<Containers>,
    ancestors: Arc<Ancestors>,
    reports: Arc<Reports>,
}

/// What the task remembers.
#[derive(Debug, Default)]
struct State {
    record: Option<Record>,
    /// The record is of a line that was not read back.
    is_unsure: bool,
    contention: Contention<CgroupPath, Bytes>,
    /// The line that was said to wait, and when it is tried next.
    waits: Option<(Bytes, Instant)>,
    is_failing: bool,
    /// There is no cgroup of the system to protect, and it was said.
    is_half: bool,
}

impl Guard {
    /// The guard of the node whose file system is at `host`.
    pub fn new(
        host: PathBuf,
        root: Arc<CgroupRoot>,
        containers: Arc<Containers>,
        ancestors: Arc<Ancestors>,
        reports: Arc<Reports>,
    ) -> Self {
        Self { host, root, containers, ancestors, reports }
    }

    /// Works once the runtime has configured the plugin, for ever. Until then nobody knows which line is wanted, or whether another
    /// instance keeps one.
    pub async fn run_when_configured(self) {
        let mut settings = self.containers.settings_changed();
        // The sender is in the containers, which are kept here.
        let _ = settings.changed().await;
        self.run().await;
    }

    /// Works for ever.
    pub async fn run(self) {
        let mut settings = self.containers.settings_changed();
        let mut state = State { record: Record::load(&self.host), ..State::default() };
        let mut written = false;
        let mut watched = None;
        loop {
            settings.mark_unchanged();
            if self.line().is_none() && state.record.is_none() {
                watched = None;
                let changed = settings.changed();
                // `plimsoll restore` may have been called and undone before anybody has taken that over.
                if self.containers.settings().guard_line().is_some() {
                    let _ = timeout(EVERY, changed).await;
                } else {
                    let _ = changed.await;
                }
                continue;
            }
            self.look_for_the_system(&mut state);
            // Before it is looked at, so that nothing is missed in between; and anew, as it may be another one by now.
            watched = self.watch(watched);
            let again = match self.look(&mut state, written).await {
                Ok(again) => {
                    state.is_failing = false;
                    again
                }
                Err(CgroupError::Gone(_)) => EVERY,
                Err(error) => {
                    if !std::mem::replace(&mut state.is_failing, true) {
                        let seconds = EVERY.as_secs();
                        warn!(%error, "cannot keep memory from pods; it is tried again every {seconds} s. Said once");
                    }
                    EVERY
                }
            };
            written = tokio::select! {
                _ = settings.changed() => false,
                is_max = max_written(&mut watched) => is_max,
                () = tokio::time::sleep(again) => false,
            };
        }
    }

    /// What is wanted. `plimsoll restore` may have been called just now, and puts back itself.
    fn line(&self) -> Option<Bytes> {
        self.containers
            .settings()
            .guard_line()
            .filter(|_| matches!(is_restored(&self.host), Ok(false)))
    }

    /// Says once if half of the guard is missing: the cgroup of the system whose memory it protects.
    fn look_for_the_system(&self, state: &mut State) {
        let settings = self.containers.settings();
        let system = CgroupPath::system_slice();
        let is_wanted = settings.config.reserved.is_empty() && settings.guard_line().is_some();
        let is_missing =
            is_wanted && matches!(self.root.cgroup(&system), Err(CgroupError::Gone(_)));
        if is_missing && !std::mem::replace(&mut state.is_half, is_missing) {
            warn!(
                cgroup = %system,
                "{NO_SYSTEM_SLICE}: pods are held below their limit, but nothing protects the memory of the system. {NAME_THE_SYSTEM}. \
                 Said once"
            );
        }
        state.is_half = is_missing;
    }

    fn watch(&self, watched: Option<Watch>) -> Option<Watch> {
        let watch = watched.map_or_else(Watch::new, Ok).and_then(|mut watch| {
            // What is the matter with it, if anything, says the look at it.
            if let Ok(Some((path, _))) = kubepods(&self.root, &self.ancestors) {
                watch.add(&self.root, &path)?;
            }
            Ok(watch)
        });
        watch.inspect_err(|error| debug!(%error, "kubepods is looked at now and then only")).ok()
    }

    /// Does what is to be done. `written`: somebody has written the file since. Tells when it is to be called again.
    async fn look(&self, state: &mut State, written: bool) -> Result<Duration, CgroupError> {
        let Some((path, cgroup)) = kubepods(&self.root, &self.ancestors)? else { return Ok(EVERY) };
        let inode = cgroup.inode()?;
        if let Some(record) = &state.record
            && (record.cgroup != path || record.inode != inode)
        {
            self.put_back_former(record)?;
            self.forget(state);
        }
        let line = self.line();
        let observed = cgroup.read(Knob::Max)?;
        let subject = Subject::from(&path);
        match step(line, observed, state.record.as_ref()) {
            Step::Nothing => state.waits = None,
            Step::Forget => {
                state.waits = None;
                self.forget(state);
            }
            Step::PutBack(before) => {
                state.waits = None;
                cgroup.write(Knob::Max, before)?;
                let observed = cgroup.read(Knob::Max)?;
                self.ancestors.make_limits_last(&path);
                self.forget(state);
                self.reports.tell(&subject, &What::Unguarded { desired: before, observed });
            }
            Step::Set { line, before } => {
                let now = Instant::now();
                if let Some((waits, due)) = state.waits
                    && waits == line
                    && now < due
                {
                    return Ok(due - now);
                }
                let was_set = !state.is_unsure
                    && state.record.as_ref().is_some_and(|record| record.lines == [line]);
                if was_set && state.waits.is_none() {
                    if !self.containers.settings().config.repair {
                        return Ok(EVERY);
                    }
                    match state.contention.judge(path.clone(), line, written, now) {
                        Verdict::Repair => {}
                        Verdict::Wait(wait) => return Ok(wait),
                        Verdict::Leave => return Ok(EVERY),
                        Verdict::GiveUp => {
                            let (repairs, desired) = (state.contention.repairs(&path), line.into());
                            let what =
                                What::Contended { knob: Knob::Max, desired, observed, repairs };
                            self.reports.tell(&subject, &what);
                            return Ok(EVERY);
                        }
                    }
                }
                let lines = [observed.bytes().filter(|_| observed != before), Some(line)];
                let lines = lines.into_iter().flatten().collect();
                let record = Record { cgroup: path.clone(), inode, before, lines };
                let attempt = self.set(cgroup, line, observed, record.clone()).await;
                if matches!(attempt, Ok(Attempt::Overwritten) | Err(_)) {
                    // It is written down by now, so that it has to be forgotten or taken back.
                    (state.record, state.is_unsure) = (Some(record.clone()), true);
                }
                match attempt? {
                    Attempt::Changed | Attempt::Overwritten => return Ok(AT_ONCE),
                    Attempt::NoRoom(usage) => {
                        let due = Instant::now() + SOON;
                        if state.waits.replace((line, due)).is_none_or(|(former, _)| former != line)
                        {
                            let waits =
                                LowerLimit { limit: line.into(), in_force: observed, usage };
                            self.reports.tell(&subject, &What::GuardWaits(waits));
                        }
                        return Ok(SOON);
                    }
                    Attempt::Set => {}
                }
                state.waits = None;
                let record = Record { lines: vec![line], ..record };
                self.complain(record.store(&self.host));
                (state.record, state.is_unsure) = (Some(record), false);
                self.ancestors.make_limits_last(&path);
                let desired = Limit::Bytes(line);
                self.reports.tell(
                    &subject,
                    &if was_set {
                        What::Repaired { knob: Knob::Max, desired, observed }
                    } else {
                        What::Guarded { desired: line, observed }
                    },
                );
            }
        }
        Ok(EVERY)
    }

    /// Another cgroup is kubepods by now: the former one, if it is still there, is to have what it had.
    fn put_back_former(&self, record: &Record) -> Result<(), CgroupError> {
        let put_back = || {
            let cgroup = self.root.cgroup(&record.cgroup)?;
            if record.is_in_force(&cgroup)? {
                cgroup.write(Knob::Max, record.before)?;
                self.ancestors.make_limits_last(&record.cgroup);
            }
            Ok(())
        };
        match put_back() {
            Err(CgroupError::Gone(_)) => Ok(()),
            result => result,
        }
    }

    /// Makes room below `line`, and sets it where `observed` is still what there is.
    async fn set(
        &self,
        cgroup: Cgroup,
        line: Bytes,
        observed: Limit,
        record: Record,
    ) -> Result<Attempt, CgroupError> {
        let (tell, told) = oneshot::channel();
        let (guard, path) = (self.clone(), record.cgroup.clone());
        // Of its own: there are few threads for what blocks, and the kernel may take its time.
        let thread = std::thread::Builder::new().spawn(move || {
            let set = || {
                if observed > Limit::Bytes(line)
                    && let Some(usage) = make_room(&cgroup, line)?
                {
                    return Ok(Attempt::NoRoom(usage));
                }
                if guard.line() != Some(line) || cgroup.read(Knob::Max)? != observed {
                    return Ok(Attempt::Changed);
                }
                // First of all, so that whatever happens it can be taken back.
                guard.complain(record.store(&guard.host));
                cgroup.write(Knob::Max, line.into())?;
                let is_set = cgroup.read(Knob::Max)? == Limit::Bytes(line);
                Ok(if is_set { Attempt::Set } else { Attempt::Overwritten })
            };
            // Nobody waits any longer when the program ends.
            let _ = tell.send(set());
        });
        let failed = |error| CgroupError::Io {
            path: path.clone(),
            operation: "start a thread".to_owned(),
            error,
        };
        thread.map_err(failed)?;
        told.await.map_err(|_| failed(io::Error::other("the thread has ended")))?
    }

    fn forget(&self, state: &mut State) {
        if state.record.take().is_some() {
            self.complain(Record::remove(&self.host));
        }
    }

    fn complain(&self, result: io::Result<()>) {
        if let Err(error) = result {
            let file = Record::file(&self.host);
            warn!(
                "cannot write {}: {error}; 'plimsoll restore' will not know what kubepods memory.max was before. Make room \
                 there, or make it writable",
                file.display()
            );
        }
    }
}

/// Whether it was `memory.max` that somebody wrote.
async fn max_written(watch: &mut Option<Watch>) -> bool {
    let Some(watched) = watch else { return std::future::pending().await };
    match watched.next().await {
        Ok(change) => matches!(change, Change::Written(_, Knob::Max)),
        Err(error) => {
            debug!(%error, "kubepods is looked at now and then only");
            *watch = None;
            false
        }
    }
}

/// Reclaims until `line` can be set without a kill. What is used, if it cannot.
fn make_room(cgroup: &Cgroup, line: Bytes) -> Result<Option<Usage>, CgroupError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let usage = cgroup.usage_in_parts()?;
        match resize::cut(line, &usage) {
            Cut::Fits => return Ok(None),
            Cut::Reclaim if Instant::now() < deadline => {}
            Cut::Reclaim | Cut::Kills => return Ok(Some(usage)),
        }
        let surplus = usage.current.saturating_sub(line.saturating_sub(resize::margin(line)));
        match cgroup.reclaim(surplus.min(STEP)) {
            Ok(is_all) if is_all || cgroup.usage()? < usage.current => {}
            Ok(_) | Err(CgroupError::Unsupported { .. }) => return Ok(Some(usage)),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn bytes(mib: u64) -> Bytes {
        Bytes::new(mib * MIB)
    }

    fn limit(mib: u64) -> Limit {
        Limit::Bytes(bytes(mib))
    }

    fn record(before: Limit, line: u64) -> Record {
        Record {
            cgroup: CgroupPath::parse("kubepods").unwrap(),
            inode: 7,
            before,
            lines: vec![bytes(line)],
        }
    }

    #[test]
    fn pods_get_the_line_unless_the_kubelet_leaves_them_less() {
        assert_eq!(
            step(Some(bytes(900)), Limit::Max, None),
            Step::Set { line: bytes(900), before: Limit::Max }
        );
        assert_eq!(
            step(Some(bytes(900)), limit(1000), None),
            Step::Set { line: bytes(900), before: limit(1000) }
        );
        assert_eq!(step(Some(bytes(900)), limit(800), None), Step::Nothing);
        assert_eq!(
            step(Some(bytes(900)), limit(900), None),
            Step::Nothing,
            "it is the kubelet's own"
        );
        assert_eq!(step(None, limit(800), None), Step::Nothing);
    }

    #[test]
    fn what_was_there_before_comes_back_unless_somebody_set_it_since() {
        let set = record(limit(1000), 900);
        assert_eq!(step(Some(bytes(900)), limit(900), Some(&set)), Step::Nothing);
        assert_eq!(step(None, limit(900), Some(&set)), Step::PutBack(limit(1000)));
        assert_eq!(step(None, limit(800), Some(&set)), Step::Forget);
        assert_eq!(step(None, limit(1000), Some(&set)), Step::Forget);
    }

    #[test]
    fn another_line_starts_from_what_was_there_before() {
        let set = record(limit(1000), 900);
        assert_eq!(
            step(Some(bytes(950)), limit(900), Some(&set)),
            Step::Set { line: bytes(950), before: limit(1000) }
        );
        assert_eq!(
            step(Some(bytes(850)), limit(900), Some(&set)),
            Step::Set { line: bytes(850), before: limit(1000) }
        );
        assert_eq!(step(Some(bytes(1100)), limit(900), Some(&set)), Step::PutBack(limit(1000)));
    }

    #[test]
    fn what_the_kubelet_sets_since_is_what_comes_back() {
        let set = record(limit(1000), 900);
        // A kubelet that starts again with another reservation.
        assert_eq!(
            step(Some(bytes(900)), limit(1200), Some(&set)),
            Step::Set { line: bytes(900), before: limit(1200) }
        );
        assert_eq!(step(Some(bytes(900)), limit(700), Some(&set)), Step::Forget);
    }

    #[test]
    fn while_the_line_changes_both_are_the_guards_own() {
        let changing = Record { lines: vec![bytes(900), bytes(850)], ..record(limit(1000), 0) };
        for held in [limit(900), limit(850)] {
            assert_eq!(step(None, held, Some(&changing)), Step::PutBack(limit(1000)));
            assert_eq!(changing.without(held), limit(1000));
        }
        // It is set once more, so that only one is.
        assert_eq!(
            step(Some(bytes(850)), limit(900), Some(&changing)),
            Step::Set { line: bytes(850), before: limit(1000) }
        );
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_a_torn_one_is_none() {
        let host = tempfile::tempdir().unwrap();
        assert_eq!(Record::load(host.path()), None);
        let record = record(Limit::Max, 900);
        record.store(host.path()).unwrap();
        assert_eq!(Record::load(host.path()), Some(record.clone()));
        assert_eq!(record.without(limit(900)), Limit::Max);
        assert_eq!(record.without(limit(800)), limit(800));
        fs::write(Record::file(host.path()), "{\"cgroup\":").unwrap();
        assert_eq!(Record::load(host.path()), None);
        assert!(Record::read(host.path()).is_err());
        Record::remove(host.path()).unwrap();
        Record::remove(host.path()).unwrap();
        assert_eq!(Record::load(host.path()), None);
    }
}

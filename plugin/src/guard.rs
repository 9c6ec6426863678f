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
use tokio::sync::{oneshot, watch};
use tracing::{debug, info, warn};

use crate::ancestors::Ancestors;
use crate::cgroup::watch::{Change, Watch};
use crate::cgroup::{Cgroup, CgroupError, CgroupPath, CgroupRoot, Knob};
use crate::containers::Containers;
use crate::contention::{Contention, Verdict};
use crate::node::KUBEPODS;
use crate::originals::DIRECTORY;
use crate::report::{LowerLimit, Reports, Subject, What};
use crate::resize::{self, Cut, Usage};
use crate::units::{Bytes, Limit};

/// The file's name.
const FILE: &str = "guard";

/// How often kubepods is looked at, beside being watched: inotify may have lost something.
const EVERY: Duration = Duration::from_secs(60);

/// How often a line that waits is tried, and how often it is looked whether there is a kubepods by now.
const SOON: Duration = Duration::from_secs(5);

/// How much is reclaimed at a time: what is written back is waited for.
const STEP: Bytes = Bytes::new(64 << 20);

/// What was changed of kubepods, in a file, so that it can be taken back by whoever runs later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    cgroup: CgroupPath,
    inode: u64,
    /// What it would hold without the guard.
    before: Limit,
    /// What it was set to.
    line: Bytes,
}

impl Record {
    fn file(host: &Path) -> PathBuf {
        host.join(DIRECTORY).join(FILE)
    }

    /// The record on the node whose file system is at `host`; `None` if there is none that can be read.
    pub fn load(host: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::file(host)).ok()?).ok()
    }

    /// The cgroup.
    pub fn cgroup(&self) -> &CgroupPath {
        &self.cgroup
    }

    /// What kubepods would hold without the guard, when it holds `observed`.
    pub fn without(&self, observed: Limit) -> Limit {
        if observed == Limit::Bytes(self.line) { self.before } else { observed }
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

/// The cgroup of all pods, if there is one.
pub fn kubepods(root: &CgroupRoot) -> Option<(CgroupPath, Cgroup)> {
    KUBEPODS.into_iter().filter_map(|name| CgroupPath::parse(name).ok()).find_map(|path| {
        let cgroup = root.cgroup(&path).ok()?;
        Some((path, cgroup))
    })
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
    let ours = record.filter(|record| observed == Limit::Bytes(record.line));
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

/// The task that keeps the line.
#[derive(Debug)]
pub struct Guard {
    host: PathBuf,
    root: Arc<CgroupRoot>,
    containers: Arc<Containers>,
    ancestors: Arc<Ancestors>,
    reports: Arc<Reports>,
    record: Option<Record>,
    contention: Contention<CgroupPath, Bytes>,
    /// What was told last of a line that cannot be set yet.
    waits: Option<Bytes>,
    failing: bool,
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
        let record = Record::load(&host);
        let (contention, waits, failing) = (Contention::default(), None, false);
        Self { host, root, containers, ancestors, reports, record, contention, waits, failing }
    }

    /// Works until `settings`, which tells of every change of the settings, is closed.
    pub async fn run(mut self, mut settings: watch::Receiver<()>) {
        let mut written = false;
        let mut watched = None;
        loop {
            settings.mark_unchanged();
            let line = self.containers.settings().guard_line();
            if line.is_none() && self.record.is_none() {
                watched = None;
                if settings.changed().await.is_err() {
                    return;
                }
                continue;
            }
            // Before it is looked at, so that nothing is missed in between; and anew, as it may be another one by now.
            watched = self.watch(watched);
            let again = match self.look(line, written).await {
                Ok(again) => {
                    self.failing = false;
                    again
                }
                Err(error) => {
                    if !matches!(error, CgroupError::Gone(_)) && !std::mem::replace(&mut self.failing, true) {
                        warn!(%error, "cannot keep memory from pods; it is tried again every {} s. Said once", EVERY.as_secs());
                    }
                    if matches!(error, CgroupError::Gone(_)) { SOON } else { EVERY }
                }
            };
            written = tokio::select! {
                changed = settings.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    false
                }
                is_max = max_written(&mut watched) => is_max,
                () = tokio::time::sleep(again) => false,
            };
        }
    }

    fn watch(&self, watched: Option<Watch>) -> Option<Watch> {
        let watch = watched.map_or_else(Watch::new, Ok).and_then(|mut watch| {
            if let Some((path, _)) = kubepods(&self.root) {
                watch.add(&self.root, &path)?;
            }
            Ok(watch)
        });
        watch.inspect_err(|error| debug!(%error, "kubepods is looked at now and then only")).ok()
    }

    /// Does what is to be done. `written`: somebody has written the file since. Tells when it is to be called again.
    async fn look(&mut self, line: Option<Bytes>, written: bool) -> Result<Duration, CgroupError> {
        let Some((path, cgroup)) = kubepods(&self.root) else {
            self.forget();
            return Ok(SOON);
        };
        let inode = cgroup.inode()?;
        if self.record.as_ref().is_some_and(|record| record.cgroup != path || record.inode != inode) {
            self.forget();
        }
        let observed = cgroup.read(Knob::Max)?;
        let subject = Subject::from(&path);
        match step(line, observed, self.record.as_ref()) {
            Step::Nothing => {}
            Step::Forget => self.forget(),
            Step::PutBack(before) => {
                cgroup.write(Knob::Max, before)?;
                let now = cgroup.read(Knob::Max)?;
                info!(cgroup = %path, knob = %Knob::Max, desired = %before, observed = %now, "no memory is kept from pods any more");
                self.ancestors.make_limits_last(&path);
                self.forget();
            }
            Step::Set { line, before } => {
                let former = self.record.clone();
                let was_set = former.as_ref().is_some_and(|record| record.line == line);
                if was_set && self.waits.is_none() {
                    match self.contention.judge(path.clone(), line, written, Instant::now()) {
                        Verdict::Repair => {}
                        Verdict::Wait(wait) => return Ok(wait),
                        Verdict::Leave => return Ok(EVERY),
                        Verdict::GiveUp => {
                            let repairs = self.contention.repairs(&path);
                            let desired = line.into();
                            self.reports
                                .tell(&subject, &What::Contended { knob: Knob::Max, desired, observed, repairs });
                            return Ok(EVERY);
                        }
                    }
                }
                // First of all, so that whatever happens it can be taken back.
                self.remember(Record { cgroup: path.clone(), inode, before, line });
                if let Some(usage) = set(cgroup, line).await? {
                    match former {
                        Some(former) => self.remember(former),
                        None => self.forget(),
                    }
                    if self.waits.replace(line) != Some(line) {
                        let waits = LowerLimit { limit: line.into(), in_force: observed, usage };
                        self.reports.tell(&subject, &What::GuardWaits(waits));
                    }
                    return Ok(SOON);
                }
                self.waits = None;
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

    fn remember(&mut self, record: Record) {
        let result = record.store(&self.host);
        self.record = Some(record);
        self.complain(result);
    }

    fn forget(&mut self) {
        if self.record.take().is_some() {
            let result = Record::remove(&self.host);
            self.complain(result);
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

/// Makes room below `line`, and sets it. What is used, if that cannot be reclaimed.
async fn set(cgroup: Cgroup, line: Bytes) -> Result<Option<Usage>, CgroupError> {
    let (tell, told) = oneshot::channel();
    // Of its own: there are few threads for what blocks, and the kernel may take its time.
    std::thread::spawn(move || {
        let result = make_room(&cgroup, line).and_then(|usage| match usage {
            Some(usage) => Ok(Some(usage)),
            None => cgroup.write(Knob::Max, line.into()).map(|()| None),
        });
        // Nobody waits any longer when the program ends.
        let _ = tell.send(result);
    });
    told.await.expect("the thread tells before it ends")
}

/// Reclaims until `line` can be set without a kill. What is used, if it cannot.
fn make_room(cgroup: &Cgroup, line: Bytes) -> Result<Option<Usage>, CgroupError> {
    loop {
        let usage = cgroup.usage_in_parts()?;
        match resize::cut(line, &usage) {
            Cut::Fits => return Ok(None),
            Cut::Kills => return Ok(Some(usage)),
            Cut::Reclaim => {}
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
        Record { cgroup: CgroupPath::parse("kubepods").unwrap(), inode: 7, before, line: bytes(line) }
    }

    #[test]
    fn pods_get_the_line_unless_the_kubelet_leaves_them_less() {
        assert_eq!(step(Some(bytes(900)), Limit::Max, None), Step::Set { line: bytes(900), before: Limit::Max });
        assert_eq!(step(Some(bytes(900)), limit(1000), None), Step::Set { line: bytes(900), before: limit(1000) });
        assert_eq!(step(Some(bytes(900)), limit(800), None), Step::Nothing);
        assert_eq!(step(Some(bytes(900)), limit(900), None), Step::Nothing, "it is the kubelet's own");
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
        assert_eq!(step(Some(bytes(950)), limit(900), Some(&set)), Step::Set { line: bytes(950), before: limit(1000) });
        assert_eq!(step(Some(bytes(850)), limit(900), Some(&set)), Step::Set { line: bytes(850), before: limit(1000) });
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
        Record::remove(host.path()).unwrap();
        Record::remove(host.path()).unwrap();
        assert_eq!(Record::load(host.path()), None);
    }
}

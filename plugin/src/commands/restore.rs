//! The command `plimsoll restore`: restores the values that cgroups held before the plugin changed
//! them.
//!
//! The command creates a marker file. While the file exists, every instance of the plugin desires
//! no values. Reconciling therefore restores the originals. Where no instance runs, the command
//! runs an instance itself until everything is restored. The rest of this module only observes and
//! reports the result.

pub(super) mod arguments;

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use nri::{Identity, Stub};
use plimsoll_core::pod::{CgroupPath, PodCgroup};
use plimsoll_core::policy::Protection;
use plimsoll_core::policy::hierarchy::PodPlace;
use plimsoll_core::units::{Bytes, Knob, excerpt, printable};
use tokio::time::{Instant, timeout};

use self::arguments::{ResetBrake, Restore};
use crate::agent::node::Node;
use crate::agent::supervise::Supervisor;
use crate::cgroup::systemd::{self, Systemd};
use crate::cgroup::watch::Watch;
use crate::cgroup::{CgroupError, CgroupRoot};
use crate::commands::{Failure, print};
use crate::config::Config;
use crate::kubelet::kubepods::{self, Found};
use crate::report::serve;
use crate::state::container::KNOBS;
use crate::state::containers::Containers;
use crate::state::guard_record;
use crate::state::originals::{DIRECTORY, Originals, Target, Values};
use crate::state::settings::STAND_ASIDE;
use crate::state::{brake, raised};
use plimsoll_core::policy::guard::GuardRecord;

/// Time limit for restoring all values. A runtime needs some tenths of a second per container.
const PATIENCE: Duration = Duration::from_secs(120);

/// Time limit for the plugin to notice the marker file. Also the time limit for the runtime to list
/// containers whose cgroups are outside the kubelet's cgroups.
const WORD: Duration = Duration::from_secs(30);

/// The most missing targets that the report names.
const NAMED: usize = 20;

/// Poll interval while inotify reports no change.
const LOOK: Duration = Duration::from_secs(1);

/// A cgroup that the plugin has changed.
struct Changed {
    cgroup: CgroupPath,
    /// The id of the container. `None` for an ancestor cgroup of containers and for a reserved
    /// cgroup beside the pods.
    container: Option<String>,
    /// The values to restore.
    original: Values,
    /// The values that the cgroup held before the restore.
    before: Values,
}

impl ResetBrake {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let was_applied = brake::Record::remove(&self.host).map_err(|error| {
            failed(error, "remove", &self.host.join(DIRECTORY).join(brake::FILE))
        })?;
        print(format_args!(
            "{}\n",
            if was_applied {
                "reset: plimsoll acts again, where it runs"
            } else {
                "the brake was not applied"
            }
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The state of all cgroups and containers that the plugin has changed.
#[derive(Default)]
struct Looked {
    changed: Vec<Changed>,
    /// Ids of containers whose cgroup was not found.
    missing: BTreeSet<String>,
    /// Targets that no longer exist: removed cgroups, and containers that the runtime does not
    /// list.
    ended: Vec<String>,
    /// Errors about cgroups that could not be searched. Missing containers may be there.
    unsearched: Vec<String>,
    /// Errors about existing targets that could not be read.
    problems: Vec<String>,
}

impl Restore {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let mark = self.host.join(STAND_ASIDE);
        if self.undo {
            return match fs::remove_file(&mark) {
                Ok(()) => {
                    print(format_args!("undone: plimsoll sets values again, where it runs\n"))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => print(format_args!(
                    "there is nothing to undo: 'plimsoll restore' was not called\n"
                )),
                Err(error) => Err(failed(error, "remove", &mark)),
            }
            .map(|()| ExitCode::SUCCESS);
        }
        let root = CgroupRoot::open(&self.host.join("sys/fs/cgroup"))
            .map_err(|error| Failure::Runtime(error.into()))?;
        let originals = Originals::load(&self.host)
            .context("cannot read what cgroups held before")
            .map_err(Failure::Runtime)?;
        let before = Looked::new(&root, &originals);
        let (kubepods, problem) = match guard_record::read(&self.host) {
            Ok(record) => (record, None),
            Err(error) => (None, Some(format!("/{}: {error}", GuardRecord::PATH))),
        };
        let kubepods = kubepods.map(|record| record.cgroup);
        let max = |cgroup: &CgroupPath| {
            root.cgroup(cgroup).and_then(|cgroup| cgroup.read(Knob::Max)).ok()
        };
        let guarded = kubepods.as_ref().and_then(max);
        if let Some(directory) = mark.parent() {
            fs::create_dir_all(directory).map_err(|error| failed(error, "make", directory))?;
        }
        fs::write(&mark, "").map_err(|error| failed(error, "make", &mark))?;

        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the asynchronous runtime")
            .map_err(Failure::Runtime)?;
        let has_plugin = runtime.block_on(self.wait_for_the_plugin());
        // The plugin may have changed more values until it noticed the marker file.
        let originals = Originals::load(&self.host)
            .context("cannot read what cgroups held before")
            .map_err(Failure::Runtime)?;
        let mut looked = Looked::new(&root, &originals);
        looked.problems.extend(problem);
        looked.remember(before);
        let staying = raised::staying(&root, originals.raised_limits());
        let left = runtime.block_on(self.wait(
            &root,
            &originals,
            &mut looked,
            kubepods.as_ref(),
            has_plugin,
        ))?;
        if let (Some(cgroup), Some(before)) = (&kubepods, guarded)
            && let Some(held) = max(cgroup).filter(|held| *held != before)
        {
            print(format_args!("{cgroup} {}: {before} -> {held}\n", Knob::Max))?;
        }
        print(format_args!("{}", looked.report(&root, kubepods.is_some(), &staying)))?;
        let left = (left > 0).then(|| {
            format!(
                "{left} cgroups do not have back what they had within {} s, or the container runtime was not told of it: expected \
                 the container runtime, and the plugin where it runs, to answer; see their logs and call this again",
                PATIENCE.as_secs()
            )
        });
        let why: Vec<_> = left.into_iter().chain(looked.unsettled()).collect();
        if why.is_empty() {
            Ok(ExitCode::SUCCESS)
        } else {
            Err(Failure::Runtime(anyhow!(why.join("; "))))
        }
    }

    /// Waits until a running plugin has noticed the marker file, for at most [`WORD`]. Returns
    /// whether a plugin runs and answers.
    async fn wait_for_the_plugin(&self) -> bool {
        let deadline = Instant::now() + WORD;
        loop {
            let Ok(status) = serve::ask(&self.host).await else { return false };
            if status.node.stands_aside || Instant::now() >= deadline {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until all values are restored. Returns the number of cgroups that are not restored,
    /// plus the number of containers whose stored values in the runtime are not updated.
    ///
    /// `kubepods` is the cgroup that the node guard has limited. `has_plugin` states that another
    /// instance runs and updates the runtime.
    async fn wait(
        &self,
        root: &CgroupRoot,
        originals: &Originals,
        looked: &mut Looked,
        kubepods: Option<&CgroupPath>,
        has_plugin: bool,
    ) -> Result<usize, Failure> {
        let node = Node::open(&self.host, Config::default())
            .map_err(|error| Failure::Runtime(error.into()))?;
        let containers = node.containers().clone();
        let (service, tasks) = node.into_service(Box::new(|_| ()));
        let synchronized = service.synchronized();
        let identity =
            Identity::new("90", "plimsoll").map_err(|error| Failure::Runtime(error.into()))?;
        // While another instance runs, this one waits for the lock. The other instance restores the
        // values.
        let stub = Stub::external(identity, service).socket(&self.socket);
        let (supervisor, ends) = Supervisor::new();
        let guard = tokio::spawn(tasks.guard().run());
        let started = tasks.start(stub.runtime(), &supervisor).context("start a thread");
        started.map_err(Failure::Runtime)?;
        let plugin = tokio::spawn(stub.run());

        let mut watch = Watch::new().context("start inotify").map_err(Failure::Runtime)?;
        for changed in &looked.changed {
            watch.add(root, &changed.cgroup).context("watch cgroups").map_err(Failure::Runtime)?;
        }
        let deadline = Instant::now() + PATIENCE;
        if let Some(cgroup) = kubepods {
            watch.add(root, cgroup).context("watch cgroups").map_err(Failure::Runtime)?;
        }
        // Counts what does not hold its originals yet, and what does but was not updated in the
        // runtime: a container's files are restored before the runtime's stored values.
        let count = |changed: &[Changed]| {
            let known = Originals::load(&self.host).ok();
            let is_told = |changed: &Changed| {
                known.as_ref().is_some_and(|known| !changed.is_known_to(known, root))
            };
            let (back, away): (Vec<_>, Vec<_>) =
                changed.iter().partition(|changed| changed.is_back(root));
            let guarded = usize::from(guard_record::load(&self.host).is_some());
            (guarded + away.len(), back.into_iter().filter(|changed| !is_told(changed)).count())
        };
        // After a complete search, a missing container has ended or its cgroup is outside the
        // kubelet's cgroups.
        let word = Instant::now() + if looked.unsearched.is_empty() { WORD } else { PATIENCE };
        let unfinished = loop {
            let (left, untold) = count(&looked.changed);
            let is_answered = has_plugin || *synchronized.borrow();
            let now = Instant::now();
            if !((left > 0 && now < deadline)
                || (untold > 0 && now < if is_answered { deadline } else { word })
                || (!looked.missing.is_empty() && now < word))
            {
                break left + untold;
            }
            // Look at the cgroups again after an event, an error or a timeout.
            let _ = timeout(LOOK, watch.next()).await;
            if !looked.missing.is_empty()
                && let Some(told) = self.told(&containers, *synchronized.borrow()).await
            {
                looked.take_word(root, originals, &told);
            }
        };
        // Remove systemd's runtime drop-ins. Otherwise systemd would set the plugin's values again,
        // and the drop-ins would override the administrator's configuration.
        let systemd = Systemd::new(&self.host);
        let remove = |path: &CgroupPath| {
            systemd::remove_protection(&self.host, path).unwrap_or_else(|error| {
                eprintln!("note: {path}: cannot remove systemd's drop-ins: {error}");
                false
            })
        };
        let changed = looked.changed.iter().filter(|changed| changed.container.is_none());
        let changed: Vec<_> = changed.map(|changed| (&changed.cgroup, changed.original)).collect();
        // Count instead of `any`, which would stop at the first removal.
        let is_removed = changed.iter().filter(|(path, _)| remove(path)).count() > 0;
        // Cgroups that were restored earlier may still have drop-ins, as after a switch to observe
        // mode. If a cgroup holds other values than its originals, another program has set the
        // values and the drop-ins.
        let former = originals.former().filter(|(path, inode, original)| {
            root.cgroup(path).is_ok_and(|cgroup| {
                cgroup.inode().is_ok_and(|held| held == *inode)
                    && Values::read(&cgroup)
                        .is_ok_and(|held| held.protection() == original.protection())
            })
        });
        let former = former.map(|(path, _, original)| (path, original));
        let former: Vec<_> = former.filter(|(path, _)| remove(path)).collect();
        if (is_removed || !former.is_empty())
            && let Err(error) = systemd.reload().await
        {
            eprintln!("note: {error}; call 'systemctl daemon-reload'");
        }
        // Set the property where the reload did not restore the original. Another program may have
        // set the original at runtime, in the same drop-in file.
        for (path, original) in changed.into_iter().chain(former) {
            let [min, low] =
                [original.min, original.low].map(|limit| limit.unwrap_or(Bytes::ZERO.into()));
            let protection = Protection::of_files(min, low);
            if let Ok(cgroup) = root.cgroup(path)
                && let Err(error) = systemd.set(&cgroup, protection, false).await
            {
                eprintln!("note: {error}");
            }
        }
        if let Some(cgroup) = kubepods.and_then(|path| root.cgroup(path).ok())
            && let (Ok(min), Ok(low)) = (cgroup.read(Knob::Min), cgroup.read(Knob::Low))
            && let Err(error) = systemd.set(&cgroup, Protection::of_files(min, low), true).await
        {
            eprintln!("note: {error}");
        }
        guard.abort();
        plugin.abort();
        supervisor.stop(ends).await;
        Ok(unfinished)
    }
}

impl Restore {
    /// Returns all containers of the runtime by id, with their cgroups where known. The list comes
    /// from this instance of the plugin or from the running instance. `None` if the runtime has
    /// synchronized neither instance.
    async fn told(
        &self,
        containers: &Containers,
        synchronized: bool,
    ) -> Option<HashMap<String, Option<CgroupPath>>> {
        if synchronized {
            let all = containers.all();
            return Some(all.iter().map(|one| (one.id.clone(), one.cgroup.clone())).collect());
        }
        let status = serve::ask(&self.host).await.ok().filter(|status| status.node.synchronized)?;
        Some(status.containers.into_iter().map(|one| (one.id, one.cgroup)).collect())
    }
}

fn failed(error: io::Error, operation: &str, path: &Path) -> Failure {
    Failure::Runtime(
        anyhow::Error::new(error).context(format!("cannot {operation} {}", path.display())),
    )
}

impl Looked {
    /// Searches for all cgroups and containers that the plugin has changed.
    fn new(root: &CgroupRoot, originals: &Originals) -> Self {
        // The paths of changed pods show the cgroup of all pods, even where the search does not
        // find it.
        let known = originals.targets().filter_map(|target| match target {
            Target::Cgroup(path, _) => {
                let pod = PodCgroup::parse(path.as_str())?;
                Some(PodPlace::new(path.clone(), pod.class)?.kubepods().clone())
            }
            Target::Container(_) => None,
        });
        let Found { found, problems } = kubepods::containers(root, known.collect::<BTreeSet<_>>());
        let mut looked = Self {
            unsearched: problems.iter().map(ToString::to_string).collect(),
            ..Self::default()
        };
        match originals.unreadable() {
            0 => {}
            lines => looked.problems.push(format!(
                "/{DIRECTORY}/originals: {lines} lines cannot be read, and what they name keeps its values: correct the \
                 lines, or reboot the node"
            )),
        }
        let containers: HashMap<String, CgroupPath> = found.into_iter().collect();
        for target in originals.targets() {
            match target {
                Target::Container(id) => match containers.get(id) {
                    Some(cgroup) => looked.take(root, originals, target, cgroup),
                    None => _ = looked.missing.insert(id.clone()),
                },
                Target::Cgroup(path, _) => looked.take(root, originals, target, path),
            }
        }
        if containers.is_empty() && looked.unsearched.is_empty() {
            looked
                .unsearched
                .push("found no cgroups of containers below /sys/fs/cgroup".to_owned());
        }
        looked.changed.sort_by(|a, b| a.cgroup.cmp(&b.cgroup));
        looked.ended.sort();
        looked
    }

    /// Takes the values before the restore from an earlier search.
    fn remember(&mut self, earlier: Looked) {
        for changed in &mut self.changed {
            if let Some(former) =
                earlier.changed.iter().find(|former| former.cgroup == changed.cgroup)
            {
                changed.before = former.before;
            }
        }
    }

    fn take(
        &mut self,
        root: &CgroupRoot,
        originals: &Originals,
        target: &Target,
        cgroup: &CgroupPath,
    ) {
        let read = || {
            let open = root.cgroup(cgroup)?;
            match target {
                // Another cgroup has the same path now.
                Target::Cgroup(path, inode) if open.inode()? != *inode => {
                    Err(CgroupError::Gone(path.clone()))
                }
                _ => Values::read(&open),
            }
        };
        let container = match target {
            Target::Container(id) => Some(id.clone()),
            Target::Cgroup(..) => None,
        };
        match read() {
            Ok(before) => {
                let Some(original) = originals.get(target) else { return };
                self.changed.push(Changed { cgroup: cgroup.clone(), container, original, before });
            }
            Err(CgroupError::Gone(_)) => self.ended.push(match target {
                Target::Container(id) => format!("container {}", excerpt(id)),
                Target::Cgroup(path, _) => format!("cgroup {}", printable(&path.to_string())),
            }),
            Err(error) => self.problems.push(error.to_string()),
        }
    }

    /// Resolves the missing containers by the runtime's complete list. A missing container is
    /// either on the list or has ended.
    fn take_word(
        &mut self,
        root: &CgroupRoot,
        originals: &Originals,
        told: &HashMap<String, Option<CgroupPath>>,
    ) {
        for id in std::mem::take(&mut self.missing) {
            match told.get(&id) {
                Some(None) => self.problems.push(format!(
                    "container {}: the runtime has it, its cgroup is unknown",
                    excerpt(&id)
                )),
                Some(Some(cgroup)) => self.take(root, originals, &Target::Container(id), cgroup),
                None => self.ended.push(format!("container {}", excerpt(&id))),
            }
        }
    }

    /// Returns the reason why the command cannot report success although all found targets are
    /// restored. `None` if the command can report success.
    fn unsettled(&self) -> Option<String> {
        // Only the runtime knows whether a container has ended, because its cgroup may be outside
        // the kubelet's cgroups.
        let runtime = "the container runtime did not say whether they have ended".to_owned();
        let elsewhere =
            (!self.missing.is_empty()).then(|| self.unsearched.iter().chain([&runtime]));
        let why: Vec<_> = self
            .problems
            .iter()
            .chain(elsewhere.into_iter().flatten())
            .map(String::as_str)
            .collect();
        (!why.is_empty()).then(|| {
            format!(
                "could not look at all that plimsoll has changed, {} containers among it: {}; expected to read every cgroup, or the \
                 container runtime to say which containers have ended: start the runtime, and call this again",
                self.missing.len(),
                why.into_iter().take(NAMED).collect::<Vec<_>>().join("; ")
            )
        })
    }
}

impl Changed {
    /// Returns whether this is a container whose stored values in the runtime are not updated yet.
    /// Until then [`Originals`] keeps its entry.
    fn is_known_to(&self, originals: &Originals, root: &CgroupRoot) -> bool {
        let Some(id) = &self.container else { return false };
        originals.get(&Target::Container(id.clone())).is_some()
            && !matches!(root.cgroup(&self.cgroup), Err(CgroupError::Gone(_)))
    }

    fn is_back(&self, root: &CgroupRoot) -> bool {
        let held = match root.cgroup(&self.cgroup).and_then(|cgroup| Values::read(&cgroup)) {
            Ok(held) => held,
            // The cgroup was removed meanwhile, so nothing is left to restore.
            Err(CgroupError::Gone(_)) => return true,
            Err(_) => return false,
        };
        let page = crate::cgroup::page_size();
        KNOBS.into_iter().all(|knob| {
            let default = Some(knob.default_value());
            // The plugin does not set memory.high of ancestor cgroups, so any value is accepted.
            (self.container.is_none() && self.original.get(knob).is_none())
                || match (held.get(knob), self.original.get(knob).or(default)) {
                    (Some(held), Some(original)) => held.is_same(original, page),
                    _ => false,
                }
        })
    }
}

impl Looked {
    /// Returns the report: one line per file with a changed value, per missing target and per
    /// raised limit that stays.
    fn report(&self, root: &CgroupRoot, guarded: bool, staying: &[String]) -> String {
        let mut report = String::new();
        for Changed { cgroup, before, .. } in &self.changed {
            let Ok(held) = root.cgroup(cgroup).and_then(|cgroup| Values::read(&cgroup)) else {
                continue;
            };
            for knob in KNOBS {
                if let (Some(before), Some(held)) = (before.get(knob), held.get(knob))
                    && before != held
                {
                    let _ = writeln!(report, "{cgroup} {knob}: {before} -> {held}");
                }
            }
        }
        let missing = self
            .missing
            .iter()
            .map(|id| format!("container {}; its cgroup may have ended", excerpt(id)));
        let not_found: Vec<_> = self
            .ended
            .iter()
            .map(|target| format!("{target}; it has ended"))
            .chain(missing)
            .collect();
        for target in not_found.iter().take(NAMED) {
            let _ = writeln!(report, "not found: {target}");
        }
        if not_found.len() > NAMED {
            let _ = writeln!(report, "not found: {} more", not_found.len() - NAMED);
        }
        for limit in staying {
            let _ = writeln!(report, "stays, as lowering it could kill: {limit}");
        }
        if report.is_empty() && !guarded && self.unsettled().is_none() {
            report.push_str("nothing had to be changed\n");
        }
        report.push_str("plimsoll sets nothing any more, until 'plimsoll restore --undo'\n");
        report
    }
}

//! `plimsoll restore`: back to what would be without the plugin.
//!
//! A mark tells every instance of the plugin, running or started later, to want nothing of anybody; the plugin's own way of
//! bringing containers and cgroups to what they should have then brings them back. Where no instance runs, one runs here
//! for as long as it takes. Here is only looked at what becomes of it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use nri::{Identity, Stub};
use plimsoll::brake;
use plimsoll::cgroup::systemd::Systemd;
use plimsoll::cgroup::watch::Watch;
use plimsoll::cgroup::{CgroupError, CgroupPath, CgroupRoot, Knob};
use plimsoll::config::Config;
use plimsoll::containers::{KNOBS, STAND_ASIDE};
use plimsoll::guard::Record;
use plimsoll::originals::{DIRECTORY, Originals, Target, Values};
use plimsoll::policy::Protection;
use plimsoll::reconcile::container_cgroups;
use plimsoll::units::{Bytes, PageSize};
use tokio::time::{Instant, timeout};

use crate::run::Node;
use crate::{Failure, ResetBrake, Restore, print};

/// How long it may take. A runtime takes some tenths of a second for each container.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often is looked when nothing is heard.
const LOOK: Duration = Duration::from_secs(1);

/// A cgroup that the plugin has changed.
struct Changed {
    cgroup: CgroupPath,
    /// Of a container; else above the containers or beside the pods.
    is_container: bool,
    /// What it should get back.
    original: Values,
    /// What it has at first.
    before: Values,
}

impl ResetBrake {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let was_applied = brake::Record::remove(&self.host)
            .map_err(|error| failed(error, "remove", &self.host.join(DIRECTORY).join(brake::FILE)))?;
        print(format_args!(
            "{}\n",
            if was_applied { "reset: plimsoll acts again, where it runs" } else { "the brake was not applied" }
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Restore {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let mark = self.host.join(STAND_ASIDE);
        if self.undo {
            return match fs::remove_file(&mark) {
                Ok(()) => print(format_args!("undone: plimsoll sets values again, where it runs\n")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    print(format_args!("there is nothing to undo: 'plimsoll restore' was not called\n"))
                }
                Err(error) => Err(failed(error, "remove", &mark)),
            }
            .map(|()| ExitCode::SUCCESS);
        }
        let root =
            CgroupRoot::open(&self.host.join("sys/fs/cgroup")).map_err(|error| Failure::Runtime(error.into()))?;
        let originals =
            Originals::load(&self.host).context("cannot read what cgroups held before").map_err(Failure::Runtime)?;
        let changed = changed(&root, &originals);
        let kubepods = Record::load(&self.host).map(|record| record.cgroup().clone());
        let max = |cgroup: &CgroupPath| root.cgroup(cgroup).and_then(|cgroup| cgroup.read(Knob::Max)).ok();
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
        let left = runtime.block_on(self.wait(&root, &changed, kubepods.as_ref()))?;
        if let (Some(cgroup), Some(before)) = (&kubepods, guarded)
            && let Some(held) = max(cgroup).filter(|held| *held != before)
        {
            print(format_args!("{cgroup} {}: {before} -> {held}\n", Knob::Max))?;
        }
        print(format_args!("{}", report(&root, &changed, kubepods.is_some())))?;
        if left == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        Err(Failure::Runtime(anyhow!(
            "{left} cgroups do not have back what they had within {} s: expected the container runtime, and the plugin where \
             it runs, to answer; see their logs and call this again",
            PATIENCE.as_secs()
        )))
    }

    /// Waits until all is as it was. Tells how many are not.
    ///
    /// `kubepods`: the cgroup that memory was kept from.
    async fn wait(
        &self,
        root: &CgroupRoot,
        changed: &[Changed],
        kubepods: Option<&CgroupPath>,
    ) -> Result<usize, Failure> {
        let (service, tasks) = Node::open(&self.host, Config::default())?.into_service(Box::new(|_| ()));
        let identity = Identity::new("90", "plimsoll").map_err(|error| Failure::Runtime(error.into()))?;
        // Waits for as long as another instance runs, which does it then.
        let stub = Stub::external(identity, service).socket(&self.socket);
        let guard = tokio::spawn(tasks.guard().run());
        let reconciler = tasks.spawn(stub.runtime());
        let plugin = tokio::spawn(stub.run());

        let mut watch = Watch::new().context("start inotify").map_err(Failure::Runtime)?;
        for changed in changed {
            watch.add(root, &changed.cgroup).context("watch cgroups").map_err(Failure::Runtime)?;
        }
        let deadline = Instant::now() + PATIENCE;
        if let Some(cgroup) = kubepods {
            watch.add(root, cgroup).context("watch cgroups").map_err(Failure::Runtime)?;
        }
        let left_of_all = || {
            let guarded = usize::from(Record::load(&self.host).is_some());
            guarded + changed.iter().filter(|changed| !changed.is_back(root)).count()
        };
        let mut left = left_of_all();
        while left > 0 && Instant::now() < deadline {
            // Whatever it is, or nothing, it is looked at again.
            let _ = timeout(LOOK, watch.next()).await;
            left = left_of_all();
        }
        // So that what systemd keeps does not come back.
        let systemd = Systemd::new(&self.host);
        for changed in changed.iter().filter(|changed| !changed.is_container) {
            let [min, low] =
                [changed.original.min, changed.original.low].map(|limit| limit.unwrap_or(Bytes::ZERO.into()));
            let protection = Protection::of_files(min, low);
            if let Ok(cgroup) = root.cgroup(&changed.cgroup)
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
        reconciler.abort();
        Ok(left)
    }
}

fn failed(error: io::Error, operation: &str, path: &Path) -> Failure {
    Failure::Runtime(anyhow::Error::new(error).context(format!("cannot {operation} {}", path.display())))
}

/// What the plugin has changed and is still there.
fn changed(root: &CgroupRoot, originals: &Originals) -> Vec<Changed> {
    let containers: HashMap<String, CgroupPath> = container_cgroups(root).into_iter().collect();
    let mut changed: Vec<_> = originals
        .targets()
        .filter_map(|target| {
            let (cgroup, is_container) = match target {
                Target::Container(id) => (containers.get(id)?.clone(), true),
                Target::Cgroup(path, _) => (path.clone(), false),
            };
            let open = root.cgroup(&cgroup).ok()?;
            if let Target::Cgroup(_, inode) = target
                && open.inode().ok()? != *inode
            {
                return None;
            }
            let before = Values::read(&open).ok()?;
            Some(Changed { cgroup, is_container, original: originals.get(target)?, before })
        })
        .collect();
    changed.sort_by(|a, b| a.cgroup.cmp(&b.cgroup));
    changed
}

impl Changed {
    fn is_back(&self, root: &CgroupRoot) -> bool {
        let held = match root.cgroup(&self.cgroup).and_then(|cgroup| Values::read(&cgroup)) {
            Ok(held) => held,
            // It has ended meanwhile.
            Err(CgroupError::Gone(_)) => return true,
            Err(_) => return false,
        };
        let page = PageSize::of_this_machine();
        KNOBS.into_iter().all(|knob| {
            let default = Some(knob.default_value());
            // Above containers memory.high is nobody's here.
            (!self.is_container && self.original.get(knob).is_none())
                || match (held.get(knob), self.original.get(knob).or(default)) {
                    (Some(held), Some(original)) => held.is_same(original, page),
                    _ => false,
                }
        })
    }
}

/// One line for each file that has another value than before.
fn report(root: &CgroupRoot, changed: &[Changed], guarded: bool) -> String {
    let mut report = String::new();
    for Changed { cgroup, before, .. } in changed {
        let Ok(held) = root.cgroup(cgroup).and_then(|cgroup| Values::read(&cgroup)) else { continue };
        for knob in KNOBS {
            if let (Some(before), Some(held)) = (before.get(knob), held.get(knob))
                && before != held
            {
                let _ = writeln!(report, "{cgroup} {knob}: {before} -> {held}");
            }
        }
    }
    if report.is_empty() && !guarded {
        report.push_str("nothing had to be changed\n");
    }
    report.push_str("plimsoll sets nothing any more, until 'plimsoll restore --undo'\n");
    report
}

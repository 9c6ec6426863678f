//! The commands `plimsoll restore` and `plimsoll reset-brake`.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::guard::GuardRecord;
use plimsoll_core::units::Knob;

use crate::cgroup::CgroupRoot;
use crate::commands::failure::Failure;
use crate::commands::output::print;
use crate::commands::restore::arguments::{ResetBrake, Restore};
use crate::commands::restore::instance::{RunningPlugin, wait_for_plugin};
use crate::commands::restore::report::describe_unfinished;
use crate::commands::restore::survey::Survey;
use crate::commands::restore::wait::RestoreWait;
use crate::state::originals::{DIRECTORY, Originals};
use crate::state::settings::RESTORE_MARKER;
use crate::state::{brake, guard_record, raised};

impl ResetBrake {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let was_applied = brake::Record::remove(&self.host).map_err(|error| {
            failed(error, "remove", &self.host.join(DIRECTORY).join(brake::FILE))
        })?;
        print(format_args!(
            "{}\n",
            if was_applied {
                "the brake was reset: a running plugin sets values again"
            } else {
                "the brake was not applied"
            }
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Restore {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let mark = self.host.join(RESTORE_MARKER);
        if self.undo {
            return undo(&mark);
        }
        let root = CgroupRoot::open(&self.host.join("sys/fs/cgroup"))
            .map_err(|error| Failure::Runtime(error.into()))?;
        let originals = load_originals(&self.host)?;
        let before = Survey::new(&root, &originals);
        let (kubepods, problem) = match guard_record::read(&self.host) {
            Ok(record) => (record, None),
            Err(error) => (None, Some(format!("/{}: {error}", GuardRecord::PATH))),
        };
        let kubepods = kubepods.map(|record| record.cgroup);
        let max = |cgroup: &CgroupPath| {
            root.cgroup(cgroup).and_then(|cgroup| cgroup.read(Knob::Max)).ok()
        };
        let guarded = kubepods.as_ref().and_then(max);
        make_mark(&mark)?;

        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the asynchronous runtime")
            .map_err(Failure::Runtime)?;
        let plugin = runtime.block_on(wait_for_plugin(&self.host));
        // Load the original values again, because the running plugin may have changed more values
        // before it noticed the marker file.
        let originals = load_originals(&self.host)?;
        let mut survey = Survey::new(&root, &originals);
        survey.problems.extend(problem);
        survey.copy_values_before(before);
        let staying = raised::staying(&root, originals.raised_limits());
        let wait = RestoreWait {
            host: &self.host,
            socket: &self.socket,
            root: &root,
            originals: &originals,
            kubepods: kubepods.as_ref(),
            has_plugin: plugin != RunningPlugin::Absent,
        };
        let left = runtime.block_on(wait.run(&mut survey))?;
        if let RunningPlugin::Unknown(_) = plugin
            && let RunningPlugin::Unknown(why) = runtime.block_on(wait_for_plugin(&self.host))
        {
            survey.unknown_plugin = Some(why);
        }
        if let (Some(cgroup), Some(before)) = (&kubepods, guarded)
            && let Some(held) = max(cgroup).filter(|held| *held != before)
        {
            print(format_args!("{cgroup} {}: {before} -> {held}\n", Knob::Max))?;
        }
        print(format_args!("{}", survey.write_report(&root, kubepods.is_some(), &staying)))?;
        conclude(left, &survey)
    }
}

/// Returns the result of the command. `left` is the number of cgroups and containers that the
/// command has not restored.
fn conclude(left: usize, survey: &Survey) -> Result<ExitCode, Failure> {
    let why: Vec<_> = (left > 0)
        .then(|| describe_unfinished(left))
        .into_iter()
        .chain(survey.describe_unknown_plugin())
        .chain(survey.describe_unresolved())
        .collect();
    if why.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        Err(Failure::Runtime(anyhow!(why.join("; "))))
    }
}

/// Removes the marker file, so that the plugin sets values again.
fn undo(mark: &Path) -> Result<ExitCode, Failure> {
    match fs::remove_file(mark) {
        Ok(()) => print(format_args!("restore was undone: a running plugin sets values again\n")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            print(format_args!("there is nothing to undo: 'plimsoll restore' was not called\n"))
        }
        Err(error) => Err(failed(error, "remove", mark)),
    }
    .map(|()| ExitCode::SUCCESS)
}

/// Creates the marker file, which makes every instance of the plugin restore the original values.
fn make_mark(mark: &Path) -> Result<(), Failure> {
    if let Some(directory) = mark.parent() {
        fs::create_dir_all(directory).map_err(|error| failed(error, "make", directory))?;
    }
    fs::write(mark, "").map_err(|error| failed(error, "make", mark))
}

fn load_originals(host: &Path) -> Result<Originals, Failure> {
    Originals::load(host)
        .context("cannot read the original values of cgroups")
        .map_err(Failure::Runtime)
}

fn failed(error: io::Error, operation: &str, path: &Path) -> Failure {
    Failure::Runtime(
        anyhow::Error::new(error).context(format!("cannot {operation} {}", path.display())),
    )
}

//! The plan of an installation or removal: the actions in their order, each with a reason.

use std::fmt;

use plimsoll_core::units::excerpt;

use crate::commands::explain::wrap;
use crate::host::runtime::kind::RuntimeProduct;
use crate::host::version::Version;

/// The program that starts the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallMode {
    /// systemd starts the plugin as a service, which connects to the runtime.
    External,
    /// The runtime launches the plugin from its plugin directory.
    Launched,
}

/// The reason why there is no plan.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub(super) String);

/// A single action of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write a file, or replace it atomically.
    Write {
        /// Absolute path on the node.
        path: String,
        /// The new content.
        content: Vec<u8>,
        /// The permission bits.
        mode: u32,
    },
    /// Remove a file.
    Remove(String),
    /// Remove a directory and its content.
    RemoveAll(String),
    /// Remove a directory if it is empty.
    RemoveEmpty(String),
    /// Call `plimsoll restore`, which restores the original values of every cgroup.
    Restore,
    /// Call `systemctl`.
    Systemctl(Vec<String>),
    /// End the plugin's process with SIGTERM, if the plugin runs.
    Terminate(String),
    /// Send SIGUSR2 to the plugin's process, so that the process executes the program that is now
    /// installed.
    Replace(String),
    /// Check that the runtime's configuration files switch NRI on. Contains the runtime, and its
    /// version if known.
    CheckNri(RuntimeProduct, Option<Version>),
    /// Wait until the runtime listens at the NRI socket.
    AwaitRuntime,
    /// Wait until a process of this program holds the plugin's lock.
    AwaitPlugin(String),
    /// Wait until the plugin reports that it is synchronized with the runtime.
    AwaitSynchronized,
    /// Wait until no process holds the plugin's lock.
    AwaitExit,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { path, .. } => write!(f, "write {}", excerpt(path)),
            Self::Remove(path) | Self::RemoveAll(path) => write!(f, "remove {}", excerpt(path)),
            Self::RemoveEmpty(path) => write!(f, "remove {} if it is empty", excerpt(path)),
            Self::Restore => f.write_str("restore the original values of all cgroups"),
            Self::Systemctl(words) => write!(f, "systemctl {}", words.join(" ")),
            Self::Terminate(program) => write!(f, "stop the process of {}", excerpt(program)),
            Self::Replace(program) => write!(f, "replace the running {}", excerpt(program)),
            Self::CheckNri(..) => {
                f.write_str("check that NRI is on in the runtime's configuration")
            }
            Self::AwaitRuntime => f.write_str("wait for the runtime's NRI socket"),
            Self::AwaitPlugin(program) => write!(f, "wait for {} to run", excerpt(program)),
            Self::AwaitSynchronized => {
                f.write_str("wait for the plugin to be synchronized with the runtime")
            }
            Self::AwaitExit => f.write_str("wait for the plugin to end"),
        }
    }
}

/// An action and the actions that undo it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanStep {
    /// The action.
    pub action: Action,
    /// The reason, shown to the user.
    pub why: String,
    /// The actions that undo the step, in this order. The list omits file changes, because
    /// [`Executor::execute`](crate::commands::install::Executor::execute) returns the states of
    /// changed files.
    pub(super) undo: Vec<Action>,
    /// Alternative actions to execute after all steps are undone. After the first successful
    /// action, the plan skips the others.
    pub(super) afterwards: Vec<Action>,
}

/// The steps of an installation or removal, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps. Empty if nothing has to be done.
    pub steps: Vec<PlanStep>,
    /// Notes for the user. Each note names something that stays unchanged, with the reason.
    pub notes: Vec<String>,
}

impl Plan {
    pub(super) fn add(&mut self, action: Action, why: impl Into<String>) -> &mut PlanStep {
        self.steps.push(PlanStep {
            action,
            why: why.into(),
            undo: Vec::new(),
            afterwards: Vec::new(),
        });
        self.steps.last_mut().expect("one was just added")
    }

    pub(super) fn systemctl(&mut self, words: &[&str], why: impl Into<String>) -> &mut PlanStep {
        self.add(systemctl(words), why)
    }

    /// Adds a `systemctl daemon-reload` after changes of unit files. To undo this step, the plan
    /// reloads once more, because undoing the other steps changes the unit files again.
    pub(super) fn reload(&mut self) {
        let step = self.systemctl(&["daemon-reload"], "systemd must read the changed files");
        step.afterwards = vec![systemctl(&["daemon-reload"])];
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for PlanStep { action, why, .. } in &self.steps {
            wrap(f, 2, &action.to_string())?;
            wrap(f, 6, why)?;
        }
        for note in &self.notes {
            wrap(f, 2, &format!("note: {note}"))?;
        }
        Ok(())
    }
}

pub(super) fn systemctl(words: &[&str]) -> Action {
    Action::Systemctl(words.iter().map(|word| (*word).to_owned()).collect())
}

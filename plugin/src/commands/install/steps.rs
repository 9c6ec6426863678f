//! Steps that the plans of an installation and of a removal have in common.

use crate::commands::install::facts::InstallFacts;
use crate::commands::install::paths::{ENABLED, SERVICE, UNIT};
use crate::commands::install::plan::{Action, Plan, PlanStep, systemctl};
use crate::state::originals;

/// The reason that a plan shows for [`Action::AwaitRuntime`].
pub(super) const CONNECT: &str = "plugins connect to this socket";

/// The reason that a plan shows for [`Action::AwaitSynchronized`].
pub(super) const SYNCHRONIZED: &str = "from then on containers get their values";

impl InstallFacts {
    /// Adds the steps that disable and stop the service.
    pub(super) fn disable(&self, plan: &mut Plan, why: &str) {
        if self.is_enabled
            && !self.is_packaged
            && !self.files.contains_key(UNIT)
            && !self.is_external()
        {
            // `systemctl disable` fails for a unit that does not exist.
            plan.add(Action::Remove(ENABLED.to_owned()), "a removed package has left this link");
            return;
        }
        if self.is_enabled || self.is_external() {
            let step = plan.systemctl(&["disable", "--now", SERVICE], why);
            step.undo =
                self.is_enabled.then(|| systemctl(&["enable", SERVICE])).into_iter().collect();
            let start = self.is_external().then(|| systemctl(&["start", "--no-block", SERVICE]));
            step.afterwards = start.into_iter().collect();
        }
    }

    /// Adds a restart of the runtime. To undo this step, the plan restarts the runtime once more.
    pub(super) fn restart_runtime<'p>(&self, plan: &'p mut Plan, why: &str) -> &'p mut PlanStep {
        let step = plan.systemctl(&["restart", self.service()], why);
        step.afterwards = vec![systemctl(&["restart", self.service()])];
        step
    }

    /// Adds a restart of the runtime if plugins cannot connect to its NRI socket yet.
    pub(super) fn restart_if_unserved(&self, plan: &mut Plan) {
        let why = match &self.why_off {
            Some(_) => "the runtime reads its configuration at its start; containers keep running",
            None if self.is_served => return,
            None => "NRI is on in the configuration, but not served yet; containers keep running",
        };
        self.restart_runtime(plan, why);
        plan.add(Action::AwaitRuntime, CONNECT);
    }

    /// Returns the actions that undo a start of the plugin. If the plugin had neither a process nor
    /// stored state before the plan, the actions also restore all values and remove the state.
    pub(super) fn undo_start(&self, end: Action) -> Vec<Action> {
        let state = format!("/{}", originals::DIRECTORY);
        if self.process.is_some() || self.files.contains_key(&state) {
            return vec![end];
        }
        vec![
            Action::Restore,
            end,
            Action::AwaitExit,
            Action::RemoveAll(state),
            Action::Remove(self.lock.clone()),
        ]
    }

    pub(super) fn write(&self, path: &str, content: &[u8], mode: u32) -> Action {
        Action::Write { path: path.to_owned(), content: content.to_owned(), mode }
    }
}

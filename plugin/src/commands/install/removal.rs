//! The plan of `plimsoll uninstall`.

use crate::commands::install::facts::InstallFacts;
use crate::commands::install::paths::{
    CONFIG_TEXT, CONTAINERD_DROP_IN, DIRECTORIES, PROGRAM, UNIT, UNIT_DROP_INS, switch_files,
};
use crate::commands::install::plan::{Action, Plan, Refusal, systemctl};
use crate::host::runtime::kind::RuntimeProduct;
use crate::state::originals;
use crate::state::settings::RESTORE_MARKER;

impl InstallFacts {
    /// Returns the plan of `plimsoll uninstall`. The plan is empty if the plugin is not installed.
    ///
    /// # Errors
    ///
    /// Fails if neither systemd nor the runtime started the running plugin.
    pub fn plan_removal(&self) -> Result<Plan, Refusal> {
        let state = format!("/{}", originals::DIRECTORY);
        self.check_process()?;
        let mut plan = Plan::default();
        if self.is_packaged {
            plan.notes.push(
                "files of a package stay for the package manager, and your own settings stay, too"
                    .to_owned(),
            );
        }
        self.restore_values(&mut plan, &state);
        self.stop_plugin(&mut plan);
        let has_switch = self.remove_files(&mut plan);
        if has_switch {
            self.restart_runtime(
                &mut plan,
                "NRI is off again, as before the installation; containers keep running",
            );
        }
        self.remove(&mut plan, &self.lock, "the lock file of the plugin");
        if plan.steps.len() == 1 && !self.has(&state) {
            plan.steps.clear();
            return Ok(plan);
        }
        let imported = self.imported_switch().filter(|path| self.has(path));
        let imported = imported.iter().filter_map(|path| Some(path.rsplit_once('/')?.0));
        for path in imported.chain(DIRECTORIES) {
            plan.add(Action::RemoveEmpty(path.to_owned()), "no other program has files there");
        }
        // Remove the plugin's state last, because the plan cannot undo this step.
        plan.add(Action::RemoveAll(state), "the plugin's state, with the original values");
        Ok(plan)
    }

    /// Returns whether the node has this file or directory.
    fn has(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }

    /// If the node has the file, adds the step that removes the file.
    fn remove(&self, plan: &mut Plan, path: &str, why: &str) {
        if self.has(path) {
            plan.add(Action::Remove(path.to_owned()), why);
        }
    }

    /// Adds the step that restores all original values.
    fn restore_values(&self, plan: &mut Plan, state: &str) {
        let step = plan
            .add(Action::Restore, "by plimsoll restore; if this fails, nothing else is changed");
        if !self.stands_aside {
            step.undo = vec![Action::Remove(format!("/{RESTORE_MARKER}"))];
            step.undo.extend((!self.has(state)).then(|| Action::RemoveEmpty(state.to_owned())));
        }
    }

    /// Adds the steps that stop the plugin and remove the programs that the runtime launches.
    fn stop_plugin(&self, plan: &mut Plan) {
        self.disable(plan, "systemd stops the service, and does not start it at boot any more");
        for path in &self.launched {
            plan.add(Action::Remove(path.clone()), "the program that the runtime launches");
        }
        if let Some(process) = self.process.as_ref().filter(|_| !self.is_external()) {
            let step = plan.add(
                Action::Terminate(process.file().to_owned()),
                "the plugin stops; the runtime continues without it",
            );
            step.afterwards = vec![systemctl(&["restart", self.service()])];
            plan.add(Action::AwaitExit, "the last step removes its state");
        }
    }

    /// Adds the steps that remove the service, the program, the configuration and the files that
    /// switch NRI on. Returns whether the node has a file that switches NRI on.
    fn remove_files(&self, plan: &mut Plan) -> bool {
        let has_unit = !self.uses_package() && self.has(UNIT);
        if !self.uses_package() {
            self.remove(plan, UNIT, "the service");
            self.remove(plan, PROGRAM, "the program");
        }
        let is_installed = |_: &String| !self.is_packaged;
        let drop_ins = self.files.keys().filter(|path| path.starts_with(UNIT_DROP_INS)).cloned();
        let drop_ins: Vec<_> = drop_ins.filter(is_installed).collect();
        for path in &drop_ins {
            self.remove(plan, path, "your own settings of the service");
        }
        for path in self.configurations().into_iter().filter(is_installed) {
            let why = match self.files.get(&path).is_some_and(|content| content != CONFIG_TEXT) {
                true => {
                    "the plugin's configuration, with your changes: keep a copy if you need them"
                }
                false => "the plugin's configuration",
            };
            self.remove(plan, &path, why);
        }
        let switches = RuntimeProduct::ALL.into_iter().flat_map(switch_files);
        let switches = switches.map(|path| (*path).to_owned());
        let switches: Vec<_> = switches.chain(self.imported_switch()).collect();
        for path in &switches {
            self.remove(plan, path, "it switches NRI on");
        }
        if has_unit || self.has(CONTAINERD_DROP_IN) || !drop_ins.is_empty() {
            plan.reload();
        }
        switches.iter().any(|path| self.has(path))
    }
}

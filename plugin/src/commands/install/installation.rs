//! The plan of `plimsoll install`.

use plimsoll_core::units::excerpt;

use crate::commands::install::facts::InstallFacts;
use crate::commands::install::paths::{CONFIG_TEXT, NAME, PROGRAM, SERVICE, UNIT, UNIT_TEXT};
use crate::commands::install::plan::{Action, InstallMode, Plan, Refusal, systemctl};
use crate::commands::install::process::PluginProcess;
use crate::commands::install::steps::{CONNECT, SYNCHRONIZED};
use crate::config::DROP_INS;

/// The reason that a plan shows for a step that replaces the running plugin.
const RECONNECTION: &str = "the plugin reconnects once; new containers get their values after that";

impl InstallFacts {
    /// Returns the plan of `plimsoll install`. The plan is empty if everything is installed.
    ///
    /// # Errors
    ///
    /// Fails if `plimsoll install` did not install the running plugin, or if the runtime does not
    /// allow the installation.
    pub fn plan_installation(&self, mode: InstallMode) -> Result<Plan, Refusal> {
        let mut plan = Plan::default();
        self.check_process()?;
        if mode == InstallMode::External {
            self.check_connections("use --mode launched, or change this setting")?;
            self.check_unit()?;
        }
        self.write_program(&mut plan);
        self.write_configuration(&mut plan, mode);
        let mut reload = match mode {
            InstallMode::External => self.write_unit(&mut plan),
            InstallMode::Launched => self.write_launched_program(&mut plan),
        };
        reload |= self.switch_on_if_off(&mut plan)?;
        if reload {
            plan.reload();
        }
        let launched = self.launched_program();
        let replaced = plan.steps.iter().any(|step| {
            matches!(&step.action, Action::Write { path, .. }
                if path == PROGRAM || path == UNIT || *path == launched)
        });
        match mode {
            InstallMode::External => self.start_service(&mut plan, replaced),
            InstallMode::Launched => self.launch_program(&mut plan, replaced),
        }
        Ok(plan)
    }

    /// Returns whether the program at this path on the node is missing, or differs from the program
    /// to install.
    fn is_new(&self, path: &str) -> bool {
        self.files.get(path) != Some(&self.program)
    }

    /// Adds the step that writes the program.
    fn write_program(&self, plan: &mut Plan) {
        if self.uses_package() {
            plan.notes.push(
                "a package has installed the program: upgrade it with the package manager"
                    .to_owned(),
            );
        } else if self.is_new(PROGRAM) {
            let why = match self.files.contains_key(PROGRAM) {
                true => "the program, in another version than the installed one",
                false => "the program",
            };
            plan.add(self.write(PROGRAM, &self.program, 0o755), why);
        }
    }

    /// Adds the step that writes the plugin's configuration, unless the node has one.
    fn write_configuration(&self, plan: &mut Plan, mode: InstallMode) {
        match self.configurations().iter().find(|path| self.files.contains_key(*path)) {
            Some(path) if self.files[path] != CONFIG_TEXT => {
                plan.notes.push(format!("{} stays unchanged", excerpt(path)))
            }
            Some(_) => {}
            None => {
                let directory = match mode {
                    InstallMode::Launched => {
                        self.settings.config_path.as_deref().unwrap_or(DROP_INS)
                    }
                    InstallMode::External => DROP_INS,
                };
                let path = format!("{}/{NAME}.conf", directory.trim_end_matches('/'));
                plan.add(
                    self.write(&path, CONFIG_TEXT, 0o644),
                    "the plugin's configuration, with the defaults",
                );
            }
        }
    }

    /// Adds the steps that write the systemd unit and remove launched programs. Returns whether
    /// systemd must read its unit files again.
    fn write_unit(&self, plan: &mut Plan) -> bool {
        let mut reload = false;
        if !self.uses_package() && self.files.get(UNIT).map(Vec::as_slice) != Some(UNIT_TEXT) {
            let why = match self.files.contains_key(UNIT) {
                true => {
                    "the service, instead of the existing unit; put your own settings into a \
                     drop-in"
                }
                false => "the service",
            };
            plan.add(self.write(UNIT, UNIT_TEXT, 0o644), why);
            reload = true;
        }
        for path in &self.launched {
            plan.add(Action::Remove(path.clone()), "only one plugin may run on the node");
        }
        reload
    }

    /// Adds the steps that remove the service and write the program that the runtime launches.
    /// Returns whether systemd must read its unit files again.
    fn write_launched_program(&self, plan: &mut Plan) -> bool {
        let launched = self.launched_program();
        let mut reload = false;
        self.disable(plan, "only one plugin may run on the node");
        if self.files.contains_key(UNIT) && !self.uses_package() {
            plan.add(Action::Remove(UNIT.to_owned()), "the runtime launches the plugin");
            reload = true;
        }
        for path in self.launched.iter().filter(|path| **path != launched) {
            plan.add(Action::Remove(path.clone()), "only one plugin may run on the node");
        }
        if self.is_new(&launched) {
            plan.add(
                self.write(&launched, &self.program, 0o755),
                "the program that the runtime launches",
            );
        }
        reload
    }

    /// Adds the steps that start or restart the service. `replaced` is true if earlier steps write
    /// a new program or unit.
    fn start_service(&self, plan: &mut Plan, replaced: bool) {
        if let Some(process) = self.process.as_ref().filter(|_| self.is_launched) {
            // A runtime launches plugins only when it starts, so an undo restarts the runtime.
            let step = plan.add(
                Action::Terminate(process.file().to_owned()),
                "the service replaces it; containers keep their values",
            );
            step.afterwards = vec![systemctl(&["restart", self.service()])];
        }
        self.restart_if_unserved(plan);
        if !self.is_enabled {
            let step = plan.systemctl(&["enable", SERVICE], "systemd starts the service at boot");
            step.undo = vec![systemctl(&["disable", SERVICE])];
        }
        let is_current = self.process.as_ref().is_some_and(|process| !process.is_replaced());
        if !self.is_external() {
            let step = plan.systemctl(
                &["start", SERVICE],
                "the command waits until the plugin is synchronized with the runtime",
            );
            step.undo = self.undo_start(systemctl(&["stop", SERVICE]));
        } else if replaced || !is_current {
            let step = plan.systemctl(&["restart", SERVICE], RECONNECTION);
            step.afterwards = vec![systemctl(&["restart", "--no-block", SERVICE])];
        }
    }

    /// Adds the steps that make the runtime launch the program, or make the running plugin execute
    /// it. `replaced` is true if earlier steps write a new program.
    fn launch_program(&self, plan: &mut Plan, replaced: bool) {
        let launched = self.launched_program();
        let has_new_program =
            replaced || self.process.as_ref().is_some_and(PluginProcess::is_replaced);
        let is_unserved = self.takes_connections() && !self.is_served;
        if self.why_off.is_some()
            || is_unserved
            || !self.is_launched
            || has_new_program && !self.may_be_replaced()
        {
            let step = self.restart_runtime(
                plan,
                "the runtime launches plugins only at its start; containers keep running",
            );
            step.undo = self.undo_start(Action::Terminate(launched.clone()));
            if self.takes_connections() {
                plan.add(Action::AwaitRuntime, CONNECT);
            }
            plan.add(Action::AwaitPlugin(launched), "the runtime launches the plugin");
            plan.add(Action::AwaitSynchronized, SYNCHRONIZED);
        } else if has_new_program {
            let step = plan.add(Action::Replace(launched.clone()), RECONNECTION);
            // If the new program ends right after its start, no process remains that can execute
            // the old program. In this case, restart the runtime.
            let restart = systemctl(&["restart", self.service()]);
            step.afterwards = vec![Action::Replace(launched.clone()), restart];
            plan.add(Action::AwaitPlugin(launched), "the same process runs the new version");
            plan.add(Action::AwaitSynchronized, SYNCHRONIZED);
        }
    }

    /// Returns the plan of `plimsoll install --nri-only`, which only switches NRI on. The plan is
    /// empty if NRI is on and the runtime serves the NRI socket.
    ///
    /// # Errors
    ///
    /// Fails if plugins cannot connect to the runtime, or if NRI cannot be switched on.
    pub fn plan_nri(&self) -> Result<Plan, Refusal> {
        let mut plan = Plan::default();
        self.check_connections("change this setting, or let the runtime launch the plugin")?;
        if self.switch_on_if_off(&mut plan)? {
            plan.reload();
        }
        self.restart_if_unserved(&mut plan);
        Ok(plan)
    }
}

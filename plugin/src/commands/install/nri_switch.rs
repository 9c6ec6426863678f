//! The files that switch NRI on in the runtime.

use plimsoll_core::units::excerpt;

use crate::commands::install::facts::InstallFacts;
use crate::commands::install::nri_off::WhyOff;
use crate::commands::install::paths::{
    CONTAINERD_CONFIG, CONTAINERD_DROP_IN, CONTAINERD_SWITCH, CRIO_SWITCH,
};
use crate::commands::install::plan::{Action, Plan, Refusal};
use crate::host::runtime::containerd::containerd_config;
use crate::host::runtime::kind::CONTAINERD;

impl InstallFacts {
    /// Adds the steps that switch NRI on and check NRI, if NRI is off. Returns whether systemd has
    /// to read its unit files again.
    pub(super) fn switch_on_if_off(&self, plan: &mut Plan) -> Result<bool, Refusal> {
        let Some(why) = &self.why_off else { return Ok(false) };
        let reload = self.switch_on(plan, why)?;
        plan.add(
            Action::CheckNri(self.service(), self.version),
            "a file that the runtime reads later may switch NRI off",
        );
        Ok(reload)
    }

    /// Adds the files that switch NRI on. Returns whether systemd has to read its unit files again.
    fn switch_on(&self, plan: &mut Plan, why: &WhyOff) -> Result<bool, Refusal> {
        let settings = &self.settings;
        if why.is_unsupported() {
            return Err(Refusal(format!(
                "{why}: upgrade it to {} or newer, and call the command again",
                self.kind.on_from
            )));
        }
        if !settings.problems.is_empty() || !settings.unread.is_empty() {
            let problems = [&settings.problems[..], &settings.unread].concat().join("; ");
            return Err(Refusal(format!(
                "NRI is {why}, and parts of the configuration are not understood: {problems}"
            )));
        }
        let header = "# Written by 'plimsoll install', removed by 'plimsoll uninstall'.\n";
        if self.kind.name != CONTAINERD.name {
            let text = format!("{header}[crio.nri]\nenable_nri = true\n");
            plan.add(self.write(CRIO_SWITCH, text.as_bytes(), 0o644), format!("NRI is {why}"));
            return Ok(false);
        }
        if why.is_disabled_plugin() {
            return Err(Refusal(format!(
                "NRI is {why}, and no other file can undo this: remove the entry, and call the \
                 command again"
            )));
        }
        self.switch_on_containerd(plan, why, header)
    }

    /// Adds the files that switch NRI on in containerd. Returns whether systemd has to read its
    /// unit files again.
    fn switch_on_containerd(
        &self,
        plan: &mut Plan,
        why: &WhyOff,
        header: &str,
    ) -> Result<bool, Refusal> {
        let settings = &self.settings;
        // The file format version. Without any configuration file, the new files use version 2. A
        // file without a version has version 1.
        let form = match (settings.form, settings.files) {
            (Some(form), _) => form,
            (None, 0) => 2,
            (None, _) => 1,
        };
        if form < 2 {
            return Err(Refusal(format!(
                "NRI is {why}, and {} has no 'version = 2' or newer: convert the file with \
                 'containerd config migrate', and call the command again",
                excerpt(&settings.main)
            )));
        }
        // In containerd 1.7 this section replaces the NRI sections of earlier files, so copy the
        // operator's other keys into it.
        let mut section = settings.section.clone();
        section.insert(CONTAINERD.switch.0.to_owned(), toml::Value::Boolean(false));
        let plugins = toml::Table::from_iter([(
            "io.containerd.nri.v1.nri".to_owned(),
            toml::Value::Table(section),
        )]);
        let table = toml::Table::from_iter([
            ("version".to_owned(), toml::Value::Integer(form)),
            ("plugins".to_owned(), toml::Value::Table(plugins)),
        ]);
        let text = format!("{header}{table}").into_bytes();
        if let Some(path) = self.imported_switch() {
            plan.add(
                self.write(&path, &text, 0o644),
                format!("NRI is {why}; {} imports this file", excerpt(&settings.main)),
            );
            return Ok(false);
        }
        let Some(command) = &self.command else {
            return Err(Refusal(format!(
                "NRI is {why}, and its configuration imports no directory: expected a \
                 containerd.service, to start containerd with a second configuration"
            )));
        };
        let (operators, others) = containerd_config(command).map_err(Refusal)?;
        plan.add(self.write(CONTAINERD_SWITCH, &text, 0o644), format!("NRI is {why}"));
        self.add_second_configuration(plan, form, &operators, header);
        let drop_in = format!(
            "{header}[Service]\nExecStart=\nExecStart={others} --config {CONTAINERD_CONFIG}\n"
        );
        let why = format!(
            "starts containerd with this configuration; {} stays unchanged",
            excerpt(&operators)
        );
        plan.add(self.write(CONTAINERD_DROP_IN, drop_in.as_bytes(), 0o644), why);
        Ok(true)
    }

    /// Adds the second configuration of containerd. The second configuration imports the operator's
    /// file and then the file that switches NRI on. `form` is the file format version.
    fn add_second_configuration(&self, plan: &mut Plan, form: i64, operators: &str, header: &str) {
        // containerd fails if an imported file does not exist, but a pattern may match no file yet.
        // Only an import that contains `*` is a pattern, so `.tom[*l]` stands for `.toml`.
        let operators_import = match self.settings.files {
            0 => operators.strip_suffix(".toml").map(|stem| format!("{stem}.tom[*l]")),
            _ => Some(operators.to_owned()),
        };
        let imports = operators_import.into_iter().chain([CONTAINERD_SWITCH.to_owned()]);
        let imports = imports.map(toml::Value::String).collect();
        let config = toml::Table::from_iter([
            ("version".to_owned(), toml::Value::Integer(form)),
            ("imports".to_owned(), toml::Value::Array(imports)),
        ]);
        let operators_file = excerpt(operators);
        let why = match self.settings.files {
            0 => format!(
                "imports {operators_file} if you create it with 'version = {form}', and then the \
                 file that switches NRI on"
            ),
            _ => format!(
                "imports {operators_file}, which imports no directory, and then the file that \
                 switches NRI on"
            ),
        };
        let text = format!("{header}{config}").into_bytes();
        plan.add(self.write(CONTAINERD_CONFIG, &text, 0o644), why);
    }
}

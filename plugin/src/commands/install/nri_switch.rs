//! The files that switch NRI on in the runtime.

use plimsoll_core::units::excerpt;

use crate::commands::install::facts::InstallFacts;
use crate::commands::install::nri_off::WhyOff;
use crate::commands::install::paths::{
    CONTAINERD_CONFIG, CONTAINERD_DROP_IN, CONTAINERD_SWITCH, CRIO_SWITCH,
};
use crate::commands::install::plan::{Action, Plan, Refusal};
use crate::host::runtime::containerd::{self, containerd_config};
use crate::host::runtime::crio;
use crate::host::runtime::kind::RuntimeProduct;

impl InstallFacts {
    /// If NRI is off, adds the steps that switch NRI on and check that NRI is on. Returns whether
    /// systemd must read its unit files again.
    pub(super) fn switch_on_if_off(&self, plan: &mut Plan) -> Result<bool, Refusal> {
        let Some(why) = &self.why_off else { return Ok(false) };
        let reload = self.switch_on(plan, why)?;
        plan.add(
            Action::CheckNri(self.kind.product, self.version),
            "a file that the runtime reads later may switch NRI off",
        );
        Ok(reload)
    }

    /// Adds the files that switch NRI on. Returns whether systemd must read its unit files again.
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
        match self.kind.product {
            RuntimeProduct::Containerd => self.switch_on_containerd(plan, why, header),
            RuntimeProduct::Crio => {
                let text = format!("{header}{}", crio::switch_on()).into_bytes();
                plan.add(self.write(CRIO_SWITCH, &text, 0o644), format!("NRI is {why}"));
                Ok(false)
            }
        }
    }

    /// Adds the files that switch NRI on in containerd. Returns whether systemd must read its unit
    /// files again.
    fn switch_on_containerd(
        &self,
        plan: &mut Plan,
        why: &WhyOff,
        header: &str,
    ) -> Result<bool, Refusal> {
        if why.is_disabled_plugin() {
            return Err(Refusal(format!(
                "NRI is {why}, and no other file can undo this: remove the entry, and call the \
                 command again"
            )));
        }
        let settings = &self.settings;
        let form = settings.form;
        if !containerd::has_switch(self.version, form) {
            return Err(Refusal(format!(
                "NRI is {why}, and {} has no 'version = 2' or newer: convert the file with \
                 'containerd config migrate' of containerd 2.0 or newer, and call the command \
                 again",
                excerpt(&settings.main)
            )));
        }
        let table = containerd::switch_on(form, settings.plugin, &settings.section);
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
    /// file and then the file that switches NRI on. `form` is the version of containerd's
    /// configuration format.
    fn add_second_configuration(&self, plan: &mut Plan, form: i64, operators: &str, header: &str) {
        // containerd fails if an imported file does not exist, but not if an imported pattern
        // matches no file. Only an import that contains `*` counts as a pattern, so write
        // `.tom[*l]` instead of `.toml`.
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::commands::install::{Executor as _, SystemExecutor};
    use crate::host::runtime::nri_settings::NriSettings;
    use crate::host::version::Version;

    const OFF: &str = "[plugins.nri]\ndisable = true\nplugin_path = '/p'\n";

    /// Installs the files that switch NRI on in this version of containerd with this configuration.
    /// Then checks the files as the installation does. Returns the file that contains NRI's
    /// section.
    fn switch_on(version: Option<Version>, config: &str) -> Result<toml::Table, String> {
        let directory = tempfile::tempdir().unwrap();
        let host = directory.path();
        fs::create_dir_all(host.join("run/systemd/system")).unwrap();
        for (path, text) in [
            ("etc/containerd/config.toml", config),
            ("usr/lib/systemd/system/containerd.service", "[Service]\nExecStart=/c\n"),
            ("run/containerd/.keep", ""),
        ] {
            fs::create_dir_all(host.join(path).parent().unwrap()).unwrap();
            fs::write(host.join(path), text).unwrap();
        }
        let _cri = UnixListener::bind(host.join("run/containerd/containerd.sock")).unwrap();
        let socket = host.join("run/nri/nri.sock");
        // `collect` cannot determine the version of containerd in a temporary directory.
        let mut facts = InstallFacts::collect(host, &socket, Vec::new()).unwrap();
        facts.version = version;
        facts.settings = NriSettings::of_containerd(host, version);
        facts.why_off = Some(WhyOff::Unserved { runtime: "containerd".to_owned() });
        let mut plan = Plan::default();
        facts.switch_on_if_off(&mut plan).map_err(|refusal| refusal.to_string())?;
        let mut executor = SystemExecutor::new(host, &socket);
        for step in &plan.steps {
            executor.execute(&step.action)?;
        }
        let switches = [CONTAINERD_SWITCH, "/etc/containerd/conf.d/zz-plimsoll.toml"];
        let mut texts = switches.iter().filter_map(|path| fs::read(host.join(&path[1..])).ok());
        Ok(toml::from_slice(&texts.next().unwrap()).unwrap())
    }

    #[test]
    fn format_1_is_kept_before_containerd_2() {
        for imports in ["", "imports = ['conf.d/*.toml']\n"] {
            let config = format!("{imports}{OFF}");
            let switch = switch_on(Some(Version(1, 7, 24)), &config).unwrap();
            let expected = format!("version = 1\n{}", OFF.replace("true", "false"));
            assert_eq!(switch, expected.parse().unwrap(), "{imports}");
        }
    }

    #[test]
    fn format_1_is_refused_since_containerd_2() {
        for version in [None, Some(Version(2, 0, 0))] {
            let refusal = switch_on(version, OFF).unwrap_err();
            assert!(refusal.contains("containerd config migrate"), "{refusal}");
        }
        let config = format!("version = 2\n{}", OFF.replace("nri", "'io.containerd.nri.v1.nri'"));
        assert!(switch_on(Some(Version(2, 0, 0)), &config).is_ok());
    }
}

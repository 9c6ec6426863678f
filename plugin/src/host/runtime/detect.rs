//! Detection of the runtimes that are present on a node.

use std::path::Path;

use crate::host::files::read;
use crate::host::runtime::kind::{CONTAINERD, CRIO, RuntimeKind};
use crate::host::runtime::nri_settings::NriSettings;
use crate::host::runtime::program::said_version;
use crate::host::socket::Socket;
use crate::host::version::Version;

/// Container runtime with its state on the node.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) kind: &'static RuntimeKind,
    pub(crate) socket: Socket,
    pub(crate) version: Option<Version>,
    pub(crate) settings: NriSettings,
}

impl RuntimeKind {
    /// Returns this runtime's NRI settings from the configuration files below `host`.
    pub(crate) fn settings(&self, host: &Path, version: Option<Version>) -> NriSettings {
        match self.program {
            "crio" => NriSettings::of_crio(host),
            _ => NriSettings::of_containerd(host, version),
        }
    }
}

impl Runtime {
    /// Returns all known runtimes, whether present or not. Runs a runtime's program only if `host`
    /// is the root of this machine.
    pub(crate) fn all(host: &Path) -> Vec<Self> {
        let runtimes = [&CONTAINERD, &CRIO].into_iter().map(|kind| {
            let socket = Socket::connect(&host.join(kind.socket));
            // CRI-O writes its version to this file at each start.
            let written = if kind.program == "crio" {
                read(&host.join("run/crio/version"))
            } else {
                Ok(None)
            };
            let written = written.ok().flatten().and_then(|text| Version::find(&text));
            let may_run = host == Path::new("/") && socket != Socket::Absent;
            let said = || kind.programs(host).iter().find_map(|program| said_version(program));
            let version = written.or_else(|| may_run.then(said).flatten());
            Self { kind, socket, version, settings: kind.settings(host, version) }
        });
        runtimes.collect()
    }

    /// Returns why NRI is off and what to do, or `None` if nothing shows that NRI is off.
    pub(crate) fn why_off(&self) -> Option<(String, String)> {
        let Self { kind, version, settings, .. } = self;
        let name = kind.name;
        if let Some(version) = version.filter(|version| *version < kind.oldest) {
            let advice = format!("upgrade {name} to {} or newer", kind.on_from);
            return Some((format!("{name} {version} has no NRI"), advice));
        }
        match (&settings.is_off, version) {
            (Some((true, why)), _) if why.starts_with("disabled_plugins") => {
                let advice = format!(
                    "take io.containerd.nri.v1.nri out of disabled_plugins, and restart {name}"
                );
                Some((format!("off in {name}: {why}"), advice))
            }
            (Some((true, why)), _) => {
                Some((format!("off in {name}: {why}"), kind.how_to_switch_on.to_owned()))
            }
            (None, Some(version)) if *version < kind.on_from => Some((
                format!("off in {name} {version}, as by default before {}", kind.on_from),
                kind.how_to_switch_on.to_owned(),
            )),
            _ => None,
        }
    }
}

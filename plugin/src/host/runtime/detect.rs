//! Detects the container runtimes on a node.

use std::fmt;
use std::path::Path;

use crate::host::files::read;
use crate::host::runtime::kind::{RuntimeKind, RuntimeProduct};
use crate::host::runtime::nri_settings::{NriSettings, NriSwitch};
use crate::host::runtime::program::said_version;
use crate::host::socket::Socket;
use crate::host::version::Version;

/// Container runtime, and its state on the node.
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
        match self.product {
            RuntimeProduct::Crio => NriSettings::of_crio(host),
            RuntimeProduct::Containerd => NriSettings::of_containerd(host, version),
        }
    }
}

impl Runtime {
    /// Returns all known runtimes, whether present or not. Runs a runtime's program only if `host`
    /// is the root of this machine.
    pub(crate) fn all(host: &Path) -> Vec<Self> {
        let runtimes = RuntimeProduct::ALL.into_iter().map(|product| {
            let kind = product.kind();
            let socket = Socket::connect(&host.join(kind.socket));
            // CRI-O writes its version to this file at each start.
            let written = match product {
                RuntimeProduct::Crio => read(&host.join("run/crio/version")),
                RuntimeProduct::Containerd => Ok(None),
            };
            let written = written.ok().flatten().and_then(|text| Version::find(&text));
            let may_run = host == Path::new("/") && socket != Socket::Absent;
            let said = || kind.programs(host).iter().find_map(|program| said_version(program));
            let version = written.or_else(|| may_run.then(said).flatten());
            Self { kind, socket, version, settings: kind.settings(host, version) }
        });
        runtimes.collect()
    }

    /// Returns why NRI is off. Returns `None` if NRI is on or its state is unknown.
    pub(crate) fn why_off(&self) -> Option<NriOff> {
        let Self { kind, version, settings, .. } = self;
        let cause = match (&settings.is_off, version) {
            (_, Some(version)) if *version < kind.oldest => OffCause::Unsupported(*version),
            (Some((true, switch)), _) => OffCause::Switch(switch.clone()),
            // An unreadable file may contain a setting that switches NRI on.
            (None, Some(version)) if *version < kind.on_from && settings.unread.is_empty() => {
                OffCause::Default(*version)
            }
            _ => return None,
        };
        Some(NriOff { kind, plugin: settings.plugin, cause })
    }
}

/// Explains why NRI is off in a runtime. `Display` names the runtime and the cause.
#[derive(Clone, Debug)]
pub(crate) struct NriOff {
    pub(crate) kind: &'static RuntimeKind,
    /// Name of the NRI plugin in containerd's files. Empty for CRI-O.
    pub(crate) plugin: &'static str,
    pub(crate) cause: OffCause,
}

/// Reason why NRI is off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OffCause {
    /// This version of the runtime has no NRI.
    Unsupported(Version),
    /// A setting switches NRI off.
    Switch(NriSwitch),
    /// No file switches NRI on or off, and NRI is off by default in this version.
    Default(Version),
}

impl fmt::Display for NriOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RuntimeKind { name, on_from, .. } = self.kind;
        match &self.cause {
            OffCause::Unsupported(version) => write!(f, "{name} {version} has no NRI"),
            OffCause::Switch(switch) => write!(f, "off in {name}: {switch}"),
            OffCause::Default(version) => {
                write!(f, "off in {name} {version}, as by default before {on_from}")
            }
        }
    }
}

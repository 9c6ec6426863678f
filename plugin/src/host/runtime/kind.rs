//! Kinds of container runtimes: properties that differ between containerd and CRI-O.

use crate::host::version::Version;

/// Properties that differ between containerd and CRI-O.
#[derive(Debug)]
pub(crate) struct RuntimeKind {
    pub(crate) name: &'static str,
    pub(crate) program: &'static str,
    pub(crate) socket: &'static str,
    /// First version that supports NRI.
    pub(crate) oldest: Version,
    /// First version that enables NRI by default.
    pub(crate) on_from: Version,
    /// Configuration key that switches NRI, and its value while NRI is off.
    pub(crate) switch: (&'static str, bool),
    /// Other keys of the NRI settings, indexed by `PLUGIN_PATH` to `NO_CONNECTIONS`.
    pub(crate) keys: [&'static str; 6],
    pub(crate) how_to_switch_on: &'static str,
}

pub(crate) const PLUGIN_PATH: usize = 0;
pub(crate) const CONFIG_PATH: usize = 1;
pub(crate) const SOCKET_PATH: usize = 2;
pub(crate) const REQUEST: usize = 3;
pub(crate) const REGISTRATION: usize = 4;
pub(crate) const NO_CONNECTIONS: usize = 5;

pub(crate) static CONTAINERD: RuntimeKind = RuntimeKind {
    name: "containerd",
    program: "containerd",
    socket: "run/containerd/containerd.sock",
    oldest: Version(1, 7, 0),
    on_from: Version(2, 0, 0),
    switch: ("disable", true),
    keys: [
        "plugin_path",
        "plugin_config_path",
        "socket_path",
        "plugin_request_timeout",
        "plugin_registration_timeout",
        "disable_connections",
    ],
    how_to_switch_on: "plimsoll install does so; or set disable = false under \
                       [plugins.\"io.containerd.nri.v1.nri\"] in /etc/containerd/config.toml, and \
                       restart containerd",
};

pub(crate) static CRIO: RuntimeKind = RuntimeKind {
    name: "CRI-O",
    program: "crio",
    socket: "run/crio/crio.sock",
    oldest: Version(1, 26, 0),
    on_from: Version(1, 30, 0),
    switch: ("enable_nri", false),
    keys: [
        "nri_plugin_dir",
        "nri_plugin_config_dir",
        "nri_listen",
        "nri_plugin_request_timeout",
        "nri_plugin_registration_timeout",
        "nri_disable_connections",
    ],
    how_to_switch_on: "plimsoll install does so; or set enable_nri = true under [crio.nri] in a file in \
                       /etc/crio/crio.conf.d, and restart crio",
};

/// First containerd 1.7 release whose NRI is new enough (0.6.1 or newer).
pub(crate) const CONTAINERD_1_7: Version = Version(1, 7, 16);

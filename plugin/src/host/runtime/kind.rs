//! Kinds of container runtimes: properties that differ between containerd and CRI-O.

use crate::host::version::Version;

/// Container runtime that the plugin supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuntimeProduct {
    /// containerd.
    Containerd,
    /// CRI-O.
    Crio,
}

impl RuntimeProduct {
    /// All products.
    pub(crate) const ALL: [Self; 2] = [Self::Containerd, Self::Crio];

    /// Returns the properties of this runtime.
    pub(crate) fn kind(self) -> &'static RuntimeKind {
        match self {
            Self::Containerd => &CONTAINERD,
            Self::Crio => &CRIO,
        }
    }
}

/// Properties that differ between containerd and CRI-O.
#[derive(Debug)]
pub(crate) struct RuntimeKind {
    pub(crate) product: RuntimeProduct,
    /// Name in messages.
    pub(crate) name: &'static str,
    /// Name of the program and of its systemd unit.
    pub(crate) program: &'static str,
    /// CRI socket, relative to the root of the node.
    pub(crate) socket: &'static str,
    /// First version that supports NRI.
    pub(crate) oldest: Version,
    /// First version that enables NRI by default.
    pub(crate) on_from: Version,
    /// Configuration key that switches NRI on and off, and the value that means off.
    pub(crate) switch: (&'static str, bool),
    pub(crate) keys: NriKeys,
}

/// Configuration keys for NRI, except the key that switches NRI on and off.
#[derive(Debug)]
pub(crate) struct NriKeys {
    pub(crate) plugin_path: &'static str,
    pub(crate) config_path: &'static str,
    pub(crate) socket_path: &'static str,
    pub(crate) request_timeout: &'static str,
    pub(crate) registration_timeout: &'static str,
    pub(crate) no_connections: &'static str,
}

pub(crate) static CONTAINERD: RuntimeKind = RuntimeKind {
    product: RuntimeProduct::Containerd,
    name: "containerd",
    program: "containerd",
    socket: "run/containerd/containerd.sock",
    oldest: Version(1, 7, 0),
    on_from: Version(2, 0, 0),
    switch: ("disable", true),
    keys: NriKeys {
        plugin_path: "plugin_path",
        config_path: "plugin_config_path",
        socket_path: "socket_path",
        request_timeout: "plugin_request_timeout",
        registration_timeout: "plugin_registration_timeout",
        no_connections: "disable_connections",
    },
};

pub(crate) static CRIO: RuntimeKind = RuntimeKind {
    product: RuntimeProduct::Crio,
    name: "CRI-O",
    program: "crio",
    socket: "run/crio/crio.sock",
    oldest: Version(1, 26, 0),
    on_from: Version(1, 30, 0),
    switch: ("enable_nri", false),
    keys: NriKeys {
        plugin_path: "nri_plugin_dir",
        config_path: "nri_plugin_config_dir",
        socket_path: "nri_listen",
        request_timeout: "nri_plugin_request_timeout",
        registration_timeout: "nri_plugin_registration_timeout",
        no_connections: "nri_disable_connections",
    },
};

/// First containerd 1.7 release whose NRI is new enough (0.6.1 or newer).
pub(crate) const CONTAINERD_1_7: Version = Version(1, 7, 16);

//! The files that an installation writes or removes, and their shipped contents.

use crate::host::runtime::kind::RuntimeProduct;

/// The plugin's shipped configuration file.
pub(super) const CONFIG_TEXT: &[u8] = include_bytes!("../../../../deploy/90-plimsoll.conf");

/// The shipped systemd unit.
pub(super) const UNIT_TEXT: &[u8] = include_bytes!("../../../../deploy/plimsoll.service");

pub(super) const PROGRAM: &str = "/usr/local/bin/plimsoll";
pub(super) const NAME: &str = "90-plimsoll";
pub(super) const SERVICE: &str = "plimsoll";
pub(super) const UNIT: &str = "/etc/systemd/system/plimsoll.service";
/// The symbolic link by which systemd starts the unit at boot.
pub(super) const ENABLED: &str = "/etc/systemd/system/multi-user.target.wants/plimsoll.service";
/// The directory of the operator's drop-ins for the unit.
pub(super) const UNIT_DROP_INS: &str = "/etc/systemd/system/plimsoll.service.d";

/// The CRI-O drop-in that switches NRI on. The drop-in whose name sorts last takes precedence, so
/// the name sorts after usual names such as `crio.conf` or `override.conf`.
pub(super) const CRIO_SWITCH: &str = "/etc/crio/crio.conf.d/zz-plimsoll.conf";
pub(super) const IMPORTED_SWITCH: &str = "zz-plimsoll.toml";
pub(super) const CONTAINERD_CONFIG: &str = "/etc/containerd/plimsoll/config.toml";
pub(super) const CONTAINERD_SWITCH: &str = "/etc/containerd/plimsoll/nri.toml";
pub(super) const CONTAINERD_DROP_IN_NAME: &str = "zz-plimsoll.conf";
pub(super) const CONTAINERD_DROP_IN: &str =
    "/etc/systemd/system/containerd.service.d/zz-plimsoll.conf";

/// Returns the files that switch NRI on in the runtime, except files in a directory that the
/// runtime's configuration imports.
pub(super) const fn switch_files(product: RuntimeProduct) -> &'static [&'static str] {
    match product {
        RuntimeProduct::Containerd => &[CONTAINERD_DROP_IN, CONTAINERD_CONFIG, CONTAINERD_SWITCH],
        RuntimeProduct::Crio => &[CRIO_SWITCH],
    }
}

/// Directories that may exist only for the plugin. Each directory comes before its parent.
pub(super) const DIRECTORIES: [&str; 8] = [
    "/etc/containerd/plimsoll",
    "/etc/systemd/system/containerd.service.d",
    UNIT_DROP_INS,
    "/etc/nri/conf.d",
    "/etc/nri",
    "/opt/nri/plugins",
    "/opt/nri",
    "/etc/crio/crio.conf.d",
];

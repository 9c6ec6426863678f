//! The options of a start: boot or snapshot, lifetime, additional equipment.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// The lifetime of a node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lifetime {
    /// The node ends at the latest when this process ends.
    Process,
    /// The node runs until the user ends it.
    Kept,
}

pub(super) enum Start<'a> {
    Boot,
    Load(&'a Path),
    /// Boots a machine with additional equipment.
    Equipped(&'a Equipment),
}

/// The additional equipment of a machine.
#[derive(Clone, Debug)]
pub struct Equipment {
    /// A second, read-only disk: `/dev/vdb`.
    pub disk: PathBuf,
    /// An address and a port in the guest's network 10.0.2.0/24, and a port on the host's loopback
    /// address.
    ///
    /// QEMU forwards connections from the guest's address to the host's port.
    pub relay: (Ipv4Addr, u16, u16),
}

impl Equipment {
    pub(super) fn arguments(&self) -> Vec<String> {
        let device = ["-device", "virtio-blk-pci,drive=second", "-drive"].map(str::to_owned);
        let drive =
            format!("file={},format=raw,if=none,id=second,readonly=on", self.disk.display());
        device.into_iter().chain([drive]).collect()
    }

    /// Returns the QEMU option for the relay.
    ///
    /// The option starts a process for each connection, because QEMU itself makes only one
    /// connection.
    pub(super) fn forwarding(&self) -> String {
        let (address, port, local) = self.relay;
        let relay = format!("exec 3<>/dev/tcp/127.0.0.1/{local}; cat <&3 & cat >&3; kill $!");
        format!(",guestfwd=tcp:{address}:{port}-cmd:bash -c '{relay}'")
    }
}

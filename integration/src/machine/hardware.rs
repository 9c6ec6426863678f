//! The hardware of a machine, as arguments for QEMU.

use std::path::Path;

use crate::machine::overlay::FORMAT;

/// The guest's memory in MiB. Pods can use about 300 MiB less.
pub const MEMORY_MIB: u64 = 1400;

const PROCESSORS: &str = "1";

/// The kernel's command line.
///
/// - `norandmaps`: QEMU 7.2 translates a program again for each address to which the program is
///   mapped. With random addresses a fork with an exec takes three times as long.
/// - `damon_stat.enabled=N`: without this argument, DAMON samples all memory all the time. On a
///   node with a kubelet, DAMON used a fifth of the processor.
const KERNEL_ARGUMENTS: &str = "rw console=ttyS0 quiet loglevel=4 panic=-1 oops=panic \
    net.ifnames=0 mitigations=off norandmaps random.trust_cpu=on damon_stat.enabled=N \
    no_timer_check nowatchdog audit=0 apparmor=0 systemd.show_status=0 systemd.ssh_auto=no";

/// The parts that differ between machines with the same hardware.
pub(super) struct Attachments<'a> {
    pub(super) kernel: &'a Path,
    pub(super) initrd: &'a Path,
    pub(super) disk: &'a Path,
    /// The socket of QEMU's monitor.
    pub(super) monitor: &'a Path,
    /// The port on the host's loopback address that leads to the guest's ssh.
    pub(super) port: u16,
    /// Further options of the guest's network.
    pub(super) forwarding: &'a str,
}

/// Returns QEMU's arguments for a machine.
pub(super) fn arguments(attachments: &Attachments<'_>) -> Vec<String> {
    let Attachments { kernel, initrd, disk, monitor, port, forwarding } = attachments;
    let (memory, kernel, initrd) =
        (MEMORY_MIB.to_string(), kernel.display().to_string(), initrd.display().to_string());
    // cache=unsafe: the disk is discarded after use, so QEMU need not flush it to the host.
    let drive = format!("file={},format={FORMAT},if=none,id=disk,cache=unsafe", disk.display());
    let network = format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22{forwarding}");
    let monitor = format!("unix:{}", monitor.display());
    let options: [&[&str]; 15] = [
        &["-accel", "tcg,thread=multi,tb-size=256"],
        // - cx16: with this feature, Linux 6.12 double-faults under QEMU 7.2.
        // - la57: five-level page tables would make the emulated machine slower.
        // - erms, fsrm: with these features, the kernel clears and copies memory with instructions
        //   that QEMU emulates byte by byte.
        &["-cpu", "max,la57=off,cx16=off,erms=off,fsrm=off"],
        &["-machine", "q35,usb=off,smbus=off,sata=off"],
        &["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"],
        &["-m", &memory, "-smp", PROCESSORS],
        &["-kernel", &kernel],
        &["-initrd", &initrd],
        &["-append", KERNEL_ARGUMENTS],
        &["-drive", &drive],
        &["-device", "virtio-blk-pci,drive=disk"],
        &["-netdev", &network],
        &["-device", "virtio-net-pci,netdev=net,romfile="],
        &["-device", "virtio-rng-pci"],
        &["-serial", "stdio"],
        &["-qmp", &monitor],
    ];
    options.concat().into_iter().map(str::to_owned).collect()
}

//! Nodes: virtual machines in QEMU, emulated in software, with a shell.
//!
//! The first start of an image boots the machine and stores a snapshot of the ready node in the
//! cache. Later starts load the snapshot.
//!
//! If a guest dies during a boot, the guest is booted again, a limited number of times. Emulated
//! multiprocessing has rare faults, which must not make a test fail. If a guest dies later, every
//! call on the node reports the death; see [`Node::fate`].

mod hardware;
mod monitor;
mod node;
mod options;
mod overlay;
mod qemu;
mod retry;
mod shell;
mod snapshot;
mod start;

pub use hardware::MEMORY_MIB;
pub use node::Node;
pub use options::Equipment;
pub use shell::Output;

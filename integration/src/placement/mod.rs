//! The programs that tests install on a node: Plimsoll and other NRI plugins.
//!
//! The runtime launches Plimsoll, or systemd starts Plimsoll as an external plugin. Each function
//! that starts Plimsoll waits until the runtime logs its synchronisation with the plugin.

mod build;
mod claimer;
mod journal;
pub mod peers;
mod plimsoll;
mod upload;

pub use build::{build, package};
pub use claimer::{claim, unclaim};
pub(crate) use journal::is_stuck;
pub use journal::{
    cursor, journal, until_synchronised, until_synchronised_since, wait_for_journal,
};
pub use plimsoll::{
    CONFIG, EXTERNAL_BINARY, Mode, binary, configure, install, remove, restart_plugin,
    restart_runtime, restart_script, switch_driver,
};

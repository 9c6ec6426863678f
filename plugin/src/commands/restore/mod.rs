//! The command `plimsoll restore`: restores the values that cgroups had before the plugin changed
//! them.
//!
//! The command creates a marker file. While the file exists, no instance of the plugin has desired
//! values, so the running instance restores the original values. If no instance runs, the command
//! runs an instance itself until all values are restored. The command also removes systemd's
//! drop-ins, and reports the result.

pub(super) mod arguments;
mod command;
mod drop_ins;
mod instance;
mod report;
mod survey;
mod wait;

pub(crate) use wait::LONGEST_WAIT;

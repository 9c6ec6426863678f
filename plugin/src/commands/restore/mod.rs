//! The command `plimsoll restore`: restores the values that cgroups held before the plugin changed
//! them.
//!
//! The command creates a marker file. While the file exists, every instance of the plugin desires
//! no values. Reconciling therefore restores the originals. Where no instance runs, the command
//! runs an instance itself until everything is restored. The rest of this module only observes and
//! reports the result.

pub(super) mod arguments;
mod command;
mod drop_ins;
mod instance;
mod report;
mod survey;
mod wait;

pub(crate) use wait::LONGEST_WAIT;

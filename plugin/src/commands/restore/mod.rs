//! The command `plimsoll restore`: restores the values that cgroups held before the plugin changed
//! them.
//!
//! The command creates a marker file. While the file exists, no instance of the plugin desires any
//! values, so reconciling restores the original values. If no instance runs, the command runs an
//! instance itself until all values are restored. The other files of this module only observe and
//! report the result.

pub(super) mod arguments;
mod command;
mod drop_ins;
mod instance;
mod report;
mod survey;
mod wait;

pub(crate) use wait::LONGEST_WAIT;

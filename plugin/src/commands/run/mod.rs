//! The command `plimsoll run`: runs the plugin in this process.

pub(super) mod arguments;
mod command;
mod config;
mod file_watch;
mod markers;
mod signals;

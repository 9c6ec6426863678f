//! The command `plimsoll run`: runs the plugin in this process.

mod command;
mod config;
mod file_watch;
mod markers;
mod signals;
mod start;

pub(crate) use start::Node;

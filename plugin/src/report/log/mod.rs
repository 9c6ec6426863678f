//! Destination and format of the messages of `plimsoll run`.

mod journal;
mod output;
mod queue;

pub(crate) use output::{Level, LogFormat, start};
pub(crate) use queue::flush;

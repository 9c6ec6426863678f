//! The command `plimsoll status`: requests the plugin's status and prints it.

mod cell;
mod command;
mod load;
mod node;
mod overview;
mod pod;
#[cfg(test)]
mod sample;
mod screen;
mod selection;
mod table;

pub(crate) use command::StatusCommand;

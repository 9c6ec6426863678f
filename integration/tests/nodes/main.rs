//! Everything that is shown on nodes. One program, so that its cases share nodes.

mod conformance;
mod control;
mod install;
mod kubernetes;
mod plugin;
mod protection;
mod release;
mod resize;

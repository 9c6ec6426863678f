//! Tests of the program with doubles for the parts of a node. All tests are one program, so that
//! the linker runs once and the tests wait concurrently.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod cli;
mod configuration;
mod daemon;
mod deploy;
mod events;
mod faults;
mod harness;
mod install;
mod kills;
mod kubernetes;
mod log;
mod observe;
mod protection;
mod resize;
mod status;

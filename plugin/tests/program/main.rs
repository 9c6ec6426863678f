//! The program, with doubles of what a node has: one program of tests, which is linked once, and whose tests wait side by side.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod cli;
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

//! Test doubles of a node and its runtime, and the program that runs on these doubles. The tests
//! use a temporary directory tree as the node's file system. The runtime writes a unified map to
//! the container's files, as containerd and runc do.

#![allow(missing_docs)]

mod commands;
mod daemon;
mod files;
mod http;
mod node;
mod pod;
mod records;
mod runtime;
mod yaml;

pub use commands::{plimsoll, restore, start, status, status_json};
pub use daemon::Daemon;
pub use files::{make_files, overwrite, reclaims};
pub use http::get;
pub use node::Node;
pub use pod::{MIB, Pod, memory_limit, unified};
pub use runtime::{Runtime, crio};
pub use yaml::yaml;

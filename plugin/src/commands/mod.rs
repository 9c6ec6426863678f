//! The command line. Each command has one file or folder.

mod check;
pub mod cli;
mod completions;
mod config;
pub mod doctor;
pub mod explain;
mod failure;
mod field_docs;
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
mod host_names;
mod input;
pub mod install;
pub mod lint;
mod man;
mod output;
mod restore;
mod run;
mod status;
mod wrap;

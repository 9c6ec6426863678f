//! Helpers that do not depend on nodes: the cache, Go builds, child processes.

pub mod blocks;
pub mod cache;
pub(crate) mod command;
pub(crate) mod debian;
pub(crate) mod ext4;
pub mod go;
pub(crate) mod process;
pub mod progress;
pub(crate) mod run_directory;
pub(crate) mod target_directory;

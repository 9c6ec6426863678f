//! The interface that executes and undoes actions.

use std::path::PathBuf;

use crate::commands::install::plan::Action;

/// Executes the actions of a plan. [`SystemExecutor`](crate::commands::install::SystemExecutor)
/// executes actions on a node. Tests have other executors.
pub trait Executor {
    /// Executes an action. For each file that the action changed, returns the state before the
    /// change, in the order of the changes.
    ///
    /// # Errors
    ///
    /// Fails with a message for the user. A failed action restores the files that it has changed.
    fn execute(&mut self, action: &Action) -> Result<Vec<PathState>, String>;

    /// Restores one file, link or directory.
    ///
    /// # Errors
    ///
    /// Fails with a message for the user.
    fn restore_path(&mut self, what: PathState) -> Result<(), String>;

    /// Returns whether the user has interrupted the program.
    fn is_interrupted(&self) -> bool {
        false
    }

    /// Begins to undo the executed steps. From then on, the user cannot interrupt the program.
    fn begin_undo(&mut self) {}
}

/// The state of a path before a change.
#[derive(Clone, Debug)]
pub enum PathState {
    /// A file with its content and permission bits.
    File(PathBuf, Vec<u8>, u32),
    /// A symbolic link and its target.
    Link(PathBuf, PathBuf),
    /// A path without a file.
    NoFile(PathBuf),
    /// A path without a directory.
    NoDirectory(PathBuf),
    /// A directory.
    Directory(PathBuf),
}

/// The failure message after the user has interrupted the program.
pub(super) const INTERRUPTED: &str = "interrupted";

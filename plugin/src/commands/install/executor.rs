//! The interface that executes and undoes actions.

use std::path::PathBuf;

use crate::commands::install::plan::Action;

/// Executes the actions of a plan. The implementation for a node is
/// [`SystemExecutor`](crate::commands::install::SystemExecutor). Tests have other implementations.
pub trait Executor {
    /// Executes an action. Returns the earlier states of the files that the action changed, in the
    /// order of the changes.
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

    /// Begins the undo. The user cannot interrupt the undo.
    fn begin_undo(&mut self) {}
}

/// The earlier state of a path.
#[derive(Clone, Debug)]
pub enum PathState {
    /// A file with its content and permission bits.
    File(PathBuf, Vec<u8>, u32),
    /// A symbolic link and its target.
    Link(PathBuf, PathBuf),
    /// No file.
    NoFile(PathBuf),
    /// No directory.
    NoDirectory(PathBuf),
    /// A directory.
    Directory(PathBuf),
}

/// The failure that is reported after the user has interrupted the program.
pub(super) const INTERRUPTED: &str = "interrupted";

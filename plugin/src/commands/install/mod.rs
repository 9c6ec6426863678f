//! Installs the plugin on a node (`plimsoll install`) and removes it (`plimsoll uninstall`).
//! [`InstallFacts`] collects the state of the node. [`Plan`] lists the necessary steps.
//! [`Plan::execute`] executes the steps and undoes them after a failure.
//!
//! The module never changes the files with which the operator configures the runtime. If NRI is
//! off, the module adds a file that switches NRI on:
//!
//! - For CRI-O, a drop-in in its configuration directory.
//! - For a containerd whose configuration imports a directory, a file in that directory.
//! - For a containerd without such an import, a second configuration. A systemd drop-in starts
//!   containerd with this second configuration. The second configuration imports the operator's
//!   configuration and then the file that switches NRI on.
//!
//! An imported file overrides the file that imports it, and a later import overrides an earlier
//! one. An overriding file in containerd 1.7 replaces the whole section of a plugin, but in
//! containerd 2.0 and newer it replaces single keys.
//!
//! Sources: containerd 1.7 and 2.1 `cmd/containerd/server/config`, CRI-O `pkg/config`.

pub(crate) mod command;
mod execution;
mod executor;
mod facts;
mod files;
mod installation;
mod nri_off;
mod nri_switch;
mod paths;
mod plan;
mod process;
mod removal;
mod steps;
mod system;
mod undo;

pub use execution::PlanFailure;
pub use executor::{Executor, PathState};
pub use facts::InstallFacts;
pub use plan::{Action, InstallMode, Plan, PlanStep, Refusal};
pub use system::SystemExecutor;

pub use crate::host::runtime::kind::RuntimeProduct;

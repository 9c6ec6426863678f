//! Shared state of the event handlers, the background tasks and the reports.

use std::sync::Arc;

use tokio::sync::watch;

use crate::cgroup::CgroupRoot;
use crate::state::containers::Containers;
use crate::state::deferred::DeferredLimits;
use crate::state::levels::Levels;
use crate::state::rescues::Rescues;

/// State that the event handlers share with the other tasks. Copies refer to the same state.
#[derive(Clone, Debug)]
pub struct SharedState {
    /// The containers and the settings.
    pub containers: Arc<Containers>,
    /// The cgroups above containers, and the reserved cgroups.
    pub levels: Arc<Levels>,
    /// The node's cgroups.
    pub root: Arc<CgroupRoot>,
    /// Deferred limit decreases.
    pub deferred: Arc<DeferredLimits>,
    /// Container limits that `oomRescue` has raised.
    pub rescues: Arc<Rescues>,
    /// Whether the runtime is connected and has reported its pods and containers.
    pub synchronized: watch::Sender<bool>,
}

//! Handles with which the event handlers reach the background tasks.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::agent::decrease::LimitDecreases;
use crate::agent::kills::KillNotifier;
use crate::agent::reconciler::WorkItem;
use crate::report::Reports;
use crate::state::shared::SharedState;

/// Handles with which the event handlers reach the background tasks.
#[derive(Clone, Debug)]
pub struct Agent {
    /// State that the event handlers share with the other tasks.
    pub state: SharedState,
    /// Preparation of limit decreases.
    pub decreases: Arc<LimitDecreases>,
    /// Sender that reports changes of containers to the task that watches for OOM kills.
    pub kills: Arc<KillNotifier>,
    /// Reports to users.
    pub reports: Arc<Reports>,
    /// Work for the reconcile task.
    pub work: mpsc::UnboundedSender<WorkItem>,
}

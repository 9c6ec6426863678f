//! Applies configurations, the brake and the marker file of `plimsoll restore`. All functions of
//! this module read files, so they may block.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use plimsoll_core::units::Bytes;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::agent::handles::Agent;
use crate::agent::reconciler::WorkItem;
use crate::config::{Config, NodeAllocatable};
use crate::kubelet::node::NodeMemory;
use crate::lock;
use crate::report::Reports;
use crate::state::settings::Settings;
use crate::state::shared::SharedState;
use crate::state::{brake, raised};

/// Function that the plugin calls with each new configuration.
pub type OnConfig = Box<dyn Fn(&Config) + Send + Sync>;

/// Applies settings to the plugin's state.
pub struct Configurator {
    state: SharedState,
    reports: Arc<Reports>,
    work: mpsc::UnboundedSender<WorkItem>,
    host: PathBuf,
    on_config: OnConfig,
    /// Record of an applied brake that the plugin could not write to its file yet. Also, only the
    /// thread that has this lock may change the settings. This thread may read and write files, so
    /// the event loop never takes the lock.
    unstored: Mutex<Option<brake::Record>>,
    /// Whether a [`NodeRefresh`] exists.
    is_refreshing: AtomicBool,
}

impl std::fmt::Debug for Configurator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Configurator").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Configurator {
    /// Creates the configurator for the node whose file system is at `host`, usually `/`. The
    /// plugin calls `on_config` with each new configuration.
    pub fn new(agent: &Agent, host: PathBuf, on_config: OnConfig) -> Self {
        Self {
            state: agent.state.clone(),
            reports: agent.reports.clone(),
            work: agent.work.clone(),
            host,
            on_config,
            unstored: Mutex::default(),
            is_refreshing: AtomicBool::new(false),
        }
    }

    fn enqueue(&self, work: WorkItem) {
        // This send cannot fail, because the receiver exists until the program ends.
        let _ = self.work.send(work);
    }

    /// Applies another configuration to all containers. `file` is the path of the configuration
    /// file.
    pub fn reconfigure(&self, config: Config, file: &str) {
        self.apply_config(Some(config));
        info!(file, "configuration changed");
        self.enqueue(WorkItem::All);
    }

    /// Checks whether an operator has called `plimsoll restore` or has reset the brake. After a
    /// change, lets the reconcile task check all containers.
    pub fn check_markers(&self) {
        let mut unstored = lock(&self.unstored);
        let before = self.state.containers.settings();
        let (settings, _) = self.discover(before.config.clone(), &mut unstored);
        if settings.is_restored != before.is_restored {
            self.log_restore_state(&settings);
        } else if settings.brake != before.brake {
            self.log_mode(&settings);
        } else {
            return;
        }
        self.set(settings);
        self.enqueue(WorkItem::All);
    }

    /// Applies the brake: the plugin behaves as in observe mode until an operator resets the brake.
    pub fn apply_brake(&self, record: &brake::Record) {
        let mut unstored = lock(&self.unstored);
        if let Err(error) = record.store(&self.host) {
            error!(%error, "cannot store the brake's record below /run/plimsoll; a restarted \
                             plugin sets values again");
            *unstored = Some(record.clone());
        }
        let before = self.state.containers.settings();
        let (settings, _) = self.discover(before.config.clone(), &mut unstored);
        self.log_mode(&settings);
        self.set(settings);
        self.enqueue(WorkItem::All);
    }

    /// Logs that the plugin is in observe mode, and which limits stay raised.
    fn log_mode(&self, settings: &Settings) {
        if !settings.observes() {
            return;
        }
        match &settings.brake {
            Some(brake) => error!(
                brake,
                "the brake is applied: the plugin sets, raises and refuses nothing; find the \
                 cause, then run 'plimsoll reset-brake'"
            ),
            None => warn!(
                "mode is observe: the plugin sets, raises and refuses nothing; 'plimsoll status' \
                 shows the planned values"
            ),
        }
        for limit in raised::staying(&self.state.root, &self.state.levels.raised_limits()) {
            warn!(limit, "the raised limit stays, because lowering it could kill");
        }
    }

    fn log_restore_state(&self, settings: &Settings) {
        if settings.is_restored {
            warn!(
                "'plimsoll restore' was called: the plugin sets nothing until 'plimsoll restore \
                 --undo'"
            );
        } else {
            info!("'plimsoll restore' was undone");
        }
    }

    /// Returns the settings for a configuration. If the plugin could not store the brake's record,
    /// the brake stays applied and the plugin tries again to store the record.
    fn discover(
        &self,
        config: Config,
        unstored: &mut Option<brake::Record>,
    ) -> (Settings, NodeMemory) {
        let (mut settings, memory) = Settings::discover(config, &self.host);
        match unstored.as_ref() {
            Some(record) if settings.brake.is_none() => {
                settings.brake = Some(record.to_string());
                if record.store(&self.host).is_ok() {
                    *unstored = None;
                }
            }
            // The record is in its file now, so an operator can reset the brake by removing this
            // file.
            _ => *unstored = None,
        }
        (settings, memory)
    }

    fn set(&self, settings: Settings) {
        if self.state.containers.settings().brake.is_some() && settings.brake.is_none() {
            // Clear the kill counts, because otherwise the plugin could not apply the brake again.
            self.reports.brake.clear();
            info!("the brake was reset");
        }
        self.state.levels.set_node(&settings);
        self.state.containers.set_settings(settings);
    }

    /// Applies another configuration. With `None`, applies the configuration in force once more.
    /// Afterwards, the caller must let the reconcile task check all containers.
    pub fn apply_config(&self, config: Option<Config>) {
        let mut unstored = lock(&self.unstored);
        // The configuration in force may have changed while this function waited for the lock.
        let in_force = || self.state.containers.settings().config.clone();
        let config = config.unwrap_or_else(in_force);
        let (settings, memory) = self.discover(config, &mut unstored);
        let config = &settings.config;
        for problem in &memory.problems {
            warn!(%problem, "node memory");
        }
        match config.node_allocatable {
            NodeAllocatable::Auto => info!("{memory}"),
            NodeAllocatable::Fixed(bytes) => {
                info!("node allocatable is {bytes} bytes, as configured")
            }
        }
        if settings.is_restored {
            self.log_restore_state(&settings);
        } else {
            self.log_mode(&settings);
        }
        if let (Some(kept), None, false) =
            (config.node_guard, settings.planned_guard_limit(), settings.is_restored)
        {
            let all = settings.usable.map_or_else(|| "unknown".to_owned(), Bytes::quantity);
            warn!(
                "nodeGuard would leave pods no memory: expected less than all memory, {all}, \
                 found {}; the plugin ignores nodeGuard",
                kept.quantity()
            );
        }
        for conflict in &memory.conflicts {
            warn!(%conflict, "the kubelet");
        }
        if let Some(unsettled) = &memory.unsettled {
            info!(%unsettled, "it is unknown whether the kubelet's own MemoryQoS is on");
        }
        // Subscribers of the settings now receive the new settings.
        let config = config.clone();
        self.set(settings);
        (self.on_config)(&config);
    }

    /// Begins to determine node allocatable again. For a container without a memory limit, the
    /// plugin uses node allocatable as the limit. A runtime starts its plugins before the kubelet
    /// runs. The kubelet determines node allocatable later and may change it.
    ///
    /// Returns `None` if the configuration sets node allocatable, or another refresh is under way.
    /// In both cases, the caller need not start a thread for the refresh.
    pub fn begin_refresh(self: &Arc<Self>) -> Option<NodeRefresh> {
        let settings = self.state.containers.settings();
        let is_needed = settings.config.node_allocatable == NodeAllocatable::Auto
            && !self.is_refreshing.swap(true, Ordering::Relaxed);
        is_needed.then(|| NodeRefresh { configurator: self.clone() })
    }

    fn refresh_node(&self) {
        let mut unstored = lock(&self.unstored);
        let before = self.state.containers.settings();
        let (settings, memory) = self.discover(before.config.clone(), &mut unstored);
        if settings.node != before.node {
            info!("{memory}");
            self.set(settings);
            self.enqueue(WorkItem::All);
        }
    }
}

/// A refresh of node allocatable that is under way. No other refresh begins until this value is
/// dropped, even if the refresh's thread cannot start.
#[derive(Debug)]
pub struct NodeRefresh {
    configurator: Arc<Configurator>,
}

impl NodeRefresh {
    /// Reads the kubelet's files, and applies node allocatable if it has changed.
    pub fn run(self) {
        self.configurator.refresh_node();
    }
}

impl Drop for NodeRefresh {
    fn drop(&mut self) {
        self.configurator.is_refreshing.store(false, Ordering::Relaxed);
    }
}

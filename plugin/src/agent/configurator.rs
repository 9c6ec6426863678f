//! Applies configurations, the brake and the marker file of `plimsoll restore`.
//!
//! A new configuration, the brake and the marker file take effect at once. The node's memory
//! follows from files of the kubelet, and a read of these files may hang. Only the task
//! [`MemoryReader`] reads them, and it holds no lock meanwhile.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use plimsoll_core::units::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::agent::handles::Agent;
use crate::agent::reconciler::WorkItem;
use crate::config::{Config, NodeAllocatable};
use crate::host::files::below;
use crate::kubelet::node::NodeMemory;
use crate::lock;
use crate::report::Reports;
use crate::state::settings::{MemoryFacts, Settings, discover_memory};
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
    /// thread that has this lock may change the settings. This thread may read and write files in
    /// /run/plimsoll, but it reads no file of the kubelet.
    unstored: Mutex<Option<brake::Record>>,
    memory: mpsc::UnboundedSender<MemoryRequest>,
    /// Whether the task [`MemoryReader`] reads files at the moment.
    is_reading: AtomicBool,
}

impl std::fmt::Debug for Configurator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Configurator").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Configurator {
    /// Creates the configurator for the node whose file system is at `host`, usually `/`, and the
    /// task that reads the node's memory. The plugin calls `on_config` with each new configuration.
    pub fn new(agent: &Agent, host: PathBuf, on_config: OnConfig) -> (Arc<Self>, MemoryReader) {
        let (memory, requests) = mpsc::unbounded_channel();
        let configurator = Arc::new(Self {
            state: agent.state.clone(),
            reports: agent.reports.clone(),
            work: agent.work.clone(),
            host,
            on_config,
            unstored: Mutex::default(),
            memory,
            is_reading: AtomicBool::new(false),
        });
        (configurator.clone(), MemoryReader { configurator, requests })
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
        // Nobody waits for the node's memory.
        drop(self.request_memory(true));
    }

    /// Checks whether an operator has called `plimsoll restore` or has reset the brake. After a
    /// change, lets the reconcile task check all containers.
    pub fn check_markers(&self) {
        let mut unstored = lock(&self.unstored);
        let before = self.state.containers.settings();
        let settings = self.with_markers(Settings::clone(&before), &mut unstored);
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
        let settings = self.with_markers(Settings::clone(&before), &mut unstored);
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

    /// Returns `settings` after a look at the files in /run/plimsoll. If the plugin could not store
    /// the brake's record, the brake stays applied and the plugin tries again to store the record.
    fn with_markers(&self, settings: Settings, unstored: &mut Option<brake::Record>) -> Settings {
        let mut settings = settings.with_markers(&self.host);
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
        settings
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

    /// Applies another configuration, with what is known about the node's memory. With `None`,
    /// applies the configuration in force once more. Lets the reconcile task check all containers.
    pub fn apply_config(&self, config: Option<Config>) {
        let mut unstored = lock(&self.unstored);
        let before = Settings::clone(&self.state.containers.settings());
        let config = config.unwrap_or_else(|| before.config.clone());
        let settings = self.with_markers(before.with_config(config), &mut unstored);
        if let NodeAllocatable::Fixed(bytes) = settings.config.node_allocatable {
            info!("node allocatable is {bytes} bytes, as configured");
        }
        if settings.is_restored {
            self.log_restore_state(&settings);
        } else {
            self.log_mode(&settings);
        }
        // Subscribers of the settings now receive the new settings.
        let config = settings.config.clone();
        self.set(settings);
        (self.on_config)(&config);
        self.enqueue(WorkItem::All);
    }

    /// Lets the task [`MemoryReader`] read the node's memory, and log what it finds if `logs` is
    /// true. The receiver gets a message after the read.
    fn request_memory(&self, logs: bool) -> oneshot::Receiver<()> {
        let (done, is_done) = oneshot::channel();
        // If the task has ended, the process ends.
        let _ = self.memory.send(MemoryRequest { logs, done });
        is_done
    }

    /// Waits until the task [`MemoryReader`] has read the node's memory, for at most `budget`.
    pub async fn await_memory(&self, budget: Duration, logs: bool) {
        if timeout(budget, self.request_memory(logs)).await.is_err() {
            warn!(
                "the plugin has not read the node's memory within {budget:?}, and uses the former \
                 amount until then; check the file system of the kubelet's directory"
            );
        }
    }

    /// Determines node allocatable again, within `budget`. For a container without a memory limit,
    /// the plugin uses node allocatable as the limit. A runtime starts its plugins before the
    /// kubelet runs. The kubelet determines node allocatable later and may change it.
    ///
    /// Does nothing if the configuration sets node allocatable. Does not wait while a read is under
    /// way, because this read may hang.
    pub async fn refresh_memory(&self, budget: Duration) {
        let settings = self.state.containers.settings();
        if settings.config.node_allocatable == NodeAllocatable::Auto
            && !self.is_reading.load(Ordering::Relaxed)
        {
            self.await_memory(budget, false).await;
        }
    }

    /// Reads the node's memory and applies it. Reads files of the kubelet, which may hang.
    fn read_memory(&self, logs: bool) {
        self.is_reading.store(true, Ordering::Relaxed);
        let named = self.state.containers.settings().config.kubelet.clone().unwrap_or_default();
        let memory = discover_memory(&self.host, &named);
        let directory = below(&self.host, &memory.kubelet.root_dir);
        self.state.containers.records.set_directory(directory);
        self.is_reading.store(false, Ordering::Relaxed);
        let _unstored = lock(&self.unstored);
        let before = self.state.containers.settings();
        let settings = Settings::clone(&before).with_memory(MemoryFacts::from(&memory));
        if logs {
            log_memory(&settings, &memory);
        } else if settings.node != before.node {
            info!("{memory}");
        }
        if settings.memory != before.memory {
            self.set(settings);
            self.enqueue(WorkItem::All);
        }
    }
}

/// Logs the facts about the node's memory, with problems and conflicts.
fn log_memory(settings: &Settings, memory: &NodeMemory) {
    for problem in &memory.problems {
        warn!(%problem, "node memory");
    }
    if settings.config.node_allocatable == NodeAllocatable::Auto {
        info!("{memory}");
    }
    if let (Some(kept), None, false) =
        (settings.config.node_guard, settings.planned_guard_limit(), settings.is_restored)
    {
        let all = settings.usable().map_or_else(|| "unknown".to_owned(), Bytes::quantity);
        warn!(
            "nodeGuard would leave pods no memory: expected less than all memory, {all}, found \
             {}; the plugin ignores nodeGuard",
            kept.quantity()
        );
    }
    for conflict in &memory.conflicts {
        warn!(%conflict, "the kubelet");
    }
    if let Some(unsettled) = &memory.unsettled {
        info!(%unsettled, "it is unknown whether the kubelet's own MemoryQoS is on");
    }
}

/// A request to read the node's memory.
#[derive(Debug)]
struct MemoryRequest {
    /// Whether the task logs what it finds.
    logs: bool,
    /// Gets a message after the read.
    done: oneshot::Sender<()>,
}

/// The task that reads the node's memory from files of the kubelet.
#[derive(Debug)]
pub struct MemoryReader {
    configurator: Arc<Configurator>,
    requests: mpsc::UnboundedReceiver<MemoryRequest>,
}

impl MemoryReader {
    /// Runs forever, in a thread that may block. One read answers all requests that have arrived
    /// before it.
    pub async fn run(mut self) {
        while let Some(first) = self.requests.recv().await {
            let mut requests = vec![first];
            while let Ok(request) = self.requests.try_recv() {
                requests.push(request);
            }
            self.configurator.read_memory(requests.iter().any(|request| request.logs));
            for MemoryRequest { done, .. } in requests {
                // The receiver may have stopped waiting.
                let _ = done.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::node::Node;
    use crate::state::testing::TestNode;

    const BUDGET: Duration = Duration::from_secs(1);

    /// Returns the configurator of a node without a kubelet, and the task that reads the node's
    /// memory. While the test does not run this task, the kubelet's files hang.
    fn configurator(node: &TestNode) -> (Arc<Configurator>, MemoryReader) {
        let node = Node::open(node.host.path(), Config::default()).unwrap();
        let (service, tasks) = node.into_service(Box::new(|_| {}));
        (service.configurator(), tasks.memory_reader())
    }

    fn config(text: &str) -> Option<Config> {
        Some(Config::parse(text.as_bytes(), "test").unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn settings_apply_while_the_kubelets_files_hang() {
        let node = TestNode::new("");
        let (configurator, _hanging) = configurator(&node);
        let settings = || configurator.state.containers.settings();
        assert!(settings().enforces());
        configurator.apply_config(config("mode: observe"));
        assert!(settings().observes());
        configurator.await_memory(BUDGET, true).await;
        configurator.reconfigure(Config::default(), "test");
        assert!(settings().enforces());
        let record =
            brake::Record { cause: brake::Cause::Repairs, count: 9, window_seconds: 1, at: 0 };
        configurator.apply_brake(&record);
        assert!(settings().observes());
        std::fs::remove_file(node.host.path().join("run/plimsoll").join(brake::FILE)).unwrap();
        configurator.check_markers();
        assert!(settings().enforces());
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_read_again_only_if_needed() {
        let node = TestNode::new("");
        let (configurator, mut reader) = configurator(&node);
        let mut is_requested = async || {
            configurator.refresh_memory(BUDGET).await;
            reader.requests.try_recv().is_ok()
        };
        configurator.apply_config(config("nodeAllocatable: 4Gi"));
        assert!(!is_requested().await, "the configuration sets node allocatable");
        configurator.apply_config(config("nodeAllocatable: auto"));
        configurator.is_reading.store(true, Ordering::Relaxed);
        assert!(!is_requested().await, "a read is under way");
        configurator.is_reading.store(false, Ordering::Relaxed);
        assert!(is_requested().await);
    }

    #[tokio::test]
    async fn reading_memory_total_keeps_observe_mode() {
        let node = TestNode::new("");
        let (configurator, reader) = configurator(&node);
        let settings = || configurator.state.containers.settings();
        configurator.apply_config(config("mode: observe"));
        assert_eq!(settings().mem_total(), None);
        tokio::spawn(reader.run());
        configurator.await_memory(Duration::from_secs(60), true).await;
        assert_eq!(settings().mem_total(), Some(Bytes::new(8 << 30)));
        assert!(settings().observes());
    }
}

//! Applies configurations, the brake and the marker of `plimsoll restore`.

use plimsoll_core::units::Bytes;
use tracing::{error, info, warn};

use super::Service;
use crate::agent::reconciler::Work;
use crate::config::{Config, NodeAllocatable};
use crate::kubelet::node::NodeMemory;
use crate::lock;
use crate::state::settings::Settings;
use crate::state::{brake, raised};

impl Service {
    /// Applies another configuration to all containers.
    pub fn reconfigure(&self, config: Config) {
        self.take_over(config);
        self.enqueue(Work::All);
    }

    /// Checks again whether `plimsoll restore` was called or the brake was reset, and reconciles
    /// all containers after a change.
    pub fn look_whether_to_stand_aside(&self) {
        let before = self.state.containers.settings();
        let (settings, _) = self.discover(before.config.clone());
        if settings.stand_aside != before.stand_aside {
            self.tell_whether_it_stands_aside(&settings);
        } else if settings.brake != before.brake {
            self.say_mode(&settings);
        } else {
            return;
        }
        self.set(settings);
        self.enqueue(Work::All);
    }

    /// Applies the brake: the plugin behaves as in observe mode until an operator resets the brake.
    pub fn apply_brake(&self, record: &brake::Record) {
        if let Err(error) = record.store(&self.host) {
            error!(%error, "cannot keep the brake's record below /run/plimsoll: a plugin that is started again acts again");
            *lock(&self.unstored) = Some(record.clone());
        }
        let before = self.state.containers.settings();
        let (settings, _) = self.discover(before.config.clone());
        self.say_mode(&settings);
        self.set(settings);
        self.enqueue(Work::All);
    }

    /// Logs that the plugin only observes, and which raised limits stay.
    pub(super) fn say_mode(&self, settings: &Settings) {
        if !settings.observes() {
            return;
        }
        match &settings.brake {
            Some(brake) => error!(
                brake,
                "the brake is applied: nothing is set, raised or refused any more; find out why there was so much, then call \
                 'plimsoll reset-brake'"
            ),
            None => warn!(
                "mode is observe: nothing is set, raised or refused; 'plimsoll status' shows what would be"
            ),
        }
        for limit in raised::staying(&self.state.root, &self.state.levels.raised_limits()) {
            warn!(limit, "stays, as lowering it could kill");
        }
    }

    pub(super) fn tell_whether_it_stands_aside(&self, settings: &Settings) {
        if settings.stand_aside {
            warn!(
                "'plimsoll restore' was called: nothing is set any more, until 'plimsoll restore --undo'"
            );
        } else {
            info!("'plimsoll restore' was undone");
        }
    }

    /// Returns the settings for a configuration. If the brake's record could not be stored, the
    /// brake stays applied. The plugin then tries again to store the record.
    pub(super) fn discover(&self, config: Config) -> (Settings, NodeMemory) {
        let (mut settings, memory) = Settings::discover(config, &self.host);
        let mut unstored = lock(&self.unstored);
        match unstored.as_ref() {
            Some(record) if settings.brake.is_none() => {
                settings.brake = Some(record.to_string());
                if record.store(&self.host).is_ok() {
                    *unstored = None;
                }
            }
            // From now on the file decides whether the brake is applied. An operator can remove the
            // file.
            _ => *unstored = None,
        }
        (settings, memory)
    }

    pub(super) fn set(&self, settings: Settings) {
        if self.state.containers.settings().brake.is_some() && settings.brake.is_none() {
            // Without this the brake could never be applied again.
            self.reports.brake.clear();
            info!("the brake was reset");
        }
        self.state.levels.set_node(&settings);
        self.state.containers.set_settings(settings);
    }

    pub(super) fn take_over(&self, config: Config) {
        let (settings, memory) = self.discover(config);
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
        if settings.stand_aside {
            self.tell_whether_it_stands_aside(&settings);
        } else {
            self.say_mode(&settings);
        }
        if let (Some(kept), None, false) =
            (config.node_guard, settings.planned_guard_line(), settings.stand_aside)
        {
            let all = settings.usable.map_or_else(|| "unknown".to_owned(), Bytes::quantity);
            warn!(
                "nodeGuard would leave pods nothing: expected less than all memory, {all}, found {}; no memory is kept from pods",
                kept.quantity()
            );
        }
        for conflict in &memory.conflicts {
            warn!(%conflict, "the kubelet");
        }
        if let Some(unsettled) = &memory.unsettled {
            info!(%unsettled, "it is unknown whether the kubelet's own MemoryQoS is on");
        }
        (self.on_config)(config);
        self.set(settings);
    }

    /// Determines node allocatable again. It stands in for the limit of a container without a
    /// limit. A runtime starts its plugins before the kubelet. The kubelet determines node
    /// allocatable later and may change it.
    pub(super) fn refresh_node(&self) {
        let before = self.state.containers.settings();
        if before.config.node_allocatable != NodeAllocatable::Auto {
            return;
        }
        let (settings, memory) = self.discover(before.config.clone());
        if settings.node != before.node {
            info!("{memory}");
            self.set(settings);
            self.enqueue(Work::All);
        }
    }
}

//! The answer to UpdateContainer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use nri::Refusal;
use nri::api::{self, ContainerUpdate, LinuxResources, PodSandbox};
use plimsoll_core::policy::Setting;
use plimsoll_core::units::{Bytes, Knob, Limit};
use tracing::info;

use super::Service;
use super::translate::{cpu, has_ended, is_claimed, limit, shares};
use crate::agent::reconciler::{Work, memory_limit, update};
use crate::cgroup::{Cgroup, SWAP_MAX};
use crate::kubelet::checkpoint::Moment;
use crate::state::container::{Container, Decided, KNOBS, Update};
use crate::state::originals::Values;

impl Service {
    /// Decides the values of a container that is being updated.
    ///
    /// # Errors
    ///
    /// When the update would lower the memory limit so far that the kernel kills the container.
    pub(super) async fn update(
        &self,
        pod: PodSandbox,
        reported: api::Container,
        resources: LinuxResources,
    ) -> Result<Vec<ContainerUpdate>, Refusal> {
        let Some(known) = self.known_or_found(&pod, &reported) else { return Ok(Vec::new()) };
        let number = self.updates.fetch_add(1, Ordering::Relaxed);
        let mut updated = with_resources(&known, &resources, number);
        // The runtime does not report a failed update. Then the kernel holds values that do not
        // match the limit. This answer may also end early.
        self.enqueue(Work::Later(updated.id.clone(), number));
        let asks_for_limit = asked_limit(&resources) != 0;
        let mut instead = None;
        if asks_for_limit {
            (updated.limit, updated.revision) =
                (limit(asked_limit(&resources), self.page_size(), &updated), number + 1);
            updated.asked = updated.limit;
            instead = self.state.rescues.limit_for(&updated);
            updated.limit = instead.unwrap_or(updated.limit);
            // The plugin stores nothing of a limit decrease that it refuses.
            match self.make_room(&updated).await? {
                Some(in_force) => {
                    instead = Some(in_force);
                    updated.limit = in_force;
                }
                None => self.state.deferred.forget(&updated.id),
            }
            updated.high_before =
                self.state.containers.get(&updated.id).and_then(|known| known.high_before);
        }
        let (container, decided) = self.resolve(updated).await;
        if asks_for_limit && container.started {
            self.kills.runs(&container);
        }
        Ok(self.updates_in_reply(&container, &decided, &resources, instead))
    }

    /// Returns the known container, or the container as the runtime reports it. Returns `None` if
    /// the container has ended.
    fn known_or_found(
        &self,
        pod: &PodSandbox,
        reported: &api::Container,
    ) -> Option<Arc<Container>> {
        if let Some(known) = self.state.containers.get(&reported.id) {
            return Some(known);
        }
        if has_ended(reported) || self.others_of_its_name(&pod.id, reported).next().is_some() {
            return None;
        }
        // A limit decrease keeps the original memory.high in the known container.
        Some(self.state.containers.insert(self.found(pod, reported)))
    }

    /// Returns the updates for the reply. `instead` is the limit that the container gets instead of
    /// the one in `resources`.
    fn updates_in_reply(
        &self,
        container: &Container,
        decided: &Decided,
        resources: &LinuxResources,
        instead: Option<Limit>,
    ) -> Vec<ContainerUpdate> {
        let cgroup = container.cgroup.as_ref().and_then(|path| self.state.root.cgroup(path).ok());
        let values = values_in_reply(decided, resources, cgroup.as_ref());
        info!(
            pod = container.pod,
            container = container.name,
            class = %decided.class,
            request = decided.request.map(tracing::field::display),
            limit = %container.limit,
            ?values,
            "update"
        );
        if values.is_empty() && instead.is_none() {
            return Vec::new();
        }
        if decided.before.is_none() {
            let unknown = || Values::of_unified(&container.unified);
            let before = cgroup.as_ref().and_then(|cgroup| Values::read(cgroup).ok());
            self.state.containers.remember(container, before.unwrap_or_else(unknown));
        }
        // Keep the swap limit unless the client sets it.
        let cgroup = cgroup.filter(|_| !resources.unified.contains_key(SWAP_MAX));
        let swap_max = cgroup.and_then(|cgroup| cgroup.swap_max().ok()).and_then(Limit::bytes);
        self.state.containers.set_swap_max(&container.id, swap_max);
        reply(container, resources, values, instead, swap_max)
    }
}

/// Returns the memory limit that the update asks for; 0 if it asks for none.
fn asked_limit(resources: &LinuxResources) -> i64 {
    resources.memory.limit.as_ref().map_or(0, |limit| limit.value)
}

/// Returns the container with the update, whose number is `number`, except for the memory limit.
fn with_resources(known: &Container, resources: &LinuxResources, number: u64) -> Container {
    let mut updated = known.clone();
    updated.moment = Moment::Update;
    updated.update = Update::UnderWay(number);
    // With its new limits, the container may no longer need a raised memory.high.
    updated.released = None;
    updated.cpu = cpu(resources, updated.cpu);
    updated.cpu_shares = shares(resources, updated.cpu_shares);
    updated.swap_max = None;
    if !resources.unified.is_empty() {
        updated.unified.clone_from(&resources.unified);
    }
    updated
}

/// Returns the values for the reply. The runtime keeps earlier values and sets them again with
/// every update. So the reply contains all desired values. It contains a default only if the kernel
/// holds another value.
fn values_in_reply(
    decided: &Decided,
    resources: &LinuxResources,
    cgroup: Option<&Cgroup>,
) -> Vec<(Knob, Limit)> {
    let claimed = &resources.unified;
    KNOBS
        .into_iter()
        .filter_map(|knob| Some((knob, decided.value(knob)?)))
        // Leave the client's values, as at creation. The reconcile task checks them after the
        // update.
        .filter(|(knob, _)| !is_claimed(claimed, *knob))
        .filter(|(knob, value)| {
            if claimed.contains_key(knob.file_name()) {
                // The client's update writes the default.
                return *value != knob.default_value();
            }
            let in_force = || cgroup.and_then(|cgroup| cgroup.read(*knob).ok());
            decided.setting(*knob) != Setting::Default || in_force() != Some(*value)
        })
        .collect()
}

/// Returns the updates that set these values.
///
/// The kubelet sends the kernel's defaults with every update. The reply replaces them, so that the
/// runtime stores the plugin's values. If another plugin has set one of these keys, the runtime
/// refuses the update. If the failure may be ignored, the runtime skips only this part and the
/// plugin writes the values afterwards. (containerd/nri, pkg/adaptation/result.go: updateResources
/// works on a copy, which counts only if no key is claimed twice.)
fn reply(
    container: &Container,
    resources: &LinuxResources,
    values: Vec<(Knob, Limit)>,
    instead: Option<Limit>,
    swap_max: Option<Bytes>,
) -> Vec<ContainerUpdate> {
    let memory = instead.map(|limit| memory_limit(limit, resources.memory.as_ref()));
    let required = |values: Vec<_>| {
        let mut update = update(&container.id, values, swap_max);
        if let (Some(memory), Some(linux)) = (memory.clone(), update.linux.as_mut()) {
            linux.resources.mut_or_insert_default().memory = Some(memory).into();
        }
        update
    };
    if !values.iter().any(|(knob, _)| resources.unified.contains_key(knob.file_name())) {
        return vec![required(values)];
    }
    let is_needed = memory.is_some() || swap_max.is_some();
    let optional = ContainerUpdate { ignore_failure: true, ..update(&container.id, values, None) };
    is_needed.then(|| required(Vec::new())).into_iter().chain([optional]).collect()
}

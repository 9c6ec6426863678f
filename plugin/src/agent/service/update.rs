//! The answer to UpdateContainer.

use std::sync::Arc;

use nri::Refusal;
use nri::api::{self, ContainerUpdate, LinuxResources, PodSandbox};
use plimsoll_core::policy::{KNOBS, Setting};
use plimsoll_core::units::{Bytes, Knob, Limit};
use tracing::info;

use super::Service;
use super::translate::{cpu, has_ended, is_claimed, limit, shares};
use crate::agent::reconciler::{WorkItem, memory_limit, update};
use crate::cgroup::{Cgroup, SWAP_MAX};
use crate::kubelet::checkpoint::Moment;
use crate::state::container::{Container, DesiredState};
use crate::state::containers::Containers;
use crate::state::originals::Values;
use crate::state::resolved::Resolved;
use crate::state::update_phase::UpdatePhase;

impl Service {
    /// Decides the values of a container that the runtime is updating.
    ///
    /// # Errors
    ///
    /// Fails if the update would lower the memory limit so far that the kernel OOM-kills a process
    /// of the container.
    pub(super) async fn update(
        &self,
        pod: PodSandbox,
        reported: api::Container,
        resources: LinuxResources,
    ) -> Result<Vec<ContainerUpdate>, Refusal> {
        let Some(known) = self.known_or_found(&pod, &reported) else { return Ok(Vec::new()) };
        let update = self.state.containers.next_update();
        self.state.containers.on_phase(&known.id, |phase| phase.announce(update));
        // The runtime does not report a failed update. After a failed update, the values in the
        // files may not match the limit. The runtime may also stop waiting for this answer.
        // Therefore schedule a check.
        self.enqueue(WorkItem::CheckUpdateLater(known.id.clone(), update));
        let sets_limit = asked_limit(&resources) != 0;
        let mut updated = (*known).clone();
        revise(&mut updated, &resources);
        let mut instead = None;
        if sets_limit {
            updated.limit = limit(asked_limit(&resources), self.page_size(), &updated);
            updated.asked = updated.limit;
            instead = self.state.rescues.limit_for(&updated);
            updated.limit = instead.unwrap_or(updated.limit);
            match self.prepare_decrease(&updated).await {
                Ok(Some(in_force)) => {
                    instead = Some(in_force);
                    updated.limit = in_force;
                }
                Ok(None) => self.state.deferred.forget(&updated.id),
                Err(refusal) => {
                    let refuse = |phase: &mut UpdatePhase| phase.refuse(update);
                    self.state.containers.on_phase(&known.id, refuse);
                    // The reconcile task has skipped the container during the attempted limit
                    // decrease.
                    self.enqueue(WorkItem::Container(known.id.clone()));
                    return Err(refusal);
                }
            }
        }
        let store = |containers: &Containers| {
            containers.accept(&known.id, update, sets_limit, |now| {
                revise(now, &resources);
                if sets_limit {
                    (now.limit, now.asked) = (updated.limit, updated.asked);
                }
            })
        };
        let Some(Resolved { container, desired_state, .. }) = self.resolve(&updated, store).await
        else {
            return Ok(Vec::new());
        };
        if sets_limit && container.started {
            self.kills.runs(&container);
        }
        Ok(self.updates_in_reply(&container, &desired_state, &resources, instead))
    }

    /// Returns the known container. If the plugin does not know the container, adds and returns the
    /// container as the runtime reports it. Returns `None` if the container has ended.
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
        // Add the container now, because a limit decrease stores the original memory.high in the
        // plugin's data about the container.
        Some(self.state.containers.insert_found(self.found(pod, reported)))
    }

    /// Returns the updates for the reply. `instead` is the limit that replaces the limit in
    /// `resources`.
    fn updates_in_reply(
        &self,
        container: &Container,
        desired_state: &DesiredState,
        resources: &LinuxResources,
        instead: Option<Limit>,
    ) -> Vec<ContainerUpdate> {
        let cgroup = container.cgroup.as_ref().and_then(|path| self.state.root.cgroup(path).ok());
        let values = values_in_reply(desired_state, resources, cgroup.as_ref());
        info!(
            pod = container.pod,
            container = container.name,
            class = %desired_state.class,
            request = desired_state.request.map(tracing::field::display),
            limit = %container.limit,
            ?values,
            "update"
        );
        if values.is_empty() && instead.is_none() {
            return Vec::new();
        }
        if desired_state.before.is_none() {
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

/// Returns the memory limit that the update asks for. Returns 0 if the update has no limit.
fn asked_limit(resources: &LinuxResources) -> i64 {
    resources.memory.limit.as_ref().map_or(0, |limit| limit.value)
}

/// Gives a container all changes of the update except the memory limit.
fn revise(container: &mut Container, resources: &LinuxResources) {
    container.moment = Moment::Update;
    container.cpu = cpu(resources, container.cpu);
    container.cpu_shares = shares(resources, container.cpu_shares);
    container.swap_max = None;
    if !resources.unified.is_empty() {
        container.unified.clone_from(&resources.unified);
    }
}

/// Returns the values for the reply. The runtime stores the values of earlier replies and sets them
/// again with every update. Therefore the reply contains all desired values. The reply contains the
/// kernel's default for a file only if the file has another value.
fn values_in_reply(
    desired_state: &DesiredState,
    resources: &LinuxResources,
    cgroup: Option<&Cgroup>,
) -> Vec<(Knob, Limit)> {
    let claimed = &resources.unified;
    KNOBS
        .into_iter()
        .filter_map(|knob| Some((knob, desired_state.value(knob)?)))
        // Do not change the client's values, as in the answer to CreateContainer. The reconcile
        // task checks the files after the update.
        .filter(|(knob, _)| !is_claimed(claimed, *knob))
        .filter(|(knob, value)| {
            if claimed.contains_key(knob.file_name()) {
                // The client's update writes the kernel's default.
                return *value != knob.default_value();
            }
            let in_force = || cgroup.and_then(|cgroup| cgroup.read(*knob).ok());
            desired_state.setting(*knob) != Setting::Default || in_force() != Some(*value)
        })
        .collect()
}

/// Returns the updates that set these values.
///
/// The kubelet sends the kernel's defaults with every update. The plugin's reply replaces these
/// defaults, so that the runtime stores the plugin's values. If another plugin has set one of these
/// keys, the runtime refuses the update. With `ignore_failure`, the runtime skips only this
/// plugin's values, and the plugin writes them afterwards. (containerd/nri,
/// pkg/adaptation/result.go: updateResources changes a copy, and uses the copy only if no two
/// plugins set the same key.)
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

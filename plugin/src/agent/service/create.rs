//! The answer to CreateContainer.

use std::collections::HashMap;

use nri::Creation;
use nri::api::{self, ContainerAdjustment, LinuxContainerAdjustment, LinuxResources, PodSandbox};
use plimsoll_core::policy::{KNOBS, Setting};
use plimsoll_core::requests::annotation;
use plimsoll_core::units::{Knob, Limit, excerpt, printable};
use tracing::{info, warn};

use super::Service;
use super::translate::{is_claimed, translate};
use crate::agent::reconciler::memory_limit;
use crate::state::container::{Container, DesiredState};
use crate::state::containers::Containers;
use crate::state::originals::Values;
use crate::state::resolved::Resolved;

impl Service {
    /// Decides the values of a container that the runtime is creating.
    pub(super) async fn create(&self, pod: PodSandbox, created: api::Container) -> Creation {
        for notice in annotation::unknown(&pod.annotations) {
            warn!(pod = printable(&pod.name), "{notice}");
        }
        if created.linux.is_none() {
            warn!(
                pod = printable(&pod.name),
                container = printable(&created.name),
                "the container has no linux section, so the plugin leaves the container as it is"
            );
            return Creation::default();
        }
        self.add_sandbox(&pod);
        self.forget_older(&pod.id, &created);
        let asked = created.linux.get_or_default().resources.get_or_default().memory.clone();
        // The container has not started, whatever state the runtime reports.
        let mut container =
            Container { started: false, ..translate(&pod, &created, self.page_size()) };
        let rescued = self.state.rescues.limit_for(&container);
        container.limit = rescued.unwrap_or(container.limit);
        let store = |containers: &Containers| Some(containers.insert(container.clone()));
        let Some(Resolved { container, desired_state, .. }) = self.resolve(&container, store).await
        else {
            return Creation::default();
        };
        let unified: HashMap<_, _> = values_at_creation(&container, &desired_state)
            .map(|(knob, value)| (knob.file_name().to_owned(), value.to_string()))
            .collect();
        info!(
            pod = container.pod,
            container = container.name,
            class = %desired_state.class,
            request = desired_state.request.map(tracing::field::display),
            limit = %container.limit,
            ?unified,
            "create"
        );
        let mut adjust = ContainerAdjustment::new();
        let memory = rescued.map(|limit| memory_limit(limit, asked.as_ref()));
        if !unified.is_empty() || memory.is_some() {
            self.state.containers.remember(&container, Values::of_unified(&container.unified));
            let resources = LinuxResources { unified, memory: memory.into(), ..Default::default() };
            let linux = LinuxContainerAdjustment {
                resources: Some(resources).into(),
                ..Default::default()
            };
            adjust.linux = Some(linux).into();
        }
        Creation { adjust, update: Vec::new() }
    }
}

/// Returns the values that the runtime should set at the creation of a container. Leaves out the
/// kernel's defaults, and keys for which the create request already has a value.
///
/// A runtime refuses to create a container if two plugins set the same key. The runtime tracks
/// which keys plugins set, but not which keys its client set, so a plugin may replace the client's
/// values. Since 2.2, containerd passes the keys of the client and of all plugins in one map.
/// Therefore this plugin cannot see whether the client or another plugin set a key.
/// (containerd/nri, pkg/adaptation/result.go: adjustResources marks each key of a reply as set, and
/// copies it into the request for the next plugin.) The plugin writes the values that this function
/// leaves out once the container runs. This write does not count as a repair.
fn values_at_creation(
    container: &Container,
    desired_state: &DesiredState,
) -> impl Iterator<Item = (Knob, Limit)> {
    KNOBS.into_iter().filter_map(|knob| {
        let value = desired_state.value(knob)?;
        match container.unified.get(knob.file_name()) {
            Some(claimed) if claimed.parse() == Ok(value) => None,
            // The kubelet sends the kernel's defaults with every container.
            Some(_) if !is_claimed(&container.unified, knob) => None,
            Some(claimed) => {
                warn!(
                    pod = container.pod,
                    container = container.name,
                    knob = knob.file_name(),
                    desired = %value,
                    observed = excerpt(claimed),
                    "the runtime's client or another plugin has set this value; the plugin \
                     changes it once the container runs"
                );
                None
            }
            None => (desired_state.setting(knob) != Setting::Default).then_some((knob, value)),
        }
    })
}

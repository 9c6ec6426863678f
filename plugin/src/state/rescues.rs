//! Container limits that `oomRescue` has raised. The event handlers use these limits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::rescue::Rescue;
use plimsoll_core::units::{Bytes, Limit};

use crate::lock;
use crate::state::container::Container;
use crate::state::containers::Containers;

/// Raised limits, by pod and container name. The lock protects only the map. Code that holds the
/// lock does no I/O.
#[derive(Debug)]
pub struct Rescues {
    containers: Arc<Containers>,
    rescued: Mutex<HashMap<(CgroupPath, String), Rescue>>,
}

impl Rescues {
    /// Creates the map from the stored rescues.
    pub fn new(
        containers: Arc<Containers>,
        rescued: impl IntoIterator<Item = ((CgroupPath, String), Rescue)>,
    ) -> Self {
        Self { containers, rescued: Mutex::new(rescued.into_iter().collect()) }
    }

    /// Returns the raised limit of an active rescue, if the user still asks for the same limit. A
    /// running container keeps the raised limit even if rescues are off now, because a lower limit
    /// could OOM-kill a process. Returns `None` in observe mode.
    pub fn limit_for(&self, container: &Container) -> Option<Limit> {
        let rescued = self.rescue_of_request(container)?;
        if self.containers.settings().observes() {
            return None;
        }
        (container.started || is_rescue_wanted(&self.containers, container))
            .then_some(rescued.limit.into())
    }

    /// Returns whether the container has the raised limit of a rescue. The result does not depend
    /// on the mode, because a raised limit stays in force in observe mode.
    pub fn is_rescued(&self, container: &Container) -> bool {
        let page = self.containers.settings().node.page_size;
        self.rescue_of_request(container)
            .is_some_and(|rescued| container.limit.is_same(rescued.limit.into(), page))
    }

    /// Returns the limit that the container's user asks for. The limit that the runtime reports may
    /// be a raised limit that the runtime has stored.
    pub fn asked(&self, container: &Container) -> Limit {
        let rescued =
            self.rescued(container).filter(|rescued| container.limit == rescued.limit.into());
        rescued.map_or(container.limit, |rescued| rescued.asked.into())
    }

    /// Returns the container's rescue if the user still asks for the same limit as at the time of
    /// the rescue.
    fn rescue_of_request(&self, container: &Container) -> Option<Rescue> {
        let page = self.containers.settings().node.page_size;
        self.rescued(container)
            .filter(|rescued| container.asked.is_same(rescued.asked.into(), page))
    }

    fn rescued(&self, container: &Container) -> Option<Rescue> {
        let pod = container.place.as_ref()?.cgroup().clone();
        lock(&self.rescued).get(&(pod, container.name.clone())).copied()
    }

    /// Stores the rescue of a container. `None` ends the rescue.
    pub fn set(&self, pod: &CgroupPath, name: &str, rescued: Option<Rescue>) {
        let key = (pod.clone(), name.to_owned());
        match rescued {
            Some(rescued) => lock(&self.rescued).insert(key, rescued),
            None => lock(&self.rescued).remove(&key),
        };
    }

    /// Forgets the rescues of a pod that no longer exists.
    pub fn forget_pod(&self, pod: &CgroupPath) {
        lock(&self.rescued).retain(|(of, _), _| of != pod);
    }

    /// Returns the sum of the increases of all other containers: their raised limits minus the
    /// limits that their users ask for.
    pub fn raised_by_others(&self, container: &Container) -> Bytes {
        let own =
            container.place.as_ref().map(|place| (place.cgroup().clone(), container.name.clone()));
        let raised = lock(&self.rescued);
        let others = raised.iter().filter(|(whose, _)| Some(*whose) != own.as_ref());
        let raised = others.map(|(_, rescued)| rescued.limit.saturating_sub(rescued.asked));
        raised.fold(Bytes::ZERO, Bytes::saturating_add)
    }
}

/// Returns whether the plugin may raise the limit of this container.
pub fn is_rescue_wanted(containers: &Containers, container: &Container) -> bool {
    let settings = containers.settings();
    settings.config.oom_rescue.is_some()
        && settings.enforces()
        && container.overrides.oom_rescue != Some(None)
}

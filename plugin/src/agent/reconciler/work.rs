//! Items of work for the reconcile task.

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::units::{Bytes, Knob};

use crate::state::container::Container;
use crate::state::update_phase::{LimitOrigin, UpdateId};

/// Item of work for the reconcile task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkItem {
    /// Check a container.
    Container(String),
    /// Check a container after the runtime has written the container's files for its start or for
    /// the user's update.
    RuntimeWrote(String),
    /// Schedule a check that this update of the container has taken effect.
    CheckUpdateLater(String, UpdateId),
    /// Check a container whose update should have taken effect by now.
    CheckUpdate(String, UpdateId),
    /// Request another memory limit of a container from the runtime.
    Limit {
        /// ID of the container.
        id: String,
        /// New limit, which causes no OOM kill.
        limit: Bytes,
        /// Origin of the container's limit when the plugin decided to make this request.
        origin: LimitOrigin,
        /// Whether the limit is a decrease that the plugin has prepared.
        is_prepared: bool,
    },
    /// Check a cgroup above the containers.
    Cgroup(CgroupPath),
    /// Check a file of a managed cgroup because another program wrote this file earlier.
    CheckFile(CgroupPath, Knob),
    /// Inspect a cgroup whose container the runtime may not have reported, or a reserved cgroup
    /// that may not exist.
    UnknownCgroup(CgroupPath),
    /// Write all managed cgroups again, because the protection of each pod has changed.
    Share,
    /// Check all containers and all managed cgroups.
    All,
}

impl WorkItem {
    /// Requests a higher limit for a container. The request is no longer valid once the user
    /// requests another limit.
    pub fn higher_limit(container: &Container, limit: Bytes) -> Self {
        let (id, origin) = (container.id.clone(), container.phase.limit_origin());
        Self::Limit { id, limit, origin, is_prepared: false }
    }

    /// Requests a lower limit for a container that the plugin has prepared for this limit. The
    /// request is no longer valid once the runtime announces another update.
    pub fn prepared_limit(container: &Container, limit: Bytes) -> Self {
        let (id, origin) = (container.id.clone(), container.phase.limit_origin());
        Self::Limit { id, limit, origin, is_prepared: true }
    }
}

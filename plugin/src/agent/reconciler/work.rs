//! Work for the reconcile task.

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::units::{Bytes, Knob};

use crate::state::container::Container;

/// Work for the reconcile task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Check a container.
    Container(String),
    /// Check a container whose files the runtime has just written for its client, at a start or by
    /// an update.
    Written(String),
    /// Check later whether the container's update with this number has taken effect.
    Later(String, u64),
    /// Check a container whose update with this number should have taken effect by now.
    Updated(String, u64),
    /// Ask the runtime for another limit of a container.
    Limit {
        /// ID of the container.
        id: String,
        /// The new limit, which does not kill the container.
        limit: Bytes,
        /// Revision of the container at the time of the decision. After a newer revision the
        /// request is void.
        revision: u64,
    },
    /// Check a cgroup above the containers.
    Cgroup(CgroupPath),
    /// Check a file of a cgroup above the containers that another program wrote some time ago.
    Touched(CgroupPath, Knob),
    /// Inspect a cgroup that the runtime may not have reported, or a reserved cgroup that may be
    /// missing.
    Stranger(CgroupPath),
    /// Write the shares of pods that ask for more than the budget.
    Share,
    /// Check every container and every cgroup above.
    All,
}

impl Work {
    /// Requests another limit for a container. The request is void once the user asks for another
    /// limit.
    pub fn limit(container: &Container, limit: Bytes) -> Self {
        Self::Limit { id: container.id.clone(), limit, revision: container.revision }
    }
}

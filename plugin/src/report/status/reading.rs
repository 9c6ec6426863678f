//! Values read from the cgroup of a container.

use plimsoll_core::policy::Protection;
use plimsoll_core::policy::hierarchy::ObservedCgroup;
use plimsoll_core::units::{Bytes, Knob, Limit};

use crate::cgroup::{Cgroup, CgroupError, CgroupRoot};
use crate::report::status::format::Values;
use crate::state::container::Container;

/// Reason why the plugin did not read the values of a container that has not started.
const NOT_STARTED: &str = "the container has not started";

/// Values read from a container's cgroup.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ContainerReading {
    pub(super) values: Values,
    pub(super) usage: Bytes,
    pub(super) working_set: Option<Bytes>,
    pub(super) stalled: Option<(f64, f64)>,
    pub(super) oom_kills: Option<u64>,
}

impl ContainerReading {
    fn of(cgroup: &Cgroup) -> Result<Self, CgroupError> {
        let [min, low, high, max] =
            [Knob::Min, Knob::Low, Knob::High, Knob::Max].map(|knob| cgroup.read(knob));
        let values = Values { min: Some(min?), low: Some(low?), high: high.ok(), max: Some(max?) };
        let usage = cgroup.usage()?;
        Ok(Self {
            values,
            usage,
            working_set: cgroup.inactive_file().ok().map(|inactive| usage.saturating_sub(inactive)),
            stalled: cgroup
                .pressure()
                .ok()
                .map(|pressure| (pressure.percent, pressure.total.as_secs_f64())),
            oom_kills: cgroup.events().ok().map(|events| events.oom_kill),
        })
    }

    pub(super) fn observed(&self) -> ObservedCgroup {
        let zero = Limit::Bytes(Bytes::ZERO);
        let setting =
            Protection::of_files(self.values.min.unwrap_or(zero), self.values.low.unwrap_or(zero));
        ObservedCgroup { setting, usage: self.usage }
    }
}

/// Reads the cgroup of a container. The error is the reason that `plimsoll status` shows.
pub(super) fn read(root: &CgroupRoot, container: &Container) -> Result<ContainerReading, String> {
    let Some(path) = &container.cgroup else { return Err(NOT_STARTED.to_owned()) };
    root.cgroup(path).and_then(|cgroup| ContainerReading::of(&cgroup)).map_err(
        |error| match error {
            CgroupError::Gone(_) if !container.started => NOT_STARTED.to_owned(),
            error => unread(&error),
        },
    )
}

/// Returns the reason why the plugin could not read a cgroup, with advice.
pub(super) fn unread(error: &CgroupError) -> String {
    match error {
        CgroupError::Gone(_) => {
            format!(
                "{error}: the runtime is creating or removing the cgroup, or this node has \
                     no such cgroup"
            )
        }
        _ => format!(
            "{error}; run the plugin as root with the node's cgroups, and see 'plimsoll doctor'"
        ),
    }
}

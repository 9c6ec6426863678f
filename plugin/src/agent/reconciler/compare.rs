//! Compares a container's desired values with its cgroup files.

use plimsoll_core::policy::{KNOBS, Protection};
use plimsoll_core::units::{Bytes, CpuMax, Knob, Limit};

use crate::cgroup::{CgroupError, CgroupRoot};
use crate::state::container::{Container, DesiredState};
use crate::state::containers::Containers;
use crate::state::originals::Values;
use crate::state::update_phase::UpdateResult;

/// A cgroup file of a container whose value is not the desired value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// The file.
    pub knob: Knob,
    /// Observed value.
    pub observed: Limit,
    /// Desired value.
    pub desired: Limit,
}

/// Result of comparing a container's desired values with its cgroup files.
#[derive(Debug)]
pub struct Comparison {
    /// Desired values.
    pub desired_state: DesiredState,
    /// Files whose values are not the desired values.
    pub writes: Vec<Write>,
    /// Protection that the container needs from the cgroups above it.
    pub claim: Protection,
    /// Values in the container's files.
    pub held: Values,
    /// Swap limit, if there is one.
    pub swap_max: Option<Bytes>,
    /// Limits in the container's files. `None` if the container has no cgroup, or if the cgroup
    /// does not contain the container's processes.
    pub in_force: Option<LimitsInForce>,
}

/// Observed values of memory.max, cpu.max, cpu.weight and memory.swap.max.
#[derive(Clone, Copy, Debug)]
pub struct LimitsInForce {
    /// `memory.max`.
    pub memory: Limit,
    /// `cpu.max`.
    pub cpu: CpuMax,
    /// `cpu.weight`. `None` without the CPU controller, or if no applied update needs a check.
    pub weight: Option<u64>,
    /// `memory.swap.max`, if it is limited.
    pub swap_max: Option<Bytes>,
}

/// Compares a container's desired values with its cgroup files.
///
/// # Errors
///
/// Fails if the container's cgroup cannot be read.
pub fn compare(
    containers: &Containers,
    root: &CgroupRoot,
    container: &Container,
) -> Result<Comparison, CgroupError> {
    let page = containers.settings().node.page_size;
    let record = containers.record(container);
    let without_cgroup = || {
        let desired_state = containers.decide(container, &record);
        let claim = desired_state.desired.claim.unwrap_or_default();
        let (writes, held) = (Vec::new(), Values::default());
        Comparison { desired_state, writes, claim, held, swap_max: None, in_force: None }
    };
    let Some(path) = &container.cgroup else { return Ok(without_cgroup()) };
    let cgroup = root.cgroup(path)?;
    // If the cgroup is empty, its values apply to no process (gVisor).
    if container.started && !cgroup.has_processes()? {
        return Ok(without_cgroup());
    }
    let in_force = cgroup.read(Knob::Max)?;
    let desired_state = if in_force.is_same(container.limit, page) {
        containers.decide(container, &record)
    } else {
        // Use the limit that the kernel enforces. The announced update has failed, or the runtime
        // has applied an update that it did not announce.
        containers.decide(&Container { limit: in_force, ..container.clone() }, &record)
    };
    let mut writes = Vec::new();
    let held = Values::read(&cgroup)?;
    for knob in KNOBS {
        if let (Some(observed), Some(desired)) = (held.get(knob), desired_state.value(knob))
            && !observed.is_same(desired, page)
        {
            writes.push(Write { knob, observed, desired });
        }
    }
    // Values that the plugin's policy does not set may also protect the container.
    let claim = desired_state.desired.claim.unwrap_or(held.protection());
    // Without swap accounting, there is no swap limit that an update could remove.
    let swap_max = cgroup.swap_max().ok().and_then(Limit::bytes);
    // Without the CPU controller there is no CPU limit.
    let cpu = cgroup.cpu_max().unwrap_or(CpuMax::NONE);
    // The plugin compares cpu.weight only after an update.
    let is_applied = container.phase.result() == Some(UpdateResult::Applied);
    let weight = if is_applied { cgroup.cpu_weight().ok() } else { None };
    let in_force = LimitsInForce { memory: in_force, cpu, weight, swap_max };
    Ok(Comparison { desired_state, writes, claim, held, swap_max, in_force: Some(in_force) })
}

/// Returns a write for each desired value of a container, even if its files already have these
/// values.
pub(super) fn all_writes(desired_state: &DesiredState) -> Vec<Write> {
    let write = |(knob, value)| Write { knob, observed: value, desired: value };
    desired_state.values().into_iter().map(write).collect()
}

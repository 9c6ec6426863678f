//! Compares a container with the kernel.

use plimsoll_core::policy::{KNOBS, Protection};
use plimsoll_core::units::{Bytes, CpuMax, Knob, Limit};

use crate::cgroup::{CgroupError, CgroupRoot};
use crate::state::container::{Container, DesiredState};
use crate::state::containers::Containers;
use crate::state::originals::Values;
use crate::state::update_phase::UpdateResult;

/// A file of a container that does not hold its desired value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// The file.
    pub knob: Knob,
    /// Observed value.
    pub observed: Limit,
    /// Desired value.
    pub desired: Limit,
}

/// Comparison of a container with the kernel.
#[derive(Debug)]
pub struct Comparison {
    /// Desired values.
    pub desired_state: DesiredState,
    /// Files that differ.
    pub writes: Vec<Write>,
    /// Protection that the cgroups above must provide for the container.
    pub claim: Protection,
    /// Values that the container's files hold.
    pub held: Values,
    /// Swap limit, if there is one.
    pub swap_max: Option<Bytes>,
    /// Limits that the container's files hold. `None` without a cgroup, or if the container's
    /// processes are not in the cgroup.
    pub in_force: Option<LimitsInForce>,
}

/// Observed values of the files that hold the user's limits.
#[derive(Clone, Copy, Debug)]
pub struct LimitsInForce {
    /// `memory.max`.
    pub memory: Limit,
    /// `cpu.max`.
    pub cpu: CpuMax,
    /// `cpu.weight`. `None` without the CPU controller, or if the runtime has not just applied an
    /// update.
    pub weight: Option<u64>,
    /// `memory.swap.max`, if it is limited.
    pub swap_max: Option<Bytes>,
}

/// Compares a container with the kernel.
///
/// # Errors
///
/// When the container's cgroup cannot be read.
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
    // The values of an empty cgroup apply to no process (gVisor).
    if container.started && !cgroup.has_processes()? {
        return Ok(without_cgroup());
    }
    let in_force = cgroup.read(Knob::Max)?;
    let desired_state = if in_force.is_same(container.limit, page) {
        containers.decide(container, &record)
    } else {
        // The announced update has failed, or the runtime has applied an update without announcing
        // it. Use the limit that the kernel enforces.
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
    // A file that the policy leaves alone also protects the container.
    let claim = desired_state.desired.claim.unwrap_or(held.protection());
    // Without swap accounting there is no swap limit to lose.
    let swap_max = cgroup.swap_max().ok().and_then(Limit::bytes);
    // Without the CPU controller there is no CPU limit.
    let cpu = cgroup.cpu_max().unwrap_or(CpuMax::NONE);
    // The plugin compares the weight only after an update.
    let is_applied = container.phase.result() == Some(UpdateResult::Applied);
    let weight = if is_applied { cgroup.cpu_weight().ok() } else { None };
    let in_force = LimitsInForce { memory: in_force, cpu, weight, swap_max };
    Ok(Comparison { desired_state, writes, claim, held, swap_max, in_force: Some(in_force) })
}

/// Returns writes of all desired values of a container, even of values that its files hold already.
pub(super) fn all_writes(desired_state: &DesiredState) -> Vec<Write> {
    let write = |(knob, value)| Write { knob, observed: value, desired: value };
    desired_state.values().into_iter().map(write).collect()
}

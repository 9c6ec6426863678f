//! Raises pod limits that are lower than the sum of the containers' limits.
//!
//! The plugin raises a pod limit only if it knows that this limit is the sum of the containers'
//! limits. The plugin never lowers a pod limit. Only the kubelet lowers pod limits.

use std::str::FromStr;
use std::time::Duration;

use plimsoll_core::incident::{Incident, Occurrence};
use plimsoll_core::outcome::Outcome;
use plimsoll_core::pod::{CgroupPath, QosClass};
use plimsoll_core::policy::contention::RepairDecision;
use plimsoll_core::policy::limit_decrease::Raise;
use plimsoll_core::policy::pod_limit::{Evidence, Origin, Unit};
use plimsoll_core::units::{Bytes, CPU_MAX, CpuMax, Knob, Limit, PageSize};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::sandbox::Origins;
use super::{InForce, Levels, Raising, State};
use crate::cgroup::CgroupError;
use crate::lock;
use crate::state::brake::Cause;
use crate::state::container::Container;
use crate::state::originals::RaisedLimit;
use crate::state::pod_view::{OwnRequest, PodView};

/// Result of [`Levels::raise_limits`].
#[derive(Debug, Default)]
pub struct LimitRaise {
    /// Incidents to report.
    pub incidents: Vec<Occurrence>,
    /// Time until the plugin may raise the limits, if it must wait.
    pub again: Option<Duration>,
}

/// A raised limit: file name, value before the raise and value after the raise. In observe mode,
/// the value after the raise is the value that the plugin would write.
type RaisedFile = (&'static str, String, String);

/// A file with a pod's limit.
type LimitFile = (CgroupPath, &'static str);

/// Evidence about a pod's memory limit and its CPU limit.
struct PodEvidence<'v> {
    memory: Evidence<'v>,
    cpu: Evidence<'v>,
}

impl PodEvidence<'_> {
    /// Returns whether a limit of unknown origin is lower than the sum of the containers' limits.
    fn has_low_limit_of_unknown_origin(&self, origins: &Origins) -> bool {
        let is_low = |evidence: &Evidence<'_>, origin| {
            origin == Origin::Unknown
                && evidence
                    .in_force
                    .zip(evidence.needed())
                    .is_some_and(|(now, needed)| now < needed)
        };
        is_low(&self.memory, origins.memory) || is_low(&self.cpu, origins.cpu)
    }

    /// Returns the limits that the pod needs, if the limits in force are lower. Includes only
    /// limits that are the sum of the containers' limits.
    fn raise(&self, origins: &Origins, page: PageSize) -> Raise {
        let needed =
            |evidence: &Evidence<'_>, origin| evidence.needed().filter(|_| origin == Origin::Sum);
        let in_force = self.memory.in_force.map(Bytes::new);
        let is_low =
            |needed: &Bytes| in_force.is_some_and(|in_force| in_force < needed.floor_to(page));
        Raise {
            memory: needed(&self.memory, origins.memory).map(Bytes::new).filter(is_low),
            cpu: needed(&self.cpu, origins.cpu)
                .filter(|needed| self.cpu.in_force.is_some_and(|in_force| in_force < *needed)),
        }
    }
}

impl Levels {
    /// Raises the limits of a pod before one of its containers gets new limits. The new pod limits
    /// are the sum of the containers' limits. `is_touched` is true if inotify has reported another
    /// program's write to `memory.max`. In this case, the plugin waits longer before each further
    /// raise.
    pub fn raise_limits(
        &self,
        container: &Container,
        pod: &PodView,
        is_touched: bool,
    ) -> LimitRaise {
        let mut result = LimitRaise::default();
        let Some(place) = &container.place else { return result };
        let path = place.cgroup();
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let (memory_in_force, cpu_in_force) = match self.limits(path) {
            Ok(in_force) => in_force,
            // The pod's cgroup may not exist until the runtime creates the pod's first container.
            Err(CgroupError::Gone(_)) => (None, None),
            Err(error) => {
                cannot_raise(container, path, &error);
                return result;
            }
        };
        let evidence = self.pod_evidence(state, container, pod, memory_in_force, cpu_in_force);
        let origins = update_origins(state, container, &evidence, pod.own_request);
        // The memory request of a Guaranteed pod equals its limit. Therefore the pod needs no more
        // protection than its limit, even if the origin of the limit is unknown.
        let is_all_requested =
            place.class() == QosClass::Guaranteed && origins.memory == Origin::Unknown;
        let overhead = Bytes::new(evidence.memory.overhead);
        let cap = origins.cap(overhead).or(memory_in_force.filter(|_| is_all_requested));
        let levels = state.tree.set_cap(path, cap);
        self.apply_levels(state, levels, Some(path));
        if let Some(sandbox) = state.sandboxes.get(&container.sandbox) {
            let own = sandbox.own_protection(origins.own_request, &state.policy);
            let levels = state.tree.set_own(path, own);
            self.apply_levels(state, levels, Some(path));
        }
        let mut raise = evidence.raise(&origins, self.page_size);
        if state.raising == Raising::Done {
            // Decide about memory and CPU separately, because a conflict about the memory limit
            // must not prevent a raise of the CPU limit.
            let in_force = memory_in_force;
            self.may_raise_memory(state, path, in_force, &mut raise, is_touched, &mut result);
            self.may_raise_cpu(state, path, cpu_in_force, &mut raise, &mut result);
        }
        let (raised, written) = self.raise(state, path, raise);
        result.incidents.extend(raised.into_iter().map(|(knob, observed, desired)| Occurrence {
            subject: container.into(),
            incident: Incident::PodRaised { knob, desired, observed },
            is_planned: state.raising == Raising::Planned,
        }));
        match written {
            Ok(()) | Err(CgroupError::Gone(_)) => {}
            Err(error) => cannot_raise(container, path, &error),
        }
        result
    }

    fn pod_evidence<'v>(
        &self,
        state: &State,
        container: &Container,
        pod: &'v PodView,
        memory_in_force: Option<Bytes>,
        cpu_in_force: Option<u64>,
    ) -> PodEvidence<'v> {
        let sandbox = state.sandboxes.get(&container.sandbox);
        let memory = Evidence {
            record: pod.memory.0,
            members: &pod.memory.1,
            in_force: memory_in_force.map(Bytes::get),
            at_creation: sandbox.and_then(|sandbox| sandbox.memory_limit).map(Bytes::get),
            overhead: sandbox.map_or(0, |sandbox| sandbox.overhead.get()),
            unit: Unit::Bytes(self.page_size.get()),
        };
        let cpu = Evidence {
            record: pod.cpu.0,
            members: &pod.cpu.1,
            in_force: cpu_in_force,
            at_creation: sandbox.and_then(|sandbox| sandbox.cpu_limit),
            overhead: sandbox.map_or(0, |sandbox| sandbox.cpu_overhead),
            unit: Unit::Rate,
        };
        PodEvidence { memory, cpu }
    }

    /// Cancels the raise of `memory.max` if the plugin must not raise this limit now.
    fn may_raise_memory(
        &self,
        state: &mut State,
        pod: &CgroupPath,
        in_force: Option<Bytes>,
        raise: &mut Raise,
        is_touched: bool,
        result: &mut LimitRaise,
    ) {
        let (Some(observed), Some(needed)) = (in_force, raise.memory) else { return };
        let desired = needed.floor_to(self.page_size);
        let file = (pod.clone(), Knob::Max.file_name());
        let [now, to] = [observed, desired].map(Limit::Bytes);
        let is_lowered = is_touched || self.was_raised(&file, |raised: Limit| raised >= to);
        let contended =
            |repairs| Incident::Contended { knob: Knob::Max, desired: to, observed: now, repairs };
        let decision = self.may_raise(
            state,
            file,
            is_lowered,
            desired.get(),
            contended,
            &mut result.incidents,
        );
        if let Err(wait) = decision {
            (raise.memory, result.again) = (None, wait);
        }
    }

    /// Cancels the raise of `cpu.max` if the plugin must not raise this limit now.
    fn may_raise_cpu(
        &self,
        state: &mut State,
        pod: &CgroupPath,
        in_force: Option<u64>,
        raise: &mut Raise,
        result: &mut LimitRaise,
    ) {
        let (Some(observed), Some(desired)) = (in_force, raise.cpu) else { return };
        let file = (pod.clone(), CPU_MAX);
        let [now, to] = [observed, desired].map(|rate| CpuMax::NONE.with_rate(rate));
        let is_lowered = self
            .was_raised(&file, |raised: CpuMax| raised.rate().is_none_or(|rate| rate >= desired));
        let contended = |repairs| Incident::CpuContended { desired: to, observed: now, repairs };
        if self
            .may_raise(state, file, is_lowered, desired, contended, &mut result.incidents)
            .is_err()
        {
            raise.cpu = None;
        }
    }

    /// Decides whether the plugin may raise a pod's limit to `desired`. If another program keeps
    /// lowering the limit, the plugin waits longer before each raise, and finally stops. Returns
    /// `Err` with the waiting time if a later attempt is useful.
    fn may_raise(
        &self,
        state: &mut State,
        file: LimitFile,
        is_lowered: bool,
        desired: u64,
        contended: impl FnOnce(u32) -> Incident,
        incidents: &mut Vec<Occurrence>,
    ) -> Result<(), Option<Duration>> {
        let pod = &file.0;
        if state.leaves_changes {
            let inode = self.root.cgroup(pod).and_then(|cgroup| cgroup.inode()).unwrap_or_default();
            if is_lowered {
                debug!(
                    cgroup = %pod,
                    knob = file.1,
                    desired,
                    "repair is false, so the plugin leaves the changed value"
                );
                state.left_limits.insert(file.clone(), (inode, desired));
            }
            let is_left = state.left_limits.get(&file) == Some(&(inode, desired));
            return if is_left { Err(None) } else { Ok(()) };
        }
        let now = Instant::now().into_std();
        if !is_lowered && !state.limits.is_left(&file, &desired, now) {
            return Ok(());
        }
        match state.limits.judge(file.clone(), desired, is_lowered, now) {
            RepairDecision::Repair => {
                self.brake.count(Cause::Repairs, now);
                Ok(())
            }
            RepairDecision::Wait(wait) => Err(Some(wait)),
            RepairDecision::GiveUp => {
                let incident = contended(state.limits.repairs(&file));
                incidents.push(Occurrence::new(pod, incident));
                Err(None)
            }
            RepairDecision::Leave => Err(None),
        }
    }

    /// Returns whether the plugin has raised the file to a value for which `is_it` returns true. If
    /// the file now has a lower value, another program has lowered the limit.
    fn was_raised<V: FromStr>(&self, file: &LimitFile, is_it: impl Fn(V) -> bool) -> bool {
        let (pod, file) = file;
        let Ok(inode) = self.root.cgroup(pod).and_then(|cgroup| cgroup.inode()) else {
            return false;
        };
        let originals = lock(&self.originals);
        let mut limits = originals.raised_limits().iter();
        limits.any(|limit| {
            (&limit.cgroup, limit.inode, limit.file.as_str()) == (pod, inode, *file)
                && limit.to.parse().is_ok_and(&is_it)
        })
    }

    /// Returns the limits in force: memory in bytes, and CPU time in microseconds per second.
    /// `None` means no limit.
    fn limits(&self, cgroup: &CgroupPath) -> Result<(Option<Bytes>, Option<u64>), CgroupError> {
        let cgroup = self.root.cgroup(cgroup)?;
        let cpu = match cgroup.cpu_max() {
            // Without the CPU controller there is no CPU limit.
            Err(CgroupError::Unsupported { .. }) => None,
            cpu => cpu?.rate(),
        };
        Ok((cgroup.read(Knob::Max)?.bytes(), cpu))
    }

    /// Returns whether the plugin knows that the pod of this sandbox has a pod-level memory limit.
    pub fn has_own_memory_limit(&self, sandbox: &str) -> bool {
        lock(&self.state)
            .origins
            .get(sandbox)
            .is_some_and(|origins| matches!(origins.memory, Origin::Own(_)))
    }

    /// Raises a pod's limits. Returns the files that the plugin has raised, even if it failed to
    /// write another file.
    pub(super) fn raise(
        &self,
        state: &mut State,
        pod: &CgroupPath,
        raise: Raise,
    ) -> (Vec<RaisedFile>, Result<(), CgroupError>) {
        let mut raised = Vec::new();
        if state.raising == Raising::Off {
            return (raised, Ok(()));
        }
        let result = self.raise_files(pod, &raise, state.raising, &mut raised);
        if !raised.is_empty()
            && state.raising == Raising::Done
            && let Ok(in_force) = self.root.cgroup(pod).and_then(|open| InForce::read(&open))
        {
            for (file, from, to) in raised.iter().cloned() {
                let limit = RaisedLimit {
                    cgroup: pod.clone(),
                    inode: in_force.inode,
                    file: file.to_owned(),
                    from,
                    to,
                };
                let remembered = lock(&self.originals).remember_raised(limit);
                self.complain(state, remembered);
            }
            self.queue_for_systemd(state, pod, &in_force, Some(raise));
        }
        (raised, result)
    }

    fn raise_files(
        &self,
        pod: &CgroupPath,
        raise: &Raise,
        raising: Raising,
        raised: &mut Vec<RaisedFile>,
    ) -> Result<(), CgroupError> {
        if *raise == Raise::NONE {
            return Ok(());
        }
        let cgroup = self.root.cgroup(pod)?;
        if let Some(memory) = raise.memory
            && let Limit::Bytes(observed) = cgroup.read(Knob::Max)?
            && observed < memory.floor_to(self.page_size)
        {
            let mut desired = Limit::Bytes(memory);
            if raising == Raising::Done {
                cgroup.write_knob(Knob::Max, desired)?;
                desired = cgroup.read(Knob::Max)?;
            }
            raised.push((Knob::Max.file_name(), observed.to_string(), desired.to_string()));
        }
        if let Some(cpu) = raise.cpu {
            let observed = match cgroup.cpu_max() {
                // Without the CPU controller there is no CPU limit.
                Err(CgroupError::Unsupported { .. }) => return Ok(()),
                observed => observed?,
            };
            if let Some(rate) = observed.rate()
                && rate < cpu
            {
                let mut desired = observed.with_rate(cpu);
                if raising == Raising::Done {
                    cgroup.set_cpu_max(desired)?;
                    desired = cgroup.cpu_max()?;
                }
                raised.push((CPU_MAX, observed.to_string(), desired.to_string()));
            }
        }
        Ok(())
    }

    /// Returns the pod limits that the plugin has raised.
    pub fn raised_limits(&self) -> Vec<RaisedLimit> {
        lock(&self.originals).raised_limits().to_vec()
    }

    /// Queues the current limits of the cgroup's files for systemd, if the cgroup may belong to a
    /// systemd unit.
    pub fn make_limits_last(&self, cgroup: &CgroupPath) {
        let state = lock(&self.state);
        if let Ok(in_force) = self.root.cgroup(cgroup).and_then(|open| InForce::read(&open)) {
            self.queue_for_systemd(&state, cgroup, &in_force, Some(Raise::NONE));
        }
    }
}

/// Updates the origins of a pod's limits. If the plugin does not raise a low limit because its
/// origin is unknown, logs this once per pod.
fn update_origins(
    state: &mut State,
    container: &Container,
    evidence: &PodEvidence<'_>,
    own_request: OwnRequest,
) -> Origins {
    let PodEvidence { memory, cpu } = evidence;
    let before = state.origins.get(&container.sandbox).copied().unwrap_or_default();
    let mut origins =
        Origins { memory: memory.origin(before.memory), cpu: cpu.origin(before.cpu), ..before };
    if let OwnRequest::Known(request) = own_request {
        origins.own_request = request;
    }
    if !before.is_said && evidence.has_low_limit_of_unknown_origin(&origins) {
        origins.is_said = true;
        // This message is no warning, because the user usually intends a low pod limit.
        info!(
            pod = container.pod,
            container = container.name,
            cgroup = container.place.as_ref().map(|place| tracing::field::display(place.cgroup())),
            memory = memory.in_force,
            memory_needed = memory.needed(),
            cpu = cpu.in_force,
            cpu_needed = cpu.needed(),
            "the pod's limit is lower than the sum of its containers' limits, but stays: neither \
             the kubelet's record nor the runtime's data nor the history proves that the pod's \
             limit is a sum. Logged once"
        );
    }
    if state.sandboxes.contains_key(&container.sandbox) {
        state.origins.insert(container.sandbox.clone(), origins);
    }
    origins
}

fn cannot_raise(container: &Container, cgroup: &CgroupPath, error: &CgroupError) {
    warn!(
        pod = container.pod,
        container = container.name,
        %cgroup,
        %error,
        outcome = %Outcome::from(error),
        "cannot raise the pod's limits, which may be lower than the sum of its containers' \
         limits"
    );
}

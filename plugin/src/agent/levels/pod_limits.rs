//! Raises the limits of pods that are lower than what the containers may use.

use std::str::FromStr;
use std::time::Duration;

use plimsoll_core::incident::Incident;
use plimsoll_core::outcome::Outcome;
use plimsoll_core::pod::{CgroupPath, QosClass};
use plimsoll_core::policy::contention::Verdict;
use plimsoll_core::policy::pod_limit::{Evidence, Origin, Unit};
use plimsoll_core::policy::resize::Raise;
use plimsoll_core::units::{Bytes, CPU_MAX, CpuMax, Knob, Limit};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::sandbox::Origins;
use super::{Levels, InForce, Raising, State};
use crate::cgroup::CgroupError;
use crate::lock;
use crate::state::brake::Cause;
use crate::state::container::Container;
use crate::state::originals::RaisedLimit;
use crate::state::pod_view::PodView;

fn cannot_raise(container: &Container, cgroup: &CgroupPath, error: &CgroupError) {
    warn!(
        pod = container.pod,
        container = container.name,
        %cgroup,
        %error,
        outcome = %Outcome::from(error),
        "cannot raise the pod's limits, which may be tighter than what its containers may use"
    );
}

/// A raised limit: file name, value before the raise and value read back. In observe mode the last
/// one is the desired value.
type Raised = (&'static str, String, String);

impl Levels {
    /// Raises the limits of a pod before one of its containers gets its own limits. The new limits
    /// are the sum of what the containers may then use. A pod limit is raised only if its origin is
    /// known to be such a sum. The plugin never lowers a pod limit, because this is the kubelet's
    /// task.
    pub fn raise_limits(&self, container: &Container, pod: &PodView) {
        self.raise_where_allowed(container, pod, false);
    }

    /// Raises the limits of a pod as [`Self::raise_limits`] does, after another program has written
    /// one of them. Repeated raises back off. Returns the time to wait if the next raise is not due
    /// yet.
    pub fn raise_limits_again(&self, container: &Container, pod: &PodView) -> Option<Duration> {
        self.raise_where_allowed(container, pod, true)
    }

    fn raise_where_allowed(
        &self,
        container: &Container,
        pod: &PodView,
        is_touched: bool,
    ) -> Option<Duration> {
        let place = container.place.as_ref()?;
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let sandbox = state.sandboxes.get(&container.sandbox);
        let overhead = sandbox.map_or(Bytes::ZERO, |sandbox| sandbox.overhead);
        let (memory_in_force, cpu_in_force) = match self.limits(place.cgroup()) {
            Ok(in_force) => in_force,
            // The pod's cgroup may not exist before the pod's first container.
            Err(CgroupError::Gone(_)) => (None, None),
            Err(error) => {
                cannot_raise(container, place.cgroup(), &error);
                return None;
            }
        };
        let memory = Evidence {
            record: pod.memory.0,
            members: &pod.memory.1,
            in_force: memory_in_force.map(Bytes::get),
            at_creation: sandbox.and_then(|sandbox| sandbox.memory_limit).map(Bytes::get),
            overhead: overhead.get(),
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
        let before = state.origins.get(&container.sandbox).copied().unwrap_or_default();
        let mut origins =
            Origins { memory: memory.origin(before.memory), cpu: cpu.origin(before.cpu), ..before };
        let is_tight = |evidence: &Evidence<'_>, origin| {
            origin == Origin::Unknown
                && evidence
                    .in_force
                    .zip(evidence.needed())
                    .is_some_and(|(now, needed)| now < needed)
        };
        if !before.is_said && (is_tight(&memory, origins.memory) || is_tight(&cpu, origins.cpu)) {
            origins.is_said = true;
            // This is no warning, because a low pod limit is usually intended.
            info!(
                pod = container.pod,
                container = container.name,
                cgroup = %place.cgroup(),
                memory = memory.in_force,
                memory_needed = memory.needed(),
                cpu = cpu.in_force,
                cpu_needed = cpu.needed(),
                "the pod's limit is tighter than what its containers may use, and is left: neither the kubelet's record, nor what the \
                 runtime tells of the pod, nor its history proves that it is the sum of their limits. Said once"
            );
        }
        if state.sandboxes.contains_key(&container.sandbox) {
            state.origins.insert(container.sandbox.clone(), origins);
        }
        // A Guaranteed pod requests as much as its limit. Its limit therefore caps the claim, even
        // if the origin of the limit is unknown.
        let is_all_requested =
            place.class() == QosClass::Guaranteed && origins.memory == Origin::Unknown;
        let cap = origins.cap(overhead).or(memory_in_force.filter(|_| is_all_requested));
        let levels = state.tree.set_cap(place.cgroup(), cap);
        self.apply_levels(state, levels, Some(place.cgroup()));
        let to =
            |evidence: &Evidence<'_>, origin| evidence.needed().filter(|_| origin == Origin::Sum);
        let mut raise = Raise {
            memory: to(&memory, origins.memory).map(Bytes::new),
            cpu: to(&cpu, origins.cpu),
        };
        let mut again = None;
        // Memory and CPU are independent: a contended limit of one does not stop the other.
        if state.raising == Raising::Done {
            let memory = raise.memory.map(|to| to.floor_to(self.page_size));
            if let (Some(observed), Some(desired)) = (memory_in_force, memory)
                && observed < desired
            {
                let file = (place.cgroup().clone(), Knob::Max.file_name());
                let [now, to] = [observed, desired].map(Limit::Bytes);
                let is_lowered = is_touched || self.was_raised(&file, |raised: Limit| raised >= to);
                let contended = |repairs| Incident::Contended {
                    knob: Knob::Max,
                    desired: to,
                    observed: now,
                    repairs,
                };
                if let Err(wait) = self.may_raise(state, file, is_lowered, desired.get(), contended)
                {
                    (raise.memory, again) = (None, wait);
                }
            }
            if let (Some(observed), Some(desired)) = (cpu_in_force, raise.cpu)
                && observed < desired
            {
                let file = (place.cgroup().clone(), CPU_MAX);
                let [now, to] = [observed, desired].map(|rate| CpuMax::NONE.with_rate(rate));
                let is_lowered = self.was_raised(&file, |raised: CpuMax| {
                    raised.rate().is_none_or(|rate| rate >= desired)
                });
                let contended =
                    |repairs| Incident::CpuContended { desired: to, observed: now, repairs };
                if self.may_raise(state, file, is_lowered, desired, contended).is_err() {
                    raise.cpu = None;
                }
            }
        }
        let (raised, result) = self.raise(state, place.cgroup(), raise);
        for (file, observed, desired) in &raised {
            let (desired, observed) = (desired.clone(), observed.clone());
            let what = Incident::PodRaised { knob: file, desired, observed };
            if state.raising == Raising::Planned {
                self.reports.tell_planned(&container.into(), &what);
            } else {
                self.reports.tell(&container.into(), &what);
            }
        }
        match result {
            Ok(()) | Err(CgroupError::Gone(_)) => {}
            Err(error) => cannot_raise(container, place.cgroup(), &error),
        }
        again
    }

    /// Decides whether a pod's limit may be raised to `desired`. If another program has lowered the
    /// limit, repeated raises back off and then stop. Returns the time to wait in `Err` if a later
    /// try is useful.
    fn may_raise(
        &self,
        state: &mut State,
        file: (CgroupPath, &'static str),
        is_lowered: bool,
        desired: u64,
        contended: impl FnOnce(u32) -> Incident,
    ) -> Result<(), Option<Duration>> {
        let pod = &file.0;
        if state.leaves_changes {
            let inode = self.root.cgroup(pod).and_then(|cgroup| cgroup.inode()).unwrap_or_default();
            if is_lowered {
                debug!(cgroup = %pod, knob = file.1, desired, "left as another program set it");
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
            Verdict::Repair => {
                self.reports.brake.count(Cause::Repairs, now);
                Ok(())
            }
            Verdict::Wait(wait) => Err(Some(wait)),
            Verdict::GiveUp => {
                self.reports.tell(&pod.into(), &contended(state.limits.repairs(&file)));
                Err(None)
            }
            Verdict::Leave => Err(None),
        }
    }

    /// Returns whether the plugin has raised the file to a value for which `is_it` is true. If the
    /// file holds less now, another program has lowered it.
    pub(super) fn was_raised<V: FromStr>(
        &self,
        file: &(CgroupPath, &'static str),
        is_it: impl Fn(V) -> bool,
    ) -> bool {
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

    /// Returns the limits in force: memory, and CPU time in microseconds per second. `None` is no
    /// limit.
    pub(super) fn limits(
        &self,
        cgroup: &CgroupPath,
    ) -> Result<(Option<Bytes>, Option<u64>), CgroupError> {
        let cgroup = self.root.cgroup(cgroup)?;
        let cpu = match cgroup.cpu_max() {
            // Without the CPU controller there is no CPU limit.
            Err(CgroupError::Unsupported { .. }) => None,
            cpu => cpu?.rate(),
        };
        Ok((cgroup.read(Knob::Max)?.bytes(), cpu))
    }

    /// Returns whether the pod of this sandbox is known to have its own memory limit.
    pub fn has_own_memory_limit(&self, sandbox: &str) -> bool {
        lock(&self.state)
            .origins
            .get(sandbox)
            .is_some_and(|origins| matches!(origins.memory, Origin::Own(_)))
    }

    /// Raises a pod's limits. Returns the raised files, even if another file could not be written.
    pub(super) fn raise(
        &self,
        state: &mut State,
        pod: &CgroupPath,
        raise: Raise,
    ) -> (Vec<Raised>, Result<(), CgroupError>) {
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
            self.tell_systemd(state, pod, &in_force, Some(raise));
        }
        (raised, result)
    }

    fn raise_files(
        &self,
        pod: &CgroupPath,
        raise: &Raise,
        raising: Raising,
        raised: &mut Vec<Raised>,
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
                cgroup.write(Knob::Max, desired)?;
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

    /// Returns the limits of pods that the plugin has raised.
    pub fn raised_limits(&self) -> Vec<RaisedLimit> {
        lock(&self.originals).raised_limits().to_vec()
    }

    /// Makes systemd keep the limits that the cgroup's files hold, if systemd owns the cgroup.
    pub fn make_limits_last(&self, cgroup: &CgroupPath) {
        let state = lock(&self.state);
        if let Ok(in_force) = self.root.cgroup(cgroup).and_then(|open| InForce::read(&open)) {
            self.tell_systemd(&state, cgroup, &in_force, Some(Raise::NONE));
        }
    }
}

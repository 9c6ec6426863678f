//! Prepares cgroups for lower limits, so that no write of `memory.max` causes an OOM kill.
//!
//! The plugin first reclaims memory with `memory.reclaim`. Then the plugin sets `memory.high` to
//! the current usage, but at most to the new limit minus a margin. Until the runtime writes the
//! limit, the kernel then throttles new allocations. Finally the plugin checks the usage.
//!
//! None of these steps OOM-kills a process, whatever the result. In contrast, a write of
//! `memory.max` below the usage OOM-kills (kernel: Documentation/admin-guide/cgroup-v2.rst,
//! "memory.max"). runc and containerd do not check the usage before they write.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use plimsoll_core::incident::LowerLimit;
use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::limit_decrease::{self, DecreaseCheck, Usage};
use plimsoll_core::units::{Bytes, Knob, Limit};
use tokio::sync::oneshot;

use crate::cgroup::{Cgroup, CgroupError, CgroupRoot, Reclaimed};
use crate::state::container::Container;
use crate::state::containers::Containers;
use crate::state::originals::Values;
use crate::state::update_phase::{Party, UpdatePhase};
use crate::{in_own_thread, lock};

/// Maximum amount of memory per write to `memory.reclaim`. The write waits until the kernel has
/// written back dirty pages.
const RECLAIM_STEP: Bytes = Bytes::new(16 << 20);

/// Time for which the plugin waits for an attempt's result after the attempt's deadline.
const LAST_CHECK_TIMEOUT: Duration = Duration::from_millis(50);

/// Result of preparing a cgroup for a lower limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preparation {
    /// The runtime may set the limit. `memory.high` is at most the limit minus a margin.
    Done,
    /// The limit would cause an OOM kill. The plugin restores `memory.high`, at the latest when the
    /// reclaim ends.
    WouldKill(Usage),
}

/// Result of an attempt to prepare a container or pod for a lower limit.
#[derive(Debug)]
pub enum DecreaseResult {
    /// The new limit is not lower than the limit in force, or the limit in force is unknown.
    NoDecrease,
    /// The runtime or the kubelet may set the limit. The plugin may have lowered `memory.high`.
    Prepared,
    /// The limit would cause an OOM kill. The plugin restores the cgroup's files.
    WouldKill {
        /// Limit in force.
        in_force: Limit,
        /// Memory usage.
        usage: Usage,
    },
    /// Another attempt or another update is under way. The plugin has not measured the usage.
    Busy {
        /// Limit in force.
        in_force: Limit,
    },
}

/// Prepares limit decreases. For each container or pod, at most one attempt is under way at a time.
#[derive(Debug)]
pub struct LimitDecreases {
    root: Arc<CgroupRoot>,
    containers: Arc<Containers>,
    under_way: Arc<Mutex<HashSet<String>>>,
}

impl LimitDecreases {
    /// Creates an instance without any attempt under way.
    pub fn new(root: Arc<CgroupRoot>, containers: Arc<Containers>) -> Self {
        Self { root, containers, under_way: Arc::default() }
    }

    /// Prepares a container for its new limit, within about `budget`. `by` says whether the user or
    /// the plugin wants the limit. For the user, call this function only after the runtime has
    /// announced the update. The plugin does not repair `memory.high` until the update or the
    /// plugin's own request ends. The caller must ensure that the reconcile task checks the
    /// container's values again.
    ///
    /// # Errors
    ///
    /// Fails if the container's cgroup cannot be read, or `memory.high` cannot be written.
    pub async fn prepare(
        &self,
        container: &Container,
        by: Party,
        budget: Duration,
    ) -> Result<DecreaseResult, CgroupError> {
        let (Limit::Bytes(limit), Some(path)) = (container.limit, &container.cgroup) else {
            return Ok(DecreaseResult::NoDecrease);
        };
        // A container without a cgroup has no process that a lower limit could kill.
        let Ok(cgroup) = self.root.cgroup(path) else { return Ok(DecreaseResult::NoDecrease) };
        let in_force = match cgroup.read(Knob::Max) {
            Ok(in_force) if in_force > container.limit => in_force,
            _ => return Ok(DecreaseResult::NoDecrease),
        };
        let Ok(held) = Values::read(&cgroup) else { return Ok(DecreaseResult::NoDecrease) };
        // The client may retry before the kernel has finished the reclaim of the last attempt.
        let Some(attempt) = Attempt::begin(&self.under_way, &container.id) else {
            return Ok(DecreaseResult::Busy { in_force });
        };
        self.containers.remember(container, held);
        // Store the original memory.high, so that no code mistakes the temporary value for the
        // original one.
        let high = held.high.unwrap_or(Limit::Max);
        let Some(high) = self.containers.begin_decrease(container, by, high) else {
            return Ok(DecreaseResult::Busy { in_force });
        };
        let preparation =
            prepare_cgroup(cgroup, limit, high, Instant::now() + budget, attempt).await;
        if by == Party::Plugin && !matches!(preparation, Ok(Preparation::Done)) {
            self.containers.on_phase(&container.id, UpdatePhase::cancel_decrease);
        }
        let preparation = match preparation {
            // If the attempt failed, check the usage, because the limit could cause an OOM kill.
            Err(error) => {
                let usage = self.root.cgroup(path).and_then(|cgroup| cgroup.usage_in_parts());
                match usage {
                    Ok(usage)
                        if limit_decrease::check_decrease(limit, &usage) != DecreaseCheck::Fits =>
                    {
                        Preparation::WouldKill(usage)
                    }
                    _ => return Err(error),
                }
            }
            Ok(preparation) => preparation,
        };
        Ok(match preparation {
            Preparation::Done => DecreaseResult::Prepared,
            Preparation::WouldKill(usage) => DecreaseResult::WouldKill { in_force, usage },
        })
    }

    /// Checks a container's limit decrease without a change to any file. Returns `Some` if the
    /// decrease would cause an OOM kill even after the kernel has reclaimed all that it can.
    pub fn check(&self, container: &Container) -> Option<LowerLimit> {
        let Limit::Bytes(limit) = container.limit else { return None };
        let cgroup = self.root.cgroup(container.cgroup.as_ref()?).ok()?;
        let in_force =
            cgroup.read(Knob::Max).ok().filter(|in_force| *in_force > container.limit)?;
        let usage = cgroup.usage_in_parts().ok()?;
        let kills = limit_decrease::check_decrease(limit, &usage) == DecreaseCheck::Kills;
        kills.then_some(LowerLimit { limit: container.limit, in_force, usage })
    }

    /// Checks the decrease of a pod's own limit as [`Self::check`] does for a container. `id` is
    /// the ID of the pod's sandbox.
    pub fn check_pod(&self, id: &str, pod: &CgroupPath, limit: Bytes) -> Option<LowerLimit> {
        let cgroup = self.root.cgroup(pod).ok()?;
        let in_force =
            cgroup.read(Knob::Max).ok().filter(|in_force| *in_force > Limit::Bytes(limit))?;
        let usage = cgroup.usage_in_parts().ok()?;
        let kills =
            limit_decrease::fits(self.max_pod_usage(id, limit), &usage) == DecreaseCheck::Kills;
        kills.then_some(LowerLimit { limit: limit.into(), in_force, usage })
    }

    /// Returns the maximum usage at which the kubelet may set the pod's limit. If the containers
    /// may use no more than `limit` together, this usage is `limit`, because each container has its
    /// own margin. Otherwise the usage is `limit` minus a margin.
    fn max_pod_usage(&self, id: &str, limit: Bytes) -> Bytes {
        let mut containers = self.containers.in_sandbox(id);
        containers.retain(|container| container.is_alive(&self.root));
        let together = containers
            .iter()
            .try_fold(Bytes::ZERO, |sum, other| Some(sum.saturating_add(other.limit.bytes()?)));
        match together {
            Some(together) if together <= limit => limit,
            _ => limit.saturating_sub(limit_decrease::margin(limit)),
        }
    }

    /// Prepares the cgroup of a pod for the `limit` that the kubelet is about to set, within about
    /// `budget`. `id` is the ID of the pod's sandbox.
    ///
    /// If the containers may use no more than `limit` together, the usage may reach `limit`. The
    /// kubelet lowers the containers' limits before the pod's limit, and each container has its own
    /// margin. With an additional margin for the pod, the plugin would refuse harmless decreases.
    /// If the pod has its own limits (`PodLevelResources`), the containers may use more than
    /// `limit`. In this case, the usage must leave a margin for growth.
    ///
    /// # Errors
    ///
    /// Fails if the pod's cgroup cannot be read.
    pub async fn prepare_pod(
        &self,
        id: &str,
        pod: &CgroupPath,
        limit: Bytes,
        budget: Duration,
    ) -> Result<DecreaseResult, CgroupError> {
        let cgroup = self.root.cgroup(pod)?;
        let in_force = cgroup.read(Knob::Max)?;
        if in_force <= Limit::Bytes(limit) {
            return Ok(DecreaseResult::NoDecrease);
        }
        let most = self.max_pod_usage(id, limit);
        let Some(attempt) = Attempt::begin(&self.under_way, id) else {
            return Ok(DecreaseResult::Busy { in_force });
        };
        let (sender, receiver) = oneshot::channel();
        // Use a separate thread, for the reason that `prepare_cgroup` below gives.
        in_own_thread("pod-decrease", move || {
            // Ignore a failed send, because the receiver may have stopped waiting. Send the attempt
            // too: the receiver then drops it, so that the next attempt can begin.
            let _ = sender.send((reclaim(&cgroup, most, Instant::now() + budget), attempt));
        });
        // Ignore the reclaim's result, because only the usage afterwards matters.
        let _ = tokio::time::timeout(budget + LAST_CHECK_TIMEOUT, receiver).await;
        let usage = self.root.cgroup(pod)?.usage_in_parts()?;
        Ok(match limit_decrease::fits(most, &usage) {
            DecreaseCheck::Fits => DecreaseResult::Prepared,
            DecreaseCheck::Reclaim | DecreaseCheck::Kills => {
                DecreaseResult::WouldKill { in_force, usage }
            }
        })
    }
}

/// An attempt to prepare a container or pod. The attempt lasts until the kernel has finished the
/// reclaim.
#[derive(Debug)]
struct Attempt {
    under_way: Arc<Mutex<HashSet<String>>>,
    id: String,
}

impl Attempt {
    /// Begins an attempt. Returns `None` while another attempt for the same container or pod is
    /// under way.
    fn begin(under_way: &Arc<Mutex<HashSet<String>>>, id: &str) -> Option<Self> {
        let is_first = lock(under_way).insert(id.to_owned());
        is_first.then(|| Self { under_way: under_way.clone(), id: id.to_owned() })
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.id);
    }
}

/// Prepares `cgroup` for `limit`. Returns shortly after `deadline` at the latest. `high` is the
/// original `memory.high`. If the reclaim takes longer, it continues in its own thread. This thread
/// restores `memory.high` at the end.
async fn prepare_cgroup(
    cgroup: Cgroup,
    limit: Bytes,
    high: Limit,
    deadline: Instant,
    attempt: Attempt,
) -> Result<Preparation, CgroupError> {
    let cgroup = Arc::new(cgroup);
    let (sender, mut receiver) = oneshot::channel();
    let working = cgroup.clone();
    // Use a separate thread, because tokio has few threads for blocking work and a reclaim may take
    // a long time.
    in_own_thread("decrease", move || {
        let mut ours: Vec<_> = working.read(Knob::High).into_iter().collect();
        let is_late = || sender.is_closed();
        let preparation = try_prepare(&working, limit, high, deadline, is_late, &mut ours);
        if !matches!(preparation, Ok(Preparation::Done)) {
            restore_high(&working, high, &ours);
        }
        // Send the attempt with the result. The receiver then drops the attempt, so that the next
        // attempt can begin.
        if let Err((Ok(Preparation::Done), _attempt)) = sender.send((preparation, attempt)) {
            // The receiver has stopped waiting, so the runtime will not set the limit.
            restore_high(&working, high, &ours);
        }
    });
    // Wait a little beyond the deadline, for the last check of the usage.
    let patience = deadline.saturating_duration_since(Instant::now()) + LAST_CHECK_TIMEOUT;
    let in_time = tokio::time::timeout(patience, &mut receiver).await;
    receiver.close();
    match in_time.map_or_else(|_| receiver.try_recv().ok(), Result::ok) {
        Some((preparation, _attempt)) => preparation,
        None => Ok(Preparation::WouldKill(cgroup.usage_in_parts()?)),
    }
}

/// Prepares `cgroup` for `limit`. Adds the value to which it lowers `memory.high` to `ours`. Does
/// not lower it once `is_late` returns true: nobody waits for the result then, and an event after
/// this one may have set another value.
fn try_prepare(
    cgroup: &Cgroup,
    limit: Bytes,
    high: Limit,
    deadline: Instant,
    is_late: impl Fn() -> bool,
    ours: &mut Vec<Limit>,
) -> Result<Preparation, CgroupError> {
    let most = limit.saturating_sub(limit_decrease::margin(limit));
    if let Some(usage) = reclaim(cgroup, most, deadline)? {
        return Ok(Preparation::WouldKill(usage));
    }
    // Use the lowest memory.high that throttles only new allocations, because the runtime may set
    // the limit much later.
    let line = Limit::Bytes(cgroup.usage()?.max(limit_decrease::margin(limit)).min(most));
    if is_late() {
        return Ok(Preparation::WouldKill(cgroup.usage_in_parts()?));
    }
    if high > line {
        ours.push(line);
        cgroup.write_knob(Knob::High, line)?;
    }
    let usage = cgroup.usage_in_parts()?;
    // The usage may be a little above memory.high, because each CPU charges memory in batches.
    let slack = Bytes::new(limit_decrease::margin(limit).get() / 2);
    if usage.current <= most.saturating_add(slack) {
        Ok(Preparation::Done)
    } else {
        Ok(Preparation::WouldKill(usage))
    }
}

/// Reclaims memory until the usage is at most `most`. Returns the usage if it is still above `most`
/// at the end. Returns `None` on success, and also if the kernel has no `memory.reclaim`.
fn reclaim(cgroup: &Cgroup, most: Bytes, deadline: Instant) -> Result<Option<Usage>, CgroupError> {
    Ok(match cgroup.reclaim_to(most, RECLAIM_STEP, deadline)? {
        // Lowering memory.high also makes the kernel reclaim memory.
        Reclaimed::Fits | Reclaimed::Unsupported(_) => None,
        Reclaimed::Above(usage) => Some(usage),
    })
}

/// Restores `memory.high` if the file still holds one of `ours`: the value at the start of the
/// attempt, or the lowered value. Another value comes from a later event, and stays.
fn restore_high(cgroup: &Cgroup, high: Limit, ours: &[Limit]) {
    // The write may fail because the cgroup no longer exists. After any other failure, the next
    // check of the container finds the wrong value.
    if cgroup.read(Knob::High).is_ok_and(|now| now != high && ours.contains(&now)) {
        let _ = cgroup.write_knob(Knob::High, high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::testing::{POD, TestNode};
    use crate::state::update_phase::UpdateId;

    const BUDGET: Duration = Duration::from_secs(20);

    /// Prepares a container for a limit in MiB.
    async fn prepare(node: &TestNode, id: &str, limit: u64, by: Party) -> DecreaseResult {
        let decreases = LimitDecreases::new(node.root.clone(), node.containers.clone());
        prepare_with(&decreases, node, id, limit, by).await
    }

    async fn prepare_with(
        decreases: &LimitDecreases,
        node: &TestNode,
        id: &str,
        limit: u64,
        by: Party,
    ) -> DecreaseResult {
        let known = node.containers.get(id).unwrap();
        let limit = Limit::Bytes(Bytes::new(limit << 20));
        let lowered = Container { limit, ..(*known).clone() };
        decreases.prepare(&lowered, by, BUDGET).await.unwrap()
    }

    fn high(node: &TestNode) -> String {
        node.get(&format!("{POD}/1"), "memory.high")
    }

    #[tokio::test]
    async fn a_decrease_that_fits_throttles_growth_first() {
        let node = TestNode::new("");
        node.run("1", 200, 50);
        let result = prepare(&node, "1", 100, Party::User).await;
        assert!(matches!(result, DecreaseResult::Prepared), "{result:?}");
        assert_eq!(high(&node), (50 << 20).to_string());
        let now = node.containers.get("1").unwrap();
        assert_eq!(now.phase.original_high(), Some(Limit::Max));
    }

    #[tokio::test]
    async fn a_decrease_that_would_kill_changes_nothing() {
        let node = TestNode::new("");
        node.run("1", 200, 150);
        let result = prepare(&node, "1", 100, Party::User).await;
        let DecreaseResult::WouldKill { in_force, usage } = result else { panic!("{result:?}") };
        assert_eq!(in_force, Limit::Bytes(Bytes::new(200 << 20)));
        assert_eq!(usage.current, Bytes::new(150 << 20));
        assert_eq!(high(&node), "max");
    }

    #[tokio::test]
    async fn an_increase_needs_no_preparation() {
        let node = TestNode::new("");
        node.run("1", 200, 150);
        let result = prepare(&node, "1", 300, Party::User).await;
        assert!(matches!(result, DecreaseResult::NoDecrease), "{result:?}");
    }

    #[tokio::test]
    async fn a_decrease_during_another_one_is_busy() {
        let node = TestNode::new("");
        node.run("1", 200, 50);
        let decreases = LimitDecreases::new(node.root.clone(), node.containers.clone());
        let other = Attempt::begin(&decreases.under_way, "1").unwrap();
        let result = prepare_with(&decreases, &node, "1", 100, Party::User).await;
        assert!(matches!(result, DecreaseResult::Busy { .. }), "{result:?}");
        drop(other);
        let result = prepare_with(&decreases, &node, "1", 100, Party::User).await;
        assert!(matches!(result, DecreaseResult::Prepared), "{result:?}");
    }

    #[tokio::test]
    async fn a_plugin_decrease_yields_to_user_updates() {
        let node = TestNode::new("");
        node.run("1", 200, 50);
        node.containers.on_phase("1", |phase| phase.announce(UpdateId::new(3)));
        let result = prepare(&node, "1", 100, Party::Plugin).await;
        assert!(matches!(result, DecreaseResult::Busy { .. }), "{result:?}");
        assert_eq!(high(&node), "max");
        assert_eq!(node.containers.get("1").unwrap().phase.original_high(), None);
    }

    #[test]
    fn late_attempts_and_restores_keep_later_values() {
        let node = TestNode::new("");
        node.run("1", 200, 50);
        let path = format!("{POD}/1");
        let cgroup = node.root.cgroup(&CgroupPath::parse(&path).unwrap()).unwrap();
        let limit = |mib: u64| Limit::Bytes(Bytes::new(mib << 20));
        let attempt = |is_late: bool| {
            let (mut ours, deadline) = (Vec::new(), Instant::now() + BUDGET);
            let lower = Bytes::new(100 << 20);
            try_prepare(&cgroup, lower, limit(180), deadline, || is_late, &mut ours).unwrap();
            ours
        };
        node.set(&path, "memory.high", 180 << 20);
        assert_eq!(attempt(true), []);
        assert_eq!(high(&node), (180 << 20).to_string());

        let ours = attempt(false);
        assert_eq!(ours, [limit(50)]);
        node.set(&path, "memory.high", 300 << 20);
        restore_high(&cgroup, limit(180), &ours);
        assert_eq!(high(&node), (300 << 20).to_string(), "a later event has set this value");
        node.set(&path, "memory.high", 50 << 20);
        restore_high(&cgroup, limit(180), &ours);
        assert_eq!(high(&node), (180 << 20).to_string());
    }

    #[test]
    fn a_check_alone_changes_nothing() {
        let node = TestNode::new("");
        let known = node.run("1", 200, 150);
        let decreases = LimitDecreases::new(node.root.clone(), node.containers.clone());
        let lowered = |limit: u64| Container {
            limit: Limit::Bytes(Bytes::new(limit << 20)),
            ..(*known).clone()
        };
        assert!(decreases.check(&lowered(100)).is_some());
        assert!(decreases.check(&lowered(190)).is_none());
        assert!(decreases.check(&lowered(300)).is_none());
        assert_eq!(high(&node), "max");
    }
}

//! Making room below a lower limit, so that setting it kills nobody.
//!
//! First `memory.reclaim`, then `memory.high` at what is used, a margin below the limit at most, so that what grows between the last
//! look and the runtime's write is slowed down, then the look. None of these kills, whatever comes of it. Setting `memory.max` below usage
//! does (kernel: Documentation/admin-guide/cgroup-v2.rst, "memory.max"), and neither runc nor containerd looks before.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::cgroup::{Cgroup, CgroupError, CgroupPath, CgroupRoot, Knob};
use crate::core::policy::resize::{self, Cut, Usage};
use crate::core::units::{Bytes, Limit};
use crate::report::LowerLimit;
use crate::state::containers::{Container, Containers, Update};
use crate::state::originals::Values;
use crate::{in_own_thread, lock};

/// How much is reclaimed at a time: what is written back is waited for.
const STEP: Bytes = Bytes::new(16 << 20);

/// How long after the deadline an attempt is waited for.
const LAST_LOOK: Duration = Duration::from_millis(50);

/// What became of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// The limit may be set. `memory.high` is at most a margin below it.
    Made,
    /// The limit would kill. `memory.high` is as before.
    NotMade(Usage),
}

/// What became of a container's limit.
#[derive(Debug)]
pub enum Attempted {
    /// It is not lower than the one in force, or nothing is known of that.
    NoCut,
    /// It may be set; `memory.high` may be lower now.
    Made,
    /// It would kill. All is as before.
    NotMade {
        /// The limit in force.
        in_force: Limit,
        /// What the container uses; `None` while the kernel has not come to an end with another attempt.
        usage: Option<Usage>,
    },
}

/// Makes room in containers, in each by one at a time.
#[derive(Debug)]
pub struct Cuts {
    root: Arc<CgroupRoot>,
    containers: Arc<Containers>,
    under_way: Arc<Mutex<HashSet<String>>>,
}

impl Cuts {
    /// No room was asked for yet.
    pub fn new(root: Arc<CgroupRoot>, containers: Arc<Containers>) -> Self {
        Self { root, containers, under_way: Arc::default() }
    }

    /// Makes room in a container for the limit that it is to have, within about `budget`. Where it is made, `update` is under way from
    /// then on, so that nobody repairs `memory.high`; it is for the caller to see that the container's values are looked at again.
    ///
    /// # Errors
    ///
    /// When its cgroup cannot be read, or `memory.high` not be written.
    pub async fn make_room(
        &self,
        container: &Container,
        update: Update,
        budget: Duration,
    ) -> Result<Attempted, CgroupError> {
        let (Limit::Bytes(limit), Some(path)) = (container.limit, &container.cgroup) else {
            return Ok(Attempted::NoCut);
        };
        // One that is not running has nothing to lose.
        let Ok(cgroup) = self.root.cgroup(path) else { return Ok(Attempted::NoCut) };
        let in_force = match cgroup.read(Knob::Max) {
            Ok(in_force) if in_force > container.limit => in_force,
            _ => return Ok(Attempted::NoCut),
        };
        let Ok(held) = Values::read(&cgroup) else { return Ok(Attempted::NoCut) };
        // Whoever asked tries again, perhaps before the kernel has come to an end with the last attempt.
        let Some(attempt) = Attempt::begin(&self.under_way, &container.id) else {
            return Ok(Attempted::NotMade { in_force, usage: None });
        };
        let before =
            self.containers.get(&container.id).map_or(Update::Over, |container| container.update);
        if update == Update::OURS && before != Update::Over {
            return Ok(Attempted::NotMade { in_force, usage: None });
        }
        self.containers.remember(container, held);
        // Nor is anybody to take what it is lowered to for what it was.
        let high = container.high_before.or(held.high).unwrap_or(Limit::Max);
        self.containers.swap_update(&container.id, before, update);
        self.containers.set_high_before(&container.id, Some(high));
        let room = make_room(cgroup, limit, high, Instant::now() + budget, attempt).await;
        if !matches!(room, Ok(Room::Made)) {
            // Unless there was another one meanwhile.
            self.containers.swap_update(&container.id, update, before);
        }
        let room = match room {
            // What cannot be made room in is judged by what it uses: setting the limit would kill all the same.
            Err(error) => {
                let usage = self.root.cgroup(path).and_then(|cgroup| cgroup.usage_in_parts());
                match usage {
                    Ok(usage) if resize::cut(limit, &usage) != Cut::Fits => Room::NotMade(usage),
                    _ => return Err(error),
                }
            }
            Ok(room) => room,
        };
        Ok(match room {
            Room::Made => Attempted::Made,
            Room::NotMade(usage) => Attempted::NotMade { in_force, usage: Some(usage) },
        })
    }

    /// Judges a container's lower limit without changing anything. `Some`: it would kill, whatever is reclaimed before.
    pub fn judge(&self, container: &Container) -> Option<LowerLimit> {
        let Limit::Bytes(limit) = container.limit else { return None };
        let cgroup = self.root.cgroup(container.cgroup.as_ref()?).ok()?;
        let in_force =
            cgroup.read(Knob::Max).ok().filter(|in_force| *in_force > container.limit)?;
        let usage = cgroup.usage_in_parts().ok()?;
        let kills = resize::cut(limit, &usage) == Cut::Kills;
        kills.then_some(LowerLimit { limit: container.limit, in_force, usage })
    }

    /// Judges a pod's own lower limit without changing anything, as [`Self::judge`] does. `id` is that of the pod's sandbox.
    pub fn judge_pod(&self, id: &str, pod: &CgroupPath, limit: Bytes) -> Option<LowerLimit> {
        let cgroup = self.root.cgroup(pod).ok()?;
        let in_force =
            cgroup.read(Knob::Max).ok().filter(|in_force| *in_force > Limit::Bytes(limit))?;
        let usage = cgroup.usage_in_parts().ok()?;
        let kills = resize::fits(self.most_in_pod(id, limit), &usage) == Cut::Kills;
        kills.then_some(LowerLimit { limit: limit.into(), in_force, usage })
    }

    /// The most that a pod may use when its limit is set: all of the limit where its containers may use no more than that
    /// together, since each of them has its margin; else a margin less.
    fn most_in_pod(&self, id: &str, limit: Bytes) -> Bytes {
        let mut containers = self.containers.in_sandbox(id);
        containers.retain(|container| container.is_alive(&self.root));
        let together = containers
            .iter()
            .try_fold(Bytes::ZERO, |sum, other| Some(sum.saturating_add(other.limit.bytes()?)));
        match together {
            Some(together) if together <= limit => limit,
            _ => limit.saturating_sub(resize::margin(limit)),
        }
    }

    /// Makes room in the cgroup of a pod, whose sandbox is `id`, for the `limit` that the kubelet is about to set, within about `budget`.
    ///
    /// To the byte where the pod's containers may use no more than that together: they have their lower limits before the pod has (the
    /// kubelet's order), with room in each, and a margin of the pod's own would refuse what harms nobody. Where they may use more, as
    /// with limits of the pod's own (`PodLevelResources`), with a margin for what grows meanwhile.
    ///
    /// # Errors
    ///
    /// When the pod's cgroup cannot be read.
    pub async fn make_room_in_pod(
        &self,
        id: &str,
        pod: &CgroupPath,
        limit: Bytes,
        budget: Duration,
    ) -> Result<Attempted, CgroupError> {
        let cgroup = self.root.cgroup(pod)?;
        let in_force = cgroup.read(Knob::Max)?;
        if in_force <= Limit::Bytes(limit) {
            return Ok(Attempted::NoCut);
        }
        let most = self.most_in_pod(id, limit);
        let Some(attempt) = Attempt::begin(&self.under_way, id) else {
            return Ok(Attempted::NotMade { in_force, usage: None });
        };
        let (tell, told) = oneshot::channel();
        // Of its own, as below.
        in_own_thread("room in a pod", move || {
            // Nobody may wait any longer. The attempt goes with the answer, so that it is over when the next one may come.
            let _ = tell.send((reclaim(&cgroup, most, Instant::now() + budget), attempt));
        });
        // Whatever came of it, what is used decides.
        let _ = tokio::time::timeout(budget + LAST_LOOK, told).await;
        let usage = self.root.cgroup(pod)?.usage_in_parts()?;
        Ok(match resize::fits(most, &usage) {
            Cut::Fits => Attempted::Made,
            Cut::Reclaim | Cut::Kills => Attempted::NotMade { in_force, usage: Some(usage) },
        })
    }
}

/// Room being made in a container, until the kernel has come to an end with it.
#[derive(Debug)]
struct Attempt {
    under_way: Arc<Mutex<HashSet<String>>>,
    id: String,
}

impl Attempt {
    /// `None` while there is another in this container.
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

/// Makes room in `cgroup`, whose `memory.high` should be `high`, for `limit`, until `deadline` at the latest: a reclaim that takes
/// longer is left to itself, and `memory.high` put back when it comes to an end.
async fn make_room(
    cgroup: Cgroup,
    limit: Bytes,
    high: Limit,
    deadline: Instant,
    attempt: Attempt,
) -> Result<Room, CgroupError> {
    let cgroup = Arc::new(cgroup);
    let (tell, mut told) = oneshot::channel();
    let working = cgroup.clone();
    // Of its own: there are few threads for what blocks, and the kernel may take its time.
    in_own_thread("room", move || {
        let room = try_to(&working, limit, high, deadline);
        if !matches!(room, Ok(Room::Made)) {
            put_back(&working, high);
        }
        // The attempt goes with the answer, so that it is over when the next one may come.
        if let Err((Ok(Room::Made), _attempt)) = tell.send((room, attempt)) {
            // Nobody waits any longer: there is no limit that this room would be for.
            put_back(&working, high);
        }
    });
    // A little more than the deadline, for the last look.
    let patience = deadline.saturating_duration_since(Instant::now()) + LAST_LOOK;
    let in_time = tokio::time::timeout(patience, &mut told).await;
    told.close();
    match in_time.map_or_else(|_| told.try_recv().ok(), Result::ok) {
        Some((room, _attempt)) => room,
        None => Ok(Room::NotMade(cgroup.usage_in_parts()?)),
    }
}

fn try_to(
    cgroup: &Cgroup,
    limit: Bytes,
    high: Limit,
    deadline: Instant,
) -> Result<Room, CgroupError> {
    let most = limit.saturating_sub(resize::margin(limit));
    if let Some(usage) = reclaim(cgroup, most, deadline)? {
        return Ok(Room::NotMade(usage));
    }
    // As low as it goes without throttling what does not grow: the runtime takes its time.
    let line = Limit::Bytes(cgroup.usage()?.max(resize::margin(limit)).min(most));
    if high > line {
        cgroup.write(Knob::High, line)?;
    }
    let usage = cgroup.usage_in_parts()?;
    // Each processor may have charged a little beyond memory.high.
    let slack = Bytes::new(resize::margin(limit).get() / 2);
    if usage.current <= most.saturating_add(slack) {
        Ok(Room::Made)
    } else {
        Ok(Room::NotMade(usage))
    }
}

/// Reclaims until no more than `most` is used. Returns what is used where that cannot be reached; `None` also where the kernel has no
/// `memory.reclaim`.
fn reclaim(cgroup: &Cgroup, most: Bytes, deadline: Instant) -> Result<Option<Usage>, CgroupError> {
    loop {
        let usage = cgroup.usage_in_parts()?;
        match resize::fits(most, &usage) {
            Cut::Kills => return Ok(Some(usage)),
            Cut::Fits => return Ok(None),
            Cut::Reclaim if Instant::now() >= deadline => return Ok(Some(usage)),
            Cut::Reclaim => {}
        }
        let wanted = usage.current.saturating_sub(most).min(STEP);
        match cgroup.reclaim(wanted) {
            // What could be reclaimed is gone in any case: see what that was.
            Ok(is_all) if is_all || cgroup.usage()? < usage.current => {}
            Ok(_) => return Ok(Some(usage)),
            // Lowering memory.high does the same.
            Err(CgroupError::Unsupported { .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Lets a container go on as before.
fn put_back(cgroup: &Cgroup, high: Limit) {
    // The cgroup may be gone; else it is found when the container is looked at next.
    if cgroup.read(Knob::High).is_ok_and(|now| now != high) {
        let _ = cgroup.write(Knob::High, high);
    }
}

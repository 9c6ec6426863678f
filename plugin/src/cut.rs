//! Making room below a lower limit, so that setting it kills nobody.
//!
//! First `memory.reclaim`, then `memory.high` at what is used, a margin below the limit at most, so that what grows between the last
//! look and the runtime's write is slowed down, then the look. None of these kills, whatever comes of it. Setting `memory.max` below usage
//! does (kernel: Documentation/admin-guide/cgroup-v2.rst, "memory.max"), and neither runc nor containerd looks before.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::cgroup::{Cgroup, CgroupError, CgroupRoot, Knob};
use crate::containers::{Container, Containers, Update};
use crate::lock;
use crate::originals::Values;
use crate::resize::{self, Cut, Usage};
use crate::units::{Bytes, Limit};

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
        let before = self.containers.get(&container.id).map_or(Update::Over, |container| container.update);
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
    std::thread::spawn(move || {
        let room = try_to(&working, limit, high, deadline);
        if !matches!(room, Ok(Room::Made)) {
            put_back(&working, high);
        }
        // Nobody waits any longer: there is no limit that this room would be for.
        if let Err(Ok(Room::Made)) = tell.send(room) {
            put_back(&working, high);
        }
        drop(attempt);
    });
    // A little more than the deadline, for the last look.
    let patience = deadline.saturating_duration_since(Instant::now()) + LAST_LOOK;
    let in_time = tokio::time::timeout(patience, &mut told).await;
    told.close();
    match in_time.map_or_else(|_| told.try_recv().ok(), Result::ok) {
        Some(room) => room,
        None => Ok(Room::NotMade(cgroup.usage_in_parts()?)),
    }
}

fn try_to(cgroup: &Cgroup, limit: Bytes, high: Limit, deadline: Instant) -> Result<Room, CgroupError> {
    let most = limit.saturating_sub(resize::margin(limit));
    loop {
        let usage = cgroup.usage_in_parts()?;
        match resize::cut(limit, &usage) {
            Cut::Kills => return Ok(Room::NotMade(usage)),
            Cut::Fits => break,
            Cut::Reclaim if Instant::now() >= deadline => return Ok(Room::NotMade(usage)),
            Cut::Reclaim => {}
        }
        let wanted = usage.current.saturating_sub(most).min(STEP);
        match cgroup.reclaim(wanted) {
            // What could be reclaimed is gone in any case: see what that was.
            Ok(is_all) if is_all || cgroup.usage()? < usage.current => {}
            Ok(_) => return Ok(Room::NotMade(usage)),
            // Lowering memory.high does the same.
            Err(CgroupError::Unsupported { .. }) => break,
            Err(error) => return Err(error),
        }
    }
    // As low as it goes without throttling what does not grow: the runtime takes its time.
    let line = Limit::Bytes(cgroup.usage()?.max(resize::margin(limit)).min(most));
    if high > line {
        cgroup.write(Knob::High, line)?;
    }
    let usage = cgroup.usage_in_parts()?;
    // Each processor may have charged a little beyond memory.high.
    let slack = Bytes::new(resize::margin(limit).get() / 2);
    if usage.current <= most.saturating_add(slack) { Ok(Room::Made) } else { Ok(Room::NotMade(usage)) }
}

/// Lets a container go on as before.
fn put_back(cgroup: &Cgroup, high: Limit) {
    // The cgroup may be gone; else it is found when the container is looked at next.
    if cgroup.read(Knob::High).is_ok_and(|now| now != high) {
        let _ = cgroup.write(Knob::High, high);
    }
}

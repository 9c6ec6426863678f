//! Making room below a lower limit, so that setting it kills nobody.
//!
//! First `memory.reclaim`, then `memory.high` a margin below the limit, so that what grows between the last look and the
//! runtime's write is slowed down, then the look. None of these kills, whatever comes of it. Setting `memory.max` below usage
//! does (kernel: Documentation/admin-guide/cgroup-v2.rst, "memory.max"), and neither runc nor containerd looks before.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::cgroup::{Cgroup, CgroupError, Knob};
use crate::resize::{self, Cut, Usage};
use crate::units::{Bytes, Limit};

/// How much is reclaimed at a time: what is written back is waited for.
const STEP: Bytes = Bytes::new(16 << 20);

/// How long after the deadline an attempt is waited for.
const LAST_LOOK: Duration = Duration::from_millis(50);

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// The limit may be set. `memory.high` is at most a margin below it.
    Made,
    /// The limit would kill. `memory.high` is as before.
    NotMade(Usage),
}

/// Room being made in a container, by one at a time, until the kernel has come to an end with it.
#[derive(Debug)]
pub struct Attempt {
    under_way: Arc<Mutex<HashSet<String>>>,
    id: String,
}

impl Attempt {
    /// `None` while there is another in this container.
    pub fn begin(under_way: &Arc<Mutex<HashSet<String>>>, id: &str) -> Option<Self> {
        let is_first = under_way.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
        is_first.then(|| Self { under_way: under_way.clone(), id: id.to_owned() })
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// Makes room in `cgroup`, whose `memory.high` should be `high`, for `limit`, until `deadline` at the latest: a reclaim that takes
/// longer is left to itself, and `memory.high` put back when it comes to an end.
///
/// # Errors
///
/// When the cgroup cannot be read, or `memory.high` not be written.
pub async fn make_room(
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
    if high > Limit::Bytes(most) {
        cgroup.write(Knob::High, Limit::Bytes(most))?;
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

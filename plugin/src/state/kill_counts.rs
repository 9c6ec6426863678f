//! Counts of OOM kills, as the plugin stores them under `/run`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::rescue::{History, Rescued};
use serde::{Deserialize, Serialize};

use crate::cgroup::Events;
use crate::state::container::Container;
use crate::state::originals;

/// Name of the file with the counts.
pub(crate) const FILE: &str = "kills";

/// The counts, as they are stored.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counted {
    pub(crate) pods: BTreeMap<CgroupPath, Pod>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Pod {
    pub(crate) inode: u64,
    /// Counts of the pod's `memory.events` that are attributed to a container, or reported without
    /// one.
    pub(crate) accounted: Counts,
    /// Number of times that the pod or a container had reached its limit, as of the last kill.
    pub(crate) limits_reached: u64,
    /// Running containers of the pod, by ID.
    pub(crate) running: BTreeMap<String, Running>,
    /// Histories of the pod's containers, by name.
    pub(crate) histories: BTreeMap<String, History>,
    /// Whether this process has checked the pod before. The first check may find kills from before
    /// its start.
    #[serde(skip)]
    pub(crate) is_seen: bool,
    #[serde(skip)]
    pub(crate) unexplained: Counts,
    #[serde(skip)]
    pub(crate) told: HashMap<String, Told>,
}

impl Pod {
    /// Stores the counts of a container's file as accounted for. Returns the new kills.
    pub(crate) fn account(&mut self, id: String, counts: Counts) -> Option<Killed> {
        let running = self.running.get_mut(&id)?;
        let times = counts.kills().saturating_sub(running.counted.kills());
        self.accounted = self.accounted.plus(counts.since(running.counted));
        running.counted = counts;
        Some(Killed { id, name: running.name.clone(), times, container: running.container.clone() })
    }
}

/// Times of the last reports about a container, in seconds since the boot.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    /// Report of kills.
    pub(crate) kills: Option<u64>,
    /// Report that the limit cannot be raised further.
    pub(crate) ceiling: Option<u64>,
    /// Request to the runtime for a raised limit.
    pub(crate) raised: Option<u64>,
    /// Report of a raise that observe mode left undone.
    pub(crate) planned: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) name: String,
    pub(crate) cgroup: CgroupPath,
    pub(crate) counted: Counts,
    /// The container as of its last event. The runtime may report its end before the task sees its
    /// last kill.
    #[serde(skip)]
    pub(crate) container: Option<Arc<Container>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) processes: u64,
    pub(crate) groups: u64,
}

impl From<Events> for Counts {
    fn from(events: Events) -> Self {
        Self { processes: events.oom_kill, groups: events.oom_group_kill }
    }
}

impl Counts {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self { processes: self.processes + other.processes, groups: self.groups + other.groups }
    }

    pub(crate) fn since(self, before: Self) -> Self {
        let Self { processes, groups } = before;
        Self {
            processes: self.processes.saturating_sub(processes),
            groups: self.groups.saturating_sub(groups),
        }
    }

    /// Returns the number of kills. With `memory.oom.group`, all processes of a container together
    /// are one kill. The kernel may count the processes before the group.
    pub(crate) fn kills(self) -> u64 {
        if self.groups > 0 { self.groups } else { self.processes }
    }
}

/// Kills of one container.
#[derive(Debug)]
pub(crate) struct Killed {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) times: u64,
    pub(crate) container: Option<Arc<Container>>,
}

/// Returns the raised limits of containers that are stored on the node whose file system is at
/// `host`, with pod and container name.
///
/// # Errors
///
/// When the file exists and cannot be read.
pub fn rescued_on(host: &Path) -> io::Result<Vec<(CgroupPath, String, Rescued)>> {
    let text = match fs::read(host.join(originals::DIRECTORY).join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let Counted { pods } = serde_json::from_slice(&text)?;
    let rescued = pods.into_iter().flat_map(|(path, pod)| {
        let histories = pod.histories.into_iter();
        histories.filter_map(move |(name, history)| Some((path.clone(), name, history.rescued()?)))
    });
    Ok(rescued.collect())
}

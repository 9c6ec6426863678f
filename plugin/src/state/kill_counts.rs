//! Counts of OOM kills, which the plugin stores under `/run`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::rescue::{History, Rescue};
use serde::{Deserialize, Serialize};

use crate::cgroup::Events;
use crate::state::container::Container;
use crate::state::originals;

/// Maximum time in seconds between the moment when usage reaches a limit and the resulting kill.
const KILL_FOLLOWS: u64 = 10;

/// Name of the file with the counts.
pub(crate) const FILE: &str = "kills";

/// The stored counts.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counted {
    /// Time when the plugin stored the counts, in seconds since the boot.
    #[serde(default)]
    pub(crate) stored_at: u64,
    pub(crate) pods: BTreeMap<CgroupPath, Pod>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Pod {
    pub(crate) inode: u64,
    /// Counts from the pod's `memory.events` that the plugin has handled: it found the container,
    /// or reported that the container is unknown.
    pub(crate) accounted: Counts,
    /// How often the pod or its containers had reached a limit when the plugin saw the last kill.
    pub(crate) limits_reached: u64,
    /// Running containers of the pod, by ID.
    pub(crate) running: BTreeMap<String, Running>,
    /// Histories of the pod's containers, by name.
    pub(crate) histories: BTreeMap<String, History>,
    /// Last observed number of times that usage reached a limit, and the time when the plugin first
    /// observed this number.
    #[serde(skip)]
    pub(crate) reached_at: Option<(u64, u64)>,
    #[serde(skip)]
    pub(crate) unexplained: Counts,
    #[serde(skip)]
    pub(crate) last_reported: HashMap<String, LastReported>,
}

impl Pod {
    /// Records that the plugin has handled the counts in a container's file. Returns the new kills.
    pub(crate) fn account(&mut self, id: String, counts: Counts) -> Option<Killed> {
        let running = self.running.get_mut(&id)?;
        let times = counts.kills().saturating_sub(running.counted.kills());
        self.accounted = self.accounted.plus(counts.since(running.counted));
        running.counted = counts;
        let is_recent = std::mem::replace(&mut running.is_seen, true);
        let (name, container) = (running.name.clone(), running.container.clone());
        Some(Killed { id, name, times, is_recent, container })
    }

    /// Determines which container had the kills that only the pod's `memory.events` shows. `gone`
    /// are the IDs of the containers whose cgroups no longer exist.
    pub(crate) fn attribute_rest(&mut self, events: Counts, gone: &[String]) -> Rest {
        let rest = events.since(self.accounted);
        if rest.kills() == 0 {
            return Rest::None;
        }
        let names: BTreeSet<_> =
            gone.iter().filter_map(|id| Some(&self.running.get(id)?.name)).collect();
        let last = gone.last().and_then(|id| Some((id, self.running.get(id)?)));
        match (names.len(), last) {
            (1, Some((id, last))) => {
                // The plugin may have counted some of the killed processes before the runtime
                // removed the container's cgroup.
                let times = last.counted.plus(rest).kills().saturating_sub(last.counted.kills());
                let (name, container) = (last.name.clone(), last.container.clone());
                self.accounted = events;
                Rest::Of(Killed { id: id.clone(), name, times, is_recent: last.is_seen, container })
            }
            // The container's file may show the kill a little later.
            (0, _) if self.unexplained != rest => {
                self.unexplained = rest;
                Rest::Later
            }
            _ => {
                let names: Vec<_> = names.into_iter().map(String::as_str).collect();
                let might_be = names.join(" or ");
                self.accounted = events;
                Rest::Unknown { processes: rest.processes, might_be }
            }
        }
    }

    /// Returns whether the limit of the pod or of a container caused a kill. `reached` tells how
    /// often usage in the pod has reached a limit. `now` is in seconds.
    ///
    /// When usage reaches a limit, the kernel counts this, but does not always OOM-kill a process
    /// afterwards. Therefore the limit counts as the cause only of kills within [`KILL_FOLLOWS`].
    pub(crate) fn was_limit_reached(&mut self, reached: u64, killed: &[Killed], now: u64) -> bool {
        let since = match self.reached_at {
            Some((count, since)) if count == reached => since,
            _ => now,
        };
        let is_fresh = now.saturating_sub(since) <= KILL_FOLLOWS;
        let was_reached = reached > self.limits_reached && is_fresh;
        self.reached_at = Some((reached, since));
        if !killed.is_empty() || !is_fresh {
            self.limits_reached = reached;
        }
        was_reached
    }
}

/// Times of the last reports about a container, in seconds since the boot.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LastReported {
    /// Report of kills.
    pub(crate) kills: Option<u64>,
    /// Report that the plugin must not raise the limit further.
    pub(crate) ceiling: Option<u64>,
    /// The plugin's request to the runtime to raise the limit.
    pub(crate) raised: Option<u64>,
    /// Report of a raise that the plugin only planned, because it was in observe mode.
    pub(crate) planned: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) name: String,
    pub(crate) cgroup: CgroupPath,
    pub(crate) counted: Counts,
    /// Whether this plugin process has seen the container start, or has read its counts. The first
    /// read of another container may find kills from an earlier time.
    #[serde(skip)]
    pub(crate) is_seen: bool,
    /// The container's state at its last event. The runtime may report the container's end before
    /// the kill task reads the last kill.
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

    /// Returns the number of kills. With `memory.oom.group`, a kill of all processes of a container
    /// counts as one kill. The kernel may count killed processes before the group kill.
    pub(crate) fn kills(self) -> u64 {
        if self.groups > 0 { self.groups } else { self.processes }
    }
}

/// Kills in a pod that no container's file shows.
#[derive(Debug)]
pub(crate) enum Rest {
    /// The containers' files show all kills.
    None,
    /// The killed processes belonged to the only container whose cgroup no longer exists.
    Of(Killed),
    /// A container's file may show the kills a little later.
    Later,
    /// The plugin does not know which container had the kills.
    Unknown {
        /// Number of killed processes.
        processes: u64,
        /// Names of the possible containers.
        might_be: String,
    },
}

/// Kills of one container.
#[derive(Debug)]
pub(crate) struct Killed {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) times: u64,
    /// Whether the kills have just happened. Otherwise their time is unknown, because they happened
    /// before this plugin process first read the container's counts.
    pub(crate) is_recent: bool,
    pub(crate) container: Option<Arc<Container>>,
}

/// Returns the stored container limits that `oomRescue` has raised on the node whose file system is
/// at `host`. Each limit comes with its pod and container name.
///
/// # Errors
///
/// Fails if the file exists but cannot be read.
pub fn rescued_on(host: &Path) -> io::Result<Vec<(CgroupPath, String, Rescue)>> {
    let text = match fs::read(host.join(originals::DIRECTORY).join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let Counted { pods, .. } = serde_json::from_slice(&text)?;
    let rescued = pods.into_iter().flat_map(|(path, pod)| {
        let histories = pod.histories.into_iter();
        histories.filter_map(move |(name, history)| Some((path.clone(), name, history.rescued()?)))
    });
    Ok(rescued.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(processes: u64, groups: u64) -> Counts {
        Counts { processes, groups }
    }

    /// Returns a pod with running containers, given their IDs and names.
    fn pod(running: &[(&str, &str)]) -> Pod {
        let running = running.iter().map(|(id, name)| {
            let cgroup = CgroupPath::parse(&format!("kubepods/poda/{id}")).unwrap();
            let counted = Counts::default();
            let (name, is_seen) = ((*name).to_owned(), true);
            let running = Running { name, cgroup, counted, is_seen, container: None };
            ((*id).to_owned(), running)
        });
        Pod { running: running.collect(), ..Pod::default() }
    }

    fn gone(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn a_group_of_processes_is_one_kill() {
        assert_eq!(counts(5, 0).kills(), 5);
        assert_eq!(counts(5, 1).kills(), 1);
        let mut pod = pod(&[("1", "app")]);
        let killed = pod.account("1".to_owned(), counts(2, 0)).unwrap();
        assert_eq!((killed.name.as_str(), killed.times), ("app", 2));
        // The kernel counts the processes before the group.
        assert_eq!(pod.account("1".to_owned(), counts(4, 1)).unwrap().times, 0);
        assert!(pod.account("2".to_owned(), counts(1, 0)).is_none(), "the container is unknown");
    }

    #[test]
    fn unexplained_kills_belong_to_the_removed_container() {
        let mut pod = pod(&[("1", "app"), ("2", "other")]);
        let Rest::Of(killed) = pod.attribute_rest(counts(1, 0), &gone(&["1"])) else {
            panic!("one container is gone");
        };
        assert_eq!((killed.name.as_str(), killed.times), ("app", 1));
        assert!(matches!(pod.attribute_rest(counts(1, 0), &gone(&["1"])), Rest::None));
    }

    #[test]
    fn two_removed_containers_leave_kills_unattributed() {
        let mut pod = pod(&[("1", "app"), ("2", "other")]);
        let Rest::Unknown { processes, might_be } =
            pod.attribute_rest(counts(3, 1), &gone(&["1", "2"]))
        else {
            panic!("two containers are gone");
        };
        assert_eq!((processes, might_be.as_str()), (3, "app or other"));
    }

    #[test]
    fn an_unattributed_kill_waits_for_one_check() {
        let mut pod = pod(&[("1", "app")]);
        assert!(matches!(pod.attribute_rest(counts(1, 0), &[]), Rest::Later));
        assert!(matches!(pod.attribute_rest(counts(1, 0), &[]), Rest::Unknown { .. }));
    }

    #[test]
    fn a_reached_limit_explains_one_kill() {
        let mut pod = pod(&[("1", "app")]);
        assert!(pod.was_limit_reached(1, &[], 100), "the reached limit explains the kill");
        let killed = [pod.account("1".to_owned(), counts(1, 0)).unwrap()];
        assert!(pod.was_limit_reached(1, &killed, 101));
        assert!(!pod.was_limit_reached(1, &killed, 102), "the next kill has another cause");
    }

    #[test]
    fn a_reached_limit_expires_without_a_kill() {
        for is_looked_at_between in [false, true] {
            let mut pod = pod(&[("1", "app")]);
            assert!(pod.was_limit_reached(1, &[], 100));
            if is_looked_at_between {
                assert!(!pod.was_limit_reached(1, &[], 150));
            }
            let killed = [pod.account("1".to_owned(), counts(1, 0)).unwrap()];
            assert!(!pod.was_limit_reached(1, &killed, 200));
        }
    }
}

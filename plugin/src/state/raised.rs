//! Limits that the plugin has raised. The limits stay raised when the plugin stops setting values,
//! because a limit decrease could OOM-kill a process.

use plimsoll_core::policy::rescue::Rescue;
use plimsoll_core::units::{CPU_MAX, Knob, printable};

use crate::cgroup::{CgroupError, CgroupRoot};
use crate::state::kill_counts;
use crate::state::originals::RaisedLimit;

/// Returns one line of text for each raised limit. `raised` lists the raised limits of pods. Omits
/// the pod limits that are no longer in force. Also reads the stored container limits that
/// `oomRescue` has raised, and omits those of pods that no longer exist.
pub fn staying(root: &CgroupRoot, raised: &[RaisedLimit]) -> Vec<String> {
    let is_so = |limit: &&RaisedLimit| {
        let open = root
            .cgroup(&limit.cgroup)
            .ok()
            .filter(|open| open.inode().is_ok_and(|inode| inode == limit.inode));
        open.is_some_and(|open| {
            let held = if limit.file == CPU_MAX {
                open.cpu_max().map(|value| value.to_string())
            } else {
                open.read(Knob::Max).map(|value| value.to_string())
            };
            // Also list the limit if its current value is unknown.
            held.map_or(true, |held| held == limit.to)
        })
    };
    let pods = raised.iter().filter(is_so).map(|limit| {
        let RaisedLimit { cgroup, file, from, to, .. } = limit;
        format!(
            "{} {}: {to}, raised from {from} for the pod's containers",
            printable(&cgroup.to_string()),
            printable(file)
        )
    });
    let rescued = match kill_counts::rescued_on(root.host()) {
        Ok(rescued) => rescued,
        Err(error) => {
            return pods
                .chain([format!("limits raised by oomRescue are unknown: {error}")])
                .collect();
        }
    };
    let rescued = rescued
        .into_iter()
        .filter(|(pod, ..)| !matches!(root.cgroup(pod), Err(CgroupError::Gone(_))));
    let rescued = rescued.map(|(pod, name, Rescue { asked, limit })| {
        let (pod, name) = (printable(&pod.to_string()), printable(&name));
        format!("container {name} in {pod} memory.max: {limit}, raised from {asked} by oomRescue")
    });
    pods.chain(rescued).collect()
}

//! The search for all cgroups and containers that the plugin has changed.

use std::collections::{BTreeSet, HashMap};

use plimsoll_core::pod::{CgroupPath, PodCgroup};
use plimsoll_core::policy::hierarchy::PodPlace;
use plimsoll_core::units::{excerpt, printable};

use crate::cgroup::{CgroupError, CgroupRoot};
use crate::kubelet::kubepods::{self, CgroupSearch};
use crate::state::originals::{DIRECTORY, Originals, Target, Values};
use plimsoll_core::policy::KNOBS;

/// A cgroup that the plugin has changed.
pub(super) struct ChangedCgroup {
    pub(super) cgroup: CgroupPath,
    /// The id of the container. `None` for an ancestor cgroup of containers and for a reserved
    /// cgroup outside kubepods.
    pub(super) container: Option<String>,
    /// The values to restore.
    pub(super) original: Values,
    /// The values that the cgroup had before the command restored the original values.
    pub(super) before: Values,
}

/// The state of all cgroups and containers that the plugin has changed.
#[derive(Default)]
pub(super) struct Survey {
    pub(super) changed: Vec<ChangedCgroup>,
    /// Ids of containers whose cgroups the search did not find.
    pub(super) missing: BTreeSet<String>,
    /// Descriptions of what no longer exists: removed cgroups, and containers that the runtime does
    /// not list.
    pub(super) ended: Vec<String>,
    /// Errors about cgroups that the command could not search. The missing containers may be in
    /// these cgroups.
    pub(super) unsearched: Vec<String>,
    /// Errors about existing cgroups and containers that the command could not read.
    pub(super) problems: Vec<String>,
    /// The reason why a running plugin may still set values. `None` if no plugin may set values.
    pub(super) unknown_plugin: Option<String>,
}

impl Survey {
    /// Searches for all cgroups and containers that the plugin has changed.
    pub(super) fn new(root: &CgroupRoot, originals: &Originals) -> Self {
        // The path of a changed pod's cgroup contains the path of kubepods, even if the search does
        // not find kubepods.
        let known = originals.targets().filter_map(|target| match target {
            Target::Cgroup(path, _) => {
                let pod = PodCgroup::parse(path.as_str())?;
                Some(PodPlace::new(path.clone(), pod.class)?.kubepods().clone())
            }
            Target::Container(_) => None,
        });
        let CgroupSearch { found, problems } =
            kubepods::containers(root, known.collect::<BTreeSet<_>>());
        let mut survey = Self {
            unsearched: problems.iter().map(ToString::to_string).collect(),
            ..Self::default()
        };
        match originals.unreadable() {
            0 => {}
            lines => survey.problems.push(format!(
                "/{DIRECTORY}/originals: {lines} lines cannot be read, so their cgroups keep the \
                 plugin's values: correct the lines, or reboot the node"
            )),
        }
        let containers: HashMap<String, CgroupPath> = found.into_iter().collect();
        for target in originals.targets() {
            match target {
                Target::Container(id) => match containers.get(id) {
                    Some(cgroup) => survey.add_target(root, originals, target, cgroup),
                    None => _ = survey.missing.insert(id.clone()),
                },
                Target::Cgroup(path, _) => survey.add_target(root, originals, target, path),
            }
        }
        if containers.is_empty() && survey.unsearched.is_empty() {
            survey
                .unsearched
                .push("found no cgroups of containers below /sys/fs/cgroup".to_owned());
        }
        survey.changed.sort_by(|a, b| a.cgroup.cmp(&b.cgroup));
        survey.ended.sort();
        survey
    }

    /// Takes the values before the restore from an earlier survey.
    pub(super) fn copy_values_before(&mut self, earlier: Survey) {
        for changed in &mut self.changed {
            if let Some(former) =
                earlier.changed.iter().find(|former| former.cgroup == changed.cgroup)
            {
                changed.before = former.before;
            }
        }
    }

    fn add_target(
        &mut self,
        root: &CgroupRoot,
        originals: &Originals,
        target: &Target,
        cgroup: &CgroupPath,
    ) {
        let read = || {
            let open = root.cgroup(cgroup)?;
            match target {
                // The path now belongs to a new cgroup.
                Target::Cgroup(path, inode) if open.inode()? != *inode => {
                    Err(CgroupError::Gone(path.clone()))
                }
                _ => Values::read(&open),
            }
        };
        let container = match target {
            Target::Container(id) => Some(id.clone()),
            Target::Cgroup(..) => None,
        };
        match read() {
            Ok(before) => {
                let Some(original) = originals.get(target) else { return };
                self.changed.push(ChangedCgroup {
                    cgroup: cgroup.clone(),
                    container,
                    original,
                    before,
                });
            }
            Err(CgroupError::Gone(_)) => self.ended.push(match target {
                Target::Container(id) => format!("container {}", excerpt(id)),
                Target::Cgroup(path, _) => format!("cgroup {}", printable(&path.to_string())),
            }),
            Err(error) => self.problems.push(error.to_string()),
        }
    }

    /// Compares the missing containers with the runtime's complete list. A missing container that
    /// is not on the list has ended.
    pub(super) fn resolve_missing(
        &mut self,
        root: &CgroupRoot,
        originals: &Originals,
        containers: &HashMap<String, Option<CgroupPath>>,
    ) {
        for id in std::mem::take(&mut self.missing) {
            match containers.get(&id) {
                Some(None) => self.problems.push(format!(
                    "container {}: the runtime lists it, but its cgroup is unknown",
                    excerpt(&id)
                )),
                Some(Some(cgroup)) => {
                    self.add_target(root, originals, &Target::Container(id), cgroup)
                }
                None => self.ended.push(format!("container {}", excerpt(&id))),
            }
        }
    }
}

impl ChangedCgroup {
    /// Returns whether this is a container for which the runtime still stores the plugin's values.
    /// In this case [`Originals`] still has an entry for the container.
    pub(super) fn is_awaiting_runtime(&self, originals: &Originals, root: &CgroupRoot) -> bool {
        let Some(id) = &self.container else { return false };
        originals.get(&Target::Container(id.clone())).is_some()
            && !matches!(root.cgroup(&self.cgroup), Err(CgroupError::Gone(_)))
    }

    pub(super) fn is_restored(&self, root: &CgroupRoot) -> bool {
        let held = match root.cgroup(&self.cgroup).and_then(|cgroup| Values::read(&cgroup)) {
            Ok(held) => held,
            // The cgroup was removed meanwhile, so nothing is left to restore.
            Err(CgroupError::Gone(_)) => return true,
            Err(_) => return false,
        };
        let page = crate::cgroup::page_size();
        KNOBS.into_iter().all(|knob| {
            let default = Some(knob.default_value());
            // The plugin does not set memory.high of ancestor cgroups, so every value of
            // memory.high counts as restored.
            (self.container.is_none() && self.original.get(knob).is_none())
                || match (held.get(knob), self.original.get(knob).or(default)) {
                    (Some(held), Some(original)) => held.is_same(original, page),
                    _ => false,
                }
        })
    }
}

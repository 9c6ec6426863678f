//! Values of the containers' ancestor cgroups, and the effective protection of all cgroups.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::Protection;
use plimsoll_core::policy::hierarchy::{self, Level, ObservedCgroup, Standing};
use plimsoll_core::units::{Knob, Limit, PageSize};

use crate::cgroup::{CgroupError, CgroupRoot};
use crate::report::recent::Report;
use crate::report::status::format::CgroupStatus;
use crate::report::status::parallel::in_parallel;
use crate::report::status::reading::{ContainerReading, unread};
use crate::state::container::Container;
use crate::state::levels::LevelKind;

/// Values of the containers' cgroups and of their ancestor cgroups.
pub(super) struct CgroupTree {
    /// Values of all cgroups that the plugin could read.
    observed: BTreeMap<CgroupPath, ObservedCgroup>,
    /// `memory.max` of the ancestor cgroups of the containers.
    limits: HashMap<CgroupPath, Limit>,
    /// Reasons why the plugin could not read ancestor cgroups of the containers.
    problems: HashMap<CgroupPath, String>,
    /// Effective protection of each cgroup in `observed`.
    effective: BTreeMap<CgroupPath, Protection>,
}

impl CgroupTree {
    /// Reads the ancestor cgroups of the containers. `read` contains the values of the containers'
    /// own cgroups.
    pub(super) fn read(
        root: &CgroupRoot,
        levels: &[(Level, LevelKind)],
        known: &[Arc<Container>],
        read: &[Result<ContainerReading, String>],
    ) -> Self {
        let above = above(levels, known);
        let limited_or_not = in_parallel(&above, |path| -> Result<_, CgroupError> {
            let cgroup = root.cgroup(path)?;
            Ok((cgroup.observe()?, cgroup.read(Knob::Max).ok()))
        });
        let (mut limits, mut problems) = (HashMap::new(), HashMap::new());
        let mut observed = BTreeMap::new();
        for (path, read) in above.into_iter().zip(limited_or_not) {
            match read {
                Ok((values, max)) => {
                    limits.extend(max.map(|max| (path.clone(), max)));
                    observed.insert(path, values);
                }
                Err(error) => _ = problems.insert(path, unread(&error)),
            }
        }
        observed.extend(known.iter().zip(read).filter_map(|(container, read)| {
            Some((container.cgroup.clone()?, read.as_ref().ok()?.observed()))
        }));
        let effective = hierarchy::effective_tree(None, &observed, root.recursive_protection());
        Self { observed, limits, problems, effective }
    }

    /// Returns the effective protection of a cgroup.
    pub(super) fn effective(&self, cgroup: &CgroupPath) -> Option<Protection> {
        self.effective.get(cgroup).copied()
    }

    /// Returns the status of an ancestor cgroup of containers.
    pub(super) fn status(
        &self,
        level: Level,
        kind: LevelKind,
        page: PageSize,
        reports: Vec<Report>,
    ) -> CgroupStatus {
        let seen = self.observed.get(&level.cgroup);
        let effective = self.effective(&level.cgroup);
        let standing = seen
            .zip(effective)
            .map(|(seen, effective)| Standing::of(seen.setting, seen.usage, effective));
        CgroupStatus {
            level: kind,
            desired: Protection {
                min: level.protection.min.floor_to(page),
                low: level.protection.low.floor_to(page),
            },
            observed: seen.map(|seen| seen.setting),
            problem: self.problems.get(&level.cgroup).cloned(),
            effective,
            standing,
            usage: seen.map(|seen| seen.usage),
            max: self.limits.get(&level.cgroup).copied(),
            reports,
            cgroup: level.cgroup,
        }
    }
}

/// Returns the cgroups of `levels`, and all ancestors of these cgroups and of the containers'
/// cgroups.
fn above(levels: &[(Level, LevelKind)], known: &[Arc<Container>]) -> Vec<CgroupPath> {
    let mut above = BTreeSet::new();
    let paths = levels.iter().map(|(level, _)| Some(level.cgroup.clone()));
    for path in paths.chain(known.iter().map(|container| container.cgroup.as_ref()?.parent())) {
        let mut path = path;
        while let Some(cgroup) = path {
            path = cgroup.parent();
            if !above.insert(cgroup) {
                break;
            }
        }
    }
    above.into_iter().collect()
}

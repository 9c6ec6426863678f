//! Queries about the managed cgroups: their paths, values and kinds.

use std::collections::HashSet;

use plimsoll_core::pod::{CgroupPath, PodCgroup, PodUid};
use plimsoll_core::policy::Protection;
use plimsoll_core::policy::hierarchy::{Level, PodPlace, Tree};
use plimsoll_core::units::Bytes;

use super::{LevelKind, Levels, State, is_ours};
use crate::cgroup::{Cgroup, CgroupError};
use crate::kubelet::kubepods::{CgroupSearch, find};
use crate::lock;
use crate::state::settings::Settings;

impl Levels {
    /// Returns all managed cgroups.
    pub fn cgroups(&self) -> Vec<CgroupPath> {
        lock(&self.state).cgroups()
    }

    /// Returns all managed cgroups with their values and kinds. The cgroups above containers come
    /// first, parents before their children. The reserved cgroups follow.
    pub fn levels(&self) -> Vec<(Level, LevelKind)> {
        self.levels_of(&lock(&self.state))
    }

    fn levels_of(&self, state: &State) -> Vec<(Level, LevelKind)> {
        let levels = state.cgroups().into_iter().map(|cgroup| {
            let kind = match &cgroup {
                cgroup if state.tree.is_pod(cgroup) => LevelKind::Pod,
                cgroup if state.tree.is_kubepods(cgroup) => LevelKind::Kubepods,
                cgroup if state.is_reserved(cgroup) => LevelKind::Reserved,
                cgroup if state.is_ancestor(cgroup) => LevelKind::Outer,
                _ => LevelKind::Class,
            };
            let [min, low] = match state.in_force.get(&cgroup) {
                // An ancestor keeps its original values where they are larger.
                Some(in_force) if kind == LevelKind::Outer => self
                    .targets(state, &cgroup, in_force)
                    .map(|target| target.bytes().unwrap_or(Bytes::MAX)),
                _ => self.wanted(state, &cgroup),
            };
            (Level { protection: Protection { min, low }, cgroup }, kind)
        });
        levels.collect()
    }

    /// Returns the values that the cgroups would have in enforce mode, in the order of
    /// [`Self::levels`]. `claims` are the protection claims of all containers. Each claim comes
    /// with the container's ID and the position of its pod in the cgroup hierarchy.
    pub fn planned_levels<'c>(
        &self,
        settings: &Settings,
        claims: impl Iterator<Item = (&'c PodPlace, &'c str, Protection)>,
    ) -> Vec<(Level, LevelKind)> {
        let mut planned = {
            let state = lock(&self.state);
            let (sandboxes, origins) = (state.sandboxes.clone(), state.origins.clone());
            let (tree, reserved) = (Tree::new(settings.budget()), settings.planned_reserved());
            State { tree, sandboxes, origins, reserved, ..State::default() }
        };
        for sandbox in planned.sandboxes.values() {
            planned.tree.set_overhead(&sandbox.place, sandbox.protection(&settings.config.policy));
        }
        for (place, id, claim) in claims {
            planned.tree.claim(place, id, claim);
        }
        for (id, origins) in &planned.origins {
            if let Some(sandbox) = planned.sandboxes.get(id) {
                let pod = sandbox.place.cgroup();
                let policy = &settings.config.policy;
                planned.tree.set_cap(pod, origins.cap(sandbox.overhead));
                planned.tree.set_own(pod, sandbox.own_protection(origins.own_request, policy));
            }
        }
        self.levels_of(&planned)
    }

    /// Returns the cgroup of all pods. Returns `None` if the runtime has reported no pod.
    pub fn kubepods(&self) -> Option<CgroupPath> {
        lock(&self.state).tree.kubepods().cloned()
    }

    /// Returns whether the plugin manages the cgroup.
    pub fn contains(&self, cgroup: &CgroupPath) -> bool {
        let state = lock(&self.state);
        is_ours(&state.tree, &state.reserved, cgroup)
    }

    /// Returns the reserved cgroups, which are outside kubepods.
    pub fn reserved(&self) -> Vec<CgroupPath> {
        lock(&self.state).reserved.iter().map(|reserved| reserved.cgroup.clone()).collect()
    }

    /// Returns whether the cgroup is a reserved cgroup. The configuration names the reserved
    /// cgroups, or the node guard chooses one.
    pub fn is_reserved(&self, cgroup: &CgroupPath) -> bool {
        lock(&self.state).is_reserved(cgroup)
    }

    /// Returns the UIDs of the pods that have a sandbox.
    pub fn pods(&self) -> HashSet<PodUid> {
        let state = lock(&self.state);
        let pods = state
            .sandboxes
            .values()
            .filter_map(|sandbox| PodCgroup::parse(sandbox.place.cgroup().as_str()));
        pods.map(|pod| pod.uid).collect()
    }

    /// Returns whether there is a sandbox with this ID.
    pub fn is_sandbox(&self, id: &str) -> bool {
        lock(&self.state).sandboxes.contains_key(id)
    }

    /// Returns the cgroup of all pods, if it exists. If the plugin knows no pods, it searches for
    /// the cgroup that the kubelet created.
    ///
    /// # Errors
    ///
    /// Fails if a cgroup cannot be opened. Also fails if the search found no cgroup and could not
    /// read a directory.
    pub fn open_kubepods(&self) -> Result<Option<(CgroupPath, Cgroup)>, CgroupError> {
        let open = |path: CgroupPath| match self.root.cgroup(&path) {
            Ok(cgroup) => Some(Ok((path, cgroup))),
            Err(CgroupError::Gone(_)) => None,
            Err(error) => Some(Err(error)),
        };
        if let Some(known) = self.kubepods().and_then(open) {
            return known.map(Some);
        }
        let CgroupSearch { found, problems } = find(&self.root);
        match found.into_iter().find_map(open) {
            Some(found) => found.map(Some),
            None => problems.into_iter().next().map_or(Ok(None), Err),
        }
    }
}

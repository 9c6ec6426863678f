//! Checks whether the cgroups' protection has an effect, by the kernel's rule for nested cgroups.

use std::collections::{BTreeMap, HashMap};

use plimsoll_core::policy::hierarchy::{self, ObservedCgroup, Standing};
use tracing::{debug, warn};

use super::Reconciler;

impl Reconciler {
    /// Checks whether the protection of each cgroup has an effect, by the kernel's rule for nested
    /// cgroups. Warns when the protection of a cgroup no longer has an effect.
    pub(super) fn survey(&mut self) {
        let containers = self.containers.all();
        let names: HashMap<_, _> = containers
            .iter()
            .filter_map(|container| {
                Some((container.cgroup.clone()?, (container.pod.clone(), container.name.clone())))
            })
            .collect();
        let paths = containers.iter().filter_map(|container| container.cgroup.clone());
        let mut observed = BTreeMap::new();
        self.root.observe_all(paths.chain(self.levels.cgroups()), &mut observed);
        let recursive = self.root.recursive_protection();
        let effective = hierarchy::effective_tree(None, &observed, recursive);
        for (cgroup, protection) in effective {
            let Some(ObservedCgroup { setting, usage }) = observed.get(&cgroup) else { continue };
            let standing = Standing::of(*setting, *usage, protection);
            let before = self.standings.insert(cgroup.clone(), standing);
            let of = names.get(&cgroup);
            if of.is_none() && !self.levels.is_reserved(&cgroup) {
                continue;
            }
            let (pod, container) =
                of.map(|(pod, container)| (pod.as_str(), container.as_str())).unzip();
            if standing == Standing::Inert && before != Some(Standing::Inert) {
                warn!(
                    pod,
                    container,
                    %cgroup,
                    usage = usage.quantity(),
                    min = setting.min.quantity(),
                    low = setting.low.quantity(),
                    effective_min = protection.min.quantity(),
                    effective_low = protection.low.quantity(),
                    %standing,
                    "the protection of the cgroup has no effect: a cgroup above provides less"
                );
            } else if before.is_some_and(|before| before != standing) {
                debug!(pod, container, %cgroup, %standing, "the protection's effect has changed");
            }
        }
    }
}

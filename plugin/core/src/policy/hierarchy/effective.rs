//! Effective protection of cgroups, as the kernel computes it.

use std::collections::{BTreeMap, HashMap};

use super::sums::{Sum, saturated};
use crate::pod::CgroupPath;
use crate::policy::protection::Protection;
use crate::units::Bytes;

/// Input of [`effective()`]: facts about one cgroup and one file (`memory.min` or `memory.low`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The cgroup's usage (`memory.current`).
    pub usage: Bytes,
    /// The parent's usage.
    pub parent_usage: Bytes,
    /// The value in the cgroup's file.
    pub setting: Bytes,
    /// The parent's effective protection from the same file.
    pub parent_effective: Bytes,
    /// Total protected usage of this cgroup and its siblings. A child's protected usage is the
    /// lesser of its usage and its setting.
    pub siblings_protected: Bytes,
    /// Whether cgroup2 is mounted with `memory_recursiveprot`.
    pub recursive: bool,
}

/// Computes the effective protection that one file gives to a cgroup, as the kernel does.
///
/// These rules do not apply to children of the cgroup in which the kernel starts to reclaim memory.
/// For these children, the full values of the files are effective.
///
/// - A child's protected usage is the lesser of its usage and its setting. If the parent's
///   effective protection covers the protected usage of all children, the protected usage of each
///   child is its effective protection. Otherwise, the children share the parent's protection in
///   proportion to their protected usage.
/// - With `memory_recursiveprot`, the children also share the part of the parent's protection that
///   exceeds their protected usage. Each child's share is proportional to its usage beyond its
///   protected usage.
///
/// The result can exceed the usage only if the parent's protection exceeds the parent's usage. In
/// this case the whole usage is protected.
pub fn effective(step: &Step) -> Bytes {
    let [usage, parent_usage, setting, parent_effective, siblings_protected] = [
        step.usage,
        step.parent_usage,
        step.setting,
        step.parent_effective,
        step.siblings_protected,
    ]
    .map(|bytes| u128::from(bytes.get()));
    let protected = usage.min(setting);
    if siblings_protected > parent_effective {
        return saturated(protected * parent_effective / siblings_protected);
    }
    // The plugin reads usages one after another, so the parent's usage can be less than the sum of
    // its children's usages.
    if step.recursive && parent_usage > siblings_protected {
        let unclaimed = parent_effective - siblings_protected;
        return saturated(
            protected + unclaimed * (usage - protected) / (parent_usage - siblings_protected),
        );
    }
    saturated(protected)
}

/// Protection settings and usage of one cgroup, as the plugin read them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObservedCgroup {
    /// The values in the cgroup's files.
    pub setting: Protection,
    /// The cgroup's usage (`memory.current`).
    pub usage: Bytes,
}

/// Computes how much of each cgroup's usage is effectively protected during reclaim that starts in
/// `root`. `root` is the cgroup whose `memory.max` causes the reclaim. With `None`, the cause is
/// memory pressure on the whole node.
///
/// `observed` must contain all cgroups between `root` and the cgroups of interest, with all their
/// siblings. The result omits a cgroup if `observed` lacks one of its ancestors below `root`. A
/// cgroup without usage has no protection, because the kernel skips it.
pub fn effective_tree(
    root: Option<&CgroupPath>,
    observed: &BTreeMap<CgroupPath, ObservedCgroup>,
    recursive: bool,
) -> BTreeMap<CgroupPath, Protection> {
    let mut claimed: HashMap<CgroupPath, Sum> = HashMap::new();
    for (cgroup, ObservedCgroup { setting, usage }) in observed {
        if let Some(parent) = cgroup.parent() {
            let protected =
                Protection { min: setting.min.min(*usage), low: setting.low.min(*usage) };
            claimed.entry(parent).or_default().replace(Protection::default(), protected);
        }
    }
    // Start with the children of `root`: the full values of their files are effective. Paths are
    // sorted, so a parent comes before its children.
    let mut found: BTreeMap<CgroupPath, Protection> = BTreeMap::new();
    for (cgroup, &ObservedCgroup { setting, usage }) in observed {
        let parent = cgroup.parent();
        let protection = if parent.as_ref() == root {
            setting
        } else {
            let Some(parent) = parent else { continue };
            let (Some(above), Some(given)) = (observed.get(&parent), found.get(&parent)) else {
                continue;
            };
            let siblings = claimed.get(&parent).copied().unwrap_or_default().protection();
            let step = |setting, parent_effective, siblings_protected| {
                let parent_usage = above.usage;
                effective(&Step {
                    usage,
                    parent_usage,
                    setting,
                    parent_effective,
                    siblings_protected,
                    recursive,
                })
            };
            Protection {
                min: step(setting.min, given.min, siblings.min),
                low: step(setting.low, given.low, siblings.low),
            }
        };
        found.insert(cgroup.clone(), protection);
    }
    for (cgroup, protection) in &mut found {
        let usage = observed.get(cgroup).map_or(Bytes::ZERO, |observed| observed.usage);
        *protection = Protection { min: protection.min.min(usage), low: protection.low.min(usage) };
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::standing::Standing;
    use super::super::testing::{amount, amounts, path, places, protection};
    use super::super::tree::{Level, Tree};
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Builds observed cgroups from rows with path, `memory.min`, `memory.low` and usage, in MiB.
    fn observed(rows: &[(&str, u64, u64, u64)]) -> BTreeMap<CgroupPath, ObservedCgroup> {
        let row = |&(cgroup, min, low, usage): &(&str, u64, u64, u64)| {
            (
                path(cgroup),
                ObservedCgroup {
                    setting: protection(min * MIB, low * MIB),
                    usage: Bytes::new(usage * MIB),
                },
            )
        };
        rows.iter().map(row).collect()
    }

    /// Returns the cgroup's effective `memory.min` in whole MiB.
    fn min_of(rows: &[(&str, u64, u64, u64)], recursive: bool, cgroup: &str) -> u64 {
        effective_tree(None, &observed(rows), recursive)[&path(cgroup)].min.get() / MIB
    }

    #[test]
    fn results_match_the_kernels_documented_examples() {
        // Example from mm/memcontrol.c of Linux 5.x: a parent has 2 GiB of protection. The
        // children's settings are 3, 1, 0 and 10 GiB, and their usages are 2, 2, 2 and 0 GiB. The
        // first two children get 1.3 and 0.6 GiB.
        let step = |usage: u64, setting: u64| Step {
            usage: Bytes::new(usage),
            parent_usage: Bytes::new(6000),
            setting: Bytes::new(setting),
            parent_effective: Bytes::new(2000),
            siblings_protected: Bytes::new(3000),
            recursive: false,
        };
        for (usage, setting, expected) in
            [(2000, 3000, 1333), (2000, 1000, 666), (2000, 0, 0), (0, 10_000, 0)]
        {
            assert_eq!(effective(&step(usage, setting)), Bytes::new(expected), "{usage} {setting}");
        }
        // Example for memory_recursiveprot in the same file: a parent has 2 GiB of protection, and
        // the settings of its children are 1 and 0 GiB. In the final state the children use 1.5 and
        // 0.5 GiB, and this usage is fully protected.
        for (usage, setting, plain, recursive) in [(1500, 1000, 1000, 1500), (500, 0, 0, 500)] {
            let step = |recursive| Step {
                usage: Bytes::new(usage),
                parent_usage: Bytes::new(2000),
                setting: Bytes::new(setting),
                parent_effective: Bytes::new(2000),
                siblings_protected: Bytes::new(1000),
                recursive,
            };
            assert_eq!(effective(&step(false)), Bytes::new(plain));
            assert_eq!(effective(&step(true)), Bytes::new(recursive));
        }
    }

    #[test]
    fn siblings_split_protection_as_in_kernel_selftest() {
        // Source: tools/testing/selftests/cgroup/test_memcontrol.c, test_memcg_protection.
        let rows = [
            ("a", 50, 0, 150),
            ("a/b", 50, 0, 150),
            ("a/b/c", 75, 0, 50),
            ("a/b/d", 25, 0, 50),
            ("a/b/e", 0, 0, 50),
            ("a/b/f", 500, 0, 0),
        ];
        for recursive in [false, true] {
            for (cgroup, expected) in
                [("a", 50), ("a/b", 50), ("a/b/c", 33), ("a/b/d", 16), ("a/b/e", 0), ("a/b/f", 0)]
            {
                assert_eq!(min_of(&rows, recursive, cgroup), expected, "{cgroup}");
            }
        }
    }

    #[test]
    fn only_recursive_protection_may_skip_lower_levels() {
        // Results of measurements: a container uses 100 MiB, and a process outside kubepods causes
        // the memory pressure.
        const CONTAINER: &str = "kubepods/burstable/pod/container";
        for (kubepods, class, pod, container, plain, recursive) in [
            (100, 100, 100, 100, 100, 100),
            (0, 0, 0, 100, 0, 0),
            (0, 0, 100, 100, 0, 0),
            (0, 100, 100, 100, 0, 0),
            (50, 100, 100, 100, 50, 50),
            (100, 0, 0, 0, 0, 100),
            (100, 0, 0, 100, 0, 100),
            (100, 0, 100, 100, 0, 100),
            (100, 100, 100, 0, 0, 100),
        ] {
            let rows = [
                ("kubepods", kubepods, 0, 100),
                ("kubepods/burstable", class, 0, 100),
                ("kubepods/burstable/pod", pod, 0, 100),
                (CONTAINER, container, 0, 100),
            ];
            assert_eq!(min_of(&rows, false, CONTAINER), plain, "{rows:?}");
            assert_eq!(min_of(&rows, true, CONTAINER), recursive, "{rows:?}");
        }
    }

    #[test]
    fn the_reclaim_roots_own_values_are_ignored() {
        let rows = [
            ("kubepods", 0, 0, 100),
            ("kubepods/burstable", 0, 80, 100),
            ("kubepods/burstable/pod", 0, 90, 100),
        ];
        let found = effective_tree(Some(&path("kubepods")), &observed(&rows), false);
        assert_eq!(found.get(&path("kubepods")), None);
        assert_eq!(found[&path("kubepods/burstable/pod")], protection(0, 80 * MIB));
        let found = effective_tree(None, &observed(&rows), false);
        assert_eq!(found[&path("kubepods/burstable/pod")], Protection::default());
    }

    #[test]
    fn cgroups_with_unobserved_ancestors_are_left_out() {
        let rows = [("a", 10, 0, 10), ("b/c", 10, 0, 10), ("b/c/d", 10, 0, 10)];
        let found = effective_tree(None, &observed(&rows), true);
        assert_eq!(found.into_keys().collect::<Vec<_>>(), [path("a")]);
    }

    #[test]
    fn unused_protection_goes_to_siblings() {
        let rows = [("a", 100, 0, 100), ("a/b", 100, 0, 10), ("a/c", 100, 0, 90)];
        assert_eq!(min_of(&rows, false, "a/b"), 10);
        assert_eq!(min_of(&rows, false, "a/c"), 90);
    }

    /// Generates a tree with consistent usages: each cgroup uses what its children use, plus an
    /// amount of its own.
    fn consistent() -> impl Strategy<Value = BTreeMap<CgroupPath, ObservedCgroup>> {
        let amount = || prop_oneof![2 => 0..200u64, 1 => Just(0), 1 => 0..1u64 << 58];
        let row = || (amount(), amount(), amount());
        prop::collection::vec(
            (row(), prop::collection::vec((row(), prop::collection::vec(row(), 0..4)), 0..4)),
            1..3,
        )
        .prop_map(|tops| {
            let mut rows = BTreeMap::new();
            let mut put = |cgroup: &str, (min, low, own): (u64, u64, u64), below: u64| {
                let usage = Bytes::new(own + below);
                rows.insert(path(cgroup), ObservedCgroup { setting: protection(min, low), usage });
                own + below
            };
            for (t, (top, middles)) in tops.into_iter().enumerate() {
                let mut in_top = 0;
                for (m, (middle, leaves)) in middles.into_iter().enumerate() {
                    let in_middle = leaves.into_iter().enumerate();
                    let in_middle =
                        in_middle.map(|(l, leaf)| put(&format!("{t}/{m}/{l}"), leaf, 0)).sum();
                    in_top += put(&format!("{t}/{m}"), middle, in_middle);
                }
                put(&t.to_string(), top, in_top);
            }
            rows
        })
    }

    proptest! {
        #[test]
        fn effective_protection_exceeds_neither_usage_nor_parent(
            observed in consistent(),
            recursive in any::<bool>(),
        ) {
            let found = effective_tree(None, &observed, recursive);
            prop_assert_eq!(found.len(), observed.len());
            let mut below: BTreeMap<CgroupPath, Sum> = BTreeMap::new();
            for (cgroup, effective) in &found {
                let ObservedCgroup { setting, usage } = observed[cgroup];
                prop_assert!(effective.min <= usage && effective.low <= usage);
                if !recursive {
                    prop_assert!(effective.min <= setting.min && effective.low <= setting.low);
                }
                if let Some(parent) = cgroup.parent() {
                    below.entry(parent).or_default().replace(Protection::default(), *effective);
                }
            }
            for (parent, sum) in below {
                let parent = found[&parent];
                prop_assert!(sum.min <= u128::from(parent.min.get()), "{sum:?} {parent:?}");
                prop_assert!(sum.low <= u128::from(parent.low.get()), "{sum:?} {parent:?}");
            }
        }

        #[test]
        fn claims_below_an_unprotected_ancestor_are_inert(mut observed in consistent()) {
            let parents: Vec<_> =
                observed.keys().filter(|cgroup| cgroup.parent().is_none()).cloned().collect();
            for parent in parents {
                observed.get_mut(&parent).unwrap().setting = Protection::default();
            }
            for (cgroup, effective) in effective_tree(None, &observed, false) {
                prop_assert_eq!(effective, Protection::default());
                let ObservedCgroup { setting, usage } = observed[&cgroup];
                let claims = setting != Protection::default();
                if claims && usage > Bytes::ZERO {
                    prop_assert_eq!(Standing::of(setting, usage, effective), Standing::Inert);
                }
            }
        }

        #[test]
        fn tree_values_protect_every_container_claim(
            claims in prop::collection::vec(
                (0..6usize, (0..1000u64, 0..1000u64), 0..3000u64),
                1..12,
            ),
        ) {
            let mut tree = Tree::new(None);
            let mut observed: BTreeMap<CgroupPath, ObservedCgroup> = BTreeMap::new();
            let mut containers = Vec::new();
            for (at, (pod, (min, low), usage)) in claims.into_iter().enumerate() {
                let (place, setting, usage) =
                    (&places()[pod], protection(min, low), Bytes::new(usage));
                tree.claim(place, &at.to_string(), setting);
                let cgroup = place.cgroup().join(&at.to_string()).unwrap();
                let mut above = cgroup.parent();
                while let Some(cgroup) = above {
                    let level = observed.entry(cgroup.clone()).or_default();
                    level.usage = level.usage.saturating_add(usage);
                    above = cgroup.parent();
                }
                observed.insert(cgroup.clone(), ObservedCgroup { setting, usage });
                containers.push(cgroup);
            }
            for Level { cgroup, protection } in tree.levels() {
                observed.get_mut(&cgroup).unwrap().setting = protection;
            }
            let found = effective_tree(None, &observed, false);
            for container in containers {
                let ObservedCgroup { setting, usage } = observed[&container];
                let due = Protection { min: setting.min.min(usage), low: setting.low.min(usage) };
                prop_assert_eq!(found[&container], due);
            }
        }

        #[test]
        fn no_amounts_are_too_large(
            amounts in prop::collection::vec((amounts(), amount()), 6),
            step in prop::array::uniform5(amount()),
            recursive in any::<bool>(),
        ) {
            let [usage, parent_usage, setting, parent_effective, siblings_protected] = step;
            effective(&Step {
                usage,
                parent_usage,
                setting,
                parent_effective,
                siblings_protected,
                recursive,
            });
            let paths = ["a", "a/b", "a/c", "a/b/d", "a/b/e", "f/g"];
            let rows = paths.into_iter().zip(&amounts);
            let observed = rows
                .map(|(at, &(setting, usage))| (path(at), ObservedCgroup { setting, usage }))
                .collect();
            for (cgroup, effective) in effective_tree(None, &observed, recursive) {
                let ObservedCgroup { setting, usage } = observed[&cgroup];
                prop_assert!(effective.min <= usage && effective.low <= usage);
                Standing::of(setting, usage, effective);
            }
        }
    }
}

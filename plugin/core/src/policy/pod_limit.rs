//! Origin of a pod's limit: the sum of its containers' limits, or a pod-level limit
//! (`spec.resources`).
//!
//! The plugin raises a pod's limit to the sum of its containers' current limits only if the pod's
//! limit was the sum of their former limits. Users may set a lower pod-level limit on purpose, and
//! Kubernetes 1.34 and 1.35 store this limit in no file. A pod's limit counts as a sum only if one
//! of these facts proves that the limit is a sum:
//!
//! - **The kubelet's checkpoint entry** for the pod contains pod-level resources, but no pod-level
//!   limit for this resource.
//! - **No pod-level limit can be this low.** The API server rejects a pod-level limit below a
//!   container's limit. A container's limit in the checkpoint is above both the pod's limit in
//!   force and the pod's limit at creation.
//! - **The amounts are equal.** The checkpoint has a limit for each container, and the runtime has
//!   reported all containers in the checkpoint. The containers' limits add up to the pod's current
//!   limit, or to its limit at creation (`pod_resources`).
//! - **The amounts are equal before or after a change.** The kubelet has no checkpoint entries at
//!   all, but a container's limit has changed, or the plugin has raised it. The limits before or
//!   after the change add up to the pod's limit.
//! - **The plugin proved it earlier** for the same sandbox.
//!
//! A pod's limit is pod-level if the checkpoint entry has a pod-level limit. If the entry has no
//! pod-level resources, a container without a limit in the checkpoint can prove a pod-level limit.
//! The proof is that this container's limit in force equals the pod's limit. The kubelet gives the
//! pod-level limit to every container without a limit. The proof remains valid after the container
//! ends. Without any checkpoint entries, the plugin compares the containers' limits with the limit
//! that the pod had at its creation. If none of these limits has changed, and the sum of the
//! containers' limits is larger, the pod's limit is pod-level.
//!
//! If the checkpoint entry has no pod-level resources, a container without a limit in the
//! checkpoint proves that the pod's limit is no sum.
//!
//! The plugin determines the origins of the memory limit and the CPU limit separately. Ephemeral
//! containers are in no checkpoint entry and have no limit, so ephemeral containers do not count.
//! Sources, Kubernetes 1.34 to 1.37: `pkg/kubelet/kuberuntime` (`getMemoryLimit`),
//! `pkg/kubelet/cm/helpers_linux.go` (`ResourceConfigForPod`), `pkg/kubelet/allocation` (the
//! checkpoint entries), `pkg/apis/core/validation` (the check of pod-level limits).

/// Origin of a pod's limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// The origin of the limit is not proven.
    #[default]
    Unknown,
    /// The limit is the sum of the limits of the pod's containers.
    Sum,
    /// The limit is pod-level. The amount excludes the overhead.
    Own(u64),
}

/// Limits of one container for one resource. Amounts are bytes, or microseconds of CPU time per
/// second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The desired limit. `None` means no limit.
    pub limit: Option<u64>,
    /// The limit that the user asks for now.
    pub asked: Option<u64>,
    /// The limit that the user asked for earlier, if it differs from `asked`.
    pub former: Option<u64>,
    /// The container's limit in the kubelet's checkpoint.
    pub recorded: RecordedLimit,
}

/// A container's limit in the kubelet's checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordedLimit {
    /// The checkpoint has no entry for the container.
    NoRecord,
    /// The checkpoint entry has no limit.
    NoLimit,
    /// The limit in the checkpoint entry.
    Limit(u64),
}

/// The part of the kubelet's checkpoint entry for a pod that concerns one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodLimitRecord {
    /// The checkpoint has no entry for the pod.
    Absent,
    /// The plugin cannot read the checkpoint, which may or may not have an entry for the pod.
    Unreadable,
    /// The checkpoint has an entry for the pod.
    Present {
        /// The pod-level limit. `None` means that the entry has no pod-level resources.
        /// `Some(None)` means that the pod-level resources have no limit for this resource.
        own: Option<Option<u64>>,
        /// Whether the runtime has reported every container in the entry.
        is_complete: bool,
        /// Whether all containers in the entry, including ended ones, have a limit. If one
        /// container has no limit, the kubelet does not use the sum as the pod's limit.
        all_limited: bool,
    },
}

/// Facts from which the plugin determines the origin of one limit of a pod.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The kubelet's checkpoint entry for the pod.
    pub record: PodLimitRecord,
    /// The containers that have not ended.
    pub members: &'a [Member],
    /// The current limit of the pod's cgroup. `None` means that there is no limit or no cgroup.
    pub in_force: Option<u64>,
    /// The limit that the runtime's client (the kubelet) set when it created the pod, without
    /// overhead.
    pub at_creation: Option<u64>,
    /// The pod's overhead, which the limit of the pod's cgroup contains in addition to the
    /// containers' limits.
    pub overhead: u64,
    /// The unit of the amounts.
    pub unit: Unit,
}

/// Unit of a limit. The rounding of values in cgroup files depends on the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, which the kernel rounds to pages of this size.
    Bytes(u64),
    /// Microseconds of CPU time per second.
    Rate,
}

/// A hundredth of a CPU in microseconds per second. systemd rounds CPU limits up to a multiple of
/// this rate.
const HUNDREDTH: u64 = 10_000;

impl Unit {
    /// Returns whether a cgroup's file may contain `observed` after a program wrote `asked`.
    fn is_same(self, observed: u64, asked: u64) -> bool {
        match self {
            Self::Bytes(page) => observed / page.max(1) == asked / page.max(1),
            Self::Rate => {
                observed.abs_diff(asked) <= 1
                    || asked.checked_next_multiple_of(HUNDREDTH) == Some(observed)
            }
        }
    }
}

impl Evidence<'_> {
    /// Determines the origin of the limit, given the earlier result `before`.
    pub fn origin(&self, before: Origin) -> Origin {
        match self.record {
            PodLimitRecord::Unreadable => before,
            PodLimitRecord::Present { own: Some(Some(own)), .. } => Origin::Own(own),
            PodLimitRecord::Present { own: Some(None), .. } => Origin::Sum,
            PodLimitRecord::Present { own: None, is_complete, all_limited } => {
                self.by_limits_in_record(before, is_complete, all_limited)
            }
            PodLimitRecord::Absent => self.without_record(before),
        }
    }

    fn by_limits_in_record(&self, before: Origin, is_complete: bool, all_limited: bool) -> Origin {
        let unlimited =
            self.members.iter().filter(|member| member.recorded == RecordedLimit::NoLimit);
        let mut inherited = unlimited.filter_map(|member| member.asked).peekable();
        if inherited.peek().is_some() {
            // A program other than the kubelet may have set a different limit, so this limit proves
            // nothing.
            return inherited
                .find(|limit| self.is_pods(*limit))
                .map_or(Origin::Unknown, Origin::Own);
        }
        if let Origin::Own(own) = before
            && self.is_pods(own)
        {
            // The container that proved the origin may have ended.
            return before;
        }
        if !all_limited {
            return Origin::Unknown;
        }
        if before == Origin::Sum {
            return Origin::Sum;
        }
        let recorded = |member: &Member| match member.recorded {
            RecordedLimit::Limit(limit) => Some(limit),
            RecordedLimit::NoRecord | RecordedLimit::NoLimit => None,
        };
        let largest = self.members.iter().filter_map(recorded).max();
        if let (Some(in_force), Some(largest)) = (self.in_force, largest)
            && largest > in_force.max(self.at_creation.unwrap_or(0))
        {
            return Origin::Sum;
        }
        let members =
            self.members.iter().filter(|member| member.recorded != RecordedLimit::NoRecord);
        if is_complete && self.adds_up(members, recorded) { Origin::Sum } else { Origin::Unknown }
    }

    fn without_record(&self, before: Origin) -> Origin {
        if before == Origin::Sum {
            return Origin::Sum;
        }
        let limited = self.members.iter().filter(|member| member.asked.is_some());
        let is_other = |member: &Member| member.former.is_some() || member.limit != member.asked;
        if limited.clone().any(is_other) {
            let adds_up = self.adds_up(limited, |member| member.asked);
            return if adds_up { Origin::Sum } else { Origin::Unknown };
        }
        let asked = sum(limited.map(|member| member.asked)).unwrap_or(0);
        match (self.in_force, self.at_creation) {
            // The pod still has its limit from creation. The containers' limits have not changed
            // either, and their sum exceeds the pod's limit. The pod's limit therefore never was
            // this sum.
            (Some(in_force), Some(own))
                if self.unit.is_same(in_force, own.saturating_add(self.overhead))
                    && asked > own
                    && self
                        .members
                        .iter()
                        .all(|member| member.asked.is_none_or(|asked| asked <= own)) =>
            {
                Origin::Own(own)
            }
            _ => Origin::Unknown,
        }
    }

    /// Returns whether the sum of these containers' limits is the pod's limit now or at creation.
    /// Tries the current, the former and the raised limits. A match with raised limits also proves
    /// a sum, because the plugin never raises a pod-level limit.
    fn adds_up<'m>(
        &self,
        members: impl Iterator<Item = &'m Member> + Clone,
        limit: impl Fn(&Member) -> Option<u64>,
    ) -> bool {
        let now = sum(members.clone().map(&limit));
        let former = sum(members.clone().map(|member| member.former.or(limit(member))));
        let is_raised = members.clone().any(|member| member.limit > member.asked);
        let raised = sum(members.map(|member| member.limit)).filter(|_| is_raised);
        [now, former, raised].into_iter().flatten().any(|sum| self.is_pods(sum))
    }

    /// Returns whether `limit` is the pod's limit now or at creation.
    fn is_pods(&self, limit: u64) -> bool {
        self.in_force.is_some_and(|in_force| {
            self.unit.is_same(in_force, limit.saturating_add(self.overhead))
        }) || self.at_creation.is_some_and(|at_creation| self.unit.is_same(at_creation, limit))
    }

    /// Returns the sum of the containers' limits and the overhead, or `None` if no container has a
    /// limit. If the pod's limit is a sum, only ephemeral containers have no limit.
    pub fn needed(&self) -> Option<u64> {
        let mut limits = self.members.iter().filter_map(|member| member.limit).peekable();
        limits.peek()?;
        Some(limits.fold(self.overhead, u64::saturating_add))
    }
}

/// Returns the sum. Returns `None` if any limit is `None` or there are no limits.
fn sum(limits: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    let mut limits = limits.peekable();
    limits.peek()?;
    limits.try_fold(0, |sum: u64, limit| Some(sum.saturating_add(limit?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNRECORDED: PodLimitRecord =
        PodLimitRecord::Present { own: None, is_complete: true, all_limited: true };

    /// The same checkpoint entry, before the runtime has reported every container.
    const INCOMPLETE: PodLimitRecord =
        PodLimitRecord::Present { own: None, is_complete: false, all_limited: true };

    /// Creates a container whose limit in the checkpoint equals its limit in force.
    fn own(limit: u64) -> Member {
        Member {
            limit: Some(limit),
            asked: Some(limit),
            former: None,
            recorded: RecordedLimit::Limit(limit),
        }
    }

    /// Creates a container to which the kubelet gave the pod's limit.
    fn inherits(limit: u64) -> Member {
        Member { recorded: RecordedLimit::NoLimit, ..own(limit) }
    }

    fn unrecorded(limit: u64) -> Member {
        Member { recorded: RecordedLimit::NoRecord, ..own(limit) }
    }

    /// An ephemeral container, as `kubectl debug` creates it.
    const EPHEMERAL: Member =
        Member { limit: None, asked: None, former: None, recorded: RecordedLimit::NoRecord };

    fn evidence(record: PodLimitRecord, members: &[Member], in_force: u64) -> Evidence<'_> {
        let in_force = (in_force > 0).then_some(in_force);
        Evidence { record, members, in_force, at_creation: None, overhead: 0, unit: Unit::Bytes(1) }
    }

    fn origin(record: PodLimitRecord, members: &[Member], in_force: u64) -> Origin {
        evidence(record, members, in_force).origin(Origin::Unknown)
    }

    #[test]
    fn the_record_decides_for_each_resource() {
        let record =
            |own| PodLimitRecord::Present { own: Some(own), is_complete: false, all_limited: true };
        assert_eq!(origin(record(Some(200)), &[own(100), own(100)], 200), Origin::Own(200));
        // The pod-level resources have limits only for other resources, such as hugepages.
        assert_eq!(origin(record(None), &[own(100), own(100)], 150), Origin::Sum);
        let members = [own(100)];
        let changed = evidence(record(Some(200)), &members, 100);
        assert_eq!(
            changed.origin(Origin::Sum),
            Origin::Own(200),
            "the pod has a new pod-level limit"
        );
    }

    #[test]
    fn inherited_limits_prove_a_pod_level_limit() {
        for members in
            [&[inherits(200)][..], &[inherits(200), inherits(200)], &[own(50), inherits(200)]]
        {
            assert_eq!(origin(UNRECORDED, members, 200), Origin::Own(200), "{members:?}");
            assert_eq!(origin(INCOMPLETE, members, 200), Origin::Own(200), "{members:?}");
        }
        // Another program set a different amount, so the amount proves nothing.
        assert_eq!(origin(UNRECORDED, &[own(50), inherits(100)], 200), Origin::Unknown);
        assert_eq!(
            evidence(UNRECORDED, &[inherits(100)], 200).origin(Origin::Sum),
            Origin::Unknown
        );
        let members = [inherits(200)];
        let at_creation = Evidence { at_creation: Some(200), ..evidence(UNRECORDED, &members, 0) };
        assert_eq!(at_creation.origin(Origin::Unknown), Origin::Own(200));
    }

    #[test]
    fn pod_level_origin_survives_its_proving_container() {
        let record = PodLimitRecord::Present { own: None, is_complete: true, all_limited: false };
        let members = [own(200)];
        assert_eq!(evidence(record, &members, 200).origin(Origin::Own(200)), Origin::Own(200));
        assert_eq!(
            evidence(record, &members, 200).origin(Origin::Unknown),
            Origin::Unknown,
            "the record has the pod-level limit"
        );
        assert_eq!(evidence(record, &[own(300)], 200).origin(Origin::Unknown), Origin::Unknown);
        assert_eq!(evidence(UNRECORDED, &members, 200).origin(Origin::Own(200)), Origin::Own(200));
        // The pod's limit has changed since the earlier result.
        assert_eq!(evidence(UNRECORDED, &[own(300)], 300).origin(Origin::Own(200)), Origin::Sum);
    }

    #[test]
    fn matching_recorded_limits_prove_a_sum() {
        let members = [own(100), own(50), EPHEMERAL];
        assert_eq!(origin(UNRECORDED, &members, 150), Origin::Sum);
        assert_eq!(origin(UNRECORDED, &members, 140), Origin::Unknown);
        assert_eq!(origin(UNRECORDED, &members, 160), Origin::Unknown);
        assert_eq!(origin(UNRECORDED, &[EPHEMERAL], 160), Origin::Unknown);
        let overhead = Evidence { overhead: 8, ..evidence(UNRECORDED, &members, 158) };
        assert_eq!(overhead.origin(Origin::Unknown), Origin::Sum);
        // The limit at creation does not include the overhead.
        let at_creation =
            Evidence { at_creation: Some(150), ..evidence(UNRECORDED, &members, 120) };
        assert_eq!(Evidence { overhead: 8, ..at_creation }.origin(Origin::Unknown), Origin::Sum);
        // The checkpoint entry already has the new limit of a container, but the pod's limit is
        // still the old sum.
        let changed = [own(100), Member { former: Some(50), ..own(90) }];
        assert_eq!(origin(UNRECORDED, &changed, 150), Origin::Sum);
    }

    /// The pod-level limit of 100 equals the limit of the pod's first container.
    #[test]
    fn a_match_before_all_containers_proves_nothing() {
        assert_eq!(origin(INCOMPLETE, &[own(100)], 100), Origin::Unknown);
        assert_eq!(origin(UNRECORDED, &[own(100), own(50)], 100), Origin::Unknown);
    }

    #[test]
    fn a_larger_container_limit_proves_a_sum() {
        assert_eq!(origin(INCOMPLETE, &[own(200), own(50)], 150), Origin::Sum);
        assert_eq!(origin(INCOMPLETE, &[own(200)], 0), Origin::Unknown);
        // Another program lowered the pod-level limit.
        let members = [own(150), own(150)];
        let narrowed = Evidence { at_creation: Some(200), ..evidence(INCOMPLETE, &members, 100) };
        assert_eq!(narrowed.origin(Origin::Unknown), Origin::Unknown);
        let resized = Evidence { at_creation: Some(100), ..narrowed };
        assert_eq!(resized.origin(Origin::Unknown), Origin::Sum);
    }

    #[test]
    fn a_matching_change_proves_an_unrecorded_sum() {
        let changed = Member { former: Some(100), ..unrecorded(200) };
        assert_eq!(origin(PodLimitRecord::Absent, &[changed, unrecorded(50)], 150), Origin::Sum);
        assert_eq!(
            origin(PodLimitRecord::Absent, &[changed, unrecorded(50)], 200),
            Origin::Unknown
        );
        assert_eq!(
            origin(PodLimitRecord::Absent, &[unrecorded(100)], 100),
            Origin::Unknown,
            "the runtime may report another container"
        );
        let rescued = Member { limit: Some(200), ..unrecorded(100) };
        for in_force in [100, 200] {
            assert_eq!(
                origin(PodLimitRecord::Absent, &[rescued, EPHEMERAL], in_force),
                Origin::Sum,
                "{in_force}"
            );
        }
        assert_eq!(origin(PodLimitRecord::Absent, &[rescued], 150), Origin::Unknown);
    }

    #[test]
    fn limits_that_never_fitted_are_no_sum() {
        let members = [unrecorded(200), unrecorded(200)];
        let at_creation =
            Evidence { at_creation: Some(200), ..evidence(PodLimitRecord::Absent, &members, 200) };
        assert_eq!(at_creation.origin(Origin::Unknown), Origin::Own(200));
        // The kubelet has resized the pod since its creation, and not every runtime reports a pod
        // resize.
        let resized = Evidence { in_force: Some(400), ..at_creation };
        assert_eq!(resized.origin(Origin::Unknown), Origin::Unknown);
        assert_eq!(at_creation.origin(Origin::Sum), Origin::Sum);
    }

    #[test]
    fn a_proven_origin_survives_inconclusive_records() {
        let members = [own(300)];
        for record in [PodLimitRecord::Absent, PodLimitRecord::Unreadable, UNRECORDED] {
            assert_eq!(
                evidence(record, &members, 150).origin(Origin::Sum),
                Origin::Sum,
                "{record:?}"
            );
        }
        assert_eq!(
            evidence(PodLimitRecord::Unreadable, &members, 300).origin(Origin::Unknown),
            Origin::Unknown
        );
        assert_eq!(
            evidence(PodLimitRecord::Unreadable, &members, 300).origin(Origin::Own(9)),
            Origin::Own(9)
        );
    }

    #[test]
    fn comparisons_allow_page_and_systemd_rounding() {
        let members = [own(100_000), own(50_000)];
        let is_sum = |unit, in_force| {
            let evidence = Evidence { unit, ..evidence(UNRECORDED, &members, in_force) };
            evidence.origin(Origin::Unknown) == Origin::Sum
        };
        assert!(
            is_sum(Unit::Bytes(4096), 150_000 / 4096 * 4096)
                && !is_sum(Unit::Bytes(1), 150_000 / 4096 * 4096)
        );
        assert!(
            is_sum(Unit::Rate, 150_000)
                && !is_sum(Unit::Rate, 155_000)
                && !is_sum(Unit::Rate, 160_000)
        );
        let odd = [own(100_000), own(51_000)];
        let rounded = Evidence { unit: Unit::Rate, ..evidence(UNRECORDED, &odd, 160_000) };
        assert_eq!(rounded.origin(Origin::Unknown), Origin::Sum, "systemd rounds up");
    }

    #[test]
    fn containers_without_a_limit_need_nothing() {
        assert_eq!(evidence(UNRECORDED, &[own(100), EPHEMERAL, own(50)], 0).needed(), Some(150));
        assert_eq!(
            Evidence { overhead: 8, ..evidence(UNRECORDED, &[own(100)], 0) }.needed(),
            Some(108)
        );
        assert_eq!(evidence(UNRECORDED, &[EPHEMERAL], 0).needed(), None);
    }
}

//! Incidents for the tests of Kubernetes Events.

use plimsoll_core::incident::{Incident, LowerLimit, Subject};
use plimsoll_core::pod::PodUid;
use plimsoll_core::policy::limit_decrease::Usage;
use plimsoll_core::units::Bytes;

use crate::report::events::draft::EventDraft;
use crate::report::mode::ReportMode;

pub(super) const MIB: u64 = 1 << 20;

pub(super) fn subject(pod: &str, uid: &str, container: &str) -> Subject {
    Subject {
        pod: Some(pod.to_owned()),
        uid: Some(PodUid::new(uid.to_owned())),
        container: Some(container.to_owned()),
        cgroup: None,
    }
}

pub(super) fn rejected(mib: u64) -> Incident {
    let (limit, in_force) = (Bytes::new(mib * MIB).into(), Bytes::new(250 * MIB).into());
    Incident::CutRejected(LowerLimit { limit, in_force, usage: Usage::default() })
}

pub(super) fn overcommitted() -> Incident {
    Incident::Overcommitted { request: Bytes::new(MIB), limit: Bytes::new(10 * MIB), most: 4.0 }
}

pub(super) fn draft(uid: &str, container: &str, what: &Incident) -> EventDraft {
    EventDraft::of(&subject("default/web", uid, container), what, ReportMode::Done).unwrap()
}

pub(super) fn beyond_node() -> Incident {
    Incident::BeyondNode { limit: Bytes::new(2 * MIB), allocatable: Bytes::new(MIB) }
}

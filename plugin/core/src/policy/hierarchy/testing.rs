//! Pods and amounts for tests.

use proptest::prelude::*;

use crate::pod::{CgroupPath, PodPlace, QosClass};
use crate::policy::protection::Protection;
use crate::units::Bytes;

pub(super) fn path(path: &str) -> CgroupPath {
    CgroupPath::parse(path).unwrap()
}

pub(super) fn protection(min: u64, low: u64) -> Protection {
    Protection { min: Bytes::new(min), low: Bytes::new(low) }
}

pub(super) fn place(cgroup: &str, class: QosClass) -> PodPlace {
    PodPlace::new(path(cgroup), class).unwrap()
}

pub(super) fn guaranteed(name: &str) -> PodPlace {
    place(&format!("kubepods/{name}"), QosClass::Guaranteed)
}

pub(super) fn burstable(name: &str) -> PodPlace {
    place(&format!("kubepods/burstable/{name}"), QosClass::Burstable)
}

pub(super) fn besteffort(name: &str) -> PodPlace {
    place(&format!("kubepods/besteffort/{name}"), QosClass::BestEffort)
}

pub(super) fn places() -> Vec<PodPlace> {
    let slice = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pode.slice";
    vec![
        guaranteed("a"),
        guaranteed("b"),
        burstable("c"),
        burstable("d"),
        place(slice, QosClass::Burstable),
        besteffort("f"),
    ]
}

pub(super) fn amount() -> impl Strategy<Value = Bytes> {
    prop_oneof![4 => 0..100u64, 1 => Just(0), 1 => any::<u64>(), 1 => Just(u64::MAX)]
        .prop_map(Bytes::new)
}

pub(super) fn amounts() -> impl Strategy<Value = Protection> {
    (amount(), amount()).prop_map(|(min, low)| Protection { min, low })
}

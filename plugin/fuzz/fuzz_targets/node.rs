//! Fuzz target for the files from which the plugin computes node allocatable.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll::kubelet::node::{KubeletReservations, MemInfo};
use plimsoll_core::units::{Bytes, Limit};

fuzz_target!(|text: &str| {
    let _ = MemInfo::parse(text);
    for document in plimsoll::yaml::values(text).into_iter().flatten() {
        if let Ok(reservations) = KubeletReservations::of(&document, None) {
            let _ = reservations.eviction.of(Bytes::MAX);
        }
    }
    if let Ok(limit) = text.parse::<Limit>() {
        assert_eq!(limit.to_string().parse(), Ok(limit));
    }
});

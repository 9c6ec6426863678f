//! Fuzz target for a manifest that `plimsoll explain` reads.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll::commands::explain::{Basis, explain};
use plimsoll_core::policy::{Node, Policy};
use plimsoll_core::units::{Bytes, PageSize};

fuzz_target!(|text: &str| {
    let basis = Basis {
        policy: Policy::default(),
        node: Node { allocatable: Some(Bytes::new(8 << 30)), page_size: PageSize::KIB4 },
        allocatable_source: String::new(),
    };
    if let Ok(explanation) = explain(text, &basis) {
        let _ = explanation.to_string();
    }
});

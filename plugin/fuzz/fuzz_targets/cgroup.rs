//! Fuzz target for cgroup paths and cgroup parents from the runtime. No accepted path leads out of
//! the cgroup hierarchy.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_core::pod::{CgroupPath, PodCgroup};

fuzz_target!(|text: &str| {
    let _ = PodCgroup::parse(text);
    if let Ok(path) = CgroupPath::parse(text) {
        assert!(path.as_str().split('/').all(|part| !matches!(part, "" | "." | "..")));
    }
});

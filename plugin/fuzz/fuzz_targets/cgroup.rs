//! Cgroup paths and parents from the runtime: nothing that is accepted leads out of the hierarchy.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll::cgroup::CgroupPath;
use plimsoll::core::pod::PodCgroup;

fuzz_target!(|text: &str| {
    let _ = PodCgroup::parse(text);
    if let Ok(path) = CgroupPath::parse(text) {
        assert!(path.as_str().split('/').all(|part| !matches!(part, "" | "." | "..")));
    }
});

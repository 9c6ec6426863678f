//! Fuzz target for a pod's cgroup parent and annotations. The first line of the input is the
//! parent, and each other line is an annotation `key=value`.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use plimsoll_core::pod::PodCgroup;
use plimsoll_core::requests::annotation::{self, Overrides};

fuzz_target!(|text: &str| {
    let mut lines = text.lines();
    let _ = PodCgroup::parse(lines.next().unwrap_or_default());
    let annotations: HashMap<String, String> = lines
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let (_, notices) = Overrides::read(&annotations, "web");
    for notice in notices.iter().chain(&annotation::unknown(&annotations)) {
        assert!(!notice.to_string().contains('\n'));
    }
});

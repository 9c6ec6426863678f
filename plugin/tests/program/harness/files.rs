//! The files of cgroups.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Simulates the kernel's reclaim: a write to `memory.reclaim` lowers the usage by the written
/// amount, at most by the page cache.
pub fn reclaims(cgroup: PathBuf, mut current: i64, mut cache: i64) {
    fs::write(cgroup.join("memory.reclaim"), "").unwrap();
    let mut inotify = inotify::Inotify::init().unwrap();
    inotify.watches().add(cgroup.join("memory.reclaim"), inotify::WatchMask::CLOSE_WRITE).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while inotify.read_events_blocking(&mut buffer).is_ok() {
            let Ok(asked) = fs::read_to_string(cgroup.join("memory.reclaim")) else { return };
            let less = asked.trim().parse().unwrap_or(0).min(cache);
            (current, cache) = (current - less, cache - less);
            let replace = |name: &str, text: String| {
                fs::write(cgroup.join("new"), text).unwrap();
                fs::rename(cgroup.join("new"), cgroup.join(name)).unwrap();
            };
            replace("memory.current", format!("{current}\n"));
            replace(
                "memory.stat",
                format!("inactive_anon {}\ninactive_file {cache}\n", current - cache),
            );
        }
    });
}

/// Overwrites a file with a single write and without truncation, because a concurrent reader must
/// not see an empty file. Newlines pad the value to the old length.
pub fn overwrite(path: &Path, value: &str) {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
    let length = usize::try_from(file.metadata().unwrap().len()).unwrap().max(value.len() + 1);
    file.write_all_at(format!("{value:\n<length$}").as_bytes(), 0).unwrap();
}

pub fn make_files(cgroup: &Path, max: &str) {
    fs::create_dir_all(cgroup).unwrap();
    let files = [
        ("memory.min", "0"),
        ("memory.low", "0"),
        ("memory.high", "max"),
        ("memory.current", "4096"),
    ];
    for (name, value) in files.into_iter().chain([("memory.max", max)]) {
        fs::write(cgroup.join(name), format!("{value}\n")).unwrap();
    }
}

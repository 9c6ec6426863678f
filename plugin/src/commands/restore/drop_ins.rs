//! Removes the drop-in files in /run in which systemd stores the plugin's values.

use std::io::{self, Write as _};
use std::path::Path;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::Protection;
use plimsoll_core::units::{Bytes, Knob, Limit};

use crate::cgroup::systemd::{self, LIMIT_DROP_IN, RUNTIME_DROP_INS, Systemd};
use crate::cgroup::{Cgroup, CgroupRoot, page_size};
use crate::commands::restore::survey::Survey;
use crate::host::files::{follow_link, list, read};
use crate::host::units::UNIT_DIRECTORIES;
use crate::state::guard_record;
use crate::state::originals::{Originals, Values};

/// Maximum number of removals of the drop-in with the limit. The plugin's own call to systemd may
/// still be under way and create the drop-in again.
const REMOVALS: u32 = 3;

/// Removes the drop-ins of all changed cgroups, and makes systemd set the original values.
/// `kubepods` is the cgroup that the node guard has limited.
pub(super) async fn remove_drop_ins(
    host: &Path,
    root: &CgroupRoot,
    originals: &Originals,
    survey: &Survey,
    kubepods: Option<&CgroupPath>,
) {
    // Remove the drop-ins. With the drop-ins, systemd would set the plugin's values again
    // instead of the administrator's values.
    let systemd = Systemd::new(host);
    let remove = |path: &CgroupPath| {
        systemd::remove_protection(host, path).unwrap_or_else(|error| {
            note(format_args!("{path}: cannot remove systemd's drop-ins: {error}"));
            false
        })
    };
    let changed = survey.changed.iter().filter(|changed| changed.container.is_none());
    let changed: Vec<_> = changed.map(|changed| (&changed.cgroup, changed.original)).collect();
    // Count the removals instead of using `any`, because `any` would stop after the first removal.
    let is_removed = changed.iter().filter(|(path, _)| remove(path)).count() > 0;
    let former: Vec<_> = find_former(root, originals).filter(|(path, _)| remove(path)).collect();
    if (is_removed || !former.is_empty())
        && let Err(error) = systemd.reload().await
    {
        note(format_args!("{error}; call 'systemctl daemon-reload'"));
    }
    // Set systemd's property if the reload did not restore the original value. Another program may
    // have set the original value at runtime, in the same drop-in file.
    for (path, original) in changed.into_iter().chain(former) {
        let [min, low] =
            [original.min, original.low].map(|limit| limit.unwrap_or(Bytes::ZERO.into()));
        let protection = Protection::of_files(min, low);
        if let Ok(cgroup) = root.cgroup(path)
            && let Err(error) = systemd.set(&cgroup, protection, false).await
        {
            note(format_args!("{error}"));
        }
    }
    if let Some(cgroup) = kubepods.and_then(|path| root.cgroup(path).ok()) {
        restore_limit(host, &systemd, &cgroup).await;
    }
}

/// Makes systemd forget the node guard's limit. `kubepods` is the cgroup that the node guard has
/// limited. Its `memory.max` must have the value before the node guard.
///
/// Removes the drop-in with the limit if the unit has the same limit without the drop-in. Then the
/// drop-in did not exist before the node guard, or it had no effect. Otherwise another program,
/// such as the kubelet, has set the limit at runtime. The drop-in then keeps the restored limit.
async fn restore_limit(host: &Path, systemd: &Systemd, kubepods: &Cgroup) {
    let read = |knob| kubepods.read(knob);
    let (Ok(min), Ok(low), Ok(max)) = (read(Knob::Min), read(Knob::Low), read(Knob::Max)) else {
        return;
    };
    // Set the property first. The removal alone would leave the node guard's limit in systemd until
    // the reload, and systemd could write it to the file.
    if let Err(error) = systemd.set(kubepods, Protection::of_files(min, low), true).await {
        note(format_args!("{error}"));
    }
    if guard_record::load(host).is_some() {
        return;
    }
    let (path, unit) = (kubepods.path(), kubepods.path().name());
    let configured = configured_limits(host, unit);
    let is_same = |limit: &Option<Limit>| *limit == Some(max);
    // With `max`, the drop-in states the default. If the unit has a configured limit nevertheless,
    // the administrator has added this limit since the node guard's start.
    let is_superfluous = max == Limit::Max
        || !configured.is_empty() && configured.iter().all(|(_, limit)| is_same(limit));
    if !is_superfluous {
        let is_overridden =
            |(file, limit): &&(String, _)| file.starts_with("etc/") && !is_same(limit);
        if let Some((file, _)) = configured.iter().find(is_overridden) {
            note(format_args!(
                "{path}: systemd keeps the limit before nodeGuard, {max}, in {LIMIT_DROP_IN}, \
                 which may override /{file}; to use that file, remove {LIMIT_DROP_IN} below \
                 /run/systemd and call 'systemctl daemon-reload'"
            ));
        }
        return;
    }
    for _ in 0..REMOVALS {
        match systemd::remove_limit(host, path) {
            Ok(false) => return,
            Ok(true) => {}
            Err(error) => {
                return note(format_args!("{path}: cannot remove systemd's drop-in: {error}"));
            }
        }
        if let Err(error) = systemd.reload().await {
            return note(format_args!("{error}; call 'systemctl daemon-reload'"));
        }
    }
}

/// Returns the memory limits in the unit file and in the drop-ins of a unit, except the runtime
/// drop-ins with the limit. Each limit has its file, relative to `host`. `None` is an unreadable
/// file or a value that this function does not know, for example a percentage.
///
/// The function does not decide which of several files counts.
fn configured_limits(host: &Path, unit: &str) -> Vec<(String, Option<Limit>)> {
    let kind = unit.rsplit_once('.').map_or(unit, |(_, kind)| kind);
    // `a-.slice.d` has drop-ins for all slices whose names begin with `a-`.
    let prefixes =
        unit.match_indices('-').map(|(index, _)| format!("{}.{kind}.d", &unit[..=index]));
    let drop_ins: Vec<_> = prefixes.chain([format!("{unit}.d"), format!("{kind}.d")]).collect();
    let ours = RUNTIME_DROP_INS.map(|directory| format!("{directory}/{unit}.d/{LIMIT_DROP_IN}"));
    let directories = ["etc/systemd/system.control"].into_iter();
    let mut limits = Vec::new();
    for directory in directories.chain(RUNTIME_DROP_INS).chain(UNIT_DIRECTORIES) {
        let mut files = vec![format!("{directory}/{unit}")];
        for drop_ins in drop_ins.iter().map(|name| format!("{directory}/{name}")) {
            match list(&host.join(&drop_ins)) {
                Ok(names) => {
                    let names = names.iter().filter(|name| name.ends_with(".conf"));
                    files.extend(names.map(|name| format!("{drop_ins}/{name}")));
                }
                Err(_) => limits.push((drop_ins, None)),
            }
        }
        for file in files.into_iter().filter(|file| !ours.contains(file)) {
            match read(&follow_link(host, &host.join(&file))) {
                Ok(text) => {
                    let found = limits_in(text.as_deref().unwrap_or_default());
                    limits.extend(found.into_iter().map(|limit| (file.clone(), limit)));
                }
                Err(_) => limits.push((file, None)),
            }
        }
    }
    limits
}

/// Returns the memory limits in the text of a unit file.
fn limits_in(text: &str) -> Vec<Option<Limit>> {
    let settings = text.lines().filter_map(|line| line.split_once('='));
    let limits = settings.filter_map(|(key, value)| match key.trim() {
        "MemoryMax" => Some(parse_limit(value.trim())),
        // The predecessor of `MemoryMax`, from which old versions of systemd derive `MemoryMax`.
        "MemoryLimit" => Some(None),
        _ => None,
    });
    limits.collect()
}

/// Parses a value of `MemoryMax`: a whole number with one of systemd's suffixes, or `infinity`.
/// Rounds the value down to whole pages, as the kernel does.
fn parse_limit(value: &str) -> Option<Limit> {
    // An empty value resets the limit.
    if ["", "infinity"].contains(&value) {
        return Some(Limit::Max);
    }
    let number = value.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match &value[number.len()..] {
        "" | "B" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    let bytes = number.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    Some(Limit::Bytes(page_size().round_down(Bytes::new(bytes))))
}

/// Returns the cgroups that the plugin restored earlier, each with its original values. A restored
/// cgroup may still have drop-ins, for example after a switch to observe mode.
///
/// Omits a cgroup whose current values differ from its original values, because another program has
/// set the current values and the drop-ins.
fn find_former<'a>(
    root: &'a CgroupRoot,
    originals: &'a Originals,
) -> impl Iterator<Item = (&'a CgroupPath, Values)> {
    // Do not use `Values::protection`, because this function treats `max` as 0.
    let protection =
        |values: &Values| [values.min, values.low].map(|limit| limit.unwrap_or(Bytes::ZERO.into()));
    let former = originals.former().filter(move |(path, inode, original)| {
        root.cgroup(path).is_ok_and(|cgroup| {
            cgroup.inode().is_ok_and(|held| held == *inode)
                && Values::read(&cgroup).is_ok_and(|held| protection(&held) == protection(original))
        })
    });
    former.map(|(path, _, original)| (path, original))
}

/// Prints a note to standard error. Ignores errors, because the terminal may be gone.
fn note(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "note: {text}");
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::cgroup::systemd::fake::Host;

    const UNIT: &str = "kubepods.slice";

    /// Restores `kubepods.slice` with the limit `max`, where the files of the unit in `configured`
    /// have these contents. Returns whether the drop-in still exists, and the number of reloads.
    async fn restore(max: &str, configured: &[(&str, &str)]) -> (bool, usize) {
        let host = Host::new().with_bus();
        let files = [("memory.min", "0"), ("memory.low", "0"), ("memory.max", max)];
        host.cgroup(UNIT, &files);
        for (file, content) in configured {
            let file = host.directory.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        }
        let drop_in = host.drop_in(UNIT, LIMIT_DROP_IN);
        fs::write(&drop_in, "[Slice]\nMemoryMax=1048576\n").unwrap();
        let (path, root) = (CgroupPath::parse(UNIT).unwrap(), host.root());
        let originals = Originals::load(host.directory.path()).unwrap();
        let survey = Survey::default();
        remove_drop_ins(host.directory.path(), &root, &originals, &survey, Some(&path)).await;
        let reloads = host.fake().reloads;
        (drop_in.exists(), reloads)
    }

    #[tokio::test]
    async fn a_redundant_limit_loses_its_drop_in() {
        assert_eq!(restore("max", &[]).await, (false, 1));
        let gib = (1_u64 << 30).to_string();
        for (file, content) in [
            ("etc/systemd/system/kubepods.slice.d/10-limit.conf", "[Slice]\nMemoryMax=1G\n"),
            ("etc/systemd/system/kubepods.slice", "[Slice]\nMemoryMax = 1073741825\n"),
            ("etc/systemd/system.control/kubepods.slice.d/50-MemoryMax.conf", "MemoryMax=1024M"),
            ("usr/lib/systemd/system/slice.d/limit.conf", "MemoryMax=1048576K"),
        ] {
            assert_eq!(restore(&gib, &[(file, content)]).await, (false, 1), "{file}");
        }
        // The kubelet has created the unit with this limit.
        let transient = ("run/systemd/transient/kubepods.slice", "[Slice]\nMemoryMax=1073741824\n");
        assert_eq!(restore(&gib, &[transient]).await, (false, 1));
        // The administrator has added this limit since.
        let added = ("etc/systemd/system/kubepods.slice.d/10-limit.conf", "MemoryMax=2G");
        assert_eq!(restore("max", &[added]).await, (false, 1));
    }

    #[tokio::test]
    async fn a_runtime_limit_keeps_its_drop_in() {
        let gib = (1_u64 << 30).to_string();
        assert_eq!(restore(&gib, &[]).await, (true, 0));
        for content in
            ["MemoryMax=2G", "MemoryMax=10%", "MemoryMax=1G\nMemoryMax=", "MemoryLimit=1G"]
        {
            let file = ("etc/systemd/system/kubepods.slice.d/10-limit.conf", content);
            assert_eq!(restore(&gib, &[file]).await, (true, 0), "{content}");
        }
        let unrelated = ("etc/systemd/system/kubepods.slice.d/10-limit.conf.old", "MemoryMax=1G");
        assert_eq!(restore(&gib, &[unrelated]).await, (true, 0));
    }

    #[test]
    fn max_does_not_count_as_original_zero() {
        let host = tempfile::tempdir().expect("a directory");
        let root = host.path().join("sys/fs/cgroup");
        let cgroup = root.join("system.slice");
        fs::create_dir_all(&cgroup).expect("the directory is made");
        fs::create_dir_all(host.path().join("run/plimsoll")).expect("the directory is made");
        fs::write(root.join("cgroup.controllers"), "memory").expect("the file is written");
        let set = |min: &str| {
            for (file, value) in [("min", min), ("low", "0"), ("high", "max")] {
                fs::write(cgroup.join(format!("memory.{file}")), value)
                    .expect("the file is written");
            }
        };
        let inode = fs::metadata(&cgroup).expect("the path exists").ino();
        let line =
            |rest: &str| format!("{{\"cgroup\":\"/system.slice\",\"inode\":{inode},{rest}}}\n");
        let lines = line("\"memory.min\":\"0\",\"memory.low\":\"0\"") + &line("\"restored\":true");
        fs::write(host.path().join("run/plimsoll/originals"), lines).expect("the file is written");
        let originals = Originals::load(host.path()).expect("the originals are read");
        let root = CgroupRoot::open(&root).expect("a hierarchy");
        set("0");
        assert_eq!(find_former(&root, &originals).count(), 1);
        set("max");
        assert_eq!(find_former(&root, &originals).count(), 0);
    }
}

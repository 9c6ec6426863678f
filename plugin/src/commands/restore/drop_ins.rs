//! Removes the drop-in files in /run in which systemd stores the plugin's values.

use std::io::{self, Write as _};
use std::path::Path;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::Protection;
use plimsoll_core::units::{Bytes, Knob};

use crate::cgroup::CgroupRoot;
use crate::cgroup::systemd::{self, Systemd};
use crate::commands::restore::survey::Survey;
use crate::state::originals::{Originals, Values};

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
    if let Some(cgroup) = kubepods.and_then(|path| root.cgroup(path).ok())
        && let (Ok(min), Ok(low)) = (cgroup.read(Knob::Min), cgroup.read(Knob::Low))
        && let Err(error) = systemd.set(&cgroup, Protection::of_files(min, low), true).await
    {
        note(format_args!("{error}"));
    }
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

    #[test]
    fn a_cgroup_with_max_is_not_restored_to_0() {
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

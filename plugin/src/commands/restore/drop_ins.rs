//! Removes systemd's runtime drop-ins with the plugin's values.

use std::path::Path;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::Protection;
use plimsoll_core::units::{Bytes, Knob};

use crate::cgroup::CgroupRoot;
use crate::cgroup::systemd::{self, Systemd};
use crate::commands::restore::survey::Survey;
use crate::state::originals::{Originals, Values};

/// Removes the drop-ins of all changed cgroups, and has systemd set the originals. `kubepods` is
/// the cgroup that the node guard has limited.
pub(super) async fn remove_drop_ins(
    host: &Path,
    root: &CgroupRoot,
    originals: &Originals,
    survey: &Survey,
    kubepods: Option<&CgroupPath>,
) {
    // Remove systemd's runtime drop-ins. Otherwise systemd would set the plugin's values again,
    // and the drop-ins would override the administrator's configuration.
    let systemd = Systemd::new(host);
    let remove = |path: &CgroupPath| {
        systemd::remove_protection(host, path).unwrap_or_else(|error| {
            eprintln!("note: {path}: cannot remove systemd's drop-ins: {error}");
            false
        })
    };
    let changed = survey.changed.iter().filter(|changed| changed.container.is_none());
    let changed: Vec<_> = changed.map(|changed| (&changed.cgroup, changed.original)).collect();
    // Count instead of `any`, which would stop at the first removal.
    let is_removed = changed.iter().filter(|(path, _)| remove(path)).count() > 0;
    // Cgroups that were restored earlier may still have drop-ins, as after a switch to observe
    // mode. If a cgroup holds other values than its originals, another program has set the
    // values and the drop-ins.
    let former = originals.former().filter(|(path, inode, original)| {
        root.cgroup(path).is_ok_and(|cgroup| {
            cgroup.inode().is_ok_and(|held| held == *inode)
                && Values::read(&cgroup)
                    .is_ok_and(|held| held.protection() == original.protection())
        })
    });
    let former = former.map(|(path, _, original)| (path, original));
    let former: Vec<_> = former.filter(|(path, _)| remove(path)).collect();
    if (is_removed || !former.is_empty())
        && let Err(error) = systemd.reload().await
    {
        eprintln!("note: {error}; call 'systemctl daemon-reload'");
    }
    // Set the property where the reload did not restore the original. Another program may have
    // set the original at runtime, in the same drop-in file.
    for (path, original) in changed.into_iter().chain(former) {
        let [min, low] =
            [original.min, original.low].map(|limit| limit.unwrap_or(Bytes::ZERO.into()));
        let protection = Protection::of_files(min, low);
        if let Ok(cgroup) = root.cgroup(path)
            && let Err(error) = systemd.set(&cgroup, protection, false).await
        {
            eprintln!("note: {error}");
        }
    }
    if let Some(cgroup) = kubepods.and_then(|path| root.cgroup(path).ok())
        && let (Ok(min), Ok(low)) = (cgroup.read(Knob::Min), cgroup.read(Knob::Low))
        && let Err(error) = systemd.set(&cgroup, Protection::of_files(min, low), true).await
    {
        eprintln!("note: {error}");
    }
}

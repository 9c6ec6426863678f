//! Drop-in files in which systemd stores the properties of units.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use plimsoll_core::pod::{CgroupPath, PodCgroup};
use rustix::fs::{AtFlags, Dir, FileType, Mode};
use rustix::io::Errno;

use crate::cgroup::beneath::{DIRECTORY, open_beneath};
use crate::cgroup::error::CgroupError;
use crate::cgroup::root::CgroupRoot;

pub(super) const DROP_INS: &str = "run/systemd/system.control";

/// Directories in which systemd stores properties that a program sets at runtime. The second one is
/// for units that a program has created over D-Bus, such as the kubelet's kubepods.slice.
pub const RUNTIME_DROP_INS: [&str; 2] = [DROP_INS, "run/systemd/transient"];

/// Drop-in file of the property `MemoryMax`.
pub const LIMIT_DROP_IN: &str = "50-MemoryMax.conf";

/// Drop-in files of all properties that [`Systemd::set`](super::Systemd::set) may set.
pub(super) const OURS: [&str; 10] = [
    "50-MemoryMin.conf",
    "50-MemoryLow.conf",
    "50-MemoryHigh.conf",
    LIMIT_DROP_IN,
    "50-MemorySwapMax.conf",
    "50-MemoryZSwapMax.conf",
    "50-CPUWeight.conf",
    "50-CPUQuota.conf",
    "50-CPUQuotaPeriodSec.conf",
    "50-TasksMax.conf",
];

/// Drop-in files of the two protection properties.
const OF_PROTECTION: [&str; 2] = ["50-MemoryMin.conf", "50-MemoryLow.conf"];

/// Lists the pod cgroups for which drop-ins from [`Systemd::set`](super::Systemd::set) may exist.
///
/// If systemd created a unit implicitly, the plugin's drop-ins remain when the unit is gone. For
/// example, systemd creates a slice implicitly if a container's scope names the slice. The kubelet
/// and other programs create units over D-Bus. The drop-ins of these units are in another
/// directory, and systemd itself removes them.
///
/// # Errors
///
/// Fails if the directory cannot be listed. A missing directory is no error.
pub fn drop_ins(host: &Path) -> io::Result<Vec<CgroupPath>> {
    let Some(directory) = open_directory(host, DROP_INS)? else { return Ok(Vec::new()) };
    let mut cgroups = Vec::new();
    for entry in Dir::read_from(&directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(unit) = name.strip_suffix(".d")
            && PodCgroup::parse(unit).is_some()
            && let Ok(cgroup) = CgroupPath::of_parent(unit)
        {
            cgroups.push(cgroup);
        }
    }
    Ok(cgroups)
}

/// Removes the drop-ins that systemd wrote because of [`Systemd::set`](super::Systemd::set), if the
/// cgroup is gone. Returns whether any drop-ins existed.
///
/// Some of the drop-ins may come from the kubelet. No program needs the drop-ins of a unit that is
/// gone, but a later unit with the same name would inherit these drop-ins. The function keeps all
/// other files in the directory, and does not follow or remove symbolic links.
///
/// # Errors
///
/// Fails if the drop-ins cannot be removed. Missing drop-ins are no error.
pub fn remove_drop_ins(host: &Path, root: &CgroupRoot, cgroup: &CgroupPath) -> io::Result<bool> {
    if !matches!(root.cgroup(cgroup), Err(CgroupError::Gone(_))) {
        return Ok(false);
    }
    remove_files(host, DROP_INS, cgroup, &OURS)
}

/// Removes the protection drop-ins of a cgroup that still exists. systemd wrote them because of
/// [`Systemd::set`](super::Systemd::set). Returns whether any drop-ins existed.
///
/// The drop-ins of the plugin override an administrator's drop-ins in `/etc`, including those that
/// the administrator adds later. systemd notices the removal at the next
/// [`Systemd::reload`](super::Systemd::reload).
///
/// # Errors
///
/// Fails if the drop-ins cannot be removed. Missing drop-ins are no error.
pub fn remove_protection(host: &Path, cgroup: &CgroupPath) -> io::Result<bool> {
    remove_files(host, DROP_INS, cgroup, &OF_PROTECTION)
}

/// Removes the runtime drop-ins with the memory limit of a cgroup. Returns whether any existed.
/// Does not follow or remove symbolic links.
///
/// # Errors
///
/// Fails if the drop-ins cannot be removed. Missing drop-ins are no error.
pub fn remove_limit(host: &Path, cgroup: &CgroupPath) -> io::Result<bool> {
    let mut removed = false;
    for parent in RUNTIME_DROP_INS {
        removed |= remove_files(host, parent, cgroup, &[LIMIT_DROP_IN])?;
    }
    Ok(removed)
}

fn remove_files(
    host: &Path,
    parent: &str,
    cgroup: &CgroupPath,
    files: &[&str],
) -> io::Result<bool> {
    let Some(parent) = open_directory(host, parent)? else { return Ok(false) };
    let name = format!("{}.d", cgroup.name());
    let directory = match open_beneath(&parent, &name, DIRECTORY) {
        Err(Errno::NOENT) => return Ok(false),
        directory => directory?,
    };
    let mut removed = false;
    for &file in files {
        match rustix::fs::statat(&directory, file, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                rustix::fs::unlinkat(&directory, file, AtFlags::empty())?;
                removed = true;
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match rustix::fs::unlinkat(&parent, &name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOTEMPTY | Errno::NOENT) => Ok(removed),
        Err(error) => Err(error.into()),
    }
}

fn open_directory(host: &Path, path: &str) -> io::Result<Option<OwnedFd>> {
    let host = rustix::fs::open(host, DIRECTORY, Mode::empty())?;
    match open_beneath(&host, path, DIRECTORY) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::super::fake::{Host, POD, UNIT};
    use super::*;
    use crate::cgroup::systemd::properties::CARRIED;

    #[test]
    fn removal_waits_until_the_cgroup_is_gone() {
        let host = Host::new();
        assert_eq!(drop_ins(host.directory.path()).unwrap(), []);
        assert!(!host.remove_drop_ins().unwrap());
        let (min, low) = (host.drop_in(UNIT, OURS[0]), host.drop_in(UNIT, OURS[1]));
        for file in &OURS[2..] {
            host.drop_in(UNIT, file);
        }
        for other in
            ["kubepods.slice", "system.slice", "kubepods-burstable.slice", "kubepods-podx.scope"]
        {
            host.drop_in(other, OURS[0]);
        }
        assert_eq!(drop_ins(host.directory.path()).unwrap(), [CgroupPath::parse(POD).unwrap()]);
        assert!(!host.remove_drop_ins().unwrap());
        assert!(min.exists() && low.exists());
        fs::remove_dir(host.directory.path().join("cgroup").join(POD)).unwrap();
        assert!(host.remove_drop_ins().unwrap());
        assert!(!min.parent().unwrap().exists());
        assert!(!host.remove_drop_ins().unwrap());
        assert_eq!(fs::read_dir(host.directory.path().join(DROP_INS)).unwrap().count(), 4);
    }

    #[test]
    fn own_files_include_every_carried_property() {
        for (_, property) in CARRIED {
            let file = format!("50-{property}.conf");
            assert!(OURS.contains(&file.as_str()), "{file} would stay for the next unit");
        }
    }

    #[test]
    fn links_and_other_drop_ins_stay() {
        let host = Host::new();
        let (directory, kubepods) =
            (host.directory.path(), CgroupPath::parse("kubepods.slice").unwrap());
        let drop_in = host.drop_in(kubepods.name(), LIMIT_DROP_IN);
        let other = host.drop_in(kubepods.name(), "50-IOWeight.conf");
        assert!(remove_limit(directory, &kubepods).unwrap());
        assert!(!drop_in.exists() && other.exists());
        symlink(&other, &drop_in).unwrap();
        assert!(!remove_limit(directory, &kubepods).unwrap());
        assert!(drop_in.is_symlink());
        fs::remove_file(&drop_in).unwrap();
        fs::rename(&other, &drop_in).unwrap();
        let transient = directory.join("run/systemd/transient/kubepods.slice.d");
        fs::create_dir_all(&transient).unwrap();
        fs::write(transient.join(LIMIT_DROP_IN), "").unwrap();
        assert!(remove_limit(directory, &kubepods).unwrap());
        assert!(!drop_in.parent().unwrap().exists() && !transient.exists());
        assert!(!remove_limit(directory, &kubepods).unwrap());
    }

    #[test]
    fn pods_below_a_cgroup_root_are_found() {
        let host = Host::new();
        let unit = "kubelet-kubepods-besteffort-pod1_2.slice";
        host.drop_in(unit, OURS[0]);
        assert_eq!(
            drop_ins(host.directory.path()).unwrap(),
            [CgroupPath::of_parent(unit).unwrap()]
        );
    }

    #[test]
    fn foreign_files_and_symlinks_are_kept() {
        let host = Host::new();
        fs::remove_dir(host.directory.path().join("cgroup").join(POD)).unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join(OURS[0]), "").unwrap();
        let (min, other) = (host.drop_in(UNIT, OURS[0]), host.drop_in(UNIT, "50-IOWeight.conf"));
        symlink(outside.path().join(OURS[0]), min.with_file_name(OURS[1])).unwrap();
        assert!(host.remove_drop_ins().unwrap());
        assert!(!min.exists() && other.exists() && min.with_file_name(OURS[1]).is_symlink());
        fs::remove_dir_all(min.parent().unwrap()).unwrap();
        symlink(outside.path(), min.parent().unwrap()).unwrap();
        assert!(host.remove_drop_ins().is_err());
        assert!(outside.path().join(OURS[0]).exists());
    }
}

//! CRI-O's configuration: `crio.conf` and its drop-ins.

use std::path::Path;

use crate::host::files::{below, matches};
use crate::host::runtime::kind::CRIO;
use crate::host::runtime::nri_settings::{MOST_FILES, NriSettings};

/// Returns the text of a drop-in for CRI-O that switches NRI on.
pub(crate) fn switch_on() -> String {
    let (key, off) = CRIO.switch;
    format!("[crio.nri]\n{key} = {}\n", !off)
}

impl NriSettings {
    /// Returns CRI-O's settings from `crio.conf` and all files below `crio.conf.d`, in the order of
    /// their paths. Later files override earlier ones.
    pub(crate) fn of_crio(host: &Path) -> Self {
        let mut settings = Self::default();
        let drop_ins = matches(host, "/etc/crio/crio.conf.d/**/*").unwrap_or_default();
        let drop_ins =
            drop_ins.into_iter().filter(|path| !below(host, path).is_dir()).take(MOST_FILES);
        for path in std::iter::once("/etc/crio/crio.conf".to_owned()).chain(drop_ins) {
            let Some(table) = settings.load(host, &path) else { continue };
            let section = table.get("crio").and_then(|crio| crio.get("nri"));
            settings.take(section, &path, &CRIO);
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::put;
    use crate::host::runtime::nri_settings::NriSwitch;

    #[test]
    fn nested_drop_ins_apply_in_path_order() {
        let host = tempfile::tempdir().unwrap();
        let is = |on| format!("[crio.nri]\nenable_nri = {on}\n");
        put(host.path(), "etc/crio/crio.conf.d/10-a.conf", &is(true));
        put(host.path(), "etc/crio/crio.conf.d/20-more/00-b.conf", &is(false));
        let found = NriSettings::of_crio(host.path()).is_off;
        assert_eq!(
            found,
            Some((
                true,
                NriSwitch::Section {
                    path: "/etc/crio/crio.conf.d/20-more/00-b.conf".to_owned(),
                    key: "enable_nri",
                    value: false
                }
            ))
        );
        put(host.path(), "etc/crio/crio.conf.d/20-z.conf", &is(true));
        assert!(NriSettings::of_crio(host.path()).is_off.is_some_and(|(is_off, _)| !is_off));
    }
}

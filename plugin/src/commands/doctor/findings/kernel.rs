//! Finding about the kernel release.

use plimsoll_core::units::excerpt;

use crate::commands::doctor::facts::NodeFacts;
use crate::commands::doctor::facts::system::RECLAIM_KERNEL;
use crate::commands::doctor::finding::Finding;
use crate::host::version::Version;

/// First kernel in which processes no longer hang at `memory.high` (KEP-2570).
const OLDEST_KERNEL: Version = Version(5, 9, 0);

impl NodeFacts {
    pub(super) fn kernel(&self) -> Finding {
        const CHECK: &str = "kernel";
        let release = match &self.system.release {
            Ok(text) => text.as_deref().unwrap_or_default().trim(),
            Err(error) => {
                let found =
                    format!("its release is unknown: /proc/sys/kernel/osrelease: {}", error.why);
                return Finding::unknown(CHECK, found, "see that it is 5.19 or newer (uname -r)");
            }
        };
        let shown = excerpt(release);
        match Version::find(release) {
            None => Finding::unknown(
                CHECK,
                format!("its release is unknown: /proc/sys/kernel/osrelease has '{shown}'"),
                "see that it is 5.19 or newer (uname -r)",
            ),
            Some(version) if version < OLDEST_KERNEL => Finding::failed(
                CHECK,
                format!("{shown}, before 5.9, where processes may hang for good at memory.high"),
                "upgrade to 5.9, better to 5.19 or newer",
            ),
            Some(version) if version < RECLAIM_KERNEL => Finding::warning(
                CHECK,
                format!(
                    "{shown}, before 5.19: without memory.reclaim a limit is lowered only where there is room already"
                ),
                "upgrade to 5.19 or newer",
            ),
            Some(_) => Finding::ok(
                CHECK,
                format!("{shown} (5.9 has memory.high as needed, 5.19 memory.reclaim)"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::commands::doctor::finding::Mark;
    use crate::commands::doctor::fixture::*;

    #[test]
    fn kernels_are_judged_by_their_release() {
        for (release, mark, found) in [
            ("5.8.18", Some(Mark::Failed), "5.8.18, before 5.9"),
            ("5.10.0-28-amd64", Some(Mark::Warning), "5.10.0-28-amd64, before 5.19"),
            ("5.19", None, ""),
            ("7.2-rc1", None, ""),
            ("plan9", Some(Mark::Unknown), "has 'plan9'"),
            ("", Some(Mark::Unknown), "unknown"),
        ] {
            let node = Node::good();
            node.write("proc/sys/kernel/osrelease", release);
            match mark {
                Some(mark) => expect(&node.troubles(), "kernel", mark, found, "5.19 or newer"),
                None => assert_eq!(node.troubles(), [], "{release}"),
            }
        }
    }
}

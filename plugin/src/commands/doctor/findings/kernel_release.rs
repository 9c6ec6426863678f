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
        const FILE: &str = "/proc/sys/kernel/osrelease";
        let unknown = |found: String| {
            Finding::unknown(CHECK, found, "check that 'uname -r' shows 5.19 or newer")
        };
        let release = match &self.system.release {
            Ok(text) => text.as_deref().unwrap_or_default().trim(),
            Err(error) => return unknown(format!("kernel release unknown: {FILE}: {}", error.why)),
        };
        let shown = excerpt(release);
        match Version::find(release) {
            None => unknown(format!(
                "kernel release unknown: expected a version in {FILE}, found '{shown}'"
            )),
            Some(version) if version < OLDEST_KERNEL => Finding::failed(
                CHECK,
                format!(
                    "expected kernel 5.9 or newer, found {shown}, in which processes can hang at \
                     memory.high"
                ),
                "upgrade the kernel to 5.9 at least, better to 5.19 or newer",
            ),
            Some(version) if version < RECLAIM_KERNEL => Finding::warning(
                CHECK,
                format!(
                    "expected kernel 5.19 or newer, found {shown}; without memory.reclaim, a \
                     limit decrease succeeds only if usage already fits"
                ),
                "upgrade the kernel to 5.19 or newer",
            ),
            Some(_) => Finding::ok(
                CHECK,
                format!("{shown} (memory.high works since 5.9, memory.reclaim exists since 5.19)"),
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
            ("5.8.18", Some(Mark::Failed), "kernel 5.9 or newer, found 5.8.18"),
            ("5.10.0-28-amd64", Some(Mark::Warning), "kernel 5.19 or newer, found 5.10.0-28-amd64"),
            ("5.19", None, ""),
            ("7.2-rc1", None, ""),
            ("plan9", Some(Mark::Unknown), "found 'plan9'"),
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

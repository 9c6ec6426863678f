//! The NRI version of a runtime and the features of each version.

use std::fmt;
use std::str::FromStr;

use crate::event::EventMask;

/// A version of NRI: major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NriVersion(pub u32, pub u32, pub u32);

impl NriVersion {
    /// The newest version that this crate supports.
    pub const NEWEST: Self = Self(0, 12, 2);

    /// The first version in which a runtime synchronises plugins that it launched. NRI 0.6.1
    /// synchronises only external plugins.
    pub(crate) const SYNCHRONIZES_LAUNCHED: Self = Self(0, 7, 0);

    /// The first version with an RPC for each event that was a StateChange before.
    #[cfg(feature = "runtime")]
    pub(crate) const RPC_PER_EVENT: Self = Self(0, 12, 0);

    /// The first version that splits a Synchronize that does not fit into one message.
    #[cfg(feature = "runtime")]
    pub(crate) const SPLITS_SYNCHRONIZE: Self = Self(0, 8, 0);

    /// Returns the events that a plugin can subscribe to in this version. If a plugin subscribes to
    /// an unknown event, its registration fails.
    pub fn events(self) -> EventMask {
        // NRI 0.9.1 was never released, but CRI-O 1.33 contains a development snapshot of it.
        EventMask::first(match self {
            v if v >= Self(0, 10, 0) => 14,
            v if v >= Self(0, 9, 1) => 13,
            _ => 11,
        })
    }

    /// Infers the NRI version of a runtime with NRI before 0.12, which does not report it. Returns
    /// `None` for an unknown runtime and for an invalid version. Also returns `None` for a version
    /// below the first entry of the table.
    ///
    /// If the runtime is newer than all entries, returns the NRI version of the newest entry. The
    /// result may lack only those features that NRI has added since then. Source: the go.mod files
    /// of containerd and CRI-O, as collected in containerd/nri `pkg/api/version.go`.
    pub fn infer(runtime: &str, version: &str) -> Option<Self> {
        let table: &[(NriVersion, NriVersion)] = match runtime {
            "containerd" => &CONTAINERD,
            "cri-o" => &CRI_O,
            _ => return None,
        };
        let version: Self = version.parse().ok()?;
        table.iter().rev().find(|(first, _)| version >= *first).map(|(_, nri)| *nri)
    }
}

/// Pairs of a containerd version and its NRI version. An entry applies up to the containerd version
/// of the next entry.
const CONTAINERD: [(NriVersion, NriVersion); 9] = [
    (NriVersion(1, 7, 0), NriVersion(0, 3, 0)),
    (NriVersion(1, 7, 7), NriVersion(0, 4, 0)),
    (NriVersion(1, 7, 14), NriVersion(0, 6, 0)),
    (NriVersion(1, 7, 16), NriVersion(0, 6, 1)),
    (NriVersion(1, 7, 26), NriVersion(0, 8, 0)),
    (NriVersion(2, 0, 0), NriVersion(0, 8, 0)),
    (NriVersion(2, 2, 0), NriVersion(0, 10, 0)),
    (NriVersion(2, 2, 1), NriVersion(0, 11, 0)),
    (NriVersion(2, 3, 0), NriVersion(0, 12, 0)),
];

const CRI_O: [(NriVersion, NriVersion); 10] = [
    (NriVersion(1, 26, 0), NriVersion(0, 2, 0)),
    (NriVersion(1, 26, 2), NriVersion(0, 3, 0)),
    (NriVersion(1, 29, 0), NriVersion(0, 5, 0)),
    (NriVersion(1, 29, 2), NriVersion(0, 6, 0)),
    (NriVersion(1, 31, 0), NriVersion(0, 6, 1)),
    (NriVersion(1, 32, 0), NriVersion(0, 9, 0)),
    (NriVersion(1, 33, 0), NriVersion(0, 9, 1)),
    (NriVersion(1, 34, 0), NriVersion(0, 10, 0)),
    (NriVersion(1, 35, 0), NriVersion(0, 11, 0)),
    (NriVersion(1, 36, 0), NriVersion(0, 11, 0)),
];

impl fmt::Display for NriVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The error for text that is not a version. A version begins with `MAJOR.MINOR`, with an optional
/// leading `v` and an optional patch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a version, expected MAJOR.MINOR.PATCH")]
pub struct InvalidVersion(String);

impl FromStr for NriVersion {
    type Err = InvalidVersion;

    /// Parses a version, also with the suffix of a distribution such as `2.1.9~ds1` or
    /// `v1.7.24-rc.1+unknown`. A missing patch is 0.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.strip_prefix('v').unwrap_or(text).splitn(3, '.');
            let major = parts.next()?.parse().ok()?;
            let minor = leading_number(parts.next()?)?;
            let patch = parts.next().map_or(Some(0), leading_number)?;
            Some(Self(major, minor, patch))
        };
        parse().ok_or_else(|| InvalidVersion(text.to_owned()))
    }
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_distributions_are_understood() {
        assert_eq!("1.7.24~ds1".parse(), Ok(NriVersion(1, 7, 24)));
        assert_eq!("v2.1.9-rc.1+unknown".parse(), Ok(NriVersion(2, 1, 9)));
        assert_eq!("2.3".parse(), Ok(NriVersion(2, 3, 0)));
        for bad in ["", "v", "unknown", "2", "2.", ".1.2", "1.x.2", "99999999999.1.1"] {
            assert!(bad.parse::<NriVersion>().is_err(), "{bad}");
        }
    }

    #[test]
    fn runtime_name_and_version_determine_nri_version() {
        let infer = NriVersion::infer;
        assert_eq!(infer("containerd", "1.7.24~ds1"), Some(NriVersion(0, 6, 1)));
        assert_eq!(infer("containerd", "v1.7.30"), Some(NriVersion(0, 8, 0)));
        assert_eq!(infer("containerd", "2.1.9"), Some(NriVersion(0, 8, 0)));
        assert_eq!(infer("containerd", "2.9.0"), Some(NriVersion(0, 12, 0)));
        assert_eq!(infer("cri-o", "1.33.4"), Some(NriVersion(0, 9, 1)));
        assert_eq!(infer("cri-o", "1.20.0"), None);
        assert_eq!(infer("frobnicator", "1.0.0"), None);
        assert_eq!(infer("containerd", "unknown"), None);
    }

    #[test]
    fn tables_are_in_ascending_order() {
        assert!(CONTAINERD.is_sorted());
        assert!(CRI_O.is_sorted());
    }

    #[test]
    fn known_events_depend_on_the_version() {
        assert_eq!(NriVersion(0, 6, 1).events(), EventMask::first(11));
        assert_eq!(NriVersion(0, 9, 0).events(), EventMask::first(11));
        assert_eq!(NriVersion(0, 9, 1).events(), EventMask::first(13));
        assert_eq!(NriVersion(0, 12, 2).events(), EventMask::first(14));
    }
}

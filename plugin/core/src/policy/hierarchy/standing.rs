//! How well the values in a cgroup's files protect the cgroup's memory.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::policy::protection::Protection;
use crate::units::Bytes;

/// How well the values in a cgroup's files protect the cgroup's memory.
///
/// `Display` writes one lowercase word for logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Both `memory.min` and `memory.low` are 0.
    Unclaimed,
    /// At least nine tenths of the usage that the files should protect is effectively protected.
    /// The threshold is not 1, because the plugin reads usages one after another and they do not
    /// add up exactly. A cgroup without usage also counts as protected.
    Protected,
    /// At least one tenth but less than nine tenths of the usage that the files should protect is
    /// effectively protected.
    Partly,
    /// Less than one tenth of the usage that the files should protect is effectively protected.
    /// Usually, nothing is protected.
    Inert,
}

impl Standing {
    /// All variants, for messages and tests.
    pub const ALL: [Self; 4] = [Self::Unclaimed, Self::Protected, Self::Partly, Self::Inert];

    /// Classifies a cgroup by its settings, its usage and its effective protection from
    /// [`effective_tree`](super::effective_tree). The usage that a file should protect is the
    /// lesser of the file's setting and the cgroup's usage. The result is the worse of the results
    /// for `memory.min` and `memory.low`.
    pub fn of(setting: Protection, usage: Bytes, effective: Protection) -> Self {
        let knob = |setting: Bytes, effective: Bytes| {
            if setting == Bytes::ZERO {
                return Self::Unclaimed;
            }
            let due = u128::from(setting.min(usage).get());
            match u128::from(effective.get()) * 10 {
                tenths if tenths >= due * 9 => Self::Protected,
                tenths if tenths >= due => Self::Partly,
                _ => Self::Inert,
            }
        };
        knob(setting.min, effective.min).max(knob(setting.low, effective.low))
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unclaimed => "unclaimed",
            Self::Protected => "protected",
            Self::Partly => "partly",
            Self::Inert => "inert",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::protection;
    use super::*;

    #[test]
    fn the_worse_of_min_and_low_decides() {
        for (setting, usage, effective, expected) in [
            ((0, 0), 100, (0, 0), Standing::Unclaimed),
            ((0, 0), 100, (100, 100), Standing::Unclaimed),
            ((100, 0), 0, (0, 0), Standing::Protected),
            ((100, 0), 50, (50, 0), Standing::Protected),
            ((100, 0), 200, (90, 0), Standing::Protected),
            ((100, 0), 200, (89, 0), Standing::Partly),
            ((100, 0), 200, (10, 0), Standing::Partly),
            ((100, 0), 200, (9, 0), Standing::Inert),
            ((100, 0), 200, (0, 100), Standing::Inert),
            ((100, 100), 200, (100, 0), Standing::Inert),
            ((0, 100), 200, (0, 50), Standing::Partly),
            ((u64::MAX, u64::MAX), u64::MAX, (u64::MAX, u64::MAX), Standing::Protected),
        ] {
            let pair = |(min, low)| protection(min, low);
            let found = Standing::of(pair(setting), Bytes::new(usage), pair(effective));
            assert_eq!(found, expected, "{setting:?} {usage} {effective:?}");
        }
        assert_eq!(
            Standing::ALL.map(|standing| standing.to_string()),
            ["unclaimed", "protected", "partly", "inert"]
        );
    }
}

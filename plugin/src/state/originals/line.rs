//! Lines of the file with the original values.

use std::io;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::units::Limit;
use serde::{Deserialize, Serialize};

use super::record::{RaisedLimit, Target, Values};

/// One line of the file.
#[derive(Serialize, Deserialize)]
pub(super) struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) container: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cgroup: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) inode: Option<u64>,
    #[serde(rename = "memory.min", skip_serializing_if = "Option::is_none")]
    pub(super) min: Option<String>,
    #[serde(rename = "memory.low", skip_serializing_if = "Option::is_none")]
    pub(super) low: Option<String>,
    #[serde(rename = "memory.high", skip_serializing_if = "Option::is_none")]
    pub(super) high: Option<String>,
    /// Whether the target has its original values again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) restored: bool,
    /// Value of `memory.high` before a limit decrease lowered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) during_decrease: Option<String>,
    /// Whether `memory.high` has its desired value again after a limit decrease.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) decrease_over: bool,
    /// Name of the file whose limit the plugin has raised. `from` is the old value, and `to` the
    /// new value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) raised: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) to: Option<String>,
}

impl Line {
    pub(super) fn new(target: &Target, values: &Values) -> Self {
        let (container, cgroup, inode) = match target {
            Target::Container(id) => (Some(id.clone()), None, None),
            Target::Cgroup(path, inode) => (None, Some(path.as_str().to_owned()), Some(*inode)),
        };
        let [min, low, high] =
            [values.min, values.low, values.high].map(|value| value.map(|value| value.to_string()));
        Self {
            container,
            cgroup,
            inode,
            min,
            low,
            high,
            restored: false,
            during_decrease: None,
            decrease_over: false,
            raised: None,
            from: None,
            to: None,
        }
    }

    pub(super) fn of_restored(target: &Target) -> Self {
        Self { restored: true, ..Self::new(target, &Values::default()) }
    }

    pub(super) fn of_decrease(id: &str, high: Limit) -> Self {
        let during_decrease = Some(high.to_string());
        let target = Target::Container(id.to_owned());
        Self { during_decrease, ..Self::new(&target, &Values::default()) }
    }

    pub(super) fn of_ended_decrease(id: &str) -> Self {
        let target = Target::Container(id.to_owned());
        Self { decrease_over: true, ..Self::new(&target, &Values::default()) }
    }

    pub(super) fn of_raised(limit: &RaisedLimit) -> Self {
        let RaisedLimit { cgroup, inode, file, from, to } = limit.clone();
        let line = Self::new(&Target::Cgroup(cgroup, inode), &Values::default());
        Self { raised: Some(file), from: Some(from), to: Some(to), ..line }
    }

    pub(super) fn read_raised(self) -> Option<RaisedLimit> {
        let cgroup = CgroupPath::parse(&self.cgroup?).ok()?;
        Some(RaisedLimit {
            cgroup,
            inode: self.inode?,
            file: self.raised?,
            from: self.from?,
            to: self.to?,
        })
    }

    pub(super) fn read(self) -> Option<(Target, Values)> {
        let target = match (self.container, self.cgroup, self.inode) {
            (Some(id), None, None) => Target::Container(id),
            (None, Some(path), Some(inode)) => {
                Target::Cgroup(CgroupPath::parse(&path).ok()?, inode)
            }
            _ => return None,
        };
        let value = |text: Option<String>| text.map(|text| text.parse()).transpose().ok();
        Some((
            target,
            Values { min: value(self.min)?, low: value(self.low)?, high: value(self.high)? },
        ))
    }
}

pub(super) fn json(line: &Line) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    Ok(text)
}

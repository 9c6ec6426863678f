//! Content of the file with the original values: targets, their original values, and raised limits.

use std::collections::HashMap;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::Protection;
use plimsoll_core::units::{Knob, Limit};

use crate::cgroup::{Cgroup, CgroupError};

/// Container or cgroup whose values the plugin changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Container, identified by its ID. A runtime never uses an ID again.
    Container(String),
    /// Cgroup, identified by its path and inode. The inode distinguishes the cgroup from a later
    /// cgroup with the same path.
    Cgroup(CgroupPath, u64),
}

/// Original values of one target. `None` means the kernel's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Values {
    /// `memory.min`.
    pub min: Option<Limit>,
    /// `memory.low`.
    pub low: Option<Limit>,
    /// `memory.high`.
    pub high: Option<Limit>,
}

impl Values {
    /// Returns the values that the `unified` map of an OCI specification contains. Leaves out the
    /// kernel's defaults, and values that the plugin cannot parse.
    pub fn of_unified(unified: &HashMap<String, String>) -> Self {
        let value = |knob: Knob| {
            let value = unified.get(knob.file_name())?.parse().ok()?;
            (value != knob.default_value()).then_some(value)
        };
        Self { min: value(Knob::Min), low: value(Knob::Low), high: value(Knob::High) }
    }

    /// Reads the values from the files of a cgroup.
    ///
    /// # Errors
    ///
    /// Fails if the files cannot be read.
    pub fn read(cgroup: &Cgroup) -> Result<Self, CgroupError> {
        let read = |knob| cgroup.read(knob).map(Some);
        Ok(Self { min: read(Knob::Min)?, low: read(Knob::Low)?, high: read(Knob::High)? })
    }

    /// Returns a `unified` map of an OCI specification with these values.
    pub fn to_unified(self) -> HashMap<String, String> {
        let value = |knob: Knob| Some((knob.file_name().to_owned(), self.get(knob)?.to_string()));
        Knob::ALL.into_iter().filter_map(value).collect()
    }

    /// Returns the protection that the values of `memory.min` and `memory.low` give. The value
    /// `max` counts as 0, because a sum cannot contain `max`.
    pub fn protection(&self) -> Protection {
        let bytes = |limit: Option<Limit>| limit.and_then(Limit::bytes).unwrap_or_default();
        Protection { min: bytes(self.min), low: bytes(self.low) }
    }

    /// Returns the value of a file. Returns `None` for `memory.max`, which this type does not
    /// contain.
    pub fn get(&self, knob: Knob) -> Option<Limit> {
        match knob {
            Knob::Min => self.min,
            Knob::Low => self.low,
            Knob::High => self.high,
            Knob::Max => None,
        }
    }
}

/// A pod limit that the plugin has raised and never lowers again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaisedLimit {
    /// Cgroup of the pod.
    pub cgroup: CgroupPath,
    /// Inode of the cgroup. The inode distinguishes the cgroup from a later cgroup with the same
    /// path.
    pub inode: u64,
    /// Name of the file.
    pub file: String,
    /// Value before the first raise.
    pub from: String,
    /// Value after the last raise.
    pub to: String,
}

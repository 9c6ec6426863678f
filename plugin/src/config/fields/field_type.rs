//! Struct that describes a configuration field: name, documentation, type, default and access.

use crate::config::draft::Draft;
use crate::config::model::Config;
use crate::config::setting::Value;

/// Field of the configuration.
pub struct Field {
    /// Name of the field in its mapping.
    pub name: &'static str,
    /// Documentation: one to three sentences in plain English.
    pub doc: &'static str,
    /// Type, with the allowed values or the allowed range.
    pub kind: Kind,
    /// Effect of `null`. `None` if the field does not accept `null`.
    pub null: Option<&'static str>,
    /// Unit of the value. Empty if the value has no unit.
    pub unit: &'static str,
    /// Default as YAML. `None` if the field is not set by default. The defaults of the fields in
    /// `oomRescue` apply only if the configuration sets `oomRescue` to a mapping.
    pub default: Option<&'static str>,
    /// Examples as YAML, at least one.
    pub examples: &'static [&'static str],
    /// Whether the Helm chart accepts the field.
    pub is_in_chart: bool,
    /// Functions that read and write the field in a [`Config`].
    pub(in crate::config) access: Access,
}

/// Functions that read and write a field in a configuration.
pub(in crate::config) struct Access {
    /// Stores a value that [`Field::check`] has returned.
    pub(in crate::config) set: fn(&mut Draft, Value),
    /// Returns the value, or `None` if the field is not set.
    pub(in crate::config) get: fn(&Config) -> Option<Value>,
}

/// Type of a field.
pub enum Kind {
    /// One of several words.
    Choice(&'static [Choice]),
    /// `true` or `false`.
    Boolean,
    /// A whole number of at least 1.
    Count {
        /// Highest number.
        most: u32,
    },
    /// A number.
    Number(Range),
    /// An amount of memory in the notation of Kubernetes.
    Quantity {
        /// Whether 0 is allowed.
        may_be_zero: bool,
    },
    /// `auto`, or an amount of memory above 0.
    QuantityOrAuto,
    /// An amount of memory above 0, or a share from 1% to 100%.
    QuantityOrShare,
    /// A duration above 0 with units, such as `1h 30m`.
    Duration,
    /// The path of a cgroup below the root.
    Cgroup,
    /// An IP address and a port.
    Address,
    /// An absolute path.
    Path,
    /// A version of Kubernetes, as text.
    KubernetesVersion,
    /// A mapping of fields.
    Mapping {
        /// Fields of the mapping.
        fields: &'static [&'static Field],
        /// Whether the mapping must have all fields. If false, a missing field gets its default.
        is_complete: bool,
    },
}

/// Word that a field accepts.
pub struct Choice {
    /// The word.
    pub value: &'static str,
    /// Meaning of the word: one or more sentences.
    pub meaning: &'static str,
}

/// Range of a number.
pub struct Range {
    /// Lower bound.
    pub least: f64,
    /// Whether the range excludes the lower bound itself.
    pub is_above_least: bool,
    /// Highest number.
    pub most: f64,
}

impl Range {
    /// Returns whether the number is in the range. Returns false for NaN.
    pub fn contains(&self, number: f64) -> bool {
        (self.least..=self.most).contains(&number) && !(self.is_above_least && number <= self.least)
    }
}

impl Field {
    /// Returns the fields of a mapping. Returns no fields for other types.
    pub const fn fields(&self) -> &'static [&'static Self] {
        match self.kind {
            Kind::Mapping { fields, .. } => fields,
            _ => &[],
        }
    }
}

//! Unchecked values of fields.

use std::fmt;
use std::time::Duration;

use plimsoll_core::units::{Bytes, excerpt};
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, SeqAccess};

use crate::config::any_value::{self, AnyValue, Scalar};

/// An unchecked value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RawValue {
    Null,
    Bool(bool),
    Number { text: String, value: f64 },
    Text(String),
    List,
    Map(Vec<(String, RawValue)>),
}

impl RawValue {
    /// Returns the value as a time above 0.
    pub(super) fn duration(&self) -> Option<Duration> {
        let Self::Text(text) = self else { return None };
        humantime::parse_duration(text).ok().filter(|duration| !duration.is_zero())
    }

    /// Returns the value as an amount of memory.
    pub(super) fn quantity(&self) -> Option<Bytes> {
        match self {
            Self::Text(text) | Self::Number { text, .. } => Bytes::from_quantity(text).ok(),
            _ => None,
        }
    }

    /// Returns the value as a percentage.
    pub(super) fn share(&self) -> Option<u64> {
        let Self::Text(text) = self else { return None };
        text.strip_suffix('%')?.parse().ok()
    }
}

/// Writes the value as messages show it.
impl fmt::Display for RawValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("nothing (null)"),
            Self::Bool(value) => value.fmt(f),
            Self::Number { text, .. } => write!(f, "the number {text}"),
            Self::Text(text) => write!(f, "'{}'", excerpt(text)),
            Self::List => f.write_str("a list"),
            Self::Map(_) => f.write_str("a mapping"),
        }
    }
}

impl<'de> Deserialize<'de> for RawValue {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        any_value::deserialize(deserializer)
    }
}

impl<'de> AnyValue<'de> for RawValue {
    fn from_scalar(scalar: Scalar<'_>) -> Self {
        match scalar {
            Scalar::Null => Self::Null,
            Scalar::Bool(value) => Self::Bool(value),
            Scalar::Signed(value) => Self::Number { text: value.to_string(), value: value as f64 },
            Scalar::Unsigned(value) => {
                Self::Number { text: value.to_string(), value: value as f64 }
            }
            Scalar::Large(text, value) => Self::Number { text, value },
            Scalar::Float(value) => Self::Number { text: value.to_string(), value },
            Scalar::Text(text) => Self::Text(text.into_owned()),
        }
    }

    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self::List)
    }

    fn from_map<A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        let mut fields = Vec::new();
        while let Some((key, value)) = map.next_entry::<Self, Self>()? {
            let key = if let Self::Text(text) = key { text } else { key.to_string() };
            fields.push((key, value));
        }
        Ok(Self::Map(fields))
    }
}

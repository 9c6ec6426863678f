//! Values of any type, and their conversion.

use std::fmt;
use std::time::Duration;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::ThrottlingFactor;
use plimsoll_core::policy::rescue::Ceiling;
use plimsoll_core::units::{Bytes, excerpt};
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::config::choices::NodeAllocatable;

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
    pub(super) fn throttling(&self) -> Option<Option<ThrottlingFactor>> {
        match self {
            Self::Null => Some(None),
            Self::Number { value, .. } => ThrottlingFactor::new(*value).map(Some),
            _ => None,
        }
    }

    pub(super) fn duration(&self) -> Option<Option<Duration>> {
        match self {
            Self::Null => Some(None),
            Self::Text(text) => humantime::parse_duration(text)
                .ok()
                .filter(|duration| !duration.is_zero())
                .map(Some),
            _ => None,
        }
    }

    pub(super) fn quantity(&self) -> Option<Bytes> {
        match self {
            Self::Text(text) | Self::Number { text, .. } => Bytes::from_quantity(text).ok(),
            _ => None,
        }
    }

    pub(super) fn node_allocatable(&self) -> Option<NodeAllocatable> {
        match self {
            Self::Text(text) if text == "auto" => Some(NodeAllocatable::Auto),
            _ => self.quantity().filter(|bytes| *bytes > Bytes::ZERO).map(NodeAllocatable::Fixed),
        }
    }

    pub(super) fn cgroup(&self) -> Option<CgroupPath> {
        let Self::Text(text) = self else { return None };
        if text.contains(':') {
            return None;
        }
        CgroupPath::of_parent(text).ok()
    }

    /// Returns the amount of a Kubernetes resource list that has no resource but memory.
    pub(super) fn memory(&self) -> Option<Bytes> {
        let Self::Map(fields) = self else { return None };
        match &fields[..] {
            [(name, value)] if name == "memory" => {
                value.quantity().filter(|bytes| *bytes > Bytes::ZERO)
            }
            _ => None,
        }
    }

    pub(super) fn ceiling(&self) -> Option<Ceiling> {
        let share = match self {
            Self::Text(text) => text.strip_suffix('%'),
            _ => None,
        };
        match share {
            Some(share) => {
                share.parse().ok().filter(|share| (1..=100).contains(share)).map(Ceiling::Share)
            }
            None => self.quantity().filter(|bytes| *bytes > Bytes::ZERO).map(Ceiling::Limit),
        }
    }

    pub(super) fn one_of<T: fmt::Display + Copy, const N: usize>(
        &self,
        choices: [T; N],
    ) -> Option<T> {
        let Self::Text(text) = self else { return None };
        choices.into_iter().find(|choice| choice.to_string() == *text)
    }
}

/// Name of the value in messages.
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
        struct AnyValue;

        impl<'de> Visitor<'de> for AnyValue {
            type Value = RawValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<RawValue, E> {
                Ok(RawValue::Null)
            }

            fn visit_none<E>(self) -> Result<RawValue, E> {
                Ok(RawValue::Null)
            }

            fn visit_some<D: serde::Deserializer<'de>>(
                self,
                deserializer: D,
            ) -> Result<RawValue, D::Error> {
                deserializer.deserialize_any(self)
            }

            fn visit_bool<E>(self, value: bool) -> Result<RawValue, E> {
                Ok(RawValue::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<RawValue, E> {
                Ok(RawValue::Number { text: value.to_string(), value: value as f64 })
            }

            fn visit_u64<E>(self, value: u64) -> Result<RawValue, E> {
                Ok(RawValue::Number { text: value.to_string(), value: value as f64 })
            }

            fn visit_i128<E>(self, value: i128) -> Result<RawValue, E> {
                Ok(RawValue::Number { text: value.to_string(), value: value as f64 })
            }

            fn visit_u128<E>(self, value: u128) -> Result<RawValue, E> {
                Ok(RawValue::Number { text: value.to_string(), value: value as f64 })
            }

            fn visit_f64<E>(self, value: f64) -> Result<RawValue, E> {
                Ok(RawValue::Number { text: value.to_string(), value })
            }

            fn visit_str<E>(self, value: &str) -> Result<RawValue, E> {
                Ok(RawValue::Text(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawValue, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(RawValue::List)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawValue, A::Error> {
                let mut fields = Vec::new();
                while let Some((key, value)) = map.next_entry::<RawValue, RawValue>()? {
                    let key = if let RawValue::Text(text) = key { text } else { key.to_string() };
                    fields.push((key, value));
                }
                Ok(RawValue::Map(fields))
            }
        }

        deserializer.deserialize_any(AnyValue)
    }
}

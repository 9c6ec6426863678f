//! Checked values of fields, and the conversion between these values and the settings in `Config`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::rescue::{Ceiling, OomRescue};
use plimsoll_core::policy::{ReservationPolicy, ThrottlingFactor};
use plimsoll_core::units::Bytes;

use crate::config::brake::Bounds;
use crate::config::choices::{LogLevel, Mode, NodeAllocatable, Shrink};
use crate::kubelet::node::{KubeletFiles, MinorVersion};

/// Value of a field whose type and range have been checked. `Display` writes YAML.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Count(u32),
    Number(f64),
    Amount(Bytes),
    /// Percentage.
    Share(u64),
    Time(Duration),
    /// One of the words that a field accepts.
    Word(String),
    /// Text that may contain any character.
    Text(String),
    /// A mapping. The values of the mapping's fields follow as separate values.
    Mapping,
}

/// Word for [`NodeAllocatable::Auto`].
pub(super) const AUTO: &str = "auto";

impl Value {
    /// Stores the value in a setting. The value always has the right type, because the plugin has
    /// already checked it.
    pub(super) fn store<T: Setting>(self, setting: &mut T) {
        if let Some(value) = T::from_value(self) {
            *setting = value;
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => value.fmt(f),
            Self::Count(count) => count.fmt(f),
            // Always write a decimal point, as in the documentation.
            Self::Number(number) => write!(f, "{number:?}"),
            Self::Amount(bytes) => f.write_str(&bytes.quantity()),
            Self::Share(share) => write!(f, "{share}%"),
            Self::Time(time) => humantime::format_duration(*time).fmt(f),
            Self::Word(word) => f.write_str(word),
            // Text may contain any character. Quote the text as JSON, which is valid YAML.
            Self::Text(text) => serde_json::Value::from(text.as_str()).fmt(f),
            Self::Mapping => f.write_str("{}"),
        }
    }
}

/// Type of a setting in [`Config`](crate::config::Config).
pub(super) trait Setting: Sized {
    /// Converts a checked value. Returns `None` if the value has another type.
    fn from_value(value: Value) -> Option<Self>;

    /// Returns the value that [`Setting::from_value`] converts into this setting.
    fn to_value(&self) -> Value;
}

/// Implements [`Setting`] for types that have their own variant of [`Value`].
macro_rules! scalar_settings {
    ($($setting:ty => $variant:ident,)+) => {$(
        impl Setting for $setting {
            fn from_value(value: Value) -> Option<Self> {
                if let Value::$variant(value) = value { Some(value) } else { None }
            }

            fn to_value(&self) -> Value {
                Value::$variant(*self)
            }
        }
    )+};
}

scalar_settings! {
    bool => Bool,
    u32 => Count,
    f64 => Number,
    Bytes => Amount,
    Duration => Time,
}

/// Implements [`Setting`] for enums whose variants are words in the configuration.
macro_rules! choice_settings {
    ($($setting:ty,)+) => {$(
        impl Setting for $setting {
            fn from_value(value: Value) -> Option<Self> {
                let Value::Word(word) = value else { return None };
                Self::ALL.into_iter().find(|choice| choice.to_string() == word)
            }

            fn to_value(&self) -> Value {
                Value::Word(self.to_string())
            }
        }
    )+};
}

choice_settings! { Mode, Shrink, LogLevel, ReservationPolicy, }

impl<T: Setting> Setting for Option<T> {
    fn from_value(value: Value) -> Option<Self> {
        if value == Value::Null { Some(None) } else { T::from_value(value).map(Some) }
    }

    fn to_value(&self) -> Value {
        self.as_ref().map_or(Value::Null, Setting::to_value)
    }
}

impl Setting for ThrottlingFactor {
    fn from_value(value: Value) -> Option<Self> {
        f64::from_value(value).and_then(Self::new)
    }

    fn to_value(&self) -> Value {
        Value::Number(self.get())
    }
}

impl Setting for NodeAllocatable {
    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Word(word) if word == AUTO => Some(Self::Auto),
            value => Bytes::from_value(value).map(Self::Fixed),
        }
    }

    fn to_value(&self) -> Value {
        match self {
            Self::Auto => Value::Word(AUTO.to_owned()),
            Self::Fixed(bytes) => Value::Amount(*bytes),
        }
    }
}

impl Setting for Ceiling {
    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Share(share) => Some(Self::Share(share)),
            value => Bytes::from_value(value).map(Self::Limit),
        }
    }

    fn to_value(&self) -> Value {
        match self {
            Self::Limit(bytes) => Value::Amount(*bytes),
            Self::Share(share) => Value::Share(*share),
        }
    }
}

/// Implements [`Setting`] for types that are mappings in the configuration. A new value starts with
/// the defaults. The fields of the mapping then replace the defaults.
macro_rules! mapping_settings {
    ($($setting:ty,)+) => {$(
        impl Setting for $setting {
            fn from_value(value: Value) -> Option<Self> {
                (value == Value::Mapping).then(Self::default)
            }

            fn to_value(&self) -> Value {
                Value::Mapping
            }
        }
    )+};
}

mapping_settings! { OomRescue, Bounds, KubeletFiles, }

impl Setting for String {
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Text(text) = value { Some(text) } else { None }
    }

    fn to_value(&self) -> Value {
        Value::Text(self.clone())
    }
}

impl Setting for MinorVersion {
    fn from_value(value: Value) -> Option<Self> {
        Self::parse(&String::from_value(value)?)
    }

    fn to_value(&self) -> Value {
        Value::Text(format!("1.{}", self.0))
    }
}

impl Setting for CgroupPath {
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Text(text) = value { Self::of_parent(&text).ok() } else { None }
    }

    fn to_value(&self) -> Value {
        Value::Text(self.to_string())
    }
}

impl Setting for SocketAddr {
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Text(text) = value { text.parse().ok() } else { None }
    }

    fn to_value(&self) -> Value {
        Value::Text(self.to_string())
    }
}

impl Setting for PathBuf {
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Text(text) = value { Some(text.into()) } else { None }
    }

    fn to_value(&self) -> Value {
        Value::Text(self.to_string_lossy().into_owned())
    }
}

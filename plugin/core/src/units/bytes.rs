//! Amount of memory.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use super::text::excerpt;

/// Amount of memory in bytes. Zero is an ordinary value and never means "unset".
///
/// `Display` and `FromStr` use the kernel's notation, a plain decimal number.
/// [`Bytes::from_quantity`] reads the Kubernetes notation, and [`Bytes::quantity`] writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Bytes(u64);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(Self::new)
    }
}

impl Bytes {
    /// Zero bytes.
    pub const ZERO: Self = Self(0);

    /// The largest amount that Kubernetes can express: 2^63-1.
    pub const MAX: Self = Self(i64::MAX as u64);

    /// Creates an amount of `bytes`, but at most [`Bytes::MAX`].
    pub const fn new(bytes: u64) -> Self {
        if bytes > Self::MAX.0 { Self::MAX } else { Self(bytes) }
    }

    /// Returns the number of bytes, at most 2^63-1.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Subtracts `other`. The result is at least zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Adds `other`. The result is at most [`Bytes::MAX`].
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self::new(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Bytes {
    type Err = BytesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<u64>() {
            Ok(bytes) if bytes <= Self::MAX.0 && !text.starts_with('+') => Ok(Self(bytes)),
            _ => Err(BytesError(excerpt(text))),
        }
    }
}

/// Error: the text is not a whole number of bytes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected a whole number of bytes up to 9223372036854775807, found '{0}'")]
pub struct BytesError(String);

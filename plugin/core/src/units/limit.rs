//! Upper bound of memory: a number of bytes, or no limit.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::bytes::Bytes;
use super::page_size::PageSize;
use super::text::excerpt;

/// Upper bound: a number of bytes, or no limit.
///
/// Only [`FromStr`] and [`fmt::Display`] know the kernel's word `max` for no limit. Only
/// [`Limit::from_cri`] knows the notation of the container runtime interface (CRI). In the
/// ordering, every number is below [`Limit::Max`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// At most this many bytes. Zero is a limit of zero bytes, not "no limit".
    Bytes(Bytes),
    /// No limit.
    Max,
}

/// Serializes as a number, or as `"max"`.
impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bytes(bytes) => bytes.serialize(serializer),
            Self::Max => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(Bytes),
            Word(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(bytes) => Ok(Self::Bytes(bytes)),
            Either::Word(word) => word.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl Limit {
    /// Converts the value of `memory.limit` in CRI and NRI.
    ///
    /// 0 and -1 mean no limit. A number that is too large for the kernel's page counter also means
    /// no limit, because the kernel turns it into `max`. The smallest of these numbers is 2^63-1
    /// rounded down to pages. cgroup v1 shows 2^63-1 for no limit.
    ///
    /// # Errors
    ///
    /// Fails for a number below -1, which is a mistake of the runtime or its client. The caller
    /// should treat the container as unlimited and log the error.
    pub const fn from_cri(value: i64, page: PageSize) -> Result<Self, NegativeLimit> {
        if value == 0 || value == -1 {
            return Ok(Self::Max);
        }
        if value < 0 {
            return Err(NegativeLimit(value));
        }
        let bytes = Bytes::new(value as u64);
        if bytes.get() >= Bytes::MAX.floor_to(page).get() {
            Ok(Self::Max)
        } else {
            Ok(Self::Bytes(bytes))
        }
    }

    /// Returns the limit as the kernel stores it: rounded down to whole pages.
    #[must_use]
    pub const fn floor_to(self, page: PageSize) -> Self {
        match self {
            Self::Bytes(bytes) => Self::Bytes(bytes.floor_to(page)),
            Self::Max => Self::Max,
        }
    }

    /// Returns whether the kernel stores the same value for both limits.
    pub fn is_same(self, other: Self, page: PageSize) -> bool {
        self.floor_to(page) == other.floor_to(page)
    }

    /// Returns the number of bytes, or `None` if there is no limit.
    pub const fn bytes(self) -> Option<Bytes> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Max => None,
        }
    }
}

impl From<Bytes> for Limit {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => bytes.fmt(f),
            Self::Max => f.write_str("max"),
        }
    }
}

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "max" => Ok(Self::Max),
            number => number.parse().map(Self::Bytes).map_err(|_| LimitError(excerpt(text))),
        }
    }
}

/// Error: the text is not a value of a cgroup v2 memory file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected a whole number of bytes or 'max', found '{0}'")]
pub struct LimitError(String);

/// Error: the runtime sent a memory limit below -1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "memory limit {0} is negative; expected bytes, or 0 or -1 for no limit; the plugin applies no \
     limit"
)]
pub struct NegativeLimit(pub i64);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runtime_limits_become_bytes_max_or_errors() {
        let limit = |value| Limit::from_cri(value, PageSize::KIB4);
        assert_eq!(limit(0), Ok(Limit::Max));
        assert_eq!(limit(-1), Ok(Limit::Max));
        assert_eq!(limit(1), Ok(Limit::Bytes(Bytes::new(1))));
        assert_eq!(limit(i64::MAX), Ok(Limit::Max));
        assert_eq!(limit(i64::MAX - 4095), Ok(Limit::Max));
        assert_eq!(limit(i64::MAX - 4096), Ok(Limit::Bytes(Bytes::new(i64::MAX as u64 - 4096))));
        assert_eq!(limit(-2), Err(NegativeLimit(-2)));
        assert_eq!(limit(i64::MIN), Err(NegativeLimit(i64::MIN)));
    }

    #[test]
    fn only_the_kernels_limit_format_parses() {
        assert_eq!("max".parse(), Ok(Limit::Max));
        assert_eq!("0".parse(), Ok(Limit::Bytes(Bytes::ZERO)));
        for text in ["", "-1", "+1", "1.5G", "100M", "MAX", "max\n", " 1", "18446744073709551615"] {
            assert!(text.parse::<Limit>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_number_is_below_no_limit() {
        assert!(Limit::Bytes(Bytes::MAX) < Limit::Max);
        assert!(Limit::Bytes(Bytes::ZERO) < Limit::Bytes(Bytes::new(1)));
    }

    proptest! {
        #[test]
        fn printing_then_parsing_bytes_is_identity(bytes in 0..=Bytes::MAX.get()) {
            let bytes = Bytes::new(bytes);
            prop_assert_eq!(bytes.to_string().parse(), Ok(bytes));
            prop_assert_eq!(Limit::Bytes(bytes).to_string().parse(), Ok(Limit::Bytes(bytes)));
            prop_assert_eq!(Bytes::from_quantity(&bytes.quantity()), Ok(bytes));
        }
    }
}

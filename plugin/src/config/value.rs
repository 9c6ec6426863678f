//! Meaning of unchecked values of fields.

use std::time::Duration;

use plimsoll_core::units::Bytes;
use serde_json::Value as RawValue;

/// Returns the value as a time above 0.
pub(super) fn duration(value: &RawValue) -> Option<Duration> {
    humantime::parse_duration(value.as_str()?).ok().filter(|duration| !duration.is_zero())
}

/// Returns the value as an amount of memory.
pub(super) fn quantity(value: &RawValue) -> Option<Bytes> {
    match value {
        RawValue::String(text) => Bytes::from_quantity(text).ok(),
        RawValue::Number(number) => Bytes::from_quantity(&number.to_string()).ok(),
        _ => None,
    }
}

/// Returns the value as a percentage.
pub(super) fn share(value: &RawValue) -> Option<u64> {
    value.as_str()?.strip_suffix('%')?.parse().ok()
}

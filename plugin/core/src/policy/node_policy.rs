//! Policy of a node for its containers, and the properties of the node that affect decisions.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::units::{Bytes, PageSize, excerpt};

/// Policy for a container: the node's configuration with the pod's overrides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// Throttling factor. With `None` the plugin never sets `memory.high`.
    pub throttling: Option<ThrottlingFactor>,
    /// Policy for the protection of the request.
    pub reservation: ReservationPolicy,
    /// Minimum distance between `memory.min` and the container's limit (`memoryMinHeadroom`).
    pub headroom: Bytes,
}

impl Policy {
    /// Default headroom: twice the amount that was sufficient in measurements.
    pub const DEFAULT_HEADROOM: Bytes = Bytes::new(2 << 20);

    /// Policy without protection or throttling: every file gets the kernel's default.
    pub const OFF: Self =
        Self { throttling: None, reservation: ReservationPolicy::None, headroom: Bytes::ZERO };
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            throttling: Some(ThrottlingFactor::DEFAULT),
            reservation: ReservationPolicy::default(),
            headroom: Self::DEFAULT_HEADROOM,
        }
    }
}

/// Policy for the protection of memory requests (`memoryReservationPolicy`), ordered from the
/// weakest to the strongest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReservationPolicy {
    /// No protection: `memory.min` and `memory.low` are 0.
    None,
    /// `memory.min` for Guaranteed containers, `memory.low` for Burstable containers (Kubernetes
    /// 1.36).
    TieredReservation,
    /// `memory.min` for every container with a request (Kubernetes 1.27).
    #[default]
    HardReservation,
}

impl ReservationPolicy {
    /// All policies, for messages and tests.
    pub const ALL: [Self; 3] = [Self::None, Self::TieredReservation, Self::HardReservation];
}

/// Writes the name used in the configuration.
impl fmt::Display for ReservationPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::TieredReservation => "TieredReservation",
            Self::HardReservation => "HardReservation",
        })
    }
}

/// Throttling factor, above 0 and at most 1. Throttling starts at this fraction of the way from
/// request to limit.
///
/// With a factor of 1, throttling starts only in the last page below the limit.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct ThrottlingFactor(f64);

impl ThrottlingFactor {
    /// The default of Kubernetes since 1.27.
    pub const DEFAULT: Self = Self(0.9);

    /// Creates a factor. Returns `None` unless the number is above 0 and at most 1.
    pub fn new(factor: f64) -> Option<Self> {
        (factor > 0.0 && factor <= 1.0).then_some(Self(factor))
    }

    /// Returns the number, above 0 and at most 1.
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl fmt::Display for ThrottlingFactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ThrottlingFactor {
    type Err = FactorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().ok().and_then(Self::new).ok_or_else(|| FactorError(excerpt(text)))
    }
}

/// Error: the text is not a throttling factor.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected a number above 0 and at most 1, found '{0}'")]
pub struct FactorError(String);

/// Properties of the node that affect the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Memory that all pods together may use (node allocatable). For a container without a limit,
    /// this amount replaces the limit. `None` means unknown.
    pub allocatable: Option<Bytes>,
    /// The page size.
    pub page_size: PageSize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_and_factors_above_one_are_rejected() {
        for text in ["0", "-0.1", "1.0001", "NaN", "inf", "", "0,9", "none"] {
            assert!(text.parse::<ThrottlingFactor>().is_err(), "{text}");
        }
        assert_eq!("1".parse(), Ok(ThrottlingFactor(1.0)));
        assert_eq!("0.0001".parse(), Ok(ThrottlingFactor(0.0001)));
    }

    #[test]
    fn policies_are_ordered_by_strength() {
        use ReservationPolicy::{HardReservation, None, TieredReservation};
        assert!(None < TieredReservation && TieredReservation < HardReservation);
        assert_eq!(ReservationPolicy::ALL, [None, TieredReservation, HardReservation]);
    }
}

//! Reasons for the values of a container's memory files, as sentences.

use std::fmt;

use super::node_policy::ThrottlingFactor;
use crate::pod::{QosClass, Request};
use crate::units::{Bytes, PageSize};

/// Reason for the value of a file. `Display` writes one plain sentence with the amounts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// The policy is `None`.
    NothingReserved,
    /// The value is the request.
    IsRequest(Request),
    /// The request exceeds the limit, so the value is the limit.
    CappedAtLimit {
        /// The original request.
        request: Request,
        /// The limit.
        limit: Bytes,
    },
    /// The request is closer to the limit than the headroom allows.
    Headroom {
        /// The request.
        request: Request,
        /// The limit.
        limit: Bytes,
        /// Memory below the limit that stays unprotected.
        headroom: Bytes,
    },
    /// The request is 0.
    RequestIsZero(Request),
    /// The request is not known.
    RequestUnknown,
    /// `TieredReservation` protects this class with the other file: `memory.min` or `memory.low`.
    OtherTier(QosClass),
    /// `HardReservation` does not use `memory.low`.
    HardUsesMin,
    /// The policy has no throttling factor.
    NoThrottling,
    /// Guaranteed containers are not throttled.
    GuaranteedNotThrottled,
    /// Request and limit are equal, so the kernel has no range for throttling between them.
    RequestEqualsLimit(Bytes),
    /// The container has no limit, and node allocatable is not known.
    AllocatableUnknown,
    /// The value is the result of the formula for `memory.high`.
    Formula(Formula),
    /// The result does not exceed the request, so `memory.high` would throttle requested memory.
    NotAboveRequest(Formula),
}

/// Inputs and result of the formula for `memory.high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Formula {
    /// The request.
    pub request: Request,
    /// The upper end of the range that starts at the request.
    pub ceiling: Ceiling,
    /// The factor.
    pub factor: ThrottlingFactor,
    /// The page size.
    pub page_size: PageSize,
    /// The result in bytes, rounded down to whole pages.
    pub result: i64,
}

impl fmt::Display for Formula {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "request {} + {} x ({} - request) is {} in whole pages of {}",
            self.request, self.factor, self.ceiling, self.result, self.page_size
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingReserved => {
                f.write_str("the reservation policy is None, so nothing is protected")
            }
            Self::IsRequest(request) => write!(f, "the value is the request, {request}"),
            Self::CappedAtLimit { request, limit } => {
                write!(
                    f,
                    "the request {request} exceeds the limit, so the value is the limit, {}",
                    limit.quantity()
                )
            }
            Self::Headroom { request, limit, headroom } => write!(
                f,
                "the request is {request}, and {} below the limit {} stay unprotected, so that \
                 page cache can be reclaimed before the limit kills",
                headroom.quantity(),
                limit.quantity()
            ),
            Self::RequestIsZero(request) => {
                write!(f, "the request is {request}, so there is nothing to protect")
            }
            Self::RequestUnknown => {
                f.write_str("the request is not known, so the plugin keeps the current value")
            }
            Self::OtherTier(QosClass::Guaranteed) => f.write_str(
                "TieredReservation protects Guaranteed containers by memory.min instead",
            ),
            Self::OtherTier(class) => {
                write!(f, "TieredReservation protects {class} containers by memory.low instead")
            }
            Self::HardUsesMin => f.write_str("HardReservation protects by memory.min instead"),
            Self::NoThrottling => {
                f.write_str("there is no throttling factor, so memory.high is never set")
            }
            Self::GuaranteedNotThrottled => {
                f.write_str("Guaranteed containers are not throttled below their limit")
            }
            Self::RequestEqualsLimit(bytes) => {
                write!(
                    f,
                    "request and limit are both {}, so there is nothing to throttle",
                    bytes.quantity()
                )
            }
            Self::AllocatableUnknown => f.write_str(
                "there is no limit and node allocatable is not known, so the plugin keeps the \
                 current value",
            ),
            Self::Formula(formula) => formula.fmt(f),
            Self::NotAboveRequest(formula) => {
                write!(f, "{formula}, which is not above the request, so there is no throttling")
            }
        }
    }
}

/// Upper end of the range in the formula for `memory.high`. The range starts at the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ceiling {
    /// The container's limit.
    Limit(Bytes),
    /// Node allocatable, because the container has no limit.
    Allocatable(Bytes),
}

impl Ceiling {
    /// Returns the amount.
    pub const fn bytes(self) -> Bytes {
        match self {
            Self::Limit(bytes) | Self::Allocatable(bytes) => bytes,
        }
    }
}

impl fmt::Display for Ceiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(bytes) => write!(f, "the limit {}", bytes.quantity()),
            Self::Allocatable(bytes) => write!(f, "node allocatable {}", bytes.quantity()),
        }
    }
}

//! CPU time: the limit in `cpu.max`, the shares of OCI, and the quantities of Kubernetes.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::quantity::{QuantityError, parse_quantity};
use super::text::excerpt;

/// Value of `cpu.max`: the CPU time that a cgroup may use in each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuMax {
    /// Quota in microseconds. `None` means no limit, the kernel's `max`.
    pub quota: Option<u64>,
    /// Period in microseconds, above 0.
    pub period: u64,
}

impl CpuMax {
    /// The default period of the kernel and of the kubelet, in microseconds.
    pub const PERIOD: u64 = 100_000;

    /// No limit.
    pub const NONE: Self = Self { quota: None, period: Self::PERIOD };

    /// Returns the new value after an update. The update has the form that CRI and NRI use.
    ///
    /// A quota or period of 0 keeps the current value; containerd also sends 0 for omitted values.
    /// A negative quota means no limit.
    #[must_use]
    pub fn updated(self, quota: i64, period: u64) -> Self {
        Self {
            quota: if quota == 0 { self.quota } else { u64::try_from(quota).ok() },
            period: if period == 0 { self.period } else { period },
        }
    }

    /// Returns the CPU time per second in microseconds, rounded up. A rate of one million is one
    /// CPU. `None` means no limit.
    pub fn rate(self) -> Option<u64> {
        let rate = (u128::from(self.quota?) * 1_000_000).div_ceil(u128::from(self.period.max(1)));
        Some(u64::try_from(rate).unwrap_or(u64::MAX))
    }

    /// Returns whether a file may contain this value after a program wrote `asked`. systemd rounds
    /// a rate up to whole hundredths of a CPU.
    pub fn is(self, asked: Self) -> bool {
        match (self.rate(), asked.rate()) {
            (Some(observed), Some(asked)) => {
                (asked.saturating_sub(1)..asked.saturating_add(10_000)).contains(&observed)
            }
            (observed, asked) => observed == asked,
        }
    }

    /// Returns the value that allows this `rate`, with the same period.
    #[must_use]
    pub fn with_rate(self, rate: u64) -> Self {
        let quota = (u128::from(rate) * u128::from(self.period)).div_ceil(1_000_000);
        Self { quota: Some(u64::try_from(quota).unwrap_or(u64::MAX)), ..self }
    }
}

impl fmt::Display for CpuMax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.quota {
            Some(quota) => write!(f, "{quota} {}", self.period),
            None => write!(f, "max {}", self.period),
        }
    }
}

impl FromStr for CpuMax {
    type Err = CpuMaxError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || CpuMaxError(excerpt(text));
        let (quota, period) = text.split_once(' ').ok_or_else(error)?;
        let quota = if quota == "max" { None } else { Some(quota.parse().map_err(|_| error())?) };
        let period = period.parse().ok().filter(|period| *period > 0).ok_or_else(error)?;
        Ok(Self { quota, period })
    }
}

/// Error: the text is not a value of `cpu.max`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected microseconds or 'max', and the period in microseconds, found '{0}'")]
pub struct CpuMaxError(String);

/// CPU shares as in OCI and CRI: 2 to 262144, or 0 if no shares are set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuShares(pub u64);

impl CpuShares {
    /// Returns whether a runtime may convert these shares to this `weight` of `cpu.weight`.
    ///
    /// Until 2025, runtimes used a linear conversion. runc 1.4, crun 1.23 and newer versions use a
    /// curve that maps the default shares to the default weight. If the shares are not set, this
    /// function accepts every weight.
    ///
    /// Source: opencontainers/cgroups `utils.go`, `ConvertCPUSharesToCgroupV2Value`, before and
    /// since version 0.0.3.
    pub fn is(self, weight: u64) -> bool {
        if self.0 == 0 {
            return true;
        }
        let shares = self.0.clamp(2, 262_144);
        let to_scale = 1 + (shares - 2) * 9999 / 262_142;
        let log = (shares as f64).log2();
        let by_curve = match shares {
            2 => 1,
            262_144 => 10_000,
            _ => 10_f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0).ceil() as u64,
        };
        [to_scale, by_curve].contains(&weight)
    }
}

impl fmt::Display for CpuShares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} shares", self.0)
    }
}

/// Amount of CPU time in thousandths of a core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MilliCpu(u64);

impl MilliCpu {
    /// Creates an amount from thousandths of a core.
    pub const fn new(thousandths: u64) -> Self {
        Self(thousandths)
    }

    /// Parses a Kubernetes quantity of cores (`0.5`, `500m`, `2`), rounding up to whole
    /// thousandths.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`Bytes::from_quantity`](super::Bytes::from_quantity).
    pub fn from_quantity(text: &str) -> Result<Self, QuantityError> {
        parse_quantity(text, 3).map(Self)
    }

    /// Returns the number of thousandths of a core.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the CPU time per second in microseconds, as [`CpuMax::rate`] does.
    pub const fn rate(self) -> u64 {
        self.0.saturating_mul(1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_read_in_thousandths() {
        for (text, expected) in
            [("1", 1000), ("0.5", 500), ("500m", 500), ("1u", 1), ("0", 0), ("2k", 2_000_000)]
        {
            assert_eq!(MilliCpu::from_quantity(text).map(MilliCpu::get), Ok(expected), "{text}");
        }
    }

    #[test]
    fn shares_match_both_runtime_weight_conversions() {
        for (shares, weights) in
            [(2, [1, 1]), (1024, [39, 100]), (262_144, [10_000, 10_000]), (102, [4, 17])]
        {
            let accepted = (0..=10_001).filter(|weight| CpuShares(shares).is(*weight));
            let mut weights = weights.to_vec();
            weights.dedup();
            assert_eq!(accepted.collect::<Vec<_>>(), weights, "{shares}");
        }
        assert!(CpuShares::default().is(7));
    }
}

//! Amounts of memory and CPU time in the notations of the kernel, CRI and Kubernetes.

mod knob;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

pub use self::knob::{CPU_MAX, Knob};

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

    /// Creates an amount of `bytes`, limited to [`Bytes::MAX`].
    pub const fn new(bytes: u64) -> Self {
        if bytes > Self::MAX.0 { Self::MAX } else { Self(bytes) }
    }

    /// Returns the number of bytes, at most 2^63-1.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Parses a Kubernetes quantity (`128Mi`, `1.5Gi`, `1e9`, `500M`, `1000m`) as bytes. A fraction
    /// of a byte is rounded up, as `Quantity.Value()` does.
    ///
    /// # Errors
    ///
    /// Returns an error with the text if it is not a quantity, is negative, or exceeds 2^63-1
    /// bytes. Kubernetes silently caps a larger amount, but an operator who typed it should see an
    /// error.
    pub fn from_quantity(text: &str) -> Result<Self, QuantityError> {
        parse_quantity(text, 0).map(Self)
    }

    /// Formats the exact amount as a Kubernetes quantity with the largest binary suffix that
    /// divides it: `1536Mi`, `1000`.
    pub fn quantity(self) -> String {
        const SUFFIXES: [&str; 6] = ["Ei", "Pi", "Ti", "Gi", "Mi", "Ki"];
        if self.0 != 0 {
            for (steps, suffix) in (1..=6u32).rev().zip(SUFFIXES) {
                let unit = 1u64 << (10 * steps);
                if self.0.is_multiple_of(unit) {
                    return format!("{}{suffix}", self.0 / unit);
                }
            }
        }
        self.0.to_string()
    }

    /// Formats the amount for people: with a binary suffix, rounded to at most one decimal.
    /// Multiples of a unit stay exact (`128Mi`), other amounts are approximate (`913.2Mi`).
    pub fn approx(self) -> String {
        const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        let mut value = self.0 as f64;
        let mut steps = 0;
        while value >= 1024.0 && steps < 6 {
            value /= 1024.0;
            steps += 1;
        }
        let text = format!("{value:.1}");
        format!("{}{}", text.strip_suffix(".0").unwrap_or(&text), SUFFIXES[steps])
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

    /// Rounds down to whole pages, as the kernel does with each value written to a `memory.*` file.
    #[must_use]
    pub const fn floor_to(self, page: PageSize) -> Self {
        Self(self.0 & !(page.0 - 1))
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

/// Upper bound: a number of bytes, or no limit.
///
/// Only [`FromStr`] and [`fmt::Display`] know the kernel's word `max` for no limit. Only
/// [`Limit::from_cri`] knows the notation of the container runtime interface (CRI). In the
/// ordering, every number is below [`Limit::Max`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// At most this many bytes. Zero is a limit of zero.
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
    /// Converts a limit as CRI and NRI deliver it in `memory.limit`.
    ///
    /// 0 and -1 mean no limit. A number that the kernel's page counter cannot hold also means no
    /// limit, because the kernel turns it into `max`. The first such number is 2^63-1 rounded down
    /// to pages. cgroup v1 shows 2^63-1 for no limit.
    ///
    /// # Errors
    ///
    /// Any other negative number is a mistake of the caller. Treat the container as one without a
    /// limit, and log the error.
    pub const fn from_cri(value: i64, page: PageSize) -> Result<Self, NegativeLimit> {
        if value == 0 || value == -1 {
            return Ok(Self::Max);
        }
        if value < 0 {
            return Err(NegativeLimit(value));
        }
        let bytes = Bytes(value as u64);
        if bytes.0 >= Bytes::MAX.floor_to(page).0 { Ok(Self::Max) } else { Ok(Self::Bytes(bytes)) }
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
#[error("memory limit {0} is negative; expected bytes, or 0 or -1 for none: taken as no limit")]
pub struct NegativeLimit(pub i64);

/// Size of a page in bytes, a power of two.
///
/// Kubernetes rounds to the page size of the machine (`os.Getpagesize()`), which is 4096 on amd64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSize(u64);

impl PageSize {
    /// 4096 bytes: the page size of amd64, and the usual one of arm64.
    pub const KIB4: Self = Self(4096);

    /// Creates a page size, or returns `None` unless `bytes` is a power of two between 1 and 2^30.
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes.is_power_of_two() && bytes <= 1 << 30 { Some(Self(bytes)) } else { None }
    }

    /// Returns the size in bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Rounds a limit down to whole pages, as the kernel does.
    pub const fn round_down(self, bytes: Bytes) -> Bytes {
        Bytes::new(bytes.get() / self.0 * self.0)
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Value of `cpu.max`: the CPU time that may be used in each period.
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

    /// Returns the value after an update as CRI and NRI deliver it.
    ///
    /// A quota or period of 0 means unchanged; containerd also sends 0 for omitted values. A
    /// negative quota means no limit.
    #[must_use]
    pub fn updated(self, quota: i64, period: u64) -> Self {
        Self {
            quota: if quota == 0 { self.quota } else { u64::try_from(quota).ok() },
            period: if period == 0 { self.period } else { period },
        }
    }

    /// Returns the CPU time per second in microseconds, rounded up. One million is one CPU. `None`
    /// means no limit.
    pub fn rate(self) -> Option<u64> {
        let rate = (u128::from(self.quota?) * 1_000_000).div_ceil(u128::from(self.period.max(1)));
        Some(u64::try_from(rate).unwrap_or(u64::MAX))
    }

    /// Returns whether a file may hold this value after `asked` was written. systemd rounds a rate
    /// up to whole hundredths of a CPU.
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

/// CPU shares as in OCI and CRI: 2 to 262144, or 0 for not set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuShares(pub u64);

impl CpuShares {
    /// Returns whether a runtime may convert these shares to this `weight` of `cpu.weight`.
    ///
    /// Until 2025 runtimes converted linearly. runc 1.4, crun 1.23 and newer versions use a curve
    /// that maps the default shares to the default weight. If the shares are not set, every weight
    /// is accepted.
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

/// Amount of CPU time in thousandths of a core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MilliCpu(u64);

impl MilliCpu {
    /// Parses a Kubernetes quantity of cores (`0.5`, `500m`, `2`), rounding up to whole
    /// thousandths.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`Bytes::from_quantity`].
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

/// Error: the text is not a Kubernetes quantity that the plugin can use.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QuantityError {
    /// The text is not a number with an optional suffix.
    #[error("expected a quantity such as 128Mi, 1.5Gi, 500M or 1e9, found '{0}'")]
    Form(String),
    /// The quantity is below zero.
    #[error("expected a quantity of zero or more, found '{0}'")]
    Negative(String),
    /// The quantity exceeds 2^63-1.
    #[error("expected a quantity of at most 9223372036854775807 (2^63-1), found '{0}'")]
    TooLarge(String),
}

/// Maximum length of a quantity. Kubernetes has no bound, but no real quantity is this long.
const LONGEST_QUANTITY: usize = 128;

/// Parses a quantity and returns it times 10^`scale`, rounded up to a whole number of at most
/// 2^63-1.
///
/// The result is exact for every input. The crate `kube_quantity` (0.9) is not: it reads `1.5Gi` as
/// 1 GiB and `1500m` as 0, and refuses `7Ei` and `1E`. It also computes in floating point, which
/// loses the last digits of amounts beyond 2^53. This function refuses a suffix without a number
/// (`Ki`), which Kubernetes reads as 0.
///
/// Grammar: <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>.
fn parse_quantity(text: &str, scale: i64) -> Result<u64, QuantityError> {
    let form = || QuantityError::Form(excerpt(text));
    let too_large = || QuantityError::TooLarge(excerpt(text));
    if text.len() > LONGEST_QUANTITY {
        return Err(form());
    }
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let number_end =
        unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(number_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return Err(form());
    }
    let (binary_exponent, decimal_exponent) = suffix_exponents(suffix).ok_or_else(form)?;

    let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|digit| digit - b'0').collect();
    if digits.iter().all(|&digit| digit == 0) {
        return Ok(0);
    }
    if negative {
        return Err(QuantityError::Negative(excerpt(text)));
    }
    // Position of the decimal point in `digits` after suffix and scale. The position may lie
    // outside `digits`.
    let point = whole.len() as i64 + decimal_exponent + scale;
    let (integer_digits, mut fraction_digits) = if point <= 0 {
        // The value is below one, and any remainder rounds up to one. Beyond a certain number of
        // leading zeros the exact number no longer matters: a binary suffix multiplies by less than
        // 10^19.
        let zeros = point.unsigned_abs().min(LONGEST_QUANTITY as u64) as usize;
        (Vec::new(), [vec![0; zeros], digits].concat())
    } else if point as u64 >= digits.len() as u64 {
        let zeros = point as u64 - digits.len() as u64;
        if zeros > 20 {
            return Err(too_large());
        }
        ([digits, vec![0; zeros as usize]].concat(), Vec::new())
    } else {
        let fraction_digits = digits[point as usize..].to_vec();
        (digits[..point as usize].to_vec(), fraction_digits)
    };

    let mut value = 0u128;
    for digit in integer_digits {
        value = value * 10 + u128::from(digit);
        if value > u128::from(Bytes::MAX.0) {
            return Err(too_large());
        }
    }
    for _ in 0..binary_exponent {
        let mut carry = 0;
        for digit in fraction_digits.iter_mut().rev() {
            let doubled = *digit * 2 + carry;
            *digit = doubled % 10;
            carry = doubled / 10;
        }
        value = value * 2 + u128::from(carry);
    }
    if fraction_digits.iter().any(|&digit| digit != 0) {
        value += 1;
    }
    u64::try_from(value).ok().filter(|&value| value <= Bytes::MAX.0).ok_or_else(too_large)
}

/// Returns the exponents of two and of ten for a quantity's suffix.
fn suffix_exponents(suffix: &str) -> Option<(u32, i64)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        _ => (0, i64::from(suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?)),
    })
}

/// Escapes a foreign name to one line without control characters. Keeps up to 253 characters, the
/// longest name in Kubernetes.
pub fn printable(name: &str) -> String {
    name.chars().take(253).flat_map(char::escape_debug).collect()
}

/// Shortens foreign text to one line without control characters, for messages.
pub fn excerpt(text: &str) -> String {
    harmless(text, 64, &[])
}

/// Escapes characters of foreign text that a terminal would interpret, and keeps at most `most`
/// characters. The characters in `kept` are not escaped.
pub fn harmless(text: &str, most: usize, kept: &[char]) -> String {
    let mut shown = String::with_capacity(text.len().min(most));
    for character in text.chars().take(most) {
        if kept.contains(&character) {
            shown.push(character);
        } else {
            shown.extend(character.escape_debug());
        }
    }
    if text.chars().nth(most).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_have_the_value_kubernetes_gives_them() {
        for (text, expected) in [
            ("0", 0),
            ("-0", 0),
            ("+5", 5),
            ("00012", 12),
            ("1", 1),
            ("1.", 1),
            (".5", 1),
            ("0.1", 1),
            ("1k", 1000),
            ("1M", 1_000_000),
            ("1G", 1_000_000_000),
            ("1T", 1_000_000_000_000),
            ("1P", 1_000_000_000_000_000),
            ("9E", 9_000_000_000_000_000_000),
            ("1Ki", 1 << 10),
            ("1Mi", 1 << 20),
            ("1Gi", 1 << 30),
            ("1Ti", 1 << 40),
            ("1Pi", 1 << 50),
            ("7Ei", 7 << 60),
            ("1.5Gi", 1_610_612_736),
            ("0.1Gi", 107_374_183),
            ("0.3Mi", 314_573),
            ("1000m", 1),
            ("1001m", 2),
            ("1500m", 2),
            ("128974848000m", 128_974_848),
            ("1u", 1),
            ("1n", 1),
            ("1e9", 1_000_000_000),
            ("1E9", 1_000_000_000),
            ("1.5e3", 1500),
            ("12e+2", 1200),
            ("1e-3", 1),
            ("1e-2147483648", 1),
            ("129e6", 129_000_000),
            ("1000000000000000000000e-3", 1_000_000_000_000_000_000),
            ("9007199254740993", 9_007_199_254_740_993),
            ("9223372036854775807", i64::MAX as u64),
            ("9223372036854775806.1", i64::MAX as u64),
            ("0.000000000000000000000000000001Ei", 1),
        ] {
            assert_eq!(Bytes::from_quantity(text).map(Bytes::get), Ok(expected), "{text}");
        }
    }

    #[test]
    fn random_quantities_have_the_value_computed_by_kubernetes() {
        let table = include_str!("../../tests/data/quantities.csv");
        let rows: Vec<_> = table.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(rows.len(), 800);
        for row in rows {
            let (text, expected) = row.split_once(',').unwrap();
            let found = match Bytes::from_quantity(text) {
                Ok(bytes) => bytes.to_string(),
                Err(QuantityError::Negative(_)) => "negative".to_owned(),
                Err(_) => "error".to_owned(),
            };
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused_with_the_expected_form() {
        for text in [
            "",
            ".",
            "+",
            "-",
            "Ki",
            "1ki",
            "1KI",
            "1K",
            "1Mb",
            "1 Mi",
            " 1",
            "1 ",
            "1.5.0",
            "0x10",
            "1_000",
            "1e",
            "1e3Ki",
            "1e3k",
            "1e1.5",
            "e3",
            "1Kii",
            "--1",
            "+-1",
            "inf",
            "nan",
            "max",
            "1mm",
            "٣",
            "1e99999999999",
        ] {
            assert!(matches!(Bytes::from_quantity(text), Err(QuantityError::Form(_))), "{text}");
        }
        assert!(matches!(Bytes::from_quantity(&"1".repeat(129)), Err(QuantityError::Form(_))));
    }

    #[test]
    fn negative_and_oversized_quantities_say_so() {
        for text in ["-1", "-0.001", "-1Ki", "-1e-9"] {
            assert!(
                matches!(Bytes::from_quantity(text), Err(QuantityError::Negative(_))),
                "{text}"
            );
        }
        for text in
            ["9223372036854775808", "8Ei", "10E", "1e19", "1e2147483647", "9223372036854775807.1"]
        {
            assert!(
                matches!(Bytes::from_quantity(text), Err(QuantityError::TooLarge(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn cores_are_read_in_thousandths() {
        for (text, expected) in
            [("1", 1000), ("0.5", 500), ("500m", 500), ("1u", 1), ("0", 0), ("2k", 2_000_000)]
        {
            assert_eq!(MilliCpu::from_quantity(text).map(MilliCpu::get), Ok(expected), "{text}");
        }
    }

    #[test]
    fn limits_from_the_runtime_are_told_apart_at_the_border() {
        let limit = |value| Limit::from_cri(value, PageSize::KIB4);
        assert_eq!(limit(0), Ok(Limit::Max));
        assert_eq!(limit(-1), Ok(Limit::Max));
        assert_eq!(limit(1), Ok(Limit::Bytes(Bytes(1))));
        assert_eq!(limit(i64::MAX), Ok(Limit::Max));
        assert_eq!(limit(i64::MAX - 4095), Ok(Limit::Max));
        assert_eq!(limit(i64::MAX - 4096), Ok(Limit::Bytes(Bytes(i64::MAX as u64 - 4096))));
        assert_eq!(limit(-2), Err(NegativeLimit(-2)));
        assert_eq!(limit(i64::MIN), Err(NegativeLimit(i64::MIN)));
    }

    #[test]
    fn only_the_kernels_own_form_is_read_back_from_a_file() {
        assert_eq!("max".parse(), Ok(Limit::Max));
        assert_eq!("0".parse(), Ok(Limit::Bytes(Bytes::ZERO)));
        for text in ["", "-1", "+1", "1.5G", "100M", "MAX", "max\n", " 1", "18446744073709551615"] {
            assert!(text.parse::<Limit>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_number_is_below_no_limit() {
        assert!(Limit::Bytes(Bytes::MAX) < Limit::Max);
        assert!(Limit::Bytes(Bytes::ZERO) < Limit::Bytes(Bytes(1)));
    }

    #[test]
    fn page_sizes_are_powers_of_two() {
        assert_eq!(PageSize::new(0), None);
        assert_eq!(PageSize::new(4095), None);
        assert_eq!(PageSize::new(65536).map(PageSize::get), Some(65536));
        assert_eq!(Bytes(8191).floor_to(PageSize::KIB4), Bytes(4096));
    }

    #[test]
    fn amounts_are_readable() {
        for (bytes, quantity, approx) in [
            (0, "0", "0"),
            (1000, "1000", "1000"),
            (1536 << 20, "1536Mi", "1.5Gi"),
            (128 << 20, "128Mi", "128Mi"),
            ((128 << 20) + 1, "134217729", "128Mi"),
            (957_558_784, "935116Ki", "913.2Mi"),
        ] {
            assert_eq!(Bytes(bytes).quantity(), quantity);
            assert_eq!(Bytes(bytes).approx(), approx);
        }
    }

    #[test]
    fn excerpts_of_foreign_text_stay_short_and_on_one_line() {
        assert_eq!(excerpt("a\nb"), "a\\nb");
        assert_eq!(excerpt(&"x".repeat(1000)).chars().count(), 65);
    }

    #[test]
    fn shares_are_a_weight_by_either_way_of_the_runtimes() {
        for (shares, weights) in
            [(2, [1, 1]), (1024, [39, 100]), (262_144, [10_000, 10_000]), (102, [4, 17])]
        {
            assert!(weights.iter().all(|weight| CpuShares(shares).is(*weight)), "{shares}");
            assert!(
                !CpuShares(shares).is(weights[0] + 1) || weights[1] == weights[0] + 1,
                "{shares}"
            );
        }
        assert!(CpuShares::default().is(7));
    }

    proptest! {
        #[test]
        fn printing_then_parsing_bytes_is_identity(bytes in 0..=Bytes::MAX.0) {
            let bytes = Bytes(bytes);
            prop_assert_eq!(bytes.to_string().parse(), Ok(bytes));
            prop_assert_eq!(Limit::Bytes(bytes).to_string().parse(), Ok(Limit::Bytes(bytes)));
            prop_assert_eq!(Bytes::from_quantity(&bytes.quantity()), Ok(bytes));
        }

        #[test]
        fn any_text_is_a_quantity_or_an_error(text in ".{0,40}") {
            let _ = Bytes::from_quantity(&text);
            let _ = text.parse::<Limit>();
        }

        #[test]
        fn anything_like_a_quantity_is_a_quantity_or_an_error(text in "[+-]?[0-9]{0,25}[.]?[0-9]{0,25}([eE][+-]?[0-9]{0,12}|[numkMGTPEKi]{0,2})") {
            let _ = Bytes::from_quantity(&text);
        }

        #[test]
        fn a_decimal_with_a_binary_suffix_is_rounded_up(thousandths in 0u64..10_000_000, steps in 1u32..5) {
            let text = format!("{}.{:03}{}", thousandths / 1000, thousandths % 1000, ["Ki", "Mi", "Gi", "Ti"][steps as usize - 1]);
            let expected = (u128::from(thousandths) << (10 * steps)).div_ceil(1000) as u64;
            prop_assert_eq!(Bytes::from_quantity(&text), Ok(Bytes(expected)));
        }
    }
}

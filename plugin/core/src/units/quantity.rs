//! Quantities in the notation of Kubernetes, such as `128Mi`.

use thiserror::Error;

use super::bytes::Bytes;
use super::text::excerpt;

impl Bytes {
    /// Parses a Kubernetes quantity (`128Mi`, `1.5Gi`, `1e9`, `500M`, `1000m`) as bytes. Rounds a
    /// fraction of a byte up, as `Quantity.Value()` does.
    ///
    /// # Errors
    ///
    /// Fails if the text is not a quantity, is negative, or exceeds 2^63-1 bytes. Kubernetes
    /// silently caps a larger amount, but this function reports the mistake.
    pub fn from_quantity(text: &str) -> Result<Self, QuantityError> {
        parse_quantity(text, 0).map(Self::new)
    }

    /// Formats the exact amount as a Kubernetes quantity, with the largest binary suffix that
    /// leaves a whole number: `1536Mi`, `1000`.
    pub fn quantity(self) -> String {
        const SUFFIXES: [&str; 6] = ["Ei", "Pi", "Ti", "Gi", "Mi", "Ki"];
        if self.get() != 0 {
            for (steps, suffix) in (1..=6u32).rev().zip(SUFFIXES) {
                let unit = 1u64 << (10 * steps);
                if self.get().is_multiple_of(unit) {
                    return format!("{}{suffix}", self.get() / unit);
                }
            }
        }
        self.get().to_string()
    }

    /// Formats the amount for human readers, with a binary suffix and at most one decimal.
    /// Multiples of the unit stay exact (`128Mi`), other amounts are approximate (`913.2Mi`).
    pub fn approx(self) -> String {
        const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        let mut value = self.get() as f64;
        let mut steps = 0;
        while value >= 1024.0 && steps < 6 {
            value /= 1024.0;
            steps += 1;
        }
        let text = format!("{value:.1}");
        format!("{}{}", text.strip_suffix(".0").unwrap_or(&text), SUFFIXES[steps])
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

/// Maximum length of a quantity. Kubernetes has no maximum, but real quantities are shorter.
const LONGEST_QUANTITY: usize = 128;

/// Parses a quantity and returns it times 10^`scale`, rounded up to a whole number of at most
/// 2^63-1.
///
/// The result is exact for every input. The crate `kube_quantity` (0.9) reads `1.5Gi` as 1 GiB and
/// `1500m` as 0, and refuses `7Ei` and `1E`. The floating-point computation of `kube_quantity`
/// loses the last digits of amounts beyond 2^53. This function refuses a suffix without a number
/// (`Ki`), which Kubernetes reads as 0.
///
/// Grammar: <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>.
pub(super) fn parse_quantity(text: &str, scale: i64) -> Result<u64, QuantityError> {
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
    let point = whole.len() as i64 + decimal_exponent + scale;
    let number = Decimal::split(digits, point).ok_or_else(too_large)?;
    number.times_power_of_two(binary_exponent).ok_or_else(too_large)
}

/// Decimal number above zero, as the digits before and after the decimal point.
struct Decimal {
    integer: Vec<u8>,
    fraction: Vec<u8>,
}

impl Decimal {
    /// Splits digits at the position `point`, which may lie outside the digits. Returns `None` if
    /// the number is certainly too large for a quantity.
    fn split(digits: Vec<u8>, point: i64) -> Option<Self> {
        if point <= 0 {
            // The value is below one, and any remainder rounds up to one. A binary suffix
            // multiplies by less than 10^19, so further leading zeros do not change the result.
            let zeros = point.unsigned_abs().min(LONGEST_QUANTITY as u64) as usize;
            let fraction = [vec![0; zeros], digits].concat();
            Some(Self { integer: Vec::new(), fraction })
        } else if point as u64 >= digits.len() as u64 {
            let zeros = point as u64 - digits.len() as u64;
            if zeros > 20 {
                return None;
            }
            let integer = [digits, vec![0; zeros as usize]].concat();
            Some(Self { integer, fraction: Vec::new() })
        } else {
            let fraction = digits[point as usize..].to_vec();
            Some(Self { integer: digits[..point as usize].to_vec(), fraction })
        }
    }

    /// Multiplies by 2^`exponent` and rounds up to a whole number. Returns `None` if the result
    /// exceeds [`Bytes::MAX`].
    fn times_power_of_two(mut self, exponent: u32) -> Option<u64> {
        let mut value = 0u128;
        for digit in self.integer {
            value = value * 10 + u128::from(digit);
            if value > u128::from(Bytes::MAX.get()) {
                return None;
            }
        }
        for _ in 0..exponent {
            let mut carry = 0;
            for digit in self.fraction.iter_mut().rev() {
                let doubled = *digit * 2 + carry;
                *digit = doubled % 10;
                carry = doubled / 10;
            }
            value = value * 2 + u128::from(carry);
        }
        if self.fraction.iter().any(|&digit| digit != 0) {
            value += 1;
        }
        u64::try_from(value).ok().filter(|&value| value <= Bytes::MAX.get())
    }
}

/// Returns the powers of two and of ten that a quantity's suffix stands for.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::limit::Limit;
    use super::*;

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
    fn random_quantities_match_kubernetes_results() {
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
    fn malformed_text_yields_a_form_error() {
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
    fn amounts_are_shown_readably() {
        for (bytes, quantity, approx) in [
            (0, "0", "0"),
            (1000, "1000", "1000"),
            (1536 << 20, "1536Mi", "1.5Gi"),
            (128 << 20, "128Mi", "128Mi"),
            ((128 << 20) + 1, "134217729", "128Mi"),
            (957_558_784, "935116Ki", "913.2Mi"),
        ] {
            assert_eq!(Bytes::new(bytes).quantity(), quantity);
            assert_eq!(Bytes::new(bytes).approx(), approx);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics_either_parser(text in ".{0,40}") {
            let _ = Bytes::from_quantity(&text);
            let _ = text.parse::<Limit>();
        }

        #[test]
        fn quantity_like_text_causes_no_panic(text in "[+-]?[0-9]{0,25}[.]?[0-\
            9]{0,25}([eE][+-]?[0-9]{0,12}|[numkMGTPEKi]{0,2})") {
            let _ = Bytes::from_quantity(&text);
        }

        #[test]
        fn decimals_with_binary_suffixes_round_up(
            thousandths in 0u64..10_000_000,
            steps in 1u32..5,
        ) {
            let text = format!(
                "{}.{:03}{}",
                thousandths / 1000,
                thousandths % 1000,
                ["Ki", "Mi", "Gi", "Ti"][steps as usize - 1]
            );
            let expected = (u128::from(thousandths) << (10 * steps)).div_ceil(1000) as u64;
            prop_assert_eq!(Bytes::from_quantity(&text), Ok(Bytes::new(expected)));
        }
    }
}

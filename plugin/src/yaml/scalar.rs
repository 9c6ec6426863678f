//! The value of a scalar by the rules of YAML 1.1, as Kubernetes reads it.
//!
//! kubectl and the kubelet convert YAML to JSON before they use it. The conversion reads plain
//! scalars by YAML 1.1: `yes` and `on` are true, and `0644` is 420.
//!
//! Source: `resolve.go` of go.yaml.in/yaml/v2, which sigs.k8s.io/yaml uses.

use serde_json::{Number, Value};

/// Largest whole number below which every whole number has an exact `f64`.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// Type that a tag gives to a scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScalarTag {
    /// The scalar has no tag and no quotes, so its text decides about its type.
    Plain,
    /// The scalar is text: it has quotes, the tag `!!str`, or an application's own tag.
    Text,
    /// The tag `!!float`.
    Float,
    /// The tag `!!int`, `!!bool` or `!!null`, which requires a scalar of this type.
    Other,
}

/// Returns the value of a scalar. Returns `None` if the text does not have the type of the tag.
pub(super) fn resolve(text: &str, tag: ScalarTag) -> Option<Value> {
    if tag == ScalarTag::Text {
        return Some(text.into());
    }
    match (word(text).or_else(|| number(text)), tag) {
        (Some(Value::Number(number)), ScalarTag::Float) => Some(Value::Number(number)),
        (_, ScalarTag::Float) => None,
        (Some(value), _) => Some(value),
        (None, ScalarTag::Other) => None,
        (None, _) => Some(text.into()),
    }
}

/// Returns the value of a word that is a boolean or null.
fn word(text: &str) -> Option<Value> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Some(Value::Null),
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Some(true.into())
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Some(false.into())
        }
        _ => None,
    }
}

fn number(text: &str) -> Option<Value> {
    match text.bytes().next()? {
        b'0'..=b'9' | b'+' | b'-' => {
            let digits = text.replace('_', "");
            integer(&digits).or_else(|| is_float(&digits).then(|| float(&digits))?)
        }
        b'.' if is_float(text) => float(text),
        _ => None,
    }
}

/// Parses a whole number as Go's `strconv.ParseInt` does with base 0. A leading `0` means octal.
fn integer(text: &str) -> Option<Value> {
    let (is_negative, unsigned) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let prefix = unsigned.get(..2).map(str::to_ascii_lowercase);
    let (digits, radix) = match prefix.as_deref() {
        Some("0x") => (&unsigned[2..], 16),
        Some("0o") => (&unsigned[2..], 8),
        Some("0b") => (&unsigned[2..], 2),
        Some(_) if unsigned.starts_with('0') => (&unsigned[1..], 8),
        _ => (unsigned, 10),
    };
    // The Rust functions also accept a sign before the digits.
    if !digits.starts_with(|first: char| first.is_digit(radix)) {
        return None;
    }
    let value = u64::from_str_radix(digits, radix).ok()?;
    if is_negative { Some(0_i64.checked_sub_unsigned(value)?.into()) } else { Some(value.into()) }
}

/// Returns whether the text is a decimal number, with or without a fraction and an exponent.
fn is_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is_mantissa =
        is_digits(whole) && is_digits(fraction) && !(whole.is_empty() && fraction.is_empty());
    let is_exponent = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !digits.is_empty() && is_digits(digits)
    });
    is_mantissa && is_exponent
}

/// Returns a floating-point number. A whole number becomes an integer, because JSON does not
/// distinguish `5.0` from `5`.
fn float(text: &str) -> Option<Value> {
    let value: f64 = text.parse().ok()?;
    if value.fract() == 0.0 && value.abs() < MAX_EXACT {
        return Some((value as i64).into());
    }
    Number::from_f64(value).map(Value::Number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plain(text: &str) -> Value {
        resolve(text, ScalarTag::Plain).unwrap()
    }

    #[test]
    fn words_are_booleans_and_null() {
        for text in ["y", "Yes", "YES", "on", "ON", "true", "True"] {
            assert_eq!(plain(text), json!(true), "{text}");
        }
        for text in ["n", "No", "NO", "off", "Off", "false", "FALSE"] {
            assert_eq!(plain(text), json!(false), "{text}");
        }
        for text in ["", "~", "null", "Null", "NULL"] {
            assert_eq!(plain(text), Value::Null, "{text}");
        }
        for text in ["yEs", "nO", "nULL", "oN", "tRue", "yes ", "None", "nil"] {
            assert_eq!(plain(text), json!(text), "{text}");
        }
    }

    #[test]
    fn numbers_follow_yaml_1_1() {
        for (text, value) in [
            ("0", json!(0)),
            ("-0", json!(0)),
            ("+12", json!(12)),
            ("0644", json!(420)),
            ("-0644", json!(-420)),
            ("0o17", json!(15)),
            ("0x1F", json!(31)),
            ("0b101", json!(5)),
            ("-0b101", json!(-5)),
            ("1_000", json!(1000)),
            // No octal number has the digit 8, so these numbers are decimal.
            ("08", json!(8)),
            ("0800", json!(800)),
            ("5.0", json!(5)),
            ("1e3", json!(1000)),
            ("1.5e-1", json!(0.15)),
            (".5", json!(0.5)),
            ("5.", json!(5)),
            ("-2.5", json!(-2.5)),
            ("9223372036854775807", json!(i64::MAX)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("18446744073709551615", json!(u64::MAX)),
            ("18446744073709551616", json!(18_446_744_073_709_551_616.0)),
        ] {
            assert_eq!(plain(text), value, "{text}");
        }
    }

    #[test]
    fn other_plain_scalars_are_text() {
        for text in [
            "1Gi",
            "100m",
            "1.2.3",
            "0x",
            "0xg",
            "0b2",
            "1e",
            "e3",
            "-",
            "+",
            ".",
            "..",
            "--1",
            "-+1",
            "0x-1",
            "12:30:45",
            "2026-12-01",
            "1,000",
            "١",
            "_1",
            ".5_0",
        ] {
            assert_eq!(plain(text), json!(text), "{text}");
        }
    }

    #[test]
    fn tags_decide_about_the_type() {
        assert_eq!(resolve("0644", ScalarTag::Text), Some(json!("0644")));
        assert_eq!(resolve("3", ScalarTag::Float), Some(json!(3)));
        assert_eq!(resolve("x", ScalarTag::Float), None);
        assert_eq!(resolve("yes", ScalarTag::Other), Some(json!(true)));
        assert_eq!(resolve("x", ScalarTag::Other), None);
    }
}

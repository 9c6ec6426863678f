//! Checks a value against the type and the range of its field.

use std::net::SocketAddr;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::units::{Bytes, excerpt};
use serde_json::{Map, Value as RawValue};

use crate::config::fields::field_type::{Field, Kind};
use crate::config::setting::{AUTO, Value};
use crate::config::value::{duration, quantity, share};
use crate::kubelet::node::MinorVersion;
use crate::yaml::describe;

/// Mistake in the value of a field.
pub(in crate::config) struct Mistake {
    /// Description of what the plugin expected.
    pub(in crate::config) expected: String,
    /// Description of what the configuration contains instead.
    pub(in crate::config) found: String,
}

/// Values to store: the value of the checked field and, if it is a mapping, the values of the
/// fields in the mapping.
pub(in crate::config) type Values = Vec<(&'static Field, Value)>;

impl Field {
    /// Checks a value of this field.
    pub(in crate::config) fn check(&'static self, value: &RawValue) -> Result<Values, Mistake> {
        if *value == RawValue::Null && self.null.is_some() {
            return Ok(vec![(self, Value::Null)]);
        }
        if let (Kind::Mapping { is_complete, .. }, RawValue::Object(inner)) = (&self.kind, value) {
            return self.check_mapping(inner, *is_complete);
        }
        match self.check_scalar(value) {
            Some(value) => Ok(vec![(self, value)]),
            None => Err(Mistake { expected: self.expected(), found: describe(value) }),
        }
    }

    fn check_mapping(
        &'static self,
        inner: &Map<String, RawValue>,
        is_complete: bool,
    ) -> Result<Values, Mistake> {
        let mut values = vec![(self, Value::Mapping)];
        for (name, value) in inner {
            let Some(field) = self.fields().iter().find(|field| field.name == name) else {
                let known: Vec<&str> = self.fields().iter().map(|field| field.name).collect();
                return Err(Mistake {
                    expected: format!("no other fields than {}", known.join(", ")),
                    found: format!("'{}'", excerpt(name)),
                });
            };
            values.extend(field.check(value).map_err(|Mistake { expected, found }| Mistake {
                expected: format!("{name}: {expected}"),
                found,
            })?);
        }
        match self.fields().iter().find(|field| is_complete && !inner.contains_key(field.name)) {
            Some(missing) => Err(Mistake {
                expected: self.expected(),
                found: format!("a mapping without {}", missing.name),
            }),
            None => Ok(values),
        }
    }

    /// Checks a value that is not a mapping. Returns `None` if the field does not allow the value.
    fn check_scalar(&self, value: &RawValue) -> Option<Value> {
        let number = value.as_f64();
        let positive = || quantity(value).filter(|bytes| *bytes > Bytes::ZERO).map(Value::Amount);
        match (&self.kind, value) {
            (Kind::Choice(choices), RawValue::String(text)) => {
                choices.iter().any(|choice| choice.value == text).then(|| Value::Word(text.clone()))
            }
            (Kind::Boolean, RawValue::Bool(value)) => Some(Value::Bool(*value)),
            (Kind::Count { most }, RawValue::Number(_)) => {
                let is_allowed =
                    |value: &f64| value.fract() == 0.0 && (1.0..=f64::from(*most)).contains(value);
                number.filter(is_allowed).map(|value| Value::Count(value as u32))
            }
            (Kind::Number(range), RawValue::Number(_)) => {
                number.filter(|value| range.contains(*value)).map(Value::Number)
            }
            (Kind::Quantity { may_be_zero: true }, value) => quantity(value).map(Value::Amount),
            (Kind::Quantity { .. }, _) => positive(),
            (Kind::QuantityOrAuto, RawValue::String(text)) if text == AUTO => {
                Some(Value::Word(AUTO.to_owned()))
            }
            (Kind::QuantityOrAuto, _) => positive(),
            (Kind::QuantityOrShare, value) => share(value).map_or_else(positive, |share| {
                (1..=100).contains(&share).then_some(Value::Share(share))
            }),
            (Kind::Duration, value) => duration(value).map(Value::Time),
            (Kind::Cgroup, RawValue::String(text)) => {
                let is_allowed = !text.contains(':') && CgroupPath::of_parent(text).is_ok();
                is_allowed.then(|| Value::Text(text.clone()))
            }
            (Kind::Address, RawValue::String(text)) => {
                text.parse::<SocketAddr>().is_ok().then(|| Value::Text(text.clone()))
            }
            (Kind::KubernetesVersion, RawValue::String(text)) => {
                MinorVersion::parse(text).map(|_| Value::Text(text.clone()))
            }
            (Kind::Path, RawValue::String(text)) => {
                let is_allowed = text.starts_with('/') && !text.contains('\0');
                is_allowed.then(|| Value::Text(text.clone()))
            }
            _ => None,
        }
    }
}

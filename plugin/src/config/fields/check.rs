//! Checks a value against the type and the range of its field.

use std::net::SocketAddr;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::units::{Bytes, excerpt};

use crate::config::fields::field_type::{Field, Kind};
use crate::config::setting::{AUTO, Value};
use crate::config::value::RawValue;

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
        if let (Kind::Mapping { is_complete, .. }, RawValue::Map(inner)) = (&self.kind, value) {
            return self.check_mapping(inner, *is_complete);
        }
        match self.check_scalar(value) {
            Some(value) => Ok(vec![(self, value)]),
            None => Err(Mistake { expected: self.expected(), found: value.to_string() }),
        }
    }

    fn check_mapping(
        &'static self,
        inner: &[(String, RawValue)],
        is_complete: bool,
    ) -> Result<Values, Mistake> {
        let mut values = vec![(self, Value::Mapping)];
        for (index, (name, value)) in inner.iter().enumerate() {
            if inner[..index].iter().any(|(other, _)| other == name) {
                let found = format!("'{}' again", excerpt(name));
                return Err(Mistake { expected: "each field once".to_owned(), found });
            }
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
        let has = |name: &str| inner.iter().any(|(other, _)| other == name);
        match self.fields().iter().find(|field| is_complete && !has(field.name)) {
            Some(missing) => Err(Mistake {
                expected: self.expected(),
                found: format!("a mapping without {}", missing.name),
            }),
            None => Ok(values),
        }
    }

    /// Checks a value that is not a mapping. Returns `None` if the field does not allow the value.
    fn check_scalar(&self, value: &RawValue) -> Option<Value> {
        let quantity = || value.quantity().filter(|bytes| *bytes > Bytes::ZERO).map(Value::Amount);
        match (&self.kind, value) {
            (Kind::Choice(choices), RawValue::Text(text)) => {
                choices.iter().any(|choice| choice.value == text).then(|| Value::Word(text.clone()))
            }
            (Kind::Boolean, RawValue::Bool(value)) => Some(Value::Bool(*value)),
            (Kind::Count { most }, RawValue::Number { value, .. }) => {
                let is_allowed = value.fract() == 0.0 && (1.0..=f64::from(*most)).contains(value);
                is_allowed.then_some(Value::Count(*value as u32))
            }
            (Kind::Number(range), RawValue::Number { value, .. }) => {
                range.contains(*value).then_some(Value::Number(*value))
            }
            (Kind::Quantity { may_be_zero: true }, value) => value.quantity().map(Value::Amount),
            (Kind::Quantity { .. }, _) => quantity(),
            (Kind::QuantityOrAuto, RawValue::Text(text)) if text == AUTO => {
                Some(Value::Word(AUTO.to_owned()))
            }
            (Kind::QuantityOrAuto, _) => quantity(),
            (Kind::QuantityOrShare, value) => value.share().map_or_else(quantity, |share| {
                (1..=100).contains(&share).then_some(Value::Share(share))
            }),
            (Kind::Duration, value) => value.duration().map(Value::Time),
            (Kind::Cgroup, RawValue::Text(text)) => {
                let is_allowed = !text.contains(':') && CgroupPath::of_parent(text).is_ok();
                is_allowed.then(|| Value::Text(text.clone()))
            }
            (Kind::Address, RawValue::Text(text)) => {
                text.parse::<SocketAddr>().is_ok().then(|| Value::Text(text.clone()))
            }
            (Kind::Path, RawValue::Text(text)) => {
                let is_allowed = text.starts_with('/') && !text.contains('\0');
                is_allowed.then(|| Value::Text(text.clone()))
            }
            _ => None,
        }
    }
}

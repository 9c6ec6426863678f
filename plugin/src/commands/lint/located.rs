//! Values of a document with their places.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Number, Value};
use serde_saphyr::Spanned;

use crate::commands::lint::place::Place;

/// Place of a value and of its parts.
pub(super) struct Places {
    pub(super) place: Place,
    /// Places of the parts, by field name or by index.
    pub(super) parts: BTreeMap<String, Places>,
}

impl Places {
    /// Returns the place of the value at a JSON pointer. If the value does not exist, returns the
    /// place of its nearest existing ancestor.
    pub(super) fn of(&self, pointer: &str) -> Place {
        let mut at = self;
        for field in pointer.split('/').skip(1) {
            match at.parts.get(&field.replace("~1", "/").replace("~0", "~")) {
                Some(part) => at = part,
                None => break,
            }
        }
        at.place
    }
}

/// Value with its place and with the places of its parts.
pub(super) struct Located {
    pub(super) value: Value,
    pub(super) place: Place,
    pub(super) parts: BTreeMap<String, Places>,
}

impl<'de> Deserialize<'de> for Located {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value: Inner { value, parts }, referenced, .. } =
            Spanned::deserialize(deserializer)?;
        let place = Place { line: referenced.line().max(1), column: referenced.column().max(1) };
        Ok(Self { value, place, parts })
    }
}

/// Value with the places of its parts.
struct Inner {
    value: Value,
    parts: BTreeMap<String, Places>,
}

impl From<Value> for Inner {
    fn from(value: Value) -> Self {
        Self { value, parts: BTreeMap::new() }
    }
}

impl<'de> Deserialize<'de> for Inner {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

/// Builds an [`Inner`] from a value of any type.
struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Inner;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Inner, E> {
        Ok(Value::Null.into())
    }

    fn visit_none<E>(self) -> Result<Inner, E> {
        Ok(Value::Null.into())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Inner, D::Error> {
        Inner::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Inner, E> {
        Ok(Value::from(value).into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Inner, E> {
        Ok(Value::from(value).into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Inner, E> {
        Ok(Value::from(value).into())
    }

    fn visit_i128<E>(self, value: i128) -> Result<Inner, E> {
        Ok(Value::from(value.to_string()).into())
    }

    fn visit_u128<E>(self, value: u128) -> Result<Inner, E> {
        Ok(Value::from(value.to_string()).into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Inner, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number).into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Inner, E> {
        Ok(Value::from(value).into())
    }

    fn visit_string<E>(self, value: String) -> Result<Inner, E> {
        Ok(Value::from(value).into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Inner, A::Error> {
        let (mut values, mut places) = (Vec::new(), BTreeMap::new());
        while let Some(Located { value, place, parts }) = list.next_element()? {
            places.insert(values.len().to_string(), Places { place, parts });
            values.push(value);
        }
        Ok(Inner { value: Value::Array(values), parts: places })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Inner, A::Error> {
        let (mut values, mut places) = (serde_json::Map::new(), BTreeMap::new());
        while let Some((field, Located { value, place, parts })) = map.next_entry::<String, _>()? {
            places.insert(field.clone(), Places { place, parts });
            values.insert(field, value);
        }
        Ok(Inner { value: Value::Object(values), parts: places })
    }
}

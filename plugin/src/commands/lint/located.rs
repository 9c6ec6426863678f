//! Values of a document, with their positions in the file.

use std::collections::BTreeMap;

use serde::de::{MapAccess, SeqAccess};
use serde::{Deserialize, Deserializer};
use serde_json::{Number, Value};
use serde_saphyr::Spanned;

use crate::commands::lint::place::Place;
use crate::config::any_value::{self, AnyValue, Scalar};

/// Position of a value, and the positions of its fields or items.
pub(super) struct PlaceTree {
    pub(super) place: Place,
    /// Positions of the fields by name, or of the items by index.
    pub(super) parts: BTreeMap<String, PlaceTree>,
}

impl PlaceTree {
    /// Returns the position of the value at a JSON pointer. If the value does not exist, returns
    /// the position of the value's nearest existing ancestor.
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

/// A value, its position, and the positions of its fields or items.
pub(super) struct PlacedValue {
    pub(super) value: Value,
    pub(super) place: Place,
    pub(super) parts: BTreeMap<String, PlaceTree>,
}

impl<'de> Deserialize<'de> for PlacedValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value: ValueWithParts { value, parts }, referenced, .. } =
            Spanned::deserialize(deserializer)?;
        let place = Place { line: referenced.line().max(1), column: referenced.column().max(1) };
        Ok(Self { value, place, parts })
    }
}

/// A value, and the positions of its fields or items.
struct ValueWithParts {
    value: Value,
    parts: BTreeMap<String, PlaceTree>,
}

impl<'de> Deserialize<'de> for ValueWithParts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        any_value::deserialize(deserializer)
    }
}

impl<'de> AnyValue<'de> for ValueWithParts {
    fn from_scalar(scalar: Scalar<'_>) -> Self {
        let value = match scalar {
            Scalar::Null => Value::Null,
            Scalar::Bool(value) => value.into(),
            Scalar::Signed(value) => value.into(),
            Scalar::Unsigned(value) => value.into(),
            Scalar::Large(text, _) => text.into(),
            Scalar::Float(value) => Number::from_f64(value).map_or(Value::Null, Value::Number),
            Scalar::Text(text) => text.into(),
        };
        Self { value, parts: BTreeMap::new() }
    }

    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        let (mut values, mut places) = (Vec::new(), BTreeMap::new());
        while let Some(PlacedValue { value, place, parts }) = list.next_element()? {
            places.insert(values.len().to_string(), PlaceTree { place, parts });
            values.push(value);
        }
        Ok(Self { value: Value::Array(values), parts: places })
    }

    fn from_map<A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        let (mut values, mut places) = (serde_json::Map::new(), BTreeMap::new());
        while let Some((field, PlacedValue { value, place, parts })) =
            map.next_entry::<String, _>()?
        {
            places.insert(field.clone(), PlaceTree { place, parts });
            values.insert(field, value);
        }
        Ok(Self { value: Value::Object(values), parts: places })
    }
}

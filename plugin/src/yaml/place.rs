//! Positions in a YAML or JSON text.

use std::collections::BTreeMap;

use serde::Serialize;

/// Position in a text: line and column, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// Line, counted from 1.
    pub line: u64,
    /// Column in characters, counted from 1.
    pub column: u64,
}

impl Place {
    /// The first character of a text.
    pub const START: Self = Self { line: 1, column: 1 };
}

/// Position of a value, and the positions of its fields or items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceTree {
    /// Position of the value.
    pub place: Place,
    /// Position of the field's name, or of the item of a list.
    pub key: Place,
    /// Positions of the fields by name, or of the items by index.
    pub parts: BTreeMap<String, PlaceTree>,
}

impl PlaceTree {
    pub(super) fn new(place: Place) -> Self {
        Self { place, key: place, parts: BTreeMap::new() }
    }

    /// Returns the position of the value at a JSON pointer. If the value does not exist, returns
    /// the position of the value's nearest existing ancestor.
    pub fn of(&self, pointer: &str) -> Place {
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

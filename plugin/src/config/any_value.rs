//! Values of any type in YAML and JSON documents.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};

/// Type that can be built from a value of any type.
pub(crate) trait AnyValue<'de>: Sized {
    /// Builds the type from a value that is neither a list nor a mapping.
    fn from_scalar(scalar: Scalar<'_>) -> Self;

    /// Builds the type from a list.
    fn from_list<A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error>;

    /// Builds the type from a mapping.
    fn from_map<A: MapAccess<'de>>(map: A) -> Result<Self, A::Error>;
}

/// Value that is neither a list nor a mapping.
pub(crate) enum Scalar<'a> {
    Null,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    /// An integer of more than 64 bits: its text, and the nearest `f64`.
    Large(String, f64),
    Float(f64),
    Text(Cow<'a, str>),
}

/// Deserializes a value of any type.
pub(crate) fn deserialize<'de, T: AnyValue<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    deserializer.deserialize_any(Any(PhantomData))
}

struct Any<T>(PhantomData<T>);

impl<'de, T: AnyValue<'de>> Visitor<'de> for Any<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<T, E> {
        Ok(T::from_scalar(Scalar::Null))
    }

    fn visit_none<E>(self) -> Result<T, E> {
        Ok(T::from_scalar(Scalar::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<T, E> {
        Ok(T::from_scalar(Scalar::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<T, E> {
        Ok(T::from_scalar(Scalar::Signed(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<T, E> {
        Ok(T::from_scalar(Scalar::Unsigned(value)))
    }

    fn visit_i128<E>(self, value: i128) -> Result<T, E> {
        Ok(T::from_scalar(Scalar::Large(value.to_string(), value as f64)))
    }

    fn visit_u128<E>(self, value: u128) -> Result<T, E> {
        Ok(T::from_scalar(Scalar::Large(value.to_string(), value as f64)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<T, E> {
        Ok(T::from_scalar(Scalar::Float(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<T, E> {
        Ok(T::from_scalar(Scalar::Text(Cow::Borrowed(value))))
    }

    fn visit_string<E>(self, value: String) -> Result<T, E> {
        Ok(T::from_scalar(Scalar::Text(Cow::Owned(value))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
        T::from_list(list)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::from_map(map)
    }
}

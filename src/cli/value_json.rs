//! Metadata values as programs are shown them.

use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use super::number::Number;
use crate::gguf::{Array, Value};

/// A value as `{type, value}`, an array as `{type, len}` and, where asked for, `value`.
pub struct Shown<'a> {
    pub value: &'a Value,
    pub arrays: bool,
}

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self.value {
            Value::Array(array) => {
                map.serialize_entry("type", &format!("{}[]", array.ty()))?;
                map.serialize_entry("len", &array.len())?;
                if self.arrays {
                    map.serialize_entry("value", &Elements(array))?;
                }
            }
            value => {
                map.serialize_entry("type", value.ty().name())?;
                map.serialize_entry("value", &Scalar(value))?;
                if matches!(value, Value::Text(text) if text.as_str().is_none()) {
                    map.serialize_entry("utf8", &false)?;
                }
            }
        }
        map.end()
    }
}

struct Elements<'a>(&'a Array);

impl Serialize for Elements<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.0.len()))?;
        match self.0 {
            Array::Texts(texts) => {
                for text in texts.iter() {
                    seq.serialize_element(&String::from_utf8_lossy(text))?;
                }
            }
            Array::Packed(values) => {
                for value in values.iter() {
                    seq.serialize_element(&Scalar(&value))?;
                }
            }
        }
        seq.end()
    }
}

/// A string or number. JSON has no NaN and no infinities: those are strings.
pub struct Scalar<'a>(pub &'a Value);

impl Serialize for Scalar<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Text(text) => serializer.serialize_str(&text.to_lossy()),
            Value::Bool(v) => serializer.serialize_bool(*v),
            Value::F32(v) => Number::from(*v).serialize(serializer),
            Value::F64(v) => Number::from(*v).serialize(serializer),
            Value::U64(v) => serializer.serialize_u64(*v),
            other => other.as_i64().serialize(serializer),
        }
    }
}

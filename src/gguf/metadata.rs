//! The metadata of a model: keys in the file's order, found by name, read with their types checked.

use std::collections::HashMap;

use super::value::{PackedArray, TextArray, Value, ValueType};

/// A key of the metadata that is missing or not of the type that its reader needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    #[error("metadata key {key} is missing")]
    Missing { key: String },
    #[error("metadata key {key} is {found}, where {wanted} is needed")]
    WrongType { key: String, found: String, wanted: &'static str },
}

/// Key/value pairs in the file's order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    /// Adds a pair; `false`, and nothing added, where the key is there already.
    pub fn insert(&mut self, key: String, value: Value) -> bool {
        if self.index.contains_key(&key) {
            return false;
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        true
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&i| &self.entries[i].1)
    }

    /// Whether the key is there.
    pub fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    /// The place of a key among all pairs.
    pub fn position(&self, key: &str) -> Option<usize> {
        self.index.get(key).copied()
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All pairs in the file's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, MetadataError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(v) => Ok(Some(v)),
            None => Err(MetadataError::WrongType { key: key.to_owned(), found: describe(value), wanted }),
        }
    }

    /// A non-negative integer of any width; an error where the key holds anything else.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, MetadataError> {
        self.typed(key, "a non-negative integer", Value::as_u64)
    }

    /// A non-negative integer that fits 32 bits.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, MetadataError> {
        self.typed(key, "a non-negative 32-bit integer", |v| v.as_u64()?.try_into().ok())
    }

    /// A float, as f32 (how every reader of GGUF uses them).
    pub fn f32(&self, key: &str) -> Result<Option<f32>, MetadataError> {
        self.typed(key, "a float", |v| v.as_f64().map(|v| v as f32))
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, MetadataError> {
        self.typed(key, "a boolean", Value::as_bool)
    }

    /// A string of UTF-8.
    pub fn str(&self, key: &str) -> Result<Option<&str>, MetadataError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// An array of strings.
    pub fn texts(&self, key: &str) -> Result<Option<&TextArray>, MetadataError> {
        self.typed(key, "an array of strings", Value::as_texts)
    }

    /// An array of values of fixed size, of the type given.
    pub fn packed(&self, key: &str, ty: ValueType) -> Result<Option<&PackedArray>, MetadataError> {
        let wanted = match ty {
            ValueType::F32 => "an array of f32",
            ValueType::I32 => "an array of i32",
            _ => "an array of another type",
        };
        self.typed(key, wanted, |v| v.as_packed().filter(|p| p.ty() == ty))
    }

    /// Turns an optional reading into a required one.
    pub fn required<T>(&self, key: &str, found: Option<T>) -> Result<T, MetadataError> {
        found.ok_or_else(|| MetadataError::Missing { key: key.to_owned() })
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Array(a) => format!("an array of {} {}", a.len(), a.ty()),
        Value::Text(t) if t.as_str().is_none() => "a string that is not UTF-8".to_owned(),
        Value::Text(_) => "a string".to_owned(),
        Value::Bool(v) => format!("the boolean {v}"),
        Value::F32(v) => format!("the float {v}"),
        Value::F64(v) => format!("the float {v}"),
        other => format!(
            "the {} {}",
            other.ty(),
            other.as_i64().map_or_else(|| "over i64".to_owned(), |v| v.to_string())
        ),
    }
}

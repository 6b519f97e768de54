//! Metadata, compared and hashed: keys that say how a model lies in its files are no part of what it is.

use super::digest::{Algorithms, Digests, Hasher};
use crate::gguf::{Array, Metadata, Value};

/// Whether a key is about the files alone: `split.*` and `general.alignment`.
pub fn is_of_layout(key: &str) -> bool {
    key.starts_with("split.") || key == "general.alignment"
}

/// What differs between the metadata of two models.
#[derive(Debug, Default)]
pub struct MetadataDiff<'a> {
    /// Keys of the first model that the second does not have, in its order.
    pub only_first: Vec<(&'a str, &'a Value)>,
    /// The same the other way round.
    pub only_second: Vec<(&'a str, &'a Value)>,
    /// Keys with other values or types: key, first, second.
    pub changed: Vec<(&'a str, &'a Value, &'a Value)>,
    /// Keys with the same value.
    pub equal: usize,
}

/// Compares all but what [`is_of_layout`].
pub fn compare_metadata<'a>(first: &'a Metadata, second: &'a Metadata) -> MetadataDiff<'a> {
    let mut diff = MetadataDiff::default();
    for (key, value) in first.iter().filter(|(key, _)| !is_of_layout(key)) {
        match second.get(key) {
            None => diff.only_first.push((key, value)),
            Some(other) if is_same(value, other) => diff.equal += 1,
            Some(other) => diff.changed.push((key, value, other)),
        }
    }
    let only_second = |key: &str| !first.contains(key) && !is_of_layout(key);
    diff.only_second = second.iter().filter(|(key, _)| only_second(key)).collect();
    diff
}

/// Whether two values have the same type and bits: a NaN is itself.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::F32(a), Value::F32(b)) => a.to_bits() == b.to_bits(),
        (Value::F64(a), Value::F64(b)) => a.to_bits() == b.to_bits(),
        _ => a == b,
    }
}

/// How two arrays of one type differ.
#[derive(Debug, PartialEq, Eq)]
pub struct ArrayDiff {
    /// Elements that differ, of as many as both have.
    pub differing: usize,
    /// The indexes of the first ones.
    pub first: Vec<usize>,
}

/// Compares arrays element by element, up to the end of the shorter; `None` where their types differ.
pub fn compare_array(a: &Array, b: &Array, most: usize) -> Option<ArrayDiff> {
    let mut diff = ArrayDiff { differing: 0, first: Vec::new() };
    let mut add = |(index, differs): (usize, bool)| {
        diff.differing += usize::from(differs);
        if differs && diff.first.len() < most {
            diff.first.push(index);
        }
    };
    match (a, b) {
        (Array::Texts(a), Array::Texts(b)) => {
            a.iter().zip(b.iter()).map(|(a, b)| a != b).enumerate().for_each(&mut add);
        }
        (Array::Packed(a), Array::Packed(b)) if a.ty() == b.ty() => {
            let size = a.ty().fixed_bytes().unwrap_or(1);
            let elements = a.bytes().chunks_exact(size).zip(b.bytes().chunks_exact(size));
            elements.map(|(a, b)| a != b).enumerate().for_each(&mut add);
        }
        _ => return None,
    }
    Some(diff)
}

/// The hashes of all keys, types and values, in the order of the keys' bytes.
pub fn hash(metadata: &Metadata, algorithms: Algorithms) -> Digests {
    let mut pairs: Vec<_> = metadata.iter().filter(|(key, _)| !is_of_layout(key)).collect();
    pairs.sort_by_key(|(key, _)| *key);
    let mut hasher = Hasher::new(algorithms);
    let mut bytes = Vec::new();
    for (key, value) in pairs {
        bytes.clear();
        bytes.extend((key.len() as u64).to_le_bytes());
        bytes.extend(key.as_bytes());
        bytes.extend(value.ty().id().to_le_bytes());
        value.write(&mut bytes);
        hasher.update(&bytes);
    }
    hasher.finish()
}

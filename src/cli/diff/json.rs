//! What `diff` found, for programs.

use std::io::Write;

use serde::Serialize;

use super::{Comparison, Differing, Side};
use crate::cli::number::Number;
use crate::cli::value_json::{Scalar, Shown};
use crate::cli::{CliError, safe_text};
use crate::gguf::{Array, TensorInfo, Value};
use crate::verify::files::{DataDiff, compare_array};
use crate::verify::{Difference, Place};

/// Elements of arrays that are shown.
const FIRST: usize = 10;

#[derive(Serialize)]
struct Report<'a> {
    equal: bool,
    a: File,
    b: File,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Metadata<'a>>,
    tensors: Tensors<'a>,
}

#[derive(Serialize)]
struct File {
    path: String,
    files: usize,
    bytes: u64,
}

#[derive(Serialize)]
struct Metadata<'a> {
    equal: usize,
    only_a: Vec<Key<'a>>,
    only_b: Vec<Key<'a>>,
    changed: Vec<Changed<'a>>,
}

#[derive(Serialize)]
struct Key<'a> {
    key: &'a str,
    #[serde(flatten)]
    value: Shown<'a>,
}

#[derive(Serialize)]
struct Changed<'a> {
    key: &'a str,
    a: Shown<'a>,
    b: Shown<'a>,
    /// Of arrays of one type.
    #[serde(skip_serializing_if = "Option::is_none")]
    elements: Option<Elements>,
}

#[derive(Serialize)]
struct Elements {
    differing: usize,
    first: Vec<Element>,
}

#[derive(Serialize)]
struct Element {
    index: usize,
    a: serde_json::Value,
    b: serde_json::Value,
}

#[derive(Serialize)]
struct Tensors<'a> {
    equal: usize,
    data_compared: bool,
    only_a: Vec<Tensor<'a>>,
    only_b: Vec<Tensor<'a>>,
    differing: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct Tensor<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    ty: &'static str,
    shape: &'a [u64],
    bytes: u64,
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    a: Kind<'a>,
    b: Kind<'a>,
    /// `null` where no data was compared.
    bytes_equal: Option<bool>,
    /// Of types whose values mean nothing by themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_differing_byte: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    values: Option<Values>,
}

#[derive(Serialize)]
struct Kind<'a> {
    #[serde(rename = "type")]
    ty: &'static str,
    shape: &'a [u64],
}

#[derive(Serialize)]
struct Values {
    elements: u64,
    differing: u64,
    sqnr_db: Number,
    nmse: Number,
    cosine: Number,
    rms_error: Number,
    largest_error: Option<Largest>,
}

#[derive(Serialize)]
struct Largest {
    error: Number,
    a: Number,
    b: Number,
    #[serde(skip_serializing_if = "Option::is_none")]
    expert: Option<u64>,
    row: u64,
    column: u64,
}

/// Prints one object.
pub fn print(comparison: &Comparison<'_>, out: &mut impl Write) -> Result<(), CliError> {
    let [a, b] = &comparison.sides;
    let metadata = comparison.metadata.as_ref().map(|diff| Metadata {
        equal: diff.equal,
        only_a: diff.only_first.iter().map(|&(key, value)| Key { key, value: shown(value) }).collect(),
        only_b: diff.only_second.iter().map(|&(key, value)| Key { key, value: shown(value) }).collect(),
        changed: diff.changed.iter().map(|&(key, a, b)| changed(key, a, b)).collect(),
    });
    let tensors = &comparison.tensors;
    let report = Report {
        equal: comparison.is_equal(),
        a: file(a),
        b: file(b),
        metadata,
        tensors: Tensors {
            equal: tensors.equal,
            data_compared: tensors.with_data,
            only_a: tensors.only_first.iter().map(|t| tensor(t)).collect(),
            only_b: tensors.only_second.iter().map(|t| tensor(t)).collect(),
            differing: tensors.differing.iter().map(row).collect(),
        },
    };
    safe_text::write_json(&report, out)
}

fn file(side: &Side<'_>) -> File {
    let parts = &side.gguf.parts;
    let bytes = parts.iter().map(|part| part.file_bytes).fold(0, u64::saturating_add);
    File { path: side.path.display().to_string(), files: parts.len(), bytes }
}

fn shown(value: &Value) -> Shown<'_> {
    Shown { value, arrays: false }
}

fn changed<'a>(key: &'a str, a: &'a Value, b: &'a Value) -> Changed<'a> {
    let elements = match (a, b) {
        (Value::Array(a), Value::Array(b)) => elements(a, b),
        _ => None,
    };
    Changed { key, a: shown(a), b: shown(b), elements }
}

fn elements(a: &Array, b: &Array) -> Option<Elements> {
    let diff = compare_array(a, b, FIRST)?;
    let value = |array: &Array, index| serde_json::to_value(Scalar(&element(array, index)?)).ok();
    let first = diff.first.into_iter().map(|index| Element {
        index,
        a: value(a, index).unwrap_or_default(),
        b: value(b, index).unwrap_or_default(),
    });
    Some(Elements { differing: diff.differing, first: first.collect() })
}

/// An element of an array, as a value of its own.
pub fn element(array: &Array, index: usize) -> Option<Value> {
    match array {
        Array::Texts(texts) => Some(Value::Text(crate::gguf::Text(texts.get(index)?.into()))),
        Array::Packed(values) => values.iter().nth(index),
    }
}

fn tensor(tensor: &TensorInfo) -> Tensor<'_> {
    Tensor { name: &tensor.name, ty: tensor.ty.name(), shape: &tensor.dims, bytes: tensor.bytes }
}

fn row<'a>(row: &Differing<'a>) -> Row<'a> {
    let kind = |tensor: &'a TensorInfo| Kind { ty: tensor.ty.name(), shape: &tensor.dims };
    let (equal, first_byte, difference) = match &row.data {
        None => (None, None, None),
        Some(DataDiff::Equal) => (Some(true), None, None),
        Some(DataDiff::Bytes { first }) => (Some(false), *first, None),
        Some(DataDiff::Values(difference)) => (Some(false), None, Some(difference)),
    };
    Row {
        name: &row.first.name,
        a: kind(row.first),
        b: kind(row.second),
        bytes_equal: equal,
        first_differing_byte: first_byte,
        values: difference.map(|d| values(row.first, d)),
    }
}

fn values(tensor: &TensorInfo, d: &Difference) -> Values {
    let largest = d.largest_at.zip(d.largest_pair).map(|(at, (a, b))| {
        let Place { expert, row, column } = Place::of(at, &tensor.dims);
        Largest { error: d.largest.into(), a: a.into(), b: b.into(), expert, row, column }
    });
    Values {
        elements: d.count,
        differing: d.differing,
        sqnr_db: d.sqnr_db().into(),
        nmse: d.nmse().into(),
        cosine: d.cosine().into(),
        rms_error: d.rms().into(),
        largest_error: largest,
    }
}

//! What inspect shows programs: everything, numbers exact, keys in a fixed order.

use std::io::Write;

use serde::{Serialize, Serializer};

use super::summary::Summary;
use super::totals::{self, Total};
use crate::cli::value_json::Shown;
use crate::cli::{CliError, safe_text};
use crate::gguf::{Gguf, Metadata, Part, TensorInfo, Value};

/// What is printed.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The elements of arrays in the metadata.
    pub arrays: bool,
    /// The tensors one by one.
    pub tensors: bool,
}

/// Prints one object: `files`, `summary`, `metadata`, `tensors`, `totals`.
pub fn print(
    gguf: &Gguf,
    summary: &Summary,
    tensors: &[&TensorInfo],
    options: Options,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let report = Report {
        files: gguf.parts.iter().enumerate().map(|(i, part)| File::of(i, part, options.arrays)).collect(),
        summary,
        metadata: Pairs { metadata: gguf.metadata(), arrays: options.arrays },
        tensors: options.tensors.then(|| tensors.iter().map(|t| Tensor::of(t)).collect()),
        totals: Totals::of(tensors),
    };
    write(&report, out)
}

/// Prints one metadata value whole.
pub fn print_value(key: &str, value: &Value, out: &mut impl Write) -> Result<(), CliError> {
    #[derive(Serialize)]
    struct Entry<'a> {
        key: &'a str,
        #[serde(flatten)]
        value: Shown<'a>,
    }
    write(&Entry { key, value: Shown { value, arrays: true } }, out)
}

/// Writes pretty JSON and a line end.
pub fn write(value: &impl Serialize, out: &mut impl Write) -> Result<(), CliError> {
    safe_text::write_pretty_json(value, out)
}

#[derive(Serialize)]
struct Report<'a> {
    files: Vec<File<'a>>,
    summary: &'a Summary,
    metadata: Pairs<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<Tensor<'a>>>,
    totals: Totals,
}

#[derive(Serialize)]
struct File<'a> {
    path: String,
    version: u32,
    bytes: u64,
    data_offset: u64,
    alignment: u64,
    /// Of a split's further files; the first's is the model's.
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Pairs<'a>>,
}

impl File<'_> {
    fn of(index: usize, part: &Part, arrays: bool) -> File<'_> {
        File {
            path: part.path.display().to_string(),
            version: part.version,
            bytes: part.file_bytes,
            data_offset: part.data_offset,
            alignment: part.alignment,
            metadata: (index > 0).then_some(Pairs { metadata: &part.metadata, arrays }),
        }
    }
}

#[derive(Serialize)]
struct Tensor<'a> {
    name: &'a str,
    shape: &'a [u64],
    #[serde(rename = "type")]
    ty: &'static str,
    parameters: u64,
    bytes: u64,
    /// Index in `files`.
    file: usize,
    /// From the start of that file.
    offset: u64,
    bits_per_weight: f64,
}

impl Tensor<'_> {
    fn of(tensor: &TensorInfo) -> Tensor<'_> {
        Tensor {
            name: &tensor.name,
            shape: &tensor.dims,
            ty: tensor.ty.name(),
            parameters: tensor.elements(),
            bytes: tensor.bytes,
            file: tensor.part,
            offset: tensor.offset,
            bits_per_weight: tensor.ty.bits_per_weight(),
        }
    }
}

#[derive(Serialize)]
struct Totals {
    all: Total,
    by_type: Vec<Row>,
    by_layer: Vec<Row>,
}

/// A total and what it is of.
#[derive(Serialize)]
struct Row {
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    ty: Option<&'static str>,
    /// `null`: the tensors in no layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<Option<String>>,
    #[serde(flatten)]
    total: Total,
}

impl Totals {
    fn of(tensors: &[&TensorInfo]) -> Totals {
        let by_type = totals::by_type(tensors).into_iter();
        let by_layer = totals::by_layer(tensors).into_iter();
        Totals {
            all: Total::of(tensors.iter().copied()),
            by_type: by_type.map(|(ty, total)| Row { ty: Some(ty.name()), layer: None, total }).collect(),
            by_layer: by_layer
                .map(|(layer, total)| {
                    let layer = layer.map(|(stack, n)| format!("{stack}.{n}"));
                    Row { ty: None, layer: Some(layer), total }
                })
                .collect(),
        }
    }
}

/// Metadata as an object, key by key in the file's order.
struct Pairs<'a> {
    metadata: &'a Metadata,
    arrays: bool,
}

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let arrays = self.arrays;
        serializer.collect_map(self.metadata.iter().map(|(key, value)| (key, Shown { value, arrays })))
    }
}

//! What can be wrong with a GGUF file.
//!
//! Names that come from a file are shown quoted and escaped, so that a message is safe to print.

use std::path::PathBuf;

use thiserror::Error;

use super::tensor_type::TensorType;
use super::value::ValueType;

/// Something wrong with a file, and where.
#[derive(Debug, Error)]
#[error("{}{}: {kind}", path.display(), offset.map_or_else(String::new, |o| format!(" at byte {o}")))]
pub struct GgufError {
    pub path: PathBuf,
    /// Bytes from the start of the file, where there is one place to point at.
    pub offset: Option<u64>,
    #[source]
    pub kind: GgufErrorKind,
}

/// What is wrong.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GgufErrorKind {
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("is {0}, not a file")]
    NotAFile(&'static str),
    #[error("is empty")]
    Empty,

    #[error(
        "not a GGUF file: it starts with {}{}",
        show_bytes(found),
        known_format(found).map_or_else(String::new, |f| format!(" ({f})"))
    )]
    BadMagic { found: Vec<u8> },
    #[error("a big-endian GGUF file (version {version}); only little-endian ones are supported")]
    BigEndian { version: u32 },
    #[error("GGUF version {0} is not supported; versions 2 and 3 are")]
    UnsupportedVersion(u32),

    #[error("the file ends within {what}: {wanted} bytes are needed, {left} are left")]
    Truncated { what: String, wanted: u64, left: u64 },
    #[error("{what}: {found}, where at most {most} are allowed")]
    TooMany { what: String, found: u64, most: u64 },
    #[error("{what}: {found} would need at least {wanted} bytes, {left} are left in the file")]
    CountBeyondFile { what: String, found: u64, wanted: u64, left: u64 },
    #[error("no memory for {what} ({wanted} bytes)")]
    OutOfMemory { what: String, wanted: u64 },

    #[error("metadata key {index} is empty")]
    EmptyKey { index: u64 },
    #[error("metadata key {key:?} is not UTF-8")]
    KeyNotUtf8 { key: String },
    #[error("metadata key {key:?} is there twice")]
    DuplicateKey { key: String },
    #[error("metadata key {key:?} has the unknown value type {id}")]
    UnknownValueType { key: String, id: u32 },
    #[error("metadata key {key:?} is an array of arrays, which is not supported")]
    NestedArray { key: String },
    #[error("metadata key {key:?}: a boolean is {byte}, where 0 or 1 is needed")]
    BadBool { key: String, byte: u8 },
    #[error("general.alignment has type {found}, where u32 is needed")]
    AlignmentType { found: ValueType },
    #[error("general.alignment is {found}, where a power of two from 8 to {most} is needed")]
    AlignmentValue { found: u32, most: u32 },

    #[error("tensor name {name:?} has {found} bytes, where at most {most} are allowed")]
    TensorNameLength { name: String, found: u64, most: u64 },
    #[error("tensor name {name:?} is not UTF-8")]
    TensorNameNotUtf8 { name: String },
    #[error(
        "tensor {tensor:?} is there twice{}",
        other.as_ref().map_or_else(String::new, |p| format!(": in {} too", p.display()))
    )]
    DuplicateTensor { tensor: String, other: Option<PathBuf> },
    #[error("tensor {tensor:?} has {found} dimensions, where at most {most} are allowed")]
    TensorDims { tensor: String, found: u32, most: u32 },
    #[error("tensor {tensor:?}: dimension {dim} is {found}, over 2^63 - 1")]
    TensorDim { tensor: String, dim: usize, found: u64 },
    #[error("tensor {tensor:?} of shape {dims:?} has over 2^63 - 1 elements")]
    TensorElements { tensor: String, dims: Vec<u64> },
    #[error(
        "tensor {tensor:?} has the {}",
        withdrawn(*id)
            .map_or_else(|| format!("unknown type {id}"), |name| format!("withdrawn type {name} ({id})"))
    )]
    UnknownTensorType { tensor: String, id: u32 },
    #[error(
        "tensor {tensor:?} has rows of {columns} elements, not a whole number of {ty} blocks of {}",
        ty.block_len()
    )]
    TensorRow { tensor: String, ty: TensorType, columns: u64 },
    #[error("tensor {tensor:?} of type {ty} and shape {dims:?} has over 2^64 - 1 bytes")]
    TensorBytes { tensor: String, ty: TensorType, dims: Vec<u64> },
    #[error(
        "tensor {tensor:?} has data offset {found}, where {wanted} is needed: {}",
        wrong_offset(*found, *wanted, *alignment)
    )]
    TensorOffset { tensor: String, found: u64, wanted: u64, alignment: u64 },
    #[error("tensor {tensor:?}: the sizes of the data sum to over 2^64 - 1 bytes")]
    DataOverflow { tensor: String },
    #[error("tensor {tensor:?}: its data ends at byte {end}, the file at {file_bytes}")]
    DataBeyondFile { tensor: String, end: u64, file_bytes: u64 },

    #[error(
        "the metadata says that it is one of {count} files, the name does not end in \
         -00001-of-{count:05}.gguf or the like"
    )]
    SplitName { count: u64 },
    #[error("split.{field} is missing or not a non-negative integer")]
    SplitKey { field: &'static str },
    #[error("split.{field} is {found}, where {wanted} is needed ({why})")]
    SplitValue { field: &'static str, found: u64, wanted: u64, why: &'static str },
    #[error("part {part} of {count} is missing")]
    SplitMissing { part: u64, count: u64 },
    #[error(
        "belongs to another model: its general.architecture is {found:?}, that of the first part {wanted:?}"
    )]
    SplitForeign { found: String, wanted: String },
    #[error("the files of the split hold {found} tensors, split.tensors.count says {wanted}")]
    SplitTensors { found: u64, wanted: u64 },
}

/// A name from a file as a message quotes it: valid UTF-8, and cut where it is longer than any real one.
pub(super) fn label(name: &[u8]) -> String {
    const MOST: usize = 256;
    match name.len() {
        0..=MOST => String::from_utf8_lossy(name).into_owned(),
        _ => format!("{}…", String::from_utf8_lossy(&name[..MOST]).trim_end_matches('\u{fffd}')),
    }
}

/// The first bytes of a file as text, what is not printable as `\x00`.
fn show_bytes(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

/// What else a file with these first bytes may be.
fn known_format(bytes: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 8] = [
        (b"FUGG", "GGUF with its bytes in reverse order"),
        (b"lmgg", "a GGML file from before GGUF"),
        (b"fmgg", "a GGML file from before GGUF"),
        (b"tjgg", "a GGML file from before GGUF"),
        (b"PK\x03\x04", "a ZIP archive, such as a PyTorch checkpoint"),
        (b"\x1f\x8b", "a gzip archive"),
        (b"vers", "a Git LFS pointer, perhaps: the model itself was not downloaded"),
        (b"<", "HTML or XML: perhaps an error page in the place of a download"),
    ];
    known.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|&(_, what)| what)
}

/// Names of tensor types that ggml once had, by id.
fn withdrawn(id: u32) -> Option<&'static str> {
    Some(match id {
        4 => "Q4_2",
        5 => "Q4_3",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        _ => return None,
    })
}

fn wrong_offset(found: u64, wanted: u64, alignment: u64) -> String {
    if !found.is_multiple_of(alignment) {
        format!("it is not a multiple of the alignment, {alignment}")
    } else if found < wanted {
        "it overlaps the data before it".to_owned()
    } else {
        "it leaves a gap after the data before it".to_owned()
    }
}

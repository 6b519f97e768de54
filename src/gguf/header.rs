//! One file's header: version, counts, metadata. Tensors are [`super::tensors`]' business.

use super::Part;
use super::check::Findings;
use super::error::{GgufError, GgufErrorKind, label};
use super::metadata::Metadata;
use super::reader::Reader;
use super::source::Source;
use super::tensors::{RawTensor, read_tensors};
use super::value::{Array, PackedArray, Text, TextArray, Value, ValueType};

/// Most metadata keys a file may have; real ones have under 100.
pub(super) const MAX_KEYS: u64 = 65_536;
/// Longest metadata key, bytes (the specification's limit).
pub(super) const MAX_KEY_BYTES: u64 = 65_535;
/// Longest string value, bytes.
pub(super) const MAX_TEXT_BYTES: u64 = 1 << 28;
/// Most elements of an array.
pub(super) const MAX_ARRAY_LEN: u64 = 1 << 28;
/// Largest alignment, bytes.
pub(super) const MAX_ALIGNMENT: u32 = 1 << 24;
/// Alignment where the metadata has none, bytes.
const DEFAULT_ALIGNMENT: u64 = 32;

/// Least bytes of a key/value pair: a length, a key of one byte, a type, a value of one byte.
const LEAST_PAIR_BYTES: u64 = 8 + 1 + 4 + 1;

/// A file's directory as read.
pub(super) struct ParsedFile {
    pub part: Part,
    /// Which part of a split, from 0.
    pub no: u64,
    /// Where each pair of the metadata starts, in the metadata's order.
    pub key_offsets: Vec<u64>,
    /// `part` is not set yet.
    pub tensors: Vec<RawTensor>,
}

impl ParsedFile {
    /// Where the pair of this key starts.
    pub fn key_offset(&self, key: &str) -> Option<u64> {
        let at = self.part.metadata.position(key)?;
        self.key_offsets.get(at).copied()
    }

    /// An error at the pair of this key, or of the file as a whole where there is none.
    pub fn error_at(&self, key: &str, kind: GgufErrorKind) -> GgufError {
        GgufError { path: self.part.path.clone(), offset: self.key_offset(key), kind }
    }
}

/// Reads one file's header.
pub(super) fn read_file(source: Source<'_>, findings: &mut Findings) -> Result<ParsedFile, GgufError> {
    let mut reader = Reader::open(source)?;
    let version = read_version(&mut reader)?;
    let tensor_count = reader.count(super::tensors::MAX_TENSORS, super::tensors::LEAST_BYTES, "tensors")?;
    let key_count = reader.count(MAX_KEYS, LEAST_PAIR_BYTES, "metadata keys")?;

    let mut metadata = Metadata::default();
    let mut key_offsets = Vec::new();
    for index in 0..key_count {
        let at = reader.offset();
        if let Some((key, value)) = read_pair(&mut reader, index, findings)? {
            if metadata.contains(&key) {
                findings
                    .error(reader.error(at, GgufErrorKind::DuplicateKey { key: label(key.as_bytes()) }))?;
            } else {
                metadata.insert(key, value);
                key_offsets.push(at);
            }
        }
    }
    let alignment = read_alignment(&reader, &metadata, &key_offsets, findings)?;
    let (data_offset, tensors) = read_tensors(&mut reader, tensor_count, alignment, findings)?;
    let part = Part {
        path: source.path().to_owned(),
        bytes: reader.part_bytes(),
        version,
        file_bytes: reader.file_bytes(),
        data_offset,
        alignment: alignment.unwrap_or(DEFAULT_ALIGNMENT),
        metadata,
    };
    Ok(ParsedFile { part, no: 0, key_offsets, tensors })
}

fn read_version(reader: &mut Reader) -> Result<u32, GgufError> {
    let magic = reader.bytes(reader.left().min(4), "the magic number")?;
    if magic != b"GGUF" {
        return Err(reader.error(0, GgufErrorKind::BadMagic { found: magic }));
    }
    let at = reader.offset();
    let version = reader.u32("the version")?;
    match version {
        2 | 3 => Ok(version),
        // A big-endian file has the same magic; its small version number is read as a large one.
        v if v != 0 && v.trailing_zeros() >= 16 => {
            Err(reader.error(at, GgufErrorKind::BigEndian { version: v.swap_bytes() }))
        }
        v => Err(reader.error(at, GgufErrorKind::UnsupportedVersion(v))),
    }
}

/// A pair; `None` where its key is unusable, which is reported.
fn read_pair(
    reader: &mut Reader,
    index: u64,
    findings: &mut Findings,
) -> Result<Option<(String, Value)>, GgufError> {
    let at = reader.offset();
    let len = reader.count(MAX_KEY_BYTES, 1, format_args!("bytes of metadata key {index}"))?;
    let bytes = reader.bytes(len, format_args!("metadata key {index}"))?;
    let shown = label(&bytes);
    if bytes.is_empty() {
        findings.error(reader.error(at, GgufErrorKind::EmptyKey { index }))?;
    }
    let key = String::from_utf8(bytes);
    if key.is_err() {
        findings.error(reader.error(at, GgufErrorKind::KeyNotUtf8 { key: shown.clone() }))?;
    }
    let value = read_value(reader, &shown, findings)?;
    Ok(key.ok().filter(|key| !key.is_empty()).map(|key| (key, value)))
}

fn read_value(reader: &mut Reader, key: &str, findings: &mut Findings) -> Result<Value, GgufError> {
    let ty = read_type(reader, key)?;
    if ty == ValueType::Array {
        return Ok(Value::Array(read_array(reader, key, findings)?));
    }
    let at = reader.offset();
    let Some(size) = ty.fixed_bytes() else {
        let what = format_args!("bytes of the value of metadata key {key:?}");
        let len = reader.count(MAX_TEXT_BYTES, 1, what)?;
        let bytes = reader.bytes(len, what)?;
        return Ok(Value::Text(Text(bytes.into_boxed_slice())));
    };
    let bytes = reader.bytes(size as u64, format_args!("the value of metadata key {key:?}"))?;
    check_bools(reader, key, ty, &bytes, at, findings)?;
    Ok(Value::from_fixed(ty, &bytes))
}

fn read_type(reader: &mut Reader, key: &str) -> Result<ValueType, GgufError> {
    let at = reader.offset();
    let id = reader.u32(format_args!("the type of metadata key {key:?}"))?;
    ValueType::from_id(id)
        .ok_or_else(|| reader.error(at, GgufErrorKind::UnknownValueType { key: key.to_owned(), id }))
}

fn read_array(reader: &mut Reader, key: &str, findings: &mut Findings) -> Result<Array, GgufError> {
    let at = reader.offset();
    let ty = read_type(reader, key)?;
    if ty == ValueType::Array {
        return Err(reader.error(at, GgufErrorKind::NestedArray { key: key.to_owned() }));
    }
    let each = ty.fixed_bytes().unwrap_or(size_of::<u64>()) as u64;
    let what = format_args!("elements of metadata key {key:?}");
    let len = reader.count(MAX_ARRAY_LEN, each, what)?;
    let start = reader.offset();
    if ty != ValueType::String {
        let bytes = reader.bytes(len * each, what)?;
        check_bools(reader, key, ty, &bytes, start, findings)?;
        return Ok(Array::Packed(PackedArray { ty, bytes }));
    }
    let mut texts = TextArray::default();
    if texts.ends.try_reserve_exact(len as usize).is_err() {
        let kind = GgufErrorKind::OutOfMemory { what: what.to_string(), wanted: len * each };
        return Err(reader.error(start, kind));
    }
    for i in 0..len {
        let what = format_args!("bytes of element {i} of metadata key {key:?}");
        let text_len = reader.count(MAX_TEXT_BYTES, 1, what)?;
        reader.append(&mut texts.bytes, text_len, what)?;
        texts.ends.push(texts.bytes.len() as u64);
    }
    Ok(Array::Texts(texts))
}

/// Bytes of booleans must be 0 or 1; the first that is not is reported.
fn check_bools(
    reader: &Reader,
    key: &str,
    ty: ValueType,
    bytes: &[u8],
    start: u64,
    findings: &mut Findings,
) -> Result<(), GgufError> {
    if ty != ValueType::Bool {
        return Ok(());
    }
    match bytes.iter().position(|&b| b > 1) {
        Some(i) => findings.error(
            reader.error(start + i as u64, GgufErrorKind::BadBool { key: key.to_owned(), byte: bytes[i] }),
        ),
        None => Ok(()),
    }
}

/// The alignment of tensor data; `None` where the metadata's is unusable, which is reported.
fn read_alignment(
    reader: &Reader,
    metadata: &Metadata,
    key_offsets: &[u64],
    findings: &mut Findings,
) -> Result<Option<u64>, GgufError> {
    const KEY: &str = "general.alignment";
    let Some(at) = metadata.iter().position(|(key, _)| key == KEY) else {
        return Ok(Some(DEFAULT_ALIGNMENT));
    };
    let kind = match metadata.get(KEY) {
        // The specification asks for a multiple of 8; ggml for a power of two.
        Some(&Value::U32(found)) if found.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&found) => {
            return Ok(Some(found.into()));
        }
        Some(&Value::U32(found)) => GgufErrorKind::AlignmentValue { found, most: MAX_ALIGNMENT },
        other => GgufErrorKind::AlignmentType { found: other.map_or(ValueType::Array, Value::ty) },
    };
    findings.error(reader.error(key_offsets[at], kind))?;
    Ok(None)
}

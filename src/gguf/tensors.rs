//! A file's directory of tensors: read, and laid over the data section.

use std::collections::HashSet;

use super::MAX_DIMS;
use super::check::Findings;
use super::error::{GgufError, GgufErrorKind, label};
use super::reader::Reader;
use super::tensor_type::TensorType;
use super::{TensorInfo, header};

/// Most tensors a file may have; the largest known models have a few thousand.
pub(super) const MAX_TENSORS: u64 = 131_072;
/// Longest tensor name, bytes: ggml's 64 with the final NUL.
pub(super) const MAX_NAME_BYTES: u64 = 63;
/// Least bytes of an entry: length of the name, number of dimensions, type, offset.
pub(super) const LEAST_BYTES: u64 = 8 + 4 + 4 + 8;

/// A tensor and where its entry starts.
pub(super) struct RawTensor {
    pub info: TensorInfo,
    pub entry_offset: u64,
}

/// Reads all entries and lays them out; gives where the data starts (bytes from the start of the file) and
/// the tensors that are sound. `alignment` is `None` where it is unknown: then the layout is not checked.
pub(super) fn read_tensors(
    reader: &mut Reader,
    count: u64,
    alignment: Option<u64>,
    findings: &mut Findings,
) -> Result<(u64, Vec<RawTensor>), GgufError> {
    let mut names = HashSet::new();
    let mut entries = Vec::new();
    let mut sound = true;
    for index in 0..count {
        let at = reader.offset();
        let Some(info) = read_entry(reader, index, findings)? else {
            sound = false;
            continue;
        };
        if names.contains(&info.name) {
            let kind = GgufErrorKind::DuplicateTensor { tensor: info.name.clone(), other: None };
            findings.error(reader.error(at, kind))?;
        } else {
            names.insert(info.name.clone());
        }
        entries.push(RawTensor { info, entry_offset: at });
    }
    let Some(alignment) = alignment else { return Ok((reader.offset(), Vec::new())) };
    // The header is far below 2^63 bytes and the alignment is capped: the sum fits.
    let data_offset = reader.offset().next_multiple_of(alignment);
    lay_out(reader, &mut entries, data_offset, alignment, sound, findings)?;
    Ok((data_offset, entries))
}

/// Holds offsets against the padded running sum of sizes that ggml demands (so that data is
/// aligned, in order and does not overlap) and against the file's end; makes them absolute.
fn lay_out(
    reader: &Reader,
    entries: &mut [RawTensor],
    data_offset: u64,
    alignment: u64,
    sound: bool,
    findings: &mut Findings,
) -> Result<(), GgufError> {
    // After an entry that could not be used, where the next should start is not known.
    let mut wanted = sound.then_some(0);
    for RawTensor { info, entry_offset } in entries {
        let tensor = info.name.as_str();
        let found = info.offset;
        if found != wanted.unwrap_or(found) || !found.is_multiple_of(alignment) {
            let wanted = wanted.unwrap_or(found.checked_next_multiple_of(alignment).unwrap_or(0));
            let kind = GgufErrorKind::TensorOffset { tensor: tensor.to_owned(), found, wanted, alignment };
            findings.error(reader.error(*entry_offset, kind))?;
        }
        let padded = info.bytes.checked_next_multiple_of(alignment).filter(|&padded| {
            found.checked_add(padded).is_some_and(|end| end.checked_add(data_offset).is_some())
        });
        let Some(padded) = padded else {
            let kind = GgufErrorKind::DataOverflow { tensor: tensor.to_owned() };
            findings.error(reader.error(*entry_offset, kind))?;
            wanted = None;
            continue;
        };
        // Not from `found`: one wrong offset is not to make the next, sound one a finding.
        wanted = wanted.and_then(|start: u64| start.checked_add(padded));
        let (end, file_bytes) = (data_offset + found + info.bytes, reader.file_bytes());
        if end > file_bytes {
            let kind = GgufErrorKind::DataBeyondFile { tensor: tensor.to_owned(), end, file_bytes };
            findings.error(reader.error(*entry_offset, kind))?;
        }
        info.offset = data_offset + found;
    }
    Ok(())
}

/// An entry; `None` where something in it is unusable, which is reported.
fn read_entry(
    reader: &mut Reader,
    index: u64,
    findings: &mut Findings,
) -> Result<Option<TensorInfo>, GgufError> {
    let at = reader.offset();
    let name = read_name(reader, index, findings)?;
    let shown = match &name {
        Ok(name) | Err(name) => name.as_str(),
    };
    let dims = read_dims(reader, shown, findings)?;
    let type_at = reader.offset();
    let id = reader.u32(format_args!("the type of tensor {shown:?}"))?;
    let offset = reader.u64(format_args!("the data offset of tensor {shown:?}"))?;
    let Some(ty) = TensorType::from_id(id) else {
        let kind = GgufErrorKind::UnknownTensorType { tensor: shown.to_owned(), id };
        findings.error(reader.error(type_at, kind))?;
        return Ok(None);
    };
    let Some(dims) = dims else { return Ok(None) };
    let tensor = shown.to_owned();
    let bytes = match size_of_data(tensor, ty, &dims) {
        Ok(bytes) => bytes,
        Err(kind) => {
            findings.error(reader.error(at, kind))?;
            return Ok(None);
        }
    };
    Ok(name.ok().map(|name| TensorInfo { name, ty, dims, part: 0, offset, bytes }))
}

/// The name; `Err` with what to show where it is unusable, which is reported.
fn read_name(
    reader: &mut Reader,
    index: u64,
    findings: &mut Findings,
) -> Result<Result<String, String>, GgufError> {
    let at = reader.offset();
    // A name over ggml's limit is reported and read over; one over this limit makes no sense at all.
    let what = format_args!("bytes of the name of tensor {index}");
    let found = reader.count(header::MAX_KEY_BYTES, 1, what)?;
    let bytes = reader.bytes(found, what)?;
    let shown = label(&bytes);
    let Ok(name) = String::from_utf8(bytes) else {
        findings.error(reader.error(at, GgufErrorKind::TensorNameNotUtf8 { name: shown.clone() }))?;
        return Ok(Err(shown));
    };
    if found > MAX_NAME_BYTES {
        let kind = GgufErrorKind::TensorNameLength { name: shown.clone(), found, most: MAX_NAME_BYTES };
        findings.error(reader.error(at, kind))?;
        return Ok(Err(shown));
    }
    Ok(Ok(name))
}

/// The shape, 1 to 4 sizes (a scalar, which has none, counts as `[1]`); `None` where it is
/// unusable, which is reported.
fn read_dims(
    reader: &mut Reader,
    tensor: &str,
    findings: &mut Findings,
) -> Result<Option<Vec<u64>>, GgufError> {
    let at = reader.offset();
    let found = reader.u32(format_args!("the number of dimensions of tensor {tensor:?}"))?;
    let most = MAX_DIMS as u32;
    if found > most {
        let kind = GgufErrorKind::TensorDims { tensor: tensor.to_owned(), found, most };
        return Err(reader.error(at, kind));
    }
    let mut dims = Vec::with_capacity(MAX_DIMS);
    let mut usable = true;
    for dim in 0..found as usize {
        let at = reader.offset();
        let found = reader.u64(format_args!("the shape of tensor {tensor:?}"))?;
        if i64::try_from(found).is_err() {
            let kind = GgufErrorKind::TensorDim { tensor: tensor.to_owned(), dim, found };
            findings.error(reader.error(at, kind))?;
            usable = false;
        }
        dims.push(found);
    }
    if dims.is_empty() {
        dims.push(1);
    }
    Ok(usable.then_some(dims))
}

/// Bytes of a tensor's data, in whole blocks a row.
fn size_of_data(tensor: String, ty: TensorType, dims: &[u64]) -> Result<u64, GgufErrorKind> {
    if !dims[0].is_multiple_of(ty.block_len()) {
        return Err(GgufErrorKind::TensorRow { tensor, ty, columns: dims[0] });
    }
    // Checked at each step, so that nobody's product of the sizes, taken in order, can overflow.
    let elements = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d).filter(|&n| i64::try_from(n).is_ok()));
    let Some(elements) = elements else {
        return Err(GgufErrorKind::TensorElements { tensor, dims: dims.to_vec() });
    };
    ty.bytes_of(elements).ok_or_else(|| GgufErrorKind::TensorBytes { tensor, ty, dims: dims.to_vec() })
}

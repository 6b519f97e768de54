//! The data of tensors of two models, byte by byte and, where the bytes or the types differ, value by value.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::jobs;
use crate::gguf::{Gguf, TensorInfo, TensorType};
use crate::quant::{self, Decoder};
use crate::store::{ModelReader, Piece, StoreError};
use crate::verify::Difference;

/// How the data of two tensors of one shape differ.
#[derive(Clone, Debug, PartialEq)]
pub enum DataDiff {
    /// The same type and bytes.
    Equal,
    /// Values of the second tensor, measured against the first one's. None may differ.
    Values(Difference),
    /// Bytes of types whose values mean nothing by themselves: where the first one differs, counted from the
    /// start of the data; `None` where the types differ.
    Bytes { first: Option<u64> },
}

/// Bytes of both tensors that are in memory at a time, on each thread.
const PART_BYTES: u64 = 4 << 20;
/// What every block's length divides.
const BLOCKS: u64 = 256;
/// Values decoded at a time.
const VALUES: usize = 32 * 1024;

/// A part of two tensors: a job.
struct Part {
    pair: usize,
    elements: Range<u64>,
}

/// What a thread keeps.
#[derive(Default)]
struct Memory {
    pieces: [Piece; 2],
    values: [Vec<f32>; 2],
}

/// What is found of a part.
enum Found {
    /// Its bytes; what they would be as values is not looked at.
    Equal,
    Values(Difference),
    /// The first byte that differs, counted from the start of the part.
    Bytes(Option<u64>),
}

/// Compares the data of pairs of tensors, one of each model, whose shapes are the same. `done` is told how
/// many more bytes of both have been read.
///
/// Parts are of fixed sizes and added up in order: threads change no bit of a result.
///
/// # Errors
/// Files that cannot be read or have changed since their headers were read.
///
/// # Panics
/// Where the tensors of a pair do not have the same number of elements.
pub fn compare_data(
    first: &Gguf,
    second: &Gguf,
    pairs: &[(&TensorInfo, &TensorInfo)],
    done: &(dyn Fn(u64) + Sync),
) -> Result<Vec<DataDiff>, StoreError> {
    let readers = [ModelReader::open(first)?, ModelReader::open(second)?];
    let mut parts = Vec::new();
    for (pair, (a, b)) in pairs.iter().enumerate() {
        assert_eq!(a.elements(), b.elements(), "{}", a.name);
        let step = elements_of_part(a.ty, b.ty);
        let starts = (0..a.elements().div_ceil(step)).map(|i| i * step);
        parts.extend(starts.map(|at| Part { pair, elements: at..(at + step).min(a.elements()) }));
    }
    // The files are read from their beginnings on.
    parts.sort_by_key(|part| (pairs[part.pair].0.part, pairs[part.pair].0.offset, part.elements.start));
    let differs: Vec<AtomicBool> = pairs.iter().map(|(a, b)| AtomicBool::new(a.ty != b.ty)).collect();
    let compare = |memory: &mut Memory, index: usize| {
        let part = &parts[index];
        let (a, b) = pairs[part.pair];
        memory.read(&readers, (a, b), &part.elements)?;
        done(memory.pieces.iter().map(|piece| piece.len() as u64).sum());
        let found = memory.compare(a.ty, b.ty, &differs[part.pair]);
        Ok::<_, StoreError>(found)
    };
    let mut found = jobs::run(jobs::threads(parts.len()), parts.len(), compare)?;
    measure_equal_parts(&readers[0], pairs, &parts, &differs, &mut found)?;
    Ok(sum(pairs, &parts, found))
}

/// Elements of a part: a whole number of blocks of both types.
fn elements_of_part(a: TensorType, b: TensorType) -> u64 {
    let bits = a.bits_per_weight() + b.bits_per_weight();
    let elements = (PART_BYTES as f64 * 8.0 / bits) as u64;
    elements / BLOCKS * BLOCKS
}

/// Where elements are in a tensor's file.
fn bytes_of(tensor: &TensorInfo, elements: &Range<u64>) -> Range<u64> {
    let at = |element: u64| tensor.offset + element / tensor.ty.block_len() * tensor.ty.block_bytes();
    at(elements.start)..at(elements.end)
}

impl Memory {
    fn read(
        &mut self,
        readers: &[ModelReader<'_>; 2],
        pair: (&TensorInfo, &TensorInfo),
        elements: &Range<u64>,
    ) -> Result<(), StoreError> {
        let [a, b] = &mut self.pieces;
        readers[0].read(pair.0.part, bytes_of(pair.0, elements), a)?;
        readers[1].read(pair.1.part, bytes_of(pair.1, elements), b)
    }

    /// Compares what was read. Where the bytes are the same it is decoded only if another part of the tensor
    /// is known to differ.
    fn compare(&mut self, a: TensorType, b: TensorType, differs: &AtomicBool) -> Found {
        let [first, second] = &self.pieces;
        if a == b && first[..] == second[..] && !differs.load(Ordering::Relaxed) {
            return Found::Equal;
        }
        differs.store(true, Ordering::Relaxed);
        match (quant::decoder(a), quant::decoder(b)) {
            (Some(decoder), _) if a == b && first[..] == second[..] => {
                Found::Values(self.no_difference(decoder))
            }
            (Some(a), Some(b)) => Found::Values(self.difference(a, b)),
            _ if a != b => Found::Bytes(None),
            _ => {
                let at = first.iter().zip(second.iter()).position(|(a, b)| a != b);
                at.map_or(Found::Equal, |at| Found::Bytes(Some(at as u64)))
            }
        }
    }

    /// Measures the first tensor's values against themselves: what differs elsewhere is a share of them.
    fn no_difference(&mut self, decoder: Decoder) -> Difference {
        let Memory { pieces: [piece, _], values: [values, _] } = self;
        let mut difference = Difference::default();
        for bytes in piece.chunks(bytes_of_values(decoder.ty)) {
            decode(decoder, bytes, values);
            difference.add(values, values);
        }
        difference
    }

    fn difference(&mut self, a: Decoder, b: Decoder) -> Difference {
        let Memory { pieces: [first, second], values: [wanted, found] } = self;
        let mut difference = Difference::default();
        let second = second.chunks(bytes_of_values(b.ty));
        for (first, second) in first.chunks(bytes_of_values(a.ty)).zip(second) {
            decode(a, first, wanted);
            decode(b, second, found);
            difference.add(wanted, found);
        }
        difference
    }
}

fn bytes_of_values(ty: TensorType) -> usize {
    VALUES / ty.block_len() as usize * ty.block_bytes() as usize
}

fn decode(Decoder { ty, decode }: Decoder, bytes: &[u8], values: &mut Vec<f32>) {
    values.resize(bytes.len() / ty.block_bytes() as usize * ty.block_len() as usize, 0.0);
    decode(bytes, values);
}

/// Of tensors that differ elsewhere, the values of the parts that were found equal before that was known.
fn measure_equal_parts(
    reader: &ModelReader<'_>,
    pairs: &[(&TensorInfo, &TensorInfo)],
    parts: &[Part],
    differs: &[AtomicBool],
    found: &mut [Found],
) -> Result<(), StoreError> {
    let has_values = |part: &Part| {
        let differs = differs[part.pair].load(Ordering::Relaxed);
        differs.then(|| quant::decoder(pairs[part.pair].0.ty)).flatten()
    };
    let left: Vec<(usize, Decoder)> = parts
        .iter()
        .enumerate()
        .filter(|(index, _)| matches!(found[*index], Found::Equal))
        .filter_map(|(index, part)| Some((index, has_values(part)?)))
        .collect();
    let measured = jobs::run(jobs::threads(left.len()), left.len(), |memory: &mut Memory, i| {
        let (index, decoder) = left[i];
        let (tensor, elements) = (pairs[parts[index].pair].0, &parts[index].elements);
        reader.read(tensor.part, bytes_of(tensor, elements), &mut memory.pieces[0])?;
        Ok::<_, StoreError>(memory.no_difference(decoder))
    })?;
    for ((index, _), difference) in left.into_iter().zip(measured) {
        found[index] = Found::Values(difference);
    }
    Ok(())
}

/// What was found of each pair.
fn sum(pairs: &[(&TensorInfo, &TensorInfo)], parts: &[Part], found: Vec<Found>) -> Vec<DataDiff> {
    let unlike = |(a, b): &(&TensorInfo, &TensorInfo)| match quant::decoder(a.ty).zip(quant::decoder(b.ty)) {
        _ if a.ty == b.ty => DataDiff::Equal,
        Some(_) => DataDiff::Values(Difference::default()),
        None => DataDiff::Bytes { first: None },
    };
    let mut diffs: Vec<DataDiff> = pairs.iter().map(unlike).collect();
    for (part, found) in parts.iter().zip(found) {
        let diff = &mut diffs[part.pair];
        match (found, &mut *diff) {
            (Found::Values(more), DataDiff::Values(all)) => all.append(&more),
            (Found::Values(more), _) => *diff = DataDiff::Values(more),
            (Found::Bytes(Some(at)), DataDiff::Equal) => {
                let start = bytes_of(pairs[part.pair].0, &part.elements).start;
                *diff = DataDiff::Bytes { first: Some(start - pairs[part.pair].0.offset + at) };
            }
            (Found::Equal | Found::Bytes(_), _) => {}
        }
    }
    diffs
}

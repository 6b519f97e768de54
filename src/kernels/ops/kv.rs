//! Pages of a KV cache: the keys or values of [`PAGE`] positions of one layer and sequence, as f32, f16 or
//! quantised.
//!
//! # Quantised pages
//!
//! Rows of a head are cut into blocks of 32 with an f16 scale each, rounded as ggml rounds to Q8_0 and Q4_0
//! ([`quantize_q8_0`], [`quantize_q4_0`]); scales and quants lie apart. Quants of Q4_0, 0 to 15, lie in
//! nibbles.
//!
//! Values lie row by row; of each 64 elements of Q4_0, byte i holds element i in its low nibble and 32 + i in
//! its high one; of the last 32 of a row that is no multiple of 64, byte i holds elements i and 16 + i.
//!
//! Keys lie in panels of sixteen positions, so that a dot needs no sum across lanes: block by block, of four
//! neighbours those of all sixteen positions; of Q4_0 a byte holds a quant of four i low and of four i + 4
//! high.
//! Scales are those of sixteen positions, block by block.
//!
//! What is rounded spreads its outliers first: rows are multiplied by a Hadamard matrix, orthonormal, so that
//! the dots of rotated queries and keys are those of plain ones, and the sum of rotated values is rotated
//! back. Its order is that of llama.cpp: [`key_rotation`], [`value_rotation`].

use half::f16;
use rayon::prelude::*;
use zerocopy::IntoBytes;

use super::{Ops, run};
use crate::quant::{quantize_q4_0, quantize_q8_0};

/// Positions of a page, and of a chunk of attention's arithmetic; a multiple of 16.
pub const PAGE: usize = 128;
/// Elements that share a scale in quantised pages; rows are whole blocks.
pub const KV_BLOCK: usize = 32;

/// Keys or values of a page, to be read: `[kv_heads][PAGE][len]`.
#[derive(Clone, Copy, Debug)]
pub enum KvView<'a> {
    /// The bits of f16 values.
    F16(&'a [u16]),
    F32(&'a [f32]),
    /// Scales, f16, and quants. Of values: `[kv_heads][PAGE][len / 32]`, `[kv_heads][PAGE][len]`; of keys:
    /// `[kv_heads][PAGE / 16][len / 32][16]`, `[kv_heads][PAGE / 16][len / 32][8][16][4]`.
    Q8_0(&'a [u16], &'a [i8]),
    /// Scales as in Q8_0; quants: of values `[kv_heads][PAGE][len / 2]`; of keys
    /// `[kv_heads][PAGE / 16][len / 32][4][16][4]`.
    Q4_0(&'a [u16], &'a [u8]),
}

/// Keys or values of a page, to be written: as in [`KvView`].
#[derive(Debug)]
pub enum KvViewMut<'a> {
    F16(&'a mut [u16]),
    F32(&'a mut [f32]),
    Q8_0(&'a mut [u16], &'a mut [i8]),
    Q4_0(&'a mut [u16], &'a mut [u8]),
}

impl<'a> KvView<'a> {
    /// Elements.
    fn len(&self) -> usize {
        match self {
            Self::F16(x) => x.len(),
            Self::F32(x) => x.len(),
            Self::Q8_0(scales, quants) if scales.len() * KV_BLOCK == quants.len() => quants.len(),
            Self::Q4_0(scales, quants) if scales.len() * KV_BLOCK == 2 * quants.len() => 2 * quants.len(),
            Self::Q8_0(..) | Self::Q4_0(..) => panic!("a page with scales for other quants"),
        }
    }

    /// Whether these are blocks of quants.
    pub(super) fn is_quantised(&self) -> bool {
        matches!(self, Self::Q8_0(..) | Self::Q4_0(..))
    }

    /// What its elements lie in; of quants without their scales.
    pub(super) fn bytes(&self) -> &'a [u8] {
        match *self {
            Self::F16(x) => x.as_bytes(),
            Self::F32(x) => x.as_bytes(),
            Self::Q8_0(_, quants) => quants.as_bytes(),
            Self::Q4_0(_, quants) => quants,
        }
    }
}

/// Consecutive pages of one layer and sequence: page i holds the positions from `(first_page + i) * PAGE` on.
/// Pages before them are gone: out of every window.
#[derive(Clone, Copy, Debug)]
pub struct KvPages<'a> {
    pub first_page: usize,
    /// `[kv_heads][PAGE][key_len]` each, all of one kind.
    pub keys: &'a [KvView<'a>],
    /// `[kv_heads][PAGE][value_len]` each, as many as keys, all of one kind; `None`: a position's value is
    /// the beginning of its key.
    pub values: Option<&'a [KvView<'a>]>,
}

impl KvPages<'_> {
    pub(super) fn check(&self, kv_heads: usize, key_len: usize, value_len: usize) {
        let values = self.values.unwrap_or(self.keys);
        let value_row = self.value_row(key_len, value_len);
        assert!(value_len <= value_row, "values that are longer than keys");
        assert_eq!(self.keys.len(), values.len(), "pages of keys and of values");
        for (k, v) in self.keys.iter().zip(values) {
            let lens = (kv_heads * PAGE * key_len, kv_heads * PAGE * value_row);
            assert_eq!((k.len(), v.len()), lens, "lengths of pages");
            let kind = std::mem::discriminant::<KvView<'_>>;
            assert!(kind(k) == kind(&self.keys[0]) && kind(v) == kind(&values[0]), "kinds of pages");
            for (view, row) in [(k, key_len), (v, value_row)] {
                assert!(!view.is_quantised() || row.is_multiple_of(KV_BLOCK), "rows of {row} in blocks");
            }
        }
    }

    /// Elements from a position's value to the next one's.
    pub(super) fn value_row(&self, key_len: usize, value_len: usize) -> usize {
        self.values.map_or(key_len, |_| value_len)
    }

    /// The order of the matrix that keys of so many elements were rotated by; 1: they were not.
    pub(super) fn key_rotation(&self, key_len: usize) -> usize {
        let rotated = self.values.is_some() && self.keys.first().is_some_and(KvView::is_quantised);
        if rotated { key_rotation(key_len) } else { 1 }
    }
}

/// The order of the Hadamard matrix that quantised keys of so many elements are rotated by, where values are
/// kept beside them: the greatest power of two that divides the length, if that is at least 64; otherwise 1.
pub fn key_rotation(len: usize) -> usize {
    if len.is_multiple_of(64) { 1 << len.trailing_zeros() } else { 1 }
}

/// The order of that of quantised values: 64 where that divides their length, otherwise 1.
pub fn value_rotation(len: usize) -> usize {
    if len.is_multiple_of(64) { 64 } else { 1 }
}

/// Positions of a panel of keys.
const LANES: usize = 16;
/// Elements from which storing is spread over threads, by head.
const PARALLEL: usize = 1 << 15;

/// Where rows go in a page.
#[derive(Clone, Copy, Debug)]
pub struct PlaceInPage {
    pub kv_heads: usize,
    /// Elements of a head's row.
    pub len: usize,
    /// The first row's position, counted from the page's start.
    pub first: usize,
    /// The order of the Hadamard matrix that rows are multiplied by first; 1: none.
    pub rotation: usize,
    /// Whether these are keys, whose quants lie in panels.
    pub keys: bool,
}

impl Ops {
    /// Writes new keys or values into one page: as f32, rounded to f16 (to nearest, ties to even) or
    /// quantised. `rows`: `[tokens][kv_heads * len]`.
    pub fn store_kv(&self, rows: &[f32], page: KvViewMut<'_>, place: PlaceInPage) {
        let PlaceInPage { kv_heads, len, first, rotation, .. } = place;
        let token = kv_heads * len;
        assert!(token > 0 && rows.len().is_multiple_of(token), "store_kv: {} values", rows.len());
        assert!(first + rows.len() / token <= PAGE, "store_kv: beyond the page");
        assert!(len.is_multiple_of(rotation), "store_kv: rotation");
        match page {
            KvViewMut::F16(page) => store(rows, page, &mut [], place, |from, to: &mut [u16], _, position| {
                run!(self, narrow(from, &mut to[position * len..][..len]));
            }),
            KvViewMut::F32(page) => store(rows, page, &mut [], place, |from, to: &mut [f32], _, position| {
                to[position * len..][..len].copy_from_slice(from);
            }),
            KvViewMut::Q8_0(scales, quants) => {
                store(rows, quants, scales, place, |from, quants: &mut [i8], scales, position| {
                    let quantise = |x: &[f32; KV_BLOCK]| {
                        let mut quants = [0; KV_BLOCK];
                        (quantize_q8_0(x, &mut quants), quants)
                    };
                    self.rotated(from, rotation, |x| match place.keys {
                        true => bytes_to_panels(x, quantise, quants, scales, position),
                        false => bytes_to_row(x, quantise, &mut quants[position * len..], scales, position),
                    });
                });
            }
            KvViewMut::Q4_0(scales, quants) => {
                store(rows, quants, scales, place, |from, quants: &mut [u8], scales, position| {
                    let quantise = |x: &[f32; KV_BLOCK]| {
                        let mut quants = [0; KV_BLOCK];
                        (quantize_q4_0(x, &mut quants), quants)
                    };
                    self.rotated(from, rotation, |x| match place.keys {
                        true => nibbles_to_panels(x, quantise, quants, scales, position),
                        false => {
                            nibbles_to_row(x, quantise, &mut quants[position * len / 2..], scales, position)
                        }
                    });
                });
            }
        }
    }

    /// Calls `f` with a row multiplied by a Hadamard matrix.
    pub(super) fn rotated(&self, row: &[f32], rotation: usize, f: impl FnOnce(&[f32])) {
        if rotation == 1 {
            return f(row);
        }
        let mut rotated = row.to_vec();
        rotated.chunks_exact_mut(rotation).for_each(|x| run!(self, hadamard(x)));
        f(&rotated);
    }
}

/// Rows of heads to their places: `put` a row to the elements and the scales of its head, at a position.
fn store<E: Send>(
    rows: &[f32],
    page: &mut [E],
    scales: &mut [u16],
    place: PlaceInPage,
    put: impl Fn(&[f32], &mut [E], &mut [u16], usize) + Sync,
) {
    let PlaceInPage { kv_heads, len, first, .. } = place;
    let token = kv_heads * len;
    let [head, scales_of_head] = [page.len(), scales.len()].map(|n| n / kv_heads);
    assert!([PAGE * len, PAGE * len / 2].contains(&head) && page.len() == head * kv_heads, "store_kv: page");
    assert!(scales.is_empty() || scales_of_head * KV_BLOCK == PAGE * len, "store_kv: scales");
    let store_head = |(index, (page, scales)): (usize, (&mut [E], &mut [u16]))| {
        for (i, from) in rows.chunks_exact(token).enumerate() {
            put(&from[index * len..][..len], page, scales, first + i);
        }
    };
    let mut scales = scales.chunks_exact_mut(scales_of_head.max(1));
    let heads = page.chunks_exact_mut(head).map(|page| (page, scales.next().unwrap_or_default()));
    if rows.len() < PARALLEL {
        heads.enumerate().for_each(store_head);
    } else {
        let heads: Vec<_> = heads.collect();
        heads.into_par_iter().enumerate().for_each(store_head);
    }
}

fn bytes_to_row(
    x: &[f32],
    quantise: impl Fn(&[f32; KV_BLOCK]) -> (f16, [i8; KV_BLOCK]),
    row: &mut [i8],
    scales: &mut [u16],
    position: usize,
) {
    let scales = &mut scales[position * x.len() / KV_BLOCK..];
    for ((x, row), scale) in x.as_chunks().0.iter().zip(row.as_chunks_mut::<KV_BLOCK>().0).zip(scales) {
        let (d, quants) = quantise(x);
        (*scale, *row) = (d.to_bits(), quants);
    }
}

fn nibbles_to_row(
    x: &[f32],
    quantise: impl Fn(&[f32; KV_BLOCK]) -> (f16, [u8; KV_BLOCK]),
    row: &mut [u8],
    scales: &mut [u16],
    position: usize,
) {
    let scales = scales[position * x.len() / KV_BLOCK..].chunks_mut(2);
    for ((x, row), scales) in x.chunks(2 * KV_BLOCK).zip(row.chunks_mut(KV_BLOCK)).zip(scales) {
        let mut quants = [[0; KV_BLOCK]; 2];
        for ((x, quants), scale) in x.as_chunks().0.iter().zip(&mut quants).zip(scales) {
            let (d, block) = quantise(x);
            (*scale, *quants) = (d.to_bits(), block);
        }
        let (n, flat) = (x.len() / 2, quants.as_flattened());
        for (i, byte) in row[..n].iter_mut().enumerate() {
            *byte = flat[i] | flat[n + i] << 4;
        }
    }
}

fn bytes_to_panels(
    x: &[f32],
    quantise: impl Fn(&[f32; KV_BLOCK]) -> (f16, [i8; KV_BLOCK]),
    quants: &mut [i8],
    scales: &mut [u16],
    position: usize,
) {
    let blocks = x.len() / KV_BLOCK;
    for (b, x) in x.as_chunks().0.iter().enumerate() {
        let (d, block) = quantise(x);
        let panel = position / LANES * blocks + b;
        scales[panel * LANES + position % LANES] = d.to_bits();
        let panel = &mut quants[panel * LANES * KV_BLOCK..][..LANES * KV_BLOCK];
        for (fours, four) in panel.chunks_exact_mut(4 * LANES).zip(block.as_chunks::<4>().0) {
            fours[position % LANES * 4..][..4].copy_from_slice(four);
        }
    }
}

fn nibbles_to_panels(
    x: &[f32],
    quantise: impl Fn(&[f32; KV_BLOCK]) -> (f16, [u8; KV_BLOCK]),
    quants: &mut [u8],
    scales: &mut [u16],
    position: usize,
) {
    let (blocks, half) = (x.len() / KV_BLOCK, KV_BLOCK / 2);
    for (b, x) in x.as_chunks().0.iter().enumerate() {
        let (d, block) = quantise(x);
        let panel = position / LANES * blocks + b;
        scales[panel * LANES + position % LANES] = d.to_bits();
        let panel = &mut quants[panel * LANES * half..][..LANES * half];
        for (i, fours) in panel.chunks_exact_mut(4 * LANES).enumerate() {
            for (j, byte) in fours[position % LANES * 4..][..4].iter_mut().enumerate() {
                *byte = block[4 * i + j] | block[half + 4 * i + j] << 4;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotations_are_those_of_llama_cpp() {
        let rotations =
            [32, 64, 80, 96, 128, 192, 256, 320, 576].map(|len| [key_rotation(len), value_rotation(len)]);
        let wanted = [[1, 1], [64, 64], [1, 1], [1, 1], [128, 64], [64, 64], [256, 64], [64, 64], [64, 64]];
        assert_eq!(rotations, wanted);
    }
}

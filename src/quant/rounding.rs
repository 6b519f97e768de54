//! Rounding of activations to blocks of integers, block by block.
//!
//! What is rounded is defined by the functions here; they are inlined into whoever calls them, so that a
//! kernel set compiles them for its own instructions.

use super::{QK_K, QK8_0, legacy, super_blocks};

/// Blocks of a quantised type: what they are made of, and where their parts go.
pub struct Blocks<'a> {
    /// Values, whole blocks.
    pub x: &'a [f32],
    /// As many.
    pub qs: &'a mut [i8],
    /// Sums of 16 elements of `qs` each.
    pub bsums: &'a mut [i16],
    /// A scale a block.
    pub d: &'a mut [f32],
    /// Q8_1: a block's sum; otherwise nothing.
    pub s: &'a mut [f32],
}

impl<'a> Blocks<'a> {
    /// The first blocks, of so many values, and the others.
    pub(super) fn split_at(self, values: usize) -> [Blocks<'a>; 2] {
        let blocks = values * self.d.len() / self.x.len();
        let (x, qs) = (self.x.split_at(values), self.qs.split_at_mut(values));
        let (bsums, d) = (self.bsums.split_at_mut(values / 16), self.d.split_at_mut(blocks));
        let s = self.s.split_at_mut(if self.s.is_empty() { 0 } else { blocks });
        [
            Blocks { x: x.0, qs: qs.0, bsums: bsums.0, d: d.0, s: s.0 },
            Blocks { x: x.1, qs: qs.1, bsums: bsums.1, d: d.1, s: s.1 },
        ]
    }
}

/// Who rounds. Each says whether all values are finite; where they are not, the blocks are of no use.
pub trait Rounding: Sync {
    fn q8_0(&self, blocks: Blocks<'_>) -> bool;
    fn q8_1(&self, blocks: Blocks<'_>) -> bool;
    fn q8_k(&self, blocks: Blocks<'_>) -> bool;
}

/// As compiled for any CPU.
pub(super) struct Portable;

impl Rounding for Portable {
    fn q8_0(&self, blocks: Blocks<'_>) -> bool {
        q8_0(blocks)
    }
    fn q8_1(&self, blocks: Blocks<'_>) -> bool {
        q8_1(blocks)
    }
    fn q8_k(&self, blocks: Blocks<'_>) -> bool {
        q8_k(blocks)
    }
}

#[inline(always)]
fn finite(x: &[f32]) -> bool {
    // Without a branch for each value.
    x.iter().fold(true, |all, x| all & x.is_finite())
}

/// See [`Rounding`].
#[inline(always)]
pub(crate) fn q8_0(blocks: Blocks<'_>) -> bool {
    let Blocks { x, qs, bsums, d, .. } = blocks;
    let (x, qs, bsums) = (x.as_chunks().0, qs.as_chunks_mut().0, bsums.as_chunks_mut().0);
    let mut all = true;
    for (((x, qs), bsums), d) in x.iter().zip(qs).zip(bsums).zip(d) {
        all &= finite(x);
        *d = legacy::quantize_with_sums(x, qs, bsums);
    }
    all
}

/// See [`Rounding`].
#[inline(always)]
pub(crate) fn q8_1(blocks: Blocks<'_>) -> bool {
    let Blocks { x, qs, bsums, d, s } = blocks;
    let (x, qs, bsums) = (x.as_chunks::<QK8_0>().0, qs.as_chunks_mut().0, bsums.as_chunks_mut().0);
    let mut all = true;
    for ((((x, qs), bsums), d), s) in x.iter().zip(qs).zip(bsums).zip(d).zip(s) {
        all &= finite(x);
        (*d, *s) = legacy::quantize_q8_1(x, qs, bsums);
    }
    all
}

/// See [`Rounding`].
#[inline(always)]
pub(crate) fn q8_k(blocks: Blocks<'_>) -> bool {
    let Blocks { x, qs, bsums, d, .. } = blocks;
    let (x, qs, bsums) = (x.as_chunks::<QK_K>().0, qs.as_chunks_mut().0, bsums.as_chunks_mut().0);
    let mut all = true;
    for (((x, qs), bsums), d) in x.iter().zip(qs).zip(bsums).zip(d) {
        all &= finite(x);
        *d = super_blocks::quantize_block(x, qs, bsums);
    }
    all
}

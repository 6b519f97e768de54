//! What kernels of every instruction set need to know of the formats' layouts.

use zerocopy::FromZeros;

use super::Tile;
use crate::quant::*;

/// A format whose activations go in blocks of 32: a block is one or several parts of 32 weights.
pub(super) trait PartLayout: Copy + FromZeros {
    /// Parts of a block.
    const PARTS: usize = 1;
    /// Each half of a part has a scale of its own.
    const HALVES: bool = false;
    /// Weights have mins, which go with the sums of Q8_1.
    const MINS: bool = false;

    fn slice(bytes: &[u8]) -> &[Self];
}

/// A format of super-blocks of 256 weights, whose activations are Q8_K.
pub(super) trait SuperLayout: Sized {
    /// What `d` is multiplied by: a power of two.
    const UNIT: f32 = 1.0;

    fn slice(bytes: &[u8]) -> &[Self];
    /// `[d, dmin]` as f16 bytes; `dmin` is 0 where the format has none.
    fn d(&self) -> [[u8; 2]; 2];
}

macro_rules! part_layouts {
    ($($block:ident { $($name:ident: $ty:ty = $value:expr),* })*) => {$(
        impl PartLayout for $block {
            $(const $name: $ty = $value;)*

            #[inline(always)]
            fn slice(bytes: &[u8]) -> &[$block] {
                $block::slice(bytes)
            }
        }
    )*};
}

part_layouts! {
    BlockQ4_0 {}
    BlockQ4_1 { MINS: bool = true }
    BlockQ5_0 {}
    BlockQ5_1 { MINS: bool = true }
    BlockQ8_0 {}
    BlockIQ4NL {}
    BlockMXFP4 {}
    BlockNVFP4 { PARTS: usize = 2, HALVES: bool = true }
    BlockQ1_0 { PARTS: usize = 4 }
    BlockQ2_0 { PARTS: usize = 2 }
}

macro_rules! super_layouts {
    ($($block:ident { $($name:ident: $ty:ty = $value:expr)? } |$own:ident| $d:expr;)*) => {$(
        impl SuperLayout for $block {
            $(const $name: $ty = $value;)?

            #[inline(always)]
            fn slice(bytes: &[u8]) -> &[$block] {
                $block::slice(bytes)
            }

            #[inline(always)]
            fn d(&self) -> [[u8; 2]; 2] {
                let $own = self;
                $d
            }
        }
    )*};
}

super_layouts! {
    BlockQ2K {} |block| [block.d, block.dmin];
    BlockQ3K {} |block| [block.d, [0; 2]];
    BlockQ4K {} |block| [block.d, block.dmin];
    BlockQ5K {} |block| [block.d, block.dmin];
    BlockQ6K {} |block| [block.d, [0; 2]];
    BlockIQ4XS {} |block| [block.d, [0; 2]];
    BlockTQ1_0 {} |block| [block.d, [0; 2]];
    BlockTQ2_0 {} |block| [block.d, [0; 2]];
    BlockIQ2XXS { UNIT: f32 = <BlockIQ2XXS as GridBlock>::UNIT } |block| [block.d, [0; 2]];
    BlockIQ2XS { UNIT: f32 = <BlockIQ2XS as GridBlock>::UNIT } |block| [block.d, [0; 2]];
    BlockIQ2S { UNIT: f32 = <BlockIQ2S as GridBlock>::UNIT } |block| [block.d, [0; 2]];
    BlockIQ3XXS { UNIT: f32 = <BlockIQ3XXS as GridBlock>::UNIT } |block| [block.d, [0; 2]];
    BlockIQ3S { UNIT: f32 = <BlockIQ3S as GridBlock>::UNIT } |block| [block.d, [0; 2]];
    BlockIQ1S { UNIT: f32 = <BlockIQ1S as GridBlock>::UNIT } |block| [block.d, [0; 2]];
    BlockIQ1M { UNIT: f32 = <BlockIQ1M as GridBlock>::UNIT } |block| [GridBlock::d(block), [0; 2]];
}

/// Blocks that make eight parts.
pub(super) const fn eight_parts<B: PartLayout>() -> usize {
    8 / B::PARTS
}

/// A row of activations, of the type that goes with the format.
#[inline(always)]
pub(super) fn activations<B: PartLayout>(x: ActivationRow<'_>) -> Q8_0Row<'_> {
    if B::MINS { x.q8_1() } else { x.q8_0() }
}

/// Up to eight parts of a row of activations.
#[derive(Clone, Copy)]
pub(super) struct Eight<'a> {
    pub qs: &'a [[i8; PART]; 8],
    pub d: &'a [f32; 8],
    /// Q8_1's sums; otherwise anything.
    pub s: &'a [f32; 8],
    pub bsums: &'a [i16; 16],
}

impl<'a> Eight<'a> {
    /// The eight parts from `at` on; `None` where fewer are left.
    #[inline(always)]
    pub fn of<B: PartLayout>(x: Q8_0Row<'a>, at: usize) -> Option<Eight<'a>> {
        let (qs, d) = (x.qs.as_chunks().0.get(at..)?.first_chunk()?, x.d.get(at..)?.first_chunk()?);
        let bsums = x.bsums.get(2 * at..)?.first_chunk()?;
        Some(Eight { qs, d, s: if B::MINS { x.s.get(at..)?.first_chunk()? } else { d }, bsums })
    }
}

/// The parts that are left of a row shorter than eight, filled up with zeros.
pub(super) struct Tail<B> {
    pub blocks: [B; 8],
    qs: [[i8; PART]; 8],
    d: [f32; 8],
    s: [f32; 8],
    bsums: [i16; 16],
}

impl<B: PartLayout> Tail<B> {
    #[inline(always)]
    pub fn new(blocks: &[B]) -> Tail<B> {
        let mut tail = Tail {
            blocks: [B::new_zeroed(); 8],
            qs: [[0; PART]; 8],
            d: [0.0; 8],
            s: [0.0; 8],
            bsums: [0; 16],
        };
        tail.blocks[..blocks.len()].copy_from_slice(blocks);
        tail
    }

    /// The `n` parts of activations from `at` on.
    #[inline(always)]
    pub fn x(&mut self, x: Q8_0Row<'_>, at: usize, n: usize) -> Eight<'_> {
        self.qs[..n].copy_from_slice(&x.qs.as_chunks().0[at..at + n]);
        self.d[..n].copy_from_slice(&x.d[at..at + n]);
        if B::MINS {
            self.s[..n].copy_from_slice(&x.s[at..at + n]);
        }
        self.bsums[..2 * n].copy_from_slice(&x.bsums[2 * at..2 * (at + n)]);
        Eight { qs: &self.qs, d: &self.d, s: &self.s, bsums: &self.bsums }
    }
}

/// The rows of a tile that have less than eight parts each.
pub(super) struct ShortRows<'a, B> {
    all: &'a [B],
    /// Blocks of a row.
    pub blocks: usize,
    /// Rows from which on eight parts can be read: all but the last ones.
    pub count: usize,
}

impl<'a, B: PartLayout> ShortRows<'a, B> {
    /// `None` where they are longer, or too few.
    #[inline(always)]
    pub fn of(tile: &Tile<'a>) -> Option<ShortRows<'a, B>> {
        let (all, blocks) = (B::slice(tile.weights), tile.row_bytes / size_of::<B>());
        if blocks == 0 || blocks >= eight_parts::<B>() {
            return None;
        }
        let count = all.len().checked_sub(eight_parts::<B>())? / blocks + 1;
        Some(ShortRows { all, blocks, count: count.min(tile.rows) })
    }

    #[inline(always)]
    pub fn parts(&self) -> usize {
        self.blocks * B::PARTS
    }

    /// The eight parts that row `r` begins.
    #[inline(always)]
    pub fn eight(&self, r: usize) -> &'a [B] {
        &self.all[r * self.blocks..][..eight_parts::<B>()]
    }
}

/// A format of floats, sixteen at a time.
pub(super) trait FloatSteps {
    const ACTIVATION: ActivationType;
    /// Sixteen weights, as in a file.
    type Step: Copy;
    fn steps(row: &[u8]) -> (&[Self::Step], &[u8]);
    /// The weights that are left, filled up with zeros.
    fn padded(tail: &[u8]) -> Self::Step;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

macro_rules! float_steps {
    ($($name:ident, $ty:ident, $bytes:literal;)*) => {$(
        impl FloatSteps for $name {
            const ACTIVATION: ActivationType = ActivationType::$ty;
            type Step = [u8; 16 * $bytes];

            #[inline(always)]
            fn steps(row: &[u8]) -> (&[Self::Step], &[u8]) {
                row.as_chunks()
            }

            #[inline(always)]
            fn padded(tail: &[u8]) -> Self::Step {
                let mut step = [0; 16 * $bytes];
                step[..tail.len()].copy_from_slice(tail);
                step
            }
        }
    )*};
}

float_steps! {
    F32, F32, 4;
    F16, F16, 2;
    Bf16, BF16, 2;
}

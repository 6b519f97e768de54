//! Formats whose activations go in blocks of 32 (Q8_0, Q8_1): a block is one or several parts of 32 weights.
//!
//! `maddubs` wants one side unsigned: signed weights go in as magnitudes (128 at most, which fits),
//! activations with the weights' signs. Activations are never -128, so turning their sign is exact, and 2 *
//! 128 * 127 fits i16. Small weights are taken without their offset instead, which the sums of activations
//! (`bsums`) make up for.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::super::blocks::{BlockKernel, PanelKernel};
use super::super::layouts::{Eight, PartLayout, ShortRows, Tail, activations, eight_parts};
use super::super::{OutTile, Tile};
use super::{
    Maddubs, Multiply, PREFETCH, load_f32, load_i8, load_i16, opaque, prefetch, prefetch_panel, spread_pair,
    spread_quad, to_array, transpose8, tree8,
};
use crate::quant::arranged::{Arranged, Parts};
use crate::quant::{ActivationRow, PART, Q8_0Row};

pub(in super::super) struct Blocks32<B>(PhantomData<B>);

/// What the formats differ in.
///
/// All `unsafe` functions have one condition: the CPU has the features of this kernel set. They are inlined
/// always, whatever their length (which functions with features of their own cannot be), so that weights stay
/// in registers.
pub(in super::super) trait Block: PartLayout {
    /// Whether weights may be negative; those that are not are at most 31.
    const SIGNED: bool = true;
    /// What is to be taken off weights that are not.
    const OFFSET: i16 = 0;

    /// Weights of part `p`, in order, as i8, `OFFSET` not taken off.
    unsafe fn part(&self, p: usize) -> __m256i;
    /// Of eight parts, which are whole blocks: their scales (of their first halves), and what else the format
    /// has: the scales of their second halves or their mins.
    unsafe fn scales(blocks: &[Self]) -> [__m256; 2];
}

/// Eight rows of up to eight parts; lane `r` belongs to row `r`.
#[derive(Clone, Copy)]
pub(in super::super) struct Panel {
    /// Parts there are.
    pub parts: usize,
    /// `[part]`, four weights each.
    pub q: [[__m256i; PART / 4]; 8],
    /// `[part]`: scales, and what else the format has.
    pub scales: [[__m256; 8]; 2],
}

/// Eight parts of zeros, their scales zero as well: their products leave lanes of zero as they are.
const NOTHING: Eight<'static> = Eight { qs: &[[0; PART]; 8], d: &[0.0; 8], s: &[0.0; 8], bsums: &[0; 16] };

/// The order that turns eight lanes by `n` places: lane `i` of the outcome is lane `i + n`, modulo 8.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn turned(n: usize) -> __m256i {
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    // Of an index the instruction takes the lowest three bits.
    _mm256_add_epi32(lanes, _mm256_set1_epi32(n as i32))
}

impl Panel {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn zero() -> Panel {
        let (zero, floats) = (_mm256_setzero_si256(), _mm256_setzero_ps());
        Panel { parts: 0, q: [[zero; PART / 4]; 8], scales: [[floats; 8]; 2] }
    }

    /// Takes unit `unit` of eight rows.
    ///
    /// # Safety
    /// The CPU must have the features of this kernel set.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn unpack<B: Block>(&mut self, rows: &[&[u8]; 8], unit: usize) {
        let step = eight_parts::<B>();
        // The parts of each row, and their scales, next to each other; where a row ends before, whatever.
        let mut weights = [[_mm256_setzero_si256(); 8]; 8];
        let mut scales = [[_mm256_setzero_si256(); 8]; 2];
        for (r, row) in rows.iter().enumerate() {
            let blocks = &B::slice(row)[unit * step..];
            let there = blocks.len().min(step);
            prefetch_panel(&blocks[..there], row);
            self.parts = there * B::PARTS;
            for b in 0..self.parts {
                // SAFETY: the caller vouches for the CPU.
                weights[b][r] = unsafe { blocks[b / B::PARTS].part(b % B::PARTS) };
            }
            let mut eight = [B::new_zeroed(); 8];
            eight[..there].copy_from_slice(&blocks[..there]);
            // SAFETY: as above.
            let own = unsafe { B::scales(&eight[..step]) };
            for i in 0..2 {
                scales[i][r] = _mm256_castps_si256(own[i]);
            }
        }
        for (to, rows) in self.q.iter_mut().zip(weights) {
            *to = transpose8(rows);
        }
        for (to, rows) in self.scales.iter_mut().zip(scales) {
            let columns = transpose8(rows);
            *to = array!(8, |b| _mm256_castsi256_ps(columns[b]));
        }
    }
}

/// Of each token and eight rows the lanes, which are parts by index as in [`crate::quant`]; register lane `r`
/// is row `r`'s.
pub(in super::super) type Lanes = [[__m256; 8]; 2];

/// Twice eight rows, so that each activation that is spread serves two registers of weights.
impl<B: Block> PanelKernel<16> for Blocks32<B> {
    const TOKENS: usize = 4;
    const TOKENS_A_PANEL: usize = 128;
    const ARRANGED: bool = true;

    type Row<'a> = Q8_0Row<'a>;
    type Tokens<'a> = &'a Arranged;
    type Panel = [Panel; 2];
    type Lanes = Lanes;

    #[inline(always)]
    fn row(x: ActivationRow<'_>) -> Q8_0Row<'_> {
        activations::<B>(x)
    }

    #[inline(always)]
    fn tokens<'a>(tile: &Tile<'a>) -> &'a Arranged {
        tile.groups()
    }

    #[inline(always)]
    fn units(row_bytes: usize) -> usize {
        row_bytes.div_ceil(eight_parts::<B>() * size_of::<B>())
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn no_lanes() -> Lanes {
        [[_mm256_setzero_ps(); 8]; 2]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn no_panel() -> [Panel; 2] {
        [Panel::zero(); 2]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn unpack(rows: &[&[u8]; 16], unit: usize, panel: &mut [Panel; 2]) {
        for (rows, to) in rows.as_chunks::<8>().0.iter().zip(panel) {
            // SAFETY: the caller vouches for the CPU.
            unsafe { to.unpack::<B>(rows, unit) };
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn accumulate<const T: usize>(
        panel: &[Panel; 2],
        x: &&Arranged,
        first: usize,
        unit: usize,
        lanes: &mut [Lanes; T],
    ) {
        let x = x.parts(unit, first);
        match (B::SIGNED, B::HALVES, B::MINS) {
            (true, _, _) => add_panel::<true, false, false, T>(panel, x, 0, lanes),
            (_, true, _) => add_panel::<false, true, false, T>(panel, x, B::OFFSET, lanes),
            (_, _, true) => add_panel::<false, false, true, T>(panel, x, 0, lanes),
            _ => add_panel::<false, false, false, T>(panel, x, B::OFFSET, lanes),
        }
    }

    /// The tree of [`crate::quant::tree8`], over lanes that hold eight rows each.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn finish(lanes: &Lanes) -> [f32; 16] {
        let mut all = [0.0; 16];
        for (to, [a, b, c, d, e, f, g, h]) in all.as_chunks_mut::<8>().0.iter_mut().zip(lanes) {
            let even = _mm256_add_ps(_mm256_add_ps(*a, *e), _mm256_add_ps(*c, *g));
            let odd = _mm256_add_ps(_mm256_add_ps(*b, *f), _mm256_add_ps(*d, *h));
            *to = to_array(_mm256_add_ps(even, odd));
        }
        all
    }
}

impl<B: Block> BlockKernel<16> for Blocks32<B> {
    const PANEL_TOKENS: usize = 6;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dots<const T: usize>(weights: &[u8], x: [Q8_0Row<'_>; T]) -> [f32; T] {
        // SAFETY: the caller vouches for the CPU.
        unsafe { dots::<B, Maddubs, T>(weights, x) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn rows_together(tile: &Tile<'_>, x: &[Q8_0Row<'_>], out: &mut OutTile<'_>) -> usize {
        // SAFETY: the caller vouches for the CPU.
        unsafe { rows_together::<B, Maddubs>(tile, x, out) }
    }
}

/// What `BlockKernel::rows_together` does.
///
/// # Safety
/// As [`dots`].
#[inline(always)]
pub(in super::super) unsafe fn rows_together<B: Block, M: Multiply>(
    tile: &Tile<'_>,
    x: &[Q8_0Row<'_>],
    out: &mut OutTile<'_>,
) -> usize {
    let Some(rows) = ShortRows::<B>::of(tile) else { return 0 };
    for (t, &x) in x.iter().enumerate() {
        let mut filled = Tail::<B>::new(&[]);
        let x = filled.x(x, 0, rows.parts());
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let (zero, there) = (_mm256_setzero_ps(), mask(array!(8, |b| -i32::from(b < rows.parts()))));
            for r in 0..rows.count {
                let blocks = rows.eight(r);
                prefetch(&blocks[..rows.blocks], PREFETCH);
                let (w, scales) = (weights_of(blocks), B::scales(blocks));
                let lanes = add_products::<B>(products::<B, M>(&w, x), scales, x, zero);
                // What belongs to the next row does not count.
                out.set(t, r, tree8(_mm256_blendv_ps(zero, lanes, there)));
            }
        }
    }
    rows.count
}

/// The dots of a row of weights with `T` rows of activations.
///
/// # Safety
/// The CPU must have the features of this kernel set and of `M`, and the caller be compiled for them.
#[inline(always)]
pub(in super::super) unsafe fn dots<B: Block, M: Multiply, const T: usize>(
    weights: &[u8],
    x: [Q8_0Row<'_>; T],
) -> [f32; T] {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let all = B::slice(weights);
        let eights = all.chunks_exact(eight_parts::<B>());
        let tail = eights.remainder();
        let mut acc = [_mm256_setzero_ps(); T];
        let mut at = 0;
        // Products are added to the lanes while the next ones are computed: a chain of operations that the
        // CPU else waits for. Before the first there are none.
        let mut held = [([_mm256_setzero_si256(); 2], [_mm256_setzero_ps(); 2], NOTHING); T];
        for blocks in eights {
            prefetch(blocks, PREFETCH);
            let (w, scales) = (weights_of(blocks), B::scales(blocks));
            for t in 0..T {
                let Some(x) = Eight::of::<B>(x[t], at) else {
                    unreachable!("as many activations as weights")
                };
                let (sums, scales_before, x_before) = held[t];
                held[t] = (products::<B, M>(&w, x), scales, x);
                acc[t] = add_products::<B>(sums, scales_before, x_before, acc[t]);
            }
            at += 8;
        }
        for (acc, (sums, scales, x)) in acc.iter_mut().zip(held) {
            *acc = add_products::<B>(sums, scales, x, *acc);
        }
        let n = tail.len() * B::PARTS;
        if n > 0 && at > 0 {
            // The last eight parts, of which the last `n` are new; the lanes turn until they lie as these do.
            let blocks = &all[all.len() - eight_parts::<B>()..];
            let (w, scales) = (weights_of(blocks), B::scales(blocks));
            let new = mask(array!(8, |b| if b < 8 - n { 0 } else { -1 }));
            let (there, back) = (turned(n), turned(8 - n));
            for t in 0..T {
                let Some(x) = Eight::of::<B>(x[t], at + n - 8) else {
                    unreachable!("as many activations as weights")
                };
                let lanes = _mm256_permutevar8x32_ps(acc[t], there);
                let next = add_products::<B>(products::<B, M>(&w, x), scales, x, lanes);
                acc[t] = _mm256_permutevar8x32_ps(_mm256_blendv_ps(lanes, next, new), back);
            }
        } else if n > 0 {
            let mut tail = Tail::new(tail);
            let there = array!(8, |b| if b < n { -1 } else { 0 });
            for t in 0..T {
                let blocks = &tail.blocks[..eight_parts::<B>()];
                let (w, scales) = (weights_of(blocks), B::scales(blocks));
                let x = tail.x(x[t], at, n);
                let next = add_products::<B>(products::<B, M>(&w, x), scales, x, acc[t]);
                // Lanes without a part stay as they are.
                acc[t] = _mm256_blendv_ps(acc[t], next, mask(there));
            }
        }
        array!(T, |t| tree8(acc[t]))
    }
}

/// The weights of eight parts.
///
/// # Safety
/// The CPU must have the features of this kernel set.
#[inline(always)]
pub(in super::super) unsafe fn weights_of<B: Block>(blocks: &[B]) -> [__m256i; 8] {
    // SAFETY: the caller vouches for the CPU.
    array!(8, |b| unsafe { blocks[b / B::PARTS].part(b % B::PARTS) })
}

/// Adds a panel's products with a group of tokens to their lanes: the same for all formats of a kind, and
/// compiled once for them.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_panel<const SIGNED: bool, const HALVES: bool, const MINS: bool, const T: usize>(
    panel: &[Panel; 2],
    x: &Parts<T>,
    offset: i16,
    lanes: &mut [Lanes; T],
) {
    // SAFETY: this function is compiled for the features that the CPU has.
    unsafe { add_panel_with::<SIGNED, HALVES, MINS, Maddubs, T>(panel, x, offset, lanes) }
}

/// What `add_panel` does.
///
/// # Safety
/// As [`dots`].
#[inline(always)]
pub(in super::super) unsafe fn add_panel_with<
    const SIGNED: bool,
    const HALVES: bool,
    const MINS: bool,
    M: Multiply,
    const T: usize,
>(
    panel: &[Panel; 2],
    x: &Parts<T>,
    offset: i16,
    lanes: &mut [Lanes; T],
) {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        // What the sums of the first and of the second half are multiplied by.
        let less = i32::from(-offset);
        let of_half = if HALVES { [less & 0xffff, less << 16] } else { [less & 0xffff | less << 16, 0] };
        let zero = _mm256_setzero_si256();
        for (b, quads) in x.quads[..panel[0].parts.min(8)].iter().enumerate() {
            let mut sums = [[[zero; 2]; T]; 2];
            for half in 0..2 {
                let mut sum = if half == 0 || HALVES { sums[half] } else { sums[0] };
                if !SIGNED && !MINS && (half == 0 || HALVES) {
                    let less = _mm256_set1_epi32(of_half[half]);
                    sum = array!(T, |t| [_mm256_madd_epi16(spread_pair(x.sums[b][t]), less); 2]);
                }
                let quads = &quads.as_chunks::<4>().0[half];
                add_half::<SIGNED, M, T>(array!(2, |h| &panel[h].q[b].as_chunks().0[half]), quads, &mut sum);
                sums[half] = sum;
            }
            let first = if HALVES { sums[0] } else { [[zero; 2]; T] };
            for t in 0..T {
                let (d_a, s) = (_mm256_set1_ps(x.d[b][t]), _mm256_set1_ps(x.s[b][t]));
                for (h, rows) in panel.iter().enumerate() {
                    let (scales, lane) = ([rows.scales[0][b], rows.scales[1][b]], &mut lanes[t][h][b]);
                    *lane = add::<HALVES, MINS>(scales, d_a, s, [first[t][h], sums[1][t][h]], *lane);
                }
            }
        }
    }
}

/// Adds the products of sixteen weights of each of twice eight rows with `T` tokens' activations.
///
/// # Safety
/// As [`dots`].
#[inline(always)]
unsafe fn add_half<const SIGNED: bool, M: Multiply, const T: usize>(
    q: [&[__m256i; 4]; 2],
    x: &[[[i8; 4]; T]; 4],
    sum: &mut [[__m256i; 2]; T],
) {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        if !SIGNED {
            for t in 0..T {
                let x = array!(4, |k| spread_quad(x[k][t]));
                sum[t] = array!(2, |h| M::add_small_quads(sum[t][h], *q[h], x));
            }
            return;
        }
        for k in 0..4 {
            let q = array!(2, |h| q[h][k]);
            let magnitude = array!(2, |h| _mm256_abs_epi8(q[h]));
            for t in 0..T {
                let x = spread_quad(x[k][t]);
                // Else all of a token's quads would be added up before the next token's: more than registers
                // hold.
                sum[t] = array!(2, |h| {
                    opaque(M::add_quads(sum[t][h], magnitude[h], _mm256_sign_epi8(x, q[h])))
                });
            }
        }
    }
}

/// Adds a part to each of eight lanes: the scales (and what else the format has), the activations' scales and
/// Q8_1's sums, the sums over the first and the second halves.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add<const HALVES: bool, const MINS: bool>(
    [d, more]: [__m256; 2],
    d_a: __m256,
    s: __m256,
    [first, second]: [__m256i; 2],
    lanes: __m256,
) -> __m256 {
    let scale = _mm256_mul_ps(d, d_a);
    if HALVES {
        let lanes = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(first), lanes);
        return _mm256_fmadd_ps(_mm256_mul_ps(more, d_a), _mm256_cvtepi32_ps(second), lanes);
    }
    let lanes = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(_mm256_add_epi32(first, second)), lanes);
    if MINS { _mm256_fmadd_ps(more, s, lanes) } else { lanes }
}

/// The products of eight parts, added as far as registers' halves go: in lane `i` of half `h` of register `r`
/// those of half `h` of part `4 r + i`.
///
/// # Safety
/// As [`dots`].
#[inline(always)]
unsafe fn products<B: Block, M: Multiply>(w: &[__m256i; 8], x: Eight<'_>) -> [__m256i; 2] {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let zero = _mm256_setzero_si256();
        let s: [__m256i; 8] = array!(8, |b| {
            let (w, x) = (w[b], load_i8(&x.qs[b]));
            if B::SIGNED {
                M::add_quads(zero, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
            } else {
                M::add_quads(zero, w, x)
            }
        });
        [sums_of_four([s[0], s[1], s[2], s[3]]), sums_of_four([s[4], s[5], s[6], s[7]])]
    }
}

/// In lane `i` of each half, the sum over that half of register `i`: as horizontal additions would, which are
/// slower.
#[inline]
#[target_feature(enable = "avx2")]
fn sums_of_four([a, b, c, d]: [__m256i; 4]) -> __m256i {
    let ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd))
}

/// Adds eight parts' products to the lanes.
///
/// # Safety
/// As [`dots`].
#[inline(always)]
unsafe fn add_products<B: Block>(
    [a, b]: [__m256i; 2],
    scales: [__m256; 2],
    x: Eight<'_>,
    lanes: __m256,
) -> __m256 {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let mut halves = [_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b)];
        if B::OFFSET != 0 {
            // In each lane the sums over the first and the second half.
            let (bsums, offset) = (load_i16(x.bsums), i32::from(B::OFFSET));
            if B::HALVES {
                let (first, second) = (_mm256_set1_epi32(offset), _mm256_set1_epi32(offset << 16));
                halves[0] = _mm256_sub_epi32(halves[0], _mm256_madd_epi16(bsums, first));
                halves[1] = _mm256_sub_epi32(halves[1], _mm256_madd_epi16(bsums, second));
            } else {
                let both = _mm256_set1_epi16(B::OFFSET);
                halves[0] = _mm256_sub_epi32(halves[0], _mm256_madd_epi16(bsums, both));
            }
        }
        let (d_a, s) = (load_f32(x.d), load_f32(x.s));
        match (B::HALVES, B::MINS) {
            (true, _) => add::<true, false>(scales, d_a, s, halves, lanes),
            (_, true) => add::<false, true>(scales, d_a, s, halves, lanes),
            _ => add::<false, false>(scales, d_a, s, halves, lanes),
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn mask(lanes: [i32; 8]) -> __m256 {
    let [a, b, c, d, e, f, g, h] = lanes;
    _mm256_castsi256_ps(_mm256_setr_epi32(a, b, c, d, e, f, g, h))
}

//! Formats whose activations go in super-blocks of 256 (Q8_K).
//!
//! `maddubs` wants one side unsigned. Where weights have an offset (Q6_K's is 32) they are taken without, and
//! it is a "min" of the offset times the scale, an integer as well, which the sums of activations (`bsums`)
//! turn into one multiply-add. Other signed weights go in as magnitudes, activations (never -128) with their
//! signs. Products of unsigned weights and activations (at most 127) are added in i16 as far as they cannot
//! overflow (`CHAIN`), then multiplied by the sub-block's scale into i32.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::super::Tile;
use super::super::blocks::{BlockKernel, PanelKernel};
use super::super::layouts::SuperLayout;
use super::places::{Places, PlacesAhead};
use super::{
    Maddubs, Multiply, PREFETCH, in_memory, load_i8, load_i16, load_u8, opaque, prefetch, prefetch_panel,
    spread_pair, spread_quad, to_array, transpose8, widen_f16,
};
use crate::quant::arranged::{Arranged, Group};
use crate::quant::{ActivationRow, Q8KRow, QK_K};

pub(in super::super) struct SuperBlocks<B>(PhantomData<B>);

/// A super-block in registers.
#[derive(Clone, Copy)]
pub(in super::super) struct Unpacked {
    /// Weights in order, unsigned: without their offset, or magnitudes.
    pub q: [__m256i; 8],
    /// Of signed weights bytes of the same signs (zeros only where the weight is zero); otherwise anything.
    pub signs: [__m256i; 8],
    pub scales: Scales,
    /// i16: mins of the sixteen groups of 16 weights, in order; anything where there are none.
    pub group_mins: __m256i,
}

/// The scales of a super-block, as i16.
#[derive(Clone, Copy)]
pub(in super::super) struct Scales {
    /// Word `j` of each half: the scale of that half of 32 weights `j`.
    pub spread: __m256i,
    /// Scales of the sixteen groups of 16 weights, in order.
    pub groups: __m256i,
}

impl Scales {
    /// From sixteen signed bytes.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn of_16_bytes(scales: __m128i) -> Scales {
        let even_odd = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
        Scales {
            spread: opaque(_mm256_cvtepi8_epi16(_mm_shuffle_epi8(scales, even_odd))),
            groups: _mm256_cvtepi8_epi16(scales),
        }
    }

    /// From eight words, each for 32 weights.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn of_8_words(scales: __m128i) -> Scales {
        let twice = _mm256_set_m128i(_mm_unpackhi_epi16(scales, scales), _mm_unpacklo_epi16(scales, scales));
        Scales { spread: opaque(_mm256_broadcastsi128_si256(scales)), groups: twice }
    }
}

/// What is taken off beside the products.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Mins {
    None,
    /// In the scales' units, part of the integer sum.
    Integer,
    /// In units of their own (`dmin`).
    Float,
}

/// What the formats differ in.
pub(in super::super) trait SuperBlock: SuperLayout {
    const MINS: Mins = Mins::None;
    /// Weights are magnitudes with signs.
    const SIGNED: bool = false;
    /// How many products of two pairs may be added in i16: `CHAIN * 2 * max(q) * 127 < 2^15`; 1, 2, 4 or 8,
    /// which is for scales of 32 weights.
    const CHAIN: usize;
    /// Each two groups of 16 weights have the same min.
    const MINS_OF_32: bool = false;
    /// With an offset of 32 taken off, products of twice as many pairs may be added in i16 as `CHAIN` says.
    /// (On the way they may wrap; their sum does not.)
    const LESS_32: bool = false;
    /// The products of 16 weights fit i16: `16 * max(q) * 127 < 2^15`.
    const SIXTEEN_FIT: bool = false;
    /// All scales are one, and a super-block's products can be added in i16.
    const NO_SCALES: bool = false;
    /// There is a quicker way to unpack eight rows than one by one: [`SuperBlock::unpack_eight`].
    const EIGHT: bool = false;

    /// Inlined always, whatever its length (which functions with features of their own cannot be), so that
    /// weights stay in registers.
    ///
    /// # Safety
    /// The CPU must have the features of this kernel set, and `places` be this block's.
    unsafe fn unpack(&self, places: &Places) -> Unpacked;

    /// Unpacks a super-block of eight rows.
    ///
    /// # Safety
    /// The CPU must have the features of this kernel set.
    #[inline(always)]
    unsafe fn unpack_eight(_: [&Self; 8], _: &mut EightRows) {}

    /// Where this block's points are, of formats that look points up.
    ///
    /// # Safety
    /// The CPU must have the features of this kernel set.
    #[inline(always)]
    unsafe fn places(&self, _to: &mut Places) {}
}

/// Masks for `_mm256_shuffle_epi8` that spread word `j` over a half.
static SPREAD: [[u8; 32]; 8] = {
    let mut masks = [[0; 32]; 8];
    let mut i = 0;
    while i < 256 {
        masks[i / 32][i % 32] = (i / 32 * 2 + i % 2) as u8;
        i += 1;
    }
    masks
};

/// Eight rows of a super-block; lane `r` (of 32 bits) belongs to row `r`.
#[derive(Clone, Copy)]
pub(in super::super) struct EightRows {
    /// Four weights each.
    pub q: [__m256i; QK_K / 4],
    /// The scale of 16 weights each, in both words.
    pub scales: [__m256i; QK_K / 16],
    /// The mins of two groups of 16 weights each, or, the first four, of two groups of 32.
    pub mins: [__m256i; QK_K / 32],
    pub d: __m256,
    /// Negative.
    pub dmin: __m256,
}

impl EightRows {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn zero() -> EightRows {
        let (zero, floats) = (_mm256_setzero_si256(), _mm256_setzero_ps());
        EightRows { q: [zero; 64], scales: [zero; 16], mins: [zero; 8], d: floats, dmin: floats }
    }

    /// Takes super-block `unit` of eight rows.
    ///
    /// # Safety
    /// The CPU must have the features of this kernel set.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn unpack<B: SuperBlock>(&mut self, rows: &[&[u8]; 8], unit: usize) {
        let blocks: [&B; 8] = array!(8, |r| &B::slice(rows[r])[unit]);
        for (block, row) in blocks.iter().zip(rows) {
            prefetch_panel(*block, row);
        }
        if B::EIGHT {
            // SAFETY: the caller vouches for the CPU.
            return unsafe { B::unpack_eight(blocks, self) };
        }
        // Written in place, for `unpacked` is not inlined.
        // SAFETY: the caller vouches for the CPU.
        let w: [Unpacked; 8] = std::array::from_fn(|r| unsafe { unpacked(blocks[r]) });
        for (j, q) in self.q.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *q = transpose8(array!(8, |r| {
                if B::SIGNED { _mm256_sign_epi8(w[r].q[j], w[r].signs[j]) } else { w[r].q[j] }
            }));
        }
        let pairs = transpose8(array!(8, |r| w[r].scales.groups));
        let both_low = _mm256_setr_epi8(
            0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13, 0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13,
            12, 13,
        );
        let both_high = _mm256_or_si256(both_low, _mm256_set1_epi8(2));
        for (g, scale) in self.scales.iter_mut().enumerate() {
            *scale = _mm256_shuffle_epi8(pairs[g / 2], if g % 2 == 0 { both_low } else { both_high });
        }
        if B::MINS != Mins::None {
            self.mins = transpose8(array!(8, |r| w[r].group_mins));
            if B::MINS_OF_32 {
                for p in 0..4 {
                    self.mins[p] = _mm256_blend_epi16::<0xaa>(self.mins[2 * p], self.mins[2 * p + 1]);
                }
            }
        }
        let d = widen_f16(array!(8, |r| blocks[r].d()[0]));
        self.d = _mm256_mul_ps(d, _mm256_set1_ps(B::UNIT));
        let dmin = widen_f16(array!(8, |r| blocks[r].d()[1]));
        self.dmin = _mm256_xor_ps(dmin, _mm256_set1_ps(-0.0));
    }
}

/// Twice eight rows, so that each activation that is spread serves two registers of weights.
impl<B: SuperBlock> PanelKernel<16> for SuperBlocks<B> {
    const TOKENS: usize = 4;
    const TOKENS_A_PANEL: usize = 128;
    const ARRANGED: bool = true;

    type Row<'a> = Q8KRow<'a>;
    type Tokens<'a> = &'a Arranged;
    type Panel = [EightRows; 2];
    type Lanes = [__m256; 2];

    #[inline(always)]
    fn row(x: ActivationRow<'_>) -> Q8KRow<'_> {
        x.q8_k()
    }

    #[inline(always)]
    fn tokens<'a>(tile: &Tile<'a>) -> &'a Arranged {
        tile.groups()
    }

    #[inline(always)]
    fn units(row_bytes: usize) -> usize {
        row_bytes / size_of::<B>()
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn no_lanes() -> [__m256; 2] {
        [_mm256_setzero_ps(); 2]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn no_panel() -> [EightRows; 2] {
        [EightRows::zero(); 2]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn unpack(rows: &[&[u8]; 16], unit: usize, panel: &mut [EightRows; 2]) {
        for (rows, to) in rows.as_chunks::<8>().0.iter().zip(panel) {
            // SAFETY: the caller vouches for the CPU.
            unsafe { to.unpack::<B>(rows, unit) };
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn accumulate<const T: usize>(
        panel: &[EightRows; 2],
        x: &&Arranged,
        first: usize,
        unit: usize,
        lanes: &mut [[__m256; 2]; T],
    ) {
        let x = x.group(unit, first);
        match (B::SIGNED, B::MINS, B::CHAIN) {
            (true, _, 1) => add_panel::<true, NONE, 1, T>(panel, x, lanes),
            (true, _, 2) => add_panel::<true, NONE, 2, T>(panel, x, lanes),
            (true, _, _) => add_panel::<true, NONE, 4, T>(panel, x, lanes),
            (_, Mins::Float, 8) => add_panel::<false, FLOAT_OF_32, 8, T>(panel, x, lanes),
            (_, Mins::Float, _) if B::MINS_OF_32 => add_panel::<false, FLOAT_OF_32, 4, T>(panel, x, lanes),
            (_, Mins::Float, _) => add_panel::<false, FLOAT, 4, T>(panel, x, lanes),
            (_, _, 2) if B::LESS_32 => add_panel::<false, LESS_32, 4, T>(panel, x, lanes),
            (_, _, 2) => add_panel::<false, INTEGER, 2, T>(panel, x, lanes),
            _ => add_panel::<false, INTEGER, 4, T>(panel, x, lanes),
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn finish(lanes: &[__m256; 2]) -> [f32; 16] {
        let mut all = [0.0; 16];
        for (to, lanes) in all.as_chunks_mut::<8>().0.iter_mut().zip(lanes) {
            *to = to_array(*lanes);
        }
        all
    }
}

impl<B: SuperBlock> BlockKernel<16> for SuperBlocks<B> {
    // Measured on Zen 4, as those of the AVX-512 set: what a panel costs to unpack differs most.
    const PANEL_TOKENS: usize = match (B::EIGHT, B::MINS) {
        (true, Mins::None) => 4,
        (true, _) => 2,
        _ if B::NO_SCALES => 16,
        _ => 6,
    };

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dots<const T: usize>(weights: &[u8], x: [Q8KRow<'_>; T]) -> [f32; T] {
        // SAFETY: the caller vouches for the CPU.
        unsafe { dots::<B, Maddubs, T>(weights, x) }
    }
}

/// The dots of a row of weights with `T` rows of activations.
///
/// # Safety
/// The CPU must have the features of this kernel set and of `M`, and the caller be compiled for them.
#[inline(always)]
pub(in super::super) unsafe fn dots<B: SuperBlock, M: Multiply, const T: usize>(
    weights: &[u8],
    x: [Q8KRow<'_>; T],
) -> [f32; T] {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let blocks = B::slice(weights);
        let n = blocks.len();
        let x = array!(T, |t| {
            let (qs, bsums) = (x[t].qs.as_chunks::<QK_K>().0, x[t].bsums.as_chunks::<16>().0);
            (&qs[..n], &bsums[..n], &x[t].d[..n])
        });
        let mut acc = [_mm_setzero_ps(); T];
        // A block's products are added up while the next one's are computed: a chain of operations that the
        // CPU else waits for. Before the first there are none, of scale zero.
        let (zero, float) = (_mm256_setzero_si256(), _mm_setzero_ps());
        let mut held = [Products { sum: zero, mins: zero, scale: float }; T];
        let mut places = PlacesAhead::new(blocks);
        for (b, block) in blocks.iter().enumerate() {
            prefetch(block, PREFETCH);
            let w = block.unpack(places.of(blocks, b));
            let d = d_pair(block);
            for (t, (qs, bsums, d_a)) in x.iter().enumerate() {
                let before = held[t];
                held[t] = products::<B, M>(&w, d, &qs[b], &bsums[b], d_a[b]);
                acc[t] = add_products::<B>(before, acc[t]);
            }
        }
        array!(T, |t| _mm_cvtss_f32(add_products::<B>(held[t], acc[t])))
    }
}

/// [`Mins`] as numbers, for generic functions.
const NONE: u8 = Mins::None as u8;
const INTEGER: u8 = Mins::Integer as u8;
const FLOAT: u8 = Mins::Float as u8;
/// [`Mins::Float`], each for 32 weights.
pub(in super::super) const FLOAT_OF_32: u8 = FLOAT + 1;
/// No mins but an offset of 32.
const LESS_32: u8 = FLOAT + 2;

/// Adds a panel's products with a group of tokens to their lanes: the same for all formats of a kind, and
/// compiled once for them.
#[inline(never)]
#[allow(clippy::needless_range_loop)] // registers of tokens and panels, by number
#[target_feature(enable = "avx2,fma,f16c")]
fn add_panel<const SIGNED: bool, const MINS: u8, const CHAIN: usize, const T: usize>(
    panel: &[EightRows; 2],
    x: &Group<T>,
    lanes: &mut [[__m256; 2]; T],
) {
    let none = [[_mm256_setzero_si256(); 2]; T];
    let mut sum = none;
    for c in 0..QK_K / 4 / CHAIN {
        // The products of a chain and what they are made of take the registers.
        in_memory(&mut sum);
        let mut products = none;
        if MINS == LESS_32 {
            for t in 0..T {
                products[t] = [spread_pair(x.less_32[c][t]); 2];
            }
        }
        unrolled!(CHAIN, |I| {
            let k = c * CHAIN + I;
            let q = array!(2, |h| panel[h].q[k]);
            let magnitude = if SIGNED { array!(2, |h| _mm256_abs_epi8(q[h])) } else { q };
            for t in 0..T {
                let x = spread_quad(x.quads[k][t]);
                for h in 0..2 {
                    let x = if SIGNED { _mm256_sign_epi8(x, q[h]) } else { x };
                    let product = _mm256_maddubs_epi16(magnitude[h], x);
                    // Else the compiler would make all products of a token before it adds them up: more than
                    // registers hold.
                    products[t][h] = if I != 0 || MINS == LESS_32 {
                        opaque(_mm256_add_epi16(products[t][h], product))
                    } else {
                        product
                    };
                }
            }
        });
        for h in 0..2 {
            let scale = panel[h].scales[c * CHAIN / 4];
            for t in 0..T {
                sum[t][h] = _mm256_add_epi32(sum[t][h], _mm256_madd_epi16(products[t][h], scale));
            }
        }
    }
    add_sums::<MINS, T>(panel, x, &sum, lanes);
}

/// Adds the sums of a super-block's products, and its mins, to the lanes of some tokens.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn add_sums<const MINS: u8, const T: usize>(
    panel: &[EightRows; 2],
    x: &Group<T>,
    sum: &[[__m256i; 2]; T],
    lanes: &mut [[__m256; 2]; T],
) {
    for t in 0..T {
        let d_a = _mm256_set1_ps(x.d[t]);
        for (h, rows) in panel.iter().enumerate() {
            let min_sum = match MINS {
                NONE | LESS_32 => _mm256_setzero_si256(),
                FLOAT_OF_32 => sum_of_mins(&rows.mins, &x.sums_of_32, t),
                _ => sum_of_mins(&rows.mins, &x.sums_of_16, t),
            };
            let (sum, lanes) = (sum[t][h], &mut lanes[t][h]);
            let sum = if MINS == INTEGER { _mm256_sub_epi32(sum, min_sum) } else { sum };
            *lanes = _mm256_fmadd_ps(_mm256_mul_ps(rows.d, d_a), _mm256_cvtepi32_ps(sum), *lanes);
            if MINS == FLOAT || MINS == FLOAT_OF_32 {
                let min_scale = _mm256_mul_ps(rows.dmin, d_a);
                *lanes = _mm256_fmadd_ps(min_scale, _mm256_cvtepi32_ps(min_sum), *lanes);
            }
        }
    }
}

/// The sum of the mins times the sums of token `t`'s activations.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum_of_mins<const T: usize, const PAIRS: usize>(
    mins: &[__m256i; QK_K / 32],
    sums: &[[[i16; 2]; T]; PAIRS],
    t: usize,
) -> __m256i {
    let mut sum = _mm256_setzero_si256();
    for (mins, sums) in mins.iter().zip(sums) {
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(*mins, spread_pair(sums[t])));
    }
    sum
}

/// Not inlined: panels are unpacked seldom.
///
/// # Safety
/// The CPU must have the features of this kernel set.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpacked<B: SuperBlock>(block: &B) -> Unpacked {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let blocks = std::slice::from_ref(block);
        block.unpack(PlacesAhead::new(blocks).of(blocks, 0))
    }
}

/// One super-block's products, not yet added up.
#[derive(Clone, Copy)]
struct Products {
    sum: __m256i,
    /// The mins'.
    mins: __m256i,
    /// `[d, -dmin, ..]` times the activations'.
    scale: __m128,
}

/// The products of a super-block; `d` is `[d, -dmin, ..]`.
///
/// # Safety
/// As [`dots`].
#[inline(always)]
unsafe fn products<B: SuperBlock, M: Multiply>(
    w: &Unpacked,
    d: __m128,
    qs: &[i8; QK_K],
    bsums: &[i16; 16],
    d_a: f32,
) -> Products {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let (qs, _) = qs.as_chunks::<32>();
        let mut sum = _mm256_setzero_si256();
        for j in 0..8 {
            let x = load_i8(&qs[j]);
            let x = if B::SIGNED { _mm256_sign_epi8(x, w.signs[j]) } else { x };
            let products = _mm256_maddubs_epi16(w.q[j], x);
            if B::NO_SCALES {
                sum = _mm256_add_epi16(sum, products);
            } else {
                let scale = _mm256_shuffle_epi8(w.scales.spread, opaque(load_u8(&SPREAD[j])));
                sum = M::add_pairs(sum, products, scale);
            }
        }
        if B::NO_SCALES {
            sum = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
        }
        let mut mins = _mm256_setzero_si256();
        if B::MINS != Mins::None {
            mins = _mm256_madd_epi16(w.group_mins, load_i16(bsums));
        }
        if B::MINS == Mins::Integer {
            sum = _mm256_sub_epi32(sum, mins);
        }
        Products { sum, mins, scale: _mm_mul_ps(d, _mm_set1_ps(d_a)) }
    }
}

/// Adds one super-block's dot to the lowest lane of `acc`.
///
/// # Safety
/// As [`dots`].
#[inline(always)]
unsafe fn add_products<B: SuperBlock>(Products { sum, mins, scale }: Products, acc: __m128) -> __m128 {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let halves = |v| _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
        if B::MINS == Mins::Float {
            let (s, m) = (halves(sum), halves(mins));
            let twos = _mm_add_epi32(_mm_unpacklo_epi64(s, m), _mm_unpackhi_epi64(s, m));
            // [sum, sum, min_sum, min_sum]
            let sums = _mm_cvtepi32_ps(_mm_add_epi32(twos, _mm_shuffle_epi32::<0b10_11_00_01>(twos)));
            let acc = _mm_fmadd_ss(scale, sums, acc);
            return _mm_fmadd_ss(_mm_movehdup_ps(scale), _mm_movehl_ps(sums, sums), acc);
        }
        let fours = halves(sum);
        let twos = _mm_add_epi32(fours, _mm_shuffle_epi32::<0b00_00_11_10>(fours));
        let one = _mm_add_epi32(twos, _mm_shuffle_epi32::<0b00_00_00_01>(twos));
        _mm_fmadd_ss(scale, _mm_cvtepi32_ps(one), acc)
    }
}

/// `[d, -dmin, ..]`
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn d_pair<B: SuperBlock>(block: &B) -> __m128 {
    let d = block.d();
    let pair = i32::from_le_bytes([d[0][0], d[0][1], d[1][0], d[1][1]]);
    let pair = _mm_cvtph_ps(_mm_cvtsi32_si128(pair));
    let pair = if B::MINS == Mins::Float { _mm_xor_ps(pair, _mm_setr_ps(0.0, -0.0, 0.0, 0.0)) } else { pair };
    if B::UNIT == 1.0 { pair } else { _mm_mul_ps(pair, _mm_set1_ps(B::UNIT)) }
}

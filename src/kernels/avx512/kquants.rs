//! Q4_K, Q5_K and Q6_K with Q8_K.
//!
//! Weights are taken as unsigned, as `vpdpbusd` wants them: Q6_K's offset of 32 is a "min" of `32 * scale`,
//! an integer as well, which the sums of activations (`bsums`) turn into one multiply-add.
//!
//! A row's super-blocks are taken in fours: their heads are unpacked together and their integers summed up
//! over the lanes together; then come the float steps, block by block as they are defined. `unpack` has how
//! the formats differ.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::super::avx2::{self, FLOAT_OF_32};
use super::super::blocks::{BlockKernel, PanelKernel};
use super::super::{OutTile, Tile};
use super::blocks32::add_quads;
use super::super_blocks::{INTEGER, add_sums};
use super::unpack::{Heads, Panel, SuperBlock};
use super::{
    PANEL_ROWS, add_pair, add_pairs, load_4_f32, load_16_i16, load_32_i16, load_64_i8, prefetch,
    prefetch_rows, sum_quarters, to_array,
};
use crate::quant::arranged::{Arranged, Group};
use crate::quant::{ActivationRow, Q8KRow, QK_K};

/// Where a CPU works on 512 bits in halves (`IN_HALVES`), a product of i32 takes no longer than those of
/// pairs of i16, and panels need not make sums fit these.
pub(in super::super) struct KQuant<B, const IN_HALVES: bool>(PhantomData<B>);

/// Four super-blocks of activations.
#[derive(Clone, Copy)]
struct Four<'a> {
    qs: &'a [[i8; QK_K]; 4],
    bsums: &'a [[i16; 16]; 4],
    d: &'a [f32; 4],
}

impl<'a> Four<'a> {
    /// The four from super-block `at` of a row on.
    ///
    /// # Panics
    /// Where there are fewer.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn of(x: Q8KRow<'a>, at: usize) -> Four<'a> {
        let four = (
            x.qs.as_chunks().0[at..].first_chunk(),
            x.bsums.as_chunks().0[at..].first_chunk(),
            x.d[at..].first_chunk(),
        );
        let (Some(qs), Some(bsums), Some(d)) = four else { unreachable!("as many activations as weights") };
        Four { qs, bsums, d }
    }
}

impl<B: SuperBlock, const IN_HALVES: bool> PanelKernel<16> for KQuant<B, IN_HALVES> {
    const TOKENS: usize = 8;
    const TOKENS_A_PANEL: usize = 256;
    const ARRANGED: bool = true;

    type Row<'a> = Q8KRow<'a>;
    type Tokens<'a> = &'a Arranged;
    type Panel = Panel;
    type Lanes = __m512;

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
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn no_lanes() -> __m512 {
        _mm512_setzero_ps()
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn no_panel() -> Panel {
        let (zero, floats) = (_mm512_setzero_si512(), _mm512_setzero_ps());
        let next = [std::ptr::null(); PANEL_ROWS];
        Panel { q: [zero; 64], scales: [zero; 16], mins: [zero; 8], d: floats, dmin: floats, next }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn unpack(rows: &[&[u8]; 16], unit: usize, panel: &mut Panel) {
        let blocks: [&B; 16] = array!(16, |r| &B::slice(rows[r])[unit]);
        for ((block, row), next) in blocks.iter().zip(rows).zip(&mut panel.next) {
            *next = std::ptr::from_ref(*block).cast::<i8>().wrapping_add(PANEL_ROWS * row.len());
        }
        // SAFETY: the caller vouches for the CPU.
        unsafe { B::panel(blocks, panel) };
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn accumulate<const T: usize>(
        panel: &Panel,
        x: &&Arranged,
        first: usize,
        unit: usize,
        lanes: &mut [__m512; T],
    ) {
        let is_first = first.is_multiple_of(Self::TOKENS_A_PANEL);
        let x = x.group::<T>(unit, first);
        let zero = _mm512_setzero_si512();
        let less_8 = B::LESS_8 && !IN_HALVES;
        let mut sum = if less_8 { sums_of_8::<T>(panel, x) } else { [zero; T] };
        let quads = x.quads.as_chunks::<4>().0;
        for (c, chain) in panel.q.chunks_exact(B::CHAIN).enumerate() {
            let mut products =
                if less_8 { array!(T, |t| _mm512_set1_epi32(x.less_8[c][t])) } else { [zero; T] };
            // A few at a time: all at once they would hold up what comes after, and the memory would rest while
            // products are computed.
            if is_first {
                prefetch_rows::<B>(&panel.next[c * B::CHAIN / 4..][..B::CHAIN / 4]);
            }
            let x = quads[c * B::CHAIN / 4..].iter();
            for (q, x) in chain.as_chunks::<4>().0.iter().zip(x) {
                add_quads(&mut products, q, x);
            }
            let scale = panel.scales[c * B::CHAIN / B::QUADS];
            for t in 0..T {
                sum[t] = if less_8 {
                    // The high words of scales, below 64, are zero.
                    add_pairs(sum[t], products[t], scale)
                } else {
                    _mm512_add_epi32(sum[t], _mm512_mullo_epi32(products[t], scale))
                };
            }
        }
        if B::FLOAT_MINS {
            add_sums::<FLOAT_OF_32, T>(panel, x, &sum, lanes);
        } else {
            add_sums::<INTEGER, T>(panel, x, &sum, lanes);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn finish(lanes: &__m512) -> [f32; 16] {
        to_array(*lanes)
    }
}

/// Scales times 8 times sums of activations: what a sum lacks whose weights are taken as less by 8.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn sums_of_8<const T: usize>(panel: &Panel, x: &Group<T>) -> [__m512i; T] {
    let mut sum = [_mm512_setzero_si512(); T];
    for (scales, sums) in panel.scales.as_chunks::<2>().0.iter().zip(&x.sums_of_32) {
        let pair = _mm512_or_si512(scales[0], _mm512_slli_epi32::<16>(scales[1]));
        let eight_times = _mm512_slli_epi16::<3>(pair);
        for t in 0..T {
            sum[t] = add_pair(sum[t], eight_times, &sums[t]);
        }
    }
    sum
}

impl<B: SuperBlock, const IN_HALVES: bool> BlockKernel<16> for KQuant<B, IN_HALVES> {
    const PANEL_TOKENS: usize = if B::FLOAT_MINS { 2 } else { 3 };

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn dots<const T: usize>(weights: &[u8], x: [Q8KRow<'_>; T]) -> [f32; T] {
        let blocks = B::slice(weights);
        let (fours, tail) = blocks.as_chunks::<4>();
        let mut acc = [0f32; T];
        for (i, blocks) in fours.iter().enumerate() {
            prefetch(blocks);
            let x = array!(T, |t| Four::of(x[t], 4 * i));
            // SAFETY: the caller vouches for the CPU.
            let terms = unsafe { Terms::of(blocks, x) };
            for i in 0..4 {
                terms.add(i, &mut acc);
            }
        }
        let n = tail.len();
        if let (1.., Some(last)) = (n, blocks.last_chunk::<4>()) {
            // The last four, of which the last `n` are new.
            let x = array!(T, |t| Four::of(x[t], 4 * fours.len() + n - 4));
            // SAFETY: the caller vouches for the CPU.
            let terms = unsafe { Terms::of(last, x) };
            for i in 4 - n..4 {
                terms.add(i, &mut acc);
            }
        } else if n > 0 {
            let mut blocks = [B::new_zeroed(); 4];
            blocks[..n].copy_from_slice(tail);
            for (x, acc) in x.into_iter().zip(&mut acc) {
                let x = Ends::of(x, n);
                // SAFETY: the caller vouches for the CPU.
                let terms = unsafe { Terms::of(&blocks, [x.four(3 - n)]) };
                for i in 0..n {
                    terms.add(i, std::array::from_mut(acc));
                }
            }
        }
        acc
    }

    /// Rows that are not whole fours of super-blocks, two or four at a time: together they are.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn rows_together(tile: &Tile<'_>, x: &[Q8KRow<'_>], out: &mut OutTile<'_>) -> usize {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            match *x {
                [a] => rows_of_fours::<B, 1>(tile, [a], out),
                [a, b] => rows_of_fours::<B, 2>(tile, [a, b], out),
                [a, b, c] => rows_of_fours::<B, 3>(tile, [a, b, c], out),
                _ => 0,
            }
        }
    }
}

/// Computes as many rows of a tile as are whole fours of super-blocks together, where a row is not; returns
/// how many these are.
///
/// # Safety
/// The CPU must have the features of this kernel set.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn rows_of_fours<B: SuperBlock, const T: usize>(
    tile: &Tile<'_>,
    x: [Q8KRow<'_>; T],
    out: &mut OutTile<'_>,
) -> usize {
    let n = tile.row_bytes / size_of::<B>();
    let together = match n % 4 {
        0 => return 0,
        2 => 2,
        _ => 4,
    };
    let ends = array!(T, |t| Ends::of(x[t], n));
    for (group, blocks) in B::slice(tile.weights).chunks_exact(together * n).enumerate() {
        let mut acc = [[0.0; T]; 4];
        // Where the next super-block belongs.
        let (mut row, mut at) = (0, 0);
        for blocks in blocks.as_chunks::<4>().0 {
            prefetch(blocks);
            let x = array!(T, |t| if at + 4 <= n { Four::of(x[t], at) } else { ends[t].four(at + 3 - n) });
            // SAFETY: the caller vouches for the CPU.
            let terms = unsafe { Terms::of(blocks, x) };
            for i in 0..4 {
                terms.add(i, &mut acc[row]);
                at += 1;
                if at == n {
                    (row, at) = (row + 1, 0);
                }
            }
        }
        for (r, acc) in acc[..together].iter().enumerate() {
            for (t, &dot) in acc.iter().enumerate() {
                out.set(t, together * group + r, dot);
            }
        }
    }
    tile.rows / together * together
}

/// The activations where a row ends and begins anew: its last three super-blocks and its first three. (Of a
/// shorter row, over and over.)
#[derive(Clone, Copy)]
struct Ends {
    qs: [[i8; QK_K]; 6],
    bsums: [[i16; 16]; 6],
    d: [f32; 6],
}

impl Ends {
    /// `n`, at least 1: the super-blocks of the row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn of(x: Q8KRow<'_>, n: usize) -> Ends {
        let (qs, bsums) = (x.qs.as_chunks().0, x.bsums.as_chunks().0);
        let first = 4 * n - 3;
        Ends {
            qs: array!(6, |i| qs[(first + i) % n]),
            bsums: array!(6, |i| bsums[(first + i) % n]),
            d: array!(6, |i| x.d[(first + i) % n]),
        }
    }

    /// Four from the `at`th of the six on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn four(&self, at: usize) -> Four<'_> {
        Four::of(Q8KRow { qs: self.qs.as_flattened(), bsums: self.bsums.as_flattened(), d: &self.d }, at)
    }
}

/// What four super-blocks give to the dots with `T` rows of activations.
struct Terms<const T: usize> {
    /// `[d * d_a, dmin * d_a]` of each.
    scales: [[f32; 8]; T],
    sums: [[f32; 4]; T],
    /// Where the mins are taken off in floats.
    min_sums: Option<[[f32; 4]; T]>,
}

impl<const T: usize> Terms<T> {
    /// # Safety
    /// The CPU must have the features of this kernel set.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn of<B: SuperBlock>(blocks: &[B; 4], x: [Four<'_>; T]) -> Terms<T> {
        // SAFETY: the caller vouches for the CPU.
        let (heads, sums) = unsafe {
            let heads = B::heads(blocks);
            let sums = [
                block_sums::<B, T, 0>(blocks, &heads, x),
                block_sums::<B, T, 1>(blocks, &heads, x),
                block_sums::<B, T, 2>(blocks, &heads, x),
                block_sums::<B, T, 3>(blocks, &heads, x),
            ];
            (heads, sums)
        };
        let twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
        let scales = array!(T, |t| {
            let d_a = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(load_4_f32(x[t].d)), twice);
            avx2::to_array(_mm256_mul_ps(heads.d, d_a))
        });
        let sums = array!(T, |t| to_floats(add_quarters(sum_quarters(array!(4, |i| sums[i][t])))));
        let min_sums = if B::FLOAT_MINS {
            Some(array!(T, |t| to_floats(first_of_quarters(min_sums(&heads, x[t].bsums)))))
        } else {
            None
        };
        Terms { scales, sums, min_sums }
    }

    /// Adds those of super-block `i`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn add(&self, i: usize, acc: &mut [f32; T]) {
        for t in 0..T {
            acc[t] = self.scales[t][2 * i].mul_add(self.sums[t][i], acc[t]);
            if let Some(min_sums) = &self.min_sums {
                acc[t] = (-self.scales[t][2 * i + 1]).mul_add(min_sums[t][i], acc[t]);
            }
        }
    }
}

/// Super-block `I`'s sums of scale times weight times activation, over sixteen lanes that are to be added.
///
/// # Safety
/// The CPU must have the features of this kernel set.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn block_sums<B: SuperBlock, const T: usize, const I: usize>(
    blocks: &[B; 4],
    heads: &Heads,
    x: [Four<'_>; T],
) -> [__m512i; T] {
    // SAFETY: the caller vouches for the CPU.
    let (w, scales) = unsafe { (blocks[I].unpack(), B::scales::<I>(heads)) };
    array!(T, |t| {
        let (qs, _) = x[t].qs[I].as_chunks::<64>();
        let [a, b, c, d] =
            array!(4, |j| _mm512_dpbusd_epi32(_mm512_setzero_si512(), w[j], load_64_i8(&qs[j])));
        // As i16: at most 4 * 63 * 127 = 32004.
        let sum = _mm512_madd_epi16(_mm512_packs_epi32(a, b), scales[0]);
        let sum = _mm512_dpwssd_epi32(sum, _mm512_packs_epi32(c, d), scales[1]);
        // SAFETY: the caller vouches for the CPU.
        unsafe { blocks[I].offset(sum, load_16_i16(&x[t].bsums[I])) }
    })
}

/// Mins times sums of activations: the sum over quarter `i` is super-block `i`'s.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn min_sums(heads: &Heads, bsums: &[[i16; 16]; 4]) -> __m512i {
    let (pairs, _) = bsums.as_chunks::<2>();
    let ones = _mm512_set1_epi16(1);
    let [ab, cd] = array!(2, |i| _mm512_madd_epi16(load_32_i16(&pairs[i]), ones));
    // Sums of 32 activations as i16 (at most 4064), the halves of super-blocks 0, 2, 0, 2, 1, 3, 1, 3.
    let sums = _mm512_packs_epi32(ab, cd);
    let sums = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), sums);
    let mins = _mm512_madd_epi16(_mm512_unpacklo_epi8(heads.mins, _mm512_setzero_si512()), sums);
    let twos = _mm512_add_epi32(mins, _mm512_shuffle_epi32::<0b01_00_11_10>(mins));
    _mm512_add_epi32(twos, _mm512_shuffle_epi32::<0b10_11_00_01>(twos))
}

/// The quarters added to one another.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_quarters(v: __m512i) -> __m128i {
    let halves = _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64::<1>(v));
    _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves))
}

/// The lowest lane of each quarter.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn first_of_quarters(v: __m512i) -> __m128i {
    let lanes = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm512_castsi512_si128(_mm512_permutexvar_epi32(lanes, v))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn to_floats(v: __m128i) -> [f32; 4] {
    let mut out = [0f32; 4];
    // SAFETY: 16 bytes can be written, and no alignment is asked for.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), _mm_cvtepi32_ps(v)) };
    out
}

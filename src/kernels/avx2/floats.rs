//! F32, F16 and BF16: the sixteen lanes are two registers.
//!
//! How one token's rows stream best is measured: rows of halves one after another, with memory asked for ahead in every step; rows of
//! F32 in pairs, with nothing asked for.

use std::arch::x86_64::*;

use super::super::{OutTile, Tile};
use super::{PREFETCH, load_16_bytes, load_f32, prefetch, tree8};
use crate::quant::ActivationType;

/// How sixteen weights become two registers of f32.
pub(super) trait Floats {
    const ACTIVATION: ActivationType;
    /// Whether one token's rows are read one after another, and asked for ahead.
    const AHEAD: bool;
    /// Sixteen weights, as in a file.
    type Step: Copy;
    fn steps(row: &[u8]) -> (&[Self::Step], &[u8]);
    /// The weights that are left, filled up with zeros.
    fn padded(tail: &[u8]) -> Self::Step;
    /// # Safety
    /// The CPU must have the features of this kernel set.
    unsafe fn widen(step: &Self::Step) -> [__m256; 2];
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

macro_rules! floats {
    ($name:ident, $ty:ident, $bytes:literal, $ahead:literal, |$step:ident| $widen:expr) => {
        impl Floats for $name {
            const ACTIVATION: ActivationType = ActivationType::$ty;
            const AHEAD: bool = $ahead;
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

            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn widen($step: &Self::Step) -> [__m256; 2] {
                $widen
            }
        }
    };
}

floats!(F32, F32, 4, false, |step| {
    let (halves, _) = step.as_chunks::<32>();
    array!(2, |i| _mm256_castsi256_ps(super::load_u8(&halves[i])))
});
floats!(F16, F16, 2, true, |step| {
    let (halves, _) = step.as_chunks::<16>();
    array!(2, |i| _mm256_cvtph_ps(load_16_bytes(&halves[i])))
});
floats!(Bf16, BF16, 2, true, |step| {
    let (halves, _) = step.as_chunks::<16>();
    array!(2, |i| {
        let wide = _mm256_cvtepu16_epi32(load_16_bytes(&halves[i]));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
    })
});

/// # Safety
/// The CPU must have the features of this kernel set.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn tile<F: Floats>(tile: &Tile<'_>, out: &mut OutTile<'_>) {
    let tokens = tile.x.rows();
    let mut r = 0;
    while r < tile.rows {
        // Blocks of up to 2 x 3 dots, which take 12 registers.
        let pair = !(F::AHEAD && tokens == 1) && r + 2 <= tile.rows;
        let mut t = 0;
        while t < tokens {
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                match (pair, tokens - t) {
                    (false, 1) => dots::<F, 1, 1>(tile, r, t, out),
                    (false, 2) => dots::<F, 1, 2>(tile, r, t, out),
                    (false, _) => dots::<F, 1, 3>(tile, r, t, out),
                    (true, 1) => dots::<F, 2, 1>(tile, r, t, out),
                    (true, 2) => dots::<F, 2, 2>(tile, r, t, out),
                    (true, _) => dots::<F, 2, 3>(tile, r, t, out),
                }
            }
            t += 3;
        }
        r += if pair { 2 } else { 1 };
    }
}

/// The dots of `R` rows from `first` on with `T` tokens from `start` on.
///
/// # Safety
/// The CPU must have the features of this kernel set.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots<F: Floats, const R: usize, const T: usize>(
    tile: &Tile<'_>,
    first: usize,
    start: usize,
    out: &mut OutTile<'_>,
) {
    let w = array!(R, |i| F::steps(tile.row(first + i)));
    let x = array!(T, |i| tile.x.row(start + i).floats(F::ACTIVATION).as_chunks::<16>());
    let mut acc = [[[_mm256_setzero_ps(); 2]; T]; R];
    // Four steps at a time, so that few instructions stand between loads.
    let (w_fours, x_fours) = (array!(R, |r| w[r].0.as_chunks::<4>()), array!(T, |t| x[t].0.as_chunks::<4>()));
    let n = w_fours[0].0.len();
    let (w_steps, x_steps) = (array!(R, |r| &w_fours[r].0[..n]), array!(T, |t| &x_fours[t].0[..n]));
    for k in 0..n {
        for i in 0..4 {
            if F::AHEAD && R == 1 && T == 1 {
                prefetch(&w_steps[0][k][i], PREFETCH);
            }
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                step::<F, R, T>(array!(R, |r| &w_steps[r][k][i]), array!(T, |t| &x_steps[t][k][i]), &mut acc);
            }
        }
    }
    for k in 0..w_fours[0].1.len() {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            step::<F, R, T>(array!(R, |r| &w_fours[r].1[k]), array!(T, |t| &x_fours[t].1[k]), &mut acc)
        };
    }
    if !w[0].1.is_empty() {
        let w = array!(R, |r| F::padded(w[r].1));
        let x = array!(T, |t| {
            let mut step = [0f32; 16];
            step[..x[t].1.len()].copy_from_slice(x[t].1);
            step
        });
        // SAFETY: the caller vouches for the CPU.
        unsafe { step::<F, R, T>(array!(R, |r| &w[r]), array!(T, |t| &x[t]), &mut acc) };
    }
    for (r, row) in acc.iter().enumerate() {
        for (t, [low, high]) in row.iter().enumerate() {
            out.set(start + t, first + r, tree8(_mm256_add_ps(*low, *high)));
        }
    }
}

/// One fused multiply-add in each of the sixteen lanes of every dot.
///
/// # Safety
/// The CPU must have the features of this kernel set.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn step<F: Floats, const R: usize, const T: usize>(
    w: [&F::Step; R],
    x: [&[f32; 16]; T],
    acc: &mut [[[__m256; 2]; T]; R],
) {
    // SAFETY: the caller vouches for the CPU.
    let w = array!(R, |r| unsafe { F::widen(w[r]) });
    for t in 0..T {
        let (halves, _) = x[t].as_chunks::<8>();
        let x = [load_f32(&halves[0]), load_f32(&halves[1])];
        for r in 0..R {
            for half in 0..2 {
                acc[r][t][half] = _mm256_fmadd_ps(w[r][half], x[half], acc[r][t][half]);
            }
        }
    }
}

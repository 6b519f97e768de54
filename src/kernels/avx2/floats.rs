//! F32, F16 and BF16: the sixteen lanes are two registers.
//!
//! How one token's rows stream best is measured: rows of halves one after another, with memory asked for
//! ahead in every step; rows of F32 in pairs, with nothing asked for. For many tokens weights are widened
//! once, into panels.

use std::arch::x86_64::*;

use std::marker::PhantomData;

use super::super::blocks::{self, PanelKernel, rows_from, takes_rows};
use super::super::layouts::{Bf16, F16, F32, FloatSteps};
use super::super::{OutTile, Tile};
use super::{PREFETCH, PREFETCH_ROWS, load_16_bytes, load_f32, prefetch, tree8};
use crate::quant::ActivationRow;

/// How sixteen weights become two registers of f32.
pub(super) trait Floats: FloatSteps {
    /// Whether one token's rows are read one after another, and asked for ahead.
    const AHEAD: bool;
    /// # Safety
    /// The CPU must have the features of this kernel set.
    unsafe fn widen(step: &Self::Step) -> [__m256; 2];
}

macro_rules! floats {
    ($name:ident, $ahead:literal, |$step:ident| $widen:expr) => {
        impl Floats for $name {
            const AHEAD: bool = $ahead;

            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn widen($step: &Self::Step) -> [__m256; 2] {
                $widen
            }
        }
    };
}

floats!(F32, false, |step| {
    let (halves, _) = step.as_chunks::<32>();
    array!(2, |i| _mm256_castsi256_ps(super::load_u8(&halves[i])))
});
floats!(F16, true, |step| {
    let (halves, _) = step.as_chunks::<16>();
    array!(2, |i| _mm256_cvtph_ps(load_16_bytes(&halves[i])))
});
floats!(Bf16, true, |step| {
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
    if tokens >= PANEL_TOKENS {
        // SAFETY: the caller vouches for the CPU.
        return unsafe { blocks::panels::<Panels<F>, 8>(tile, out) };
    }
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

/// Tokens from which on panels pay.
const PANEL_TOKENS: usize = 8;
/// Steps of sixteen columns in a unit of a panel.
const STEPS: usize = 32;

struct Panels<F>(PhantomData<F>);

/// Eight rows of some steps.
struct Panel {
    /// Steps there are, the last perhaps filled up with zeros.
    steps: usize,
    /// The lower and the upper eight lanes of each row's steps.
    rows: [[[__m256; STEPS]; 2]; 8],
}

impl<F: Floats> PanelKernel<8> for Panels<F> {
    const TOKENS: usize = 3;
    const TOKENS_A_PANEL: usize = 96;

    takes_rows!(8);

    type Row<'a> = &'a [f32];
    type Panel = Panel;
    /// The sixteen lanes of each row.
    type Lanes = [[__m256; 2]; 8];

    #[inline(always)]
    fn row(x: ActivationRow<'_>) -> &[f32] {
        x.floats(F::ACTIVATION)
    }

    #[inline(always)]
    fn units(row_bytes: usize) -> usize {
        row_bytes.div_ceil(STEPS * size_of::<F::Step>())
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn no_lanes() -> [[__m256; 2]; 8] {
        [[_mm256_setzero_ps(); 2]; 8]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn no_panel() -> Panel {
        Panel { steps: 0, rows: [[[_mm256_setzero_ps(); STEPS]; 2]; 8] }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn unpack(rows: &[&[u8]; 8], unit: usize, panel: &mut Panel) {
        for (row, to) in rows.iter().zip(&mut panel.rows) {
            let (steps, tail) = F::steps(&row[unit * STEPS * size_of::<F::Step>()..]);
            let whole = &steps[..steps.len().min(STEPS)];
            let mut put = |at: usize, [low, high]: [__m256; 2]| (to[0][at], to[1][at]) = (low, high);
            for (at, step) in whole.iter().enumerate() {
                prefetch(step, PREFETCH_ROWS);
                // SAFETY: the caller vouches for the CPU.
                put(at, unsafe { F::widen(step) });
            }
            panel.steps = whole.len();
            if panel.steps < STEPS && !tail.is_empty() {
                // SAFETY: as above.
                put(panel.steps, unsafe { F::widen(&F::padded(tail)) });
                panel.steps += 1;
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn accumulate<const T: usize>(
        panel: &Panel,
        x: &Vec<&[f32]>,
        first: usize,
        unit: usize,
        lanes: &mut [[[__m256; 2]; 8]; T],
    ) {
        let x = rows_from::<_, T>(x, first);
        let x = array!(T, |t| x[t][unit * STEPS * 16..].as_chunks::<16>());
        let whole = x[0].0.len().min(panel.steps);
        let steps = array!(T, |t| &x[t].0[..whole]);
        let tails = array!(T, |t| {
            let mut tail = [0f32; 16];
            if whole < panel.steps {
                tail[..x[t].1.len()].copy_from_slice(x[t].1);
            }
            tail
        });
        // Half of the lanes at a time, for blocks of 4 x 3 dots in 12 registers: fewer loads than whole ones
        // in blocks of 2 x 3.
        for (first, half) in [(0, 0), (0, 1), (4, 0), (4, 1)] {
            let w = array!(4, |r| &panel.rows[first + r][half]);
            let mut acc = array!(4, |r| array!(T, |t| lanes[t][first + r][half]));
            for k in 0..whole {
                let x = array!(T, |t| load_f32(&steps[t][k].as_chunks().0[half]));
                multiply(array!(4, |r| w[r][k]), x, &mut acc);
            }
            if whole < panel.steps {
                let x = array!(T, |t| load_f32(&tails[t].as_chunks().0[half]));
                multiply(array!(4, |r| w[r][whole]), x, &mut acc);
            }
            for r in 0..4 {
                for t in 0..T {
                    lanes[t][first + r][half] = acc[r][t];
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn finish(lanes: &[[__m256; 2]; 8]) -> [f32; 8] {
        array!(8, |r| tree8(_mm256_add_ps(lanes[r][0], lanes[r][1])))
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

/// One fused multiply-add of eight lanes of every dot.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn multiply<const R: usize, const T: usize>(w: [__m256; R], x: [__m256; T], acc: &mut [[__m256; T]; R]) {
    for r in 0..R {
        for t in 0..T {
            acc[r][t] = _mm256_fmadd_ps(w[r], x[t], acc[r][t]);
        }
    }
}

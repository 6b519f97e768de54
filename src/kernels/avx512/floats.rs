//! F32, F16 and BF16: the sixteen lanes are one register. For many tokens weights are widened once, into
//! panels.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::super::blocks::{self, PanelKernel, rows_from, takes_rows};
use super::super::layouts::{Bf16, F16, F32, FloatSteps};
use super::super::{OutTile, Tile};
use super::{load_16_f32, load_32_bytes, load_64_bytes, prefetch, tree16};
use crate::quant::ActivationRow;

/// How sixteen weights become a register of f32.
pub(super) trait Floats: FloatSteps {
    /// # Safety
    /// The CPU must have the features of this kernel set.
    unsafe fn widen(step: &Self::Step) -> __m512;
}

macro_rules! floats {
    ($name:ident, |$step:ident| $widen:expr) => {
        impl Floats for $name {
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            unsafe fn widen($step: &Self::Step) -> __m512 {
                $widen
            }
        }
    };
}

floats!(F32, |step| _mm512_castsi512_ps(load_64_bytes(step)));
floats!(F16, |step| _mm512_cvtph_ps(load_32_bytes(step)));
floats!(Bf16, |step| {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(load_32_bytes(step))))
});

/// # Safety
/// The CPU must have the features of this kernel set.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn tile<F: Floats>(tile: &Tile<'_>, out: &mut OutTile<'_>) {
    let tokens = tile.x.rows();
    if tokens >= PANEL_TOKENS {
        // SAFETY: the caller vouches for the CPU.
        return unsafe { blocks::panels::<Panels<F>, ROWS>(tile, out) };
    }
    let mut r = 0;
    while r < tile.rows {
        // Rows one after another for one token, as memory streams best; else blocks of 4 x 6 dots, which take
        // 24 of the 32 registers.
        let four = tokens > 1 && r + 4 <= tile.rows;
        let mut t = 0;
        while t < tokens {
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                t += match (four, tokens - t) {
                    (false, 1) => dots::<F, 1, 1>(tile, r, t, out),
                    (false, 2..4) => dots::<F, 1, 2>(tile, r, t, out),
                    (false, _) => dots::<F, 1, 4>(tile, r, t, out),
                    (true, 1) => dots::<F, 4, 1>(tile, r, t, out),
                    (true, 2..4) => dots::<F, 4, 2>(tile, r, t, out),
                    (true, 4..6) => dots::<F, 4, 4>(tile, r, t, out),
                    (true, _) => dots::<F, 4, 6>(tile, r, t, out),
                }
            }
        }
        r += if four { 4 } else { 1 };
    }
}

/// Tokens from which on panels pay.
const PANEL_TOKENS: usize = 16;
/// Rows of a panel.
const ROWS: usize = 8;
/// Steps of sixteen columns in a unit of a panel.
const STEPS: usize = 32;

struct Panels<F>(PhantomData<F>);

/// Eight rows of some steps.
struct Panel {
    /// Steps there are, the last perhaps filled up with zeros.
    steps: usize,
    rows: [[__m512; STEPS]; ROWS],
}

impl<F: Floats> PanelKernel<ROWS> for Panels<F> {
    // All rows with three tokens take 24 of the 32 registers.
    const TOKENS: usize = 3;
    const TOKENS_A_PANEL: usize = 96;

    takes_rows!(8);

    type Row<'a> = &'a [f32];
    type Panel = Panel;
    /// The sixteen lanes of each row.
    type Lanes = [__m512; ROWS];

    #[inline(always)]
    fn row(x: ActivationRow<'_>) -> &[f32] {
        x.floats(F::ACTIVATION)
    }

    #[inline(always)]
    fn units(row_bytes: usize) -> usize {
        row_bytes.div_ceil(STEPS * size_of::<F::Step>())
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn no_lanes() -> [__m512; ROWS] {
        [_mm512_setzero_ps(); ROWS]
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn no_panel() -> Panel {
        Panel { steps: 0, rows: [[_mm512_setzero_ps(); STEPS]; ROWS] }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn unpack(rows: &[&[u8]; ROWS], unit: usize, panel: &mut Panel) {
        for (row, to) in rows.iter().zip(&mut panel.rows) {
            let (steps, tail) = F::steps(&row[unit * STEPS * size_of::<F::Step>()..]);
            let whole = &steps[..steps.len().min(STEPS)];
            for (step, to) in whole.iter().zip(&mut *to) {
                prefetch(step);
                // SAFETY: the caller vouches for the CPU.
                *to = unsafe { F::widen(step) };
            }
            panel.steps = whole.len();
            if panel.steps < STEPS && !tail.is_empty() {
                // SAFETY: as above.
                to[panel.steps] = unsafe { F::widen(&F::padded(tail)) };
                panel.steps += 1;
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn accumulate<const T: usize>(
        panel: &Panel,
        x: &Vec<&[f32]>,
        first: usize,
        unit: usize,
        lanes: &mut [[__m512; ROWS]; T],
    ) {
        let x = rows_from::<_, T>(x, first);
        let x = array!(T, |t| x[t][unit * STEPS * 16..].as_chunks::<16>());
        let whole = x[0].0.len().min(panel.steps);
        let steps = array!(T, |t| &x[t].0[..whole]);
        let w = array!(ROWS, |r| &panel.rows[r][..panel.steps]);
        let mut acc = *lanes;
        for k in 0..whole {
            multiply(array!(ROWS, |r| w[r][k]), array!(T, |t| &steps[t][k]), &mut acc);
        }
        if whole < panel.steps {
            let tails = array!(T, |t| {
                let mut tail = [0f32; 16];
                tail[..x[t].1.len()].copy_from_slice(x[t].1);
                tail
            });
            multiply(array!(ROWS, |r| w[r][whole]), array!(T, |t| &tails[t]), &mut acc);
        }
        *lanes = acc;
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn finish(lanes: &[__m512; ROWS]) -> [f32; ROWS] {
        array!(8, |r| tree16(lanes[r]))
    }
}

/// One fused multiply-add in each lane of every row and token.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn multiply<const T: usize>(w: [__m512; ROWS], x: [&[f32; 16]; T], acc: &mut [[__m512; ROWS]; T]) {
    let x = array!(T, |t| load_16_f32(x[t]));
    for r in 0..ROWS {
        for t in 0..T {
            acc[t][r] = _mm512_fmadd_ps(w[r], x[t], acc[t][r]);
        }
    }
}

/// The dots of `R` rows from `first` on with `T` tokens from `start` on; returns `T`.
///
/// # Safety
/// The CPU must have the features of this kernel set.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn dots<F: Floats, const R: usize, const T: usize>(
    tile: &Tile<'_>,
    first: usize,
    start: usize,
    out: &mut OutTile<'_>,
) -> usize {
    let w = array!(R, |i| F::steps(tile.row(first + i)));
    let x = array!(T, |i| tile.x.row(start + i).floats(F::ACTIVATION).as_chunks::<16>());
    let mut acc = [[_mm512_setzero_ps(); T]; R];
    let n = w[0].0.len();
    let (w_steps, x_steps) = (array!(R, |r| &w[r].0[..n]), array!(T, |t| &x[t].0[..n]));
    for k in 0..n {
        if R == 1 {
            prefetch(&w_steps[0][k]);
        }
        // SAFETY: the caller vouches for the CPU.
        unsafe { step::<F, R, T>(array!(R, |r| &w_steps[r][k]), array!(T, |t| &x_steps[t][k]), &mut acc) };
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
        for (t, lanes) in row.iter().enumerate() {
            out.set(start + t, first + r, tree16(*lanes));
        }
    }
    T
}

/// One fused multiply-add in each of the sixteen lanes of every dot.
///
/// # Safety
/// The CPU must have the features of this kernel set.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn step<F: Floats, const R: usize, const T: usize>(
    w: [&F::Step; R],
    x: [&[f32; 16]; T],
    acc: &mut [[__m512; T]; R],
) {
    // SAFETY: the caller vouches for the CPU.
    let w = array!(R, |r| unsafe { F::widen(w[r]) });
    for t in 0..T {
        let x = load_16_f32(x[t]);
        for r in 0..R {
            acc[r][t] = _mm512_fmadd_ps(w[r], x, acc[r][t]);
        }
    }
}

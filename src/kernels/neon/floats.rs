//! F32, F16 and BF16: the sixteen lanes are four registers. For many tokens weights are widened once, into
//! panels.

use std::arch::aarch64::*;
use std::marker::PhantomData;

use super::super::blocks::{self, PanelKernel, rows_from, takes_rows};
use super::super::layouts::{Bf16, F16, F32, FloatSteps};
use super::super::{OutTile, Tile};
use super::{load_at, load_f32, tree8, widen_f16};
use crate::quant::ActivationRow;

/// How sixteen weights become four registers of f32.
pub(super) trait Floats: FloatSteps {
    /// # Safety
    /// The CPU must have NEON.
    unsafe fn widen(step: &Self::Step) -> [float32x4_t; 4];
}

macro_rules! floats {
    ($name:ident, |$step:ident| $widen:expr) => {
        impl Floats for $name {
            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn widen($step: &Self::Step) -> [float32x4_t; 4] {
                $widen
            }
        }
    };
}

floats!(F32, |step| array!(4, |i| vreinterpretq_f32_u8(load_at(step, i))));
floats!(F16, |step| {
    let [a, b] = array!(2, |i| widen_f16(load_at(step, i)));
    [a[0], a[1], b[0], b[1]]
});
floats!(Bf16, |step| {
    let [a, b] = array!(2, |i| vreinterpretq_u16_u8(load_at(step, i)));
    let (c, d) = (vshll_high_n_u16::<16>(a), vshll_high_n_u16::<16>(b));
    let wide = [vshll_n_u16::<16>(vget_low_u16(a)), c, vshll_n_u16::<16>(vget_low_u16(b)), d];
    array!(4, |i| vreinterpretq_f32_u32(wide[i]))
});

/// # Safety
/// The CPU must have NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn tile<F: Floats>(tile: &Tile<'_>, out: &mut OutTile<'_>) {
    let tokens = tile.x.rows();
    if tokens >= PANEL_TOKENS {
        // SAFETY: the caller vouches for the CPU.
        return unsafe { blocks::panels::<Panels<F>, 8>(tile, out) };
    }
    for r in 0..tile.rows {
        let mut t = 0;
        while t < tokens {
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                match tokens - t {
                    1 => dots::<F, 1>(tile, r, t, out),
                    2 => dots::<F, 2>(tile, r, t, out),
                    3 => dots::<F, 3>(tile, r, t, out),
                    _ => dots::<F, 4>(tile, r, t, out),
                }
            }
            t += 4;
        }
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
    /// `[row][quarter of the lanes][step]`
    rows: [[[float32x4_t; STEPS]; 4]; 8],
}

impl<F: Floats> PanelKernel<8> for Panels<F> {
    const TOKENS: usize = 4;
    const TOKENS_A_PANEL: usize = 96;

    takes_rows!(8);

    type Row<'a> = &'a [f32];
    type Panel = Panel;
    /// The sixteen lanes of each row.
    type Lanes = [[float32x4_t; 4]; 8];

    #[inline(always)]
    fn row(x: ActivationRow<'_>) -> &[f32] {
        x.floats(F::ACTIVATION)
    }

    #[inline(always)]
    fn units(row_bytes: usize) -> usize {
        row_bytes.div_ceil(STEPS * size_of::<F::Step>())
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn no_lanes() -> [[float32x4_t; 4]; 8] {
        [[vdupq_n_f32(0.0); 4]; 8]
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn no_panel() -> Panel {
        Panel { steps: 0, rows: [[[vdupq_n_f32(0.0); STEPS]; 4]; 8] }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn unpack(rows: &[&[u8]; 8], unit: usize, panel: &mut Panel) {
        for (row, to) in rows.iter().zip(&mut panel.rows) {
            let (steps, tail) = F::steps(&row[unit * STEPS * size_of::<F::Step>()..]);
            let whole = &steps[..steps.len().min(STEPS)];
            let mut put = |at: usize, step: [float32x4_t; 4]| (0..4).for_each(|i| to[i][at] = step[i]);
            for (at, step) in whole.iter().enumerate() {
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
    #[target_feature(enable = "neon")]
    unsafe fn accumulate<const T: usize>(
        panel: &Panel,
        x: &Vec<&[f32]>,
        first: usize,
        unit: usize,
        lanes: &mut [[[float32x4_t; 4]; 8]; T],
    ) {
        let x = rows_from::<_, T>(x, first);
        let x = array!(T, |t| x[t][unit * STEPS * 16..].as_chunks::<16>());
        let whole = x[0].0.len().min(panel.steps);
        let steps = array!(T, |t| &x[t].0[..whole]);
        let tails = array!(T, |t| padded(if whole < panel.steps { x[t].1 } else { &[] }));
        // A quarter of the lanes at a time, for blocks of 4 x 4 dots in 16 registers.
        for i in 0..8 {
            let (first, quarter) = (i / 4 * 4, i % 4);
            let w = array!(4, |r| &panel.rows[first + r][quarter]);
            let mut acc = array!(4, |r| array!(T, |t| lanes[t][first + r][quarter]));
            for k in 0..whole {
                let x = array!(T, |t| load_f32(&steps[t][k].as_chunks().0[quarter]));
                multiply(array!(4, |r| w[r][k]), x, &mut acc);
            }
            if whole < panel.steps {
                let x = array!(T, |t| load_f32(&tails[t].as_chunks().0[quarter]));
                multiply(array!(4, |r| w[r][whole]), x, &mut acc);
            }
            for r in 0..4 {
                for t in 0..T {
                    lanes[t][first + r][quarter] = acc[r][t];
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn finish(lanes: &[[float32x4_t; 4]; 8]) -> [f32; 8] {
        array!(8, |r| tree16(lanes[r]))
    }
}

/// [`crate::quant::tree16`] of the lanes.
#[inline]
#[target_feature(enable = "neon")]
fn tree16([a, b, c, d]: [float32x4_t; 4]) -> f32 {
    tree8(vaddq_f32(a, c), vaddq_f32(b, d))
}

/// Less than sixteen values, filled up with zeros.
#[inline(always)]
fn padded(tail: &[f32]) -> [f32; 16] {
    let mut step = [0f32; 16];
    step[..tail.len()].copy_from_slice(tail);
    step
}

/// The dots of row `r` with `T` tokens from `start` on.
///
/// # Safety
/// The CPU must have NEON.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn dots<F: Floats, const T: usize>(tile: &Tile<'_>, r: usize, start: usize, out: &mut OutTile<'_>) {
    let (steps, tail) = F::steps(tile.row(r));
    let x = array!(T, |t| tile.x.row(start + t).floats(F::ACTIVATION).as_chunks::<16>());
    let x_steps = array!(T, |t| &x[t].0[..steps.len()]);
    let mut acc = [[vdupq_n_f32(0.0); 4]; T];
    for (k, w) in steps.iter().enumerate() {
        // SAFETY: the caller vouches for the CPU.
        unsafe { step::<F, T>(w, array!(T, |t| &x_steps[t][k]), &mut acc) };
    }
    if !tail.is_empty() {
        let x = array!(T, |t| padded(x[t].1));
        // SAFETY: as above.
        unsafe { step::<F, T>(&F::padded(tail), array!(T, |t| &x[t]), &mut acc) };
    }
    for (t, lanes) in acc.into_iter().enumerate() {
        out.set(start + t, r, tree16(lanes));
    }
}

/// One fused multiply-add in each of the sixteen lanes of every dot.
///
/// # Safety
/// The CPU must have NEON.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn step<F: Floats, const T: usize>(w: &F::Step, x: [&[f32; 16]; T], acc: &mut [[float32x4_t; 4]; T]) {
    // SAFETY: the caller vouches for the CPU.
    let w = unsafe { F::widen(w) };
    for t in 0..T {
        for i in 0..4 {
            acc[t][i] = vfmaq_f32(acc[t][i], w[i], load_f32(&x[t].as_chunks().0[i]));
        }
    }
}

/// One fused multiply-add of four lanes of every dot.
#[inline]
#[target_feature(enable = "neon")]
fn multiply<const R: usize, const T: usize>(
    w: [float32x4_t; R],
    x: [float32x4_t; T],
    acc: &mut [[float32x4_t; T]; R],
) {
    for r in 0..R {
        for t in 0..T {
            acc[r][t] = vfmaq_f32(acc[r][t], w[r], x[t]);
        }
    }
}

//! Formats whose activations go in super-blocks of 256 (Q8_K).

use std::arch::x86_64::*;

use super::super::avx2::{self, Mins, SuperBlock, SuperPanel, add_sums, spread_quad};
use super::super::blocks::BlockKernel;
use super::{SuperBlocks, Vnni, as_in_avx2};
use crate::quant::{ActivationRow, Q8KRow, QK_K};

impl<B: SuperBlock> BlockKernel<8> for SuperBlocks<B> {
    as_in_avx2!(Q8KRow, avx2::SuperBlocks<B>);

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn dots<const T: usize>(weights: &[u8], x: [Q8KRow<'_>; T]) -> [f32; T] {
        // SAFETY: the caller vouches for the CPU.
        unsafe { avx2::super_block_dots::<B, Vnni, T>(weights, x) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn accumulate<const T: usize>(
        panel: &SuperPanel,
        x: [Q8KRow<'_>; T],
        unit: usize,
        lanes: &mut [[__m256; 1]; T],
    ) {
        // Products of 16 weights and activations fit i16 where those of 32 pairs would in two sums.
        match (B::SIGNED, B::MINS, B::CHAIN == 8) {
            (true, _, _) => add_panel::<true, { Mins::None as u8 }, false, T>(panel, x, unit, lanes),
            (_, Mins::Float, true) => {
                add_panel::<false, { Mins::Float as u8 }, true, T>(panel, x, unit, lanes)
            }
            (_, Mins::Float, _) => add_panel::<false, { Mins::Float as u8 }, false, T>(panel, x, unit, lanes),
            _ => add_panel::<false, { Mins::Integer as u8 }, false, T>(panel, x, unit, lanes),
        }
    }
}

/// Adds a panel's products with some tokens to their lanes: the same for all formats of a kind, and compiled once for them.
/// With `SMALL`, sums over the 16 weights that have a scale in common fit i16.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn add_panel<const SIGNED: bool, const MINS: u8, const SMALL: bool, const T: usize>(
    panel: &SuperPanel,
    x: [Q8KRow<'_>; T],
    unit: usize,
    lanes: &mut [[__m256; 1]; T],
) {
    let quads: [&[[i8; 4]]; T] = array!(T, |t| x[t].qs.as_chunks::<QK_K>().0[unit].as_chunks().0);
    let mut sum = [_mm256_setzero_si256(); T];
    for (g, (group, scale)) in panel.q.as_chunks::<4>().0.iter().zip(panel.scales).enumerate() {
        let mut products = [_mm256_setzero_si256(); T];
        for (k, q) in group.iter().enumerate() {
            let magnitude = if SIGNED { _mm256_abs_epi8(*q) } else { *q };
            for t in 0..T {
                let x = spread_quad(quads[t][4 * g + k]);
                let x = if SIGNED { _mm256_sign_epi8(x, *q) } else { x };
                products[t] = _mm256_dpbusd_avx_epi32(products[t], magnitude, x);
            }
        }
        // Both words of a lane have the scale.
        if SMALL {
            let low = _mm256_srli_epi32::<16>(scale);
            for t in 0..T {
                sum[t] = _mm256_dpwssd_avx_epi32(sum[t], products[t], low);
            }
        } else {
            let wide = _mm256_srai_epi32::<16>(scale);
            for t in 0..T {
                sum[t] = _mm256_add_epi32(sum[t], _mm256_mullo_epi32(products[t], wide));
            }
        }
    }
    add_sums::<MINS, T>(panel, &x, unit, &sum, lanes);
}

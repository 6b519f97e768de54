//! Formats whose activations go in super-blocks of 256 (Q8_K).

use std::arch::x86_64::*;

use super::super::avx2::{self, EightRows, FLOAT_OF_32, Mins, SuperBlock, add_sums, spread_quad};
use super::super::blocks::{BlockKernel, PanelKernel, panels_as_in};
use super::{SuperBlocks, Vnni};
use crate::quant::arranged::{Arranged, Group};
use crate::quant::{Q8KRow, QK_K};

impl<B: SuperBlock> PanelKernel<16> for SuperBlocks<B> {
    panels_as_in!(16, avx2::SuperBlocks<B>);

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn accumulate<const T: usize>(
        panel: &[EightRows; 2],
        x: &&Arranged,
        first: usize,
        unit: usize,
        lanes: &mut [[__m256; 2]; T],
    ) {
        let x = x.group(unit, first);
        // Products of 16 weights and activations fit i16 where those of 32 pairs would in two sums.
        match (B::SIGNED, B::MINS, B::CHAIN == 8) {
            (true, _, _) => add_panel::<true, { Mins::None as u8 }, false, T>(panel, x, lanes),
            (_, Mins::Float, true) => add_panel::<false, FLOAT_OF_32, true, T>(panel, x, lanes),
            (_, Mins::Float, _) if B::MINS_OF_32 => {
                add_panel::<false, FLOAT_OF_32, false, T>(panel, x, lanes)
            }
            (_, Mins::Float, _) => add_panel::<false, { Mins::Float as u8 }, false, T>(panel, x, lanes),
            _ => add_panel::<false, { Mins::Integer as u8 }, false, T>(panel, x, lanes),
        }
    }
}

impl<B: SuperBlock> BlockKernel<16> for SuperBlocks<B> {
    const PANEL_TOKENS: usize = <avx2::SuperBlocks<B> as BlockKernel<16>>::PANEL_TOKENS;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn dots<const T: usize>(weights: &[u8], x: [Q8KRow<'_>; T]) -> [f32; T] {
        // SAFETY: the caller vouches for the CPU.
        unsafe { avx2::super_block_dots::<B, Vnni, T>(weights, x) }
    }
}

/// Adds a panel's products with some tokens to their lanes: the same for all formats of a kind, and compiled
/// once for them. With `SMALL`, sums over the 16 weights that have a scale in common fit i16.
#[inline(never)]
#[allow(clippy::needless_range_loop)] // registers of tokens and panels, by number
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn add_panel<const SIGNED: bool, const MINS: u8, const SMALL: bool, const T: usize>(
    panel: &[EightRows; 2],
    x: &Group<T>,
    lanes: &mut [[__m256; 2]; T],
) {
    let none = [[_mm256_setzero_si256(); 2]; T];
    let mut sum = none;
    for g in 0..QK_K / 16 {
        let mut products = none;
        for i in 0..4 {
            let k = 4 * g + i;
            let q = array!(2, |h| panel[h].q[k]);
            let magnitude = if SIGNED { array!(2, |h| _mm256_abs_epi8(q[h])) } else { q };
            for t in 0..T {
                let x = spread_quad(x.quads[k][t]);
                for h in 0..2 {
                    let x = if SIGNED { _mm256_sign_epi8(x, q[h]) } else { x };
                    products[t][h] = _mm256_dpbusd_avx_epi32(products[t][h], magnitude[h], x);
                }
            }
        }
        for h in 0..2 {
            // Both words of a lane have the scale.
            let scale = panel[h].scales[g];
            for t in 0..T {
                let (products, sum) = (products[t][h], &mut sum[t][h]);
                *sum = if SMALL {
                    _mm256_dpwssd_avx_epi32(*sum, products, _mm256_srli_epi32::<16>(scale))
                } else {
                    _mm256_add_epi32(*sum, _mm256_mullo_epi32(products, _mm256_srai_epi32::<16>(scale)))
                };
            }
        }
    }
    add_sums::<MINS, T>(panel, x, &sum, lanes);
}

//! Formats whose activations go in blocks of 32 (Q8_0, Q8_1): a tile product for each part of 32 weights, or
//! each of its halves, as each has a float scale of its own. Panels are taken as they are, with weights that
//! are unsigned but for an offset.

use std::arch::x86_64::*;

use super::super::avx2::Block;
use super::super::avx512::{Blocks32, Panel32, add_sum, offset};
use super::tiles::{Columns, Sums, TOKENS, sums_of_step};
use super::{Group, TileKernels};
use crate::quant::{PART, Q8_0Row};

impl<B: Block> TileKernels for Blocks32<B> {
    const STEP: usize = if B::HALVES { PART / 2 } else { PART };
    const TOKENS_AT_ONCE: usize = 64;
    /// The results, of two groups.
    type Buffers = [Sums; 2];

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn no_buffers() -> [Sums; 2] {
        [[_mm512_setzero_si512(); TOKENS]; 2]
    }

    #[inline(always)]
    unsafe fn prepare(_: &Panel32, _: &mut [Sums; 2]) {}

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn add(
        panel: &Panel32,
        products: &mut [Sums; 2],
        groups: [Group<'_, Q8_0Row<'_>>; 2],
        unit: usize,
        mut lanes: [&mut [[__m512; 8]]; 2],
    ) {
        for (b, q) in panel.q[..panel.parts].iter().enumerate() {
            let at = 8 * unit + b;
            for (step, weights) in q.chunks_exact(Self::STEP / 4).enumerate() {
                let x = Columns {
                    groups: groups.map(|group| group.qs[at * PART + step * Self::STEP..].as_ptr()),
                    stride: groups[0].stride,
                };
                // SAFETY: the caller vouches for the CPU, and has configured tiles for steps of `STEP`; a
                // group has rows of `stride`, of which this is a part.
                unsafe { sums_of_step(x, weights, products) };
                for ((group, lanes), sums) in groups.iter().zip(&mut lanes).zip(&*products) {
                    let own = lanes.iter_mut().zip(group.x).zip(&sums[group.first..]);
                    for ((lanes, x), sum) in own {
                        let sums = [i32::from(x.bsums[2 * at]), i32::from(x.bsums[2 * at + 1])];
                        let of_step = if B::HALVES { sums[step] } else { sums[0] + sums[1] };
                        let sum = _mm512_sub_epi32(*sum, _mm512_set1_epi32(offset::<B>() * of_step));
                        lanes[b] = if B::MINS {
                            add_sum::<true>(panel, [step, b], [x.d[at], x.s[at]], sum, lanes[b])
                        } else {
                            add_sum::<false>(panel, [step, b], [x.d[at], 0.0], sum, lanes[b])
                        };
                    }
                }
            }
        }
    }
}

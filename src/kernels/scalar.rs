//! The scalar kernel set: the dots of [`crate::quant`] as they stand. Every CPU can run it.

use super::{Isa, Kernels, OutTile, Tile, TileKernel, kernel, ops};
use crate::gguf::TensorType;

pub(super) static KERNELS: Kernels =
    Kernels { isa: Isa::Scalar, missing: Vec::new, tiles: TILES, ops: ops::scalar };

static TILES: &[TileKernel] = &[
    kernel(TensorType::F32, "vec_dot_f32_f32", tile),
    kernel(TensorType::F16, "vec_dot_f16_f16", tile),
    kernel(TensorType::BF16, "vec_dot_bf16_bf16", tile),
    kernel(TensorType::Q4_0, "vec_dot_q4_0_q8_0", tile),
    kernel(TensorType::Q4_1, "vec_dot_q4_1_q8_1", tile),
    kernel(TensorType::Q5_0, "vec_dot_q5_0_q8_0", tile),
    kernel(TensorType::Q5_1, "vec_dot_q5_1_q8_1", tile),
    kernel(TensorType::Q8_0, "vec_dot_q8_0_q8_0", tile),
    kernel(TensorType::Q2_K, "vec_dot_q2_k_q8_k", tile),
    kernel(TensorType::Q3_K, "vec_dot_q3_k_q8_k", tile),
    kernel(TensorType::Q4_K, "vec_dot_q4_k_q8_k", tile),
    kernel(TensorType::Q5_K, "vec_dot_q5_k_q8_k", tile),
    kernel(TensorType::Q6_K, "vec_dot_q6_k_q8_k", tile),
    kernel(TensorType::IQ2_XXS, "vec_dot_iq2_xxs_q8_k", tile),
    kernel(TensorType::IQ2_XS, "vec_dot_iq2_xs_q8_k", tile),
    kernel(TensorType::IQ2_S, "vec_dot_iq2_s_q8_k", tile),
    kernel(TensorType::IQ3_XXS, "vec_dot_iq3_xxs_q8_k", tile),
    kernel(TensorType::IQ3_S, "vec_dot_iq3_s_q8_k", tile),
    kernel(TensorType::IQ1_S, "vec_dot_iq1_s_q8_k", tile),
    kernel(TensorType::IQ1_M, "vec_dot_iq1_m_q8_k", tile),
    kernel(TensorType::IQ4_NL, "vec_dot_iq4_nl_q8_0", tile),
    kernel(TensorType::IQ4_XS, "vec_dot_iq4_xs_q8_k", tile),
    kernel(TensorType::TQ1_0, "vec_dot_tq1_0_q8_k", tile),
    kernel(TensorType::TQ2_0, "vec_dot_tq2_0_q8_k", tile),
    kernel(TensorType::MXFP4, "vec_dot_mxfp4_q8_0", tile),
    kernel(TensorType::NVFP4, "vec_dot_nvfp4_q8_0", tile),
    kernel(TensorType::Q1_0, "vec_dot_q1_0_q8_0", tile),
    kernel(TensorType::Q2_0, "vec_dot_q2_0_q8_0", tile),
];

/// One dot after another.
fn tile(tile: &Tile<'_>, out: &mut OutTile<'_>) {
    let fma = has_fma();
    for r in 0..tile.rows {
        let row = tile.row(r);
        for t in 0..tile.x.rows() {
            let x = tile.x.row(t);
            let dot = if fma {
                // SAFETY: the CPU has FMA.
                unsafe { (tile.format.dot_fma)(row, x) }
            } else {
                (tile.format.dot)(row, x)
            };
            out.set(t, r, dot);
        }
    }
}

/// Whether `dot_fma` may be called, which gives the bits of `dot` without a library call a product.
fn has_fma() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    return false; // where fused multiply-add is in the base instruction set, `dot` has it already
}

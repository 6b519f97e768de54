//! The scalar kernel set: the dots of [`crate::quant`] as they stand. Every CPU can run it.

use super::{Isa, Kernels, OutTile, Tile, ops};

pub(super) static KERNELS: Kernels =
    Kernels { isa: Isa::Scalar, missing: Vec::new, slow: || false, tiles: &[], base: None, ops: ops::scalar };

/// One dot after another, of any format.
pub(super) fn tile(tile: &Tile<'_>, out: &mut OutTile<'_>) {
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

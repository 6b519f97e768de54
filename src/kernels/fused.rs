//! Fused multiply-add is rounded once, by every system's library.
//!
//! Where the CPU's instruction is not known to be there `mul_add` is a call of the C library's `fmaf` or `fma`.
//! MinGW's compute in a wider type and round twice. Functions of these names in the program go before those of
//! the library.

/// `x * y + z`, rounded once.
#[cfg(all(windows, target_env = "gnu"))]
// SAFETY: the C library's function of this name has this signature and this contract.
#[unsafe(no_mangle)]
extern "C" fn fmaf(x: f32, y: f32, z: f32) -> f32 {
    libm::fmaf(x, y, z)
}

/// `x * y + z`, rounded once.
#[cfg(all(windows, target_env = "gnu"))]
// SAFETY: as above.
#[unsafe(no_mangle)]
extern "C" fn fma(x: f64, y: f64, z: f64) -> f64 {
    libm::fma(x, y, z)
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    /// Products that lie between two floats, and a little more: what is lost on the way makes a tie of them.
    #[test]
    fn a_sum_next_to_a_tie_is_rounded_once() {
        let tie = black_box(1.0 + 2f32.powi(-12));
        assert_eq!(tie.mul_add(tie, black_box(2f32.powi(-80))), 1.0 + 2f32.powi(-11) + 2f32.powi(-23));
        assert_eq!(tie.mul_add(tie, black_box(-2f32.powi(-80))), 1.0 + 2f32.powi(-11));
        let [a, b] = [-26, -27].map(|e| black_box(1.0 + 2f64.powi(e)));
        let below = 1.0 + 2f64.powi(-26) + 2f64.powi(-27);
        assert_eq!(a.mul_add(b, black_box(2f64.powi(-120))), below + 2f64.powi(-52));
        assert_eq!(a.mul_add(b, black_box(-2f64.powi(-120))), below);
    }
}

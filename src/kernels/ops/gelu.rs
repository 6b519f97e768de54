//! GELU by a table: ggml's CPU path rounds its argument to F16 and looks the result up.

use std::sync::LazyLock;

use half::f16;

use super::lanes::{Isa, Lanes16};

/// The result for the bits of each f16, as bits of f16.
static TABLE: LazyLock<Box<[u16]>> = LazyLock::new(|| (0..=u16::MAX).map(entry).collect());

/// ggml's `ggml_gelu_f32`, in f32 and from left to right but for a tanh rounded once, rounded to f16.
pub(super) fn entry(bits: u16) -> u16 {
    let x = f16::from_bits(bits).to_f32_const();
    let argument = SQRT_2_OVER_PI * x * (1.0 + 0.044_715 * x * x);
    let tanh = libm::tanh(f64::from(argument)) as f32;
    f16::from_f32_const(0.5 * x * (1.0 + tanh)).to_bits()
}

/// The bits of GELU's f16 for the bits of each f16, for who cannot compute them: see
/// [`Ops::gelu`](super::Ops::gelu).
pub fn gelu_table() -> &'static [u16] {
    &TABLE
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;

/// A view of the table, to be fetched once a row.
#[derive(Clone, Copy)]
pub(super) struct Gelu(&'static [u16; 1 << 16]);

impl Gelu {
    #[inline]
    pub(super) fn get() -> Self {
        Self(TABLE.first_chunk().expect("an entry for each f16"))
    }

    /// GELU of sixteen lanes: 0 up to -10, x itself from 10 on, else from the table.
    #[inline(always)]
    pub(super) fn of16<I: Isa>(self, isa: I, x: I::F) -> I::F {
        let (mut values, mut bits) = ([0.0; 16], [0; 16]);
        x.store(&mut values);
        x.store_f16(&mut bits);
        for bits in &mut bits {
            *bits = self.0[usize::from(*bits)];
        }
        let mut found = [0.0; 16];
        isa.load_f16(&bits).store(&mut found);
        for (x, &found) in values.iter_mut().zip(&found) {
            *x = if *x <= -10.0 {
                0.0
            } else if *x >= 10.0 {
                *x
            } else {
                found
            };
        }
        isa.load(&values)
    }
}

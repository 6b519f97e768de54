//! Rounding of activations, compiled for each instruction set.

use super::lanes::Isa;
use super::{Ops, run};
use crate::quant::{Blocks, Rounding, rounding};

#[inline(always)]
pub(super) fn q8_0<I: Isa>(_: I, blocks: Blocks<'_>) -> bool {
    rounding::q8_0(blocks)
}

#[inline(always)]
pub(super) fn q8_1<I: Isa>(_: I, blocks: Blocks<'_>) -> bool {
    rounding::q8_1(blocks)
}

#[inline(always)]
pub(super) fn q8_k<I: Isa>(_: I, blocks: Blocks<'_>) -> bool {
    rounding::q8_k(blocks)
}

impl Rounding for Ops {
    fn q8_0(&self, blocks: Blocks<'_>) -> bool {
        run!(self, round_q8_0(blocks))
    }
    fn q8_1(&self, blocks: Blocks<'_>) -> bool {
        run!(self, round_q8_1(blocks))
    }
    fn q8_k(&self, blocks: Blocks<'_>) -> bool {
        run!(self, round_q8_k(blocks))
    }
}

//! Where formats that look their weights up find them, one super-block ahead.

use std::arch::x86_64::*;

use super::super_blocks::SuperBlock;

/// Where a super-block's points lie in their grid. They go through memory, from where one costs one load, but
/// long before they are asked for: a load from what was just written waits.
#[derive(Clone, Copy)]
pub(in super::super) struct Places([[u16; 16]; 4]);

impl Places {
    const NONE: Places = Places([[0; 16]; 4]);

    /// Sixteen places a register.
    ///
    /// # Safety
    /// The CPU must have the features of this kernel set.
    #[inline(always)]
    pub unsafe fn set<const N: usize>(&mut self, words: [__m256i; N]) {
        for (to, words) in self.0.iter_mut().zip(words) {
            // SAFETY: 32 bytes can be written, and no alignment is asked for; the caller vouches for the CPU.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), words) };
        }
    }

    /// Places `4 at` to `4 at + 3`.
    #[inline(always)]
    pub fn four(&self, at: usize) -> [usize; 4] {
        std::array::from_fn(|i| usize::from(self.0[at / 4][at % 4 * 4 + i]))
    }

    /// Places `8 at` to `8 at + 7`.
    #[inline(always)]
    pub fn eight(&self, at: usize) -> [usize; 8] {
        std::array::from_fn(|i| usize::from(self.0[at / 2][at % 2 * 8 + i]))
    }
}

/// The places of a row's super-blocks, found while the block before is computed.
pub(in super::super) struct PlacesAhead([Places; 2]);

impl PlacesAhead {
    /// # Safety
    /// The CPU must have the features of this kernel set.
    #[inline(always)]
    pub unsafe fn new<B: SuperBlock>(blocks: &[B]) -> PlacesAhead {
        let mut ahead = PlacesAhead([Places::NONE; 2]);
        if let Some(block) = blocks.first() {
            // SAFETY: the caller vouches for the CPU.
            unsafe { block.places(&mut ahead.0[0]) };
        }
        ahead
    }

    /// Those of block `at`, all before which have had their turn, and finds those of the next.
    ///
    /// # Safety
    /// As `new`.
    #[inline(always)]
    pub unsafe fn of<B: SuperBlock>(&mut self, blocks: &[B], at: usize) -> &Places {
        if let Some(next) = blocks.get(at + 1) {
            // SAFETY: the caller vouches for the CPU.
            unsafe { next.places(&mut self.0[(at + 1) % 2]) };
        }
        &self.0[at % 2]
    }
}

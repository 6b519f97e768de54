//! Tile products. Rust has no intrinsics for them yet: a product is one `asm!` block from the loads to the
//! stores, so that no tile is alive between blocks; what is, is their configuration.

use std::arch::asm;
use std::arch::x86_64::__m512i;
use std::marker::PhantomData;

/// Lines of a tile: tokens, in the activations' and the results' tiles.
pub(super) const TOKENS: usize = 16;

/// Sums of products of [`TOKENS`] tokens: lane `r` of register `t` is token `t` with row `r`.
pub(super) type Sums = [__m512i; TOKENS];

/// Bytes of a line of weights or sums.
const LINE: usize = size_of::<__m512i>();

/// What `ldtilecfg` loads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a line.
    line: [u16; 16],
    lines: [u8; 16],
}

/// While it lives, this thread's tiles (no other's: it is not `Send`) are: 0 to 3 sums, 4 and 5 activations,
/// 6 and 7 weights.
pub(super) struct Configured(PhantomData<*const ()>);

impl Configured {
    /// Tiles for products over this many columns: a multiple of 4, 64 at most.
    ///
    /// # Safety
    /// The CPU must have AMX-INT8, and the operating system allow it.
    pub unsafe fn for_steps_of(columns: usize) -> Configured {
        assert!(columns.is_multiple_of(4) && (4..=64).contains(&columns), "a step of {columns} columns");
        let mut to =
            Configuration { palette: 1, start_row: 0, reserved: [0; 14], line: [0; 16], lines: [0; 16] };
        for tile in 0..8 {
            (to.line[tile], to.lines[tile]) = match tile {
                4 | 5 => (columns as u16, TOKENS as u8),
                6 | 7 => (LINE as u16, (columns / 4) as u8),
                _ => (LINE as u16, TOKENS as u8),
            };
        }
        // SAFETY: 64 bytes are read, which are a valid configuration; the caller vouches for the CPU.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const to, options(nostack, readonly, preserves_flags)) };
        Configured(PhantomData)
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: that `self` was made shows that the CPU has tiles.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

/// Two groups of tokens' activations: where their columns of interest begin, and the distance from one token
/// to the next.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    pub groups: [*const i8; 2],
    pub stride: usize,
}

/// Runs instructions with `a`, `b` (groups), `stride`, `w` (weights), `line` ([`LINE`]) and `sums` as
/// operands.
macro_rules! with_tiles {
    ($x:expr, $weights:expr, $sums:expr, $($code:expr),* $(,)?) => {
        asm!(
            $($code,)*
            a = in(reg) $x.groups[0],
            b = in(reg) $x.groups[1],
            stride = in(reg) $x.stride,
            w = in(reg) $weights,
            line = in(reg) LINE,
            sums = in(reg) $sums,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags),
        )
    };
}

/// Loads step `$k` of 64 columns of both groups and tile `$k` of the weights, and adds their products to
/// tiles 0 and 1.
macro_rules! step_of_64 {
    ($k:literal) => {
        concat!(
            "tileloadd tmm6, [{w} + {line} + 1024 * ",
            $k,
            "]\n",
            "tileloadd tmm4, [{a} + {stride} + 64 * ",
            $k,
            "]\n",
            "tileloadd tmm5, [{b} + {stride} + 64 * ",
            $k,
            "]\n",
            "tdpbssd tmm0, tmm4, tmm6\n",
            "tdpbssd tmm1, tmm5, tmm6\n",
        )
    };
}

/// The same, and products with tile `4 + $k` in tiles 2 and 3.
macro_rules! wide_step_of_64 {
    ($k:literal) => {
        concat!(
            step_of_64!($k),
            "tileloadd tmm7, [{w} + {line} + 4096 + 1024 * ",
            $k,
            "]\n",
            "tdpbssd tmm2, tmm4, tmm7\n",
            "tdpbssd tmm3, tmm5, tmm7\n",
        )
    };
}

/// Sums over 256 columns, signed weights.
///
/// # Safety
/// Tiles must be configured for steps of 64; from each group's pointer on, [`TOKENS`] times, `stride` bytes
/// apart, 256 bytes must be readable.
#[inline(always)]
pub(super) unsafe fn sums_256(x: Columns, weights: &[[__m512i; 16]; 4], sums: &mut [Sums; 2]) {
    // SAFETY: the caller vouches for the activations and the tiles; the others are as long as what is read
    // and written.
    unsafe {
        with_tiles!(
            x,
            weights,
            sums,
            "tilezero tmm0",
            "tilezero tmm1",
            step_of_64!(0),
            step_of_64!(1),
            step_of_64!(2),
            step_of_64!(3),
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 1024], tmm1",
        )
    }
}

/// Sums over 256 columns of two sets of signed weights: of the first for both groups, then of the second.
///
/// # Safety
/// As [`sums_256`].
#[inline(always)]
pub(super) unsafe fn two_sums_256(x: Columns, weights: &[[[__m512i; 16]; 4]; 2], sums: &mut [[Sums; 2]; 2]) {
    // SAFETY: the caller vouches for the activations and the tiles; the others are as long as what is read
    // and written.
    unsafe {
        with_tiles!(
            x,
            weights,
            sums,
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            wide_step_of_64!(0),
            wide_step_of_64!(1),
            wide_step_of_64!(2),
            wide_step_of_64!(3),
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 1024], tmm1",
            "tilestored [{sums} + {line} + 2048], tmm2",
            "tilestored [{sums} + {line} + 3072], tmm3",
        )
    }
}

/// Sums over one step's columns, unsigned weights: of `weights` there are a quarter as many as the step has
/// columns.
///
/// # Safety
/// Tiles must be configured for such steps; from each group's pointer on, [`TOKENS`] times, `stride` bytes
/// apart, a step's bytes must be readable.
#[inline(always)]
pub(super) unsafe fn sums_of_step(x: Columns, weights: &[__m512i], sums: &mut [Sums; 2]) {
    // SAFETY: the caller vouches for the activations, the tiles and the length of the weights.
    unsafe {
        with_tiles!(
            x,
            weights.as_ptr(),
            sums,
            "tilezero tmm0",
            "tilezero tmm1",
            "tileloadd tmm6, [{w} + {line}]",
            "tileloadd tmm4, [{a} + {stride}]",
            "tileloadd tmm5, [{b} + {stride}]",
            "tdpbsud tmm0, tmm4, tmm6",
            "tdpbsud tmm1, tmm5, tmm6",
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 1024], tmm1",
        )
    }
}

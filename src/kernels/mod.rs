//! COMPUTE: kernel sets by instruction set, chosen at run time, all with the same bits.
//!
//! A kernel set is what one instruction set has to offer: for each tensor type a tile function, named
//! by its operands, that computes the dots of some rows of weights with all rows of activations. The
//! result of each is defined by the scalar dots of [`crate::quant`], down to the last bit; a type for
//! which a set has no kernel of its own takes that of the set it builds on, the scalar one in the end.
//!
//! Holding a `&'static Kernels` proves that the CPU can run it: there is no other way to one than through
//! [`Kernels::detect_best`], [`Kernels::by_isa`] and [`Kernels::available`], which ask the CPU.
//!
//! A new instruction set is a module that exports one `static KERNELS` and a line in `kernel_sets!`.

/// `array!(N, |i| value)`: an array of `N` copyable values. For registers never `array::map` or `from_fn`:
/// those are compiled without a kernel set's features, so that the closure is called for each element,
/// through memory.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! array {
    ($n:expr, |$i:ident| $value:expr) => {{
        let first = {
            let $i = 0;
            $value
        };
        let mut all = [first; $n];
        #[allow(clippy::needless_range_loop)]
        for $i in 1..$n {
            all[$i] = $value;
        }
        all
    }};
}

/// Runs a block for each constant `0..count`, of at most eight: loops that are unrolled whatever their
/// length.
#[cfg(target_arch = "x86_64")]
macro_rules! unrolled {
    ($count:expr, |$i:ident| $body:block) => {
        unrolled!(@0 1 2 3 4 5 6 7; $count, |$i| $body)
    };
    (@$($n:literal)*; $count:expr, |$i:ident| $body:block) => {
        $({
            const $i: usize = $n;
            if $i < $count $body
        })*
    };
}

/// The table of a vector set: the given kernels, and `quantised` of every quantised format, by the names that
/// `quantised`, `Blocks32` and `SuperBlocks` have where the macro is called; Q4_K, Q5_K and Q6_K are of the
/// type named.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! tiles_with_quantised {
    ($k_quants:ident, [$($kernel:expr),*]) => {
        {
            use crate::quant::*;
            tiles_with_quantised! {
                [$($kernel),*]
                Q4_0: Blocks32<BlockQ4_0>,
                Q4_1: Blocks32<BlockQ4_1>,
                Q5_0: Blocks32<BlockQ5_0>,
                Q5_1: Blocks32<BlockQ5_1>,
                Q8_0: Blocks32<BlockQ8_0>,
                Q2_K: SuperBlocks<BlockQ2K>,
                Q3_K: SuperBlocks<BlockQ3K>,
                Q4_K: $k_quants<BlockQ4K>,
                Q5_K: $k_quants<BlockQ5K>,
                Q6_K: $k_quants<BlockQ6K>,
                IQ2_XXS: SuperBlocks<BlockIQ2XXS>,
                IQ2_XS: SuperBlocks<BlockIQ2XS>,
                IQ2_S: SuperBlocks<BlockIQ2S>,
                IQ3_XXS: SuperBlocks<BlockIQ3XXS>,
                IQ3_S: SuperBlocks<BlockIQ3S>,
                IQ1_S: SuperBlocks<BlockIQ1S>,
                IQ1_M: SuperBlocks<BlockIQ1M>,
                IQ4_NL: Blocks32<BlockIQ4NL>,
                IQ4_XS: SuperBlocks<BlockIQ4XS>,
                TQ1_0: SuperBlocks<BlockTQ1_0>,
                TQ2_0: SuperBlocks<BlockTQ2_0>,
                MXFP4: Blocks32<BlockMXFP4>,
                NVFP4: Blocks32<BlockNVFP4>,
                Q1_0: Blocks32<BlockQ1_0>,
                Q2_0: Blocks32<BlockQ2_0>,
            }
        }
    };
    ([$($kernel:expr),*] $($ty:ident: $quantised:ty,)*) => {
        &[
            $($kernel,)*
            $(block_kernel::<$quantised, _>(TensorType::$ty, quantised::<$quantised, _>),)*
        ]
    };
}

/// `kernel_sets!(derive)`: `derive!` of the instruction sets, the best first: what each is called, which
/// module has its kernels, and in which builds. Whatever else knows of them derives from this list.
macro_rules! kernel_sets {
    ($derive:ident) => {
        $derive! {
            /// AMX-INT8 with AVX-512.
            Amx = "amx": amx if all(target_arch = "x86_64", target_os = "linux");
            /// AVX-512 F, BW, VL and VNNI.
            Avx512 = "avx512": avx512 if target_arch = "x86_64";
            /// The same with dots for few tokens in registers of 256 bits.
            Avx512In256 = "avx512-256": avx512_256 if target_arch = "x86_64";
            /// AVX-VNNI, of 256 bits, with AVX2, FMA and F16C.
            AvxVnni = "avxvnni": avxvnni if target_arch = "x86_64";
            /// AVX2, FMA and F16C.
            Avx2 = "avx2": avx2 if target_arch = "x86_64";
            /// NEON with the products of matrices of bytes (`smmla`).
            NeonI8mm = "neon-i8mm": neon_i8mm if target_arch = "aarch64";
            /// NEON with the dot products of bytes (`sdot`).
            NeonDotprod = "neon-dotprod": neon_dotprod if target_arch = "aarch64";
            /// NEON, which every ARM64 CPU has.
            Neon = "neon": neon if target_arch = "aarch64";
            /// What every CPU has: the definition.
            Scalar = "scalar": scalar if all();
        }
    };
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_256;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod blocks;
mod fused;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod layouts;
mod matmul;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_dotprod;
#[cfg(target_arch = "aarch64")]
mod neon_i8mm;
pub mod ops;
mod scalar;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "aarch64")]
use std::arch::is_aarch64_feature_detected as is_feature_detected;
#[cfg(target_arch = "x86_64")]
use std::arch::is_x86_feature_detected as is_feature_detected;
use std::fmt;
use std::str::FromStr;

pub use matmul::{MatmulJob, WeightMatrix, matmul, matmul_batch};

use crate::gguf::TensorType;
use crate::quant::arranged::Arranged;
use crate::quant::{Activations, Format, format};

macro_rules! isa_and_table {
    ($($(#[$doc:meta])* $isa:ident = $name:literal: $module:ident if $built:meta;)*) => {
        /// An instruction set that kernels may be made for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Isa {
            $($(#[$doc])* $isa,)*
        }

        impl Isa {
            /// Every instruction set, the best first.
            pub const ALL: &[Isa] = &[$(Isa::$isa),*];

            /// The name on the command line.
            pub fn name(self) -> &'static str {
                match self {
                    $(Isa::$isa => $name,)*
                }
            }
        }

        /// The kernel sets of this build, the best first.
        static TABLE: &[&Kernels] = &[$(#[cfg($built)] &$module::KERNELS,)*];
    };
}

kernel_sets!(isa_and_table);

impl Isa {
    /// The names of all, the plainest first: `scalar, avx2 or amx`, where `last` is ` or `.
    pub fn names(last: &str) -> String {
        match Isa::ALL {
            [] => String::new(),
            [best] => best.name().to_owned(),
            [best, others @ ..] => {
                let others: Vec<_> = others.iter().rev().map(|isa| isa.name()).collect();
                others.join(", ") + last + best.name()
            }
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(name: &str) -> Result<Isa, UnknownIsa> {
        Isa::ALL.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| UnknownIsa(name.to_owned()))
    }
}

/// A name that is no instruction set's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown instruction set '{0}' ({names})", names = Isa::names(", "))]
pub struct UnknownIsa(pub String);

/// Why a kernel set cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    #[error("this CPU lacks {} for the {isa} kernels", .features.join(", "))]
    CpuLacks { isa: Isa, features: Vec<&'static str> },
    #[error("this build has no {isa} kernels")]
    NotBuilt { isa: Isa },
}

/// The kernels of one instruction set; to hold one proves that the CPU has it.
#[derive(Debug)]
pub struct Kernels {
    isa: Isa,
    /// What the CPU lacks for this set, by name; nothing: it can run it.
    missing: fn() -> Vec<&'static str>,
    /// Whether another set that the CPU has too is quicker on it.
    slow: fn() -> bool,
    /// The set's own kernels.
    tiles: &'static [TileKernel],
    /// The set that has the others; only the scalar one has none: it runs what every format defines.
    base: Option<&'static Kernels>,
    ops: fn() -> &'static ops::Ops,
}

/// Computes a tile.
///
/// # Safety
/// The CPU must have the features of the kernel set that it belongs to.
pub(crate) type TileFunction = unsafe fn(&Tile<'_>, &mut OutTile<'_>);

/// A kernel for one type of weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileKernel {
    ty: TensorType,
    run: TileFunction,
    arranged: Option<Groups>,
}

/// That a kernel wants activations arranged in groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Groups {
    /// Tokens of a group at most.
    most: usize,
    /// For how many tokens: from so many on, and for less than so many.
    from: usize,
    below: usize,
}

/// A row of a set's table.
const fn kernel(ty: TensorType, run: TileFunction) -> TileKernel {
    TileKernel { ty, run, arranged: None }
}

/// A row of a set's table, of a kernel that may want activations arranged.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const fn block_kernel<K: blocks::BlockKernel<ROWS>, const ROWS: usize>(
    ty: TensorType,
    run: TileFunction,
) -> TileKernel {
    let groups = Groups { most: K::TOKENS, from: K::PANEL_TOKENS, below: usize::MAX };
    TileKernel { ty, run, arranged: if K::ARRANGED { Some(groups) } else { None } }
}

/// The operands of a tile: some rows of weights, all rows of activations.
///
/// Made by [`matmul()`] only, which has checked that the weights are `rows` rows of `x.cols()` elements of
/// `format`, and that the activations are of the type that goes with it.
pub(crate) struct Tile<'a> {
    format: &'static Format,
    /// `rows * row_bytes` bytes.
    weights: &'a [u8],
    rows: usize,
    row_bytes: usize,
    x: &'a Activations,
    /// The same in groups, where the kernel wants it.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    arranged: Option<&'a Arranged>,
}

impl<'a> Tile<'a> {
    fn row(&self, r: usize) -> &'a [u8] {
        &self.weights[r * self.row_bytes..][..self.row_bytes]
    }

    /// The activations in groups.
    ///
    /// # Panics
    /// Where the kernel does not say that it wants them.
    #[cfg(target_arch = "x86_64")]
    fn groups(&self) -> &'a Arranged {
        self.arranged.expect("activations that are arranged for the kernel")
    }
}

/// Where a tile's results go: `[tokens][stride]`, of which this tile has `rows` columns for itself.
pub(crate) struct OutTile<'a> {
    at: *mut f32,
    stride: usize,
    tokens: usize,
    rows: usize,
    lifetime: std::marker::PhantomData<&'a mut [f32]>,
}

impl OutTile<'_> {
    /// # Safety
    /// For every `t < tokens` and `r < rows`, `at + t * stride + r` must be valid for writes for the
    /// lifetime, and nobody else may use it.
    unsafe fn new(at: *mut f32, stride: usize, tokens: usize, rows: usize) -> Self {
        OutTile { at, stride, tokens, rows, lifetime: std::marker::PhantomData }
    }

    /// The dot of the tile's weight row `r` with activation row `t`.
    #[inline(always)]
    fn set(&mut self, t: usize, r: usize, value: f32) {
        assert!(t < self.tokens && r < self.rows);
        // SAFETY: in bounds by the assertion; `new`'s caller has promised us these elements.
        unsafe { self.at.add(t * self.stride + r).write(value) }
    }

    /// The dots of `N` of the tile's weight rows from `first` on, as far as there are any, with activation
    /// row `t`.
    #[inline(always)]
    fn set_rows<const N: usize>(&mut self, t: usize, first: usize, values: &[f32; N]) {
        assert!(t < self.tokens && first <= self.rows);
        if N <= self.rows - first {
            // SAFETY: in bounds by the assertion and the comparison; `new`'s caller has promised us these
            // elements.
            unsafe { self.at.add(t * self.stride + first).cast::<[f32; N]>().write_unaligned(*values) };
        } else {
            self.set_last_rows(t, first, values);
        }
    }

    /// Apart, for else the compiler makes one copy of a length that it does not know of both.
    #[cold]
    #[inline(never)]
    fn set_last_rows(&mut self, t: usize, first: usize, values: &[f32]) {
        for (r, value) in (first..self.rows).zip(values) {
            self.set(t, r, *value);
        }
    }
}

impl Kernels {
    /// The quickest set that this CPU can run.
    pub fn detect_best() -> &'static Kernels {
        Kernels::available().find(|set| !(set.slow)()).unwrap_or(&scalar::KERNELS)
    }

    /// The set for this instruction set.
    ///
    /// # Errors
    /// Where the CPU lacks it, or this build has no kernels for it.
    pub fn by_isa(isa: Isa) -> Result<&'static Kernels, IsaError> {
        let set = TABLE.iter().find(|set| set.isa == isa).ok_or(IsaError::NotBuilt { isa })?;
        match (set.missing)() {
            features if features.is_empty() => Ok(set),
            features => Err(IsaError::CpuLacks { isa, features }),
        }
    }

    /// The sets that this CPU can run, the best first.
    pub fn available() -> impl Iterator<Item = &'static Kernels> {
        Isa::ALL.iter().filter_map(|&isa| Kernels::by_isa(isa).ok())
    }

    /// Why the others of this build cannot be had.
    pub fn unavailable() -> impl Iterator<Item = IsaError> {
        TABLE.iter().filter_map(|set| Kernels::by_isa(set.isa).err())
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The operations other than products with weights.
    pub fn ops(&self) -> &'static ops::Ops {
        (self.ops)()
    }

    /// The name of the kernel that dots with weights of this type take: `vec_dot_q4_k_q8_k (avx2)`;
    /// `None` where the type cannot be computed with.
    pub fn name_for(&self, ty: TensorType) -> Option<String> {
        let (_, isa) = self.tile(ty)?;
        let operands = format!("{ty}_{:?}", format(ty)?.activation).to_lowercase();
        Some(format!("vec_dot_{operands} ({isa})"))
    }

    /// The kernel for this type of weights, and whose it is.
    fn tile(&self, ty: TensorType) -> Option<(TileKernel, Isa)> {
        match (self.tiles.iter().find(|kernel| kernel.ty == ty), self.base) {
            (Some(kernel), _) => Some((*kernel, self.isa)),
            (None, Some(base)) => base.tile(ty),
            (None, None) => format(ty).map(|_| (kernel(ty, scalar::tile), self.isa)),
        }
    }
}

/// Lists the CPU features of a kernel set once: a function that names those that the CPU lacks.
macro_rules! missing_features {
    ($($feature:tt),*) => {
        || {
            let mut missing = Vec::new();
            $(if !$crate::kernels::is_feature_detected!($feature) {
                missing.push($feature);
            })*
            missing
        }
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use missing_features;

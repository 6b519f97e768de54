//! The operations of a forward pass other than products with weights: norms, RoPE, activations, softmax,
//! attention, recurrences.
//!
//! Each is written once, over sixteen lanes, and instantiated for every instruction set; all instances give
//! the same bits (any NaN stands for any NaN), whatever the threads and the batch. Holding an [`Ops`] proves
//! that the CPU runs it. Lengths are asserted: a wrong one is a mistake of the caller, not of a file.
//!
//! Work is spread over rayon's current pool where it is large enough to pay for that.

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod elementwise;
mod gelu;
mod hyper;
mod indexer;
mod kv;
mod lanes;
mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod norms;
mod pool;
mod recurrence;
mod rope;
mod rounding;
mod select;
mod streams;
#[cfg(test)]
mod tests;

use attention::parts::Parts;
use attention::tile::{Tile, Workspace};
#[cfg(target_arch = "x86_64")]
use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use avx512::Avx512;
use indexer::IndexQuery;
use lanes::Scalar;
#[cfg(target_arch = "aarch64")]
use neon::Neon;
use recurrence::channel_scan::Channels as ScanChannels;
use recurrence::conv::Inputs as ConvInputs;
use recurrence::delta::Rows as DeltaRows;
use recurrence::scan::Head as ScanHead;

use crate::quant::Blocks;

pub use attention::{AttentionScratch, AttentionShape, Chosen, Window};
pub use gelu::gelu_table;
pub use hyper::{HYPER_GATES, HyperGates};
pub use indexer::{IndexQueries, choose};
pub use kv::{KV_BLOCK, KvPages, KvView, KvViewMut, PAGE, PlaceInPage, key_rotation, value_rotation};
pub use pool::PooledRow;
pub use recurrence::{
    CausalConv, ChannelRows, ChannelScan, Decay, DeltaRule, HeadMap, SelectiveScan, StridedRows,
};
pub use rope::{RopeKind, RopeParams, RopeTable, Yarn};
pub use select::{top_k, top_k_grouped};
pub use streams::{Banked, STREAMS};

/// The operations, compiled for one instruction set.
pub struct Ops {
    name: &'static str,
    kernels: Kernels,
}

impl Ops {
    /// The instruction set's name, as `--isa` gives it.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

/// The portable operations: the definition of every result, on any CPU.
///
/// Where the CPU has FMA this is the same source compiled with it: without, each fused multiply-add is a
/// library call.
pub fn scalar() -> &'static Ops {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("fma") {
        return &SCALAR_FMA;
    }
    &SCALAR
}

/// Declares the table of row kernels and an instance of it for each instruction set: the portable source
/// inlined into functions compiled for the set's features.
macro_rules! kernel_sets {
    ($list:tt $($(#[$cfg:meta])? $set:ident $module:ident $name:literal $features:tt $isa:expr;)*) => {
        kernel_sets!(@table $list);
        $(
            $(#[$cfg])?
            kernel_sets!(@set $set $module $name $features ($isa) $list);
        )*
    };
    (@table { $($kernel:ident = $path:path, ($($arg:ident: $type:ty),*) $(-> $ret:ty)?;)* }) => {
        /// Row kernels, to be called only on a CPU with the features of their set; see `run!`.
        struct Kernels {
            $($kernel: unsafe fn($($type),*) $(-> $ret)?,)*
        }
    };
    (@set $set:ident $module:ident $name:literal $features:tt $isa:tt
        { $($kernel:ident = $path:path, $args:tt $(-> $ret:ty)?;)* }) => {
        pub(in crate::kernels) static $set: Ops =
            Ops { name: $name, kernels: Kernels { $($kernel: $module::$kernel),* } };

        mod $module {
            use super::*;
            $(kernel_sets!(@fn $features $isa $kernel = $path, $args $(-> $ret)?);)*
        }
    };
    (@fn [$($feature:meta)?] ($isa:expr) $kernel:ident = $path:path,
        ($($arg:ident: $type:ty),*) $(-> $ret:ty)?) => {
        $(#[$feature])?
        pub(super) fn $kernel($($arg: $type),*) $(-> $ret)? {
            $path($isa, $($arg),*)
        }
    };
}

kernel_sets! {
    {
        silu = math::silu, (x: &mut [f32]);
        sigmoid = math::sigmoid, (x: &mut [f32]);
        exp = math::exp, (x: &mut [f32]);
        softplus = math::softplus, (x: &mut [f32]);
        sqrt_softplus = math::sqrt_softplus, (x: &mut [f32]);
        gelu = math::gelu, (x: &mut [f32]);
        relu_squared = math::relu_squared, (x: &mut [f32]);
        soft_cap = math::soft_cap, (x: &mut [f32], by: f32, cap: f32);
        swiglu = math::swiglu, (gate: &mut [f32], up: &[f32]);
        geglu = math::geglu, (gate: &mut [f32], up: &[f32]);
        swiglu_oai = math::swiglu_oai, (gate: &mut [f32], up: &[f32], alpha: f32, limit: f32);
        swiglu_clamped = math::swiglu_clamped, (gate: &mut [f32], up: &[f32], limit: f32);
        swiglu_limited = math::swiglu_limited, (gate: &mut [f32], up: &[f32], limit: f32);
        situ = math::situ, (gate: &mut [f32], up: &[f32], beta: f32, linear: f32);
        sum = math::sum, (x: &[f32]) -> f32;
        add = math::add, (acc: &mut [f32], x: &[f32]);
        add_scaled = math::add_scaled, (acc: &mut [f32], weight: f32, x: &[f32]);
        mul = math::mul, (acc: &mut [f32], x: &[f32]);
        scale = math::scale, (x: &mut [f32], by: f32);
        rms_norm = math::rms_norm, (x: &mut [f32], weight: &[f32], eps: f32);
        layer_norm = math::layer_norm, (x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32);
        softmax = math::softmax, (x: &mut [f32]);
        rescale = math::rescale, (x: &mut [f32], like: &[f32]);
        cut_below = math::cut_below, (x: &mut [f32], deviations: f32);
        mean_of_streams = streams::mean_of_streams, (x: &[f32], out: &mut [f32]);
        mix_streams = streams::mix_streams, (x: &mut [f32], coefs: &[f32]);
        hyper_gates = hyper::gates, (mixes: &mut [f32], gates: &HyperGates);
        join_streams = hyper::join, (x: &[f32], weights: &[f32], out: &mut [f32]);
        share_among_streams = hyper::share, (x: &mut [f32], change: &[f32], gates: &[f32]);
        pool = pool::pool, (rows: &[PooledRow], out: &mut [f32]);
        narrow = math::narrow, (from: &[f32], to: &mut [u16]);
        rotate_pairs = math::rotate_pairs, (x: &mut [f32], cos: &[f32], sin: &[f32]);
        rotate_halves = math::rotate_halves, (x: &mut [f32], cos: &[f32], sin: &[f32]);
        causal_conv = recurrence::conv::causal_conv, (inputs: &ConvInputs, t: usize, out: &mut [f32]);
        delta_rule = recurrence::delta::delta_rule,
            (rule: &DeltaRule, rows: &DeltaRows, state: &mut [f32], out: &mut [f32]);
        scan_channels = recurrence::channel_scan::scan_channels,
            (channels: &ScanChannels, state: &mut [f32], out: &mut [f32]);
        scan_head = recurrence::scan::scan_head, (head: &ScanHead, state: &mut [f32], out: &mut [f32]);
        l2_norm = recurrence::delta::l2_norm, (x: &mut [f32], eps: f32);
        attend = attention::tile::attend, (tile: &Tile, workspace: &mut Workspace, parts: &mut [f32]);
        combine = attention::parts::combine, (parts: Parts, sink: Option<f32>, out: &mut [f32]);
        hadamard = indexer::hadamard, (x: &mut [f32]);
        index_dots = indexer::dots, (query: &IndexQuery, keys: KvView, seen: usize, out: &mut [f32]);
        index_scores = indexer::scores, (queries: &IndexQuery, keys: KvView, out: &mut [f32]);
        round_q8_0 = rounding::q8_0, (blocks: Blocks) -> bool;
        round_q8_1 = rounding::q8_1, (blocks: Blocks) -> bool;
        round_q8_k = rounding::q8_k, (blocks: Blocks) -> bool;
    }
    SCALAR portable "scalar" [] Scalar;
    #[cfg(target_arch = "x86_64")]
    SCALAR_FMA portable_fma "scalar" [target_feature(enable = "fma")] Scalar;
    #[cfg(target_arch = "x86_64")]
    AVX2 avx2_fma "avx2" [target_feature(enable = "avx2,fma,f16c")] Avx2::new();
    #[cfg(target_arch = "x86_64")]
    AVX512 avx512_vnni "avx512" [target_feature(enable = "avx512f,avx512vnni")] Avx512::new();
    #[cfg(target_arch = "aarch64")]
    NEON neon_base "neon" [target_feature(enable = "neon")] Neon::new();
}

/// Calls a row kernel of an [`Ops`].
macro_rules! run {
    ($ops:expr, $kernel:ident($($arg:expr),* $(,)?)) => {
        // SAFETY: an `Ops` is handed out only where the CPU has its instruction set.
        unsafe { ($ops.kernels.$kernel)($($arg),*) }
    };
}
use run;

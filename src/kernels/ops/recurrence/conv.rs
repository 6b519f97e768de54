//! The short causal convolution over the tokens of a sequence, channel by channel.
//!
//! # Definition
//!
//! Of every channel c and token t: `y = fma(x[t-n+1+i][c], w[i][c], y)` from 0 over the taps i in rising
//! order, n being their number, which is the oldest token first; then `y + bias[c]`, rounded apart, and SiLU
//! where wanted. Tokens before the batch come from the window that the sequence remembers: its last n - 1
//! inputs, zeros at its beginning. ggml: `ssm_conv`, `add` and `silu`.

use rayon::prelude::*;

use super::super::elementwise::PARALLEL;
use super::super::lanes::{Isa, Lanes16};
use super::super::math::silu16;
use super::super::{Ops, run};

/// A convolution: its weights, and what follows it.
#[derive(Clone, Copy, Debug)]
pub struct CausalConv<'a> {
    pub channels: usize,
    /// `[taps][channels]`, the tap of the oldest token first: transposed from a file's `[channels][taps]`.
    pub weight: &'a [f32],
    /// `[channels]`
    pub bias: Option<&'a [f32]>,
    /// Whether SiLU follows.
    pub silu: bool,
}

impl CausalConv<'_> {
    /// Tokens that an output depends on.
    fn taps(&self) -> usize {
        self.weight.len() / self.channels
    }

    /// Floats of the window that a sequence remembers: `[taps - 1][channels]`, the oldest token first.
    pub fn window_len(&self) -> usize {
        self.weight.len() - self.channels
    }
}

/// What the rows of a batch are computed from.
pub(in crate::kernels) struct Inputs<'a> {
    conv: CausalConv<'a>,
    window: &'a [f32],
    x: &'a [f32],
}

impl Inputs<'_> {
    /// The inputs of tap `i` for the output of token `t`, of the window or of the batch, and its weights.
    #[inline(always)]
    fn tap(&self, t: usize, i: usize) -> (&[f32], &[f32]) {
        let (n, at) = (self.conv.channels, t + i);
        let x = match at.checked_sub(self.conv.taps() - 1) {
            Some(token) => &self.x[token * n..(token + 1) * n],
            None => &self.window[at * n..(at + 1) * n],
        };
        (x, &self.conv.weight[i * n..(i + 1) * n])
    }
}

/// Sixteen values from `at` on, zeros behind the end.
#[inline(always)]
pub(in crate::kernels::ops) fn load<I: Isa>(isa: I, x: &[f32], at: usize) -> I::F {
    match x[at..].first_chunk() {
        Some(block) => isa.load(block),
        None => isa.load_head(&x[at..]),
    }
}

/// Stores sixteen values from `at` on, as many as there is room for.
#[inline(always)]
pub(in crate::kernels::ops) fn store<F: Lanes16>(values: F, to: &mut [f32], at: usize) {
    let to = &mut to[at..];
    match to.first_chunk_mut() {
        Some(block) => values.store(block),
        None => values.store_head(to),
    }
}

/// The outputs of token `t`.
#[inline(always)]
pub(in crate::kernels::ops) fn causal_conv<I: Isa>(isa: I, inputs: &Inputs<'_>, t: usize, out: &mut [f32]) {
    let tap = |i| inputs.tap(t, i);
    // Most convolutions have four taps: a loop of a known length keeps all in registers.
    match inputs.conv.taps() {
        4 => row(isa, inputs, &std::array::from_fn::<_, 4, _>(tap), out),
        3 => row(isa, inputs, &std::array::from_fn::<_, 3, _>(tap), out),
        taps => row(isa, inputs, &(0..taps).map(tap).collect::<Vec<_>>(), out),
    }
}

/// The outputs of a token from its taps: inputs and weights of each.
#[inline(always)]
fn row<I: Isa>(isa: I, inputs: &Inputs<'_>, taps: &[(&[f32], &[f32])], out: &mut [f32]) {
    let CausalConv { channels, bias, silu, .. } = inputs.conv;
    for at in (0..channels).step_by(16) {
        let mut acc = isa.splat(0.0);
        for (x, weight) in taps {
            acc = load(isa, x, at).mul_add(load(isa, weight, at), acc);
        }
        if let Some(bias) = bias {
            acc = acc.add(load(isa, bias, at));
        }
        if silu {
            acc = silu16(isa, acc);
        }
        store(acc, out, at);
    }
}

impl Ops {
    /// The convolution of the tokens of one sequence; see the module.
    ///
    /// `x` and `out`: `[tokens][channels]`; `window`: `[taps - 1][channels]`, what the sequence remembers,
    /// which becomes that of the tokens to come.
    pub fn causal_conv(&self, conv: &CausalConv<'_>, x: &[f32], window: &mut [f32], out: &mut [f32]) {
        let n = conv.channels;
        let whole = n > 0 && !conv.weight.is_empty() && conv.weight.len().is_multiple_of(n);
        assert!(whole, "convolution: {} weights of {n} channels", conv.weight.len());
        assert_eq!(window.len(), conv.window_len(), "convolution: window");
        assert!(x.len() == out.len() && x.len().is_multiple_of(n), "convolution: input and output");
        assert!(conv.bias.is_none_or(|bias| bias.len() == n), "convolution: bias");
        let inputs = Inputs { conv: *conv, window, x };
        let row = |(t, out): (usize, &mut [f32])| run!(self, causal_conv(&inputs, t, out));
        if x.len() < PARALLEL {
            out.chunks_exact_mut(n).enumerate().for_each(row);
        } else {
            out.par_chunks_exact_mut(n).enumerate().with_min_len(4).for_each(row);
        }
        remember(window, x);
    }
}

/// The window of the tokens behind `x`: its last rows, or what is left of the window before them.
fn remember(window: &mut [f32], x: &[f32]) {
    match x.len().checked_sub(window.len()) {
        Some(first) => window.copy_from_slice(&x[first..]),
        None => {
            window.copy_within(x.len().., 0);
            let kept = window.len() - x.len();
            window[kept..].copy_from_slice(x);
        }
    }
}

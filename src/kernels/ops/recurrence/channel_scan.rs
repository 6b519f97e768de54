//! Mamba's selective scan: each channel has a state whose elements decay at rates of their own, token by
//! token.
//!
//! # Definition
//!
//! Of every channel i and each token, over the elements j of its state: `s[j] = fma(s[j],
//! exp(dt[i] * a[i][j]), B[j] * (x[i] * dt[i]))` and `y[i] = dot(s, C)`, the dot over sixteen lanes by index
//! mod 16 and their tree; then `y[i] + x[i] * d[i]`, rounded apart. ggml: `ssm_scan` with a decay for each
//! element, and `mul` and `add` for `d`; its softplus of dt is taken before.

use rayon::prelude::*;

use super::super::lanes::{Isa, Lanes16};
use super::super::math::exp16;
use super::super::{Ops, run};

/// Elements of a call's states below which it stays on the calling thread: each is an exponential.
const PARALLEL: usize = 1 << 14;
/// Channels that one item of work has.
const GROUP: usize = 16;

/// A scan: its sizes, and what a model says of its channels.
#[derive(Clone, Copy, Debug)]
pub struct ChannelScan<'a> {
    /// Elements of a channel's state.
    pub state_len: usize,
    /// By which the state decays, negative in sound models: `[channels][state_len]`.
    pub a: &'a [f32],
    /// How much of its input a channel passes on: `[channels]`.
    pub d: &'a [f32],
}

/// The rows of a batch.
#[derive(Clone, Copy, Debug)]
pub struct ChannelRows<'a> {
    /// `[tokens][channels]`; of `dt` softplus is taken.
    pub x: &'a [f32],
    pub dt: &'a [f32],
    /// `[tokens][state_len]`
    pub b: &'a [f32],
    pub c: &'a [f32],
}

/// Some channels of a scan over the tokens of a batch, from the first on.
pub(in crate::kernels) struct Channels<'a> {
    scan: ChannelScan<'a>,
    rows: ChannelRows<'a>,
    first: usize,
}

/// States and outputs of a group of channels: `[channels][state_len]` and `[tokens][channels]`.
#[inline(always)]
pub(in crate::kernels::ops) fn scan_channels<I: Isa>(
    isa: I,
    work: &Channels<'_>,
    state: &mut [f32],
    out: &mut [f32],
) {
    let &Channels { scan: ChannelScan { state_len: n, a, d }, rows, first } = work;
    let (all, own) = (d.len(), state.len() / n);
    let (a, d) = (&a[first * n..][..own * n], &d[first..][..own]);
    let tokens = rows.b.chunks_exact(n).zip(rows.c.chunks_exact(n));
    for (t, ((b, c), out)) in tokens.zip(out.chunks_exact_mut(own)).enumerate() {
        let (x, dt) = (&rows.x[t * all + first..][..own], &rows.dt[t * all + first..][..own]);
        let mut i = 0;
        while i + 4 <= own {
            let mut dots = [isa.splat(0.0); 4];
            for (j, dot) in dots.iter_mut().enumerate() {
                let (at, span) = (i + j, (i + j) * n..(i + j + 1) * n);
                *dot = step(isa, [dt[at], x[at]], &a[span.clone()], [b, c], &mut state[span]);
            }
            for (j, y) in I::F::sum4(dots).into_iter().enumerate() {
                out[i + j] = y + x[i + j] * d[i + j];
            }
            i += 4;
        }
        while i < own {
            let span = i * n..(i + 1) * n;
            let dot = step(isa, [dt[i], x[i]], &a[span.clone()], [b, c], &mut state[span]);
            out[i] = dot.sum() + x[i] * d[i];
            i += 1;
        }
    }
}

/// A channel's state with its input; returns the lanes of its dot with C.
#[inline(always)]
fn step<I: Isa>(isa: I, [dt, x]: [f32; 2], a: &[f32], [b, c]: [&[f32]; 2], state: &mut [f32]) -> I::F {
    let (xdt, dt, mut dot) = (isa.splat(x * dt), isa.splat(dt), isa.splat(0.0));
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let ((c, c_tail), (states, state_tail)) = (c.as_chunks::<16>(), state.as_chunks_mut::<16>());
    for (((s, a), b), c) in states.iter_mut().zip(a).zip(b).zip(c) {
        let decay = exp16(isa, dt.mul(isa.load(a)));
        let new = isa.load(s).mul_add(decay, isa.load(b).mul(xdt));
        new.store(s);
        dot = new.mul_add(isa.load(c), dot);
    }
    if !state_tail.is_empty() {
        let decay = exp16(isa, dt.mul(isa.load_head(a_tail)));
        let new = isa.load_head(state_tail).mul_add(decay, isa.load_head(b_tail).mul(xdt));
        new.store_head(state_tail);
        dot = isa.load_head(state_tail).mul_add(isa.load_head(c_tail), dot);
    }
    dot
}

impl Ops {
    /// The scan of the tokens of one sequence; see the module.
    ///
    /// `state`: `[channels][state_len]`, what the sequence remembers, which becomes that of the tokens to
    /// come; `out`: `[tokens][channels]`. `scratch` is as long as `out` and is left with other values.
    pub fn channel_scan(
        &self,
        scan: &ChannelScan<'_>,
        rows: &ChannelRows<'_>,
        state: &mut [f32],
        scratch: &mut [f32],
        out: &mut [f32],
    ) {
        let (n, channels) = (scan.state_len, scan.d.len());
        assert!(n > 0 && channels > 0 && state.len() == channels * n, "scan: state");
        assert_eq!(scan.a.len(), state.len(), "scan: rates");
        let tokens = rows.b.len() / n;
        assert!(rows.b.len() == tokens * n && rows.c.len() == rows.b.len(), "scan: B and C");
        let whole = [rows.x.len(), rows.dt.len(), out.len(), scratch.len()].map(|n| n == tokens * channels);
        assert_eq!(whole, [true; 4], "scan: rows");
        if tokens == 0 {
            return;
        }
        let one = |((group, state), out): ((usize, &mut [f32]), &mut [f32])| {
            let work = Channels { scan: *scan, rows: *rows, first: group * GROUP };
            run!(self, scan_channels(&work, state, out));
        };
        // Outputs of one token lie as groups do; those of several are put in order afterwards.
        let by_group = if tokens == 1 { &mut *out } else { &mut *scratch };
        if tokens * state.len() < PARALLEL {
            let groups = state.chunks_mut(GROUP * n).enumerate();
            groups.zip(by_group.chunks_mut(GROUP * tokens)).for_each(one);
        } else {
            let groups = state.par_chunks_mut(GROUP * n).enumerate();
            groups.zip(by_group.par_chunks_mut(GROUP * tokens)).for_each(one);
        }
        if tokens > 1 {
            for (t, out) in out.chunks_exact_mut(channels).enumerate() {
                for (out, from) in out.chunks_mut(GROUP).zip(scratch.chunks(GROUP * tokens)) {
                    out.copy_from_slice(&from[t * out.len()..][..out.len()]);
                }
            }
        }
    }
}

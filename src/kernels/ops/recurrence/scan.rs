//! Mamba 2's selective scan: a state of each head that decays and takes in its input, token by token.
//!
//! # Definition
//!
//! Of every head h with group `g = h / (heads / groups)` and each token, `decay = exp(dt * a[h])`; then of
//! each row i of the head, `xdt = x[i] * dt` and over the columns j of its state `s[i][j] = fma(s[i][j],
//! decay, B[g][j] * xdt)` and `y[i] = dot(s[i], C[g])`, the dot over sixteen lanes by index mod 16 and their
//! tree; last `y[i] + x[i] * d[h]`, rounded apart. ggml: `ssm_scan` with a decay for each head, and `mul` and
//! `add` for `d`; its softplus of dt is taken before.

use rayon::prelude::*;

use super::super::lanes::{Isa, Lanes16};
use super::super::math::exp16;
use super::super::{Ops, run};

/// Multiply-adds of a call below which it stays on the calling thread.
const PARALLEL: usize = 1 << 16;

/// A scan: its sizes, and what a model says of its heads.
#[derive(Clone, Copy, Debug)]
pub struct SelectiveScan<'a> {
    /// Rows of a head.
    pub head_len: usize,
    /// Groups of heads with the same B and C; divides the heads.
    pub groups: usize,
    /// Columns of a head's state: elements of a group's B and of its C.
    pub state_len: usize,
    /// By which the state decays, negative in sound models: `[heads]`.
    pub a: &'a [f32],
    /// How much of its input a row passes on: `[heads]`.
    pub d: &'a [f32],
}

impl SelectiveScan<'_> {
    fn heads(&self) -> usize {
        self.a.len()
    }

    /// Rows of all heads.
    pub fn inner_len(&self) -> usize {
        self.heads() * self.head_len
    }

    /// Floats of a token's input: x, and B and C of all groups.
    pub fn input_len(&self) -> usize {
        self.inner_len() + 2 * self.groups * self.state_len
    }

    /// Floats that a sequence remembers: `[heads][head_len][state_len]`.
    pub fn state_floats(&self) -> usize {
        self.inner_len() * self.state_len
    }
}

/// One head of a scan over the tokens of a batch.
pub(in crate::kernels) struct Head<'a> {
    scan: SelectiveScan<'a>,
    xbc: &'a [f32],
    dt: &'a [f32],
    head: usize,
}

/// The state and the outputs of one head: `[head_len][state_len]` and `[tokens][head_len]`.
#[inline(always)]
pub(in crate::kernels::ops) fn scan_head<I: Isa>(
    isa: I,
    work: &Head<'_>,
    state: &mut [f32],
    out: &mut [f32],
) {
    let &Head { scan, xbc, dt, head } = work;
    let (len, n, heads) = (scan.head_len, scan.state_len, scan.heads());
    let (a, d) = (isa.splat(scan.a[head]), scan.d[head]);
    let b_at = scan.inner_len() + head / (heads / scan.groups) * n;
    let rows = xbc.chunks_exact(scan.input_len()).zip(dt.chunks_exact(heads));
    for ((row, dt), out) in rows.zip(out.chunks_exact_mut(len)) {
        let (x, b, c) = (&row[head * len..][..len], &row[b_at..][..n], &row[b_at + scan.groups * n..][..n]);
        let dt = dt[head];
        let token = Token { decay: exp16(isa, isa.splat(dt).mul(a)), b, c };
        let (fours, rest) = x.as_chunks::<4>();
        let (states, rest_states) = state.split_at_mut(fours.len() * 4 * n);
        let (outs, rest_outs) = out.as_chunks_mut::<4>();
        for ((x, states), out) in fours.iter().zip(states.chunks_exact_mut(4 * n)).zip(outs) {
            let mut dots = [isa.splat(0.0); 4];
            for ((dot, &x), state) in dots.iter_mut().zip(x).zip(states.chunks_exact_mut(n)) {
                *dot = token.step(isa, x * dt, state);
            }
            for ((out, y), &x) in out.iter_mut().zip(I::F::sum4(dots)).zip(x) {
                *out = y + x * d;
            }
        }
        for ((&x, state), out) in rest.iter().zip(rest_states.chunks_exact_mut(n)).zip(rest_outs) {
            *out = token.step(isa, x * dt, state).sum() + x * d;
        }
    }
}

/// What all rows of a head take of a token.
struct Token<'a, F> {
    decay: F,
    b: &'a [f32],
    c: &'a [f32],
}

impl<F: Lanes16> Token<'_, F> {
    /// A row of the state with its input times dt; returns the lanes of its dot with C.
    #[inline(always)]
    fn step<I: Isa<F = F>>(&self, isa: I, xdt: f32, state: &mut [f32]) -> F {
        let (xdt, mut dot) = (isa.splat(xdt), isa.splat(0.0));
        let ((bs, b_tail), (cs, c_tail)) = (self.b.as_chunks::<16>(), self.c.as_chunks::<16>());
        let (states, state_tail) = state.as_chunks_mut::<16>();
        for ((s, b), c) in states.iter_mut().zip(bs).zip(cs) {
            let new = isa.load(s).mul_add(self.decay, isa.load(b).mul(xdt));
            new.store(s);
            dot = new.mul_add(isa.load(c), dot);
        }
        if !state_tail.is_empty() {
            let (b, c) = (isa.load_head(b_tail), isa.load_head(c_tail));
            let new = isa.load_head(state_tail).mul_add(self.decay, b.mul(xdt));
            new.store_head(state_tail);
            dot = isa.load_head(state_tail).mul_add(c, dot);
        }
        dot
    }
}

impl Ops {
    /// The scan of the tokens of one sequence; see the module.
    ///
    /// `xbc`: `[tokens][x: heads * head_len][B: groups * state_len][C: the same]`; `dt`: `[tokens][heads]`,
    /// softplus taken; `state`: `[heads][head_len][state_len]`, what the sequence remembers, which becomes
    /// that of the tokens to come; `out`: `[tokens][heads * head_len]`. `scratch` is as long as `out` and is
    /// left with other values.
    pub fn selective_scan(
        &self,
        scan: &SelectiveScan<'_>,
        xbc: &[f32],
        dt: &[f32],
        state: &mut [f32],
        scratch: &mut [f32],
        out: &mut [f32],
    ) {
        let (heads, len, inner) = (scan.heads(), scan.head_len, scan.inner_len());
        assert!(heads > 0 && scan.d.len() == heads && heads.is_multiple_of(scan.groups), "scan: heads");
        assert!(len > 0 && scan.state_len > 0 && state.len() == scan.state_floats(), "scan: state");
        let tokens = dt.len() / heads;
        let inputs = xbc.len() == tokens * scan.input_len() && dt.len() == tokens * heads;
        assert!(inputs && out.len() == tokens * inner && scratch.len() == out.len(), "scan: rows");
        if tokens == 0 {
            return;
        }
        let one = |((head, state), out): ((usize, &mut [f32]), &mut [f32])| {
            run!(self, scan_head(&Head { scan: *scan, xbc, dt, head }, state, out));
        };
        // Outputs of one token lie as heads do; those of several are put in order afterwards.
        let by_head = if tokens == 1 { &mut *out } else { &mut *scratch };
        let state_of_head = len * scan.state_len;
        if tokens * state.len() < PARALLEL {
            let heads = state.chunks_exact_mut(state_of_head).enumerate();
            heads.zip(by_head.chunks_exact_mut(tokens * len)).for_each(one);
        } else {
            let heads = state.par_chunks_exact_mut(state_of_head).enumerate();
            heads.zip(by_head.par_chunks_exact_mut(tokens * len)).for_each(one);
        }
        if tokens > 1 {
            for (t, out) in out.chunks_exact_mut(inner).enumerate() {
                for (head, out) in out.chunks_exact_mut(len).enumerate() {
                    out.copy_from_slice(&scratch[(head * tokens + t) * len..][..len]);
                }
            }
        }
    }
}

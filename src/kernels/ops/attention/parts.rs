//! The parts that a row's attention is merged from, generic over the instruction set.
//!
//! A part is what a row has from a chunk, or from several merged:
//! `[o: value_len padded to 16][m][s][w][13 unused]`.

use crate::kernels::ops::lanes::{Isa, Lanes16};
use crate::kernels::ops::math::{exp16, scale};

/// Floats of a part.
pub(super) fn part_len(value_len: usize) -> usize {
    value_len.next_multiple_of(16) + 16
}

/// What a part has beside its `o`: `m`, `s` and `w` of the definition.
#[derive(Clone, Copy)]
pub(super) struct State {
    pub max: f32,
    pub sum: f32,
    /// What `o` is yet to be multiplied by, to be the values' sum by `exp(score - max)`.
    pub weight: f32,
}

impl State {
    /// The state of a part.
    pub fn of(part: &[f32]) -> Self {
        let at = &part[part.len() - 16..];
        Self { max: at[0], sum: at[1], weight: at[2] }
    }

    pub fn store(self, part: &mut [f32]) {
        let at = part.len() - 16;
        part[at..at + 3].copy_from_slice(&[self.max, self.sum, self.weight]);
    }
}

/// The greater of two maxima, and what was summed under each is to be multiplied by.
#[inline(always)]
fn rescale<I: Isa>(isa: I, a: f32, b: f32) -> (f32, [f32; 2]) {
    let max = if b > a { b } else { a };
    let mut factors = [0.0; 16];
    exp16(isa, isa.load_head(&[a - max, b - max])).store(&mut factors);
    (max, [factors[0], factors[1]])
}

/// Merges a part into `o` and its state, and returns the new state. `o` is as long as a head or padded.
#[inline(always)]
pub(super) fn merge<I: Isa>(isa: I, o: &mut [f32], state: State, part: &[f32]) -> State {
    let (from, other) = (&part[..part.len() - 16], State::of(part));
    let (max, [a, b]) = rescale(isa, state.max, other.max);
    let (va, vb) = (isa.splat(state.weight * a), isa.splat(other.weight * b));
    let (blocks, tail) = o.as_chunks_mut::<16>();
    let (from, _) = from.as_chunks::<16>();
    for (o, from) in blocks.iter_mut().zip(from) {
        isa.load(o).mul_add(va, isa.load(from).mul(vb)).store(o);
    }
    if !tail.is_empty() {
        isa.load_head(tail).mul_add(va, isa.load(&from[blocks.len()]).mul(vb)).store_head(tail);
    }
    State { max, sum: state.sum.mul_add(a, other.sum * b), weight: 1.0 }
}

/// Where the parts of one row stand, in the order of its chunks.
pub(in crate::kernels::ops) struct Parts<'a> {
    pub all: &'a [f32],
    pub first: usize,
    pub step: usize,
    pub count: usize,
}

/// Merges the parts of one row and its head's sink, and divides by the sum; `out`: `[value_len]`.
#[inline(always)]
pub(in crate::kernels::ops) fn combine<I: Isa>(isa: I, parts: Parts, sink: Option<f32>, out: &mut [f32]) {
    let len = part_len(out.len());
    let part = |i: usize| &parts.all[parts.first + i * parts.step..][..len];
    out.copy_from_slice(&part(0)[..out.len()]);
    let mut state = State::of(part(0));
    for i in 1..parts.count {
        state = merge(isa, out, state, part(i));
    }
    if let Some(sink) = sink {
        let (max, [a, b]) = rescale(isa, state.max, sink);
        state = State { max, sum: state.sum.mul_add(a, b), weight: state.weight * a };
    }
    scale(isa, out, state.weight / state.sum);
}

//! Rows pooled into one, element by element, by a softmax of their scores: how compressed keys are made of
//! those of several positions (DeepSeek V4).
//!
//! # Definition
//!
//! Of element i of all rows r in rising order: `m = max s_r`, `p_r = exp(s_r - m)`, `S = sum p_r`,
//! `o = fma(v_r, p_r, o)` from 0, and the result is `o / S`. ggml divides each `p_r` first.

use rayon::prelude::*;

use super::lanes::{Isa, Lanes16};
use super::math::exp16;
use super::{Ops, run};

/// Elements of all rows from which groups are spread over threads.
const PARALLEL: usize = 1 << 14;

/// Values of a row and their scores, as many.
#[derive(Clone, Copy, Debug)]
pub struct PooledRow<'a> {
    pub values: &'a [f32],
    pub scores: &'a [f32],
}

impl Ops {
    /// Pools groups of rows: `out`, `[groups][n]`; `group` gives the rows of each, at least one, in a
    /// buffer.
    pub fn pool<'a>(
        &self,
        out: &mut [f32],
        n: usize,
        rows: usize,
        group: impl Fn(usize, &mut Vec<PooledRow<'a>>) + Sync,
    ) {
        assert!(n > 0 && out.len().is_multiple_of(n), "pool: {} values in rows of {n}", out.len());
        let pool = |buffer: &mut Vec<PooledRow<'a>>, (i, out): (usize, &mut [f32])| {
            buffer.clear();
            group(i, buffer);
            let right = |row: &PooledRow<'_>| row.values.len() == n && row.scores.len() == n;
            assert!(!buffer.is_empty() && buffer.iter().all(right), "pool: rows");
            run!(self, pool(buffer, out));
        };
        if out.len() * rows < PARALLEL {
            let mut buffer = Vec::new();
            out.chunks_exact_mut(n).enumerate().for_each(|group| pool(&mut buffer, group));
        } else {
            out.par_chunks_exact_mut(n).enumerate().for_each_init(Vec::new, pool);
        }
    }
}

/// One group.
#[inline(always)]
pub(super) fn pool<I: Isa>(isa: I, rows: &[PooledRow], out: &mut [f32]) {
    let n = out.len();
    let mut at = 0;
    while at < n {
        let len = (n - at).min(16);
        let mut most = isa.splat(f32::NEG_INFINITY);
        for row in rows {
            most = isa.load_first(&row.scores[at..], len).max(most);
        }
        let (mut sum, mut pooled) = (isa.splat(0.0), isa.splat(0.0));
        for row in rows {
            let p = exp16(isa, isa.load_first(&row.scores[at..], len).sub(most));
            sum = sum.add(p);
            pooled = isa.load_first(&row.values[at..], len).mul_add(p, pooled);
        }
        pooled.div(sum).store_head(&mut out[at..at + len]);
        at += len;
    }
}

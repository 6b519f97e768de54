//! One layer's keys or values in a KV cache: `[kv_head][ctx][head_dim]`, as f32 or f16.

use rayon::prelude::*;

use super::{Ops, run};

/// Keys or values of one layer, to be read: `[kv_head][ctx][head_dim]`.
#[derive(Clone, Copy, Debug)]
pub enum KvView<'a> {
    /// The bits of f16 values.
    F16(&'a [u16]),
    F32(&'a [f32]),
}

/// Keys or values of one layer, to be written: `[kv_head][ctx][head_dim]`.
#[derive(Debug)]
pub enum KvViewMut<'a> {
    /// The bits of f16 values.
    F16(&'a mut [u16]),
    F32(&'a mut [f32]),
}

impl<'a> KvView<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::F16(x) => x.len(),
            Self::F32(x) => x.len(),
        }
    }

    pub(super) fn slice(self, range: std::ops::Range<usize>) -> KvView<'a> {
        match self {
            Self::F16(x) => KvView::F16(&x[range]),
            Self::F32(x) => KvView::F32(&x[range]),
        }
    }
}

/// Elements from which storing is spread over threads, by head.
const PARALLEL: usize = 1 << 15;

impl Ops {
    /// Writes new keys or values into a layer's cache at positions `first_pos..`, as f32 or rounded to f16 (to
    /// nearest, ties to even).
    ///
    /// `rows`: `[tokens][kv_heads * head_dim]`; `cache`: `[kv_heads][ctx][head_dim]`.
    pub fn store_kv(
        &self,
        rows: &[f32],
        cache: KvViewMut<'_>,
        kv_heads: usize,
        head_dim: usize,
        ctx: usize,
        first_pos: usize,
    ) {
        let token = kv_heads * head_dim;
        assert!(token > 0 && rows.len().is_multiple_of(token), "store_kv: {} values", rows.len());
        assert!(first_pos + rows.len() / token <= ctx, "store_kv: beyond the context of {ctx}");
        match cache {
            KvViewMut::F16(cache) => {
                store(rows, cache, token, head_dim, ctx, first_pos, |from, to| run!(self, narrow(from, to)))
            }
            KvViewMut::F32(cache) => {
                store(rows, cache, token, head_dim, ctx, first_pos, |from, to: &mut [f32]| {
                    to.copy_from_slice(from)
                })
            }
        }
    }
}

fn store<E: Send>(
    rows: &[f32],
    cache: &mut [E],
    token: usize,
    head_dim: usize,
    ctx: usize,
    first_pos: usize,
    put: impl Fn(&[f32], &mut [E]) + Sync,
) {
    assert_eq!(cache.len(), token * ctx, "store_kv: cache");
    let store_head = |(head, cache): (usize, &mut [E])| {
        let to = cache[first_pos * head_dim..].chunks_exact_mut(head_dim);
        for (row, to) in rows.chunks_exact(token).zip(to) {
            put(&row[head * head_dim..][..head_dim], to);
        }
    };
    if rows.len() < PARALLEL {
        cache.chunks_exact_mut(ctx * head_dim).enumerate().for_each(store_head);
    } else {
        cache.par_chunks_exact_mut(ctx * head_dim).enumerate().for_each(store_head);
    }
}

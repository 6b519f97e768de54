//! Pages of a KV cache: the keys or values of [`PAGE`] positions of one layer and sequence, as f32 or f16.

use rayon::prelude::*;

use super::{Ops, run};

/// Positions of a page, and of a chunk of attention's arithmetic; a multiple of 16.
pub const PAGE: usize = 128;

/// Keys or values of a page, to be read: `[kv_heads][PAGE][len]`.
#[derive(Clone, Copy, Debug)]
pub enum KvView<'a> {
    /// The bits of f16 values.
    F16(&'a [u16]),
    F32(&'a [f32]),
}

/// Keys or values of a page, to be written: `[kv_heads][PAGE][len]`.
#[derive(Debug)]
pub enum KvViewMut<'a> {
    /// The bits of f16 values.
    F16(&'a mut [u16]),
    F32(&'a mut [f32]),
}

impl KvView<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F16(x) => x.len(),
            Self::F32(x) => x.len(),
        }
    }

    fn is_f16(&self) -> bool {
        matches!(self, Self::F16(_))
    }
}

/// Consecutive pages of one layer and sequence: page i holds the positions from `(first_page + i) * PAGE` on.
/// Pages before them are gone: out of every window.
#[derive(Clone, Copy, Debug)]
pub struct KvPages<'a> {
    pub first_page: usize,
    /// `[kv_heads][PAGE][key_len]` each.
    pub keys: &'a [KvView<'a>],
    /// `[kv_heads][PAGE][value_len]` each, as many as keys and of the same kind; `None`: a position's value
    /// is the beginning of its key.
    pub values: Option<&'a [KvView<'a>]>,
}

impl KvPages<'_> {
    pub(super) fn check(&self, kv_heads: usize, key_len: usize, value_len: usize) {
        let values = self.values.unwrap_or(self.keys);
        let value_row = self.value_row(key_len, value_len);
        assert!(value_len <= value_row, "values that are longer than keys");
        assert_eq!(self.keys.len(), values.len(), "pages of keys and of values");
        for (k, v) in self.keys.iter().zip(values) {
            let lens = (kv_heads * PAGE * key_len, kv_heads * PAGE * value_row);
            assert_eq!((k.len(), v.len()), lens, "lengths of pages");
            let kind = self.keys[0].is_f16();
            assert!(k.is_f16() == kind && v.is_f16() == kind, "kinds of pages");
        }
    }

    /// Elements from a position's value to the next one's.
    pub(super) fn value_row(&self, key_len: usize, value_len: usize) -> usize {
        self.values.map_or(key_len, |_| value_len)
    }
}

/// Elements from which storing is spread over threads, by head.
const PARALLEL: usize = 1 << 15;

impl Ops {
    /// Writes new keys or values into one page, at its positions `first..` (counted from the page's start),
    /// as f32 or rounded to f16 (to nearest, ties to even).
    ///
    /// `rows`: `[tokens][kv_heads * len]`; `page`: `[kv_heads][PAGE][len]`.
    pub fn store_kv(&self, rows: &[f32], page: KvViewMut<'_>, kv_heads: usize, len: usize, first: usize) {
        let token = kv_heads * len;
        assert!(token > 0 && rows.len().is_multiple_of(token), "store_kv: {} values", rows.len());
        assert!(first + rows.len() / token <= PAGE, "store_kv: beyond the page");
        match page {
            KvViewMut::F16(page) => {
                store(rows, page, token, len, first, |from, to| run!(self, narrow(from, to)))
            }
            KvViewMut::F32(page) => {
                store(rows, page, token, len, first, |from, to: &mut [f32]| to.copy_from_slice(from))
            }
        }
    }
}

fn store<E: Send>(
    rows: &[f32],
    page: &mut [E],
    token: usize,
    len: usize,
    first: usize,
    put: impl Fn(&[f32], &mut [E]) + Sync,
) {
    assert_eq!(page.len(), token * PAGE, "store_kv: page");
    let store_head = |(head, page): (usize, &mut [E])| {
        let to = page[first * len..].chunks_exact_mut(len);
        for (row, to) in rows.chunks_exact(token).zip(to) {
            put(&row[head * len..][..len], to);
        }
    };
    if rows.len() < PARALLEL {
        page.chunks_exact_mut(PAGE * len).enumerate().for_each(store_head);
    } else {
        page.par_chunks_exact_mut(PAGE * len).enumerate().for_each(store_head);
    }
}

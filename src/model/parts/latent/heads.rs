//! Rows of heads: head by head, or in the order of tokens.

use rayon::prelude::*;

use crate::model::observer::Watch;
use crate::model::{Label, NodeId};

/// Elements from which heads are rounded and moved by several threads.
pub(super) const PARALLEL: usize = 1 << 15;

/// The first `cols` of each head's elements of `[n][heads][from_len]`, as `[heads][n][cols]`.
pub(in crate::model::parts) fn by_heads(
    from: &[f32],
    from_len: usize,
    to: &mut [f32],
    cols: usize,
    [n, heads]: [usize; 2],
) {
    each_row(to, cols, |i, to| {
        let (head, token) = (i / n, i % n);
        to.copy_from_slice(&from[(token * heads + head) * from_len..][..cols]);
    });
}

/// Rows of `[heads][n][cols]` to the beginnings of those of `[n][heads][to_len]`.
pub(in crate::model::parts) fn by_tokens(
    from: &[f32],
    cols: usize,
    to: &mut [f32],
    to_len: usize,
    [n, heads]: [usize; 2],
) {
    each_row(to, to_len, |i, to| {
        let (token, head) = (i / heads, i % heads);
        to[..cols].copy_from_slice(&from[(head * n + token) * cols..][..cols]);
    });
}

/// Fills rows, many of them by several threads.
pub(super) fn each_row(to: &mut [f32], len: usize, fill: impl Fn(usize, &mut [f32]) + Sync) {
    if to.len() < PARALLEL {
        to.chunks_exact_mut(len).enumerate().for_each(|(i, to)| fill(i, to));
    } else {
        to.par_chunks_exact_mut(len)
            .with_min_len(PARALLEL.div_ceil(len))
            .enumerate()
            .for_each(|(i, to)| fill(i, to));
    }
}

/// Shows `shape[2]` (of vectors `shape[1]`) elements of each row of `len`, from `offset` on.
pub(in crate::model::parts) fn show_columns(
    watch: &mut Watch<'_>,
    label: Label<'_>,
    shape: [usize; 3],
    rows: &mut [f32],
    len: usize,
    offset: usize,
) -> NodeId<'static> {
    let n = if shape[2] > 1 { shape[2] } else { shape[1] };
    let rows = std::cell::RefCell::new(rows);
    watch.show_scattered(
        label,
        shape,
        |values| {
            for row in rows.borrow().chunks_exact(len) {
                values.extend_from_slice(&row[offset..][..n]);
            }
        },
        |values| {
            for (row, values) in rows.borrow_mut().chunks_exact_mut(len).zip(values.chunks_exact(n)) {
                row[offset..][..n].copy_from_slice(values);
            }
        },
    )
}

/// Shows `[heads][n][cols]` in the order of tokens.
pub(in crate::model::parts) fn show_by_head(
    watch: &mut Watch<'_>,
    label: Label<'_>,
    shape: [usize; 3],
    values: &mut [f32],
) -> NodeId<'static> {
    let [n, heads, cols] = shape;
    let by_head = std::cell::RefCell::new(values);
    watch.show_scattered(
        label,
        shape,
        |shown| {
            shown.resize(n * heads * cols, 0.0);
            by_tokens(&by_head.borrow(), cols, shown, cols, [n, heads]);
        },
        |shown| by_heads(shown, cols, &mut by_head.borrow_mut(), cols, [n, heads]),
    )
}

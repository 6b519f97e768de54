//! Choosing experts: top-k over a router's row. Scalar on every CPU: rows are short.

use std::cmp::Ordering;

/// Writes the indices of the `out.len()` largest values of `x` into `out`, by falling value; among equals the lower
/// index comes first (-0 equals 0), NaN counts as less than every number.
///
/// `out` must not be longer than `x`.
pub fn top_k(x: &[f32], out: &mut [u32]) {
    assert!(out.len() <= x.len(), "top {} of {}", out.len(), x.len());
    let mut found = 0;
    for (index, &value) in x.iter().enumerate() {
        // Those already found have lower indices: an equal stays behind them.
        let mut at = found;
        while at > 0 && rank(value, x[out[at - 1] as usize]) == Ordering::Greater {
            at -= 1;
        }
        if at == out.len() {
            continue;
        }
        found = (found + 1).min(out.len());
        out.copy_within(at..found - 1, at + 1);
        out[at] = index as u32;
    }
}

/// The order of values, NaN the least.
fn rank(a: f32, b: f32) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
}

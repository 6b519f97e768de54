//! Choosing experts: top-k over a router's row. Scalar on every CPU: rows are short.

use std::cmp::Ordering;

/// Writes the indices of the `out.len()` largest values of `x` into `out`, by falling value; among equals the
/// lower index comes first (-0 equals 0), NaN counts as less than every number.
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

/// As [`top_k`] over the experts of the best `groups_used` groups alone, all groups of the same size
/// (DeepSeek V3, as in ggml's `build_moe_ffn`): a group's score is the sum of its two best probabilities (its
/// one's, of one), among equals the lower group is better.
///
/// `groups` divides the experts; `chosen` must not be longer than the experts of `groups_used` groups.
pub fn top_k_grouped(probs: &[f32], groups: usize, groups_used: usize, chosen: &mut [u32]) {
    let experts = probs.len();
    assert!(experts > 0 && experts.is_multiple_of(groups), "{experts} experts in {groups} groups");
    assert!(groups_used <= groups, "{groups_used} of {groups} groups");
    let size = experts / groups;
    assert!(chosen.len() <= groups_used * size, "top {} of {groups_used} groups of {size}", chosen.len());
    let score = |group: &[f32]| {
        let mut best = [0; 2];
        let best = &mut best[..size.min(2)];
        top_k(group, best);
        best.iter().map(|&i| group[i as usize]).sum::<f32>()
    };
    let scores: Vec<f32> = probs.chunks_exact(size).map(score).collect();
    let mut used = vec![0; groups_used];
    top_k(&scores, &mut used);
    used.sort_unstable();
    let experts: Vec<u32> =
        used.iter().flat_map(|&group| (0..size as u32).map(move |i| group * size as u32 + i)).collect();
    let left: Vec<f32> = experts.iter().map(|&expert| probs[expert as usize]).collect();
    top_k(&left, chosen);
    chosen.iter_mut().for_each(|i| *i = experts[*i as usize]);
}

/// The order of values, NaN the least.
fn rank(a: f32, b: f32) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
}

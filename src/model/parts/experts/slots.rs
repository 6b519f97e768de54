//! Slots: (token, expert) pairs grouped by expert, so that an expert's weights are read once for all its
//! tokens.

use crate::kernels::ops::Ops;
use crate::model::products::Product;
use crate::model::state::{ExpertBuffers, Inputs};
use crate::model::weights::Matrix;

/// Groups the chosen (token, expert) pairs by expert: tokens, pairs and slots of each expert, the slot of
/// each pair.
pub(in crate::model) fn group(experts: &mut ExpertBuffers, t: usize, used: usize) {
    let ExpertBuffers { chosen, tokens, pairs, by_slot, slots, .. } = experts;
    let chosen = &chosen[..t * used];
    for lists in [&mut *tokens, &mut *pairs, &mut *by_slot] {
        lists.iter_mut().for_each(Vec::clear);
    }
    for (pair, &expert) in chosen.iter().enumerate() {
        tokens[expert as usize].push(pair / used);
        pairs[expert as usize].push(pair);
    }
    let mut first = 0;
    for (tokens, by_slot) in tokens.iter().zip(&mut *by_slot) {
        by_slot.extend(first..first + tokens.len());
        first += tokens.len();
    }
    let mut next: Vec<usize> = by_slot.iter().map(|s| s.first().copied().unwrap_or(0)).collect();
    slots.clear();
    slots.extend(chosen.iter().map(|&expert| {
        next[expert as usize] += 1;
        next[expert as usize] - 1
    }));
}

/// Takes experts out of the lists of [`group`]: others compute them. The slots of those that are left are
/// counted anew; the slot of each pair stays what it was.
pub(in crate::model) fn take_out(buffers: &mut ExpertBuffers, experts: impl Iterator<Item = usize>) {
    let ExpertBuffers { tokens, pairs, by_slot, .. } = buffers;
    for expert in experts {
        for lists in [&mut *tokens, &mut *pairs, &mut *by_slot] {
            lists[expert].clear();
        }
    }
    by_slot.iter_mut().flatten().enumerate().for_each(|(i, slot)| *slot = i);
}

/// Each expert's rows of an input.
pub(in crate::model) fn gather(gathered: &mut [Inputs], from: &Inputs, rows: &[Vec<usize>]) {
    for (to, rows) in gathered.iter_mut().zip(rows).filter(|(_, rows)| !rows.is_empty()) {
        to.gather(from, rows);
    }
}

/// Products of each expert in use with its rows. Outputs are by slot.
pub(in crate::model) fn products<'p>(
    tokens: &[Vec<usize>],
    gathered: &'p [Inputs],
    outputs: Vec<(&'p Vec<Matrix>, &'p mut [f32])>,
) -> Vec<Product<'p>> {
    let mut products = Vec::new();
    for (part, out) in outputs {
        let mut rest = out;
        for e in (0..part.len()).filter(|&e| !tokens[e].is_empty()) {
            let (out, others) = rest.split_at_mut(tokens[e].len() * part[e].rows);
            rest = others;
            products.push(Product { matrix: &part[e], inputs: &gathered[e], out });
        }
    }
    products
}

/// Each token's rows of `x`, added in the order of rank.
pub(super) fn add_in_order(ops: &Ops, x: &[f32], slots: &[usize], used: usize, out: &mut [f32]) {
    let n = out.len() / (slots.len() / used).max(1);
    for (out, slots) in out.chunks_exact_mut(n.max(1)).zip(slots.chunks_exact(used)) {
        out.copy_from_slice(&x[slots[0] * n..][..n]);
        for slot in &slots[1..] {
            ops.add(out, &x[slot * n..][..n]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_grouped_by_expert_and_found_by_rank() {
        let mut experts = ExpertBuffers {
            chosen: vec![2, 0, 1, 2, 2, 0],
            tokens: vec![Vec::new(); 4],
            pairs: vec![Vec::new(); 4],
            by_slot: vec![Vec::new(); 4],
            ..ExpertBuffers::default()
        };
        group(&mut experts, 3, 2);
        assert_eq!(experts.tokens, [vec![0, 2], vec![1], vec![0, 1, 2], vec![]]);
        assert_eq!(experts.pairs, [vec![1, 5], vec![2], vec![0, 3, 4], vec![]]);
        assert_eq!(experts.by_slot, [vec![0, 1], vec![2], vec![3, 4, 5], vec![]]);
        assert_eq!(experts.slots, [3, 0, 2, 4, 5, 1]);
        take_out(&mut experts, [0].into_iter());
        assert_eq!(experts.tokens, [vec![], vec![1], vec![0, 1, 2], vec![]]);
        assert_eq!(experts.pairs, [vec![], vec![2], vec![0, 3, 4], vec![]]);
        assert_eq!(experts.by_slot, [vec![], vec![0], vec![1, 2, 3], vec![]]);
    }
}

//! Slots: (token, expert) pairs grouped by expert, so that an expert's weights are read once for all its
//! tokens.

use crate::kernels::Kernels;
use crate::kernels::ops::Ops;
use crate::model::products::{Product, multiply};
use crate::model::state::{ExpertBuffers, Inputs};
use crate::model::weights::Matrix;
use crate::store::{Store, StoreError};

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

/// Each expert's rows of an input.
pub(super) fn gather(gathered: &mut [Inputs], from: &Inputs, rows: &[Vec<usize>]) {
    for (to, rows) in gathered.iter_mut().zip(rows).filter(|(_, rows)| !rows.is_empty()) {
        to.gather(from, rows);
    }
}

/// Products of each expert in use with its rows. Outputs are by slot.
pub(super) fn products(
    kernels: &'static Kernels,
    store: &Store,
    tokens: &[Vec<usize>],
    gathered: &[Inputs],
    outputs: &mut [(&Vec<Matrix>, &mut [f32])],
) -> Result<(), StoreError> {
    let mut products = Vec::new();
    for (part, out) in outputs {
        let mut rest = &mut **out;
        for e in (0..part.len()).filter(|&e| !tokens[e].is_empty()) {
            let (out, others) = rest.split_at_mut(tokens[e].len() * part[e].rows);
            rest = others;
            products.push(Product { matrix: &part[e], inputs: &gathered[e], out });
        }
    }
    multiply(kernels, store, products)
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
    }
}

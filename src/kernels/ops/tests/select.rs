//! The choice of experts.

use super::*;

#[test]
fn top_k_orders_ties_and_nan() {
    let check = |x: &[f32], wanted: &[u32]| {
        let mut out = vec![9; wanted.len()];
        top_k(x, &mut out);
        assert_eq!(out, wanted, "{x:?}");
    };
    check(&[0.1, 0.4, 0.2, 0.3], &[1, 3]);
    check(&[0.5, 0.5, 0.7, 0.5], &[2, 0, 1]);
    check(&[f32::NAN, 1.0, f32::NEG_INFINITY, f32::NAN], &[1, 2, 0, 3]);
    check(&[f32::NAN; 3], &[0, 1]);
    check(&[-0.0, 0.0, -1.0], &[0, 1, 2]);
    check(&[1.0], &[]);
    let mut random = Random(7);
    for n in 1..50 {
        let x: Vec<f32> = (0..n).map(|_| (random.next() % 7) as f32).collect();
        let mut wanted: Vec<u32> = (0..n as u32).collect();
        wanted.sort_by(|&a, &b| x[b as usize].total_cmp(&x[a as usize]).then(a.cmp(&b)));
        check(&x, &wanted[..n.min(8)]);
    }
}

#[test]
fn groups_are_chosen_by_their_two_best() {
    let check = |probs: &[f32], groups, used, wanted: &[u32]| {
        let mut out = vec![9; wanted.len()];
        top_k_grouped(probs, groups, used, &mut out);
        assert_eq!(out, wanted, "{probs:?}, {used} of {groups}");
    };
    // Sums of two: 0.75, 1.0, 0.5. The best expert's group is not among the best.
    let probs = [0.75, 0.0, 0.5, 0.5, 0.25, 0.25];
    check(&probs, 3, 1, &[2, 3]);
    check(&probs, 3, 2, &[0, 2, 3, 1]);
    check(&probs, 3, 3, &[0, 2, 3, 4, 5, 1]);
    check(&probs, 1, 1, &[0, 2]);
    // Groups of one, and ties: the lower group, the lower expert.
    check(&probs, 6, 2, &[0, 2]);
    check(&[0.5, 0.25, 0.25, 0.5, 0.5, 0.25], 3, 2, &[0, 3]);
    // Negative scores (a bias may make them) are better than those of other groups.
    check(&[-1.0, -2.0, -5.0, 3.0, 0.0, 0.0], 3, 1, &[4, 5]);
    check(&[f32::NEG_INFINITY, 1.0, 0.0, 0.5], 2, 1, &[3, 2]);
    check(&[f32::NAN, 1.0, 0.0, 0.5], 2, 1, &[3, 2]);
    // A third value of a group does not count.
    check(&[0.5, 0.5, 0.5, 0.75, 0.5, 0.0], 2, 1, &[3, 4]);
}

#[test]
fn one_group_is_no_group() {
    let mut random = Random(19);
    for n in [1, 7, 64, 256] {
        let probs: Vec<f32> = (0..n).map(|_| (random.next() % 50) as f32).collect();
        for k in [1, 4, 8].map(|k: usize| k.min(n)) {
            let (mut all, mut grouped) = (vec![0; k], vec![0; k]);
            top_k(&probs, &mut all);
            top_k_grouped(&probs, 1, 1, &mut grouped);
            assert_eq!(all, grouped);
        }
    }
}

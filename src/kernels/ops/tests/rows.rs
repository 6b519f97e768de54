//! Operations on rows: all instances give the portable one's bits, whatever the threads.

use half::f16;

use super::*;

/// Lengths around the sixteen lanes and around powers of two.
fn lengths() -> impl Iterator<Item = usize> {
    (1..=40).chain([100, 255, 256, 257])
}

/// Runs every row operation and appends the results.
fn all_rows(ops: &Ops, x: &[f32], y: &[f32]) -> Vec<(&'static str, Vec<f32>)> {
    let n = x.len();
    let in_place = |f: &dyn Fn(&mut [f32])| {
        let mut out = x.to_vec();
        f(&mut out);
        out
    };
    vec![
        ("silu", in_place(&|x| ops.silu(x))),
        ("sigmoid", in_place(&|x| ops.sigmoid(x))),
        ("exp", in_place(&|x| ops.exp(x))),
        ("softplus", in_place(&|x| ops.softplus(x))),
        ("gelu", in_place(&|x| ops.gelu(x))),
        ("soft_cap", in_place(&|x| ops.soft_cap(x, 30.0))),
        ("swiglu", in_place(&|x| ops.swiglu(x, y))),
        ("geglu", in_place(&|x| ops.geglu(x, y))),
        ("swiglu_oai", in_place(&|x| ops.swiglu_oai(x, y, 1.702, 7.0))),
        ("swiglu_clamped", in_place(&|x| ops.swiglu_clamped(x, y, 7.0))),
        ("situ", in_place(&|x| ops.situ(x, y, 4.0, 20.0))),
        ("situ of one tanh", in_place(&|x| ops.situ(x, y, 4.0, 0.0))),
        ("add", in_place(&|x| ops.add(x, y))),
        ("mul", in_place(&|x| ops.mul(x, y))),
        ("scale", in_place(&|x| ops.scale(x, 0.3))),
        ("add_bias", in_place(&|x| ops.add_bias(x, y))),
        ("sum_weighted", sum_weighted(ops, x, y)),
        ("softmax", in_place(&|x| ops.softmax(x, n))),
        ("rms_norm", in_place(&|x| ops.rms_norm(x, n, Some(y), 1e-5))),
        ("rms_norm without weight", in_place(&|x| ops.rms_norm(x, n, None, 1e-5))),
        ("layer_norm", in_place(&|x| ops.layer_norm(x, n, Some(y), Some(y), 1e-5))),
        ("layer_norm without bias", in_place(&|x| ops.layer_norm(x, n, Some(y), None, 1e-5))),
        ("layer_norm alone", in_place(&|x| ops.layer_norm(x, n, None, None, 1e-5))),
    ]
}

/// Two sums of three rows each, of two.
fn sum_weighted(ops: &Ops, x: &[f32], y: &[f32]) -> Vec<f32> {
    let (rows, mut out) = ([x, y].concat(), vec![0.0; 2 * x.len()]);
    ops.sum_weighted(&rows, &[0, 1, 1, 1, 0, 0], &[0.3, 0.2, -7.0, 1.5, 1e-3, 0.9], x.len(), &mut out);
    out
}

/// What the experts gave is weighted and added in the order of rank, whether it is done row by row or at
/// once.
#[test]
fn weighted_sums_are_products_and_sums_one_after_another() {
    let mut random = Random(5);
    for (n, tokens) in [(7, 3), (256, 40)] {
        let (used, ops) = (4, scalar());
        let x = random.values(n * 16, 1.0);
        let chosen: Vec<usize> = (0..tokens * used).map(|i| i * 7 % 16).collect();
        let weights = random.values(tokens * used, 1.0);
        let mut wanted = vec![0.0; tokens * n];
        for (token, wanted) in wanted.chunks_exact_mut(n).enumerate() {
            for rank in 0..used {
                let pair = token * used + rank;
                let mut row = x[chosen[pair] * n..][..n].to_vec();
                ops.scale(&mut row, weights[pair]);
                match rank {
                    0 => wanted.copy_from_slice(&row),
                    _ => ops.add(wanted, &row),
                }
            }
        }
        for (name, ops) in instances() {
            let mut got = vec![0.0; tokens * n];
            ops.sum_weighted(&x, &chosen, &weights, n, &mut got);
            assert_same(&got, &wanted, name);
        }
    }
}

#[test]
fn instances_agree_to_the_last_bit() {
    let mut random = Random(1);
    for n in lengths() {
        for round in 0..6 {
            let (x, y) = match round {
                0 => (random.values(n, 1.0), random.values(n, 1.0)),
                1 => (random.values(n, 90.0), random.values(n, 1e-3)),
                2 => (random.values(n, 1e-38), random.values(n, 1e-38)),
                3 => (vec![f32::NEG_INFINITY; n], random.extremes(n)),
                _ => (random.extremes(n), random.extremes(n)),
            };
            let wanted = all_rows(&SCALAR, &x, &y);
            for (name, ops) in instances() {
                for ((what, got), (_, wanted)) in all_rows(ops, &x, &y).iter().zip(&wanted) {
                    assert_same(got, wanted, &format!("{what}, {name}, n = {n}, round {round}"));
                }
            }
        }
    }
}

#[test]
fn large_batches_give_the_same_bits_on_any_number_of_threads() {
    let mut random = Random(5);
    let n = 192;
    let (x, y) = (random.values(n * 1000, 5.0), random.values(n * 1000, 1.0));
    let (weight, bias) = (Some(&y[..3 * n]), Some(&y[4 * n..6 * n]));
    for (name, ops) in instances() {
        in_pools(|threads| {
            let what = |op: &str| format!("{op}, {name}, {threads} threads");
            let mut batch = x.clone();
            ops.swiglu(&mut batch, &y);
            ops.geglu(&mut batch, &y);
            ops.sigmoid(&mut batch);
            let mut norm = batch.clone();
            ops.rms_norm(&mut norm, n, weight, 1e-5);
            ops.layer_norm(&mut norm, n, weight, bias, 1e-5);
            ops.softmax(&mut norm, n);
            for row in [0, 1, 500, 999] {
                let at = row * n..(row + 1) * n;
                let mut alone = x[at.clone()].to_vec();
                SCALAR.swiglu(&mut alone, &y[at.clone()]);
                SCALAR.geglu(&mut alone, &y[at.clone()]);
                SCALAR.sigmoid(&mut alone);
                assert_same(&batch[at.clone()], &alone, &what("activations"));
                let (w, b) = (Some(&y[row % 3 * n..][..n]), Some(&y[(4 + row % 2) * n..][..n]));
                SCALAR.rms_norm(&mut alone, n, w, 1e-5);
                SCALAR.layer_norm(&mut alone, n, w, b, 1e-5);
                SCALAR.softmax(&mut alone, n);
                assert_same(&norm[at], &alone, &what("norms and softmax"));
            }
        });
    }
}

#[test]
fn f16_rounds_to_nearest_even_on_every_instance() {
    // Every f16, the midpoints to the next, and a hair to each side of these.
    let mut x = Vec::new();
    for bits in 0..0x7c00u16 {
        let (a, b) = (f16::from_bits(bits).to_f32_const(), f16::from_bits(bits + 1).to_f32_const());
        let middle = if b.is_infinite() { 65520.0 } else { (a + b) / 2.0 };
        for y in [a, middle, middle.next_up(), middle.next_down()] {
            x.extend([y, -y]);
        }
    }
    x.extend(Random(3).extremes(1000));
    for (name, ops) in instances() {
        let mut bits = vec![0u16; x.len()];
        run!(ops, narrow(&x, &mut bits));
        for (i, &x) in x.iter().enumerate() {
            let (got, wanted) = (f16::from_bits(bits[i]), f16::from_f32(x));
            assert!(got.to_bits() == wanted.to_bits() || got.is_nan() && wanted.is_nan(), "{name}: {x:e}");
        }
    }
    assert_eq!(f16::from_f32(2049.0).to_f32(), 2048.0);
}

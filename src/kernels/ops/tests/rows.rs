//! Operations on rows.

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
    let mut norm = vec![0.0; n];
    ops.rms_norm(x, y, 1e-5, &mut norm);
    let mut plain = vec![0.0; n];
    ops.rms_norm_unweighted(x, n, 1e-5, &mut plain);
    let mut exp_sum = x.to_vec();
    let sum = ops.exp_sum(&mut exp_sum);
    vec![
        ("exp", in_place(&|x| ops.exp(x))),
        ("silu", in_place(&|x| ops.silu(x))),
        ("swiglu", in_place(&|x| ops.swiglu(x, y))),
        ("add", in_place(&|x| ops.add(x, y))),
        ("mul", in_place(&|x| ops.mul(x, y))),
        ("scale", in_place(&|x| ops.scale(x, 0.3))),
        ("add_scaled", in_place(&|x| ops.add_scaled(x, 0.3, y))),
        ("softmax", in_place(&|x| ops.softmax(x, n))),
        ("dot", vec![ops.dot_f32(x, y)]),
        ("rms_norm", norm),
        ("rms_norm_unweighted", plain),
        ("exp_sum", exp_sum),
        ("exp_sum's scalars", vec![sum.0, sum.1]),
        ("max", vec![ops.max(x)]),
        ("argmax", vec![ops.argmax(x).map_or(-1.0, |i| i as f32)]),
    ]
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
fn exp_is_within_one_ulp() {
    // Measured: 0.965 ULP. Every 257th float.
    let (mut worst, mut count) = (0.0f64, 0u32);
    let floats: Vec<f32> = (0..=89.5f32.to_bits())
        .step_by(257)
        .chain(((-0.0f32).to_bits()..=(-105.0f32).to_bits()).step_by(257))
        .map(f32::from_bits)
        .collect();
    for (_, ops) in instances().split_off(1) {
        let mut got = floats.clone();
        ops.exp(&mut got);
        for (&x, &y) in floats.iter().zip(&got) {
            let exact = f64::from(x).exp();
            if exact > f64::from(f32::MAX) {
                // Above the largest float by less than half a step either may come out.
                assert!(y.is_infinite() || exact < f64::from(f32::MAX) * (1.0 + 1e-7), "exp({x}) = {y}");
                continue;
            }
            let exponent = (exact as f32).to_bits() >> 23;
            let ulp = f64::from(2.0f32).powi(exponent.max(1) as i32 - 150);
            worst = worst.max((f64::from(y) - exact).abs() / ulp);
            count += 1;
        }
    }
    println!("exp: {worst:.3} ULP over {count} values");
    assert!(count > 1_000_000 || instances().len() == 1);
    assert!(worst < 1.0, "{worst} ULP");
}

#[test]
fn exp_of_special_values() {
    for (name, ops) in instances() {
        let mut x =
            [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, -0.0, 1e-45, 88.73, -103.98, -200.0, 1e30];
        ops.exp(&mut x);
        let inf = f32::INFINITY;
        assert_same(&x, &[inf, 0.0, f32::NAN, 1.0, 1.0, 1.0, inf, 0.0, 0.0, inf], name);
    }
}

#[test]
fn dot_is_as_defined() {
    let mut random = Random(2);
    for n in lengths() {
        let (a, b) = (random.values(n, 1.0), random.values(n, 1.0));
        let mut l = [0.0f32; 16];
        for i in 0..n.next_multiple_of(16) {
            let at = |x: &[f32]| x.get(i).copied().unwrap_or(0.0);
            l[i % 16] = at(&a).mul_add(at(&b), l[i % 16]);
        }
        let l: Vec<f32> = (0..8).map(|i| l[i] + l[i + 8]).collect();
        let wanted = ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
        let in_order = a.iter().zip(&b).fold(0.0f32, |sum, (a, b)| a.mul_add(*b, sum));
        for (name, ops) in instances() {
            assert_same(&[ops.dot_f32(&a, &b)], &[wanted], &format!("{name}, n = {n}"));
            // The canary: another order gives other bits.
            assert!(n != 257 || difference(&[in_order], &[wanted]).is_some());
        }
    }
}

fn norm_reference(x: &[f32], weight: &[f32], eps: f64) -> Vec<f64> {
    let mut out = Vec::new();
    for row in x.chunks(weight.len()) {
        let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (mean + eps).sqrt();
        out.extend(row.iter().zip(weight).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)));
    }
    out
}

#[test]
fn rms_norm_is_accurate() {
    let mut random = Random(3);
    let (rows, n) = (5, 4096);
    let (x, weight) = (random.values(rows * n, 3.0), random.values(n, 2.0));
    let mut out = vec![0.0; rows * n];
    scalar().rms_norm(&x, &weight, 1e-5, &mut out);
    let measured = error(&out, &norm_reference(&x, &weight, 1e-5));
    println!("rms_norm: {measured:.1e}");
    // Measured: 1.5e-7.
    assert!(measured < 1e-6, "{measured}");
    // The canary: another epsilon.
    assert!(error(&out, &norm_reference(&x, &weight, 1e-4)) > 1e-6);

    let mut steps = vec![0.0; rows * n];
    scalar().rms_norm_unweighted(&x, n, 1e-5, &mut steps);
    scalar().mul_rows(&mut steps, &weight);
    assert_same(&steps, &out, "norm and weight in two steps");
}

#[test]
fn activations_and_softmax_are_accurate() {
    let mut random = Random(4);
    let (x, up) = (random.values(1000, 20.0), random.values(1000, 1.0));
    let silu: Vec<f64> = x.iter().map(|&x| f64::from(x) / (1.0 + (-f64::from(x)).exp())).collect();
    let swiglu: Vec<f64> = silu.iter().zip(&up).map(|(s, &u)| s * f64::from(u)).collect();
    let total: f64 = x.iter().map(|&x| f64::from(x).exp()).sum();
    let softmax: Vec<f64> = x.iter().map(|&x| f64::from(x).exp() / total).collect();
    let of = |f: &dyn Fn(&mut [f32])| {
        let mut out = x.clone();
        f(&mut out);
        out
    };
    let ops = scalar();
    // Measured: 5.9e-8, 6.7e-8, 1.0e-7.
    let cases = [
        ("silu", error(&of(&|x| ops.silu(x)), &silu), 5e-7),
        ("swiglu", error(&of(&|x| ops.swiglu(x, &up)), &swiglu), 6e-7),
        ("softmax", error(&of(&|x| ops.softmax(x, 1000)), &softmax), 1e-6),
    ];
    for (what, measured, bound) in cases {
        println!("{what}: {measured:.1e}");
        assert!(measured < bound, "{what}: {measured}");
    }
    // The canary: without the gate's activation.
    assert!(error(&of(&|x| ops.mul(x, &up)), &swiglu) > 6e-7);
}

#[test]
fn large_batches_give_the_same_bits_on_any_number_of_threads() {
    let mut random = Random(5);
    let n = 192;
    let (x, y) = (random.values(n * 1000, 5.0), random.values(n * 1000, 1.0));
    for (name, ops) in instances() {
        in_pools(|threads| {
            let what = |op: &str| format!("{op}, {name}, {threads} threads");
            let mut batch = x.clone();
            ops.swiglu(&mut batch, &y);
            let mut norm = vec![0.0; x.len()];
            ops.rms_norm(&batch, &y[..n], 1e-5, &mut norm);
            ops.softmax(&mut norm, n);
            for row in [0, 1, 500, 999] {
                let at = row * n..(row + 1) * n;
                let mut alone = x[at.clone()].to_vec();
                SCALAR.swiglu(&mut alone, &y[at.clone()]);
                assert_same(&batch[at.clone()], &alone, &what("swiglu"));
                let mut out = vec![0.0; n];
                SCALAR.rms_norm(&alone, &y[..n], 1e-5, &mut out);
                SCALAR.softmax(&mut out, n);
                assert_same(&norm[at], &out, &what("norm and softmax"));
            }
        });
    }
}

/// RoPE in f64 with the angle in f32 as ggml has it; `halves` pairs as NeoX does.
fn rope_reference(
    x: &[f32],
    position: usize,
    params: &RopeParams,
    factors: Option<&[f32]>,
    halves: bool,
) -> Vec<f64> {
    let mut out: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let scale = params.base.powf(-2.0 / params.n_dims as f32);
    let mut theta = position as f32;
    for i in 0..params.n_dims / 2 {
        let angle = f64::from(params.freq_scale * (theta / factors.map_or(1.0, |f| f[i])));
        let (a, b) = if halves { (i, i + params.n_dims / 2) } else { (2 * i, 2 * i + 1) };
        let (x0, x1) = (f64::from(x[a]), f64::from(x[b]));
        let attn = f64::from(params.attn_factor);
        out[a] = (x0 * angle.cos() - x1 * angle.sin()) * attn;
        out[b] = (x0 * angle.sin() + x1 * angle.cos()) * attn;
        theta *= scale;
    }
    out
}

#[test]
fn rope_is_accurate_and_agrees() {
    let mut random = Random(6);
    let heads = 3;
    let mut table = RopeTable::default();
    for (head_dim, n_dims) in [(8, 8), (48, 32), (64, 64), (128, 128), (96, 80)] {
        let factors: Vec<f32> = (0..n_dims / 2).map(|i| 1.0 + (i % 5) as f32).collect();
        for (factors, freq_scale, attn_factor) in [(None, 1.0, 1.0), (Some(&factors[..]), 0.25, 1.2)] {
            let params = RopeParams { n_dims, base: 500_000.0, freq_scale, attn_factor };
            let positions = [0, 1, 2, 511, 4096, 100_000];
            table.fill(&params, positions, factors);
            let x = random.values(positions.len() * heads * head_dim, 2.0);
            for kind in [RopeKind::Norm, RopeKind::NeoX] {
                let mut wanted = x.clone();
                SCALAR.rope(kind, &table, &mut wanted, heads, head_dim);
                for (name, ops) in instances() {
                    let mut got = x.clone();
                    ops.rope(kind, &table, &mut got, heads, head_dim);
                    assert_same(&got, &wanted, &format!("rope {kind:?}, {name}, {head_dim}"));
                }
                let mut worst = 0.0f64;
                for (i, head) in x.chunks(head_dim).enumerate() {
                    let position = positions[i / heads];
                    let got = &wanted[i * head_dim..][..head_dim];
                    let halves = kind == RopeKind::NeoX;
                    worst = worst.max(error(got, &rope_reference(head, position, &params, factors, halves)));
                    assert_same(&got[n_dims..], &head[n_dims..], "beyond n_dims");
                    // The canary: the other pairing.
                    let swapped = rope_reference(head, position, &params, factors, !halves);
                    assert!(position == 0 || error(got, &swapped) > 2e-6);
                }
                // Measured: 1.5e-7.
                assert!(worst < 1.5e-6, "rope {kind:?}: {worst}");
            }
        }
    }
}

#[test]
fn a_rope_table_does_not_depend_on_the_batch() {
    let params = RopeParams { n_dims: 64, base: 10_000.0, freq_scale: 1.0, attn_factor: 1.0 };
    let (mut all, mut one) = (RopeTable::default(), RopeTable::default());
    all.fill(&params, 7..107, None);
    assert_eq!(all.positions(), 100);
    for i in [0, 50, 99] {
        one.fill(&params, [7 + i], None);
        assert_eq!((one.positions(), one.row(0)), (1, all.row(i)));
    }
    one.fill(&params, [0], None);
    assert_eq!(one.row(0), (&[1.0; 32][..], &[0.0; 32][..]));
}

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
fn argmax_takes_the_first_of_equals_and_no_nan() {
    for (_, ops) in instances() {
        assert_eq!(ops.argmax(&[1.0, 3.0, f32::NAN, 3.0]), Some(1));
        assert_eq!(ops.argmax(&[f32::NAN, f32::NEG_INFINITY]), Some(1));
        assert_eq!(ops.argmax(&[f32::NAN]), None);
        assert_eq!(ops.argmax(&[]), None);
        assert_eq!(ops.argmax(&[-0.0, 0.0]), Some(0));
        let mut x = vec![0.0; 100];
        x[77] = 1.0;
        assert_eq!(ops.argmax(&x), Some(77));
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

/// The conversions of the vector sets are instructions: those of one register's width give what those of another's give.
#[test]
fn vector_instances_round_to_f16_alike() {
    let mut random = Random(4);
    let mut x = random.extremes(4099);
    x.extend(random.values(4096, 1.0));
    let halves = vector_instances().into_iter().map(|(name, ops)| {
        let mut halves = vec![0u16; x.len()];
        run!(ops, narrow(&x, &mut halves));
        (name, halves.into_iter().map(|x| f16::from_bits(x).to_f32_const()).collect::<Vec<_>>())
    });
    let halves: Vec<_> = halves.collect();
    for (name, got) in &halves {
        assert_same(got, &halves[0].1, name);
    }
}

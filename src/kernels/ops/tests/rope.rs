//! Rotary position embedding.

use super::*;

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
            let params = RopeParams { n_dims, base: 500_000.0, freq_scale, attn_factor, yarn: None };
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
fn values_behind_others_are_rotated_as_alone() {
    let mut random = Random(5);
    let (heads, offset, dims) = (3, 5, 8);
    let params = RopeParams { n_dims: dims, base: 1e4, freq_scale: 1.0, attn_factor: 1.0, yarn: None };
    let mut table = RopeTable::default();
    table.fill(&params, 7..9, None);
    let whole = random.values(2 * heads * (offset + dims), 1.0);
    for kind in [RopeKind::Norm, RopeKind::NeoX] {
        let mut alone: Vec<f32> =
            whole.chunks(offset + dims).flat_map(|head| head[offset..].to_vec()).collect();
        SCALAR.rope(kind, &table, &mut alone, heads, dims);
        let mut wanted = whole.clone();
        for (head, alone) in wanted.chunks_mut(offset + dims).zip(alone.chunks(dims)) {
            head[offset..].copy_from_slice(alone);
        }
        for (name, ops) in instances() {
            let mut x = whole.clone();
            ops.rope_behind(kind, &table, &mut x, heads, offset + dims, offset);
            assert_same(&x, &wanted, name);
        }
    }
}

#[test]
fn a_rope_table_does_not_depend_on_the_batch() {
    let params = RopeParams { n_dims: 64, base: 10_000.0, freq_scale: 1.0, attn_factor: 1.0, yarn: None };
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

/// Cosines and sines under YaRN as the paper has them, in f64 but for the angle's recurrence; and the pairs
/// that keep their angle, those that are scaled in full.
fn yarn_reference(params: &RopeParams, position: usize) -> (Vec<(f64, f64)>, usize, usize) {
    let yarn = params.yarn.expect("YaRN");
    let (n, base) = (params.n_dims as f64, f64::from(params.base));
    let turns = std::f64::consts::TAU;
    // The pair that turns so many times within the original context.
    let pair = |turned: f32| {
        n * (yarn.original_context as f64 / (f64::from(turned) * turns)).ln() / (2.0 * base.ln())
    };
    let low = pair(yarn.beta_fast).floor().max(0.0);
    let high = pair(yarn.beta_slow).ceil().min(n - 1.0);
    let scale = f64::from(params.freq_scale);
    let gain = f64::from(params.attn_factor) * (1.0 + 0.1 * (1.0 / scale).ln());
    let step = params.base.powf(-2.0 / params.n_dims as f32);
    let (mut theta, mut kept, mut scaled) = (position as f32, 0, 0);
    let mut all = Vec::new();
    for i in 0..params.n_dims / 2 {
        let slow = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        let share = (1.0 - slow) * f64::from(yarn.ext_factor);
        let angle = f64::from(theta) * (share + (1.0 - share) * scale);
        (kept, scaled) = (kept + usize::from(slow == 0.0), scaled + usize::from(slow == 1.0));
        all.push((angle.cos() * gain, angle.sin() * gain));
        theta *= step;
    }
    (all, kept, scaled)
}

#[test]
fn yarn_mixes_angles_and_raises_the_gain() {
    let yarn = Yarn { ext_factor: 1.0, original_context: 4096, beta_fast: 32.0, beta_slow: 1.0 };
    let plain =
        RopeParams { n_dims: 64, base: 150_000.0, freq_scale: 1.0 / 32.0, attn_factor: 1.0, yarn: None };
    let cases = [
        RopeParams { yarn: Some(yarn), ..plain },
        RopeParams { yarn: Some(Yarn { ext_factor: 0.5, ..yarn }), attn_factor: 1.3, ..plain },
        RopeParams { yarn: Some(Yarn { beta_fast: 8.0, beta_slow: 2.0, ..yarn }), n_dims: 24, ..plain },
    ];
    let (mut table, mut other) = (RopeTable::default(), RopeTable::default());
    let positions = [0, 1, 511, 4095, 30_000];
    for params in cases {
        table.fill(&params, positions, None);
        for (i, position) in positions.into_iter().enumerate() {
            let (wanted, kept, scaled) = yarn_reference(&params, position);
            assert!(kept > 1 && scaled > 1 && kept + scaled < wanted.len(), "{kept} {scaled}");
            let (cos, sin) = table.row(i);
            let of = |got: &[f32], wanted: Vec<f64>| error(got, &wanted);
            let worst = of(cos, wanted.iter().map(|w| w.0).collect());
            let worst_sin = match position {
                0 => sin.iter().map(|&s| f64::from(s.abs())).sum(),
                _ => of(sin, wanted.iter().map(|w| w.1).collect()),
            };
            println!("yarn at {position}: {worst:.1e} {worst_sin:.1e}");
            // Measured: 6.2e-8 at position 1, at most 1.3e-8 more for each position: the angle is an f32.
            let bound = 3e-7 + position as f64 * 5e-8;
            assert!(worst < bound && worst_sin < bound, "{worst} {worst_sin}");
        }
        // The canaries: linear scaling alone, another beta, the gain left out.
        let yarn = params.yarn.expect("YaRN");
        let faults = [
            RopeParams { yarn: None, ..params },
            RopeParams { yarn: Some(Yarn { beta_slow: 7.0, ..yarn }), ..params },
            RopeParams { yarn: Some(Yarn { original_context: 1024, ..yarn }), ..params },
        ];
        for fault in faults {
            other.fill(&fault, positions, None);
            assert!((1..positions.len()).all(|i| other.row(i) != table.row(i)));
        }
        // Without a weight it is linear scaling.
        other.fill(&RopeParams { yarn: Some(Yarn { ext_factor: 0.0, ..yarn }), ..params }, positions, None);
        table.fill(&RopeParams { yarn: None, ..params }, positions, None);
        assert!((0..positions.len()).all(|i| other.row(i) == table.row(i)));
    }
}

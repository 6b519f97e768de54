//! Norms against plain f64 references.

use super::*;

/// RMS norm, or LayerNorm where `centred`; weights and biases cycle over the rows.
fn reference(x: &[f32], row: usize, weight: &[f32], bias: &[f32], eps: f64, centred: bool) -> Vec<f64> {
    let mut out = Vec::new();
    for (r, values) in x.chunks(row).enumerate() {
        let n = row as f64;
        let mean = if centred { values.iter().map(|&x| f64::from(x)).sum::<f64>() / n } else { 0.0 };
        let square = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        let scale = 1.0 / (square + eps).sqrt();
        let at = |weights: &[f32], i: usize| f64::from(weights[(r * row + i) % weights.len()]);
        let of = |(i, &x): (usize, &f32)| (f64::from(x) - mean) * scale * at(weight, i) + at(bias, i);
        out.extend(values.iter().enumerate().map(of));
    }
    out
}

#[test]
fn rms_norm_is_accurate() {
    let mut random = Random(3);
    let (rows, n) = (6, 4096);
    let x = random.values(rows * n, 3.0);
    for cycle in [1, 3] {
        let weight = random.values(cycle * n, 2.0);
        let mut out = x.clone();
        scalar().rms_norm(&mut out, n, Some(&weight), 1e-5);
        let wanted = |eps| reference(&x, n, &weight, &[0.0], eps, false);
        let measured = error(&out, &wanted(1e-5));
        println!("rms_norm: {measured:.1e}");
        // Measured: 1.5e-7.
        assert!(measured < 1e-6, "{measured}");
        // The canaries: another epsilon, the mean taken away, one weight for all rows.
        assert!(error(&out, &wanted(1e-4)) > 1e-6);
        assert!(error(&out, &reference(&x, n, &weight, &[0.0], 1e-5, true)) > 1e-6);
        assert!(cycle == 1 || error(&out, &reference(&x, n, &weight[..n], &[0.0], 1e-5, false)) > 1e-6);

        let mut steps = x.clone();
        scalar().rms_norm(&mut steps, n, None, 1e-5);
        steps.chunks_exact_mut(cycle * n).for_each(|rows| scalar().mul(rows, &weight));
        assert_same(&steps, &out, "norm and weight in two steps");
    }
}

#[test]
fn layer_norm_is_accurate() {
    let mut random = Random(10);
    let (rows, n) = (6, 1000);
    // A mean that a variance without centring would not survive.
    let x: Vec<f32> = random.values(rows * n, 1.0).iter().map(|x| x + 300.0).collect();
    for (weights, biases) in [(1, 1), (3, 2)] {
        let (weight, bias) = (random.values(weights * n, 2.0), random.values(biases * n, 2.0));
        let mut out = x.clone();
        scalar().layer_norm(&mut out, n, Some(&weight), Some(&bias), 1e-5);
        let measured = error(&out, &reference(&x, n, &weight, &bias, 1e-5, true));
        println!("layer_norm: {measured:.1e}");
        // Measured: 6.3e-6, since the mean is rounded to f32.
        assert!(measured < 5e-5, "{measured}");
        // The canaries: another epsilon, the bias left out.
        assert!(error(&out, &reference(&x, n, &weight, &bias, 1e-3, true)) > 5e-5);
        assert!(error(&out, &reference(&x, n, &weight, &[0.0], 1e-5, true)) > 5e-5);

        let mut steps = x.clone();
        scalar().layer_norm(&mut steps, n, None, None, 1e-5);
        steps.chunks_exact_mut(weights * n).for_each(|rows| scalar().mul(rows, &weight));
        steps.chunks_exact_mut(biases * n).for_each(|rows| scalar().add(rows, &bias));
        assert_same(&steps, &out, "norm, weight and bias in three steps");
    }
}

#[test]
#[should_panic(expected = "weights of another length than rows of 2")]
fn weights_of_another_length_are_refused() {
    scalar().rms_norm(&mut [1.0; 4], 2, Some(&[1.0; 3]), 1e-5);
}

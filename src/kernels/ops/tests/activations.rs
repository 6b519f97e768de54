//! exp, tanh, activations and softmax against plain references.

use half::f16;

use super::*;

/// A function of the definition over many values, compiled for FMA where the CPU has it: without, it is slow.
fn each16(values: &mut [f32], f: impl Fn([f32; 16]) -> [f32; 16]) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "fma")]
    fn with_fma(values: &mut [f32], f: impl Fn([f32; 16]) -> [f32; 16]) {
        values.as_chunks_mut().0.iter_mut().for_each(|block| *block = f(*block));
    }
    assert!(values.len().is_multiple_of(16));
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("fma") {
        // SAFETY: the CPU has FMA.
        return unsafe { with_fma(values, f) };
    }
    values.as_chunks_mut().0.iter_mut().for_each(|block| *block = f(*block));
}

/// The largest error in units in the last place of the exact value. Where that overflows f32 by less than
/// half a unit, infinity is right as well.
fn worst_ulp(x: &[f32], y: &[f32], exact: impl Fn(f64) -> f64) -> f64 {
    let mut worst = 0.0f64;
    for (&x, &y) in x.iter().zip(y) {
        let exact = exact(f64::from(x));
        if exact > f64::from(f32::MAX) {
            assert!(y.is_infinite() || exact < f64::from(f32::MAX) * (1.0 + 1e-7), "{x}: {y}");
            continue;
        }
        let exponent = (exact.abs() as f32).to_bits() >> 23;
        let ulp = f64::from(2.0f32).powi(exponent.max(1) as i32 - 150);
        worst = worst.max((f64::from(y) - exact).abs() / ulp);
    }
    worst
}

/// Every `step`th float from 0 to `high` and from -0 to `low`.
fn floats(low: f32, high: f32, step: usize) -> Vec<f32> {
    let positive = (0..=high.to_bits()).step_by(step);
    let mut all: Vec<f32> =
        positive.chain(((-0.0f32).to_bits()..=low.to_bits()).step_by(step)).map(f32::from_bits).collect();
    all.truncate(all.len() / 16 * 16);
    all
}

#[test]
fn exp_is_within_one_ulp() {
    // Measured: 0.965 ULP. Every 257th float.
    let x = floats(-105.0, 89.5, 257);
    let mut y = x.clone();
    each16(&mut y, |x| math::exp16(lanes::Scalar, x));
    let worst = worst_ulp(&x, &y, f64::exp);
    println!("exp: {worst:.3} ULP over {} values", x.len());
    assert!(x.len() > 1_000_000 && worst < 1.0, "{worst} ULP");
}

#[test]
fn tanh_is_within_three_ulp() {
    // Measured: 2.477 ULP. Every 1001st float.
    let x = floats(-12.0, 12.0, 1001);
    let mut y = x.clone();
    each16(&mut y, |x| math::tanh16(lanes::Scalar, x));
    let worst = worst_ulp(&x, &y, f64::tanh);
    println!("tanh: {worst:.3} ULP over {} values", x.len());
    assert!(x.len() > 1_000_000 && worst < 3.0, "{worst} ULP");
    assert!(y.iter().all(|y| y.abs() <= 1.0));
}

#[test]
fn softplus_is_within_three_ulp() {
    // Measured: 2.527 ULP. Every 1001st float.
    let x = floats(-80.0, 30.0, 1001);
    let mut y = x.clone();
    each16(&mut y, |x| math::softplus16(lanes::Scalar, x));
    let worst = worst_ulp(&x, &y, |x| x.max(0.0) + (-x.abs()).exp().ln_1p());
    println!("softplus: {worst:.3} ULP over {} values", x.len());
    assert!(x.len() > 1_000_000 && worst < 3.0, "{worst} ULP");
}

#[test]
fn special_values() {
    let inf = f32::INFINITY;
    let x = [inf, -inf, f32::NAN, 0.0, -0.0, 1e-45, 88.73, -103.98, -200.0, 1e30];
    assert_same(&x.map(exp), &[inf, 0.0, f32::NAN, 1.0, 1.0, 1.0, inf, 0.0, 0.0, inf], "exp");
    let x = [inf, -inf, f32::NAN, 0.0, 1e-45, -1e-45, 9.1, -9.1, 1e30, -1e30];
    let wanted = [1.0, -1.0, f32::NAN, 0.0, 1e-45, -1e-45, 1.0, -1.0, 1.0, -1.0];
    assert_same(&x.map(tanh), &wanted, "tanh");
    for (name, ops) in instances() {
        let mut x = [inf, -inf, f32::NAN, 0.0, 1e30, -1e30];
        ops.sigmoid(&mut x);
        assert_same(&x, &[1.0, 0.0, f32::NAN, 0.5, 1.0, 0.0], name);
        let mut x = [inf, -inf, f32::NAN, 0.0, 30.0, -200.0];
        ops.softplus(&mut x);
        assert_same(&x, &[inf, 0.0, f32::NAN, std::f32::consts::LN_2, 30.0, 0.0], name);
        // Bounds take no NaN away.
        let mut gate = [f32::NAN, 1.0, 100.0, 100.0, -100.0];
        let up = [1.0, f32::NAN, 100.0, -100.0, 0.5];
        ops.swiglu_oai(&mut gate, &up, 1.702, 7.0);
        let most = 7.0 / (1.0 + exp(-1.702 * 7.0));
        let least = -100.0 / (1.0 + exp(170.2)) * 1.5;
        assert_same(&gate, &[f32::NAN, f32::NAN, most * 8.0, most * -6.0, least], name);
        let mut gate = [f32::NAN, 1.0, 100.0, 100.0, 2.0];
        let up = [1.0, f32::NAN, 100.0, -100.0, 0.5];
        ops.swiglu_clamped(&mut gate, &up, 7.0);
        let small = 2.0 / (1.0 + exp(-2.0)) * 0.5;
        assert_same(&gate, &[f32::NAN, f32::NAN, 49.0, -49.0, small], name);
        let mut gate = [f32::NAN, 1.0, 100.0, 100.0, 2.0];
        ops.swiglu_limited(&mut gate, &up, 7.0);
        let most = 7.0 / (1.0 + exp(-7.0));
        assert_same(&gate, &[f32::NAN, f32::NAN, most * 7.0, most * -7.0, small], name);
        let mut x = [inf, -inf, f32::NAN, 0.0, 36.0, -200.0];
        ops.sqrt_softplus(&mut x);
        assert_same(&x, &[inf, 0.0, f32::NAN, std::f32::consts::LN_2.sqrt(), 6.0, 0.0], name);
    }
}

#[test]
fn activations_and_softmax_are_accurate() {
    let mut random = Random(4);
    let (x, up) = (random.values(1000, 20.0), random.values(1000, 9.0));
    let exact = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
        x.iter().zip(&up).map(|(&x, &u)| f(f64::from(x), f64::from(u))).collect()
    };
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let swiglu = exact(&|x, u| x * sigmoid(x) * u);
    let total: f64 = x.iter().map(|&x| f64::from(x).exp()).sum();
    let of = |f: &dyn Fn(&mut [f32])| {
        let mut out = x.clone();
        f(&mut out);
        out
    };
    let ops = scalar();
    let oai = exact(&|x, u| x.min(7.0) * sigmoid(1.702 * x.min(7.0)) * (u.clamp(-7.0, 7.0) + 1.0));
    let limited = exact(&|x, u| x.min(7.0) * sigmoid(x.min(7.0)) * u.clamp(-7.0, 7.0));
    let clamped = exact(&|x, u| (x * sigmoid(x)).min(7.0) * u.clamp(-7.0, 7.0));
    let capped = |x: f64| 4.0 * (x / 4.0).tanh() * sigmoid(x);
    let situ = exact(&|x, u| capped(x) * 20.0 * (u / 20.0).tanh());
    let situ_of_one = exact(&|x, u| capped(x) * u);
    // Measured, in this order: 3.3e-8, 2.4e-8, 5.9e-8, 8.5e-8, 8.9e-8, 1.1e-7,
    // 5.4e-8, 6.7e-8, 1.1e-7, 1.5e-7, 1.0e-7.
    let cases = [
        ("exp", of(&|x| ops.exp(x)), exact(&|x, _| x.exp()), 3e-7),
        ("softplus", of(&|x| ops.softplus(x)), exact(&|x, _| x.max(0.0) + (-x.abs()).exp().ln_1p()), 2e-7),
        ("silu", of(&|x| ops.silu(x)), exact(&|x, _| x * sigmoid(x)), 5e-7),
        ("sigmoid", of(&|x| ops.sigmoid(x)), exact(&|x, _| sigmoid(x)), 6e-7),
        ("swiglu", of(&|x| ops.swiglu(x, &up)), swiglu.clone(), 6e-7),
        ("swiglu_oai", of(&|x| ops.swiglu_oai(x, &up, 1.702, 7.0)), oai, 6e-7),
        ("swiglu_limited", of(&|x| ops.swiglu_limited(x, &up, 7.0)), limited, 6e-7),
        (
            "sqrt_softplus",
            of(&|x| ops.sqrt_softplus(x)),
            exact(&|x, _| (x.max(0.0) + (-x.abs()).exp().ln_1p()).sqrt()),
            4e-7,
        ),
        ("swiglu_clamped", of(&|x| ops.swiglu_clamped(x, &up, 7.0)), clamped, 6e-7),
        ("situ", of(&|x| ops.situ(x, &up, 4.0, 20.0)), situ, 2e-6),
        ("situ of one tanh", of(&|x| ops.situ(x, &up, 4.0, 0.0)), situ_of_one, 2e-6),
        ("soft_cap", of(&|x| ops.soft_cap(x, 5.0)), exact(&|x, _| (x / 5.0).tanh() * 5.0), 6e-7),
        ("softmax", of(&|x| ops.softmax(x, 1000)), exact(&|x, _| x.exp() / total), 1e-6),
    ];
    for (what, got, exact, bound) in cases {
        let measured = error(&got, &exact);
        println!("{what}: {measured:.1e}");
        assert!(measured < bound, "{what}: {measured}");
        // The canary: another function.
        assert!(what == "swiglu" || error(&got, &swiglu) > bound, "{what} is taken for swiglu");
    }
    assert!(error(&of(&|x| ops.mul(x, &up)), &swiglu) > 6e-7);
}

/// ggml's `ggml_gelu_f32` with the tanh in f64: what its table holds before it is rounded to f16.
fn gelu_reference(x: f32) -> f32 {
    let inner = 0.797_884_6_f32 * x * (1.0 + 0.044715_f32 * x * x);
    0.5 * x * (1.0 + f64::from(inner).tanh() as f32)
}

#[test]
fn gelu_has_the_values_of_ggmls_table() {
    let mut x: Vec<f32> = (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32()).collect();
    // Between two f16, and around the ends of the table.
    x.extend(Random(8).values(2000, 12.0));
    x.extend([10.0f32, -10.0].iter().flat_map(|x| [x.next_up(), *x, x.next_down()]));
    let wanted: Vec<f32> = x
        .iter()
        .map(|&x| match x {
            x if x <= -10.0 => 0.0,
            x if x >= 10.0 => x,
            x => f16::from_f32(gelu_reference(f16::from_f32(x).to_f32())).to_f32(),
        })
        .collect();
    let up = Random(9).values(x.len(), 3.0);
    let gated: Vec<f32> = wanted.iter().zip(&up).map(|(x, u)| x * u).collect();
    for (name, ops) in instances() {
        let (mut gelu, mut geglu) = (x.clone(), x.clone());
        ops.gelu(&mut gelu);
        ops.geglu(&mut geglu, &up);
        assert_same(&gelu, &wanted, name);
        assert_same(&geglu, &gated, name);
    }
    // The canary: without the rounding.
    let smooth: Vec<f32> = x.iter().map(|&x| gelu_reference(x)).collect();
    assert!(difference(&smooth, &wanted).is_some());
}

/// The table in one number: FNV-1a over its entries in order, 0x7e00 for every NaN. A C program that fills
/// the table as ggml does, with glibc 2.36's `tanhf`, printed it.
#[test]
fn the_whole_table_is_ggmls() {
    let hash = (0..=u16::MAX).map(gelu::entry).fold(0xcbf2_9ce4_8422_2325_u64, |hash, bits| {
        let bits = if f16::from_bits(bits).is_nan() { 0x7e00 } else { bits };
        (hash ^ u64::from(bits)).wrapping_mul(0x100_0000_01b3)
    });
    assert_eq!(hash, 0x4c42_679d_31ed_ff80);
}

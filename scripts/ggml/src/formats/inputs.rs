//! Activations of every class that a quantiser must get right.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

/// Normal values with a standard deviation.
pub fn normal(rng: &mut ChaCha8Rng, n: usize, std: f32) -> Vec<f32> {
    // Twelve uniform values: near enough, and the same bits everywhere.
    let mut uniform = || f64::from(rng.next_u32()) / 4294967296.0;
    (0..n).map(|_| ((0..12).map(|_| uniform()).sum::<f64>() - 6.0) as f32 * std).collect()
}

/// Named rows of `n` values. The largest magnitude of a case that says so is 127 in every block of 32, so that values are
/// their own quants and halves are ties.
pub fn activation_cases(rng: &mut ChaCha8Rng, n: usize) -> Vec<(&'static str, Vec<f32>)> {
    let ramp = |f: &dyn Fn(usize) -> f32| (0..n).map(f).collect::<Vec<f32>>();
    let peaked = |peak: f32, f: &dyn Fn(usize) -> f32| ramp(&|i| if i % 32 == 5 { peak } else { f(i) });
    let sparse = |at: usize, v: f32| ramp(&|i| if i == at { v } else { 0.0 });
    let mut cases = vec![
        ("zeros", vec![0.0; n]),
        ("minus zeros", vec![-0.0; n]),
        ("ones", vec![1.0; n]),
        ("integers to 127", peaked(127.0, &|i| (i as f32 * 7.0) % 253.0 - 126.0)),
        ("ties, peak 127", peaked(127.0, &|i| i as f32 % 126.0 - 63.0 + 0.5)),
        ("ties, peak -127", peaked(-127.0, &|i| i as f32 % 126.0 - 63.0 + 0.5)),
        ("ties a step apart, peak 127", peaked(127.0, &|i| if i % 2 == 0 { 0.5 } else { -0.5 })),
        (
            "beside ties, peak 127",
            peaked(127.0, &|i| {
                let tie = i as f32 % 126.0 - 63.0 + 0.5;
                f32::from_bits(if i % 2 == 0 { tie.to_bits() + 1 } else { tie.to_bits() - 1 })
            }),
        ),
        ("ties scaled by 2^-9", peaked(127.0 / 512.0, &|i| (i as f32 % 126.0 - 62.5) / 512.0)),
        ("equal peaks, plus first", ramp(&|i| if i % 2 == 0 { 3.0 } else { -3.0 })),
        ("equal peaks, minus first", ramp(&|i| if i % 2 == 0 { -3.0 } else { 3.0 })),
        ("one value first", sparse(0, 5.5)),
        ("one value last", sparse(n - 1, -5.5)),
        ("zero blocks between", ramp(&|i| if (i / 32) % 2 == 0 { 0.0 } else { i as f32 - 100.0 })),
        ("tiny 1e-30", ramp(&|i| (i as f32 - 100.3) * 1e-32)),
        ("beyond f16", ramp(&|i| (i as f32 - 100.3) * 1e4)),
        ("huge 1e38", ramp(&|i| (i as f32 - 100.3) * 1e36)),
        ("largest finite", peaked(f32::MAX, &|i| if i % 2 == 0 { f32::MAX / 2.0 } else { f32::MIN / 3.0 })),
        ("scale overflows: subnormal", ramp(&|i| f32::from_bits(1 + (i as u32) * 37))),
        (
            "scale overflows: smallest normal",
            peaked(f32::MIN_POSITIVE, &|i| if i % 3 == 0 { 1e-40 } else { 0.0 }),
        ),
    ];
    for (name, std) in
        [("normal 1e-3", 1e-3), ("normal 1", 1.0), ("normal 1, again", 1.0), ("normal 1e3", 1e3)]
    {
        cases.push((name, normal(rng, n, std)));
    }
    let mut outlier = normal(rng, n, 1.0);
    outlier[n / 2 + 3] = 80.0;
    cases.push(("normal with an outlier", outlier));
    cases
}

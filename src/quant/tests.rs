//! The formats against independent, slower statements of what they are.

use half::f16;

use super::testing::{KINDS, Kind, Random, weights};
use super::*;

fn activations(format: &Format, rows: usize, cols: usize, random: &mut Random) -> Activations {
    let mut x = Activations::new();
    x.quantize(format.activation, &random.activations(rows * cols), cols).expect("finite");
    x
}

/// What the rounded activations stand for.
fn dequantized(x: ActivationRow<'_>) -> Vec<f32> {
    match x {
        ActivationRow::Floats(_, values) => values.to_vec(),
        ActivationRow::Q8_0(x) | ActivationRow::Q8_1(x) => {
            x.qs.iter().enumerate().map(|(i, q)| f32::from(*q) * x.d[i / 32]).collect()
        }
        ActivationRow::Q8K(x) => x.qs.iter().enumerate().map(|(i, q)| f32::from(*q) * x.d[i / 256]).collect(),
    }
}

/// Scale and min of sub-block `j`, one at a time as the format is told.
fn scale_and_min(packed: &[u8], j: usize) -> (i64, i64) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let rest = packed[j + 4];
        ((rest & 15) + 16 * (packed[j - 4] >> 6), (rest >> 4) + 16 * (packed[j] >> 6))
    };
    (i64::from(scale), i64::from(min))
}

/// A super-block's weights with their sub-block's scale and min, element by element.
fn elements(ty: TensorType, block: &[u8]) -> Vec<(i64, i64, i64)> {
    let mut out = vec![(0, 0, 0); 256];
    match ty {
        TensorType::Q4_K | TensorType::Q5_K => {
            let qs = &block[block.len() - 128..];
            for j in 0..8 {
                let (scale, min) = scale_and_min(&block[4..16], j);
                for l in 0..32 {
                    let byte = qs[j / 2 * 32 + l];
                    let mut q = if j % 2 == 0 { byte % 16 } else { byte / 16 };
                    if ty == TensorType::Q5_K && block[16 + l] & (1 << j) != 0 {
                        q += 16;
                    }
                    out[32 * j + l] = (i64::from(q), scale, min);
                }
            }
        }
        TensorType::Q6_K => {
            let (ql, qh, scales) = (&block[..128], &block[128..192], &block[192..208]);
            for half in 0..2 {
                for l in 0..32 {
                    let (a, b, h) = (ql[64 * half + l], ql[64 * half + 32 + l], qh[32 * half + l]);
                    let four = [
                        (a & 15) + 16 * (h & 3),
                        (b & 15) + 16 * (h >> 2 & 3),
                        (a >> 4) + 16 * (h >> 4 & 3),
                        (b >> 4) + 16 * (h >> 6),
                    ];
                    for (k, q) in four.into_iter().enumerate() {
                        let scale = scales[8 * half + 2 * k + l / 16] as i8;
                        out[128 * half + 32 * k + l] = (i64::from(q) - 32, i64::from(scale), 0);
                    }
                }
            }
        }
        other => panic!("{other} is no K-quant"),
    }
    out
}

const K_QUANTS: [TensorType; 3] = [TensorType::Q4_K, TensorType::Q5_K, TensorType::Q6_K];

fn scales_of(ty: TensorType, block: &[u8]) -> (f32, f32) {
    let at = |i: usize| f16::from_le_bytes([block[i], block[i + 1]]).to_f32();
    if ty == TensorType::Q6_K { (at(208), 0.0) } else { (at(0), at(2)) }
}

#[test]
fn k_quants_decode_element_by_element() {
    for ty in K_QUANTS {
        let format = format(ty).expect("a format");
        for kind in KINDS {
            let bytes = weights(format, kind, 4, 512, &mut Random(1));
            let mut out = vec![0f32; 4 * 512];
            (format.decode)(&bytes, &mut out);
            for (block, out) in bytes.chunks_exact(ty.block_bytes() as usize).zip(out.chunks_exact(256)) {
                let (d, dmin) = scales_of(ty, block);
                for ((q, scale, min), out) in elements(ty, block).into_iter().zip(out) {
                    let scaled = d * scale as f32 * q as f32;
                    let want = if ty == TensorType::Q6_K { scaled } else { scaled - dmin * min as f32 };
                    assert!(
                        want.to_bits() == out.to_bits() || want.is_nan() && out.is_nan(),
                        "{ty} {want} {out}"
                    );
                }
            }
        }
    }
}

#[test]
fn other_formats_decode() {
    let decode = |ty, bytes: &[u8], n| {
        let mut out = vec![0f32; n];
        (format(ty).expect("a format").decode)(bytes, &mut out);
        out
    };
    let mut q8_0 = f16::from_f32(0.25).to_le_bytes().to_vec();
    q8_0.extend((0..32).map(|i| if i == 0 { 0x80 } else { i as u8 }));
    let out = decode(TensorType::Q8_0, &q8_0, 32);
    assert_eq!((out[0], out[1], out[31]), (-32.0, 0.25, 7.75));
    assert_eq!(decode(TensorType::F32, &1.5f32.to_le_bytes(), 1), [1.5]);
    // The smallest f16 above zero, and -2.
    assert_eq!(decode(TensorType::F16, &[1, 0, 0, 0xc0], 2), [2f32.powi(-24), -2.0]);
    // A subnormal of bf16 keeps its value.
    assert_eq!(decode(TensorType::BF16, &[1, 0, 0x80, 0x3f], 2), [f32::from_bits(0x1_0000), 1.0]);
}

/// With scales of one, the dots are their integers.
#[test]
fn integer_sums_are_exact() {
    for ty in K_QUANTS {
        let format = format(ty).expect("a format");
        for kind in [Kind::Ordinary, Kind::Extreme, Kind::AllOnes, Kind::AllZeros] {
            for seed in 0..20 {
                let mut random = Random(seed);
                let mut block = weights(format, kind, 1, 256, &mut random);
                let qs: Vec<i8> = (0..256)
                    .map(|_| if kind == Kind::Ordinary { random.below(255) as i32 - 127 } else { 127 } as i8)
                    .collect();
                let bsums: Vec<i16> = qs.chunks(16).map(|g| g.iter().map(|q| i16::from(*q)).sum()).collect();
                let x = ActivationRow::Q8K(Q8KRow { qs: &qs, d: &[1.0], bsums: &bsums });
                let elements = elements(ty, &block);
                let pairs = || elements.iter().zip(&qs);
                let sum: i64 = pairs().map(|((q, scale, _), a)| q * scale * i64::from(*a)).sum();
                let min_sum: i64 = pairs().map(|((_, _, min), a)| min * i64::from(*a)).sum();
                let one = f16::ONE.to_le_bytes();
                if ty == TensorType::Q6_K {
                    block[208..210].copy_from_slice(&one);
                    assert_eq!((format.dot)(&block, x), sum as f32, "{ty} {kind:?}");
                } else {
                    block[..4].copy_from_slice(&[one[0], one[1], 0, 0]);
                    assert_eq!((format.dot)(&block, x), sum as f32, "{ty} {kind:?}");
                    block[..4].copy_from_slice(&[0, 0, one[0], one[1]]);
                    assert_eq!((format.dot)(&block, x), -(min_sum as f32), "{ty} {kind:?} mins");
                }
            }
        }
    }
}

/// Dots against the same sum in f64 over decoded weights and activations: the error of the dot alone, in
/// units of the sum of magnitudes.
#[test]
fn dots_are_close_to_f64() {
    // Largest error over these 200 rows, measured; the bound is four times that.
    assert_eq!(MEASURED_DOT_ERROR.len(), FORMATS.len());
    let mut wrong = Vec::new();
    for &(ty, measured) in MEASURED_DOT_ERROR {
        let format = format(ty).expect("a format");
        let (rows, cols) = (200, 2304);
        let mut random = Random(3);
        let bytes = weights(format, Kind::Ordinary, rows, cols, &mut random);
        let x = activations(format, 1, cols, &mut random);
        let a = dequantized(x.row(0));
        let mut worst = 0f64;
        for row in bytes.chunks_exact(format.row_bytes(cols)) {
            let mut w = vec![0f32; cols];
            (format.decode)(row, &mut w);
            let products = || w.iter().zip(&a).map(|(w, a)| f64::from(*w) * f64::from(*a));
            let (exact, magnitude) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
            let error = (f64::from((format.dot)(row, x.row(0))) - exact).abs() / magnitude;
            worst = worst.max(error);
        }
        println!("{ty}: {worst:.2e}");
        assert!(worst > 0.0, "{ty}: f32 sums have some error");
        if worst > 4.0 * measured {
            wrong.push((ty, worst));
        }
    }
    assert_eq!(wrong, []);
}

const MEASURED_DOT_ERROR: &[(TensorType, f64)] = &[
    (TensorType::F32, 1.9e-8),
    (TensorType::F16, 1.8e-8),
    (TensorType::BF16, 1.1e-8),
    (TensorType::Q4_0, 1.2e-8),
    // The sums that go with mins are rounded to f16.
    (TensorType::Q4_1, 2.8e-6),
    (TensorType::Q5_0, 9.8e-9),
    (TensorType::Q5_1, 2.0e-6),
    (TensorType::Q8_0, 1.1e-8),
    (TensorType::Q2_K, 1.6e-8),
    (TensorType::Q3_K, 1.1e-8),
    (TensorType::Q4_K, 1.4e-8),
    (TensorType::Q5_K, 1.3e-8),
    (TensorType::Q6_K, 8.6e-9),
    (TensorType::IQ2_XXS, 1.2e-8),
    (TensorType::IQ2_XS, 1.8e-8),
    (TensorType::IQ2_S, 1.8e-8),
    (TensorType::IQ3_XXS, 1.3e-8),
    (TensorType::IQ3_S, 1.0e-8),
    (TensorType::IQ1_S, 7.2e-9),
    (TensorType::IQ1_M, 1.6e-8),
    (TensorType::IQ4_NL, 1.3e-8),
    (TensorType::IQ4_XS, 1.4e-8),
    (TensorType::TQ1_0, 7.1e-9),
    (TensorType::TQ2_0, 1.2e-8),
    (TensorType::MXFP4, 1.1e-8),
    (TensorType::NVFP4, 1.2e-8),
    (TensorType::Q1_0, 9.6e-9),
    (TensorType::Q2_0, 8.7e-9),
];

/// The dots compiled with fused multiply-add give the bits of the library call's.
#[test]
fn hardware_fma_gives_the_same_bits() {
    #[cfg(target_arch = "x86_64")]
    if !std::arch::is_x86_feature_detected!("fma") {
        testing::say("skipped: this CPU lacks fma");
        return;
    }
    for format in FORMATS {
        for kind in KINDS {
            for blocks in [1, 3, 9, 100] {
                let cols = blocks * format.ty.block_len() as usize;
                let mut random = Random(blocks as u64);
                let row = weights(format, kind, 1, cols, &mut random);
                let x = activations(format, 1, cols, &mut random);
                // SAFETY: checked above.
                let (a, b) = ((format.dot)(&row, x.row(0)), unsafe { (format.dot_fma)(&row, x.row(0)) });
                assert!(
                    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(),
                    "{} {kind:?}: {a:e} {b:e}",
                    format.ty
                );
            }
        }
    }
}

/// The lanes and trees of the definition, told once more without chunks.
#[test]
fn lanes_are_by_index() {
    let mut random = Random(9);
    let (w, a) = (random.activations(100), random.activations(100));
    let mut lanes = [0f32; 16];
    for i in 0..112 {
        let (w, a) = if i < 100 { (w[i], a[i]) } else { (0.0, 0.0) };
        lanes[i % 16] = w.mul_add(a, lanes[i % 16]);
    }
    let l: Vec<f32> = (0..8).map(|i| lanes[i] + lanes[i + 8]).collect();
    let want = ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
    let bytes: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
    let dot = (format(TensorType::F32).expect("a format").dot)(
        &bytes,
        ActivationRow::Floats(ActivationType::F32, &a),
    );
    assert_eq!(dot.to_bits(), want.to_bits());
}

mod quantizers {
    use super::*;

    fn quantize(ty: ActivationType, x: &[f32]) -> Activations {
        let mut out = Activations::new();
        out.quantize(ty, x, x.len()).expect("finite");
        out
    }

    #[test]
    fn q8_k_is_signed_by_the_first_largest() {
        let mut x = [0.5f32; 256];
        (x[3], x[7]) = (-2.0, 2.0);
        let out = quantize(ActivationType::Q8_K, &x);
        let row = out.row(0).q8_k();
        assert_eq!((row.qs[3], row.qs[7]), (-127, 127));
        // 0.5 * 63.5 = 31.75
        assert_eq!(row.qs[0], 32);
        assert_eq!(row.d[0].to_bits(), (1.0 / (-127.0 / -2.0f32)).to_bits());
        assert_eq!(row.bsums[0], 14 * 32);
        (x[3], x[7]) = (2.0, -2.0);
        let out = quantize(ActivationType::Q8_K, &x);
        assert!(out.row(0).q8_k().d[0] < 0.0);
        assert_eq!((out.row(0).q8_k().qs[3], out.row(0).q8_k().qs[0]), (-127, -32));
    }

    #[test]
    fn q8_k_rounds_halves_to_even_and_q8_0_away_from_zero() {
        let mut x = [0f32; 256];
        x[..5].copy_from_slice(&[-127.0, 0.5, 1.5, -2.5, 2.5]);
        let out = quantize(ActivationType::Q8_K, &x);
        assert_eq!(out.row(0).q8_k().qs[..5], [-127, 0, 2, -2, 2].map(|q: i8| q));
        let out = quantize(ActivationType::Q8_0, &x);
        assert_eq!(out.row(0).q8_0().qs[..5], [-127, 1, 2, -3, 3].map(|q: i8| q));
        // Next below a half: adding 0.5 and truncating would give 1.
        x[1] = f32::from_bits(0.5f32.to_bits() - 1);
        assert_eq!(quantize(ActivationType::Q8_0, &x).row(0).q8_0().qs[1], 0);
    }

    #[test]
    fn zeros_give_zeros() {
        let mut out = Activations::new();
        for (ty, fill) in
            [(ActivationType::Q8_K, 1.0), (ActivationType::Q8_K, 0.0), (ActivationType::Q8_K, -0.0)]
        {
            out.quantize(ty, &[fill; 512], 256).expect("finite");
        }
        for row in 0..2 {
            let row = out.row(row).q8_k();
            assert!(row.d == [0.0] && row.qs.iter().all(|q| *q == 0) && row.bsums.iter().all(|s| *s == 0));
        }
        let out = quantize(ActivationType::Q8_0, &[0.0; 32]);
        assert!(out.row(0).q8_0().d == [0.0] && out.row(0).q8_0().qs == [0; 32]);
    }

    /// Magnitudes whose inverse overflows: no value becomes -128, which kernels rely on.
    #[test]
    fn the_tiniest_values_are_in_range() {
        for bits in [1u32, 2, 100, 5000, 0x0020_0000, 0x007f_ffff, 0x0080_0000, 0x0180_0000] {
            for sign in [0, 0x8000_0000] {
                let mut x = [0f32; 256];
                (x[0], x[1], x[9]) =
                    (f32::from_bits(bits | sign), -f32::from_bits(bits), f32::from_bits(bits / 2));
                for ty in [ActivationType::Q8_0, ActivationType::Q8_1, ActivationType::Q8_K] {
                    let out = quantize(ty, &x);
                    let (qs, d) = match out.row(0) {
                        ActivationRow::Q8_0(row) | ActivationRow::Q8_1(row) => (row.qs, row.d),
                        ActivationRow::Q8K(row) => (row.qs, row.d),
                        ActivationRow::Floats(..) => unreachable!(),
                    };
                    assert!(qs.iter().all(|q| *q >= -127), "{ty:?} {bits:#x}");
                    assert!(d.iter().all(|d| d.is_finite()), "{ty:?} {bits:#x}");
                }
            }
        }
    }

    /// ggml's generic loops, written plainly.
    #[test]
    fn quantizers_follow_the_plain_loops() {
        let mut random = Random(21);
        for scale in [1e-30f32, 1e-3, 1.0, 300.0, 1e6] {
            let x: Vec<f32> = random.activations(2048).iter().map(|x| x * scale).collect();
            let out = quantize(ActivationType::Q8_0, &x);
            let row = out.row(0).q8_0();
            for (b, x) in x.chunks(32).enumerate() {
                let d = x.iter().fold(0f32, |max, x| if x.abs() > max { x.abs() } else { max }) / 127.0;
                assert_eq!(row.d[b], f16::from_f32(d).to_f32());
                for (x, q) in x.iter().zip(&row.qs[32 * b..]) {
                    assert_eq!((x * (1.0 / d)).round() as i8, *q);
                }
            }
            let (of_1, of_0) = (quantize(ActivationType::Q8_1, &x), row);
            let row = of_1.row(0).q8_1();
            assert_eq!((row.qs, row.d, row.bsums), (of_0.qs, of_0.d, of_0.bsums));
            for (qs, &sum) in row.qs.chunks(16).zip(row.bsums) {
                assert_eq!(i32::from(sum), qs.iter().map(|q| i32::from(*q)).sum::<i32>());
            }
            for (b, x) in x.chunks(32).enumerate() {
                let d = x.iter().fold(0f32, |max, x| if x.abs() > max { x.abs() } else { max }) / 127.0;
                let sum: i32 = row.qs[32 * b..][..32].iter().map(|q| i32::from(*q)).sum();
                assert_eq!(row.s[b].to_bits(), f16::from_f32(sum as f32 * d).to_f32().to_bits());
            }
            let out = quantize(ActivationType::Q8_K, &x);
            let row = out.row(0).q8_k();
            for (b, x) in x.chunks(256).enumerate() {
                let mut max = 0f32;
                x.iter().for_each(|x| {
                    if x.abs() > max.abs() {
                        max = *x
                    }
                });
                let iscale = -127.0 / max;
                assert_eq!(row.d[b].to_bits(), (1.0 / iscale).to_bits());
                for (i, x) in x.iter().enumerate() {
                    assert_eq!(row.qs[256 * b + i], (iscale * x).round_ties_even().min(127.0) as i8);
                }
                for g in 0..16 {
                    let sum: i32 = row.qs[256 * b + 16 * g..][..16].iter().map(|q| i32::from(*q)).sum();
                    assert_eq!(i32::from(row.bsums[16 * b + g]), sum);
                }
            }
        }
    }

    #[test]
    fn floats_round_to_even() {
        // 1 + 2^-11 is half way between two f16 values, 1 + 3 * 2^-11 too; likewise 2^-8 for bf16.
        let x = [1.0 + 2f32.powi(-11), 1.0 + 3.0 * 2f32.powi(-11), 1e6, f32::INFINITY];
        let out = quantize(ActivationType::F16, &x);
        let values = out.row(0).floats(ActivationType::F16);
        assert_eq!(values, [1.0, 1.0 + 2f32.powi(-9), f32::INFINITY, f32::INFINITY]);
        let x = [1.0 + 2f32.powi(-8), 1.0 + 3.0 * 2f32.powi(-8), f32::from_bits(0x0001_0000), f32::MAX];
        let out = quantize(ActivationType::BF16, &x);
        let values = out.row(0).floats(ActivationType::BF16);
        assert_eq!(values, [1.0, 1.0 + 2f32.powi(-6), f32::from_bits(0x0001_0000), f32::INFINITY]);
        let out = quantize(ActivationType::BF16, &[f32::NAN]);
        assert!(out.row(0).floats(ActivationType::BF16)[0].is_nan());
    }

    #[test]
    fn values_that_are_not_finite_are_named() {
        let mut out = Activations::new();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (at, row, index) in [(0, 0, 0), (2047, 7, 255), (1030, 4, 6)] {
                let mut x = vec![1.0; 2048];
                x[at] = bad;
                for ty in [ActivationType::Q8_0, ActivationType::Q8_1, ActivationType::Q8_K] {
                    assert_eq!(out.quantize(ty, &x, 256), Err(NonFinite { row, index }));
                }
                assert_eq!(out.quantize(ActivationType::F32, &x, 256), Ok(()));
            }
        }
    }

    #[test]
    fn rows_gather_and_threads_do_not_matter() {
        let x = Random(2).activations(300 * 512);
        for ty in [
            ActivationType::F16,
            ActivationType::BF16,
            ActivationType::F32,
            ActivationType::Q8_0,
            ActivationType::Q8_1,
            ActivationType::Q8_K,
        ] {
            // Rows of floats that are whole pages do not follow one another at once.
            for cols in [512, 1024] {
                let rows = [x.len() / cols - 1, 0, 7];
                let mut all = Activations::new();
                all.quantize(ty, &x, cols).expect("finite");
                let mut some = Activations::new();
                all.gather_into(&rows, &mut some);
                assert_eq!((some.rows(), some.cols(), some.ty()), (3, cols, ty));
                for (i, row) in rows.into_iter().enumerate() {
                    let alone = quantize(ty, &x[row * cols..][..cols]);
                    assert_eq!(format!("{:?}", some.row(i)), format!("{:?}", alone.row(0)));
                }
                all.gather_into(&[], &mut some);
                assert_eq!(some.rows(), 0);
            }
        }
    }
}

//! The formats' gate: every format against what ggml computed, every kernel set against the scalar dots; and that the
//! gate trips on the faults that kernels have.

mod common;

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use rayon::ThreadPool;
use wayinfer::gguf::TensorType;
use wayinfer::kernels::{Isa, Kernels, WeightMatrix, matmul};
use wayinfer::quant::{ActivationRow, ActivationType, Activations, FORMATS, Format, Q8KRow, format};
use wayinfer::verify::formats::*;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/formats")
}

fn goldens(format: &Format) -> FormatGoldens {
    let goldens = FormatGoldens::find(&folder(), format).unwrap_or_else(|e| panic!("{e}"));
    goldens.unwrap_or_else(|| panic!("golden/formats has no goldens for {}", format.ty))
}

fn real(ty: TensorType) -> &'static Format {
    format(ty).expect("a format")
}

/// What `check` says of every format, with pools for it.
fn every_format<R: Send>(check: impl Fn(&'static Format, &[ThreadPool]) -> R + Sync) -> Vec<R> {
    each_format(FORMATS, |format| check(format, &thread_pools().expect("threads")))
}

/// The kernel sets that this CPU can run; prints which it cannot.
fn kernel_sets() -> Vec<&'static Kernels> {
    let sets: Vec<_> = Kernels::available().collect();
    println!("kernel sets: {}", sets.iter().map(|s| s.isa().name()).collect::<Vec<_>>().join(", "));
    Kernels::unavailable().for_each(|why| common::say(&format!("skipped: {why}")));
    sets
}

#[test]
fn every_format_computes_what_ggml_computed() {
    for format in FORMATS {
        let report = check_against_ggml(&FormatUnderTest::of(format), &goldens(format));
        assert_eq!(report.first(), None);
        let dots = &report.dots;
        println!(
            "{}: {} values, {} bytes of activations and {} exact dots the same, {} dots within {} ULP",
            format.ty,
            report.decoded.compared,
            report.quantised.compared,
            report.exact.compared,
            dots.compared,
            dots.worst_ulp
        );
        assert!(report.decoded.compared >= 10_000 && report.quantised.compared >= 6_000, "{}", format.ty);
        assert!(report.refused.compared == 9 && report.exact.compared >= 16 && dots.compared >= 24);
    }
}

/// Bounds are at most ten times what was measured, and what stands in the table is what is measured.
#[test]
fn bounds_are_tight() {
    assert_eq!(DOT_BOUNDS.len(), FORMATS.len());
    let mut loose = Vec::new();
    for format in FORMATS {
        let bound = dot_bound(format.ty).unwrap_or_else(|| panic!("no bound for {}", format.ty));
        let worst = check_against_ggml(&FormatUnderTest::of(format), &goldens(format)).dots.worst_ulp;
        println!("{}: worst {worst:.5} ULP, table {}, bound {}", format.ty, bound.measured, bound.bound);
        let measured = worst <= bound.measured && bound.measured <= worst * 1.01;
        if !measured || bound.bound <= bound.measured || bound.bound > 10.0 * bound.measured {
            loose.push(format.ty);
        }
    }
    assert_eq!(loose, []);
}

#[test]
fn every_kernel_set_computes_what_the_scalar_dots_do() {
    let sets = kernel_sets();
    every_format(|format, pools| {
        let goldens = goldens(format);
        let reports = check_kernels(&sets, format, Some(&goldens), matmul, pools);
        for (kernels, report) in sets.iter().zip(&reports) {
            assert_eq!(report.first.as_ref().map(ToString::to_string), None);
            assert!(report.dots > 10_000, "{}", report.dots);
            let (exact, close) =
                check_kernels_against_ggml(kernels, format, &goldens, matmul).expect("finite");
            assert_eq!(exact.first.or(close.first), None, "{}", kernels.isa());
            println!(
                "{} {}: {} dots the same as scalar, ggml's within {:.4} ULP",
                format.ty,
                kernels.name_for(format.ty).expect("a kernel"),
                report.dots,
                close.worst_ulp
            );
        }
    });
}

/// The value of a float with this many bits of exponent and mantissa, from its definition.
fn value_of(bits: u16, mantissa_bits: u32, bias: i32) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) =
        (i32::from((bits & 0x7fff) >> mantissa_bits), f64::from(bits & ((1 << mantissa_bits) - 1)));
    let top = 0x7fff >> mantissa_bits;
    let unit = 2f64.powi(-(mantissa_bits as i32));
    sign * match exponent {
        0 => fraction * unit * 2f64.powi(1 - bias),
        e if e == top && fraction == 0.0 => f64::INFINITY,
        e if e == top => f64::NAN,
        e => (1.0 + fraction * unit) * 2f64.powi(e - bias),
    }
}

/// All 65,536 bit patterns of F16 and BF16: decoded, and as the weights of every kernel set.
#[test]
fn every_half_float_is_decoded() {
    let sets = kernel_sets();
    type Widen = fn(u16) -> f32;
    let types: [(TensorType, Widen, u32, i32); 2] = [
        (TensorType::F16, |b| f16::from_bits(b).to_f32(), 10, 15),
        (TensorType::BF16, |b| bf16::from_bits(b).to_f32(), 7, 127),
    ];
    for (ty, widen, mantissa_bits, bias) in types {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut values = vec![0f32; 65536];
        (real(ty).decode)(&bytes, &mut values);
        for (bits, &value) in (0..=u16::MAX).zip(&values) {
            let (crates, plain) = (widen(bits), value_of(bits, mantissa_bits, bias) as f32);
            assert!(
                value.to_bits() == crates.to_bits() || value.is_nan() && crates.is_nan(),
                "{ty} {bits:#x}"
            );
            assert!(value.to_bits() == plain.to_bits() || value.is_nan() && plain.is_nan(), "{ty} {bits:#x}");
        }
        // A vector's width, and its tail.
        for cols in [1, 16, 17] {
            let rows: Vec<u8> = (0..=u16::MAX).flat_map(|b| b.to_le_bytes().repeat(cols)).collect();
            let weights = WeightMatrix::new(ty, &rows, 65536, cols).expect("a format");
            let mut x = Activations::new();
            x.quantize(real(ty).activation, &vec![1.0; cols], cols).expect("finite");
            for kernels in &sets {
                let mut out = vec![1e-7; 65536];
                matmul(kernels, weights, &x, &mut out);
                for (bits, (&dot, &value)) in out.iter().zip(&values).enumerate() {
                    let wanted = value * cols as f32; // few bits: exact, or infinite on both sides
                    assert!(
                        dot == wanted || dot.is_nan() && wanted.is_nan(),
                        "{ty} {} {bits:#x}: {dot:e} {wanted:e}",
                        kernels.isa()
                    );
                }
            }
        }
    }
}

/// The gate trips on faults, and its report names the format and the first case.
mod canaries {
    use super::*;

    fn report(under_test: &FormatUnderTest) -> GgmlReport {
        check_against_ggml(under_test, &goldens(real(under_test.ty)))
    }

    fn named(mismatch: Option<&Mismatch>, ty: TensorType, check: &str, case: &str) {
        let mismatch = mismatch.unwrap_or_else(|| panic!("{ty} {check}: not seen"));
        let text = mismatch.to_string();
        assert!(text.starts_with(&format!("{ty} {check}, ")) && text.contains(case), "{text}");
        println!("seen: {text}");
    }

    /// Bytes of Q4_K or Q5_K blocks whose factor of the mins is zero.
    fn without_mins(ty: TensorType, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for block in bytes.chunks_exact_mut(ty.block_bytes() as usize) {
            block[2..4].fill(0);
        }
        bytes
    }

    #[test]
    fn mins_dropped() {
        fn dot<const TY: u32>(weights: &[u8], x: ActivationRow<'_>) -> f32 {
            let ty = TensorType::from_id(TY).expect("a type");
            (real(ty).dot)(&without_mins(ty, weights), x)
        }
        fn decode<const TY: u32>(bytes: &[u8], out: &mut [f32]) {
            let ty = TensorType::from_id(TY).expect("a type");
            (real(ty).decode)(&without_mins(ty, bytes), out);
        }
        fn check<const TY: u32>() {
            let ty = TensorType::from_id(TY).expect("a type");
            let sound = FormatUnderTest::of(real(ty));
            let dots = report(&FormatUnderTest { dot: dot::<TY>, ..sound });
            named(dots.first(), ty, "exact dot", "row 0 of 256 values");
            named(dots.dots.first.as_ref(), ty, "dot", "row 0 of 256 values");
            assert!(dots.decoded.differing == 0 && dots.quantised.differing == 0);
            let decoded = report(&FormatUnderTest { decode: decode::<TY>, ..sound });
            named(decoded.first(), ty, "decode", "case \"");
        }
        check::<{ TensorType::Q4_K as u32 }>();
        check::<{ TensorType::Q5_K as u32 }>();
    }

    /// The sums of the mins left out, as a kernel would that forgets them.
    #[test]
    fn sums_of_activations_dropped() {
        fn dot<const TY: u32>(weights: &[u8], x: ActivationRow<'_>) -> f32 {
            let x = x.q8_k();
            let without = Q8KRow { bsums: &vec![0; x.bsums.len()], ..x };
            (real(TensorType::from_id(TY).expect("a type")).dot)(weights, ActivationRow::Q8K(without))
        }
        let sound = FormatUnderTest::of(real(TensorType::Q4_K));
        let dots = report(&FormatUnderTest { dot: dot::<{ TensorType::Q4_K as u32 }>, ..sound });
        named(dots.first(), TensorType::Q4_K, "exact dot", "row 0 of 256 values");
    }

    /// Every sub-block takes its neighbour's scale (and, of Q4_K and Q5_K, keeps its min).
    #[test]
    fn a_scale_of_the_wrong_sub_block() {
        fn wrong(ty: TensorType, bytes: &[u8]) -> Vec<u8> {
            let mut bytes = bytes.to_vec();
            for block in bytes.chunks_exact_mut(ty.block_bytes() as usize) {
                match ty {
                    // Low six bits of the first four bytes: scales 0 to 3.
                    TensorType::Q4_K | TensorType::Q5_K => {
                        let scales: Vec<u8> = (0..4).map(|i| block[4 + i] & 63).collect();
                        for i in 0..4 {
                            block[4 + i] = block[4 + i] & 0xc0 | scales[(i + 1) % 4];
                        }
                    }
                    TensorType::Q6_K => block[192..208].rotate_left(1),
                    _ => unreachable!("no sub-blocks"),
                }
            }
            bytes
        }
        fn dot<const TY: u32>(weights: &[u8], x: ActivationRow<'_>) -> f32 {
            let ty = TensorType::from_id(TY).expect("a type");
            (real(ty).dot)(&wrong(ty, weights), x)
        }
        fn decode<const TY: u32>(bytes: &[u8], out: &mut [f32]) {
            let ty = TensorType::from_id(TY).expect("a type");
            (real(ty).decode)(&wrong(ty, bytes), out);
        }
        fn check<const TY: u32>() {
            let ty = TensorType::from_id(TY).expect("a type");
            let sound = FormatUnderTest::of(real(ty));
            let dots = report(&FormatUnderTest { dot: dot::<TY>, ..sound });
            named(dots.first(), ty, "exact dot", "row 0 of 256 values");
            named(dots.dots.first.as_ref(), ty, "dot", "of 256 values");
            let decoded = report(&FormatUnderTest { decode: decode::<TY>, ..sound });
            named(decoded.first(), ty, "decode", "case \"");
        }
        check::<{ TensorType::Q4_K as u32 }>();
        check::<{ TensorType::Q5_K as u32 }>();
        check::<{ TensorType::Q6_K as u32 }>();
    }

    /// ggml's loops with the other rule for halves.
    #[test]
    fn the_wrong_rounding_of_halves() {
        fn q8_k_away_from_zero(ty: ActivationType, x: &[f32]) -> Result<Vec<u8>, wayinfer::quant::NonFinite> {
            assert_eq!(ty, ActivationType::Q8_K);
            refuse(x)?;
            let mut out = Vec::new();
            for x in x.chunks(256) {
                let mut first = 0f32;
                for &x in x {
                    first = if x.abs() > first.abs() { x } else { first };
                }
                let inverse = if first == 0.0 { 0.0 } else { -127.0 / first };
                let qs: Vec<i8> = x.iter().map(|x| (inverse * x).round().min(127.0) as i8).collect();
                out.extend(if first == 0.0 { 0.0 } else { 1.0 / inverse }.to_le_bytes());
                out.extend(qs.iter().map(|q| *q as u8));
                for group in qs.chunks(16) {
                    out.extend(group.iter().map(|q| i16::from(*q)).sum::<i16>().to_le_bytes());
                }
            }
            Ok(out)
        }
        fn q8_0_to_even(ty: ActivationType, x: &[f32]) -> Result<Vec<u8>, wayinfer::quant::NonFinite> {
            assert_eq!(ty, ActivationType::Q8_0);
            refuse(x)?;
            let mut out = Vec::new();
            for x in x.chunks(32) {
                let d = x.iter().fold(0f32, |max, x| max.max(x.abs())) / 127.0;
                let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
                out.extend(f16::from_f32(d).to_le_bytes());
                out.extend(x.iter().map(|x| (x * inverse).round_ties_even() as i8 as u8));
            }
            Ok(out)
        }
        fn refuse(x: &[f32]) -> Result<(), wayinfer::quant::NonFinite> {
            match x.iter().position(|x| !x.is_finite()) {
                Some(index) => Err(wayinfer::quant::NonFinite { row: 0, index }),
                None => Ok(()),
            }
        }
        for ty in [TensorType::Q4_K, TensorType::Q5_K, TensorType::Q6_K] {
            let sound = FormatUnderTest::of(real(ty));
            let faulty = report(&FormatUnderTest { quantise: q8_k_away_from_zero, ..sound });
            named(faulty.first(), ty, "activations", "case \"ties, peak 127\"");
        }
        let sound = FormatUnderTest::of(real(TensorType::Q8_0));
        let faulty = report(&FormatUnderTest { quantise: q8_0_to_even, ..sound });
        named(faulty.first(), TensorType::Q8_0, "activations", "case \"ties, peak 127\"");
    }

    #[test]
    fn infinities_let_through() {
        let careless: fn(ActivationType, &[f32]) -> _ = |ty, x| {
            let x: Vec<f32> = x.iter().map(|x| if x.is_finite() { *x } else { 0.0 }).collect();
            (FormatUnderTest::of(real(TensorType::Q8_0)).quantise)(ty, &x)
        };
        let sound = FormatUnderTest::of(real(TensorType::Q8_0));
        let faulty = report(&FormatUnderTest { quantise: careless, ..sound });
        named(faulty.first(), TensorType::Q8_0, "activations", "inf at 0");
    }

    /// Neither the error nor the bound's unit is a number.
    #[test]
    fn dots_that_are_not_finite() {
        let sound = FormatUnderTest::of(real(TensorType::F32));
        let scalar = Kernels::by_isa(Isa::Scalar).expect("every CPU has it");
        let closeness = |dot| {
            let goldens = of_one_column(&[dot]);
            let (_, close) =
                check_kernels_against_ggml(scalar, real(TensorType::F32), &goldens, matmul).expect("floats");
            let dots = check_against_ggml(&sound, &goldens).dots;
            assert_eq!(dots, close, "{dot:?}");
            dots
        };
        for dot in [
            (f32::INFINITY, 1.0, 1.0),
            (f32::INFINITY, 1.0, f32::NEG_INFINITY),
            (f32::INFINITY, 1.0, f32::NAN),
            (f32::NAN, 1.0, 0.0),
            (f32::MAX, 2.0, 1.0),
            (1.0, 1.0, f32::NAN),
            (1.0, 1.0, f32::INFINITY),
        ] {
            let dots = closeness(dot);
            assert_eq!((dots.worst_ulp, dots.worst_relative > 1e30), (f64::INFINITY, true), "{dot:?}");
            named(dots.first.as_ref(), TensorType::F32, "dot", "row 0 of 1 values");
        }
        for dot in [(f32::INFINITY, 1.0, f32::INFINITY), (f32::NAN, 1.0, f32::NAN), (0.0, 1.0, -0.0)] {
            let dots = closeness(dot);
            assert_eq!((dots.worst_ulp, dots.worst_relative, &dots.first), (0.0, 0.0, &None), "{dot:?}");
        }
    }

    /// Of several threads, the first leaves out the last rows of its share.
    #[test]
    fn one_threads_last_rows_skipped() {
        fn faulty(kernels: &'static Kernels, weights: WeightMatrix<'_>, x: &Activations, out: &mut [f32]) {
            let (rows, threads) = (weights.rows(), rayon::current_num_threads());
            let before = out.to_vec();
            matmul(kernels, weights, x, out);
            if threads > 1 {
                let end = rows / threads;
                for (out, before) in out.chunks_mut(rows).zip(before.chunks(rows)) {
                    out[end - 2..end].copy_from_slice(&before[end - 2..end]);
                }
            }
        }
        let scalar = Kernels::by_isa(Isa::Scalar).expect("every CPU has it");
        every_format(|format, pools| {
            let reports = check_kernels(&[scalar], format, None, faulty, pools);
            let first = reports[0].first.as_ref().expect("seen");
            assert_eq!((first.ty, first.isa, first.threads, first.row), (format.ty, Isa::Scalar, 2, 148));
            let text = first.to_string();
            assert!(text.starts_with(&format!("{} scalar, ordinary, 301 rows of 768", format.ty)), "{text}");
            println!("seen: {text}");
            // Two rows of 1 and of 9 tokens, by 2 and by 3 threads.
            assert_eq!(reports[0].differing, 2 * (1 + 9) * 2);
        });
    }

    /// A kernel that is wrong at one edge only: with exactly four tokens, in the last row of the first (whose activations
    /// are ordinary, so that the dot is a number).
    #[test]
    fn one_edge_wrong() {
        fn faulty(kernels: &'static Kernels, weights: WeightMatrix<'_>, x: &Activations, out: &mut [f32]) {
            matmul(kernels, weights, x, out);
            let rows = weights.rows();
            if x.rows() == 4 && rows == 33 {
                out[rows - 1] = f32::from_bits(out[rows - 1].to_bits() ^ 1);
            }
        }
        let scalar = Kernels::by_isa(Isa::Scalar).expect("every CPU has it");
        every_format(|format, pools| {
            let reports = check_kernels(&[scalar], format, None, faulty, pools);
            let first = reports[0].first.as_ref().unwrap_or_else(|| panic!("{} not seen", format.ty));
            assert_eq!(
                (first.ty, first.rows, first.tokens, first.row, first.token),
                (format.ty, 33, 4, 32, 0)
            );
        });
    }
}

/// Goldens of F32 with dots of one column: weight, activation, what ggml is said to have.
fn of_one_column(dots: &[(f32, f32, f32)]) -> FormatGoldens {
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let weights: Vec<f32> = dots.iter().map(|dot| dot.0).collect();
    let inputs: Vec<f32> = dots.iter().map(|dot| dot.1).collect();
    let set = DotSet {
        cols: 1,
        weights: bytes(&weights),
        quantised: bytes(&inputs),
        inputs,
        dots: dots.iter().map(|dot| dot.2).collect(),
    };
    FormatGoldens {
        decode_cases: vec!["one".into()],
        case_len: 1,
        blocks: bytes(&[1.0]),
        values: vec![1.0],
        digests: vec![],
        activation_cases: vec!["one".into()],
        inputs: vec![1.0],
        quantised: bytes(&[1.0]),
        dots: vec![set],
        exact: vec![],
    }
}

/// Products of all rows with all rows would be 360 GB.
#[test]
fn many_short_rows_take_little_memory() {
    let mut dots: Vec<_> = (0..300_000).map(|i| (i as f32, 2.0, 2.0 * i as f32)).collect();
    let mut goldens = of_one_column(&dots);
    goldens.exact = goldens.dots.clone();
    dots[299_999].2 += 1.0;
    let wrong = of_one_column(&dots);
    let format = real(TensorType::F32);
    assert_eq!(check_against_ggml(&FormatUnderTest::of(format), &goldens).first(), None);
    for kernels in kernel_sets() {
        let check = |goldens| check_kernels_against_ggml(kernels, format, goldens, matmul).expect("floats");
        let (exact, close) = check(&goldens);
        assert_eq!((exact.compared, exact.differing, close.compared), (300_000, 0, 300_000));
        assert_eq!((close.worst_ulp, close.first), (0.0, None));
        let first = check(&wrong).1.first.expect("seen");
        assert_eq!(first.case, "row 299999 of 1 values");
    }
    // What cannot be rounded is named by its row of all.
    let format = real(TensorType::Q8_0);
    let mut inputs = vec![1.0; 100 * 32];
    inputs[70 * 32 + 3] = f32::NAN;
    let set = DotSet {
        cols: 32,
        weights: vec![0; 100 * format.row_bytes(32)],
        inputs,
        quantised: vec![],
        dots: vec![0.0; 100],
    };
    let goldens = FormatGoldens { dots: vec![set], ..of_one_column(&[]) };
    let scalar = Kernels::by_isa(Isa::Scalar).expect("every CPU has it");
    let error = check_kernels_against_ggml(scalar, format, &goldens, matmul).expect_err("not a number");
    assert_eq!((error.row, error.index), (70, 3));
}

/// The places of infinities are in the row, however short.
#[test]
fn short_cases_are_checked() {
    for len in [1, 2, 3] {
        let mut goldens = of_one_column(&[(1.0, 1.0, 1.0)]);
        goldens.case_len = len;
        goldens.values = vec![1.0; len];
        goldens.inputs = vec![1.0; len];
        goldens.blocks = goldens.blocks.repeat(len);
        goldens.quantised = goldens.quantised.repeat(len);
        let report = check_against_ggml(&FormatUnderTest::of(real(TensorType::F32)), &goldens);
        assert_eq!((report.first(), report.refused.compared), (None, 9), "{len}");
    }
}

/// Goldens that are not what they should be are refused by name.
#[test]
fn foreign_goldens_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let format = real(TensorType::Q4_K);
    assert!(FormatGoldens::find(dir.path(), format).expect("none there").is_none());
    let path = dir.path().join("Q4_K.safetensors");
    std::fs::copy(folder().join("Q5_K.safetensors"), &path).expect("copied");
    let error = FormatGoldens::find(dir.path(), format).expect_err("another format").to_string();
    assert!(error.contains("Q5_K with q8_K, where Q4_K with q8_K is needed"), "{error}");
    std::fs::write(&path, b"nothing").expect("written");
    assert!(matches!(FormatGoldens::find(dir.path(), format), Err(GoldenError::File(_))));
    // The header with other words of the same length.
    let whole = std::fs::read(folder().join("Q4_K.safetensors")).expect("read");
    let length = u64::from_le_bytes(whole[..8].try_into().expect("a length")) as usize;
    let header = std::str::from_utf8(&whole[8..8 + length]).expect("a header of text");
    let with = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let broken = header.replacen(from, to, 1);
        assert_ne!(broken, header, "{from}");
        std::fs::write(&path, [&whole[..8], broken.as_bytes(), &whole[8 + length..]].concat())
            .expect("written");
        FormatGoldens::find(dir.path(), format).expect_err("it is broken")
    };
    // What stands from a word on, up to the first closing bracket.
    let list = |from: &str| {
        let start = header.find(from).expect("a list");
        &header[start..=start + header[start..].find(']').expect("an end")]
    };
    let error = with("decode_cases", "dxxxxx_cases");
    assert!(matches!(error, GoldenError::Description { .. }), "{error}");
    // A tensor's sizes the other way round.
    let found = list("\"decode/blocks\"");
    let sizes = &found[found.find('[').expect("a shape") + 1..found.len() - 1];
    let (rows, bytes) = sizes.split_once(',').expect("two sizes");
    let error = with(found, &found.replace(sizes, &format!("{bytes},{rows}")));
    assert!(matches!(&error, GoldenError::Shape { name, .. } if name == "decode/blocks"), "{error}");
    // No dots of any length.
    let lengths = list("lengths");
    let start = lengths.find('[').expect("a list") + 1;
    let empty = format!("{}{}]", &lengths[..start], " ".repeat(lengths.len() - start - 1));
    let error = with(lengths, &empty).to_string();
    assert!(error.contains("it has no dots"), "{error}");
}

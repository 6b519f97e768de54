//! Every kernel set against the scalar dots, bit for bit.

use super::*;
use crate::quant::testing::{KINDS, Kind, Random, difference, reference, say, weights};
use crate::quant::{FORMATS, Format, format};

/// Columns around the edges of blocks, vectors and units.
fn column_counts(format: &Format) -> Vec<usize> {
    match format.ty.block_len() as usize {
        1 => vec![1, 15, 16, 17, 33, 100, 512, 1041],
        256 => vec![256, 512, 768, 1536, 2304],
        len => [1, 3, 8, 9, 17].map(|blocks| blocks * len).to_vec(),
    }
}

fn activations(format: &Format, tokens: usize, cols: usize, random: &mut Random) -> Activations {
    let mut values = random.activations(tokens * cols);
    // A row of the largest magnitudes, and one with a block of zeros.
    if tokens > 1 {
        values[..cols].iter_mut().for_each(|x| *x = if *x < 0.0 { -3.0 } else { 3.0 });
        let zeros = cols.min(256);
        values[cols..cols + zeros].fill(0.0);
    }
    let mut x = Activations::new();
    x.quantize(format.activation, &values, cols).expect("finite");
    x
}

fn check(
    kernels: &'static Kernels,
    format: &'static Format,
    kind: Kind,
    rows: usize,
    tokens: usize,
    cols: usize,
) {
    let mut random = Random((rows * 1000 + tokens * 100 + cols) as u64);
    let w = weights(format, kind, rows, cols, &mut random);
    let x = activations(format, tokens, cols, &mut random);
    let mut out = vec![f32::NAN; rows * tokens];
    matmul(kernels, WeightMatrix::new(format.ty, &w, rows, cols).expect("a format"), &x, &mut out);
    let want = reference(format, &w, rows, &x);
    if let Some(at) = difference(&out, &want) {
        panic!(
            "{} {kind:?} {rows} rows, {tokens} tokens, {cols} columns: token {}, row {}: {:e}, scalar {:e}",
            kernels.name_for(format.ty).unwrap_or_default(),
            at / rows,
            at % rows,
            out[at],
            want[at]
        );
    }
}

/// Every format of a set at sizes around the edges of blocks, vectors and panels; a set that the CPU lacks is
/// skipped, unless `WAYINFER_NEEDS_ISA`, names separated by commas, has it.
fn check_set(isa: Isa) {
    let kernels = match Kernels::by_isa(isa) {
        Ok(kernels) => kernels,
        Err(why) => {
            let needed = std::env::var("WAYINFER_NEEDS_ISA").unwrap_or_default();
            assert!(!needed.split(',').any(|name| name == isa.name()), "{why}");
            return say(format!("skipped: {why}"));
        }
    };
    for format in FORMATS {
        for cols in column_counts(format) {
            for tokens in [1, 2, 3, 4, 5, 7] {
                for rows in 1..=9 {
                    check(kernels, format, Kind::Ordinary, rows, tokens, cols);
                }
            }
            for (rows, tokens) in [(3, 65), (16, 1), (16, 15), (17, 8), (33, 5), (17, 16), (5, 33), (1, 131)]
            {
                check(kernels, format, Kind::Ordinary, rows, tokens, cols);
            }
            for kind in KINDS {
                for (rows, tokens) in [(5, 1), (5, 3), (9, 7), (17, 5), (17, 18)] {
                    check(kernels, format, kind, rows, tokens, cols);
                }
            }
        }
    }
}

/// One test a set: they are the longest of all.
macro_rules! check_sets {
    ($($(#[$doc:meta])* $isa:ident = $name:literal: $module:ident if $built:meta;)*) => {
        $(mod $module {
            #[test]
            fn gives_the_bits_of_the_scalar_dots() {
                super::check_set(super::Isa::$isa);
            }
        })*
    };
}

kernel_sets!(check_sets);

#[test]
fn threads_do_not_change_the_bits() {
    for kernels in Kernels::available() {
        for format in FORMATS {
            let (rows, tokens, cols) = (101, 17, 768);
            let mut random = Random(7);
            let w = weights(format, Kind::Ordinary, rows, cols, &mut random);
            let x = activations(format, tokens, cols, &mut random);
            let weights = WeightMatrix::new(format.ty, &w, rows, cols).expect("a format");
            let want = reference(format, &w, rows, &x);
            for threads in 1..=3 {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                let mut out = vec![f32::NAN; rows * tokens];
                pool.install(|| matmul(kernels, weights, &x, &mut out));
                assert_eq!(difference(&out, &want), None, "{} threads, {}", threads, format.ty);
            }
        }
    }
}

/// A batch of products of different shapes and types equals them one by one.
#[test]
fn a_batch_is_its_products() {
    let kernels = Kernels::detect_best();
    let mut random = Random(11);
    let shapes = [
        (TensorType::Q4_K, 500, 1),
        (TensorType::Q6_K, 33, 12),
        (TensorType::F16, 7, 3),
        (TensorType::Q8_0, 90, 0),
    ];
    let operands: Vec<_> = shapes
        .iter()
        .map(|&(ty, rows, tokens)| {
            let format = format(ty).expect("a format");
            (
                ty,
                rows,
                weights(format, Kind::Ordinary, rows, 512, &mut random),
                activations(format, tokens, 512, &mut random),
            )
        })
        .collect();
    let mut outs: Vec<Vec<f32>> =
        operands.iter().map(|(_, rows, _, x)| vec![f32::NAN; rows * x.rows()]).collect();
    let mut jobs: Vec<MatmulJob<'_>> = operands
        .iter()
        .zip(&mut outs)
        .map(|((ty, rows, w, x), out)| MatmulJob {
            weights: WeightMatrix::new(*ty, w, *rows, 512).expect("a format"),
            x,
            out,
        })
        .collect();
    matmul_batch(kernels, &mut jobs);
    for ((ty, rows, w, x), out) in operands.iter().zip(&outs) {
        let want = reference(format(*ty).expect("a format"), w, *rows, x);
        assert_eq!(difference(out, &want), None, "{ty}");
    }
}

/// The comparison of these tests sees kernels that are wrong in the ways kernels are wrong: one sub-block's
/// scale, the mins left out, one weight's lowest bit, floats added in another order.
#[test]
fn faulty_kernels_are_caught() {
    let (rows, tokens, cols) = (3, 2, 768);
    for format in FORMATS {
        let mut random = Random(5);
        let w = weights(format, Kind::Ordinary, rows, cols, &mut random);
        let x = activations(format, tokens, cols, &mut random);
        let want = reference(format, &w, rows, &x);
        assert_eq!(difference(&reference(format, &w, rows, &x), &want), None);
        let faults: &[(&str, usize, u8)] = match format.ty {
            TensorType::Q4_K | TensorType::Q5_K => &[
                ("scale of sub-block 0", 4, 1),
                ("min of sub-block 7", 15, 0x10),
                ("last weight", 143, 0x10),
            ],
            TensorType::Q6_K => &[("scale of sub-block 15", 207, 1), ("last weight", 191, 0x40)],
            TensorType::Q8_0 => &[("a weight", 33, 1)],
            TensorType::F32 => &[("a sign", 3, 0x80)],
            TensorType::IQ1_M => &[("a point", 1, 1), ("a scale", 48, 1)],
            TensorType::NVFP4 => &[("a scale", 1, 1), ("a weight", 4, 4)],
            _ => &[("the second byte", 1, 0x80)],
        };
        let last = ("the last byte", format.ty.block_bytes() as usize - 1, 0x40);
        for &(fault, at, bit) in faults.iter().chain([&last]) {
            let mut w = w.clone();
            w[at] ^= bit;
            assert!(difference(&reference(format, &w, rows, &x), &want).is_some(), "{} {fault}", format.ty);
        }
    }
    // The mins left out: activations whose sums are all 0.
    for ty in [TensorType::Q4_K, TensorType::Q5_K] {
        let format = format(ty).expect("a format");
        let mut random = Random(5);
        let w = weights(format, Kind::Ordinary, 1, cols, &mut random);
        let x = activations(format, 1, cols, &mut random);
        let x = x.row(0).q8_k();
        let without = crate::quant::Q8KRow { bsums: &vec![0; x.bsums.len()], ..x };
        let dots = [x, without].map(|x| (format.dot)(&w, crate::quant::ActivationRow::Q8K(x)));
        assert!(difference(&dots[..1], &dots[1..]).is_some(), "{ty}");
    }
    // Another order of the same sum.
    let format = format(TensorType::Q4_K).expect("a format");
    let mut random = Random(5);
    let w = weights(format, Kind::Ordinary, 64, cols, &mut random);
    let x = activations(format, 1, cols, &mut random);
    let want = reference(format, &w, 64, &x);
    let block_by_block: Vec<f32> = w
        .chunks_exact(format.row_bytes(cols))
        .map(|row| {
            let blocks = row.chunks_exact(format.row_bytes(256)).enumerate().map(|(b, block)| {
                let x = x.row(0).q8_k();
                let x = crate::quant::Q8KRow {
                    qs: &x.qs[b * 256..][..256],
                    d: &x.d[b..][..1],
                    bsums: &x.bsums[b * 16..][..16],
                };
                (format.dot)(block, crate::quant::ActivationRow::Q8K(x))
            });
            blocks.sum()
        })
        .collect();
    assert!(difference(&block_by_block, &want).is_some());
}

#[test]
fn sets_are_named_and_refused_by_name() {
    for &isa in Isa::ALL {
        assert_eq!(isa.to_string().parse(), Ok(isa));
    }
    assert!("sse".parse::<Isa>().is_err());
    assert_eq!(Kernels::by_isa(Isa::Scalar).map(Kernels::isa), Ok(Isa::Scalar));
    let not_built = IsaError::NotBuilt { isa: Isa::Amx };
    assert_eq!(not_built.to_string(), "this build has no amx kernels");
    let lacks = IsaError::CpuLacks { isa: Isa::Avx2, features: vec!["avx2", "fma"] };
    assert_eq!(lacks.to_string(), "this CPU lacks avx2, fma for the avx2 kernels");
    let best = Kernels::detect_best();
    assert!(Kernels::available().any(|set| set.isa() == best.isa()) && !(best.slow)());
    // Of the two that have the same instructions it is one.
    #[cfg(target_arch = "x86_64")]
    assert_ne!((super::avx512::KERNELS.slow)(), (super::avx512_256::KERNELS.slow)());
    for format in FORMATS {
        assert!(super::scalar::KERNELS.name_for(format.ty).is_some(), "{}", format.ty);
    }
    assert_eq!(super::scalar::KERNELS.name_for(TensorType::Q8_K), None);
    let name = super::scalar::KERNELS.name_for(TensorType::Q4_1);
    assert_eq!(name.as_deref(), Some("vec_dot_q4_1_q8_1 (scalar)"));
    let listed: Vec<_> = TABLE.iter().map(|set| set.isa).collect();
    let built = |isa: &&Isa| !matches!(Kernels::by_isa(**isa), Err(IsaError::NotBuilt { .. }));
    assert_eq!(Isa::ALL.iter().filter(built).copied().collect::<Vec<_>>(), listed);
    assert!(Isa::names(" or ").starts_with("scalar, neon, ") && Isa::names(" or ").ends_with(" or amx"));
}

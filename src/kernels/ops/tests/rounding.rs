//! Activations rounded by every instance.

use super::*;
use crate::quant::{ActivationType, Activations, NonFinite};

const TYPES: [ActivationType; 3] = [ActivationType::Q8_0, ActivationType::Q8_1, ActivationType::Q8_K];

/// All that rows are made of.
fn parts(x: &Activations) -> String {
    (0..x.rows()).map(|i| format!("{:?}\n", x.row(i))).collect()
}

/// Magnitudes from subnormal numbers to the largest, blocks of zeros, and equal magnitudes of both signs.
fn values(random: &mut Random, n: usize) -> Vec<f32> {
    let mut x = Vec::with_capacity(n);
    while x.len() < n {
        let scale = [0.0, 1e-42, 1e-38, 3e-4, 1.0, 77.0, 3e38][random.next() as usize % 7];
        let mut block = random.values(32, scale);
        if random.next().is_multiple_of(4) {
            let at = random.next() as usize % 16;
            (block[at], block[at + 16]) = (scale, -scale);
        }
        x.extend(block);
    }
    x
}

#[test]
fn every_instance_rounds_to_the_same_blocks() {
    let mut random = Random(31);
    // One block, some, and so many that threads share them.
    for [rows, cols] in [[1, 256], [3, 512], [7, 5888]] {
        let x = values(&mut random, rows * cols);
        for ty in TYPES {
            let (mut expected, mut got) = (Activations::new(), Activations::new());
            expected.quantize(ty, &x, cols).expect("finite");
            for (name, ops) in instances() {
                got.quantize_by(ops, ty, &x, cols).expect("finite");
                assert!(parts(&got) == parts(&expected), "{name}, {ty:?}, {rows} x {cols}");
            }
        }
    }
}

#[test]
fn every_instance_finds_what_is_not_finite() {
    let mut random = Random(32);
    let (rows, cols) = (9, 4096);
    for ty in TYPES {
        for (name, ops) in instances() {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = values(&mut random, rows * cols);
                let at = random.next() as usize % x.len();
                x[at] = value;
                // Of two the first is named.
                let last = x.len() - 1;
                x[last] = f32::NAN;
                let refused = Activations::new().quantize_by(ops, ty, &x, cols);
                assert_eq!(
                    refused,
                    Err(NonFinite { row: at / cols, index: at % cols }),
                    "{name}, {ty:?}: {value} at {at}"
                );
            }
        }
    }
}

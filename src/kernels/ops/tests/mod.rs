//! Every instance against the portable one to the last bit, and against plain f64 references within a bound.

mod activations;
mod attention;
mod channel_scan;
mod hyper;
mod indexer;
mod norms;
mod recurrence;
mod rope;
mod rounding;
mod rows;
mod scan;
mod select;
mod streams;

use std::sync::Once;

use super::*;
use crate::kernels::{Isa, Kernels};
use crate::quant::testing::{EXTREMES, difference, say};

/// Every instance this CPU runs, the definition first; names those it does not run, once.
fn instances() -> Vec<(&'static str, &'static Ops)> {
    static SAY_SKIPPED: Once = Once::new();
    let mut all = vec![("scalar", &SCALAR)];
    // Where SCALAR has to call a library for it.
    if !std::ptr::eq(scalar(), &SCALAR) {
        all.push(("scalar with fma", scalar()));
    }
    for set in Kernels::available().filter(|set| set.isa() != Isa::Scalar) {
        // Some sets share their operations.
        if !all.iter().any(|(_, ops)| std::ptr::eq(*ops, set.ops())) {
            all.push((set.isa().name(), set.ops()));
        }
    }
    SAY_SKIPPED.call_once(|| {
        if cfg!(target_arch = "x86_64") && std::ptr::eq(scalar(), &SCALAR) {
            say("skipped: this CPU lacks fma for the scalar operations");
        }
        Kernels::unavailable().for_each(|why| say(format!("skipped: {why}")));
    });
    all
}

fn assert_same(a: &[f32], b: &[f32], what: &str) {
    if let Some(i) = difference(a, b) {
        panic!(
            "{what}: [{i}] of {} is {:e} ({:08x}), wanted {:e} ({:08x})",
            a.len(),
            a[i],
            a[i].to_bits(),
            b[i],
            b[i].to_bits()
        );
    }
}

/// The largest difference from a reference, as a share of the reference's largest magnitude.
fn error(a: &[f32], reference: &[f64]) -> f64 {
    assert_eq!(a.len(), reference.len(), "lengths differ");
    let top = reference.iter().fold(0.0f64, |top, x| top.max(x.abs()));
    let worst = a.iter().zip(reference).fold(0.0f64, |worst, (&a, b)| {
        let difference = (f64::from(a) - b).abs();
        if difference.is_nan() { f64::INFINITY } else { worst.max(difference) }
    });
    worst / top
}

/// `exp` of the definition.
fn exp(x: f32) -> f32 {
    math::exp16(lanes::Scalar, [x; 16])[0]
}

/// `tanh` of the definition.
fn tanh(x: f32) -> f32 {
    math::tanh16(lanes::Scalar, [x; 16])[0]
}

/// Sixteen lanes added up.
fn tree16(l: &[f32; 16]) -> f32 {
    let l: Vec<f32> = (0..8).map(|i| l[i] + l[i + 8]).collect();
    ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}

/// The dot product over sixteen lanes by index mod 16, with fused multiply-adds.
fn dot16(a: &[f32], b: &[f32]) -> f32 {
    let mut l = [0.0f32; 16];
    a.iter().zip(b).enumerate().for_each(|(i, (a, b))| l[i % 16] = a.mul_add(*b, l[i % 16]));
    tree16(&l)
}

/// Numbers for tests (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in -1 .. 1.
    fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.value() * scale).collect()
    }

    /// Values of every kind: infinities, NaN, denormals, signed zeros, huge, tiny and ordinary ones.
    fn extremes(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| match self.next() % 24 {
                kind @ 0..12 => EXTREMES[kind as usize],
                12..16 => self.value() * 1e-38,
                16..20 => self.value() * 100.0,
                _ => f32::from_bits(self.next() as u32),
            })
            .collect()
    }
}

/// Runs `f` in pools of one, two and four threads.
fn in_pools(f: impl Fn(usize) + Sync) {
    for threads in [1, 2, 4] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        pool.install(|| f(threads));
    }
}

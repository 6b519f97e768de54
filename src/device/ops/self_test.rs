//! The test of the operations of a device, each time it is opened: what does not give the scalar code's bits
//! is not used.

mod attention;
mod delta;
mod recurrent;

use super::{DeviceOps, DeviceSlice};
use crate::device::DeviceError;
use crate::kernels::ops::{RopeKind, RopeParams, RopeTable, scalar, top_k};
use crate::quant::testing::{EXTREMES, Random, difference};
use crate::quant::{ActivationType, Activations};

#[cfg(test)]
pub(super) use attention::{AttentionTrial, KvTrial};

/// What the test says of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpVerdict {
    /// That of the method, `round` with the type.
    pub name: &'static str,
    /// What was wrong; `None` where it is computed rightly.
    pub fault: Option<String>,
}

/// What differs from the scalar code, if something does.
pub(super) type Outcome = Result<Option<String>, DeviceError>;

/// An operation, and what compares it with the scalar code for rows of so many values.
pub(super) type Trial = (&'static str, fn(&DeviceOps, &mut Random, usize) -> Outcome);

/// Values of a row: no whole number of what groups take at once.
const VALUES: usize = 333;

/// Tests all operations.
///
/// # Errors
/// A device that hangs or is lost, which it would be for each.
pub(super) fn run(ops: &DeviceOps) -> Result<Vec<OpVerdict>, DeviceError> {
    let verdict = |&(name, trial): &Trial| {
        let fault = match trial(ops, &mut Random(3), VALUES) {
            Err(error @ DeviceError::Timeout { .. }) => return Err(error),
            // A kernel that it does not have is no loss.
            Err(error @ DeviceError::Lost { what, .. }) if what != "launch" => return Err(error),
            Err(error) => Some(error.to_string()),
            Ok(fault) => fault,
        };
        Ok(OpVerdict { name, fault })
    };
    TRIALS.iter().map(verdict).collect()
}

pub(super) const TRIALS: &[Trial] = &[
    ("silu", |d, r, n| of_one(d, r, n, DeviceOps::silu, |x| scalar().silu(x))),
    ("sigmoid", |d, r, n| of_one(d, r, n, DeviceOps::sigmoid, |x| scalar().sigmoid(x))),
    ("exp", |d, r, n| of_one(d, r, n, DeviceOps::exp, |x| scalar().exp(x))),
    ("softplus", |d, r, n| of_one(d, r, n, DeviceOps::softplus, |x| scalar().softplus(x))),
    ("sqrt_softplus", |d, r, n| of_one(d, r, n, DeviceOps::sqrt_softplus, |x| scalar().sqrt_softplus(x))),
    ("relu_squared", |d, r, n| of_one(d, r, n, DeviceOps::relu_squared, |x| scalar().relu_squared(x))),
    ("gelu", |d, r, n| of_one(d, r, n, DeviceOps::gelu, |x| scalar().gelu(x))),
    ("soft_cap", |d, r, n| of_one(d, r, n, |d, x| d.soft_cap(x, 30.0), |x| scalar().soft_cap(x, 30.0))),
    ("scale", |d, r, n| of_one(d, r, n, |d, x| d.scale(x, 0.3), |x| scalar().scale(x, 0.3))),
    ("clamp", |d, r, n| {
        let here = |x: &mut [f32]| x.iter_mut().for_each(|x| *x = x.clamp(-7.0, 7.0));
        of_one(d, r, n, |d, x| d.clamp(x, 7.0), here)
    }),
    ("scale_rows", scale_rows),
    ("copy_parts", copy_parts),
    ("copy", |d, r, n| of_two(d, r, n, DeviceOps::copy, |x, y| x.copy_from_slice(y))),
    ("add", |d, r, n| of_two(d, r, n, DeviceOps::add, |x, y| scalar().add(x, y))),
    ("mul", |d, r, n| of_two(d, r, n, DeviceOps::mul, |x, y| scalar().mul(x, y))),
    ("swiglu", |d, r, n| of_two(d, r, n, DeviceOps::swiglu, |x, y| scalar().swiglu(x, y))),
    ("geglu", |d, r, n| of_two(d, r, n, DeviceOps::geglu, |x, y| scalar().geglu(x, y))),
    ("swiglu_oai", |d, r, n| {
        let on_device = |d: &DeviceOps, x: &DeviceSlice, y: &DeviceSlice| d.swiglu_oai(x, y, 1.702, 7.0);
        of_two(d, r, n, on_device, |x, y| scalar().swiglu_oai(x, y, 1.702, 7.0))
    }),
    ("swiglu_clamped", |d, r, n| {
        of_two(d, r, n, |d, x, y| d.swiglu_clamped(x, y, 7.0), |x, y| scalar().swiglu_clamped(x, y, 7.0))
    }),
    ("swiglu_limited", |d, r, n| {
        of_two(d, r, n, |d, x, y| d.swiglu_limited(x, y, 7.0), |x, y| scalar().swiglu_limited(x, y, 7.0))
    }),
    ("add_scaled", |d, r, n| of_two(d, r, n, |d, x, y| d.add_scaled(x, 0.3, y), add_scaled)),
    ("add_bias", add_bias),
    ("mul_rows", mul_rows),
    ("rms_norm", rms_norm),
    ("layer_norm", layer_norm),
    ("l2_norm", l2_norm),
    ("softmax", softmax),
    ("rope", rope),
    ("round_f32", |d, r, n| round(d, r, n, ActivationType::F32)),
    ("round_f16", |d, r, n| round(d, r, n, ActivationType::F16)),
    ("round_bf16", |d, r, n| round(d, r, n, ActivationType::BF16)),
    ("round_q8_0", |d, r, n| round(d, r, n, ActivationType::Q8_0)),
    ("round_q8_1", |d, r, n| round(d, r, n, ActivationType::Q8_1)),
    ("round_q8_k", |d, r, n| round(d, r, n, ActivationType::Q8_K)),
    ("top_k", choose),
    ("take_chosen", take_chosen),
    ("normalise", normalise),
    ("sum_weighted", sum_weighted),
    ("hadamard", hadamard),
    ("causal_conv", recurrent::causal_conv),
    ("selective_scan", recurrent::selective_scan),
    ("channel_scan", recurrent::channel_scan),
    ("store_kv", attention::store_kv),
    ("attention", attention::attention),
    ("delta_rule", delta::delta_rule),
    ("copy_heads", delta::copy_heads),
];

/// Two rows of values of every kind between three of ordinary ones of several sizes.
fn values(random: &mut Random, n: usize) -> Vec<f32> {
    let mut all = Vec::new();
    for row in 0..5 {
        all.extend((0..n).map(|_| match (row, random.below(24)) {
            (0 | 2, kind @ 0..12) => EXTREMES[kind],
            (0 | 2, 12..16) => random.float() * 1e-38,
            (0 | 2, 16..20) => f32::from_bits(random.bits() as u32),
            (3, _) => random.float() * 1e-3,
            (4, _) => random.float() * 4.0,
            _ => random.float() * 100.0,
        }));
    }
    all
}

/// Finite values in five rows: ordinary ones, tiny ones, zeros, subnormal ones.
fn finite(random: &mut Random, n: usize) -> Vec<f32> {
    let sizes = [3.0, 1e-37, 0.0, 1e-40, 6e4];
    sizes.iter().flat_map(|size| (0..n).map(|_| random.float() * size).collect::<Vec<_>>()).collect()
}

/// Where results differ.
fn compared(ops: &DeviceOps, got: &DeviceSlice, want: &[f32]) -> Outcome {
    let mut values = vec![0.0f32; want.len()];
    ops.read(got, &mut values)?;
    Ok(difference(&values, want)
        .map(|at| format!("[{at}] of {} is {:e}, scalar {:e}", want.len(), values[at], want[at])))
}

/// Uploads behind something else, so that ranges begin anywhere.
fn behind<T: zerocopy::IntoBytes + zerocopy::Immutable>(
    ops: &DeviceOps,
    values: &[T],
) -> Result<DeviceSlice, DeviceError> {
    let slice = ops.allocate(values.len() + 3)?.part(3, values.len());
    ops.write(&slice, values)?;
    Ok(slice)
}

fn of_one(
    ops: &DeviceOps,
    random: &mut Random,
    n: usize,
    on_device: fn(&DeviceOps, &DeviceSlice) -> Result<(), DeviceError>,
    here: fn(&mut [f32]),
) -> Outcome {
    let mut x = values(random, n);
    let on = behind(ops, &x)?;
    on_device(ops, &on)?;
    here(&mut x);
    compared(ops, &on, &x)
}

fn of_two(
    ops: &DeviceOps,
    random: &mut Random,
    n: usize,
    on_device: fn(&DeviceOps, &DeviceSlice, &DeviceSlice) -> Result<(), DeviceError>,
    here: fn(&mut [f32], &[f32]),
) -> Outcome {
    let (mut x, y) = (values(random, n), values(random, n));
    let (on, other) = (behind(ops, &x)?, ops.upload(&y)?);
    on_device(ops, &on, &other)?;
    here(&mut x, &y);
    compared(ops, &on, &x)
}

/// As one of two experts' outputs is added.
fn add_scaled(x: &mut [f32], y: &[f32]) {
    let (rows, n) = ([&*x, y].concat(), x.len());
    scalar().sum_weighted(&rows, &[0, 1], &[1.0, 0.3], n, x);
}

fn scale_rows(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    let (mut x, by) = (values(random, n), values(random, n)[..5].to_vec());
    let (on, factors) = (behind(ops, &x)?, behind(ops, &by)?);
    ops.scale_rows(&on, &factors)?;
    x.chunks_mut(n).zip(by).for_each(|(x, by)| scalar().scale(x, by));
    compared(ops, &on, &x)
}

/// The first half of each row.
fn copy_parts(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    let (x, len) = (values(random, n), n.div_ceil(2));
    let (from, to) = (behind(ops, &x)?, ops.allocate(5 * len)?);
    ops.copy_parts(&to, &from, len, n)?;
    let want: Vec<f32> = x.chunks(n).flat_map(|row| &row[..len]).copied().collect();
    compared(ops, &to, &want)
}

fn add_bias(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    let (mut x, bias) = (values(random, n), values(random, n)[..n].to_vec());
    let (on, other) = (behind(ops, &x)?, behind(ops, &bias)?);
    ops.add_bias(&on, &other)?;
    scalar().add_bias(&mut x, &bias);
    compared(ops, &on, &x)
}

fn mul_rows(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    let (mut x, factors) = (values(random, n), values(random, n)[..n].to_vec());
    let (on, other) = (behind(ops, &x)?, behind(ops, &factors)?);
    ops.mul_rows(&on, &other)?;
    x.chunks_exact_mut(n).for_each(|row| scalar().mul(row, &factors));
    compared(ops, &on, &x)
}

/// With rows of weights that are taken in turn, and without.
fn rms_norm(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    for weights in [0, 1, 2] {
        let (mut x, w) = (values(random, n), values(random, n)[..weights * n].to_vec());
        let w = (weights > 0).then_some(w);
        let on = behind(ops, &x)?;
        let w_on = w.as_ref().map(|w| behind(ops, w)).transpose()?;
        ops.rms_norm(&on, n, w_on.as_ref(), 1e-5)?;
        scalar().rms_norm(&mut x, n, w.as_deref(), 1e-5);
        if let Some(fault) = compared(ops, &on, &x)? {
            return Ok(Some(fault));
        }
    }
    Ok(None)
}

fn layer_norm(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    for [weights, biases] in [[0, 0], [1, 2], [2, 0]] {
        let mut x = values(random, n);
        let mut some = |rows: usize| (rows > 0).then(|| values(random, n)[..rows * n].to_vec());
        let (w, b) = (some(weights), some(biases));
        let on = behind(ops, &x)?;
        let upload = |w: &Option<Vec<f32>>| w.as_ref().map(|w| behind(ops, w)).transpose();
        let (w_on, b_on) = (upload(&w)?, upload(&b)?);
        ops.layer_norm(&on, n, w_on.as_ref(), b_on.as_ref(), 1e-5)?;
        scalar().layer_norm(&mut x, n, w.as_deref(), b.as_deref(), 1e-5);
        if let Some(fault) = compared(ops, &on, &x)? {
            return Ok(Some(fault));
        }
    }
    Ok(None)
}

fn l2_norm(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    let mut x = values(random, 3 * n + 1);
    let on = behind(ops, &x)?;
    ops.l2_norm(&on, 3 * n + 1, 2 * n, n, 1e-6)?;
    scalar().l2_norm(&mut x, 3 * n + 1, 2 * n, n, 1e-6);
    compared(ops, &on, &x)
}

fn softmax(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    let mut x = values(random, n);
    x.extend(vec![f32::NEG_INFINITY; n]);
    x.extend((0..n).map(|i| if i % 3 == 0 { f32::NEG_INFINITY } else { i as f32 / 100.0 }));
    let on = behind(ops, &x)?;
    ops.softmax(&on, n)?;
    scalar().softmax(&mut x, n);
    compared(ops, &on, &x)
}

fn rope(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    let (n_dims, heads, offset) = (2 * n.div_ceil(4), 3, n % 5);
    let head_dim = n_dims + offset + 2;
    let params = RopeParams { n_dims, base: 1e4, freq_scale: 1.0, attn_factor: 1.1, yarn: None };
    let mut table = RopeTable::default();
    table.fill(&params, [0, 1, 70, 4000], None);
    let table_on = ops.upload_rope(&table)?;
    for kind in [RopeKind::Norm, RopeKind::NeoX] {
        let mut x = values(random, heads * head_dim);
        x.truncate(table.positions() * heads * head_dim);
        let on = behind(ops, &x)?;
        ops.rope_behind(kind, &table_on, &on, heads, head_dim, offset)?;
        scalar().rope_behind(kind, &table, &mut x, heads, head_dim, offset);
        if let Some(fault) = compared(ops, &on, &x)? {
            return Ok(Some(format!("{kind:?}: {fault}")));
        }
    }
    Ok(None)
}

fn round(ops: &DeviceOps, random: &mut Random, n: usize, ty: ActivationType) -> Outcome {
    let cols = n.next_multiple_of(ty.block_len());
    let mut x = finite(random, cols);
    // Of the greatest magnitude twice, with both signs.
    (x[1], x[cols - 1]) = (-7.0, 7.0);
    if !ty.is_quantised() {
        x.extend(values(random, cols));
    }
    let rows = x.len() / cols;
    let mut want = Activations::new();
    want.quantize(ty, &x, cols).expect("finite values");
    let to = ops.allocate_activations(ty, rows, cols)?;
    let flag = behind(ops, &[u32::MAX])?;
    let on = behind(ops, &x)?;
    ops.round(&on, &to, &flag)?;
    let (memory, at) = to.memory();
    let part = |i: usize, len: usize| DeviceSlice::new(memory.clone(), at[i], len);
    if !ty.is_quantised() {
        let rows: Vec<f32> = (0..rows).flat_map(|t| want.row(t).floats(ty)).copied().collect();
        return compared(ops, &part(0, x.len()), &rows);
    }
    let arrays = want.arrays();
    let words = |bytes: &[u8]| -> Vec<u32> {
        bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
    };
    let mut parts = vec![(0, words(zerocopy::IntoBytes::as_bytes(arrays.qs)))];
    parts.push((1, arrays.d.iter().map(|d| d.to_bits()).collect()));
    match ty {
        ActivationType::Q8_1 => parts.push((2, arrays.s.iter().map(|s| s.to_bits()).collect())),
        ActivationType::Q8_K => parts.push((2, words(zerocopy::IntoBytes::as_bytes(arrays.bsums)))),
        _ => {}
    }
    for (i, want) in parts {
        let mut got = vec![0u32; want.len()];
        ops.read(&part(i, want.len()), &mut got)?;
        if let Some(at) = got.iter().zip(&want).position(|(got, want)| got != want) {
            return Ok(Some(format!("word {at} of part {i} is {:x}, scalar {:x}", got[at], want[at])));
        }
    }
    // The least of what is not finite is found.
    let mut found = [0u32];
    ops.read(&flag, &mut found)?;
    let before = found[0];
    let bad = x.len() - 2;
    (x[bad], x[bad + 1]) = (f32::NEG_INFINITY, f32::NAN);
    ops.write(&on, &x)?;
    ops.round(&on, &to, &flag)?;
    ops.read(&flag, &mut found)?;
    let right = before == u32::MAX && found[0] as usize == bad;
    Ok((!right).then(|| format!("not finite: {before}, then {}, not {bad}", found[0])))
}

fn choose(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    let mut x = values(random, n);
    x.extend((0..2 * n).map(|_| random.below(7) as f32));
    x.extend(vec![f32::NAN; n]);
    let on = behind(ops, &x)?;
    for used in [1, 3, 8, 17].map(|used: usize| used.min(n)) {
        let mut want = vec![0u32; x.len() / n * used];
        x.chunks(n).zip(want.chunks_mut(used)).for_each(|(x, want)| top_k(x, want));
        let chosen = behind(ops, &vec![0u32; want.len()])?;
        ops.top_k(&on, n, &chosen, used)?;
        let mut got = vec![0u32; want.len()];
        ops.read(&chosen, &mut got)?;
        if let Some(at) = got.iter().zip(&want).position(|(got, want)| got != want) {
            return Ok(Some(format!("[{at}] of {used} each is {}, scalar {}", got[at], want[at])));
        }
    }
    Ok(None)
}

fn take_chosen(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    let (x, used) = (values(random, n), n.min(4));
    let chosen: Vec<u32> = (0..5 * used).map(|_| random.below(n) as u32).collect();
    let want: Vec<f32> =
        chosen.iter().enumerate().map(|(i, &chosen)| x[i / used * n + chosen as usize]).collect();
    let (on, chosen, out) = (behind(ops, &x)?, behind(ops, &chosen)?, ops.allocate(want.len())?);
    ops.take_chosen(&on, n, &chosen, used, &out)?;
    compared(ops, &out, &want)
}

fn normalise(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    let mut x = values(random, n);
    let on = behind(ops, &x)?;
    ops.normalise(&on, n, 6e-5)?;
    for row in x.chunks_mut(n) {
        let sum: f32 = row.iter().sum();
        let sum = if sum < 6e-5 { 6e-5 } else { sum };
        row.iter_mut().for_each(|x| *x /= sum);
    }
    compared(ops, &on, &x)
}

fn sum_weighted(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    let (x, rows, each) = (values(random, n), 7, 3);
    let chosen: Vec<usize> = (0..rows * each).map(|_| random.below(5)).collect();
    let weights: Vec<f32> = (0..rows * each).map(|_| random.float()).collect();
    let mut want = vec![0.0; rows * n];
    scalar().sum_weighted(&x, &chosen, &weights, n, &mut want);
    let chosen: Vec<u32> = chosen.iter().map(|&row| row as u32).collect();
    let (on, chosen, weights) = (behind(ops, &x)?, behind(ops, &chosen)?, behind(ops, &weights)?);
    let out = ops.allocate(want.len())?;
    ops.sum_weighted(&on, &chosen, &weights, n, &out)?;
    compared(ops, &out, &want)
}

fn hadamard(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    let n = n.next_power_of_two().min(512);
    let mut x = values(random, n);
    let on = behind(ops, &x)?;
    ops.hadamard(&on, n)?;
    scalar().hadamard(&mut x, n);
    compared(ops, &on, &x)
}

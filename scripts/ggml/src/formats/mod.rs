//! What ggml makes of blocks: decoded values, quantised activations, dots; one safetensors file a format.
//!
//! # The file
//! - `decode/blocks` U8 [cases, bytes], `decode/values` F32 [cases, values]: weights and what they decode to.
//! - `activations/inputs` F32 [cases, values], `activations/quantised` U8 [cases, bytes]: what ggml's matrix product does
//!   to activations before a dot with this format (`activation_format` in the description).
//! - `dots/{n}/...` and `exact/{n}/...`: rows of n values. `weights` U8 [rows, bytes], `inputs` F32 [rows, n], `quantised`
//!   U8 [rows, bytes], `dots` F32 [rows]: the dot of `weights` with `quantised`.
//!   In `exact` float rounding cannot enter, in whatever order: one power-of-two scale in all weight blocks, each
//!   activation block's largest magnitude 127 * 2^k with one k a row, and a row's sum of magnitudes under 2^24 units.
//!   Each of these dots is checked here against the sum in f64.
//!
//! A file may leave out what another one has: where the description names another format (`activations_of`), all `inputs`
//! stand in that one's file, and `quantised` as well if its activations are of the same format. It has `decode/digests` U8
//! [cases, 8] for `decode/values` then: FNV-1a of 64 bits over a case's values, little-endian, any NaN as 0x7fc00000.
//!
//! The description (JSON, key `wayinfer`) names the cases of `decode` and `activations` in order, the block's sizes, the
//! activations' format and the lengths.

mod inputs;
mod owner;
mod table;

use std::path::PathBuf;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::json;

use crate::error::{Result, refuse};
use crate::ffi::{self, Format};
use crate::tensors::Tensors;
use inputs::{activation_cases, normal};
use owner::Owner;
pub(crate) use table::FORMATS;
use table::{Row, Scale, Values};

/// Which formats, and where to.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The folder for one safetensors file a format
    #[arg(long)]
    out: PathBuf,
    /// Only these formats
    #[arg(long = "only")]
    only: Vec<String>,
}

/// Values of a decode case, and of an activation case: whole blocks of every format.
const CASE: usize = 256;
/// Lengths of dots, where they are whole blocks.
const LENGTHS: [usize; 5] = [32, 96, 256, 512, 1024];
/// Rows of each length.
const ROWS: usize = 8;
/// Random blocks, with sane scales and with random bits throughout.
const RANDOM: usize = 24;

pub fn run(args: &Args) -> Result<()> {
    ffi::require_portable()?;
    for row in FORMATS.iter().filter(|row| args.only.is_empty() || args.only.iter().any(|n| n == row.name)) {
        let path = args.out.join(format!("{}.safetensors", row.name));
        let mut tensors = Tensors::default();
        let mut rng = ChaCha8Rng::seed_from_u64(row.seed());
        let format = Format::new(row.id);
        let owner = row.activations_of.map(|owner| Owner::open(&args.out, owner)).transpose()?;
        let decoded = decode(row, &format, &mut rng, &mut tensors)?;
        let quantised = match &owner {
            None => activations(&format, &mut rng, &mut tensors)?,
            Some(owner) => owner.activations(&format, &mut tensors)?,
        };
        let lengths: Vec<usize> = LENGTHS.into_iter().filter(|n| n % format.block_len() == 0).collect();
        for &n in &lengths {
            match &owner {
                None => {
                    dots(row, &format, n, &mut rng, &mut tensors)?;
                    exact(row, &format, n, &mut rng, &mut tensors)?;
                }
                Some(owner) => {
                    owner.dots(row, &format, n, &mut rng, &mut tensors)?;
                    owner.exact(row, &format, n, &mut rng, &mut tensors)?;
                }
            }
        }
        let mut description = json!({
            "format": 1,
            "name": row.name,
            "block_values": format.block_len(),
            "block_bytes": format.row_bytes(format.block_len()),
            "activation_format": format.activation().name(),
            "decode_cases": decoded,
            "activation_cases": quantised,
            "lengths": lengths,
            "llama.cpp": ffi::version(),
        });
        if let Some(owner) = row.activations_of {
            description["activations_of"] = owner.into();
        }
        tensors.save(&path, &description)?;
        eprintln!("{}", path.display());
    }
    Ok(())
}

fn random_bytes(rng: &mut ChaCha8Rng, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    rng.fill_bytes(&mut bytes);
    bytes
}

/// Extreme and random blocks with their values; returns the cases' names.
fn decode(row: &Row, format: &Format, rng: &mut ChaCha8Rng, tensors: &mut Tensors) -> Result<Vec<String>> {
    let bytes = format.row_bytes(CASE);
    let mut cases: Vec<(String, Vec<u8>)> = vec![
        ("all bits zero".into(), vec![0; bytes]),
        ("all bits set".into(), vec![0xff; bytes]),
        ("every second bit".into(), vec![0xaa; bytes]),
    ];
    for (payload, fill) in [("zeros", Some(0)), ("ones", Some(0xff)), ("random bits", None)] {
        for &(scale, bits) in row.scale.extremes() {
            let mut block = fill.map_or_else(|| random_bytes(rng, bytes), |b| vec![b; bytes]);
            row.set_scales(&mut block, format, bits);
            cases.push((format!("scale {scale}, {payload}"), block));
        }
    }
    for i in 0..RANDOM {
        let block = random_bytes(rng, bytes);
        cases.push((format!("random bits {i}"), block));
    }
    for i in 0..RANDOM {
        cases.push((format!("random, sane scale {i}"), sane(row, format, CASE, rng)));
    }
    let mut values = Vec::new();
    for (_, block) in &cases {
        values.extend(format.decode(block, CASE)?);
    }
    let blocks: Vec<u8> = cases.iter().flat_map(|(_, block)| block.clone()).collect();
    tensors.u8("decode/blocks", &[cases.len(), bytes], &blocks);
    if row.activations_of.is_none() {
        tensors.f32("decode/values", &[cases.len(), CASE], &values);
    } else {
        let digests: Vec<u8> = values.chunks(CASE).flat_map(|case| digest(case).to_le_bytes()).collect();
        tensors.u8("decode/digests", &[cases.len(), 8], &digests);
    }
    Ok(cases.into_iter().map(|(name, _)| name).collect())
}

/// FNV-1a of 64 bits (Fowler, Noll, Vo) over the values' bytes; any NaN counts as the same.
fn digest(values: &[f32]) -> u64 {
    let bits = |v: &f32| if v.is_nan() { 0x7fc0_0000 } else { v.to_bits() };
    let bytes = values.iter().flat_map(|v| bits(v).to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A row of random weights whose values are of a usual size: random bits with plain scales, where there are scales.
fn sane(row: &Row, format: &Format, n: usize, rng: &mut ChaCha8Rng) -> Vec<u8> {
    if let Scale::None = row.scale {
        return format.quantise_weights(&normal(rng, n, 1.0), n);
    }
    let mut bytes = random_bytes(rng, format.row_bytes(n));
    row.set_scales_with(&mut bytes, format, |i| row.scale.sane(i, rng.next_u32()));
    bytes
}

/// Activations of every class, quantised; returns the cases' names.
fn activations(format: &Format, rng: &mut ChaCha8Rng, tensors: &mut Tensors) -> Result<Vec<String>> {
    let target = format.activation();
    let cases = activation_cases(rng, CASE);
    let (mut inputs, mut quantised) = (Vec::new(), Vec::new());
    for (_, values) in &cases {
        inputs.extend_from_slice(values);
        quantised.extend(target.quantise(values)?);
    }
    tensors.f32("activations/inputs", &[cases.len(), CASE], &inputs);
    tensors.u8("activations/quantised", &[cases.len(), target.row_bytes(CASE)], &quantised);
    Ok(cases.into_iter().map(|(name, _)| name.to_string()).collect())
}

/// A set of rows for dots.
#[derive(Default)]
struct DotRows {
    weights: Vec<u8>,
    inputs: Vec<f32>,
    quantised: Vec<u8>,
    dots: Vec<f32>,
}

impl DotRows {
    fn push(&mut self, format: &Format, weights: &[u8], inputs: &[f32]) -> Result<f32> {
        let quantised = format.activation().quantise(inputs)?;
        let dot = format.dot(weights, &quantised, inputs.len())?;
        self.weights.extend_from_slice(weights);
        self.inputs.extend_from_slice(inputs);
        self.quantised.extend(quantised);
        self.dots.push(dot);
        Ok(dot)
    }

    fn save(self, folder: &str, n: usize, tensors: &mut Tensors) {
        let rows = self.dots.len();
        tensors.f32(format!("{folder}/{n}/inputs"), &[rows, n], &self.inputs);
        self.save_quantised(folder, n, tensors);
        self.save_dots(folder, n, tensors);
    }

    fn save_quantised(&self, folder: &str, n: usize, tensors: &mut Tensors) {
        let rows = self.dots.len();
        tensors.u8(format!("{folder}/{n}/quantised"), &[rows, self.quantised.len() / rows], &self.quantised);
    }

    fn save_dots(&self, folder: &str, n: usize, tensors: &mut Tensors) {
        let rows = self.dots.len();
        tensors.u8(format!("{folder}/{n}/weights"), &[rows, self.weights.len() / rows], &self.weights);
        tensors.f32(format!("{folder}/{n}/dots"), &[rows], &self.dots);
    }
}

/// The weights of row `i`: half of the rows are ggml's own quantisation of normal values, half have random bits.
fn dot_weights(row: &Row, format: &Format, n: usize, i: usize, rng: &mut ChaCha8Rng) -> Vec<u8> {
    match i % 2 {
        0 => format.quantise_weights(&normal(rng, n, 0.05), n),
        _ => sane(row, format, n, rng),
    }
}

fn dots(row: &Row, format: &Format, n: usize, rng: &mut ChaCha8Rng, tensors: &mut Tensors) -> Result<()> {
    let mut rows = DotRows::default();
    for i in 0..ROWS {
        let weights = dot_weights(row, format, n, i, rng);
        let mut inputs = normal(rng, n, 1.0);
        if i % 4 == 3 {
            inputs[n / 3] *= 30.0; // an outlier, as real activations have
        }
        rows.push(format, &weights, &inputs)?;
    }
    rows.save("dots", n, tensors);
    Ok(())
}

/// Rows whose dot has one possible value.
fn exact(row: &Row, format: &Format, n: usize, rng: &mut ChaCha8Rng, tensors: &mut Tensors) -> Result<()> {
    let target = format.activation();
    let Some(units) = row.exact_units else { return Ok(()) };
    // A block's 127 and the others' mean of half the bound, times the largest weight in units, stay under 2^24.
    let budget = (1u32 << 24) / units;
    let blocks = (n / target.block_len().max(32)) as u32;
    let bound = ((budget.saturating_sub(127 * blocks)) * 3 / 2 / n as u32).min(126) as i32;
    if bound < 1 {
        return Ok(());
    }
    let mut rows = DotRows::default();
    for i in 0..ROWS {
        let weights = exact_weights(row, format, n, rng);
        let unit = [1.0f32, 0.25, 8.0, 0.0625][i % 4];
        let mut inputs: Vec<f32> = (0..n).map(|_| integer(rng, bound) as f32 * unit).collect();
        for block in inputs.chunks_mut(target.block_len().max(32)) {
            let at = rng.next_u32() as usize % block.len();
            block[at] = if rng.next_u32().is_multiple_of(2) { 127.0 * unit } else { -127.0 * unit };
        }
        push_exact(row, format, units, &weights, &inputs, &mut rows)?;
    }
    rows.save("exact", n, tensors);
    Ok(())
}

/// Random weights, all scales one power of two.
fn exact_weights(row: &Row, format: &Format, n: usize, rng: &mut ChaCha8Rng) -> Vec<u8> {
    match row.values {
        Values::Blocks => {
            let mut bytes = random_bytes(rng, format.row_bytes(n));
            row.set_scales(&mut bytes, format, row.scale.power_of_two());
            bytes
        }
        Values::Floats => {
            let integers: Vec<f32> = (0..n).map(|_| (integer(rng, 127) as f32) / 64.0).collect();
            format.quantise_weights(&integers, n)
        }
    }
}

/// Adds a row of the exact class, whose largest magnitude a block is 127 of its units, a power of two.
fn push_exact(
    row: &Row,
    format: &Format,
    units: u32,
    weights: &[u8],
    inputs: &[f32],
    rows: &mut DotRows,
) -> Result<()> {
    let n = inputs.len();
    let unit = inputs.iter().fold(0f32, |max, x| max.max(x.abs())) / 127.0;
    let magnitudes: f32 = inputs.iter().map(|x| (x / unit).abs()).sum();
    if magnitudes as u32 * units >= 1 << 24 {
        return refuse(format!("{}: a row of {n} values may sum to 2^24 units", row.name));
    }
    let dot = rows.push(format, weights, inputs)?;
    let decoded = format.decode(weights, n)?;
    let sum: f64 = decoded.iter().zip(inputs).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
    if f64::from(dot) != sum {
        return refuse(format!("{}: the dot of {n} values is {dot}, its exact value {sum}", row.name));
    }
    Ok(())
}

/// An integer from -bound to bound.
fn integer(rng: &mut ChaCha8Rng, bound: i32) -> i32 {
    (rng.next_u32() % (2 * bound as u32 + 1)) as i32 - bound
}

//! How fast ggml's dots read weights.

use std::hint::black_box;
use std::time::Instant;

use super::require_native;
use crate::error::Result;
use crate::ffi::{Format, Rows};
use crate::formats::FORMATS;

#[derive(clap::Args, Debug)]
pub struct DotArgs {
    /// Only these formats
    #[arg(long = "only")]
    only: Vec<String>,
    /// Kilobytes of weights
    #[arg(long, default_value_t = 4096)]
    kilobytes: usize,
    /// Measured rounds
    #[arg(short, long, default_value_t = 50)]
    rounds: usize,
}

/// Values of a row.
const COLS: usize = 4096;

/// Prints the GB/s of each format's dot with one row of activations, one thread, the best of the rounds.
pub fn run_dots(args: &DotArgs) -> Result<()> {
    require_native()?;
    for row in FORMATS.iter().filter(|row| args.only.is_empty() || args.only.iter().any(|n| n == row.name)) {
        let format = Format::new(row.id);
        let rows = (args.kilobytes * 1024 / format.row_bytes(COLS)).max(1);
        let values: Vec<f32> = (0..COLS).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
        let mut state = 1u32;
        let bytes: Vec<u8> = (0..rows * format.row_bytes(COLS))
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // No infinite or NaN scales, whatever the format: no exponent is all ones.
                (state >> 24) as u8 & 0x3b
            })
            .collect();
        let weights = Rows::new(&bytes, &format, COLS);
        let x = format.activation().quantise(&values)?;
        let x = Rows::new(&x, &format.activation(), COLS);
        let mut out = vec![0f32; rows];
        let mut best = f64::INFINITY;
        for _ in 0..args.rounds {
            let start = Instant::now();
            weights.dots(black_box(&x), black_box(&mut out))?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{:8} {:8.2}", row.name, bytes.len() as f64 / best / 1e9);
    }
    Ok(())
}

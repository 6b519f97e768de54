//! Floats as a format's blocks, for the fixtures' single tensors.

use std::path::PathBuf;

use crate::error::{Result, read, refuse, write};
use crate::ffi::{Format, require_portable};
use crate::formats::FORMATS;

/// What to encode.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The format, such as IQ2_XS
    format: String,
    /// Values of a row
    cols: usize,
    /// Little-endian f32 values
    input: PathBuf,
    /// The file to write
    output: PathBuf,
}

/// Quantises rows with ggml's reference; importance counts nothing.
pub fn run(args: &Args) -> Result<()> {
    require_portable()?;
    let Some(row) = FORMATS.iter().find(|row| row.name == args.format) else {
        return refuse(format!("unknown format {}", args.format));
    };
    let bytes = read(&args.input)?;
    let values: Vec<f32> = bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
    if args.cols == 0 || !values.len().is_multiple_of(args.cols) {
        return refuse(format!("{} values are no rows of {}", values.len(), args.cols));
    }
    write(&args.output, &Format::new(row.id).quantise_weights(&values, args.cols))
}

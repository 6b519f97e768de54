//! Quantises a float GGUF with llama.cpp's own quantiser.

use std::path::PathBuf;

use crate::error::{Result, refuse};
use crate::ffi::{FormatId, QuantizeOptions, format_ids, quantize_file, require_portable};

/// File types by name: ggml's number.
const FTYPES: &[(&str, u32)] = &[
    ("F32", 0),
    ("F16", 1),
    ("Q4_0", 2),
    ("Q4_1", 3),
    ("Q8_0", 7),
    ("Q5_0", 8),
    ("Q5_1", 9),
    ("Q2_K", 10),
    ("Q3_K_M", 12),
    ("Q4_K_S", 14),
    ("Q4_K_M", 15),
    ("Q5_K_S", 16),
    ("Q5_K_M", 17),
    ("Q6_K", 18),
    ("IQ4_NL", 25),
    ("IQ4_XS", 30),
    ("BF16", 32),
];

/// Types of single tensors by name.
const TYPES: &[(&str, FormatId)] = &[
    ("F32", format_ids::F32),
    ("F16", format_ids::F16),
    ("BF16", format_ids::BF16),
    ("Q8_0", format_ids::Q8_0),
    ("Q4_K", format_ids::Q4_K),
    ("Q5_K", format_ids::Q5_K),
    ("Q6_K", format_ids::Q6_K),
];

/// What to quantise.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The float model
    input: PathBuf,
    /// The file to write
    output: PathBuf,
    /// The file type, such as Q4_K_M
    ftype: String,
    /// Every matrix in the file type's own format, without its mixture
    #[arg(long)]
    pure: bool,
    /// The type of output.weight
    #[arg(long)]
    output_tensor_type: Option<String>,
    /// The type of token_embd.weight
    #[arg(long)]
    token_embedding_type: Option<String>,
}

/// Quantises with one thread, so that the bytes are the same every time.
pub fn run(args: &Args) -> Result<()> {
    require_portable()?;
    let options = QuantizeOptions {
        ftype: find(FTYPES, &args.ftype)?,
        pure: args.pure,
        threads: 1,
        output: args.output_tensor_type.as_deref().map(|name| find(TYPES, name)).transpose()?,
        embedding: args.token_embedding_type.as_deref().map(|name| find(TYPES, name)).transpose()?,
    };
    quantize_file(&args.input, &args.output, &options)
}

fn find<T: Copy>(table: &[(&str, T)], name: &str) -> Result<T> {
    match table.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
        Some((_, value)) => Ok(*value),
        None => {
            let known: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
            refuse(format!("unknown type {name}: known are {}", known.join(", ")))
        }
    }
}

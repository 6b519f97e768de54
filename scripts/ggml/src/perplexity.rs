//! How well a model foretells a text, as llama-perplexity computes it, and what `wayinfer perplexity --against`
//! reads: logits as an array, or a base in llama-perplexity's own format.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, read, refuse};
use crate::ffi::{Batch, Context, ContextOptions, Flash, KvType, Model, ModelOptions, Mtp, require_portable};

/// Which text, and what to write.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The model file
    #[arg(short, long)]
    model: PathBuf,
    /// The text; one line end at its end is left out
    #[arg(short, long)]
    file: PathBuf,
    /// Tokens of a window
    #[arg(short, long, default_value_t = 512)]
    ctx: usize,
    /// Tokens from one window to the next
    #[arg(long)]
    stride: Option<usize>,
    /// Windows at most
    #[arg(long)]
    chunks: Option<usize>,
    /// Parse special tokens that are written out in the text
    #[arg(long)]
    special: bool,
    /// Write the logits of the scored rows, [rows, vocabulary], as .npy
    #[arg(long)]
    logits: Option<PathBuf>,
    /// Write a base as llama-perplexity --kl-divergence-base does
    #[arg(long, conflicts_with = "stride")]
    base: Option<PathBuf>,
    #[arg(short, long, default_value_t = 1)]
    threads: usize,
    /// Type of the KV cache
    #[arg(long, default_value = "f16")]
    kv: KvType,
}

/// A file that is written as it comes.
struct Out {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Out {
    fn create(path: &Path) -> Result<Out> {
        let file = File::create(path).map_err(|source| Error::Io { path: path.into(), source })?;
        Ok(Out { path: path.into(), file: BufWriter::new(file) })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|source| Error::Io { path: self.path.clone(), source })
    }

    fn i32s(&mut self, values: &[i32]) -> Result<()> {
        self.write(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
    }

    fn finish(mut self) -> Result<()> {
        self.file.flush().map_err(|source| Error::Io { path: self.path, source })
    }
}

/// The windows of a text, and which of their rows are scored.
struct Windows {
    len: usize,
    step: usize,
    count: usize,
    first: usize,
}

impl Windows {
    fn new(args: &Args, tokens: usize) -> Result<Windows> {
        let len = args.ctx + args.stride.map_or(0, |stride| stride / 2);
        if tokens < 2 * len {
            return refuse(format!("the text has {tokens} tokens, where {} are needed", 2 * len));
        }
        let (step, count, first) = match args.stride {
            Some(stride) => (stride, (tokens - len).div_ceil(stride), len - stride - 1),
            None => (len, tokens / len, len / 2),
        };
        let count = args.chunks.map_or(count, |most| count.min(most));
        Ok(Windows { len, step, count, first })
    }
}

/// Runs the text and prints what it comes to as JSON.
pub fn run(args: &Args) -> Result<()> {
    require_portable()?;
    let bytes = read(&args.file)?;
    let text = String::from_utf8(bytes).map_err(|_| Error::Refused("the text is not UTF-8".into()))?;
    let model = Model::load(&args.model, ModelOptions::default())?;
    let tokens = model.tokenize_with(text.strip_suffix('\n').unwrap_or(&text), true, args.special)?;
    let windows = Windows::new(args, tokens.len())?;
    let vocab = model.n_vocab();
    let mut outputs = Outputs::begin(args, &windows, &tokens, vocab)?;
    let options = ContextOptions {
        n_ctx: windows.len.next_multiple_of(256),
        n_batch: Some(windows.len),
        threads: args.threads,
        kv: args.kv,
        flash: if args.kv.needs_flash() { Flash::Auto } else { Flash::Off },
        mtp: Mtp::Off,
    };
    let mut context = Context::new(&model, &options, None)?;
    let (mut sum, mut squares, mut count) = (0f64, 0f64, 0usize);
    for i in 0..windows.count {
        let text = &tokens[i * windows.step..i * windows.step + windows.len];
        let mut ids = text.to_vec();
        if let Some(bos) = model.bos().filter(|_| args.stride.is_none()) {
            ids[0] = bos;
        }
        context.forget(0)?;
        context.decode(&mut Batch::new(&ids, 0, true))?;
        for at in windows.first..windows.len - 1 {
            let logits = context.logits(at as i32)?;
            let nll = nll(logits, text[at + 1] as usize);
            sum += nll;
            squares += nll * nll;
            count += 1;
            outputs.add(logits)?;
        }
    }
    outputs.finish()?;
    let mean = sum / count as f64;
    let spread = (squares / count as f64 - mean * mean).max(0.0);
    let error = (spread / (count as f64 - 1.0)).sqrt();
    let report = serde_json::json!({
        "tokens": tokens.len(), "windows": windows.count, "scored": count, "nll": mean,
        "perplexity": mean.exp(), "error": error * mean.exp(),
    });
    println!("{report}");
    Ok(())
}

/// As llama-perplexity has it: exponentials in f32, their sum in f64.
fn nll(logits: &[f32], token: usize) -> f64 {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from((l - best).exp())).sum();
    -(f64::from(logits[token] - best) - sum.ln())
}

/// What is written beside the figures.
struct Outputs {
    logits: Option<Out>,
    base: Option<Out>,
}

impl Outputs {
    fn begin(args: &Args, windows: &Windows, tokens: &[i32], vocab: usize) -> Result<Outputs> {
        let mut logits = args.logits.as_deref().map(Out::create).transpose()?;
        if let Some(out) = &mut logits {
            let rows = windows.count * (windows.len - 1 - windows.first);
            let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {vocab}), }}");
            let len = (header.len() + 11).next_multiple_of(64) - 10;
            out.write(b"\x93NUMPY\x01\x00")?;
            out.write(&(len as u16).to_le_bytes())?;
            out.write(format!("{header:<width$}\n", width = len - 1).as_bytes())?;
        }
        let mut base = args.base.as_deref().map(Out::create).transpose()?;
        if let Some(out) = &mut base {
            out.write(b"_logits_")?;
            out.i32s(&[windows.len, vocab, windows.count].map(|n| n as i32))?;
            out.i32s(&tokens[..windows.count * windows.len])?;
        }
        Ok(Outputs { logits, base })
    }

    fn add(&mut self, logits: &[f32]) -> Result<()> {
        if let Some(out) = &mut self.logits {
            out.write(&logits.iter().flat_map(|l| l.to_le_bytes()).collect::<Vec<_>>())?;
        }
        if let Some(out) = &mut self.base {
            out.write(&base_row(logits))?;
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        self.logits.into_iter().chain(self.base).try_for_each(Out::finish)
    }
}

/// A row of a base: what a step is worth and the least logarithm of a probability, then each token's number of
/// steps, at most 16 below the best.
fn base_row(logits: &[f32]) -> Vec<u8> {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let least = logits.iter().copied().fold(f32::INFINITY, f32::min).max(best - 16.0);
    let sum: f64 = logits.iter().map(|l| f64::from((l - best).exp())).sum();
    let scale = (best - least) / 65535.0;
    let mut bytes = Vec::with_capacity(8 + 2 * logits.len() + 2);
    bytes.extend_from_slice(&scale.to_le_bytes());
    bytes.extend_from_slice(&(least - best - sum.ln() as f32).to_le_bytes());
    for &logit in logits {
        let steps = if scale > 0.0 && logit > least { (logit - least) / scale } else { 0.0 };
        bytes.extend_from_slice(&(steps.round_ties_even() as u16).to_le_bytes());
    }
    if !logits.len().is_multiple_of(2) {
        bytes.extend_from_slice(&[0; 2]);
    }
    bytes
}

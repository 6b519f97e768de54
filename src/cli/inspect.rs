//! `wayinfer inspect`: what a GGUF file holds, and whether it is sound.

mod check;
mod draw;
mod json;
mod plan;
mod summary;
mod tables;
mod totals;

use std::io::{self, BufWriter, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::process::ExitCode;

use globset::GlobMatcher;

use super::device_args::DeviceArgs;
use super::engine_args::{KvApart, memory_size};
use super::model_arg::ModelArg;
use super::report::ReportArgs;
use super::{CliError, model_arg, output, safe_text, value_text};
use crate::engine::Speculation;
use crate::gguf::{Array, Gguf, TensorInfo, Value};
use summary::Summary;

/// Show what a GGUF file holds: summary, metadata, tensors, totals
///
/// Reads the headers alone and works on any GGUF file, whatever its architecture. Of a split model, any file
/// will do.
#[derive(clap::Args, Debug)]
#[command(mut_arg("gpu", |arg| arg.requires("plan")), mut_arg("vram", |arg| arg.requires("plan")))]
#[command(mut_arg("kv_k", |arg| arg.requires("plan")), mut_arg("kv_v", |arg| arg.requires("plan")))]
#[command(mut_arg("report", |arg| arg.conflicts_with_all(["kv", "check", "plan"])))]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,

    /// Print the value of one metadata key whole (an array one element a line). With --plan: the type of the
    /// KV cache, as `generate` has it
    #[arg(long, value_name = "KEY", conflicts_with_all = ["filter", "no_tensors", "check", "arrays"])]
    kv: Option<String>,

    /// Show and total only the tensors whose names match, such as 'blk.0.*' or '*_exps.weight'
    #[arg(long, value_name = "GLOB")]
    filter: Option<String>,

    /// Leave the tensor table out
    #[arg(long)]
    no_tensors: bool,

    /// Run every check there is and print all findings; exit code 1 where any is an error
    #[arg(long, conflicts_with_all = ["filter", "no_tensors", "arrays"])]
    check: bool,

    /// Show where the weights would go in the memory that there is, the disk's measured bandwidth and the
    /// speed to expect
    #[arg(long, conflicts_with_all = ["filter", "no_tensors", "check", "arrays"])]
    plan: bool,

    /// With --plan: the memory that a run may take in all, in GiB (12G) or MiB (800M) [default: what is
    /// available]
    #[arg(
        long,
        value_name = "SIZE",
        allow_negative_numbers = true,
        value_parser = memory_size,
        requires = "plan",
        env = "WAYINFER_RAM"
    )]
    ram: Option<u64>,

    #[command(flatten)]
    device: DeviceArgs,

    /// With --plan: what is to be drafted, as `generate` has it: auto and mtp load the block of multi-token
    /// prediction where the file has one
    #[arg(
        long,
        value_name = "MODE",
        default_value = "auto",
        allow_negative_numbers = true,
        requires = "plan"
    )]
    speculate: Speculation,

    /// With --plan: the context in tokens [default: the model's, at most 4096]
    #[arg(short = 'c', long, value_name = "N", allow_negative_numbers = true, requires = "plan")]
    #[arg(env = "WAYINFER_CTX")]
    ctx: Option<NonZeroUsize>,

    #[command(flatten)]
    kv_apart: KvApart,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    report: ReportArgs,

    /// With --json: write out the elements of metadata arrays, not only their type and length
    #[arg(long, requires = "json")]
    arrays: bool,
}

impl Args {
    fn as_json(&self) -> json::Options {
        json::Options { arrays: self.arrays, tensors: !self.no_tensors }
    }
}

/// What `--json` prints of a model, with the elements of arrays where they are wanted.
pub fn as_json(gguf: &Gguf, arrays: bool) -> Result<String, CliError> {
    let mut out = Vec::new();
    let options = json::Options { arrays, tensors: true };
    json::print(gguf, &Summary::of(gguf), &selected(gguf, None), options, &mut out)?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    let filter = args.filter.as_deref().map(matcher).transpose()?;
    let mut out = BufWriter::new(io::stdout().lock());
    if args.check {
        let of_hub = model_arg::of_hub(args.model.source())?;
        let source = of_hub.as_ref().map_or(args.model.source(), |path| path.into());
        return check::run(source, args.json, &mut out);
    }
    if args.plan {
        plan::run(args, &mut out)?;
        out.flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    let file = args.report.create()?;
    let gguf = args.model.open()?;
    args.report.refuse_model_file(&gguf)?;
    if let Some(file) = file {
        file.write(draw::page(&gguf, &selected(&gguf, filter.as_ref())))?;
    }
    match &args.kv {
        Some(key) => print_value(&gguf, key, args.json, &mut out)?,
        None => print_all(&gguf, args, filter.as_ref(), &mut out)?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn matcher(glob: &str) -> Result<GlobMatcher, CliError> {
    let glob = globset::Glob::new(glob)
        .map_err(|e| CliError::usage(format!("--filter: {e}")).hint("quote it: --filter 'blk.0.*'"))?;
    Ok(glob.compile_matcher())
}

/// The tensors to show.
fn selected<'a>(gguf: &'a Gguf, filter: Option<&GlobMatcher>) -> Vec<&'a TensorInfo> {
    gguf.tensors.iter().filter(|t| filter.is_none_or(|f| f.is_match(&t.name))).collect()
}

fn print_all(
    gguf: &Gguf,
    args: &Args,
    filter: Option<&GlobMatcher>,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let tensors = selected(gguf, filter);
    let summary = Summary::of(gguf);
    if args.json {
        json::print(gguf, &summary, &tensors, args.as_json(), out)?;
        return Ok(());
    }
    let width = output::width();
    tables::print_summary(gguf, &summary, width, out)?;
    tables::print_metadata(gguf, width, out)?;
    if !args.no_tensors {
        tables::print_tensors(gguf, &tensors, width, out)?;
    }
    tables::print_totals(&tensors, out)?;
    Ok(())
}

/// One value whole: bytes as they are (escaped on a terminal), an array one element a line.
fn print_value(gguf: &Gguf, key: &str, json: bool, out: &mut impl Write) -> Result<(), CliError> {
    let value = gguf.metadata().get(key).ok_or_else(|| missing_key(gguf, key))?;
    if json {
        json::print_value(key, value, out)?;
        return Ok(());
    }
    match value {
        Value::Text(text) if io::stdout().is_terminal() => {
            writeln!(out, "{}", safe_text::escape_lines(&text.to_lossy()))?;
        }
        Value::Text(text) => {
            out.write_all(&text.0)?;
            writeln!(out)?;
        }
        Value::Array(Array::Texts(texts)) => {
            for text in texts.iter() {
                writeln!(out, "{}", safe_text::escape(&String::from_utf8_lossy(text)))?;
            }
        }
        Value::Array(Array::Packed(values)) => {
            for value in values.iter() {
                writeln!(out, "{}", value_text::scalar(&value))?;
            }
        }
        scalar => writeln!(out, "{}", value_text::scalar(scalar))?,
    }
    Ok(())
}

fn missing_key(gguf: &Gguf, key: &str) -> CliError {
    let error = CliError::new(format!("there is no metadata key \"{key}\"")).in_file(&gguf.parts[0].path);
    let last = key.rsplit('.').next().unwrap_or(key);
    let near = gguf.metadata().iter().map(|(k, _)| k).find(|k| k.contains(last) || key.contains(*k));
    match near {
        Some(near) => error.hint(format!("there is \"{near}\"")),
        None => error.hint("`wayinfer inspect MODEL --no-tensors` lists the keys"),
    }
}

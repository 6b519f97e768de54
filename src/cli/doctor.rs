//! `wayinfer doctor`: what this machine is for us, as measured now, and how to run a model on it.

mod advice;
mod disk;
mod machine;
mod model;
mod report;

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;

use super::model_arg::ModelArg;
use super::{CliError, engine_args, safe_text};
use crate::gguf::TensorType;
use crate::kernels::{Isa, IsaError, Kernels};
use advice::Advice;
use disk::DiskSpeeds;
use machine::{Memory, Speeds};
use model::ModelReport;

/// Measure this machine, and how to run a model on it
///
/// Tells which kernel set is chosen and what a better one would need, how fast threads read memory and
/// weights, who limits memory, and how fast a disk is by way of reading; with a model also what its KV cache
/// costs, what speed to expect, what holds it back and which options help, each with its reason. Nothing is
/// suggested that was not measured. Takes seconds; a machine that is busy otherwise measures less.
#[derive(clap::Args, Debug)]
#[command(mut_group("model_arg", |group| group.required(false)))]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,

    /// Measure the disk of this folder too, by a file of 256 MiB that is deleted at once. Without it only the
    /// model's own file is read, and nothing is written
    #[arg(long, value_name = "DIR")]
    disk: Option<PathBuf>,

    /// One JSON object on one line
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Serialize)]
struct Report {
    kernels: KernelsReport,
    speeds: Speeds,
    memory: Memory,
    disks: Vec<DiskSpeeds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<ModelReport>,
    advice: Vec<Advice>,
    seconds: f64,
}

#[derive(Serialize)]
struct KernelsReport {
    chosen: &'static str,
    /// Of better sets, what they would need.
    better: Vec<String>,
}

/// Whose weights are read where no model says otherwise.
const USUAL: TensorType = TensorType::Q4_K;

/// See [`Args`].
pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    let started = Instant::now();
    let mut disks = Vec::new();
    let loaded = match args.model.is_given() {
        true => {
            // Before the model is mapped: what is mapped stays in the page cache.
            let gguf = args.model.open()?;
            disks.extend(disk::of_model(&gguf)?);
            Some(engine_args::load(args.model.source())?)
        }
        false => None,
    };
    if let Some(folder) = &args.disk {
        disks.push(disk::of_folder(folder)?);
    }
    let ty = loaded.as_ref().and_then(|loaded| model::main_type(&loaded.gguf)).unwrap_or(USUAL);
    let speeds = machine::measure(ty)?;
    let model = loaded.as_ref().map(|loaded| ModelReport::of(loaded, &speeds, &disks)).transpose()?;
    let report = Report {
        kernels: kernels(),
        memory: Memory::now(),
        advice: advice::all(&speeds, model.as_ref()),
        speeds,
        disks,
        model,
        seconds: started.elapsed().as_secs_f64(),
    };
    let mut out = BufWriter::new(io::stdout().lock());
    match args.json {
        true => safe_text::write_json(&report, &mut out)?,
        false => report::print(&report, &mut out)?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn kernels() -> KernelsReport {
    let chosen = Kernels::detect_best().isa();
    let better: Vec<Isa> = Isa::ALL.iter().copied().take_while(|isa| *isa != chosen).collect();
    let lacking = Kernels::unavailable().filter_map(|why| match &why {
        IsaError::CpuLacks { isa, .. } if better.contains(isa) => Some(why.to_string()),
        _ => None,
    });
    KernelsReport { chosen: chosen.name(), better: lacking.collect() }
}

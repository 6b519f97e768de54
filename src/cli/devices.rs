//! `wayinfer devices`: the graphics cards that kernels can run on, and what is in the way.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use serde::Serialize;

use super::safe_text::{self, escape};
use super::{CliError, output};
use crate::device::{DeviceError, Found, devices};

/// Columns of a name.
const WIDTH: usize = 40;

/// List graphics cards, and whether they can be used
///
/// A card is reached by CUDA (NVIDIA's driver, with NVRTC of CUDA's toolkit) or by OpenCL (part of the
/// drivers of NVIDIA, AMD, Intel and others); one that both reach is listed once. Kernels are compiled for it
/// when it is first used. A driver for the CPU (PoCL) and cards that have the CPU's memory are listed, and
/// used only where they are asked for by their index.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// One JSON array on one line
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Device {
    index: usize,
    name: String,
    api: &'static str,
    driver: String,
    memory_bytes: u64,
    /// Whether it is the CPU's.
    shares_memory: bool,
    is_cpu: bool,
    /// Where it sits: `domain:bus:device`.
    pci: Option<String>,
    /// Whether it is used where no certain one is asked for; if not, why.
    used: bool,
    reason: Option<String>,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    let found = devices();
    let mut out = BufWriter::new(io::stdout().lock());
    match (found, args.json) {
        (found, true) => {
            let all: Vec<_> = found.unwrap_or_default().iter().enumerate().map(device).collect();
            safe_text::write_json(&all, &mut out)?;
        }
        (Err(error), false) => write_none(&error, &mut out)?,
        (Ok(found), false) => write_table(found.iter().enumerate().map(device), &mut out)?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn device((index, found): (usize, &Found)) -> Device {
    let info = &found.info;
    let reason = found.suits().err().map(str::to_owned);
    Device {
        index,
        name: info.name.clone(),
        api: info.api.name(),
        driver: info.driver.clone(),
        memory_bytes: info.memory_bytes,
        shares_memory: info.shares_memory,
        is_cpu: info.is_cpu,
        pci: info.pci.map(|pci| pci.to_string()),
        used: reason.is_none(),
        reason,
    }
}

fn write_none(error: &DeviceError, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{error}")?;
    writeln!(
        out,
        "All is computed on the CPU. For a graphics card, install its maker's driver with OpenCL: NVIDIA's \
         has it, for AMD's and Intel's a system has packages of its own."
    )
}

fn write_table(devices: impl Iterator<Item = Device>, out: &mut impl Write) -> io::Result<()> {
    let mut table = output::new_table(&["device", "name", "API", "driver", "memory", "used"], &[0, 4]);
    for device in devices {
        let used = device.reason.map_or_else(|| "yes".to_owned(), |reason| format!("no: it {reason}"));
        table.add_row([
            device.index.to_string(),
            escape(&output::cut_end(&device.name, WIDTH)).into_owned(),
            device.api.to_owned(),
            escape(&output::cut_end(&device.driver, WIDTH)).into_owned(),
            output::binary_bytes(device.memory_bytes),
            escape(&used).into_owned(),
        ]);
    }
    match table.is_empty() {
        true => writeln!(out, "no devices: there is a driver, but nothing that it drives"),
        false => writeln!(out, "{}", table.trim_fmt()),
    }
}

//! What `dot-check` found, for people and as JSON.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use crate::cli::CliError;
use crate::cli::number::Number;
use crate::cli::output::{self, grouped};
use crate::cli::safe_text::{self, escape};
use crate::gguf::TensorType;
use crate::kernels::Kernels;
use crate::quant::Format;
use crate::verify::formats::{Closeness, GgmlReport, SetReport, Speed, Tally, dot_bound};

/// A format against ggml, where there are goldens.
pub struct FormatRow {
    pub ty: TensorType,
    pub ggml: Option<GgmlReport>,
}

/// A kernel set on one format.
pub struct KernelRow {
    pub format: &'static Format,
    pub kernels: &'static Kernels,
    pub scalar: SetReport,
    /// Exact dots and others.
    pub ggml: Option<(Tally, Closeness)>,
    pub speed: Option<Speed>,
}

#[derive(Default)]
pub struct Report {
    /// The model and the tensor, where real weights were checked.
    pub tensor: Option<(PathBuf, String)>,
    pub golden: Option<PathBuf>,
    pub formats: Vec<FormatRow>,
    pub kernels: Vec<KernelRow>,
    /// Why other kernel sets were not checked.
    pub unavailable: Vec<String>,
    pub threads: usize,
    pub bench_bytes: Option<u64>,
}

impl KernelRow {
    fn failures(&self) -> impl Iterator<Item = String> {
        let scalar = self.scalar.first.iter().map(ToString::to_string);
        let isa = self.kernels.isa();
        let ggml = self.ggml.iter().flat_map(|(exact, close)| exact.first.iter().chain(&close.first));
        scalar.chain(ggml.map(move |first| format!("{first} ({isa}, against ggml)")))
    }
}

impl Report {
    /// The first difference of every check that failed.
    fn failures(&self) -> Vec<String> {
        let formats = self.formats.iter().filter_map(|row| row.ggml.as_ref()?.first());
        let formats = formats.map(|first| format!("{first} (against ggml)"));
        formats.chain(self.kernels.iter().flat_map(KernelRow::failures)).collect()
    }

    /// Whether nothing differs.
    pub fn ok(&self) -> bool {
        self.failures().is_empty()
    }

    pub fn print(&self, json: bool, out: &mut impl Write) -> Result<(), CliError> {
        if json {
            return safe_text::write_json(&self.json(), out);
        }
        self.print_formats(out)?;
        self.print_kernels(out)?;
        self.print_speed(out)?;
        for why in &self.unavailable {
            writeln!(out, "not checked: {why}")?;
        }
        let failures = self.failures();
        for failure in &failures {
            writeln!(out, "DIFFERS: {}", escape(failure))?;
        }
        if failures.is_empty() {
            let sets = self.sets().join(", ");
            writeln!(out, "no differences ({sets})")?;
        }
        Ok(())
    }

    /// The kernel sets that were checked, by name.
    fn sets(&self) -> Vec<&'static str> {
        let mut sets = Vec::new();
        for row in &self.kernels {
            if !sets.contains(&row.kernels.isa().name()) {
                sets.push(row.kernels.isa().name());
            }
        }
        sets
    }

    fn print_formats(&self, out: &mut impl Write) -> io::Result<()> {
        if let Some((model, tensor)) = &self.tensor {
            let model = model.display().to_string();
            return writeln!(out, "{}: {}\n", escape(&model), escape(tensor));
        }
        let Some(folder) = &self.golden else {
            return writeln!(out, "Formats against ggml: no goldens here (--golden DIR)\n");
        };
        writeln!(out, "Formats against ggml ({})\n", escape(&folder.display().to_string()))?;
        let mut table =
            output::new_table(&["format", "decoded values", "activation bytes", "exact dots"], &[1, 2, 3]);
        for row in &self.formats {
            let cells = row.ggml.as_ref().map(|r| [&r.decoded, &r.quantised, &r.exact].map(same_bits));
            let [decoded, quantised, exact] =
                cells.unwrap_or_else(|| [(); 3].map(|()| "no goldens".to_owned()));
            table.add_row([row.ty.name(), &decoded, &quantised, &exact]);
        }
        writeln!(out, "{}\n", table.trim_fmt())
    }

    fn print_kernels(&self, out: &mut impl Write) -> io::Result<()> {
        let ggml = self.golden.is_some();
        writeln!(out, "Kernels against scalar{}\n", if ggml { ", and dots against ggml's" } else { "" })?;
        let mut header = vec!["format", "kernels", "dots", "against scalar"];
        if ggml {
            header.extend(["ggml's", "ULP", "bound", "relative"]);
        }
        let mut table = output::new_table(&header, if ggml { &[2, 4, 5, 6, 7] } else { &[2] });
        for row in &self.kernels {
            let mut cells = vec![
                row.format.ty.name().to_owned(),
                row.kernels.isa().name().to_owned(),
                grouped(row.scalar.dots),
                match row.scalar.differing {
                    0 => "same bits".to_owned(),
                    n => format!("{} DIFFER", grouped(n)),
                },
            ];
            match &row.ggml {
                Some((exact, close)) => cells.extend([
                    grouped(exact.compared + close.compared),
                    format!("{:.4}", close.worst_ulp),
                    dot_bound(row.format.ty).map_or_else(|| "none".to_owned(), |b| format!("{:.4}", b.bound)),
                    format!("{:.1e}", close.worst_relative),
                ]),
                None if ggml => cells.push("none".to_owned()),
                None => {}
            }
            table.add_row(cells);
        }
        writeln!(out, "{}\n", table.trim_fmt())
    }

    fn print_speed(&self, out: &mut impl Write) -> io::Result<()> {
        let Some(bytes) = self.bench_bytes else { return Ok(()) };
        let bytes = output::bytes(bytes);
        writeln!(out, "Speed: 1 token, {bytes} of weights, {} threads, medians of 5\n", self.threads)?;
        let mut table = output::new_table(&["format", "kernels", "GB/s", "plain read", "ratio"], &[2, 3, 4]);
        for row in &self.kernels {
            let Some(speed) = row.speed else { continue };
            let numbers = [speed.gb_s, speed.read_gb_s, speed.ratio()].map(|v| format!("{v:.2}"));
            let [rate, read, ratio] = &numbers;
            table.add_row([row.format.ty.name(), row.kernels.isa().name(), rate, read, ratio]);
        }
        writeln!(out, "{}\n", table.trim_fmt())
    }

    fn json(&self) -> Json {
        Json {
            ok: self.ok(),
            model: self.tensor.as_ref().map(|(model, _)| model.display().to_string()),
            tensor: self.tensor.as_ref().map(|(_, tensor)| tensor.clone()),
            golden: self.golden.as_ref().map(|folder| folder.display().to_string()),
            kernel_sets: self.sets(),
            unavailable: self.unavailable.clone(),
            threads: self.threads,
            bench_bytes: self.bench_bytes,
            formats: self.formats.iter().map(JsonFormat::of).collect(),
            kernels: self.kernels.iter().map(JsonKernel::of).collect(),
        }
    }
}

fn same_bits(tally: &Tally) -> String {
    match tally.differing {
        0 => format!("{} same", grouped(tally.compared)),
        n => format!("{} of {} DIFFER", grouped(n), grouped(tally.compared)),
    }
}

#[derive(Serialize)]
struct Json {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensor: Option<String>,
    /// `null`: none were there.
    golden: Option<String>,
    kernel_sets: Vec<&'static str>,
    unavailable: Vec<String>,
    threads: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    bench_bytes: Option<u64>,
    formats: Vec<JsonFormat>,
    kernels: Vec<JsonKernel>,
}

#[derive(Serialize)]
struct JsonFormat {
    #[serde(rename = "type")]
    ty: &'static str,
    decoded: Option<JsonTally>,
    activation_bytes: Option<JsonTally>,
    refused: Option<JsonTally>,
    exact_dots: Option<JsonTally>,
}

#[derive(Serialize)]
struct JsonTally {
    compared: u64,
    differing: u64,
    first: Option<String>,
}

impl From<&Tally> for JsonTally {
    fn from(tally: &Tally) -> JsonTally {
        let first = tally.first.as_ref().map(ToString::to_string);
        JsonTally { compared: tally.compared, differing: tally.differing, first }
    }
}

impl JsonFormat {
    fn of(row: &FormatRow) -> JsonFormat {
        let tally = |of: fn(&GgmlReport) -> &Tally| row.ggml.as_ref().map(|r| of(r).into());
        JsonFormat {
            ty: row.ty.name(),
            decoded: tally(|r| &r.decoded),
            activation_bytes: tally(|r| &r.quantised),
            refused: tally(|r| &r.refused),
            exact_dots: tally(|r| &r.exact),
        }
    }
}

#[derive(Serialize)]
struct JsonKernel {
    #[serde(rename = "type")]
    ty: &'static str,
    isa: &'static str,
    kernel: Option<String>,
    /// Against scalar.
    dots: u64,
    differing: u64,
    first: Option<String>,
    ggml: Option<JsonGgml>,
    #[serde(skip_serializing_if = "Option::is_none")]
    speed: Option<JsonSpeed>,
}

#[derive(Serialize)]
struct JsonGgml {
    exact_dots: JsonTally,
    dots: u64,
    worst_ulp: Number,
    bound_ulp: Option<f64>,
    worst_relative: Number,
    first: Option<String>,
}

#[derive(Serialize)]
struct JsonSpeed {
    gb_s: Number,
    read_gb_s: Number,
    ratio: Number,
}

impl JsonKernel {
    fn of(row: &KernelRow) -> JsonKernel {
        JsonKernel {
            ty: row.format.ty.name(),
            isa: row.kernels.isa().name(),
            kernel: row.kernels.name_for(row.format.ty),
            dots: row.scalar.dots,
            differing: row.scalar.differing,
            first: row.scalar.first.as_ref().map(ToString::to_string),
            ggml: row.ggml.as_ref().map(|(exact, close)| JsonGgml {
                exact_dots: exact.into(),
                dots: close.compared,
                worst_ulp: close.worst_ulp.into(),
                bound_ulp: dot_bound(row.format.ty).map(|b| b.bound),
                worst_relative: close.worst_relative.into(),
                first: close.first.as_ref().map(ToString::to_string),
            }),
            speed: row.speed.map(|speed| JsonSpeed {
                gb_s: speed.gb_s.into(),
                read_gb_s: speed.read_gb_s.into(),
                ratio: speed.ratio().into(),
            }),
        }
    }
}

//! `wayinfer dequant`: what a tensor's values are.

mod compare;
mod statistics;

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use serde::Serialize;

use super::number::Number;
use super::{CliError, interrupt, model_arg, output, output_file, safe_text, tensor_arg};
use crate::gguf::Gguf;
use crate::verify::{NpyWriter, Place, RowRange, Selection, TensorFileError, TensorWriter, WeightRows};

/// Show, write or compare a tensor's values
///
/// Without --values, --out or --compare: statistics and a histogram. The values are ggml's, bit for bit.
/// Works on any GGUF file, whatever its architecture, for tensors of the types that WayInfer computes with;
/// the tensor may be larger than memory. In JSON, what is not finite is the string "NaN", "Infinity" or
/// "-Infinity".
#[derive(clap::Args, Debug)]
pub struct Args {
    /// GGUF file; any one of a split model; `hf:USER/REPO[:QUANT]` for a model of the hub; `demo` for the
    /// model that is compiled in
    #[arg(short, long)]
    model: PathBuf,

    /// Name of the tensor, as `inspect` lists it
    tensor: String,

    /// Only these rows, from 0: A..B (B not included), A.., ..B or A; of a tensor with experts the rows of
    /// all of them, one expert after another, unless --expert names one
    #[arg(long, value_name = "A..B")]
    rows: Option<RowRange>,

    /// Only this expert of a tensor of [columns, rows, experts], from 0
    #[arg(long, value_name = "E")]
    expert: Option<u64>,

    #[command(flatten)]
    work: Work,

    /// Overwrite what --out names
    #[arg(long, requires = "out")]
    force: bool,

    /// Name of the tensor in the other file, where it is another
    #[arg(long = "as", value_name = "NAME", requires = "compare")]
    other_name: Option<String>,

    /// One JSON object on one line
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Debug)]
#[group(multiple = false)]
struct Work {
    /// Print the values, one row a line, in as many digits as give the same f32 again
    #[arg(long)]
    values: bool,

    /// Write the values as f32 to a new file: .npy or .safetensors
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Measure the error against the same tensor of another GGUF file (or `demo`), which is the reference
    #[arg(long, value_name = "OTHER.gguf")]
    compare: Option<PathBuf>,
}

impl FromStr for RowRange {
    type Err = String;

    fn from_str(text: &str) -> Result<RowRange, String> {
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("\"{text}\" is no row"));
        let range = match text.split_once("..") {
            None => {
                let row = number(text)?;
                RowRange { start: row, end: Some(row.checked_add(1).ok_or("there is no such row")?) }
            }
            Some((start, end)) => RowRange {
                start: if start.is_empty() { 0 } else { number(start)? },
                end: if end.is_empty() { None } else { Some(number(end)?) },
            },
        };
        match range.end {
            Some(end) if end <= range.start => Err(format!("{}..{end} is no row at all", range.start)),
            _ => Ok(range),
        }
    }
}

/// The tensor at hand.
struct Selected<'a> {
    gguf: &'a Gguf,
    path: &'a Path,
    name: &'a str,
    rows: WeightRows,
}

/// See [`Args`].
pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    let gguf = model_arg::open(model_arg::source(&args.model))?;
    let selection = Selection { expert: args.expert, rows: args.rows };
    let tensor = tensor_arg::find(&gguf, &args.tensor)?;
    let rows = WeightRows::open(&gguf, tensor, &selection)?;
    let selected = Selected { gguf: &gguf, path: &args.model, name: &tensor.name, rows };
    let mut out = BufWriter::new(io::stdout().lock());
    if let Some(file) = &args.work.out {
        write_file(&selected, file, args, &mut out)?;
    } else if let Some(other) = &args.work.compare {
        compare::run(&selected, &selection, other, args, &mut out)?;
    } else if args.work.values {
        print_values(&selected, args.json, &mut out)?;
    } else {
        statistics::run(&selected, args.json, &mut out)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// What is at hand, for JSON.
#[derive(Serialize)]
struct Header {
    model: String,
    tensor: String,
    #[serde(rename = "type")]
    ty: &'static str,
    /// Of the selection, the slowest-moving size first.
    shape: Vec<u64>,
}

impl Selected<'_> {
    fn header(&self) -> Header {
        Header {
            model: self.path.display().to_string(),
            tensor: self.name.to_owned(),
            ty: self.rows.ty().name(),
            shape: self.rows.shape(),
        }
    }
}

/// `256 x 512`, the slowest-moving size first.
fn shape(sizes: &[u64]) -> String {
    sizes.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ")
}

/// `expert 1, row 2, column 3`.
pub fn place(place: Place) -> String {
    let Place { expert, row, column } = place;
    let expert = expert.map_or_else(String::new, |e| format!("expert {e}, "));
    format!("{expert}row {row}, column {column}")
}

/// A place for JSON.
#[derive(Serialize)]
struct At {
    #[serde(skip_serializing_if = "Option::is_none")]
    expert: Option<u64>,
    row: u64,
    column: u64,
}

impl From<Place> for At {
    fn from(Place { expert, row, column }: Place) -> At {
        At { expert, row, column }
    }
}

fn print_json(value: &impl Serialize, out: &mut impl Write) -> Result<(), CliError> {
    safe_text::write_json(value, out)
}

/// One row a line; or one JSON object with an array of rows, written as they come.
fn print_values(selected: &Selected<'_>, json: bool, out: &mut impl Write) -> Result<(), CliError> {
    let (cols, mut column, mut first) = (selected.rows.cols(), 0, true);
    if json {
        let header = safe_text::json(&selected.header())?;
        write!(out, "{},\"values\":[", header.trim_end_matches('}'))?;
    }
    for chunk in selected.rows.chunks() {
        for value in chunk? {
            let start = match (json, column == 0) {
                (true, true) if first => "[",
                (true, true) => ",[",
                (true, false) => ",",
                (false, true) => "",
                (false, false) => " ",
            };
            out.write_all(start.as_bytes())?;
            if json {
                serde_json::to_writer(&mut *out, &Number::from(value)).map_err(io::Error::from)?;
            } else {
                write!(out, "{value:?}")?;
            }
            (first, column) = (false, column + 1);
            if column == cols {
                out.write_all(if json { b"]" } else { b"\n" })?;
                column = 0;
            }
        }
    }
    if json {
        writeln!(out, "]}}")?;
    }
    Ok(())
}

/// Writes the values to a file and says so.
fn write_file(
    selected: &Selected<'_>,
    file: &Path,
    args: &Args,
    out: &mut impl Write,
) -> Result<(), CliError> {
    output_file::refuse_model_file(selected.gguf, file)?;
    interrupt::leave_nothing_behind()?;
    let shape = selected.rows.shape();
    let exists = |error: TensorFileError| {
        let there = matches!(error, TensorFileError::Exists { .. });
        let error = CliError::from(error);
        if there { error.hint("--force overwrites it") } else { error }
    };
    match file.extension().and_then(|e| e.to_str()) {
        Some("npy") => {
            let mut writer = NpyWriter::create(file, &shape, args.force).map_err(exists)?;
            for chunk in selected.rows.chunks() {
                writer.add(&chunk?)?;
            }
            writer.finish()?;
        }
        Some("safetensors") => {
            let mut writer = TensorWriter::create(file, args.force).map_err(exists)?;
            // What is mapped fits usize.
            let sizes: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
            let chunks = selected.rows.chunks().map(|chunk| chunk.map_err(CliError::from));
            writer.add_chunks::<f32, _>(selected.name, &sizes, chunks)?;
            writer.finish()?;
        }
        _ => {
            let message = format!("--out {}: a file .npy or .safetensors is needed", file.display());
            return Err(CliError::usage(message));
        }
    }
    if args.json {
        #[derive(Serialize)]
        struct Written {
            #[serde(flatten)]
            header: Header,
            out: String,
        }
        print_json(&Written { header: selected.header(), out: file.display().to_string() }, out)
    } else {
        let values = output::grouped(selected.rows.elements());
        let file = file.display().to_string();
        writeln!(out, "{}: {values} values, {} of f32", safe_text::escape(&file), self::shape(&shape))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_ranges() {
        let range = |text: &str| text.parse::<RowRange>();
        assert_eq!(range("3..7"), Ok(RowRange { start: 3, end: Some(7) }));
        assert_eq!(range("3.."), Ok(RowRange { start: 3, end: None }));
        assert_eq!(range("..7"), Ok(RowRange { start: 0, end: Some(7) }));
        assert_eq!(range(".."), Ok(RowRange { start: 0, end: None }));
        assert_eq!(range("5"), Ok(RowRange { start: 5, end: Some(6) }));
        for bad in ["", "a", "-1", "7..7", "7..3", "1..2..3", "1.5", "18446744073709551615", "..0"] {
            assert!(range(bad).is_err(), "{bad}");
        }
    }
}

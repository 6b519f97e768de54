//! `wayinfer diff`: what differs between two models.

mod json;
mod tables;
mod text;

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use globset::{Glob, GlobMatcher};

use super::{CliError, byte_bar, model_arg, verdict};
use crate::gguf::{Gguf, TensorInfo};
use crate::verify::files::{DataDiff, MetadataDiff, compare_data, compare_metadata};

/// Compare two models: metadata, tensors, values
///
/// A is the reference: SQNR and errors are those of B's values. Tensors are matched by name and compared byte
/// by byte, and value by value where bytes or types differ. How a model lies in its files is not compared:
/// splits (split.*), alignment, order. Both are streamed, whatever their size, in less than 100 MB of memory.
/// Exit code 1 where anything differs.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// GGUF file, any one of a split model, or `demo`
    #[arg(value_name = "A")]
    first: PathBuf,

    /// The other one
    #[arg(value_name = "B")]
    second: PathBuf,

    /// Only the tensors whose names match, such as 'blk.0.*' or '*_exps.weight'; no metadata
    #[arg(long, value_name = "GLOB", value_parser = glob)]
    tensor: Option<GlobMatcher>,

    /// Only what the headers say: metadata, names, shapes and types; no tensor's data is read
    #[arg(long)]
    headers: bool,

    /// One JSON object on one line
    #[arg(long)]
    json: bool,
}

fn glob(text: &str) -> Result<GlobMatcher, String> {
    Glob::new(text).map(|glob| glob.compile_matcher()).map_err(|e| e.to_string())
}

/// A model, and what the user calls it.
struct Side<'a> {
    path: &'a Path,
    gguf: &'a Gguf,
}

/// What was found.
struct Comparison<'a> {
    sides: [Side<'a>; 2],
    /// `None` where it was not asked for.
    metadata: Option<MetadataDiff<'a>>,
    tensors: TensorDiff<'a>,
}

#[derive(Default)]
struct TensorDiff<'a> {
    only_first: Vec<&'a TensorInfo>,
    only_second: Vec<&'a TensorInfo>,
    differing: Vec<Differing<'a>>,
    /// Tensors in which nothing differs that was compared.
    equal: usize,
    /// Whether data was compared.
    with_data: bool,
}

/// A tensor of both models that is not the same.
struct Differing<'a> {
    first: &'a TensorInfo,
    second: &'a TensorInfo,
    /// `None` where the shapes differ or no data was compared.
    data: Option<DataDiff>,
}

/// See [`Args`].
pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    let open = |path: &PathBuf| model_arg::open(model_arg::source(path));
    let (first, second) = (open(&args.first)?, open(&args.second)?);
    let tensors = compare_tensors(&first, &second, args)?;
    let comparison = Comparison {
        metadata: args.tensor.is_none().then(|| compare_metadata(first.metadata(), second.metadata())),
        sides: [Side { path: &args.first, gguf: &first }, Side { path: &args.second, gguf: &second }],
        tensors,
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let printed = match args.json {
        true => json::print(&comparison, &mut out),
        false => tables::print(&comparison, &mut out),
    };
    let code = if comparison.is_equal() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    verdict(code, printed.and_then(|()| Ok(out.flush()?)))
}

impl Comparison<'_> {
    fn is_equal(&self) -> bool {
        self.differing_keys() + self.tensors.differing() == 0
    }

    fn differing_keys(&self) -> usize {
        self.metadata.as_ref().map_or(0, |m| m.only_first.len() + m.only_second.len() + m.changed.len())
    }
}

impl TensorDiff<'_> {
    fn differing(&self) -> usize {
        self.only_first.len() + self.only_second.len() + self.differing.len()
    }
}

/// Matches tensors by name and compares them, under a bar.
fn compare_tensors<'a>(first: &'a Gguf, second: &'a Gguf, args: &Args) -> Result<TensorDiff<'a>, CliError> {
    let is_wanted =
        |tensor: &&TensorInfo| args.tensor.as_ref().is_none_or(|glob| glob.is_match(&tensor.name));
    let mut diff = TensorDiff { with_data: !args.headers, ..TensorDiff::default() };
    let (mut pairs, mut shapes) = (Vec::new(), Vec::new());
    for tensor in first.tensors.iter().filter(is_wanted) {
        match second.tensor(&tensor.name) {
            None => diff.only_first.push(tensor),
            Some(other) if is_same_shape(tensor, other) => pairs.push((tensor, other)),
            Some(other) => shapes.push(Differing { first: tensor, second: other, data: None }),
        }
    }
    let is_new = |tensor: &&TensorInfo| is_wanted(tensor) && first.tensor(&tensor.name).is_none();
    diff.only_second = second.tensors.iter().filter(is_new).collect();
    let found = match args.headers {
        true => vec![None; pairs.len()],
        false => {
            let bytes =
                pairs.iter().map(|(a, b)| a.bytes.saturating_add(b.bytes)).fold(0, u64::saturating_add);
            let bar = byte_bar::new("compare", bytes);
            let found = compare_data(first, second, &pairs, &|more| bar.inc(more));
            bar.finish_and_clear();
            found?.into_iter().map(Some).collect()
        }
    };
    for ((first, second), data) in pairs.into_iter().zip(found) {
        let is_equal = matches!(data, None | Some(DataDiff::Equal));
        if is_equal && first.ty == second.ty && first.dims == second.dims {
            diff.equal += 1;
        } else {
            diff.differing.push(Differing { first, second, data });
        }
    }
    diff.differing.extend(shapes);
    let place = |row: &Differing<'_>| first.tensor_index(&row.first.name);
    diff.differing.sort_by_key(place);
    Ok(diff)
}

/// Whether two tensors have the same sizes, but for sizes of 1 at the end.
fn is_same_shape(a: &TensorInfo, b: &TensorInfo) -> bool {
    let sizes = |tensor: &TensorInfo| {
        let len = tensor.dims.iter().rposition(|&size| size != 1).map_or(0, |last| last + 1);
        tensor.dims[..len].to_vec()
    };
    sizes(a) == sizes(b)
}

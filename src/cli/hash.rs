//! `wayinfer hash`: what a model is, as hashes; whether it is what a manifest says.

mod report;

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;

use super::model_arg::ModelArg;
use super::output::tell;
use super::{CliError, byte_bar, safe_text, verdict};
use crate::gguf::Gguf;
use crate::verify::files::{self, Algorithm, Algorithms, Covered, Manifest, ModelDigests, write_manifest};

/// Hash a model's files and tensors, or check them against a manifest
///
/// Prints a manifest, a hash a line: of every file (all its bytes), of every tensor (the bytes of its data;
/// type and shape stand beside), of the metadata (keys, types and values, but for split.* and
/// general.alignment) and of the model (all tensors: names, shapes, types and data, in the order of their
/// names; no metadata). All but the files' are the same however a model is split or aligned. XXH3 finds
/// damage, SHA-256 forgery; they are what `xxhsum -H3` and `sha256sum` print of the same bytes.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,

    /// Check against this manifest: one of `wayinfer hash`, the output of sha256sum (lines of other files are
    /// passed over), or the pointer of Git LFS. Names what differs, is missing or is there beyond it; exit
    /// code 1 where anything is. Only what the manifest lists is hashed
    #[arg(long, value_name = "MANIFEST")]
    check: Option<PathBuf>,

    /// Only the files, or only what is in them: tensors, metadata and model
    #[arg(long, value_name = "WHAT")]
    only: Option<Only>,

    /// Only by this algorithm
    #[arg(long, value_name = "NAME")]
    algorithm: Option<AlgorithmArg>,

    /// One JSON object on one line
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Only {
    Files,
    Tensors,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AlgorithmArg {
    Xxh3,
    Sha256,
}

impl From<AlgorithmArg> for Algorithm {
    fn from(algorithm: AlgorithmArg) -> Algorithm {
        match algorithm {
            AlgorithmArg::Xxh3 => Algorithm::Xxh3,
            AlgorithmArg::Sha256 => Algorithm::Sha256,
        }
    }
}

/// See [`Args`].
pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    // What is wrong with the manifest is told before the work.
    let manifest = args.check.as_deref().map(|path| open_manifest(path, args)).transpose()?;
    let gguf = args.model.open()?;
    let mut out = BufWriter::new(io::stdout().lock());
    if let Some((manifest, covered)) = manifest {
        let digests = hash(&gguf, covered)?;
        let outcome = files::check(&gguf, args.model.path(), &digests, &manifest);
        let ok = outcome.deviations.is_empty();
        if outcome.is_otherwise_split() {
            tell!("hint: --only tensors checks what is in the files, however the model is split or named");
        }
        let printed = report::check(args.model.path(), &outcome, args.json, &mut out);
        let printed = printed.and_then(|()| Ok(out.flush()?));
        return verdict(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }, printed);
    }
    let algorithms = args.algorithm.map_or(Algorithms::BOTH, |one| Algorithms::only(one.into()));
    let digests = hash(&gguf, Covered { algorithms, files: args.files(), tensors: args.tensors() })?;
    match args.json {
        true => safe_text::write_json(&report::digests(&gguf, &digests), &mut out)?,
        false => write_manifest(&gguf, &digests, &mut out)?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn files(&self) -> bool {
        self.only != Some(Only::Tensors)
    }

    fn tensors(&self) -> bool {
        self.only != Some(Only::Files)
    }
}

/// A manifest, and what has to be hashed for it.
fn open_manifest(path: &Path, args: &Args) -> Result<(Manifest, Covered), CliError> {
    let mut manifest = Manifest::open(path)?;
    manifest.keep(args.files(), args.tensors());
    if manifest.is_empty() {
        let what = if args.files() { "files" } else { "tensors" };
        return Err(CliError::new(format!("there is no hash of {what}")).in_file(path));
    }
    let covered = manifest.covered(args.algorithm.map(Into::into)).map_err(|subject| {
        CliError::new(format!("there is no hash of {subject} by the algorithm asked for")).in_file(path)
    })?;
    Ok((manifest, covered))
}

/// Hashes under a bar.
fn hash(gguf: &Gguf, covered: Covered) -> Result<ModelDigests, CliError> {
    let sizes = |of: &mut dyn Iterator<Item = u64>| of.fold(0, u64::saturating_add);
    let bytes = match covered.files {
        true => sizes(&mut gguf.parts.iter().map(|part| part.file_bytes)),
        false => sizes(&mut gguf.tensors.iter().map(|tensor| tensor.bytes)),
    };
    let bar = byte_bar::new("hash", bytes);
    let hashed = files::hash(gguf, covered, &|more| bar.inc(more));
    bar.finish_and_clear();
    Ok(hashed?)
}

//! The model argument that subcommands share: a file, a name of the hub, or the demo that is compiled in.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{CliError, pull};
use crate::gguf::{Gguf, GgufError, GgufErrorKind, Source, StaticBytes};

/// The model that is part of the program: `-m demo`, where no file has this name.
const DEMO: Source<'static> = Source::Memory { name: "demo", bytes: StaticBytes(DEMO_BYTES) };

static DEMO_BYTES: &[u8] = include_bytes!("../../fixtures/demo-q4_k_m.gguf");

/// `MODEL` or `-m/--model MODEL`: exactly one of the two, unless a subcommand makes the group optional.
#[derive(Args, Debug)]
#[group(id = "model_arg", required = true, multiple = false)]
pub struct ModelArg {
    /// GGUF file; any one of a split model; `hf:USER/REPO[:QUANT]` for a model of the hub, which is fetched
    /// where it is not in the cache; `demo` for the model that is compiled in
    #[arg(value_name = "MODEL")]
    positional: Option<PathBuf>,

    /// The same, as an option
    #[arg(short = 'm', long = "model", value_name = "MODEL", env = "WAYINFER_MODEL")]
    flag: Option<PathBuf>,
}

/// What a model argument means: a file, a name of the hub (see [`of_hub`]), or by its name the demo.
pub fn source(path: &Path) -> Source<'_> {
    if path == DEMO.path() && !path.is_file() { DEMO } else { Source::File(path) }
}

/// The file that a name of the hub stands for: that of the cache, fetched where it is not there. `None` of
/// all other models, of a file that is called so too.
pub fn of_hub(source: Source<'_>) -> Result<Option<PathBuf>, CliError> {
    match source {
        Source::File(path) if !path.is_file() => match path.to_str() {
            Some(text) => pull::cached_or_fetched(text),
            None => Ok(None),
        },
        _ => Ok(None),
    }
}

/// Reads a model's headers.
pub fn open(source: Source<'_>) -> Result<Gguf, CliError> {
    match of_hub(source)? {
        Some(path) => Gguf::open(&path).map_err(with_hint),
        None => Gguf::open(source).map_err(with_hint),
    }
}

impl ModelArg {
    /// The model that an option of a subcommand with other arguments names.
    pub fn of(flag: Option<PathBuf>) -> ModelArg {
        ModelArg { positional: None, flag }
    }

    /// What to read the model from; the demo where none is given.
    pub fn source(&self) -> Source<'_> {
        self.positional.as_deref().or(self.flag.as_deref()).map_or(DEMO, source)
    }

    /// The path given, or the demo's name.
    pub fn path(&self) -> &Path {
        self.source().path()
    }

    /// Whether any was named.
    pub fn is_given(&self) -> bool {
        self.positional.is_some() || self.flag.is_some()
    }

    /// Whether it is the model that is compiled in.
    pub fn is_demo(&self) -> bool {
        matches!(self.source(), Source::Memory { .. })
    }

    /// Reads the model's headers.
    pub fn open(&self) -> Result<Gguf, CliError> {
        open(self.source())
    }
}

/// What the user can do about a file that cannot be opened.
fn with_hint(error: GgufError) -> CliError {
    let hint = match &error.kind {
        GgufErrorKind::Io(_) | GgufErrorKind::NotAFile(_) | GgufErrorKind::Empty => None,
        GgufErrorKind::BadMagic { .. } => None,
        GgufErrorKind::BigEndian { .. } => Some("convert the model again for little-endian machines"),
        GgufErrorKind::UnsupportedVersion(_) => Some("convert the model again with a current llama.cpp"),
        GgufErrorKind::Truncated { .. } | GgufErrorKind::DataBeyondFile { .. } => {
            Some("the file may not have been downloaded whole; compare its size with the source's")
        }
        GgufErrorKind::SplitMissing { .. } => Some("all files of a split must lie in one directory"),
        GgufErrorKind::SplitName { .. } => Some("give the file back the name that it was split under"),
        _ => Some("`wayinfer inspect --check` lists all that is wrong with a file"),
    };
    let error = CliError::from(error);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

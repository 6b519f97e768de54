//! `wayinfer perplexity`: how well a model foretells a text, and how far its probabilities are from others.

mod draw;
mod progress;
mod report;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgGroup, Args as ClapArgs};

use super::engine_args::{self, EngineArgs, Loaded};
use super::input::Input;
use super::model_arg::{self, ModelArg};
use super::output::tell;
use super::output_file::refuse_model_file;
use super::placement::{self, Room};
use super::report::ReportArgs;
use super::tokenizer_arg::TokenizerArg;
use super::{CliError, InFile, interrupt};
use crate::engine::{EngineError, EngineOptions};
use crate::kernels::Isa;
use crate::model::KvType;
use crate::store::same_file;
use crate::verify::perplexity::{
    Against, BaseHeader, BaseSource, BaseWriter, MOST_TOP, Shares, WindowOptions, Windows, WindowsError,
    measure, text_tokens,
};
use crate::verify::{TensorFileError, VerifyError};
use progress::Progress;
use report::{Report, Side};

/// Measure how well a model foretells a text, and how far its probabilities are from another run's.
///
/// As llama-perplexity computes it: the text's tokens, in windows of -c tokens that begin with BOS where the
/// vocabulary wants it; of each the second half is scored. The perplexity is exp of the mean negative
/// logarithm of probability. One line end at the end of the text is left out. The figures do not depend on
/// the kernel set, threads or batches.
///
/// --base FILE keeps the most probable tokens of every scored row (--base-top) and the probability of all
/// others together. --against compares with such a file, with one of llama-perplexity's
/// --kl-divergence-base, with an array of logits (.npy, [scored rows, vocabulary]) or with another model;
/// --against-isa and --against-kv with a run on another kernel set or KV cache.
///
/// --report FILE draws the perplexity as it settles, that of each position of a window, and how the
/// divergences are spread.
#[derive(ClapArgs, Debug)]
#[command(group = ArgGroup::new("written").multiple(true))]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,

    /// File with the text [default: standard input]
    #[arg(short, long, value_name = "TEXT")]
    file: Option<PathBuf>,

    /// Tokens of a window
    #[arg(short = 'c', long, value_name = "N", allow_negative_numbers = true, default_value_t = 512)]
    ctx: usize,

    /// Begin a window every S tokens, less than -c, and score the last S of each; windows are half a stride
    /// longer
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    stride: Option<usize>,

    /// Run only the first N windows
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    chunks: Option<NonZeroUsize>,

    /// Recognise special tokens that are written out in the text, as a chat's are
    #[arg(long)]
    special: bool,

    /// Write a base to this file, for --against
    #[arg(long, value_name = "FILE", group = "written")]
    base: Option<PathBuf>,

    /// Tokens that the base keeps of each row, at most 65536: the more, the less is lost
    #[arg(long, value_name = "N", allow_negative_numbers = true, requires = "base", default_value_t = 256)]
    #[arg(value_parser = base_top)]
    base_top: usize,

    /// Compare with this base, or with this model
    #[arg(long, value_name = "FILE|MODEL")]
    against: Option<PathBuf>,

    /// Compare with a run on this kernel set, as --isa names them; of the same model where --against is not
    /// given
    #[arg(long, value_name = "SET")]
    against_isa: Option<Isa>,

    /// Compare with a run with this KV cache, as --kv names them; of the same model where --against is not
    /// given
    #[arg(long, value_name = "TYPE")]
    against_kv: Option<KvType>,

    /// One JSON object on one line, with all windows and positions
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    report: ReportArgs,

    #[command(flatten)]
    tokenizer: TokenizerArg,

    #[command(flatten)]
    engine: EngineArgs,
}

fn base_top(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (1..=MOST_TOP).contains(n));
    number.ok_or_else(|| format!("a number from 1 to {MOST_TOP} is needed"))
}

/// What is compared with.
enum Other {
    Nothing,
    /// The same model in another run.
    Same,
    Model(Box<Loaded>),
    Base(Box<BaseSource>),
}

/// See [`Args`].
pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    Windows::length(&args.windows(None)).map_err(usage)?;
    if args.base.as_deref().is_some_and(|base| args.report.is_at(base)) {
        return Err(CliError::usage("--base and --report are the same file"));
    }
    // What would be in the way at the end is told before the work.
    let interrupted = interrupt::watch_to_leave(|| ())?;
    let mut writer = args.base.as_deref().map(|path| create(path, args.report.force)).transpose()?;
    let file = args.report.create_watched()?;
    let mut other = open_other(args)?;
    let text = Input::of(args.file.as_ref()).text()?;
    let mut loaded = engine_args::load(args.model.source())?;
    for path in args.base.iter() {
        refuse_model_file(&loaded.gguf, path)?;
    }
    args.report.refuse_model_file(&loaded.gguf)?;
    if let Other::Model(other) = &other {
        args.report.refuse_model_file(&other.gguf)?;
    }
    let windows = cut(args, &loaded, &text)?;
    let vocab = loaded.model.spec().vocab;
    match &mut other {
        Other::Base(base) => base.check(&windows, vocab)?,
        Other::Model(model) => check_model(args, model, &text, &windows, vocab)?,
        Other::Nothing | Other::Same => {}
    }
    warn_of_long_windows(&loaded, windows.window());

    let options = EngineOptions { context: windows.window(), ..args.engine.options(windows.window()) };
    let other_options = EngineOptions {
        isa: args.against_isa.or(options.isa),
        kv: args.against_kv.unwrap_or(options.kv),
        ..options.clone()
    };
    settle(args, &mut loaded, &mut other, [&options, &other_options], &windows)?;
    let mut engine = engine_args::open_engine(&loaded, &options)?;
    let (other_model, base) = match &mut other {
        Other::Same => (Some(&loaded), None),
        Other::Model(model) => (Some(&**model), None),
        Other::Base(base) => (None, Some(base)),
        Other::Nothing => (None, None),
    };
    let other_engine = other_model.map(|model| engine_args::open_engine(model, &other_options));
    let mut other_engine = other_engine.transpose()?;
    let own = Side::new(args.model.path(), Some((&engine, &options)));
    let beside = args.against.as_deref().unwrap_or(args.model.path());
    let beside = match base.as_ref().and_then(|base| base.header()) {
        Some(header) => Side::of_base(beside, header),
        None => Side::new(beside, other_engine.as_ref().map(|engine| (engine, &other_options))),
    };
    if let Some(writer) = &mut writer {
        writer.begin(&header(args, &own, &windows, vocab))?;
    }
    let runs = 1 + usize::from(other_engine.is_some());
    let base = base.map(|base| Against::Base(base));
    let against = other_engine.as_mut().map(Against::Engine).or(base);
    let mut progress = Progress::new(&windows, runs, &interrupted);
    let measured = measure(&windows, &mut engine, against, writer.as_mut(), &mut |step| progress.step(&step));
    progress.finish();
    let measured = match measured {
        Err(VerifyError::Engine(EngineError::Interrupted)) => return Ok(interrupt::INTERRUPTED.into()),
        Err(error @ VerifyError::Base(_)) => return Err(error.into()),
        measured => measured.in_file(args.model.path())?,
    };
    if let Some(writer) = writer {
        writer.finish()?;
    }
    let against = measured.divergences.is_some().then_some(beside);
    let text = args.file.as_deref().unwrap_or(Path::new("standard input"));
    let report = Report { own, against, text, windows: &windows, measured: &measured };
    if let Some(file) = file {
        file.write(draw::page(&report))?;
    }
    report.print(args.json)?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn windows(&self, bos: Option<u32>) -> WindowOptions {
        let most = self.chunks.map(NonZeroUsize::get);
        WindowOptions { context: self.ctx, stride: self.stride, most, bos }
    }
}

fn usage(error: WindowsError) -> CliError {
    CliError::usage(error.to_string())
}

fn create(path: &Path, force: bool) -> Result<BaseWriter, CliError> {
    BaseWriter::create(path, force).map_err(|error| {
        let exists = matches!(error, TensorFileError::Exists { .. });
        let error = CliError::from(error);
        if exists { error.hint("--force overwrites it") } else { error }
    })
}

/// Opens what is compared with; which kind of file it is, its first bytes say.
fn open_other(args: &Args) -> Result<Other, CliError> {
    let asks_for_run = args.against_isa.is_some() || args.against_kv.is_some();
    let Some(path) = &args.against else {
        return Ok(if asks_for_run { Other::Same } else { Other::Nothing });
    };
    let source = model_arg::source(path);
    let is_model = match source {
        crate::gguf::Source::Memory { .. } => true,
        crate::gguf::Source::File(path) => is_gguf(path)?,
    };
    if !is_model {
        if asks_for_run {
            let message = format!("{} is no model: it has been run already", path.display());
            return Err(CliError::usage(message).hint("leave --against-isa and --against-kv out"));
        }
        return Ok(Other::Base(Box::new(BaseSource::open(path)?)));
    }
    let own = args.model.path();
    if path == own || same_file(path, own) {
        return Ok(Other::Same);
    }
    Ok(Other::Model(Box::new(engine_args::load(source)?)))
}

fn is_gguf(path: &Path) -> Result<bool, CliError> {
    use std::io::Read;
    let mut magic = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(4).read_to_end(&mut magic));
    read.map_err(|error| CliError::new(format!("cannot be read: {error}")).in_file(path))?;
    Ok(magic == b"GGUF")
}

/// The windows of a text.
fn cut(args: &Args, loaded: &Loaded, text: &str) -> Result<Windows, CliError> {
    let (ids, bos) = tokenize(args, loaded, text)?;
    Windows::new(ids, args.windows(bos)).map_err(|error| match error {
        WindowsError::TooShort { .. } => {
            let named = args.file.as_deref().unwrap_or(Path::new("standard input"));
            CliError::from(error).in_file(named).hint("a smaller -c/--ctx needs less")
        }
        error => usage(error),
    })
}

/// The tokens of a text, and the BOS that windows begin with.
fn tokenize(args: &Args, loaded: &Loaded, text: &str) -> Result<(Vec<u32>, Option<u32>), CliError> {
    let tokenizer = args.tokenizer.tokenizer(&loaded.gguf)?;
    text_tokens(&tokenizer, text, args.special).in_file(loaded.path())
}

/// Refuses a model that cuts the text into other tokens: their probabilities cannot be compared.
fn check_model(
    args: &Args,
    other: &Loaded,
    text: &str,
    windows: &Windows,
    vocab: usize,
) -> Result<(), CliError> {
    let found = other.model.spec().vocab;
    if found != vocab {
        let message = format!("it has a vocabulary of {found} tokens, the model one of {vocab}");
        return Err(CliError::new(message).in_file(other.path()));
    }
    let (ids, bos) = tokenize(args, other, text)?;
    if ids != windows.tokens() || bos != windows.options().bos {
        let error = CliError::new("its tokenizer cuts the text into other tokens than the model's");
        return Err(error.in_file(other.path()));
    }
    warn_of_long_windows(other, windows.window());
    Ok(())
}

fn warn_of_long_windows(loaded: &Loaded, window: usize) {
    let trained = loaded.model.spec().context;
    if trained < window {
        let path = loaded.path().display().to_string();
        let path = super::safe_text::escape(&path);
        tell!("warning: {path}: trained on contexts of {trained} tokens, where windows have {window}");
    }
}

/// Puts the weights in their places: of two models each gets memory by its size.
fn settle(
    args: &Args,
    loaded: &mut Loaded,
    other: &mut Other,
    [own, beside]: [&EngineOptions; 2],
    windows: &Windows,
) -> Result<(), CliError> {
    let shares = Shares::of(windows, own, loaded.model.spec().vocab);
    let more = shares.windows.saturating_sub(1) as u64;
    let sequences = |loaded: &Loaded, options: &[EngineOptions]| {
        let bytes = options.iter().map(|options| options.sequence_bytes(loaded.model.spec()));
        bytes.fold(0u64, u64::saturating_add).saturating_mul(more)
    };
    let Room { ram, device } = Room::of(&args.engine, &loaded.model)?;
    match other {
        Other::Model(other) => {
            let [first, second] = placement::divide(ram, &loaded.model, &other.model);
            // The device is for the first: two would take its memory from each other.
            let rooms = [Room { ram: Some(first), device }, Room { ram: Some(second), device: None }];
            let [first, second] = rooms;
            for (loaded, options, room) in [(loaded, own, first), (&mut **other, beside, second)] {
                let options = std::slice::from_ref(options);
                let sequences = sequences(loaded, options);
                placement::settle_beside(loaded, room, options, shares.logits(), sequences)?;
            }
            Ok(())
        }
        Other::Same => {
            let options = [own.clone(), beside.clone()];
            let sequences = sequences(loaded, &options);
            placement::settle_beside(loaded, Room { ram, device }, &options, shares.logits(), sequences)
        }
        Other::Nothing | Other::Base(_) => {
            let options = std::slice::from_ref(own);
            let sequences = sequences(loaded, options);
            placement::settle_beside(loaded, Room { ram, device }, options, shares.logits(), sequences)
        }
    }
}

/// What a base says of itself.
fn header(args: &Args, own: &Side, windows: &Windows, vocab: usize) -> BaseHeader {
    BaseHeader {
        model: own.name.clone(),
        settings: own.settings.clone().unwrap_or_default(),
        vocab,
        context: args.ctx,
        stride: args.stride,
        windows: windows.count(),
        top: args.base_top,
    }
}

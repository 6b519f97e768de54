//! `wayinfer dot-check`: whether the kernels of this CPU compute what they should.

mod report;

use std::io::{self, BufWriter, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::{CliError, engine_args, model_arg, tensor_arg, verdict};
use crate::gguf::TensorType;
use crate::kernels::{Isa, Kernels, matmul};
use crate::quant::{self, FORMATS, Format};
use crate::verify::formats::{
    FormatGoldens, FormatUnderTest, SetReport, SpeedTest, check_against_ggml, check_kernels,
    check_kernels_against_ggml, compare_with_scalar, each_format, thread_pools,
};
use crate::verify::{Selection, WeightRows};
use report::{FormatRow, KernelRow, Report};

/// Check the kernels of this CPU, against the scalar ones and against ggml
///
/// Every kernel set that this CPU has must give the scalar dots' bits, for every format, at sizes around the
/// edges and with extreme blocks, or (with -m and --tensor) on real weights. Where there are goldens, decoded
/// values and rounded activations must be ggml's bits, and dots within a bound, in units in the last place
/// (ULP) of the sum of magnitudes. Exit code 1 where anything differs.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// GGUF file whose weights to check with; any one of a split model, `hf:USER/REPO[:QUANT]` for a model of
    /// the hub, or `demo`
    #[arg(short, long, requires = "tensor")]
    model: Option<PathBuf>,

    /// The tensor of the model, as `inspect` lists it
    #[arg(long, value_name = "NAME", requires = "model", conflicts_with_all = ["format", "golden"])]
    tensor: Option<String>,

    /// Only the first N rows of the tensor (of each expert)
    #[arg(long, value_name = "N", requires = "tensor")]
    rows: Option<NonZeroUsize>,

    /// Only this format, such as Q4_K
    #[arg(long, value_name = "NAME")]
    format: Option<String>,

    #[arg(long, value_name = "SET", help = format!("Only this kernel set: {}", Isa::names(" or ")))]
    isa: Option<Isa>,

    /// What ggml computed: a folder with a file a format, of which none may be missing [default:
    /// golden/formats, where that is, and what it has]
    #[arg(long, value_name = "DIR")]
    golden: Option<PathBuf>,

    /// Measure how fast weights are read in a product with one token, beside a plain read
    #[arg(long)]
    bench: bool,

    /// Threads of --bench and of real weights, at most 1024 [default: all cores]
    #[arg(
        short,
        long,
        value_name = "N",
        allow_negative_numbers = true,
        value_parser = engine_args::threads_parser()
    )]
    threads: Option<u16>,

    /// One JSON object on one line
    #[arg(long)]
    json: bool,
}

/// Where goldens lie in the repository.
const GOLDENS: &str = "golden/formats";

/// See [`Args`].
pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    let sets: Vec<&'static Kernels> = match args.isa {
        Some(isa) => vec![Kernels::by_isa(isa)?],
        None => Kernels::available().collect(),
    };
    let threads = engine_args::threads(args.threads).most();
    let pool = || ThreadPoolBuilder::new().num_threads(threads).build();
    let mut report = match (&args.model, &args.tensor) {
        (Some(model), Some(tensor)) => check_tensor(model, tensor, args.rows, &sets, &pool()?)?,
        _ => check_formats(args, &sets)?,
    };
    report.threads = threads;
    if args.isa.is_none() {
        report.unavailable = Kernels::unavailable().map(|why| why.to_string()).collect();
    }
    if args.bench {
        measure(&mut report, &pool()?)?;
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let printed = report.print(args.json, &mut out).and_then(|()| Ok(out.flush()?));
    verdict(if report.ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }, printed)
}

/// The formats to check.
fn formats(name: Option<&str>) -> Result<Vec<&'static Format>, CliError> {
    let Some(name) = name else { return Ok(FORMATS.iter().collect()) };
    let all = || FORMATS.iter().map(|f| f.ty.name()).collect::<Vec<_>>().join(", ");
    let ty = TensorType::ALL.iter().find(|ty| ty.name().eq_ignore_ascii_case(name));
    match ty.map(|&ty| (ty, quant::format(ty))) {
        Some((_, Some(format))) => Ok(vec![format]),
        Some((ty, None)) => Err(CliError::new(format!("{ty} cannot be computed with ({} can)", all()))),
        None => Err(CliError::usage(format!("--format: there is no format \"{name}\" ({})", all()))),
    }
}

/// The folder of goldens: what was asked for, else the repository's, where it is.
fn golden_folder(asked: Option<&Path>) -> Result<Option<PathBuf>, CliError> {
    match asked {
        Some(folder) if folder.is_dir() => Ok(Some(folder.to_owned())),
        Some(folder) => Err(CliError::new(format!("{}: there is no such folder", folder.display()))),
        None => Ok(Some(PathBuf::from(GOLDENS)).filter(|folder| folder.is_dir())),
    }
}

/// What ggml computed for a format. A folder that was asked for must have it.
fn goldens(
    folder: Option<&Path>,
    asked: bool,
    format: &'static Format,
) -> Result<Option<FormatGoldens>, CliError> {
    let Some(folder) = folder else { return Ok(None) };
    match FormatGoldens::find(folder, format)? {
        None if asked => {
            let message = format!("--golden {}: there are no goldens for {}", folder.display(), format.ty);
            Err(CliError::new(message).hint("--format NAME checks one format only"))
        }
        goldens => Ok(goldens),
    }
}

/// Blocks made up, random and extreme, and those of the goldens.
fn check_formats(args: &Args, sets: &[&'static Kernels]) -> Result<Report, CliError> {
    let folder = golden_folder(args.golden.as_deref())?;
    let formats = formats(args.format.as_deref())?;
    let found = |format: &&'static Format| {
        Ok((format.ty, goldens(folder.as_deref(), args.golden.is_some(), format)?))
    };
    let goldens = formats.iter().map(found).collect::<Result<Vec<_>, CliError>>()?;
    let goldens = |format: &Format| goldens.iter().find(|(ty, _)| *ty == format.ty)?.1.as_ref();
    let mut report = Report { golden: folder.clone(), ..Report::default() };
    for rows in each_format(formats, |format| check_format(format, sets, goldens(format))) {
        let (format, kernels) = rows?;
        report.formats.push(format);
        report.kernels.extend(kernels);
    }
    Ok(report)
}

/// One format, by every kernel set.
fn check_format(
    format: &'static Format,
    sets: &[&'static Kernels],
    goldens: Option<&FormatGoldens>,
) -> Result<(FormatRow, Vec<KernelRow>), CliError> {
    let ggml = goldens.map(|g| check_against_ggml(&FormatUnderTest::of(format), g));
    let results = check_kernels(sets, format, goldens, matmul, &thread_pools()?);
    let row = |(&kernels, scalar)| {
        let ggml = goldens.map(|g| check_kernels_against_ggml(kernels, format, g, matmul)).transpose()?;
        Ok(KernelRow { format, kernels, scalar, ggml, speed: None })
    };
    let kernels = sets.iter().zip(results).map(row).collect::<Result<_, CliError>>()?;
    Ok((FormatRow { ty: format.ty, ggml }, kernels))
}

/// Most columns of a real tensor: activations for them are kept in memory.
const MOST_COLS: u64 = 1 << 20;
/// Rows of real weights at a time.
const ROWS_AT_ONCE: usize = 4096;

/// Real weights, some rows at a time.
fn check_tensor(
    model: &Path,
    name: &str,
    most_rows: Option<NonZeroUsize>,
    sets: &[&'static Kernels],
    pool: &ThreadPool,
) -> Result<Report, CliError> {
    let gguf = model_arg::open(model_arg::source(model))?;
    let tensor = tensor_arg::find(&gguf, name)?;
    let rows = WeightRows::open(&gguf, tensor, &Selection::default())?;
    if rows.cols() > MOST_COLS {
        let message = format!("{}: rows of {} elements, over {MOST_COLS}", model.display(), rows.cols());
        return Err(CliError::new(message));
    }
    let mut results = vec![SetReport::default(); sets.len()];
    let [_, per_expert, experts] = rows.scope().map(|n| n as usize); // what is mapped fits
    let bytes = rows.bytes();
    let row_bytes = bytes.len() / (per_expert * experts);
    for (expert, bytes) in bytes.chunks(per_expert * row_bytes).enumerate() {
        let bytes = &bytes[..most_rows.map_or(per_expert, |n| n.get().min(per_expert)) * row_bytes];
        for (i, bytes) in bytes.chunks(ROWS_AT_ONCE * row_bytes).enumerate() {
            let weights = rows.matrix(bytes)?;
            let place = if experts == 1 { String::new() } else { format!(" expert {expert},") };
            let case = format!("{name},{place} rows from {}", i * ROWS_AT_ONCE);
            pool.install(|| compare_with_scalar(sets, weights, bytes, &case, &mut results));
        }
    }
    rows.check()?;
    let format = rows.format()?;
    let kernels = sets.iter().zip(results);
    let kernels =
        kernels.map(|(&kernels, scalar)| KernelRow { format, kernels, scalar, ggml: None, speed: None });
    let tensor = Some((model.to_owned(), name.to_owned()));
    Ok(Report { tensor, kernels: kernels.collect(), ..Report::default() })
}

/// Measures every kernel of the report.
fn measure(report: &mut Report, pool: &ThreadPool) -> Result<(), CliError> {
    let test = pool.install(SpeedTest::new)?;
    report.bench_bytes = Some(test.bytes() as u64);
    for row in &mut report.kernels {
        row.speed = pool.install(|| test.run(row.kernels, row.format));
    }
    Ok(())
}

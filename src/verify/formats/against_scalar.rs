//! Every kernel set against the scalar dots, bit for bit.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use super::{FormatGoldens, same};
use crate::gguf::TensorType;
use crate::kernels::{Isa, Kernels, WeightMatrix};
use crate::quant::testing::{KINDS, Kind, Random, weights};
use crate::quant::{Activations, Format};

/// A product of weights with activations, as [`crate::kernels::matmul`].
pub type Matmul = fn(&'static Kernels, WeightMatrix<'_>, &Activations, &mut [f32]);

/// The first dot that differs from the scalar one.
#[derive(Clone, Debug, PartialEq)]
pub struct DotDifference {
    pub ty: TensorType,
    pub isa: Isa,
    /// What the weights were like.
    pub case: String,
    /// The product's sizes.
    pub rows: usize,
    pub tokens: usize,
    pub cols: usize,
    pub threads: usize,
    /// Where in it.
    pub row: usize,
    pub token: usize,
    pub found: f32,
    pub wanted: f32,
}

impl fmt::Display for DotDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DotDifference { ty, isa, case, rows, tokens, cols, threads, row, token, found, wanted } = self;
        write!(
            f,
            "{ty} {isa}, {case}, {rows} rows of {cols} with {tokens} tokens, {threads} threads: row {row}, \
             token {token} is {found:e} ({:#010x}), scalar {wanted:e} ({:#010x})",
            found.to_bits(),
            wanted.to_bits()
        )
    }
}

/// What a kernel set came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SetReport {
    /// Dots compared.
    pub dots: u64,
    /// Dots that differ.
    pub differing: u64,
    pub first: Option<DotDifference>,
}

/// A product whose scalar dots are known, and its name.
struct Product<'a> {
    case: &'a str,
    weights: WeightMatrix<'a>,
    x: &'a Activations,
    threads: usize,
}

impl SetReport {
    /// Compares `[tokens][rows]` dots with those of a product that is as large or larger, `[..][stride]`.
    fn add(
        &mut self,
        kernels: &Kernels,
        product: &Product<'_>,
        found: &[f32],
        wanted: &[f32],
        stride: usize,
    ) {
        let rows = product.weights.rows();
        self.dots += found.len() as u64;
        for (token, found) in found.chunks(rows).enumerate() {
            for (row, (&found, &wanted)) in found.iter().zip(&wanted[token * stride..]).enumerate() {
                if same(found, wanted) {
                    continue;
                }
                self.differing += 1;
                self.first.get_or_insert_with(|| DotDifference {
                    ty: product.weights.format().ty,
                    isa: kernels.isa(),
                    case: product.case.to_owned(),
                    rows,
                    tokens: product.x.rows(),
                    cols: product.weights.cols(),
                    threads: product.threads,
                    row,
                    token,
                    found,
                    wanted,
                });
            }
        }
    }

    /// Runs a product and compares it.
    fn run(
        &mut self,
        kernels: &'static Kernels,
        matmul: Matmul,
        product: &Product<'_>,
        wanted: &[f32],
        stride: usize,
    ) {
        // No dot is this by chance: what a kernel leaves out differs.
        let mut out = vec![f32::from_bits(0x7f65_4321); product.weights.rows() * product.x.rows()];
        matmul(kernels, product.weights, product.x, &mut out);
        self.add(kernels, product, &out, wanted, stride);
    }
}

/// Pools of 1, 2 and 3 threads, whatever the machine has.
///
/// # Errors
/// Where threads cannot be had.
pub fn thread_pools() -> Result<Vec<ThreadPool>, ThreadPoolBuildError> {
    (1..=3).map(|n| ThreadPoolBuilder::new().num_threads(n).build()).collect()
}

/// Checks each of some formats, several at a time, on threads of their own; the results in the order of the
/// formats. A pool that several of them use is one that they wait for.
pub fn each_format<'f, R: Send>(
    formats: impl IntoIterator<Item = &'f Format>,
    check: impl Fn(&'f Format) -> R + Sync,
) -> Vec<R> {
    let formats: Vec<_> = formats.into_iter().enumerate().collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let take = || formats.get(next.fetch_add(1, Ordering::Relaxed));
        std::iter::from_fn(take).map(|&(i, format)| (i, check(format))).collect::<Vec<_>>()
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut results = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut results = work();
        for other in others {
            results.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        results
    });
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Most rows and tokens of the small products.
const ROWS: usize = 33;
const TOKENS: usize = 33;

/// Numbers of tokens: each up to what kernels take at once, and around multiples of it.
const TOKEN_COUNTS: [usize; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, TOKENS];

/// Numbers of rows.
fn row_counts() -> impl Iterator<Item = usize> {
    (1..=17).chain([ROWS])
}

/// Numbers of columns around the edges of blocks, vectors and units.
fn column_counts(format: &Format) -> Vec<usize> {
    match format.ty.block_len() as usize {
        1 => vec![1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 100, 255],
        len if len < 256 => [1, 2, 3, 7, 8, 9, 17].map(|blocks| blocks * len).to_vec(),
        len => [1, 2, 3, 9].map(|blocks| blocks * len).to_vec(),
    }
}

/// Rows of activations: of largest magnitudes, with zeros, huge, tiny, ordinary ones.
fn activations(format: &Format, tokens: usize, cols: usize, random: &mut Random) -> Vec<f32> {
    let mut values = random.activations(tokens * cols);
    for (t, row) in values.chunks_mut(cols).enumerate() {
        match t {
            1 => row.iter_mut().for_each(|x| *x = if *x < 0.0 { -3.0 } else { 3.0 }),
            2 => row[..cols.div_ceil(2).min(256)].fill(0.0),
            3 => row.iter_mut().for_each(|x| *x *= 1e30),
            4 => row.iter_mut().for_each(|x| *x *= 1e-38),
            5 => row.fill(-0.0),
            _ => {}
        }
    }
    debug_assert!(cols.is_multiple_of(format.activation.block_len()));
    values
}

/// The definition: one scalar dot for each place of `[tokens][rows]`.
fn scalar_dots(format: &Format, weights: &[u8], rows: usize, x: &Activations) -> Vec<f32> {
    let row_bytes = format.row_bytes(x.cols());
    let mut out = Vec::with_capacity(rows * x.rows());
    for t in 0..x.rows() {
        out.extend((0..rows).map(|r| (format.dot)(&weights[r * row_bytes..][..row_bytes], x.row(t))));
    }
    out
}

/// The first rows of activations, rounded.
fn rounded(format: &Format, values: &[f32], tokens: usize, cols: usize) -> Activations {
    let mut x = Activations::new();
    x.quantize(format.activation, &values[..tokens * cols], cols).expect("these are finite");
    x
}

/// Holds several kernel sets against the scalar dots of a format, at sizes around the edges, with random and
/// extreme blocks, on 1, 2 and 3 threads; of the goldens, where there are some, ggml's extreme blocks too. A
/// report a set.
pub fn check_kernels(
    sets: &[&'static Kernels],
    format: &'static Format,
    goldens: Option<&FormatGoldens>,
    matmul: Matmul,
    pools: &[ThreadPool],
) -> Vec<SetReport> {
    let mut reports = vec![SetReport::default(); sets.len()];
    on(pools.first(), || {
        for cols in column_counts(format) {
            for kind in KINDS {
                check_edges(sets, format, kind, cols, matmul, &mut reports);
            }
        }
    });
    check_threads(sets, format, matmul, pools, &mut reports);
    if let Some(goldens) = goldens {
        let rows = goldens.decode_cases.len();
        let values = activations(format, 7, goldens.case_len, &mut Random(3));
        let x = rounded(format, &values, 7, goldens.case_len);
        let wanted = scalar_dots(format, &goldens.blocks, rows, &x);
        let matrix = WeightMatrix::new(format.ty, &goldens.blocks, rows, goldens.case_len);
        for (kernels, report) in sets.iter().zip(&mut reports) {
            if let Some(weights) = matrix {
                let product = Product { case: "ggml's blocks", weights, x: &x, threads: 1 };
                report.run(kernels, matmul, &product, &wanted, rows);
            }
        }
    }
    reports
}

/// All numbers of rows with all numbers of tokens, on one thread. The weights begin at an odd address.
fn check_edges(
    sets: &[&'static Kernels],
    format: &'static Format,
    kind: Kind,
    cols: usize,
    matmul: Matmul,
    reports: &mut [SetReport],
) {
    let mut random = Random(cols as u64 * 100 + kind as u64);
    let mut bytes = vec![0];
    bytes.extend(weights(format, kind, ROWS, cols, &mut random));
    let bytes = &bytes[1..];
    let values = activations(format, TOKENS, cols, &mut random);
    let wanted = scalar_dots(format, bytes, ROWS, &rounded(format, &values, TOKENS, cols));
    for tokens in TOKEN_COUNTS {
        let x = rounded(format, &values, tokens, cols);
        for rows in row_counts() {
            let bytes = &bytes[..rows * format.row_bytes(cols)];
            let Some(weights) = WeightMatrix::new(format.ty, bytes, rows, cols) else { continue };
            let product = Product { case: kind.name(), weights, x: &x, threads: 1 };
            for (kernels, report) in sets.iter().zip(&mut *reports) {
                // The scalar set is the scalar dots, in another loop: a few shapes show that.
                if kernels.isa() == Isa::Scalar && rows != ROWS && tokens != 1 {
                    continue;
                }
                report.run(kernels, matmul, &product, &wanted, ROWS);
            }
        }
    }
}

/// Products that are large enough for several threads, whose last rows are no whole chunk.
fn check_threads(
    sets: &[&'static Kernels],
    format: &'static Format,
    matmul: Matmul,
    pools: &[ThreadPool],
    reports: &mut [SetReport],
) {
    let (rows, cols) = (301, 768);
    let mut random = Random(7);
    let bytes = weights(format, Kind::Ordinary, rows, cols, &mut random);
    let Some(weights) = WeightMatrix::new(format.ty, &bytes, rows, cols) else { return };
    for tokens in [1, 9] {
        let values = activations(format, tokens, cols, &mut random);
        let x = rounded(format, &values, tokens, cols);
        let wanted = scalar_dots(format, &bytes, rows, &x);
        for pool in pools {
            let threads = pool.current_num_threads();
            let product = Product { case: Kind::Ordinary.name(), weights, x: &x, threads };
            for (kernels, report) in sets.iter().zip(&mut *reports) {
                on(Some(pool), || report.run(kernels, matmul, &product, &wanted, rows));
            }
        }
    }
}

fn on(pool: Option<&ThreadPool>, run: impl FnOnce() + Send) {
    match pool {
        Some(pool) => pool.install(run),
        None => run(),
    }
}

/// Tokens that real weights are multiplied with: alone, and as many as make kernels take several at once.
const REAL_TOKENS: [usize; 2] = [1, 9];

/// Holds kernel sets against the scalar dots on rows of real weights, in the current thread pool; adds to
/// `reports`. The activations are random, always the same; `case` names the weights.
pub fn compare_with_scalar(
    sets: &[&'static Kernels],
    weights: WeightMatrix<'_>,
    bytes: &[u8],
    case: &str,
    reports: &mut [SetReport],
) {
    let (format, rows, cols) = (weights.format(), weights.rows(), weights.cols());
    let most = REAL_TOKENS[REAL_TOKENS.len() - 1];
    let values = Random(1).activations(most * cols);
    let x = rounded(format, &values, most, cols);
    let row_bytes = format.row_bytes(cols);
    let wanted: Vec<f32> = (0..most * rows)
        .into_par_iter()
        .map(|at| (format.dot)(&bytes[at % rows * row_bytes..][..row_bytes], x.row(at / rows)))
        .collect();
    for tokens in REAL_TOKENS {
        let x = rounded(format, &values, tokens, cols);
        let product = Product { case, weights, x: &x, threads: rayon::current_num_threads() };
        for (kernels, report) in sets.iter().zip(&mut *reports) {
            report.run(kernels, crate::kernels::matmul, &product, &wanted, rows);
        }
    }
}

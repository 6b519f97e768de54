//! Matrix times activations, split over the threads of the current rayon pool.
//!
//! Work is split by rows of weights only, never inside a dot: the result does not depend on the number of
//! threads.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::{Groups, Kernels, OutTile, Tile, TileFunction};
use crate::gguf::TensorType;
use crate::quant::arranged::Arranged;
use crate::quant::{Activations, Format, format};

/// A matrix of weights, as it lies in a file: `rows` rows of `cols` elements, row after row.
#[derive(Clone, Copy, Debug)]
pub struct WeightMatrix<'a> {
    format: &'static Format,
    bytes: &'a [u8],
    rows: usize,
    cols: usize,
}

impl<'a> WeightMatrix<'a> {
    /// A view of `bytes`; `None` where the type cannot be computed with.
    ///
    /// # Panics
    /// Where the bytes are not those of `rows` rows of `cols` elements.
    pub fn new(ty: TensorType, bytes: &'a [u8], rows: usize, cols: usize) -> Option<WeightMatrix<'a>> {
        let format = format(ty)?;
        assert!(cols > 0, "rows of no elements");
        assert_eq!(
            Some(bytes.len()),
            rows.checked_mul(format.row_bytes(cols)),
            "bytes of {rows} x {cols} {ty}"
        );
        Some(WeightMatrix { format, bytes, rows, cols })
    }

    pub fn format(&self) -> &'static Format {
        self.format
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// One product of a batch: `out = x * weights^T`.
#[derive(Debug)]
pub struct MatmulJob<'a> {
    pub weights: WeightMatrix<'a>,
    /// `[tokens][weights.cols()]`, of the type that goes with the weights.
    pub x: &'a Activations,
    /// `[tokens][weights.rows()]`
    pub out: &'a mut [f32],
}

/// Computes `out[t][r]`, the dot of weight row `r` with activation row `t`.
///
/// # Panics
/// Where the lengths do not go together or the activations are of the wrong type.
pub fn matmul(kernels: &'static Kernels, weights: WeightMatrix<'_>, x: &Activations, out: &mut [f32]) {
    matmul_batch(kernels, &mut [MatmulJob { weights, x, out }]);
}

/// Computes several products (query, key and value; gate and up; the experts of a layer) in one parallel
/// region.
///
/// # Panics
/// As [`matmul`].
pub fn matmul_batch(kernels: &'static Kernels, jobs: &mut [MatmulJob<'_>]) {
    let mut jobs: Vec<Checked<'_>> = jobs.iter_mut().map(|job| Checked::new(kernels, job)).collect();
    arrange(&mut jobs);
    let threads = rayon::current_num_threads();
    let work: usize = jobs.iter().map(Checked::work).sum();
    if threads == 1 || work < MIN_PARALLEL_WORK {
        // SAFETY: one call after another.
        jobs.iter().for_each(|job| unsafe { job.run(0..job.rows) });
        return;
    }
    let chunks = split(&jobs, work, threads);
    // Each thread takes the next chunk there is: all work close together in memory, and who is slow takes
    // fewer.
    let next = AtomicUsize::new(0);
    (0..threads.min(chunks.len())).into_par_iter().with_max_len(1).for_each(|_| {
        while let Some((i, rows)) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            // SAFETY: a job's chunks do not overlap, and each is taken once.
            unsafe { jobs[*i].run(rows.clone()) };
        }
    });
}

/// Arranges the activations of those jobs whose kernels want it.
fn arrange(jobs: &mut [Checked<'_>]) {
    // Jobs of the same activations follow one another: the others take what the first of them has made.
    let mut firsts: Vec<(&Activations, Groups)> = Vec::new();
    for job in jobs.iter() {
        match (job.groups, firsts.last()) {
            (None, _) => {}
            (Some(groups), Some((x, same))) if std::ptr::eq(*x, job.x) && *same == groups => {}
            (Some(groups), _) => firsts.push((job.x, groups)),
        }
    }
    if firsts.len() > 1 {
        firsts.par_iter().for_each(|(x, groups)| drop(x.arranged(groups.most)));
    }
    for job in jobs {
        job.arranged = job.groups.map(|groups| job.x.arranged(groups.most));
    }
}

/// Work (see [`Checked::work`]) below which other threads are not worth waking.
const MIN_PARALLEL_WORK: usize = 64 * 1024;
/// What each thread may take of the work that is left: the fewer, the fewer chunks.
const CHUNKS_A_THREAD: usize = 4;
/// What a chunk is at least of all work, for each thread.
const LEAST_CHUNKS_A_THREAD: usize = 64;
/// Chunks are a multiple of what the kernels take at once.
const ROWS_AT_ONCE: usize = 16;

/// Splits the rows of jobs into chunks: large ones first, then ever smaller ones, so that a slow thread does
/// not hold up the others at the end.
fn split(jobs: &[Checked<'_>], work: usize, threads: usize) -> Vec<(usize, Range<usize>)> {
    let least = (work / (threads * LEAST_CHUNKS_A_THREAD)).max(MIN_PARALLEL_WORK / 4);
    let mut left = work;
    let mut chunks = Vec::new();
    for (i, job) in jobs.iter().enumerate() {
        let row_work = (job.row_bytes * job.x.rows()).max(1);
        let mut start = 0;
        while start < job.rows {
            let wanted = (left / (threads * CHUNKS_A_THREAD)).max(least) / row_work;
            let end = job.rows.min(start + wanted.next_multiple_of(ROWS_AT_ONCE).max(ROWS_AT_ONCE));
            chunks.push((i, start..end));
            left = left.saturating_sub((end - start) * row_work);
            start = end;
        }
    }
    chunks
}

/// A job whose operands go together, with its kernel.
struct Checked<'a> {
    weights: WeightMatrix<'a>,
    x: &'a Activations,
    tile_function: TileFunction,
    /// How its activations are to be arranged.
    groups: Option<Groups>,
    arranged: Option<Arc<Arranged>>,
    row_bytes: usize,
    rows: usize,
    /// `[x.rows()][rows]`, exclusively ours for `'a`.
    out: *mut f32,
}

// SAFETY: `out` is an exclusive borrow of f32 that different threads write to at different places (`run`'s
// callers split the rows).
unsafe impl Sync for Checked<'_> {}

impl<'a> Checked<'a> {
    fn new(kernels: &'static Kernels, job: &'a mut MatmulJob<'_>) -> Checked<'a> {
        let (weights, x) = (job.weights, job.x);
        let format = weights.format;
        assert_eq!(x.ty(), format.activation, "activations for {}", format.ty);
        assert!(
            x.rows() == 0 || x.cols() == weights.cols,
            "{} activations, {} weights",
            x.cols(),
            weights.cols
        );
        assert_eq!(Some(job.out.len()), x.rows().checked_mul(weights.rows), "room for the output");
        let (kernel, _) = kernels.tile(format.ty).expect("the scalar set has every format");
        let groups = kernel.arranged.filter(|groups| (groups.from..groups.below).contains(&x.rows()));
        Checked {
            weights,
            x,
            tile_function: kernel.run,
            groups,
            arranged: None,
            row_bytes: format.row_bytes(weights.cols),
            rows: weights.rows,
            out: job.out.as_mut_ptr(),
        }
    }

    /// An estimate of the work: bytes of weights, each read once and used for every token.
    fn work(&self) -> usize {
        self.weights.bytes.len().saturating_mul(self.x.rows())
    }

    /// Computes these rows of the output.
    ///
    /// # Safety
    /// Ranges that run at the same time must not overlap.
    unsafe fn run(&self, rows: Range<usize>) {
        let tokens = self.x.rows();
        if tokens == 0 || rows.is_empty() {
            return;
        }
        let tile = Tile {
            format: self.weights.format,
            weights: &self.weights.bytes[rows.start * self.row_bytes..rows.end * self.row_bytes],
            rows: rows.len(),
            row_bytes: self.row_bytes,
            x: self.x,
            arranged: self.arranged.as_deref(),
        };
        // SAFETY: `out` has `tokens * self.rows` elements (`new`) and `rows` lies within `0..self.rows` (the
        // slice above would have panicked otherwise); only this call has these rows.
        let mut out = unsafe { OutTile::new(self.out.add(rows.start), self.rows, tokens, rows.len()) };
        // SAFETY: a `&'static Kernels` proves that the CPU can run its kernels.
        unsafe { (self.tile_function)(&tile, &mut out) }
    }
}

//! Rows of activations, rounded to what the weights' type goes with.

use std::sync::{Arc, Mutex, PoisonError};

use half::{bf16, f16};
use rayon::prelude::*;

use super::arranged::Arranged;
use super::rounding::{Blocks, Portable, Rounding};
use super::{QK_K, QK8_0};

/// What activations are rounded to before a dot; one for each family of weight types, as in ggml.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)] // the names are the field's own
pub enum ActivationType {
    F32,
    /// f32 rounded to f16 (ties to even) and kept as f32.
    F16,
    /// f32 rounded to bf16 (ties to even, subnormals kept) and kept as f32.
    BF16,
    /// Blocks of 32, scale `max / 127` rounded to f16.
    Q8_0,
    /// As Q8_0, with the sum of the block's values, rounded to f16.
    Q8_1,
    /// Super-blocks of 256, f32 scale, sums of every 16.
    Q8_K,
}

impl ActivationType {
    /// Elements in a block; a row is a whole number of them.
    pub const fn block_len(self) -> usize {
        match self {
            ActivationType::F32 | ActivationType::F16 | ActivationType::BF16 => 1,
            ActivationType::Q8_0 | ActivationType::Q8_1 => QK8_0,
            ActivationType::Q8_K => QK_K,
        }
    }

    /// Whether values are rounded to integers and scales; otherwise to floats.
    pub const fn is_quantised(self) -> bool {
        matches!(self, ActivationType::Q8_0 | ActivationType::Q8_1 | ActivationType::Q8_K)
    }
}

/// An activation that cannot be quantised: it is infinite or not a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("activation {index} of row {row} is not finite")]
pub struct NonFinite {
    pub row: usize,
    /// Column in the row.
    pub index: usize,
}

/// Rows of activations of one type, as parallel arrays: `rows` rows of `cols` elements.
///
/// Its buffers are kept from one use to the next, but for what is arranged.
#[derive(Debug)]
pub struct Activations {
    ty: ActivationType,
    rows: usize,
    cols: usize,
    /// Float types: `[rows]`, [`stride`] apart.
    values: Vec<f32>,
    /// Quantised types: `[rows][cols]`, -127 to 127.
    qs: Vec<i8>,
    /// Quantised types: `[rows][cols / block]` scales.
    d: Vec<f32>,
    /// Q8_1: `[rows][cols / 32]` sums of 32 elements of `qs` times their scale.
    s: Vec<f32>,
    /// Quantised types: `[rows][cols / 16]` sums of 16 elements of `qs`.
    bsums: Vec<i16>,
    /// Quantised types: the rows as panels want them, where they were asked for.
    arranged: Mutex<Option<Arc<Arranged>>>,
}

/// What [`Activations`] of quantised types are made of, of all rows; what a type has not is empty.
#[derive(Clone, Copy, Debug)]
pub struct ActivationArrays<'a> {
    /// `[rows][cols]`, -127 to 127.
    pub qs: &'a [i8],
    /// `[rows][cols / block]` scales.
    pub d: &'a [f32],
    /// Q8_1: `[rows][cols / 32]` sums of the blocks' values.
    pub s: &'a [f32],
    /// `[rows][cols / 16]` sums of 16 elements of `qs`.
    pub bsums: &'a [i16],
}

/// One row of [`Activations`].
#[derive(Clone, Copy, Debug)]
pub enum ActivationRow<'a> {
    /// F32, F16 or BF16: values of that type, as f32.
    Floats(ActivationType, &'a [f32]),
    Q8_0(Q8_0Row<'a>),
    Q8_1(Q8_0Row<'a>),
    Q8K(Q8KRow<'a>),
}

/// A row rounded to Q8_0 or Q8_1: `n` blocks of 32.
#[derive(Clone, Copy, Debug)]
pub struct Q8_0Row<'a> {
    /// `[32 * n]`, -127 to 127.
    pub qs: &'a [i8],
    /// `[n]` scales, values of f16.
    pub d: &'a [f32],
    /// Q8_1: `[n]` sums of the blocks' values, values of f16; Q8_0: empty.
    pub s: &'a [f32],
    /// `[2 * n]` sums of 16 elements of `qs` each.
    pub bsums: &'a [i16],
}

/// A row rounded to Q8_K: `n` super-blocks of 256.
#[derive(Clone, Copy, Debug)]
pub struct Q8KRow<'a> {
    /// `[256 * n]`, -127 to 127.
    pub qs: &'a [i8],
    /// `[n]` scales.
    pub d: &'a [f32],
    /// `[16 * n]` sums of 16 elements each.
    pub bsums: &'a [i16],
}

impl<'a> ActivationRow<'a> {
    pub fn ty(self) -> ActivationType {
        match self {
            ActivationRow::Floats(ty, _) => ty,
            ActivationRow::Q8_0(_) => ActivationType::Q8_0,
            ActivationRow::Q8_1(_) => ActivationType::Q8_1,
            ActivationRow::Q8K(_) => ActivationType::Q8_K,
        }
    }

    /// The values of a row of this float type.
    ///
    /// # Panics
    /// Where the row is of another type.
    #[inline(always)]
    pub fn floats(self, ty: ActivationType) -> &'a [f32] {
        match self {
            ActivationRow::Floats(own, values) if own == ty => values,
            other => panic!("activations of type {:?} where {ty:?} was needed", other.ty()),
        }
    }

    /// The row, of type Q8_0.
    ///
    /// # Panics
    /// Where the row is of another type.
    #[inline(always)]
    pub fn q8_0(self) -> Q8_0Row<'a> {
        match self {
            ActivationRow::Q8_0(row) => row,
            other => panic!("activations of type {:?} where Q8_0 was needed", other.ty()),
        }
    }

    /// The row, of type Q8_1.
    ///
    /// # Panics
    /// Where the row is of another type.
    #[inline(always)]
    pub fn q8_1(self) -> Q8_0Row<'a> {
        match self {
            ActivationRow::Q8_1(row) => row,
            other => panic!("activations of type {:?} where Q8_1 was needed", other.ty()),
        }
    }

    /// The row, of type Q8_K.
    ///
    /// # Panics
    /// Where the row is of another type.
    #[inline(always)]
    pub fn q8_k(self) -> Q8KRow<'a> {
        match self {
            ActivationRow::Q8K(row) => row,
            other => panic!("activations of type {:?} where Q8_K was needed", other.ty()),
        }
    }
}

impl Default for Activations {
    fn default() -> Activations {
        Activations::new()
    }
}

impl Activations {
    /// No rows, no memory.
    pub fn new() -> Activations {
        Activations {
            ty: ActivationType::F32,
            rows: 0,
            cols: 0,
            values: Vec::new(),
            qs: Vec::new(),
            d: Vec::new(),
            s: Vec::new(),
            bsums: Vec::new(),
            arranged: Mutex::default(),
        }
    }

    pub fn ty(&self) -> ActivationType {
        self.ty
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Quantised types: the integers of all rows, `[rows][cols]`, -127 to 127; otherwise nothing.
    pub fn qs(&self) -> &[i8] {
        &self.qs
    }

    /// All rows' parts, of a quantised type.
    pub fn arrays(&self) -> ActivationArrays<'_> {
        let Activations { qs, d, s, bsums, .. } = self;
        ActivationArrays { qs, d, s, bsums }
    }

    /// [`Activations::quantize_by`] as it is compiled for any CPU.
    ///
    /// # Errors
    /// As there.
    pub fn quantize(&mut self, ty: ActivationType, x: &[f32], cols: usize) -> Result<(), NonFinite> {
        self.quantize_by(&Portable, ty, x, cols)
    }

    /// Replaces the rows by `x`, `[rows][cols]`, rounded to `ty`; large inputs by the current thread pool.
    ///
    /// # Errors
    /// The first value that is infinite or not a number, where `ty` is a quantised type; the rows are of
    /// no use then. Float types let such values through.
    ///
    /// # Panics
    /// Where `x` is no whole number of rows or a row no whole number of blocks.
    pub fn quantize_by(
        &mut self,
        rounding: &impl Rounding,
        ty: ActivationType,
        x: &[f32],
        cols: usize,
    ) -> Result<(), NonFinite> {
        assert!(cols > 0 && x.len().is_multiple_of(cols), "whole rows of {cols}");
        self.resize(ty, x.len() / cols, cols);
        match ty {
            ActivationType::F32 => self.round_floats(x, |x| x),
            ActivationType::F16 => self.round_floats(x, |x| f16::from_f32(x).to_f32()),
            ActivationType::BF16 => self.round_floats(x, |x| bf16::from_f32(x).to_f32()),
            ActivationType::Q8_0 | ActivationType::Q8_1 | ActivationType::Q8_K => {
                if !self.quantize_blocks(rounding, x) {
                    let at = x.iter().position(|x| !x.is_finite()).expect("a block with such a value");
                    return Err(NonFinite { row: at / cols, index: at % cols });
                }
            }
        }
        Ok(())
    }

    /// Rounds to the float type that the buffers are sized for.
    fn round_floats(&mut self, x: &[f32], round: impl Fn(f32) -> f32 + Sync) {
        let run = |(x, out): (&[f32], &mut [f32])| x.iter().zip(out).for_each(|(x, out)| *out = round(*x));
        let (cols, stride) = (self.cols, stride(self.cols));
        if x.len() < 2 * PARALLEL {
            x.chunks_exact(cols).zip(self.values.chunks_exact_mut(stride)).for_each(run);
        } else {
            let rows = x.par_chunks_exact(cols).zip(self.values.par_chunks_exact_mut(stride));
            rows.with_min_len(PARALLEL.div_ceil(cols)).for_each(run);
        }
    }

    /// Rounds to the quantised type that the buffers are sized for; whether all values are finite.
    fn quantize_blocks(&mut self, rounding: &impl Rounding, x: &[f32]) -> bool {
        let Activations { qs, bsums, d, s, .. } = self;
        let blocks = Blocks { x, qs, bsums, d, s };
        match self.ty {
            ActivationType::Q8_K => in_parts(blocks, &|blocks| rounding.q8_k(blocks)),
            ActivationType::Q8_1 => in_parts(blocks, &|blocks| rounding.q8_1(blocks)),
            _ => in_parts(blocks, &|blocks| rounding.q8_0(blocks)),
        }
    }

    /// Row `i`.
    ///
    /// # Panics
    /// Where there is no such row.
    #[inline]
    pub fn row(&self, i: usize) -> ActivationRow<'_> {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        let cols = self.cols;
        match self.ty {
            ActivationType::F32 | ActivationType::F16 | ActivationType::BF16 => {
                ActivationRow::Floats(self.ty, &self.values[i * stride(cols)..][..cols])
            }
            ActivationType::Q8_0 => ActivationRow::Q8_0(Q8_0Row {
                qs: &self.qs[i * cols..][..cols],
                d: &self.d[i * (cols / QK8_0)..][..cols / QK8_0],
                s: &[],
                bsums: &self.bsums[i * (cols / 16)..][..cols / 16],
            }),
            ActivationType::Q8_1 => ActivationRow::Q8_1(Q8_0Row {
                qs: &self.qs[i * cols..][..cols],
                d: &self.d[i * (cols / QK8_0)..][..cols / QK8_0],
                s: &self.s[i * (cols / QK8_0)..][..cols / QK8_0],
                bsums: &self.bsums[i * (cols / 16)..][..cols / 16],
            }),
            ActivationType::Q8_K => ActivationRow::Q8K(Q8KRow {
                qs: &self.qs[i * cols..][..cols],
                d: &self.d[i * (cols / QK_K)..][..cols / QK_K],
                bsums: &self.bsums[i * (cols / 16)..][..cols / 16],
            }),
        }
    }

    /// The rows, arranged in groups of at most `most`; arranged at the first call, by the current thread
    /// pool.
    ///
    /// # Panics
    /// Where they are of a float type.
    pub(crate) fn arranged(&self, most: usize) -> Arc<Arranged> {
        let kept = || self.arranged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(arranged) = kept().as_ref().filter(|arranged| arranged.most() == most) {
            return arranged.clone();
        }
        // Not under the lock: a thread that waits for others may take up work that wants the same.
        let arranged = Arc::new(Arranged::of(self, most));
        *kept() = Some(arranged.clone());
        arranged
    }

    /// Copies these rows, in this order, to `out` (the tokens of one expert, for instance).
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn gather_into(&self, rows: &[usize], out: &mut Activations) {
        fn gather<T: Copy>(from: &[T], rows: &[usize], total: usize, to: &mut [T]) {
            let len = from.len() / total.max(1);
            for (&row, to) in rows.iter().zip(to.chunks_exact_mut(len.max(1))) {
                to.copy_from_slice(&from[row * len..][..len]);
            }
        }
        assert!(rows.iter().all(|&row| row < self.rows), "rows of {}", self.rows);
        out.resize(self.ty, rows.len(), self.cols);
        gather(&self.values, rows, self.rows, &mut out.values);
        gather(&self.qs, rows, self.rows, &mut out.qs);
        gather(&self.d, rows, self.rows, &mut out.d);
        gather(&self.s, rows, self.rows, &mut out.s);
        gather(&self.bsums, rows, self.rows, &mut out.bsums);
    }

    /// Sizes the buffers; what they hold is open.
    fn resize(&mut self, ty: ActivationType, rows: usize, cols: usize) {
        assert!(cols.is_multiple_of(ty.block_len()), "a row of {cols} is no whole number of {ty:?} blocks");
        let quantised = ty.is_quantised();
        let n = rows * cols;
        (self.ty, self.rows, self.cols) = (ty, rows, cols);
        *self.arranged.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        self.values.resize(if quantised { 0 } else { rows * stride(cols) }, 0.0);
        self.qs.resize(if quantised { n } else { 0 }, 0);
        self.d.resize(if quantised { n / ty.block_len() } else { 0 }, 0.0);
        self.s.resize(if ty == ActivationType::Q8_1 { n / ty.block_len() } else { 0 }, 0.0);
        self.bsums.resize(if quantised { n / 16 } else { 0 }, 0);
    }
}

/// Elements that one thread does at least: below twice that, starting others costs more than it gains.
const PARALLEL: usize = 16 * 1024;

/// Rounds blocks, a part a thread; whether all values are finite.
fn in_parts(blocks: Blocks<'_>, round: &(impl Fn(Blocks<'_>) -> bool + Sync)) -> bool {
    let values = blocks.x.len();
    if values < 2 * PARALLEL {
        return round(blocks);
    }
    let [first, others] = blocks.split_at((values / 2).next_multiple_of(QK_K));
    let (first, others) = rayon::join(|| in_parts(first, round), || in_parts(others, round));
    first & others
}

/// Values from one row of floats to the next. Kernels go over several rows at once: where these were whole
/// pages apart, a cache would put what they have at a column into the same few places.
const fn stride(cols: usize) -> usize {
    const PAGE: usize = 4096 / size_of::<f32>();
    const APART: usize = 128;
    if cols.is_multiple_of(PAGE) { cols + APART } else { cols }
}

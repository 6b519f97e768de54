//! Products of weights that lie on a device with activations: a batch of them is begun, runs while the CPU
//! does something else, and is waited for.

use std::mem;
use std::ops::Range;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::open_device::{Scratch, Scratches};
use super::source::{DOT_LANES, DOT_ROWS, TILE_LANES, Task, kernel, template};
use super::{Arg, Device, DeviceActivations, DeviceError, DeviceSlice, Driver, Launch, Memory, Queue};
use crate::gguf::TensorType;
use crate::quant::{Activations, Format, format};

/// Rows and tokens of one launch; far fewer in tests, so that there are several.
const MOST_ROWS: usize = if cfg!(test) { 128 } else { 1 << 22 };
const MOST_TOKENS: usize = if cfg!(test) { 64 } else { 1 << 19 };

/// Parts of the inputs begin at multiples of so many bytes: kernels load as many at once.
const INPUT_ALIGNMENT: usize = 16;
/// Memory for inputs and outputs grows by whole multiples of so many bytes.
const GROWTH: usize = 1 << 16;

/// A matrix of weights on a device, as it lies in a file: `rows` rows of `cols` elements, row after row.
#[derive(Clone, Debug)]
pub struct DeviceMatrix {
    memory: Arc<Memory>,
    /// Bytes before it.
    offset: usize,
    format: &'static Format,
    rows: usize,
    cols: usize,
}

/// One product of a batch: `out = x * matrix^T`.
#[derive(Debug)]
pub struct Product<'a> {
    pub matrix: &'a DeviceMatrix,
    /// `[tokens][matrix.cols()]`, of the type that goes with the weights.
    pub x: &'a Activations,
    /// `[tokens][matrix.rows()]`
    pub out: &'a mut [f32],
}

/// Products under way on a device.
#[must_use = "nothing is written before `finish`"]
#[derive(Debug)]
pub struct Pending<'a> {
    driver: Arc<dyn Driver>,
    scratches: Arc<Scratches>,
    scratch: Scratch,
    outs: Vec<&'a mut [f32]>,
}

/// Where activations lie: words of the inputs at which integers or floats, scales and sums begin, and how
/// many words of each a token has.
#[derive(Clone, Copy, Debug, Default)]
struct Input {
    at: [usize; 3],
    a_token: [usize; 3],
}

impl DeviceMatrix {
    /// Kernels load whole words, also of the last bytes. [`Device::allocate`] minds it.
    pub const END_ALIGNMENT: usize = 4;

    /// A matrix that lies in `memory` from byte `offset` on.
    ///
    /// # Panics
    /// Where the type cannot be computed with, `cols` is no whole number of blocks, the bytes are not all
    /// within the memory, up to a multiple of [`DeviceMatrix::END_ALIGNMENT`], or `offset` is no multiple of
    /// [`DeviceMatrix::alignment`].
    pub fn new(memory: Arc<Memory>, offset: usize, ty: TensorType, rows: usize, cols: usize) -> DeviceMatrix {
        let format = format(ty).expect("a type that can be computed with");
        let end = rows.checked_mul(format.row_bytes(cols)).and_then(|bytes| bytes.checked_add(offset));
        let end = end.and_then(|end| end.checked_next_multiple_of(DeviceMatrix::END_ALIGNMENT));
        assert!(end.is_some_and(|end| end <= memory.bytes()), "memory for {rows} x {cols} {ty} at {offset}");
        assert!(offset.is_multiple_of(DeviceMatrix::alignment(ty)), "{ty} at {offset}");
        DeviceMatrix { memory, offset, format, rows, cols }
    }

    /// What a matrix's offset is a multiple of. Its blocks are too, so that it can begin at any row of
    /// another.
    pub const fn alignment(ty: TensorType) -> usize {
        let power = ty.block_bytes().trailing_zeros();
        if power < 4 { 1 << power } else { 16 }
    }

    /// Some of its rows.
    ///
    /// # Panics
    /// Where it has not so many.
    pub fn part(&self, rows: Range<usize>) -> DeviceMatrix {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "{rows:?} of {} rows", self.rows);
        let row = self.format.row_bytes(self.cols);
        DeviceMatrix { offset: self.offset + rows.start * row, rows: rows.len(), ..self.clone() }
    }

    pub fn ty(&self) -> TensorType {
        self.format.ty
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// What it lies in, perhaps with others.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }
}

impl Device {
    /// Begins to compute products, and returns while the device does. Each distinct `x` is copied once.
    ///
    /// # Errors
    /// A device that is lost or has no memory for inputs and outputs.
    ///
    /// # Panics
    /// Where lengths do not go together, activations are of the wrong type or [`Device::takes`] says no.
    pub fn begin<'a>(&self, products: Vec<Product<'a>>) -> Result<Pending<'a>, DeviceError> {
        for Product { matrix, .. } in &products {
            assert!(self.takes(matrix.ty(), matrix.cols), "{} x {}", matrix.ty(), matrix.cols);
        }
        self.begin_untested(products)
    }

    /// The same for formats that are still to be tested.
    pub(super) fn begin_untested<'a>(&self, products: Vec<Product<'a>>) -> Result<Pending<'a>, DeviceError> {
        products.iter().for_each(Product::check);
        let mut scratch = self.scratches.take();
        let inputs = stage(&products, &mut scratch.staged);
        let outputs: usize = products.iter().map(|product| product.out.len()).sum();
        self.countable([scratch.staged.len(), outputs * size_of::<f32>()])?;
        if outputs > 0 {
            grow(&self.driver, &mut scratch.inputs, scratch.staged.len())?;
            grow(&self.driver, &mut scratch.outputs, outputs * size_of::<f32>())?;
        }
        if let (Some(from), Some(to)) = (&scratch.inputs, &scratch.outputs)
            && outputs > 0
        {
            self.driver.write(Queue::Compute, from.handle(), 0, &scratch.staged)?;
            let mut out_at = 0;
            for (product, input) in products.iter().zip(inputs) {
                product.matrix.launch(&*self.driver, product.x.rows(), (from, input), (to, out_at))?;
                out_at += product.out.len();
            }
        }
        let (driver, scratches) = (self.driver.clone(), self.scratches.clone());
        let outs = products.into_iter().map(|product| product.out).collect();
        Ok(Pending { driver, scratches, scratch, outs })
    }

    /// Begins to compute one product with rows `tokens` of what is on the device already, to `out`,
    /// `[tokens][rows]`, which stays there too.
    ///
    /// # Errors
    /// A device that is lost, or whose kernels cannot count so much.
    ///
    /// # Panics
    /// As [`Device::begin`].
    pub fn multiply(
        &self,
        matrix: &DeviceMatrix,
        x: &DeviceActivations,
        tokens: Range<usize>,
        out: &DeviceSlice,
    ) -> Result<(), DeviceError> {
        assert!(self.takes(matrix.ty(), matrix.cols), "{} x {}", matrix.ty(), matrix.cols);
        assert_eq!(x.ty(), matrix.format.activation, "activations for {}", matrix.ty());
        assert!(x.cols() == matrix.cols && tokens.end <= x.rows(), "{} rows of {}", x.rows(), x.cols());
        assert_eq!(Some(out.len()), tokens.len().checked_mul(matrix.rows), "room for the output");
        let ((inputs, at), (outputs, out_at)) = (x.memory(), out.memory());
        self.countable([inputs.bytes(), outputs.bytes()])?;
        let a_token = x.row_words();
        let at = [0, 1, 2].map(|i| at[i] + tokens.start * a_token[i]);
        let input = Input { at, a_token };
        matrix.launch(&*self.driver, tokens.len(), (inputs, input), (outputs, out_at))
    }

    /// Kernels count words in 32 bits.
    fn countable(&self, sizes: [usize; 2]) -> Result<(), DeviceError> {
        match sizes.into_iter().find(|bytes| bytes / size_of::<f32>() > u32::MAX as usize) {
            Some(bytes) => {
                let device = self.info().name.clone();
                Err(DeviceError::OutOfMemory { device, bytes: bytes as u64 })
            }
            None => Ok(()),
        }
    }
}

impl Product<'_> {
    fn check(&self) {
        let Product { matrix, x, out } = self;
        assert_eq!(x.ty(), matrix.format.activation, "activations for {}", matrix.ty());
        assert!(
            x.rows() == 0 || x.cols() == matrix.cols,
            "{} activations, {} weights",
            x.cols(),
            matrix.cols
        );
        assert_eq!(Some(out.len()), x.rows().checked_mul(matrix.rows), "room for the output");
    }
}

impl DeviceMatrix {
    /// Launches the kernels of a product with so many tokens, in parts that one launch takes.
    fn launch(
        &self,
        driver: &dyn Driver,
        tokens: usize,
        (inputs, input): (&Memory, Input),
        (outputs, out_at): (&Memory, usize),
    ) -> Result<(), DeviceError> {
        let template = template(self.format);
        let all = tokens;
        for token in (0..all).step_by(MOST_TOKENS) {
            let tokens = MOST_TOKENS.min(all - token);
            let tiled = tokens >= template.tiled_from;
            let (task, lanes, [group_rows, group_tokens]) = match tiled {
                true => (Task::Tile, TILE_LANES, template.tile),
                false => (Task::Dot, DOT_LANES, [DOT_ROWS, template.dot_tokens]),
            };
            let kernel = &kernel(task, self.ty());
            let [qs_at, d_at, sums_at] = [0, 1, 2].map(|i| input.at[i] + token * input.a_token[i]);
            for row in (0..self.rows).step_by(MOST_ROWS) {
                let rows = MOST_ROWS.min(self.rows - row);
                let matrix_at = self.offset + row * self.format.row_bytes(self.cols);
                let args = [
                    Arg::Memory(&self.memory),
                    Arg::U64(matrix_at as u64),
                    Arg::Memory(inputs),
                    Arg::U32(qs_at as u32),
                    Arg::U32(d_at as u32),
                    Arg::U32(sums_at as u32),
                    Arg::Memory(outputs),
                    Arg::U32((out_at + token * self.rows + row) as u32),
                    Arg::U32(self.rows as u32),
                    Arg::U32(rows as u32),
                    Arg::U32(tokens as u32),
                    Arg::U32(self.cols as u32),
                ];
                let groups = [rows.div_ceil(group_rows), tokens.div_ceil(group_tokens)].map(|n| n as u32);
                driver.launch(&Launch { kernel, groups, lanes, args: &args })?;
            }
        }
        Ok(())
    }
}

/// Puts each distinct input of products into `staged`; where that of each product is.
fn stage(products: &[Product<'_>], staged: &mut Vec<u8>) -> Vec<Input> {
    staged.clear();
    let mut seen: Vec<(&Activations, Input)> = Vec::new();
    let mut inputs = Vec::with_capacity(products.len());
    for product in products {
        let known = seen.iter().find(|(x, _)| std::ptr::eq(*x, product.x)).map(|(_, input)| *input);
        inputs.push(known.unwrap_or_else(|| {
            let input = stage_one(product.x, staged);
            seen.push((product.x, input));
            input
        }));
    }
    inputs
}

fn stage_one(x: &Activations, staged: &mut Vec<u8>) -> Input {
    let mut input = Input::default();
    let mut part = |i: usize, pieces: &mut dyn Iterator<Item = &[u8]>| {
        staged.resize(staged.len().next_multiple_of(INPUT_ALIGNMENT), 0);
        let at = staged.len();
        pieces.for_each(|bytes| staged.extend_from_slice(bytes));
        input.at[i] = at / size_of::<f32>();
        input.a_token[i] = (staged.len() - at) / size_of::<f32>() / x.rows().max(1);
    };
    if x.ty().is_quantised() {
        let arrays = x.arrays();
        part(0, &mut std::iter::once(arrays.qs.as_bytes()));
        part(1, &mut std::iter::once(arrays.d.as_bytes()));
        // Whichever sums the weights' mins are for.
        let sums = if arrays.s.is_empty() { arrays.bsums.as_bytes() } else { arrays.s.as_bytes() };
        part(2, &mut std::iter::once(sums));
    } else {
        part(0, &mut (0..x.rows()).map(|t| x.row(t).floats(x.ty()).as_bytes()));
        part(1, &mut std::iter::empty());
        part(2, &mut std::iter::empty());
    }
    input
}

/// Sees to it that memory is there, and of so many bytes at least.
fn grow(driver: &Arc<dyn Driver>, memory: &mut Option<Memory>, bytes: usize) -> Result<(), DeviceError> {
    if memory.as_ref().is_none_or(|memory| memory.bytes() < bytes) {
        *memory = None;
        *memory = Some(Memory::allocate(driver, bytes.next_multiple_of(GROWTH))?);
    }
    Ok(())
}

impl Pending<'_> {
    /// Waits, and writes all outputs. Where it fails they are open, and the CPU can compute them.
    ///
    /// # Errors
    /// A device that is lost or does not answer.
    pub fn finish(mut self) -> Result<(), DeviceError> {
        let Some(from) = &self.scratch.outputs else { return Ok(()) };
        let (handle, results) = (from.handle(), &mut self.scratch.results);
        if let [out] = &mut self.outs[..] {
            return self.driver.read(handle, 0, out.as_mut_bytes());
        }
        results.resize(self.outs.iter().map(|out| out.len()).sum(), 0.0);
        self.driver.read(handle, 0, results.as_mut_bytes())?;
        let mut at = 0;
        for out in &mut self.outs {
            out.copy_from_slice(&results[at..][..out.len()]);
            at += out.len();
        }
        Ok(())
    }
}

/// Its memory is used again: what is launched later comes later in the queue too.
impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.scratches.give_back(mem::take(&mut self.scratch));
    }
}

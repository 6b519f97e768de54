//! The test of a device's kernels, each time it is opened: what does not give the scalar code's bits is not
//! used.

use zerocopy::IntoBytes;

use super::source::{DECODE_LANES, Task, kernel, template};
use super::{Arg, Device, DeviceError, Launch, Memory, Product, Queue};
use crate::gguf::TensorType;
use crate::quant::testing::{KINDS, Kind, Random, difference, reference, weights};
use crate::quant::{Activations, FORMATS, Format};

/// What the test says of a format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub ty: TensorType,
    /// What was wrong; `None` where it is computed rightly.
    pub fault: Option<String>,
}

/// Tests the kernels of every format.
///
/// # Errors
/// [`DeviceError::Timeout`]: a device that hangs would hang for each format.
pub(super) fn run(device: &Device) -> Result<Vec<Verdict>, DeviceError> {
    let verdict = |format: &'static Format| {
        let fault = match fault(device, format) {
            Err(error @ DeviceError::Timeout { .. }) => return Err(error),
            Err(error) => Some(error.to_string()),
            Ok(fault) => fault,
        };
        Ok(Verdict { ty: format.ty, fault })
    };
    FORMATS.iter().map(verdict).collect()
}

/// Rows of each kind of bytes, and of ordinary ones to fill up more than one tile.
const ROWS_A_KIND: usize = 2;
const ROWS: usize = 67;
/// Enough for kernels of a few tokens and of many.
const TOKENS: [usize; 4] = [1, 3, 8, 18];

/// What is wrong with a format's kernels.
fn fault(device: &Device, format: &'static Format) -> Result<Option<String>, DeviceError> {
    let mut random = Random(2);
    // No whole number of what a tile or a chunk has.
    let cols = match format.ty.block_len() as usize {
        1 => 333,
        len => 1280 + len,
    };
    let mut bytes = Vec::new();
    for kind in KINDS {
        bytes.extend(weights(format, kind, ROWS_A_KIND, cols, &mut random));
    }
    let ordinary = ROWS - ROWS_A_KIND * KINDS.len();
    bytes.extend(weights(format, Kind::Ordinary, ordinary, cols, &mut random));
    let matrix = device.upload(Queue::Compute, format.ty, ROWS, cols, &bytes)?;

    let x = activations(format, cols, &mut random);
    let xs = TOKENS.map(|tokens| {
        let mut few = Activations::new();
        x.gather_into(&(0..tokens).collect::<Vec<_>>(), &mut few);
        few
    });
    let mut outs = TOKENS.map(|tokens| vec![0.0; tokens * ROWS]);
    let products = xs.iter().zip(&mut outs).map(|(x, out)| Product { matrix: &matrix, x, out });
    device.begin_untested(products.collect())?.finish()?;
    let want = reference(format, &bytes, ROWS, &x);
    for (out, tokens) in outs.iter().zip(TOKENS) {
        if let Some(at) = difference(out, &want[..out.len()]) {
            let (token, row) = (at / ROWS, at % ROWS);
            let (got, want) = (out[at], want[at]);
            return Ok(Some(format!(
                "product with token {token} of {tokens}, row {row}: {got:e}, scalar {want:e}"
            )));
        }
    }

    // The extreme kinds alone.
    let bytes = &bytes[..KINDS.len() * ROWS_A_KIND * format.row_bytes(cols)];
    let mut want = vec![0.0; KINDS.len() * ROWS_A_KIND * cols];
    (format.decode)(bytes, &mut want);
    let got = decoded(device, format, matrix.memory(), want.len())?;
    Ok(difference(&got, &want).map(|at| format!("element {at}: {:e}, scalar {:e}", got[at], want[at])))
}

/// Tokens of ordinary values, of the largest integers, with a block of zeros, of values near the ends of f16.
fn activations(format: &Format, cols: usize, random: &mut Random) -> Activations {
    let tokens = TOKENS[TOKENS.len() - 1];
    let mut values = random.activations(tokens * cols);
    for (token, row) in values.chunks_exact_mut(cols).enumerate() {
        match token {
            1 => row.iter_mut().for_each(|x| *x = if *x < 0.0 { -3.0 } else { 3.0 }),
            2 => row[..cols.min(256)].fill(0.0),
            3 => row.iter_mut().for_each(|x| *x *= 1e-6),
            4 => row.iter_mut().for_each(|x| *x *= 1e4),
            5 => row.iter_mut().for_each(|x| *x *= 1e-36),
            _ => {}
        }
    }
    let mut x = Activations::new();
    x.quantize(format.activation, &values, cols).expect("finite values");
    x
}

/// The first elements of weights, as the device decodes them.
fn decoded(
    device: &Device,
    format: &Format,
    weights: &Memory,
    elements: usize,
) -> Result<Vec<f32>, DeviceError> {
    let mut out = vec![0.0f32; elements];
    let to = device.allocate(size_of_val(&out[..]))?;
    let parts = (elements / template(format).decoded) as u32;
    let args = [Arg::Memory(weights), Arg::U64(0), Arg::Memory(&to), Arg::U32(parts)];
    let groups = [parts.div_ceil(DECODE_LANES), 1];
    let kernel = kernel(Task::Decode, format.ty);
    device.driver.launch(&Launch { kernel: &kernel, groups, lanes: DECODE_LANES, args: &args })?;
    device.driver.read(to.handle(), 0, out.as_mut_bytes())?;
    Ok(out)
}

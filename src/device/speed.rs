//! How fast a device reads weights.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Device, DeviceError, DeviceMatrix, Product};
use crate::gguf::TensorType;
use crate::quant::Activations;

/// Types whose weights are tried, the most common first.
const TYPES: [TensorType; 3] = [TensorType::Q4_K, TensorType::Q8_0, TensorType::F16];
const COLS: usize = 4096;
/// So long at least is measured.
const TIME: Duration = Duration::from_millis(20);
/// Bytes of weights at first and at most: more than caches hold.
const FIRST_BYTES: usize = 16 << 20;
const MOST_BYTES: usize = 256 << 20;

impl Device {
    /// Bytes of weights a second that products with a token read; `None` where it computes with none of the
    /// usual types.
    ///
    /// # Errors
    /// A device that fails.
    pub fn weights_speed(&self) -> Result<Option<f64>, DeviceError> {
        let Some(ty) = TYPES.into_iter().find(|ty| self.takes(*ty, COLS)) else { return Ok(None) };
        let mut bytes = FIRST_BYTES;
        loop {
            let (measured, time) = self.time_products(ty, bytes)?;
            if time >= TIME || 2 * bytes > MOST_BYTES {
                return Ok(Some(measured as f64 / time.as_secs_f64()));
            }
            bytes *= 2;
        }
    }

    /// The shortest of a few products of one matrix of about so many bytes; its bytes.
    fn time_products(&self, ty: TensorType, bytes: usize) -> Result<(usize, Duration), DeviceError> {
        let format = crate::quant::format(ty).expect("a format");
        let rows = bytes / format.row_bytes(COLS);
        let bytes = rows * format.row_bytes(COLS);
        // What is in it does not matter for the time.
        let matrix = DeviceMatrix::new(Arc::new(self.allocate(bytes)?), 0, ty, rows, COLS);
        let mut x = Activations::new();
        x.quantize(format.activation, &[1.0; COLS], COLS).expect("finite values");
        let mut out = vec![0.0; rows];
        let mut best = Duration::MAX;
        for _ in 0..4 {
            let start = Instant::now();
            self.begin(vec![Product { matrix: &matrix, x: &x, out: &mut out }])?.finish()?;
            best = best.min(start.elapsed());
        }
        Ok((bytes, best))
    }
}

//! Numbers for Python: as bytes, of which NumPy makes an array without a copy. So nothing here is built
//! against NumPy, and the package works without it.

use pyo3::prelude::*;
use pyo3::types::PyByteArray;
use zerocopy::IntoBytes;

use super::errors::Fault;
use crate::store::OutOfMemory;

/// Room for the product of `sizes` numbers, or an error in place of an abort.
pub fn room(sizes: [usize; 2], what: &'static str) -> Result<Vec<f32>, Fault> {
    let bytes = sizes.iter().fold(size_of::<f32>() as u128, |all, &n| all.saturating_mul(n as u128));
    let no_room = || Fault::of(OutOfMemory { bytes, what });
    let len = sizes[0].checked_mul(sizes[1]).ok_or_else(no_room)?;
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| no_room())?;
    Ok(values)
}

/// The numbers as little-endian bytes that Python may change.
pub fn bytes<'py>(py: Python<'py>, values: &[f32]) -> PyResult<Bound<'py, PyByteArray>> {
    let values = values.as_bytes();
    PyByteArray::new_with(py, values.len(), |bytes| {
        bytes.copy_from_slice(values);
        Ok(())
    })
}

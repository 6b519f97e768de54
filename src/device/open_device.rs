//! A device that computes: its driver, and which formats it computes rightly.

use std::sync::Arc;

use super::{DeviceError, DeviceInfo, DeviceMatrix, Driver, Memory, Queue};
use crate::gguf::TensorType;
use crate::quant::format;

/// An open device whose kernels were tested.
#[derive(Debug)]
pub struct Device {
    driver: Arc<dyn Driver>,
}

impl Device {
    /// Tests the kernels of a device.
    ///
    /// # Errors
    /// A device that is lost. A kernel that gives other bits than the scalar code is none: its format is not
    /// taken.
    pub fn new(driver: Arc<dyn Driver>) -> Result<Device, DeviceError> {
        Ok(Device { driver })
    }

    pub fn info(&self) -> &DeviceInfo {
        self.driver.info()
    }

    /// Whether weights of this type, in rows of so many elements, can be computed with here.
    pub fn takes(&self, ty: TensorType, cols: usize) -> bool {
        format(ty).is_some() && cols > 0 && (cols as u64).is_multiple_of(ty.block_len())
    }

    /// Memory of so many bytes, whose content is open.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or that the device is lost.
    pub fn allocate(&self, bytes: usize) -> Result<Memory, DeviceError> {
        let handle = self.driver.allocate(bytes)?;
        Ok(Memory { driver: self.driver.clone(), handle, bytes })
    }

    /// Copies bytes into memory.
    ///
    /// # Errors
    /// As [`Driver::write`].
    ///
    /// # Panics
    /// Where they do not fit.
    pub fn write(&self, queue: Queue, to: &Memory, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        assert!(at <= to.bytes && bytes.len() <= to.bytes - at, "{} bytes at {at}", bytes.len());
        self.driver.write(queue, to.handle, at, bytes)
    }

    /// Copies weights to memory of their own.
    ///
    /// # Errors
    /// As [`Device::allocate`] and [`Device::write`].
    ///
    /// # Panics
    /// As [`DeviceMatrix::new`]; where the bytes are not those of the matrix.
    pub fn upload(
        &self,
        queue: Queue,
        ty: TensorType,
        rows: usize,
        cols: usize,
        bytes: &[u8],
    ) -> Result<DeviceMatrix, DeviceError> {
        let memory = self.allocate(bytes.len())?;
        self.write(queue, &memory, 0, bytes)?;
        Ok(DeviceMatrix::new(Arc::new(memory), 0, ty, rows, cols))
    }
}

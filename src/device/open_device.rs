//! A device that computes: its driver, what it computes rightly, and memory for what goes there and
//! back.

use std::sync::{Arc, Mutex, PoisonError};

use super::self_test::{self, Verdict};
use super::{DeviceError, DeviceInfo, DeviceMatrix, DeviceOps, Driver, Memory, Queue};
use crate::gguf::TensorType;

/// An open device whose kernels were tested.
#[derive(Debug)]
pub struct Device {
    pub(super) driver: Arc<dyn Driver>,
    pub(super) scratches: Arc<Scratches>,
    verdicts: Vec<Verdict>,
    ops: Option<DeviceOps>,
}

/// Memory of batches that are done, for those to come.
#[derive(Debug, Default)]
pub(super) struct Scratches(Mutex<Vec<Scratch>>);

/// What a batch's inputs and outputs go through.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub inputs: Option<Memory>,
    pub outputs: Option<Memory>,
    /// On this side.
    pub staged: Vec<u8>,
    pub results: Vec<f32>,
}

impl Scratches {
    pub(super) fn take(&self) -> Scratch {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub(super) fn give_back(&self, scratch: Scratch) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(scratch);
    }
}

impl Device {
    /// Tests the kernels of a device that was opened with [`super::source()`].
    ///
    /// # Errors
    /// A device that does not answer. A kernel that gives other bits than the scalar code, or none, is no
    /// error: its format is not taken.
    pub fn new(driver: Arc<dyn Driver>) -> Result<Device, DeviceError> {
        let mut device = Device { driver, scratches: Arc::default(), verdicts: Vec::new(), ops: None };
        device.verdicts = self_test::run(&device)?;
        device.ops = match DeviceOps::new(device.driver.clone()) {
            Err(error @ (DeviceError::Timeout { .. } | DeviceError::Lost { .. })) => return Err(error),
            ops => ops.ok(),
        };
        Ok(device)
    }

    pub fn info(&self) -> &DeviceInfo {
        self.driver.info()
    }

    /// The operations other than products, which were tested; `None` where it has no memory even for them.
    pub fn ops(&self) -> Option<&DeviceOps> {
        self.ops.as_ref()
    }

    /// What the test said of each format.
    pub fn verdicts(&self) -> &[Verdict] {
        &self.verdicts
    }

    /// Whether weights of this type, in rows of so many elements, can be computed with here.
    pub fn takes(&self, ty: TensorType, cols: usize) -> bool {
        let passed = |verdict: &Verdict| verdict.ty == ty && verdict.fault.is_none();
        let whole = cols > 0 && (cols as u64).is_multiple_of(ty.block_len());
        // Kernels count in 32 bits.
        whole && u32::try_from(cols).is_ok() && self.verdicts.iter().any(passed)
    }

    /// Memory of so many bytes, or a few more, whose content is open.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or that the device is lost.
    pub fn allocate(&self, bytes: usize) -> Result<Memory, DeviceError> {
        Memory::allocate(&self.driver, bytes.next_multiple_of(DeviceMatrix::END_ALIGNMENT))
    }

    /// Copies bytes into memory.
    ///
    /// # Errors
    /// As [`Driver::write`].
    pub fn write(&self, queue: Queue, to: &Memory, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.driver.write(queue, to.handle(), at, bytes)
    }

    /// Copies weights to memory of their own.
    ///
    /// # Errors
    /// As [`Device::allocate`] and [`Device::write`].
    ///
    /// # Panics
    /// As [`DeviceMatrix::new`].
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

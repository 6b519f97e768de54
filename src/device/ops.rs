//! The operations of a forward pass other than products with weights, on a device: those of
//! [`Ops`](crate::kernels::ops::Ops) under the same names, with the same bits. Operands are ranges of the
//! device's memory; nothing waits, so that whole layers run without the host.
//!
//! Lengths are asserted: a wrong one is a mistake of the caller, not of a file.

mod attention;
mod delta;
mod elements;
mod recurrent;
mod rounding;
mod router;
mod rows;
pub(super) mod self_test;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Arg, DeviceError, Driver, Launch, Memory, Queue};
use crate::kernels::ops::gelu_table;

pub(super) use attention::MOST_KEY_LEN;
pub use attention::{DeviceKvPages, KvKind, KvLayout};
pub use delta::{DeviceDeltaRule, MOST_DELTA_LEN};
pub(super) use recurrent::MOST_STATE_LEN;
pub use recurrent::{DeviceConv, DeviceScan};
pub use rounding::DeviceActivations;
pub use rows::DeviceRopeTable;
pub use self_test::OpVerdict;

/// As in the source's `ops_elements.cl`.
const OPS_LANES: usize = 256;
/// Elements of a call at most: kernels count them in 32 bits.
const MOST_ELEMENTS: usize = 1 << 31;

/// The operations of one device.
#[derive(Debug)]
pub struct DeviceOps {
    driver: Arc<dyn Driver>,
    /// GELU of each f16.
    gelu: Memory,
    /// What attention keeps from one kernel to the next; whoever launches what fills it launches what reads
    /// it.
    scratch: Mutex<Option<Arc<Memory>>>,
    verdicts: Vec<OpVerdict>,
}

/// Some consecutive values of four bytes each, f32 or u32, in a device's memory.
#[derive(Clone, Debug)]
pub struct DeviceSlice {
    memory: Arc<Memory>,
    at: usize,
    len: usize,
}

impl DeviceSlice {
    /// `len` values from value `at` on.
    ///
    /// # Panics
    /// Where the memory has not got them.
    pub fn new(memory: Arc<Memory>, at: usize, len: usize) -> DeviceSlice {
        let end = at.checked_add(len).and_then(|end| end.checked_mul(size_of::<f32>()));
        assert!(end.is_some_and(|end| end <= memory.bytes()), "{len} values at {at} of {}", memory.bytes());
        DeviceSlice { memory, at, len }
    }

    /// A part of it.
    ///
    /// # Panics
    /// Where it has not got it.
    pub fn part(&self, at: usize, len: usize) -> DeviceSlice {
        assert!(at <= self.len && len <= self.len - at, "{len} values at {at} of {}", self.len);
        DeviceSlice { memory: self.memory.clone(), at: self.at + at, len }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it lies, and its first value there.
    pub fn memory(&self) -> (&Arc<Memory>, usize) {
        (&self.memory, self.at)
    }

    fn args(&self) -> [Arg<'_>; 2] {
        [Arg::Memory(&self.memory), Arg::U64(self.at as u64)]
    }
}

impl DeviceOps {
    /// The operations of a device that was opened with [`super::source()`]; all are tested.
    ///
    /// # Errors
    /// A device that does not answer. A kernel that gives other bits than the scalar code, or none, is no
    /// error: see [`DeviceOps::has`].
    pub(super) fn new(driver: Arc<dyn Driver>) -> Result<DeviceOps, DeviceError> {
        let table = gelu_table().as_bytes();
        let gelu = Memory::allocate(&driver, table.len())?;
        driver.write(Queue::Compute, gelu.handle(), 0, table)?;
        let mut ops = DeviceOps { driver, gelu, scratch: Mutex::default(), verdicts: Vec::new() };
        ops.verdicts = self_test::run(&ops)?;
        Ok(ops)
    }

    /// What the test said of each operation.
    pub fn verdicts(&self) -> &[OpVerdict] {
        &self.verdicts
    }

    /// Whether the operation of this name is computed rightly here.
    pub fn has(&self, name: &str) -> bool {
        self.verdicts.iter().any(|verdict| verdict.name == name && verdict.fault.is_none())
    }

    /// Memory for so many values, which are open.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or that the device is lost.
    pub fn allocate(&self, len: usize) -> Result<DeviceSlice, DeviceError> {
        let bytes = len.checked_mul(size_of::<f32>()).ok_or_else(|| DeviceError::OutOfMemory {
            device: self.driver.info().name.clone(),
            bytes: u64::MAX,
        })?;
        Ok(DeviceSlice::new(Arc::new(Memory::allocate(&self.driver, bytes)?), 0, len))
    }

    /// Copies values to memory of their own.
    ///
    /// # Errors
    /// As [`DeviceOps::allocate`] and [`DeviceOps::write`].
    pub fn upload<T: IntoBytes + Immutable>(&self, values: &[T]) -> Result<DeviceSlice, DeviceError> {
        let slice = self.allocate(values.len())?;
        self.write(&slice, values)?;
        Ok(slice)
    }

    /// Copies values, for what is launched afterwards.
    ///
    /// # Errors
    /// A device that is lost or does not answer.
    pub fn write<T: IntoBytes + Immutable>(&self, to: &DeviceSlice, values: &[T]) -> Result<(), DeviceError> {
        assert!(size_of::<T>() == 4 && values.len() == to.len, "{} values for {}", values.len(), to.len);
        self.driver.write(Queue::Compute, to.memory.handle(), to.at * 4, values.as_bytes())
    }

    /// Waits for what was launched, and copies values back.
    ///
    /// # Errors
    /// A device that is lost or does not answer.
    pub fn read<T: IntoBytes + FromBytes>(
        &self,
        from: &DeviceSlice,
        into: &mut [T],
    ) -> Result<(), DeviceError> {
        assert!(size_of::<T>() == 4 && into.len() == from.len, "{} values for {}", from.len, into.len());
        self.driver.read(from.memory.handle(), from.at * 4, into.as_mut_bytes())
    }

    /// Runs a kernel, unless there is nothing to do.
    fn run(
        &self,
        kernel: &str,
        groups: [usize; 2],
        lanes: usize,
        args: &[Arg<'_>],
    ) -> Result<(), DeviceError> {
        if groups.contains(&0) {
            return Ok(());
        }
        let groups = groups.map(number);
        self.driver.launch(&Launch { kernel, groups, lanes: lanes as u32, args })
    }

    /// Runs a kernel with a lane an element.
    fn run_each(&self, kernel: &str, elements: usize, args: &[Arg<'_>]) -> Result<(), DeviceError> {
        assert!(elements <= MOST_ELEMENTS, "{elements} elements");
        self.run(kernel, [elements.div_ceil(OPS_LANES), 1], OPS_LANES, args)
    }
}

/// What kernels count in 32 bits.
fn number(n: usize) -> u32 {
    u32::try_from(n).expect("sizes of a pass fit 32 bits")
}

fn count(n: usize) -> Arg<'static> {
    Arg::U32(number(n))
}

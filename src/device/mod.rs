//! DEVICE: graphics cards. Their drivers are loaded at run time, so that the program builds and runs without
//! any; our kernels on them give scalar's bits.
//!
//! A [`Driver`] is an open device behind one interface, whatever API it is reached by: memory, copies and
//! launches of kernels that were compiled from our source. [`Device`] is what the rest of the program works
//! with. A device that fails, in whatever way, is an error that the caller answers by computing on the CPU:
//! nothing of a model is on a device alone.

mod backend;
mod choose;
mod cuda;
mod faulty;
mod line;
mod list;
mod nvrtc;
mod open;
mod open_device;
mod opencl;
mod ops;
#[cfg(test)]
mod product_tests;
mod products;
mod programs;
mod self_test;
mod source;
mod speed;
#[cfg(test)]
mod tests;

use std::fmt::{self, Debug, Display, Formatter};
use std::sync::Arc;

use thiserror::Error;

pub use choose::{open, open_best};
pub use list::{DEADLINE, Found, devices};
pub use open_device::Device;
pub use ops::{
    DeviceActivations, DeviceConv, DeviceDeltaRule, DeviceKvPages, DeviceOps, DeviceRopeTable, DeviceScan,
    DeviceSlice, KvKind, KvLayout, MOST_DELTA_LEN, OpVerdict,
};
pub use products::{DeviceMatrix, Pending, Product};
pub use programs::Programs;
pub use self_test::Verdict;
pub use source::source;
#[cfg(test)]
pub(crate) use tests::driver_for_kernels;

/// By which API a device is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Api {
    OpenCl,
    Cuda,
}

impl Api {
    pub fn name(self) -> &'static str {
        match self {
            Api::OpenCl => "OpenCL",
            Api::Cuda => "CUDA",
        }
    }
}

/// What a device says of itself.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    pub api: Api,
    /// As its driver names it.
    pub name: String,
    /// The driver, with its version.
    pub driver: String,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Bytes that one allocation may have.
    pub most_allocated_bytes: u64,
    /// Whether its memory is the CPU's.
    pub shares_memory: bool,
    /// Whether it is a CPU that runs kernels.
    pub is_cpu: bool,
    /// Where it sits, as far as its driver tells.
    pub pci: Option<PciPlace>,
    /// Why our kernels cannot run on it.
    pub unfit: Option<String>,
}

/// Where a card sits; its function does not tell cards apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciPlace {
    pub domain: u32,
    pub bus: u32,
    pub device: u32,
}

impl Display for PciPlace {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}", self.domain, self.bus, self.device)
    }
}

/// Why a device did not do something.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// No driver, or none that can be used.
    #[error("no driver: {0}")]
    NoDriver(String),
    #[error("there is no device {number}")]
    NoSuchDevice { number: usize },
    #[error("{device}: kernels do not compile: {log}")]
    Build { device: String, log: String },
    #[error("{device}: no memory for {bytes} bytes")]
    OutOfMemory { device: String, bytes: u64 },
    /// It did not answer in time.
    #[error("{device}: no answer within {seconds} s")]
    Timeout { device: String, seconds: u64 },
    /// It is gone, or its driver says something that nobody expects.
    #[error("{device}: {what}: {error}")]
    Lost { device: String, what: &'static str, error: String },
}

/// An allocation, as its driver knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(pub u64);

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    Memory(&'a Memory),
    U32(u32),
    U64(u64),
    F32(f32),
}

/// A kernel to be run by `groups` groups of `lanes` work items each.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    pub kernel: &'a str,
    pub groups: [u32; 2],
    pub lanes: u32,
    pub args: &'a [Arg<'a>],
}

/// In which order things are done: what is in one queue in turn, two queues beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    Compute,
    /// Copies of weights under way while something else is computed.
    Copies,
}

/// An open device. All of it may be called from any thread.
pub trait Driver: Send + Sync + Debug {
    fn info(&self) -> &DeviceInfo;

    /// # Errors
    /// [`DeviceError::OutOfMemory`], or that the device is lost.
    fn allocate(&self, bytes: usize) -> Result<Handle, DeviceError>;

    /// Frees an allocation, behind what is under way.
    fn free(&self, handle: Handle);

    /// Copies bytes to the device. They may be changed as soon as this returns; of [`Queue::Copies`] they are
    /// there as soon as this returns, of [`Queue::Compute`] for what is launched afterwards.
    ///
    /// # Errors
    /// A device that is lost or does not answer.
    fn write(&self, queue: Queue, to: Handle, at: usize, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Waits for what was launched and copies bytes from the device.
    ///
    /// # Errors
    /// A device that is lost or does not answer.
    fn read(&self, from: Handle, at: usize, into: &mut [u8]) -> Result<(), DeviceError>;

    /// Begins to run a kernel.
    ///
    /// # Errors
    /// A device that is lost; a kernel that it does not have.
    fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError>;
}

/// Memory on a device; freed when dropped.
#[derive(Debug)]
pub struct Memory {
    driver: Arc<dyn Driver>,
    handle: Handle,
    bytes: usize,
}

impl Memory {
    /// Memory of so many bytes; what is in it is anything.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or that the device is lost.
    pub fn allocate(driver: &Arc<dyn Driver>, bytes: usize) -> Result<Memory, DeviceError> {
        Ok(Memory { driver: driver.clone(), handle: driver.allocate(bytes)?, bytes })
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn handle(&self) -> Handle {
        self.handle
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.driver.free(self.handle);
    }
}

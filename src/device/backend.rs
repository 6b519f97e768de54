//! What must be there of an API for [`super::open::Open`] to be a driver by it. Deadlines, staging, freeing
//! and the names of kernels are the same for all, and there.

use super::{DeviceInfo, Queue};

/// Why an API did not do something.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    OutOfMemory,
    /// There is no such kernel, or it cannot be launched so; the device is as good as before.
    Refused(String),
    /// The device is lost.
    Failed {
        what: &'static str,
        error: String,
    },
}

/// An argument of a kernel.
pub(super) enum Value<'a, B> {
    Buffer(&'a B),
    U32(u32),
    U64(u64),
    F32(f32),
}

impl<B> Value<'_, B> {
    /// A number's bytes, as the kernel takes them.
    pub(super) fn number(&self) -> Option<([u8; 8], usize)> {
        let mut bytes = [0; 8];
        let len = match self {
            Value::Buffer(_) => return None,
            Value::U32(v) => {
                bytes[..4].copy_from_slice(&v.to_ne_bytes());
                4
            }
            Value::U64(v) => {
                bytes.copy_from_slice(&v.to_ne_bytes());
                8
            }
            Value::F32(v) => {
                bytes[..4].copy_from_slice(&v.to_ne_bytes());
                4
            }
        };
        Some((bytes, len))
    }
}

/// How often a kernel runs.
pub(super) struct Grid {
    pub groups: [u32; 2],
    pub lanes: u32,
}

/// An open device. What is enqueued in one queue is done in turn. Nothing waits for the device but `stage`,
/// `allocate` and dropping, which is left undone where the device hangs.
pub(super) trait Backend: Send + Sync {
    /// Of the device's memory; freed when dropped.
    type Buffer: Send + Sync;
    /// When something that was enqueued is done.
    type Event: Send + Sync;
    type Kernel: Send + Sync;
    /// Memory of the host that the device copies from and to; freed when dropped.
    type Stage: Stage;

    fn info(&self) -> &DeviceInfo;

    fn allocate(&self, bytes: usize) -> Result<Self::Buffer, Fault>;

    /// Enqueues what makes the driver really allocate a buffer: some do so at its first use.
    fn touch(&self, buffer: &Self::Buffer) -> Result<Self::Event, Fault>;

    fn stage(&self, bytes: usize) -> Result<Self::Stage, Fault>;

    /// Enqueues a copy to the device.
    ///
    /// # Safety
    /// `from` has so many bytes, which stay as they are until the event has come; the buffer has them too.
    unsafe fn write(
        &self,
        queue: Queue,
        to: &Self::Buffer,
        at: usize,
        from: *const u8,
        bytes: usize,
    ) -> Result<Self::Event, Fault>;

    /// Enqueues a copy from the device, in [`Queue::Compute`].
    ///
    /// # Safety
    /// `into` has so many bytes, which nobody looks at until the event has come; the buffer has them too.
    unsafe fn read(
        &self,
        from: &Self::Buffer,
        at: usize,
        into: *mut u8,
        bytes: usize,
    ) -> Result<Self::Event, Fault>;

    fn kernel(&self, name: &str) -> Result<Self::Kernel, Fault>;

    /// Enqueues a kernel, in [`Queue::Compute`]. Of one kernel only one thread calls it at a time.
    fn launch(
        &self,
        kernel: &Self::Kernel,
        grid: &Grid,
        args: &[Value<'_, Self::Buffer>],
    ) -> Result<Self::Event, Fault>;

    /// Sees to it that what is enqueued begins.
    fn flush(&self, queue: Queue) -> Result<(), Fault>;

    fn is_done(&self, event: &Self::Event) -> Result<bool, Fault>;
}

/// Memory of the host that the device copies from and to.
pub(super) trait Stage: Send + Sync {
    fn start(&self) -> *mut u8;

    fn bytes(&self) -> usize;
}

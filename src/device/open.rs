//! A driver by any API: what it adds is the same for all. No wait is longer than the deadline, and a device
//! that did not answer or failed once is not asked again; copies go through memory that is the driver's, so
//! that a device that answers late harms nobody; an allocation is freed behind what is under way.

use std::collections::HashMap;
use std::fmt::{self, Debug, Formatter};
use std::mem::{self, ManuallyDrop};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use super::backend::{Backend, Fault, Grid, Value};
use super::line::{Line, Wait};
use super::{Arg, DeviceError, DeviceInfo, Driver, Handle, Launch, Queue};

/// Bytes that copies of a queue go through: half of them at a time.
const COMPUTE_STAGE: usize = 4 << 20;
const COPIES_STAGE: usize = 16 << 20;

/// An allocation is never smaller, so that there is something to touch.
const LEAST_ALLOCATED: usize = 16;

/// Handles are of one device alone.
static NEXT_HANDLE: AtomicU64 = AtomicU64::new(1);

pub(super) struct Open<A: Backend> {
    /// Left as it is where the device hangs: to release anything might wait for it forever, and it may still
    /// copy from and to the stages.
    parts: ManuallyDrop<Parts<A>>,
    deadline: Duration,
    /// Bytes of all allocations.
    allocated: AtomicU64,
    /// What it failed by.
    failed: OnceLock<DeviceError>,
}

struct Parts<A: Backend> {
    buffers: RwLock<HashMap<Handle, Allocation<A>>>,
    compute: Mutex<Compute<A>>,
    copies: Mutex<Line<A>>,
    /// The last, so that it is dropped the last.
    api: A,
}

struct Compute<A: Backend> {
    line: Line<A>,
    kernels: HashMap<String, A::Kernel>,
}

struct Allocation<A: Backend> {
    buffer: Arc<A::Buffer>,
    bytes: usize,
}

// Not derived, which would ask it of `A` too.
impl<A: Backend> Clone for Allocation<A> {
    fn clone(&self) -> Allocation<A> {
        Allocation { buffer: self.buffer.clone(), bytes: self.bytes }
    }
}

impl<A: Backend> Open<A> {
    /// # Errors
    /// Where there is no memory for the stages.
    pub(super) fn new(api: A, deadline: Duration) -> Result<Open<A>, DeviceError> {
        let stage = |bytes| api.stage(bytes).map_err(|fault| error(api.info(), fault, bytes as u64));
        let compute = Line::new(stage(COMPUTE_STAGE)?, deadline);
        let copies = Line::new(stage(COPIES_STAGE)?, deadline);
        let parts = Parts {
            buffers: RwLock::default(),
            compute: Mutex::new(Compute { line: compute, kernels: HashMap::new() }),
            copies: Mutex::new(copies),
            api,
        };
        Ok(Open {
            parts: ManuallyDrop::new(parts),
            deadline,
            allocated: AtomicU64::new(0),
            failed: OnceLock::new(),
        })
    }

    fn check(&self) -> Result<(), DeviceError> {
        match self.failed.get() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// What a wait's end means; where the device is lost, it stays so.
    fn failure(&self, wait: Wait, bytes: usize) -> DeviceError {
        let lost = match wait {
            Wait::Timeout => {
                DeviceError::Timeout { device: self.info().name.clone(), seconds: self.deadline.as_secs() }
            }
            Wait::Fault(fault @ Fault::Failed { .. }) => error(self.info(), fault, bytes as u64),
            Wait::Fault(fault) => return error(self.info(), fault, bytes as u64),
        };
        self.failed.get_or_init(|| lost).clone()
    }

    /// The allocation, which has `bytes` at `at`.
    fn allocation(&self, handle: Handle, at: usize, bytes: usize) -> Result<Allocation<A>, DeviceError> {
        let buffers = self.parts.buffers.read().unwrap_or_else(PoisonError::into_inner);
        let found = buffers.get(&handle).cloned();
        drop(buffers);
        let within =
            |allocation: &Allocation<A>| at.checked_add(bytes).is_some_and(|end| end <= allocation.bytes);
        found.filter(within).ok_or_else(|| {
            let error = format!("{bytes} bytes at {at} of an allocation that has not got them");
            DeviceError::Lost { device: self.info().name.clone(), what: "copy", error }
        })
    }

    fn write_part(
        &self,
        line: &mut Line<A>,
        queue: Queue,
        to: &A::Buffer,
        at: usize,
        bytes: &[u8],
    ) -> Result<(), Wait> {
        let api = &self.parts.api;
        let part = line.take_part(api, bytes.len())?;
        let start = line.start(&part);
        // SAFETY: the part has as many bytes, and nobody else's; the stage stays for as long as the event has
        // not come, the range was checked by the caller.
        let event = unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len());
            api.write(queue, to, at, start, bytes.len())?
        };
        line.push_copy(&part, event);
        Ok(api.flush(queue)?)
    }

    fn read_part(
        &self,
        line: &mut Line<A>,
        from: &A::Buffer,
        at: usize,
        into: &mut [u8],
    ) -> Result<(), Wait> {
        let api = &self.parts.api;
        let part = line.take_part(api, into.len())?;
        let start = line.start(&part);
        // SAFETY: as in `write_part`.
        let event = unsafe { api.read(from, at, start, into.len())? };
        line.push_copy(&part, event);
        api.flush(Queue::Compute)?;
        line.wait(api)?;
        // SAFETY: the copy is done, and the part is nobody else's while the line is ours.
        unsafe { ptr::copy_nonoverlapping(start, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn allocate_now(&self, bytes: usize) -> Result<A::Buffer, Wait> {
        let api = &self.parts.api;
        let buffer = api.allocate(bytes)?;
        let mut line = lock(&self.parts.copies);
        let event = api.touch(&buffer)?;
        let touched = line.push(api, event).and_then(|()| Ok(api.flush(Queue::Copies)?));
        if let Err(wait) = touched.and_then(|()| line.wait(api)) {
            if !matches!(wait, Wait::Fault(Fault::OutOfMemory)) {
                mem::forget(buffer); // to free it might wait forever
            }
            return Err(wait);
        }
        Ok(buffer)
    }

    /// An allocation that is within the device's memory, as far as we know.
    fn allocate_counted(&self, bytes: usize) -> Result<Handle, DeviceError> {
        let mut buffer = self.allocate_now(bytes.max(LEAST_ALLOCATED));
        if let Err(Wait::Fault(Fault::OutOfMemory)) = buffer {
            // Of what was freed, some may wait for launches.
            lock(&self.parts.compute).line.wait(&self.parts.api).map_err(|wait| self.failure(wait, bytes))?;
            buffer = self.allocate_now(bytes.max(LEAST_ALLOCATED));
        }
        let buffer = Arc::new(buffer.map_err(|wait| self.failure(wait, bytes))?);
        let handle = Handle(NEXT_HANDLE.fetch_add(1, Ordering::Relaxed));
        let mut buffers = self.parts.buffers.write().unwrap_or_else(PoisonError::into_inner);
        buffers.insert(handle, Allocation { buffer, bytes });
        Ok(handle)
    }

    fn launch_now(&self, launch: &Launch<'_>, buffers: &[Option<Allocation<A>>]) -> Result<(), Wait> {
        let api = &self.parts.api;
        let values = launch.args.iter().zip(buffers).map(|(arg, allocation)| match (arg, allocation) {
            (_, Some(allocation)) => Ok(Value::Buffer(&*allocation.buffer)),
            (&Arg::U32(v), _) => Ok(Value::U32(v)),
            (&Arg::U64(v), _) => Ok(Value::U64(v)),
            (&Arg::F32(v), _) => Ok(Value::F32(v)),
            (Arg::Memory(_), None) => Err(Fault::Refused("memory of another device".to_owned())),
        });
        let values = values.collect::<Result<Vec<_>, _>>()?;
        let mut compute = lock(&self.parts.compute);
        let Compute { line, kernels } = &mut *compute;
        if !kernels.contains_key(launch.kernel) {
            kernels.insert(launch.kernel.to_owned(), api.kernel(launch.kernel)?);
        }
        let grid = Grid { groups: launch.groups, lanes: launch.lanes };
        let event = api.launch(&kernels[launch.kernel], &grid, &values)?;
        line.push(api, event)?;
        Ok(api.flush(Queue::Compute)?)
    }
}

impl<A: Backend> Driver for Open<A> {
    fn info(&self) -> &DeviceInfo {
        self.parts.api.info()
    }

    fn allocate(&self, bytes: usize) -> Result<Handle, DeviceError> {
        self.check()?;
        if bytes as u64 > self.info().most_allocated_bytes {
            return Err(error(self.info(), Fault::OutOfMemory, bytes as u64));
        }
        // Some drivers lend memory of the host beyond the device's, and some give what is not there at all.
        let allocated = self.allocated.fetch_add(bytes as u64, Ordering::Relaxed);
        if allocated + bytes as u64 > self.info().memory_bytes {
            self.allocated.fetch_sub(bytes as u64, Ordering::Relaxed);
            return Err(error(self.info(), Fault::OutOfMemory, bytes as u64));
        }
        self.allocate_counted(bytes).inspect_err(|_| {
            self.allocated.fetch_sub(bytes as u64, Ordering::Relaxed);
        })
    }

    fn free(&self, handle: Handle) {
        let mut buffers = self.parts.buffers.write().unwrap_or_else(PoisonError::into_inner);
        let removed = buffers.remove(&handle);
        drop(buffers);
        let Some(allocation) = removed else { return };
        self.allocated.fetch_sub(allocation.bytes as u64, Ordering::Relaxed);
        if self.failed.get().is_some() {
            mem::forget(allocation); // it may be in use, and to free it might wait forever
        } else {
            lock(&self.parts.compute).line.free(allocation.buffer);
        }
    }

    fn write(&self, queue: Queue, to: Handle, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.check()?;
        let allocation = self.allocation(to, at, bytes.len())?;
        let copy = |line: &mut Line<A>| {
            let most = line.most_staged();
            for (i, part) in bytes.chunks(most).enumerate() {
                self.write_part(line, queue, &allocation.buffer, at + i * most, part)?;
            }
            match queue {
                Queue::Compute => Ok(()),
                Queue::Copies => line.wait(&self.parts.api),
            }
        };
        let copied = match queue {
            Queue::Compute => copy(&mut lock(&self.parts.compute).line),
            Queue::Copies => copy(&mut lock(&self.parts.copies)),
        };
        copied.map_err(|wait| self.failure(wait, bytes.len()))
    }

    fn read(&self, from: Handle, at: usize, into: &mut [u8]) -> Result<(), DeviceError> {
        self.check()?;
        let bytes = into.len();
        let allocation = self.allocation(from, at, bytes)?;
        let line = &mut lock(&self.parts.compute).line;
        let most = line.most_staged();
        for (i, part) in into.chunks_mut(most).enumerate() {
            let read = self.read_part(line, &allocation.buffer, at + i * most, part);
            read.map_err(|wait| self.failure(wait, bytes))?;
        }
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        self.check()?;
        let buffers = self.parts.buffers.read().unwrap_or_else(PoisonError::into_inner);
        let allocation = |arg: &Arg<'_>| match arg {
            Arg::Memory(memory) => buffers.get(&memory.handle()).cloned(),
            _ => None,
        };
        let used: Vec<_> = launch.args.iter().map(allocation).collect();
        drop(buffers);
        self.launch_now(launch, &used).map_err(|wait| self.failure(wait, 0))
    }
}

impl<A: Backend> Drop for Open<A> {
    fn drop(&mut self) {
        let idle = self.failed.get().is_none()
            && lock(&self.parts.compute).line.wait(&self.parts.api).is_ok()
            && lock(&self.parts.copies).wait(&self.parts.api).is_ok();
        if idle {
            // SAFETY: nobody looks at it afterwards.
            unsafe { ManuallyDrop::drop(&mut self.parts) };
        }
    }
}

impl<A: Backend> Debug for Open<A> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open")
            .field("info", self.info())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

/// A lock is never held by who panics while it holds something half done, but for a bug.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A fault of an API, of a device.
pub(super) fn error(info: &DeviceInfo, fault: Fault, bytes: u64) -> DeviceError {
    let device = info.name.clone();
    match fault {
        Fault::OutOfMemory => DeviceError::OutOfMemory { device, bytes },
        Fault::Refused(error) => DeviceError::Lost { device, what: "launch", error },
        Fault::Failed { what, error } => DeviceError::Lost { device, what, error },
    }
}

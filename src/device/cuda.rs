//! NVIDIA's cards by CUDA's driver, which is part of their driver.

use std::ffi::{CString, c_int, c_void};
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use super::backend::{Backend, Fault, Grid, Stage, Value};
use super::nvrtc::Nvrtc;
use super::programs::{ProgramKey, Programs};
use super::{Api, DeviceError, DeviceInfo, PciPlace, Queue};

/// Nothing contracted, subnormals kept, division and roots rounded; functions are the device's.
pub(super) const OPTIONS: [&str; 5] = [
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    "--device-as-default-execution-space",
];

/// The oldest driver that has all functions that are called here.
const OLDEST: c_int = 11_000;

/// OpenCL C's names, for CUDA's compiler.
pub(super) const MACROS: &str = include_str!("source/cuda.h");

/// Which of CUDA's devices.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ordinal(c_int);

/// The devices, with what they say of themselves.
///
/// # Errors
/// [`DeviceError::NoDriver`] where CUDA is not there or has no devices.
pub(super) fn devices() -> Result<Vec<(Ordinal, DeviceInfo)>, DeviceError> {
    // SAFETY: loads NVIDIA's library, by its name.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoDriver("CUDA's library is not there".to_owned()));
    }
    let missing = |error: DriverError| DeviceError::NoDriver(format!("CUDA: {}", name_of(error)));
    let version = version().map_err(missing)?;
    if version < OLDEST {
        return Err(DeviceError::NoDriver(format!(
            "CUDA's driver is too old: it has {}",
            version_name(version)
        )));
    }
    result::init().map_err(missing)?;
    let nvrtc = Nvrtc::load();
    let count = result::device::get_count().map_err(missing)?;
    Ok((0..count).filter_map(|i| Some((Ordinal(i), info(i, nvrtc.as_ref()).ok()?))).collect())
}

fn info(ordinal: c_int, nvrtc: Option<&Nvrtc>) -> Result<DeviceInfo, DriverError> {
    let device = result::device::get(ordinal)?;
    // SAFETY: the device is one.
    let (memory, number) = unsafe {
        let number = |what| result::device::get_attribute(device, what);
        (result::device::total_mem(device)? as u64, number)
    };
    let unfit =
        match nvrtc.map(|nvrtc| Ok::<_, DriverError>(nvrtc.target(capability(device)?))).transpose()? {
            None => Some("has no compiler: NVRTC's library, of CUDA's toolkit, is not there".to_owned()),
            Some(None) => Some("is too old for this NVRTC".to_owned()),
            Some(Some(_)) => None,
        };
    Ok(DeviceInfo {
        api: Api::Cuda,
        name: result::device::get_name(device)?,
        driver: version_name(version()?),
        memory_bytes: memory,
        most_allocated_bytes: memory,
        shares_memory: number(Attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED)? != 0,
        is_cpu: false,
        pci: Some(PciPlace {
            domain: number(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)? as u32,
            bus: number(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)? as u32,
            device: number(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)? as u32,
        }),
        unfit,
    })
}

/// The version of CUDA that the driver has, 1000 times the major one and 10 times the minor one.
fn version() -> Result<c_int, DriverError> {
    let mut version = 0;
    // SAFETY: a number is written.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok(version)
}

fn version_name(version: c_int) -> String {
    format!("CUDA {}.{}", version / 1000, version % 1000 / 10)
}

/// Its compute capability, 10 times the major version.
fn capability(device: sys::CUdevice) -> Result<c_int, DriverError> {
    // SAFETY: the device is one.
    unsafe {
        let major =
            result::device::get_attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor =
            result::device::get_attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok(10 * major + minor)
    }
}

/// The device's context, and events that are not in use.
struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
    events: Mutex<Vec<sys::CUevent>>,
}

// SAFETY: CUDA's objects may be used by any thread that has made the context its own.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    fn new(device: sys::CUdevice) -> Result<Arc<Context>, DriverError> {
        // SAFETY: the device is one; the context is given back when this is dropped.
        let raw = unsafe { result::primary_ctx::retain(device)? };
        Ok(Arc::new(Context { device, raw, events: Mutex::default() }))
    }

    /// Makes it this thread's.
    fn enter(&self) -> Result<(), DriverError> {
        // SAFETY: it is given back only when this is dropped.
        unsafe { result::ctx::set_current(self.raw) }
    }

    /// An event at the end of a stream.
    fn event(self: &Arc<Context>, stream: sys::CUstream) -> Result<Event, DriverError> {
        let kept = self.events.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let raw = match kept {
            Some(event) => event,
            None => result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?,
        };
        let event = Event { raw, context: self.clone() };
        // SAFETY: both are of this context, which our callers have entered.
        unsafe { result::event::record(raw, stream)? };
        Ok(event)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let _ = self.enter();
        let events = mem::take(self.events.get_mut().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: they are ours, as the context is, and nobody has them afterwards.
        unsafe {
            for event in events {
                let _ = result::event::destroy(event);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// A raw object of CUDA's, within its context, and what lets go of it.
macro_rules! owned {
    ($name:ident, $raw:ty, $release:path) => {
        pub(super) struct $name {
            raw: $raw,
            context: Arc<Context>,
        }

        impl Drop for $name {
            fn drop(&mut self) {
                let _ = self.context.enter();
                // SAFETY: it is ours, and nobody has it afterwards. That the driver refuses helps nobody.
                let _ = unsafe { $release(self.raw) };
            }
        }

        // SAFETY: see `Context`.
        unsafe impl Send for $name {}
        // SAFETY: see `Context`.
        unsafe impl Sync for $name {}
    };
}

owned!(Stream, sys::CUstream, result::stream::destroy);
owned!(Module, sys::CUmodule, result::module::unload);
owned!(Buffer, sys::CUdeviceptr, result::free_sync);
owned!(HostMemory, *mut c_void, result::free_host);

/// An event, which its context keeps for the next.
pub(super) struct Event {
    raw: sys::CUevent,
    context: Arc<Context>,
}

impl Drop for Event {
    fn drop(&mut self) {
        self.context.events.lock().unwrap_or_else(PoisonError::into_inner).push(self.raw);
    }
}

// SAFETY: see `Context`.
unsafe impl Send for Event {}
// SAFETY: see `Context`.
unsafe impl Sync for Event {}

/// A function of the module, which stays while the device is open.
pub(super) struct Kernel(sys::CUfunction);

// SAFETY: see `Context`.
unsafe impl Send for Kernel {}
// SAFETY: see `Context`.
unsafe impl Sync for Kernel {}

/// Pinned memory of the host.
pub(super) struct Pinned {
    memory: HostMemory,
    bytes: usize,
}

impl Stage for Pinned {
    fn start(&self) -> *mut u8 {
        self.memory.raw.cast()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

/// An open device. The order of the fields is that of their release.
pub(super) struct Cuda {
    module: Module,
    compute: Stream,
    copies: Stream,
    context: Arc<Context>,
    info: DeviceInfo,
}

/// Opens a device.
///
/// # Errors
/// A device that cannot be opened, and [`DeviceError::Build`] where the source does not compile.
pub(super) fn open(
    ordinal: Ordinal,
    info: DeviceInfo,
    source: &str,
    programs: &Programs,
) -> Result<Cuda, DeviceError> {
    let failed = |what| {
        let device = info.name.clone();
        move |error| DeviceError::Lost { device, what, error: name_of(error) }
    };
    if let Some(unfit) = &info.unfit {
        return Err(DeviceError::NoDriver(format!("{} {unfit}", info.name)));
    }
    let device = result::device::get(ordinal.0).map_err(failed("open"))?;
    let context = Context::new(device).map_err(failed("create a context"))?;
    context.enter().map_err(failed("enter a context"))?;
    let stream = || {
        let raw = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(failed("create a stream"));
        Ok(Stream { raw: raw?, context: context.clone() })
    };
    let (compute, copies) = (stream()?, stream()?);
    let capability = capability(device).map_err(failed("ask for its version"))?;
    let module = module(&context, capability, &info, source, programs)?;
    Ok(Cuda { module, compute, copies, context, info })
}

fn module(
    context: &Arc<Context>,
    capability: c_int,
    info: &DeviceInfo,
    source: &str,
    programs: &Programs,
) -> Result<Module, DeviceError> {
    let broken = |log: String| DeviceError::Build { device: info.name.clone(), log };
    let nvrtc = Nvrtc::load().ok_or_else(|| broken("NVRTC is gone".to_owned()))?;
    let target = nvrtc.target(capability).ok_or_else(|| broken("NVRTC does not know the card".to_owned()))?;
    let source = format!("{MACROS}\n{source}");
    let key = ProgramKey::new(info, &format!("{} {target:?} {OPTIONS:?}", nvrtc.version()), &source);
    // SAFETY: machine code that says its own length, or text that ends by zero; the context was entered.
    let load = |image: &[u8]| unsafe {
        let raw = result::module::load_data(image.as_ptr().cast())?;
        Ok::<_, DriverError>(Module { raw, context: context.clone() })
    };
    if let Some(image) = programs.get(&key)
        && let Ok(module) = load(&image)
    {
        return Ok(module);
    }
    let image = nvrtc.compile(&source, &OPTIONS, target).map_err(broken)?;
    let module = load(&image).map_err(|error| broken(format!("{}: {}", nvrtc.version(), name_of(error))))?;
    programs.put(&key, &image);
    Ok(module)
}

impl Cuda {
    fn stream(&self, queue: Queue) -> sys::CUstream {
        match queue {
            Queue::Compute => self.compute.raw,
            Queue::Copies => self.copies.raw,
        }
    }

    /// Something that is enqueued in a stream, and the event behind it.
    fn enqueue(
        &self,
        what: &'static str,
        stream: sys::CUstream,
        begin: impl FnOnce() -> Result<(), DriverError>,
    ) -> Result<Event, Fault> {
        let event = self.context.enter().and_then(|()| begin()).and_then(|()| self.context.event(stream));
        event.map_err(|error| fault(what, error))
    }
}

impl Backend for Cuda {
    type Buffer = Buffer;
    type Event = Event;
    type Kernel = Kernel;
    type Stage = Pinned;

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer, Fault> {
        self.context.enter().map_err(|error| fault("enter a context", error))?;
        // SAFETY: it is written before it is read, or anything.
        let raw = unsafe { result::malloc_sync(bytes) }.map_err(|error| fault("allocate", error))?;
        Ok(Buffer { raw, context: self.context.clone() })
    }

    fn touch(&self, buffer: &Buffer) -> Result<Event, Fault> {
        // SAFETY: a buffer has 16 bytes at least.
        let fill = || unsafe { result::memset_d8_async(buffer.raw, 0, 4, self.copies.raw) };
        self.enqueue("fill", self.copies.raw, fill)
    }

    fn stage(&self, bytes: usize) -> Result<Pinned, Fault> {
        self.context.enter().map_err(|error| fault("enter a context", error))?;
        // SAFETY: bytes, of whatever value.
        let raw = unsafe { result::malloc_host(bytes, 0) }.map_err(|error| fault("allocate", error))?;
        Ok(Pinned { memory: HostMemory { raw, context: self.context.clone() }, bytes })
    }

    unsafe fn write(
        &self,
        queue: Queue,
        to: &Buffer,
        at: usize,
        from: *const u8,
        bytes: usize,
    ) -> Result<Event, Fault> {
        let stream = self.stream(queue);
        // SAFETY: as our caller says.
        let copy =
            || unsafe { sys::cuMemcpyHtoDAsync_v2(to.raw + at as u64, from.cast(), bytes, stream) }.result();
        self.enqueue("write", stream, copy)
    }

    unsafe fn read(&self, from: &Buffer, at: usize, into: *mut u8, bytes: usize) -> Result<Event, Fault> {
        let stream = self.compute.raw;
        // SAFETY: as our caller says.
        let copy = || unsafe {
            sys::cuMemcpyDtoHAsync_v2(into.cast(), from.raw + at as u64, bytes, stream).result()
        };
        self.enqueue("read", stream, copy)
    }

    fn kernel(&self, name: &str) -> Result<Kernel, Fault> {
        let missing = |why: String| Fault::Refused(format!("kernel {name}: {why}"));
        let c_name = CString::new(name).map_err(|_| missing("no such name".to_owned()))?;
        self.context.enter().map_err(|error| fault("enter a context", error))?;
        // SAFETY: the module is loaded.
        let found = unsafe { result::module::get_function(self.module.raw, c_name) };
        found.map(Kernel).map_err(|error| missing(name_of(error)))
    }

    fn launch(&self, kernel: &Kernel, grid: &Grid, args: &[Value<'_, Buffer>]) -> Result<Event, Fault> {
        let mut values: Vec<[u8; 8]> = args
            .iter()
            .map(|arg| match (arg, arg.number()) {
                (Value::Buffer(buffer), _) => buffer.raw.to_ne_bytes(),
                (_, number) => number.map(|(bytes, _)| bytes).unwrap_or_default(),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|value| value.as_mut_ptr().cast()).collect();
        let (groups, stream) = ((grid.groups[0], grid.groups[1], 1), self.compute.raw);
        // SAFETY: the values are copied at once; our callers give each kernel the arguments that it takes,
        // and the buffers stay until the event has come.
        let launch = || unsafe {
            result::launch_kernel(kernel.0, groups, (grid.lanes, 1, 1), 0, stream, &mut pointers)
        };
        self.enqueue("launch", stream, launch)
    }

    /// CUDA begins by itself.
    fn flush(&self, _: Queue) -> Result<(), Fault> {
        Ok(())
    }

    fn is_done(&self, event: &Event) -> Result<bool, Fault> {
        // SAFETY: the event is one.
        match self.context.enter().and_then(|()| unsafe { result::event::query(event.raw) }) {
            Ok(()) => Ok(true),
            Err(DriverError(CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(error) => Err(fault("run", error)),
        }
    }
}

fn fault(what: &'static str, error: DriverError) -> Fault {
    match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Fault::OutOfMemory,
        // Of a launch: more lanes or registers than the device has. What does not go by itself is not lost.
        CUresult::CUDA_ERROR_INVALID_VALUE | CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES => {
            Fault::Refused(format!("{what}: {}", name_of(error)))
        }
        _ => Fault::Failed { what, error: name_of(error) },
    }
}

/// As CUDA names it.
fn name_of(error: DriverError) -> String {
    match error.error_name() {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => format!("error {}", error.0 as u32),
    }
}

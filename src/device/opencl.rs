//! Devices by OpenCL: what NVIDIA, AMD, Intel and others drive their cards by; PoCL runs it on a CPU.

use std::ffi::{CString, c_void};
use std::ptr;

use cl3::command_queue as queues;
use cl3::device::{self, CL_DEVICE_TYPE_ALL, CL_DEVICE_TYPE_CPU};
use cl3::error_codes::{self as codes, error_text};
use cl3::event::{self, CL_COMPLETE, CL_EVENT_COMMAND_EXECUTION_STATUS};
use cl3::memory::{self, CL_MAP_READ, CL_MAP_WRITE, CL_MEM_ALLOC_HOST_PTR, CL_MEM_READ_WRITE};
use cl3::program::{self, CL_PROGRAM_BINARIES, CL_PROGRAM_BUILD_LOG};
use cl3::types::{CL_TRUE, cl_device_id, cl_int, cl_platform_id};
use cl3::{context, kernel, platform};

use super::backend::{Backend, Fault, Grid, Stage, Value};
use super::programs::{ProgramKey, Programs};
use super::{Api, DeviceError, DeviceInfo, PciPlace, Queue};

/// Languages. Contraction is off by a pragma of the source; what would change results is never asked for:
/// fast-relaxed-math, denorms-are-zero, mad-enable, no-signed-zeros.
const LANGUAGE: &str = "-cl-std=CL1.2";
/// Where the device has dot products of bytes: then its compiler knows them.
const LANGUAGE_WITH_DOTS: &str = "-cl-std=CL3.0";
const DOTS: &str = "cl_khr_integer_dot_product";
/// Where the device can round them; kernels need it only if they divide or take roots.
const ROUNDED_DIVISION: &str = "-cl-fp32-correctly-rounded-divide-sqrt";

/// Of CPUs, which are there for tests: optimising the kernels takes ten times as long as they then run.
const UNOPTIMIZED: &str = "-cl-opt-disable";

/// What single-precision numbers must have, by the bits of `cl_device_fp_config`.
const NEEDED: [(u64, &str); 3] =
    [(1, "subnormal numbers"), (1 << 2, "rounding to the nearest"), (1 << 5, "a fused multiply-add")];
const ROUNDS_DIVISION: u64 = 1 << 7;

/// Of NVIDIA, beside its bus and its slot; cl_ext.h lacks it.
const PCI_DOMAIN_ID_NV: u32 = 0x400A;

const TOO_OLD: [&str; 2] = ["OpenCL 1.0", "OpenCL 1.1"];

/// A name may have so many bytes.
const MOST_OF_NAME: usize = 200;

/// A device's own name; root devices stay for as long as the process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Id(cl_device_id);

// SAFETY: OpenCL's objects may be used by any thread; only clSetKernelArg must not be called for one kernel
// by two threads at a time, see `Backend::launch`.
unsafe impl Send for Id {}
// SAFETY: as above.
unsafe impl Sync for Id {}

/// An object that is released when dropped.
macro_rules! owned {
    ($name:ident, $release:path) => {
        pub(super) struct $name(*mut c_void);

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: it is ours, and nobody has it afterwards. That a driver refuses helps nobody.
                let _ = unsafe { $release(self.0) };
            }
        }

        // SAFETY: see `Id`.
        unsafe impl Send for $name {}
        // SAFETY: see `Id`.
        unsafe impl Sync for $name {}
    };
}

owned!(Context, context::release_context);
owned!(CommandQueue, queues::release_command_queue);
owned!(Program, program::release_program);
owned!(Kernel, kernel::release_kernel);
owned!(Buffer, memory::release_mem_object);
owned!(Event, event::release_event);

/// An open device. The order of the fields is that of their release.
pub(super) struct OpenCl {
    program: Program,
    compute: CommandQueue,
    copies: CommandQueue,
    context: Context,
    info: DeviceInfo,
}

/// The devices of all platforms, with what they say of themselves.
///
/// # Errors
/// [`DeviceError::NoDriver`] where there is no OpenCL or it has no platforms.
pub(super) fn devices() -> Result<Vec<(Id, DeviceInfo)>, DeviceError> {
    let missing = |code: cl_int| match code {
        codes::DLOPEN_RUNTIME_LOAD_FAILED => {
            DeviceError::NoDriver("OpenCL's library is not there".to_owned())
        }
        codes::CL_PLATFORM_NOT_FOUND_KHR => DeviceError::NoDriver("OpenCL has no platforms".to_owned()),
        code => DeviceError::NoDriver(format!("OpenCL's platforms: {}", error_text(code))),
    };
    let mut found = Vec::new();
    for platform in platform::get_platform_ids().map_err(missing)? {
        // A platform without devices says so by an error.
        for id in device::get_device_ids(platform, CL_DEVICE_TYPE_ALL).unwrap_or_default() {
            if let Ok(info) = info(platform, id) {
                found.push((Id(id), info));
            }
        }
    }
    Ok(found)
}

fn info(platform: cl_platform_id, id: cl_device_id) -> Result<DeviceInfo, cl_int> {
    let text = |what| Ok::<_, cl_int>(printable(&device::get_device_data(id, what)?));
    let number = |what| Ok::<_, cl_int>(little(&device::get_device_data(id, what)?));
    let platform_name = printable(&platform::get_platform_data(platform, platform::CL_PLATFORM_NAME)?);
    // AMD's drivers name the chip where others name the card.
    let board = text(device::CL_DEVICE_BOARD_NAME_AMD).ok().filter(|name| !name.is_empty());
    let config = number(device::CL_DEVICE_SINGLE_FP_CONFIG)?;
    let lacks: Vec<_> = NEEDED.iter().filter(|(bit, _)| config & bit == 0).map(|(_, name)| *name).collect();
    let version = text(device::CL_DEVICE_VERSION)?;
    let mut unfit = (!lacks.is_empty()).then(|| format!("lacks {}", lacks.join(", ")));
    if number(device::CL_DEVICE_AVAILABLE)? == 0 {
        unfit = Some("is not available".to_owned());
    } else if number(device::CL_DEVICE_COMPILER_AVAILABLE)? == 0 {
        unfit = Some("has no compiler".to_owned());
    } else if number(device::CL_DEVICE_ENDIAN_LITTLE)? == 0 {
        unfit = Some("is big-endian".to_owned());
    } else if TOO_OLD.iter().any(|old| version.starts_with(old)) {
        unfit = Some("has an OpenCL before 1.2".to_owned());
    }
    Ok(DeviceInfo {
        api: Api::OpenCl,
        name: match board {
            Some(board) => board,
            None => text(device::CL_DEVICE_NAME)?,
        },
        driver: format!("{platform_name} {}", text(device::CL_DRIVER_VERSION)?),
        memory_bytes: number(device::CL_DEVICE_GLOBAL_MEM_SIZE)?,
        most_allocated_bytes: number(device::CL_DEVICE_MAX_MEM_ALLOC_SIZE)?,
        shares_memory: number(device::CL_DEVICE_HOST_UNIFIED_MEMORY).is_ok_and(|shares| shares != 0),
        is_cpu: number(device::CL_DEVICE_TYPE)? & CL_DEVICE_TYPE_CPU != 0,
        pci: pci(id),
        unfit,
    })
}

/// Where the card sits, as far as its driver tells: by Khronos' extension, NVIDIA's or AMD's.
fn pci(id: cl_device_id) -> Option<PciPlace> {
    let data = |what| device::get_device_data(id, what).ok();
    let word = |bytes: &[u8], i: usize| Some(little(bytes.get(4 * i..4 * i + 4)?) as u32);
    if let Some(bus) = data(device::CL_DEVICE_PCI_BUS_INFO_KHR)
        && bus.len() == 16
    {
        return Some(PciPlace { domain: word(&bus, 0)?, bus: word(&bus, 1)?, device: word(&bus, 2)? });
    }
    if let Some(bus) = data(device::CL_DEVICE_PCI_BUS_ID_NV)
        && let Some(slot) = data(device::CL_DEVICE_PCI_SLOT_ID_NV)
    {
        let domain = data(PCI_DOMAIN_ID_NV).and_then(|domain| word(&domain, 0)).unwrap_or(0);
        return Some(PciPlace { domain, bus: word(&bus, 0)?, device: word(&slot, 0)? >> 3 });
    }
    // cl_device_topology_amd: a type (1 is PCIe), 17 bytes unused, then bus, device, function.
    let topology = data(device::CL_DEVICE_TOPOLOGY_AMD).filter(|bytes| bytes.len() >= 24)?;
    (word(&topology, 0)? == 1).then(|| PciPlace {
        domain: 0,
        bus: topology[21].into(),
        device: topology[22].into(),
    })
}

/// An open device.
///
/// # Errors
/// A device that cannot be opened, and [`DeviceError::Build`] where the source does not compile.
pub(super) fn open(
    id: Id,
    info: DeviceInfo,
    source: &str,
    programs: &Programs,
) -> Result<OpenCl, DeviceError> {
    let failed = |what| {
        let device = info.name.clone();
        move |code| DeviceError::Lost { device, what, error: error_text(code).to_owned() }
    };
    if let Some(unfit) = &info.unfit {
        return Err(DeviceError::NoDriver(format!("{} {unfit}", info.name)));
    }
    let context = context::create_context(&[id.0], ptr::null(), None, ptr::null_mut());
    let context = Context(context.map_err(failed("create a context"))?);
    let queue = || {
        // SAFETY: the device is the context's.
        let queue = unsafe { queues::create_command_queue(context.0, id.0, 0) };
        Ok(CommandQueue(queue.map_err(failed("create a queue"))?))
    };
    let (compute, copies) = (queue()?, queue()?);
    let program = build(&context, id, &info, source, programs)?;
    Ok(OpenCl { program, compute, copies, context, info })
}

/// The program in the best language that the compiler takes.
fn build(
    context: &Context,
    id: Id,
    info: &DeviceInfo,
    source: &str,
    programs: &Programs,
) -> Result<Program, DeviceError> {
    let data = |what| device::get_device_data(id.0, what).unwrap_or_default();
    let rounds = little(&data(device::CL_DEVICE_SINGLE_FP_CONFIG)) & ROUNDS_DIVISION != 0;
    let division = if rounds { ROUNDED_DIVISION } else { "" };
    let has_dots = text(&data(device::CL_DEVICE_EXTENSIONS)).split(' ').any(|name| name == DOTS);
    let effort = if info.is_cpu { UNOPTIMIZED } else { "" };
    let options = |language| format!("{language} {division} {effort}");
    let built = |language| build_in(context, id, info, source, &options(language), programs);
    match has_dots.then(|| built(LANGUAGE_WITH_DOTS)) {
        Some(Ok(program)) => Ok(program),
        _ => built(LANGUAGE),
    }
}

fn build_in(
    context: &Context,
    id: Id,
    info: &DeviceInfo,
    source: &str,
    options: &str,
    programs: &Programs,
) -> Result<Program, DeviceError> {
    let key = ProgramKey::new(info, options, source);
    let options = CString::new(options).unwrap_or_default();
    if let Some(binary) = programs.get(&key) {
        // SAFETY: the device is the context's; that the bytes are what it once gave was checked.
        let made = unsafe { program::create_program_with_binary(context.0, &[id.0], &[&binary]) };
        if let Ok(made) = made.map(Program)
            && program::build_program(made.0, &[id.0], &options, None, ptr::null_mut()).is_ok()
        {
            return Ok(made);
        }
    }
    let device = || info.name.clone();
    let made = program::create_program_with_source(context.0, &[source]).map(Program);
    let made =
        made.map_err(|code| DeviceError::Build { device: device(), log: error_text(code).to_owned() })?;
    if let Err(code) = program::build_program(made.0, &[id.0], &options, None, ptr::null_mut()) {
        let log = program::get_program_build_data(made.0, id.0, CL_PROGRAM_BUILD_LOG).unwrap_or_default();
        let log = format!("{}\n{}", error_text(code), text(&log));
        return Err(DeviceError::Build { device: device(), log: log.trim_end().to_owned() });
    }
    if let Ok(binaries) = program::get_program_info(made.0, CL_PROGRAM_BINARIES)
        && let [binary] = &Vec::<Vec<u8>>::from(binaries)[..]
    {
        programs.put(&key, binary);
    }
    Ok(made)
}

impl OpenCl {
    fn queue(&self, queue: Queue) -> *mut c_void {
        match queue {
            Queue::Compute => self.compute.0,
            Queue::Copies => self.copies.0,
        }
    }
}

impl Backend for OpenCl {
    type Buffer = Buffer;
    type Event = Event;
    type Kernel = Kernel;
    type Stage = Mapped;

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer, Fault> {
        // SAFETY: no memory of ours is lent.
        let buffer =
            unsafe { memory::create_buffer(self.context.0, CL_MEM_READ_WRITE, bytes, ptr::null_mut()) };
        buffer.map(Buffer).map_err(|code| match code {
            codes::CL_INVALID_BUFFER_SIZE | codes::CL_OUT_OF_RESOURCES => Fault::OutOfMemory,
            code => fault("allocate", code),
        })
    }

    fn touch(&self, buffer: &Buffer) -> Result<Event, Fault> {
        let zero = 0u32;
        // SAFETY: a buffer has 16 bytes at least; the pattern is copied at once.
        let event = unsafe {
            queues::enqueue_fill_buffer(
                self.copies.0,
                buffer.0,
                (&raw const zero).cast(),
                4,
                0,
                4,
                0,
                ptr::null(),
            )
        };
        event.map(Event).map_err(|code| match code {
            codes::CL_OUT_OF_RESOURCES => Fault::OutOfMemory,
            code => fault("fill", code),
        })
    }

    fn stage(&self, bytes: usize) -> Result<Mapped, Fault> {
        let flags = CL_MEM_READ_WRITE | CL_MEM_ALLOC_HOST_PTR;
        // SAFETY: no memory of ours is lent.
        let buffer = unsafe { memory::create_buffer(self.context.0, flags, bytes, ptr::null_mut()) };
        let buffer = Buffer(buffer.map_err(|code| fault("allocate", code))?);
        let mut start = ptr::null_mut();
        // SAFETY: the buffer has these bytes, and nobody else uses it.
        let event = unsafe {
            let how = CL_MAP_READ | CL_MAP_WRITE;
            queues::enqueue_map_buffer(
                self.compute.0,
                buffer.0,
                CL_TRUE,
                how,
                0,
                bytes,
                &mut start,
                0,
                ptr::null(),
            )
        };
        drop(event.map(Event).map_err(|code| fault("map", code))?);
        if start.is_null() {
            return Err(Fault::OutOfMemory);
        }
        Ok(Mapped { _buffer: buffer, start: start.cast(), bytes })
    }

    unsafe fn write(
        &self,
        queue: Queue,
        to: &Buffer,
        at: usize,
        from: *const u8,
        bytes: usize,
    ) -> Result<Event, Fault> {
        let from = from.cast_mut().cast();
        // SAFETY: as our caller says.
        let event = unsafe {
            queues::enqueue_write_buffer(self.queue(queue), to.0, 0, at, bytes, from, 0, ptr::null())
        };
        event.map(Event).map_err(|code| fault("write", code))
    }

    unsafe fn read(&self, from: &Buffer, at: usize, into: *mut u8, bytes: usize) -> Result<Event, Fault> {
        // SAFETY: as our caller says.
        let event = unsafe {
            queues::enqueue_read_buffer(self.compute.0, from.0, 0, at, bytes, into.cast(), 0, ptr::null())
        };
        event.map(Event).map_err(|code| fault("read", code))
    }

    fn kernel(&self, name: &str) -> Result<Kernel, Fault> {
        let missing = |why: &str| Fault::Refused(format!("kernel {name}: {why}"));
        let name = CString::new(name).map_err(|_| missing("no such name"))?;
        kernel::create_kernel(self.program.0, &name).map(Kernel).map_err(|code| missing(error_text(code)))
    }

    fn launch(&self, kernel: &Kernel, grid: &Grid, args: &[Value<'_, Buffer>]) -> Result<Event, Fault> {
        for (i, arg) in args.iter().enumerate() {
            // SAFETY: the value is copied at once; a size that is not the parameter's is refused.
            let set = unsafe {
                match (arg, arg.number()) {
                    (Value::Buffer(buffer), _) => kernel::set_kernel_arg(
                        kernel.0,
                        i as u32,
                        size_of::<*mut c_void>(),
                        (&raw const buffer.0).cast(),
                    ),
                    (_, Some((bytes, len))) => {
                        kernel::set_kernel_arg(kernel.0, i as u32, len, bytes.as_ptr().cast())
                    }
                    (_, None) => Err(codes::CL_INVALID_ARG_VALUE),
                }
            };
            set.map_err(|code| Fault::Refused(format!("argument {i}: {}", error_text(code))))?;
        }
        let lanes = grid.lanes as usize;
        let global = [grid.groups[0] as usize * lanes, grid.groups[1] as usize];
        let local = [lanes, 1];
        // SAFETY: all arguments are set, or it is refused; buffers stay until the event has come.
        let event = unsafe {
            queues::enqueue_nd_range_kernel(
                self.compute.0,
                kernel.0,
                2,
                ptr::null(),
                global.as_ptr(),
                local.as_ptr(),
                0,
                ptr::null(),
            )
        };
        event.map(Event).map_err(|code| match code {
            codes::CL_INVALID_KERNEL_ARGS
            | codes::CL_INVALID_WORK_GROUP_SIZE
            | codes::CL_INVALID_WORK_ITEM_SIZE
            | codes::CL_INVALID_GLOBAL_WORK_SIZE => Fault::Refused(error_text(code).to_owned()),
            code => fault("launch", code),
        })
    }

    fn flush(&self, queue: Queue) -> Result<(), Fault> {
        queues::flush(self.queue(queue)).map_err(|code| fault("flush", code))
    }

    fn is_done(&self, event: &Event) -> Result<bool, Fault> {
        let status = event::get_event_info(event.0, CL_EVENT_COMMAND_EXECUTION_STATUS);
        let status = cl_int::from(status.map_err(|code| fault("ask for an event", code))?);
        if status < 0 { Err(fault("run", status)) } else { Ok(status == CL_COMPLETE) }
    }
}

/// Memory of the host as the driver likes it: pinned, with drivers that pin.
pub(super) struct Mapped {
    _buffer: Buffer,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: memory like any other; who may use which part is `Line`'s to know.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Stage for Mapped {
    fn start(&self) -> *mut u8 {
        self.start
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

fn fault(what: &'static str, code: cl_int) -> Fault {
    match code {
        codes::CL_MEM_OBJECT_ALLOCATION_FAILURE | codes::CL_OUT_OF_HOST_MEMORY => Fault::OutOfMemory,
        code => Fault::Failed { what, error: format!("{} ({code})", error_text(code)) },
    }
}

/// A number of as many bytes as the driver gives.
fn little(bytes: &[u8]) -> u64 {
    let mut all = [0; 8];
    let len = bytes.len().min(8);
    all[..len].copy_from_slice(&bytes[..len]);
    u64::from_le_bytes(all)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A name for one line of a table.
fn printable(bytes: &[u8]) -> String {
    let words: Vec<_> =
        bytes[..bytes.len().min(MOST_OF_NAME)].split(|b| b.is_ascii_whitespace()).map(text).collect();
    let words: Vec<_> = words.iter().filter(|word| !word.is_empty()).map(String::as_str).collect();
    words.join(" ").replace(char::is_control, "")
}

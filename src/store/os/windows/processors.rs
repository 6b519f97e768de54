//! The processors that a process may run on.

use std::io;

use windows_sys::Win32::Foundation::ERROR_INSUFFICIENT_BUFFER;
use windows_sys::Win32::System::SystemInformation::{
    GROUP_AFFINITY, GetLogicalProcessorInformationEx, RelationProcessorCore,
    SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, GetProcessAffinityMask};

use super::is;
use crate::store::os::Processors;

/// A core: its class, higher ones are faster, and its processors, each a bit, in a group of 64.
struct Core {
    class: u8,
    group: u16,
    mask: usize,
}

/// Those that this process may use. Its mask speaks of the group that it began in; others it may use whole.
pub fn of_this_process() -> Option<Processors> {
    let (mut own, mut all) = (0usize, 0usize);
    // SAFETY: writes two masks.
    let known = unsafe { GetProcessAffinityMask(GetCurrentProcess(), &raw mut own, &raw mut all) } != 0;
    // The mask is 0 for a process in several groups.
    let own = if known && own != 0 { own } else { usize::MAX };
    let mut cores = cores()?;
    if let Some(first) = cores.iter().map(|core| core.group).min() {
        cores.iter_mut().filter(|core| core.group == first).for_each(|core| core.mask &= own);
    }
    cores.retain(|core| core.mask != 0);
    let fastest = cores.iter().map(|core| core.class).max()?;
    Some(Processors {
        fast_cores: cores.iter().filter(|core| core.class == fastest).count(),
        cores: cores.len(),
        threads: cores.iter().map(|core| core.mask.count_ones() as usize).sum(),
        nodes: Vec::new(),
    })
}

/// All cores of the machine.
fn cores() -> Option<Vec<Core>> {
    let mut bytes = 0u32;
    // SAFETY: asks for the size alone.
    let asked = unsafe {
        GetLogicalProcessorInformationEx(RelationProcessorCore, std::ptr::null_mut(), &raw mut bytes)
    };
    if asked != 0 || !is(&io::Error::last_os_error(), ERROR_INSUFFICIENT_BUFFER) {
        return None;
    }
    // Records of cores are shorter than the type, which is for all relations: the last may be read beyond.
    let mut buffer = vec![0u64; (bytes as usize + RECORD).div_ceil(8)];
    // SAFETY: fills at most so many bytes of the buffer, which is aligned as the records are.
    let filled = unsafe {
        GetLogicalProcessorInformationEx(RelationProcessorCore, buffer.as_mut_ptr().cast(), &raw mut bytes)
    };
    if filled == 0 {
        return None;
    }
    let mut cores = Vec::new();
    let mut at = 0;
    while at < bytes as usize {
        // SAFETY: a record lies here, and as many bytes as the type has do in the buffer; all of them are
        // numbers.
        let record = unsafe {
            buffer
                .as_ptr()
                .cast::<u8>()
                .add(at)
                .cast::<SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX>()
                .read_unaligned()
        };
        // SAFETY: of this relation alone were records asked for. The first group of a core is its only one.
        let (class, GROUP_AFFINITY { Mask: mask, Group: group, .. }) =
            unsafe { (record.Anonymous.Processor.EfficiencyClass, record.Anonymous.Processor.GroupMask[0]) };
        cores.push(Core { class, group, mask });
        if record.Size == 0 {
            return None;
        }
        at += record.Size as usize;
    }
    Some(cores)
}

const RECORD: usize = size_of::<SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX>();

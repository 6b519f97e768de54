//! Windows.
//!
//! A mapped file cannot be cut short here; what its disk or its server fails to give ends the process with a
//! message (see [`fault`]). Memory is what the machine has available, or less where a job allows less.

mod fault;
mod memory;
mod processors;

use std::cell::OnceCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::windows::ffi::OsStrExt;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::path::Path;
use std::ptr;
use std::time::Duration;

use memmap2::{Mmap, MmapMut};
use windows_sys::Win32::Foundation::{
    ERROR_HANDLE_EOF, ERROR_IO_PENDING, ERROR_PIPE_NOT_CONNECTED, GENERIC_READ, HANDLE, INVALID_HANDLE_VALUE,
};
use windows_sys::Win32::Storage::FileSystem::{
    BY_HANDLE_FILE_INFORMATION, FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_NO_BUFFERING, FILE_FLAG_OVERLAPPED,
    FILE_FLAG_RANDOM_ACCESS, FILE_SHARE_DELETE, FILE_SHARE_READ, FILE_SHARE_WRITE, GetDiskFreeSpaceExW,
    GetFileInformationByHandle, ReOpenFile, ReadFile,
};
use windows_sys::Win32::System::IO::{GetOverlappedResult, OVERLAPPED};
use windows_sys::Win32::System::Memory::{PrefetchVirtualMemory, WIN32_MEMORY_RANGE_ENTRY};
use windows_sys::Win32::System::Threading::{CreateEventW, GetCurrentProcess};

use super::{FileIdentity, Processors, Reads, System};

/// See the module.
#[derive(Debug)]
pub struct Windows;

impl System for Windows {
    type Watch = fault::FaultWatch;

    /// By its handle: the path may lead elsewhere by now. Reads of a handle that is not for overlapped ones
    /// wait for each other.
    fn reopen(file: &File, _: &Path, reads: Reads) -> Option<File> {
        let flags = match reads {
            Reads::Small => FILE_FLAG_RANDOM_ACCESS | FILE_FLAG_OVERLAPPED,
            Reads::Direct => FILE_FLAG_NO_BUFFERING | FILE_FLAG_OVERLAPPED,
        };
        let share = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
        // SAFETY: a call on an open handle that takes numbers.
        let again = unsafe { ReOpenFile(handle(file), GENERIC_READ, share, flags) };
        // SAFETY: a handle of our own that was just opened and that nobody else has.
        (again != INVALID_HANDLE_VALUE).then(|| unsafe { File::from_raw_handle(again) })
    }

    fn identity(file: &File) -> io::Result<FileIdentity> {
        // SAFETY: all zeros is such a struct.
        let mut found: BY_HANDLE_FILE_INFORMATION = unsafe { std::mem::zeroed() };
        // SAFETY: fills the struct whose address it is given.
        check(unsafe { GetFileInformationByHandle(handle(file), &raw mut found) })?;
        Ok(FileIdentity {
            device: u64::from(found.dwVolumeSerialNumber),
            number: u64::from(found.nFileIndexHigh) << 32 | u64::from(found.nFileIndexLow),
        })
    }

    fn identity_at(path: &Path) -> io::Result<FileIdentity> {
        // No access is needed to tell which file it is, and only so is a folder opened.
        let mut options = OpenOptions::new();
        let file = options.access_mode(0).custom_flags(FILE_FLAG_BACKUP_SEMANTICS).open(path)?;
        Windows::identity(&file)
    }

    fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        READ_DONE.with(|event| read_overlapped(file, buffer, offset, event))
    }

    /// A named pipe has an error of its own for that.
    fn is_closed_pipe(error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::BrokenPipe || is(error, ERROR_PIPE_NOT_CONNECTED)
    }

    /// There is no such call.
    fn drop_pages(_: &File, _: u64, _: usize) {}

    fn will_need(map: &Mmap, start: usize, len: usize) {
        let bytes = &map[start..start + len];
        let range =
            WIN32_MEMORY_RANGE_ENTRY { VirtualAddress: bytes.as_ptr().cast_mut().cast(), NumberOfBytes: len };
        // SAFETY: the range is one of memory that is mapped; it is advice, and its failure changes nothing.
        let _ = unsafe { PrefetchVirtualMemory(GetCurrentProcess(), 1, &raw const range, 0) };
    }

    fn populate(map: &Mmap, start: usize, len: usize) -> bool {
        /// The least that a page has.
        const PAGE: usize = 4096;
        Windows::will_need(map, start, len);
        // A byte of each page: what has been prefetched is in memory and may not be mapped yet.
        let touched = map[start..start + len].iter().step_by(PAGE);
        touched.for_each(|byte| _ = std::hint::black_box(*byte));
        true
    }

    /// Large pages want a privilege that users do not have.
    fn prefer_large_pages(_: &MmapMut) {}

    fn available_memory_bytes() -> Option<u64> {
        memory::available_bytes()
    }

    fn peak_rss_bytes() -> Option<u64> {
        Some(memory::counters()?.PeakWorkingSetSize as u64)
    }

    fn private_bytes() -> Option<u64> {
        memory::private_bytes()
    }

    fn processors() -> Option<Processors> {
        processors::of_this_process()
    }

    fn free_disk_bytes(path: &Path) -> Option<u64> {
        let path: Vec<u16> = path.as_os_str().encode_wide().chain([0]).collect();
        let mut free = 0;
        // SAFETY: reads the text that ends in zero, writes the number whose address it is given and no other.
        let known =
            unsafe { GetDiskFreeSpaceExW(path.as_ptr(), &raw mut free, ptr::null_mut(), ptr::null_mut()) };
        (known != 0).then_some(free)
    }

    fn confine(memory: u64, time: Duration) -> io::Result<()> {
        memory::confine(memory, time)
    }
}

fn handle(file: &File) -> HANDLE {
    file.as_raw_handle()
}

/// What a call that returns FALSE means.
fn check(done: windows_sys::core::BOOL) -> io::Result<()> {
    if done != 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

thread_local! {
    /// Set when a read of this thread is done.
    static READ_DONE: OnceCell<OwnedHandle> = const { OnceCell::new() };
}

/// Reads at a place and waits for it. It works with handles for overlapped reads and with others.
fn read_overlapped(
    file: &File,
    buffer: &mut [u8],
    offset: u64,
    event: &OnceCell<OwnedHandle>,
) -> io::Result<usize> {
    if event.get().is_none() {
        // SAFETY: makes an event without a name and with the usual rights, to be reset by hand.
        let made = unsafe { CreateEventW(ptr::null(), 1, 0, ptr::null()) };
        if made.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a handle of our own that was just made and that nobody else has.
        let _ = event.set(unsafe { OwnedHandle::from_raw_handle(made) });
    }
    // SAFETY: all zeros is such a struct.
    let mut overlapped: OVERLAPPED = unsafe { std::mem::zeroed() };
    overlapped.Anonymous.Anonymous.Offset = offset as u32;
    overlapped.Anonymous.Anonymous.OffsetHigh = (offset >> 32) as u32;
    overlapped.hEvent = event.get().map_or(ptr::null_mut(), AsRawHandle::as_raw_handle);
    let len = u32::try_from(buffer.len()).unwrap_or(u32::MAX & !0xfff);
    let mut read = 0;
    // SAFETY: buffer and struct outlive the read: where it goes on after the call, the next call waits for
    // its end.
    let mut done = check(unsafe {
        ReadFile(handle(file), buffer.as_mut_ptr(), len, &raw mut read, &raw mut overlapped)
    });
    if matches!(&done, Err(error) if is(error, ERROR_IO_PENDING)) {
        // SAFETY: of the read above, and waits until it is over, whether it succeeds or not.
        done = check(unsafe { GetOverlappedResult(handle(file), &raw const overlapped, &raw mut read, 1) });
    }
    match done {
        Ok(()) => Ok(read as usize),
        Err(error) if is(&error, ERROR_HANDLE_EOF) => Ok(0),
        Err(error) => Err(error),
    }
}

fn is(error: &io::Error, code: u32) -> bool {
    error.raw_os_error() == Some(code as i32)
}

#[cfg(test)]
mod tests {
    use super::super::super::{ALIGNMENT, AlignedBuffer};
    use super::*;

    /// Of both kinds of handle, which are for overlapped reads, and of a file's own, which is not; several at a
    /// time, since none waits for another.
    #[test]
    fn reads_at_places_are_those_of_the_file() {
        const BLOCKS: usize = 64;
        let (dir, tail) = (tempfile::tempdir().unwrap(), 77);
        let path = dir.path().join("file");
        let all: Vec<u8> = (0..BLOCKS * ALIGNMENT + tail).map(|i| (i * 31 % 251) as u8).collect();
        std::fs::write(&path, &all).unwrap();
        let own = File::open(&path).unwrap();
        let [small, direct] = [Reads::Small, Reads::Direct].map(|reads| Windows::reopen(&own, &path, reads));
        for file in [own, small.unwrap(), direct.unwrap()] {
            let read = |block: usize| {
                let mut buffer = AlignedBuffer::new(2 * ALIGNMENT).unwrap();
                let n = Windows::read_at(&file, buffer.as_mut(), (block * ALIGNMENT) as u64).unwrap();
                buffer.as_ref()[..n].to_vec()
            };
            std::thread::scope(|scope| {
                for first in 0..4 {
                    let (all, read) = (&all, &read);
                    scope.spawn(move || {
                        for block in (first..BLOCKS - 1).step_by(4) {
                            assert!(read(block) == all[block * ALIGNMENT..][..2 * ALIGNMENT], "{block}");
                        }
                    });
                }
            });
            // The last block is shorter, and beyond it there is nothing.
            assert_eq!(read(BLOCKS), all[BLOCKS * ALIGNMENT..]);
            assert!(read(BLOCKS + 1).is_empty());
        }
    }

    #[test]
    fn folders_and_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two, link] = ["one", "two", "link"].map(|name| dir.path().join(name));
        [&one, &two].iter().for_each(|path| std::fs::write(path, b"same").unwrap());
        std::fs::hard_link(&one, &link).unwrap();
        let of = |path: &Path| Windows::identity_at(path).unwrap();
        assert_eq!(of(&one), of(&link));
        assert_eq!(of(&one), Windows::identity(&File::open(&link).unwrap()).unwrap());
        assert_ne!(of(&one), of(&two));
        assert_ne!(of(&one), of(dir.path()));
        assert_eq!(of(&one).device, of(dir.path()).device);
        // One that another program has for itself as well.
        let _held = OpenOptions::new().read(true).write(true).share_mode(0).open(&two).unwrap();
        assert!(File::open(&two).is_err());
        assert_ne!(of(&one), of(&two));
    }
}

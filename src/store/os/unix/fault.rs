//! Mapped files that are cut short while they are mapped, or whose disk fails: no signal that ends the
//! process, but an error that names the file.
//!
//! To read a page of a mapping that its file no longer has, or that cannot be read, raises SIGBUS in the
//! thread that reads. The handler here puts zeros in the place of the mapping from that page on, notes where,
//! and lets the thread go on; whoever reads mapped bytes asks [`Watch::fault`] before using what was made of
//! them. A SIGBUS from anywhere else is handed to the handler from before; this one stays.
//!
//! The handler allocates nothing and takes no lock: it walks a list of entries that are never freed (a new
//! mapping takes an entry that is free), each guarded by a sequence number that is odd while the entry stands
//! for a mapping.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, Once, PoisonError};

use super::super::Watch;

/// No fault so far.
const NONE: usize = usize::MAX;

/// A range of addresses that is watched, or was.
#[derive(Debug)]
struct Entry {
    /// Odd while the range is mapped and watched.
    sequence: AtomicUsize,
    start: AtomicUsize,
    len: AtomicUsize,
    /// Where the first read that failed was, from the start of the range.
    fault: AtomicUsize,
    next: Option<&'static Entry>,
}

/// All entries, the newest first.
static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());
/// Held by who changes entries; the handler only reads them.
static CHANGES: Mutex<()> = Mutex::new(());
/// Bytes of a page; 0 until the handler is installed.
static PAGE: AtomicUsize = AtomicUsize::new(0);
/// What a SIGBUS did before.
static FORMER: Former = Former { action: AtomicUsize::new(libc::SIG_DFL), flags: AtomicI32::new(0) };

/// A mapping that is watched.
#[derive(Debug)]
pub struct FaultWatch(&'static Entry);

impl Watch for FaultWatch {
    fn start(bytes: &[u8], _: &Path) -> FaultWatch {
        static INSTALL: Once = Once::new();
        if super::super::handles_faults() {
            INSTALL.call_once(install);
        }
        let _changes = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
        let free = entries().find(|entry| entry.sequence.load(Ordering::Relaxed).is_multiple_of(2));
        let entry = free.unwrap_or_else(|| {
            let entry: &'static Entry = Box::leak(Box::new(Entry {
                sequence: AtomicUsize::new(0),
                start: AtomicUsize::new(0),
                len: AtomicUsize::new(0),
                fault: AtomicUsize::new(NONE),
                next: entries().next(),
            }));
            ENTRIES.store(ptr::from_ref(entry).cast_mut(), Ordering::Release);
            entry
        });
        entry.start.store(bytes.as_ptr().expose_provenance(), Ordering::Relaxed);
        entry.len.store(bytes.len(), Ordering::Relaxed);
        entry.fault.store(NONE, Ordering::Relaxed);
        entry.sequence.fetch_add(1, Ordering::Release);
        FaultWatch(entry)
    }

    fn fault(&self) -> Option<usize> {
        Some(self.0.fault.load(Ordering::Acquire)).filter(|&offset| offset != NONE)
    }
}

impl Drop for FaultWatch {
    fn drop(&mut self) {
        let _changes = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.sequence.fetch_add(1, Ordering::Relaxed);
        // A handler that reads what the next mapping writes into the entry is to see the new sequence number
        // too.
        fence(Ordering::Release);
    }
}

fn entries() -> impl Iterator<Item = &'static Entry> {
    // SAFETY: null, or an entry that was leaked when it was made.
    let first = unsafe { ENTRIES.load(Ordering::Acquire).as_ref() };
    std::iter::successors(first, |entry| entry.next)
}

/// The entry of the mapping that holds an address, and where in it that is.
fn find(address: usize) -> Option<(&'static Entry, usize, usize)> {
    entries().find_map(|entry| {
        let sequence = entry.sequence.load(Ordering::Acquire);
        let start = entry.start.load(Ordering::Relaxed);
        let len = entry.len.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        // The mapping of the address is in use by the thread that was interrupted: an entry that changes is
        // another's.
        let stable = sequence % 2 == 1 && entry.sequence.load(Ordering::Relaxed) == sequence;
        let offset = address.checked_sub(start).filter(|&offset| stable && offset < len)?;
        Some((entry, offset, len))
    })
}

/// Installs the handler. Where that fails everything is as without it.
fn install() {
    let mut former = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: asks for the present action alone, which is written to the place given.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), former.as_mut_ptr()) } != 0 {
        return;
    }
    // SAFETY: asks for a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(0);
    if !page.is_power_of_two() {
        return;
    }
    PAGE.store(page, Ordering::Relaxed);
    // SAFETY: written, since sigaction returned 0. Known before the handler can run.
    FORMER.set(unsafe { former.assume_init_ref() });
    reinstall();
}

/// Makes this the process's handler.
fn reinstall() {
    // SAFETY: all zeros is a `sigaction`; its fields are set, its mask to the empty one.
    let mut action = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
    action.sa_sigaction = own_address();
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is whole, and `on_sigbus` does only what a signal handler may do.
    unsafe {
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
    }
}

fn own_address() -> usize {
    on_sigbus as *const () as usize
}

/// The handler: loads and stores of atomics and system calls, nothing else. The thread that is interrupted
/// reads mapped memory and is in the midst of no call whose `errno` it will look at.
extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system hands over a valid siginfo to a handler with SA_SIGINFO; SIGBUS has an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // Codes up to 0 are of signals that a process sent; on macOS those from 0x10001 on.
    let sent = code <= 0 || code > 0xffff;
    if !sent && find(address).is_some_and(|(entry, offset, len)| blank(entry, offset, len)) {
        return;
    }
    match FORMER.action() {
        libc::SIG_IGN if sent => {}
        // The end of the process: the instruction that failed is run again, a signal that was sent is sent
        // again.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: plain calls that a handler may make.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                if sent {
                    libc::raise(signal);
                }
            }
        }
        handler => {
            // SAFETY: the handler that was there before, called as the system would call it.
            unsafe {
                if FORMER.flags() & libc::SA_SIGINFO != 0 {
                    type WithInfo = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
                    std::mem::transmute::<usize, WithInfo>(handler)(signal, info, context);
                } else {
                    std::mem::transmute::<usize, extern "C" fn(c_int)>(handler)(signal);
                }
            }
            stay();
        }
    }
}

/// After the handler from before: if it has put another in its place, as Rust's own does, that is the one to
/// ask next, and this one stays.
fn stay() {
    let mut present = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: asks for the present action alone, which is written to the place given.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), present.as_mut_ptr()) } != 0 {
        return;
    }
    // SAFETY: written, since sigaction returned 0.
    let present = unsafe { present.assume_init_ref() };
    if present.sa_sigaction != own_address() {
        FORMER.set(present);
        reinstall();
    }
}

/// What a SIGBUS did before, to be read and written in a handler.
struct Former {
    action: AtomicUsize,
    flags: AtomicI32,
}

impl Former {
    fn set(&self, action: &libc::sigaction) {
        // Never flags of the one with the action of the other: default and ignore have none.
        self.action.store(libc::SIG_DFL, Ordering::SeqCst);
        self.flags.store(action.sa_flags, Ordering::SeqCst);
        self.action.store(action.sa_sigaction, Ordering::SeqCst);
    }

    fn action(&self) -> usize {
        self.action.load(Ordering::SeqCst)
    }

    fn flags(&self) -> c_int {
        self.flags.load(Ordering::SeqCst)
    }
}

/// Notes the fault and puts zeros in the place of a mapping from its page on; whether that could be done.
fn blank(entry: &Entry, offset: usize, len: usize) -> bool {
    // The first fault counts. Noted before anyone can read the zeros.
    let _ = entry.fault.compare_exchange(NONE, offset, Ordering::AcqRel, Ordering::Relaxed);
    let start = entry.start.load(Ordering::Relaxed);
    let from = (start + offset) & !(PAGE.load(Ordering::Relaxed) - 1);
    // To the end at once: what follows is most likely gone as well, and a signal a page would take long.
    let rest = start + len - from;
    // SAFETY: the range lies in the entry's mapping, from a whole page on, and that mapping lives: the
    // interrupted thread reads it. It stays mapped and readable throughout; that its bytes change under those
    // who read them is no more than what a writer of the file may do: they are plain numbers, and not used
    // once `fault` is set.
    let blank = unsafe {
        let at = ptr::with_exposed_provenance_mut(from);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        libc::mmap(at, rest, libc::PROT_READ, flags, -1, 0)
    };
    blank != libc::MAP_FAILED
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};

    use super::*;

    const PAGES: usize = 16;

    fn watch(bytes: &[u8]) -> FaultWatch {
        FaultWatch::start(bytes, Path::new("a file of the test"))
    }

    /// A file of ones, mapped.
    fn mapped() -> (File, memmap2::Mmap, usize) {
        let file = tempfile::tempfile().unwrap();
        watch(&[]); // the page's size is known from here on
        let page = PAGE.load(Ordering::Relaxed);
        std::io::Write::write_all(&mut &file, &vec![1; PAGES * page]).unwrap();
        // SAFETY: it is this test that cuts the file short, under a watch.
        let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        (file, map, page)
    }

    fn sum(bytes: &[u8]) -> usize {
        bytes.iter().map(|&b| usize::from(std::hint::black_box(b))).sum()
    }

    #[test]
    fn what_a_file_has_lost_reads_as_zeros_and_is_noted() {
        let (file, map, page) = mapped();
        let watched = watch(&map);
        assert_eq!((sum(&map), watched.fault()), (PAGES * page, None));
        file.set_len(5 * page as u64).unwrap();
        assert_eq!((sum(&map[..5 * page]), watched.fault()), (5 * page, None));
        // Four threads at once, each of which may be the first.
        std::thread::scope(|scope| {
            let parts = (0..4).map(|i| {
                scope.spawn({
                    let map = &map;
                    move || sum(&map[5 * page + i..])
                })
            });
            parts.collect::<Vec<_>>().into_iter().for_each(|part| assert_eq!(part.join().unwrap(), 0));
        });
        assert!(
            watched.fault().is_some_and(|at| (5 * page..5 * page + 4).contains(&at)),
            "{:?}",
            watched.fault()
        );
        // It stays noted when the file has its bytes again.
        file.set_len((PAGES * page) as u64).unwrap();
        assert!(watched.fault().is_some());
    }

    #[test]
    fn an_entry_is_used_again_without_its_fault() {
        let (file, map, _) = mapped();
        let count = || entries().count();
        for _ in 0..1000 {
            let watched = watch(&map);
            assert_eq!(watched.fault(), None);
        }
        assert!(count() < 500, "{} entries", count());
        let (first, second) = (watch(&map[..1]), watch(&map[1..]));
        file.set_len(0).unwrap();
        assert_eq!((map[1], first.fault(), second.fault()), (0, None, Some(0)));
        drop(second);
        assert!(find(map.as_ptr().addr() + 1).is_none());
        assert_eq!(find(map.as_ptr().addr()).map(|(_, offset, len)| (offset, len)), Some((0, 1)));
    }

    /// What happens to this very program, run again with one test: how it ended.
    fn ends(test: &str, part: &str) -> ExitStatus {
        let program = std::env::current_exe().unwrap();
        let mut run = Command::new(program);
        run.args(["--exact", &format!("store::os::unix::fault::tests::{test}"), "--nocapture"]);
        run.env("WAYINFER_TEST_SIGBUS", part).output().unwrap().status
    }

    /// Signals that came to a handler that was there before ours.
    static FOREIGN: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn on_foreign(_: c_int) {
        FOREIGN.fetch_add(1, Ordering::SeqCst);
    }

    /// Signals of others go to the handler from before, as often as they come, and faults of ours are still
    /// handled afterwards.
    #[test]
    fn a_foreign_signal_leaves_the_handler_in_place() {
        if std::env::var("WAYINFER_TEST_SIGBUS").as_deref() != Ok("foreign") {
            let status = ends("a_foreign_signal_leaves_the_handler_in_place", "foreign");
            assert!(status.success(), "{status}");
            return;
        }
        let handler = on_foreign as *const () as usize;
        // SAFETY: the handler counts and nothing else.
        unsafe { libc::signal(libc::SIGBUS, handler) };
        let (file, map, page) = mapped();
        let watched = watch(&map);
        for n in 1..=3 {
            // SAFETY: a plain call.
            unsafe { libc::raise(libc::SIGBUS) };
            assert_eq!(FOREIGN.load(Ordering::SeqCst), n);
        }
        file.set_len(page as u64).unwrap();
        assert_eq!((sum(&map), watched.fault()), (page, Some(page)));
        assert_eq!(FOREIGN.load(Ordering::SeqCst), 3);
    }

    /// Whoever wants to handle SIGBUS on its own keeps it.
    #[test]
    fn the_handler_can_be_declined() {
        if std::env::var("WAYINFER_TEST_SIGBUS").as_deref() != Ok("declined") {
            let status = ends("the_handler_can_be_declined", "declined");
            assert!(status.success(), "{status}");
            return;
        }
        crate::store::leave_faults_alone();
        let _watched = watch(&[0; 4096]);
        let mut present = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: asks for the present action alone, which is written to the place given.
        let present = unsafe {
            assert_eq!(libc::sigaction(libc::SIGBUS, ptr::null(), present.as_mut_ptr()), 0);
            present.assume_init()
        };
        assert_ne!(present.sa_sigaction, own_address());
    }

    #[test]
    fn a_fault_elsewhere_ends_the_process() {
        match std::env::var("WAYINFER_TEST_SIGBUS").as_deref() {
            // Not watched (any more): the canary of the test above.
            Ok("unwatched") => {
                let (file, map, _) = mapped();
                drop(watch(&map));
                file.set_len(0).unwrap();
                sum(&map);
            }
            Ok("sent") => {
                let (_file, map, _) = mapped();
                let _watch = watch(&map);
                // The first is taken by the handler of Rust's runtime, whatever we do, which leaves the
                // second to the system.
                for _ in 0..2 {
                    // SAFETY: plain calls.
                    unsafe { libc::raise(libc::SIGBUS) };
                }
            }
            _ => {
                for part in ["unwatched", "sent"] {
                    let status = ends("a_fault_elsewhere_ends_the_process", part);
                    assert_eq!(status.signal(), Some(libc::SIGBUS), "{part}");
                }
            }
        }
    }
}

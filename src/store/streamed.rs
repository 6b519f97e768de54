//! The mechanism of a model larger than its memory: reads that bring weights to the places that the plan
//! gave them.
//!
//! One lock guards what is where; the bytes themselves are read and computed with outside of it. Nobody
//! holds a weight while waiting for another, so that the smallest ring and cache get a pass to its end.

use std::cell::RefCell;
use std::ops::{Deref, Range};
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::arena::Arena;
use super::disk::{ALIGNMENT, AlignedBuffer, ReadAt, read_whole};
use super::plan::Plan;
use super::requests::{Failure, Guesses, Held, Piece, State, Weight};
use super::{ResidencyStats, StoreError};

thread_local! {
    /// What the thread of a pass does when it has waited for weights.
    static AFTER_WAIT: RefCell<Option<Rc<dyn Fn()>>> = const { RefCell::new(None) };
}

/// Runs `pass`; whenever it has waited for weights on this thread, `then` is called before it goes on.
pub fn after_wait<R>(then: impl Fn() + 'static, pass: impl FnOnce() -> R) -> R {
    /// Puts back what was there before, after a panic as well.
    struct Former(Option<Rc<dyn Fn()>>);
    impl Drop for Former {
        fn drop(&mut self) {
            AFTER_WAIT.set(self.0.take());
        }
    }
    let _former = Former(AFTER_WAIT.replace(Some(Rc::new(then))));
    pass()
}

/// A wait for weights is over.
pub fn wait_is_over() {
    let then = AFTER_WAIT.with_borrow(Clone::clone);
    if let Some(then) = then {
        then();
    }
}

/// Reads under way on a disk.
const READS_A_DISK: usize = 6;

/// What is read, and how it is called in errors.
#[derive(Debug)]
pub struct StreamedFile {
    pub file: Arc<dyn ReadAt>,
    /// The disk, as an index.
    pub disk: usize,
}

/// What the threads share.
#[derive(Debug)]
struct Shared {
    arena: Arena,
    /// By part of the model; `None` where a part is in memory anyway.
    files: Vec<Option<StreamedFile>>,
    state: Mutex<State>,
    /// Weights have come.
    ready: Condvar,
    /// There are reads to do, by disk.
    work: Vec<Condvar>,
}

/// Weights that are in memory, to be copied by another thread.
#[derive(Debug)]
pub struct Resident(Arc<Shared>);

impl Resident {
    /// As [`Streamed::copy`].
    pub fn copy(&self, id: usize, range: Range<usize>, out: &mut [u8]) -> bool {
        self.0.copy(id, range, out)
    }
}

/// Weights that are read as the plan says.
#[derive(Debug)]
pub struct Streamed {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Streamed {
    /// Reserves the memory, starts the threads and begins to read what comes first. Does not wait for it.
    ///
    /// # Errors
    /// Where memory or threads cannot be had.
    pub fn start(
        weights: Vec<Weight>,
        files: Vec<Option<StreamedFile>>,
        plan: &Plan,
    ) -> Result<Streamed, StoreError> {
        let arena = Arena::new(plan.own_bytes() as usize)?;
        let disks = files.iter().flatten().map(|file| file.disk + 1).max().unwrap_or(0);
        let mut state = State::new(weights, plan, disks);
        state.begin();
        let shared = Arc::new(Shared {
            arena,
            files,
            state: Mutex::new(state),
            ready: Condvar::new(),
            work: (0..disks).map(|_| Condvar::new()).collect(),
        });
        let mut streamed = Streamed { shared: Arc::clone(&shared), threads: Vec::new() };
        for disk in (0..disks).flat_map(|disk| [disk; READS_A_DISK]) {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name(format!("disk {disk}"));
            let thread = thread
                .spawn(move || {
                    let _alarm = Alarm(&shared);
                    shared.read_pieces(disk);
                })
                .map_err(|error| StoreError::Threads(Arc::new(error)))?;
            streamed.threads.push(thread);
        }
        Ok(streamed)
    }

    /// A pass over the whole model begins.
    pub fn begin_pass(&self) {
        self.shared.lock().begin_pass();
    }

    /// Begins to read experts that will be wanted in this pass, as far as there is room.
    pub fn will_need(&self, ids: &[usize]) {
        let mut state = self.shared.lock();
        state.announce(ids);
        self.shared.wake_readers(&mut state);
    }

    /// Begins to read experts that may be wanted soon, where nothing certain is to be read.
    pub fn may_need(&self, ids: &[usize], guesses: Guesses) {
        let mut state = self.shared.lock();
        state.guess(ids, guesses);
        self.shared.wake_readers(&mut state);
    }

    /// Whether guesses are to be made in this pass.
    pub fn makes_guesses(&self, guesses: Guesses) -> bool {
        self.shared.lock().makes_guesses(guesses)
    }

    /// Those of `ids` (with their index) that are in memory, of which there is one at least: waits for it.
    ///
    /// # Errors
    /// Where one of them cannot be read.
    pub fn hold_some(&self, ids: &[usize]) -> Result<Vec<(usize, Hold<'_>)>, Failure> {
        let mut state = self.shared.lock();
        ids.iter().for_each(|&id| state.expect(id));
        let mut waiting: Option<Instant> = None;
        let held = loop {
            let held = state.hold(ids);
            self.shared.wake_readers(&mut state);
            if !matches!(&held, Ok(held) if held.is_empty()) {
                break held;
            }
            waiting.get_or_insert_with(Instant::now);
            state = self.shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        ids.iter().for_each(|&id| state.expect_no_more(id));
        state.stats.wait += waiting.map(|since| since.elapsed()).unwrap_or_default();
        drop(state);
        if waiting.is_some() {
            wait_is_over();
        }
        if held.is_err() {
            // What this session waited for may give way to what another waits for.
            self.shared.ready.notify_all();
        }
        let hold = |Held { index, slot, within }| {
            // SAFETY: a weight that is held has been read, and is neither moved nor overwritten until it is
            // released, which the end of the hold does.
            let bytes = unsafe { &self.shared.arena.bytes(slot)[within] };
            (index, Hold { streamed: self, id: ids[index], bytes })
        };
        Ok(held?.into_iter().map(hold).collect())
    }

    /// Copies bytes `range` of a weight that is in memory, whose place in the pass is another: nothing is
    /// read for it, and nothing moves on. Whether it was there.
    pub fn copy(&self, id: usize, range: Range<usize>, out: &mut [u8]) -> bool {
        self.shared.copy(id, range, out)
    }

    /// What is in memory, for another thread.
    pub fn resident(&self) -> Resident {
        Resident(Arc::clone(&self.shared))
    }

    /// Ends a hold.
    fn release(&self, id: usize) {
        let mut state = self.shared.lock();
        state.release(id);
        self.shared.wake_readers(&mut state);
        // Another engine may have been waiting for the room.
        self.shared.ready.notify_all();
    }

    /// Whether a weight is in memory now.
    pub fn is_resident(&self, id: usize) -> bool {
        self.shared.lock().is_ready(id)
    }

    /// Reads bytes `start..end` of the file of a part into `scratch`, and says where in it they are.
    pub fn read(
        &self,
        part: usize,
        (start, end): (u64, u64),
        scratch: &mut AlignedBuffer,
    ) -> std::io::Result<Range<usize>> {
        let file = self.shared.files[part].as_ref().ok_or(std::io::ErrorKind::NotFound)?;
        let from = start / ALIGNMENT as u64 * ALIGNMENT as u64;
        let within = (start - from) as usize..(end - from) as usize;
        scratch.resize(within.end.next_multiple_of(ALIGNMENT))?;
        let read = read_whole(&*file.file, scratch.as_mut(), from, within.end);
        wait_is_over();
        read?;
        self.shared.lock().stats.note_read(file.disk, scratch.as_ref().len() as u64);
        Ok(within)
    }

    /// Waits for the reads of experts to end and empties the cache.
    pub fn empty_cache(&self) {
        let mut state = self.shared.lock();
        while !state.is_cache_idle() && !state.panicked {
            state = self.shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.empty_cache();
    }

    /// What has been read and waited for.
    pub fn stats(&self) -> ResidencyStats {
        self.shared.lock().stats.clone()
    }

    /// Whether all reads go around the page cache.
    pub fn is_direct(&self) -> bool {
        self.shared.files.iter().flatten().all(|file| file.file.is_direct())
    }
}

/// Holds a weight's bytes in memory.
#[derive(Debug)]
pub struct Hold<'a> {
    streamed: &'a Streamed,
    id: usize,
    bytes: &'a [u8],
}

impl Deref for Hold<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.streamed.release(self.id);
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.iter().for_each(Condvar::notify_all);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Where the reader that has it panics, tells those that wait: what it was given to read will not come.
struct Alarm<'a>(&'a Shared);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().panicked = true;
            self.0.ready.notify_all();
        }
    }
}

impl Shared {
    /// See [`Streamed::copy`].
    fn copy(&self, id: usize, range: Range<usize>, out: &mut [u8]) -> bool {
        let state = self.lock();
        let Some((slot, within)) = state.place_of(id) else { return false };
        // SAFETY: a weight that is ready has been read, and its place is given to another under the lock
        // alone.
        let bytes = unsafe { &self.arena.bytes(slot)[within] };
        out.copy_from_slice(&bytes[range]);
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes as many readers as there is work for.
    fn wake_readers(&self, state: &mut State) {
        for (disk, work) in self.work.iter().enumerate() {
            if state.take_news(disk) {
                work.notify_all();
            }
        }
    }

    /// What a reader does until the store is closed.
    fn read_pieces(&self, disk: usize) {
        let mut state = self.lock();
        while !state.closing {
            let Some(piece) = state.next_piece(disk) else {
                state = self.work[disk].wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            let read = self.read_piece(&piece);
            state = self.lock();
            if state.finish_piece(&piece, read) {
                self.ready.notify_all();
                self.wake_readers(&mut state);
            }
        }
    }

    fn read_piece(&self, piece: &Piece) -> std::io::Result<()> {
        let file = self.files[piece.part].as_ref().ok_or(std::io::ErrorKind::NotFound)?;
        // SAFETY: the piece belongs to a weight that is being read: nobody holds it, its place is its own,
        // and pieces do not overlap.
        let buffer = unsafe { self.arena.bytes_mut(piece.slot) };
        read_whole(&*file.file, buffer, piece.offset, piece.needed)
    }
}

#[cfg(test)]
mod tests;

//! Reads mapped files ahead, in the background, so that a first pass does not stop at every page.
//!
//! What a pass has asked for comes before the rest: experts that no token of the first pass chose would
//! otherwise take a part of the disk from those that it waits for.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::MappedFile;

/// Bytes asked for at once: so long at most do the end of the store, and what is asked for meanwhile, wait.
const STEP: usize = 4 << 20;

/// A part of a mapped file.
pub type MappedPart = (Arc<MappedFile>, Range<usize>);

/// Parts of files that are to be read.
#[derive(Debug)]
struct Queue<F> {
    /// What a pass asked for.
    wanted: VecDeque<(F, Range<usize>)>,
    /// The rest, in its order.
    rest: VecDeque<(F, Range<usize>)>,
}

impl<F: Clone> Queue<F> {
    /// The next bytes to read, one step at the most.
    fn next(&mut self) -> Option<(F, Range<usize>)> {
        let queue = if self.wanted.is_empty() { &mut self.rest } else { &mut self.wanted };
        let (file, range) = queue.front_mut()?;
        let step = range.start..range.end.min(range.start + STEP);
        let next = (file.clone(), step.clone());
        range.start = step.end;
        if range.start == range.end {
            queue.pop_front();
        }
        Some(next)
    }

    fn clear(&mut self) {
        self.wanted.clear();
        self.rest.clear();
    }
}

/// Reading under way; ends with this.
#[derive(Debug)]
pub struct Populate {
    /// By disk.
    queues: Vec<Arc<Mutex<Queue<Arc<MappedFile>>>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Populate {
    /// Reads parts of files in their order, from each disk on its own. Without threads to do it, pages come
    /// as they are touched.
    pub fn start(by_disk: Vec<Vec<MappedPart>>) -> Populate {
        let mut populate = Populate { queues: Vec::new(), threads: Vec::new() };
        for parts in by_disk {
            parts.chunk_by(|a, b| Arc::ptr_eq(&a.0, &b.0)).for_each(|part| part[0].0.prefer_large_pages());
            let queue = Arc::new(Mutex::new(Queue { wanted: VecDeque::new(), rest: parts.into() }));
            populate.queues.push(Arc::clone(&queue));
            let thread = std::thread::Builder::new().name("populate".to_owned());
            populate.threads.extend(thread.spawn(move || read(&queue)));
        }
        populate
    }

    /// Reads these bytes before the rest of their disk. What is not left to be read is in memory, and asking
    /// for it again costs next to nothing.
    pub fn hurry(&self, disk: usize, part: MappedPart) {
        let Some(queue) = self.queues.get(disk) else { return };
        let mut queue = lock(queue);
        // With nothing left the thread has ended.
        if !queue.rest.is_empty() && part.1.start < part.1.end {
            queue.wanted.push_back(part);
        }
    }
}

fn lock<F>(queue: &Mutex<Queue<F>>) -> MutexGuard<'_, Queue<F>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(queue: &Mutex<Queue<Arc<MappedFile>>>) {
    loop {
        let next = lock(queue).next();
        let Some((file, range)) = next else { return };
        if !file.populate(range.start, range.len()) {
            return lock(queue).clear();
        }
    }
}

impl Drop for Populate {
    fn drop(&mut self) {
        self.queues.iter().for_each(|queue| lock(queue).clear());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_comes_before_the_rest() {
        let rest = [("a", 0..STEP + 5), ("b", 7..9), ("c", 0..1)].into();
        let mut queue = Queue { wanted: VecDeque::new(), rest };
        assert_eq!(queue.next(), Some(("a", 0..STEP)));
        queue.wanted.extend([("c", 0..1), ("d", 10..2 * STEP)]);
        assert_eq!(queue.next(), Some(("c", 0..1)));
        assert_eq!(queue.next(), Some(("d", 10..STEP + 10)));
        assert_eq!(queue.next(), Some(("d", STEP + 10..2 * STEP)));
        assert_eq!(queue.next(), Some(("a", STEP..STEP + 5)));
        assert_eq!(queue.next(), Some(("b", 7..9)));
        assert_eq!(queue.next(), Some(("c", 0..1)));
        assert_eq!(queue.next(), None);
    }
}

//! Reads mapped files ahead, in the background, so that a first pass does not stop at every page.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::MappedFile;

/// Bytes asked for at once: so long at most does the end of the store wait.
const STEP: usize = 8 << 20;

/// A part of a mapped file.
pub type Part = (Arc<MappedFile>, Range<usize>);

/// Reading under way; ends with this.
#[derive(Debug)]
pub struct Populate {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Populate {
    /// Reads parts of files in their order, from each disk on its own. Without threads to do it, pages come as
    /// they are touched.
    pub fn start(by_disk: Vec<Vec<Part>>) -> Populate {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |parts: Vec<Part>| {
            parts.chunk_by(|a, b| Arc::ptr_eq(&a.0, &b.0)).for_each(|part| part[0].0.prefer_large_pages());
            let stopped = Arc::clone(&stop);
            let thread = std::thread::Builder::new().name("populate".to_owned());
            thread.spawn(move || populate(&parts, &stopped)).ok()
        };
        let threads = by_disk.into_iter().filter_map(start).collect();
        Populate { stop, threads }
    }
}

fn populate(parts: &[Part], stopped: &AtomicBool) {
    for (file, range) in parts {
        for start in range.clone().step_by(STEP) {
            if stopped.load(Ordering::Relaxed) || !file.populate(start, STEP.min(range.end - start)) {
                return;
            }
        }
    }
}

impl Drop for Populate {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

//! Reads mapped files ahead, in the background, so that a first pass does not stop at every page.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::MappedFile;

/// Bytes asked for at once: so long at most does the end of the store wait.
const STEP: usize = 8 << 20;

/// Reading under way; ends with this.
#[derive(Debug)]
pub struct Populate {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Populate {
    /// Reads ranges of files in their order. Without a thread to do it, pages come as they are touched.
    pub fn start(ranges: Vec<(Arc<MappedFile>, Range<usize>)>) -> Populate {
        ranges.chunk_by(|a, b| Arc::ptr_eq(&a.0, &b.0)).for_each(|of_file| of_file[0].0.prefer_large_pages());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let populate = move || {
            for (file, range) in &ranges {
                for start in range.clone().step_by(STEP) {
                    if stopped.load(Ordering::Relaxed) || !file.populate(start, STEP.min(range.end - start)) {
                        return;
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("populate".to_owned()).spawn(populate);
        Populate { stop, thread: thread.ok() }
    }
}

impl Drop for Populate {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

//! Threads that stay awake from pass to pass.
//!
//! A pass is dozens to hundreds of parallel regions with short serial stretches between them, and the next
//! one begins as soon as a token is drawn. rayon's threads go to sleep after some ten microseconds without
//! work, and to wake one takes longer than a small model's region.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rayon::{ThreadPool, Yield};

/// Without work for this long, a thread goes to sleep after all: the text is at its end, or the pass waits
/// for the disk.
const PATIENCE: Duration = Duration::from_millis(1);

/// A pool whose threads look out for work while there are passes.
#[derive(Debug)]
pub(super) struct AwakePool {
    pool: ThreadPool,
    /// Which threads do; none where there are more of them than processors, for they would keep each other
    /// from working.
    looking_out: Option<Arc<[AtomicBool]>>,
}

impl AwakePool {
    pub fn new(pool: ThreadPool) -> AwakePool {
        let threads = pool.current_num_threads();
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let looking_out =
            (threads <= processors).then(|| (0..threads).map(|_| AtomicBool::new(false)).collect());
        AwakePool { pool, looking_out }
    }

    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `pass` on a thread of the pool, the others looking out for its work meanwhile and for the next
    /// pass's afterwards.
    ///
    /// # Panics
    /// Where `pass` does.
    pub fn run<R: Send>(&self, pass: impl FnOnce() -> R + Send) -> R {
        if let Some(looking_out) = &self.looking_out
            && !looking_out.iter().all(|thread| thread.load(Ordering::Relaxed))
        {
            let looking_out = Arc::clone(looking_out);
            self.pool.spawn_broadcast(move |context| look_out(&looking_out[context.index()]));
        }
        self.pool.install(pass)
    }
}

/// Does the pool's work until there has been none for a while; at once back where this thread does so
/// already, further up its stack. A pass is such work, too.
fn look_out(looking_out: &AtomicBool) {
    if looking_out.swap(true, Ordering::Relaxed) {
        return;
    }
    let mut idle_since = Instant::now();
    while idle_since.elapsed() <= PATIENCE {
        if rayon::yield_now() == Some(Yield::Executed) {
            idle_since = Instant::now();
        } else {
            // Another thread may have better use for the processor.
            thread::yield_now();
        }
    }
    looking_out.store(false, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use rayon::ThreadPoolBuilder;
    use rayon::prelude::*;

    use super::*;

    fn pool(threads: usize) -> AwakePool {
        AwakePool::new(ThreadPoolBuilder::new().num_threads(threads).build().unwrap())
    }

    #[test]
    fn runs_regions_and_returns_what_the_pass_does() {
        for threads in [1, 2, 3, 64] {
            let pool = pool(threads);
            for _ in 0..3 {
                let sum = pool.run(|| {
                    (0..50).map(|i| (0..100u64).into_par_iter().map(|j| i * j).sum::<u64>()).sum::<u64>()
                });
                assert_eq!(sum, 1225 * 4950);
            }
        }
    }

    /// A pass that waits lets the others sleep, and wakes them when it goes on.
    #[test]
    fn outlives_a_wait() {
        let pool = pool(2);
        let sum = pool.run(|| {
            thread::sleep(5 * PATIENCE);
            (0..100u64).into_par_iter().sum::<u64>()
        });
        assert_eq!(sum, 4950);
    }

    #[test]
    fn a_pass_that_panics_ends() {
        let pool = pool(2);
        assert!(catch_unwind(AssertUnwindSafe(|| pool.run(|| panic!("on purpose")))).is_err());
        assert_eq!(pool.run(|| 7), 7);
    }

    /// After the last pass no thread is kept from its sleep, and none is kept from the next pass by having
    /// slept.
    #[test]
    fn threads_sleep_in_the_end() {
        let pool = pool(2);
        for _ in 0..2 {
            assert_eq!(pool.run(|| 7), 7);
            let began = Instant::now();
            let awake =
                || pool.looking_out.iter().flat_map(|all| all.iter()).any(|t| t.load(Ordering::Relaxed));
            while awake() {
                assert!(
                    began.elapsed() < Duration::from_secs(10),
                    "threads are awake long after the last pass"
                );
                thread::sleep(PATIENCE);
            }
        }
    }

    #[test]
    fn a_thread_looks_out_once() {
        let already = AtomicBool::new(true);
        pool(1).pool.install(|| look_out(&already));
        assert!(already.load(Ordering::Relaxed), "the outer one still looks out");
    }
}

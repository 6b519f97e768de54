//! Threads that stay awake for the length of a pass.
//!
//! A pass is dozens to hundreds of parallel regions with short serial stretches between them. rayon's threads go to sleep after some
//! ten microseconds without work, and to wake one takes longer than a small model's region: those gain some 15 % by this, large ones
//! nothing that could be measured.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rayon::{ThreadPool, Yield};

/// Without work for this long, a thread goes to sleep after all: the pass waits for the disk.
const PATIENCE: Duration = Duration::from_millis(1);

/// Runs `pass` on a thread of the pool, the others looking out for its work meanwhile.
///
/// # Panics
/// Where `pass` does.
pub(super) fn run<R: Send>(pool: &ThreadPool, pass: impl FnOnce() -> R + Send) -> R {
    // More threads than processors would keep each other from working.
    let processors = thread::available_parallelism().map_or(1, usize::from);
    if pool.current_num_threads() > processors {
        return pool.install(pass);
    }
    let done = AtomicBool::new(false);
    let until = &done;
    pool.scope(|scope| {
        let own = rayon::current_thread_index();
        scope.spawn_broadcast(move |_, context| {
            if Some(context.index()) != own {
                look_out(until);
            }
        });
        let result = pass();
        done.store(true, Ordering::Relaxed);
        result
    })
}

/// Does the pool's work until a pass is done, or there has been none for a while.
fn look_out(done: &AtomicBool) {
    let mut idle_since = Instant::now();
    while !done.load(Ordering::Relaxed) {
        if rayon::yield_now() == Some(Yield::Executed) {
            idle_since = Instant::now();
        } else if idle_since.elapsed() > PATIENCE {
            return;
        } else {
            // Another process may have better use for the processor.
            thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use rayon::ThreadPoolBuilder;
    use rayon::prelude::*;

    use super::*;

    fn pool(threads: usize) -> ThreadPool {
        ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    #[test]
    fn runs_regions_and_returns_what_the_pass_does() {
        for threads in [1, 2, 3, 64] {
            let pool = pool(threads);
            for _ in 0..3 {
                let sum = run(&pool, || {
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
        let sum = run(&pool, || {
            thread::sleep(5 * PATIENCE);
            (0..100u64).into_par_iter().sum::<u64>()
        });
        assert_eq!(sum, 4950);
        let idle = AtomicBool::new(false);
        pool.install(|| look_out(&idle)); // returns though the pass is never done
    }

    #[test]
    fn a_pass_that_panics_ends() {
        let pool = pool(2);
        assert!(catch_unwind(AssertUnwindSafe(|| run(&pool, || panic!("on purpose")))).is_err());
        assert_eq!(run(&pool, || 7), 7);
    }
}

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

use crate::store::after_wait;

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
        let Some(looking_out) = &self.looking_out else { return self.pool.install(pass) };
        self.wake();
        self.pool.install(|| {
            // Its thread is not to look out in the midst of a region, where its own call may reach it.
            let own = rayon::current_thread_index().map(|i| &looking_out[i]);
            let busy = own.filter(|own| !own.swap(true, Ordering::Relaxed)).map(Busy);
            let waker = Arc::clone(looking_out);
            let passed = after_wait(move || wake(&waker), pass);
            if let Some(busy) = busy {
                // Afterwards it does, for the next pass.
                drop(busy);
                let looking_out = Arc::clone(looking_out);
                rayon::spawn(move || {
                    if let Some(i) = rayon::current_thread_index() {
                        look_out(&looking_out[i]);
                    }
                });
            }
            passed
        })
    }

    /// Has all threads look out.
    fn wake(&self) {
        if let Some(looking_out) = &self.looking_out
            && !all_look_out(looking_out)
        {
            let looking_out = Arc::clone(looking_out);
            self.pool.spawn_broadcast(move |context| look_out(&looking_out[context.index()]));
        }
    }
}

fn all_look_out(looking_out: &[AtomicBool]) -> bool {
    looking_out.iter().all(|thread| thread.load(Ordering::Relaxed))
}

/// The same on a thread of the pool: others may have gone to sleep while it waited.
fn wake(looking_out: &Arc<[AtomicBool]>) {
    if !all_look_out(looking_out) {
        let looking_out = Arc::clone(looking_out);
        rayon::spawn_broadcast(move |context| look_out(&looking_out[context.index()]));
    }
}

/// The thread that runs a pass and does not look out besides.
struct Busy<'a>(&'a AtomicBool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
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
    use crate::quant::testing::say;

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

    /// When a wait of a pass is over, the others are awake before its next region begins.
    #[test]
    fn a_wait_that_is_over_wakes_the_others() {
        let pool = pool(2);
        let Some(looking_out) = pool.looking_out.clone() else {
            say("skipped: this machine has one processor");
            return;
        };
        pool.run(|| {
            let own = rayon::current_thread_index().unwrap();
            let other = &looking_out[1 - own];
            let within = |time: Duration, is: bool| {
                let began = Instant::now();
                while other.load(Ordering::Relaxed) != is && began.elapsed() < time {
                    thread::yield_now();
                }
                other.load(Ordering::Relaxed) == is
            };
            assert!(within(10_000 * PATIENCE, false), "it does not go to sleep while the pass waits");
            // On a busy machine it may be awake and asleep again before this thread looks.
            let woken = || {
                crate::store::wait_is_over();
                within(10 * PATIENCE, true)
            };
            assert!((0..1000).any(|_| woken()), "it sleeps on");
        });
    }

    /// The thread of a pass has its own call to look out waiting; a region must not run it.
    #[test]
    fn the_thread_of_a_pass_does_not_look_out() {
        let pool = pool(2);
        let Some(looking_out) = pool.looking_out.clone() else {
            say("skipped: this machine has one processor");
            return;
        };
        let stands_still = || {
            thread::sleep(2 * PATIENCE);
            pool.run(|| {
                let own = rayon::current_thread_index().unwrap();
                assert!(looking_out[own].load(Ordering::Relaxed), "it counts as awake");
                // Every thread is called, this one too.
                looking_out[1 - own].store(false, Ordering::Relaxed);
                wake(&looking_out);
                let began = Instant::now();
                // What a region does when it waits for others: any work there is.
                while rayon::yield_now() == Some(Yield::Executed) {}
                began.elapsed()
            })
        };
        // The machine may be busy now and then.
        assert!((0..200).any(|_| stands_still() < PATIENCE), "the pass stands still");
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

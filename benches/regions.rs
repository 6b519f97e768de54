//! What a parallel region costs apart from its work: the fork and the join of the thread pool.
//!
//! `cargo bench --bench regions`. A pass of a model of L layers has some 4 L + 1 regions. "At once": one after another, as between
//! products; "after a pause" of 100 microseconds, in which threads have gone to sleep, as after a long serial stretch. More threads
//! than processors show what oversubscription costs.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::ThreadPoolBuilder;
use rayon::prelude::*;

const REGIONS: usize = 2000;
const PAUSE: Duration = Duration::from_micros(100);

fn main() {
    println!("{:>7} {:>14} {:>18}", "threads", "at once, us", "after a pause, us");
    for threads in [1, 2, 4, 8, 16] {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        let [at_once, after_a_pause] =
            pool.install(|| [median(threads, Duration::ZERO), median(threads, PAUSE)]);
        println!("{threads:>7} {at_once:>14.2} {after_a_pause:>18.2}");
    }
}

/// The median of many regions, microseconds, each of as many jobs as there are threads.
fn median(threads: usize, pause: Duration) -> f64 {
    let mut times: Vec<Duration> = (0..REGIONS)
        .map(|_| {
            let paused = Instant::now();
            while paused.elapsed() < pause {
                std::hint::spin_loop();
            }
            let start = Instant::now();
            (0..threads).into_par_iter().with_max_len(1).for_each(|i| {
                black_box(i);
            });
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[REGIONS / 2].as_secs_f64() * 1e6
}

//! What a parallel region costs apart from its work: the fork and the join of the thread pool.
//!
//! `cargo bench --bench regions`. Each thread has a job of 20 microseconds; what a region takes beyond that is its cost, for half
//! of the regions at the most. "At once": one region after another, as between products; "after a pause" of 100 microseconds, in
//! which threads have gone to sleep, as after a long serial stretch. A pass of a model of L layers has some 4 L + 1 regions. More
//! threads than processors are left out: they would wait for each other.

use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use rayon::ThreadPoolBuilder;
use rayon::prelude::*;

const REGIONS: usize = 2000;
const WORK: Duration = Duration::from_micros(20);
const PAUSE: Duration = Duration::from_micros(100);

fn main() {
    println!("{:>7} {:>14} {:>18}", "threads", "at once, us", "after a pause, us");
    let processors = available_parallelism().map_or(1, usize::from);
    for threads in [1, 2, 4, 8, 16].into_iter().filter(|&threads| threads <= processors) {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        let [at_once, paused] = pool.install(|| [Duration::ZERO, PAUSE].map(|pause| cost(threads, pause)));
        println!("{threads:>7} {at_once:>14.2} {paused:>18.2}");
    }
}

fn spin(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// The median of many regions, microseconds, each of as many jobs as there are threads.
fn cost(threads: usize, pause: Duration) -> f64 {
    let mut times: Vec<Duration> = (0..REGIONS)
        .map(|_| {
            spin(pause);
            let start = Instant::now();
            (0..threads).into_par_iter().with_max_len(1).for_each(|_| spin(WORK));
            start.elapsed().saturating_sub(WORK)
        })
        .collect();
    times.sort_unstable();
    times[REGIONS / 2].as_secs_f64() * 1e6
}

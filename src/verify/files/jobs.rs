//! Work that is split over threads which read files and therefore often wait.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Threads for so many jobs: enough that reads are under way while others compute, few enough that what each
/// holds in memory does not add up.
pub fn threads(jobs: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.clamp(6, 12).min(jobs)
}

/// Does jobs `0..jobs` on several threads, each with memory of its own, and gives their results in order.
/// Jobs begin in order; after an error none begins.
///
/// # Errors
/// That of the first job that failed.
pub fn run<S: Default, T: Send, E: Send>(
    threads: usize,
    jobs: usize,
    job: impl Fn(&mut S, usize) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results = Mutex::new(Vec::new());
    let work = || {
        let mut memory = S::default();
        let mut own = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= jobs {
                break;
            }
            let result = job(&mut memory, index);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            own.push((index, result));
        }
        results.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).append(&mut own);
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.max(1) {
            scope.spawn(work);
        }
        work();
    });
    let mut results = results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    results.sort_unstable_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_errors_end_the_work() {
        let squares = run(5, 1000, |calls: &mut usize, i| {
            *calls += 1;
            Ok::<_, ()>(i * i)
        });
        assert_eq!(squares.unwrap(), (0..1000).map(|i| i * i).collect::<Vec<_>>());
        let done = AtomicUsize::new(0);
        let failed = run(4, 100_000, |(): &mut (), i| {
            done.fetch_add(1, Ordering::Relaxed);
            if i >= 10 { Err(i) } else { Ok(()) }
        });
        assert_eq!(failed.unwrap_err(), 10);
        assert!(done.into_inner() < 100);
        assert_eq!(run(3, 0, |(): &mut (), _| Ok::<_, ()>(())), Ok(vec![]));
    }
}

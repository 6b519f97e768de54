//! How fast disks read.

use std::sync::Arc;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use super::StoreError;
use super::disk::{ALIGNMENT, AlignedBuffer, OpenFile, ReadAt, read_whole};
use crate::gguf::OpenedFile;

/// Bytes of a read, reads under way and the time they are given: those of a run, for about a second.
const PIECE: usize = 1 << 20;
const READERS: usize = 6;
const TIME: Duration = Duration::from_millis(800);
/// Files smaller than this say little.
const LEAST_BYTES: u64 = 64 << 20;

/// Bytes a second of each of these files, all at once, as a run reads them: at places all over a file. So
/// files on one disk after all, as on two of its partitions, share its speed. `None` for a file that is too
/// small to tell.
///
/// # Errors
/// Where one cannot be opened or read.
pub fn read_speeds(files: &[Arc<OpenedFile>], open: OpenFile<'_>) -> Result<Vec<Option<f64>>, StoreError> {
    let again =
        |opened: &Arc<OpenedFile>| open(opened).map_err(|error| StoreError::open(opened.path(), error));
    let again = files.iter().map(again).collect::<Result<Vec<_>, _>>()?;
    std::thread::scope(|scope| {
        let measure = |(opened, file): (&Arc<OpenedFile>, Arc<dyn ReadAt>)| {
            let (opened, large) = (Arc::clone(opened), opened.bytes() >= LEAST_BYTES);
            large.then(|| scope.spawn(move || read_speed(&*file, opened.bytes()).map_err(|e| (opened, e))))
        };
        let threads: Vec<_> = files.iter().zip(again).map(measure).collect();
        let failed = |(opened, error): (Arc<OpenedFile>, std::io::Error)| StoreError::ReadFile {
            path: opened.path().to_owned(),
            source: Arc::new(error),
        };
        let joined = threads.into_iter().map(|thread| thread.map(joined));
        joined.map(|speed| speed.transpose().map_err(failed)).collect()
    })
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn read_speed(file: &dyn ReadAt, bytes: u64) -> std::io::Result<f64> {
    let pieces = bytes / PIECE as u64;
    let started = Instant::now();
    let read = |reader: usize| -> std::io::Result<u64> {
        let mut buffer = AlignedBuffer::new(PIECE.next_multiple_of(ALIGNMENT))?;
        // Places far from each other, by a step that is prime to most sizes.
        let (mut at, mut done) = (pieces * reader as u64 / READERS as u64, 0);
        while started.elapsed() < TIME {
            read_whole(file, buffer.as_mut(), at % pieces * PIECE as u64, PIECE)?;
            at += 7919;
            done += PIECE as u64;
        }
        Ok(done)
    };
    let done: std::io::Result<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..READERS).map(|reader| scope.spawn(move || read(reader))).collect();
        threads.into_iter().map(joined).sum()
    });
    Ok(done? as f64 / started.elapsed().as_secs_f64())
}

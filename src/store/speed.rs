//! How fast disks read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use super::StoreError;
use super::disk::{ALIGNMENT, AlignedBuffer, OpenFile, ReadAt, open_cached, open_file, read_whole};
use super::os::{Os, System};
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
    rate(file, bytes / PIECE as u64, READERS, TIME, usize::MAX)
}

/// A way to read a file: around the page cache or through it, by so many threads at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadWay {
    pub direct: bool,
    pub readers: usize,
}

/// Reads through the page cache are of so many bytes at the most: they drop out of it before.
const CACHED_BYTES: u64 = 512 << 20;

/// Bytes a second of a file that is read in a way, at places all over it, for so long at the most. Nothing is
/// read twice; what is read through the page cache is dropped from it first, and is there afterwards. `None`
/// for a file that is too small to tell, and where the file system has no direct reads.
///
/// # Errors
/// Where it cannot be opened or read.
pub fn read_speed_by(
    opened: &Arc<OpenedFile>,
    way: ReadWay,
    time: Duration,
) -> Result<Option<f64>, StoreError> {
    if opened.bytes() < LEAST_BYTES {
        return Ok(None);
    }
    let (file, bytes) = match way.direct {
        true => (open_file(opened).map_err(|e| StoreError::open(opened.path(), e))?, opened.bytes()),
        false => (open_cached(opened), opened.bytes().min(CACHED_BYTES)),
    };
    if file.is_direct() != way.direct {
        return Ok(None);
    }
    if !way.direct {
        Os::drop_pages(opened.file(), 0, bytes as usize); // it is at most 512 MiB
    }
    let pieces = bytes / PIECE as u64;
    let speed = rate(&*file, pieces, way.readers, time, pieces as usize);
    let failed = |e| StoreError::ReadFile { path: opened.path().to_owned(), source: Arc::new(e) };
    speed.map(Some).map_err(failed)
}

/// Bytes a second of reads at places far from each other, until the time is over or so many were read.
fn rate(file: &dyn ReadAt, pieces: u64, readers: usize, time: Duration, most: usize) -> std::io::Result<f64> {
    let started = Instant::now();
    let next = AtomicUsize::new(0);
    let read = || -> std::io::Result<u64> {
        let mut buffer = AlignedBuffer::new(PIECE.next_multiple_of(ALIGNMENT))?;
        let mut done = 0;
        while started.elapsed() < time {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= most {
                break;
            }
            // A step that is prime to most sizes.
            let at = (number as u64).wrapping_mul(7919) % pieces;
            read_whole(file, buffer.as_mut(), at * PIECE as u64, PIECE)?;
            done += PIECE as u64;
        }
        Ok(done)
    };
    let done: std::io::Result<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..readers).map(|_| scope.spawn(read)).collect();
        threads.into_iter().map(joined).sum()
    });
    Ok(done? as f64 / started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_reading_has_a_speed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(LEAST_BYTES - 1).unwrap();
        let speed = |direct| {
            let opened = Arc::new(OpenedFile::open(file.path()).unwrap());
            read_speed_by(&opened, ReadWay { direct, readers: 3 }, Duration::from_millis(20)).unwrap()
        };
        assert_eq!([speed(false), speed(true)], [None, None]);
        file.as_file().set_len(LEAST_BYTES + 5).unwrap();
        assert!(speed(false).is_some_and(|speed| speed > 0.0 && speed.is_finite()));
        // Not every file system has direct reads.
        assert!(speed(true).is_none_or(|speed| speed > 0.0 && speed.is_finite()));
    }
}

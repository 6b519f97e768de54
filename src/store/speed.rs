//! How fast a disk reads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::StoreError;
use super::disk::{ALIGNMENT, AlignedBuffer, OpenFile, read_whole};
use crate::gguf::OpenedFile;

/// Bytes of a read, reads under way and the time they are given: those of a run, for about a second.
const PIECE: usize = 1 << 20;
const READERS: usize = 6;
const TIME: Duration = Duration::from_millis(800);
/// Files smaller than this say little.
const LEAST_BYTES: u64 = 64 << 20;

/// Bytes a second of reads as a run does them, at places all over a file; `None` where it is too small to
/// tell.
///
/// # Errors
/// Where it cannot be opened or read.
pub fn read_speed(opened: &Arc<OpenedFile>, open: OpenFile<'_>) -> Result<Option<f64>, StoreError> {
    let path = opened.path();
    let file = open(opened).map_err(|error| StoreError::open(path, error))?;
    let failed = |error| StoreError::ReadFile { path: path.to_owned(), source: Arc::new(error) };
    let bytes = opened.bytes();
    if bytes < LEAST_BYTES {
        return Ok(None);
    }
    let pieces = bytes / PIECE as u64;
    let started = Instant::now();
    let read = |reader: usize| -> std::io::Result<u64> {
        let mut buffer = AlignedBuffer::new(PIECE.next_multiple_of(ALIGNMENT))?;
        // Places far from each other, by a step that is prime to most sizes.
        let (mut at, mut done) = (pieces * reader as u64 / READERS as u64, 0);
        while started.elapsed() < TIME {
            read_whole(&*file, buffer.as_mut(), at % pieces * PIECE as u64, PIECE)?;
            at += 7919;
            done += PIECE as u64;
        }
        Ok(done)
    };
    let done: std::io::Result<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..READERS).map(|reader| scope.spawn(move || read(reader))).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).sum()
    });
    Ok(Some(done.map_err(failed)? as f64 / started.elapsed().as_secs_f64()))
}

//! Bytes of a model's files, read at any place: nothing of them stays in memory but what was asked for last.

use std::ops::{Deref, Range};
use std::sync::Arc;

use super::disk::{ALIGNMENT, AlignedBuffer, ReadAt, open_cached, open_file, read_whole};
use super::{StoreError, available_memory_bytes};
use crate::gguf::{Gguf, PartBytes, StaticBytes};

/// Reads the files of a model, by several threads at once.
#[derive(Debug)]
pub struct ModelReader<'a> {
    gguf: &'a Gguf,
    /// `None` where the bytes are in memory.
    files: Vec<Option<Arc<dyn ReadAt>>>,
}

/// Bytes that were read, and the memory that they lie in, which the next ones get.
#[derive(Debug, Default)]
pub struct Piece {
    buffer: AlignedBuffer,
    /// Of the buffer.
    bytes: Range<usize>,
    /// Bytes that were in memory already.
    fixed: Option<StaticBytes>,
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.fixed {
            Some(bytes) => bytes,
            None => &self.buffer.as_ref()[self.bytes.clone()],
        }
    }
}

impl<'a> ModelReader<'a> {
    /// Opens the files for reading. What would fill half of the memory that there is is read around the page
    /// cache: it would only drive out what is of use.
    ///
    /// # Errors
    /// Where a file cannot be opened once more.
    pub fn open(gguf: &'a Gguf) -> Result<ModelReader<'a>, StoreError> {
        let all = gguf.parts.iter().map(|part| part.file_bytes).fold(0, u64::saturating_add);
        let is_large = available_memory_bytes().is_some_and(|available| available / 2 < all);
        ModelReader::open_by(gguf, is_large)
    }

    /// Opens the files, of a large model for reading around the page cache.
    fn open_by(gguf: &'a Gguf, is_large: bool) -> Result<ModelReader<'a>, StoreError> {
        let open = |bytes: &PartBytes| match bytes {
            PartBytes::Memory(_) => Ok(None),
            PartBytes::File(file) if !is_large => Ok(Some(open_cached(file))),
            PartBytes::File(file) => {
                open_file(file).map(Some).map_err(|error| StoreError::open(file.path(), error))
            }
        };
        let files = gguf.parts.iter().map(|part| open(&part.bytes)).collect::<Result<_, _>>()?;
        Ok(ModelReader { gguf, files })
    }

    /// The model.
    pub fn gguf(&self) -> &'a Gguf {
        self.gguf
    }

    /// Reads bytes of a file of the model.
    ///
    /// # Errors
    /// Where they cannot be read, the file has changed since its header was read, or there is no memory.
    ///
    /// # Panics
    /// Where the file did not have these bytes then.
    pub fn read(&self, part: usize, bytes: Range<u64>, into: &mut Piece) -> Result<(), StoreError> {
        assert!(bytes.start <= bytes.end && bytes.end <= self.gguf.parts[part].file_bytes, "{bytes:?}");
        into.fixed = None;
        let file = match (&self.files[part], &self.gguf.parts[part].bytes) {
            (Some(file), _) => file,
            (None, PartBytes::Memory(all)) => {
                // What is in memory fits usize.
                into.fixed = Some(StaticBytes(&all.0[bytes.start as usize..bytes.end as usize]));
                return Ok(());
            }
            (None, PartBytes::File(_)) => unreachable!("files are open"),
        };
        let start = bytes.start / ALIGNMENT as u64 * ALIGNMENT as u64;
        let (skipped, needed) = ((bytes.start - start) as usize, (bytes.end - start) as usize);
        let read = into
            .buffer
            .resize(needed.next_multiple_of(ALIGNMENT))
            .and_then(|()| read_whole(&**file, into.buffer.as_mut(), start, needed));
        into.bytes = skipped..needed;
        read.map_err(|error| self.failed(part, bytes.start, error))
    }

    fn failed(&self, part: usize, offset: u64, error: std::io::Error) -> StoreError {
        let holds = |start: u64, bytes: u64| offset >= start && offset - start < bytes;
        let mut tensors = self.gguf.tensors.iter().filter(|tensor| tensor.part == part);
        let path = &self.gguf.parts[part].path;
        match tensors.find(|tensor| holds(tensor.offset, tensor.bytes)) {
            Some(tensor) => StoreError::read(path, &tensor.name, offset, Arc::new(error)),
            None => StoreError::changed(path, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any range, in any order, with one piece of memory.
    #[test]
    fn ranges_are_read_as_they_lie_in_the_file() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/moe-q4_k_m.gguf");
        let (all, gguf) = (std::fs::read(path).unwrap(), Gguf::open(path).unwrap());
        let (mut piece, end) = (Piece::default(), all.len());
        for is_large in [false, true] {
            let reader = ModelReader::open_by(&gguf, is_large).unwrap();
            for range in [0..0, 5..9, 0..end, 4095..4097, 100_000..300_001, end - 1..end, end..end] {
                reader.read(0, range.start as u64..range.end as u64, &mut piece).unwrap();
                assert!(piece[..] == all[range.clone()], "{range:?}, {is_large}");
            }
        }
    }

    #[test]
    fn a_file_that_changes_is_no_longer_read() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/dense-q8_0.gguf");
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("m.gguf");
        std::fs::copy(path, &copy).unwrap();
        let gguf = Gguf::open(&copy).unwrap();
        let reader = ModelReader::open(&gguf).unwrap();
        let tensor = &gguf.tensors[1];
        std::fs::OpenOptions::new().write(true).open(&copy).unwrap().set_len(tensor.offset).unwrap();
        let read = reader.read(0, tensor.offset..tensor.offset + tensor.bytes, &mut Piece::default());
        let error = read.unwrap_err().to_string();
        assert!(error.contains(&tensor.name) && error.contains("cut short"), "{error}");
        let error = reader.read(0, 0..8, &mut Piece::default()).unwrap_err().to_string();
        assert!(error.contains("has been written to"), "{error}");
    }
}

//! A buffered reader of a file's header that knows where it is and what is left.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::PartBytes;
use super::error::{GgufError, GgufErrorKind};
use super::source::{OpenedFile, Source};

/// Most bytes of header that are read; the largest known (vocabulary, merges, 2,000 tensors) take 20 MB.
pub(super) const MAX_HEADER_BYTES: u64 = 1 << 30;

/// Reads on from the position of a handle that others have too.
struct OpenedReader(Arc<OpenedFile>);

impl Read for OpenedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.file().read(buffer)
    }
}

/// Reads little-endian values; each read is checked against the bytes that remain first.
pub(super) struct Reader {
    file: Box<dyn Read>,
    bytes: PartBytes,
    path: PathBuf,
    file_bytes: u64,
    offset: u64,
}

impl Reader {
    /// Opens a regular file, or bytes in memory, that is not empty.
    pub fn open(source: Source<'_>) -> Result<Reader, GgufError> {
        let (file, file_bytes, bytes): (Box<dyn Read>, u64, PartBytes) = match source {
            Source::File(path) => {
                let opened = Arc::new(Reader::open_file(path)?);
                let file = BufReader::with_capacity(128 << 10, OpenedReader(Arc::clone(&opened)));
                (Box::new(file), opened.bytes(), PartBytes::File(opened))
            }
            Source::Memory { bytes, .. } => {
                (Box::new(Cursor::new(bytes.0)), bytes.len() as u64, PartBytes::Memory(bytes))
            }
        };
        let path = source.path().to_owned();
        if file_bytes == 0 {
            return Err(GgufError { path, offset: None, kind: GgufErrorKind::Empty });
        }
        Ok(Reader { file, bytes, path, file_bytes, offset: 0 })
    }

    /// A regular file.
    fn open_file(path: &Path) -> Result<OpenedFile, GgufError> {
        let fail = |kind| GgufError { path: path.to_owned(), offset: None, kind };
        // The kind is looked at before opening: to open a named pipe would wait for its other end.
        let found = fs::metadata(path).map_err(|e| fail(e.into()))?;
        if found.is_dir() {
            return Err(fail(GgufErrorKind::NotAFile("a directory")));
        }
        if !found.is_file() {
            return Err(fail(GgufErrorKind::NotAFile("a device, pipe or socket")));
        }
        File::open(path).and_then(|file| OpenedFile::of(file, path)).map_err(|e| fail(e.into()))
    }

    /// Where the bytes are that it reads.
    pub fn part_bytes(&self) -> PartBytes {
        self.bytes.clone()
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Bytes from the start of the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes that remain.
    pub fn left(&self) -> u64 {
        self.file_bytes.saturating_sub(self.offset)
    }

    /// An error at a place in this file.
    pub fn error(&self, offset: u64, kind: GgufErrorKind) -> GgufError {
        GgufError { path: self.path.clone(), offset: Some(offset), kind }
    }

    /// Fills `out`; `what` names it where it is not all there.
    fn fill(&mut self, out: &mut [u8], what: impl Display) -> Result<(), GgufError> {
        let wanted = out.len() as u64;
        self.need(wanted, &what)?;
        match self.file.read_exact(out) {
            Ok(()) => {
                self.offset += wanted;
                Ok(())
            }
            // The file has become shorter since it was opened.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self
                    .error(self.offset, GgufErrorKind::Truncated { what: what.to_string(), wanted, left: 0 }))
            }
            Err(e) => Err(self.error(self.offset, e.into())),
        }
    }

    /// Whether `wanted` more bytes may be read.
    fn need(&self, wanted: u64, what: impl Display) -> Result<(), GgufError> {
        let left = self.left();
        if wanted > left {
            let what = what.to_string();
            return Err(self.error(self.offset, GgufErrorKind::Truncated { what, wanted, left }));
        }
        if wanted > MAX_HEADER_BYTES - self.offset.min(MAX_HEADER_BYTES) {
            let what = format!("bytes of header, up to {what}");
            let found = self.offset.saturating_add(wanted);
            return Err(
                self.error(self.offset, GgufErrorKind::TooMany { what, found, most: MAX_HEADER_BYTES })
            );
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: impl Display) -> Result<[u8; N], GgufError> {
        let mut out = [0; N];
        self.fill(&mut out, what)?;
        Ok(out)
    }

    pub fn u32(&mut self, what: impl Display) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub fn u64(&mut self, what: impl Display) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of things that take at least `each` bytes, held against a cap and the bytes that remain.
    pub fn count(&mut self, most: u64, each: u64, what: impl Display) -> Result<u64, GgufError> {
        let at = self.offset;
        let found = self.u64(&what)?;
        if found > most {
            return Err(self.error(at, GgufErrorKind::TooMany { what: what.to_string(), found, most }));
        }
        let (wanted, left) = (found.saturating_mul(each), self.left());
        if wanted > left {
            let what = what.to_string();
            return Err(self.error(at, GgufErrorKind::CountBeyondFile { what, found, wanted, left }));
        }
        Ok(found)
    }

    /// Appends `n` bytes to `out`, which grows by no more than those.
    pub fn append(&mut self, out: &mut Vec<u8>, n: u64, what: impl Display) -> Result<(), GgufError> {
        self.need(n, &what)?;
        let start = out.len();
        let room = usize::try_from(n).ok().filter(|&n| out.try_reserve(n).is_ok());
        let Some(n) = room else {
            let kind = GgufErrorKind::OutOfMemory { what: what.to_string(), wanted: n };
            return Err(self.error(self.offset, kind));
        };
        out.resize(start + n, 0);
        self.fill(&mut out[start..], what)
    }

    /// `n` bytes.
    pub fn bytes(&mut self, n: u64, what: impl Display) -> Result<Vec<u8>, GgufError> {
        self.need(n, &what)?;
        let mut out = Vec::new();
        if out.try_reserve_exact(usize::try_from(n).unwrap_or(usize::MAX)).is_err() {
            let kind = GgufErrorKind::OutOfMemory { what: what.to_string(), wanted: n };
            return Err(self.error(self.offset, kind));
        }
        self.append(&mut out, n, what)?;
        Ok(out)
    }
}

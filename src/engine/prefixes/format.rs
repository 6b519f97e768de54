//! A file of a prefix cache: a header that says what it is of, what a sequence remembers, a checksum of both.
//!
//! All numbers are little-endian. The header is known before the file is read, so that nothing is believed or
//! allocated by what the file says.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};

use thiserror::Error;

/// A BLAKE3 hash.
pub type Hash = [u8; 32];

const MAGIC: [u8; 8] = *b"WayPages";

/// Raised with every change of what a file holds, and of the arithmetic that makes it within a version of the
/// program.
const VERSION: u32 = 1;

/// Bytes of a header.
pub const HEADER: usize = 128;

/// Bytes that are read at a time.
const BUFFER: usize = 1 << 18;

/// What a file is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which part of what a sequence remembers.
    pub part: u32,
    /// Which page, from 0.
    pub page: u64,
    /// Bytes between the header and the checksum.
    pub bytes: u64,
    pub model: Hash,
    pub settings: Hash,
    /// Of all tokens up to the page's end, and of the two before.
    pub key: Hash,
}

/// Why a file is not used.
#[derive(Debug, Error)]
pub enum Refused {
    #[error("it is no file of a prefix cache")]
    Foreign,
    #[error("its format is {found}, where {VERSION} is known")]
    Version { found: u32 },
    #[error("it is of another {what}")]
    Other { what: &'static str },
    #[error("it has {found} bytes, where {wanted} are expected")]
    Length { found: u64, wanted: u64 },
    #[error("its checksum does not match: it was altered")]
    Checksum,
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl Header {
    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        (HEADER + size_of::<Hash>()) as u64 + self.bytes
    }

    fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let fields: [&[u8]; 8] = [
            &MAGIC,
            &VERSION.to_le_bytes(),
            &self.part.to_le_bytes(),
            &self.page.to_le_bytes(),
            &self.bytes.to_le_bytes(),
            &self.model,
            &self.settings,
            &self.key,
        ];
        let mut rest = &mut bytes[..];
        for field in fields {
            let (to, others) = rest.split_at_mut(field.len());
            to.copy_from_slice(field);
            rest = others;
        }
        bytes
    }

    /// Whether a file's header is this one.
    fn check(&self, found: &[u8; HEADER]) -> Result<(), Refused> {
        let wanted = self.to_bytes();
        let other = |at: std::ops::Range<usize>| found[at.clone()] != wanted[at];
        if other(0..8) {
            return Err(Refused::Foreign);
        }
        if other(8..12) {
            let found = found[8..12].try_into().map_or(0, u32::from_le_bytes);
            return Err(Refused::Version { found });
        }
        let fields = [
            (32..64, "model"),
            (64..96, "version of the program or other settings"),
            (96..128, "text"),
            (12..16, "part"),
            (16..24, "page"),
            (24..32, "size"),
        ];
        match fields.into_iter().find(|(at, _)| other(at.clone())) {
            Some((_, what)) => Err(Refused::Other { what }),
            None => Ok(()),
        }
    }
}

/// What is written or read, and its hash so far.
pub struct Hashed<I> {
    inner: I,
    hasher: blake3::Hasher,
}

impl<I> Hashed<I> {
    fn new(inner: I) -> Hashed<I> {
        Hashed { inner, hasher: blake3::Hasher::new() }
    }
}

impl<I: Write> Write for Hashed<I> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<I: Read> Read for Hashed<I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}

/// Writes a file: `payload` writes as many bytes as the header has.
pub fn write<W: Write>(
    header: &Header,
    out: W,
    payload: impl FnOnce(&mut Hashed<W>) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = Hashed::new(out);
    out.write_all(&header.to_bytes())?;
    payload(&mut out)?;
    let hash = *out.hasher.finalize().as_bytes();
    out.inner.write_all(&hash)?;
    out.inner.flush()
}

/// Reads a file that is to have this header: `payload` reads as many bytes as it has. What was read is of use
/// only where this returns no error.
pub fn read(
    header: &Header,
    file: File,
    checks: Checks,
    payload: impl FnOnce(&mut Hashed<BufReader<File>>) -> io::Result<()>,
) -> Result<(), Refused> {
    let (found, wanted) = (file.metadata()?.len(), header.file_bytes());
    if found != wanted {
        return Err(Refused::Length { found, wanted });
    }
    let mut from = Hashed::new(BufReader::with_capacity(BUFFER, file));
    let mut bytes = [0; HEADER];
    from.read_exact(&mut bytes)?;
    header.check(&bytes)?;
    payload(&mut from)?;
    let hash = *from.hasher.finalize().as_bytes();
    let mut kept = Hash::default();
    from.inner.read_exact(&mut kept)?;
    match kept == hash || checks == Checks::Header {
        true => Ok(()),
        false => Err(Refused::Checksum),
    }
}

/// What is checked of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checks {
    All,
    /// Tests alone see what comes of a file that was altered.
    Header,
}

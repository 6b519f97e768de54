//! Files that keep what a run gave each scored token, to compare other runs with: bases.
//!
//! ```text
//! magic            8 bytes: WayBase, 1
//! header           its length as u32, JSON of [`BaseHeader`], its BLAKE3 hash (32 bytes)
//! for each window  the length of its rows as u32, the hash of what was run and foretold (32 bytes; see
//!                  Windows::hash), its rows, the BLAKE3 hash of both (32 bytes)
//! a row            how many tokens are kept and their rising ids, each as the difference from the one before
//!                  (LEB128); the logarithms of their probabilities and that of the rest's (f32); the most
//!                  probable token's place (LEB128)
//! ```
//!
//! All numbers are little-endian. What is lost: f32 rounds a logarithm by 6e-8 of it at most, and the tokens
//! that are not kept are told apart no more. See [`TopRow`] for what that does to a divergence. Measured on a
//! model of random weights, whose probabilities are flat: of 320 tokens, 64 tell 98 % of the divergence of a
//! KV cache of Q4_0, and 8 tell 83 %.

use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::verify::{NewFile, TensorFileError};

use super::{BaseError, BaseProblem, TopRow, WindowOptions, Windows};

pub(super) const MAGIC: [u8; 8] = *b"WayBase\x01";

/// Bytes of a header, at most.
const MOST_HEADER: u32 = 64 << 10;

/// Most tokens that are kept of a row.
pub const MOST_TOP: usize = 1 << 16;

/// Bytes of a number of 32 bits as LEB128, at most.
const LEB: usize = 5;

type Hash = [u8; 32];

/// What a base is of.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct BaseHeader {
    /// The model's file, as it was named; for people.
    pub model: String,
    /// How the run computed; for people.
    pub settings: String,
    pub vocab: usize,
    pub context: usize,
    pub stride: Option<usize>,
    pub windows: usize,
    /// Tokens kept of a row, and the one that came besides.
    pub top: usize,
}

/// Writes a base, a window after another. The file is there when it is finished.
#[derive(Debug)]
pub struct BaseWriter {
    path: PathBuf,
    out: BufWriter<NewFile>,
    top: usize,
}

impl BaseWriter {
    /// Begins a file.
    ///
    /// # Errors
    /// Where there is one already and `overwrite` is false, or where it cannot be written.
    pub fn create(path: &Path, overwrite: bool) -> Result<BaseWriter, TensorFileError> {
        let out = BufWriter::new(NewFile::create(path, overwrite)?);
        Ok(BaseWriter { path: path.to_owned(), out, top: 0 })
    }

    /// Says what it is of.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn begin(&mut self, header: &BaseHeader) -> Result<(), TensorFileError> {
        self.top = header.top.clamp(1, MOST_TOP);
        let json = serde_json::to_vec(header)
            .map_err(|error| TensorFileError::Write { path: self.path.clone(), source: error.into() })?;
        self.write(&MAGIC)?;
        self.write(&(json.len() as u32).to_le_bytes())?;
        self.write(&json)?;
        self.write(blake3::hash(&json).as_bytes())
    }

    /// Tokens to keep of a row.
    pub fn top(&self) -> usize {
        self.top
    }

    /// Adds a window's rows.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn add<'r>(
        &mut self,
        hash: &Hash,
        rows: impl IntoIterator<Item = &'r TopRow>,
    ) -> Result<(), TensorFileError> {
        let mut bytes = hash.to_vec();
        for row in rows {
            encode(row, &mut bytes);
        }
        let checksum = blake3::hash(&bytes);
        let len = u32::try_from(bytes.len() - hash.len()).map_err(|_| TensorFileError::Write {
            path: self.path.clone(),
            source: std::io::Error::other("a window of over 4 GiB"),
        })?;
        self.write(&len.to_le_bytes())?;
        self.write(&bytes)?;
        self.write(checksum.as_bytes())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// Where the last of it cannot be written.
    pub fn finish(self) -> Result<(), TensorFileError> {
        let failed = |error: std::io::IntoInnerError<_>| TensorFileError::Write {
            path: self.path.clone(),
            source: error.into_error(),
        };
        self.out.into_inner().map_err(failed)?.finish()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), TensorFileError> {
        let failed = |source| TensorFileError::Write { path: self.path.clone(), source };
        self.out.write_all(bytes).map_err(failed)
    }
}

fn leb(mut value: u32, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn encode(row: &TopRow, out: &mut Vec<u8>) {
    leb(row.ids().len() as u32, out);
    let mut before = 0;
    for &id in row.ids() {
        leb(id - before, out);
        before = id;
    }
    for ln_p in row.ln_p().iter().chain([&row.ln_rest()]) {
        out.extend_from_slice(&ln_p.to_le_bytes());
    }
    leb(row.top_place() as u32, out);
}

/// Bytes that are read from the front.
struct Bytes<'b>(&'b [u8]);

impl Bytes<'_> {
    fn leb(&mut self) -> Option<u32> {
        let mut value = 0u32;
        for i in 0..LEB as u32 {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            let part = u32::from(byte & 0x7f);
            value |= part << (7 * i);
            if byte & 0x80 == 0 {
                // The fifth byte has four bits.
                return (part << (7 * i) >> (7 * i) == part).then_some(value);
            }
        }
        None
    }

    fn f32(&mut self) -> Option<f32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(f32::from_le_bytes(*bytes))
    }

    /// A row of `most` tokens at most.
    fn row(&mut self, vocab: usize, most: usize) -> Result<TopRow, &'static str> {
        const SHORT: &str = "it is cut short";
        let count = self.leb().ok_or(SHORT)? as usize;
        // Five bytes a token at the least.
        if count > most || count > self.0.len() / 5 {
            return Err("it keeps more tokens than there can be");
        }
        let (mut ids, mut ln_p) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let mut id = 0u32;
        for _ in 0..count {
            id = self.leb().and_then(|step| id.checked_add(step)).ok_or(SHORT)?;
            ids.push(id);
        }
        for _ in 0..count {
            ln_p.push(self.f32().ok_or(SHORT)?);
        }
        let rest = self.f32().ok_or(SHORT)?;
        let top = self.leb().ok_or(SHORT)? as usize;
        TopRow::from_parts(ids, ln_p, rest, top, vocab)
    }
}

/// A base that is read a window after another.
#[derive(Debug)]
pub struct BaseFile {
    path: PathBuf,
    reader: BufReader<File>,
    header: BaseHeader,
    /// The next window.
    next: usize,
}

impl BaseFile {
    /// Reads a file's header.
    ///
    /// # Errors
    /// What is no base, or not whole.
    pub fn open(path: &Path) -> Result<BaseFile, BaseError> {
        let refuse = |problem| BaseError { path: path.to_owned(), problem };
        let mut reader = BufReader::with_capacity(1 << 18, File::open(path).map_err(|e| refuse(e.into()))?);
        let header = read_header(&mut reader).map_err(refuse)?;
        Ok(BaseFile { path: path.to_owned(), reader, header, next: 0 })
    }

    /// What it is of.
    pub fn header(&self) -> &BaseHeader {
        &self.header
    }

    /// Whether it can be of these windows.
    ///
    /// # Errors
    /// Where it is of another vocabulary or context, or has too few windows.
    pub fn check(&self, windows: &Windows, vocab: usize) -> Result<(), BaseError> {
        let BaseHeader { context, stride, windows: found, .. } = self.header;
        let refuse = |problem| Err(BaseError { path: self.path.clone(), problem });
        if self.header.vocab != vocab {
            return refuse(BaseProblem::Vocabulary { found: self.header.vocab, wanted: vocab });
        }
        let WindowOptions { context: wanted, stride: wanted_stride, .. } = *windows.options();
        if (context, stride) != (wanted, wanted_stride) {
            let describe = |context: usize, stride: Option<usize>| match stride {
                Some(stride) => format!("a context of {context} with a stride of {stride}"),
                None => format!("a context of {context}"),
            };
            let (found, wanted) = (describe(context, stride), describe(wanted, wanted_stride));
            return refuse(BaseProblem::Context { found, wanted });
        }
        if found < windows.count() {
            return refuse(BaseProblem::Windows { found, wanted: windows.count() });
        }
        Ok(())
    }

    /// The rows of the next window, which is to be window `i` of these.
    ///
    /// # Errors
    /// Where it is of other tokens, or the file is cut short or altered.
    ///
    /// # Panics
    /// Where windows are not asked for one after another.
    pub fn window(&mut self, windows: &Windows, i: usize) -> Result<Vec<TopRow>, BaseError> {
        assert_eq!(i, self.next, "windows are read in their order");
        self.next += 1;
        let rows = self.read_window(windows, i);
        rows.map_err(|problem| BaseError { path: self.path.clone(), problem })
    }

    fn read_window(&mut self, windows: &Windows, i: usize) -> Result<Vec<TopRow>, BaseProblem> {
        let reader = &mut self.reader;
        let cut = |error| cut_in(error, i);
        let vocab = self.header.vocab;
        let len = u32::from_le_bytes(read_array(reader).map_err(cut)?) as u64;
        let kept = self.header.top.min(MOST_TOP).min(vocab) + 1;
        let most = (windows.rows() as u64).saturating_mul(((2 + kept) * LEB + 4 * (kept + 1)) as u64);
        if len > most {
            return Err(BaseProblem::Row {
                window: i,
                row: 0,
                problem: "its window is longer than it can be",
            });
        }
        let hash: Hash = read_array(reader).map_err(cut)?;
        if hash != windows.hash(i) {
            return Err(BaseProblem::Text { window: i });
        }
        // Grows with what is there.
        let mut bytes = hash.to_vec();
        reader.take(len).read_to_end(&mut bytes).map_err(BaseProblem::Io)?;
        if (bytes.len() - hash.len()) as u64 != len {
            return Err(BaseProblem::Truncated { window: Some(i) });
        }
        let checksum: Hash = read_array(reader).map_err(cut)?;
        if checksum != *blake3::hash(&bytes).as_bytes() {
            return Err(BaseProblem::Checksum { window: Some(i) });
        }
        let mut bytes = Bytes(&bytes[hash.len()..]);
        let mut rows = Vec::new();
        for (row, &target) in windows.targets(i).iter().enumerate() {
            let found = bytes.row(vocab, kept).and_then(|row| match row.of(target) {
                Some(_) => Ok(row),
                None => Err("it does not keep the token that came"),
            });
            rows.push(found.map_err(|problem| BaseProblem::Row { window: i, row, problem })?);
        }
        if !bytes.0.is_empty() {
            let (row, problem) = (windows.rows(), "there are more rows than tokens");
            return Err(BaseProblem::Row { window: i, row, problem });
        }
        Ok(rows)
    }
}

fn read_header(reader: &mut impl Read) -> Result<BaseHeader, BaseProblem> {
    let cut = |error: std::io::Error| match error.kind() {
        ErrorKind::UnexpectedEof => BaseProblem::Truncated { window: None },
        _ => BaseProblem::Io(error),
    };
    let magic: [u8; 8] = read_array(reader).map_err(cut)?;
    if magic[..7] != MAGIC[..7] {
        return Err(BaseProblem::Unknown);
    }
    if magic[7] != MAGIC[7] {
        return Err(BaseProblem::Version { found: magic[7] });
    }
    let len = u32::from_le_bytes(read_array(reader).map_err(cut)?);
    if len > MOST_HEADER {
        return Err(BaseProblem::Header(format!("{len} bytes long, where {MOST_HEADER} are the most")));
    }
    let mut json = vec![0; len as usize];
    reader.read_exact(&mut json).map_err(cut)?;
    let checksum: Hash = read_array(reader).map_err(cut)?;
    if checksum != *blake3::hash(&json).as_bytes() {
        return Err(BaseProblem::Checksum { window: None });
    }
    serde_json::from_slice(&json).map_err(|error| BaseProblem::Header(error.to_string()))
}

pub(super) fn read_array<const N: usize>(reader: &mut impl Read) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn cut_in(error: std::io::Error, window: usize) -> BaseProblem {
    match error.kind() {
        ErrorKind::UnexpectedEof => BaseProblem::Truncated { window: Some(window) },
        _ => BaseProblem::Io(error),
    }
}

//! NumPy's format `.npy`: a header that is a Python literal, then the values. Version 1.0 is written, 2.0
//! read too.

use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use zerocopy::IntoBytes;

use super::TensorFileError;
use super::new_file::NewFile;

/// Writes an array of f32 as it comes. The file is there when it is finished.
#[derive(Debug)]
pub struct NpyWriter {
    path: PathBuf,
    out: BufWriter<NewFile>,
    /// Values still to come.
    left: u64,
}

impl NpyWriter {
    /// Begins a file with an array of this shape, the slowest-moving size first.
    ///
    /// # Errors
    /// Where there is one already and `overwrite` is false, or where it cannot be written.
    pub fn create(path: &Path, shape: &[u64], overwrite: bool) -> Result<NpyWriter, TensorFileError> {
        let file = NewFile::create(path, overwrite)?;
        let left = shape.iter().product();
        let mut writer = NpyWriter { path: path.to_owned(), out: BufWriter::new(file), left };
        writer.write(&header(shape))?;
        Ok(writer)
    }

    /// Adds values.
    ///
    /// # Errors
    /// Where they cannot be written.
    ///
    /// # Panics
    /// Where they are more than the shape says.
    pub fn add(&mut self, values: &[f32]) -> Result<(), TensorFileError> {
        self.left = self.left.checked_sub(values.len() as u64).expect("no more values than the shape says");
        // Little-endian, as the header says.
        #[cfg(target_endian = "little")]
        return self.write(values.as_bytes());
        #[cfg(target_endian = "big")]
        return values.iter().try_for_each(|v| self.write(&v.to_le_bytes()));
    }

    /// Ends the file.
    ///
    /// # Errors
    /// Where the last of it cannot be written.
    ///
    /// # Panics
    /// Where values are missing.
    pub fn finish(self) -> Result<(), TensorFileError> {
        assert_eq!(self.left, 0, "as many values as the shape says");
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

/// Magic, version, the header's length, the header: padded so that the values begin at a multiple of 64.
fn header(shape: &[u64]) -> Vec<u8> {
    // A tuple of one has a comma.
    let sizes: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let sizes = if shape.len() == 1 { sizes.trim_end() } else { sizes.trim_end_matches(", ") };
    let mut dict = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({sizes}), }}");
    let before = 6 + 2 + 2;
    let len = (before + dict.len() + 1).next_multiple_of(64) - before;
    dict.push_str(&" ".repeat(len - 1 - dict.len()));
    dict.push('\n');
    [b"\x93NUMPY\x01\x00", &(len as u16).to_le_bytes()[..], dict.as_bytes()].concat()
}

pub(super) const MAGIC: &[u8] = b"\x93NUMPY";

/// Bytes of a header that is read, at most: NumPy writes some hundred.
const MOST_HEADER: usize = 64 << 10;

/// Why a header is not one of an array that can be read.
#[derive(Debug)]
pub(super) enum HeaderError {
    Io(std::io::Error),
    Other(String),
}

/// Reads the header of an array of little-endian f32 in C's order: its shape, and where its values begin.
pub(super) fn read_header(reader: &mut impl Read) -> Result<(Vec<u64>, u64), HeaderError> {
    let mut read = |n: usize| -> Result<Vec<u8>, HeaderError> {
        let mut bytes = vec![0; n];
        reader.read_exact(&mut bytes).map_err(HeaderError::Io)?;
        Ok(bytes)
    };
    let other = |problem: &str| HeaderError::Other(problem.to_owned());
    let start = read(8)?;
    if !start.starts_with(MAGIC) {
        return Err(other("no magic of .npy"));
    }
    let field = match start[6] {
        1 => 2,
        2 | 3 => 4,
        version => return Err(HeaderError::Other(format!("version {version} of .npy is not known"))),
    };
    let len = read(field)?.iter().rev().fold(0usize, |len, &byte| len << 8 | usize::from(byte));
    if len > MOST_HEADER {
        return Err(HeaderError::Other(format!("{len} bytes long, where {MOST_HEADER} are the most")));
    }
    let text = String::from_utf8(read(len)?).map_err(|_| other("it is no text"))?;
    let value = |key: &str| {
        let (_, rest) = text.split_once(&format!("'{key}':"))?;
        Some(rest.trim_start())
    };
    if !value("descr").is_some_and(|descr| descr.starts_with("'<f4'")) {
        return Err(other("values of type '<f4' are needed"));
    }
    if !value("fortran_order").is_some_and(|order| order.starts_with("False")) {
        return Err(other("the last dimension must move fastest"));
    }
    let shape =
        value("shape").and_then(|rest| rest.strip_prefix('(')?.split_once(')')).map(|(sizes, _)| sizes);
    let sizes = shape.ok_or_else(|| other("there is no shape"))?.split(',').map(str::trim);
    let sizes: Result<Vec<u64>, _> = sizes.filter(|size| !size.is_empty()).map(str::parse).collect();
    Ok((sizes.map_err(|_| other("its shape is none"))?, (8 + field + len) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_back_and_others_refused() {
        for shape in [&[3, 4][..], &[7], &[2, 3, 512]] {
            let bytes = header(shape);
            let (found, start) = read_header(&mut &bytes[..]).unwrap();
            assert_eq!((&found[..], start), (shape, bytes.len() as u64));
            for cut in 0..bytes.len() {
                assert!(read_header(&mut &bytes[..cut]).is_err(), "{cut}");
            }
        }
        let text = String::from_utf8_lossy(&header(&[3, 4])[10..]).into_owned();
        let with = |dict: &str, version: u8| {
            let mut bytes = [MAGIC, &[version, 0]].concat();
            let len = (dict.len() as u32).to_le_bytes();
            bytes.extend_from_slice(if version == 1 { &len[..2] } else { &len });
            bytes.extend_from_slice(dict.as_bytes());
            read_header(&mut &bytes[..])
        };
        assert_eq!(with(&text, 2).unwrap().0, [3, 4]);
        for (from, to) in
            [("<f4", "<f8"), ("False", "True"), ("3, 4", "3, -4"), ("(3", "3"), ("'shape'", "'form'")]
        {
            assert!(with(&text.replace(from, to), 1).is_err(), "{to}");
        }
        assert!(with(&text, 9).is_err());
        let huge = [MAGIC, &[2, 0, 255, 255, 255, 255]].concat();
        assert!(matches!(read_header(&mut &huge[..]), Err(HeaderError::Other(_))));
    }

    #[test]
    fn headers_are_as_numpy_writes_them() {
        let text = |shape: &[u64]| {
            let header = header(shape);
            assert!(header.len().is_multiple_of(64) && header.ends_with(b"\n"));
            assert_eq!(usize::from(u16::from_le_bytes([header[8], header[9]])), header.len() - 10);
            String::from_utf8_lossy(&header[10..]).trim_end().to_owned()
        };
        assert_eq!(text(&[3, 4]), "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }");
        assert_eq!(text(&[7]), "{'descr': '<f4', 'fortran_order': False, 'shape': (7,), }");
        text(&[u64::MAX; 4]);
    }

    #[test]
    fn what_is_there_stays_where_nothing_is_finished() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.npy");
        let mut writer = NpyWriter::create(&path, &[2], false).expect("created");
        writer.add(&[1.0, -0.0]).expect("written");
        writer.finish().expect("finished");
        let bytes = std::fs::read(&path).expect("read");
        assert_eq!(bytes[bytes.len() - 8..], [0, 0, 0x80, 0x3f, 0, 0, 0, 0x80]);
        assert!(matches!(NpyWriter::create(&path, &[2], false), Err(TensorFileError::Exists { .. })));
        assert_eq!(std::fs::read(&path).expect("read"), bytes);
        drop(NpyWriter::create(&path, &[2], true).expect("created"));
        assert_eq!(std::fs::read(&path).expect("read"), bytes);
    }
}

//! Files of named tensors, in the safetensors format.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::{Metadata, View};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::new_file::{NewFile, folder};
use crate::gguf::OpenedFile;
use crate::store::{MappedFile, OutOfMemory, StoreError};

/// Why a file of tensors cannot be read or written.
#[derive(Debug, Error)]
pub enum TensorFileError {
    #[error(transparent)]
    Open(#[from] StoreError),
    #[error("{}: not a safetensors file: {source}", path.display())]
    Format { path: PathBuf, source: SafeTensorError },
    #[error("{}: no tensor {name}", path.display())]
    Missing { path: PathBuf, name: String },
    #[error("{}: tensor {name} is of type {found}, where {wanted} is needed", path.display())]
    Type { path: PathBuf, name: String, found: String, wanted: String },
    #[error("{}: already there", path.display())]
    Exists { path: PathBuf },
    #[error("{}: more tensors than a safetensors file can name", path.display())]
    TooMany { path: PathBuf },
    #[error("{}: cannot be written: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

mod sealed {
    pub trait Sealed {}
}

/// The element types of [`TensorFile`] and [`TensorWriter`].
pub trait Element: sealed::Sealed + FromBytes + IntoBytes + Immutable + Copy + 'static {
    /// The format's name for it.
    const DTYPE: Dtype;
}

macro_rules! elements {
    ($($ty:ty = $dtype:ident),*) => {
        $(
            impl sealed::Sealed for $ty {}
            impl Element for $ty {
                const DTYPE: Dtype = Dtype::$dtype;
            }
        )*
    };
}
elements!(f32 = F32, i32 = I32, u32 = U32, u8 = U8);

/// A tensor of a file, copied out.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<T> {
    /// Sizes, the slowest-moving first.
    pub shape: Vec<usize>,
    pub values: Vec<T>,
}

/// A file of tensors, of which only what is asked for is read.
#[derive(Debug)]
pub struct TensorFile {
    file: MappedFile,
    header: Metadata,
    /// Where the tensors' bytes begin.
    start: usize,
}

impl TensorFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// A file that cannot be mapped or is no safetensors file.
    pub fn open(path: &Path) -> Result<TensorFile, TensorFileError> {
        let file = MappedFile::open(path)?;
        let header = SafeTensors::read_metadata(&file);
        file.check(|_| None)?;
        let (len, header) =
            header.map_err(|source| TensorFileError::Format { path: path.to_owned(), source })?;
        // The header is preceded by its length, in eight bytes.
        Ok(TensorFile { file, header, start: 8 + len })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The tensors' names, in the order of their bytes.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Whether there is such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// The shape of a tensor, the slowest-moving size first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.info(name).map(|info| &info.shape[..])
    }

    /// Whether a tensor is of this type.
    pub fn is<T: Element>(&self, name: &str) -> bool {
        self.header.info(name).is_some_and(|info| info.dtype == T::DTYPE)
    }

    /// A text that the file's header holds.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// A tensor.
    ///
    /// # Errors
    /// Where there is none of that name, it is of another type, or the file has been cut short.
    pub fn tensor<T: Element>(&self, name: &str) -> Result<Tensor<T>, TensorFileError> {
        let path = || self.path().to_owned();
        let missing = || TensorFileError::Missing { path: path(), name: name.to_owned() };
        let info = self.header.info(name).ok_or_else(missing)?;
        if info.dtype != T::DTYPE {
            let (found, wanted) = (info.dtype.to_string(), T::DTYPE.to_string());
            return Err(TensorFileError::Type { path: path(), name: name.to_owned(), found, wanted });
        }
        let (from, to) = info.data_offsets;
        // In bounds: the header's offsets were checked against the file's length.
        let bytes = &self.file[self.start + from..self.start + to];
        let mut values = Vec::new();
        values
            .try_reserve_exact(bytes.len() / size_of::<T>())
            .map_err(|_| StoreError::from(OutOfMemory { bytes: bytes.len() as u128, what: "a tensor" }))?;
        values.extend(bytes.chunks_exact(size_of::<T>()).filter_map(|b| T::read_from_bytes(b).ok()));
        self.file.check(|_| Some(name))?;
        Ok(Tensor { shape: info.shape.clone(), values })
    }
}

/// Writes a file of tensors as they come. Their bytes wait in an unnamed file beside it until all are known,
/// as the format begins with their names: memory does not grow with them.
#[derive(Debug)]
pub struct TensorWriter {
    path: PathBuf,
    file: NewFile,
    spool: BufWriter<File>,
    written: usize,
    /// What the header will need at most, bytes.
    header: usize,
    tensors: Vec<(String, Dtype, Vec<usize>, std::ops::Range<usize>)>,
    texts: HashMap<String, String>,
}

impl TensorWriter {
    /// Begins a file.
    ///
    /// # Errors
    /// Where there is one already and `overwrite` is false, or where it cannot be written.
    pub fn create(path: &Path, overwrite: bool) -> Result<TensorWriter, TensorFileError> {
        let file = NewFile::create(path, overwrite)?;
        let spool = tempfile::tempfile_in(folder(file.temporary_path()))
            .map_err(|source| TensorFileError::Write { path: path.to_owned(), source })?;
        Ok(TensorWriter {
            path: path.to_owned(),
            file,
            spool: BufWriter::new(spool),
            written: 0,
            header: 0,
            tensors: Vec::new(),
            texts: HashMap::new(),
        })
    }

    /// Adds a tensor of this shape (the slowest-moving size first). Of two of one name the file would be
    /// unreadable: names are the caller's to keep apart.
    ///
    /// # Errors
    /// Where its bytes cannot be written.
    ///
    /// # Panics
    /// Where there are not as many values as the shape says.
    pub fn add<T: Element>(
        &mut self,
        name: &str,
        shape: &[usize],
        values: &[T],
    ) -> Result<(), TensorFileError> {
        self.add_chunks(name, shape, std::iter::once(Ok::<_, TensorFileError>(values)))
    }

    /// As [`TensorWriter::add`], of values that come in parts.
    ///
    /// # Errors
    /// Where the bytes cannot be written, or a part cannot be had.
    ///
    /// # Panics
    /// Where there are not as many values as the shape says.
    pub fn add_chunks<T: Element, E: From<TensorFileError>>(
        &mut self,
        name: &str,
        shape: &[usize],
        chunks: impl Iterator<Item = Result<impl AsRef<[T]>, E>>,
    ) -> Result<(), E> {
        // A name stands in the header once, and maybe once more in a text; besides, type, shape and place.
        self.header += 2 * name.len() + 160;
        if self.header > MAX_HEADER {
            return Err(TensorFileError::TooMany { path: self.path.clone() }.into());
        }
        let (start, mut count) = (self.written, 0);
        for chunk in chunks {
            let chunk = chunk?;
            let bytes = chunk.as_ref().as_bytes();
            self.spool
                .write_all(bytes)
                .map_err(|source| TensorFileError::Write { path: self.path.clone(), source })?;
            self.written += bytes.len();
            count += chunk.as_ref().len();
        }
        assert_eq!(shape.iter().product::<usize>(), count, "values of {name}");
        self.tensors.push((name.to_owned(), T::DTYPE, shape.to_vec(), start..self.written));
        Ok(())
    }

    /// Adds a text to the header.
    pub fn text(&mut self, key: &str, text: impl Into<String>) {
        self.texts.insert(key.to_owned(), text.into());
    }

    /// The names so far, in the order in which they came.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|(name, ..)| &name[..])
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// Where it cannot be written, or where one has come into being that is not to be overwritten.
    pub fn finish(mut self) -> Result<(), TensorFileError> {
        let path = self.path.clone();
        let failed = |source| TensorFileError::Write { path: path.clone(), source };
        let spool = self.spool.into_inner().map_err(|e| failed(e.into_error()))?;
        let spool = MappedFile::of(Arc::new(OpenedFile::of(spool, &self.path).map_err(failed)?))?;
        let views = self.tensors.iter().map(|(name, dtype, shape, range)| {
            (&name[..], SpooledTensor { dtype: *dtype, shape, bytes: &spool[range.clone()] })
        });
        let whole = self.file.close();
        safetensors::serialize_to_file(views, Some(self.texts), whole).map_err(|error| match error {
            SafeTensorError::IoError(source) => failed(source),
            other => failed(std::io::Error::other(other.to_string())),
        })?;
        spool.check(|_| None)?;
        self.file.finish()
    }
}

/// Bytes of header that the format's readers accept, with some to spare.
const MAX_HEADER: usize = 90_000_000;

struct SpooledTensor<'a> {
    dtype: Dtype,
    shape: &'a [usize],
    bytes: &'a [u8],
}

impl View for SpooledTensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.bytes.into()
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let mut writer = TensorWriter::create(&path, false).unwrap();
        writer.add("b", &[2, 2], &[1.0f32, -0.0, f32::INFINITY, 3.5]).unwrap();
        writer.add("a", &[3], &[7i32, -1, 0]).unwrap();
        writer.text("wayinfer", "{}");
        assert_eq!(writer.names().collect::<Vec<_>>(), ["b", "a"]);
        writer.finish().unwrap();

        let file = TensorFile::open(&path).unwrap();
        let b = file.tensor::<f32>("b").unwrap();
        assert_eq!((&b.shape[..], &b.values[..]), (&[2, 2][..], &[1.0, -0.0, f32::INFINITY, 3.5][..]));
        assert_eq!(file.tensor::<i32>("a").unwrap().values, [7, -1, 0]);
        assert_eq!((file.text("wayinfer"), file.text("other")), (Some("{}"), None));
        assert!(file.is::<i32>("a") && !file.is::<i32>("b") && file.shape("a") == Some(&[3]));
        assert!(matches!(file.tensor::<f32>("a"), Err(TensorFileError::Type { .. })));
        assert!(matches!(file.tensor::<f32>("c"), Err(TensorFileError::Missing { .. })));
        assert!(matches!(TensorWriter::create(&path, false), Err(TensorFileError::Exists { .. })));
        assert!(TensorWriter::create(&path, true).is_ok());
        // What came into being meanwhile stays.
        let other = dir.path().join("u.safetensors");
        let writer = TensorWriter::create(&other, false).unwrap();
        std::fs::write(&other, "mine").unwrap();
        assert!(matches!(writer.finish(), Err(TensorFileError::Exists { .. })));
        assert_eq!(std::fs::read(&other).unwrap(), b"mine");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left behind");
    }

    #[test]
    fn more_names_than_a_header_holds_are_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let mut writer = TensorWriter::create(&path, false).unwrap();
        let name = "n".repeat(30_000_000);
        writer.add::<f32>(&name, &[0], &[]).unwrap();
        assert!(matches!(writer.add::<f32>(&name, &[0], &[]), Err(TensorFileError::TooMany { .. })));
    }

    #[test]
    fn what_is_no_such_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        std::fs::write(&path, b"GGUF\0\0\0\0 and so on").unwrap();
        assert!(matches!(TensorFile::open(&path), Err(TensorFileError::Format { .. })));
        assert!(matches!(TensorFile::open(&dir.path().join("none")), Err(TensorFileError::Open(_))));
    }
}

//! Rows of a tensor of any GGUF file, decoded to f32 a part at a time: the tensor may be larger than memory.

use std::ops::Range;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::gguf::{Gguf, TensorInfo, TensorType};
use crate::kernels::WeightMatrix;
use crate::quant::{self, Decoder, FORMATS, Format};
use crate::store::{Role, Store, StoreError, WeightId};

/// Rows that cannot be had.
#[derive(Debug, Error)]
pub enum RowsError {
    #[error(
        "{}: tensor {tensor:?} is of type {ty}, which cannot be computed with ({} can)",
        path.display(),
        FORMATS.iter().map(|f| f.ty.name()).collect::<Vec<_>>().join(", ")
    )]
    UnsupportedType { path: PathBuf, tensor: String, ty: TensorType },
    #[error("{}: tensor {tensor:?} has no elements", path.display())]
    Empty { path: PathBuf, tensor: String },
    #[error(
        "{}: tensor {tensor:?} has no experts, hence no expert {expert}: its shape is {dims:?}",
        path.display()
    )]
    NoExperts { path: PathBuf, tensor: String, expert: u64, dims: Vec<u64> },
    #[error("{}: tensor {tensor:?} has no expert {expert}: it has {experts}, from 0", path.display())]
    NoSuchExpert { path: PathBuf, tensor: String, expert: u64, experts: u64 },
    #[error(
        "{}: tensor {tensor:?} has no rows {}..{}: it has {rows}, from 0",
        path.display(), wanted.start, wanted.end
    )]
    NoSuchRows { path: PathBuf, tensor: String, wanted: Range<u64>, rows: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Which part of a tensor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// One expert of a tensor of `[columns, rows, experts]`.
    pub expert: Option<u64>,
    /// These rows of the expert, or of the whole tensor (rows of all experts, one expert after another).
    pub rows: Option<RowRange>,
}

/// Rows from `start` to before `end`, or to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRange {
    pub start: u64,
    pub end: Option<u64>,
}

/// Where a value is in a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Of a tensor with experts.
    pub expert: Option<u64>,
    /// Row of the expert, or of the tensor.
    pub row: u64,
    pub column: u64,
}

impl Place {
    /// Where value `index` is in a tensor of these sizes, the fastest-moving first.
    pub fn of(index: u64, dims: &[u64]) -> Place {
        let size = |i: usize| dims.get(i).copied().unwrap_or(1);
        let row = index / size(0);
        let expert = (size(2) * size(3) > 1).then_some(row / size(1));
        Place { expert, row: row % size(1), column: index % size(0) }
    }
}

/// A choice of rows of a tensor.
#[derive(Debug)]
pub struct WeightRows {
    store: Store,
    id: WeightId,
    decoder: Decoder,
    /// What names the tensor in an error.
    name: (PathBuf, String),
    /// Columns, rows of an expert, experts.
    sizes: [u64; 3],
    /// Among the rows of all experts.
    rows: Range<u64>,
    selection: Selection,
    dims: usize,
}

/// Values decoded at once, a multiple of every block's length.
const CHUNK: usize = 256 * 1024;

impl WeightRows {
    /// The selected rows of a tensor of `gguf`.
    ///
    /// # Errors
    /// A type that cannot be computed with, rows or an expert that are not there, a file that cannot be read.
    pub fn open(gguf: &Gguf, tensor: &TensorInfo, selection: &Selection) -> Result<WeightRows, RowsError> {
        let (path, name) = (gguf.parts[tensor.part].path.clone(), tensor.name.clone());
        let Some(decoder) = quant::decoder(tensor.ty) else {
            return Err(RowsError::UnsupportedType { path, tensor: name, ty: tensor.ty });
        };
        if tensor.elements() == 0 {
            return Err(RowsError::Empty { path, tensor: name });
        }
        // The product of all sizes was checked to fit when the file was read.
        let size = |i: usize| tensor.dims.get(i).copied().unwrap_or(1);
        let sizes = [size(0), size(1), size(2) * size(3)];
        let rows = select(sizes, selection, &path, tensor)?;
        let row_bytes = tensor.bytes / (sizes[1] * sizes[2]);
        let mut store = Store::open(gguf)?;
        let id = store.register(tensor, rows.start * row_bytes..rows.end * row_bytes, Role::Once)?;
        Ok(WeightRows {
            store,
            id,
            decoder,
            name: (path, name),
            sizes,
            rows,
            selection: selection.clone(),
            dims: tensor.dims.len(),
        })
    }

    pub fn ty(&self) -> TensorType {
        self.decoder.ty
    }

    /// The rows' format.
    ///
    /// # Errors
    /// Where they cannot be computed with.
    pub fn format(&self) -> Result<&'static Format, RowsError> {
        quant::format(self.ty()).ok_or_else(|| {
            let (path, tensor) = self.name.clone();
            RowsError::UnsupportedType { path, tensor, ty: self.ty() }
        })
    }

    /// Elements of a row.
    pub fn cols(&self) -> u64 {
        self.sizes[0]
    }

    /// Rows selected.
    pub fn rows(&self) -> u64 {
        self.rows.end - self.rows.start
    }

    /// Values selected.
    pub fn elements(&self) -> u64 {
        self.rows() * self.cols()
    }

    /// Columns, rows and experts that the selection is of: those of an expert, or of the whole tensor.
    pub fn scope(&self) -> [u64; 3] {
        match self.selection.expert {
            Some(_) => [self.sizes[0], self.sizes[1], 1],
            None => self.sizes,
        }
    }

    /// The shape of the selection, the slowest-moving size first: a tensor's own, or `[rows, columns]`.
    pub fn shape(&self) -> Vec<u64> {
        let [cols, rows, experts] = self.scope();
        match (self.selection.rows, experts) {
            (Some(_), _) => vec![self.rows(), cols],
            (None, 1) if self.dims == 1 => vec![cols],
            (None, 1) => vec![rows, cols],
            (None, _) => vec![experts, rows, cols],
        }
    }

    /// Where value `index` of the selection is in the tensor.
    pub fn place(&self, index: u64) -> Place {
        Place::of(self.rows.start * self.cols() + index, &self.sizes)
    }

    /// The rows as they are in the file: [`WeightRows::check`] tells afterwards whether it had them all.
    pub fn bytes(&self) -> &[u8] {
        self.store.mapped(self.id)
    }

    /// A matrix of rows that are these bytes, a part of [`WeightRows::bytes`].
    ///
    /// # Errors
    /// Where they cannot be computed with.
    ///
    /// # Panics
    /// Where they are no whole number of rows.
    pub fn matrix<'a>(&self, bytes: &'a [u8]) -> Result<WeightMatrix<'a>, RowsError> {
        let (format, cols) = (self.format()?, self.cols() as usize); // what is mapped fits
        let rows = bytes.len() / format.row_bytes(cols);
        Ok(WeightMatrix::new(format.ty, bytes, rows, cols).expect("it is a format"))
    }

    /// Whether [`WeightRows::bytes`] were the file's all the time.
    ///
    /// # Errors
    /// Where the file has been cut short since it was opened, or could not be read.
    pub fn check(&self) -> Result<(), RowsError> {
        Ok(self.store.check_mapped()?)
    }

    /// The values, some at a time and in order. How many they are each time has nothing to do with rows.
    ///
    /// # Errors
    /// As [`WeightRows::check`].
    pub fn chunks(&self) -> impl Iterator<Item = Result<Vec<f32>, RowsError>> {
        let (Decoder { ty, decode }, bytes) = (self.decoder, self.bytes());
        let (block_len, block_bytes) = (ty.block_len() as usize, ty.block_bytes() as usize);
        let chunk_bytes = CHUNK / block_len * block_bytes;
        (0..bytes.len()).step_by(chunk_bytes).map(move |at| {
            let bytes = &bytes[at..bytes.len().min(at + chunk_bytes)];
            let mut values = vec![0f32; bytes.len() / block_bytes * block_len];
            decode(bytes, &mut values);
            self.check().map(|()| values)
        })
    }
}

/// The rows of a selection, among the rows of all experts.
fn select(
    [_, rows, experts]: [u64; 3],
    selection: &Selection,
    path: &Path,
    tensor: &TensorInfo,
) -> Result<Range<u64>, RowsError> {
    let (path, name) = (path.to_owned(), tensor.name.clone());
    let scope = match selection.expert {
        None => 0..rows * experts,
        Some(expert) if tensor.dims.len() < 3 => {
            return Err(RowsError::NoExperts { path, tensor: name, expert, dims: tensor.dims.clone() });
        }
        Some(expert) if expert >= experts => {
            return Err(RowsError::NoSuchExpert { path, tensor: name, expert, experts });
        }
        Some(expert) => expert * rows..(expert + 1) * rows,
    };
    let there = scope.end - scope.start;
    let Some(RowRange { start, end }) = selection.rows else { return Ok(scope) };
    let end = end.unwrap_or(there);
    if start >= end || end > there {
        return Err(RowsError::NoSuchRows { path, tensor: name, wanted: start..end, rows: there });
    }
    Ok(scope.start + start..scope.start + end)
}

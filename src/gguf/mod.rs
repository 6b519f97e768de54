//! FILE: from bytes on disk to a directory of metadata and tensors.
//!
//! Only headers are read. Everything that a file says of itself (counts, sizes, offsets, splits) is
//! checked here, before anything is allocated by it, so that the layers above may trust a [`Gguf`].

mod error;
mod metadata;
mod tensor_type;
mod value;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub use error::{GgufError, GgufErrorKind};
pub use metadata::{Metadata, MetadataError};
pub use tensor_type::TensorType;
pub use value::{Array, PackedArray, Text, TextArray, Value, ValueType};

/// Most dimensions a tensor may have (ggml's limit).
pub const MAX_DIMS: usize = 4;

/// A tensor of the directory: what and where, not its data.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    pub name: String,
    pub ty: TensorType,
    /// Sizes, the fastest-moving first, as GGUF writes them: `[columns, rows, experts, ..]`; 1 to 4 of them.
    pub dims: Vec<u64>,
    /// Index of the file in [`Gguf::parts`].
    pub part: usize,
    /// Where the data starts: bytes from the start of that file.
    pub offset: u64,
    /// Bytes of the data.
    pub bytes: u64,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }
}

/// One file of a model.
#[derive(Clone, Debug)]
pub struct Part {
    pub path: PathBuf,
    /// 2 or 3.
    pub version: u32,
    /// Bytes of the whole file.
    pub file_bytes: u64,
    /// Where tensor data starts: bytes from the start of the file.
    pub data_offset: u64,
    /// Alignment of tensor data, bytes.
    pub alignment: u64,
    /// All metadata of this file, `split.*` included.
    pub metadata: Metadata,
}

/// A model's directory: one file, or all files of a split, merged.
#[derive(Clone, Debug)]
pub struct Gguf {
    /// The files, in the order of the split.
    pub parts: Vec<Part>,
    /// The tensors of all files, in the files' order.
    pub tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

impl Gguf {
    /// Reads the headers of a model; `path` may be any file of a split.
    ///
    /// # Errors
    /// The first thing found wrong, with its file and offset.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        let _ = path;
        unimplemented!()
    }

    /// The model's metadata: the first file's.
    pub fn metadata(&self) -> &Metadata {
        &self.parts[0].metadata
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }
}

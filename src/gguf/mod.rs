//! FILE: from bytes on disk to a directory of metadata and tensors.
//!
//! Only headers are read. Everything that a file says of itself (counts, sizes, offsets, splits) is
//! checked here, before anything is allocated by it, so that the layers above may trust a [`Gguf`].

mod check;
mod error;
mod header;
mod lint;
mod metadata;
mod reader;
mod source;
mod split;
mod tensor_type;
mod tensors;
mod value;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use check::Findings;
pub use check::{CheckReport, Finding, Severity};
pub use error::{GgufError, GgufErrorKind};
use header::ParsedFile;
pub use metadata::{Metadata, MetadataError};
pub use source::{OpenedFile, Source, StaticBytes};
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

/// Where the bytes of a file of a model are.
#[derive(Clone, Debug)]
pub enum PartBytes {
    /// In the file whose header was read.
    File(Arc<OpenedFile>),
    /// In memory, all of them.
    Memory(StaticBytes),
}

/// One file of a model.
#[derive(Clone, Debug)]
pub struct Part {
    /// Where it is; of a file in memory its name.
    pub path: PathBuf,
    /// Where its bytes are.
    pub bytes: PartBytes,
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
    /// Reads the headers of a model: of a path (any file of a split), or of bytes in memory.
    ///
    /// # Errors
    /// The first thing found wrong, with its file and offset.
    pub fn open<'a>(source: impl Into<Source<'a>>) -> Result<Gguf, GgufError> {
        let mut findings = Findings::stop_at_first();
        let files = split::read_model(source.into(), &mut findings)?;
        Ok(Gguf::merge(files))
    }

    /// Reads the headers of a model and collects all that is wrong with it, as far as what is wrong
    /// lets reading go on; warns of oddities that do not keep a model from being opened.
    pub fn check<'a>(source: impl Into<Source<'a>>) -> CheckReport {
        let mut findings = Findings::collect();
        let files = split::read_model(source.into(), &mut findings).unwrap_or_else(|e| {
            findings.add(Severity::Error, &e.path, e.offset, e.kind.to_string());
            Vec::new()
        });
        let intact = findings.errors == 0;
        lint::lint(&files, &mut findings);
        CheckReport {
            findings: findings.list,
            dropped: findings.dropped,
            gguf: (intact && !files.is_empty()).then(|| Gguf::merge(files)),
        }
    }

    /// Joins files whose tensors' names are known to differ.
    fn merge(files: Vec<ParsedFile>) -> Gguf {
        let (mut parts, mut tensors) = (Vec::with_capacity(files.len()), Vec::new());
        for (part, file) in files.into_iter().enumerate() {
            parts.push(file.part);
            tensors.extend(file.tensors.into_iter().map(|t| TensorInfo { part, ..t.info }));
        }
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Gguf { parts, tensors, by_name }
    }

    /// The model's metadata: the first file's.
    pub fn metadata(&self) -> &Metadata {
        &self.parts[0].metadata
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensor_index(name).map(|i| &self.tensors[i])
    }

    /// Its place among the tensors.
    pub fn tensor_index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }
}

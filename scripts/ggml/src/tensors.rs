//! Writes safetensors files whose bytes depend on their contents alone.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};

use crate::error::{Error, Result, write};

/// Named tensors and a description, to be written as one safetensors file.
#[derive(Default)]
pub struct Tensors {
    entries: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
}

impl Tensors {
    pub fn f32(&mut self, name: impl Into<String>, shape: &[usize], values: &[f32]) {
        self.bytes(name, Dtype::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect());
    }

    pub fn i32(&mut self, name: impl Into<String>, shape: &[usize], values: &[i32]) {
        self.bytes(name, Dtype::I32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect());
    }

    pub fn u8(&mut self, name: impl Into<String>, shape: &[usize], values: &[u8]) {
        self.bytes(name, Dtype::U8, shape, values.to_vec());
    }

    /// A tensor of any type, from its little-endian bytes, the slowest dimension first.
    pub fn bytes(&mut self, name: impl Into<String>, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) {
        self.entries.push((name.into(), dtype, shape.to_vec(), bytes));
    }

    /// Writes the file. The description stands as JSON under the one metadata key `wayinfer`: several keys would be
    /// written in the order of a hash map, another one each time.
    pub fn save(&self, path: &Path, description: &serde_json::Value) -> Result<()> {
        let fail = |source| Error::Safetensors { path: path.into(), source };
        let mut views = Vec::with_capacity(self.entries.len());
        for (name, dtype, shape, bytes) in &self.entries {
            views.push((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).map_err(fail)?));
        }
        let metadata = HashMap::from([("wayinfer".to_string(), description.to_string())]);
        write(path, &serialize(views, Some(metadata)).map_err(fail)?)
    }
}

//! The format in whose file another one's inputs stand.

use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;
use serde::Deserialize;

use super::table::{FORMATS, Row};
use super::{CASE, DotRows, dot_weights, exact_weights, push_exact};
use crate::error::{Error, Result, read, refuse};
use crate::ffi::Format;
use crate::tensors::Tensors;

/// A file of a format that has all its inputs.
pub struct Owner {
    path: PathBuf,
    bytes: Vec<u8>,
    format: Format,
    cases: Vec<String>,
}

#[derive(Deserialize)]
struct Description {
    activation_cases: Vec<String>,
}

impl Owner {
    /// Reads the file of the format with this name; it must have been made before.
    pub fn open(folder: &Path, name: &str) -> Result<Owner> {
        let path = folder.join(format!("{name}.safetensors"));
        let Some(row) = FORMATS.iter().find(|row| row.name == name && row.activations_of.is_none()) else {
            return refuse(format!("{name} has no inputs of its own"));
        };
        let bytes = read(&path)?;
        let fail = |source| Error::Safetensors { path: path.clone(), source };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(fail)?;
        let text = header.metadata().as_ref().and_then(|m| m.get("wayinfer")).cloned().unwrap_or_default();
        let description: Description =
            serde_json::from_str(&text).map_err(|source| Error::Json { path: path.clone(), source })?;
        Ok(Owner { path, bytes, format: Format::new(row.id), cases: description.activation_cases })
    }

    /// A tensor of floats.
    fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let fail = |source| Error::Safetensors { path: self.path.clone(), source };
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(fail)?;
        let (words, _) = tensors.tensor(name).map_err(fail)?.data().as_chunks::<4>();
        Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }

    /// Whether the file has the format's quantised activations as well.
    fn has_quantised(&self, format: &Format) -> bool {
        self.format.activation().name() == format.activation().name()
    }

    /// As [`super::activations`].
    pub fn activations(&self, format: &Format, tensors: &mut Tensors) -> Result<Vec<String>> {
        if !self.has_quantised(format) {
            let target = format.activation();
            let inputs = self.floats("activations/inputs")?;
            let mut quantised = Vec::new();
            for values in inputs.chunks(CASE) {
                quantised.extend(target.quantise(values)?);
            }
            tensors.u8("activations/quantised", &[self.cases.len(), target.row_bytes(CASE)], &quantised);
        }
        Ok(self.cases.clone())
    }

    /// As [`super::dots`].
    pub fn dots(
        &self,
        row: &Row,
        format: &Format,
        n: usize,
        rng: &mut ChaCha8Rng,
        tensors: &mut Tensors,
    ) -> Result<()> {
        let mut rows = DotRows::default();
        for (i, inputs) in self.floats(&format!("dots/{n}/inputs"))?.chunks(n).enumerate() {
            let weights = dot_weights(row, format, n, i, rng);
            rows.push(format, &weights, inputs)?;
        }
        self.save(rows, "dots", format, n, tensors);
        Ok(())
    }

    /// As [`super::exact`], where the owner has inputs of this length.
    pub fn exact(
        &self,
        row: &Row,
        format: &Format,
        n: usize,
        rng: &mut ChaCha8Rng,
        tensors: &mut Tensors,
    ) -> Result<()> {
        let (Some(units), Ok(inputs)) = (row.exact_units, self.floats(&format!("exact/{n}/inputs"))) else {
            return Ok(());
        };
        let mut rows = DotRows::default();
        for inputs in inputs.chunks(n) {
            let weights = exact_weights(row, format, n, rng);
            push_exact(row, format, units, &weights, inputs, &mut rows)?;
        }
        self.save(rows, "exact", format, n, tensors);
        Ok(())
    }

    fn save(&self, rows: DotRows, folder: &str, format: &Format, n: usize, tensors: &mut Tensors) {
        if !self.has_quantised(format) {
            rows.save_quantised(folder, n, tensors);
        }
        rows.save_dots(folder, n, tensors);
    }
}

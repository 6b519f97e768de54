//! Handles of a model's weights, found by name and checked in shape when the model is loaded.

use crate::gguf::{Gguf, TensorInfo, TensorType};
use crate::kernels::{MatmulJob, WeightMatrix};
use crate::quant::{self, ActivationType, Format};
use crate::store::{Role, Store, WeightId, zeroed};

use super::ModelError;
use super::config::Experts;
use super::state::Inputs;

/// A weight of `rows` rows (outputs) of `cols` elements (inputs).
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    pub id: WeightId,
    pub ty: TensorType,
    pub rows: usize,
    pub cols: usize,
}

impl Matrix {
    /// What activations are rounded to before a product with it.
    pub fn activation(&self) -> ActivationType {
        self.format().activation
    }

    fn format(&self) -> &'static Format {
        quant::format(self.ty).expect("types are checked when the model is loaded")
    }

    /// The product with an input that was prepared for it.
    pub fn job<'a>(&self, bytes: &'a [u8], inputs: &'a Inputs, out: &'a mut [f32]) -> MatmulJob<'a> {
        let weights = WeightMatrix::new(self.ty, bytes, self.rows, self.cols)
            .expect("types are checked when the model is loaded");
        MatmulJob { weights, x: inputs.get(self.activation()), out }
    }
}

/// A matrix and, in some models, a bias of `[rows]`.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub matrix: Matrix,
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    pub fn without_bias(matrix: Matrix) -> Linear {
        Linear { matrix, bias: None }
    }

    pub fn activation(&self) -> ActivationType {
        self.matrix.activation()
    }

    pub fn id(&self) -> WeightId {
        self.matrix.id
    }
}

/// Finds weights by name and remembers which were found.
pub(super) struct WeightLoader<'a> {
    gguf: &'a Gguf,
    store: Store,
    used: Vec<bool>,
}

impl<'a> WeightLoader<'a> {
    /// A loader over all tensors of a model.
    ///
    /// # Errors
    /// A tensor of a type that has no [`quant::Format`], by both names.
    pub fn new(gguf: &'a Gguf, store: Store) -> Result<WeightLoader<'a>, ModelError> {
        if let Some(tensor) = gguf.tensors.iter().find(|t| quant::format(t.ty).is_none()) {
            return Err(ModelError::UnsupportedType {
                name: tensor.name.clone(),
                ty: tensor.ty.to_string(),
                supported: quant::FORMATS.iter().map(|f| f.ty.name()).collect::<Vec<_>>().join(", "),
            });
        }
        Ok(WeightLoader { gguf, store, used: vec![false; gguf.tensors.len()] })
    }

    /// Whether a tensor is there.
    pub fn contains(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    fn find(&mut self, name: &str, dims: &[usize]) -> Result<&'a TensorInfo, ModelError> {
        let gguf = self.gguf;
        let index =
            gguf.tensor_index(name).ok_or_else(|| ModelError::MissingTensor { name: name.to_owned() })?;
        let tensor = &gguf.tensors[index];
        // GGUF may or may not write trailing dimensions of 1.
        let sizes = tensor.dims.len().max(dims.len());
        let same = (0..sizes)
            .all(|i| tensor.dims.get(i).copied().unwrap_or(1) == dims.get(i).map_or(1, |&d| d as u64));
        if !same {
            let show = |dims: &[u64]| dims.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
            let wanted: Vec<u64> = dims.iter().map(|&d| d as u64).collect();
            return Err(ModelError::Shape {
                name: name.to_owned(),
                found: show(&tensor.dims),
                wanted: show(&wanted),
            });
        }
        self.used[index] = true;
        Ok(tensor)
    }

    /// The rows of a tensor of which only the columns are known, for the embedding.
    pub fn rows_of(&self, name: &str) -> Result<usize, ModelError> {
        let missing = || ModelError::MissingTensor { name: name.to_owned() };
        let tensor = self.gguf.tensor(name).ok_or_else(missing)?;
        Ok(tensor.dims.get(1).copied().unwrap_or(1) as usize)
    }

    /// A matrix of `[cols, rows]`.
    pub fn matrix(&mut self, name: &str, cols: usize, rows: usize, role: Role) -> Result<Matrix, ModelError> {
        let tensor = self.find(name, &[cols, rows])?;
        let id = self.store.register(tensor, 0..tensor.bytes, role)?;
        Ok(Matrix { id, ty: tensor.ty, rows, cols })
    }

    /// The embedding as output matrix as well.
    pub fn as_output(&mut self, embedding: Matrix) -> Matrix {
        self.store.read_always(embedding.id);
        embedding
    }

    /// `NAME.weight` of `[cols, rows]` and, where it is there, `NAME.bias` of `[rows]`.
    pub fn linear(&mut self, name: &str, cols: usize, rows: usize) -> Result<Linear, ModelError> {
        let matrix = self.matrix(&format!("{name}.weight"), cols, rows, Role::Always)?;
        Ok(Linear { matrix, bias: self.optional_vector(&format!("{name}.bias"), rows)? })
    }

    /// The matrices of all experts: of one merged tensor `blk.L.ffn_PART_exps.weight` of `[cols, rows, count]`,
    /// or of the older `blk.L.ffn_PART.E.weight`, one a tensor.
    pub fn experts(
        &mut self,
        layer: usize,
        part: &str,
        (cols, rows): (usize, usize),
        experts: Experts,
    ) -> Result<Vec<Matrix>, ModelError> {
        let Experts { count, used } = experts;
        let role = Role::Expert { layer, count, used };
        let merged = format!("blk.{layer}.ffn_{part}_exps.weight");
        if !self.contains(&merged) && self.contains(&format!("blk.{layer}.ffn_{part}.0.weight")) {
            return (0..count)
                .map(|e| self.matrix(&format!("blk.{layer}.ffn_{part}.{e}.weight"), cols, rows, role))
                .collect();
        }
        let tensor = self.find(&merged, &[cols, rows, count])?;
        let each = tensor.bytes / count as u64;
        (0..count as u64)
            .map(|e| {
                let id = self.store.register(tensor, e * each..(e + 1) * each, role)?;
                Ok(Matrix { id, ty: tensor.ty, rows, cols })
            })
            .collect()
    }

    /// A small tensor of `n` floats (norms, biases, factors), decoded.
    pub fn vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>, ModelError> {
        let tensor = self.find(name, &[n])?;
        let id = self.store.register(tensor, 0..tensor.bytes, Role::Once)?;
        let mut values = zeroed(&[n], "a small tensor of the model")?;
        if let Some(format) = quant::format(tensor.ty) {
            (format.decode)(&self.store.read_once(id)?, &mut values);
        }
        match values.iter().position(|v| !v.is_finite()) {
            Some(index) => Err(ModelError::NotFinite { name: name.to_owned(), index, value: values[index] }),
            None => Ok(values),
        }
    }

    /// The weights of a norm of `n` elements.
    pub fn norm(&mut self, name: &str, n: usize) -> Result<Vec<f32>, ModelError> {
        let weights = self.vector(name, n)?;
        match weights.iter().any(|&w| w != 0.0) {
            true => Ok(weights),
            false => Err(ModelError::ZeroNorm { name: name.to_owned() }),
        }
    }

    /// As [`WeightLoader::vector`] where the tensor may be absent.
    pub fn optional_vector(&mut self, name: &str, n: usize) -> Result<Option<Vec<f32>>, ModelError> {
        if self.contains(name) { self.vector(name, n).map(Some) } else { Ok(None) }
    }

    /// Ends the loading.
    ///
    /// # Errors
    /// A tensor that nobody asked for: the forward pass would be wrong without it.
    pub fn finish(self, architecture: &str) -> Result<Store, ModelError> {
        match self.used.iter().position(|used| !used) {
            Some(unused) => Err(ModelError::UnknownTensor {
                name: self.gguf.tensors[unused].name.clone(),
                architecture: architecture.to_owned(),
            }),
            None => Ok(self.store),
        }
    }
}

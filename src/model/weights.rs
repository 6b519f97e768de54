//! Handles of a model's weights, found by name and checked in shape when the model is loaded.

use std::ops::Range;

use crate::gguf::{Gguf, TensorInfo, TensorType};
use crate::kernels::{MatmulJob, WeightMatrix};
use crate::quant::{self, ActivationType, Format};
use crate::store::{Role, Store, WeightId, zeroed};

use super::cut::{Cut, Place, block_of};
use super::state::Inputs;
use super::{ModelError, NodeWeight};

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

    pub fn format(&self) -> &'static Format {
        quant::format(self.ty).expect("types are checked when the model is loaded")
    }

    /// The product with an input that was prepared for it.
    pub fn job<'a>(&self, bytes: &'a [u8], inputs: &'a Inputs, out: &'a mut [f32]) -> MatmulJob<'a> {
        let weights = WeightMatrix::new(self.ty, bytes, self.rows, self.cols)
            .expect("types are checked when the model is loaded");
        MatmulJob { weights, x: inputs.get(self.activation()), out }
    }

    fn bytes(&self) -> u64 {
        (self.format().row_bytes(self.cols) * self.rows) as u64
    }

    /// How a node that is a product with it describes it.
    pub fn described(&self) -> NodeWeight {
        NodeWeight { ty: self.ty, bytes: self.bytes(), touched: self.bytes() }
    }
}

/// How nodes that are products with the matrices of experts describe them; a token reads `used` of them.
pub(super) fn described(experts: &[Matrix], used: usize) -> NodeWeight {
    let bytes: u64 = experts.iter().map(Matrix::bytes).sum();
    let touched = bytes * used as u64 / experts.len().max(1) as u64;
    NodeWeight { ty: experts.first().map_or(TensorType::F32, |m| m.ty), bytes, touched }
}

/// A matrix and, in some models, a factor on the product and a bias of `[rows]`.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub matrix: Matrix,
    pub scale: Option<f32>,
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    pub fn plain(matrix: Matrix) -> Linear {
        Linear { matrix, scale: None, bias: None }
    }

    pub fn activation(&self) -> ActivationType {
        self.matrix.activation()
    }

    pub fn id(&self) -> WeightId {
        self.matrix.id
    }

    pub fn rows(&self) -> usize {
        self.matrix.rows
    }
}

/// A matrix of `rows` by `cols` for each head, one after another in one tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadMatrices {
    /// Those of all heads as one.
    all: Matrix,
    heads: usize,
}

impl HeadMatrices {
    pub fn id(&self) -> WeightId {
        self.all.id
    }

    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Rows of a head's.
    pub fn rows(&self) -> usize {
        self.all.rows / self.heads
    }

    pub fn activation(&self) -> ActivationType {
        self.all.activation()
    }

    pub fn described(&self) -> NodeWeight {
        self.all.described()
    }

    /// The product of a head's with an input that was prepared for it; `bytes` are those of all.
    pub fn job<'a>(
        &self,
        head: usize,
        bytes: &'a [u8],
        inputs: &'a Inputs,
        out: &'a mut [f32],
    ) -> MatmulJob<'a> {
        let each = bytes.len() / self.heads;
        let own = Matrix { rows: self.rows(), ..self.all };
        own.job(&bytes[head * each..][..each], inputs, out)
    }
}

/// Whether a tensor holds whole numbers that are looked up: the experts of each token.
pub(crate) fn is_table(tensor: &TensorInfo) -> bool {
    tensor.ty == TensorType::I32 && tensor.name.ends_with(".ffn_gate_tid2eid.weight")
}

/// The experts of a layer, as their weights are found.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpertSet {
    pub layer: usize,
    pub count: usize,
    pub used: usize,
}

impl ExpertSet {
    fn role(&self, expert: usize) -> Role {
        Role::Expert { layer: self.layer, expert, count: self.count, used: self.used }
    }
}

/// Finds weights by name and remembers which were found.
pub(super) struct WeightLoader<'a> {
    gguf: &'a Gguf,
    store: Store,
    used: Vec<bool>,
    /// The layers that are wanted, where these are not all.
    pub cut: Option<Cut>,
    /// Where in a pass what is loaded now has its place.
    pub place: Place,
}

impl<'a> WeightLoader<'a> {
    /// A loader over all tensors of a model.
    ///
    /// # Errors
    /// A tensor of a type that has no [`quant::Format`], by both names.
    pub fn new(gguf: &'a Gguf, store: Store) -> Result<WeightLoader<'a>, ModelError> {
        if let Some(tensor) = gguf.tensors.iter().find(|t| quant::format(t.ty).is_none() && !is_table(t)) {
            return Err(ModelError::UnsupportedType {
                name: tensor.name.clone(),
                ty: tensor.ty.to_string(),
                supported: quant::FORMATS.iter().map(|f| f.ty.name()).collect::<Vec<_>>().join(", "),
            });
        }
        let used = vec![false; gguf.tensors.len()];
        Ok(WeightLoader { gguf, store, used, cut: None, place: Place::Beginning })
    }

    /// Whether what has this place in a pass is wanted.
    pub fn wants(&self, place: Place) -> bool {
        self.cut.as_ref().is_none_or(|cut| cut.has(place))
    }

    /// Registers a part of a tensor: nothing of it where another stage has it.
    fn register(
        &mut self,
        tensor: &TensorInfo,
        range: Range<u64>,
        role: Role,
    ) -> Result<WeightId, ModelError> {
        let (range, role) = match self.wants(Place::of_tensor(&tensor.name, self.place)) {
            true => (range, role),
            false => (range.start..range.start, Role::Once),
        };
        Ok(self.store.register(tensor, range, role)?)
    }

    /// Whether a small tensor is read: what stands before the layers says something of all of them.
    fn reads(&self, name: &str) -> bool {
        let place = Place::of_tensor(name, self.place);
        place == Place::Beginning || self.wants(place)
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
        let id = self.register(tensor, 0..tensor.bytes, role)?;
        Ok(Matrix { id, ty: tensor.ty, rows, cols })
    }

    /// Several matrices that lie one after another in one tensor of `[cols, sum of rows]`.
    pub fn stacked<const N: usize>(
        &mut self,
        name: &str,
        cols: usize,
        rows: [usize; N],
    ) -> Result<[Matrix; N], ModelError> {
        let tensor = self.find(name, &[cols, rows.iter().sum()])?;
        let mut first = 0;
        let mut matrices = Vec::with_capacity(N);
        for rows in rows {
            matrices.push(self.part(tensor, 0, first..first + rows, cols, Role::Always)?);
            first += rows;
        }
        Ok(matrices.try_into().expect("as many matrices as rows"))
    }

    /// A tensor of `[cols, rows, heads]`.
    pub fn by_head(
        &mut self,
        name: &str,
        cols: usize,
        rows: usize,
        heads: usize,
    ) -> Result<HeadMatrices, ModelError> {
        let tensor = self.find(name, &[cols, rows, heads])?;
        let id = self.register(tensor, 0..tensor.bytes, Role::Always)?;
        Ok(HeadMatrices { all: Matrix { id, ty: tensor.ty, rows: rows * heads, cols }, heads })
    }

    /// A matrix of `rows` by `cols` for each group, of `[cols, rows, groups]` or `[cols, rows * groups]`.
    pub fn grouped(
        &mut self,
        name: &str,
        cols: usize,
        rows: usize,
        groups: usize,
    ) -> Result<HeadMatrices, ModelError> {
        let in_planes = self.gguf.tensor(name).is_some_and(|tensor| tensor.dims.len() > 2);
        if in_planes {
            return self.by_head(name, cols, rows, groups);
        }
        let all = self.matrix(name, cols, rows * groups, Role::Always)?;
        Ok(HeadMatrices { all, heads: groups })
    }

    /// Rows of a tensor from a byte on.
    fn part(
        &mut self,
        tensor: &'a TensorInfo,
        start: u64,
        rows: Range<usize>,
        cols: usize,
        role: Role,
    ) -> Result<Matrix, ModelError> {
        let row = quant::format(tensor.ty).expect("types were checked").row_bytes(cols) as u64;
        let range = start + rows.start as u64 * row..start + rows.end as u64 * row;
        let id = self.register(tensor, range, role)?;
        Ok(Matrix { id, ty: tensor.ty, rows: rows.len(), cols })
    }

    /// The embedding as output matrix as well.
    pub fn as_output(&mut self, embedding: Matrix) -> Result<Matrix, ModelError> {
        match (self.wants(Place::Beginning), self.wants(Place::End)) {
            (true, true) => {
                self.store.read_always(embedding.id);
                Ok(embedding)
            }
            // Another stage looks up its rows.
            (false, true) => self.matrix("token_embd.weight", embedding.cols, embedding.rows, Role::Always),
            (_, false) => Ok(embedding),
        }
    }

    /// `NAME.weight` of `[cols, rows]` and, where they are there, `NAME.scale` of `[1]` and `NAME.bias` of
    /// `[rows]`.
    pub fn linear(&mut self, name: &str, cols: usize, rows: usize) -> Result<Linear, ModelError> {
        let matrix = self.matrix(&format!("{name}.weight"), cols, rows, Role::Always)?;
        let scale = self.optional_vector(&format!("{name}.scale"), 1)?.map(|scale| scale[0]);
        Ok(Linear { matrix, scale, bias: self.optional_vector(&format!("{name}.bias"), rows)? })
    }

    /// The same for a map that has no bias: one in the file is refused.
    pub fn unbiased(&mut self, name: &str, cols: usize, rows: usize) -> Result<Linear, ModelError> {
        let matrix = self.matrix(&format!("{name}.weight"), cols, rows, Role::Always)?;
        let scale = self.optional_vector(&format!("{name}.scale"), 1)?.map(|scale| scale[0]);
        Ok(Linear { matrix, scale, bias: None })
    }

    /// The map of the first `rows` of all rows of a tensor `NAME.weight`, whose others nothing needs, with
    /// parts of `NAME.scale` and `NAME.bias`.
    pub fn leading_linear(
        &mut self,
        name: &str,
        cols: usize,
        rows: usize,
        all: usize,
    ) -> Result<Linear, ModelError> {
        let tensor = self.find(&format!("{name}.weight"), &[cols, all])?;
        let matrix = self.part(tensor, 0, 0..rows, cols, Role::Always)?;
        let scale = self.optional_vector(&format!("{name}.scale"), 1)?.map(|scale| scale[0]);
        let bias = self.optional_vector(&format!("{name}.bias"), all)?;
        Ok(Linear { matrix, scale, bias: bias.map(|bias| bias[..rows].to_vec()) })
    }

    /// The matrices of `[cols, rows]` of which `count` lie one behind another in a tensor.
    pub fn planes(
        &mut self,
        name: &str,
        cols: usize,
        rows: usize,
        count: usize,
    ) -> Result<Vec<Matrix>, ModelError> {
        let tensor = self.find(name, &[cols, rows, count])?;
        let each = tensor.bytes / count as u64;
        (0..count as u64).map(|i| self.part(tensor, i * each, 0..rows, cols, Role::Always)).collect()
    }

    /// The linear maps of one tensor `NAME.weight`, one after another, with parts of `NAME.scale` and
    /// `NAME.bias`.
    pub fn stacked_linear<const N: usize>(
        &mut self,
        name: &str,
        cols: usize,
        rows: [usize; N],
    ) -> Result<[Linear; N], ModelError> {
        let matrices = self.stacked(&format!("{name}.weight"), cols, rows)?;
        let scale = self.optional_vector(&format!("{name}.scale"), 1)?.map(|scale| scale[0]);
        let bias = self.optional_vector(&format!("{name}.bias"), rows.iter().sum())?;
        let mut first = 0;
        Ok(matrices.map(|matrix| {
            let part = first..first + matrix.rows;
            first = part.end;
            Linear { matrix, scale, bias: bias.as_ref().map(|bias| bias[part].to_vec()) }
        }))
    }

    /// The matrices of all experts: of one merged tensor `blk.L.ffn_PART_exps.weight` of `[cols, rows,
    /// count]`, or of the older `blk.L.ffn_PART.E.weight`, one a tensor.
    pub fn experts(
        &mut self,
        set: ExpertSet,
        part: &str,
        cols: usize,
        rows: usize,
    ) -> Result<Vec<Matrix>, ModelError> {
        let layer = set.layer;
        let merged = format!("blk.{layer}.ffn_{part}_exps.weight");
        if !self.contains(&merged) && self.contains(&format!("blk.{layer}.ffn_{part}.0.weight")) {
            return (0..set.count)
                .map(|e| self.matrix(&format!("blk.{layer}.ffn_{part}.{e}.weight"), cols, rows, set.role(e)))
                .collect();
        }
        let [matrices] = self.stacked_experts(set, &merged, cols, [rows])?;
        Ok(matrices)
    }

    /// Matrices that lie one after another in each expert's part of a tensor of `[cols, sum of rows, count]`.
    pub fn stacked_experts<const N: usize>(
        &mut self,
        set: ExpertSet,
        name: &str,
        cols: usize,
        rows: [usize; N],
    ) -> Result<[Vec<Matrix>; N], ModelError> {
        let tensor = self.find(name, &[cols, rows.iter().sum(), set.count])?;
        let each = tensor.bytes / set.count as u64;
        let mut parts = [(); N].map(|()| Vec::with_capacity(set.count));
        for e in 0..set.count {
            let mut first = 0;
            for (part, rows) in parts.iter_mut().zip(rows) {
                part.push(self.part(tensor, e as u64 * each, first..first + rows, cols, set.role(e))?);
                first += rows;
            }
        }
        Ok(parts)
    }

    /// Vectors of `n` floats, one for each expert, side by side: the experts' biases.
    pub fn optional_expert_vectors(
        &mut self,
        name: &str,
        n: usize,
        count: usize,
    ) -> Result<Option<Vec<f32>>, ModelError> {
        match self.contains(name) {
            true => self.floats(name, &[n, count]).map(Some),
            false => Ok(None),
        }
    }

    /// A small tensor of `n` floats (norms, biases, factors), decoded.
    pub fn vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>, ModelError> {
        self.floats(name, &[n])
    }

    /// A small tensor of floats of this shape, decoded.
    pub fn floats(&mut self, name: &str, dims: &[usize]) -> Result<Vec<f32>, ModelError> {
        let tensor = self.find(name, dims)?;
        let mut values = zeroed(dims, "a small tensor of the model")?;
        if !self.reads(name) {
            // Nothing is computed with it, but zeros are no norm.
            values.fill(1.0);
            return Ok(values);
        }
        let id = self.store.register(tensor, 0..tensor.bytes, Role::Once)?;
        if let Some(format) = quant::format(tensor.ty) {
            (format.decode)(&self.store.read_once(id)?, &mut values);
        }
        match values.iter().position(|v| !v.is_finite()) {
            Some(index) => Err(ModelError::NotFinite { name: name.to_owned(), index, value: values[index] }),
            None => Ok(values),
        }
    }

    /// A table of whole numbers below `below`, of this shape.
    pub fn table(&mut self, name: &str, dims: &[usize], below: usize) -> Result<Vec<u32>, ModelError> {
        let tensor = self.find(name, dims)?;
        if tensor.ty != TensorType::I32 {
            let (name, ty) = (name.to_owned(), tensor.ty.to_string());
            return Err(ModelError::UnsupportedType { name, ty, supported: TensorType::I32.to_string() });
        }
        let mut values: Vec<u32> = zeroed(dims, "a table of the model")?;
        if !self.reads(name) {
            return Ok(values);
        }
        let id = self.store.register(tensor, 0..tensor.bytes, Role::Once)?;
        let bytes = self.store.read_once(id)?;
        for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
            *value = u32::from_le_bytes(*bytes);
        }
        match values.iter().position(|&v| v as usize >= below) {
            Some(index) => {
                let (name, value) = (name.to_owned(), values[index] as i32);
                Err(ModelError::TableRange { name, index, value, below })
            }
            None => Ok(values),
        }
    }

    /// The weights of a norm, not all of them zeros.
    pub fn norm(&mut self, name: &str, dims: &[usize]) -> Result<Vec<f32>, ModelError> {
        let weights = self.floats(name, dims)?;
        match weights.iter().any(|&w| w != 0.0) {
            true => Ok(weights),
            false => Err(ModelError::ZeroNorm { name: name.to_owned() }),
        }
    }

    /// As [`WeightLoader::vector`] where the tensor may be absent.
    pub fn optional_vector(&mut self, name: &str, n: usize) -> Result<Option<Vec<f32>>, ModelError> {
        if self.contains(name) { self.vector(name, n).map(Some) } else { Ok(None) }
    }

    /// Leaves tensors aside that a pass does not need, where they are there.
    pub fn leave_aside(&mut self, names: impl IntoIterator<Item = String>) {
        for name in names {
            if let Some(index) = self.gguf.tensor_index(&name) {
                self.used[index] = true;
            }
        }
    }

    /// Leaves the tensors of these blocks aside: those of multi-token prediction, which a pass does not need.
    pub fn leave_blocks_aside(&mut self, blocks: Range<usize>) {
        for (tensor, used) in self.gguf.tensors.iter().zip(&mut self.used) {
            if block_of(&tensor.name).is_some_and(|block| blocks.contains(&block)) {
                *used = true;
            }
        }
    }

    /// Leaves the tensors whose names begin so aside: a pass does not need them.
    pub fn leave_all_aside(&mut self, prefix: &str) {
        for (tensor, used) in self.gguf.tensors.iter().zip(&mut self.used) {
            *used |= tensor.name.starts_with(prefix);
        }
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

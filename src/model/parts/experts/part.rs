//! One of the matrices that each expert has.

use crate::kernels::ops::Ops;
use crate::model::ModelError;
use crate::model::load::Loader;
use crate::model::weights::{ExpertSet, Matrix};

/// One of the matrices that each expert has, with what follows the product.
#[derive(Debug)]
pub(in crate::model) struct Part {
    pub(in crate::model) matrices: Vec<Matrix>,
    /// A factor for each expert.
    pub(in crate::model) scales: Option<Vec<f32>>,
    /// `[N][rows]`
    pub(in crate::model) biases: Option<Vec<f32>>,
}

impl Part {
    pub fn load(
        l: &mut Loader<'_>,
        set: ExpertSet,
        part: &str,
        matrices: Vec<Matrix>,
        rows: usize,
        scaled: bool,
    ) -> Result<Part, ModelError> {
        let name = |what: &str| format!("blk.{}.ffn_{part}_exps.{what}", set.layer);
        let scales = match scaled {
            true => l.weights.optional_vector(&name("scale"), set.count)?,
            false => None,
        };
        let biases = l.weights.optional_expert_vectors(&name("bias"), rows, set.count)?;
        Ok(Part { matrices, scales, biases })
    }

    /// Factors on the products; `slots` of an expert lie side by side.
    pub fn scale(&self, ops: &Ops, out: &mut [f32], tokens: &[Vec<usize>]) {
        let Some(scales) = &self.scales else { return };
        let rows = self.matrices[0].rows;
        each_expert(out, tokens, rows, |expert, out| ops.scale(out, scales[expert]));
    }

    pub fn add_biases(&self, ops: &Ops, out: &mut [f32], tokens: &[Vec<usize>]) -> bool {
        let Some(biases) = &self.biases else { return false };
        let rows = self.matrices[0].rows;
        each_expert(out, tokens, rows, |expert, out| ops.add_bias(out, &biases[expert * rows..][..rows]));
        true
    }
}

/// Calls `f` with the rows of each expert in use.
fn each_expert(out: &mut [f32], tokens: &[Vec<usize>], rows: usize, mut f: impl FnMut(usize, &mut [f32])) {
    let mut rest = out;
    for (expert, tokens) in tokens.iter().enumerate().filter(|(_, tokens)| !tokens.is_empty()) {
        let (own, others) = rest.split_at_mut(tokens.len() * rows);
        f(expert, own);
        rest = others;
    }
}

//! RMS norms and layer norms.

use super::super::load::Loader;
use super::super::observer::{NodeName, Numbered};
use super::super::run::Run;
use super::super::{Label, ModelError, NodeId, NodeKind, Work};
use crate::kernels::ops::Ops;

/// What a norm divides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum NormKind {
    /// `x / sqrt(mean(x^2) + eps)`
    Rms,
    /// `(x - mean(x)) / sqrt(var(x) + eps)`
    Layer,
}

/// A norm over rows of `row` elements.
#[derive(Clone, Debug)]
pub(in crate::model) struct Norm {
    /// Its node's name.
    name: NodeName,
    pub(in crate::model) kind: NormKind,
    pub(in crate::model) row: usize,
    /// As long as one row or as several, which take turns.
    pub(in crate::model) weight: Option<Vec<f32>>,
    pub(in crate::model) bias: Option<Vec<f32>>,
    pub(in crate::model) eps: f32,
}

impl Norm {
    /// The norm `TENSOR.weight` of `[row]` with `TENSOR.bias`, if there is one.
    pub fn load(
        l: &mut Loader<'_>,
        tensor: &str,
        name: impl Into<NodeName>,
        kind: NormKind,
        row: usize,
        eps: f32,
    ) -> Result<Norm, ModelError> {
        Norm::load_shaped(l, tensor, name, kind, &[row], eps)
    }

    /// The same with weights of `[row, n]`, for n rows that take turns: a weight for each head.
    pub fn load_shaped(
        l: &mut Loader<'_>,
        tensor: &str,
        name: impl Into<NodeName>,
        kind: NormKind,
        dims: &[usize],
        eps: f32,
    ) -> Result<Norm, ModelError> {
        let weight = Some(l.weights.norm(&format!("{tensor}.weight"), dims)?);
        let bias = format!("{tensor}.bias");
        let bias = if l.weights.contains(&bias) { Some(l.weights.floats(&bias, dims)?) } else { None };
        Ok(Norm { name: name.into(), kind, row: dims[0], weight, bias, eps })
    }

    /// The RMS norm `TENSOR.weight` of `[row, n]`, or of `[row * n]`, for n rows that take turns.
    pub fn load_turns(
        l: &mut Loader<'_>,
        tensor: &str,
        name: &'static str,
        [row, n]: [usize; 2],
        eps: f32,
    ) -> Result<Norm, ModelError> {
        let tensor = format!("{tensor}.weight");
        let flat = l.weights.rows_of(&tensor)? == 1;
        let dims = if flat { vec![row * n] } else { vec![row, n] };
        let weight = Some(l.weights.norm(&tensor, &dims)?);
        Ok(Norm { weight, ..Norm::unweighted(name, row, eps) })
    }

    /// The RMS norm whose weights are the tensor of exactly this name.
    pub fn load_exact(
        l: &mut Loader<'_>,
        tensor: &str,
        name: &'static str,
        row: usize,
        eps: f32,
    ) -> Result<Norm, ModelError> {
        let weight = Some(l.weights.norm(tensor, &[row])?);
        Ok(Norm { weight, ..Norm::unweighted(name, row, eps) })
    }

    /// An RMS norm without weights.
    pub fn unweighted(name: impl Into<NodeName>, row: usize, eps: f32) -> Norm {
        Norm { name: name.into(), kind: NormKind::Rms, row, weight: None, bias: None, eps }
    }

    /// The same norm with another node.
    pub fn named(mut self, name: &'static str) -> Norm {
        self.name = name.into();
        self
    }

    /// The same norm, whose node ggml does not number by the layer.
    pub fn unnumbered(mut self) -> Norm {
        self.name.numbered = Numbered::Not;
        self
    }

    /// In place.
    pub fn apply(&self, ops: &Ops, x: &mut [f32]) {
        let (weight, bias) = (self.weight.as_deref(), self.bias.as_deref());
        match self.kind {
            NormKind::Rms => {
                ops.rms_norm(x, self.row, weight, self.eps);
                if let Some(bias) = bias {
                    ops.add_bias(x, bias);
                }
            }
            NormKind::Layer => ops.layer_norm(x, self.row, weight, bias, self.eps),
        }
    }

    /// How its node is described.
    pub fn label<'a>(&self, inputs: &'a [NodeId<'static>]) -> Label<'a> {
        let kind = match self.kind {
            NormKind::Rms => NodeKind::RmsNorm,
            NormKind::Layer => NodeKind::LayerNorm,
        };
        Label::new(self.name, kind, Work::Norms, inputs)
    }

    /// Of the residual stream, into the block's input.
    pub fn of_stream(&self, run: &mut Run<'_>) {
        run.copy_stream();
        self.of_cur(run);
    }

    /// Of a block's input or output, in place.
    pub fn of_cur(&self, run: &mut Run<'_>) {
        let x = &mut run.buffers.cur[..run.rows * run.embd];
        self.apply(run.kernels.ops(), x);
        run.cur = run.watch.show(self.label(&[run.cur]), [run.rows, run.embd, 1], x);
    }
}

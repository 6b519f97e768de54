//! Experts on an input narrower than the layer's: a projection before them and one behind, as Nemotron 3
//! Super and Kimi K3 have.

use super::super::load::Loader;
use super::super::products::project;
use super::super::run::{Run, add_bias};
use super::super::weights::Linear;
use super::super::{ForwardError, Label, ModelError, Work};
use super::norm::{Norm, NormKind};
use crate::quant::ActivationType;
use crate::store::WeightId;

/// What a family says of latent experts.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct LatentExperts {
    /// Elements of the experts' input and output.
    pub width: usize,
    /// Tensors of the projections before and behind; the former is a node as well.
    pub down: &'static str,
    pub up: &'static str,
    /// The node of the latter.
    pub output: &'static str,
    /// The tensor of a norm of the experts' output, which a file may have, and its epsilon.
    pub norm: Option<(&'static str, f32)>,
}

/// The projections.
#[derive(Debug)]
pub(in crate::model) struct Latent {
    spec: LatentExperts,
    /// `[W, E]`
    down: Linear,
    norm: Option<Norm>,
    /// `[E, W]`
    up: Linear,
}

impl Latent {
    /// The projections of a layer.
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        embd: usize,
        spec: LatentExperts,
    ) -> Result<Latent, ModelError> {
        let LatentExperts { width, down, up, norm, .. } = spec;
        let there = norm.filter(|(norm, _)| l.weights.contains(&format!("blk.{il}.{norm}.weight")));
        let mut load =
            |(norm, eps)| Norm::load(l, &format!("blk.{il}.{norm}"), norm, NormKind::Rms, width, eps);
        let norm = there.map(&mut load).transpose()?;
        let down = l.weights.linear(&format!("blk.{il}.{down}"), embd, width)?;
        let up = l.weights.linear(&format!("blk.{il}.{up}"), width, embd)?;
        Ok(Latent { spec, down, norm, up })
    }

    /// Elements of the experts' input: W.
    pub fn width(&self) -> usize {
        self.down.rows()
    }

    pub fn weights(&self) -> impl Iterator<Item = WeightId> {
        [self.down.id(), self.up.id()].into_iter()
    }

    /// What the layer's input has to be rounded to.
    pub fn activation(&self) -> ActivationType {
        self.down.activation()
    }

    /// From the layer's input, which has been rounded, to the experts', rounded to these types.
    pub fn enter(
        &self,
        run: &mut Run<'_>,
        il: usize,
        types: impl Iterator<Item = ActivationType>,
    ) -> Result<(), ForwardError> {
        apply(run, &self.down, self.spec.down)?;
        let width = self.width();
        let buffers = &mut *run.buffers;
        buffers
            .inputs
            .prepare(run.kernels.ops(), &buffers.cur[..run.rows * width], width, types)
            .map_err(ForwardError::not_finite(self.spec.down, il))
    }

    /// From the experts' output, in [`Buffers::cur`](super::super::Buffers), to the layer's.
    pub fn leave(&self, run: &mut Run<'_>, il: usize, output: &'static str) -> Result<(), ForwardError> {
        let width = self.width();
        if let Some(norm) = &self.norm {
            let cur = &mut run.buffers.cur[..run.rows * width];
            norm.apply(run.kernels.ops(), cur);
            run.cur = run.watch.show(norm.label(&[run.cur]), [run.rows, width, 1], cur);
        }
        let buffers = &mut *run.buffers;
        buffers
            .inputs
            .prepare(run.kernels.ops(), &buffers.cur[..run.rows * width], width, [self.up.activation()])
            .map_err(ForwardError::not_finite(output, il))?;
        apply(run, &self.up, self.spec.output)
    }
}

/// The product with the input that was rounded, to [`Buffers::cur`](super::super::Buffers).
fn apply(run: &mut Run<'_>, linear: &Linear, name: &'static str) -> Result<(), ForwardError> {
    let (t, rows) = (run.rows, linear.rows());
    let buffers = &mut *run.buffers;
    let out = &mut buffers.cur[..t * rows];
    project(run.kernels, run.store, &buffers.inputs, &mut [(linear, &mut *out)])?;
    add_bias(run.kernels.ops(), linear, out);
    let inputs = [run.cur];
    let label = Label::product(name, Work::GateUp, linear.matrix.described(), &inputs);
    run.cur = run.watch.show(label, [t, rows, 1], out);
    Ok(())
}

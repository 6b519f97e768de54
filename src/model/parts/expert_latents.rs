//! Experts on an input narrower than the layer's: a projection before them and one behind, as Nemotron 3
//! Super has.

use super::super::load::Loader;
use super::super::run::{Run, add_bias, project};
use super::super::weights::Linear;
use super::super::{ForwardError, Label, ModelError, Work};
use crate::quant::ActivationType;
use crate::store::WeightId;

/// The projections.
#[derive(Debug)]
pub(in crate::model) struct Latent {
    /// `[W, E]`: `ffn_latent_down`
    down: Linear,
    /// `[E, W]`: `ffn_latent_up`
    up: Linear,
}

impl Latent {
    /// The projections of a layer to and from `width` elements.
    pub fn load(l: &mut Loader<'_>, il: usize, embd: usize, width: usize) -> Result<Latent, ModelError> {
        Ok(Latent {
            down: l.weights.linear(&format!("blk.{il}.ffn_latent_down"), embd, width)?,
            up: l.weights.linear(&format!("blk.{il}.ffn_latent_up"), width, embd)?,
        })
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
        apply(run, &self.down, "ffn_latent_down")?;
        let width = self.width();
        let buffers = &mut *run.buffers;
        buffers
            .inputs
            .prepare(&buffers.cur[..run.rows * width], width, types)
            .map_err(ForwardError::not_finite("ffn_latent_down", il))
    }

    /// From the experts' output, in [`Buffers::cur`](super::super::Buffers), to the layer's.
    pub fn leave(&self, run: &mut Run<'_>, il: usize, output: &'static str) -> Result<(), ForwardError> {
        let width = self.width();
        let buffers = &mut *run.buffers;
        buffers
            .inputs
            .prepare(&buffers.cur[..run.rows * width], width, [self.up.activation()])
            .map_err(ForwardError::not_finite(output, il))?;
        apply(run, &self.up, "ffn_latent_up")
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

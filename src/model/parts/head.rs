//! The end of a pass: the last norm and the output matrix.

use super::super::products::project;
use super::super::run::{Run, add_bias};
use super::super::weights::Linear;
use super::super::{ForwardError, Label, NodeKind, Work};
use super::norm::Norm;
use crate::store::OutOfMemory;

/// From the residual stream to logits.
#[derive(Clone, Debug)]
pub(in crate::model) struct Head {
    /// Where streams do not end in it.
    pub norm: Option<Norm>,
    /// `[V, E]`; the embedding once more, where the file has no output matrix.
    pub output: Linear,
    /// Factor on the logits.
    pub scale: Option<f32>,
    /// `cap * tanh(logit / cap)`
    pub soft_cap: Option<f32>,
}

impl Head {
    /// The norm of the residual stream, in [`Buffers::cur`](super::super::Buffers).
    pub fn norm(&self, run: &mut Run<'_>) {
        match &self.norm {
            Some(norm) => norm.of_stream(run),
            None => run.copy_stream(),
        }
    }

    /// The logits of the rows that are left, whose norms are in [`Buffers::cur`](super::super::Buffers).
    pub fn logits(&self, run: &mut Run<'_>, layers: usize) -> Result<(), ForwardError> {
        let (t, vocab) = (run.rows, self.output.rows());
        let buffers = &mut *run.buffers;
        buffers
            .inputs
            .prepare(run.kernels.ops(), &buffers.cur[..t * run.embd], run.embd, [self.output.activation()])
            .map_err(ForwardError::not_finite("result_norm", layers))?;
        let wanted = t * vocab;
        if buffers.logits.try_reserve_exact(wanted).is_err() {
            let bytes = wanted as u128 * size_of::<f32>() as u128;
            return Err(OutOfMemory { bytes, what: "the logits" }.into());
        }
        buffers.logits.resize(wanted, 0.0);
        project(run.kernels, run.store, &buffers.inputs, &mut [(&self.output, &mut buffers.logits)])?;
        self.finish(run, [t, vocab, 1]);
        Ok(())
    }

    /// Bias, factor and cap. ggml names what comes last, and a product before its bias.
    fn finish(&self, run: &mut Run<'_>, shape: [usize; 3]) {
        let ops = run.kernels.ops();
        let logits = &mut run.buffers.logits;
        let weight = self.output.matrix.described();
        let inputs = [run.cur];
        let plain = self.output.bias.is_none() && self.soft_cap.is_none();
        let named = match (plain, self.output.bias.is_some()) {
            (true, _) => "result_output",
            (false, true) => "result_output_no_bias",
            (false, false) => "result_output_uncapped",
        };
        if let Some(scale) = self.scale {
            ops.scale(logits, scale);
        }
        let mut node = run.watch.show(Label::product(named, Work::Logits, weight, &inputs), shape, logits);
        if add_bias(ops, &self.output, logits) {
            let label = Label::elementwise("result_output", Work::Logits, std::slice::from_ref(&node));
            node = run.watch.show(label, shape, logits);
        }
        if let Some(cap) = self.soft_cap {
            ops.soft_cap(logits, cap);
            let inputs = [node];
            let label = Label::new("result_output", NodeKind::SoftCap, Work::Logits, &inputs);
            run.watch.show(label, shape, logits);
        }
    }
}

//! The network that all tokens go through beside the experts.

use crate::model::load::Loader;
use crate::model::parts::feed_forward::{Dense, DenseSpec, Destination};
use crate::model::products::project;
use crate::model::run::Run;
use crate::model::weights::Linear;
use crate::model::{ForwardError, Label, ModelError, NodeId, NodeKind, Work};
use crate::quant::ActivationType;
use crate::store::WeightId;

/// What a family says of the network that all tokens go through beside the experts.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct SharedSpec {
    pub dense: DenseSpec,
    /// Where its output is weighted by the sigmoid of `ffn_gate_inp_shexp`, the nodes: the product, its
    /// sigmoid, what is weighted.
    pub gate: Option<[&'static str; 3]>,
    /// The node of its sum with the experts' output.
    pub sum: &'static str,
    /// Factor on that sum.
    pub scale: Option<f32>,
}

/// The shared network.
#[derive(Debug)]
pub(in crate::model) struct Shared {
    pub(in crate::model) dense: Dense,
    /// `[1, E]`, and the names of its nodes.
    pub(in crate::model) gate: Option<(Linear, [&'static str; 3])>,
    pub(in crate::model) sum: &'static str,
    pub(in crate::model) scale: Option<f32>,
}

impl Shared {
    pub fn load(l: &mut Loader<'_>, il: usize, embd: usize, spec: SharedSpec) -> Result<Shared, ModelError> {
        let dense = Dense::load(l, il, embd, spec.dense)?;
        let gate = match spec.gate {
            Some(names) => Some((l.weights.linear(&format!("blk.{il}.ffn_gate_inp_shexp"), embd, 1)?, names)),
            None => None,
        };
        Ok(Shared { dense, gate, sum: spec.sum, scale: spec.scale })
    }

    /// Hidden length.
    pub fn ff(&self) -> usize {
        self.dense.spec.ff
    }

    pub fn weights(&self) -> impl Iterator<Item = WeightId> {
        self.dense.weights().chain(self.gate.iter().map(|(gate, _)| gate.id()))
    }

    /// What its input has to be rounded to.
    pub fn input_types(&self) -> impl Iterator<Item = ActivationType> {
        self.dense.input_types().chain(self.gate.iter().map(|(gate, _)| gate.activation()))
    }

    /// The network from the rounded input, to the buffer of its own.
    pub fn forward(&self, run: &mut Run<'_>, il: usize) -> Result<NodeId<'static>, ForwardError> {
        let mut node = self.dense.forward_rounded(run, il, Destination::Shared)?;
        let Some((gate, [product, sigmoid, gated])) = &self.gate else { return Ok(node) };
        let t = run.rows;
        let input = run.cur;
        let buffers = &mut *run.buffers;
        let sums = &mut buffers.experts.sums[..t];
        project(run.kernels, run.store, &buffers.inputs, &mut [(gate, &mut *sums)])?;
        let weight = gate.matrix.described();
        let label = Label::product(product, Work::Router, weight, std::slice::from_ref(&input));
        let logit = run.watch.show(label, [t, 1, 1], sums);
        run.kernels.ops().sigmoid(sums);
        let label = Label::new(*sigmoid, NodeKind::Sigmoid, Work::Router, std::slice::from_ref(&logit));
        let by = run.watch.show(label, [t, 1, 1], sums);
        let out = &mut buffers.shared[..t * run.embd];
        for (row, &by) in out.chunks_exact_mut(run.embd).zip(&*sums) {
            run.kernels.ops().scale(row, by);
        }
        let inputs = [node, by];
        let label = Label::elementwise(*gated, Work::Sums, &inputs);
        node = run.watch.show(label, [t, run.embd, 1], out);
        Ok(node)
    }

    /// Adds its output to the experts'.
    pub fn add(&self, run: &mut Run<'_>, node: NodeId<'static>) {
        let n = run.rows * run.embd;
        let cur = &mut run.buffers.cur[..n];
        run.kernels.ops().add(cur, &run.buffers.shared[..n]);
        if let Some(scale) = self.scale {
            run.kernels.ops().scale(cur, scale);
        }
        let inputs = [run.cur, node];
        let label = Label::elementwise(self.sum, Work::Sums, &inputs);
        run.cur = run.watch.show(label, [run.rows, run.embd, 1], cur);
    }
}

//! Attention and Mamba 2 side by side on one input, their outputs added: Falcon-H1.

use super::super::run::Run;
use super::super::{ForwardError, Label, NodeId, RowSizes, ScratchSizes, Work};
use super::{Attention, Mamba2, Mixer};
use crate::store::WeightId;

/// See the module. Attention must have no gate: Mamba 2 uses its buffer.
#[derive(Debug)]
pub(in crate::model) struct AttentionAndMamba2 {
    pub attention: Attention,
    pub mamba: Mamba2,
    /// The node of the sum.
    pub sum: &'static str,
}

impl Mixer for AttentionAndMamba2 {
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new(self.mamba.weights().chain(self.attention.weights()))
    }

    fn rows(&self) -> RowSizes {
        let (a, b) = (self.attention.rows(), self.mamba.rows());
        RowSizes { q: a.q.max(b.q), k: a.k.max(b.k), v: a.v.max(b.v), gate: b.gate, attended: a.attended }
    }

    fn scratch(&self) -> ScratchSizes {
        ScratchSizes { constants: self.mamba.scratch().constants, ..self.attention.scratch() }
    }

    fn as_both(&self) -> Option<&AttentionAndMamba2> {
        Some(self)
    }

    /// Both use the same buffers: Mamba 2 goes first, up to what its output projection reads, which then
    /// waits in the gate's buffer.
    fn remember(&self, run: &mut Run<'_>, il: usize) -> Result<[NodeId<'static>; 3], ForwardError> {
        let input = run.cur;
        let nodes = self.mamba.remember(run, il)?;
        self.mamba.gate(run, nodes);
        run.cur = input;
        self.attention.remember(run, il)
    }

    fn mix(
        &self,
        run: &mut Run<'_>,
        il: usize,
        last: bool,
        inputs: [NodeId<'static>; 3],
    ) -> Result<(), ForwardError> {
        self.attention.mix(run, il, last, inputs)
    }

    /// # Panics
    /// Where the output is wanted beside the input: no family has a third block there.
    fn output(&self, run: &mut Run<'_>, il: usize, beside: bool) -> Result<NodeId<'static>, ForwardError> {
        assert!(!beside, "two mixing steps beside a network");
        let attended = self.attention.output(run, il, true)?;
        let inputs = [attended, self.mamba.output(run, il, false)?];
        let n = run.rows * run.embd;
        let out = &mut run.buffers.cur[..n];
        run.kernels.ops().add(out, &run.buffers.beside[..n]);
        let label = Label::elementwise(self.sum, Work::Sums, &inputs);
        Ok(run.watch.show(label, [run.rows, run.embd, 1], out))
    }
}

//! Nodes of values that lie by slot.

use super::part::Part;
use crate::kernels::ops::Ops;
use crate::model::observer::Watch;
use crate::model::weights::described;
use crate::model::{Label, NodeId, Work};

/// Shows values that lie by slot in the order (token, rank), which ggml has.
pub(super) struct BySlot<'s, 'a> {
    pub watch: &'s mut Watch<'a>,
    pub slots: &'s [usize],
    /// `[T, U, n]`
    pub shape: [usize; 3],
}

impl BySlot<'_, '_> {
    pub fn node(&mut self, label: Label<'_>, values: &mut [f32]) -> NodeId<'static> {
        self.several(label, &mut [values])
    }

    /// Values of several buffers side by side.
    fn several(&mut self, label: Label<'_>, buffers: &mut [&mut [f32]]) -> NodeId<'static> {
        let [t, used, n] = self.shape;
        let slots = self.slots;
        let shape = [t, used, n * buffers.len()];
        let buffers = std::cell::RefCell::new(buffers);
        self.watch.show_scattered(
            label,
            shape,
            |shown| {
                for slot in slots {
                    buffers
                        .borrow()
                        .iter()
                        .for_each(|buffer| shown.extend_from_slice(&buffer[slot * n..][..n]));
                }
            },
            |shown| {
                let mut rows = shown.chunks_exact(n);
                for slot in slots {
                    for buffer in buffers.borrow_mut().iter_mut() {
                        buffer[slot * n..][..n].copy_from_slice(rows.next().expect("a row for each slot"));
                    }
                }
            },
        )
    }

    /// A product of the experts, scaled (ggml names the product then), then biased.
    #[allow(clippy::too_many_arguments)] // a step over buffers that are borrowed one by one
    pub fn part(
        &mut self,
        ops: &Ops,
        part: &Part,
        [product, scaled, biased]: [&'static str; 3],
        work: Work,
        out: &mut [f32],
        tokens: &[Vec<usize>],
        inputs: &[NodeId<'static>],
    ) -> NodeId<'static> {
        part.scale(ops, out, tokens);
        let weight = described(&part.matrices, self.shape[1]);
        let product = if part.scales.is_some() { scaled } else { product };
        let node = self.node(Label::product(product, work, weight, inputs), out);
        if !part.add_biases(ops, out, tokens) {
            return node;
        }
        self.node(Label::elementwise(biased, work, &[node]), out)
    }

    /// Gate and up of one tensor: their nodes have both side by side.
    pub fn fused(
        &mut self,
        ops: &Ops,
        parts: [&Part; 2],
        [gate, up]: [&mut [f32]; 2],
        tokens: &[Vec<usize>],
        inputs: &[NodeId<'static>],
        used: usize,
    ) -> Vec<NodeId<'static>> {
        let [a, b] = parts.map(|part| described(&part.matrices, used));
        let weight = a.and(b);
        let label = Label::product("ffn_moe_gate_up", Work::GateUp, weight, inputs);
        let mut node = self.several(label, &mut [&mut *gate, &mut *up]);
        let biased = [(parts[0], &mut *gate), (parts[1], &mut *up)]
            .into_iter()
            .fold(false, |any, (part, out)| part.add_biases(ops, out, tokens) || any);
        if biased {
            let inputs = [node];
            let label = Label::elementwise("ffn_moe_gate_up_biased", Work::GateUp, &inputs);
            node = self.several(label, &mut [gate, up]);
        }
        vec![node]
    }
}

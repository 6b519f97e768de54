//! Lightning attention: linear attention whose state only decays, by a rate of its own for each head and
//! layer; a norm over all heads and a gate behind it. MiniMax-01's, as ggml's `minimax-01.cpp` builds it.
//!
//! Of head h a token does `M = M * exp(-s[h]) + v k^T` and gives `M q`: Mamba 2's scan with a step of 1, keys
//! as B and queries as C of each head. ggml does a pass at once, which is the same sum in another order.

use std::ops::Range;

use super::super::load::Loader;
use super::super::products::project;
use super::super::run::{Run, recur};
use super::super::state::Buffers;
use super::super::weights::Linear;
use super::super::{
    ForwardError, Label, MemorySpec, ModelError, NodeId, NodeKind, RowSizes, ScratchSizes, Work,
};
use super::norm::{Norm, NormKind};
use super::{Mixer, Recurrence};
use crate::kernels::ops::SelectiveScan;
use crate::store::WeightId;

/// What a family says of the blocks.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct LightningSpec {
    pub heads: usize,
    /// Elements of a head of queries, of keys and of values.
    pub len: usize,
    layers: usize,
    eps: f32,
}

impl LightningSpec {
    /// Blocks of so many heads in a model of so many layers.
    pub fn new(
        l: &Loader<'_>,
        heads: usize,
        len: usize,
        layers: usize,
        eps: f32,
    ) -> Result<LightningSpec, ModelError> {
        if layers < 2 {
            return Err(l.keys.problem("block_count", "is 1, where decays depend on the depth of a layer"));
        }
        l.keys.check_state("attention.key_length", len, heads.saturating_mul(len))?;
        Ok(LightningSpec { heads, len, layers, eps })
    }

    /// Elements of all heads.
    pub fn values(&self) -> usize {
        self.heads * self.len
    }

    /// The logarithms of a layer's decays: `-2^(-8 (h + 1) / heads)`, less the deeper the layer lies.
    fn rates(&self, il: usize) -> Vec<f32> {
        let depth = (1.0 - il as f64 / (self.layers - 1) as f64 + 1e-5) as f32;
        let slope = |head| libm::exp2(-8.0 * head as f64 / self.heads as f64) as f32;
        (1..=self.heads).map(|head| -(slope(head) * depth)).collect()
    }
}

/// The block of a layer.
#[derive(Debug)]
pub(in crate::model) struct Lightning {
    pub spec: LightningSpec,
    pub slot: usize,
    /// `attn_qkv`: of each head its query, its key and its value.
    pub qkv: Linear,
    /// `attn_gate`
    pub gate: Linear,
    /// By which states decay, `[heads]`, and what passes them by: nothing.
    pub rates: Vec<f32>,
    pub passed: Vec<f32>,
    /// `attn_norm_2`, over all heads.
    pub norm: Norm,
    pub output: Linear,
}

impl Lightning {
    /// Finds the weights of a layer: `attn_qkv`, `attn_gate`, `attn_norm_2`, `attn_output`.
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        embd: usize,
        spec: LightningSpec,
    ) -> Result<Lightning, ModelError> {
        let name = |part: &str| format!("blk.{il}.{part}");
        let values = spec.values();
        let qkv = l.weights.unbiased(&name("attn_qkv"), embd, 3 * values)?;
        let gate = l.weights.unbiased(&name("attn_gate"), embd, values)?;
        let norm = Norm::load(l, &name("attn_norm_2"), "qkv_norm", NormKind::Rms, values, spec.eps)?;
        let output = l.weights.unbiased(&name("attn_output"), values, embd)?;
        let slot = l.remember(MemorySpec::Recurrent { floats: values * spec.len });
        let (rates, passed) = (spec.rates(il), vec![0.0; spec.heads]);
        Ok(Lightning { spec, slot, qkv, gate, rates, passed, norm, output })
    }

    /// The products of the block's input, and SiLU of queries, keys and values, in the buffer of queries.
    fn project(&self, run: &mut Run<'_>, il: usize) -> Result<NodeId<'static>, ForwardError> {
        let (t, embd, values) = (run.rows, run.embd, self.spec.values());
        let input = [run.cur];
        let Buffers { inputs, cur, q, attn_gate, .. } = &mut *run.buffers;
        let (qkv, gate) = (&mut q[..t * 3 * values], &mut attn_gate[..t * values]);
        inputs
            .prepare(
                run.kernels.ops(),
                &cur[..t * embd],
                embd,
                [self.qkv.activation(), self.gate.activation()],
            )
            .map_err(ForwardError::not_finite("attn_norm", il))?;
        project(run.kernels, run.store, inputs, &mut [(&self.qkv, &mut *qkv), (&self.gate, &mut *gate)])?;
        let label = Label::product("QKVcur", Work::Projections, self.qkv.matrix.described(), &input);
        let node = run.watch.show(label, [t, 3 * values, 1], qkv);
        let label = Label::product("g", Work::Projections, self.gate.matrix.described(), &input);
        run.gate = run.watch.show(label, [t, values, 1], gate);
        run.kernels.ops().silu(qkv);
        let label = Label::new("QKVcur_silu", NodeKind::Silu, Work::Recurrence, std::slice::from_ref(&node));
        Ok(run.watch.show(label, [t, 3 * values, 1], qkv))
    }

    /// Takes rows of `[heads][query, key, value]` to rows of all values, all keys and all queries.
    fn sort(&self, rows: &[f32], sorted: &mut [f32]) {
        let LightningSpec { len, .. } = self.spec;
        let values = self.spec.values();
        for (row, sorted) in rows.chunks_exact(3 * values).zip(sorted.chunks_exact_mut(3 * values)) {
            for (head, row) in row.chunks_exact(3 * len).enumerate() {
                for (i, part) in row.chunks_exact(len).enumerate() {
                    sorted[(2 - i) * values + head * len..][..len].copy_from_slice(part);
                }
            }
        }
    }
}

impl Mixer for Lightning {
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new([&self.qkv, &self.gate, &self.output].into_iter().map(Linear::id))
    }

    fn rows(&self) -> RowSizes {
        let n = self.spec.values();
        RowSizes { q: 3 * n, k: 3 * n, v: self.spec.heads, gate: n, attended: n }
    }

    fn scratch(&self) -> ScratchSizes {
        ScratchSizes {
            constants: self.rates.len() + self.passed.len() + self.spec.values(),
            ..ScratchSizes::default()
        }
    }

    fn as_recurrence(&self) -> Option<Recurrence<'_>> {
        Some(Recurrence::Lightning(self))
    }

    fn remember(&self, run: &mut Run<'_>, il: usize) -> Result<[NodeId<'static>; 3], ForwardError> {
        let LightningSpec { heads, len, .. } = self.spec;
        let (t, values) = (run.rows, self.spec.values());
        let qkv = self.project(run, il)?;
        let (a, d) = (&self.rates[..], &self.passed[..]);
        let scan = SelectiveScan { head_len: len, groups: heads, state_len: len, a, d };
        let ops = run.kernels.ops();
        let Buffers { q, k, v, attn, .. } = &mut *run.buffers;
        self.sort(&q[..t * 3 * values], k);
        let steps = &mut v[..t * heads];
        steps.fill(1.0);
        recur(&mut run.segments, self.slot, |Range { start, end }, state| {
            let inputs = &k[start * 3 * values..end * 3 * values];
            // What is not sorted is needed no more.
            let scratch = &mut q[..(end - start) * values];
            let out = &mut attn[start * values..end * values];
            ops.selective_scan(&scan, inputs, &steps[start * heads..end * heads], state, scratch, out);
        })?;
        let inputs = [qkv];
        let label = Label::new("qkv_permuted", NodeKind::LinearAttention, Work::Recurrence, &inputs);
        run.attended = run.watch.show(label, [t, heads, len], &mut attn[..t * values]);
        Ok([run.attended; 3])
    }

    /// Nothing is left: the recurrence has mixed.
    fn mix(&self, _: &mut Run<'_>, _: usize, _: bool, _: [NodeId<'static>; 3]) -> Result<(), ForwardError> {
        Ok(())
    }

    /// The output's norm times the sigmoid of the gate, projected.
    fn output(&self, run: &mut Run<'_>, il: usize, beside: bool) -> Result<NodeId<'static>, ForwardError> {
        let (t, values, ops) = (run.rows, self.spec.values(), run.kernels.ops());
        let Buffers { inputs, attn, attn_gate, cur, beside: side, .. } = &mut *run.buffers;
        let (attn, gate) = (&mut attn[..t * values], &mut attn_gate[..t * values]);
        self.norm.apply(ops, attn);
        let label = self.norm.label(std::slice::from_ref(&run.attended));
        let normed = run.watch.show(label, [t, values, 1], attn);
        ops.sigmoid(gate);
        let label =
            Label::new("g_sigm", NodeKind::Sigmoid, Work::AttentionOutput, std::slice::from_ref(&run.gate));
        let sigmoid = run.watch.show(label, [t, values, 1], gate);
        ops.mul(gate, attn);
        inputs
            .prepare(run.kernels.ops(), gate, values, [self.output.activation()])
            .map_err(ForwardError::not_finite(normed.name, il))?;
        let out = if beside { side } else { cur };
        let out = &mut out[..t * run.embd];
        project(run.kernels, run.store, inputs, &mut [(&self.output, &mut *out)])?;
        let inputs = [sigmoid, normed];
        let weight = self.output.matrix.described();
        let label = Label::product("attn_out", Work::AttentionOutput, weight, &inputs);
        Ok(run.watch.show(label, [t, run.embd, 1], out))
    }
}

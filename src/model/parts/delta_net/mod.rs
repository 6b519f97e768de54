//! Linear attention by the delta rule: a short convolution over queries, keys and values, a state for each
//! head, a gated norm. [`DeltaNet`] has one decay a head, [`Kda`] one for each element of a key; what both do
//! alike is here.

mod gated;
mod kda;

use super::super::load::Loader;
use super::super::products::project;
use super::super::run::{Run, recur};
use super::super::state::Buffers;
use super::super::weights::Linear;
use super::super::{ForwardError, Label, MemorySpec, ModelError, NodeId, NodeKind, Work};
use super::norm::{Norm, NormKind};
use crate::kernels::ops::{CausalConv, Decay, DeltaRule, HeadMap, StridedRows};

pub(in crate::model) use gated::{DeltaNet, Merged, Projections, Strengths};
pub(in crate::model) use kda::{Kda, KdaKind, Path, Rate};

/// Most elements of a head, whose state is the square of that.
pub(in crate::model) const MAX_HEAD: usize = 1024;

/// What a family says of a layer.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct DeltaNetSpec {
    /// Heads of values.
    pub heads: usize,
    /// Heads of queries and keys; divides `heads`.
    pub key_heads: usize,
    /// Which of them a head of values goes with.
    pub map: HeadMap,
    /// Elements of a head.
    pub len: usize,
    /// Tokens that the convolution sees.
    pub taps: usize,
    /// Of the output's norm.
    pub eps: f32,
    /// Of the norms of queries and keys.
    pub l2_eps: f32,
    /// Whether the output's gate is a sigmoid, not SiLU, where there is one decay a head.
    pub sigmoid: bool,
}

impl DeltaNetSpec {
    /// Elements of a token's keys.
    pub(in crate::model) fn keys(&self) -> usize {
        self.key_heads * self.len
    }

    /// Elements of a token's values.
    pub(in crate::model) fn values(&self) -> usize {
        self.heads * self.len
    }
}

/// How queries, keys and values lie in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum Layout {
    /// `[T][queries, keys, values]`
    SideBySide,
    /// `[3][T][values]`
    Apart,
}

/// Nodes whose names differ. What ggml does not name is not shown.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct Names {
    /// The convolution, and its SiLU.
    pub convolved: Option<[&'static str; 2]>,
    /// Queries and keys divided by their norms.
    pub normalised: Option<[&'static str; 2]>,
    /// The output's product.
    pub output: &'static str,
}

/// What all kinds have.
#[derive(Debug)]
pub(in crate::model) struct Core {
    pub spec: DeltaNetSpec,
    pub layout: Layout,
    pub names: Names,
    /// The weights of a convolution for each plane of the layout: `[taps][channels]`.
    pub convolutions: Vec<Vec<f32>>,
    /// Slots of the convolutions' windows and of the states.
    pub window: usize,
    pub state: usize,
    /// Of each head's output.
    pub norm: Norm,
    pub output: Linear,
}

impl Core {
    /// Finds `ssm_norm` and the output's matrix; `convolutions` are the tensors of the planes, of these
    /// shapes.
    fn load(
        l: &mut Loader<'_>,
        il: usize,
        embd: usize,
        spec: DeltaNetSpec,
        (layout, names): (Layout, Names),
        convolutions: &[(&str, &[usize])],
        (norm, output): (&'static str, &str),
    ) -> Result<Core, ModelError> {
        let load = |&(tensor, dims): &(&str, &[usize])| {
            let weights = l.weights.floats(&format!("blk.{il}.{tensor}.weight"), dims)?;
            Ok::<_, ModelError>(transposed(&weights, spec.taps))
        };
        let convolutions = convolutions.iter().map(load).collect::<Result<Vec<_>, _>>()?;
        let norm = Norm::load(l, &format!("blk.{il}.ssm_norm"), norm, NormKind::Rms, spec.len, spec.eps)?;
        let output = l.weights.unbiased(&format!("blk.{il}.{output}"), spec.values(), embd)?;
        let planes = convolutions.iter().map(|weights| weights.len() / spec.taps * (spec.taps - 1));
        let window = l.remember(MemorySpec::Recurrent { floats: planes.sum() });
        let state = l.remember(MemorySpec::Recurrent { floats: spec.heads * spec.len * spec.len });
        Ok(Core { spec, layout, names, convolutions, window, state, norm, output })
    }

    /// Values of a token in a plane.
    pub fn channels(&self) -> usize {
        self.convolutions[0].len() / self.spec.taps
    }

    /// Values of a token in all planes.
    pub fn mixed(&self) -> usize {
        self.convolutions.len() * self.channels()
    }

    /// The convolution of what lies in [`Buffers::q`], with SiLU, to [`Buffers::v`].
    fn convolve(
        &self,
        run: &mut Run<'_>,
        inputs: &[NodeId<'static>],
    ) -> Result<Vec<NodeId<'static>>, ForwardError> {
        let (t, channels, ops) = (run.rows, self.channels(), run.kernels.ops());
        // Where nobody looks SiLU is part of the convolution: the same bits.
        let apart = run.watch.active();
        let Buffers { q, v, .. } = &mut *run.buffers;
        recur(&mut run.segments, self.window, |rows, windows| {
            let windows = windows.chunks_exact_mut(channels * (self.spec.taps - 1));
            for (plane, (weight, window)) in self.convolutions.iter().zip(windows).enumerate() {
                let at = (plane * t + rows.start) * channels..(plane * t + rows.end) * channels;
                let conv = CausalConv { channels, weight, bias: None, silu: !apart };
                ops.causal_conv(&conv, &q[at.clone()], window, &mut v[at]);
            }
        })?;
        let out = &mut v[..t * self.mixed()];
        let Some([raw, silu]) = self.names.convolved else {
            if apart {
                ops.silu(out);
            }
            return Ok(inputs.to_vec());
        };
        let shape = [t, self.mixed(), 1];
        let label = Label::new(raw, NodeKind::Convolution, Work::Recurrence, inputs);
        let raw = run.watch.show(label, shape, out);
        if apart {
            ops.silu(out);
        }
        let label = Label::new(silu, NodeKind::Silu, Work::Recurrence, std::slice::from_ref(&raw));
        Ok(vec![run.watch.show(label, shape, out)])
    }

    /// Divides each head of queries and keys by its norm. Returns the nodes of queries, keys and values.
    fn normalise(&self, run: &mut Run<'_>, mixed: Vec<NodeId<'static>>) -> Vec<NodeId<'static>> {
        let (t, ops) = (run.rows, run.kernels.ops());
        let DeltaNetSpec { len, l2_eps, .. } = self.spec;
        let keys = self.spec.keys();
        let v = &mut run.buffers.v[..];
        match self.layout {
            Layout::SideBySide => {
                ops.l2_norm(&mut v[..t * self.channels()], self.channels(), 2 * keys, len, l2_eps);
            }
            Layout::Apart => ops.l2_norm(&mut v[..2 * t * keys], keys, keys, len, l2_eps),
        }
        let Some(names) = self.names.normalised else { return mixed };
        let mut nodes = mixed.clone();
        for (i, name) in names.into_iter().enumerate() {
            let label = Label::new(name, NodeKind::L2Norm, Work::Recurrence, &mixed);
            nodes.push(self.show_heads(run, label, i * keys));
        }
        nodes
    }

    /// Values beside matrices that a device has copies of.
    fn constants(&self) -> usize {
        self.convolutions.iter().map(Vec::len).sum::<usize>() + self.spec.len
    }

    /// Where the heads of queries or of keys, which lie from `offset` on in each row, begin as they are
    /// shown: as ggml does, once for each head of values where neighbours share them.
    pub fn shown_heads(&self, offset: usize) -> Vec<usize> {
        let DeltaNetSpec { heads, key_heads, map, len, .. } = self.spec;
        let shown = if map == HeadMap::Grouped { heads } else { key_heads };
        (0..shown).map(|head| offset + map.key_head(head, shown, key_heads) * len).collect()
    }

    /// Shows queries or keys, which lie from `offset` on in each row.
    fn show_heads(&self, run: &mut Run<'_>, label: Label<'_>, offset: usize) -> NodeId<'static> {
        let (t, len, stride, heads) = (run.rows, self.spec.len, self.channels(), self.shown_heads(offset));
        let rows = std::cell::RefCell::new(&mut run.buffers.v[..t * stride]);
        run.watch.show_scattered(
            label,
            [t, heads.len(), len],
            |values| {
                for row in rows.borrow().chunks_exact(stride) {
                    heads.iter().for_each(|&at| values.extend_from_slice(&row[at..][..len]));
                }
            },
            |values| {
                let mut rows = rows.borrow_mut();
                let values = values.chunks_exact(heads.len() * len);
                for (row, values) in rows.chunks_exact_mut(stride).zip(values) {
                    for (&at, values) in heads.iter().zip(values.chunks_exact(len)) {
                        row[at..][..len].copy_from_slice(values);
                    }
                }
            },
        )
    }

    /// The queries (0), keys (1) or values (2) of some of `t` rows.
    fn rows<'b>(&self, v: &'b [f32], t: usize, [from, to]: [usize; 2], which: usize) -> StridedRows<'b> {
        let stride = self.channels();
        match self.layout {
            Layout::SideBySide => {
                let data = &v[from * stride..to * stride];
                StridedRows { data, stride, offset: which * self.spec.keys() }
            }
            Layout::Apart => {
                let data = &v[(which * t + from) * stride..(which * t + to) * stride];
                StridedRows { data, stride, offset: 0 }
            }
        }
    }

    /// The delta rule of all sequences, to [`Buffers::attn`]. The buffer of keys holds the strengths
    /// `[T][heads]` and, behind them, the decays, so many a token.
    fn recur(
        &self,
        run: &mut Run<'_>,
        decays: usize,
        inputs: &[NodeId<'static>],
    ) -> Result<(), ForwardError> {
        let (t, ops) = (run.rows, run.kernels.ops());
        let DeltaNetSpec { heads, key_heads, map, len, .. } = self.spec;
        let values = self.spec.values();
        // The projections are used up: their place is the scratch of the rule.
        let Buffers { q: scratch, k, v, attn, .. } = &mut *run.buffers;
        let (beta, decay) = k.split_at(t * heads);
        recur(&mut run.segments, self.state, |rows, state| {
            let [from, to] = [rows.start, rows.end];
            let decay = &decay[from * decays..to * decays];
            let rule = DeltaRule {
                tokens: rows.len(),
                heads,
                key_heads,
                map,
                len,
                q: self.rows(v, t, [from, to], 0),
                k: self.rows(v, t, [from, to], 1),
                v: self.rows(v, t, [from, to], 2),
                decay: if decays == heads { Decay::Head(decay) } else { Decay::Channel(decay) },
                beta: &beta[from * heads..to * heads],
            };
            ops.delta_rule(&rule, state, &mut attn[from * values..to * values], scratch);
        })?;
        let label = Label::new("attn_output", NodeKind::Recurrence, Work::Recurrence, inputs);
        run.attended = run.watch.show(label, [t, heads, len], &mut attn[..t * values]);
        Ok(())
    }

    /// The output projection of what lies in the buffer of the gate.
    fn project_output(
        &self,
        run: &mut Run<'_>,
        il: usize,
        beside: bool,
        input: NodeId<'static>,
    ) -> Result<NodeId<'static>, ForwardError> {
        let (t, values) = (run.rows, self.spec.values());
        let buffers = &mut *run.buffers;
        buffers
            .inputs
            .prepare(run.kernels.ops(), &buffers.attn_gate[..t * values], values, [self.output.activation()])
            .map_err(ForwardError::not_finite(input.name, il))?;
        let out = if beside { &mut buffers.beside } else { &mut buffers.cur };
        let out = &mut out[..t * run.embd];
        project(run.kernels, run.store, &buffers.inputs, &mut [(&self.output, &mut *out)])?;
        let weight = self.output.matrix.described();
        let inputs = [input];
        let label = Label::product(self.names.output, Work::AttentionOutput, weight, &inputs);
        Ok(run.watch.show(label, [t, run.embd, 1], out))
    }
}

/// `[channels][taps]` as `[taps][channels]`.
pub(super) fn transposed(weights: &[f32], taps: usize) -> Vec<f32> {
    (0..taps).flat_map(|tap| weights.iter().skip(tap).step_by(taps).copied()).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn taps_come_first() {
        assert_eq!(super::transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}

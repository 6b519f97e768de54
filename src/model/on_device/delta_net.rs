//! Linear attention by the delta rule on a device: gated delta nets, Kimi Delta Attention, and what both do
//! alike.

mod gated;
mod kda;

use crate::device::{DeviceConv, DeviceDeltaRule, DeviceError, DeviceSlice, MOST_DELTA_LEN};

use super::super::parts::MAX_HEAD;
use super::super::parts::delta_net::{Core, DeltaNetSpec, Layout};
use super::super::{Label, NodeId, NodeKind, Work};
use super::block::of_norm;
use super::states::States;
use super::step::{Placed, place, rounding, values};
use super::{Step, Stop, There};

pub(super) use gated::GatedNet;
pub(super) use kda::KdaNet;

const _: () = assert!(MAX_HEAD <= MOST_DELTA_LEN);

/// What all of it needs.
const OPS: [&str; 12] = [
    "causal_conv",
    "silu",
    "l2_norm",
    "delta_rule",
    "copy_heads",
    "sigmoid",
    "softplus",
    "exp",
    "mul",
    "mul_rows",
    "scale",
    "swiglu",
];

/// What both kinds have, the output's matrix being there.
struct DeltaCore<'m> {
    core: &'m Core,
    output: Placed<'m>,
}

/// What queries, keys and values were made to, and what the rule needs beside them.
struct Ruled<'s> {
    /// As [`Layout`] says.
    mixed: &'s DeviceSlice,
    /// `[T][heads]`
    beta: &'s DeviceSlice,
    /// So many a token.
    decay: &'s DeviceSlice,
}

impl<'m> DeltaCore<'m> {
    fn slots(&self) -> Vec<usize> {
        vec![self.core.window, self.core.state]
    }

    /// Where the device can do it and has the weights.
    fn find(there: There<'_>, core: &'m Core) -> Option<DeltaCore<'m>> {
        let ops = OPS.into_iter().chain([of_norm(&core.norm), rounding(core.output.activation())]);
        if !there.has_all(ops) {
            return None;
        }
        let [output] = place(there.store, [Some(&core.output)])?;
        Some(DeltaCore { core, output: output? })
    }

    /// The convolution of `qkv` with SiLU, to `out`.
    fn convolve(
        &self,
        step: &mut Step<'_, '_>,
        states: &States,
        [qkv, out]: [&DeviceSlice; 2],
        inputs: &[NodeId<'static>],
    ) -> Result<Vec<NodeId<'static>>, Stop> {
        let core = self.core;
        let (t, channels) = (step.run.rows, core.channels());
        let conv =
            |weight: &Vec<f32>| Ok(DeviceConv { channels, weight: step.there.constant(weight)?, bias: None });
        let convolutions = core.convolutions.iter().map(conv).collect::<Result<Vec<_>, DeviceError>>()?;
        // Where nobody looks SiLU is part of the convolution: the same bits.
        let apart = step.run.watch.active() && core.names.convolved.is_some();
        let window_len = channels * (core.spec.taps - 1);
        step.recur(states, core.window, |ops, rows, windows| {
            for (plane, conv) in convolutions.iter().enumerate() {
                let (at, n) = ((plane * t + rows.start) * channels, rows.len() * channels);
                let window = windows.part(plane * window_len, window_len);
                ops.causal_conv(conv, !apart, &qkv.part(at, n), &window, &out.part(at, n))?;
            }
            Ok(())
        })?;
        let Some([raw, silu]) = core.names.convolved else { return Ok(inputs.to_vec()) };
        let shape = [t, core.mixed(), 1];
        let label = Label::new(raw, NodeKind::Convolution, Work::Recurrence, inputs);
        let raw = step.show(label, shape, out)?;
        if apart {
            step.ops().silu(out)?;
        }
        let label = Label::new(silu, NodeKind::Silu, Work::Recurrence, std::slice::from_ref(&raw));
        Ok(vec![step.show(label, shape, out)?])
    }

    /// Divides each head of queries and keys by its norm. Returns the nodes of queries, keys and values.
    fn normalise(
        &self,
        step: &mut Step<'_, '_>,
        mixed: &DeviceSlice,
        inputs: Vec<NodeId<'static>>,
    ) -> Result<Vec<NodeId<'static>>, Stop> {
        let DeltaNetSpec { len, l2_eps, .. } = self.core.spec;
        let (t, keys, channels) = (step.run.rows, self.core.spec.keys(), self.core.channels());
        match self.core.layout {
            Layout::SideBySide => step.ops().l2_norm(mixed, channels, 2 * keys, len, l2_eps)?,
            Layout::Apart => step.ops().l2_norm(&mixed.part(0, 2 * t * keys), keys, keys, len, l2_eps)?,
        }
        let Some(names) = self.core.names.normalised else { return Ok(inputs) };
        let mut nodes = inputs.clone();
        for (i, name) in names.into_iter().enumerate() {
            let label = Label::new(name, NodeKind::L2Norm, Work::Recurrence, &inputs);
            nodes.push(self.show_heads(step, label, mixed, i * keys)?);
        }
        Ok(nodes)
    }

    /// Shows queries or keys, which lie from `offset` on in each row, as the CPU does.
    fn show_heads(
        &self,
        step: &mut Step<'_, '_>,
        label: Label<'_>,
        mixed: &DeviceSlice,
        offset: usize,
    ) -> Result<NodeId<'static>, Stop> {
        let (ops, len, stride) = (step.ops(), self.core.spec.len, self.core.channels());
        let places = self.core.shown_heads(offset);
        let shape = [step.run.rows, places.len(), len];
        let read = || {
            let all = values(ops, mixed)?;
            let heads =
                all.chunks_exact(stride).flat_map(|row| places.iter().map(move |&at| &row[at..][..len]));
            Ok(heads.flatten().copied().collect())
        };
        let write = |heads: &[f32]| {
            let mut all = values(ops, mixed)?;
            for (row, heads) in all.chunks_exact_mut(stride).zip(heads.chunks_exact(places.len() * len)) {
                for (&at, head) in places.iter().zip(heads.chunks_exact(len)) {
                    row[at..][..len].copy_from_slice(head);
                }
            }
            ops.write(mixed, &all)
        };
        Ok(step.run.watch.show_elsewhere(label, shape, read, write)?)
    }

    /// The delta rule of all sequences.
    fn recur(
        &self,
        step: &mut Step<'_, '_>,
        states: &States,
        of: &Ruled<'_>,
        inputs: &[NodeId<'static>],
    ) -> Result<DeviceSlice, Stop> {
        let (t, core) = (step.run.rows, self.core);
        let DeltaNetSpec { heads, key_heads, map, len, .. } = core.spec;
        let (keys, values, stride) = (core.spec.keys(), core.spec.values(), core.channels());
        let decays = of.decay.len() / t;
        let attended = step.rows("attended", values)?;
        step.recur(states, core.state, |ops, rows, state| {
            let part = |x: &DeviceSlice, row: usize| x.part(rows.start * row, rows.len() * row);
            let qkv = [0, 1, 2].map(|i| {
                let at = match core.layout {
                    Layout::SideBySide => rows.start * stride + i * keys,
                    Layout::Apart => (i * t + rows.start) * stride,
                };
                of.mixed.part(at, of.mixed.len() - at)
            });
            let rule = DeviceDeltaRule {
                tokens: rows.len(),
                heads,
                key_heads,
                map,
                len,
                qkv: qkv.each_ref(),
                stride,
                decay: &part(of.decay, decays),
                by_channel: decays != heads,
                beta: &part(of.beta, heads),
            };
            ops.delta_rule(&rule, state, &part(&attended, values))
        })?;
        let label = Label::new("attn_output", NodeKind::Recurrence, Work::Recurrence, inputs);
        step.run.attended = step.show(label, [t, heads, len], &attended)?;
        Ok(attended)
    }

    /// The output's projection.
    fn project_output(
        &self,
        step: &mut Step<'_, '_>,
        from: &DeviceSlice,
        node: NodeId<'static>,
        out: &DeviceSlice,
    ) -> Result<(), Stop> {
        let linear = self.output.linear;
        let rounded = step.round(from, self.core.spec.values(), [linear.activation()])?;
        step.project(&rounded, &self.output, out)?;
        let (weight, inputs) = (linear.matrix.described(), [node]);
        let label = Label::product(self.core.names.output, Work::AttentionOutput, weight, &inputs);
        step.run.cur = step.show(label, [step.run.rows, step.run.embd, 1], out)?;
        Ok(())
    }
}

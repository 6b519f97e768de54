//! Gated connections between residual streams (Qwen 4): each block takes the mean of all streams, normed and
//! gated element by element through a low rank, and its output is added to each stream by a gate of its own.
//! They stand in the place of norms before blocks. Source: ggml's qwen4exp.

use super::super::load::{Loader, Sizes};
use super::super::observer::NodeName;
use super::super::products::project;
use super::super::run::{Run, check_finite};
use super::super::weights::Linear;
use super::super::{Buffers, ForwardError, Label, ModelError, NodeId, NodeKind, Work};
use super::ngrams::Ngrams;
use super::norm::Norm;
use super::streams::{Block, LayerStreams, Streams, copies};
use crate::store::WeightId;

/// Most streams: a handful is usual, more is a broken or hostile file.
const MAX_STREAMS: usize = 64;

/// What a model says of its connections.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct GatedSpec {
    /// Streams.
    pub count: usize,
    /// The rank that gates pass through.
    rank: usize,
    /// Of the norm of each stream.
    eps: f32,
}

impl GatedSpec {
    /// Reads the keys `hyper_connection.*`.
    pub fn read(l: &mut Loader<'_>, eps: f32) -> Result<GatedSpec, ModelError> {
        let name = "hyper_connection.count";
        let count = l.keys.required_size(name)?;
        if !(2..=MAX_STREAMS).contains(&count) {
            return Err(l.keys.problem(name, format!("is {count}, where 2 to {MAX_STREAMS} make sense")));
        }
        Ok(GatedSpec { count, rank: l.keys.required_size("hyper_connection.low_rank")?, eps })
    }
}

/// The mean of gated streams.
#[derive(Debug)]
struct Mean {
    spec: GatedSpec,
    norm: Norm,
    /// `[R, S * E]` and `[S * E, R]`
    down: Linear,
    up: Linear,
    /// `[S, S * E]`: by how much each stream takes in what the block gives.
    inject: Option<Linear>,
    /// The node of the mean.
    mean: &'static str,
}

impl Mean {
    /// `TENSOR_norm`, `TENSOR_down`, `TENSOR_up` and, of a block, `TENSOR_inject`.
    fn load(
        l: &mut Loader<'_>,
        tensor: &str,
        embd: usize,
        spec: GatedSpec,
        (mean, of_block): (&'static str, bool),
    ) -> Result<Mean, ModelError> {
        let GatedSpec { count, rank, eps } = spec;
        let name = |part: &str| format!("{tensor}_{part}");
        let norm = Norm::load_turns(l, &name("norm"), "hc_norm", [embd, count], eps)?;
        let down = l.weights.unbiased(&name("down"), count * embd, rank)?;
        let up = l.weights.unbiased(&name("up"), rank, count * embd)?;
        let inject = match of_block {
            true => Some(l.weights.unbiased(&name("inject"), count * embd, count)?),
            false => None,
        };
        Ok(Mean { spec, norm, down, up, inject, mean })
    }

    fn weights(&self) -> impl Iterator<Item = WeightId> {
        [Some(&self.down), self.inject.as_ref(), Some(&self.up)].into_iter().flatten().map(Linear::id)
    }

    /// Values of a token in the buffer of hidden rows.
    fn hidden(&self, embd: usize) -> usize {
        self.spec.count * embd + self.spec.rank
    }

    /// From the streams to the residual stream; what goes to which stream to [`Buffers::gates`].
    fn take(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let (t, embd, ops) = (run.rows, run.embd, run.kernels.ops());
        let GatedSpec { count, rank, .. } = self.spec;
        let row = count * embd;
        let Buffers { streams, gates, gate, up, x, inputs, hidden, .. } = &mut *run.buffers;
        let (normed, low) = gate.split_at_mut(t * row);
        let (low, up, x) = (&mut low[..t * rank], &mut up[..t * row], &mut x[..t * embd]);
        normed.copy_from_slice(&streams[..t * row]);
        self.norm.apply(ops, normed);
        let label = self.norm.label(std::slice::from_ref(&run.streams));
        let normed_node = [run.watch.show(label, [t, row, 1], normed)];
        let not_finite = ForwardError::not_finite("hc_norm", il);
        let types = [Some(&self.down), self.inject.as_ref()].into_iter().flatten().map(Linear::activation);
        inputs.prepare(run.kernels.ops(), normed, row, types).map_err(not_finite)?;
        let mut outputs = vec![(&self.down, &mut *low)];
        if let Some(inject) = &self.inject {
            outputs.push((inject, &mut gates[..t * count]));
        }
        project(run.kernels, run.store, inputs, &mut outputs)?;
        ops.scale(low, 1.0 / count as f32);
        ops.silu(low);
        let label = Label::product("hc_low", Work::Streams, self.down.matrix.described(), &normed_node);
        let low_node = [run.watch.show(label, [t, rank, 1], low)];
        let not_finite = ForwardError::not_finite("hc_norm", il);
        hidden.prepare(run.kernels.ops(), low, rank, [self.up.activation()]).map_err(not_finite)?;
        project(run.kernels, run.store, hidden, &mut [(&self.up, &mut *up)])?;
        let label = Label::product("hc_gate", Work::Streams, self.up.matrix.described(), &low_node);
        let gate_node = run.watch.show(label, [t, row, 1], up);
        ops.sigmoid(up);
        ops.mul(up, normed);
        ops.mean_of_streams(up, x, embd);
        let nodes = [gate_node, normed_node[0]];
        let label = Label::new(self.mean, NodeKind::Sigmoid, Work::Streams, &nodes);
        run.x = run.watch.show(label, [t, embd, 1], x);
        if let Some(inject) = &self.inject {
            let weight = inject.matrix.described();
            let label = Label::product("hc_inject", Work::Streams, weight, &normed_node);
            run.watch.show(label, [t, count, 1], &mut gates[..t * count]);
        }
        Ok(())
    }
}

/// The connections of a layer.
#[derive(Debug)]
pub(in crate::model) struct GatedConnections {
    /// What is added to all streams before the first block.
    ngrams: Option<Ngrams>,
    mixer: Mean,
    network: Option<Mean>,
}

impl GatedConnections {
    /// That of the mixing step: `hc_attn_*`.
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        sizes: &Sizes,
        spec: GatedSpec,
        ngrams: Option<Ngrams>,
    ) -> Result<GatedConnections, ModelError> {
        let mixer = Mean::load(l, &format!("blk.{il}.hc_attn"), sizes.embd, spec, ("hc_mixed", true))?;
        Ok(GatedConnections { ngrams, mixer, network: None })
    }

    /// That of the network: `hc_ffn_*`.
    pub fn load_network(&mut self, l: &mut Loader<'_>, il: usize, embd: usize) -> Result<(), ModelError> {
        let tensor = format!("blk.{il}.hc_ffn");
        self.network = Some(Mean::load(l, &tensor, embd, self.mixer.spec, ("hc_mixed", true))?);
        Ok(())
    }
}

impl LayerStreams for GatedConnections {
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new(self.ngrams.iter().flat_map(Ngrams::weights).chain(self.mixer.weights()))
    }

    fn late_weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new(self.network.iter().flat_map(Mean::weights))
    }

    fn hidden(&self, embd: usize) -> usize {
        self.mixer.hidden(embd).max(self.ngrams.as_ref().map_or(0, Ngrams::hidden))
    }

    fn before(&self, run: &mut Run<'_>, il: usize, block: Block) -> Result<(), ForwardError> {
        match (block, &self.network) {
            (Block::Network, Some(network)) => network.take(run, il),
            _ => {
                if let Some(ngrams) = &self.ngrams {
                    ngrams.add(run, il)?;
                }
                self.mixer.take(run, il)
            }
        }
    }

    /// `stream + 2 * sigmoid(gate / S) * output`
    fn add(&self, run: &mut Run<'_>, il: usize, block: Block, sum: NodeName) -> Result<(), ForwardError> {
        let (t, embd, count) = (run.rows, run.embd, self.mixer.spec.count);
        let occurrence = usize::from(block == Block::Network);
        let inputs = [run.cur, run.streams, NodeId { name: "hc_inject", layer: Some(il), occurrence }];
        let Buffers { streams, gates, cur, .. } = &mut *run.buffers;
        let (streams, gates) = (&mut streams[..t * count * embd], &mut gates[..t * count]);
        let ops = run.kernels.ops();
        ops.scale(gates, 1.0 / count as f32);
        ops.sigmoid(gates);
        ops.scale(gates, 2.0);
        ops.correct_streams(streams, &cur[..t * embd], gates, embd);
        let label = Label::new(sum, NodeKind::Sigmoid, Work::Streams, &inputs);
        run.streams = run.watch.show(label, [t, count, embd], streams);
        if run.watch.observer.interrupted() {
            return Err(ForwardError::Interrupted);
        }
        check_finite(sum.name, il, streams, count * embd)
    }
}

/// The streams of a model: copies of the embedding at first, and their gated mean at the end, which is the
/// head's norm as well.
#[derive(Debug)]
pub(in crate::model) struct GatedStreams {
    head: Mean,
}

impl GatedStreams {
    /// `output_hc_norm`, `output_hc_down`, `output_hc_up`.
    pub fn load(l: &mut Loader<'_>, sizes: &Sizes, spec: GatedSpec) -> Result<GatedStreams, ModelError> {
        Ok(GatedStreams { head: Mean::load(l, "output_hc", sizes.embd, spec, ("result_norm", false))? })
    }
}

impl Streams for GatedStreams {
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new(std::iter::empty())
    }

    fn end_weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new(self.head.weights())
    }

    fn count(&self) -> usize {
        self.head.spec.count
    }

    fn gates(&self) -> usize {
        self.head.spec.count
    }

    fn begin(&self, run: &mut Run<'_>) -> Result<(), ForwardError> {
        copies(run, self.count());
        Ok(())
    }

    fn end(&self, run: &mut Run<'_>, layers: usize) -> Result<(), ForwardError> {
        run.watch.enter(None);
        self.head.take(run, layers)?;
        check_finite("result_norm", layers, &run.buffers.x[..run.rows * run.embd], run.embd)
    }
}

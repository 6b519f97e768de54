//! Decoders: the linear forward pass that their families make of parts.

use std::ops::Range;

use crate::store::{Store, WeightId, zeroed};

use super::load::Sizes;
use super::observer::NodeName;
use super::parts::{
    Block, Dense, DenseAndExperts, EarlierStreams, Embedding, Experts, Head, LayerStreams, Mixer, Mixture,
    NextnInput, Norm, PerLayerInputs, Rope, Streams, Tail,
};
use super::run::{Run, check_finite};
use super::{
    Architecture, Buffers, FeedForwardSpec, ForwardError, Label, LayerSpec, Logits, MemorySpec, ModelSpec,
    Pass, RowSizes, ScratchSizes, SideSizes, Work,
};

/// A decoder: its parts in the order of a pass.
#[derive(Debug)]
pub(super) struct Decoder {
    pub sizes: Sizes,
    /// The kinds of rotation that layers name by index.
    pub ropes: Vec<Rope>,
    pub embedding: Embedding,
    /// An input of its own for each layer.
    pub per_layer: Option<PerLayerInputs>,
    /// Several residual streams; then each layer has its own [`Layer::streams`].
    pub streams: Option<Box<dyn Streams>>,
    pub layers: Vec<Layer>,
    /// What the head has as its input, where layers have [`Layer::earlier`].
    pub mixture: Option<Mixture>,
    pub head: Head,
    /// The block of multi-token prediction, where it is wanted.
    pub nextn: Option<Nextn>,
    /// What sequences remember, slot by slot.
    pub memories: Vec<MemorySpec>,
}

/// A block of multi-token prediction, which stands beside the layers: from a token and the hidden row of the
/// position before it to the logits of the token behind it.
#[derive(Debug)]
pub(super) struct Nextn {
    pub input: NextnInput,
    pub layer: Layer,
    pub head: Head,
    /// Whether hidden rows, those that it reads and its own, are those behind the last norm.
    pub normed: bool,
    /// Its first slot of what a sequence remembers: all behind are its own.
    pub first_memory: usize,
}

/// A layer.
#[derive(Debug)]
pub(super) struct Layer {
    /// Of the mixing step's input.
    pub attn_norm: Option<Norm>,
    /// Attention or a recurrence; `None` where the layer is a network alone.
    pub mixer: Option<Box<dyn Mixer>>,
    /// Of the step's output, before it is added to the residual stream.
    pub attn_post_norm: Option<Norm>,
    /// Of the feed-forward network's input.
    pub ffn_norm: Option<Norm>,
    /// `None` where the layer is a mixing step alone.
    pub ffn: Option<FeedForward>,
    /// Of the network's output, before it is added.
    pub ffn_post_norm: Option<Norm>,
    /// Factor on both outputs.
    pub residual_scale: Option<f32>,
    /// Where outputs are added to their blocks' normed inputs rather than to what these were normed from: the
    /// factor on these inputs.
    pub normed_residual: Option<f32>,
    /// Whether attention and network have the same input: `x + ffn(norm(x)) + attention(norm(x))`.
    pub parallel: bool,
    /// The node of the residual stream between attention and network.
    pub middle: &'static str,
    /// The node of the residual stream behind the layer.
    pub out: NodeName,
    /// What follows the network's output.
    pub tail: Option<Tail>,
    /// What several streams need before and behind the blocks.
    pub streams: Option<Box<dyn LayerStreams>>,
    /// Residual streams that were put aside, of which blocks take their part.
    pub earlier: Option<Box<EarlierStreams>>,
}

/// The feed-forward network of a layer.
#[derive(Debug)]
pub(super) enum FeedForward {
    Dense(Box<Dense>),
    Experts(Box<Experts>),
    Both(Box<DenseAndExperts>),
}

impl FeedForward {
    /// What every token touches: all but the experts.
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        match self {
            FeedForward::Dense(dense) => Box::new(dense.weights()),
            FeedForward::Experts(experts) => Box::new(experts.weights()),
            FeedForward::Both(both) => Box::new(both.weights()),
        }
    }

    fn experts(&self) -> Option<&Experts> {
        match self {
            FeedForward::Dense(_) => None,
            FeedForward::Experts(experts) => Some(experts),
            FeedForward::Both(both) => Some(&both.experts),
        }
    }

    fn spec(&self) -> FeedForwardSpec {
        let beside = match self {
            FeedForward::Dense(dense) => return FeedForwardSpec::Dense { ff: dense.spec.ff },
            FeedForward::Experts(experts) => experts.shared_ff(),
            FeedForward::Both(both) => both.dense.spec.ff,
        };
        let experts = self.experts().expect("there are experts");
        let (count, used) = experts.sizes();
        let weighs_input = experts.weighs_input();
        FeedForwardSpec::Experts { count, used, ff: experts.ff, shared: beside, weighs_input }
    }

    fn forward(&self, run: &mut Run<'_>, il: usize, next: Option<&Experts>) -> Result<(), ForwardError> {
        match self {
            FeedForward::Dense(dense) => {
                if let Some(next) = next.filter(|_| run.makes_guesses()) {
                    next.guess_behind_dense(run)?;
                }
                dense.forward(run, il)
            }
            FeedForward::Experts(experts) => experts.forward(run, il, next),
            FeedForward::Both(both) => both.forward(run, il, next),
        }
    }
}

impl Layer {
    /// What every token touches: all but the experts.
    fn weights(&self) -> impl Iterator<Item = WeightId> {
        let before = self.streams.iter().flat_map(|streams| streams.weights());
        let mixer = self.mixer.iter().flat_map(|mixer| mixer.weights());
        let ffn = self.ffn.iter().flat_map(FeedForward::weights);
        let tail = self.tail.iter().flat_map(Tail::weights);
        let behind = self.streams.iter().flat_map(|streams| streams.late_weights());
        before.chain(mixer).chain(ffn).chain(tail).chain(behind)
    }

    /// Whether sequences remember anything of it.
    fn remembers(&self) -> bool {
        self.mixer.as_ref().is_some_and(|mixer| mixer.remembers())
    }

    /// Values of a token in the buffers of the mixing step.
    fn rows(&self) -> RowSizes {
        self.mixer.as_ref().map_or_else(RowSizes::default, |mixer| mixer.rows())
    }

    fn experts(&self) -> Option<&Experts> {
        self.ffn.as_ref().and_then(FeedForward::experts)
    }

    /// Experts that are as good as sure to be used by so many tokens.
    fn expected_experts(&self, tokens: usize) -> impl Iterator<Item = WeightId> {
        self.experts().into_iter().flat_map(move |experts| experts.expected(tokens))
    }

    /// The widest hidden row beside the network's.
    fn hidden(&self, embd: usize) -> usize {
        let tail = self.tail.as_ref().map_or(0, Tail::hidden);
        let shares = self.earlier.as_ref().map_or(0, |earlier| earlier.ffn.shares());
        tail.max(self.streams.as_ref().map_or(0, |streams| streams.hidden(embd))).max(shares)
    }

    fn spec(&self) -> LayerSpec {
        LayerSpec {
            rows: self.rows(),
            scratch: self.mixer.as_ref().map_or_else(ScratchSizes::default, |mixer| mixer.scratch()),
            ff: self.ffn.as_ref().map_or(FeedForwardSpec::Nothing, FeedForward::spec),
        }
    }
}

impl Decoder {
    /// All layers, that of the block of multi-token prediction included.
    pub fn all_layers_mut(&mut self) -> impl Iterator<Item = &mut Layer> {
        self.layers.iter_mut().chain(self.nextn.iter_mut().map(|nextn| &mut nextn.layer))
    }

    /// Residual streams that layers put aside.
    fn banks(&self) -> usize {
        self.layers.iter().flat_map(|layer| &layer.earlier).filter(|earlier| earlier.banks).count()
    }

    fn side(&self) -> SideSizes {
        let embd = self.sizes.embd;
        SideSizes {
            streams: self.streams.as_ref().map_or(self.banks(), |streams| streams.count()) * embd,
            gates: self.streams.as_ref().map_or(0, |streams| streams.gates()),
            per_layer: self.per_layer.as_ref().map_or(0, PerLayerInputs::row),
            hidden: self.layers.iter().map(|layer| layer.hidden(embd)).max().unwrap_or(0),
            border: 0,
        }
    }

    /// From tokens to what the first layer sees.
    fn begin(&self, run: &mut Run<'_>) -> Result<(), ForwardError> {
        run.announce(self.per_layer.iter().flat_map(PerLayerInputs::weights));
        run.announce(self.streams.iter().flat_map(|streams| streams.weights()));
        run.announce(self.layers[0].weights());
        self.embedding.forward(run)?;
        if let Some(per_layer) = &self.per_layer {
            per_layer.forward(run)?;
        }
        match &self.streams {
            Some(streams) => streams.begin(run),
            None => Ok(()),
        }
    }

    /// From what the stage before gave to what the layer `first` sees: `rows` are those of
    /// [`Decoder::hand_over`].
    fn take_over(&self, run: &mut Run<'_>, first: usize, rows: &[f32]) -> Result<(), ForwardError> {
        run.announce(self.layers[first].weights());
        let (t, embd, width) = (run.rows, run.embd, self.border());
        let Buffers { x, streams, per_layer, side, .. } = &mut *run.buffers;
        let mut at = 0;
        for (to, n) in [(x, embd), (streams, side.streams), (per_layer, side.per_layer)] {
            for (row, from) in rows.chunks_exact(width).enumerate() {
                to[row * n..][..n].copy_from_slice(&from[at..][..n]);
            }
            at += n;
        }
        let x = &mut run.buffers.x[..t * embd];
        run.x = run.watch.show(Label::elementwise("stage_input", Work::Sums, &[]), [t, embd, 1], x);
        (run.streams, run.per_layer) = (run.x, run.x);
        check_finite("stage_input", first, x, embd)
    }

    /// What the next stage goes on from, of all rows: the residual stream, all streams where there are several
    /// or some were put aside, and the layers' own inputs.
    fn hand_over(&self, run: &mut Run<'_>) -> Result<(), ForwardError> {
        let (t, embd) = (run.rows, run.embd);
        let Buffers { x, streams, per_layer, side, border, .. } = &mut *run.buffers;
        *border = zeroed(&[t, self.border()], "what the next stage goes on from")?;
        for (row, out) in border.chunks_exact_mut(self.border()).enumerate() {
            let mut at = 0;
            for (from, n) in [(&*x, embd), (&*streams, side.streams), (&*per_layer, side.per_layer)] {
                out[at..][..n].copy_from_slice(&from[row * n..][..n]);
                at += n;
            }
        }
        Ok(())
    }

    /// From what the last layer left to logits.
    fn end(&self, run: &mut Run<'_>, ends: bool, unheard: bool) -> Result<(), ForwardError> {
        if let Some(streams) = &self.streams {
            streams.end(run, self.layers.len())?;
        }
        run.watch.enter(None);
        if let Some(mixture) = &self.mixture {
            mixture.of_stream(run);
            let n = run.rows * run.embd;
            run.buffers.x[..n].copy_from_slice(&run.buffers.cur[..n]);
            run.x = run.cur;
        }
        match self.nextn.as_ref().filter(|_| ends) {
            Some(nextn) => {
                self.head.norm(run);
                run.keep_ends(nextn.normed);
                run.keep_wanted_rows(RowSizes::default());
                if unheard { Ok(()) } else { self.head.logits(run, self.layers.len()) }
            }
            None => {
                self.head.norm(run);
                self.head.logits(run, self.layers.len())
            }
        }
    }
}

impl Architecture for Decoder {
    fn spec(&self, architecture: &str) -> ModelSpec {
        let Sizes { embd, vocab, context, .. } = self.sizes;
        let layers = self.layers.iter().map(Layer::spec).collect();
        let memories = self.memories.clone();
        let nextn = self.nextn.as_ref().map(|nextn| nextn.layer.spec());
        let trunk_memories = self.nextn.as_ref().map_or(memories.len(), |nextn| nextn.first_memory);
        let rope_steps = self.ropes.iter().filter_map(|rope| rope.factors.step()).collect();
        ModelSpec {
            architecture: architecture.to_owned(),
            embd,
            vocab,
            context,
            layers,
            nextn,
            memories,
            trunk_memories,
            rope_steps,
            side: self.side(),
        }
    }

    fn border(&self) -> usize {
        let SideSizes { streams, per_layer, .. } = self.side();
        self.sizes.embd + streams + per_layer
    }

    fn forward<'a>(
        &self,
        store: &'a Store,
        pass: Pass<'a>,
        layers: Range<usize>,
    ) -> Result<(), ForwardError> {
        let (ends, rows) = (pass.ends, pass.rows);
        let mut run = Run::new(store, self.sizes.embd, pass);
        let run = &mut run;
        let is_last = layers.end == self.layers.len();
        let unheard = run.segments.iter().all(|segment| segment.logits == Logits::None) && run.rows > 0;
        // Another stage needs all rows.
        let (silent, keeps_all) = (unheard && !ends && is_last, ends || !is_last);
        // The last layer of which sequences remember anything.
        let remembered = self.layers[layers.clone()].iter().rposition(Layer::remembers).unwrap_or(0);
        let remembered = layers.start + remembered;
        match layers.start {
            0 => self.begin(run)?,
            first => self.take_over(run, first, rows)?,
        }
        run.rotate_positions(&self.ropes);
        for il in layers.clone() {
            let layer = &self.layers[il];
            let next = self.layers[..layers.end].get(il + 1);
            if let Some(next) = next.filter(|_| !silent || il < remembered) {
                run.announce(next.weights());
                // Of the last layer that is remembered, a pass without logits needs what is remembered alone.
                if il + 1 < remembered || !silent {
                    run.announce(next.expected_experts(run.rows));
                }
            }
            if next.is_none() && is_last {
                run.announce(self.streams.iter().flat_map(|streams| streams.end_weights()));
            }
            run.watch.enter(Some(il));
            if let Some(streams) = &layer.streams {
                streams.before(run, il, Block::Mixer)?;
            }
            layer.enter(run, &layer.attn_norm, layer.earlier.as_ref().map(|earlier| &earlier.mixer));
            if let Some(earlier) = &layer.earlier {
                earlier.bank(run);
            }
            if let Some(streams) = &layer.streams {
                streams.beside_mixer(run, il)?;
            }
            let inputs = match &layer.mixer {
                Some(mixer) => Some((mixer, mixer.remember(run, il)?)),
                None => None,
            };
            if il == remembered && silent {
                return Ok(()); // what sequences remember is all that was wanted
            }
            if let Some((mixer, inputs)) = inputs {
                mixer.mix(run, il, il >= remembered && !keeps_all, inputs)?;
            }
            if il == remembered && !keeps_all {
                run.keep_wanted_rows(layer.rows());
                run.rotate_positions(&self.ropes);
            }
            let experts = next.and_then(Layer::experts);
            layer.blocks(run, il, experts)?;
            run.watch.observer.layer_done(il + 1);
        }
        match is_last {
            true => self.end(run, ends, unheard),
            false => self.hand_over(run),
        }
    }

    fn draft<'a>(&self, store: &'a Store, pass: Pass<'a>, hidden: &[f32]) -> Result<(), ForwardError> {
        let nextn = self.nextn.as_ref().expect("the block is loaded");
        nextn.forward(&mut Run::new(store, self.sizes.embd, pass), &self.ropes, hidden)
    }
}

impl Nextn {
    /// Runs the tokens; `hidden`: `[T][E]`, the row of the position before each. A pass without logits fills
    /// what sequences remember alone.
    fn forward(&self, run: &mut Run<'_>, ropes: &[Rope], hidden: &[f32]) -> Result<(), ForwardError> {
        let (il, layer) = (self.input.il(), &self.layer);
        let silent = run.segments.iter().all(|segment| segment.logits == Logits::None);
        run.announce(self.input.weights().chain(layer.weights()));
        self.input.forward(run, hidden)?;
        run.rotate_positions(ropes);
        layer.enter(run, &layer.attn_norm, None);
        if let Some(mixer) = &layer.mixer {
            let inputs = mixer.remember(run, il)?;
            if silent {
                return Ok(());
            }
            mixer.mix(run, il, true, inputs)?;
        }
        run.keep_wanted_rows(layer.rows());
        run.rotate_positions(ropes);
        layer.blocks(run, il, None)?;
        run.watch.enter(None);
        self.head.norm(run);
        run.keep_ends(self.normed);
        self.head.logits(run, il)
    }
}

impl Layer {
    /// Both blocks, behind the mixing step.
    fn blocks(&self, run: &mut Run<'_>, il: usize, next: Option<&Experts>) -> Result<(), ForwardError> {
        match self.parallel {
            true => self.blocks_side_by_side(run, il, next),
            false => self.blocks_in_turn(run, il, next),
        }
    }

    /// The output of attention is added to the residual stream, then that of the network.
    fn blocks_in_turn(
        &self,
        run: &mut Run<'_>,
        il: usize,
        next: Option<&Experts>,
    ) -> Result<(), ForwardError> {
        if let Some(mixer) = &self.mixer {
            run.cur = mixer.output(run, il, false)?;
            self.scale_residual(run, "residual_scaled_attn", il)?;
            self.finish_block(run, self.attn_post_norm.as_ref());
            // Of a step alone the sum is the layer's output.
            let sum = if self.ffn.is_some() { self.middle.into() } else { self.out };
            match &self.streams {
                Some(streams) => streams.add(run, il, Block::Mixer, sum)?,
                None => run.add_to_stream(sum, il)?,
            }
        }
        let Some(ffn) = &self.ffn else { return Ok(()) };
        if let Some(streams) = &self.streams {
            streams.before(run, il, Block::Network)?;
        }
        self.enter(run, &self.ffn_norm, self.earlier.as_ref().map(|earlier| &earlier.ffn));
        ffn.forward(run, il, next)?;
        self.scale_residual(run, "residual_scaled_ffn", il)?;
        self.finish_block(run, self.ffn_post_norm.as_ref());
        match (&self.tail, &self.streams) {
            (Some(tail), _) => tail.finish(run, il, self.out),
            (None, Some(streams)) => streams.add(run, il, Block::Network, self.out),
            (None, None) => run.add_to_stream(self.out, il),
        }
    }

    /// The input of a block, which becomes the residual stream where the output is added to that.
    fn enter(&self, run: &mut Run<'_>, norm: &Option<Norm>, mixture: Option<&Mixture>) {
        match (mixture, norm) {
            (Some(mixture), norm) => {
                mixture.of_stream(run);
                if let Some(norm) = norm {
                    norm.of_cur(run);
                }
            }
            (None, Some(norm)) => norm.of_stream(run),
            (None, None) => run.copy_stream(),
        }
        if self.normed_residual.is_some() {
            let n = run.rows * run.embd;
            run.buffers.x[..n].copy_from_slice(&run.buffers.cur[..n]);
            run.x = run.cur;
        }
    }

    fn scale_residual(&self, run: &mut Run<'_>, name: &'static str, il: usize) -> Result<(), ForwardError> {
        self.normed_residual.map_or(Ok(()), |scale| run.scale_stream(scale, name, il))
    }

    fn finish_block(&self, run: &mut Run<'_>, norm: Option<&Norm>) {
        if let Some(norm) = norm {
            norm.of_cur(run);
        }
        if let Some(scale) = self.residual_scale {
            run.scale_cur(scale);
        }
    }

    /// Both blocks have the same input; the network's output is added first.
    fn blocks_side_by_side(
        &self,
        run: &mut Run<'_>,
        il: usize,
        next: Option<&Experts>,
    ) -> Result<(), ForwardError> {
        let (Some(mixer), Some(ffn)) = (&self.mixer, &self.ffn) else {
            unreachable!("both blocks stand side by side");
        };
        let input = run.cur;
        let attended = mixer.output(run, il, true)?;
        run.cur = input;
        ffn.forward(run, il, next)?;
        let n = run.rows * run.embd;
        let x = &mut run.buffers.x[..n];
        let ops = run.kernels.ops();
        ops.add(x, &run.buffers.cur[..n]);
        ops.add(x, &run.buffers.beside[..n]);
        let inputs = [run.x, run.cur, attended];
        let label = Label::elementwise(self.out, Work::Sums, &inputs);
        run.x = run.watch.show(label, [run.rows, run.embd, 1], x);
        if run.watch.observer.interrupted() {
            return Err(ForwardError::Interrupted);
        }
        check_finite(self.out.name, il, x, run.embd)
    }
}

//! Decoders: the linear forward pass that their families make of parts.

use std::ops::Range;

use crate::store::{Store, zeroed};

use super::load::Sizes;
use super::on_device;
use super::parts::{Block, Embedding, Experts, Head, Mixture, NextnInput, PerLayerInputs, Rope, Streams};
use super::run::{Run, check_finite};
use super::{
    Architecture, Buffers, ForwardError, Label, Logits, MemorySpec, ModelSpec, Pass, RowSizes, SideSizes,
    Work,
};

pub(super) use super::layer::{FeedForward, Layer};

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
        let wanted = Wanted { silent, keeps_all, remembered, end: layers.end };
        match layers.start {
            0 => self.begin(run)?,
            first => self.take_over(run, first, rows)?,
        }
        run.rotate_positions(&self.ropes);
        for il in layers.clone() {
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
            if self.layer(run, il, wanted)? {
                return Ok(()); // what sequences remember is all that was wanted
            }
            run.watch.observer.layer_done(il + 1);
        }
        self.end_chain(run, layers.end - 1)?;
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

/// What a pass is for.
#[derive(Clone, Copy)]
struct Wanted {
    /// No rows behind the layers.
    silent: bool,
    /// All of them, and not those alone whose logits are wanted.
    keeps_all: bool,
    /// The last layer of which sequences remember anything.
    remembered: usize,
    /// Behind the last layer.
    end: usize,
}

impl Decoder {
    /// Runs a layer; says whether the pass is over.
    fn layer(&self, run: &mut Run<'_>, il: usize, wanted: Wanted) -> Result<bool, ForwardError> {
        let Wanted { silent, remembered, end, .. } = wanted;
        let layer = &self.layers[il];
        let experts = self.layers[..end].get(il + 1).and_then(Layer::experts);
        let guesses = experts.is_some() && run.makes_guesses();
        // A device does all rows of the last layer that is remembered; observers are to see the CPU's.
        let keeps_all = il != remembered || wanted.keeps_all || !silent && run.wants_all_rows();
        let is_whole = keeps_all || !silent && !run.watch.active();
        let may_be_there = is_whole && !(layer.parallel && guesses);
        let is_there = may_be_there && self.is_on_device(run, (il, Block::Mixer), None)?;
        if is_there {
            if !keeps_all {
                self.end_chain(run, il)?;
                run.keep_wanted_rows(RowSizes::default());
                run.rotate_positions(&self.ropes);
            }
        } else {
            self.end_chain(run, il)?;
            let inputs = layer.remember(run, il)?;
            if il == remembered && silent {
                return Ok(true);
            }
            layer.mix(run, il, il >= remembered && !wanted.keeps_all, inputs)?;
            if il == remembered && !wanted.keeps_all {
                run.keep_wanted_rows(layer.rows());
                run.rotate_positions(&self.ropes);
            }
            if !layer.parallel {
                layer.mixer_block(run, il)?;
            }
        }
        // Side by side they are one block.
        let is_done = layer.ffn.is_none() || layer.parallel && is_there;
        let guessed = experts.filter(|_| guesses);
        if !is_done && !self.is_on_device(run, (il, Block::Network), guessed)? {
            self.end_chain(run, il)?;
            match layer.parallel {
                true => layer.blocks_side_by_side(run, il, experts)?,
                false => layer.network_block(run, il, experts)?,
            }
        }
        Ok(false)
    }

    /// Whether a device does a block, guesses of the next layer's experts included where these are given;
    /// what it has done before is ended where it does no more for now.
    fn is_on_device(
        &self,
        run: &mut Run<'_>,
        (il, block): (usize, Block),
        guessed: Option<&Experts>,
    ) -> Result<bool, ForwardError> {
        if run.chain.as_ref().is_some_and(|chain| chain.is_full(run)) {
            self.end_chain(run, il)?;
        }
        let is_there = on_device::enqueue(run, &self.layers[il], (il, block), guessed)?;
        // What an observer has seen is kept until it is certain.
        if is_there && run.watch.active() {
            self.end_chain(run, il)?;
        }
        Ok(is_there)
    }

    /// Ends what a device does before something else in layer `il`. Where it has failed, its blocks are
    /// computed here.
    fn end_chain(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        if run.chain.is_none() {
            return Ok(());
        }
        for (il, block) in on_device::end(run)? {
            run.watch.stay_in(il);
            let layer = &self.layers[il];
            match block {
                Block::Mixer => {
                    let inputs = layer.remember(run, il)?;
                    layer.mix(run, il, false, inputs)?;
                    match layer.parallel {
                        true => layer.blocks_side_by_side(run, il, None)?,
                        false => layer.mixer_block(run, il)?,
                    }
                }
                Block::Network => layer.network_block(run, il, None)?,
            }
        }
        run.watch.stay_in(il);
        Ok(())
    }
}

//! Layers of a decoder: their parts, and the blocks that these make.

use crate::store::WeightId;

use super::observer::NodeName;
use super::parts::{
    Block, Dense, DenseAndExperts, EarlierStreams, Experts, LayerStreams, Mixer, Mixture, Norm, Tail,
};
use super::run::{Run, check_finite};
use super::{FeedForwardSpec, ForwardError, Label, LayerSpec, NodeId, RowSizes, ScratchSizes, Work};

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
                    next.guess_unrounded(run)?;
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
    pub fn weights(&self) -> impl Iterator<Item = WeightId> {
        let before = self.streams.iter().flat_map(|streams| streams.weights());
        let mixer = self.mixer.iter().flat_map(|mixer| mixer.weights());
        let ffn = self.ffn.iter().flat_map(FeedForward::weights);
        let tail = self.tail.iter().flat_map(Tail::weights);
        let behind = self.streams.iter().flat_map(|streams| streams.late_weights());
        before.chain(mixer).chain(ffn).chain(tail).chain(behind)
    }

    /// Whether sequences remember anything of it.
    pub fn remembers(&self) -> bool {
        self.mixer.as_ref().is_some_and(|mixer| mixer.remembers())
    }

    /// Values of a token in the buffers of the mixing step.
    pub fn rows(&self) -> RowSizes {
        self.mixer.as_ref().map_or_else(RowSizes::default, |mixer| mixer.rows())
    }

    pub fn experts(&self) -> Option<&Experts> {
        self.ffn.as_ref().and_then(FeedForward::experts)
    }

    /// Experts that are as good as sure to be used by so many tokens.
    pub fn expected_experts(&self, tokens: usize) -> impl Iterator<Item = WeightId> {
        self.experts().into_iter().flat_map(move |experts| experts.expected(tokens))
    }

    /// The widest hidden row beside the network's.
    pub fn hidden(&self, embd: usize) -> usize {
        let tail = self.tail.as_ref().map_or(0, Tail::hidden);
        let shares = self.earlier.as_ref().map_or(0, |earlier| earlier.ffn.shares());
        tail.max(self.streams.as_ref().map_or(0, |streams| streams.hidden(embd))).max(shares)
    }

    pub fn spec(&self) -> LayerSpec {
        LayerSpec {
            rows: self.rows(),
            scratch: self.mixer.as_ref().map_or_else(ScratchSizes::default, |mixer| mixer.scratch()),
            ff: self.ffn.as_ref().map_or(FeedForwardSpec::Nothing, FeedForward::spec),
        }
    }
}

impl Layer {
    /// Whether it has one residual stream, to which its blocks add their outputs.
    pub fn is_plain(&self) -> bool {
        self.streams.is_none() && self.earlier.is_none()
    }

    /// What stands before the mixing step, and all of it that changes what sequences remember.
    pub fn remember(
        &self,
        run: &mut Run<'_>,
        il: usize,
    ) -> Result<Option<[NodeId<'static>; 3]>, ForwardError> {
        if let Some(streams) = &self.streams {
            streams.before(run, il, Block::Mixer)?;
        }
        self.enter(run, &self.attn_norm, self.earlier.as_ref().map(|earlier| &earlier.mixer));
        if let Some(earlier) = &self.earlier {
            earlier.bank(run);
        }
        if let Some(streams) = &self.streams {
            streams.beside_mixer(run, il)?;
        }
        self.mixer.as_ref().map(|mixer| mixer.remember(run, il)).transpose()
    }

    /// The rest of the mixing step, but for its output.
    pub fn mix(
        &self,
        run: &mut Run<'_>,
        il: usize,
        last: bool,
        inputs: Option<[NodeId<'static>; 3]>,
    ) -> Result<(), ForwardError> {
        match (&self.mixer, inputs) {
            (Some(mixer), Some(inputs)) => mixer.mix(run, il, last, inputs),
            _ => Ok(()),
        }
    }

    /// Both blocks, behind the mixing step.
    pub fn blocks(&self, run: &mut Run<'_>, il: usize, next: Option<&Experts>) -> Result<(), ForwardError> {
        match self.parallel {
            true => self.blocks_side_by_side(run, il, next),
            false => {
                self.mixer_block(run, il)?;
                self.network_block(run, il, next)
            }
        }
    }

    /// The output of the mixing step is added to the residual stream.
    pub fn mixer_block(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let Some(mixer) = &self.mixer else { return Ok(()) };
        run.cur = mixer.output(run, il, false)?;
        self.scale_residual(run, "residual_scaled_attn", il)?;
        self.finish_block(run, self.attn_post_norm.as_ref());
        // Of a step alone the sum is the layer's output.
        let sum = if self.ffn.is_some() { self.middle.into() } else { self.out };
        match &self.streams {
            Some(streams) => streams.add(run, il, Block::Mixer, sum),
            None => run.add_to_stream(sum, il),
        }
    }

    /// The network of the stream, whose output is added to it.
    pub fn network_block(
        &self,
        run: &mut Run<'_>,
        il: usize,
        next: Option<&Experts>,
    ) -> Result<(), ForwardError> {
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
    pub fn enter(&self, run: &mut Run<'_>, norm: &Option<Norm>, mixture: Option<&Mixture>) {
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
    pub fn blocks_side_by_side(
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

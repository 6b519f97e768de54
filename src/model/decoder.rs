//! Decoders with ordinary attention: the linear forward pass that their families make of parts.

use crate::store::{Store, WeightId};

use super::load::Sizes;
use super::observer::NodeName;
use super::parts::{Attention, Dense, Embedding, Experts, Head, Norm, Rope};
use super::run::{Run, check_finite};
use super::{Architecture, FeedForwardSpec, ForwardError, Label, LayerSpec, Logits, ModelSpec, Pass, Work};

/// A decoder: its parts in the order of a pass.
#[derive(Debug)]
pub(super) struct Decoder {
    pub sizes: Sizes,
    /// The kinds of rotation that layers name by index.
    pub ropes: Vec<Rope>,
    pub embedding: Embedding,
    pub layers: Vec<Layer>,
    pub head: Head,
}

/// A layer.
#[derive(Debug)]
pub(super) struct Layer {
    /// Of attention's input.
    pub attn_norm: Option<Norm>,
    pub attention: Attention,
    /// Of attention's output, before it is added to the residual stream.
    pub attn_post_norm: Option<Norm>,
    /// Of the feed-forward network's input.
    pub ffn_norm: Option<Norm>,
    pub ffn: FeedForward,
    /// Of the network's output, before it is added.
    pub ffn_post_norm: Option<Norm>,
    /// Factor on both outputs.
    pub residual_scale: Option<f32>,
    /// Whether attention and network have the same input: `x + ffn(norm(x)) + attention(norm(x))`.
    pub parallel: bool,
    /// The node of the residual stream between attention and network.
    pub middle: &'static str,
    /// The node of the residual stream behind the layer.
    pub out: NodeName,
}

/// The feed-forward network of a layer.
#[derive(Debug)]
pub(super) enum FeedForward {
    Dense(Box<Dense>),
    Experts(Box<Experts>),
}

impl Layer {
    /// What every token touches: all but the experts.
    fn weights(&self) -> impl Iterator<Item = WeightId> {
        let ffn: Box<dyn Iterator<Item = WeightId>> = match &self.ffn {
            FeedForward::Dense(dense) => Box::new(dense.weights()),
            FeedForward::Experts(experts) => Box::new(experts.weights()),
        };
        self.attention.weights().chain(ffn)
    }

    fn experts(&self) -> Option<&Experts> {
        if let FeedForward::Experts(experts) = &self.ffn { Some(&**experts) } else { None }
    }

    /// Experts that are as good as sure to be used by so many tokens.
    fn expected_experts(&self, tokens: usize) -> impl Iterator<Item = WeightId> {
        self.experts().into_iter().flat_map(move |experts| experts.expected(tokens))
    }

    fn spec(&self) -> LayerSpec {
        let attention = &self.attention.spec;
        LayerSpec {
            heads: attention.heads,
            kv_heads: attention.kv_heads,
            key_len: attention.key_len,
            value_len: attention.value_len,
            window: attention.window,
            gate_len: self.attention.gate_len(),
            ff: match &self.ffn {
                FeedForward::Dense(dense) => FeedForwardSpec::Dense { ff: dense.spec.ff },
                FeedForward::Experts(experts) => {
                    let (count, used) = experts.sizes();
                    FeedForwardSpec::Experts {
                        count,
                        used,
                        ff: experts.ff,
                        shared: experts.shared_ff(),
                        weighs_input: experts.weighs_input(),
                    }
                }
            },
        }
    }
}

impl Architecture for Decoder {
    fn spec(&self, architecture: &str) -> ModelSpec {
        let Sizes { embd, vocab, context, .. } = self.sizes;
        let layers = self.layers.iter().map(Layer::spec).collect();
        ModelSpec { architecture: architecture.to_owned(), embd, vocab, context, layers }
    }

    fn forward<'a>(&self, store: &'a Store, pass: Pass<'a>) -> Result<(), ForwardError> {
        let mut run = Run::new(store, self.sizes.embd, pass);
        let run = &mut run;
        let silent = run.segments.iter().all(|segment| segment.logits == Logits::None) && run.rows > 0;
        run.announce(self.layers[0].weights());
        self.embedding.forward(run)?;
        run.rotate_positions(&self.ropes);
        for (il, layer) in self.layers.iter().enumerate() {
            let (next, last) = (self.layers.get(il + 1), il + 1 == self.layers.len());
            if let Some(next) = next {
                run.announce(next.weights());
                // Of the last layer, a pass without logits reads the keys and values alone.
                if il + 2 < self.layers.len() || !silent {
                    run.announce(next.expected_experts(run.rows));
                }
            }
            run.watch.enter(Some(il));
            match &layer.attn_norm {
                Some(norm) => norm.of_stream(run),
                None => run.copy_stream(),
            }
            let attended = layer.attention.queries_keys_values(run, il)?;
            if last && silent {
                return Ok(()); // the keys and values are all that was wanted
            }
            layer.attention.attend(run, il, last, attended);
            if last {
                run.keep_wanted_rows(layer.attention.attended_dim(), layer.attention.gate_len());
            }
            let experts = next.and_then(Layer::experts);
            match layer.parallel {
                true => layer.blocks_side_by_side(run, il, experts)?,
                false => layer.blocks_in_turn(run, il, experts)?,
            }
            run.watch.observer.layer_done(il + 1);
        }
        self.head.forward(run, self.layers.len())
    }
}

impl Layer {
    /// The output of attention is added to the residual stream, then that of the network.
    fn blocks_in_turn(
        &self,
        run: &mut Run<'_>,
        il: usize,
        next: Option<&Experts>,
    ) -> Result<(), ForwardError> {
        run.cur = self.attention.output(run, il, false)?;
        self.finish_block(run, self.attn_post_norm.as_ref());
        run.add_to_stream(self.middle, il)?;
        match &self.ffn_norm {
            Some(norm) => norm.of_stream(run),
            None => run.copy_stream(),
        }
        self.feed_forward(run, il, next)?;
        self.finish_block(run, self.ffn_post_norm.as_ref());
        run.add_to_stream(self.out, il)
    }

    fn finish_block(&self, run: &mut Run<'_>, norm: Option<&Norm>) {
        if let Some(norm) = norm {
            norm.of_cur(run);
        }
        if let Some(scale) = self.residual_scale {
            run.scale_cur(scale);
        }
    }

    fn feed_forward(&self, run: &mut Run<'_>, il: usize, next: Option<&Experts>) -> Result<(), ForwardError> {
        match &self.ffn {
            FeedForward::Dense(dense) => dense.forward(run, il),
            FeedForward::Experts(experts) => experts.forward(run, il, next),
        }
    }

    /// Both blocks have the same input; the network's output is added first.
    fn blocks_side_by_side(
        &self,
        run: &mut Run<'_>,
        il: usize,
        next: Option<&Experts>,
    ) -> Result<(), ForwardError> {
        let input = run.cur;
        let attended = self.attention.output(run, il, true)?;
        run.cur = input;
        self.feed_forward(run, il, next)?;
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

//! The steps of a forward pass that architectures are made of: each takes its input from the buffers of
//! [`RunState`], leaves its result there and shows it to the observer.

use crate::kernels::Kernels;
use crate::kernels::ops::{AttentionShape, RopeParams};
use crate::quant;
use crate::store::{AlignedBuffer, OutOfMemory, Store, StoreError, WeightId};

use super::config::Config;
use super::state::{Inputs, KvCache, KvType, RunState};
use super::weights::{Linear, Matrix};
use super::{ForwardError, Node, Observer, Pass};

/// A pass under way.
pub(super) struct Run<'a> {
    pub config: &'a Config,
    pub store: &'a Store,
    pub kernels: &'static Kernels,
    pub state: &'a mut RunState,
    pub observer: &'a mut dyn Observer,
    kv: &'a mut KvCache,
    ids: &'a [u32],
    first_pos: usize,
    pub guess_experts: bool,
    /// Tokens in the buffers now: T.
    pub tokens: usize,
}

impl<'a> Run<'a> {
    /// A pass over the tokens of `pass`.
    ///
    /// # Panics
    /// Where they do not fit the buffers or the KV cache: the session's mistake.
    pub fn new(config: &'a Config, store: &'a Store, pass: Pass<'a>) -> Run<'a> {
        let Pass { kernels, state, kv, tokens: ids, first_pos, guess_experts, observer, .. } = pass;
        assert!(ids.len() <= state.batch(), "{} tokens in a batch of {}", ids.len(), state.batch());
        assert!(first_pos + ids.len() <= kv.context(), "tokens beyond the KV cache");
        state.logits.clear();
        Run { config, store, kernels, state, observer, kv, ids, first_pos, guess_experts, tokens: ids.len() }
    }

    /// Says which weights come next.
    pub fn announce(&self, weights: impl IntoIterator<Item = WeightId>) {
        self.store.will_need(weights);
    }

    /// Shows a node of `[T][n][m]` to the observer.
    pub fn show(
        observer: &mut dyn Observer,
        name: &'static str,
        layer: Option<usize>,
        shape: [usize; 3],
        values: &mut [f32],
    ) {
        let node = Node { name, layer, shape };
        observer.computed(node);
        if observer.active() {
            observer.node(node, values);
        }
    }

    /// Rows of the embedding into `x`: `embd`.
    pub fn embed(&mut self, embedding: &Matrix) -> Result<(), ForwardError> {
        let n = self.config.embd;
        let format = quant::format(embedding.ty).expect("types are checked when the model is loaded");
        let row_bytes = format.row_bytes(n);
        let mut scratch = AlignedBuffer::default();
        for (&id, x) in self.ids.iter().zip(self.state.x.chunks_exact_mut(n)) {
            let start = id as usize * row_bytes;
            (format.decode)(self.store.read_part(embedding.id, start..start + row_bytes, &mut scratch)?, x);
        }
        let x = &mut self.state.x[..self.tokens * n];
        Run::show(self.observer, "embd", None, [self.tokens, n, 1], x);
        Ok(())
    }

    /// Prepares the rotation of this pass's positions.
    pub fn rotate_positions(&mut self, factors: Option<&[f32]>) {
        let rope = &self.config.rope;
        let params =
            RopeParams { n_dims: rope.dims, base: rope.base, freq_scale: rope.freq_scale, attn_factor: 1.0 };
        self.state.rope.fill(&params, self.first_pos..self.first_pos + self.tokens, factors);
    }

    /// RMS norm of `x` into `normed`.
    pub fn norm(&mut self, name: &'static str, il: usize, weight: &[f32]) {
        self.norm_of(name, Some(il), weight);
    }

    fn norm_of(&mut self, name: &'static str, layer: Option<usize>, weight: &[f32]) {
        let n = self.tokens * self.config.embd;
        let (x, out) = (&self.state.x[..n], &mut self.state.normed[..n]);
        self.kernels.ops().rms_norm(x, weight, self.config.rms_eps, out);
        Run::show(self.observer, name, layer, [self.tokens, self.config.embd, 1], out);
    }

    /// Queries, keys and values of `normed`, rotated, the keys and values remembered.
    pub fn queries_keys_values(
        &mut self,
        il: usize,
        q: &Linear,
        k: &Linear,
        v: &Linear,
    ) -> Result<(), ForwardError> {
        let (t, c) = (self.tokens, self.config);
        let state = &mut *self.state;
        state
            .inputs
            .prepare(&state.normed[..t * c.embd], c.embd, [q, k, v].map(Linear::activation))
            .map_err(ForwardError::not_finite("attn_norm", il))?;
        let (qs, ks, vs) =
            (&mut state.q[..t * c.q_dim()], &mut state.k[..t * c.kv_dim()], &mut state.v[..t * c.kv_dim()]);
        project(self.kernels, self.store, &state.inputs, &mut [(q, &mut *qs), (k, &mut *ks), (v, &mut *vs)])?;
        let (heads, kv_heads) = ([t, c.heads, c.head_dim], [t, c.kv_heads, c.head_dim]);
        Run::show(self.observer, "Qcur", Some(il), heads, qs);
        Run::show(self.observer, "Kcur", Some(il), kv_heads, ks);
        Run::show(self.observer, "Vcur", Some(il), kv_heads, vs);
        let ops = self.kernels.ops();
        ops.rope(c.rope.kind, &state.rope, qs, c.heads, c.head_dim);
        ops.rope(c.rope.kind, &state.rope, ks, c.kv_heads, c.head_dim);
        Run::show(self.observer, "Qcur", Some(il), heads, qs);
        Run::show(self.observer, "Kcur", Some(il), kv_heads, ks);
        check_kept("Kcur", il, self.kv.ty(), ks, c.kv_dim())?;
        check_kept("Vcur", il, self.kv.ty(), vs, c.kv_dim())?;
        let context = self.kv.context();
        let (k_cache, v_cache) = self.kv.layer_mut(il);
        for (rows, cache) in [(ks, k_cache), (vs, v_cache)] {
            ops.store_kv(rows, cache, c.kv_heads, c.head_dim, context, self.first_pos);
        }
        Ok(())
    }

    /// Attention of the queries over all positions so far: `kqv_out`, in `attn`.
    pub fn attend(&mut self, il: usize) {
        let (t, c) = (self.tokens, self.config);
        let shape = AttentionShape {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            ctx: self.kv.context(),
            first_pos: self.first_pos,
            tokens: t,
            scale: c.attn_scale,
            window: c.window,
        };
        let state = &mut *self.state;
        let (k, v) = self.kv.layer(il);
        let out = &mut state.attn[..t * c.q_dim()];
        self.kernels.ops().attention(&shape, &state.q[..t * c.q_dim()], k, v, out, &mut state.attention);
        Run::show(self.observer, "kqv_out", Some(il), [t, c.q_dim(), 1], out);
    }

    /// Drops all tokens but the last: only its logits are wanted.
    pub fn keep_last_token(&mut self) {
        let last = self.tokens - 1;
        for (buffer, n) in
            [(&mut self.state.x, self.config.embd), (&mut self.state.attn, self.config.q_dim())]
        {
            buffer.copy_within(last * n..(last + 1) * n, 0);
        }
        self.tokens = 1;
    }

    /// Output projection of attention, `attn` to `normed`.
    pub fn attention_output(&mut self, il: usize, weight: &Linear) -> Result<(), ForwardError> {
        let (t, c) = (self.tokens, self.config);
        let state = &mut *self.state;
        state
            .inputs
            .prepare(&state.attn[..t * c.q_dim()], c.q_dim(), [weight.activation()])
            .map_err(ForwardError::not_finite("kqv_out", il))?;
        let out = &mut state.normed[..t * c.embd];
        project(self.kernels, self.store, &state.inputs, &mut [(weight, &mut *out)])?;
        Run::show(self.observer, "attn_out", Some(il), [t, c.embd, 1], out);
        Ok(())
    }

    /// Adds a block's output, `normed`, to the residual stream `x`, which whatever is not finite in a layer ends in. Here a
    /// pass may be broken off.
    pub fn residual(&mut self, name: &'static str, il: usize) -> Result<(), ForwardError> {
        let n = self.tokens * self.config.embd;
        let x = &mut self.state.x[..n];
        self.kernels.ops().add(x, &self.state.normed[..n]);
        Run::show(self.observer, name, Some(il), [self.tokens, self.config.embd, 1], x);
        if self.observer.interrupted() {
            return Err(ForwardError::Interrupted);
        }
        check_finite(name, il, x, self.config.embd)
    }

    /// A dense feed-forward network with SwiGLU, `normed` to `normed`.
    pub fn dense_ffn(
        &mut self,
        il: usize,
        gate: &Linear,
        up: &Linear,
        down: &Linear,
    ) -> Result<(), ForwardError> {
        let (t, c) = (self.tokens, self.config);
        let state = &mut *self.state;
        state
            .inputs
            .prepare(&state.normed[..t * c.embd], c.embd, [gate, up].map(Linear::activation))
            .map_err(ForwardError::not_finite("ffn_norm", il))?;
        let (gates, ups) = (&mut state.gate[..t * c.ff], &mut state.up[..t * c.ff]);
        project(self.kernels, self.store, &state.inputs, &mut [(gate, &mut *gates), (up, &mut *ups)])?;
        let hidden = [t, c.ff, 1];
        Run::show(self.observer, "ffn_up", Some(il), hidden, ups);
        Run::show(self.observer, "ffn_gate", Some(il), hidden, gates);
        self.kernels.ops().swiglu(gates, ups);
        Run::show(self.observer, "ffn_swiglu", Some(il), hidden, gates);
        state
            .inputs
            .prepare(gates, c.ff, [down.activation()])
            .map_err(ForwardError::not_finite("ffn_swiglu", il))?;
        let out = &mut state.normed[..t * c.embd];
        project(self.kernels, self.store, &state.inputs, &mut [(down, &mut *out)])?;
        Run::show(self.observer, "ffn_out", Some(il), [t, c.embd, 1], out);
        Ok(())
    }

    /// Final norm and output matrix: the logits of the tokens that are left.
    pub fn logits(&mut self, norm: &[f32], output: &Matrix) -> Result<(), ForwardError> {
        self.norm_of("result_norm", None, norm);
        let (t, c) = (self.tokens, self.config);
        let state = &mut *self.state;
        state
            .inputs
            .prepare(&state.normed[..t * c.embd], c.embd, [output.activation()])
            .map_err(ForwardError::not_finite("result_norm", c.layers))?;
        let wanted = t * c.vocab;
        if state.logits.try_reserve_exact(wanted).is_err() {
            let bytes = wanted as u128 * size_of::<f32>() as u128;
            return Err(OutOfMemory { bytes, what: "the logits" }.into());
        }
        state.logits.resize(wanted, 0.0);
        let output = Linear::without_bias(*output);
        project(self.kernels, self.store, &state.inputs, &mut [(&output, &mut state.logits)])?;
        Run::show(self.observer, "result_output", None, [t, c.vocab, 1], &mut state.logits);
        Ok(())
    }
}

/// The first of some values (rows of `cols`) that is not right, by its row and its column. All are looked at in
/// stretches, which is fast, and one by one only where one of them is wrong.
fn first_wrong(values: &[f32], cols: usize, right: impl Fn(f32) -> bool) -> Option<(usize, usize)> {
    let all_right = |values: &[f32]| values.iter().fold(true, |all, &v| all & right(v));
    let (i, stretch) = values.chunks(4096).enumerate().find(|(_, stretch)| !all_right(stretch))?;
    let at = i * 4096 + stretch.iter().position(|&v| !right(v))?;
    Some((at / cols, at % cols))
}

fn check_finite(node: &'static str, layer: usize, x: &[f32], cols: usize) -> Result<(), ForwardError> {
    match first_wrong(x, cols, f32::is_finite) {
        Some((token, index)) => Err(ForwardError::NotFinite { node, layer, token, index }),
        None => Ok(()),
    }
}

/// The least that is rounded to infinity as f16.
const F16_OVERFLOW: f32 = 65520.0;

/// Keys and values are kept: an infinite key takes its position out of the attention without a trace.
fn check_kept(
    node: &'static str,
    layer: usize,
    ty: KvType,
    x: &[f32],
    cols: usize,
) -> Result<(), ForwardError> {
    check_finite(node, layer, x, cols)?;
    match first_wrong(x, cols, |v| ty == KvType::F32 || v.abs() < F16_OVERFLOW) {
        Some((token, index)) => {
            Err(ForwardError::BeyondF16 { node, layer, token, index, value: x[token * cols + index] })
        }
        None => Ok(()),
    }
}

/// Several products of one input, with their biases.
pub(super) fn project(
    kernels: &'static Kernels,
    store: &Store,
    inputs: &Inputs,
    outputs: &mut [(&Linear, &mut [f32])],
) -> Result<(), StoreError> {
    let products = outputs.iter_mut().map(|(linear, out)| Product { matrix: &linear.matrix, inputs, out });
    multiply(kernels, store, products.collect())?;
    for (linear, out) in outputs {
        if let Some(bias) = &linear.bias {
            kernels.ops().add_bias(out, bias);
        }
    }
    Ok(())
}

/// A product of a pass: `[T][rows]` of `[T][cols]`.
pub(super) struct Product<'a> {
    pub matrix: &'a Matrix,
    pub inputs: &'a Inputs,
    pub out: &'a mut [f32],
}

/// Computes products as their weights come: all that are in memory in one parallel region, then those that have come
/// meanwhile.
pub(super) fn multiply(
    kernels: &'static Kernels,
    store: &Store,
    mut products: Vec<Product<'_>>,
) -> Result<(), StoreError> {
    while !products.is_empty() {
        let ids: Vec<WeightId> = products.iter().map(|product| product.matrix.id).collect();
        let mut here = store.acquire_some(&ids)?.into_iter().peekable();
        let (mut ready, mut rest) = (Vec::new(), Vec::new());
        for (i, product) in products.into_iter().enumerate() {
            match here.next_if(|(at, _)| *at == i) {
                Some((_, guard)) => ready.push((product, guard)),
                None => rest.push(product),
            }
        }
        let jobs =
            ready.iter_mut().map(|(product, guard)| product.matrix.job(guard, product.inputs, product.out));
        crate::kernels::matmul_batch(kernels, &mut jobs.collect::<Vec<_>>());
        products = rest;
    }
    Ok(())
}

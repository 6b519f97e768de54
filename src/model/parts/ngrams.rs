//! Embeddings of n-grams (Qwen 4): rows of one table, found by hashes of a token and those before it, become
//! a value that each residual stream takes in by a gate of its own, and a convolution over what it took in
//! before. Source: ggml's qwen4exp.

use super::super::load::{Loader, Sizes};
use super::super::observer::{NodeName, Numbered};
use super::super::products::project;
use super::super::run::{Run, check_finite, look_up, recur};
use super::super::weights::{Linear, Matrix};
use super::super::{Buffers, ForwardError, Label, MemorySpec, ModelError, NodeId, NodeKind, Work};
use super::delta_net::transposed;
use super::norm::Norm;
use crate::kernels::ops::CausalConv;
use crate::store::{Role, WeightId};

/// Most tokens of an n-gram, and most rows that a token takes: ggml's.
const MAX_ORDER: usize = 8;
const MAX_ROWS: usize = 64;
/// Tokens are remembered as f32, plus 1: whole numbers up to here are exact.
const MAX_VOCAB: usize = 1 << 24;
/// What gates are taken of is at least so far from 0.
const LEAST: f32 = 1e-6;

/// The hashes of a token's n-grams.
#[derive(Clone, Debug, PartialEq)]
struct Hashes {
    /// Of a token, the one before it, and so on: as many as the longest n-gram has tokens.
    multipliers: Vec<u64>,
    /// The first row and the number of rows of each hash: as many of pairs as of triples, and so on.
    ranges: Vec<[u64; 2]>,
    /// A token of this number ends what the next ones see of those before it.
    eos: u64,
}

impl Hashes {
    /// Tokens of the longest n-gram.
    fn order(&self) -> usize {
        self.multipliers.len()
    }

    /// Rows of a token, behind `out`. `past`: the tokens before it plus 1, the last first; 0 where there is
    /// none.
    fn rows(&self, token: u32, past: &[f32], out: &mut Vec<u32>) {
        let each = self.ranges.len() / (self.order() - 1);
        let mut mixed = u64::from(token).wrapping_mul(self.multipliers[0]);
        let mut ended = false;
        for ((&before, by), ranges) in past.iter().zip(&self.multipliers[1..]).zip(self.ranges.chunks(each)) {
            let before = before as u64;
            ended |= before == 0 || before - 1 == self.eos;
            let before = if ended { self.eos } else { before - 1 };
            mixed ^= before.wrapping_mul(*by);
            // Ranges end below 2^31.
            out.extend(ranges.iter().map(|[first, count]| (first + mixed % count) as u32));
        }
    }
}

/// What a model says of its n-grams.
#[derive(Clone, Debug)]
pub(in crate::model) struct NgramsSpec {
    /// The layer that has them.
    pub layer: usize,
    hashes: Hashes,
    /// Elements of a row of the table.
    row: usize,
    /// Inputs that the convolution sees, so many tokens apart as an n-gram has.
    taps: usize,
    eps: f32,
}

impl NgramsSpec {
    /// Reads the keys `ple.*`; `None` where no layer has them.
    pub fn read(l: &mut Loader<'_>, sizes: &Sizes, eps: f32) -> Result<Option<NgramsSpec>, ModelError> {
        let keys = &mut l.keys;
        let layers = keys.numbers("ple.layers")?.unwrap_or_default();
        let Some(&layer) = layers.first() else { return Ok(None) };
        if layers.len() > 1 {
            let what = format!("lists {} layers, where one can have embeddings of n-grams", layers.len());
            return Err(keys.problem("ple.layers", what));
        }
        if layer >= sizes.layers as u64 {
            return Err(keys.problem("ple.layers", format!("is {layer}, where there are {}", sizes.layers)));
        }
        if sizes.vocab >= MAX_VOCAB {
            let what = format!("asks for n-grams of {} tokens, fewer than {MAX_VOCAB} work", sizes.vocab);
            return Err(keys.problem("ple.layers", what));
        }
        let order = keys.required_size("ple.ngram_size")?;
        if !(2..=MAX_ORDER).contains(&order) {
            let what = format!("is {order}, where 2 to {MAX_ORDER} make sense");
            return Err(keys.problem("ple.ngram_size", what));
        }
        let each = keys.required_size("ple.heads_per_ngram")?;
        let rows = each * (order - 1);
        if rows > MAX_ROWS {
            let what = format!("is {each}, which makes {rows} rows a token, where {MAX_ROWS} make sense");
            return Err(keys.problem("ple.heads_per_ngram", what));
        }
        let row = keys.required_size("embedding_length_per_layer_input")?;
        if row * rows != sizes.embd {
            let what = format!("is {row}, where {rows} rows make an embedding of {}", sizes.embd);
            return Err(keys.problem("embedding_length_per_layer_input", what));
        }
        // Of images.
        keys.harmless(&["ple.image_token_id"]);
        let hashes = Hashes {
            multipliers: leading(l, "ple.layer_multipliers", order)?,
            ranges: ranges(l, rows)?,
            eos: l.keys.required_count("ple.eos_token_id")? as u64,
        };
        let taps = l.keys.required_size("ple.conv_kernel")?;
        Ok(Some(NgramsSpec { layer: layer as usize, hashes, row, taps, eps }))
    }
}

/// The first `n` numbers of an array.
fn leading(l: &mut Loader<'_>, name: &str, n: usize) -> Result<Vec<u64>, ModelError> {
    let Some(mut values) = l.keys.numbers(name)? else { return Err(l.keys.problem(name, "is missing")) };
    if values.len() < n {
        let what = format!("has {} values, where {n} are needed", values.len());
        return Err(l.keys.problem(name, what));
    }
    values.truncate(n);
    Ok(values)
}

/// The rows of each hash.
fn ranges(l: &mut Loader<'_>, n: usize) -> Result<Vec<[u64; 2]>, ModelError> {
    let (first, count) = ("ple.head_offsets", "ple.head_vocab_sizes");
    let (firsts, counts) = (leading(l, first, n)?, leading(l, count, n)?);
    for (i, (&at, &rows)) in firsts.iter().zip(&counts).enumerate() {
        if rows == 0 {
            return Err(l.keys.problem(count, format!("holds 0 at element {i}")));
        }
        if at.checked_add(rows).is_none_or(|end| end > i32::MAX as u64) {
            let what = format!("holds {at} at element {i}, where {rows} rows end beyond {}", i32::MAX);
            return Err(l.keys.problem(first, what));
        }
    }
    Ok(firsts.into_iter().zip(counts).map(|(at, rows)| [at, rows]).collect())
}

/// The embeddings of the layer that has them.
#[derive(Debug)]
pub(in crate::model) struct Ngrams {
    hashes: Hashes,
    streams: usize,
    embd: usize,
    table: Matrix,
    /// `[S * E, E]` and `[E, E]`
    key: Linear,
    value: Linear,
    key_norm: Norm,
    query_norm: Norm,
    conv_norm: Norm,
    /// `[taps][S * E]`, zeros between those of the file.
    conv: Vec<f32>,
    /// Where a sequence's last tokens are, and the convolution's window.
    tokens: usize,
    window: usize,
}

impl Ngrams {
    /// Finds the table `per_layer_token_embd` and the weights of the layer: `ple_key`, `ple_value`,
    /// `ple_norm_*`, `ple_conv1d`.
    pub fn load(
        l: &mut Loader<'_>,
        sizes: &Sizes,
        streams: usize,
        spec: NgramsSpec,
    ) -> Result<Ngrams, ModelError> {
        let NgramsSpec { layer, hashes, row, taps, eps } = spec;
        let embd = sizes.embd;
        let name = |part: &str| format!("blk.{layer}.ple_{part}");
        let rows = l.weights.rows_of("per_layer_token_embd.weight")?;
        if let Some([first, count]) = hashes.ranges.iter().find(|[first, n]| first + n > rows as u64) {
            let what = format!(
                "holds {first}, where {count} rows end beyond the {rows} of per_layer_token_embd.weight"
            );
            return Err(l.keys.problem("ple.head_offsets", what));
        }
        let table = l.weights.matrix("per_layer_token_embd.weight", row, rows, Role::Rows)?;
        let key = l.weights.unbiased(&name("key"), embd, streams * embd)?;
        let value = l.weights.unbiased(&name("value"), embd, embd)?;
        let mut norm = |part: &str| Norm::load_turns(l, &name(part), "ple_norm", [embd, streams], eps);
        let (key_norm, query_norm) = (norm("norm_key")?, norm("norm_query")?);
        let conv_norm = norm("norm_conv")?;
        let weights = l.weights.floats(&name("conv1d.weight"), &[taps, streams * embd])?;
        let conv = spaced(&transposed(&weights, taps), taps, hashes.order());
        let tokens = l.remember(MemorySpec::Recurrent { floats: hashes.order() - 1 });
        let window = l.remember(MemorySpec::Recurrent { floats: conv.len() - streams * embd });
        Ok(Ngrams {
            hashes,
            streams,
            embd,
            table,
            key,
            value,
            key_norm,
            query_norm,
            conv_norm,
            conv,
            tokens,
            window,
        })
    }

    pub fn weights(&self) -> impl Iterator<Item = WeightId> {
        [self.key.id(), self.value.id()].into_iter()
    }

    /// Values of a token in the buffer of hidden rows.
    pub fn hidden(&self) -> usize {
        2 * self.streams * self.embd
    }

    /// Adds to all streams what the n-grams that end at each token give.
    pub fn add(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let embedded = self.look_up(run)?;
        let [key, value] = self.project(run, il, embedded)?;
        let gates = self.gate(run, key);
        let gated = self.take_in(run, [value, gates]);
        let convolved = self.convolve(run, gated)?;
        let n = run.rows * self.streams * self.embd;
        let Buffers { streams, gate, up, .. } = &mut *run.buffers;
        let (streams, convolved_values) = (&mut streams[..n], &mut gate[n..2 * n]);
        let ops = run.kernels.ops();
        ops.add(convolved_values, &up[..n]);
        ops.add(streams, convolved_values);
        let inputs = [run.streams, gated, convolved];
        let label = Label::elementwise("ple_out", Work::PerLayer, &inputs);
        run.streams = run.watch.show(label, [run.rows, self.streams, self.embd], streams);
        check_finite("ple_out", il, streams, self.streams * self.embd)
    }

    /// Rows of the table, side by side, to the buffer of the residual stream, which is made anew behind.
    fn look_up(&self, run: &mut Run<'_>) -> Result<NodeId<'static>, ForwardError> {
        let (t, embd) = (run.rows, self.embd);
        let mut rows = Vec::with_capacity(t * self.hashes.ranges.len());
        let tokens: Vec<u32> = run.segments.iter().flat_map(|segment| segment.tokens).copied().collect();
        recur(&mut run.segments, self.tokens, |at, past| {
            for &token in &tokens[at] {
                self.hashes.rows(token, past, &mut rows);
                past.rotate_right(1);
                past[0] = (token + 1) as f32;
            }
        })?;
        let x = &mut run.buffers.x[..t * embd];
        look_up(run.store, &self.table, rows.iter(), x)?;
        let name = NodeName { name: "ple_embd", numbered: Numbered::Not };
        let label = Label::new(name, NodeKind::Lookup, Work::PerLayer, &[]);
        Ok(run.watch.show(Label { weight: Some(self.table.described()), ..label }, [t, embd, 1], x))
    }

    /// Keys of all streams to the buffer of hidden rows, values to that of blocks' inputs.
    fn project(
        &self,
        run: &mut Run<'_>,
        il: usize,
        embedded: NodeId<'static>,
    ) -> Result<[NodeId<'static>; 2], ForwardError> {
        let (t, embd) = (run.rows, self.embd);
        let Buffers { x, gate, cur, inputs, .. } = &mut *run.buffers;
        inputs
            .prepare(
                run.kernels.ops(),
                &x[..t * embd],
                embd,
                [self.key.activation(), self.value.activation()],
            )
            .map_err(ForwardError::not_finite("ple_embd", il))?;
        let (keys, values) = (&mut gate[..t * self.streams * embd], &mut cur[..t * embd]);
        let mut outputs = [(&self.key, keys), (&self.value, values)];
        project(run.kernels, run.store, inputs, &mut outputs)?;
        let input = [embedded];
        let mut nodes = [embedded; 2];
        for ((node, name), (linear, out)) in nodes.iter_mut().zip(["ple_key", "ple_value"]).zip(&mut outputs)
        {
            let label = Label::product(name, Work::PerLayer, linear.matrix.described(), &input);
            *node = run.watch.show(label, [t, linear.rows(), 1], out);
        }
        Ok(nodes)
    }

    /// The gate of each stream: the sigmoid of the signed root of its dot with the key.
    fn gate(&self, run: &mut Run<'_>, key: NodeId<'static>) -> NodeId<'static> {
        let (t, ops, embd) = (run.rows, run.kernels.ops(), self.embd);
        let n = t * self.streams * embd;
        let Buffers { streams, gate, up, gates, .. } = &mut *run.buffers;
        let (keys, queries) = (&mut gate[..n], &mut up[..n]);
        self.key_norm.apply(ops, keys);
        queries.copy_from_slice(&streams[..n]);
        self.query_norm.apply(ops, queries);
        ops.mul(keys, queries);
        let gates = &mut gates[..t * self.streams];
        for (gate, products) in gates.iter_mut().zip(keys.chunks_exact(embd)) {
            let dot = products.iter().map(|&x| f64::from(x)).sum::<f64>() as f32;
            let dot = dot * (1.0 / (embd as f32).sqrt());
            let root = dot.abs().max(LEAST).sqrt();
            *gate = if dot == 0.0 { 0.0 } else { root.copysign(dot) };
        }
        ops.sigmoid(gates);
        let inputs = [key, run.streams];
        let label = Label::new("ple_gate", NodeKind::Sigmoid, Work::PerLayer, &inputs);
        run.watch.show(label, [t, self.streams, 1], gates)
    }

    /// The value times the gate of each stream, beside the hidden rows.
    fn take_in(&self, run: &mut Run<'_>, inputs: [NodeId<'static>; 2]) -> NodeId<'static> {
        let (t, ops, embd) = (run.rows, run.kernels.ops(), self.embd);
        let row = self.streams * embd;
        let Buffers { cur, up, gates, .. } = &mut *run.buffers;
        let gated = &mut up[..t * row];
        let rows = gated.chunks_exact_mut(row).zip(gates.chunks_exact(self.streams));
        for ((gated, gates), value) in rows.zip(cur.chunks_exact(embd)) {
            for (gated, &by) in gated.chunks_exact_mut(embd).zip(gates) {
                gated.copy_from_slice(value);
                ops.scale(gated, by);
            }
        }
        let label = Label::elementwise("ple_gated_value", Work::PerLayer, &inputs);
        run.watch.show(label, [t, self.streams, embd], gated)
    }

    /// The convolution of those, normed, with SiLU: behind their norms in the buffer of hidden rows.
    fn convolve(&self, run: &mut Run<'_>, gated: NodeId<'static>) -> Result<NodeId<'static>, ForwardError> {
        let (t, ops, row) = (run.rows, run.kernels.ops(), self.streams * self.embd);
        let Buffers { gate, up, .. } = &mut *run.buffers;
        let (normed, out) = gate.split_at_mut(t * row);
        let out = &mut out[..t * row];
        normed.copy_from_slice(&up[..t * row]);
        self.conv_norm.apply(ops, normed);
        let conv = CausalConv { channels: row, weight: &self.conv, bias: None, silu: true };
        recur(&mut run.segments, self.window, |rows, window| {
            let at = rows.start * row..rows.end * row;
            ops.causal_conv(&conv, &normed[at.clone()], window, &mut out[at]);
        })?;
        let inputs = [gated];
        // ggml names neither the norm nor the sum before SiLU.
        let label = Label::new("ple_conv_out", NodeKind::RmsNorm, Work::PerLayer, &inputs);
        Ok(run.watch.show(label, [t, self.streams, self.embd], out))
    }
}

/// Weights of a convolution whose taps are `step` tokens apart: zeros between them.
fn spaced(weights: &[f32], taps: usize, step: usize) -> Vec<f32> {
    let channels = weights.len() / taps;
    let mut out = vec![0.0; ((taps - 1) * step + 1) * channels];
    for (to, from) in out.chunks_mut(step * channels).zip(weights.chunks_exact(channels)) {
        to[..channels].copy_from_slice(from);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Hashes, spaced};

    #[test]
    fn taps_are_set_apart() {
        assert_eq!(spaced(&[1.0, 2.0, 3.0, 4.0], 2, 3), [1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 3.0, 4.0]);
        assert_eq!(spaced(&[1.0, 2.0], 1, 3), [1.0, 2.0]);
    }

    #[test]
    fn rows_are_hashes_of_ngrams() {
        let hashes = Hashes {
            multipliers: vec![3, 1 << 63 | 5, 7],
            ranges: vec![[0, 10], [10, 9], [2, 8], [30, 1]],
            eos: 4,
        };
        let rows = |token, past: [f32; 2]| {
            let mut out = Vec::new();
            hashes.rows(token, &past, &mut out);
            out
        };
        let of = |tokens: &[u64]| {
            let by = tokens.iter().zip(&hashes.multipliers);
            by.fold(0, |mixed, (t, by)| mixed ^ t.wrapping_mul(*by))
        };
        let wanted = |a: u64, b: u64, c: u64| {
            let (pair, triple) = (of(&[a, b]), of(&[a, b, c]));
            [pair % 10, 10 + pair % 9, 2 + triple % 8, 30].map(|row| row as u32)
        };
        assert_eq!(rows(6, [9.0, 3.0]), wanted(6, 8, 2));
        // Nothing before the first token counts as the end of a text, and so does what lies behind one.
        assert_eq!(rows(6, [0.0, 0.0]), wanted(6, 4, 4));
        assert_eq!(rows(6, [5.0, 3.0]), wanted(6, 4, 4));
        assert_eq!(rows(4, [9.0, 5.0]), wanted(4, 8, 4));
    }
}

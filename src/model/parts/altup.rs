//! AltUp (Alternating Updates) and LAuReL, Gemma 3n's residual streams: of four streams a layer computes on
//! one, foretells the others and corrects them all by what it has changed. Source: arXiv 2301.13310 and
//! 2411.07501, ggml's gemma3n.

use super::super::load::{Loader, Sizes};
use super::super::observer::NodeName;
use super::super::products::project;
use super::super::run::{Run, check_finite};
use super::super::weights::Linear;
use super::super::{ForwardError, Label, ModelError, NodeId, NodeKind, Work};
use super::norm::{Norm, NormKind};
use super::per_layer::{PerLayer, PerLayerNames};
use super::streams::{Block, LayerStreams, Streams};
use crate::kernels::ops::STREAMS;
use crate::store::WeightId;

/// The streams of a model: what they begin as, and what they end in.
#[derive(Debug)]
pub(in crate::model) struct AltUpStreams {
    /// `[E, E]` for each stream but the first: `altup_proj`.
    begin: Vec<Linear>,
    /// The same at the end: `altup_unembd_proj`.
    end: Vec<Linear>,
}

impl AltUpStreams {
    /// `altup_proj`, at the beginning of a pass.
    pub fn load(l: &mut Loader<'_>, sizes: &Sizes) -> Result<AltUpStreams, ModelError> {
        Ok(AltUpStreams { begin: planes(l, sizes, "altup_proj.weight")?, end: Vec::new() })
    }

    /// `altup_unembd_proj`, behind all layers.
    pub fn load_end(&mut self, l: &mut Loader<'_>, sizes: &Sizes) -> Result<(), ModelError> {
        self.end = planes(l, sizes, "altup_unembd_proj.weight")?;
        Ok(())
    }
}

impl Streams for AltUpStreams {
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new(self.begin.iter().map(Linear::id))
    }

    fn end_weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new(self.end.iter().map(Linear::id))
    }

    /// The residual stream becomes the first; the others are its projections, of its magnitude.
    fn begin(&self, run: &mut Run<'_>) -> Result<(), ForwardError> {
        let (t, n, ops) = (run.rows, run.embd, run.kernels.ops());
        let buffers = &mut *run.buffers;
        let (x, cur) = (&buffers.x[..t * n], &mut buffers.cur[..t * n]);
        let streams = &mut buffers.streams[..t * n * STREAMS];
        put(streams, x, n, 0);
        buffers
            .inputs
            .prepare(run.kernels.ops(), x, n, self.begin.iter().map(Linear::activation))
            .map_err(ForwardError::not_finite("inp_scaled", 0))?;
        let mut products = vec![run.x];
        for (i, linear) in self.begin.iter().enumerate() {
            project(run.kernels, run.store, &buffers.inputs, &mut [(linear, &mut *cur)])?;
            let weight = linear.matrix.described();
            let label = Label::product("altup_product", Work::Streams, weight, std::slice::from_ref(&run.x));
            products.push(run.watch.show(label, [t, n, 1], cur));
            ops.rescale(cur, x, n);
            put(streams, cur, n, i + 1);
        }
        let label = Label::new("inp_stacked", NodeKind::RmsNorm, Work::Streams, &products);
        run.streams = run.watch.show(label, [t, STREAMS, n], streams);
        check_finite("inp_stacked", 0, streams, n * STREAMS)
    }

    /// The mean of the first stream and the projections of the others, of its magnitude, becomes the residual
    /// stream.
    fn end(&self, run: &mut Run<'_>, layers: usize) -> Result<(), ForwardError> {
        run.watch.enter(None);
        let (t, n, ops) = (run.rows, run.embd, run.kernels.ops());
        let buffers = &mut *run.buffers;
        let streams = &mut buffers.streams[..t * n * STREAMS];
        let (x, cur) = (&mut buffers.x[..t * n], &mut buffers.cur[..t * n]);
        take(x, streams, n, 0);
        let mut products = vec![run.streams];
        for (i, linear) in self.end.iter().enumerate() {
            take(cur, streams, n, i + 1);
            buffers
                .inputs
                .prepare(run.kernels.ops(), cur, n, [linear.activation()])
                .map_err(ForwardError::not_finite("l_out", layers))?;
            project(run.kernels, run.store, &buffers.inputs, &mut [(linear, &mut *cur)])?;
            let weight = linear.matrix.described();
            let inputs = [run.streams];
            let label = Label::product("altup_unembd_product", Work::Streams, weight, &inputs);
            products.push(run.watch.show(label, [t, n, 1], cur));
            ops.rescale(cur, x, n);
            put(streams, cur, n, i + 1);
        }
        // ggml's node has the projections alone.
        let (watch, shape) = (&mut run.watch, [t, STREAMS - 1, n]);
        let label = Label::new("altup_unembd", NodeKind::RmsNorm, Work::Streams, &products);
        let others = std::cell::RefCell::new(&mut *streams);
        let unembd = watch.show_scattered(
            label,
            shape,
            |shown| {
                others.borrow().chunks_exact(n * STREAMS).for_each(|all| shown.extend_from_slice(&all[n..]))
            },
            |shown| {
                let mut others = others.borrow_mut();
                let rows = others.chunks_exact_mut(n * STREAMS).zip(shown.chunks_exact(n * (STREAMS - 1)));
                rows.for_each(|(all, shown)| all[n..].copy_from_slice(shown));
            },
        );
        for i in 1..STREAMS {
            take(cur, streams, n, i);
            ops.add(x, cur);
        }
        ops.scale(x, 1.0 / STREAMS as f32);
        let inputs = [run.streams, unembd];
        let label = Label::elementwise("unembd_merged", Work::Streams, &inputs);
        run.x = run.watch.show(label, [t, n, 1], x);
        check_finite("unembd_merged", layers, x, n)
    }
}

/// A matrix for each stream but the first.
fn planes(l: &mut Loader<'_>, sizes: &Sizes, name: &str) -> Result<Vec<Linear>, ModelError> {
    let planes = l.weights.planes(name, sizes.embd, sizes.embd, STREAMS - 1)?;
    Ok(planes.into_iter().map(Linear::plain).collect())
}

/// Writes rows of one stream: `[T][n]` to `[T][S][n]`.
fn put(streams: &mut [f32], rows: &[f32], n: usize, stream: usize) {
    for (all, row) in streams.chunks_exact_mut(n * STREAMS).zip(rows.chunks_exact(n)) {
        all[stream * n..][..n].copy_from_slice(row);
    }
}

/// Reads them.
fn take(rows: &mut [f32], streams: &[f32], n: usize, stream: usize) {
    for (all, row) in streams.chunks_exact(n * STREAMS).zip(rows.chunks_exact_mut(n)) {
        row.copy_from_slice(&all[stream * n..][..n]);
    }
}

/// Coefficients of the streams: a small map of `tanh(router(norm(x) / E))`.
#[derive(Debug)]
struct Coefficients {
    norm: Norm,
    /// `[S, E]`
    router: Linear,
    /// `[n, S]`
    map: Linear,
}

impl Coefficients {
    fn load(
        l: &mut Loader<'_>,
        il: usize,
        sizes: &Sizes,
        eps: f32,
        (map, rows): (&str, usize),
    ) -> Result<Coefficients, ModelError> {
        let norm = l.norm(il, "altup_router_norm", "altup_router_input", NormKind::Rms, sizes, eps)?;
        let router = l.weights.linear(&format!("blk.{il}.altup_router"), sizes.embd, STREAMS)?;
        let map = l.weights.linear(&format!("blk.{il}.{map}"), STREAMS, rows)?;
        Ok(Coefficients { norm, router, map })
    }

    fn weights(&self) -> impl Iterator<Item = WeightId> {
        [&self.router, &self.map].into_iter().map(Linear::id)
    }

    /// `[T][n]`, of the rows of [`Buffers::x`](super::super::Buffers), whose node is `x`; with 1 added where
    /// `plus_one`.
    fn of(
        &self,
        run: &mut Run<'_>,
        il: usize,
        x: NodeId<'static>,
        plus_one: bool,
    ) -> Result<(Vec<f32>, NodeId<'static>), ForwardError> {
        let (t, n, ops) = (run.rows, run.embd, run.kernels.ops());
        let buffers = &mut *run.buffers;
        let cur = &mut buffers.cur[..t * n];
        cur.copy_from_slice(&buffers.x[..t * n]);
        self.norm.apply(ops, cur);
        ops.scale(cur, 1.0 / n as f32);
        let input = run.watch.show(self.norm.label(&[x]), [t, n, 1], cur);
        let wrong = ForwardError::not_finite("altup_router_input", il);
        buffers.inputs.prepare(run.kernels.ops(), cur, n, [self.router.activation()]).map_err(wrong)?;
        let mut modalities = crate::store::zeroed(&[t, STREAMS], "the streams' coefficients")?;
        project(run.kernels, run.store, &buffers.inputs, &mut [(&self.router, &mut modalities[..])])?;
        let shape = [t, STREAMS, 1];
        let weight = self.router.matrix.described();
        let inputs = [input];
        let label = Label::product("altup_router", Work::Streams, weight, &inputs);
        let product = run.watch.show(label, shape, &mut modalities);
        ops.soft_cap(&mut modalities, 1.0);
        let inputs = [product];
        let label = Label::new("modalities", NodeKind::SoftCap, Work::Streams, &inputs);
        let modality = run.watch.show(label, shape, &mut modalities);
        let wrong = ForwardError::not_finite("modalities", il);
        buffers
            .inputs
            .prepare(run.kernels.ops(), &modalities, STREAMS, [self.map.activation()])
            .map_err(wrong)?;
        let rows = self.map.rows();
        let mut coefs = crate::store::zeroed(&[t, rows], "the streams' coefficients")?;
        project(run.kernels, run.store, &buffers.inputs, &mut [(&self.map, &mut coefs[..])])?;
        if plus_one {
            coefs.iter_mut().for_each(|c| *c += 1.0);
        }
        let weight = self.map.matrix.described();
        let inputs = [modality];
        let label = Label::product("all_coefs", Work::Streams, weight, &inputs);
        let node = run.watch.show(label, [t, rows, 1], &mut coefs);
        Ok((coefs, node))
    }
}

/// The low-rank path beside attention: `x + norm(right(left(x)))`.
#[derive(Debug)]
struct Laurel {
    /// `[R, E]`
    left: Linear,
    /// `[E, R]`
    right: Linear,
    norm: Norm,
}

impl Laurel {
    fn load(
        l: &mut Loader<'_>,
        il: usize,
        sizes: &Sizes,
        rank: usize,
        eps: f32,
    ) -> Result<Laurel, ModelError> {
        let left = l.weights.linear(&format!("blk.{il}.laurel_l"), sizes.embd, rank)?;
        let right = l.weights.linear(&format!("blk.{il}.laurel_r"), rank, sizes.embd)?;
        let norm = l.norm(il, "laurel_post_norm", "laurel_normed", NormKind::Rms, sizes, eps)?;
        Ok(Laurel { left, right, norm })
    }

    /// From [`Buffers::cur`](super::super::Buffers) to [`Buffers::beside`](super::super::Buffers).
    fn forward(&self, run: &mut Run<'_>, il: usize) -> Result<NodeId<'static>, ForwardError> {
        let (t, n, rank, ops) = (run.rows, run.embd, self.left.rows(), run.kernels.ops());
        let buffers = &mut *run.buffers;
        let (cur, low) = (&buffers.cur[..t * n], &mut buffers.gate[..t * rank]);
        let beside = &mut buffers.beside[..t * n];
        let wrong = ForwardError::not_finite("attn_norm", il);
        buffers.inputs.prepare(run.kernels.ops(), cur, n, [self.left.activation()]).map_err(wrong)?;
        project(run.kernels, run.store, &buffers.inputs, &mut [(&self.left, &mut *low)])?;
        let mut node = run.cur;
        let inputs = [node];
        let label = Label::product("laurel_low", Work::Streams, self.left.matrix.described(), &inputs);
        node = run.watch.show(label, [t, rank, 1], low);
        let wrong = ForwardError::not_finite("laurel_low", il);
        buffers.hidden.prepare(run.kernels.ops(), low, rank, [self.right.activation()]).map_err(wrong)?;
        project(run.kernels, run.store, &buffers.hidden, &mut [(&self.right, &mut *beside)])?;
        let inputs = [node];
        let label = Label::product("laurel_high", Work::Streams, self.right.matrix.described(), &inputs);
        node = run.watch.show(label, [t, n, 1], beside);
        self.norm.apply(ops, beside);
        let normed = run.watch.show(self.norm.label(&[node]), [t, n, 1], beside);
        ops.add(beside, cur);
        let inputs = [run.cur, normed];
        let label = Label::elementwise("laurel_out", Work::Streams, &inputs);
        Ok(run.watch.show(label, [t, n, 1], beside))
    }
}

/// What a layer does around its blocks.
#[derive(Debug)]
pub(in crate::model) struct AltUp {
    predict: Coefficients,
    laurel: Laurel,
    /// `None` until the layer's blocks have been found.
    correct: Option<Correction>,
}

/// What a layer does behind its blocks.
#[derive(Debug)]
struct Correction {
    coefficients: Coefficients,
    /// Of the first stream as the input of the layer's own input `[E]`.
    scale: Vec<f32>,
    per_layer: PerLayer,
}

/// Nodes of what a layer does with its own input.
const NAMES: PerLayerNames = PerLayerNames {
    gate: "first_prediction_gate",
    gelu: "first_prediction_gated",
    gated: "first_prediction_scaled",
    product: "first_prediction_product",
    normed: "first_prediction_out",
};

impl AltUp {
    /// What stands before the blocks: `altup_router`, `altup_predict_coef`, and `laurel_l`, `laurel_r` of so
    /// many rows between them.
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        sizes: &Sizes,
        rank: usize,
        eps: f32,
    ) -> Result<AltUp, ModelError> {
        let map = ("altup_predict_coef", STREAMS * STREAMS);
        let predict = Coefficients::load(l, il, sizes, eps, map)?;
        Ok(AltUp { predict, laurel: Laurel::load(l, il, sizes, rank, eps)?, correct: None })
    }

    /// What stands behind them: `altup_router` again, `altup_correct_coef`, `altup_correct_scale`, and what
    /// the layer does with an input of its own of so many elements.
    pub fn load_correction(
        &mut self,
        l: &mut Loader<'_>,
        il: usize,
        sizes: &Sizes,
        len: usize,
        eps: f32,
    ) -> Result<(), ModelError> {
        let coefficients = Coefficients::load(l, il, sizes, eps, ("altup_correct_coef", STREAMS))?;
        let scale = l.weights.vector(&format!("blk.{il}.altup_correct_scale.weight"), sizes.embd)?;
        let per_layer = PerLayer::load(l, il, sizes, len, eps, NAMES)?;
        self.correct = Some(Correction { coefficients, scale, per_layer });
        Ok(())
    }

    /// Foretells all streams; the first becomes the residual stream that the layer's blocks see.
    fn predict(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let (t, n, ops) = (run.rows, run.embd, run.kernels.ops());
        take(&mut run.buffers.x[..t * n], &run.buffers.streams, n, 0);
        let before = run.streams;
        let (coefs, node) = self.predict.of(run, il, before, false)?;
        let streams = &mut run.buffers.streams[..t * n * STREAMS];
        ops.mix_streams(streams, &coefs, n);
        let inputs = [before, node];
        let label = Label::new("predictions", NodeKind::Product, Work::Streams, &inputs);
        run.streams = run.watch.show(label, [t, STREAMS, n], streams);
        take(&mut run.buffers.x[..t * n], streams, n, 0);
        run.x = run.streams;
        Ok(())
    }

    /// Adds what the path beside attention gave: `(x + beside) / sqrt(2)`.
    fn join(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let (t, n, ops) = (run.rows, run.embd, run.kernels.ops());
        let x = &mut run.buffers.x[..t * n];
        ops.add(x, &run.buffers.beside[..t * n]);
        ops.scale(x, 1.0 / 2f32.sqrt());
        let inputs = [run.x, run.beside];
        let label = Label::elementwise("attn_laurel", Work::Streams, &inputs);
        run.x = run.watch.show(label, [t, n, 1], x);
        check_finite("attn_laurel", il, x, n)
    }

    /// Corrects all streams by what the blocks have made of the first, then adds what the layer's own input
    /// gives to all but the first.
    fn correct(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let Some(Correction { coefficients, scale, per_layer }) = &self.correct else {
            unreachable!("loaded behind the layer's blocks");
        };
        let (t, n, ops) = (run.rows, run.embd, run.kernels.ops());
        let activated = run.x;
        let (coefs, coefs_node) = coefficients.of(run, il, activated, true)?;
        let buffers = &mut *run.buffers;
        let (x, cur) = (&mut buffers.x[..t * n], &mut buffers.cur[..t * n]);
        let streams = &mut buffers.streams[..t * n * STREAMS];
        take(cur, streams, n, 0);
        x.iter_mut().zip(&*cur).for_each(|(x, predicted)| *x -= predicted);
        let inputs = [activated, run.streams];
        let label = Label::elementwise("innovation", Work::Streams, &inputs);
        let innovation = run.watch.show(label, [t, n, 1], x);
        ops.correct_streams(streams, x, &coefs, n);
        let inputs = [innovation, coefs_node, run.streams];
        let label = Label::elementwise("corrected", Work::Streams, &inputs);
        run.streams = run.watch.show(label, [t, STREAMS, n], streams);
        take(cur, streams, n, 0);
        cur.chunks_exact_mut(n).for_each(|row| ops.mul(row, scale));
        run.cur = run.streams;
        per_layer.forward(run, il)?;
        let buffers = &mut *run.buffers;
        let streams = &mut buffers.streams[..t * n * STREAMS];
        for (all, row) in streams.chunks_exact_mut(n * STREAMS).zip(buffers.cur.chunks_exact(n)) {
            all[n..].chunks_exact_mut(n).for_each(|stream| ops.add(stream, row));
        }
        let inputs = [run.streams, run.cur];
        let label = Label::elementwise("l_out", Work::Streams, &inputs);
        run.streams = run.watch.show(label, [t, STREAMS, n], streams);
        if run.watch.observer.interrupted() {
            return Err(ForwardError::Interrupted);
        }
        check_finite("l_out", il, streams, n * STREAMS)
    }
}

impl LayerStreams for AltUp {
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        let Laurel { left, right, .. } = &self.laurel;
        Box::new(self.predict.weights().chain([left.id(), right.id()]))
    }

    fn late_weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        let correct = self.correct.iter();
        Box::new(
            correct.flat_map(|correct| correct.coefficients.weights().chain(correct.per_layer.weights())),
        )
    }

    fn hidden(&self, _: usize) -> usize {
        let len = self.correct.as_ref().map_or(0, |correct| correct.per_layer.len());
        len.max(self.laurel.left.rows())
    }

    fn before(&self, run: &mut Run<'_>, il: usize, block: Block) -> Result<(), ForwardError> {
        match block {
            Block::Mixer => self.predict(run, il),
            Block::Network => Ok(()),
        }
    }

    fn beside_mixer(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        run.beside = self.laurel.forward(run, il)?;
        Ok(())
    }

    fn add(&self, run: &mut Run<'_>, il: usize, block: Block, sum: NodeName) -> Result<(), ForwardError> {
        run.add_to_stream(sum, il)?;
        match block {
            Block::Mixer => self.join(run, il),
            Block::Network => self.correct(run, il),
        }
    }
}

//! Hyper-connections (DeepSeek V4): each block takes a mixture of four residual streams, and its output and
//! the streams are mixed into those behind it, by gates of its own. Source: ggml's deepseek4.

use super::super::load::{Loader, Sizes};
use super::super::observer::{NodeName, Watch};
use super::super::run::{Run, check_finite, project};
use super::super::weights::Linear;
use super::super::{Buffers, ForwardError, Label, ModelError, NodeId, NodeKind, Work};
use super::latent::show_columns;
use super::streams::{Block, LayerStreams, Streams};
use crate::kernels::ops::{HYPER_GATES, HyperGates, Ops, STREAMS};
use crate::store::{Role, WeightId};

/// Most rounds of Sinkhorn's divisions: a handful is enough, more is a broken or hostile file.
const MAX_ITERATIONS: usize = 1 << 10;

/// What a model says of its connections.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct HyperSpec {
    /// Of the norm of all streams together.
    norm_eps: f32,
    eps: f32,
    iterations: usize,
}

impl HyperSpec {
    /// Reads the keys `hyper_connection.*`.
    pub fn read(l: &mut Loader<'_>, norm_eps: f32) -> Result<HyperSpec, ModelError> {
        let keys = &mut l.keys;
        let count = keys.required_size("hyper_connection.count")?;
        if count != STREAMS {
            return Err(keys.unsupported("hyper_connection.count", count));
        }
        let iterations = keys.required_size("hyper_connection.sinkhorn_iterations")?;
        if iterations > MAX_ITERATIONS {
            let what = format!("is {iterations}, where 1 to {MAX_ITERATIONS} make sense");
            return Err(keys.problem("hyper_connection.sinkhorn_iterations", what));
        }
        let eps = keys.epsilon("hyper_connection.epsilon")?;
        Ok(HyperSpec { norm_eps, eps, iterations })
    }
}

/// Mixes of all streams of a token.
#[derive(Debug)]
struct Mixes {
    /// `[n, S * E]`
    linear: Linear,
    base: Vec<f32>,
    scale: Vec<f32>,
}

impl Mixes {
    /// `TENSOR_fn.weight`, `TENSOR_base.weight` and `TENSOR_scale.weight`: so many mixes of so many kinds.
    fn load(
        l: &mut Loader<'_>,
        tensor: &str,
        embd: usize,
        count: usize,
        kinds: usize,
    ) -> Result<Mixes, ModelError> {
        let name = |part: &str| format!("{tensor}_{part}.weight");
        let matrix = l.weights.matrix(&name("fn"), STREAMS * embd, count, Role::Always)?;
        let base = l.weights.vector(&name("base"), count)?;
        let scale = l.weights.vector(&name("scale"), kinds)?;
        Ok(Mixes { linear: Linear::plain(matrix), base, scale })
    }

    /// The mixes of the streams, all normed together, to [`Buffers::gates`]; the node before is that of the
    /// streams.
    fn of(
        &self,
        run: &mut Run<'_>,
        il: usize,
        norm_eps: f32,
        name: &'static str,
    ) -> Result<NodeId<'static>, ForwardError> {
        let (t, row) = (run.rows, STREAMS * run.embd);
        let Buffers { streams, gates, gate: normed, inputs, .. } = &mut *run.buffers;
        let normed = &mut normed[..t * row];
        normed.copy_from_slice(&streams[..t * row]);
        run.kernels.ops().rms_norm(normed, row, None, norm_eps);
        inputs
            .prepare(normed, row, [self.linear.activation()])
            .map_err(ForwardError::not_finite("hc_init", il))?;
        let mixes = &mut gates[..t * self.linear.rows()];
        project(run.kernels, run.store, inputs, &mut [(&self.linear, &mut *mixes)])?;
        let weight = self.linear.matrix.described();
        let label = Label::product(name, Work::Streams, weight, std::slice::from_ref(&run.streams));
        Ok(run.watch.show(label, [t, self.linear.rows(), 1], mixes))
    }
}

/// Shows some gates of each token.
fn show(
    watch: &mut Watch<'_>,
    name: &'static str,
    kind: NodeKind,
    mixes: NodeId<'static>,
    gates: &mut [f32],
    [row, offset, n]: [usize; 3],
) -> NodeId<'static> {
    let shape = [gates.len() / row, n, 1];
    let inputs = [mixes];
    show_columns(watch, Label::new(name, kind, Work::Streams, &inputs), shape, gates, row, offset)
}

/// The sum of all streams by the first gates of each token, to the residual stream.
fn join(ops: &Ops, buffers: &mut Buffers, [t, embd, row]: [usize; 3]) {
    let Buffers { streams, gates, x, .. } = buffers;
    ops.join_streams(&streams[..t * STREAMS * embd], &gates[..t * row], row, &mut x[..t * embd], embd);
}

/// The connection of a block.
#[derive(Debug)]
struct Connection {
    mixes: Mixes,
    /// The node of what the block takes.
    taken: &'static str,
}

/// The connections of a layer.
#[derive(Debug)]
pub(in crate::model) struct HyperConnections {
    spec: HyperSpec,
    embd: usize,
    mixer: Connection,
    network: Option<Connection>,
}

impl HyperConnections {
    /// That of the mixing step: `hc_attn_fn`, `hc_attn_base`, `hc_attn_scale`.
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        sizes: &Sizes,
        spec: HyperSpec,
    ) -> Result<HyperConnections, ModelError> {
        let mixes = Mixes::load(l, &format!("blk.{il}.hc_attn"), sizes.embd, HYPER_GATES, 3)?;
        let mixer = Connection { mixes, taken: "hc_attn_pre" };
        Ok(HyperConnections { spec, embd: sizes.embd, mixer, network: None })
    }

    /// That of the network: `hc_ffn_fn`, `hc_ffn_base`, `hc_ffn_scale`.
    pub fn load_network(&mut self, l: &mut Loader<'_>, il: usize) -> Result<(), ModelError> {
        let mixes = Mixes::load(l, &format!("blk.{il}.hc_ffn"), self.embd, HYPER_GATES, 3)?;
        self.network = Some(Connection { mixes, taken: "hc_ffn_pre" });
        Ok(())
    }

    fn of(&self, block: Block) -> &Connection {
        match block {
            Block::Mixer => &self.mixer,
            Block::Network => self.network.as_ref().expect("loaded behind the mixing step"),
        }
    }
}

impl LayerStreams for HyperConnections {
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new(std::iter::once(self.mixer.mixes.linear.id()))
    }

    fn late_weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new(self.network.iter().map(|network| network.mixes.linear.id()))
    }

    fn hidden(&self) -> usize {
        STREAMS * self.embd
    }

    fn before(&self, run: &mut Run<'_>, il: usize, block: Block) -> Result<(), ForwardError> {
        let Connection { mixes, taken } = self.of(block);
        let HyperSpec { norm_eps, eps, iterations } = self.spec;
        let mixed = mixes.of(run, il, norm_eps, "hc_mixes")?;
        let (t, ops) = (run.rows, run.kernels.ops());
        let scale = [mixes.scale[0], mixes.scale[1], mixes.scale[2]];
        let made = HyperGates { scale, base: &mixes.base, eps, iterations };
        let gates = &mut run.buffers.gates[..t * HYPER_GATES];
        ops.hyper_gates(gates, &made);
        let watch = &mut run.watch;
        let pre = show(watch, "hc_pre", NodeKind::Sigmoid, mixed, gates, [HYPER_GATES, 0, STREAMS]);
        show(watch, "hc_post", NodeKind::Sigmoid, mixed, gates, [HYPER_GATES, STREAMS, STREAMS]);
        let pairs = [HYPER_GATES, 2 * STREAMS, STREAMS * STREAMS];
        show(watch, "hc_comb", NodeKind::Softmax, mixed, gates, pairs);
        join(ops, run.buffers, [t, self.embd, HYPER_GATES]);
        let inputs = [run.streams, pre];
        let label = Label::elementwise(*taken, Work::Streams, &inputs);
        run.x = run.watch.show(label, [t, self.embd, 1], &mut run.buffers.x[..t * self.embd]);
        Ok(())
    }

    fn add(&self, run: &mut Run<'_>, il: usize, block: Block, sum: NodeName) -> Result<(), ForwardError> {
        let (t, embd) = (run.rows, self.embd);
        let occurrence = usize::from(block == Block::Network);
        let gate = |name| NodeId { name, layer: Some(il), occurrence };
        let inputs = [run.cur, run.streams, gate("hc_post"), gate("hc_comb")];
        let Buffers { streams, gates, cur, .. } = &mut *run.buffers;
        let streams = &mut streams[..t * STREAMS * embd];
        let ops = run.kernels.ops();
        ops.share_among_streams(streams, &cur[..t * embd], &gates[..t * HYPER_GATES], embd);
        let label = Label::elementwise(sum, Work::Streams, &inputs);
        run.streams = run.watch.show(label, [t, STREAMS, embd], streams);
        if run.watch.observer.interrupted() {
            return Err(ForwardError::Interrupted);
        }
        check_finite(sum.name, il, streams, STREAMS * embd)
    }
}

/// The streams of a model: copies of the embedding at first, and a mixture at the end.
#[derive(Debug)]
pub(in crate::model) struct HyperStreams {
    spec: HyperSpec,
    embd: usize,
    head: Mixes,
}

impl HyperStreams {
    /// `output_hc_fn`, `output_hc_base`, `output_hc_scale`.
    pub fn load(l: &mut Loader<'_>, sizes: &Sizes, spec: HyperSpec) -> Result<HyperStreams, ModelError> {
        let head = Mixes::load(l, "output_hc", sizes.embd, STREAMS, 1)?;
        Ok(HyperStreams { spec, embd: sizes.embd, head })
    }
}

impl Streams for HyperStreams {
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new(std::iter::empty())
    }

    fn end_weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new(std::iter::once(self.head.linear.id()))
    }

    fn gates(&self) -> usize {
        HYPER_GATES
    }

    fn begin(&self, run: &mut Run<'_>) -> Result<(), ForwardError> {
        let (t, embd) = (run.rows, self.embd);
        let Buffers { streams, x, .. } = &mut *run.buffers;
        let streams = &mut streams[..t * STREAMS * embd];
        for (streams, x) in streams.chunks_exact_mut(STREAMS * embd).zip(x.chunks_exact(embd)) {
            streams.chunks_exact_mut(embd).for_each(|stream| stream.copy_from_slice(x));
        }
        let label = Label::elementwise("hc_init", Work::Streams, std::slice::from_ref(&run.x));
        run.streams = run.watch.show(label, [t, STREAMS, embd], streams);
        Ok(())
    }

    fn end(&self, run: &mut Run<'_>, layers: usize) -> Result<(), ForwardError> {
        run.watch.enter(None);
        let mixed = self.head.of(run, layers, self.spec.norm_eps, "hc_head_mixes")?;
        let (t, embd, ops) = (run.rows, self.embd, run.kernels.ops());
        let gates = &mut run.buffers.gates[..t * STREAMS];
        for row in gates.chunks_exact_mut(STREAMS) {
            ops.scale(row, self.head.scale[0]);
            ops.add(row, &self.head.base);
        }
        ops.sigmoid(gates);
        gates.iter_mut().for_each(|gate| *gate += self.spec.eps);
        let whole = [STREAMS, 0, STREAMS];
        let pre = show(&mut run.watch, "hc_head_pre", NodeKind::Sigmoid, mixed, gates, whole);
        join(ops, run.buffers, [t, embd, STREAMS]);
        let inputs = [run.streams, pre];
        let label = Label::elementwise("hc_head", Work::Streams, &inputs);
        let x = &mut run.buffers.x[..t * embd];
        run.x = run.watch.show(label, [t, embd, 1], x);
        check_finite("hc_head", layers, x, embd)
    }
}

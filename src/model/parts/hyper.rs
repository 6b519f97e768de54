//! Hyper-connections: each block takes a mixture of four residual streams, and its output is shared among
//! them, by gates of its own. The streams are mixed into those behind a block (DeepSeek V4, GLM 5.3), or each
//! goes on by itself (Hunyuan 4). Source: ggml's deepseek4, glm5-next and hy-v4.

use super::super::load::{Loader, Sizes};
use super::super::observer::{NodeName, Watch};
use super::super::products::project;
use super::super::run::{Run, check_finite};
use super::super::weights::Linear;
use super::super::{Buffers, ForwardError, Label, ModelError, NodeId, NodeKind, Work};
use super::latent::show_columns;
use super::streams::{Block, LayerStreams, Streams, copies};
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
    sharing: Sharing,
    /// Whether the model ends in the streams' mean rather than in a sum with gates.
    mean: bool,
}

/// What streams are behind a block.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sharing {
    /// Mixtures of all with their parts of the block's output: [`Ops::hyper_gates`].
    Mixed { iterations: usize },
    /// Each as it was, with its part of the block's output, which is `magnitude sigmoid(..) + eps` of it.
    Apart { magnitude: f32 },
}

impl HyperSpec {
    /// Reads the keys `hyper_connection.*` of a family that mixes its streams.
    pub fn read(l: &mut Loader<'_>, norm_eps: f32) -> Result<HyperSpec, ModelError> {
        count_streams(l)?;
        let iterations = l.keys.required_size("hyper_connection.sinkhorn_iterations")?;
        if iterations > MAX_ITERATIONS {
            let what = format!("is {iterations}, where 1 to {MAX_ITERATIONS} make sense");
            return Err(l.keys.problem("hyper_connection.sinkhorn_iterations", what));
        }
        let eps = l.keys.epsilon("hyper_connection.epsilon")?;
        Ok(HyperSpec { norm_eps, eps, sharing: Sharing::Mixed { iterations }, mean: false })
    }

    /// The same of a family whose streams stay apart.
    pub fn read_apart(l: &mut Loader<'_>, norm_eps: f32) -> Result<HyperSpec, ModelError> {
        count_streams(l)?;
        let eps = l.keys.epsilon("hyper_connection.epsilon")?;
        let Some(magnitude) = l.keys.float("hyper_connection.magnitude")? else {
            return Err(l.keys.problem("hyper_connection.magnitude", "is missing"));
        };
        Ok(HyperSpec { norm_eps, eps, sharing: Sharing::Apart { magnitude }, mean: false })
    }

    /// The same with the streams' mean at the end.
    pub fn with_mean(self) -> HyperSpec {
        HyperSpec { mean: true, ..self }
    }

    /// Gates of a block and token, and how many kinds of them have a scale.
    fn gates(&self) -> [usize; 2] {
        match self.sharing {
            Sharing::Mixed { .. } => [HYPER_GATES, 3],
            Sharing::Apart { .. } => [2 * STREAMS, 2],
        }
    }

    /// The node of the gates of a block's output.
    fn post(&self) -> &'static str {
        match self.sharing {
            Sharing::Mixed { .. } => "hc_post",
            Sharing::Apart { .. } => "hc_post_gate",
        }
    }
}

/// Only as many streams as kernels take.
fn count_streams(l: &mut Loader<'_>) -> Result<(), ModelError> {
    match l.keys.required_size("hyper_connection.count")? {
        STREAMS => Ok(()),
        count => Err(l.keys.unsupported("hyper_connection.count", count)),
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
        [count, kinds]: [usize; 2],
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
            .prepare(run.kernels.ops(), normed, row, [self.linear.activation()])
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
        let mixes = Mixes::load(l, &format!("blk.{il}.hc_attn"), sizes.embd, spec.gates())?;
        let mixer = Connection { mixes, taken: "hc_attn_pre" };
        Ok(HyperConnections { spec, embd: sizes.embd, mixer, network: None })
    }

    /// That of the network: `hc_ffn_fn`, `hc_ffn_base`, `hc_ffn_scale`.
    pub fn load_network(&mut self, l: &mut Loader<'_>, il: usize) -> Result<(), ModelError> {
        let mixes = Mixes::load(l, &format!("blk.{il}.hc_ffn"), self.embd, self.spec.gates())?;
        self.network = Some(Connection { mixes, taken: "hc_ffn_pre" });
        Ok(())
    }

    fn of(&self, block: Block) -> &Connection {
        match block {
            Block::Mixer => &self.mixer,
            Block::Network => self.network.as_ref().expect("loaded behind the mixing step"),
        }
    }

    /// Makes a block's gates of its mixes, in place.
    fn make_gates(&self, ops: &Ops, mixes: &Mixes, gates: &mut [f32]) {
        let (HyperSpec { eps, sharing, .. }, Mixes { scale, base, .. }) = (self.spec, mixes);
        match sharing {
            Sharing::Mixed { iterations } => {
                let scale = [scale[0], scale[1], scale[2]];
                ops.hyper_gates(gates, &HyperGates { scale, base, eps, iterations });
            }
            Sharing::Apart { magnitude } => {
                for row in gates.chunks_exact_mut(2 * STREAMS) {
                    ops.scale(&mut row[..STREAMS], scale[0]);
                    ops.scale(&mut row[STREAMS..], scale[1]);
                    ops.add(row, base);
                }
                ops.sigmoid(gates);
                for row in gates.chunks_exact_mut(2 * STREAMS) {
                    ops.scale(&mut row[STREAMS..], magnitude);
                    row.iter_mut().for_each(|gate| *gate += eps);
                }
            }
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

    fn hidden(&self, embd: usize) -> usize {
        STREAMS * embd
    }

    fn before(&self, run: &mut Run<'_>, il: usize, block: Block) -> Result<(), ForwardError> {
        let Connection { mixes, taken } = self.of(block);
        let mixed = mixes.of(run, il, self.spec.norm_eps, "hc_mixes")?;
        let (t, ops, [row, _]) = (run.rows, run.kernels.ops(), self.spec.gates());
        let gates = &mut run.buffers.gates[..t * row];
        self.make_gates(ops, mixes, gates);
        let watch = &mut run.watch;
        let pre = show(watch, "hc_pre", NodeKind::Sigmoid, mixed, gates, [row, 0, STREAMS]);
        show(watch, self.spec.post(), NodeKind::Sigmoid, mixed, gates, [row, STREAMS, STREAMS]);
        if let Sharing::Mixed { .. } = self.spec.sharing {
            let pairs = [row, 2 * STREAMS, STREAMS * STREAMS];
            show(watch, "hc_comb", NodeKind::Softmax, mixed, gates, pairs);
        }
        join(ops, run.buffers, [t, self.embd, row]);
        let inputs = [run.streams, pre];
        let label = Label::elementwise(*taken, Work::Streams, &inputs);
        run.x = run.watch.show(label, [t, self.embd, 1], &mut run.buffers.x[..t * self.embd]);
        Ok(())
    }

    fn add(&self, run: &mut Run<'_>, il: usize, block: Block, sum: NodeName) -> Result<(), ForwardError> {
        let (t, embd) = (run.rows, self.embd);
        let occurrence = usize::from(block == Block::Network);
        let gate = |name| NodeId { name, layer: Some(il), occurrence };
        let inputs = [run.cur, run.streams, gate(self.spec.post()), gate("hc_comb")];
        let Buffers { streams, gates, cur, .. } = &mut *run.buffers;
        let (streams, change) = (&mut streams[..t * STREAMS * embd], &cur[..t * embd]);
        let ops = run.kernels.ops();
        let inputs = match self.spec.sharing {
            Sharing::Mixed { .. } => {
                ops.share_among_streams(streams, change, &gates[..t * HYPER_GATES], embd);
                &inputs[..]
            }
            Sharing::Apart { .. } => {
                // Those of the output alone, side by side.
                for i in 0..t {
                    gates.copy_within((2 * i + 1) * STREAMS..2 * (i + 1) * STREAMS, i * STREAMS);
                }
                ops.correct_streams(streams, change, &gates[..t * STREAMS], embd);
                &inputs[..3]
            }
        };
        let label = Label::elementwise(sum, Work::Streams, inputs);
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
    /// Gates of the streams in the end; `None` where that is their mean.
    head: Option<Mixes>,
}

impl HyperStreams {
    /// `output_hc_fn`, `output_hc_base`, `output_hc_scale`, where the model does not end in a mean.
    pub fn load(l: &mut Loader<'_>, sizes: &Sizes, spec: HyperSpec) -> Result<HyperStreams, ModelError> {
        let head = match spec.mean {
            true => None,
            false => Some(Mixes::load(l, "output_hc", sizes.embd, [STREAMS, 1])?),
        };
        Ok(HyperStreams { spec, embd: sizes.embd, head })
    }

    /// The gates of the end, and their node.
    fn make_gates(
        &self,
        run: &mut Run<'_>,
        layers: usize,
        head: &Mixes,
    ) -> Result<NodeId<'static>, ForwardError> {
        let mixed = head.of(run, layers, self.spec.norm_eps, "hc_head_mixes")?;
        let (t, ops) = (run.rows, run.kernels.ops());
        let gates = &mut run.buffers.gates[..t * STREAMS];
        for row in gates.chunks_exact_mut(STREAMS) {
            ops.scale(row, head.scale[0]);
            ops.add(row, &head.base);
        }
        ops.sigmoid(gates);
        gates.iter_mut().for_each(|gate| *gate += self.spec.eps);
        let whole = [STREAMS, 0, STREAMS];
        Ok(show(&mut run.watch, "hc_head_pre", NodeKind::Sigmoid, mixed, gates, whole))
    }
}

impl Streams for HyperStreams {
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new(std::iter::empty())
    }

    fn end_weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new(self.head.iter().map(|head| head.linear.id()))
    }

    fn gates(&self) -> usize {
        self.spec.gates()[0]
    }

    fn begin(&self, run: &mut Run<'_>) -> Result<(), ForwardError> {
        copies(run, STREAMS);
        Ok(())
    }

    fn end(&self, run: &mut Run<'_>, layers: usize) -> Result<(), ForwardError> {
        run.watch.enter(None);
        let (t, embd, ops) = (run.rows, self.embd, run.kernels.ops());
        let mut inputs = vec![run.streams];
        match &self.head {
            Some(head) => inputs.push(self.make_gates(run, layers, head)?),
            None => run.buffers.gates[..t * STREAMS].fill(1.0),
        }
        join(ops, run.buffers, [t, embd, STREAMS]);
        let x = &mut run.buffers.x[..t * embd];
        if self.head.is_none() {
            ops.scale(x, 1.0 / STREAMS as f32);
        }
        let label = Label::elementwise("hc_head", Work::Streams, &inputs);
        run.x = run.watch.show(label, [t, embd, 1], x);
        check_finite("hc_head", layers, x, embd)
    }
}

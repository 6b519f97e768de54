//! What a forward pass computes, node by node, and who watches it.
//!
//! Every node says by itself what it is: its name, the kind of computation, the work it belongs to, the
//! weight and the nodes that it is computed from. No list of nodes exists anywhere else.

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::gguf::TensorType;

/// A node within a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId<'a> {
    /// ggml's name without the layer: `attn_norm`, `Qcur`, ..
    pub name: &'a str,
    /// The layer; `None` for what stands outside of them.
    pub layer: Option<usize>,
    /// How many nodes of this name and layer came before it in the pass.
    pub occurrence: usize,
}

impl<'a> NodeId<'a> {
    /// Reads what [`NodeId`] displays as: `Qcur-3#1`, `embd#0`.
    pub fn parse(text: &'a str) -> Option<NodeId<'a>> {
        let (name, occurrence) = text.rsplit_once('#')?;
        let occurrence = occurrence.parse().ok()?;
        let layered = name.rsplit_once('-').and_then(|(name, layer)| Some((name, layer.parse().ok()?)));
        Some(match layered {
            Some((name, layer)) => NodeId { name, layer: Some(layer), occurrence },
            None => NodeId { name, layer: None, occurrence },
        })
    }
}

impl fmt::Display for NodeId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "{}-{layer}#{}", self.name, self.occurrence),
            None => write!(f, "{}#{}", self.name, self.occurrence),
        }
    }
}

/// The kind of computation that a node is. Files of nodes name it as serde does.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// Rows of the embedding, decoded.
    Lookup,
    RmsNorm,
    LayerNorm,
    /// A product with a weight.
    Product,
    Rope,
    Attention,
    /// Attention whose heads have sinks.
    SinkAttention,
    /// Sums, products, limits, element by element.
    Elementwise,
    /// The sum of a row.
    RowSum,
    SwiGlu,
    /// GELU, with or without a gate.
    Gelu,
    /// GELU of a product to which ggml gives no name. Its table is entered by the product rounded to F16: a
    /// last bit of the product may be a place of the table.
    ProductGelu,
    Softmax,
    Sigmoid,
    /// A cap by tanh.
    SoftCap,
    /// The choice of experts.
    TopK,
    Silu,
    Softplus,
    /// The short convolution over a sequence's tokens.
    Convolution,
    /// A division by the Euclidean norm.
    L2Norm,
    /// A recurrence from token to token: the delta rule.
    Recurrence,
    /// Lightning attention: a recurrence that ggml does for all tokens of a pass at once, in another order.
    LinearAttention,
    /// The selective scan of a state space, its convolution before it included.
    Scan,
    /// An RMS norm times an activation of its gate.
    GatedNorm,
    /// A Hadamard transform.
    Hadamard,
}

impl NodeKind {
    /// What to look at where the inputs were right and the node is not.
    pub fn suspect(self) -> &'static str {
        match self {
            NodeKind::Lookup => "the decoding of the embedding",
            NodeKind::RmsNorm => "RMS norm",
            NodeKind::LayerNorm => "layer norm",
            NodeKind::Product => "the product's kernel",
            NodeKind::Rope => "RoPE",
            NodeKind::Attention => "attention",
            NodeKind::SinkAttention => "attention with sinks",
            NodeKind::Elementwise => "element-wise arithmetic",
            NodeKind::RowSum => "the sum of a row",
            NodeKind::SwiGlu => "SwiGLU",
            NodeKind::Gelu => "GELU",
            NodeKind::ProductGelu => "a product or its GELU",
            NodeKind::Softmax => "softmax",
            NodeKind::Sigmoid => "sigmoid",
            NodeKind::SoftCap => "the soft cap",
            NodeKind::TopK => "the choice of experts",
            NodeKind::Silu => "SiLU",
            NodeKind::Softplus => "softplus",
            NodeKind::Convolution => "the convolution",
            NodeKind::L2Norm => "the Euclidean norm",
            NodeKind::Recurrence => "the recurrence",
            NodeKind::LinearAttention => "lightning attention",
            NodeKind::Scan => "the selective scan",
            NodeKind::GatedNorm => "the gated norm",
            NodeKind::Hadamard => "the Hadamard transform",
        }
    }
}

/// What a node's time is counted under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    Embedding,
    Norms,
    Projections,
    Rope,
    Attention,
    /// Convolutions and recurrences.
    Recurrence,
    AttentionOutput,
    Router,
    GateUp,
    Activation,
    Down,
    /// What a layer does with an input of its own.
    PerLayer,
    /// Several residual streams.
    Streams,
    Sums,
    Logits,
}

impl Work {
    /// All of them, in the order of a pass.
    pub const ALL: &[Work] = &[
        Work::Embedding,
        Work::Norms,
        Work::Projections,
        Work::Rope,
        Work::Attention,
        Work::Recurrence,
        Work::AttentionOutput,
        Work::Router,
        Work::GateUp,
        Work::Activation,
        Work::Down,
        Work::PerLayer,
        Work::Streams,
        Work::Sums,
        Work::Logits,
    ];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Work::Embedding => "embedding",
            Work::Norms => "norms",
            Work::Projections => "q, k, v",
            Work::Rope => "RoPE",
            Work::Attention => "attention",
            Work::Recurrence => "recurrence",
            Work::AttentionOutput => "attention output",
            Work::Router => "router and choice",
            Work::GateUp => "FFN gate, up",
            Work::Activation => "activation",
            Work::Down => "FFN down",
            Work::PerLayer => "layers' own inputs",
            Work::Streams => "residual streams",
            Work::Sums => "sums",
            Work::Logits => "logits",
        }
    }
}

/// The weight that a node is a product with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NodeWeight {
    pub ty: TensorType,
    /// Bytes in all, those of all experts included.
    pub bytes: u64,
    /// Bytes that a token reads of them.
    pub touched: u64,
}

impl NodeWeight {
    /// Both side by side, of the first one's type.
    pub(super) fn and(self, other: NodeWeight) -> NodeWeight {
        let (bytes, touched) = (self.bytes + other.bytes, self.touched + other.touched);
        NodeWeight { ty: self.ty, bytes, touched }
    }
}

/// A value that the forward pass computed, named as ggml's graph names it.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    pub id: NodeId<'static>,
    /// Sizes, the slowest-moving first, tokens first: `[tokens, n]` or `[tokens, n, m]` with a trailing 1
    /// where there are two.
    pub shape: [usize; 3],
    pub kind: NodeKind,
    pub work: Work,
    pub weight: Option<NodeWeight>,
    /// The nodes that it is computed from.
    pub inputs: &'a [NodeId<'static>],
}

/// Sees every node in the order of computation, and may put other values in its place.
pub trait Observer: Send {
    /// Whether nodes are wanted at all; where not, copies made only to show a node are left out.
    fn active(&self) -> bool;

    /// Whether nodes of indices are wanted, which need no copies.
    fn wants_indices(&self) -> bool {
        self.active()
    }

    /// A node has been computed, whether or not its values are wanted.
    fn computed(&mut self, node: &Node<'_>) {
        let _ = node;
    }

    /// So many of the model's layers are done.
    fn layer_done(&mut self, done: usize) {
        let _ = done;
    }

    /// Whether the pass is to be broken off; asked a few times a layer.
    fn interrupted(&self) -> bool {
        false
    }

    /// A node of floats.
    fn node(&mut self, node: &Node<'_>, values: &mut [f32]);

    /// A node of indices (the experts chosen), which also may be replaced.
    fn indices(&mut self, node: &Node<'_>, values: &mut [u32]) {
        let _ = (node, values);
    }
}

/// Nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn active(&self) -> bool {
        false
    }

    fn node(&mut self, _: &Node<'_>, _: &mut [f32]) {}
}

/// The layer in a node's name: ggml's graph numbers a few nodes otherwise than by the layer that computes
/// them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Numbered {
    #[default]
    Own,
    /// The layer that reads the node.
    Next,
    /// No layer.
    Not,
}

/// What a node is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeName {
    pub name: &'static str,
    pub numbered: Numbered,
}

impl From<&'static str> for NodeName {
    fn from(name: &'static str) -> NodeName {
        NodeName { name, numbered: Numbered::Own }
    }
}

/// What a part says of a node that it has computed; the rest is known to [`Watch`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Label<'a> {
    pub name: NodeName,
    pub kind: NodeKind,
    pub work: Work,
    pub weight: Option<NodeWeight>,
    pub inputs: &'a [NodeId<'static>],
}

impl<'a> Label<'a> {
    pub fn new(
        name: impl Into<NodeName>,
        kind: NodeKind,
        work: Work,
        inputs: &'a [NodeId<'static>],
    ) -> Label<'a> {
        Label { name: name.into(), kind, work, weight: None, inputs }
    }

    /// A product with a weight.
    pub fn product(
        name: &'static str,
        work: Work,
        weight: NodeWeight,
        inputs: &'a [NodeId<'static>],
    ) -> Label<'a> {
        Label { weight: Some(weight), ..Label::new(name, NodeKind::Product, work, inputs) }
    }

    /// A sum or a product, element by element.
    pub fn elementwise(name: impl Into<NodeName>, work: Work, inputs: &'a [NodeId<'static>]) -> Label<'a> {
        Label::new(name, NodeKind::Elementwise, work, inputs)
    }
}

/// Nodes seen, by name.
type Counts = Vec<(&'static str, usize)>;

/// Counts the nodes of a layer by name and hands them to the observer.
pub(super) struct Watch<'a> {
    pub observer: &'a mut dyn Observer,
    layer: Option<usize>,
    of_layer: Counts,
    of_next: Counts,
    outside: Counts,
    /// Whether nodes may have to be computed again: what they became since the last mark, as bits.
    records: bool,
    shown: VecDeque<Option<Vec<u32>>>,
    /// The same of nodes that are computed again, and not shown again.
    again: VecDeque<Option<Vec<u32>>>,
}

/// Where the nodes of a pass stood.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    layer: Option<usize>,
    of_layer: Counts,
    of_next: Counts,
    outside: Counts,
}

impl<'a> Watch<'a> {
    pub fn new(observer: &'a mut dyn Observer) -> Watch<'a> {
        Watch {
            observer,
            layer: None,
            of_layer: Counts::new(),
            of_next: Counts::new(),
            outside: Counts::new(),
            records: false,
            shown: VecDeque::new(),
            again: VecDeque::new(),
        }
    }

    /// Where nodes stand now: from here on they may have to be computed again.
    pub fn mark(&mut self) -> Mark {
        self.records = true;
        self.shown.clear();
        let (of_layer, of_next) = (self.of_layer.clone(), self.of_next.clone());
        Mark { layer: self.layer, of_layer, of_next, outside: self.outside.clone() }
    }

    /// Nodes are not computed again.
    pub fn unmark(&mut self) {
        self.records = false;
        self.shown.clear();
    }

    /// Nodes are computed again from a mark on: those that the observer has seen are not shown again, and
    /// become what it left.
    pub fn go_back(&mut self, mark: Mark) {
        (self.layer, self.of_layer) = (mark.layer, mark.of_layer);
        (self.of_next, self.outside) = (mark.of_next, mark.outside);
        self.records = false;
        self.again = std::mem::take(&mut self.shown);
    }

    /// The nodes that follow are of this layer, or of none.
    pub fn enter(&mut self, layer: Option<usize>) {
        let next = self.next();
        self.layer = layer;
        self.of_layer.clear();
        if layer == Some(next) {
            std::mem::swap(&mut self.of_layer, &mut self.of_next);
        }
    }

    /// The same where the nodes may be of this layer already.
    pub fn stay_in(&mut self, layer: usize) {
        if self.layer != Some(layer) {
            self.enter(Some(layer));
        }
    }

    /// The layer behind the one at hand.
    fn next(&self) -> usize {
        self.layer.map_or(0, |layer| layer + 1)
    }

    /// Whether values are wanted.
    pub fn active(&self) -> bool {
        self.observer.active()
    }

    /// Shows a node of `[T][n][m]`; returns what it is called.
    pub fn show(&mut self, label: Label<'_>, shape: [usize; 3], values: &mut [f32]) -> NodeId<'static> {
        if let Some(seen) = self.again.pop_front() {
            put_back(seen, values, f32::from_bits);
            return self.count(label.name);
        }
        let id = self.computed(label, shape);
        let is_wanted = self.observer.active();
        if is_wanted {
            self.observer.node(&node(id, label, shape), values);
        }
        self.record(is_wanted, values, f32::to_bits);
        id
    }

    /// Shows a node whose values lie on a device: `read` gives them, and `write` takes those back that the
    /// observer has replaced.
    ///
    /// # Errors
    /// Of `read` and `write`.
    pub fn show_elsewhere<E>(
        &mut self,
        label: Label<'_>,
        shape: [usize; 3],
        read: impl FnOnce() -> Result<Vec<f32>, E>,
        write: impl FnOnce(&[f32]) -> Result<(), E>,
    ) -> Result<NodeId<'static>, E> {
        let values = if self.observer.active() { Some(read()?) } else { None };
        let id = self.computed(label, shape);
        let Some(mut values) = values else {
            self.record(false, &[], f32::to_bits);
            return Ok(id);
        };
        let before = values.clone();
        self.observer.node(&node(id, label, shape), &mut values);
        let same = before.iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits());
        let written = if same { Ok(()) } else { write(&values) };
        self.record(true, &values, f32::to_bits);
        written.map(|()| id)
    }

    /// Shows a node of indices.
    pub fn show_indices(
        &mut self,
        label: Label<'_>,
        shape: [usize; 3],
        values: &mut [u32],
    ) -> NodeId<'static> {
        if let Some(seen) = self.again.pop_front() {
            put_back(seen, values, |bits| bits);
            return self.count(label.name);
        }
        let id = self.computed(label, shape);
        let is_wanted = self.observer.wants_indices();
        if is_wanted {
            self.observer.indices(&node(id, label, shape), values);
        }
        self.record(is_wanted, values, |index| index);
        id
    }

    /// Shows a node whose values lie elsewhere than side by side: `copy` gathers them and `put` takes them
    /// back, only where they are wanted.
    pub fn show_scattered(
        &mut self,
        label: Label<'_>,
        shape: [usize; 3],
        copy: impl FnOnce(&mut Vec<f32>),
        put: impl FnOnce(&[f32]),
    ) -> NodeId<'static> {
        if let Some(seen) = self.again.pop_front() {
            if let Some(seen) = seen {
                put(&seen.into_iter().map(f32::from_bits).collect::<Vec<_>>());
            }
            return self.count(label.name);
        }
        let id = self.computed(label, shape);
        let mut values = Vec::new();
        let is_wanted = self.observer.active();
        if is_wanted {
            copy(&mut values);
            self.observer.node(&node(id, label, shape), &mut values);
            put(&values);
        }
        self.record(is_wanted, &values, f32::to_bits);
        id
    }

    /// Keeps what a node became, where it may have to be computed again.
    fn record<T: Copy>(&mut self, is_wanted: bool, values: &[T], bits: impl Fn(T) -> u32) {
        if self.records {
            self.shown.push_back(is_wanted.then(|| values.iter().map(|&v| bits(v)).collect()));
        }
    }

    fn computed(&mut self, label: Label<'_>, shape: [usize; 3]) -> NodeId<'static> {
        let id = self.count(label.name);
        self.observer.computed(&node(id, label, shape));
        id
    }

    fn count(&mut self, NodeName { name, numbered }: NodeName) -> NodeId<'static> {
        let layer = match numbered {
            Numbered::Own => self.layer,
            Numbered::Next => Some(self.next()),
            Numbered::Not => None,
        };
        let counts = match (layer, numbered) {
            (None, _) => &mut self.outside,
            (_, Numbered::Next) => &mut self.of_next,
            _ => &mut self.of_layer,
        };
        let occurrence = match counts.iter_mut().find(|(counted, _)| *counted == name) {
            Some((_, seen)) => {
                *seen += 1;
                *seen - 1
            }
            None => {
                counts.push((name, 1));
                0
            }
        };
        NodeId { name, layer, occurrence }
    }
}

/// What a node that is computed again became before.
fn put_back<T>(seen: Option<Vec<u32>>, values: &mut [T], of_bits: impl Fn(u32) -> T) {
    for (value, bits) in values.iter_mut().zip(seen.into_iter().flatten()) {
        *value = of_bits(bits);
    }
}

fn node<'a>(id: NodeId<'static>, label: Label<'a>, shape: [usize; 3]) -> Node<'a> {
    let Label { kind, work, weight, inputs, .. } = label;
    Node { id, shape, kind, work, weight, inputs }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in ["Qcur-3#1", "embd#0", "ffn_moe_weights_sum_clamped-31#0"] {
            assert_eq!(NodeId::parse(text).expect(text).to_string(), text);
        }
        for text in ["Qcur-3", "Qcur#x", ""] {
            assert_eq!(NodeId::parse(text), None);
        }
    }

    #[test]
    fn occurrences_are_counted_by_name_and_layer() {
        let mut observer = NoObserver;
        let mut watch = Watch::new(&mut observer);
        let mut next = || {
            let label = Label::new("Qcur", NodeKind::Rope, Work::Rope, &[]);
            watch.show(label, [0, 1, 1], &mut []).to_string()
        };
        assert_eq!((next(), next()), ("Qcur#0".to_owned(), "Qcur#1".to_owned()));
        watch.enter(Some(1));
        let label = Label::new("Qcur", NodeKind::Rope, Work::Rope, &[]);
        assert_eq!(watch.show(label, [0, 1, 1], &mut []).to_string(), "Qcur-1#0");
    }

    /// Doubles what it sees.
    #[derive(Default)]
    struct Doubling(Vec<String>);

    impl Observer for Doubling {
        fn active(&self) -> bool {
            true
        }

        fn node(&mut self, node: &Node<'_>, values: &mut [f32]) {
            self.0.push(node.id.to_string());
            values.iter_mut().for_each(|v| *v *= 2.0);
        }
    }

    #[test]
    fn nodes_that_are_computed_again_are_seen_once() {
        let mut observer = Doubling::default();
        let mut watch = Watch::new(&mut observer);
        let label = Label::new("Qcur", NodeKind::Rope, Work::Rope, &[]);
        watch.enter(Some(0));
        watch.show(label, [1, 1, 1], &mut [1.0]);
        let mark = watch.mark();
        let mut there = vec![3.0];
        for layer in [0, 1] {
            watch.stay_in(layer);
            let values = there.clone();
            let read = || Ok::<_, ()>(values);
            let write = |values: &[f32]| {
                there = values.to_vec();
                Ok(())
            };
            watch.show_elsewhere(label, [1, 1, 1], read, write).unwrap();
        }
        assert_eq!(there, [12.0]);
        watch.go_back(mark);
        let mut again = |layer, value| {
            watch.stay_in(layer);
            let mut values = [value];
            let id = watch.show(label, [1, 1, 1], &mut values);
            (id.to_string(), values[0])
        };
        // What the observer has left, whatever the values are now; then nodes that it has not seen.
        assert_eq!(again(0, 7.0), ("Qcur-0#1".to_owned(), 6.0));
        assert_eq!(again(1, 7.0), ("Qcur-1#0".to_owned(), 12.0));
        assert_eq!(again(1, 7.0), ("Qcur-1#1".to_owned(), 14.0));
        assert_eq!(observer.0, ["Qcur-0#0", "Qcur-0#1", "Qcur-1#0", "Qcur-1#1"]);
    }

    #[test]
    fn nodes_may_be_numbered_by_the_next_layer_or_not_at_all() {
        let mut observer = NoObserver;
        let mut watch = Watch::new(&mut observer);
        let mut next = |layer, numbered| {
            watch.enter(layer);
            let name = NodeName { name: "x", numbered };
            watch.show(Label::elementwise(name, Work::Sums, &[]), [0, 1, 1], &mut []).to_string()
        };
        assert_eq!(next(None, Numbered::Next), "x-0#0");
        assert_eq!(next(Some(0), Numbered::Own), "x-0#1");
        assert_eq!(next(Some(0), Numbered::Next), "x-1#0");
        assert_eq!(next(Some(1), Numbered::Not), "x#0");
        assert_eq!(next(Some(2), Numbered::Not), "x#1");
        assert_eq!(next(None, Numbered::Own), "x#2");
    }
}

//! What each node of a forward pass is computed from, so that a difference can be laid at a door.

use std::collections::HashMap;
use std::fmt;

use crate::gguf::{Gguf, TensorType};
use crate::model::Node;
use crate::quant;

/// A node within a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId<'a> {
    /// As in [`Node`].
    pub name: &'a str,
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

    /// The same node by the name that the forward pass gives it; `None` where no architecture names such a node.
    pub fn known(&self) -> Option<NodeId<'static>> {
        let known = NODES.iter().map(|entry| entry.node.0).find(|&name| name == self.name)?;
        Some(NodeId { name: known, layer: self.layer, occurrence: self.occurrence })
    }

    /// Where it stands among the nodes of a layer, or of those outside of layers: in the order of computation. Unknown
    /// nodes come last.
    pub fn rank(&self) -> usize {
        NODES.iter().position(|entry| entry.node == (self.name, self.occurrence)).unwrap_or(NODES.len())
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

/// Numbers the nodes of a pass that share a name.
#[derive(Clone, Debug, Default)]
pub struct NodeCounter(HashMap<(&'static str, Option<usize>), usize>);

impl NodeCounter {
    /// Begins a pass.
    pub fn reset(&mut self) {
        self.0.clear();
    }

    /// The node that comes now.
    pub fn next(&mut self, node: Node) -> NodeId<'static> {
        let seen = self.0.entry((node.name, node.layer)).or_insert(0);
        *seen += 1;
        NodeId { name: node.name, layer: node.layer, occurrence: *seen - 1 }
    }
}

/// The kind of computation that a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// Rows of the embedding, decoded.
    Lookup,
    RmsNorm,
    /// A product with a weight.
    Product,
    Rope,
    Attention,
    /// A sum or a product, element by element.
    Elementwise,
    SwiGlu,
    Softmax,
    /// The choice of experts.
    TopK,
}

impl NodeKind {
    /// What to look at where the inputs were right and the node is not.
    fn suspect(self) -> &'static str {
        match self {
            NodeKind::Lookup => "the decoding of the embedding",
            NodeKind::RmsNorm => "RMS norm",
            NodeKind::Product => "the product's kernel",
            NodeKind::Rope => "RoPE",
            NodeKind::Attention => "attention",
            NodeKind::Elementwise => "element-wise arithmetic",
            NodeKind::SwiGlu => "SwiGLU",
            NodeKind::Softmax => "softmax",
            NodeKind::TopK => "the choice of experts",
        }
    }
}

/// How a node is computed.
#[derive(Debug)]
struct Entry {
    /// Name and occurrence.
    node: (&'static str, usize),
    kind: NodeKind,
    /// The weight's name, without `blk.N.` and `.weight`; empty where there is none.
    weight: &'static str,
    /// The nodes of the same layer that it is computed from; [`RESIDUAL`] is the residual stream at the layer's
    /// beginning. Of those that a model does not have, none counts.
    inputs: &'static [(&'static str, usize)],
}

/// `l_out` of the layer before, or `embd`.
const RESIDUAL: (&str, usize) = ("", 0);

macro_rules! nodes {
    ($($name:ident $occurrence:literal: $kind:ident $($weight:literal)? ($($input:ident $input_occurrence:literal),*);)*) => {
        &[$(Entry {
            node: (stringify!($name), $occurrence),
            kind: NodeKind::$kind,
            weight: concat!($($weight)?),
            inputs: &[$(nodes!(@input $input $input_occurrence)),*],
        }),*]
    };
    (@input residual $occurrence:literal) => { RESIDUAL };
    (@input $input:ident $occurrence:literal) => { (stringify!($input), $occurrence) };
}

/// Every node that architectures name. A new one's stands here too.
static NODES: &[Entry] = nodes! {
    embd 0: Lookup "token_embd" ();
    attn_norm 0: RmsNorm "attn_norm" (residual 0);
    Qcur 0: Product "attn_q" (attn_norm 0);
    Kcur 0: Product "attn_k" (attn_norm 0);
    Vcur 0: Product "attn_v" (attn_norm 0);
    Qcur 1: Rope (Qcur 0);
    Kcur 1: Rope (Kcur 0);
    kqv_out 0: Attention (Qcur 1, Kcur 1, Vcur 0);
    attn_out 0: Product "attn_output" (kqv_out 0);
    ffn_inp 0: Elementwise (residual 0, attn_out 0);
    ffn_norm 0: RmsNorm "ffn_norm" (ffn_inp 0);
    ffn_gate 0: Product "ffn_gate" (ffn_norm 0);
    ffn_up 0: Product "ffn_up" (ffn_norm 0);
    ffn_swiglu 0: SwiGlu (ffn_gate 0, ffn_up 0);
    ffn_out 0: Product "ffn_down" (ffn_swiglu 0);
    ffn_moe_logits 0: Product "ffn_gate_inp" (ffn_norm 0);
    ffn_moe_probs 0: Softmax (ffn_moe_logits 0);
    ffn_moe_topk 0: TopK (ffn_moe_probs 0);
    ffn_moe_weights 0: Elementwise (ffn_moe_probs 0, ffn_moe_topk 0);
    ffn_moe_weights_sum 0: Elementwise (ffn_moe_weights 0);
    ffn_moe_weights_sum_clamped 0: Elementwise (ffn_moe_weights_sum 0);
    ffn_moe_weights_norm 0: Elementwise (ffn_moe_weights 0, ffn_moe_weights_sum_clamped 0);
    ffn_moe_gate 0: Product "ffn_gate_exps" (ffn_norm 0, ffn_moe_topk 0);
    ffn_moe_up 0: Product "ffn_up_exps" (ffn_norm 0, ffn_moe_topk 0);
    ffn_moe_swiglu 0: SwiGlu (ffn_moe_gate 0, ffn_moe_up 0);
    ffn_moe_down 0: Product "ffn_down_exps" (ffn_moe_swiglu 0, ffn_moe_topk 0);
    ffn_moe_weighted 0: Elementwise (ffn_moe_down 0, ffn_moe_weights_norm 0);
    ffn_moe_out 0: Elementwise (ffn_moe_weighted 0);
    l_out 0: Elementwise (ffn_inp 0, ffn_out 0, ffn_moe_out 0);
    result_norm 0: RmsNorm "output_norm" (residual 0);
    result_output 0: Product "output" (result_norm 0);
};

/// The graph of a model, as far as it explains differences: kinds and inputs of nodes, types of weights.
#[derive(Clone, Debug, Default)]
pub struct NodeGraph {
    layers: usize,
    /// Type and bytes by name.
    weights: HashMap<String, (TensorType, u64)>,
}

impl NodeGraph {
    /// The graph of a model of so many layers, with its file's weights.
    pub fn new(gguf: &Gguf, layers: usize) -> NodeGraph {
        let weights = gguf.tensors.iter().map(|t| (t.name.clone(), (t.ty, t.bytes))).collect();
        NodeGraph { layers, weights }
    }

    /// The graph of a model of so many layers whose weights are not known.
    pub fn without_weights(layers: usize) -> NodeGraph {
        NodeGraph { layers, weights: HashMap::new() }
    }

    /// What a node is computed by; `None` where the name is not known.
    pub fn kind(&self, id: &NodeId<'_>) -> Option<NodeKind> {
        entry(id).map(|entry| entry.kind)
    }

    /// The nodes that a node is computed from.
    pub fn inputs(&self, id: &NodeId<'_>) -> impl Iterator<Item = NodeId<'static>> {
        let here = id.layer;
        let before = match here {
            Some(layer) => layer.checked_sub(1),
            None => self.layers.checked_sub(1),
        };
        entry(id).into_iter().flat_map(|entry| entry.inputs).map(move |&input| match (input, before) {
            (RESIDUAL, Some(layer)) => NodeId { name: "l_out", layer: Some(layer), occurrence: 0 },
            (RESIDUAL, None) => NodeId { name: "embd", layer: None, occurrence: 0 },
            ((name, occurrence), _) => NodeId { name, layer: here, occurrence },
        })
    }

    /// The type of the weight that a node is a product with.
    pub fn weight_type(&self, id: &NodeId<'_>) -> Option<TensorType> {
        self.weight(id).map(|(ty, _)| ty)
    }

    /// The type of that weight and its bytes, those of all experts where it is of experts.
    pub fn weight(&self, id: &NodeId<'_>) -> Option<(TensorType, u64)> {
        let entry = entry(id).filter(|entry| !entry.weight.is_empty())?;
        let find = |name: &str| self.weights.get(name).copied();
        let Some(layer) = id.layer else {
            // Without an output matrix it is the embedding once more.
            return find(&format!("{}.weight", entry.weight)).or_else(|| find("token_embd.weight"));
        };
        let name = entry.weight;
        // Experts one a tensor are named by the part and their number.
        let part = name.strip_suffix("_exps").unwrap_or(name);
        find(&format!("blk.{layer}.{name}.weight")).or_else(|| {
            let experts = (0..).map_while(|expert| find(&format!("blk.{layer}.{part}.{expert}.weight")));
            experts.reduce(|(ty, all), (_, bytes)| (ty, all + bytes))
        })
    }

    /// What a node is rounded to for the products that take it as an input; `None` where none does, or where nothing
    /// is rounded.
    pub fn rounded_to(&self, id: &NodeId<'_>) -> Option<quant::ActivationType> {
        let taken_by = NODES.iter().filter(|entry| entry.kind == NodeKind::Product);
        taken_by.filter(|entry| entry.inputs.contains(&(id.name, id.occurrence))).find_map(|entry| {
            let consumer = NodeId { name: entry.node.0, layer: id.layer, occurrence: entry.node.1 };
            Some(quant::format(self.weight_type(&consumer)?)?.activation)
        })
    }

    /// What to look at where a node's inputs were right and it is not: "the Q6_K kernel".
    pub fn suspect(&self, id: &NodeId<'_>) -> String {
        match (self.kind(id), self.weight_type(id)) {
            (Some(NodeKind::Product), Some(ty)) => format!("the {ty} kernel"),
            (Some(kind), _) => kind.suspect().to_owned(),
            (None, _) => "this node".to_owned(),
        }
    }
}

fn entry(id: &NodeId<'_>) -> Option<&'static Entry> {
    NODES.iter().find(|entry| entry.node == (id.name, id.occurrence))
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
        let mut counter = NodeCounter::default();
        let mut next = |name, layer| counter.next(Node { name, layer, shape: [1, 1, 1] }).to_string();
        assert_eq!(next("Qcur", Some(0)), "Qcur-0#0");
        assert_eq!(next("Qcur", Some(1)), "Qcur-1#0");
        assert_eq!(next("Qcur", Some(0)), "Qcur-0#1");
    }

    #[test]
    fn inputs_reach_over_layers() {
        let graph = NodeGraph { layers: 2, weights: HashMap::new() };
        let inputs = |text| {
            graph.inputs(&NodeId::parse(text).unwrap()).map(|id| id.to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(inputs("attn_norm-0#0"), "embd#0");
        assert_eq!(inputs("attn_norm-1#0"), "l_out-0#0");
        assert_eq!(inputs("result_norm#0"), "l_out-1#0");
        assert_eq!(inputs("kqv_out-1#0"), "Qcur-1#1 Kcur-1#1 Vcur-1#0");
        assert_eq!(inputs("nothing#0"), "");
    }

    #[test]
    fn every_input_is_a_node() {
        for input in NODES.iter().flat_map(|entry| entry.inputs).filter(|&&input| input != RESIDUAL) {
            assert!(NODES.iter().any(|entry| entry.node == *input), "{input:?}");
        }
    }
}

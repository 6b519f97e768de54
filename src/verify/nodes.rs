//! What each node of a forward pass is computed from, so that a difference can be laid at a door.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::gguf::TensorType;
use crate::model::{Graph, GraphNode, KvElement, KvType, Node, NodeId, NodeKind};
use crate::quant::{self, ActivationType};

/// A node as it stands in a file, its names written as [`NodeId`] displays.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NodeDescription {
    pub node: String,
    pub kind: NodeKind,
    /// The type of the weight that it is a product with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
}

impl NodeDescription {
    /// What a node says of itself.
    pub(super) fn of(node: &Node<'_>) -> NodeDescription {
        NodeDescription {
            node: node.id.to_string(),
            kind: node.kind,
            weight: node.weight.map(|weight| weight.ty.name().to_owned()),
            inputs: node.inputs.iter().map(NodeId::to_string).collect(),
        }
    }
}

/// A node of the graph, without its name.
#[derive(Clone, Debug)]
struct Explained<'n> {
    kind: NodeKind,
    weight: Option<TensorType>,
    inputs: Vec<NodeId<'n>>,
}

/// The graph of a model, as far as it explains differences: kinds and inputs of nodes, types of weights.
/// Names live as long as `'n`: forever where they come from a model, as long as the file where they come from
/// one.
#[derive(Clone, Debug, Default)]
pub struct NodeGraph<'n> {
    /// In the order of computation.
    nodes: Vec<Explained<'n>>,
    by_id: HashMap<NodeId<'n>, usize>,
    /// What products that take a node as an input round it to, each type once.
    rounded: HashMap<NodeId<'n>, Vec<ActivationType>>,
    /// What attention takes: kept, or multiplied with what is kept, in the type of the cache.
    attended: HashSet<NodeId<'n>>,
}

impl NodeGraph<'static> {
    /// The graph of a model.
    pub fn new(graph: &Graph) -> NodeGraph<'static> {
        let mut nodes = NodeGraph::default();
        for GraphNode { id, kind, weight, inputs, .. } in graph.nodes() {
            nodes.push(*id, *kind, weight.map(|weight| weight.ty), inputs.clone());
        }
        nodes
    }
}

impl<'n> NodeGraph<'n> {
    /// The graph that a file describes.
    ///
    /// # Errors
    /// What is no name of a node or no type of a weight.
    pub fn described(nodes: &'n [NodeDescription]) -> Result<NodeGraph<'n>, String> {
        let name =
            |text: &'n String| NodeId::parse(text).ok_or_else(|| format!("{text} is no name of a node"));
        let ty = |name: &String| {
            let known = TensorType::ALL.iter().copied().find(|ty| ty.name() == name);
            known.ok_or_else(|| format!("{name} is no type of a weight"))
        };
        let mut graph = NodeGraph::default();
        for NodeDescription { node, kind, weight, inputs } in nodes {
            let inputs = inputs.iter().map(name).collect::<Result<_, _>>()?;
            graph.push(name(node)?, *kind, weight.as_ref().map(ty).transpose()?, inputs);
        }
        Ok(graph)
    }

    fn push(&mut self, id: NodeId<'n>, kind: NodeKind, weight: Option<TensorType>, inputs: Vec<NodeId<'n>>) {
        if let Some(format) = weight.filter(|_| kind == NodeKind::Product).and_then(quant::format) {
            for input in &inputs {
                let types = self.rounded.entry(*input).or_default();
                if format.activation != ActivationType::F32 && !types.contains(&format.activation) {
                    types.push(format.activation);
                }
            }
        }
        if matches!(kind, NodeKind::Attention | NodeKind::SinkAttention) {
            self.attended.extend(&inputs);
        }
        self.by_id.insert(id, self.nodes.len());
        self.nodes.push(Explained { kind, weight, inputs });
    }

    fn node(&self, id: &NodeId<'_>) -> Option<&Explained<'n>> {
        self.rank(id).map(|at| &self.nodes[at])
    }

    /// Whether nothing is known of any node.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Where a node stands in the order of computation; `None` where the name is not known.
    pub fn rank(&self, id: &NodeId<'_>) -> Option<usize> {
        // The map as one of names that live as long as the one that is sought.
        let by_id: &HashMap<NodeId<'_>, usize> = &self.by_id;
        by_id.get(id).copied()
    }

    /// What a node is computed by; `None` where the name is not known.
    pub fn kind(&self, id: &NodeId<'_>) -> Option<NodeKind> {
        self.node(id).map(|node| node.kind)
    }

    /// The nodes that a node is computed from.
    pub fn inputs(&self, id: &NodeId<'_>) -> &[NodeId<'n>] {
        self.node(id).map_or(&[], |node| &node.inputs)
    }

    /// The type of the weight that a node is a product with.
    pub fn weight_type(&self, id: &NodeId<'_>) -> Option<TensorType> {
        self.node(id)?.weight
    }

    /// What a node is rounded to for the products that take it as an input, and for attention over a cache of
    /// this type; F32, which rounds nothing, left out.
    pub fn rounded_to(&self, id: &NodeId<'_>, kv: KvType) -> Vec<ActivationType> {
        let rounded: &HashMap<NodeId<'_>, Vec<ActivationType>> = &self.rounded;
        let attended: &HashSet<NodeId<'_>> = &self.attended;
        let mut types = rounded.get(id).cloned().unwrap_or_default();
        let rounds = kv.keys == KvElement::F16 || kv.values == KvElement::F16;
        if rounds && attended.contains(id) && !types.contains(&ActivationType::F16) {
            types.push(ActivationType::F16);
        }
        types
    }

    /// What to look at where a node's inputs were right and it is not: "the Q6_K kernel". `None` where the
    /// node is not known.
    pub fn suspect(&self, id: &NodeId<'_>) -> Option<String> {
        let node = self.node(id)?;
        Some(match (node.kind, node.weight) {
            (NodeKind::Product, Some(ty)) => format!("the {ty} kernel"),
            (kind, _) => kind.suspect().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::gguf::Gguf;
    use crate::model::Model;

    fn graph(fixture: &str) -> NodeGraph<'static> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/{fixture}.gguf"));
        let model = Model::load(&Gguf::open(&path).expect("a fixture")).expect("it loads");
        NodeGraph::new(&model.graph().expect("its graph"))
    }

    fn id(text: &str) -> NodeId<'_> {
        NodeId::parse(text).expect("a name")
    }

    #[test]
    fn inputs_reach_over_layers() {
        let graph = graph("dense-q4_k_m");
        let inputs = |text| {
            let mut names: Vec<_> = graph.inputs(&id(text)).iter().map(NodeId::to_string).collect();
            names.sort();
            names.join(" ")
        };
        assert_eq!(inputs("attn_norm-0#0"), "embd#0");
        assert_eq!(inputs("attn_norm-1#0"), "l_out-0#0");
        assert_eq!(inputs("result_norm#0"), "l_out-1#0");
        assert_eq!(inputs("kqv_out-1#0"), "Kcur-1#1 Qcur-1#1 Vcur-1#0");
        assert_eq!(inputs("nothing#0"), "");
    }

    /// Every input is a node that was computed before.
    #[test]
    fn the_order_is_that_of_computation() {
        for fixture in ["dense-q4_k_m", "moe-q4_k_m", "demo-q4_k_m"] {
            let graph = graph(fixture);
            assert!(!graph.is_empty());
            for (id, &rank) in &graph.by_id {
                let inputs = graph.inputs(id).iter().map(|input| graph.rank(input));
                assert!(
                    inputs.flatten().filter(|&input| input < rank).count() == graph.inputs(id).len(),
                    "{id}"
                );
            }
        }
    }

    #[test]
    fn weights_are_named_and_inputs_rounded_for_them() {
        let graph = graph("moe-q4_k_m");
        assert_eq!(graph.suspect(&id("Qcur-0#0")).as_deref(), Some("the Q4_K kernel"));
        assert_eq!(graph.suspect(&id("Qcur-0#1")).as_deref(), Some("RoPE"));
        assert_eq!(graph.suspect(&id("nothing#0")), None);
        let rounded = |text, kv| graph.rounded_to(&id(text), kv);
        // Queries in Q4_K, values in Q8_0.
        assert_eq!(rounded("attn_norm-0#0", KvType::F16), [ActivationType::Q8_K, ActivationType::Q8_0]);
        // Beside the router, which is in F32.
        assert_eq!(rounded("ffn_norm-0#0", KvType::F32), [ActivationType::Q8_K]);
        assert_eq!(rounded("Kcur-0#1", KvType::F16), [ActivationType::F16]);
        for (node, kv) in [("Kcur-0#0", KvType::F16), ("Kcur-0#1", KvType::F32), ("nothing#0", KvType::F16)] {
            assert_eq!(rounded(node, kv), []);
        }
    }

    #[test]
    fn a_graph_is_read_as_it_was_described() {
        let nodes = [
            NodeDescription { node: "a#0".into(), kind: NodeKind::Lookup, weight: None, inputs: vec![] },
            NodeDescription {
                node: "b-0#1".into(),
                kind: NodeKind::Product,
                weight: Some("Q6_K".into()),
                inputs: vec!["a#0".into()],
            },
        ];
        let text = serde_json::to_string(&nodes).expect("JSON");
        let read: Vec<NodeDescription> = serde_json::from_str(&text).expect("a description");
        assert_eq!(read, nodes);
        let graph = NodeGraph::described(&read).expect("a graph");
        assert_eq!(graph.rank(&id("b-0#1")), Some(1));
        assert_eq!(graph.inputs(&id("b-0#1")), [id("a#0")]);
        assert_eq!(graph.suspect(&id("b-0#1")).as_deref(), Some("the Q6_K kernel"));
        for (node, weight) in [("b", None), ("b#0", Some("Q6".to_owned()))] {
            let wrong =
                NodeDescription { node: node.into(), kind: NodeKind::Product, weight, inputs: vec![] };
            assert!(NodeGraph::described(&[wrong]).is_err());
        }
    }
}

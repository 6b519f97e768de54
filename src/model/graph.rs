//! The graph of a model: every node of a pass, as a pass over no tokens describes it.

use std::collections::HashMap;

use super::{Node, NodeId, NodeKind, NodeWeight, Observer, Work};

/// A node of the graph.
#[derive(Clone, Debug)]
pub struct GraphNode {
    pub id: NodeId<'static>,
    pub kind: NodeKind,
    pub work: Work,
    pub weight: Option<NodeWeight>,
    pub inputs: Vec<NodeId<'static>>,
}

/// All nodes, in the order of computation.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: Vec<GraphNode>,
    by_id: HashMap<NodeId<'static>, usize>,
}

impl Graph {
    /// The nodes in the order of computation.
    pub fn nodes(&self) -> &[GraphNode] {
        &self.nodes
    }

    /// A node; `None` where the model has none of this name.
    pub fn node(&self, id: &NodeId<'_>) -> Option<&GraphNode> {
        // A key of a shorter life cannot be looked up by itself: the map's own has the same name.
        self.rank(id).map(|at| &self.nodes[at])
    }

    /// Where a node stands in the order of computation.
    pub fn rank(&self, id: &NodeId<'_>) -> Option<usize> {
        let by_id: &HashMap<NodeId<'_>, usize> = &self.by_id;
        by_id.get(id).copied()
    }
}

impl Observer for Graph {
    fn active(&self) -> bool {
        false
    }

    fn computed(&mut self, node: &Node<'_>) {
        let Node { id, kind, work, weight, inputs, .. } = *node;
        self.by_id.insert(id, self.nodes.len());
        self.nodes.push(GraphNode { id, kind, work, weight, inputs: inputs.to_vec() });
    }

    fn node(&mut self, _: &Node<'_>, _: &mut [f32]) {}
}

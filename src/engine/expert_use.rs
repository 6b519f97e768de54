//! Which experts passes choose, and how often.

use crate::model::{Node, NodeKind};

/// How often each expert of each layer was chosen, a time for each token that it worked on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpertUse {
    /// By layer; a layer without experts, or one that no pass has been through, has none.
    pub layers: Vec<Vec<u64>>,
}

impl ExpertUse {
    /// Counts a node's, where it is a choice of experts.
    pub(super) fn add(&mut self, node: &Node<'_>, chosen: &[u32]) {
        let Some(layer) = node.id.layer.filter(|_| node.kind == NodeKind::TopK) else { return };
        if self.layers.len() <= layer {
            self.layers.resize(layer + 1, Vec::new());
        }
        let counts = &mut self.layers[layer];
        for &expert in chosen {
            let expert = expert as usize;
            if counts.len() <= expert {
                counts.resize(expert + 1, 0);
            }
            counts[expert] += 1;
        }
    }
}

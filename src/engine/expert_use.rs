//! Which experts passes choose, and how often.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::model::{Node, NodeKind, Observer};

/// How often each expert of each layer was chosen, a time for each token that it worked on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpertUse {
    /// By layer; a layer without experts, or one that no pass has been through, has none.
    pub layers: Vec<Vec<u64>>,
}

impl ExpertUse {
    /// Counts a node's, where it is a choice of experts.
    fn add(&mut self, node: &Node<'_>, chosen: &[u32]) {
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

/// Breaks passes off once a flag is set, and counts the experts that they choose.
#[derive(Default)]
pub(super) struct Watcher<'s> {
    pub interrupted: Option<&'s AtomicBool>,
    pub experts: Option<&'s mut ExpertUse>,
}

impl Observer for Watcher<'_> {
    fn active(&self) -> bool {
        false
    }

    fn wants_indices(&self) -> bool {
        self.experts.is_some()
    }

    fn interrupted(&self) -> bool {
        self.interrupted.is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    fn node(&mut self, _: &Node<'_>, _: &mut [f32]) {}

    fn indices(&mut self, node: &Node<'_>, values: &mut [u32]) {
        if let Some(experts) = &mut self.experts {
            experts.add(node, values);
        }
    }
}

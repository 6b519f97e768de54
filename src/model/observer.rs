//! Who watches the forward pass.

/// A value that the forward pass computed, named as ggml's graph names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// ggml's name without the layer: `attn_norm`, `Qcur`, ..; names repeat within a layer (`Qcur` before
    /// and after RoPE), in the order of the graph.
    pub name: &'static str,
    /// The layer; `None` for what stands outside of them.
    pub layer: Option<usize>,
    /// Sizes, the slowest-moving first, tokens first: `[tokens, n]` or `[tokens, n, m]` with a trailing 1 where
    /// there are two.
    pub shape: [usize; 3],
}

/// Sees every node in the order of computation, and may put other values in its place.
pub trait Observer: Send {
    /// Whether nodes are wanted at all; where not, copies made only to show a node are left out.
    fn active(&self) -> bool;

    /// A node has been computed, whether or not its values are wanted.
    fn computed(&mut self, node: Node) {
        let _ = node;
    }

    /// Whether the pass is to be broken off; asked a few times a layer.
    fn interrupted(&self) -> bool {
        false
    }

    /// A node of floats.
    fn node(&mut self, node: Node, values: &mut [f32]);

    /// A node of indices (the experts chosen), which also may be replaced.
    fn indices(&mut self, node: Node, values: &mut [u32]) {
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

    fn node(&mut self, _: Node, _: &mut [f32]) {}
}

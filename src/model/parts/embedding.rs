//! Rows of the embedding, the beginning of a pass.

use super::super::observer::NodeName;
use super::super::run::{Run, look_up};
use super::super::weights::Matrix;
use super::super::{ForwardError, Label, NodeKind, Work};
use super::norm::Norm;

/// The embedding of tokens.
#[derive(Debug)]
pub(in crate::model) struct Embedding {
    /// `[V, E]`
    pub matrix: Matrix,
    /// Factor on the rows.
    pub scale: Option<f32>,
    pub norm: Option<Norm>,
    /// The node of the rows, scaled.
    pub name: NodeName,
}

impl Embedding {
    /// Plain rows: `embd`.
    pub fn plain(matrix: Matrix) -> Embedding {
        Embedding { matrix, scale: None, norm: None, name: "embd".into() }
    }

    /// Rows times a factor, under another name.
    pub fn scaled(matrix: Matrix, scale: Option<f32>, name: impl Into<NodeName>) -> Embedding {
        Embedding { matrix, scale, norm: None, name: name.into() }
    }

    /// The rows of the pass's tokens, into the residual stream.
    pub fn forward(&self, run: &mut Run<'_>) -> Result<(), ForwardError> {
        let n = run.embd;
        let x = &mut run.buffers.x[..run.rows * n];
        let ids = run.segments.iter().flat_map(|segment| segment.tokens);
        look_up(run.store, &self.matrix, ids, x)?;
        if let Some(scale) = self.scale {
            run.kernels.ops().scale(x, scale);
        }
        let label = Label {
            weight: Some(self.matrix.described()),
            ..Label::new(self.name, NodeKind::Lookup, Work::Embedding, &[])
        };
        run.x = run.watch.show(label, [run.rows, n, 1], x);
        if let Some(norm) = &self.norm {
            norm.apply(run.kernels.ops(), x);
            run.x = run.watch.show(norm.label(&[run.x]), [run.rows, n, 1], x);
        }
        Ok(())
    }
}

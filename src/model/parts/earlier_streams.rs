//! Attention residuals (Kimi K3): every few layers the residual stream is put aside and begins anew; the
//! input of each block is a mixture of those put aside and of the one under way, by scores of its own.

use super::super::load::Loader;
use super::super::run::Run;
use super::super::{Label, ModelError, NodeId, NodeKind, Work};
use crate::kernels::ops::Banked;

/// The mixture that a block has as its input.
#[derive(Debug)]
pub(in crate::model) struct Mixture {
    /// Of the scores, `[E]`.
    weight: Vec<f32>,
    eps: f32,
    /// Streams put aside before it.
    count: usize,
}

/// What a layer does with streams of earlier layers.
#[derive(Debug)]
pub(in crate::model) struct EarlierStreams {
    /// Before its mixing step, and before its network.
    pub mixer: Mixture,
    pub ffn: Mixture,
    /// Whether its input is put aside.
    pub banks: bool,
}

impl EarlierStreams {
    /// `attn_res_score` and `ffn_res_score` of a layer; every `size`th puts its input aside.
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        embd: usize,
        size: usize,
        eps: f32,
    ) -> Result<EarlierStreams, ModelError> {
        let (before, banks) = (il.div_ceil(size), il.is_multiple_of(size));
        Ok(EarlierStreams {
            mixer: Mixture::load(l, &format!("blk.{il}.attn_res_score.weight"), embd, before, eps)?,
            ffn: Mixture::load(l, &format!("blk.{il}.ffn_res_score.weight"), embd, il / size + 1, eps)?,
            banks,
        })
    }

    /// Puts the stream aside, if this is the layer to do so; what its mixing step gives is a new one.
    pub fn bank(&self, run: &mut Run<'_>) {
        if !self.banks {
            return;
        }
        let (t, n, stride, at) = (run.rows, run.embd, run.buffers.side.streams, self.mixer.count);
        let buffers = &mut *run.buffers;
        let x = &mut buffers.x[..t * n];
        for (all, x) in buffers.streams.chunks_exact_mut(stride).zip(x.chunks_exact(n)) {
            all[at * n..][..n].copy_from_slice(x);
        }
        x.fill(0.0);
        run.streams = run.x;
    }
}

impl Mixture {
    /// With scores by this tensor, of so many streams beside the one under way.
    pub fn load(
        l: &mut Loader<'_>,
        tensor: &str,
        embd: usize,
        count: usize,
        eps: f32,
    ) -> Result<Mixture, ModelError> {
        Ok(Mixture { weight: l.weights.vector(tensor, embd)?, eps, count })
    }

    /// Shares of a token.
    pub fn shares(&self) -> usize {
        self.count + 1
    }

    /// The mixture, into the block's input. Shares lie in the buffer of hidden values.
    pub fn of_stream(&self, run: &mut Run<'_>) {
        if self.count == 0 {
            return run.copy_stream();
        }
        let (t, n, ops) = (run.rows, run.embd, run.kernels.ops());
        let inputs = [run.x, run.streams];
        let buffers = &mut *run.buffers;
        let x = &buffers.x[..t * n];
        let banked = Banked { data: &buffers.streams, stride: buffers.side.streams, count: self.count, n };
        let shares = &mut buffers.gate[..t * self.shares()];
        ops.score_streams(&banked, x, &self.weight, self.eps, shares);
        ops.softmax(shares, self.shares());
        let label = Label::new("res_probs", NodeKind::Softmax, Work::Streams, &inputs);
        let shares_node = run.watch.show(label, [t, self.shares(), 1], shares);
        ops.sum_streams(&banked, x, shares, &mut buffers.cur[..t * n]);
        run.cur = self.show(run, [shares_node, inputs[0], inputs[1]]);
    }

    /// ggml gives the sum no name.
    fn show(&self, run: &mut Run<'_>, inputs: [NodeId<'static>; 3]) -> NodeId<'static> {
        let cur = &mut run.buffers.cur[..run.rows * run.embd];
        let label = Label::elementwise("res_mix", Work::Streams, &inputs);
        run.watch.show(label, [run.rows, run.embd, 1], cur)
    }
}

//! Gemma 4's feed-forward block with experts: a dense network and experts beside it, each with norms of its
//! own in front and behind.

use super::super::load::{Loader, Sizes};
use super::super::run::Run;
use super::super::{ForwardError, Label, ModelError, Work};
use super::activation::Activation;
use super::experts::{Experts, ExpertsSpec};
use super::feed_forward::{Dense, DenseNames, DenseSpec};
use super::norm::{Norm, NormKind};
use super::routing::Routing;
use crate::store::WeightId;

/// What a family says of both.
#[derive(Clone, Debug)]
pub(in crate::model) struct DenseAndExpertsSpec {
    /// Hidden length of the dense network.
    pub dense_ff: usize,
    /// Hidden length of an expert.
    pub expert_ff: usize,
    pub activation: Activation,
    pub routing: Routing,
    pub eps: f32,
}

/// Both, with what stands around them; the norm before the dense network is the layer's.
#[derive(Debug)]
pub(in crate::model) struct DenseAndExperts {
    pub dense: Dense,
    /// `post_ffw_norm_1`
    dense_post_norm: Norm,
    /// `pre_ffw_norm_2`
    experts_norm: Norm,
    pub experts: Experts,
    /// `post_ffw_norm_2`
    experts_post_norm: Norm,
}

impl DenseAndExperts {
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        sizes: &Sizes,
        spec: DenseAndExpertsSpec,
    ) -> Result<DenseAndExperts, ModelError> {
        let DenseAndExpertsSpec { dense_ff, expert_ff, activation, routing, eps } = spec;
        let names = DenseNames { input: "ffn_norm_1", ..DenseNames::default() };
        let dense = DenseSpec { names, ..DenseSpec::new(dense_ff, activation) };
        let experts = ExpertsSpec { input: "ffn_norm_2", ..ExpertsSpec::new(expert_ff, activation, routing) };
        let norm = |l: &mut Loader<'_>, tensor, name| l.norm(il, tensor, name, NormKind::Rms, sizes, eps);
        Ok(DenseAndExperts {
            dense: Dense::load(l, il, sizes.embd, dense)?,
            dense_post_norm: norm(l, "post_ffw_norm_1", "ffn_mlp")?,
            experts_norm: norm(l, "pre_ffw_norm_2", "ffn_norm_2")?,
            experts: Experts::load(l, il, sizes.embd, experts)?,
            experts_post_norm: norm(l, "post_ffw_norm_2", "ffn_moe")?,
        })
    }

    /// Those behind the dense network, before the experts and behind them.
    pub fn norms(&self) -> [&Norm; 3] {
        [&self.dense_post_norm, &self.experts_norm, &self.experts_post_norm]
    }

    /// What every token touches, in the order of a pass.
    pub fn weights(&self) -> impl Iterator<Item = WeightId> {
        self.dense.weights().chain(self.experts.weights())
    }

    /// The dense network from [`Buffers::cur`](super::super::Buffers), the experts from the residual stream;
    /// the sum is left in the former. `next` are the experts of the next layer, which may be read ahead.
    pub fn forward(&self, run: &mut Run<'_>, il: usize, next: Option<&Experts>) -> Result<(), ForwardError> {
        self.dense.forward(run, il)?;
        self.dense_post_norm.of_cur(run);
        let dense = run.cur;
        std::mem::swap(&mut run.buffers.cur, &mut run.buffers.beside);
        self.experts_norm.of_stream(run);
        self.experts.forward(run, il, next)?;
        self.experts_post_norm.of_cur(run);
        let n = run.rows * run.embd;
        let cur = &mut run.buffers.cur[..n];
        run.kernels.ops().add(cur, &run.buffers.beside[..n]);
        let inputs = [dense, run.cur];
        let label = Label::elementwise("ffn_moe_combined", Work::Sums, &inputs);
        run.cur = run.watch.show(label, [run.rows, run.embd, 1], cur);
        Ok(())
    }
}

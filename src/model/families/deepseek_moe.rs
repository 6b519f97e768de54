//! `deepseek` (DeepSeekMoE, the first generation) and `bailingmoe` (Ling and Ling-Coder before 2): experts by
//! a softmax over all of them, shared networks beside these.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{Activation, Embedding, ExpertsSpec, NormKind, Rope, Routing, Score};
use super::stack::{FfnPlan, LayerPlan, Norms, attention, decoder, rope, shared, swiglu};
use crate::kernels::ops::RopeKind;

/// Dense layers first; the weights of the chosen experts are as they are.
pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let dense_layers = l.keys.count("leading_dense_block_count")?;
    l.keys.neutral("expert_weights_norm", &[0.0])?;
    let rope = rope(l, &sizes, RopeKind::Norm, false)?;
    load_with(l, sizes, rope, dense_layers, false)
}

/// Experts in every layer; whole heads are rotated.
pub(super) fn load_bailing(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let normalise = l.keys.flag("expert_weights_norm")?.unwrap_or(false);
    let rope = rope(l, &sizes, RopeKind::Norm, false)?;
    if rope.params.n_dims != sizes.key_len {
        let what = format!("is {}, where heads are {}", rope.params.n_dims, sizes.key_len);
        return Err(l.keys.problem("rope.dimension_count", what));
    }
    load_with(l, sizes, rope, 0, normalise)
}

fn load_with(
    l: &mut Loader<'_>,
    sizes: Sizes,
    rope: Rope,
    dense_layers: usize,
    normalise: bool,
) -> Result<Decoder, ModelError> {
    let norms = Norms::before(NormKind::Rms, l.rms_eps()?);
    let experts = l.required_experts(&sizes)?;
    l.keys.neutral("expert_gating_func", &[0.0, 1.0])?;
    let scale = l.keys.factor("expert_weights_scale")?.filter(|&scale| scale != 1.0);
    let ff = l.keys.required_size("expert_feed_forward_length")?;
    let shared_ff = ff * l.keys.required_size("expert_shared_count")?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let of = sizes.clone();
    decoder(l, sizes, vec![rope], embedding, norms, |l, il| {
        if il < dense_layers {
            return Ok(LayerPlan::new(attention(&of, il), swiglu(l, &of, il)?));
        }
        let routing = Routing::new(experts.count, experts.used, Score::Softmax);
        let spec = ExpertsSpec {
            shared: Some(shared(shared_ff, "ffn_shexp")),
            ..ExpertsSpec::new(ff, Activation::SwiGlu, Routing { normalise, scale, ..routing })
        };
        Ok(LayerPlan::new(attention(&of, il), FfnPlan::Experts(spec)))
    })
}

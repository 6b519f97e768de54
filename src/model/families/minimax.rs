//! `minimax-m2`: norms over all heads of queries and of keys, experts of which a bias decides.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, AttentionNames, AttentionSpec, Embedding, ExpertsSpec, Norm, NormKind, QkNorm, Routing,
};
use super::stack::{EXP_PROBS_B, FfnPlan, LayerPlan, Norms, attention, decoder, rope};
use crate::kernels::ops::RopeKind;

pub(super) fn load_m2(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    let experts = l.required_experts(&sizes)?;
    let routing = Routing { normalise: true, ..Routing::read(l, experts, None)? };
    // The experts' length is named twice.
    l.keys.size("expert_feed_forward_length")?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let ropes = vec![rope(l, &sizes, RopeKind::NeoX, false)?];
    let of = sizes.clone();
    decoder(l, sizes, ropes, embedding, Norms::before(NormKind::Rms, eps), |l, il| {
        let spec = attention(&of, il);
        let mut norm = |tensor: &str, name, heads: usize| {
            Norm::load(l, &format!("blk.{il}.{tensor}"), name, NormKind::Rms, heads * of.key_len, eps)
        };
        let qk_norm = Some(QkNorm {
            q: norm("attn_q_norm", "Qcur_normed", spec.heads)?,
            k: norm("attn_k_norm", "Kcur_normed", spec.kv_heads)?,
            after_rope: false,
        });
        let names = AttentionNames { flat: true, ..AttentionNames::default() };
        let attention = AttentionSpec { qk_norm, names, ..spec };
        let ff = of.dense_ff(&l.keys, il)?;
        let spec = ExpertsSpec::new(ff, Activation::SwiGlu, routing.clone().with_bias(l, il, EXP_PROBS_B)?);
        Ok(LayerPlan { attention, ffn: FfnPlan::Experts(spec) })
    })
}

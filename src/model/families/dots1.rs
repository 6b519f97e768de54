//! `dots1` and `bailingmoe2` (Ling 2): norms of each head's queries and keys, dense layers before those with
//! experts, whose scores, groups and weights the file describes, and a shared network beside them.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{Activation, AttentionSpec, Embedding, ExpertsSpec, NormKind, Routing};
use super::stack::{
    EXP_PROBS_B, FfnPlan, LayerPlan, Norms, attention, decoder, head_norms, rope, shared, swiglu,
};
use crate::kernels::ops::RopeKind;

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    load_with(l, |_, ff| Ok(ff))
}

pub(super) fn load_bailing(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let mut decoder =
        load_with(l, |l, ff| Ok(l.keys.size("expert_shared_feed_forward_length")?.unwrap_or(ff)))?;
    decoder.layers.iter_mut().for_each(|layer| layer.middle = "sa_out");
    Ok(decoder)
}

/// `shared_ff` gives the hidden length of one shared expert, from that of the others.
fn load_with(
    l: &mut Loader<'_>,
    shared_ff: impl FnOnce(&mut Loader<'_>, usize) -> Result<usize, ModelError>,
) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    let dense_layers = l.keys.count("leading_dense_block_count")?;
    let counts = l.required_experts(&sizes)?;
    let routing = Routing::read(l, counts, None)?;
    let ff = l.keys.required_size("expert_feed_forward_length")?;
    let shared_ff = shared_ff(l, ff)? * l.keys.required_size("expert_shared_count")?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let ropes = vec![rope(l, &sizes, RopeKind::NeoX, false)?];
    let of = sizes.clone();
    decoder(l, sizes, ropes, embedding, Norms::before(NormKind::Rms, eps), |l, il| {
        let qk_norm = Some(head_norms(l, il, of.key_len, eps)?);
        let attention = AttentionSpec { qk_norm, ..attention(&of, il) };
        if il < dense_layers {
            return Ok(LayerPlan::new(attention, swiglu(l, &of, il)?));
        }
        let routing = routing.clone().biased(l, il, EXP_PROBS_B)?;
        let spec = ExpertsSpec::new(ff, Activation::SwiGlu, routing);
        let shared = Some(shared(shared_ff, "ffn_shexp"));
        Ok(LayerPlan::new(attention, FfnPlan::Experts(ExpertsSpec { shared, ..spec })))
    })
}

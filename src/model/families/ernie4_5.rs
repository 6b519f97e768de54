//! `ernie4_5` and `ernie4_5-moe`: a plain decoder; dense layers before those with experts, which a bias helps
//! to choose.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{Activation, Embedding, ExpertsSpec, NormKind, Routing, Score};
use super::stack::{EXP_PROBS_B, FfnPlan, LayerPlan, Norms, attention, decoder, rope, shared, swiglu};
use crate::kernels::ops::RopeKind;

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    load_with(l, sizes, |l, sizes, il| swiglu(l, sizes, il))
}

pub(super) fn load_experts(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let dense_layers = l.keys.count("leading_dense_block_count")?;
    let counts = l.required_experts(&sizes)?;
    let ff = l.keys.required_size("expert_feed_forward_length")?;
    let shared_ff = l.keys.count("expert_shared_feed_forward_length")?;
    // The shared experts are one network of the length just read.
    l.keys.harmless(&["expert_shared_count"]);
    l.keys.neutral("interleave_moe_layer_step", &[1.0])?;
    l.keys.neutral("expert_gating_func", &[0.0, 1.0])?;
    l.keys.neutral("expert_weights_norm", &[1.0])?;
    load_with(l, sizes, |l, sizes, il| {
        if il < dense_layers {
            return swiglu(l, sizes, il);
        }
        let routing = Routing::new(counts.count, counts.used, Score::Softmax).normalised();
        let spec = ExpertsSpec::new(ff, Activation::SwiGlu, routing.biased(l, il, EXP_PROBS_B)?);
        Ok(FfnPlan::Experts(match shared_ff {
            0 => ExpertsSpec { output: "ffn_out", ..spec },
            ff => ExpertsSpec { shared: Some(shared(ff, "ffn_shexp")), ..spec },
        }))
    })
}

fn load_with(
    l: &mut Loader<'_>,
    sizes: Sizes,
    mut ffn: impl FnMut(&mut Loader<'_>, &Sizes, usize) -> Result<FfnPlan, ModelError>,
) -> Result<Decoder, ModelError> {
    let norms = Norms::before(NormKind::Rms, l.rms_eps()?);
    // Sections of the rotation are all at the same position in a text.
    l.keys.harmless(&["rope.dimension_sections"]);
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let ropes = vec![rope(l, &sizes, RopeKind::Norm, false)?];
    let of = sizes.clone();
    decoder(l, sizes, ropes, embedding, norms, |l, il| {
        l.refuse(il, &["attn_output.bias"])?;
        Ok(LayerPlan::new(attention(&of, il), ffn(l, &of, il)?))
    })
}

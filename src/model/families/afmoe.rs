//! `afmoe` (Arcee's Trinity): norms around both blocks, a gate for each element of what attention gives,
//! every fourth layer without rotation, the embedding scaled, experts beside a shared network.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, AttentionNames, AttentionSpec, Embedding, ExpertsSpec, Gate, NormKind, Rope, Routing, Score,
};
use super::stack::{FfnPlan, LayerPlan, Norms, attention, decoder, head_norms, rope, shared, swiglu};
use crate::kernels::ops::RopeKind;

/// Every so manieth layer is not rotated.
const UNROTATED: usize = 4;

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    let window = l.required_window()?;
    let windowed = l.window_pattern(&sizes, 4)?;
    let leading = l.keys.count("leading_dense_block_count")?;
    let experts = experts(l, &sizes)?;
    let scale = Some((sizes.embd as f32).sqrt());
    let embedding = Embedding::scaled(l.token_embd(&sizes)?, scale, "inp_embd_scaled");
    let full = rope(l, &sizes, RopeKind::NeoX, false)?;
    l.keys.neutral("rope.dimension_count_swa", &[full.params.n_dims as f64])?;
    let ropes = vec![full.clone(), Rope::windowed(l, &full, sizes.key_len, full.params.base, true)?];
    let of = sizes.clone();
    decoder(l, sizes, ropes, embedding, Norms::around(NormKind::Rms, eps), |l, il| {
        let attention = AttentionSpec {
            window: Some(window).filter(|_| windowed[il]),
            rope: Some(usize::from(windowed[il])).filter(|_| !(il + 1).is_multiple_of(UNROTATED)),
            ..normed_and_gated(l, &of, il, eps)?
        };
        let ffn = match il < leading {
            true => swiglu(l, &of, il)?,
            false => {
                let bias = l.weights.vector(&format!("blk.{il}.exp_probs_b.bias"), experts.routing.count)?;
                let routing = Routing { choice_bias: Some(bias), ..experts.routing.clone() };
                FfnPlan::Experts(ExpertsSpec { routing, ..experts.clone() })
            }
        };
        Ok(LayerPlan::new(attention, ffn))
    })
}

fn normed_and_gated(
    l: &mut Loader<'_>,
    sizes: &Sizes,
    il: usize,
    eps: f32,
) -> Result<AttentionSpec, ModelError> {
    let names = AttentionNames {
        rotated: ("Qcur_rope", "Kcur_rope"),
        attended: "attn_out",
        output: "attn_o_proj",
        ..AttentionNames::default()
    };
    let gate = Gate { per_head: false, names: ["attn_gate_proj", "attn_gate_sig", "attn_gated"] };
    let qk_norm = Some(head_norms(l, il, sizes.key_len, eps)?);
    Ok(AttentionSpec { qk_norm, gate: Some(gate), names, ..attention(sizes, il) })
}

fn experts(l: &mut Loader<'_>, sizes: &Sizes) -> Result<ExpertsSpec, ModelError> {
    let counts = l.required_experts(sizes)?;
    let routing = Routing::read(l, counts, Some(Score::Sigmoid))?;
    let ff = l.keys.required_size("expert_feed_forward_length")?;
    let shared = match l.keys.count("expert_shared_count")? {
        0 => None,
        networks => Some(shared(ff * networks, "ffn_shexp")),
    };
    Ok(ExpertsSpec { shared, ..ExpertsSpec::new(ff, Activation::SwiGlu, routing) })
}

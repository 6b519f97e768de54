//! `step35` (Step 3.5): as many heads as each layer says, a gate for each head, half of a head rotated in
//! layers that see everything, SwiGLU of limited values in some layers.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::observer::{NodeName, Numbered};
use super::super::parts::{
    Activation, AttentionNames, AttentionSpec, DenseSpec, Embedding, ExpertsSpec, Gate, NormKind, Rope,
    Routing, Score,
};
use super::stack::{
    EXP_PROBS_B, FfnPlan, HiddenRows, LayerPlan, Norms, attention, drafting_decoder, has_router, head_norms,
    limited_swiglu, rope, shared,
};
use crate::kernels::ops::RopeKind;

/// The residual stream as the next layer's input.
const STREAM: NodeName = NodeName { name: "attn_norm_in", numbered: Numbered::Next };
/// The same behind the last layer.
const STREAM_END: NodeName = NodeName { name: "h_nextn", numbered: Numbered::Not };

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    let window = Some(l.required_window()?);
    let windowed = l.required_window_pattern(&sizes)?;
    let mut networks = Networks::read(l, &sizes)?;
    let embedding = Embedding::scaled(l.token_embd(&sizes)?, None, STREAM);
    let ropes = ropes(l, &sizes, &windowed)?;
    let of = sizes.clone();
    let norms = (Norms::before(NormKind::Rms, eps), Some(HiddenRows::Plain));
    let mut decoder = drafting_decoder(l, sizes, ropes, embedding, norms, |l, il| {
        let spec = normed_and_gated(l, &of, il, eps)?;
        let attention = match windowed[il] {
            true => AttentionSpec { window, rope: Some(1), ..spec },
            false => spec,
        };
        Ok(LayerPlan::new(attention, networks.plan(l, &of, il)?))
    })?;
    decoder.layers.iter_mut().for_each(|layer| layer.out = STREAM);
    decoder.layers.iter_mut().last().expect("there is a layer").out = STREAM_END;
    Ok(decoder)
}

/// The rotation of layers that see everything, of half as many elements as the file says, and that of the
/// others, unscaled and with a base of its own. Factors are the former's alone, though the tensor has as many
/// as the widest of both takes.
fn ropes(l: &mut Loader<'_>, sizes: &Sizes, windowed: &[bool]) -> Result<Vec<Rope>, ModelError> {
    let mut full = rope(l, sizes, RopeKind::NeoX, false)?;
    let local = Rope::windowed(l, &full, sizes.key_len, 10000.0, false)?;
    full.params.n_dims /= 2;
    if full.params.n_dims == 0 || !full.params.n_dims.is_multiple_of(2) {
        let what = format!("is {}, half of which RoPE cannot pair", 2 * full.params.n_dims);
        return Err(l.keys.problem("rope.dimension_count", what));
    }
    let dims = |&windowed: &bool| if windowed { local.params.n_dims } else { full.params.n_dims };
    let widest = windowed[..sizes.layers].iter().map(dims).max().unwrap_or(0);
    full.load_factors(l, widest / 2, sizes.context)?;
    Ok(vec![full, local])
}

/// Attention with what there is of norms and of gates.
fn normed_and_gated(
    l: &mut Loader<'_>,
    sizes: &Sizes,
    il: usize,
    eps: f32,
) -> Result<AttentionSpec, ModelError> {
    let has = |part: &str| l.weights.contains(&format!("blk.{il}.{part}.weight"));
    let (norms, gated) = (has("attn_q_norm") || has("attn_k_norm"), has("attn_gate"));
    let names = AttentionNames {
        flat: true,
        rotated: ("Qcur_pos", "Kcur_pos"),
        attended: "attn_out",
        output: "attn_proj",
        ..AttentionNames::default()
    };
    let gate = Gate { per_head: true, names: ["attn_gate", "attn_gate_sigmoid", "attn_gated_3d"] };
    let qk_norm = if norms { Some(head_norms(l, il, sizes.key_len, eps)?) } else { None };
    Ok(AttentionSpec { qk_norm, gate: Some(gate).filter(|_| gated), names, ..attention(sizes, il) })
}

/// What the file says of all feed-forward networks.
struct Networks {
    experts: Option<ExpertsSpec>,
    shared_ff: Option<usize>,
    /// By block: of the experts, and of all other networks.
    activations: [Vec<Activation>; 2],
}

impl Networks {
    fn read(l: &mut Loader<'_>, sizes: &Sizes) -> Result<Networks, ModelError> {
        // The tensors say which layers have experts.
        l.keys.harmless(&["leading_dense_block_count", "moe_every_n_layers"]);
        let ff = l.keys.size("expert_feed_forward_length")?;
        let shared_ff = l.keys.size("expert_shared_feed_forward_length")?;
        let activations =
            [limited_swiglu(l, sizes, "swiglu_clamp_exp")?, limited_swiglu(l, sizes, "swiglu_clamp_shexp")?];
        let experts = match (l.experts(sizes)?, ff) {
            (Some(counts), Some(ff)) => {
                let routing = Routing::read(l, counts, Some(Score::Sigmoid))?;
                Some(ExpertsSpec::new(ff, Activation::SwiGlu, routing))
            }
            _ => None,
        };
        Ok(Networks { experts, shared_ff, activations })
    }

    /// Experts where there is a router.
    fn plan(&mut self, l: &mut Loader<'_>, sizes: &Sizes, il: usize) -> Result<FfnPlan, ModelError> {
        let [of_experts, of_others] = [0, 1].map(|i| self.activations[i][il]);
        if !has_router(l, il) {
            return Ok(FfnPlan::Dense(DenseSpec::new(sizes.dense_ff(&l.keys, il)?, of_others)));
        }
        let missing = |name: &str| l.keys.problem(name, "is 0 or missing");
        let experts = self.experts.clone().ok_or_else(|| missing("expert_feed_forward_length"))?;
        let shared_ff = self.shared_ff.ok_or_else(|| missing("expert_shared_feed_forward_length"))?;
        let mut shared = shared(shared_ff, "ffn_shared_out");
        shared.dense.activation = of_others;
        let routing = experts.routing.clone().biased(l, il, EXP_PROBS_B)?;
        Ok(FfnPlan::Experts(ExpertsSpec { routing, shared: Some(shared), activation: of_experts, ..experts }))
    }
}

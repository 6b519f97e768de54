//! `hunyuan-dense`, `hunyuan-moe` and `hy_v3`: norms of each head's queries and keys, behind the rotation in
//! the first two and before it in the last; experts with a shared network beside them.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{ExpertCounts, Loader, Sizes};
use super::super::parts::{
    Activation, AttentionSpec, DenseNames, DenseSpec, Embedding, ExpertsSpec, NormKind, QkNorm, Rope,
    Routing, Score,
};
use super::stack::{
    FfnPlan, HiddenRows, LayerPlan, Norms, attention, drafting_decoder, expert_sizes, head_norms, rope,
    shared, swiglu,
};
use crate::kernels::ops::RopeKind;

pub(super) fn load_dense(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    // One expert is none.
    l.keys.neutral("expert_count", &[0.0, 1.0])?;
    l.keys.harmless(&["expert_used_count"]);
    let mut rope = rope(l, &sizes, RopeKind::NeoX, false)?;
    stretch(l, &mut rope, sizes.key_len)?;
    load_with(l, sizes, rope, Kind::OLDER, |l, sizes, il| swiglu(l, sizes, il))
}

/// `rope.scaling.alpha`: the base grows by `alpha^(d / (d - 2))`, d being the length of a head.
fn stretch(l: &mut Loader<'_>, rope: &mut Rope, head: usize) -> Result<(), ModelError> {
    let name = "rope.scaling.alpha";
    let Some(alpha) = l.keys.factor(name)? else { return Ok(()) };
    // ggml's exponent is an f32.
    let exponent = head as f32 / (head as f32 - 2.0);
    let by = libm::pow(f64::from(alpha), f64::from(exponent)) as f32;
    let base = rope.params.base * by;
    match alpha > 0.0 && base > 0.0 && base.is_finite() {
        true => rope.params.base = base,
        false => return Err(l.keys.problem(name, format!("is {alpha}, which makes no rotation"))),
    }
    Ok(())
}

pub(super) fn load_experts(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let counts = l.required_experts(&sizes)?;
    // Experts are as long as `feed_forward_length` says, and the shared ones are one network.
    l.keys.harmless(&["expert_feed_forward_length", "expert_shared_count"]);
    l.keys.neutral("expert_gating_func", &[0.0, 1.0])?;
    l.keys.neutral("expert_weights_norm", &[1.0])?;
    let shared_ff = l.keys.count("expert_shared_feed_forward_length")?;
    let rope = rope(l, &sizes, RopeKind::NeoX, false)?;
    load_with(l, sizes, rope, Kind::OLDER, |l, sizes, il| {
        let ff = sizes.dense_ff(&l.keys, il)?;
        let routing = Routing::new(counts.count, counts.used, Score::Softmax).normalised();
        let shared = Some(shared(if shared_ff == 0 { ff } else { shared_ff }, "ffn_mlp"));
        Ok(FfnPlan::Experts(ExpertsSpec { shared, ..ExpertsSpec::new(ff, Activation::SwiGlu, routing) }))
    })
}

pub(super) fn load_v3(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let experts = expert_sizes(l, &sizes)?;
    let counts = ExpertCounts { count: experts.count, used: experts.used };
    let routing = Routing::read(l, counts, Some(Score::Sigmoid))?;
    let shared_ff = l.keys.size("expert_shared_feed_forward_length")?.unwrap_or(experts.ff);
    // A layer with a router has experts, and the shared ones are one network.
    l.keys.harmless(&["leading_dense_block_count", "expert_shared_count"]);
    let rope = rope(l, &sizes, RopeKind::NeoX, false)?;
    load_with(l, sizes, rope, Kind::V3, |l, sizes, il| {
        if !l.weights.contains(&format!("blk.{il}.ffn_gate_inp.weight")) {
            let names = DenseNames { output: "ffn_dense_out", ..DenseNames::default() };
            let spec = DenseSpec::new(sizes.dense_ff(&l.keys, il)?, Activation::SwiGlu);
            return Ok(FfnPlan::Dense(DenseSpec { names, ..spec }));
        }
        let spec =
            ExpertsSpec::new(experts.ff, Activation::SwiGlu, routing.clone().biased(l, il, "exp_probs_b")?);
        let shared = Some(shared(shared_ff, "ffn_shared_out"));
        Ok(FfnPlan::Experts(ExpertsSpec { shared, ..spec }))
    })
}

/// What differs between the generations.
struct Kind {
    norm_after_rope: bool,
    nextn: Option<HiddenRows>,
}

impl Kind {
    const OLDER: Kind = Kind { norm_after_rope: true, nextn: None };
    const V3: Kind = Kind { norm_after_rope: false, nextn: Some(HiddenRows::Normed) };
}

fn load_with(
    l: &mut Loader<'_>,
    sizes: Sizes,
    rope: Rope,
    Kind { norm_after_rope, nextn }: Kind,
    mut ffn: impl FnMut(&mut Loader<'_>, &Sizes, usize) -> Result<FfnPlan, ModelError>,
) -> Result<Decoder, ModelError> {
    let eps = l.rms_eps()?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let of = sizes.clone();
    let norms = (Norms::before(NormKind::Rms, eps), nextn);
    drafting_decoder(l, sizes, vec![rope], embedding, norms, |l, il| {
        let norms = head_norms(l, il, of.key_len, eps)?.named("Qcur_norm", "Kcur_norm");
        let qk_norm = Some(QkNorm { after_rope: norm_after_rope, ..norms });
        let attention = AttentionSpec { qk_norm, ..attention(&of, il) };
        Ok(LayerPlan::new(attention, ffn(l, &of, il)?))
    })
}

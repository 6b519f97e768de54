//! `mamba`: layers of Mamba's block alone. `jamba`: the same in most layers, attention without a rotation in
//! the others, a network or experts in each.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, AttentionNames, AttentionSpec, Embedding, ExpertsSpec, Mamba, MambaSpec, NormKind, Routing,
    Score, StepNorms,
};
use super::stack::{FfnPlan, LayerPlan, Norms, checked_attention, decoder, has_router, swiglu};

/// What ggml calls the outputs of Jamba's mixing steps, which it gives to the sum elsewhere.
const MIXED: &str = "ffn_inp";

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read_mixed(l)?;
    let eps = l.rms_eps()?;
    let norms = match l.keys.flag("ssm.dt_b_c_rms")?.unwrap_or(false) {
        true => StepNorms::Plain,
        false => StepNorms::None,
    };
    let embd = sizes.embd;
    let mamba = MambaSpec::read(l, embd, eps, (norms, "mamba_out"))?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let norms = Norms::before(NormKind::Rms, eps);
    decoder(l, sizes, Vec::new(), embedding, norms, |l, il| {
        Ok(LayerPlan::with(Mamba::load(l, il, embd, mamba)?, FfnPlan::Nothing))
    })
}

pub(super) fn load_jamba(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read_mixed(l)?;
    let eps = l.rms_eps()?;
    // Nothing is rotated.
    l.keys.harmless(&["rope.dimension_count", "rope.freq_base"]);
    let mamba = MambaSpec::read(l, sizes.embd, eps, (StepNorms::Weighted, MIXED))?;
    let experts = l.experts(&sizes)?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let of = sizes.clone();
    let norms = Norms::before(NormKind::Rms, eps);
    let mut decoder = decoder(l, sizes, Vec::new(), embedding, norms, |l, il| {
        let ffn = match experts.filter(|_| has_router(l, il)) {
            Some(experts) => {
                let routing = Routing::new(experts.count, experts.used, Score::Softmax);
                let ff = of.dense_ff(&l.keys, il)?;
                FfnPlan::Experts(ExpertsSpec::new(ff, Activation::SwiGlu, routing))
            }
            None => swiglu(l, &of, il)?,
        };
        if of.kv_heads[il] == 0 {
            return Ok(LayerPlan::with(Mamba::load(l, il, of.embd, mamba)?, ffn));
        }
        let spec = checked_attention(l, &of, il)?;
        if spec.heads * spec.key_len != of.embd || spec.value_len != spec.key_len {
            let (heads, len) = (spec.heads, spec.key_len);
            let what = format!("is {heads} in layer {il}, where {heads} of {len} are to make {}", of.embd);
            return Err(l.keys.problem("attention.head_count", what));
        }
        let names = AttentionNames { output: MIXED, ..AttentionNames::default() };
        Ok(LayerPlan::new(AttentionSpec { rope: None, names, ..spec }, ffn))
    })?;
    decoder.layers.iter_mut().for_each(|layer| layer.middle = "ffn_residual");
    Ok(decoder)
}

//! `deepseek4` (DeepSeek V4): hyper-connections between four residual streams, attention over a window and
//! compressed keys, of which an indexer chooses in some layers, experts chosen by the token itself in the
//! first layers.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, Compressed, CompressedSpec, Compression, DenseSpec, Embedding, ExpertsSpec, HyperSpec,
    NormKind, Rope, RopeSpec, Routing, RowIndexing, Score, SharedSpec, ln,
};
use super::stack::{EXP_PROBS_B, FfnPlan, LayerPlan, Norms, hyper_decoder, shared};
use crate::kernels::ops::RopeKind;

/// Positions of a compressed key: of those that an indexer chooses from, and of those that are all attended
/// to.
const CHOSEN: usize = 4;
const WHOLE: usize = 128;
/// The rotations of layers without compressed keys and with them.
const PLAIN: usize = 0;
const STRETCHED: usize = 1;
/// The least that bounds values.
const LEAST_LIMIT: f32 = 1e-6;

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    check_heads(l, &sizes)?;
    let ropes = load_ropes(l, &sizes)?;
    let attention = attention(l, &sizes, &ropes[STRETCHED], eps)?;
    let networks = Networks::read(l, &sizes)?;
    let hyper = HyperSpec::read(l, eps)?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let (norms, sums) = (Norms::before(NormKind::Rms, eps), ["hc_attn_post", "l_last"]);
    let (of, of_layers) = (sizes.clone(), ropes.clone());
    hyper_decoder(l, sizes, ropes, embedding, norms, (hyper, sums), |l, il| {
        let spec = attention[il].clone();
        let mixer = Compressed::load(l, il, of.embd, &of_layers[spec.rope], spec)?;
        Ok(LayerPlan::with(mixer, FfnPlan::Experts(networks.of(l, &of, il)?)))
    })
}

/// One head of keys, which are values as well; as many heads of queries in every layer.
fn check_heads(l: &Loader<'_>, sizes: &Sizes) -> Result<(), ModelError> {
    if let Some(il) = sizes.kv_heads.iter().position(|&n| n != 1) {
        let what = format!("is {} in layer {il}, where 1 is needed", sizes.kv_heads[il]);
        return Err(l.keys.problem("attention.head_count_kv", what));
    }
    if sizes.heads.iter().any(|&n| n != sizes.heads[0]) {
        return Err(l.keys.problem("attention.head_count", "differs from layer to layer"));
    }
    if sizes.value_len != sizes.key_len {
        let what = format!("is {}, where keys of {} are values as well", sizes.value_len, sizes.key_len);
        return Err(l.keys.problem("attention.value_length", what));
    }
    Ok(())
}

/// The rotation of layers without compressed keys, which is not scaled, and that of the others. YaRN's gain
/// on cosines and sines is taken out.
fn load_ropes(l: &mut Loader<'_>, sizes: &Sizes) -> Result<Vec<Rope>, ModelError> {
    l.keys.neutral("rope.scaling.attn_factor", &[0.0, 1.0])?;
    // A factor on that gain.
    l.keys.harmless(&["rope.scaling.yarn_log_multiplier"]);
    let spec =
        RopeSpec { kind: RopeKind::Norm, key_len: sizes.key_len, factors: false, context: sizes.context };
    let mut stretched = Rope::load_with(l, spec, |_, _| Ok(1.0))?;
    let plain = stretched.unscaled();
    let name = "attention.compress_rope_freq_base";
    stretched.params.base = match l.keys.float(name)? {
        Some(base) if base > 0.0 => base,
        Some(base) => return Err(l.keys.problem(name, format!("is {base}, where more than 0 is needed"))),
        None => return Err(l.keys.problem(name, "is missing")),
    };
    let turns = stretched.params.yarn.is_some_and(|yarn| yarn.ext_factor != 0.0);
    let gain = if turns { 1.0 + 0.1 * ln(1.0 / stretched.params.freq_scale) } else { 1.0 };
    stretched.params.attn_factor = 1.0 / gain;
    Ok(vec![plain, stretched])
}

/// What each layer's attention is.
fn attention(
    l: &mut Loader<'_>,
    sizes: &Sizes,
    rope: &Rope,
    eps: f32,
) -> Result<Vec<CompressedSpec>, ModelError> {
    let (heads, rotated) = (sizes.heads[0], rope.params.n_dims);
    let groups = l.keys.required_size("attention.output_group_count")?;
    if !heads.is_multiple_of(groups) {
        let what = format!("is {groups}, which does not divide {heads} heads");
        return Err(l.keys.problem("attention.output_group_count", what));
    }
    let spec = CompressedSpec {
        heads,
        len: sizes.key_len,
        rotated,
        q_rank: l.keys.required_size("attention.q_lora_rank")?,
        groups,
        out_rank: l.keys.required_size("attention.output_lora_rank")?,
        window: l.required_window()?,
        rope: PLAIN,
        eps,
        compression: None,
    };
    let indexing = indexing(l, rotated)?;
    let name = "attention.compress_ratios";
    let ratios = l.keys.leading_counts(name, sizes.blocks)?;
    let compression = |(il, ratio)| match ratio {
        0 => Ok(None),
        CHOSEN => Ok(Some(Compression { ratio, indexing: Some(indexing) })),
        WHOLE => Ok(Some(Compression { ratio, indexing: None })),
        ratio => Err(l.keys.unsupported(name, format!("{ratio} in layer {il}"))),
    };
    let layers = ratios.into_iter().take(sizes.layers).enumerate().map(compression);
    layers
        .map(|compression| {
            let compression = compression?;
            let rope = if compression.is_some() { STRETCHED } else { PLAIN };
            Ok(CompressedSpec { rope, compression, ..spec.clone() })
        })
        .collect()
}

/// The keys `attention.indexer.*`.
fn indexing(l: &mut Loader<'_>, rotated: usize) -> Result<RowIndexing, ModelError> {
    let keys = &mut l.keys;
    let heads = keys.required_size("attention.indexer.head_count")?;
    let len = keys.required_size("attention.indexer.key_length")?;
    let count = keys.required_size("attention.indexer.top_k")?;
    if !len.is_multiple_of(64) {
        let what = format!("is {len}, where a multiple of 64 is needed");
        return Err(keys.problem("attention.indexer.key_length", what));
    }
    if rotated > len {
        return Err(
            keys.problem("attention.indexer.key_length", format!("is {len}, where {rotated} are rotated"))
        );
    }
    Ok(RowIndexing { heads, len, count, spread: 1 << len.trailing_zeros() })
}

/// Experts with a network beside them, of limited values.
struct Networks {
    ff: usize,
    shared_ff: usize,
    routing: Routing,
    /// Layers whose tokens have experts of their own: the first so many.
    by_token: usize,
    /// Of each block.
    limits: Vec<f32>,
    shared_limits: Vec<f32>,
}

impl Networks {
    fn read(l: &mut Loader<'_>, sizes: &Sizes) -> Result<Networks, ModelError> {
        let counts = l.required_experts(sizes)?;
        let ff = l.keys.required_size("expert_feed_forward_length")?;
        let shared_ff = ff * l.keys.required_size("expert_shared_count")?;
        let missing = |l: &Loader<'_>, name: &str| l.keys.problem(name, "is missing");
        if l.keys.flag("expert_weights_norm")?.is_none() {
            return Err(missing(l, "expert_weights_norm"));
        }
        if l.keys.float("expert_weights_scale")?.is_none() {
            return Err(missing(l, "expert_weights_scale"));
        }
        let routing = Routing::read(l, counts, None)?;
        if routing.score != Score::SqrtSoftplus {
            let found = l.keys.count("expert_gating_func")?;
            return Err(l.keys.unsupported("expert_gating_func", found));
        }
        let by_token = l.keys.counts("hash_layer_count", 1)?;
        let by_token = by_token.ok_or_else(|| missing(l, "hash_layer_count"))?[0];
        let limits = l.keys.floats("swiglu_clamp_exp", sizes.blocks)?;
        let limits = limits.ok_or_else(|| missing(l, "swiglu_clamp_exp"))?;
        let shared_limits = l.keys.floats("swiglu_clamp_shexp", sizes.blocks)?;
        let shared_limits = shared_limits.unwrap_or_else(|| limits.clone());
        Ok(Networks { ff, shared_ff, routing, by_token, limits, shared_limits })
    }

    fn of(&self, l: &mut Loader<'_>, sizes: &Sizes, il: usize) -> Result<ExpertsSpec, ModelError> {
        let name = |part: &str| format!("blk.{il}.{part}");
        // For images.
        l.weights.leave_aside([name("exp_probs_b_vl.bias")]);
        let routing = match il < self.by_token {
            true => {
                let dims = [self.routing.used, sizes.vocab];
                let table = l.weights.table(&name("ffn_gate_tid2eid.weight"), &dims, self.routing.count)?;
                Routing { by_token: Some(table), ..self.routing.clone() }
            }
            false => self.routing.clone().with_bias(l, il, EXP_PROBS_B)?,
        };
        let beside = shared(self.shared_ff, "ffn_shexp");
        let dense = DenseSpec { activation: limited(self.shared_limits[il]), ..beside.dense };
        let shared = Some(SharedSpec { dense, ..beside });
        Ok(ExpertsSpec { shared, ..ExpertsSpec::new(self.ff, limited(self.limits[il]), routing) })
    }
}

/// SwiGLU of values within a limit, where there is one.
pub(super) fn limited(limit: f32) -> Activation {
    if limit > LEAST_LIMIT { Activation::SwiGluLimited { limit } } else { Activation::SwiGlu }
}

//! `minimax-01`: lightning attention, and attention in every eighth layer. `minimax-m2`: norms over all heads
//! of queries and of keys, experts of which a bias decides. `minimax-m3`: norms of each head, a network
//! beside the experts, dense layers before them; behind these, attention to chosen blocks of positions.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, AttentionNames, AttentionSpec, BlocksSpec, ChoiceSpec, DenseSpec, Embedding, ExpertsSpec,
    Lightning, LightningSpec, Norm, NormKind, QkNorm, Rope, Routing, Score, SharedSpec,
};
use super::qwen35::recurrent_layers;
use super::stack::{EXP_PROBS_B, FfnPlan, LayerPlan, Norms, attention, decoder, head_norms, rope, shared};
use crate::kernels::ops::RopeKind;

/// One layer in so many has attention, where the file does not say.
const FULL_ATTENTION_INTERVAL: usize = 8;

pub(super) fn load_01(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    let Some(residual) = l.keys.float("residual_scale")? else {
        return Err(l.keys.problem("residual_scale", "is missing"));
    };
    let lightning_layers = recurrent_layers(l, &sizes, FULL_ATTENTION_INTERVAL)?;
    if sizes.heads.iter().any(|&n| n != sizes.heads[0]) {
        return Err(l.keys.problem("attention.head_count", "differs from layer to layer"));
    }
    if sizes.value_len != sizes.key_len {
        let what = format!("is {}, where keys have {}", sizes.value_len, sizes.key_len);
        return Err(l.keys.problem("attention.value_length", what));
    }
    let lightning = LightningSpec::new(l, sizes.heads[0], sizes.key_len, sizes.layers, eps)?;
    let experts = l.required_experts(&sizes)?;
    let routing = Routing::new(experts.count, experts.used, Score::Softmax).normalised();
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let ropes = vec![rope(l, &sizes, RopeKind::NeoX, false)?];
    let of = sizes.clone();
    let mut decoder = decoder(l, sizes, ropes, embedding, Norms::before(NormKind::Rms, eps), |l, il| {
        let ff = of.dense_ff(&l.keys, il)?;
        let ffn = FfnPlan::Experts(ExpertsSpec::new(ff, Activation::SwiGlu, routing.clone()));
        Ok(match lightning_layers[il] {
            true => LayerPlan::with(Lightning::load(l, il, of.embd, lightning)?, ffn),
            false => LayerPlan::new(attention(&of, il), ffn),
        })
    })?;
    decoder.layers.iter_mut().for_each(|layer| layer.normed_residual = Some(residual));
    Ok(decoder)
}

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
            k: Some(norm("attn_k_norm", "Kcur_normed", spec.kv_heads)?),
            after_rope: false,
        });
        let names = AttentionNames { flat: true, ..AttentionNames::default() };
        let attention = AttentionSpec { qk_norm, names, ..spec };
        let ff = of.dense_ff(&l.keys, il)?;
        let spec = ExpertsSpec::new(ff, Activation::SwiGlu, routing.clone().with_bias(l, il, EXP_PROBS_B)?);
        Ok(LayerPlan::new(attention, FfnPlan::Experts(spec)))
    })
}

/// gpt-oss' activation with the numbers that llama.cpp has for it.
const ACTIVATION: Activation = Activation::SwiGluOai { alpha: 1.702, limit: 7.0 };

pub(super) fn load_m3(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    let dense_layers = l.keys.count("leading_dense_block_count")?;
    let counts = l.required_experts(&sizes)?;
    let routing = Routing::read(l, counts, None)?;
    let ff = l.keys.required_size("expert_feed_forward_length")?;
    let shared_ff = ff * l.keys.required_size("expert_shared_count")?;
    let rope = rope(l, &sizes, RopeKind::NeoX, false)?;
    let blocks = blocks(l, &rope, eps)?;
    if let Some(il) = (dense_layers..sizes.layers).find(|&il| sizes.kv_heads[il] != blocks.heads) {
        let what = format!("is {}, where {} choose blocks in layer {il}", blocks.heads, sizes.kv_heads[il]);
        return Err(l.keys.problem("attention.indexer.head_count", what));
    }
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let of = sizes.clone();
    decoder(l, sizes, vec![rope], embedding, Norms::before(NormKind::Rms, eps), |l, il| {
        let qk_norm = Some(head_norms(l, il, of.key_len, eps)?);
        let attention = AttentionSpec { qk_norm, ..attention(&of, il) };
        if il < dense_layers {
            let dense = DenseSpec::new(of.dense_ff(&l.keys, il)?, ACTIVATION);
            return Ok(LayerPlan::new(attention, FfnPlan::Dense(dense)));
        }
        let attention = AttentionSpec { choice: Some(ChoiceSpec::Blocks(blocks)), ..attention };
        let routing = routing.clone().with_bias(l, il, EXP_PROBS_B)?;
        let beside = shared(shared_ff, "ffn_shexp");
        let dense = DenseSpec { activation: ACTIVATION, ..beside.dense };
        let shared = Some(SharedSpec { dense, ..beside });
        let spec = ExpertsSpec { shared, ..ExpertsSpec::new(ff, ACTIVATION, routing) };
        Ok(LayerPlan::new(attention, FfnPlan::Experts(spec)))
    })
}

/// The keys `attention.indexer.*`.
fn blocks(l: &mut Loader<'_>, rope: &Rope, eps: f32) -> Result<BlocksSpec, ModelError> {
    let keys = &mut l.keys;
    let len = keys.required_size("attention.indexer.key_length")?;
    let spec = BlocksSpec {
        heads: keys.required_size("attention.indexer.head_count")?,
        len,
        block: keys.required_size("attention.indexer.block_size")?,
        count: keys.required_size("attention.indexer.top_k")?,
        local: keys.count("attention.indexer.local_blocks")?,
        eps,
    };
    if !len.is_multiple_of(16) || rope.params.n_dims > len {
        let what = format!("is {len}, where a multiple of 16 of at least {} is needed", rope.params.n_dims);
        return Err(keys.problem("attention.indexer.key_length", what));
    }
    if spec.local > spec.count {
        let what = format!("is {}, where {} are chosen", spec.local, spec.count);
        return Err(keys.problem("attention.indexer.local_blocks", what));
    }
    Ok(spec)
}

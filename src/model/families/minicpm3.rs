//! `minicpm3` and `plm`: latent attention whose keys and values are made whole, in dense models.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, DenseSpec, Embedding, Latent, LatentNames, LatentSpec, NormKind, Rope,
};
use super::stack::{FfnPlan, LayerPlan, Norms, decoder, rope};
use crate::kernels::ops::RopeKind;

/// Factors that llama.cpp has as constants.
const EMBEDDING_SCALE: f32 = 12.0;
const DEPTH_SCALE: f32 = 1.4;
const LOGIT_BASE: f32 = 256.0;

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let rank = l.keys.required_size("attention.q_lora_rank")?;
    let mut rope = rope(l, &sizes, RopeKind::NeoX, false)?;
    rope.load_factors(l, rope.params.n_dims / 2, sizes.context)?;
    let scale = LOGIT_BASE / sizes.embd as f32;
    let residual = DEPTH_SCALE / (sizes.layers as f32).sqrt();
    let matrix = l.token_embd(&sizes)?;
    let embedding = Embedding::scaled(matrix, Some(EMBEDDING_SCALE), "inp_scaled");
    let mut decoder = load_with(l, sizes, rope, embedding, Some(rank), Activation::SwiGlu)?;
    decoder.layers.iter_mut().for_each(|layer| layer.residual_scale = Some(residual));
    decoder.head.scale = Some(scale);
    Ok(decoder)
}

pub(super) fn load_plm(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let rope = rope(l, &sizes, RopeKind::Norm, false)?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    load_with(l, sizes, rope, embedding, None, Activation::ReluSquared)
}

fn load_with(
    l: &mut Loader<'_>,
    sizes: Sizes,
    rope: Rope,
    embedding: Embedding,
    q_rank: Option<usize>,
    activation: Activation,
) -> Result<Decoder, ModelError> {
    let eps = l.rms_eps()?;
    let latent = l.keys.required_size("attention.kv_lora_rank")?;
    let rotated = rope.params.n_dims;
    if sizes.key_len <= rotated {
        let what = format!("is {}, of which {rotated} are rotated", sizes.key_len);
        return Err(l.keys.problem("attention.key_length", what));
    }
    if let Some(il) = (0..sizes.layers).find(|&il| sizes.kv_heads[il] != sizes.heads[il]) {
        let what = format!("is {} in layer {il}, where {} is needed", sizes.kv_heads[il], sizes.heads[il]);
        return Err(l.keys.problem("attention.head_count_kv", what));
    }
    let names = LatentNames {
        low_q: "q",
        low_q_norm: None,
        q: "q",
        low_kv: "kv_pe_compresseed", // as llama.cpp spells it
        latent: "kv_compressed",
        whole: ["q_states", "k_states", "v_states"],
        ..LatentNames::default()
    };
    let of = sizes.clone();
    decoder(l, sizes, vec![rope], embedding, Norms::before(NormKind::Rms, eps), |l, il| {
        let spec = LatentSpec {
            heads: of.heads[il],
            q_rank,
            latent,
            nope: of.key_len - rotated,
            rope: rotated,
            rotated: true,
            value_len: of.value_len,
            absorbed: false,
            scale: 1.0 / (of.key_len as f32).sqrt(),
            temperature: None,
            sinks: false,
            gate: None,
            eps,
            names,
            indexing: None,
        };
        let dense = DenseSpec::new(of.dense_ff(&l.keys, il)?, activation);
        Ok(LayerPlan::with(Latent::load(l, il, of.embd, spec)?, FfnPlan::Dense(dense)))
    })
}

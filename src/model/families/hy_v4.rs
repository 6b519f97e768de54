//! `hy_v4` (Hunyuan 4): hyper-connections that leave their streams apart, latent attention with sinks and a
//! gate, to positions that an indexer chooses, which layers may share; dense networks, then experts of
//! limited values with a network beside them.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Embedding, Gate, HyperSpec, IndexNames, IndexingSpec, Latent, LatentNames, LatentSpec, NormKind,
};
use super::deepseek::{Heads, Networks, first_has_its_own, own_indexers};
use super::deepseek4::limited;
use super::stack::{FfnPlan, LayerPlan, Norms, hyper_decoder, rope};
use crate::kernels::ops::RopeKind;

/// Most nodes of the indexer, of the gate and of what is of low rank have no name in ggml.
const GATE: Gate = Gate { per_head: false, names: ["attn_gate", "attn_gate_sigmoid", "attn_gated"] };
const INDEXER: IndexNames = IndexNames {
    q: ["indexer_q_b", "indexer_q"],
    k: ["indexer_k_a", "indexer_k_norm", "indexer_k"],
    weights: ["indexer_weights"; 2],
};

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    let rope = rope(l, &sizes, RopeKind::Norm, false)?;
    let rotated = rope.params.n_dims;
    let heads = Heads::read_absorbed(l, &sizes, rotated)?;
    let indexing = indexing(l, &sizes, rotated, eps)?;
    let networks = Networks::read(l, &sizes, None)?;
    // Neither of dense networks nor of the one beside the experts.
    let limits = l.keys.floats("swiglu_clamp_exp", sizes.blocks)?;
    let hyper = HyperSpec::read_apart(l, eps)?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let (norms, sums) = (Norms::before(NormKind::Rms, eps), ["hc_attn_out", "l_out"]);
    let of = sizes.clone();
    hyper_decoder(l, sizes, vec![rope], embedding, norms, (hyper, sums), |l, il| {
        let spec = LatentSpec {
            heads: of.heads[il],
            q_rank: heads.q_rank,
            latent: heads.latent,
            nope: heads.key_len - rotated,
            rope: rotated,
            rotated: true,
            value_len: heads.value_len,
            absorbed: true,
            scale: 1.0 / (heads.key_len as f32).sqrt(),
            temperature: None,
            sinks: true,
            gate: Some(GATE),
            eps,
            names: LatentNames { attended: "attn_kqv", ..LatentNames::default() },
            indexing: indexing.as_ref().map(|indexing| indexing[il]),
        };
        let mut ffn = networks.of(l, &of, il)?;
        if let (FfnPlan::Experts(experts), Some(limits)) = (&mut ffn, &limits) {
            experts.activation = limited(limits[il]);
        }
        Ok(LayerPlan::with(Latent::load(l, il, of.embd, spec)?, ffn))
    })
}

/// The keys `attention.indexer.*`; a model may have no indexer.
fn indexing(
    l: &mut Loader<'_>,
    sizes: &Sizes,
    rotated: usize,
    eps: f32,
) -> Result<Option<Vec<IndexingSpec>>, ModelError> {
    let count = l.keys.count("attention.indexer.top_k")?;
    if count == 0 {
        let unused = ["head_count", "key_length", "types"].map(|part| format!("attention.indexer.{part}"));
        l.keys.harmless(&unused.each_ref().map(String::as_str));
        return Ok(None);
    }
    let heads = l.keys.required_size("attention.indexer.head_count")?;
    let len = l.keys.required_size("attention.indexer.key_length")?;
    if !len.is_multiple_of(16) || len <= rotated {
        let what = format!("is {len}, where a multiple of 16 above {rotated} is needed");
        return Err(l.keys.problem("attention.indexer.key_length", what));
    }
    let own = own_indexers(l, sizes, None)?;
    first_has_its_own(l, &own, 0)?;
    let spec = IndexingSpec {
        heads,
        len,
        rotation: Some((RopeKind::Norm, len - rotated)),
        // An orthonormal transform of queries and keys alike changes no score.
        spread: false,
        pool: 1,
        count,
        eps,
        shared: false,
        names: INDEXER,
    };
    Ok(Some(own.into_iter().map(|own| IndexingSpec { shared: !own, ..spec }).collect()))
}

//! `qwen4exp` (Qwen 4, experimental): gated connections between several residual streams in the place of
//! norms, gated delta nets, in some layers attention to chosen pools of positions, embeddings of n-grams in one
//! layer, experts beside a shared network.

use super::super::ModelError;
use super::super::cut::Place;
use super::super::decoder::{Decoder, FeedForward, Layer};
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Attention, AttentionSpec, ChoiceSpec, DeltaNet, DeltaNetSpec, Embedding, Experts, ExpertsSpec,
    GatedConnections, GatedSpec, GatedStreams, Merged, Mixer, Ngrams, NgramsSpec, PoolsSpec, Rope, Streams,
};
use super::qwen35::{FULL_ATTENTION_INTERVAL, delta_net, experts, normed_and_gated, recurrent_layers};
use super::stack::{FfnPlan, rope};
use crate::kernels::ops::{HeadMap, RopeKind};

/// The input of both blocks of a layer.
const INPUT: &str = "hc_mixed";
/// Tensors of attention that Qwen 3.5 may have.
const UNUSED: &[&str] = &["attn_qkv.weight", "attn_q.bias", "attn_k.bias", "attn_v.bias"];

/// What layers are made of.
struct Layers {
    sizes: Sizes,
    eps: f32,
    connections: GatedSpec,
    delta_net: DeltaNetSpec,
    /// Of each block, whether it has a delta net, and how its attention chooses.
    recurrent: Vec<bool>,
    pools: Vec<Option<PoolsSpec>>,
    ngrams: Option<NgramsSpec>,
}

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let sections = l.rope_sections()?;
    let sections = sections.ok_or_else(|| l.keys.problem("rope.dimension_sections", "is missing"))?;
    let rope = rope(l, &sizes, RopeKind::NeoX, false)?.of_text(&sections, true);
    let of = Layers::read(l, sizes, &rope)?;
    let embedding = Embedding::scaled(l.token_embd(&of.sizes)?, None, "model.input_embed");
    let mut ffn = experts();
    let mut layers = Vec::with_capacity(of.sizes.layers);
    for il in 0..of.sizes.layers {
        l.enter(Place::Layer(il));
        layers.push(of.layer(l, il, &mut ffn)?);
    }
    l.enter(Place::End);
    let Layers { sizes, connections, .. } = of;
    let streams: Option<Box<dyn Streams>> = Some(Box::new(GatedStreams::load(l, &sizes, connections)?));
    let head = l.head_without_norm(&sizes, &embedding)?;
    let memories = std::mem::take(&mut l.memories);
    Ok(Decoder {
        sizes,
        ropes: vec![rope],
        embedding,
        per_layer: None,
        streams,
        layers,
        mixture: None,
        head,
        nextn: None,
        memories,
    })
}

impl Layers {
    fn read(l: &mut Loader<'_>, sizes: Sizes, rope: &Rope) -> Result<Layers, ModelError> {
        let eps = l.rms_eps()?;
        if sizes.value_len != sizes.key_len {
            let what = format!("is {}, where keys and their gates have {}", sizes.value_len, sizes.key_len);
            return Err(l.keys.problem("attention.value_length", what));
        }
        let recurrent = recurrent_layers(l, &sizes, FULL_ATTENTION_INTERVAL)?;
        let ngrams = NgramsSpec::read(l, &sizes, eps)?;
        if let Some(ngrams) = ngrams.as_ref().filter(|ngrams| !recurrent[ngrams.layer]) {
            let what = format!("is {}, which is no layer with a delta net", ngrams.layer);
            return Err(l.keys.problem("ple.layers", what));
        }
        let connections = GatedSpec::read(l, eps)?;
        let delta_net = DeltaNetSpec { sigmoid: true, ..delta_net(l, eps, HeadMap::Tiled)? };
        let pools = pools(l, &sizes, rope, eps)?;
        Ok(Layers { sizes, eps, connections, delta_net, recurrent, pools, ngrams })
    }

    /// A layer's weights, in the order of a pass.
    fn layer(
        &self,
        l: &mut Loader<'_>,
        il: usize,
        ffn: &mut impl FnMut(&mut Loader<'_>, &Sizes, usize) -> Result<FfnPlan, ModelError>,
    ) -> Result<Layer, ModelError> {
        let Layers { sizes, connections, ngrams, .. } = self;
        let ngrams = match ngrams {
            Some(ngrams) if ngrams.layer == il => {
                Some(Ngrams::load(l, sizes, connections.count, ngrams.clone())?)
            }
            _ => None,
        };
        let mut streams = GatedConnections::load(l, il, sizes, *connections, ngrams)?;
        let mixer = self.mixer(l, il)?;
        streams.load_network(l, il, sizes.embd)?;
        let FfnPlan::Experts(spec) = ffn(l, sizes, il)? else { unreachable!("every layer has experts") };
        let experts = Experts::load(l, il, sizes.embd, ExpertsSpec { input: INPUT, ..spec })?;
        Ok(Layer {
            attn_norm: None,
            mixer: Some(mixer),
            attn_post_norm: None,
            ffn_norm: None,
            ffn: Some(FeedForward::Experts(Box::new(experts))),
            ffn_post_norm: None,
            residual_scale: None,
            normed_residual: None,
            parallel: false,
            middle: "hc_combine",
            out: "l_last".into(),
            tail: None,
            streams: Some(Box::new(streams)),
            earlier: None,
        })
    }

    fn mixer(&self, l: &mut Loader<'_>, il: usize) -> Result<Box<dyn Mixer>, ModelError> {
        let embd = self.sizes.embd;
        if self.recurrent[il] {
            let merged = Merged { projections: false, strengths: false };
            return Ok(Box::new(DeltaNet::load(l, il, embd, self.delta_net, merged)?));
        }
        // Loaded by ggml, and left out of its graph.
        l.refuse(il, UNUSED)?;
        let pools = self.pools[il];
        if pools.is_none() {
            // All positions are attended to.
            l.weights.leave_all_aside(&format!("blk.{il}.indexer."));
        }
        let spec = normed_and_gated(l, &self.sizes, il, self.eps)?;
        let spec = AttentionSpec { choice: pools.map(ChoiceSpec::Pools), ..spec };
        Ok(Box::new(Attention::load(l, il, embd, spec)?))
    }
}

/// How each block chooses, where it does: the keys `attention.indexer.*` and `attention.compress_ratios`, the
/// positions of a pool in each, or 0.
fn pools(
    l: &mut Loader<'_>,
    sizes: &Sizes,
    rope: &Rope,
    eps: f32,
) -> Result<Vec<Option<PoolsSpec>>, ModelError> {
    let (ratio_key, top_key) = ("attention.compress_ratios", "attention.indexer.top_k");
    let keys = &mut l.keys;
    let heads = keys.required_size("attention.indexer.head_count")?;
    let len = keys.required_size("attention.indexer.key_length")?;
    let positions = keys.required_size(top_key)?;
    let ratios = keys.counts(ratio_key, sizes.blocks)?.unwrap_or_else(|| vec![0; sizes.blocks]);
    let Some(&pool) = ratios.iter().find(|&&ratio| ratio > 0) else {
        return Ok(vec![None; sizes.blocks]);
    };
    if let Some(other) = ratios.iter().find(|&&ratio| ratio > 0 && ratio != pool) {
        return Err(keys.problem(ratio_key, format!("holds {pool} and {other}, where all are 0 or the same")));
    }
    if pool == 1 || !positions.is_multiple_of(pool) {
        let what = format!("is {positions}, where pools of {pool} are chosen: more than 1 that divide it");
        return Err(keys.problem(top_key, what));
    }
    if !len.is_multiple_of(16) || rope.params.n_dims > len {
        let what = format!("is {len}, where a multiple of 16 of at least {} is needed", rope.params.n_dims);
        return Err(keys.problem("attention.indexer.key_length", what));
    }
    let count = positions / pool;
    let spec = PoolsSpec { heads, len, pool, count, rope: (rope.kind, rope.params), eps, input: INPUT };
    Ok(ratios.into_iter().map(|ratio| (ratio > 0).then_some(spec)).collect())
}

//! The families of DeepSeek with latent attention: `deepseek2` (V2, V3, R1, Kimi K2, Mistral Large 3,
//! GLM-4.7-Flash), `mistral4`; with an indexer `deepseek32` (V3.2) and `glm-dsa` (GLM 5). Experts with a
//! network beside them, after some dense layers.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::keys::Keys;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, Embedding, ExpertsSpec, IndexNames, IndexingSpec, Latent, LatentNames, LatentSpec, NormKind,
    Rope, RopeSpec, Routing, Score, Temperature, ln, yarn_gain,
};
use super::stack::{EXP_PROBS_B, FfnPlan, HiddenRows, LayerPlan, Norms, drafting_decoder, shared, swiglu};
use crate::kernels::ops::RopeKind;

pub(super) fn load_2(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let names = LatentNames::default();
    load_latent(l, Variant { names, gain: Gain::Evened, score: None, indexers: None, drafts: true })
}

pub(super) fn load_mistral4(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let names = LatentNames::default();
    load_latent(l, Variant { names, gain: Gain::Divided, score: None, indexers: None, drafts: false })
}

pub(super) fn load_32(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    if l.keys.count("expert_gating_func")? == 0 {
        return Err(l.keys.problem("expert_gating_func", "is 0 or missing"));
    }
    let names = LatentNames { low_q: "qr", ..LatentNames::default() };
    let indexers = Some(every_indexer as Indexers);
    load_latent(l, Variant { names, gain: Gain::Divided, score: None, indexers, drafts: true })
}

pub(super) fn load_glm_dsa(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let names = LatentNames { low_q: "qr", ..LatentNames::default() };
    let indexers = Some(some_indexers as Indexers);
    load_latent(l, Variant { names, gain: Gain::Plain, score: Some(Score::Sigmoid), indexers, drafts: true })
}

/// What YaRN's multiplier of the logarithm does.
#[derive(Clone, Copy, PartialEq)]
enum Gain {
    /// Nothing: the family has none.
    Plain,
    /// Scores are scaled by its gain, cosines and sines divided by it.
    Divided,
    /// The same, with cosines and sines multiplied by it again.
    Evened,
}

/// Reads which indexer each layer has.
type Indexers = fn(&mut Loader<'_>, &Sizes, &Rope) -> Result<Vec<IndexingSpec>, ModelError>;

/// What the families do differently.
struct Variant {
    names: LatentNames,
    gain: Gain,
    /// How experts are scored where the file does not say; by its sizes where `None`.
    score: Option<Score>,
    indexers: Option<Indexers>,
    /// Whether blocks of multi-token prediction are known of it.
    drafts: bool,
}

fn load_latent(l: &mut Loader<'_>, variant: Variant) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    let multiplier = multiplier(&mut l.keys, variant.gain)?;
    let rope = load_rope(l, &sizes, variant.gain, multiplier)?;
    let heads = match variant.indexers {
        Some(_) => Heads::read_absorbed(l, &sizes, rope.params.n_dims)?,
        None => Heads::read(l, &sizes, rope.params.n_dims)?,
    };
    let temperature = temperature(&mut l.keys)?;
    let score = variant.score.unwrap_or_else(|| score_by_size(&sizes));
    let networks = Networks::read(l, &sizes, Some(score))?;
    // Of models that see images too: a text's pairs turn as they do without.
    l.keys.harmless(&["rope.dimension_sections"]);
    let indexing = variant.indexers.map(|read| read(l, &sizes, &rope)).transpose()?;
    let scale = score_scale(&rope, multiplier, heads.key_len);
    let rotated = rope.params.n_dims;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let norms = (Norms::before(NormKind::Rms, eps), variant.drafts.then_some(HiddenRows::Normed));
    let of = sizes.clone();
    drafting_decoder(l, sizes, vec![rope], embedding, norms, |l, il| {
        let spec = LatentSpec {
            heads: of.heads[il],
            q_rank: heads.q_rank,
            latent: heads.latent,
            nope: heads.key_len - rotated,
            rope: rotated,
            rotated: true,
            value_len: heads.value_len,
            absorbed: heads.absorbed,
            scale,
            temperature,
            sinks: false,
            gate: None,
            eps,
            names: variant.names,
            // The block of multi-token prediction sees all positions.
            indexing: indexing.as_ref().and_then(|indexing| indexing.get(il).copied()),
        };
        Ok(LayerPlan::with(Latent::load(l, il, of.embd, spec)?, networks.of(l, &of, il)?))
    })
}

/// Sizes of heads and of what is of low rank.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub q_rank: Option<usize>,
    pub latent: usize,
    /// Elements of a head's queries and values.
    pub key_len: usize,
    pub value_len: usize,
    /// Whether the file has its weights head by head.
    absorbed: bool,
}

impl Heads {
    fn read(l: &mut Loader<'_>, sizes: &Sizes, rotated: usize) -> Result<Heads, ModelError> {
        match l.weights.contains("blk.0.attn_q.weight") {
            true => {
                l.keys.count("attention.q_lora_rank")?;
                Heads::of_rank(l, sizes, rotated, None, false)
            }
            false => {
                let rank = query_rank(l)?;
                Heads::of_rank(l, sizes, rotated, Some(rank), false)
            }
        }
    }

    /// The same of a family that has its weights head by head, and queries of low rank.
    pub fn read_absorbed(l: &mut Loader<'_>, sizes: &Sizes, rotated: usize) -> Result<Heads, ModelError> {
        let rank = query_rank(l)?;
        Heads::of_rank(l, sizes, rotated, Some(rank), true)
    }

    fn of_rank(
        l: &mut Loader<'_>,
        sizes: &Sizes,
        rotated: usize,
        q_rank: Option<usize>,
        always_absorbed: bool,
    ) -> Result<Heads, ModelError> {
        let latent = l.keys.required_size("attention.kv_lora_rank")?;
        let (key, value) =
            (l.keys.size("attention.key_length_mla")?, l.keys.size("attention.value_length_mla")?);
        let heads = match (key, value) {
            (Some(key_len), Some(value_len)) => Heads { q_rank, latent, key_len, value_len, absorbed: true },
            (None, None) if !always_absorbed => {
                let (key_len, value_len) = (sizes.key_len, sizes.value_len);
                Heads { q_rank, latent, key_len, value_len, absorbed: false }
            }
            (Some(_), None) => return Err(l.keys.problem("attention.value_length_mla", "is missing")),
            (None, _) => return Err(l.keys.problem("attention.key_length_mla", "is missing")),
        };
        heads.check(&l.keys, sizes, rotated)?;
        Ok(heads)
    }

    fn check(&self, keys: &Keys<'_>, sizes: &Sizes, rotated: usize) -> Result<(), ModelError> {
        let Heads { latent, key_len, absorbed, .. } = *self;
        if key_len <= rotated {
            let name = if absorbed { "attention.key_length_mla" } else { "attention.key_length" };
            return Err(keys.problem(name, format!("is {key_len}, of which {rotated} are rotated")));
        }
        if absorbed && sizes.key_len != latent + rotated {
            let what = format!(
                "is {}, where {} are needed: those of a latent and {rotated} that are rotated",
                sizes.key_len,
                latent + rotated
            );
            return Err(keys.problem("attention.key_length", what));
        }
        // Layers without attention have none.
        let wrong = |il: &usize| match (absorbed, sizes.kv_heads[*il]) {
            (true, n) => n > 1,
            (false, n) => n != sizes.heads[*il],
        };
        match (0..sizes.layers).find(wrong) {
            Some(il) => {
                let needed = if absorbed { 1 } else { sizes.heads[il] };
                let what = format!("is {} in layer {il}, where {needed} is needed", sizes.kv_heads[il]);
                Err(keys.problem("attention.head_count_kv", what))
            }
            None => Ok(()),
        }
    }
}

/// The rank that queries pass through.
fn query_rank(l: &mut Loader<'_>) -> Result<usize, ModelError> {
    match l.keys.count("attention.q_lora_rank")? {
        0 => Err(l.keys.problem("attention.q_lora_rank", "is 0 or missing")),
        rank => Ok(rank),
    }
}

/// YaRN's multiplier of the logarithm: files have a tenth of it.
fn multiplier(keys: &mut Keys<'_>, gain: Gain) -> Result<Option<f32>, ModelError> {
    if gain == Gain::Plain {
        return Ok(None);
    }
    Ok(keys.factor("rope.scaling.yarn_log_multiplier")?.map(|tenth| tenth / 0.1))
}

fn load_rope(
    l: &mut Loader<'_>,
    sizes: &Sizes,
    gain: Gain,
    multiplier: Option<f32>,
) -> Result<Rope, ModelError> {
    let spec =
        RopeSpec { kind: RopeKind::Norm, key_len: sizes.key_len, factors: false, context: sizes.context };
    Rope::load_with(l, spec, |_, factor| {
        Ok(match multiplier {
            None => yarn_gain(factor, 1.0),
            Some(all) => {
                let times = if gain == Gain::Evened { all } else { 1.0 };
                yarn_gain(factor, times) / yarn_gain(factor, all)
            }
        })
    })
}

/// The factor on scores, in llama.cpp's order: what RoPE has of its own gain is brought back, then comes that
/// of the multiplier, squared.
fn score_scale(rope: &Rope, multiplier: Option<f32>, key_len: usize) -> f32 {
    let log = ln(1.0 / rope.params.freq_scale);
    let gain = rope.params.attn_factor * (1.0 + 0.1 * log);
    let gain = gain * (1.0 + 0.1 * multiplier.unwrap_or(0.0) * log);
    gain * gain / (key_len as f32).sqrt()
}

/// Queries that grow with the position (Mistral Large 3).
fn temperature(keys: &mut Keys<'_>) -> Result<Option<Temperature>, ModelError> {
    let floor = keys.count("attention.temperature_length")?;
    match keys.factor("attention.temperature_scale")? {
        Some(_) if floor == 0 => Err(keys.problem("attention.temperature_length", "is 0 or missing")),
        scale => Ok(scale.map(|scale| Temperature { scale, floor: floor as f32, offset: 0.0 })),
    }
}

/// How experts are scored in files that do not say: as llama.cpp tells GLM-4.7-Flash from DeepSeek V2.
fn score_by_size(sizes: &Sizes) -> Score {
    match (sizes.layers, sizes.vocab) {
        (47 | 48, 154_880) => Score::Sigmoid,
        _ => Score::Softmax,
    }
}

/// The keys `attention.indexer.*`.
fn indexer(l: &mut Loader<'_>, rope: &Rope, kind: RopeKind, eps: f32) -> Result<IndexingSpec, ModelError> {
    let keys = &mut l.keys;
    let heads = keys.required_size("attention.indexer.head_count")?;
    let len = keys.required_size("attention.indexer.key_length")?;
    let count = keys.required_size("attention.indexer.top_k")?;
    if !len.is_power_of_two() || len < 64 {
        let what = format!("is {len}, where a power of two from 64 on is needed");
        return Err(keys.problem("attention.indexer.key_length", what));
    }
    if rope.params.n_dims > len {
        let what = format!("is {len}, where {} are rotated", rope.params.n_dims);
        return Err(keys.problem("attention.indexer.key_length", what));
    }
    let names = IndexNames::default();
    let rotation = Some((kind, 0));
    Ok(IndexingSpec { heads, len, rotation, spread: true, pool: 1, count, eps, shared: false, names })
}

fn every_indexer(l: &mut Loader<'_>, sizes: &Sizes, rope: &Rope) -> Result<Vec<IndexingSpec>, ModelError> {
    Ok(vec![indexer(l, rope, RopeKind::NeoX, 1e-6)?; sizes.layers])
}

fn some_indexers(l: &mut Loader<'_>, sizes: &Sizes, rope: &Rope) -> Result<Vec<IndexingSpec>, ModelError> {
    let spec = indexer(l, rope, RopeKind::Norm, 0.0)?;
    let sharing = sizes.context >= SHARING_CONTEXT;
    let own = |il: usize| !sharing || il < 2 || (il < 78 && (il - 2).is_multiple_of(4));
    let own = own_indexers(l, sizes, Some((0..sizes.layers).map(own).collect()))?;
    first_has_its_own(l, &own, 0)?;
    Ok(own.into_iter().map(|own| IndexingSpec { shared: !own, ..spec }).collect())
}

/// The context of models that share their indexers where the file does not say.
const SHARING_CONTEXT: usize = 1 << 20;

/// Which layers have an indexer of their own: `attention.indexer.types`, or as llama.cpp knows it of models
/// whose files do not say.
pub(super) fn own_indexers(
    l: &mut Loader<'_>,
    sizes: &Sizes,
    known: Option<Vec<bool>>,
) -> Result<Vec<bool>, ModelError> {
    let name = "attention.indexer.types";
    let own = if l.keys.is_array(name) {
        l.keys.layer_flags(name, sizes.layers, sizes.layers)?
    } else {
        l.keys.flag(name)?.map(|own| vec![own; sizes.layers])
    };
    own.or(known).ok_or_else(|| l.keys.problem(name, "is missing"))
}

/// The first layer with attention takes no other's choice.
pub(super) fn first_has_its_own(l: &Loader<'_>, own: &[bool], first: usize) -> Result<(), ModelError> {
    match own[first] {
        true => Ok(()),
        false => {
            let what = format!("says that layer {first} has no indexer of its own, where none is before it");
            Err(l.keys.problem("attention.indexer.types", what))
        }
    }
}

/// Dense networks, then experts with a network beside them.
pub(super) struct Networks {
    dense_layers: usize,
    experts: Option<ExpertsSpec>,
}

impl Networks {
    /// `score`: how experts are scored in files that do not say; `None`: they must.
    pub fn read(l: &mut Loader<'_>, sizes: &Sizes, score: Option<Score>) -> Result<Networks, ModelError> {
        let dense_layers = l.keys.count("leading_dense_block_count")?;
        let counts = match dense_layers >= sizes.layers {
            true => l.experts(sizes)?,
            false => Some(l.required_experts(sizes)?),
        };
        let ff = l.keys.required_size("expert_feed_forward_length")?;
        let shared_count = l.keys.required_size("expert_shared_count")?;
        let experts = match counts {
            Some(counts) => {
                let routing = Routing::read(l, counts, score)?;
                let spec = ExpertsSpec::new(ff, Activation::SwiGlu, routing);
                Some(ExpertsSpec { shared: Some(shared(ff * shared_count, "ffn_shexp")), ..spec })
            }
            None => None,
        };
        Ok(Networks { dense_layers, experts })
    }

    pub fn of(&self, l: &mut Loader<'_>, sizes: &Sizes, il: usize) -> Result<FfnPlan, ModelError> {
        match &self.experts {
            Some(spec) if il >= self.dense_layers => {
                let routing = spec.routing.clone().biased(l, il, EXP_PROBS_B)?;
                Ok(FfnPlan::Experts(ExpertsSpec { routing, ..spec.clone() }))
            }
            _ => swiglu(l, sizes, il),
        }
    }
}

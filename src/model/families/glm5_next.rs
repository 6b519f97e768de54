//! `glm5-next` (GLM 5.3 Flash): hyper-connections between four residual streams; Kimi Delta Attention in
//! layers without heads of keys, in the others latent attention without any rotation, to pools of positions
//! that an indexer chooses and layers may share; dense networks, then experts with a network beside them, all
//! of limited values.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, DeltaNetSpec, Embedding, HyperSpec, IndexNames, IndexingSpec, Kda, KdaKind, Latent,
    LatentNames, LatentSpec, NormKind, Score,
};
use super::deepseek::{Heads, Networks, first_has_its_own, own_indexers};
use super::deepseek4::limited;
use super::kimi_k3::rate;
use super::kimi_linear::delta_net;
use super::stack::{EXP_PROBS_B, FfnPlan, LayerPlan, Norms, hyper_decoder};

/// The epsilon of norms of queries and keys of delta nets.
const L2_EPS: f32 = 1e-6;
const INDEXER: IndexNames = IndexNames {
    q: ["indexer_q"; 2],
    k: ["indexer_k_a", "indexer_k", "indexer_k"],
    weights: ["indexer_proj", "indexer_weights"],
};

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read_mixed(l)?;
    let eps = l.rms_eps()?;
    let delta_net = DeltaNetSpec { l2_eps: L2_EPS, ..delta_net(l, &sizes, eps)? };
    let kda = kda(l)?;
    not_rotated(l)?;
    let heads = Heads::read_absorbed(l, &sizes, 0)?;
    let indexing = indexing(l, &sizes)?;
    let networks = Networks::read(l, &sizes, Some(Score::Sigmoid))?;
    let limits = Limits::read(l, &sizes)?;
    let hyper = HyperSpec::read(l, eps)?.with_mean();
    let embedding = Embedding::scaled(l.token_embd(&sizes)?, None, "inp_embd");
    let (norms, sums) = (Norms::before(NormKind::Rms, eps), ["hc_attn_post", "l_out"]);
    let of = sizes.clone();
    hyper_decoder(l, sizes, Vec::new(), embedding, norms, (hyper, sums), |l, il| {
        if of.kv_heads[il] == 0 {
            let mixer = Kda::load(l, il, of.embd, delta_net, kda)?;
            return Ok(LayerPlan::with(mixer, limits.of(&networks, l, &of, il)?));
        }
        let spec = LatentSpec {
            heads: of.heads[il],
            q_rank: heads.q_rank,
            latent: heads.latent,
            nope: heads.key_len,
            rope: 0,
            rotated: false,
            value_len: heads.value_len,
            absorbed: true,
            scale: 1.0 / (heads.key_len as f32).sqrt(),
            temperature: None,
            sinks: false,
            gate: None,
            eps,
            names: LatentNames {
                low_q: "q_a",
                low_q_norm: Some("q_resid"),
                absorbed: "q_absorbed",
                ..LatentNames::default()
            },
            indexing: Some(indexing[il]),
        };
        let mixer = Latent::load(l, il, of.embd, spec)?;
        Ok(LayerPlan::with(mixer, limits.of(&networks, l, &of, il)?))
    })
}

fn kda(l: &mut Loader<'_>) -> Result<KdaKind, ModelError> {
    Ok(KdaKind {
        decay: &["ssm_f_a", "ssm_f_b"],
        gate: &["ssm_g_a", "ssm_g_b"],
        names: ["kda_f", "kda_g2", "kda_g1"],
        strengths: ("kda_beta_logit", Some("kda_beta")),
        flat: true,
        rate: rate(l)?,
    })
}

/// Nothing is rotated, which files have to say: a whole head would be.
fn not_rotated(l: &mut Loader<'_>) -> Result<(), ModelError> {
    l.keys.harmless(&["rope.freq_base"]);
    match l.keys.counts("rope.dimension_count", 1)?.as_deref() {
        Some([0]) => Ok(()),
        Some(dims) => Err(l.keys.unsupported("rope.dimension_count", dims[0])),
        None => Err(l.keys.problem("rope.dimension_count", "is missing, where 0 is needed")),
    }
}

/// The keys `attention.indexer.*`.
fn indexing(l: &mut Loader<'_>, sizes: &Sizes) -> Result<Vec<IndexingSpec>, ModelError> {
    let eps = l.keys.epsilon("attention.layer_norm_epsilon")?;
    let heads = l.keys.required_size("attention.indexer.head_count")?;
    let len = l.keys.required_size("attention.indexer.key_length")?;
    let positions = l.keys.required_size("attention.indexer.top_k")?;
    let pool = l.keys.required_size("attention.indexer.kpool")?;
    // Without those behind the last pool the first tokens would see nothing.
    l.keys.neutral("attention.indexer.kpool_select_tail", &[1.0])?;
    if !len.is_multiple_of(16) {
        let what = format!("is {len}, where a multiple of 16 is needed");
        return Err(l.keys.problem("attention.indexer.key_length", what));
    }
    if pool < 2 || !positions.is_multiple_of(pool) {
        let what = format!("is {pool}, where at least 2 are needed that divide {positions}");
        return Err(l.keys.problem("attention.indexer.kpool", what));
    }
    let own = own_indexers(l, sizes, Some(vec![true; sizes.layers]))?;
    if let Some(first) = (0..sizes.layers).find(|&il| sizes.kv_heads[il] > 0) {
        first_has_its_own(l, &own, first)?;
    }
    let spec = IndexingSpec {
        heads,
        len,
        rotation: None,
        spread: false,
        pool,
        count: positions / pool,
        eps,
        shared: false,
        names: INDEXER,
    };
    Ok(own.into_iter().map(|own| IndexingSpec { shared: !own, ..spec }).collect())
}

/// Activations by block: of the experts, and of all other networks.
struct Limits([Vec<Activation>; 2]);

impl Limits {
    /// The keys `swiglu_clamp_exp` and `swiglu_clamp_shexp`.
    fn read(l: &mut Loader<'_>, sizes: &Sizes) -> Result<Limits, ModelError> {
        let experts = l.keys.floats("swiglu_clamp_exp", sizes.blocks)?;
        let experts = experts.unwrap_or_else(|| vec![0.0; sizes.blocks]);
        let others = l.keys.floats("swiglu_clamp_shexp", sizes.blocks)?;
        let others = others.unwrap_or_else(|| experts.clone());
        Ok(Limits([experts, others].map(|limits| limits.into_iter().map(limited).collect())))
    }

    /// The network of a layer.
    fn of(
        &self,
        networks: &Networks,
        l: &mut Loader<'_>,
        sizes: &Sizes,
        il: usize,
    ) -> Result<FfnPlan, ModelError> {
        let [experts, others] = [0, 1].map(|i| self.0[i][il]);
        let mut ffn = networks.of(l, sizes, il)?;
        match &mut ffn {
            FfnPlan::Experts(spec) if spec.routing.choice_bias.is_none() => {
                return Err(ModelError::MissingTensor { name: format!("blk.{il}.{EXP_PROBS_B}") });
            }
            FfnPlan::Experts(spec) => {
                spec.activation = experts;
                spec.shared.iter_mut().for_each(|shared| shared.dense.activation = others);
            }
            FfnPlan::Dense(spec) => spec.activation = others,
            FfnPlan::Both(_) | FfnPlan::Nothing => {}
        }
        Ok(ffn)
    }
}

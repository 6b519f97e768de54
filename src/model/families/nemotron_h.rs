//! `nemotron_h` and `nemotron_h_moe` (Nemotron-H, Nemotron 3): layers of one block each, which are Mamba 2,
//! attention without a rotation, or a network with the square of ReLU, dense or of experts.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{ExpertCounts, Loader, Sizes};
use super::super::parts::{
    Activation, AttentionSpec, DenseNames, DenseSpec, Embedding, ExpertsSpec, LatentExperts, Mamba2,
    Mamba2Spec, NormKind, Routing, Score, SharedSpec,
};
use super::stack::{EXP_PROBS_B, FfnPlan, LayerPlan, Norms, checked_attention, decoder, shared};

/// ggml gives a network's output the name of a layer's.
const FFN_OUTPUT: &str = "l_out";

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read_mixed(l)?;
    let eps = eps(l)?;
    let norms = Norms::before(NormKind::Rms, eps);
    // Nothing is rotated.
    l.keys.harmless(&["rope.dimension_count", "rope.freq_base"]);
    let mamba = Mamba2Spec::read(l, eps)?;
    let experts = experts(l, &sizes)?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let of = sizes.clone();
    let mut decoder = decoder(l, sizes, Vec::new(), embedding, norms, |l, il| {
        Ok(match (of.kv_heads[il], of.ff[il]) {
            (0, 0) => LayerPlan::with(Mamba2::load(l, il, of.embd, mamba)?, FfnPlan::Nothing),
            (_, 0) => {
                let spec = AttentionSpec { rope: None, ..checked_attention(l, &of, il)? };
                LayerPlan::new(spec, FfnPlan::Nothing)
            }
            (_, ff) => {
                let ffn = match &experts {
                    Some(experts) => FfnPlan::Experts(experts.of_layer(l, il, ff)?),
                    None => FfnPlan::Dense(dense(ff)),
                };
                LayerPlan::network(ffn)
            }
        })
    })?;
    decoder.layers.iter_mut().for_each(|layer| layer.out = "nemotron_h_block_out".into());
    Ok(decoder)
}

/// RMS norms have the epsilon of layer norms, unless the file has one for them.
fn eps(l: &mut Loader<'_>) -> Result<f32, ModelError> {
    let eps = l.keys.epsilon("attention.layer_norm_epsilon")?;
    match l.keys.float("attention.layer_norm_rms_epsilon")? {
        Some(_) => l.keys.epsilon("attention.layer_norm_rms_epsilon"),
        None => Ok(eps),
    }
}

fn dense(ff: usize) -> DenseSpec {
    let spec = DenseSpec::new(ff, Activation::ReluSquared);
    DenseSpec { names: DenseNames { input: "attn_norm", output: FFN_OUTPUT, ..spec.names }, ..spec }
}

/// What the file says of experts.
struct LayersOfExperts {
    count: usize,
    /// By block.
    used: Vec<usize>,
    /// By block; 0 where the file does not say.
    ff: Vec<usize>,
    routing: Routing,
    shared: SharedSpec,
    latent: Option<LatentExperts>,
}

fn experts(l: &mut Loader<'_>, sizes: &Sizes) -> Result<Option<LayersOfExperts>, ModelError> {
    let Some((count, used)) = l.experts_by_layer(sizes)? else { return Ok(None) };
    l.keys.harmless(&["expert_shared_count"]);
    l.keys.neutral("expert_gating_func", &[0.0, 2.0])?;
    let most = used.iter().copied().max().unwrap_or(0);
    let routing = Routing::read(l, ExpertCounts { count, used: most }, Some(Score::Sigmoid))?;
    let ff = l.keys.counts("expert_feed_forward_length", sizes.blocks)?;
    let shared_ff = l.keys.required_size("expert_shared_feed_forward_length")?;
    let shared = shared(shared_ff, "ffn_shexp");
    let shared = SharedSpec {
        dense: DenseSpec { activation: Activation::ReluSquared, ..shared.dense },
        sum: FFN_OUTPUT,
        ..shared
    };
    let latent = Some(l.keys.count("moe_latent_size")?).filter(|&latent| latent > 0);
    if let Some(latent) = latent.filter(|&latent| latent > sizes.embd) {
        let what = format!("is {latent}, more than the embedding length of {}", sizes.embd);
        return Err(l.keys.problem("moe_latent_size", what));
    }
    let (down, up) = ("ffn_latent_down", "ffn_latent_up");
    let latent = latent.map(|width| LatentExperts { width, down, up, output: up, norm: None });
    let ff = ff.unwrap_or_else(|| vec![0; sizes.blocks]);
    Ok(Some(LayersOfExperts { count, used, ff, routing, shared, latent }))
}

impl LayersOfExperts {
    /// `all_ff` is the hidden length of the experts used together, for files that name no other.
    fn of_layer(&self, l: &mut Loader<'_>, il: usize, all_ff: usize) -> Result<ExpertsSpec, ModelError> {
        let used = self.used[il];
        if used == 0 {
            return Err(l
                .keys
                .problem("expert_used_count", format!("is 0 in layer {il}, which has experts")));
        }
        let ff = match self.ff[il] {
            0 => all_ff / used,
            ff => ff,
        };
        if ff == 0 {
            return Err(l.keys.problem("feed_forward_length", "is less than the experts used"));
        }
        let routing = Routing { count: self.count, used, ..self.routing.clone() };
        let routing = routing.with_bias(l, il, EXP_PROBS_B)?;
        let spec = ExpertsSpec::new(ff, Activation::ReluSquared, routing);
        Ok(ExpertsSpec { shared: Some(self.shared), latent: self.latent, input: "attn_norm", ..spec })
    }
}

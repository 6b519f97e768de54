//! `kimi-k3` (Kimi K3): as [`kimi_linear`](super::kimi_linear), with bounded decays, gates on latent
//! attention, SiTU for SwiGLU, experts on a narrower input, and blocks that attend to residual streams of
//! earlier layers.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, DenseSpec, EarlierStreams, Embedding, ExpertsSpec, Gate, KdaKind, LatentExperts, LatentNames,
    LatentSpec, Mixture, NormKind, Rate, Routing,
};
use super::kimi_linear::{delta_net, latent, mixer};
use super::stack::{EXP_PROBS_B, FfnPlan, LayerPlan, Norms, decoder, shared};

/// The node of a network's output.
const FFN_OUTPUT: &str = "ffn_out";
const GATE: Gate = Gate { per_head: false, names: ["mla_gate", "mla_gate_sigmoid", "mla_gated"] };

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read_mixed(l)?;
    let eps = l.rms_eps()?;
    let delta_net = (delta_net(l, &sizes, eps)?, kda(l)?);
    let rank = l.keys.count("attention.q_lora_rank")?;
    let plain = latent(l, &sizes, eps)?;
    let networks = Networks::read(l, &sizes, eps)?;
    let block = match l.keys.counts("attn_res.block_size", 1)? {
        Some(size) => size[0],
        None => return Err(l.keys.problem("attn_res.block_size", "is missing")),
    };
    let embedding = Embedding::scaled(l.token_embd(&sizes)?, None, "inp_embd");
    let of = sizes.clone();
    let mut decoder =
        decoder(l, sizes, Vec::new(), embedding, Norms::before(NormKind::Rms, eps), |l, il| {
            let has = |part: &str| l.weights.contains(&format!("blk.{il}.{part}.weight"));
            let names = LatentNames { low_q: "q_a", ..plain.names };
            let low_rank = has("attn_q_a_norm");
            if low_rank && rank == 0 {
                return Err(l.keys.problem("attention.q_lora_rank", "is 0 or missing"));
            }
            let gate = Some(GATE).filter(|_| has("attn_gate"));
            let latent = LatentSpec { q_rank: Some(rank).filter(|_| low_rank), gate, names, ..plain.clone() };
            let mixer = mixer(l, il, &of, delta_net, &latent)?;
            Ok(LayerPlan { mixer, ffn: networks.of(l, &of, il)?, tail: None })
        })?;
    for layer in &mut decoder.layers {
        layer.middle = "prefix_sum_attn";
    }
    if block > 0 {
        for (il, layer) in decoder.layers.iter_mut().enumerate() {
            layer.earlier = Some(Box::new(EarlierStreams::load(l, il, of.embd, block, eps)?));
        }
        let banked = of.layers.div_ceil(block);
        decoder.mixture = Some(Mixture::load(l, "output_res_score.weight", of.embd, banked, eps)?);
    }
    Ok(decoder)
}

/// How decays are made: `kda.gate_lower_bound`.
pub(super) fn rate(l: &mut Loader<'_>) -> Result<Rate, ModelError> {
    match l.keys.float("kda.gate_lower_bound")? {
        None => Ok(Rate::Softplus),
        Some(bound) if bound < 0.0 => Ok(Rate::BoundedByNegative(bound)),
        Some(bound) => Err(l.keys.problem("kda.gate_lower_bound", format!("is {bound}, which is no decay"))),
    }
}

fn kda(l: &mut Loader<'_>) -> Result<KdaKind, ModelError> {
    let rate = rate(l)?;
    let names = ["kda_f", "kda_g2", "kda_g1"];
    let strengths = ("kda_beta_logit", Some("kda_beta"));
    Ok(KdaKind { decay: &["ssm_f_a", "ssm_f_b"], gate: &["ssm_g"], names, strengths, flat: true, rate })
}

/// What the file says of all feed-forward networks.
struct Networks {
    dense_layers: usize,
    experts: ExpertsSpec,
    shared_ff: usize,
}

impl Networks {
    fn read(l: &mut Loader<'_>, sizes: &Sizes, eps: f32) -> Result<Networks, ModelError> {
        let dense_layers = l.keys.count("leading_dense_block_count")?;
        let counts = l.required_experts(sizes)?;
        let ff = l.keys.required_size("expert_feed_forward_length")?;
        let networks = l.keys.count("expert_shared_count")?.max(1);
        let routing = Routing::read(l, counts, None)?;
        let latent = match l.keys.count("expert_latent_length")? {
            0 => None,
            width if width > sizes.embd => {
                let what = format!("is {width}, more than the embedding length of {}", sizes.embd);
                return Err(l.keys.problem("expert_latent_length", what));
            }
            width => Some(LatentExperts {
                width,
                down: "ffn_routed_down",
                up: "ffn_routed_up",
                output: "ffn_routed_up",
                norm: Some(("ffn_routed_norm", eps)),
            }),
        };
        let experts = ExpertsSpec { latent, ..ExpertsSpec::new(ff, activation(l)?, routing) };
        Ok(Networks { dense_layers, experts, shared_ff: ff * networks })
    }

    fn of(&self, l: &mut Loader<'_>, sizes: &Sizes, il: usize) -> Result<FfnPlan, ModelError> {
        let activation = self.experts.activation;
        if il < self.dense_layers {
            return Ok(FfnPlan::Dense(DenseSpec::new(sizes.dense_ff(&l.keys, il)?, activation)));
        }
        let beside = l.weights.contains(&format!("blk.{il}.ffn_gate_shexp.weight")).then(|| {
            let mut shared = shared(self.shared_ff, "ffn_shexp");
            shared.dense.activation = activation;
            shared
        });
        let mut experts = ExpertsSpec { shared: beside, ..self.experts.clone() };
        if beside.is_none() {
            // What comes last has the name of all.
            match &mut experts.latent {
                Some(latent) => latent.output = FFN_OUTPUT,
                None => experts.output = FFN_OUTPUT,
            }
        }
        let routing = experts.routing.clone().with_bias(l, il, EXP_PROBS_B)?;
        Ok(FfnPlan::Experts(ExpertsSpec { routing, ..experts }))
    }
}

/// The keys `activation.*`.
fn activation(l: &mut Loader<'_>) -> Result<Activation, ModelError> {
    let mut read = |name: &str| match l.keys.float(name)? {
        Some(value) => Ok(value),
        None => Err(l.keys.problem(name, "is missing")),
    };
    let (beta, linear) = (read("activation.situ_beta")?, read("activation.situ_linear_beta")?);
    match beta > 0.0 {
        true => Ok(Activation::Situ { beta, linear: linear.max(0.0) }),
        false => Err(l.keys.problem("activation.situ_beta", format!("is {beta}, which divides"))),
    }
}

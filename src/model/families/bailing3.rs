//! `bailingmoe3` (Ling 3): Kimi Delta Attention with bounded decays in layers without heads of keys and
//! values, latent attention with a gate for each head in the others; dense networks, then experts with a
//! network beside them.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, DenseSpec, Embedding, ExpertsSpec, Gate, KdaKind, LatentNames, LatentSpec, NormKind, Rate,
    Rope, Routing,
};
use super::kimi_linear::{delta_net, latent, mixer};
use super::stack::{EXP_PROBS_B, FfnPlan, LayerPlan, Norms, decoder, limited_swiglu, rope, shared};
use crate::kernels::ops::RopeKind;

/// Nodes of the gate: ggml names none.
const GATE: Gate = Gate { per_head: true, names: ["attn_gate", "attn_gate_sigmoid", "attn_gated"] };

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read_mixed(l)?;
    let eps = l.rms_eps()?;
    let delta_net = (delta_net(l, &sizes, eps)?, kda(l)?);
    let rope = load_rope(l, &sizes)?;
    let rank = l.keys.count("attention.q_lora_rank")?;
    let plain = latent(l, &sizes, eps)?;
    let names = LatentNames {
        low_q: "q_a",
        low_q_norm: Some("q_a_norm"),
        q: "q_b",
        low_kv: "kv_all",
        latent: "kv",
        ..plain.names
    };
    let q_rank = Some(rank).filter(|&rank| rank > 0);
    let latent = LatentSpec { q_rank, rotated: true, gate: Some(GATE), names, ..plain };
    let networks = Networks::read(l, &sizes)?;
    let embedding = Embedding::scaled(l.token_embd(&sizes)?, None, "model.input_embed");
    let of = sizes.clone();
    decoder(l, sizes, vec![rope], embedding, Norms::before(NormKind::Rms, eps), |l, il| {
        let mixer = mixer(l, il, &of, delta_net, &latent)?;
        Ok(LayerPlan { mixer, ffn: networks.of(l, &of, il)?, tail: None })
    })
}

/// The keys `kda.*` but for the length of a head.
fn kda(l: &mut Loader<'_>) -> Result<KdaKind, ModelError> {
    l.keys.neutral("kda.safe_gate", &[1.0])?;
    let rate = match l.keys.float("kda.gate_lower_bound")? {
        Some(bound) if bound < 0.0 => Rate::Bounded(bound),
        Some(bound) => {
            return Err(l.keys.problem("kda.gate_lower_bound", format!("is {bound}, which is no decay")));
        }
        None => return Err(l.keys.problem("kda.gate_lower_bound", "is missing")),
    };
    let names = ["kda_g1", "kda_g2", "kda_gate"];
    Ok(KdaKind {
        decay: &["ssm_f_a"],
        gate: &["ssm_g_a"],
        names,
        strengths: ("kda_beta", None),
        flat: false,
        rate,
    })
}

/// Neighbours make a pair, but in files of models that see images too.
fn load_rope(l: &mut Loader<'_>, sizes: &Sizes) -> Result<Rope, ModelError> {
    let sections = l.keys.counts("rope.dimension_sections", 4)?;
    Ok(match sections.filter(|sections| sections[0] > 0 && sections[1] > 0) {
        Some(sections) => rope(l, sizes, RopeKind::NeoX, false)?.of_text(&sections, false),
        None => rope(l, sizes, RopeKind::Norm, false)?,
    })
}

/// What the file says of all feed-forward networks.
struct Networks {
    dense_layers: usize,
    experts: ExpertsSpec,
    shared_ff: usize,
    /// By block: of the experts, and of all other networks.
    activations: [Vec<Activation>; 2],
}

impl Networks {
    fn read(l: &mut Loader<'_>, sizes: &Sizes) -> Result<Networks, ModelError> {
        let dense_layers = l.keys.count("leading_dense_block_count")?;
        let counts = l.required_experts(sizes)?;
        let ff = l.keys.required_size("expert_feed_forward_length")?;
        let networks = l.keys.count("expert_shared_count")?.max(1);
        let shared_ff = match l.keys.count("expert_shared_feed_forward_length")? {
            0 => ff * networks,
            shared_ff => shared_ff,
        };
        let routing = Routing::read(l, counts, None)?;
        let activations =
            [limited_swiglu(l, sizes, "swiglu_clamp_exp")?, limited_swiglu(l, sizes, "swiglu_clamp_shexp")?];
        let experts = ExpertsSpec::new(ff, Activation::SwiGlu, routing);
        Ok(Networks { dense_layers, experts, shared_ff, activations })
    }

    fn of(&self, l: &mut Loader<'_>, sizes: &Sizes, il: usize) -> Result<FfnPlan, ModelError> {
        let [activation, of_others] = [0, 1].map(|i| self.activations[i][il]);
        if il < self.dense_layers {
            return Ok(FfnPlan::Dense(DenseSpec::new(sizes.dense_ff(&l.keys, il)?, of_others)));
        }
        let mut shared = shared(self.shared_ff, "ffn_shexp");
        shared.dense.activation = of_others;
        let routing = self.experts.routing.clone().with_bias(l, il, EXP_PROBS_B)?;
        Ok(FfnPlan::Experts(ExpertsSpec {
            routing,
            activation,
            shared: Some(shared),
            ..self.experts.clone()
        }))
    }
}

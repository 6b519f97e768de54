//! `gpt-oss`: sinks, a window on every other layer, biases everywhere, SwiGLU of limited values.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, AttentionSpec, Embedding, ExpertsSpec, NormKind, Rope, Routing, Score,
};
use super::stack::{FfnPlan, LayerPlan, Norms, attention, decoder, expert_sizes, rope};
use crate::kernels::ops::RopeKind;

/// The family's SwiGLU.
const ACTIVATION: Activation = Activation::SwiGluOai { alpha: 1.702, limit: 7.0 };

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    // The norm that is called after attention is that before the experts.
    let ffn = Some(("post_attention_norm", "attn_post_norm"));
    let norms = Norms { ffn, ..Norms::before(NormKind::Rms, l.rms_eps()?) };
    let experts = expert_sizes(l, &sizes)?;
    l.keys.neutral("expert_gating_func", &[0.0, 3.0])?;
    let window = l.sliding_window()?;
    let windowed = l.window_pattern(&sizes, 2)?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let full = rope(l, &sizes, RopeKind::NeoX, false)?;
    let base = full.params.base;
    let ropes = vec![full.clone(), Rope::windowed(l, &full, sizes.key_len, base, true)?];
    let of = sizes.clone();
    decoder(l, sizes, ropes, embedding, norms, |_, il| {
        let spec = attention(&of, il);
        let attention = match windowed[il] {
            true => AttentionSpec { sinks: true, window, rope: Some(1), ..spec },
            false => AttentionSpec { sinks: true, ..spec },
        };
        let routing = Routing::new(experts.count, experts.used, Score::SoftmaxOfChosen);
        let spec =
            ExpertsSpec { input: "attn_post_norm", ..ExpertsSpec::new(experts.ff, ACTIVATION, routing) };
        Ok(LayerPlan::new(attention, FfnPlan::Experts(spec)))
    })
}

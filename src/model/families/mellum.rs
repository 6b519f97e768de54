//! `mellum` (Mellum 2): norms of each head's queries and keys, experts, a window on most layers, whose
//! rotation is not scaled.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{Activation, AttentionSpec, Embedding, ExpertsSpec, NormKind, Routing, Score};
use super::stack::{FfnPlan, LayerPlan, Norms, attention, decoder, expert_sizes, head_norms, rope};
use crate::kernels::ops::RopeKind;

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    let window = l.sliding_window()?;
    let windowed = match window {
        Some(_) => l.window_pattern(&sizes, 4)?,
        None => vec![false; sizes.blocks],
    };
    let experts = expert_sizes(l, &sizes)?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let full = rope(l, &sizes, RopeKind::NeoX, false)?;
    full.is_of_windows_too(l)?;
    let ropes = vec![full.clone(), full.unscaled()];
    let of = sizes.clone();
    decoder(l, sizes, ropes, embedding, Norms::before(NormKind::Rms, eps), |l, il| {
        let attention = AttentionSpec {
            window: window.filter(|_| windowed[il]),
            rope: Some(usize::from(windowed[il])),
            qk_norm: Some(head_norms(l, il, of.key_len, eps)?),
            ..attention(&of, il)
        };
        let routing = Routing::new(experts.count, experts.used, Score::Softmax).normalised();
        let spec = ExpertsSpec::new(experts.ff, Activation::SwiGlu, routing);
        Ok(LayerPlan::new(attention, FfnPlan::Experts(spec)))
    })
}

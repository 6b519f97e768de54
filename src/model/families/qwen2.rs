//! `qwen`, `qwen2` (also Qwen 2.5 and the R1 distills of it) and `qwen2moe`, with a gated shared network
//! beside the experts.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, DenseSpec, Embedding, ExpertsSpec, NormKind, Routing, Score, SharedSpec,
};
use super::stack::{FfnPlan, LayerPlan, Norms, attention, decoder, expert_sizes, rope, shared, swiglu};
use crate::kernels::ops::RopeKind;

/// Files of the first Qwen count gate and up in the hidden length.
pub(super) fn load_1(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    load_with(l, |l, sizes, il| {
        let ff = match sizes.dense_ff(&l.keys, il)? / 2 {
            0 => return Err(l.keys.problem("feed_forward_length", "is less than a gate and an up")),
            ff => ff,
        };
        Ok(FfnPlan::Dense(DenseSpec::new(ff, Activation::SwiGlu)))
    })
}

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    load_with(l, |l, sizes, il| swiglu(l, sizes, il))
}

fn load_with(
    l: &mut Loader<'_>,
    ffn: impl Fn(&mut Loader<'_>, &Sizes, usize) -> Result<FfnPlan, ModelError>,
) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let norms = Norms::before(NormKind::Rms, l.rms_eps()?);
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let ropes = vec![rope(l, &sizes, RopeKind::NeoX, false)?];
    let of = sizes.clone();
    decoder(l, sizes, ropes, embedding, norms, |l, il| {
        Ok(LayerPlan::new(attention(&of, il), ffn(l, &of, il)?))
    })
}

pub(super) fn load_experts(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let norms = Norms::before(NormKind::Rms, l.rms_eps()?);
    let experts = expert_sizes(l, &sizes)?;
    let shared_ff = match l.keys.count("expert_shared_feed_forward_length")? {
        0 => sizes.dense_ff(&l.keys, 0)?,
        ff => ff,
    };
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let ropes = vec![rope(l, &sizes, RopeKind::NeoX, false)?];
    let of = sizes.clone();
    decoder(l, sizes, ropes, embedding, norms, |_, il| {
        let routing = Routing::new(experts.count, experts.used, Score::Softmax);
        let gate = Some(["ffn_shexp_gate_inp", "ffn_shexp_gate", "ffn_shexp_out"]);
        let shared = Some(SharedSpec { gate, ..shared(shared_ff, "ffn_shexp") });
        let spec = ExpertsSpec { shared, ..ExpertsSpec::new(experts.ff, Activation::SwiGlu, routing) };
        Ok(LayerPlan::new(attention(&of, il), FfnPlan::Experts(spec)))
    })
}

//! `smollm3`: every fourth layer is without a rotation.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{AttentionSpec, Embedding, NormKind};
use super::stack::{LayerPlan, Norms, attention, decoder, rope, swiglu};
use crate::kernels::ops::RopeKind;

/// Every so manieth layer is without a rotation; files do not say.
const UNROTATED: usize = 4;

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let norms = Norms::before(NormKind::Rms, l.rms_eps()?);
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let ropes = vec![rope(l, &sizes, RopeKind::Norm, false)?];
    let of = sizes.clone();
    decoder(l, sizes, ropes, embedding, norms, |l, il| {
        let rope = Some(0).filter(|_| (il + 1) % UNROTATED != 0);
        let attention = AttentionSpec { rope, ..attention(&of, il) };
        Ok(LayerPlan::new(attention, swiglu(l, &of, il)?))
    })
}

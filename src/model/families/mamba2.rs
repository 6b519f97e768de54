//! `mamba2`: layers of Mamba 2's block alone.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{Embedding, Mamba2, Mamba2Spec, NormKind};
use super::stack::{FfnPlan, LayerPlan, Norms, decoder};

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read_mixed(l)?;
    let eps = l.rms_eps()?;
    let norms = Norms::before(NormKind::Rms, eps);
    let mamba = Mamba2Spec::read(l, eps)?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let embd = sizes.embd;
    decoder(l, sizes, Vec::new(), embedding, norms, |l, il| {
        Ok(LayerPlan::with(Mamba2::load(l, il, embd, mamba)?, FfnPlan::Nothing))
    })
}

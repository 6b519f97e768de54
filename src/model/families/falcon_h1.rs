//! `falcon-h1`: attention and Mamba 2 side by side in each layer. Its multipliers are in the weights of
//! files.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Attention, AttentionAndMamba2, AttentionNames, AttentionSpec, Embedding, Mamba2, Mamba2Spec, Norm,
    NormKind,
};
use super::stack::{LayerPlan, Norms, attention, decoder, rope, swiglu};
use crate::kernels::ops::RopeKind;

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    let norms = Norms::shared(NormKind::Rms, eps);
    let mamba = Mamba2Spec {
        norm_optional: true,
        input: Some("ssm_in"),
        output: "ssm_out",
        ..Mamba2Spec::read(l, eps)?
    };
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let ropes = vec![rope(l, &sizes, RopeKind::NeoX, false)?];
    let of = sizes.clone();
    let mut decoder = decoder(l, sizes, ropes, embedding, norms, |l, il| {
        let spec = attention(&of, il);
        let names = AttentionNames { rotated: ("Qcur-post-rope", "Kcur-post-rope"), ..spec.names };
        let mixer = AttentionAndMamba2 {
            attention: Attention::load(l, il, of.embd, AttentionSpec { names, ..spec })?,
            mamba: Mamba2::load(l, il, of.embd, mamba)?,
            sum: "layer_out",
        };
        Ok(LayerPlan::with(mixer, swiglu(l, &of, il)?))
    })?;
    for (il, layer) in decoder.layers.iter_mut().enumerate() {
        // The one norm whose tensor has no suffix.
        let tensor = format!("blk.{il}.ffn_norm");
        layer.ffn_norm = Some(Norm::load_exact(l, &tensor, "ffn_norm", of.embd, eps)?);
    }
    Ok(decoder)
}

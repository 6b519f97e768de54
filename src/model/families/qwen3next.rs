//! `qwen3next`: as [`qwen35`](super::qwen35), but neighbouring heads of values share a head of keys, and what
//! belongs to a head of keys may lie together in the file.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::Merged;
use super::qwen35::{experts, hybrid};
use super::stack::rope;
use crate::kernels::ops::{HeadMap, RopeKind};

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let rope = rope(l, &sizes, RopeKind::NeoX, false)?;
    let merged = |l: &Loader<'_>, il| {
        let projections = !l.weights.contains(&format!("blk.{il}.attn_qkv.weight"));
        Merged { projections, strengths: true }
    };
    hybrid(l, sizes, rope, "model.embed_tokens", HeadMap::Grouped, merged, experts())
}

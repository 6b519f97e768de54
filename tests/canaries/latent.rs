//! Faults in latent attention and its indexer: rotated parts, norms, heads, factors on scores, the choice of
//! positions.

use wayinfer::model::{Node, NodeId};

use super::faults::{SUMS, Scaled, changed, sound, wrong, zeroed};
use super::{Fault, Spoilt, inverse, permute, trips};

const DEEPSEEK2: &str = "deepseek2/long";
const LITE: &str = "deepseek2-lite/long";
const MISTRAL4: &str = "mistral4/long";
const DEEPSEEK32: &str = "deepseek32/long";
const GLM: &str = "glm-dsa/long";

/// Elements of a latent, and of the rotated part beside it, in these fixtures; of an indexer's head; its
/// heads.
const LATENT: usize = 16;
const ROPE: usize = 8;
const INDEX_LEN: usize = 64;
const HEADS: usize = 4;

/// A node keeps what a part of another's rows was.
struct Kept {
    from: (&'static str, usize),
    at: (&'static str, usize),
    /// Elements of a row of the former, and which of them.
    row: usize,
    part: std::ops::Range<usize>,
    kept: Vec<f32>,
}

fn kept(
    from: (&'static str, usize),
    at: (&'static str, usize),
    row: usize,
    part: std::ops::Range<usize>,
) -> Kept {
    Kept { from, at, row, part, kept: Vec::new() }
}

impl Fault for Kept {
    fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
        if (id.name, id.occurrence) == self.from {
            self.kept = values.chunks(self.row).flat_map(|row| row[self.part.clone()].to_vec()).collect();
        }
    }

    fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
        if (id.name, id.occurrence) == self.at {
            values.copy_from_slice(&self.kept);
        }
    }
}

/// The elements of a head change places before a node and back behind another.
struct Permuted {
    before: (&'static str, usize),
    after: (&'static str, usize),
    order: Vec<usize>,
}

impl Fault for Permuted {
    fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
        if (id.name, id.occurrence) == self.before {
            permute(values, self.order.len(), 1, &self.order);
        }
    }

    fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
        if (id.name, id.occurrence) == self.after {
            permute(values, self.order.len(), 1, &inverse(&self.order));
        }
    }
}

/// Two halves of an array of heads change places in a tensor.
fn heads_turned(name: &str, tensor: &str) -> Spoilt {
    Spoilt::new(name, |gguf, bytes| {
        let tensor = gguf.tensor(tensor).expect("the tensor");
        let half = tensor.bytes as usize / 2;
        bytes[tensor.offset as usize..][..2 * half].rotate_left(half);
    })
}

#[test]
fn the_shared_part_of_keys_not_rotated() {
    let words = &wrong("blk 0 k_pe", "RoPE");
    for name in [DEEPSEEK2, LITE, DEEPSEEK32] {
        let fault = kept(("kv_cmpr_pe", 0), ("k_pe", 0), LATENT + ROPE, LATENT..LATENT + ROPE);
        trips(&sound(name), fault, words);
    }
}

#[test]
fn the_norm_of_latents_left_out() {
    let words = &wrong("blk 0 kv_cmpr", "RMS norm");
    for name in [DEEPSEEK2, LITE, GLM] {
        trips(&sound(name), kept(("kv_cmpr_pe", 0), ("kv_cmpr", 0), LATENT + ROPE, 0..LATENT), words);
    }
}

#[test]
fn the_norm_of_queries_of_low_rank_left_out() {
    const RANK: usize = 12;
    trips(&sound(DEEPSEEK2), kept(("q", 0), ("q", 1), RANK, 0..RANK), &wrong("blk 0 q (2nd)", "RMS norm"));
    trips(&sound(GLM), kept(("qr", 0), ("qr", 1), RANK, 0..RANK), &wrong("blk 0 qr (2nd)", "RMS norm"));
}

#[test]
fn weights_of_other_heads() {
    heads_turned(DEEPSEEK2, "blk.0.attn_k_b.weight").trips(&wrong("blk 0 Qcur", SUMS));
    heads_turned(DEEPSEEK2, "blk.0.attn_v_b.weight").trips(&wrong("blk 0 kqv_out", "the F32 kernel"));
}

#[test]
fn the_multiplier_of_yarn_off() {
    // Of DeepSeek V2 scores alone depend on it, of others the gain on cosines and sines too.
    let scores = &wrong("blk 0 kqv_out", "the F32 kernel");
    changed(DEEPSEEK2, "rope.scaling.yarn_log_multiplier", 0.0707f32, 0.0807f32).trips(scores);
    changed(DEEPSEEK2, "rope.scaling.yarn_log_multiplier", 0.0707f32, 0f32)
        .trips(&wrong("blk 0 q_pe", "RoPE"));
    changed(MISTRAL4, "rope.scaling.yarn_log_multiplier", 0.1f32, 0.2f32).trips(&wrong("blk 0 q_pe", "RoPE"));
    let whole = &wrong("blk 0 kqv_out", "attention");
    Spoilt::metadata(LITE, "deepseek2.rope.scaling.yarn_log_multiplier", 0.0707, 0.0807).trips(whole);
}

#[test]
fn temperature_of_latents_off() {
    let words = &wrong("blk 0 Qcur_attn_temp_scaled", SUMS);
    changed(MISTRAL4, "attention.temperature_length", 16u32, 17u32).trips(words);
    changed(MISTRAL4, "attention.temperature_scale", 0.1f32, 0.11f32).trips(words);
}

#[test]
fn one_position_more_or_less_is_chosen() {
    let words = &wrong("blk 0 kqv_out", "the F32 kernel");
    for name in [DEEPSEEK32, GLM] {
        changed(name, "attention.indexer.top_k", 12u32, 13u32).trips(words);
        changed(name, "attention.indexer.top_k", 12u32, 11u32).trips(words);
    }
}

#[test]
fn the_worst_positions_are_chosen() {
    /// The heads' weights count the other way.
    struct Turned;
    impl Fault for Turned {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if (id.name, id.occurrence) == ("indexer_weights", 1) {
                values.iter_mut().for_each(|v| *v = -*v);
            }
        }
    }
    trips(&sound(DEEPSEEK32), Turned, &wrong("blk 0 kqv_out", "the F32 kernel"));
}

#[test]
fn steps_of_an_indexer_left_out() {
    let whole = 0..HEADS * INDEX_LEN;
    let transform = kept(("indexer_q", 1), ("indexer_q", 2), whole.end, whole.clone());
    trips(&sound(DEEPSEEK32), transform, &wrong("blk 0 indexer_q (3rd)", "the Hadamard transform"));
    let rotation = kept(("indexer_k", 1), ("indexer_k", 2), INDEX_LEN, 0..INDEX_LEN);
    trips(&sound(GLM), rotation, &wrong("blk 0 indexer_k (3rd)", "RoPE"));
    let words = &wrong("blk 0 indexer_k (2nd)", "layer norm");
    zeroed(DEEPSEEK32, "blk.0.indexer.k_norm.bias").trips(words);
    let words = &wrong("blk 0 indexer_weights (2nd)", SUMS);
    trips(&sound(GLM), kept(("indexer_weights", 0), ("indexer_weights", 1), 8, 0..8), words);
}

#[test]
fn pairs_of_an_indexer_for_halves_and_halves_for_pairs() {
    let halves: Vec<usize> = (0..ROPE / 2).flat_map(|i| [i, i + ROPE / 2]).chain(ROPE..INDEX_LEN).collect();
    let words = &wrong("blk 0 indexer_q (2nd)", "RoPE");
    let of = |order| Permuted { before: ("indexer_q", 0), after: ("indexer_q", 1), order };
    trips(&sound(GLM), of(halves.clone()), words);
    trips(&sound(DEEPSEEK32), of(inverse(&halves)), words);
}

#[test]
fn one_block_more_or_less_is_chosen() {
    let words = &wrong("blk 0 kqv_out", "attention");
    changed("minimax-m3/long", "attention.indexer.top_k", 3u32, 4u32).trips(words);
    changed("minimax-m3/long", "attention.indexer.top_k", 3u32, 2u32).trips(words);
    changed("minimax-m3/long", "attention.indexer.block_size", 4u32, 5u32).trips(words);
    changed("minimax-m3/long", "attention.indexer.local_blocks", 1u32, 0u32).trips(words);
    zeroed("minimax-m3/long", "blk.0.indexer.q_proj.weight").trips(words);
}

#[test]
fn factors_of_minicpm3_left_out() {
    let words = &wrong("blk 0 q_states", "RoPE");
    changed("minicpm3/long", "rope.scaling.original_context_length", 32u32, 4096u32).trips(words);
    let words = "first differs at inp_scaled (prefill), suspect the decoding of the embedding";
    trips(&sound("minicpm3/long"), Scaled("inp_scaled", 1.0 / 12.0), words);
}

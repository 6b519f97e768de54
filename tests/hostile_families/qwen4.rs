//! Qwen 4 (experimental): gated streams, pools of positions, n-grams.

use crate::common::gguf::{GgufBuilder, ty};
use crate::common::qwen4::*;
use crate::common::state_spaces::{EMBD, StateSpaces};
use crate::{refused, sound};

fn without_ngrams() -> GgufBuilder {
    let model =
        ["layers", "ngram_size", "heads_per_ngram", "conv_kernel", "eos_token_id", "layer_multipliers"]
            .into_iter()
            .chain(["head_offsets", "head_vocab_sizes"])
            .fold(qwen4(), |model, key| model.no_key(&format!("ple.{key}")));
    let model =
        model.no_key("embedding_length_per_layer_input").without_tensor("per_layer_token_embd.weight");
    ["key", "value", "conv1d", "norm_key", "norm_query", "norm_conv"]
        .into_iter()
        .fold(model, |model, part| model.without_tensor(&format!("blk.0.ple_{part}.weight")))
}

#[test]
fn models_are_sound() {
    sound(&qwen4());
    sound(&without_ngrams());
    // Norms of a row each, one ratio for all, none at all, a block of multi-token prediction and images.
    let flat = |name: &str| qwen4().replace(name, ty::F32, &[STREAMS * EMBD], vec![1f32; 96]);
    sound(&flat("blk.0.hc_attn_norm.weight"));
    sound(&flat("blk.0.ple_norm_conv.weight"));
    sound(&qwen4().key("attention.compress_ratios", POOL));
    sound(&qwen4().no_key("attention.compress_ratios"));
    sound(&qwen4().key("attention.compress_ratios", vec![0u32, 0]));
    sound(&qwen4().key("attention.indexer.top_k", POOL << 20));
    sound(&qwen4().key("ple.image_token_id", 5u32));
    let predicting = qwen4()
        .key("block_count", 3u32)
        .key("nextn_predict_layers", 1u32)
        .key("attention.compress_ratios", vec![0u32, POOL, POOL])
        .weights("blk.2.nextn.hc_head_down.weight", &[STREAMS * EMBD, RANK]);
    sound(&predicting);
}

refused! {
    streams_unnamed: qwen4().no_key("hyper_connection.count") => "qwen4exp.hyper_connection.count is missing";
    streams_one: qwen4().key("hyper_connection.count", 1u32) => "qwen4exp.hyper_connection.count is 1, where 2 to 64 make sense";
    streams_many: qwen4().key("hyper_connection.count", 65u32) => "qwen4exp.hyper_connection.count is 65, where 2 to 64 make sense";
    streams_more: qwen4().key("hyper_connection.count", 4u32) => "tensor blk.0.ple_key.weight has the shape 32 x 96, where 32 x 128 is needed";
    rank_unnamed: qwen4().no_key("hyper_connection.low_rank") => "qwen4exp.hyper_connection.low_rank is missing";
    rank_none: qwen4().key("hyper_connection.low_rank", 0u32) => "qwen4exp.hyper_connection.low_rank is 0";
    rank_other: qwen4().key("hyper_connection.low_rank", 7u32) => "tensor blk.0.hc_attn_down.weight has the shape 96 x 6, where 96 x 7 is needed";
    rounds_of_another_family: qwen4().key("hyper_connection.sinkhorn_iterations", 3u32) => "qwen4exp.hyper_connection.sinkhorn_iterations";
    norm_of_streams_missing: qwen4().without_tensor("blk.1.hc_ffn_norm.weight") => "tensor blk.1.hc_ffn_norm.weight is missing";
    norm_of_streams_of_zeros: qwen4().of_shape("blk.1.hc_ffn_norm.weight", &[EMBD, STREAMS]) => "tensor blk.1.hc_ffn_norm.weight holds zeros alone";
    norm_of_streams_turned: qwen4().of_shape("blk.0.hc_attn_norm.weight", &[STREAMS, EMBD]) => "tensor blk.0.hc_attn_norm.weight has the shape 3 x 32, where 32 x 3 is needed";
    norm_of_one_stream: qwen4().of_shape("blk.0.hc_attn_norm.weight", &[EMBD]) => "tensor blk.0.hc_attn_norm.weight has the shape 32, where 96 is needed";
    gates_missing: qwen4().without_tensor("blk.0.hc_attn_up.weight") => "tensor blk.0.hc_attn_up.weight is missing";
    injection_missing: qwen4().without_tensor("blk.0.hc_ffn_inject.weight") => "tensor blk.0.hc_ffn_inject.weight is missing";
    injection_for_one: qwen4().of_shape("blk.0.hc_attn_inject.weight", &[STREAMS * EMBD, 1]) => "tensor blk.0.hc_attn_inject.weight has the shape 96 x 1, where 96 x 3 is needed";
    injection_at_the_end: qwen4().weights("output_hc_inject.weight", &[STREAMS * EMBD, STREAMS]) => "tensor output_hc_inject.weight is not part of the architecture qwen4exp";
    head_of_streams_missing: qwen4().without_tensor("output_hc_norm.weight") => "tensor output_hc_norm.weight is missing";
    norm_at_the_end: qwen4().norm("output_norm.weight") => "tensor output_norm.weight is not part of the architecture qwen4exp";
    norm_before_a_block: qwen4().norm("blk.0.attn_norm.weight") => "tensor blk.0.attn_norm.weight is not part of the architecture qwen4exp";
    shared_network_missing: qwen4().without_tensor("blk.1.ffn_up_shexp.weight") => "tensor blk.1.ffn_up_shexp.weight is missing";
    values_of_another_length: qwen4().key("attention.value_length", 16u32) => "qwen4exp.attention.value_length is 16, where keys and their gates have 8";
    bias_of_queries: qwen4().weights("blk.1.attn_q.bias", &[64]) => "tensor blk.1.attn_q.bias is not part of the architecture qwen4exp";
    merged_projections: qwen4().weights("blk.1.attn_qkv.weight", &[EMBD, 96]) => "tensor blk.1.attn_qkv.weight is not part of the architecture qwen4exp";
    sections_missing: qwen4().no_key("rope.dimension_sections") => "qwen4exp.rope.dimension_sections is missing";
}

refused! {
    indexer_heads_missing: qwen4().no_key("attention.indexer.head_count") => "qwen4exp.attention.indexer.head_count is missing";
    indexer_heads_more: qwen4().key("attention.indexer.head_count", 4u32) => "tensor blk.1.indexer.q_proj.weight has the shape 32 x 48, where 32 x 64 is needed";
    indexer_of_an_odd_length: qwen4().key("attention.indexer.key_length", 24u32) => "qwen4exp.attention.indexer.key_length is 24, where a multiple of 16 of at least 8 is needed";
    indexer_shorter_than_what_is_rotated: qwen4().key("attention.key_length", 32u32).key("attention.value_length", 32u32) => "qwen4exp.attention.indexer.key_length is 16, where a multiple of 16 of at least 32 is needed";
    indexer_chooses_nothing: qwen4().key("attention.indexer.top_k", 0u32) => "qwen4exp.attention.indexer.top_k is 0";
    indexer_chooses_parts_of_pools: qwen4().key("attention.indexer.top_k", 7u32) => "qwen4exp.attention.indexer.top_k is 7, where pools of 3 are chosen";
    indexer_unnamed: qwen4().no_key("attention.indexer.top_k") => "qwen4exp.attention.indexer.top_k is missing";
    indexer_keys_missing: qwen4().without_tensor("blk.1.indexer.k_proj.weight") => "tensor blk.1.indexer.k_proj.weight is missing";
    indexer_norm_missing: qwen4().without_tensor("blk.1.indexer.k_norm.weight") => "tensor blk.1.indexer.k_norm.weight is missing";
    indexer_norm_of_zeros: qwen4().of_shape("blk.1.indexer.q_norm.weight", &[INDEX_LEN]) => "tensor blk.1.indexer.q_norm.weight holds zeros alone";
    pools_of_one: qwen4().key("attention.compress_ratios", vec![0u32, 1]) => "qwen4exp.attention.indexer.top_k is 6, where pools of 1 are chosen";
    pools_that_differ: qwen4().key("attention.compress_ratios", vec![2u32, 3]) => "qwen4exp.attention.compress_ratios holds 2 and 3, where all are 0 or the same";
    pools_of_too_few_layers: qwen4().key("attention.compress_ratios", vec![3u32]) => "qwen4exp.attention.compress_ratios has 1 values, where 2 are needed";
    pools_of_too_many_layers: qwen4().key("attention.compress_ratios", vec![3u32, 3, 3]) => "qwen4exp.attention.compress_ratios has 3 values, where 2 are needed";
    pools_of_texts: qwen4().key("attention.compress_ratios", vec!["3", "3"]) => "qwen4exp.attention.compress_ratios is an array of strings";
    pools_negative: qwen4().key("attention.compress_ratios", vec![0i32, -3]) => "qwen4exp.attention.compress_ratios holds what is no count";
}

refused! {
    ngrams_in_two_layers: qwen4().key("ple.layers", vec![0u32, 1]) => "qwen4exp.ple.layers lists 2 layers";
    ngrams_beyond_the_layers: qwen4().key("ple.layers", vec![2u32]) => "qwen4exp.ple.layers is 2, where there are 2";
    ngrams_far_beyond: qwen4().key("ple.layers", vec![u64::MAX]) => "qwen4exp.ple.layers is 18446744073709551615";
    ngrams_before_attention: qwen4().key("ple.layers", vec![1u32]) => "qwen4exp.ple.layers is 1, which is no layer with a delta net";
    ngrams_of_a_number: qwen4().key("ple.layers", 0u32) => "qwen4exp.ple.layers is no array of whole numbers";
    ngrams_of_texts: qwen4().key("ple.layers", vec!["0"]) => "qwen4exp.ple.layers is no array of whole numbers";
    ngrams_of_negatives: qwen4().key("ple.layers", vec![-1i32]) => "qwen4exp.ple.layers holds what is no whole number";
    ngrams_nobody_has: qwen4().no_key("ple.layers") => "qwen4exp.ple.ngram_size (of type u32) asks for something";
    order_missing: qwen4().no_key("ple.ngram_size") => "qwen4exp.ple.ngram_size is missing";
    order_of_one: qwen4().key("ple.ngram_size", 1u32) => "qwen4exp.ple.ngram_size is 1, where 2 to 8 make sense";
    order_of_nine: qwen4().key("ple.ngram_size", 9u32) => "qwen4exp.ple.ngram_size is 9, where 2 to 8 make sense";
    rows_none: qwen4().key("ple.heads_per_ngram", 0u32) => "qwen4exp.ple.heads_per_ngram is 0";
    rows_too_many: qwen4().key("ple.heads_per_ngram", 33u32) => "qwen4exp.ple.heads_per_ngram is 33, which makes 66 rows a token, where 64 make sense";
    rows_of_another_length: qwen4().key("embedding_length_per_layer_input", 16u32) => "qwen4exp.embedding_length_per_layer_input is 16, where 4 rows make an embedding of 32";
    rows_of_no_length: qwen4().no_key("embedding_length_per_layer_input") => "qwen4exp.embedding_length_per_layer_input is missing";
    multipliers_missing: qwen4().no_key("ple.layer_multipliers") => "qwen4exp.ple.layer_multipliers is missing";
    multipliers_too_few: qwen4().key("ple.layer_multipliers", vec![1u64, 3]) => "qwen4exp.ple.layer_multipliers has 2 values, where 3 are needed";
    multipliers_of_floats: qwen4().key("ple.layer_multipliers", vec![1f32, 3.0, 5.0]) => "qwen4exp.ple.layer_multipliers holds what is no whole number";
    offsets_too_few: qwen4().key("ple.head_offsets", vec![0u64, 10, 0]) => "qwen4exp.ple.head_offsets has 3 values, where 4 are needed";
    offsets_beyond_the_table: qwen4().key("ple.head_offsets", vec![0u64, 10, 0, 30]) => "qwen4exp.ple.head_offsets holds 30, where 11 rows end beyond the 40 of per_layer_token_embd.weight";
    offsets_beyond_all: qwen4().key("ple.head_offsets", vec![0u64, 10, 0, u64::MAX]) => "qwen4exp.ple.head_offsets holds 18446744073709551615 at element 3, where 11 rows end beyond 2147483647";
    sizes_of_none: qwen4().key("ple.head_vocab_sizes", vec![10u64, 0, 40, 11]) => "qwen4exp.ple.head_vocab_sizes holds 0 at element 1";
    sizes_missing: qwen4().no_key("ple.head_vocab_sizes") => "qwen4exp.ple.head_vocab_sizes is missing";
    end_of_texts_missing: qwen4().no_key("ple.eos_token_id") => "qwen4exp.ple.eos_token_id is missing";
    table_missing: qwen4().without_tensor("per_layer_token_embd.weight") => "tensor per_layer_token_embd.weight is missing";
    table_of_longer_rows: qwen4().of_shape("per_layer_token_embd.weight", &[16, TABLE]) => "tensor per_layer_token_embd.weight has the shape 16 x 40, where 8 x 40 is needed";
    taps_of_ngrams_missing: qwen4().no_key("ple.conv_kernel") => "qwen4exp.ple.conv_kernel is missing";
    taps_of_ngrams_more: qwen4().key("ple.conv_kernel", 1u32 << 24) => "tensor blk.0.ple_conv1d.weight has the shape 2 x 96, where 16777216 x 96 is needed";
    taps_of_ngrams_not_numbers: qwen4().replace("blk.0.ple_conv1d.weight", ty::F32, &[NGRAM_TAPS, STREAMS * EMBD], vec![f32::NAN; 192]) => "tensor blk.0.ple_conv1d.weight holds NaN at element 0";
    key_of_ngrams_missing: qwen4().without_tensor("blk.0.ple_key.weight") => "tensor blk.0.ple_key.weight is missing";
    value_of_ngrams_of_all_streams: qwen4().of_shape("blk.0.ple_value.weight", &[EMBD, STREAMS * EMBD]) => "tensor blk.0.ple_value.weight has the shape 32 x 96, where 32 x 32 is needed";
    norm_of_ngrams_missing: qwen4().without_tensor("blk.0.ple_norm_query.weight") => "tensor blk.0.ple_norm_query.weight is missing";
}

//! Models whose files are sound and which cannot be run, or must not be: every case is refused by what runs a
//! model, each with its own error, and costs no more time and memory than a small file may. What only reads
//! the file still reads it.
#![cfg(unix)]

mod common;
#[path = "common/limits.rs"]
mod limits;

use std::fs;

use common::gguf::{Data, GgufBuilder, Kv, ty};
use common::tiny::{TOKENS, tiny_bpe, tiny_model};
use limits::{COMMANDS, Watched};
use tempfile::TempDir;

fn run(bytes: &[u8], args: &[&str]) -> Watched {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("m.gguf"), bytes).unwrap();
    limits::wayinfer(dir.path(), bytes.len() as u64, args)
}

/// `generate` and `trace` refuse the model with this text; `inspect` and `dequant` read what is sound of it,
/// or refuse it in words of their own.
fn refused_by_runs(model: &GgufBuilder, text: &str) {
    let bytes = model.build();
    let [inspect, generate, trace, dequant] = COMMANDS.map(|args| run(&bytes, args));
    for run in [&generate, &trace] {
        assert_eq!((run.status.code(), run.stdout.as_str()), (Some(1), ""), "{}", run.stderr);
        assert!(run.error().starts_with("error: m.gguf: "), "{}", run.stderr);
        assert!(run.error().contains(text), "another text: {}", run.stderr);
    }
    assert_eq!(generate.error(), trace.error());
    assert_eq!(inspect.status.code(), Some(0), "{}", inspect.stderr);
    assert!(dequant.status.success() || !dequant.error().is_empty(), "{}", dequant.stderr);
}

/// One test a model: how it is spoiled, what the error contains.
macro_rules! refused {
    ($($name:ident: $model:expr => $text:literal;)*) => {$(
        #[test]
        fn $name() {
            refused_by_runs(&$model, $text);
        }
    )*};
}

#[test]
fn the_models_are_sound_before_they_are_spoiled() {
    for model in [tiny_model(), tiny_bpe()] {
        let bytes = model.build();
        for args in COMMANDS {
            let run = run(&bytes, args);
            assert!(run.status.success(), "{args:?}: {}", run.stderr);
        }
        let chat = run(&bytes, &["generate", "-m", "m.gguf", "-p", "a", "-n", "2", "--chat"]);
        assert_eq!(chat.status.success(), model.pairs.iter().any(|p| p.key.ends_with(b"chat_template")));
        let check = run(&bytes, &["inspect", "--check", "m.gguf"]);
        assert!(check.status.success(), "{}{}", check.stdout, check.stderr);
    }
}

/// A tiny model whose context was stretched from 16 positions by YaRN.
fn yarn() -> GgufBuilder {
    tiny_model()
        .set("llama.rope.scaling.type", "yarn")
        .set("llama.rope.scaling.factor", 4.0f32)
        .set("llama.rope.scaling.original_context_length", 16u32)
}

/// A second layer whose keys and values have as many heads as its queries.
fn two_layers() -> GgufBuilder {
    let all = |b: &mut GgufBuilder| {
        let first: Vec<_> = b.tensors.iter().filter(|t| t.name.starts_with(b"blk.0.")).cloned().collect();
        for mut tensor in first {
            tensor.name[4] = b'1';
            b.tensors.push(tensor);
        }
    };
    let square = || vec![0.01f32; 32 * 32];
    tiny_model()
        .set("llama.block_count", 2u32)
        .set("llama.attention.head_count", vec![4u32, 4])
        .set("llama.attention.head_count_kv", vec![2u32, 4])
        .set("llama.feed_forward_length", vec![64u32, 64])
        .with(all)
        .replace("blk.1.attn_k.weight", ty::F32, &[32, 32], square())
        .replace("blk.1.attn_v.weight", ty::F32, &[32, 32], square())
}

/// Shapes beside the plain ones.
#[test]
fn sound_models_of_other_shapes_run() {
    let values = |n: u64| vec![0.01f32; n as usize];
    let shorter_values = tiny_model()
        .set("llama.attention.value_length", 4u32)
        .replace("blk.0.attn_v.weight", ty::F32, &[32, 8], values(256))
        .replace("blk.0.attn_output.weight", ty::F32, &[16, 32], values(512));
    // Longer keys say nothing of values, which are the embedding's part of a head.
    let longer_keys = tiny_model()
        .set("llama.attention.key_length", 16u32)
        .replace("blk.0.attn_q.weight", ty::F32, &[32, 64], values(2048))
        .replace("blk.0.attn_k.weight", ty::F32, &[32, 32], values(1024));
    let long_rope = tiny_model()
        .set("llama.rope.scaling.type", "longrope")
        .tensor("rope_factors_long.weight", ty::F32, &[4], vec![2.0f32; 4])
        .tensor("rope_factors_short.weight", ty::F32, &[4], vec![1.0f32; 4]);
    let partly_rotated = tiny_model().set("llama.rope.dimension_count", 4u32);
    for model in [shorter_values, longer_keys, partly_rotated, long_rope, yarn(), two_layers()] {
        let bytes = model.build();
        for args in COMMANDS {
            let run = run(&bytes, args);
            assert!(run.status.success(), "{args:?}: {}", run.stderr);
        }
    }
}

// ---- Metadata of the model -------------------------------------------------------------------------------------------

refused! {
    architecture_missing: tiny_model().without("general.architecture") => "metadata key general.architecture is missing";
    architecture_a_number: tiny_model().set("general.architecture", 7u32) => "metadata key general.architecture is the u32 7, where a string";
    architecture_unknown: tiny_model().set("general.architecture", "nonesuch") => "architecture nonesuch is not supported (supported: llama, ";
    layers_missing: tiny_model().without("llama.block_count") => "llama.block_count is missing";
    layers_a_text: tiny_model().set("llama.block_count", "1") => "llama.block_count is a string, where a non-negative integer";
    layers_a_float: tiny_model().set("llama.block_count", 1.0f32) => "llama.block_count is the float 1";
    layers_none: tiny_model().set("llama.block_count", 0u32) => "llama.block_count is 0, where 1 to 16777216";
    layers_negative: tiny_model().set("llama.block_count", -1i32) => "llama.block_count is the i32 -1";
    layers_most: tiny_model().set("llama.block_count", u64::MAX) => "llama.block_count is 18446744073709551615";
    layers_more_than_there_are: tiny_model().set("llama.block_count", 1u32 << 12) => "tensor blk.1.attn_norm.weight is missing";
    layers_too_many: tiny_model().set("llama.block_count", (1u32 << 12) + 1) => "llama.block_count is 4097, where 1 to 4096 make sense";
    embedding_none: tiny_model().set("llama.embedding_length", 0u32) => "llama.embedding_length is 0";
    embedding_another: tiny_model().set("llama.embedding_length", 64u32) => "tensor token_embd.weight has the shape 32 x 16, where 64 x 16 is needed";
    heads_none: tiny_model().set("llama.attention.head_count", 0u32) => "llama.attention.head_count is 0";
    heads_that_do_not_divide: tiny_model().set("llama.attention.head_count", 6u32) => "llama.attention.head_count is 6, which does not divide the embedding length of 32";
    heads_that_divide_with_a_rest: tiny_model().set("llama.attention.head_count", 10u32).set("llama.attention.head_count_kv", 10u32) => "llama.attention.head_count is 10, which does not divide the embedding length of 32";
    heads_more_than_elements: tiny_model().set("llama.attention.head_count", 64u32) => "llama.attention.head_count is 64, which does not divide the embedding length of 32";
    heads_that_differ: tiny_model().set("llama.attention.head_count", vec![4u32, 2]) => "llama.attention.head_count has 2 values, where 1 are needed";
    heads_an_array_of_none: tiny_model().set("llama.attention.head_count", Vec::<u32>::new()) => "llama.attention.head_count has 0 values, where 1 are needed";
    heads_none_in_a_layer: tiny_model().set("llama.attention.head_count_kv", vec![0u32]) => "llama.attention.head_count_kv is 0 in layer 0, where at least 1 is needed";
    heads_an_array_of_floats: tiny_model().set("llama.attention.head_count", vec![4.0f32]) => "llama.attention.head_count holds what is no count";
    heads_an_array_of_much: tiny_model().set("llama.attention.head_count", vec![u64::MAX]) => "llama.attention.head_count holds 18446744073709551615, at most 16777216";
    heads_an_array_of_texts: tiny_model().set("llama.attention.head_count", vec!["4"]) => "llama.attention.head_count is an array of strings";
    kv_heads_none: tiny_model().set("llama.attention.head_count_kv", 0u32) => "llama.attention.head_count_kv is 0";
    kv_heads_that_do_not_divide: tiny_model().set("llama.attention.head_count_kv", 3u32) => "llama.attention.head_count_kv is 3, which does not divide 4";
    head_size_odd: tiny_model().set("llama.attention.key_length", 7u32) => "llama.attention.key_length is 7, where RoPE needs an even size";
    head_sizes_huge: tiny_model().set("llama.attention.key_length", 1u32 << 24).set("llama.attention.value_length", 1u32 << 24).set("llama.attention.head_count", 1u32 << 24).set("llama.attention.head_count_kv", 1u32 << 24) => "tensor blk.0.attn_q.weight has the shape 32 x 32";
    value_size_another: tiny_model().set("llama.attention.value_length", 4u32) => "tensor blk.0.attn_v.weight has the shape 32 x 16, where 32 x 8 is needed";
    value_size_none: tiny_model().set("llama.attention.value_length", 0u32) => "llama.attention.value_length is 0";
    rope_odd: tiny_model().set("llama.rope.dimension_count", 5u32) => "llama.rope.dimension_count is 5, where RoPE needs an even size";
    rope_more_than_heads: tiny_model().set("llama.rope.dimension_count", 10u32) => "llama.rope.dimension_count is 10, where heads are 8";
    rope_base_none: tiny_model().set("llama.rope.freq_base", 0.0f32) => "llama.rope.freq_base is 0";
    rope_base_not_a_number: tiny_model().set("llama.rope.freq_base", f32::NAN) => "llama.rope.freq_base is NaN, where a finite number";
    rope_factor_infinite: tiny_model().set("llama.rope.scaling.factor", f32::INFINITY) => "llama.rope.scaling.factor is inf";
    rope_factor_negative: tiny_model().set("llama.rope.scaling.factor", -2.0f32) => "llama.rope.scaling.factor is -2";
    rope_scaling_unknown: tiny_model().set("llama.rope.scaling.type", "spiral") => "llama.rope.scaling.type (spiral) asks for something that is not supported";
    rope_original_context_none: tiny_model().set("llama.rope.scaling.original_context_length", 0u32) => "llama.rope.scaling.original_context_length is 0";
    yarn_turns_none: yarn().set("llama.rope.scaling.yarn_beta_fast", 0.0f32) => "llama.rope.scaling.yarn_beta_fast is 0, where more than 0 is needed";
    yarn_turns_negative: yarn().set("llama.rope.scaling.yarn_beta_slow", -1.0f32) => "llama.rope.scaling.yarn_beta_slow is -1, where more than 0 is needed";
    yarn_turns_not_a_number: yarn().set("llama.rope.scaling.yarn_beta_slow", f32::NAN) => "llama.rope.scaling.yarn_beta_slow is NaN";
    yarn_mix_infinite: yarn().set("llama.rope.scaling.yarn_ext_factor", f32::INFINITY) => "llama.rope.scaling.yarn_ext_factor is inf";
    hidden_none: tiny_model().set("llama.feed_forward_length", 0u32) => "llama.feed_forward_length is 0";
    hidden_missing: tiny_model().without("llama.feed_forward_length") => "llama.feed_forward_length is 0 or missing for layer 0";
    context_none: tiny_model().set("llama.context_length", 0u32) => "llama.context_length is 0";
    context_huge: tiny_model().set("llama.context_length", u32::MAX) => "llama.context_length is 4294967295";
    epsilon_missing: tiny_model().without("llama.attention.layer_norm_rms_epsilon") => "llama.attention.layer_norm_rms_epsilon is missing";
    epsilon_negative: tiny_model().set("llama.attention.layer_norm_rms_epsilon", -1.0f32) => "llama.attention.layer_norm_rms_epsilon is negative";
    epsilon_not_a_number: tiny_model().set("llama.attention.layer_norm_rms_epsilon", f32::NAN) => "llama.attention.layer_norm_rms_epsilon is NaN";
    experts_without_use: tiny_model().set("llama.expert_count", 4u32) => "llama.expert_used_count is 0, where there are 4 experts";
    experts_used_beyond: tiny_model().set("llama.expert_count", 2u32).set("llama.expert_used_count", 3u32) => "llama.expert_used_count is 3, where there are 2 experts";
    experts_huge: tiny_model().set("llama.expert_count", 1u32 << 24).set("llama.expert_used_count", 1u32 << 24) => "llama.expert_count makes 16777216 experts of 1 layers";
    vocabulary_size_another: tiny_model().set("llama.vocab_size", 17u32) => "llama.vocab_size counts 17 tokens, where token_embd.weight has 16";
    tokens_too_few: tiny_model().set("tokenizer.ggml.tokens", vec!["a", "b"]) => "tokenizer.ggml.tokens counts 2 tokens, where token_embd.weight has 16";
    window_huge: tiny_model().set("llama.attention.sliding_window", u64::MAX) => "llama.attention.sliding_window is 18446744073709551615";
    key_unknown: tiny_model().set("llama.secret_sauce", 1u32) => "metadata key llama.secret_sauce (of type u32) asks for something that is not supported";
    softcapping: tiny_model().set("llama.final_logit_softcapping", 30.0f32) => "llama.final_logit_softcapping (30) asks for something";
}

// ---- Tensors of the model --------------------------------------------------------------------------------------------

refused! {
    embedding_missing: tiny_model().without_tensor("token_embd.weight") => "tensor token_embd.weight is missing";
    matrix_missing: tiny_model().without_tensor("blk.0.attn_k.weight") => "tensor blk.0.attn_k.weight is missing";
    norm_missing: tiny_model().without_tensor("output_norm.weight") => "tensor output_norm.weight is missing";
    matrix_of_another_shape: tiny_model().replace("blk.0.ffn_up.weight", ty::F32, &[32, 63], Data::Zero) => "tensor blk.0.ffn_up.weight has the shape 32 x 63, where 32 x 64 is needed";
    matrix_of_three_sizes: tiny_model().replace("blk.0.ffn_up.weight", ty::F32, &[32, 64, 2], Data::Zero) => "tensor blk.0.ffn_up.weight has the shape 32 x 64 x 2";
    matrix_empty: tiny_model().replace("output.weight", ty::F32, &[32, 0], Data::Zero) => "tensor output.weight has the shape 32 x 0";
    embedding_empty: tiny_model().replace("token_embd.weight", ty::F32, &[32, 0], Data::Zero) => "counts 16 tokens, where token_embd.weight has 0";
    norm_of_another_length: tiny_model().replace("output_norm.weight", ty::F32, &[31], Data::Zero) => "tensor output_norm.weight has the shape 31, where 32 is needed";
    tensor_of_integers: tiny_model().replace("output.weight", ty::I8, &[32, TOKENS], Data::Zero) => "tensor output.weight is of type I8, which is not supported";
    tensor_unknown: tiny_model().tensor("blk.0.attn_sinks.weight", ty::F32, &[4], Data::Zero) => "tensor blk.0.attn_sinks.weight is not part of the architecture llama";
    factors_of_one_kind: tiny_model().tensor("rope_factors_long.weight", ty::F32, &[4], vec![1.0f32; 4]) => "tensor rope_factors_short.weight is missing";
    frequencies_of_zero: tiny_model().tensor("rope_freqs.weight", ty::F32, &[4], Data::Zero) => "tensor rope_freqs.weight holds 0 at element 0";
}

// ---- The tokenizer ---------------------------------------------------------------------------------------------------

refused! {
    tokenizer_missing: tiny_model().without("tokenizer.ggml.model") => "tokenizer.ggml.model is missing";
    tokenizer_unknown: tiny_model().set("tokenizer.ggml.model", "rot13") => "tokenizer.ggml.model is \"rot13\", which is not supported";
    tokenizer_a_number: tiny_model().set("tokenizer.ggml.model", 1u8) => "tokenizer.ggml.model is the u8 1, where a string";
    tokenizer_not_utf8: tiny_model().set("tokenizer.ggml.model", &b"\xff"[..]) => "tokenizer.ggml.model is a string that is not UTF-8";
    tokens_missing: tiny_model().without("tokenizer.ggml.tokens") => "tokenizer.ggml.tokens is missing";
    tokens_of_another_type: tiny_model().set("tokenizer.ggml.tokens", vec![0u32; TOKENS as usize]) => "tokenizer.ggml.tokens is an array of 16 u32, where an array of strings";
    tokens_no_array: tiny_model().set("tokenizer.ggml.tokens", "a") => "tokenizer.ggml.tokens is a string, where an array of strings";
    token_not_utf8: tiny_model().set("tokenizer.ggml.tokens", token_list(&[b"\xff"])) => "token 0 is not UTF-8";
    token_twice: tiny_model().set("tokenizer.ggml.tokens", token_list(&[b"a", b"a"])) => "tokens 0 and 1 have the same text \"a\"";
    scores_missing: tiny_model().without("tokenizer.ggml.scores") => "tokenizer.ggml.scores is missing";
    scores_too_few: tiny_model().set("tokenizer.ggml.scores", vec![0.0f32; 15]) => "tokenizer.ggml.scores has 15 elements for 16 tokens";
    scores_too_many: tiny_model().set("tokenizer.ggml.scores", vec![0.0f32; 17]) => "tokenizer.ggml.scores has 17 elements for 16 tokens";
    scores_of_another_type: tiny_model().set("tokenizer.ggml.scores", vec!["0"; 16]) => "tokenizer.ggml.scores is an array of 16 str";
    score_not_a_number: tiny_model().set("tokenizer.ggml.scores", vec![f32::NAN; 16]) => "the score of token 0 is not a number";
    types_too_few: tiny_model().set("tokenizer.ggml.token_type", vec![1i32; 3]) => "tokenizer.ggml.token_type has 3 elements for 16 tokens";
    types_of_another_type: tiny_model().set("tokenizer.ggml.token_type", vec![1u8; 16]) => "tokenizer.ggml.token_type is an array of 16 u8, where an array of i32";
    byte_token_without_a_byte: tiny_model().set("tokenizer.ggml.token_type", vec![6i32; 16]) => "token 0 is a byte token, but its text \"<unk>\"";
    bos_outside: tiny_model().set("tokenizer.ggml.bos_token_id", 16u32) => "tokenizer.ggml.bos_token_id is 16, but the vocabulary has 16 tokens";
    eos_wraps: tiny_model().set("tokenizer.ggml.eos_token_id", (1u64 << 32) + 2) => "tokenizer.ggml.eos_token_id is 4294967298";
    eos_negative: tiny_model().set("tokenizer.ggml.eos_token_id", -2i32) => "tokenizer.ggml.eos_token_id is the i32 -2";
    eot_outside: tiny_model().set("tokenizer.ggml.eot_token_id", u32::MAX - 1) => "tokenizer.ggml.eot_token_id is 4294967294";
    bos_a_text: tiny_model().set("tokenizer.ggml.bos_token_id", "<s>") => "tokenizer.ggml.bos_token_id is a string";
    add_bos_a_number: tiny_model().set("tokenizer.ggml.add_bos_token", 1u32) => "tokenizer.ggml.add_bos_token is the u32 1, where a boolean";
    add_eos_without_one: tiny_bpe().without("tokenizer.ggml.eos_token_id").set("tokenizer.ggml.add_eos_token", true) => "tokenizer.ggml.add_eos_token is set, but tokenizer.ggml.eos_token_id is missing";
    pre_tokenizer_unknown: tiny_bpe().set("tokenizer.ggml.pre", "nonesuch") => "pre-tokenizer \"nonesuch\" is not known";
    pre_tokenizer_a_number: tiny_bpe().set("tokenizer.ggml.pre", 1u32) => "tokenizer.ggml.pre is the u32 1";
    merges_missing: tiny_bpe().without("tokenizer.ggml.merges") => "tokenizer.ggml.merges is missing";
    merges_of_another_type: tiny_bpe().set("tokenizer.ggml.merges", vec![1u32]) => "tokenizer.ggml.merges is an array of 1 u32";
    merge_without_a_space: tiny_bpe().set("tokenizer.ggml.merges", vec!["ab"]) => "merge 0 is \"ab\", not two tokens with a space";
    merge_of_one: tiny_bpe().set("tokenizer.ggml.merges", vec!["a b", "a "]) => "merge 1 is \"a \"";
    merge_not_utf8: tiny_bpe().set("tokenizer.ggml.merges", Kv::array(8, 1, [&3u64.to_le_bytes()[..], b"a \xff"].concat())) => "merge 0 is";
    merge_of_unknown_tokens: tiny_bpe().set("tokenizer.ggml.merges", vec!["a q"]) => "a merge uses \"q\", which is not in the vocabulary";
    merge_to_an_unknown_token: tiny_bpe().set("tokenizer.ggml.merges", vec!["b a"]) => "a merge uses \"ba\", which is not in the vocabulary";
    byte_without_a_token: tiny_bpe().set("tokenizer.ggml.tokens", token_list(&[b"x"])).set("tokenizer.ggml.merges", Vec::<&str>::new()) => "the vocabulary has no token for the byte 0x61";
}

/// As many tokens as the tiny models have, the first of which are these.
fn token_list(first: &[&[u8]]) -> Kv {
    let others = (first.len()..TOKENS as usize).map(|i| format!("other{i}").into_bytes());
    let tokens: Vec<Vec<u8>> = first.iter().map(|t| t.to_vec()).chain(others).collect();
    let bytes = tokens.iter().flat_map(|t| [&(t.len() as u64).to_le_bytes()[..], t].concat()).collect();
    Kv::array(8, tokens.len() as u64, bytes)
}

/// `"<special00000>"` and so on.
fn special_tokens(count: u32) -> GgufBuilder {
    let tokens: Vec<String> = (0..count).map(|i| format!("<special{i:05}>")).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    tiny_bpe()
        .set("tokenizer.ggml.token_type", vec![3i32; tokens.len()])
        .set("tokenizer.ggml.tokens", tokens)
        .set("tokenizer.ggml.merges", Vec::<&str>::new())
}

#[test]
fn special_tokens_are_not_without_end() {
    let tokenize = |count| run(&special_tokens(count).build(), &["tokenize", "-m", "m.gguf", "--text", ""]);
    let many = tokenize(60_000);
    let wanted = "error: m.gguf: the vocabulary has 60000 special tokens of 840000 bytes in all";
    assert!(many.status.success(), "{}", many.stderr);
    let more = tokenize(90_000);
    let wanted = wanted.replace("60000", "90000").replace("840000", "1260000");
    assert_eq!(more.error(), format!("{wanted}, more than 1048576"));
}

// ---- Many of what a file may have ------------------------------------------------------------------------------------

/// Experts as older files have them, three small tensors each; every one is found by its name, not by a look
/// at all others.
#[test]
fn many_tensors_are_found_in_little_time() {
    const EXPERTS: u64 = 15_000;
    let mut model = tiny_model()
        .set("llama.expert_count", EXPERTS as u32)
        .set("llama.expert_used_count", 1u32)
        .set("llama.expert_feed_forward_length", 1u32)
        .with(|m| {
            m.tensors.retain(|t| {
                !["gate", "up", "down"].iter().any(|p| t.name == format!("blk.0.ffn_{p}.weight").as_bytes())
            })
        })
        .tensor("blk.0.ffn_gate_inp.weight", ty::F32, &[32, EXPERTS], Data::Zero);
    for e in 0..EXPERTS {
        for (part, dims) in [("gate", [32, 1]), ("up", [32, 1]), ("down", [1, 32])] {
            model = model.tensor(format!("blk.0.ffn_{part}.{e}.weight"), ty::F32, &dims, Data::Zero);
        }
    }
    let generate = run(&model.build(), COMMANDS[1]);
    assert!(generate.status.success(), "{}", generate.stderr);
}

/// Tensors that nobody wants are named, and shown in tables that take little memory.
#[test]
fn many_tensors_are_shown_in_little_memory() {
    let mut model = tiny_model();
    for i in 0..60_000 {
        model = model.tensor(format!("extra{i}"), ty::F32, &[1], Data::Zero);
    }
    refused_by_runs(&model, "tensor extra0 is not part of the architecture");
}

#[test]
fn many_findings_take_little_time() {
    let mut model = tiny_model();
    for i in 0..60_000 {
        model = model.kv(format!("tokenizer.ggml.n{i}_token_id"), 99u32);
    }
    let check = run(&model.build(), &["inspect", "--check", "m.gguf"]);
    assert!(check.status.success(), "{}", check.stderr);
    assert!(check.stdout.contains("tokenizer.ggml.n0_token_id"), "{}", check.stdout);
}

#[test]
fn no_token_at_all() {
    let model = tiny_model().set("tokenizer.ggml.tokens", Vec::<&str>::new());
    refused_by_runs(&model, "tokenizer.ggml.tokens counts 0 tokens");
    let tokenize = run(&model.build(), &["tokenize", "-m", "m.gguf", "--text", "a"]);
    assert!(tokenize.error().contains("the vocabulary has 0 tokens"), "{}", tokenize.stderr);
}

// ---- Numbers that make noise -----------------------------------------------------------------------------------------

refused! {
    norm_not_a_number: tiny_model().values("blk.0.ffn_norm.weight", |v| v[3] = f32::NAN) => "tensor blk.0.ffn_norm.weight holds NaN at element 3";
    norm_infinite: tiny_model().values("output_norm.weight", |v| v[0] = f32::NEG_INFINITY) => "tensor output_norm.weight holds -inf at element 0";
    norm_of_zeros: tiny_model().values("blk.0.attn_norm.weight", |v| v.fill(0.0)) => "tensor blk.0.attn_norm.weight holds zeros alone";
    last_norm_of_zeros: tiny_model().values("output_norm.weight", |v| v.fill(-0.0)) => "tensor output_norm.weight holds zeros alone";
}

/// What runs find out in the pass: `generate` prints nothing of the model's; `trace` may show the nodes up to
/// there.
#[track_caller]
fn noisy(model: GgufBuilder, text: &str) {
    let bytes = model.build();
    for args in [COMMANDS[1], &["generate", "-m", "m.gguf", "-p", "a", "-n", "2", "--json", "--kv", "f32"]] {
        let generate = run(&bytes, args);
        assert_eq!((generate.status.code(), generate.stdout.as_str()), (Some(1), ""), "{}", generate.stderr);
        assert!(
            generate.error().starts_with("error: m.gguf: ") && generate.error().contains(text),
            "{}",
            generate.stderr
        );
    }
    run(&bytes, COMMANDS[2]);
}

macro_rules! noisy {
    ($($name:ident: $model:expr => $text:literal;)*) => {$(
        #[test]
        fn $name() {
            noisy($model, $text);
        }
    )*};
}

noisy! {
    embedding_not_a_number: tiny_model().values("token_embd.weight", |v| v.fill(f32::NAN)) => "is not finite";
    query_infinite: tiny_model().values("blk.0.attn_q.weight", |v| v[0] = f32::INFINITY) => "not finite";
    key_not_a_number: tiny_model().values("blk.0.attn_k.weight", |v| v[0] = f32::NAN) => "Kcur of layer 0 is not finite";
    key_infinite: tiny_model().values("blk.0.attn_k.weight", |v| v.fill(f32::NEG_INFINITY)) => "Kcur of layer 0 is not finite";
    value_infinite: tiny_model().values("blk.0.attn_v.weight", |v| v[0] = f32::INFINITY) => "Vcur of layer 0 is not finite";
    hidden_overflows: tiny_model().values("blk.0.ffn_up.weight", |v| v.fill(1e38)).values("blk.0.ffn_gate.weight", |v| v.fill(1e38)) => "l_out of layer 0 is not finite";
    output_not_a_number: tiny_model().values("output.weight", |v| v[5 * 32] = f32::NAN) => "the logits at position 1 are not finite (first at token 5)";
    logits_overflow: tiny_model().values("output.weight", |v| v.fill(3e38)) => "the logits at position 1 are not finite";
    logits_all_the_same: tiny_model().values("output.weight", |v| v.fill(0.0)) => "the logits at position 1 are all the same (0)";
    weights_all_zeros: tiny_model().with(|b| b.tensors.iter_mut().filter(|t| t.dims.len() > 1).for_each(|t| t.data = Data::Zero)) => "are all the same (0)";
}

#[test]
fn keys_beyond_f16_are_told_from_those_beyond_f32() {
    let bytes = tiny_model().values("blk.0.attn_k.weight", |v| v.iter_mut().for_each(|v| *v *= 1e8)).build();
    let f16 = run(&bytes, COMMANDS[1]);
    assert!(f16.error().contains("Kcur of layer 0 is "), "{}", f16.stderr);
    assert!(f16.error().contains("does not fit a KV cache of f16: one of f32 holds it"), "{}", f16.stderr);
    let f32 = run(&bytes, &[COMMANDS[1], &["--kv", "f32"]].concat());
    assert!(f32.status.success(), "{}", f32.stderr);
}

// ---- Chat templates --------------------------------------------------------------------------------------------------

fn chat(template: &str) -> Watched {
    let bytes = tiny_model().set("tokenizer.chat_template", template).build();
    // Whoever does not ask for the template does not pay for it.
    assert!(run(&bytes, COMMANDS[1]).status.success());
    run(&bytes, &["generate", "-m", "m.gguf", "-p", "a", "-n", "2", "--chat"])
}

/// One test a template: the error.
macro_rules! template_refused {
    ($($name:ident: $template:expr => $text:literal;)*) => {$(
        #[test]
        fn $name() {
            let run = chat(&$template);
            assert_eq!((run.status.code(), run.stdout.as_str()), (Some(1), ""), "{}", run.stderr);
            assert!(run.error().starts_with("error: m.gguf: chat template: "), "{}", run.stderr);
            assert!(run.error().contains($text), "another text: {}", run.stderr);
        }
    )*};
}

template_refused! {
    template_that_does_not_parse: "{% for %}" => "syntax error";
    template_without_end: "{% for a in range(9999) %}".repeat(4) + &"{% endfor %}".repeat(4) => "too much time or memory";
    template_that_doubles: "{% set ns = namespace(s='0123456789abcdef') %}{% for i in range(9999) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}" => "too much time or memory";
    template_that_calls_itself: "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}" => "recursion limit exceeded";
    template_of_large_output: "{% for a in range(9999) %}{{ '".to_owned() + &"x".repeat(100_000) + "' }}{% endfor %}" => "too much time or memory";
    template_that_repeats_a_text: "{{ 'x' * 9999999999 }}" => "too much time or memory";
    template_of_a_large_range: "{{ range(9999999999) | list | length }}" => "range has too many elements";
    template_that_reads_a_file: "{% include '/etc/passwd' %}" => "non-existing template '/etc/passwd'";
    template_that_imports: "{% import 'os' as os %}{{ os.popen('id') }}" => "non-existing template 'os'";
    template_that_extends: "{% extends 'other' %}" => "template \"other\" does not exist";
    template_that_reaches_for_python: "{{ ''.__class__.__mro__[1].__subclasses__() }}" => "`(...).__class__` is undefined";
    template_that_reaches_for_globals: "{{ cycler.__init__.__globals__.os.popen('id').read() }}" => "`cycler.__init__` is undefined";
    template_that_raises: "{{ raise_exception('no') }}" => "no";
    template_with_deep_brackets: "{{ ".to_owned() + &"(".repeat(100_000) + "1" + &")".repeat(100_000) + " }}" => "maximum recursion limits";
    template_with_deep_lists: "{{ ".to_owned() + &"[".repeat(100_000) + &"]".repeat(100_000) + " }}" => "maximum recursion limits";
    template_with_deep_blocks: "{% if true %}".repeat(40_000) + &"{% endif %}".repeat(40_000) => "maximum recursion limits";
    template_with_many_signs: "{{ ".to_owned() + &"-".repeat(500_000) + "1 }}" => "nested too deeply";
    template_with_many_nots: "{{ ".to_owned() + &"not ".repeat(200_000) + "1 }}" => "nested too deeply";
    template_with_many_branches: "{% if a %}".to_owned() + &"{% elif b %}".repeat(50_000) + "{% endif %}" => "nested too deeply";
    template_of_lists_without_end: "{% set a = namespace(x=[]) %}{% for i in range(40) %}{% set a.x = [a.x, a.x] %}{% endfor %}{{ a.x }}" => "too much time or memory";
    template_of_a_value_in_itself: "{% set a = namespace() %}{% set a.a = a %}{{ a }}" => "nested too deeply";
}

/// Templates that may be refused or not: whatever they do, within the limits (which [`chat`] checks).
#[test]
fn templates_of_long_expressions() {
    let chains =
        ["|upper", ".b", "[0]", "()", "+1", "**9", "~1", "<1", " and 1", " if 1", " if 1 else 1", " is odd"];
    for chain in chains {
        chat(&("{{ a".to_owned() + &chain.repeat(60_000) + " }}"));
    }
}

#[test]
fn templates_of_values_without_end() {
    let doubled = "{% set a = namespace(x=[]) %}{% set b = namespace(x=[]) %}\
        {% for i in range(40) %}{% set a.x = [a.x, a.x] %}{% set b.x = [b.x, b.x] %}{% endfor %}";
    let deep = "{% set a = namespace(x=[]) %}{% for i in range(30000) %}{% set a.x = [a.x] %}{% endfor %}";
    let cyclic = "{% set a = namespace() %}{% set b = namespace() %}{% set a.x = b %}{% set b.x = a %}";
    let uses = [
        "{{ a.x | tojson }}",
        "{{ a.x | string | length }}",
        "{{ a.x ~ 'x' }}",
        "{{ a.x == b.x }}",
        "{{ a.x in [b.x] }}",
        "",
    ];
    for (value, end) in [doubled, deep, cyclic].iter().flat_map(|value| uses.map(|end| (value, end))) {
        chat(&format!("{value}{end}"));
    }
}

#[test]
fn templates_that_ask_for_much() {
    let calls = [
        "{{ 'x' | indent(2000000000) }}",
        "{{ 'a\nb' | indent(2000000000, true, true) }}",
        "{{ '%2000000000d' | format(1) }}",
        "{{ '%.2000000000f' | format(1.5) }}",
        "{{ 'x' | center(2000000000) }}",
        "{{ 'x'.center(2000000000) }}{{ 'x'.ljust(2000000000) }}{{ 'x'.zfill(2000000000) }}",
        "{{ '{:>2000000000}'.format('x') }}",
        "{{ [1] | batch(2000000000, 0) | list }}",
        "{{ [1] | slice(2000000000) | list }}",
        "{{ [0] * 2000000000 }}",
        "{{ 1.5 | round(2000000000) }}",
        "{{ strftime_now('%2000000000Y') }}{{ strftime_now('%255Y' * 10000) }}",
        "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
        "{{ ('x' * 1000000).replace('', 'y' * 1000000) }}",
        "{{ (('x,' * 1000000).split(',')) | join('y' * 1000000) }}",
        "{{ ('y' * 100000).join(('x,' * 10000).split(',')) }}",
        "{{ range(100000) | join(',') | length }}",
        "{{ dict(a=1) | tojson(indent=16) }}{{ [1] | tojson(indent=17) }}",
        "{{ 9 ** 9 ** 9 ** 9 }}{{ 'abc'[9223372036854775807::-9223372036854775807] }}",
        "{% set s = 'x' * 1000000 %}{% for i in range(99999) %}{% if s.count('y') %}{% endif %}{% endfor %}",
        "{% set s = 'x' * 1000000 %}{% for i in range(99999) %}{% set t = s.upper() %}{% endfor %}",
    ];
    for template in calls {
        chat(template);
    }
    for long in
        ["{# ".repeat(100_000), "{% raw %}".repeat(100_000), format!("{{{{ {} }}}}", "9".repeat(500_000))]
    {
        chat(&long);
    }
}

/// What the template may take grows with the conversation.
#[test]
fn a_long_conversation_is_rendered() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("m.gguf"), tiny_model().build()).unwrap();
    fs::write(dir.path().join("long.txt"), "a".repeat(2 << 20)).unwrap();
    let output = common::wayinfer(dir.path(), 100, &["generate", "-m", "m.gguf", "-f", "long.txt", "--chat"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    // It is all there, and too long for the model.
    assert!(stderr.contains("error: the prompt has 2097") && stderr.contains("-c/--ctx"), "{stderr}");
}

#[test]
fn template_too_long() {
    let run = chat(&"x".repeat((1 << 20) + 1));
    assert!(
        run.error().contains("the chat template is 1048577 bytes long, more than 1048576"),
        "{}",
        run.stderr
    );
}

#[test]
fn template_of_another_type() {
    let bytes = tiny_model().set("tokenizer.chat_template", vec!["a"]).build();
    let run = run(&bytes, &["generate", "-m", "m.gguf", "-p", "a", "--chat"]);
    assert!(
        run.error().contains("tokenizer.chat_template is an array of 1 str, where a string"),
        "{}",
        run.stderr
    );
}

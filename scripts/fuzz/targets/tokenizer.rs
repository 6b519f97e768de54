//! Vocabularies of any tokens, types, scores and merges, with a chat template of any text: a tokenizer that brings back
//! what it was given, or an error.
#![no_main]

mod common;
#[allow(dead_code)] // a part of it is used
#[path = "../../../tests/common/gguf.rs"]
mod gguf;

use arbitrary::Arbitrary;
use gguf::{GgufBuilder, Kv};
use libfuzzer_sys::fuzz_target;
use wayinfer::text::{ChatTemplate, Conversation, EncodeOptions, Message, Tokenizer};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    bpe: bool,
    /// Tokens of every byte come first.
    bytes: bool,
    tokens: Vec<(&'a str, i8, i16)>,
    merges: Vec<(u16, u16)>,
    raw_merges: Vec<&'a [u8]>,
    raw_tokens: Vec<&'a [u8]>,
    special: [Option<i16>; 4],
    flags: [Option<bool>; 4],
    pre: u8,
    text: &'a str,
    template: &'a str,
}

const PRE: [&str; 8] = ["gpt-2", "llama-bpe", "qwen2", "default", "deepseek-llm", "falcon", "tekken", "none"];

fuzz_target!(|input: Input| {
    let bytes = file(&input).build();
    common::with_model(&bytes, |gguf| {
        // Token texts may be as long as the header allows, which is checked: the file itself is sound.
        let gguf = gguf.expect("the file is sound");
        if let Ok(tokenizer) = Tokenizer::from_metadata(gguf.metadata(), None) {
            check(&tokenizer, &input);
        }
    });
});

fn check(tokenizer: &Tokenizer, input: &Input) {
    for (add_special, parse_special) in [(false, false), (true, true)] {
        let Ok(ids) = tokenizer.encode(input.text, EncodeOptions { add_special, parse_special }) else {
            continue;
        };
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_len()));
        let text = tokenizer.decode(&ids, true);
        let mut stream = tokenizer.stream(true).at_start();
        let pieces: String = ids.iter().map(|&id| stream.push(id)).collect();
        assert_eq!(pieces + &stream.finish(), text);
    }
    for id in 0..tokenizer.vocab_len() as u32 + 1 {
        let _ = (tokenizer.piece(id, false), tokenizer.token_kind(id), tokenizer.is_end_of_generation(id));
    }
    if let Ok(template) = ChatTemplate::new(input.template) {
        let messages = [Message::new("system", "Be brief."), Message::new("user", input.text)];
        if let Ok(rendered) = template.render_apart(&Conversation::new(&messages, true, tokenizer), tokenizer)
        {
            let _ = tokenizer.encode_chat(&rendered);
        }
    }
}

fn texts(texts: &[Vec<u8>]) -> Kv {
    let bytes = texts.iter().flat_map(|t| [&(t.len() as u64).to_le_bytes()[..], t].concat()).collect();
    Kv::array(8, texts.len() as u64, bytes)
}

fn file(input: &Input) -> GgufBuilder {
    let mut tokens: Vec<Vec<u8>> = Vec::new();
    let (mut types, mut scores) = (Vec::new(), Vec::new());
    if input.bytes {
        tokens.extend((0..256).map(|b| format!("<0x{b:02X}>").into_bytes()));
        types.extend([if input.bpe { 1 } else { 6 }; 256]);
        scores.extend([0.0f32; 256]);
    }
    for (text, kind, score) in &input.tokens {
        tokens.push(text.as_bytes().to_vec());
        types.push(i32::from(*kind));
        scores.push(f32::from(*score));
    }
    for text in &input.raw_tokens {
        tokens.push(text.to_vec());
        types.push(1);
        scores.push(f32::NEG_INFINITY);
    }
    let merge = |&(a, b): &(u16, u16)| {
        let token = |i: u16| tokens.get(i as usize % tokens.len().max(1)).cloned().unwrap_or_default();
        [token(a), b" ".to_vec(), token(b)].concat()
    };
    let merges = input.merges.iter().map(merge).chain(input.raw_merges.iter().map(|m| m.to_vec()));
    let merges: Vec<Vec<u8>> = merges.collect();
    let mut file = GgufBuilder::new()
        .kv("tokenizer.ggml.model", if input.bpe { "gpt2" } else { "llama" })
        .kv("tokenizer.ggml.pre", PRE[input.pre as usize % PRE.len()])
        .kv("tokenizer.ggml.tokens", texts(&tokens))
        .kv("tokenizer.ggml.token_type", types)
        .kv("tokenizer.ggml.scores", scores)
        .kv("tokenizer.ggml.merges", texts(&merges));
    for (key, id) in ["bos", "eos", "unknown", "eot"].iter().zip(input.special) {
        if let Some(id) = id {
            file = file.kv(format!("tokenizer.ggml.{key}_token_id"), i32::from(id));
        }
    }
    for (key, flag) in ["add_bos_token", "add_eos_token", "add_space_prefix", "other"].iter().zip(input.flags)
    {
        if let Some(flag) = flag {
            file = file.kv(format!("tokenizer.ggml.{key}"), flag);
        }
    }
    file
}

//! Grammars and schemas of any text over a small vocabulary, and a walk of any tokens that they allow: a mask of tokens that
//! can be accepted, or an error.
#![no_main]

mod common;
#[allow(dead_code)]
#[path = "../../../tests/common/gguf.rs"]
mod gguf;

use std::sync::OnceLock;

use arbitrary::Arbitrary;
use gguf::GgufBuilder;
use libfuzzer_sys::fuzz_target;
use wayinfer::text::{Grammar, GrammarFactory, TextError, Tokenizer};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    kind: u8,
    walk: [u8; 24],
    text: &'a str,
}

fuzz_target!(|input: Input| {
    let Ok(grammar) = grammar(&input) else { return };
    let Ok(mut constraint) = factory().constraint(&grammar) else { return };
    for step in input.walk {
        let Ok(mask) = constraint.mask() else { return };
        let allowed: Vec<u32> = (0..TOKENS).filter(|&id| mask.allows(id)).collect();
        assert_eq!(allowed.len(), mask.count());
        let id = allowed[usize::from(step) * allowed.len() / 256];
        constraint.accept(id).expect("a token that is allowed");
        if id == TOKENS - 1 {
            assert!(constraint.is_finished() && constraint.mask().is_ok_and(|mask| mask.count() == 1));
            return;
        }
    }
});

fn grammar(input: &Input) -> Result<Grammar, TextError> {
    match input.kind % 4 {
        0 => Grammar::json_schema(&serde_json::from_str(input.text).unwrap_or_default()),
        1 => Grammar::regex(input.text),
        2 => Grammar::lark(input.text),
        _ => Grammar::gbnf(input.text),
    }
}

/// The bytes, some pieces, an end.
const PIECES: [&str; 7] = ["{\"", "\":", " \"", "true", "ab", "<tool>", "\u{20ac}"];
const TOKENS: u32 = 256 + PIECES.len() as u32 + 1;

fn factory() -> &'static GrammarFactory {
    static FACTORY: OnceLock<GrammarFactory> = OnceLock::new();
    FACTORY.get_or_init(|| {
        let tokens: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).chain(PIECES).chain(["</s>"]).collect();
        let types = [vec![6; 256], vec![1; PIECES.len()], vec![3]].concat();
        let file = GgufBuilder::new()
            .kv("tokenizer.ggml.model", "llama")
            .kv("tokenizer.ggml.scores", vec![0.0f32; tokens.len()])
            .kv("tokenizer.ggml.token_type", types)
            .kv("tokenizer.ggml.eos_token_id", TOKENS - 1)
            .kv("tokenizer.ggml.tokens", tokens);
        common::with_model(&file.build(), |gguf| {
            let gguf = gguf.expect("the file is sound");
            let tokenizer = Tokenizer::from_metadata(gguf.metadata(), None).expect("a tokenizer");
            GrammarFactory::new(&tokenizer).expect("a vocabulary with an end")
        })
    })
}

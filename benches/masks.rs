//! What a grammar costs a token: the time of a mask, over a walk through texts that obey it.
//!
//! `cargo bench --bench masks [-- VOCABULARY.gguf]`; without a file that of Qwen3 (151 thousand tokens) below
//! `WAYINFER_TEST_DATA`. Each walk takes the texts as the tokenizer cuts them, several times over.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use wayinfer::gguf::Gguf;
use wayinfer::text::{EncodeOptions, Grammar, GrammarFactory, Tokenizer};

const ROUNDS: usize = 20;

const OBJECT: &str = r#"{"name": "Ada Lovelace", "born": 1815,
 "known for": ["the first program", "notes on the engine"],
 "address": {"street": "St James's Square", "number": 12, "city": "London", "ok": true}, "rest": null}"#;

const WORDS: &str = r#"{"summary": "The quick brown fox jumps over the lazy dog, while 7 wizards brew",
 "end": "\"strange\" potions.\nAll is well that ends well: äöü, 漢字, 😀.", "score": 3.75}"#;

fn main() {
    let Some(path) = vocabulary() else {
        println!("skipped: no vocabulary is given, and WAYINFER_TEST_DATA is not set");
        return;
    };
    let gguf = Gguf::open(path.as_path()).expect("a GGUF file");
    let tokenizer = Tokenizer::from_metadata(gguf.metadata(), None).expect("a tokenizer");
    let started = Instant::now();
    let factory = GrammarFactory::new(&tokenizer).expect("a vocabulary with an end");
    println!("{} tokens, trie in {:.0?}", tokenizer.vocab_len(), started.elapsed());
    println!(
        "{:28} {:>11} {:>6} {:>11} {:>11} {:>11}",
        "grammar", "compile", "masks", "median", "p99", "most"
    );
    let schema = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string" }, "born": { "type": "integer" },
            "known for": { "type": "array", "items": { "type": "string", "maxLength": 40 } },
            "address": { "type": "object", "properties": {
                "street": { "type": "string" },
                "number": { "type": "integer", "minimum": 0, "maximum": 9999 },
                "city": { "enum": ["London", "Paris", "Rome"] }, "ok": { "type": "boolean" },
            }, "required": ["street", "city"] },
            "rest": { "anyOf": [{ "type": "null" }, { "type": "string", "pattern": "^[a-z]+$" }] },
        },
        "required": ["name", "address"], "additionalProperties": false,
    });
    let gbnf = r#"root ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array  ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= "-"? [0-9]{1,16} ("." [0-9]+)? ([eE] [-+]? [0-9]{1,15})? ws
ws     ::= [ \t\n]{0,20}"#;
    let grammars = [
        ("JSON schema", Grammar::json_schema(&schema), OBJECT),
        ("any JSON object", Ok(Grammar::json_object()), OBJECT),
        ("any JSON object, words", Ok(Grammar::json_object()), WORDS),
        ("JSON by GBNF", Grammar::gbnf(gbnf), OBJECT),
        ("regular expression", Grammar::regex("(?s:.*)"), WORDS),
    ];
    let mut all = Vec::new();
    for (name, grammar, text) in grammars {
        let grammar = grammar.expect("a grammar");
        let ids = tokenizer.encode(text, EncodeOptions::default()).expect("ids");
        let started = Instant::now();
        let constraint = factory.constraint(&grammar).expect("a constraint");
        let compiled = started.elapsed();
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let mut constraint = constraint.clone();
            for &id in &ids {
                constraint.accept(id).expect("the text obeys the grammar");
                let started = Instant::now();
                let mask = constraint.mask().expect("a mask");
                times.push(started.elapsed());
                assert!(mask.count() > 0);
            }
        }
        line(name, compiled, &mut times);
        all.extend(times);
    }
    line("all", Duration::ZERO, &mut all);
}

fn line(name: &str, compiled: Duration, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    let [median, late, last] = [at(0.5), at(0.99), at(1.0)];
    println!("{name:28} {compiled:>11.1?} {:>6} {median:>11.1?} {late:>11.1?} {last:>11.1?}", times.len());
}

fn vocabulary() -> Option<PathBuf> {
    // cargo bench adds an option of its own.
    let given = std::env::args_os().skip(1).find(|arg| !arg.to_string_lossy().starts_with("--"));
    let data = || Some(PathBuf::from(std::env::var_os("WAYINFER_TEST_DATA")?).join("vocab/qwen3.gguf"));
    given.map(PathBuf::from).or_else(data)
}

//! What a constraint lets through, and what is refused.

use std::ops::Add;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;
use crate::text::Tokenizer;
use crate::text::testing::{bpe, tokenizer};

/// The bytes are tokens by their values; the others come after them.
pub const END: u32 = 258;
const TOOL: u32 = 257;

fn vocabulary() -> Tokenizer {
    tokenizer(&bpe(&["t r"], &[("<tool>", 4), ("<|im_end|>", 3), ("<|im_start|>", 3)])).expect("a tokenizer")
}

pub fn factory() -> GrammarFactory {
    GrammarFactory::new(&vocabulary()).expect("a factory")
}

/// How a text stands to a grammar.
#[derive(Debug, PartialEq)]
pub enum Stands {
    /// It may end here.
    Whole,
    /// It is a beginning.
    Begun,
    /// It goes wrong at this byte.
    WrongAt(usize),
}
use Stands::{Begun, Whole, WrongAt};

fn walk(mut constraint: Constraint, text: &str) -> Stands {
    for (at, byte) in text.bytes().enumerate() {
        if !constraint.mask().expect("a mask").allows(byte.into()) {
            return WrongAt(at);
        }
        constraint.accept(byte.into()).expect("a token that is allowed");
    }
    if constraint.mask().expect("a mask").allows(END) { Whole } else { Begun }
}

/// Walks texts through a grammar.
pub fn check(grammar: &Grammar, texts: &[(&str, Stands)]) {
    let factory = factory();
    for (text, stands) in texts {
        let constraint = factory.constraint(grammar).unwrap_or_else(|e| panic!("{grammar:?}: {e}"));
        assert_eq!(walk(constraint, text), *stands, "{text:?} under {grammar:?}");
    }
}

fn schema(schema: Value) -> Grammar {
    Grammar::json_schema(&schema).expect("a schema")
}

#[test]
fn json_obeys_its_schema() {
    let point = schema(json!({
        "type": "object",
        "properties": {
            "x": { "type": "integer", "minimum": -3, "maximum": 12 }, "on": { "type": "boolean" },
        },
        "required": ["x"],
        "additionalProperties": false,
    }));
    check(
        &point,
        &[
            (r#"{"x":12}"#, Whole),
            (r#"{ "x": -3, "on": true }"#, Whole),
            ("{\n  \"x\": 4\n}", Whole),
            (r#"{"x":13"#, WrongAt(6)),
            (r#"{"on""#, WrongAt(2)),
            (r#"{"x":1,"y""#, WrongAt(8)),
            (r#"{"x":1}x"#, WrongAt(7)),
            (r#"{"x""#, Begun),
            // White space has an end.
            ("{  ", WrongAt(2)),
            ("{\n\n", WrongAt(2)),
        ],
    );
    let list = schema(json!({
        "type": "array", "minItems": 1, "maxItems": 2,
        "items": { "anyOf": [{ "type": "null" }, { "type": "string", "maxLength": 2 }, { "const": [7] }] },
    }));
    check(
        &list,
        &[
            ("[null]", Whole),
            ("[\"ä€\", [7]]", Whole),
            ("[]", WrongAt(1)),
            ("[null,null,", WrongAt(10)),
            ("[\"abc", WrongAt(4)),
            ("[[8", WrongAt(2)),
        ],
    );
    let tree = schema(json!({
        "$ref": "#/$defs/tree",
        "$defs": { "tree": { "type": "array", "items": { "$ref": "#/$defs/tree" } } },
    }));
    check(&tree, &[("[[],[[]]]", Whole), ("[[],[[]]", Begun), ("[1", WrongAt(1))]);
    check(
        &schema(json!(true)),
        &[("3.5e-2", Whole), ("{\"a\":[null]}", Whole), ("nul", Begun), ("+", WrongAt(0))],
    );
}

#[test]
fn any_object_is_an_object() {
    check(
        &Grammar::json_object(),
        &[
            ("{}", Whole),
            (r#"{"a": {"b": [1, "c\n", false]}, "d": -0.5}"#, Whole),
            ("[", WrongAt(0)),
            (" ", WrongAt(0)),
            (r#"{"a":1,}"#, WrongAt(7)),
            ("{'", WrongAt(1)),
        ],
    );
}

#[test]
fn expressions_and_rules_say_what_may_come() {
    let date = Grammar::regex("[0-9]{4}-(0[1-9]|1[0-2])").expect("an expression");
    check(&date, &[("2026-11", Whole), ("2026-13", WrongAt(6)), ("2026-1", Begun), ("2026-111", WrongAt(7))]);
    let sums = Grammar::lark("start: sum\nsum: NUMBER | \"(\" sum \"+\" sum \")\"\nNUMBER: /[0-9]+/")
        .expect("a text");
    check(&sums, &[("((1+22)+3)", Whole), ("12", Whole), ("(1+2", Begun), ("(1)", WrongAt(2))]);
    check(
        &Grammar::regex("é|[à-ÿ]{2}").expect("an expression"),
        &[("é", Whole), ("ëë", Whole), ("z", WrongAt(0))],
    );
}

/// A text that looks like a control token is text, and a control token is none.
#[test]
fn control_tokens_never_match_text() {
    let mut constraint =
        factory().constraint(&Grammar::regex("(?s:.*)").expect("an expression")).expect("one");
    let mask = constraint.mask().expect("a mask").clone();
    // All that UTF-8 may begin with, the merge, the user's token, the end.
    let allowed: Vec<u32> = (0..260).filter(|&id| mask.allows(id)).collect();
    let utf8: Vec<u32> = (0..0x80).chain(0xC2..0xF5).chain([256, TOOL, END]).collect();
    assert_eq!(allowed, utf8);
    assert_eq!((mask.count(), mask.allows(260), mask.allows(u32::MAX)), (utf8.len(), false, false));
    let text = Grammar::lark("start: \"<|im_start|>\"").expect("a text");
    check(&text, &[("<|im_start|>", Whole)]);
    let mut constraint = factory().constraint(&text).expect("one");
    assert!(!constraint.mask().expect("a mask").allows(259));
    // Only a grammar that names it.
    let mut named =
        factory().constraint(&Grammar::lark("start: <|im_start|> \"x\"").expect("a text")).expect("one");
    assert_eq!((named.mask().expect("a mask").count(), named.mask().expect("a mask").allows(259)), (1, true));
}

#[test]
fn a_grammar_that_has_ended_lets_an_answer_end_and_nothing_else() {
    let mut constraint = factory().constraint(&Grammar::regex("ok").expect("an expression")).expect("one");
    for byte in *b"ok" {
        assert!(!constraint.is_finished());
        constraint.accept(byte.into()).expect("it fits");
    }
    assert!(constraint.is_finished());
    for _ in 0..2 {
        let mask = constraint.mask().expect("a mask");
        assert_eq!((mask.count(), mask.allows(END)), (1, true));
        constraint.accept(END).expect("the end");
    }
    // Before its end there is none, and what was refused stays so.
    let mut constraint = factory().constraint(&Grammar::regex("ok").expect("an expression")).expect("one");
    let mut other = constraint.clone();
    assert!(matches!(constraint.accept(END), Err(TextError::Constraint(_))));
    assert!(matches!(constraint.mask(), Err(TextError::Constraint(_))));
    assert!(other.mask().expect("a clone stands alone").allows(b'o'.into()));
    assert!(other.accept(5000).is_err());
}

#[test]
fn a_vocabulary_that_lacks_a_byte_cannot_go_on() {
    let mut constraint = factory().constraint(&Grammar::lark("start: <[300]> \"x\"").expect("a text")).err();
    let error = constraint.take().expect("a token that is none").to_string();
    assert!(error.starts_with("the Lark grammar cannot be used: "), "{error}");
}

fn refusal(grammar: Result<Grammar, TextError>) -> String {
    match grammar.and_then(|grammar| factory().constraint(&grammar).map(|_| grammar)) {
        Ok(grammar) => panic!("not refused: {grammar:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_wrong_is_refused_with_its_place() {
    let refused = |schema: Value, wanted: &str| {
        let error = refusal(Grammar::json_schema(&schema));
        assert!(error.starts_with("the JSON schema cannot be used: ") && error.contains(wanted), "{error}");
    };
    let nested = json!({ "type": "object", "properties": {
        "a": { "type": "integer" },
        "b/c": { "items": { "anyOf": [{ "type": "null" }, { "not": { "type": "string" } }] } },
    }});
    refused(nested, "Unimplemented keys: [\"not\"] (at #/properties/b~1c/items/anyOf/1)");
    refused(json!({ "$ref": "#/$defs/none" }), "none");
    refused(json!({ "$ref": "https://example.com/schema.json" }), "https://example.com/schema.json");
    refused(json!({ "type": "colour" }), "colour");
    refused(json!({ "properties": { "x": { "type": "string", "pattern": "(" } } }), "(at #/properties/x)");
    refused(
        json!({ "properties": { "x": { "minimum": 3, "maximum": 2, "type": "integer" } }, "required": ["x"],
        "type": "object" }),
        "required property 'x' is unsatisfiable",
    );
    refused(json!(false), "nsatisfiable");
    refused(json!([1]), "neither an object nor a boolean");
    refused(
        json!({ "properties": { "x": { "$id": "y", "type": "null" } } }),
        "its own $id (at #/properties/x)",
    );
    assert!(refusal(Grammar::regex("a(")).starts_with("the regular expression cannot be used: "));
    let lark = refusal(Grammar::lark("start: \"a\"\nother: ]"));
    assert!(lark.starts_with("the Lark grammar cannot be used: 2(8)"), "{lark}");
    assert!(refusal(Grammar::lark("start: none")).contains("none"));
    let invalid = "%llguidance {\"allow_invalid_utf8\": true}\nstart: /(?-u:\\xFF).*/";
    assert!(refusal(Grammar::lark(invalid)).contains("allow_invalid_utf8 is not supported"));
}

/// A schema of definitions that each refer to the next.
fn chain(n: usize) -> Value {
    let next = |i: usize| json!({ "$ref": format!("#/$defs/{}", i + 1) });
    let mut definitions: serde_json::Map<String, Value> = (0..n).map(|i| (i.to_string(), next(i))).collect();
    definitions.insert(n.to_string(), json!({ "type": "null" }));
    json!({ "$ref": "#/$defs/0", "$defs": definitions })
}

/// The same with each reference at the bottom of a hundred lists.
fn deep_chain(n: usize) -> Value {
    let mut whole = chain(n);
    for definition in whole["$defs"].as_object_mut().into_iter().flatten().map(|(_, value)| value) {
        (0..100).for_each(|_| *definition = json!({ "items": definition.take() }));
    }
    whole
}

/// A schema whose definitions are each twice the next: in all 2 to the n.
fn doubling(n: usize) -> Value {
    let twice = |i: usize| {
        let part = |name: &str| json!({ "$ref": format!("#/$defs/{name}{}", i + 1) });
        json!({ "properties": { "x": part("a"), "y": part("a") }, "allOf": [part("a"), part("b")] })
    };
    let mut definitions = serde_json::Map::new();
    for i in 0..n {
        definitions.insert(format!("a{i}"), twice(i));
        definitions.insert(format!("b{i}"), twice(i));
    }
    definitions.insert(format!("a{n}"), json!({ "type": "object" }));
    definitions.insert(format!("b{n}"), json!({ "type": "object" }));
    json!({ "allOf": [{ "$ref": "#/$defs/a0" }, { "$ref": "#/$defs/b0" }], "$defs": definitions })
}

fn gbnf_chain(last: &str) -> String {
    let rules: String = (0..5000).map(|i| format!("a{i} ::= a{}\n", i + 1)).collect();
    format!("root ::= a0\n{rules}a5000 ::= {last}\n")
}

type Made = Box<dyn Fn() -> Result<Grammar, TextError>>;

fn hostile() -> Vec<(&'static str, Made)> {
    let schema = |value: Value| -> Made { Box::new(move || Grammar::json_schema(&value)) };
    let regex = |text: &str| -> Made {
        Box::new({
            let text = text.to_owned();
            move || Grammar::regex(&text)
        })
    };
    let lark = |text: &str| -> Made {
        Box::new({
            let text = text.to_owned();
            move || Grammar::lark(&text)
        })
    };
    let gbnf = |text: &str| -> Made {
        Box::new({
            let text = text.to_owned();
            move || Grammar::gbnf(&text)
        })
    };
    let options = |n: usize| json!({ "anyOf": (0..n).map(|i| json!({ "const": i })).collect::<Vec<_>>() });
    let objects = |key: usize| {
        let one = |i: usize| json!({ "properties": { format!("k{key}"): { "const": i } } });
        json!({ "anyOf": [one(0), one(1)] })
    };
    let mut deep = json!({ "type": "null" });
    for _ in 0..120 {
        deep = json!([deep]);
    }
    let mut lists = json!({ "type": "null" });
    for _ in 0..60 {
        lists = json!({ "type": "array", "items": lists });
    }
    let rules: String = (0..9000).map(|i| format!("a{i}: a{}\n", i + 1)).collect();
    vec![
        ("a chain of references", schema(chain(31_000))),
        ("deep references", schema(deep_chain(900))),
        ("references doubled", schema(doubling(40))),
        ("products of alternatives", schema(json!({ "allOf": (0..30).map(objects).collect::<Vec<_>>() }))),
        ("alternatives of alternatives", schema(json!({ "allOf": vec![options(300); 12] }))),
        ("a reference to itself", schema(json!({ "$ref": "#" }))),
        (
            "references in a circle",
            schema(json!({ "$ref": "#/$defs/a", "$defs": {
            "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } } })),
        ),
        ("a circle with siblings", schema(json!({ "allOf": [{ "$ref": "#" }, { "type": "object" }] }))),
        ("a deep value", schema(json!({ "const": deep }))),
        ("deep lists", schema(lists)),
        ("a long string", schema(json!({ "type": "string", "minLength": 4_000_000_000u64 }))),
        ("a bounded string", schema(json!({ "type": "string", "maxLength": 1_000_000 }))),
        (
            "many items",
            schema(json!({ "items": { "type": "null" }, "minItems": 1_000_000_000, "type": "array" })),
        ),
        ("many properties", schema(json!({ "type": "object", "minProperties": 1_000_000_000 }))),
        ("great numbers", schema(json!({ "type": "number", "multipleOf": 1e-300, "minimum": 1e308 }))),
        ("a pattern repeated", schema(json!({ "type": "string", "pattern": "((a{1000}){1000}){1000}" }))),
        ("a pattern of all pasts", schema(json!({ "type": "string", "pattern": "(a|b)*a(a|b){200}" }))),
        ("an expression repeated", regex("((a{1000}){1000}){1000}")),
        ("an expression of all pasts", regex("(a|b)*a(a|b){40}")),
        ("a nested expression", regex(&("(".repeat(60_000) + "a" + &")".repeat(60_000)))),
        ("a chain of rules", lark(&format!("start: a0\n{rules}a9000: \"x\"\n"))),
        ("rules within rules", lark("start: start start | \"a\" | \"\"")),
        ("a rule without an end", lark("start: start \"a\"")),
        ("rules repeated", lark("start: ((\"a\"{1000}){1000}){1000}")),
        ("brackets", lark(&format!("start: {}\"a\"{}", "(".repeat(40_000), ")".repeat(40_000)))),
        ("no text", lark("")),
        ("a chain of GBNF rules", gbnf(&gbnf_chain("\"x\""))),
        ("long rules in a chain", gbnf(&gbnf_chain(&format!("\"{}\"", "x".repeat(3900))))),
        (
            "GBNF rules doubled",
            gbnf(
                &(0..40)
                    .fold("root ::= a0\n".to_owned(), |text, i| {
                        text + &format!("a{i} ::= a{} a{}\n", i + 1, i + 1)
                    })
                    .add("a40 ::= \"x\"\n"),
            ),
        ),
        ("a GBNF chain that comes back", gbnf(&gbnf_chain("\"(\" root \")\" | \"x\""))),
        ("GBNF repetitions", gbnf("root ::= \"(\" root \")\" | (([a-z]{0,2000}){0,2000}){0,2000} \"x\"")),
        ("GBNF of everything", gbnf("root ::= .* root .* | .+ | [^a]{0,60} root")),
        ("GBNF without an end", gbnf("root ::= \"x\" root")),
        ("GBNF brackets", gbnf(&format!("root ::= {}", "(".repeat(100_000)))),
        ("noughts", lark("start: \"\0\\u0000\" /\0/")),
    ]
}

/// Whatever comes, it ends soon: with a constraint or with an error.
#[test]
fn hostile_grammars_end_in_an_error_or_a_constraint() {
    let factory = factory();
    for (what, grammar) in hostile() {
        let started = Instant::now();
        let constraint = grammar().and_then(|grammar| factory.constraint(&grammar));
        let compiled = started.elapsed();
        let said = match constraint {
            Ok(mut constraint) => {
                // The first token allowed, again and again.
                let walked = (0..64).try_for_each(|_| {
                    let mask = constraint.mask()?;
                    let id = (0..260).rev().find(|&id| mask.allows(id)).expect("a token");
                    constraint.accept(id)
                });
                walked.map_or_else(|error| error.to_string(), |()| "goes on".to_owned())
            }
            Err(error) => error.to_string(),
        };
        println!("{what}: {compiled:.2?}, {:.2?}: {said}", started.elapsed());
        assert!(!said.contains("panic"), "{what}: {said}");
        assert!(said.len() < 600, "{what}: {said}");
        assert!(started.elapsed() < Duration::from_secs(20), "{what} took {:?}", started.elapsed());
    }
    for grammar in [Grammar::lark(&"x".repeat(MAX_BYTES + 1)), Grammar::regex(&"x".repeat(MAX_BYTES + 1))] {
        assert!(matches!(grammar, Err(TextError::GrammarTooLong { .. })));
    }
    let long = json!({ "description": "x".repeat(MAX_SCHEMA_BYTES) });
    assert!(matches!(Grammar::json_schema(&long), Err(TextError::GrammarTooLong { .. })));
    let mut deep = json!({});
    (0..200).for_each(|_| deep = json!({ "items": deep.take() }));
    assert!(Grammar::json_schema(&deep).unwrap_err().to_string().contains("over 128 levels deep"));
}

/// A server shares the factory and hands constraints from thread to thread.
#[test]
fn factories_are_shared_and_constraints_sent() {
    fn shared<T: Send + Sync>() {}
    fn sent<T: Send>() {}
    shared::<GrammarFactory>();
    shared::<Grammar>();
    sent::<Constraint>();
}

//! Answers under a grammar are what the grammar says: with every sampler, with drafts and without, on any
//! number of threads, in `generate` and in `chat`.

mod common;

use std::path::Path;

use common::runs::{fixture, load, options};
use common::{say, test_data, transcript, wayinfer};
use serde_json::{Value, json};
use tempfile::TempDir;
use wayinfer::engine::{Engine, EngineOptions, Sampler, SamplerConfig, Speculation};
use wayinfer::gguf::Gguf;
use wayinfer::model::{Logits, Model};
use wayinfer::text::{Constraint, EncodeOptions, Grammar, GrammarFactory, Tokenizer};

const CONTEXT: usize = 480;

/// A schema, and whether a value obeys it, by other means.
type Case = (&'static str, Value, fn(&Value) -> bool);

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().map(|map| map.keys().map(String::as_str).collect()).unwrap_or_default()
}

fn is_short(value: &Value, most: usize) -> bool {
    value.as_str().is_some_and(|text| text.chars().count() <= most)
}

fn is_from(value: &Value, least: i64, most: i64) -> bool {
    // -0 is read as a fraction, and is an integer.
    let number = value.as_i64().or((value.as_f64() == Some(0.0)).then_some(0));
    number.is_some_and(|number| (least..=most).contains(&number))
}

fn all(value: &Value, lengths: std::ops::RangeInclusive<usize>, fits: impl Fn(&Value) -> bool) -> bool {
    value.as_array().is_some_and(|list| lengths.contains(&list.len()) && list.iter().all(fits))
}

fn cases() -> Vec<Case> {
    vec![
        (
            "a person",
            json!({ "type": "object", "properties": {
                "name": { "type": "string", "minLength": 1, "maxLength": 12 },
                "age": { "type": "integer", "minimum": 0, "maximum": 120 }, "ok": { "type": "boolean" } },
                "required": ["name", "age", "ok"], "additionalProperties": false }),
            |v| {
                keys(v) == ["name", "age", "ok"]
                    && is_short(&v["name"], 12)
                    && v["name"] != ""
                    && is_from(&v["age"], 0, 120)
                    && v["ok"].is_boolean()
            },
        ),
        (
            "a list of colours",
            json!({ "type": "array", "minItems": 2, "maxItems": 4,
                "items": { "enum": ["red", "green", "blue", 7, null] } }),
            |v| all(v, 2..=4, |v| v.is_null() || *v == 7 || ["red", "green", "blue"].iter().any(|c| v == c)),
        ),
        (
            "one of two",
            json!({ "anyOf": [
                { "type": "object", "properties": { "kind": { "const": "sum" }, "of": { "type": "array",
                    "items": { "type": "integer", "minimum": -9, "maximum": 99 }, "maxItems": 3 } },
                    "required": ["kind", "of"], "additionalProperties": false },
                { "type": "object", "properties": { "kind": { "const": "none" } }, "required": ["kind"],
                    "additionalProperties": false } ] }),
            |v| match v["kind"].as_str() {
                Some("sum") => keys(v).len() == 2 && all(&v["of"], 0..=3, |v| is_from(v, -9, 99)),
                Some("none") => keys(v).len() == 1,
                _ => false,
            },
        ),
        (
            "a date, perhaps with a note",
            json!({ "type": "object", "properties": {
                "date": { "type": "string", "pattern": "^[0-9]{4}-(0[1-9]|1[0-2])-[0-3][0-9]$" },
                "note": { "type": ["string", "null"], "maxLength": 8 } },
                "required": ["date"], "additionalProperties": false }),
            |v| {
                let date = v["date"].as_str().map(str::as_bytes).unwrap_or_default();
                let note = &v["note"];
                date.len() == 10
                    && date.iter().enumerate().all(|(i, b)| (*b == b'-') == (i == 4 || i == 7))
                    && date.iter().all(|b| b.is_ascii_digit() || *b == b'-')
                    && ("01"..="12").contains(&std::str::from_utf8(&date[5..7]).unwrap_or_default())
                    && (note.is_null() || is_short(note, 8))
                    && keys(v).iter().all(|key| ["date", "note"].contains(key))
            },
        ),
        (
            "definitions within each other",
            json!({ "$ref": "#/$defs/pair", "$defs": {
                "pair": { "type": "array", "items": false, "minItems": 2,
                    "prefixItems": [{ "$ref": "#/$defs/leaf" }, { "$ref": "#/$defs/leaf" }] },
                "leaf": { "anyOf": [{ "type": "boolean" },
                    { "type": "array", "items": { "type": "null" }, "maxItems": 2 }] } } }),
            |v| all(v, 2..=2, |v| v.is_boolean() || all(v, 0..=2, Value::is_null)),
        ),
        (
            "all of two",
            json!({ "allOf": [
                { "type": "object", "required": ["a"],
                    "properties": { "a": { "type": "integer", "minimum": 3 } } },
                { "type": "object", "properties": { "a": { "maximum": 30 }, "b": { "const": "x" } } } ],
                "additionalProperties": false,
                "properties": { "a": true, "b": true } }),
            |v| is_from(&v["a"], 3, 30) && (v["b"].is_null() || v["b"] == "x") && keys(v).len() <= 2,
        ),
    ]
}

fn samplers() -> Vec<SamplerConfig> {
    let hot = |seed| SamplerConfig { temperature: 1.5, seed, ..SamplerConfig::greedy() };
    let tame = |seed| SamplerConfig { temperature: 0.7, top_k: 40, top_p: 0.95, min_p: 0.05, ..hot(seed) };
    let kept = SamplerConfig { repeat_penalty: 1.2, presence_penalty: 0.5, ..tame(5) };
    vec![SamplerConfig::greedy(), hot(1), hot(2), tame(3), tame(4), kept]
}

struct Subject {
    name: &'static str,
    model: Model,
    tokenizer: Tokenizer,
    factory: GrammarFactory,
}

impl Subject {
    fn new(name: &'static str, path: &Path) -> Subject {
        let gguf = Gguf::open(path).expect("a model");
        let tokenizer = Tokenizer::from_metadata(gguf.metadata(), None).expect("a tokenizer");
        let factory = GrammarFactory::new(&tokenizer).expect("a factory");
        Subject { name, model: load(path), tokenizer, factory }
    }

    /// The demo, and a model that knows nothing of JSON where it is at hand.
    fn all() -> Vec<Subject> {
        let story = test_data("models/stories260K.gguf");
        let story = story.map(|path| Subject::new("stories260K", &path));
        [Subject::new("demo", &fixture("demo-q4_k_m"))].into_iter().chain(story).collect()
    }

    /// The tokens of an answer and its text; whether it ended by itself.
    fn answer(
        &self,
        constraint: Option<&Constraint>,
        config: &SamplerConfig,
        speculation: Speculation,
        threads: usize,
    ) -> (Vec<u32>, String, bool) {
        let ids = self
            .tokenizer
            .encode("Once there was a list", EncodeOptions { add_special: true, parse_special: false });
        let ids = ids.expect("ids");
        let options = EngineOptions { threads: threads.into(), ..options(CONTEXT, 64) };
        let mut engine = Engine::new(&self.model, &options).expect("an engine");
        let mut sequence = engine.sequence();
        engine.feed(&mut sequence, &ids, Logits::Last).expect("the prompt");
        let mut sampler = Sampler::new(config.clone()).expect("a sampler");
        sampler.read(ids.iter().copied());
        constraint.into_iter().for_each(|constraint| sampler.constrain(constraint.clone()));
        let mut answer = Vec::new();
        let mut ended = false;
        for token in engine.generate(&mut sequence, &mut sampler).speculate(speculation, 400).take(400) {
            let id = token.unwrap_or_else(|e| panic!("{} after {answer:?}: {e}", self.name)).id;
            ended = self.tokenizer.is_end_of_generation(id);
            if ended {
                break;
            }
            answer.push(id);
        }
        let text = self.tokenizer.decode(&answer, false);
        (answer, text, ended)
    }
}

#[test]
fn answers_obey_their_schemas() {
    for subject in Subject::all() {
        let mut count = 0;
        for (what, schema, obeys) in cases() {
            let grammar = Grammar::json_schema(&schema).expect("a schema");
            let constraint = subject.factory.constraint(&grammar).unwrap_or_else(|e| panic!("{what}: {e}"));
            for (i, config) in samplers().iter().enumerate() {
                let (ids, text, ended) = subject.answer(Some(&constraint), config, Speculation::Off, 2);
                let value: Value = serde_json::from_str(&text)
                    .unwrap_or_else(|e| panic!("{}, {what}, {config:?}: {e}: {text}", subject.name));
                assert!(ended && obeys(&value), "{}, {what}, {config:?}: {text}", subject.name);
                // Other ways to the same tokens, for some.
                let others = [(Speculation::Fixed(8), 2), (Speculation::Auto, 1), (Speculation::Off, 1)];
                for (speculation, threads) in others.into_iter().filter(|_| i < 2) {
                    let other = subject.answer(Some(&constraint), config, speculation, threads);
                    assert_eq!(
                        other.0, ids,
                        "{}, {what}, {config:?}, {speculation}, {threads}",
                        subject.name
                    );
                }
                count += 1;
            }
        }
        say(&format!("{}: {count} answers obey their schemas", subject.name));
        // Without a grammar the checks above would fail.
        let (_, text, _) = subject.answer(None, &SamplerConfig::greedy(), Speculation::Off, 2);
        assert!(serde_json::from_str::<Value>(&text).is_err(), "{}: {text}", subject.name);
    }
}

#[test]
fn answers_obey_other_grammars() {
    let list = "root ::= \"[\" (root (\", \" root){0,2})? \"]\" | [0-9]{1,3} # a list\n";
    let sum = "start: term \"+\" term \"=\" /[0-9]{1,3}/\nterm: /[a-z]{1,5}/ | \"(\" term \")\"";
    let word = "(yes|no), (Monday|Tuesday)[.!]";
    let is_list = |text: &str| serde_json::from_str::<Value>(text).is_ok();
    let is_sum = |text: &str| text.contains('+') && text.contains('=');
    let is_word = |text: &str| text.len() <= 13 && text.contains("day");
    let obeys: [&dyn Fn(&str) -> bool; 3] = [&is_list, &is_sum, &is_word];
    let grammars = [Grammar::gbnf(list), Grammar::lark(sum), Grammar::regex(word)];
    for subject in Subject::all() {
        for (grammar, obeys) in grammars.iter().zip(obeys) {
            let grammar = grammar.as_ref().expect("a grammar");
            let constraint = subject.factory.constraint(grammar).expect("a constraint");
            for config in samplers() {
                let (ids, text, ended) = subject.answer(Some(&constraint), &config, Speculation::Auto, 1);
                // Brackets may go on.
                assert!(!ended || obeys(&text), "{}: {text:?}", subject.name);
                assert!(ended || ids.len() == 400, "{}: {text:?}", subject.name);
            }
        }
    }
}

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).expect("a file");
}

#[test]
fn the_program_takes_schemas_and_grammars() {
    let dir = TempDir::new().expect("a folder");
    let dir = dir.path();
    let sum = json!({ "type": "integer", "maximum": 99, "minimum": 0 });
    let schema = json!({ "type": "object", "properties": { "sum": sum },
        "required": ["sum"], "additionalProperties": false });
    write(dir, "sum.json", &schema.to_string());
    write(dir, "answer.gbnf", "root ::= \"It is \" [0-9]{1,2} \".\"");
    write(dir, "answer.txt", "# no extension tells\nroot ::= \"It is \" [0-9]{1,2} \".\"");
    write(dir, "answer.lark", "start: \"It is \" /[0-9]{1,2}/ \".\"");
    let run = |args: &[&str]| {
        let output = wayinfer(dir, 100, &[&["generate", "-p", "What is 2+2?"], args].concat());
        assert!(output.status.success(), "{}", transcript(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let text = run(&["--json-schema", "sum.json"]);
    let value: Value = serde_json::from_str(&text).expect("JSON");
    assert!(is_from(&value["sum"], 0, 99), "{text}");
    let report: Value =
        serde_json::from_str(&run(&["--json-schema", "sum.json", "--json"])).expect("a report");
    assert_eq!((&report["text"], &report["stop"]), (&text.trim_end().into(), &"end_of_text".into()));
    let text = run(&["--grammar", "answer.gbnf"]);
    assert!(text.starts_with("It is ") && text.ends_with(".\n") && text.len() < 11, "{text}");
    assert_eq!([run(&["--grammar", "answer.txt"]), run(&["--grammar", "answer.lark"])], [text.clone(), text]);
}

#[test]
fn every_answer_of_a_conversation_obeys() {
    use std::io::Write;
    let dir = TempDir::new().expect("a folder");
    write(dir.path(), "schema.json", r#"{"enum": [["a", 1], {"b": true}]}"#);
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_wayinfer"));
    program.current_dir(dir.path()).args(["chat", "--json-schema", "schema.json", "--no-history"]);
    let pipe = std::process::Stdio::piped;
    let mut child = program.stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn().expect("the program starts");
    child.stdin.take().expect("a pipe").write_all(b"What is 2+2?\nhello\n/regen\n").expect("lines");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", transcript(&output));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let answers: Vec<Value> =
        serde_json::Deserializer::from_str(&text).into_iter().collect::<Result<_, _>>().expect("JSON");
    assert!(
        answers.len() == 3 && answers.iter().all(|v| *v == json!(["a", 1]) || *v == json!({ "b": true })),
        "{text}"
    );
}

#[test]
fn what_cannot_be_used_is_refused_by_its_files_name() {
    let dir = TempDir::new().expect("a folder");
    let dir = dir.path();
    write(dir, "none.json", "{\"type\": ");
    write(dir, "not.json", r#"{"type": "object", "properties": {"x": {"not": {}}}}"#);
    write(dir, "wrong.gbnf", "root ::= \"a\" b");
    write(dir, "wrong.lark", "start: other");
    let refused = |args: &[&str], code: i32, text: &str| {
        for command in [&["generate", "-p", "hi"][..], &["chat"]] {
            let output = wayinfer(dir, 100, &[command, args].concat());
            let said = transcript(&output);
            assert!(output.status.code() == Some(code) && said.contains(text), "{said}");
        }
    };
    refused(
        &["--json-schema", "none.json"],
        1,
        "error: none.json: not JSON: EOF while parsing a value at line 1",
    );
    let unimplemented =
        "error: not.json: the JSON schema cannot be used: Unimplemented keys: [\"not\"] (at #/properties/x)";
    refused(&["--json-schema", "not.json"], 1, unimplemented);
    refused(&["--json-schema", "gone.json"], 1, "error: gone.json: cannot be read: ");
    let undefined = "error: wrong.gbnf: the GBNF grammar cannot be used: the rule \"b\" is not defined";
    refused(&["--grammar", "wrong.gbnf"], 1, undefined);
    refused(&["--grammar", "wrong.lark"], 1, "error: wrong.lark: the Lark grammar cannot be used: ");
    refused(&["--grammar", "wrong.lark", "--json-schema", "none.json"], 2, "cannot be used with");
    let output = wayinfer(dir, 100, &["generate", "-p", "hi", "--grammar", "wrong.lark", "--ignore-eos"]);
    assert!(output.status.code() == Some(2), "{}", transcript(&output));
}

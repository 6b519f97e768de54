//! Each format by what its models write, in every way that it may come.

use serde_json::{Value as Json, json};

use super::*;

fn tools() -> Vec<Json> {
    let parameters = json!({
        "type": "object",
        "properties": {
            "place": {"type": "string"},
            "days": {"type": "integer"},
            "exact": {"type": "boolean"},
            "where": {"type": "object", "properties": {"lat": {"type": "number"}}},
            "limits": {"type": "array", "items": {"type": "number"}},
        },
        "required": ["place"],
    });
    vec![
        json!({"type": "function", "function": {"name": "weather", "parameters": parameters}}),
        json!({"type": "function", "function": {"name": "now", "parameters": {"properties": {}}}}),
    ]
}

/// What an answer comes to: reasoning, text, and the calls with their arguments.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sum {
    reasoning: String,
    text: String,
    calls: Vec<(String, String)>,
    /// The order in which kinds of parts came.
    order: String,
}

impl Sum {
    fn add(&mut self, parts: Vec<AnswerPart>) {
        for part in parts {
            let kind = match part {
                AnswerPart::Reasoning(text) => {
                    self.reasoning.push_str(&text);
                    'r'
                }
                AnswerPart::Text(text) => {
                    assert!(!text.is_empty());
                    self.text.push_str(&text);
                    't'
                }
                AnswerPart::Call { index, name } => {
                    assert_eq!(index, self.calls.len(), "calls are counted");
                    self.calls.push((name, String::new()));
                    self.order.push('c');
                    continue;
                }
                AnswerPart::Arguments { index, delta } => {
                    assert_eq!(index + 1, self.calls.len(), "arguments belong to the last call");
                    self.calls[index].1.push_str(&delta);
                    'a'
                }
            };
            if !self.order.ends_with(kind) {
                self.order.push(kind);
            }
        }
    }
}

fn parser(format: &str, prompt: &str, whole: bool) -> AnswerParser {
    let parser = AnswerParser::new(Some(Format::named(format).expect(format)), prompt, &tools());
    if whole { parser.whole() } else { parser }
}

/// The sum of pieces, each of the next of these lengths in characters.
fn sum_of(mut parser: AnswerParser, text: &str, mut len: impl FnMut() -> usize) -> Sum {
    let mut sum = Sum::default();
    let mut rest = text;
    while !rest.is_empty() {
        let at = rest.char_indices().nth(len().max(1)).map_or(rest.len(), |(at, _)| at);
        let (piece, after) = rest.split_at(at);
        sum.add(parser.push(piece));
        rest = after;
    }
    sum.add(parser.finish());
    sum
}

fn random(mut state: u64) -> impl FnMut(usize) -> usize {
    move |n| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    }
}

/// The sum of a text, the same in pieces of any size.
fn sum(format: &str, prompt: &str, text: &str, whole: bool) -> Sum {
    let all = sum_of(parser(format, prompt, whole), text, || usize::MAX);
    for size in [1, 2, 3, 5, 8] {
        let pieces = sum_of(parser(format, prompt, whole), text, || size);
        assert_eq!(pieces, all, "{format}, {text:?} in pieces of {size}, whole: {whole}");
    }
    let mut below = random(text.len() as u64);
    for _ in 0..20 {
        let pieces = sum_of(parser(format, prompt, whole), text, || 1 + below(9));
        assert_eq!(pieces, all, "{format}, {text:?} in random pieces, whole: {whole}");
    }
    all
}

const PLACE: &str = r#"{"place":"Saint-\"Étienne\"","days":3}"#;

/// Texts and the calls in them: name and arguments, as JSON.
fn calls_of(format: &str) -> Vec<(String, Vec<(&'static str, Json)>)> {
    let place = || ("weather", json!({"place": "Saint-\"Étienne\"", "days": 3}));
    let now = || ("now", json!({}));
    let one = |text: &str| (text.to_owned(), vec![place()]);
    let two = |text: String| (text, vec![place(), now()]);
    match format {
        "hermes" => vec![
            one(&format!("<tool_call>\n{{\"name\": \"weather\", \"arguments\": {PLACE}}}\n</tool_call>")),
            one(&format!("<tool_call>{{\"arguments\": {PLACE}, \"name\": \"weather\"}}</tool_call>")),
            two(format!(
                "<tool_call>\n{{\"name\": \"weather\", \"arguments\": {PLACE}}}\n</tool_call>\n\
                 <tool_call>\n{{\"name\": \"now\", \"arguments\": {{}}}}\n</tool_call>"
            )),
            (
                "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": [1]}\"}</tool_call>".to_owned(),
                vec![("f", json!({"a": [1]}))],
            ),
            ("<tool_call>{\"id\": 1, \"name\": \"now\"}</tool_call>".to_owned(), vec![now()]),
        ],
        "qwen3-coder" | "seed-oss" => {
            let [open, close] = match format {
                "seed-oss" => ["<seed:tool_call>", "</seed:tool_call>"],
                _ => ["<tool_call>", "</tool_call>"],
            };
            let line = if format == "seed-oss" { "" } else { "\n" };
            let weather = format!(
                "<function=weather>\n<parameter=place>{line}Saint-\"Étienne\"{line}</parameter>\n\
                 <parameter=days>{line}3{line}</parameter>\n</function>"
            );
            vec![
                one(&format!("{open}\n{weather}\n{close}")),
                one(&weather),
                two(format!("{open}\n{weather}\n{close}\n{open}\n<function=now>\n</function>\n{close}")),
                two(format!("{open}{weather}<function=now></function>{close}")),
                (
                    format!(
                        "{open}\n<function=weather>\n\
                         <parameter=place>{line}a\n<b>\n</c>\n{line}</parameter>\n\
                         <parameter=exact>{line}True{line}</parameter>\n\
                         <parameter=where>{line}{{\"lat\": 1.5}}{line}</parameter>\n</function>\n{close}"
                    ),
                    vec![(
                        "weather",
                        json!({"place": "a\n<b>\n</c>\n", "exact": true, "where": {"lat": 1.5}}),
                    )],
                ),
            ]
        }
        "llama3" => vec![
            one(&format!("{{\"name\": \"weather\", \"parameters\": {PLACE}}}")),
            one(&format!("{{\"type\": \"function\", \"name\": \"weather\", \"parameters\": {PLACE}}}")),
            one(&format!("<|python_tag|>{{\"name\": \"weather\", \"parameters\": {PLACE}}}")),
            two(format!(
                "{{\"name\": \"weather\", \"parameters\": {PLACE}}}; \
                 {{\"name\": \"now\", \"parameters\": {{}}}}"
            )),
        ],
        "pythonic" => vec![
            one("[weather(place='Saint-\"Étienne\"', days=3)]"),
            one("<|python_start|>[weather(place=\"Saint-\\\"Étienne\\\"\", days=3)]<|python_end|>"),
            one("<|python_start|>weather(place='Saint-\"Étienne\"', days=3)<|python_end|>"),
            two("[weather(place='Saint-\"Étienne\"',days=3), now()]".to_owned()),
            (
                "[f(a=[True, None, {'b': ('x', 1.5)}], c=-2e3, d=False)]".to_owned(),
                vec![("f", json!({"a": [true, null, {"b": ["x", 1.5]}], "c": -2e3, "d": false}))],
            ),
        ],
        "mistral" => vec![
            one(&format!(
                "[TOOL_CALLS] [{{\"name\": \"weather\", \"arguments\": {PLACE}, \"id\": \"123456789\"}}]"
            )),
            two(format!(
                "[TOOL_CALLS][{{\"name\": \"weather\", \"arguments\": {PLACE}}}, \
                 {{\"name\": \"now\", \"arguments\": {{}}}}]"
            )),
            one(&format!("[TOOL_CALLS]weather[ARGS]{PLACE}")),
            one(&format!("[TOOL_CALLS]weather{PLACE}")),
            two(format!("[TOOL_CALLS]weather[CALL_ID]123456789[ARGS]{PLACE}[TOOL_CALLS]now[ARGS]{{}}")),
        ],
        "deepseek-v3" => {
            let call = |name, arguments: &str| {
                format!(
                    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n\
                     ```<｜tool▁call▁end｜>"
                )
            };
            let all =
                |calls: &[String]| format!("<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>", calls.join("\n"));
            vec![
                one(&all(&[call("weather", PLACE)])),
                two(all(&[call("weather", PLACE), call("now", "{}")])),
                one(&call("weather", PLACE)),
            ]
        }
        "deepseek-v3.1" => {
            let call = |name, arguments: &str| {
                format!("<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>")
            };
            let all =
                |calls: &[String]| format!("<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>", calls.concat());
            vec![one(&all(&[call("weather", PLACE)])), two(all(&[call("weather", PLACE), call("now", "{}")]))]
        }
        "deepseek-v3.2" | "deepseek-v4" => {
            let block = if format == "deepseek-v4" { "tool_calls" } else { "function_calls" };
            let weather = "<｜DSML｜invoke name=\"weather\">\n\
                <｜DSML｜parameter name=\"place\" string=\"true\">Saint-\"Étienne\"</｜DSML｜parameter>\n\
                <｜DSML｜parameter name=\"days\" string=\"false\">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n";
            let all = |calls: &str| format!("<｜DSML｜{block}>\n{calls}</｜DSML｜{block}>");
            vec![
                one(&all(weather)),
                two(all(&format!("{weather}<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>\n"))),
            ]
        }
        "glm" => {
            let line = "<tool_call>weather\n\
                <arg_key>place</arg_key>\n<arg_value>Saint-\"Étienne\"</arg_value>\n\
                <arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>";
            vec![
                one(line),
                one(&line.replace('\n', "")),
                two(format!("{line}<tool_call>now</tool_call>")),
                two(format!("{line}\n<tool_call>now\n</tool_call>")),
            ]
        }
        "kimi-k2" => {
            let call = |id, arguments: &str| {
                format!("<|tool_call_begin|>{id}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>")
            };
            let all =
                |calls: String| format!("<|tool_calls_section_begin|>{calls}<|tool_calls_section_end|>");
            vec![
                one(&all(call("functions.weather:0", PLACE))),
                two(all(call("functions.weather:0", PLACE) + &call("functions.now:1", "{}"))),
                one(&call("functions.weather:12", PLACE)),
            ]
        }
        "minimax-m2" => {
            let weather = "<invoke name=\"weather\">\n\
                <parameter name=\"place\">Saint-\"Étienne\"</parameter>\n\
                <parameter name=\"days\">3</parameter>\n</invoke>\n";
            let all = |calls: &str| format!("<minimax:tool_call>\n{calls}</minimax:tool_call>");
            vec![one(&all(weather)), two(all(&format!("{weather}<invoke name=\"now\">\n</invoke>\n")))]
        }
        "minimax-m3" => {
            let text = |text: &str| text.replace('!', "]<]minimax[>[");
            let weather = text(
                "!<invoke name=\"weather\">!<place>Saint-\"Étienne\"!</place>!<days>3!</days>!</invoke>\n",
            );
            let all = |calls: &str| format!("{}\n{calls}{}", text("!<tool_call>"), text("!</tool_call>"));
            vec![
                one(&all(&weather)),
                two(all(&format!("{weather}{}", text("!<invoke name=\"now\">!</invoke>\n")))),
                (
                    all(&text(
                        "!<invoke name=\"weather\">\n!<place>a\n<b>!</place>\n\
                         !<where>!<lat>1.5!</lat>!</where>\
                         !<limits>!<item>1!</item>!<item>-2!</item>!</limits>!</invoke>",
                    )),
                    vec![("weather", json!({"place": "a\n<b>", "where": {"lat": 1.5}, "limits": [1, -2]}))],
                ),
            ]
        }
        "gemma4" => {
            let weather = "<|tool_call>call:weather{place:<|\"|>Saint-\"Étienne\"<|\"|>,days:3}<tool_call|>";
            vec![
                one(weather),
                two(format!("{weather}<|tool_call>call:now{{}}<tool_call|>")),
                (
                    "<|tool_call>call:f{a:[1,{b:<|\"|>}\n<|<|\"|>},null],c:{d:true, e: -1.5}}<tool_call|>"
                        .to_owned(),
                    vec![("f", json!({"a": [1, {"b": "}\n<|"}, null], "c": {"d": true, "e": -1.5}}))],
                ),
            ]
        }
        "command" => vec![two(format!(
            "<|START_ACTION|>[\n    \
             {{\"tool_call_id\": \"0\", \"tool_name\": \"weather\", \"parameters\": {PLACE}}},\n    \
             {{\"tool_call_id\": \"1\", \"tool_name\": \"now\", \"parameters\": {{}}}}\n]<|END_ACTION|>"
        ))],
        "granite" => vec![two(format!(
            "<|tool_call|>[{{\"name\": \"weather\", \"arguments\": {PLACE}}}, \
             {{\"name\": \"now\", \"arguments\": {{}}}}]"
        ))],
        "harmony" => vec![
            one(&format!("<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{PLACE}")),
            one(&format!(" to=functions.weather<|channel|>commentary json<|message|>{PLACE}")),
            two(format!(
                "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{PLACE}<|end|>\
                 <|start|>assistant<|channel|>commentary to=functions.now <|constrain|>json\
                 <|message|>{{}}<|end|>"
            )),
        ],
        other => panic!("no examples of {other}"),
    }
}

fn prompt_of(format: &str) -> &'static str {
    if format == "harmony" { "<|start|>assistant" } else { "<|im_start|>assistant\n" }
}

fn assert_calls(sum: &Sum, expected: &[(&str, Json)], what: &str) {
    let calls: Vec<(&str, Json)> = sum
        .calls
        .iter()
        .map(|(name, arguments)| {
            let read = serde_json::from_str(arguments);
            (name.as_str(), read.unwrap_or_else(|error| panic!("{what}: {arguments:?}: {error}")))
        })
        .collect();
    assert_eq!(calls, expected, "{what}");
}

#[test]
fn every_format_is_read_in_any_pieces() {
    for format in Format::names() {
        for (text, expected) in calls_of(format) {
            for whole in [false, true] {
                let sum = sum(format, prompt_of(format), &text, whole);
                assert_calls(&sum, &expected, &format!("{format}, {text}"));
                assert_eq!((sum.text.as_str(), sum.reasoning.as_str()), ("", ""), "{format}, {text}");
            }
        }
    }
}

/// With reasoning and text before, text behind.
#[test]
fn calls_stand_among_reasoning_and_text() {
    for format in Format::names() {
        for (text, expected) in calls_of(format) {
            // Its calls begin an answer or are no calls; a list of Mistral's has no text before.
            let (before, said) = match format {
                "harmony" => continue,
                "llama3" | "pythonic" if !text.starts_with("<|") => ("", ""),
                _ => ("Let me see: <b>.\n\n", "Let me see: <b>."),
            };
            let answer = format!("<think>\nHm.\n</think>\n\n{before}{text}");
            for whole in [false, true] {
                let sum = sum(format, prompt_of(format), &answer, whole);
                assert_calls(&sum, &expected, &answer);
                assert_eq!((sum.reasoning.as_str(), sum.text.as_str()), ("Hm.\n", said), "{answer}");
                assert!(sum.order.starts_with(if said.is_empty() { "rc" } else { "rtc" }), "{}", sum.order);
            }
            let sum = sum(format, "assistant\n<think>\n", &format!("Hm.</think>{text}\n\nDone. "), false);
            assert_calls(&sum, &expected, &text);
            assert_eq!((sum.reasoning.as_str(), sum.text.as_str()), ("Hm.", "Done. "), "{text}");
        }
    }
    for format in ["kimi-k2", "qwen3-coder", "deepseek-v3.2"] {
        let (text, expected) = calls_of(format).remove(0);
        let sum = sum(format, "assistant\n<think>\n", &format!("Hm.{text}"), false);
        assert_calls(&sum, &expected, &text);
        assert_eq!((sum.reasoning.as_str(), sum.text.as_str()), ("Hm.", ""), "{format}: it goes on to call");
    }
    let answer = format!(
        "<|channel|>analysis<|message|>Hm.<|end|>\
         <|start|>assistant<|channel|>commentary<|message|>Let me see.<|end|>\
         <|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{PLACE}"
    );
    let harmony = sum("harmony", "<|start|>assistant", &answer, false);
    assert_eq!((harmony.reasoning.as_str(), harmony.text.as_str()), ("Hm.", "Let me see."));
    assert_eq!(harmony.calls, [("weather".to_owned(), PLACE.to_owned())]);
    let answer = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Four.";
    let harmony = sum("harmony", "<|start|>assistant", answer, false);
    assert_eq!((harmony.reasoning.as_str(), harmony.text.as_str()), ("Hm.", "Four."));
}

/// Without a format nothing is a call, and text comes as it is.
#[test]
fn without_tools_everything_is_text() {
    let text = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call> \n";
    let mut parser = AnswerParser::new(None, "assistant\n", &[]);
    let mut sum = Sum::default();
    sum.add(parser.push(text));
    sum.add(parser.finish());
    assert_eq!((sum.text.as_str(), sum.calls.len()), (text, 0));
}

/// What is no call after all is text, to the last character.
#[test]
fn what_is_malformed_is_text() {
    let cases = [
        ("hermes", "<tool_call>\nweather(\"a\")\n</tool_call>"),
        ("hermes", "a <tool_call> b"),
        ("hermes", "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>"),
        ("hermes", "<tool_call>{\"arguments\": {}}</tool_call>"),
        ("hermes", "<tool_call>{\"name\": 1, \"arguments\": {}}</tool_call>"),
        ("hermes", "<tool_call>{\"name\": \"f\", \"arguments\": \"{\"}</tool_call>"),
        ("hermes", "<tool_call>"),
        ("hermes", "<tool_ca"),
        ("hermes", "<tool_call>[]"),
        ("llama3", "{\"answer\": 4}"),
        ("llama3", "{\"name\": \"Ann\", \"age\": 4}"),
        ("llama3", "{\"name\": \"Ann\"}"),
        ("llama3", "{ no json"),
        ("llama3", "4 {\"name\": \"f\", \"parameters\": {}}"),
        ("llama3", "<|python_tag|>print(1)"),
        ("pythonic", "[weather(\"a\")]"),
        ("pythonic", "[1] See [2]."),
        ("pythonic", "[a](https://b)"),
        ("pythonic", "[]"),
        ("pythonic", "<|python_start|>print(1)<|python_end|>"),
        ("pythonic", "Call [now()]."),
        ("mistral", "[TOOL_CALLS]"),
        ("mistral", "[TOOL_CALLS]two words[ARGS]{}"),
        ("mistral", "[TOOL_CALLS][{\"name\": \"f\"} x"),
        ("deepseek-v3", "<｜tool▁calls▁begin｜>x"),
        ("deepseek-v3", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```python\n1\n```"),
        ("kimi-k2", "<|tool_calls_section_begin|><|tool_calls_section_end|>"),
        ("kimi-k2", "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>[]"),
        ("qwen3-coder", "#include <functional> <function= >"),
        ("qwen3-coder", "<tool_call> <parameter=a>"),
        ("glm", "<tool_call>two words</tool_call>"),
        ("minimax-m3", "]<]minimax[>[<tool_call> a"),
        ("gemma4", "<|tool_call>call:f"),
        ("gemma4", "<|tool_call>call:two words{}"),
        ("minimax-m2", "<invoke name=\"\">"),
        ("deepseek-v3.2", "<｜DSML｜function_calls>\n\n"),
        ("command", "<|START_ACTION|>{}"),
    ];
    for (format, text) in cases {
        for whole in [false, true] {
            let sum = sum(format, prompt_of(format), text, whole);
            if text.contains("{\"name\": \"f\"} x") {
                assert_eq!((sum.text.as_str(), sum.calls.len()), ("x", 1), "the first is a call");
                continue;
            }
            assert_eq!(
                (sum.text.as_str(), sum.calls.as_slice()),
                (text, &[][..]),
                "{format}, whole: {whole}"
            );
        }
    }
}

/// A call that is cut off, or goes wrong behind its name: text from its beginning where calls are given
/// whole, else no more than what has not been given out.
#[test]
fn what_goes_wrong_late_is_text() {
    let good = "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>";
    for bad in [
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": tru?}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": [1, 2}}",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"b",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}, oh",
    ] {
        let text = format!("{good}{bad}");
        let whole = sum("hermes", "", &text, true);
        assert_eq!((whole.text.as_str(), whole.calls.len()), (bad, 1), "{bad}");
        let streamed = sum("hermes", "", &text, false);
        assert_eq!(streamed.calls.len(), 2, "{bad}");
        let all = format!("{}{}", streamed.calls[1].1, streamed.text);
        assert!(bad.ends_with(all.as_str()), "{all:?} of {bad}");
    }
    let cut = "<tool_call>\n<function=weather>\n<parameter=place>\nSaint-\nÉt</para";
    let streamed = sum("qwen3-coder", "", cut, false);
    assert_eq!(streamed.calls, [("weather".to_owned(), "{\"place\":\"Saint-\\nÉt</para".to_owned())]);
    let whole = sum("qwen3-coder", "", cut, true);
    assert_eq!((whole.text.as_str(), whole.calls.len()), (cut, 0));
}

/// Numbers that no double holds are JSON: a call that is held to a schema may have them.
#[test]
fn large_numbers_are_numbers() {
    let long = "9".repeat(400);
    let text = format!(
        "<tool_call>{{\"name\": \"f\", \"arguments\": {{\"a\": 4e999, \"b\": -{long}}}}}</tool_call>"
    );
    for whole in [false, true] {
        let sum = sum("hermes", "", &text, whole);
        assert_eq!(sum.calls, [("f".to_owned(), format!("{{\"a\": 4e999, \"b\": -{long}}}"))]);
        assert_eq!(sum.text, "");
    }
    let text = "<function=weather><parameter=days>\n1e999\n</parameter></function>";
    assert_eq!(sum("qwen3-coder", "", text, true).calls[0].1, "{\"days\":1e999}");
}

/// An answer that is cut within the mark that ends a call has the call and no part of the mark.
#[test]
fn a_part_of_the_last_mark_is_no_text() {
    for (format, text) in [
        ("hermes", "<tool_call>{\"name\": \"now\", \"arguments\": {}}\n</tool_"),
        ("glm", "<tool_call>now</tool_call>\n"),
        ("minimax-m2", "<minimax:tool_call>\n<invoke name=\"now\">\n</invoke>\n</mini"),
        ("command", "<|START_ACTION|>[{\"tool_name\": \"now\", \"parameters\": {}}]<|END_"),
        ("deepseek-v3", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n``"),
    ] {
        for whole in [false, true] {
            let sum = sum(format, prompt_of(format), text, whole);
            assert_eq!((sum.text.as_str(), sum.calls.len()), ("", 1), "{format}, {text}");
        }
    }
}

/// Behind some text of the answer neither reasoning nor a bare object is anything but text.
#[test]
fn behind_text_there_is_text() {
    let text = "<think>{\"name\": \"now\", \"parameters\": {}}";
    let sum = sum_of(parser("llama3", "assistant\n<think>\n", false).in_text(), text, || 3);
    assert_eq!((sum.text.as_str(), sum.calls.len(), sum.reasoning.as_str()), (text, 0, ""));
}

/// Arguments come while they are written, not at the end.
#[test]
fn arguments_are_streamed() {
    let first = |format: &str, text: &str| {
        let mut parser = parser(format, prompt_of(format), false);
        let mut sum = Sum::default();
        sum.add(parser.push(text));
        sum.calls.last().map(|call| call.1.clone())
    };
    let cases = [
        ("hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"lo", "{\"a\": \"lo"),
        ("kimi-k2", "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{\"a\": [1", "{\"a\": [1"),
        ("qwen3-coder", "<function=weather><parameter=place>\nlo", "{\"place\":\"lo"),
        ("gemma4", "<|tool_call>call:f{a:<|\"|>lo", "{\"a\":\"lo"),
    ];
    for (format, text, expected) in cases {
        assert_eq!(first(format, text).as_deref(), Some(expected), "{format}");
    }
}

/// Marks, their parts and what may stand between them in any order: no panic, the same parts in any pieces,
/// and arguments of whole calls are JSON.
#[test]
fn any_text_comes_out_the_same_in_any_pieces() {
    let mut below = random(11);
    let between = [
        "{",
        "}",
        "[",
        "]",
        "\"",
        ":",
        ",",
        "\n",
        " ",
        "weather",
        "f",
        "place",
        "é",
        "<",
        "3",
        "{}",
        "\"name\": \"f\"",
        "\"arguments\": {",
        "\"a\": 1",
        "<think>",
        "</think>",
        "```",
        "{\"name\": \"f\", \"arguments\": {}}",
        ";",
    ];
    for format in Format::names() {
        let marks = Format::named(format).expect("a format").0.marks();
        let examples = calls_of(format);
        for _ in 0..60 {
            let mut text = String::new();
            for _ in 0..below(9) {
                let mark = match below(8) {
                    0 => examples[below(examples.len())].0.as_str(),
                    1..=4 if !marks.is_empty() => marks[below(marks.len())],
                    _ => between[below(between.len())],
                };
                let cut = (0..=mark.len())
                    .filter(|at| mark.is_char_boundary(*at))
                    .nth(below(mark.chars().count() + 1));
                text.push_str(&mark[..if below(4) == 0 { cut.unwrap_or(0) } else { mark.len() }]);
            }
            for whole in [false, true] {
                let sum = sum(format, ["", "<think>", "<|start|>assistant"][below(3)], &text, whole);
                for (_, arguments) in sum.calls.iter().filter(|_| whole) {
                    let value = read_json(arguments).expect(arguments);
                    assert!(value.is_object(), "{arguments}");
                }
            }
        }
    }
}

/// Control tokens that a format needs reach the parser; others do not.
#[test]
fn marks_are_wanted() {
    let cases = [
        ("gemma4", "<|tool_call>", true),
        ("gemma4", "<|\"|>", true),
        ("minimax-m3", "]<]minimax[>[", true),
        ("kimi-k2", "<|tool_call_argument_begin|>", true),
        ("deepseek-v3.2", "｜DSML｜", true),
        ("mistral", "[TOOL_CALLS]", true),
        ("llama3", "<|python_tag|>", true),
        ("llama3", "<|eot_id|>", false),
        ("hermes", "<|im_end|>", false),
        ("hermes", "[TOOL_CALLS]", false),
        ("hermes", "<think>", true),
        ("harmony", "<|constrain|>", true),
        ("harmony", "<|call|>", false),
    ];
    for (format, token, wanted) in cases {
        assert_eq!(parser(format, "", false).wants(token), wanted, "{format}: {token}");
    }
}

#[test]
fn formats_are_found_by_templates() {
    let cases = [
        ("{{ '<tool_call>\\n{\"name\": ' }}", Some("hermes")),
        ("<tool_call>\n<function=a>\n<parameter=b>", Some("qwen3-coder")),
        ("<tool_call>{{ name }}<arg_key>", Some("glm")),
        ("[TOOL_CALLS]", Some("mistral")),
        ("<|header_start|> [func_name1(params_name1=params_value1), ..]", Some("pythonic")),
        ("<|header_start|>{{ '{\"name\": \"' }}{{ '\"parameters\": ' }}", Some("llama3")),
        ("<|start_header_id|> {\\\"name\\\": .., \\\"parameters\\\": ..}", Some("llama3")),
        ("<|start_header_id|>", None),
        ("<|im_start|>", None),
        ("", None),
    ];
    for (source, expected) in cases {
        assert_eq!(Format::of_template(source).map(Format::name), expected, "{source}");
    }
}

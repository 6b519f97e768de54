//! Grammars of forced calls, against the parser that reads them.

use serde_json::{Value as Json, json};

use super::{AnswerParser, AnswerPart, Choice, Format};
use crate::text::testing::{bpe, tokenizer};
use crate::text::{EncodeOptions, Grammar, GrammarFactory, TextError, Tokenizer};

const PLACE: &str = r#"{"place": "Bern <b>", "days": 3}"#;

fn tools() -> Vec<Json> {
    let parameters = json!({
        "type": "object",
        "properties": {
            "place": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["celsius", "kelvin"]},
        },
        "required": ["place"],
    });
    vec![
        json!({"type": "function", "function": {"name": "weather", "parameters": parameters}}),
        json!({"name": "now", "parameters": {"properties": {}, "additionalProperties": false}}),
    ]
}

/// A vocabulary of bytes, which has the marks as control tokens or not at all.
fn vocabulary(format: Format, control: bool) -> Tokenizer {
    let mut special = vec![("<eos>", 3)];
    if control {
        let is_token = |mark: &&str| {
            mark.starts_with(['<', '['])
                && mark.ends_with(['>', ']'])
                && (!mark.contains(['=', '"']) || mark.len() == 5)
        };
        let marks = format.0.marks().into_iter().filter(|mark| !mark.contains('｜')).filter(is_token);
        special.extend(marks.map(|mark| (mark, 3)));
        special.extend(
            ["｜DSML｜", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>"]
                .map(|m| (m, 3)),
        );
        special.extend(["<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<think>", "</think>"].map(|m| (m, 3)));
        special
            .extend(["<|channel|>", "<|message|>", "<|constrain|>", "<|start|>", "<|end|>"].map(|m| (m, 3)));
        if format.name() == "minimax-m3" {
            special.extend([("]<]minimax[>[", 3), ("<tool_call>", 3), ("</tool_call>", 3)]);
        }
        if format.name() == "gemma4" {
            special.extend([("<|tool_call>", 3)]);
        }
    }
    let mut seen = std::collections::HashSet::new();
    special.retain(|token| seen.insert(token.0));
    tokenizer(&bpe(&[], &special).kv("tokenizer.ggml.eos_token_id", 256u32)).expect("a vocabulary")
}

/// A call of `weather` and one of `now`, as the grammar writes them: together, and the first alone.
fn examples(format: &str) -> [String; 2] {
    let sections = |open: &str, calls: [&str; 2], between: &str, close: &str| {
        [format!("{open}{}{between}{}{close}", calls[0], calls[1]), format!("{open}{}{close}", calls[0])]
    };
    let tagged = |[key, key_end, end]: [&str; 3], line: &str| {
        format!("{key}place{key_end}{line}Bern <b>{line}{end}\n{key}days{key_end}{line}3{line}{end}\n")
    };
    match format {
        "hermes" => {
            let weather =
                format!("<tool_call>\n{{\"name\": \"weather\", \"arguments\": {PLACE}}}\n</tool_call>");
            sections(
                "",
                [&weather, "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>"],
                "\n",
                "",
            )
        }
        "llama3" => {
            let weather = format!("{{\"name\": \"weather\", \"parameters\": {PLACE}}}");
            sections("", [&weather, "{\"name\": \"now\", \"parameters\": {}}"], "; ", "")
        }
        "pythonic" => sections("[", ["weather(place=\"Bern <b>\", days=3)", "now()"], ", ", "]"),
        "granite" => {
            let weather = format!("{{\"name\": \"weather\", \"arguments\": {PLACE}}}");
            sections("<|tool_call|>[", [&weather, "{\"name\": \"now\", \"arguments\": {}}"], ", ", "]")
        }
        "command" => {
            let weather = format!("{{\"tool_name\": \"weather\", \"parameters\": {PLACE}}}");
            let now = "{\"tool_name\": \"now\", \"parameters\": {}}";
            sections("<|START_ACTION|>[", [&weather, now], ", ", "]<|END_ACTION|>")
        }
        "mistral" => {
            sections("", [&format!("[TOOL_CALLS]weather[ARGS]{PLACE}"), "[TOOL_CALLS]now[ARGS]{}"], "", "")
        }
        "deepseek-v3" => {
            let call = |name, arguments: &str| {
                format!(
                    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n\
                     ```<｜tool▁call▁end｜>"
                )
            };
            let calls = [call("weather", PLACE), call("now", "{}")];
            sections("<｜tool▁calls▁begin｜>", [&calls[0], &calls[1]], "\n", "<｜tool▁calls▁end｜>")
        }
        "deepseek-v3.1" => {
            let call = |name, arguments: &str| {
                format!("<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>")
            };
            let calls = [call("weather", PLACE), call("now", "{}")];
            sections("<｜tool▁calls▁begin｜>", [&calls[0], &calls[1]], "", "<｜tool▁calls▁end｜>")
        }
        "kimi-k2" => {
            let call = |id, arguments: &str| {
                format!("<|tool_call_begin|>{id}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>")
            };
            let calls = [call("functions.weather:0", PLACE), call("functions.now:11", "{}")];
            sections("<|tool_calls_section_begin|>", [&calls[0], &calls[1]], "", "<|tool_calls_section_end|>")
        }
        "deepseek-v3.2" | "deepseek-v4" => {
            let block = if format == "deepseek-v4" { "tool_calls" } else { "function_calls" };
            let weather = "<｜DSML｜invoke name=\"weather\">\n\
                <｜DSML｜parameter name=\"place\" string=\"true\">Bern <b></｜DSML｜parameter>\n\
                <｜DSML｜parameter name=\"days\" string=\"false\">3</｜DSML｜parameter>\n</｜DSML｜invoke>";
            let now = "<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>";
            sections(&format!("<｜DSML｜{block}>\n"), [weather, now], "\n", &format!("\n</｜DSML｜{block}>"))
        }
        "minimax-m2" => {
            let parameters = tagged(["<parameter name=\"", "\">", "</parameter>"], "");
            let weather = format!("<invoke name=\"weather\">\n{parameters}</invoke>");
            let now = "<invoke name=\"now\">\n</invoke>";
            sections("<minimax:tool_call>\n", [&weather, now], "\n", "\n</minimax:tool_call>")
        }
        "qwen3-coder" | "seed-oss" => {
            let (block, line) =
                if format == "seed-oss" { ("seed:tool_call", "") } else { ("tool_call", "\n") };
            let parameters = tagged(["<parameter=", ">", "</parameter>"], line);
            let weather = format!("<{block}>\n<function=weather>\n{parameters}</function>\n</{block}>");
            let now = format!("<{block}>\n<function=now>\n</function>\n</{block}>");
            sections("", [&weather, &now], "\n", "")
        }
        "glm" => {
            let parameters = tagged(["<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>"], "");
            sections(
                "",
                [&format!("<tool_call>weather\n{parameters}</tool_call>"), "<tool_call>now\n</tool_call>"],
                "\n",
                "",
            )
        }
        "minimax-m3" => {
            let text = |text: &str| text.replace('!', "]<]minimax[>[");
            let weather =
                text("!<invoke name=\"weather\">!<place>Bern <b>!</place>!<days>3!</days>!</invoke>\n");
            let now = text("!<invoke name=\"now\">!</invoke>\n");
            sections(&text("!<tool_call>\n"), [&weather, &now], "", &text("!</tool_call>"))
        }
        "gemma4" => sections(
            "",
            [
                "<|tool_call>call:weather{place:<|\"|>Bern <b><|\"|>,days:3}<tool_call|>",
                "<|tool_call>call:now{}<tool_call|>",
            ],
            "",
            "",
        ),
        "harmony" => {
            let weather =
                format!("<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{PLACE}");
            [weather.clone(), weather]
        }
        other => panic!("no example of {other}"),
    }
}

/// How far a text follows a grammar: to its end, where the answer may end.
fn follows(lark: &str, text: &str, tokenizer: &Tokenizer) -> Result<(), String> {
    let factory = GrammarFactory::new(tokenizer).expect("a factory");
    let grammar = Grammar::lark(lark).unwrap_or_else(|error| panic!("{error}\n{lark}"));
    let mut constraint = factory.constraint(&grammar).unwrap_or_else(|error| panic!("{error}\n{lark}"));
    let ids = tokenizer.encode(text, EncodeOptions { add_special: false, parse_special: true }).expect("ids");
    for (at, id) in ids.iter().enumerate() {
        if !constraint.mask().map_err(|error| error.to_string())?.allows(*id) {
            return Err(format!("it ends behind {:?}", tokenizer.decode(&ids[..at], true)));
        }
        constraint.accept(*id).expect("an allowed token");
    }
    let eos = tokenizer.eos().expect("an end");
    let ends = constraint.mask().map_err(|error| error.to_string())?.allows(eos);
    if ends { Ok(()) } else { Err("it may not end".to_owned()) }
}

fn grammar(format: Format, choice: &Choice, parallel: bool, prompt: &str, tokenizer: &Tokenizer) -> String {
    format.grammar(&tools(), choice, parallel, prompt, tokenizer).expect("a grammar")
}

#[test]
fn what_a_format_writes_follows_its_grammar() {
    let mut found = Vec::new();
    for name in Format::names() {
        let format = Format::named(name).expect("a format");
        let prompt = if name == "harmony" { "<|start|>assistant" } else { "<|im_start|>assistant\n" };
        let [both, first] = examples(name);
        let mut parser = AnswerParser::new(Some(format), prompt, &tools()).whole();
        let parts: Vec<AnswerPart> = [parser.push(&both), parser.finish()].concat();
        let calls = parts.iter().filter(|part| matches!(part, AnswerPart::Call { .. })).count();
        assert_eq!(calls, if name == "harmony" { 1 } else { 2 }, "{name}: {parts:?}");
        for control in [false, true] {
            let tokenizer = vocabulary(format, control);
            let any = grammar(format, &Choice::Any, true, prompt, &tokenizer);
            let named = grammar(format, &Choice::Named("weather".to_owned()), false, prompt, &tokenizer);
            let mut check = |lark: &str, text: &str, expected: bool| {
                let outcome = follows(lark, text, &tokenizer);
                if outcome.is_ok() != expected {
                    found.push(format!("{name}, control: {control}: {text:?}: {outcome:?}\n{lark}"));
                }
            };
            check(&any, &both, true);
            check(&any, &first, true);
            check(&named, &first, true);
            check(&named, &both, name == "harmony");
            check(&any, &first.replace("weather", "whether"), false);
            check(&any, &first.replace("place", "palace"), false);
            check(&any, "Bern", false);
            if name != "harmony" && control {
                check(&any, &format!("<think>Hm. <b></think>\n\n{first}"), true);
                let lark = grammar(format, &Choice::Any, true, "assistant\n<think>\n", &tokenizer);
                check(&lark, &format!("Hm. <b>\n</think>\n\n{first}"), true);
                check(&lark, &first, false);
            }
            if name == "harmony" {
                let thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant";
                check(&any, &format!("{thought}{first}"), true);
            }
        }
    }
    assert!(found.is_empty(), "{}\n{}", found.len(), found.join("\n\n"));
}

#[test]
fn only_tools_that_there_are_can_be_chosen() {
    let format = Format::named("hermes").expect("a format");
    let tokenizer = vocabulary(format, false);
    let error = |tools: &[Json], choice: Choice| match format.grammar(tools, &choice, true, "", &tokenizer) {
        Err(TextError::Tool(message)) => message,
        other => panic!("{other:?}"),
    };
    assert_eq!(error(&tools(), Choice::Named("f".to_owned())), "there is no tool \"f\" to call");
    assert_eq!(error(&[], Choice::Any), "there are no tools to call");
    assert_eq!(error(&[json!({})], Choice::Any), "a tool has no name");
    for ty in [json!("string"), json!("dict"), json!(["string", "null"]), json!(5)] {
        let tool = json!({"name": "f", "parameters": {"type": ty}});
        let what = format!("the parameters of \"f\" are of the type {ty}: an object is needed");
        assert_eq!(error(&[tool], Choice::Any), what);
    }
    for ty in [json!("object"), json!(["null", "object"])] {
        let tool = json!({"name": "f", "parameters": {"type": ty}});
        assert!(format.grammar(&[tool], &Choice::Any, true, "", &tokenizer).is_ok(), "{ty}");
    }
}

/// Gemma's own writing of values, by schemas of every kind.
#[test]
fn gemmas_values_follow_their_schema() {
    let format = Format::named("gemma4").expect("a format");
    let parameters = json!({
        "properties": {
            "a": {"type": "number"},
            "b": {"type": "array", "items": {"type": "string"}},
            "c": {"type": "object", "properties": {"d": {"type": "boolean"}, "e": {}}, "required": ["e"]},
            "f": {"type": ["string", "null"], "enum": ["x", "y"]},
        },
        "required": ["b"],
    });
    let tools = [json!({"name": "f", "parameters": parameters})];
    for control in [false, true] {
        let tokenizer = vocabulary(format, control);
        let lark = format.grammar(&tools, &Choice::Any, false, "", &tokenizer).expect("a grammar");
        let cases = [
            ("b:[]", true),
            ("a:-1.5,b:[<|\"|>u<|\"|>,<|\"|>v<|\"|>]", true),
            ("b:[],c:{e:{g:[1,null]}}", true),
            ("b:[],c:{d:true,e:<|\"|>w<|\"|>},f:<|\"|>x<|\"|>", true),
            ("a:1", false),
            ("a:x,b:[]", false),
            ("b:[1]", false),
            ("b:[],c:{d:true}", false),
            ("b:[],f:<|\"|>z<|\"|>", false),
            ("b:[],", false),
            (",b:[]", false),
        ];
        for (arguments, expected) in cases {
            let text = format!("<|tool_call>call:f{{{arguments}}}<tool_call|>");
            let outcome = follows(&lark, &text, &tokenizer);
            assert_eq!(outcome.is_ok(), expected, "{text}: {outcome:?}\n{lark}");
        }
    }
}

//! Messages for templates, and templates' calls read back.

use std::fs;
use std::path::Path;

use serde_json::{Value as Json, json};

use super::{AnswerParser, AnswerPart, Format, messages};
use crate::text::testing::{bpe, tokenizer};
use crate::text::{ChatTemplate, Conversation, Message, TextError, Tokenizer};

fn source(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/text").join(format!("{name}.json"));
    let golden: Json = serde_json::from_str(&fs::read_to_string(path).expect("a golden")).expect("JSON");
    golden["source"].as_str().expect("a source").to_owned()
}

fn vocabulary() -> Tokenizer {
    let file = bpe(&[], &[("<s>", 3), ("</s>", 3)]);
    let file = file.kv("tokenizer.ggml.bos_token_id", 256u32).kv("tokenizer.ggml.eos_token_id", 257u32);
    tokenizer(&file).expect("a vocabulary")
}

fn asked(arguments: Json, id: &str) -> Vec<Json> {
    vec![
        json!({"role": "user", "content": "How warm is it?"}),
        json!({"role": "assistant", "content": null, "tool_calls": [
            {"id": id, "type": "function", "function": {"name": "weather", "arguments": arguments}},
        ]}),
        json!({"role": "tool", "tool_call_id": id, "content": [{"type": "text", "text": "21"}]}),
    ]
}

fn fields(message: &Message) -> Json {
    serde_json::to_value(message).expect("JSON")
}

#[test]
fn arguments_become_what_a_template_wants() {
    let text = json!("{\"place\": \"Bern\"}");
    let qwen = messages(&asked(text.clone(), "call_1"), &source("qwen3")).expect("messages");
    let call = fields(&qwen[1]);
    assert_eq!(call["tool_calls"][0]["function"]["arguments"], json!({"place": "Bern"}));
    assert_eq!(call["content"], "", "it looks into the content");
    assert_eq!(
        fields(&qwen[2]),
        json!({"role": "tool", "tool_call_id": "call_1", "content": "21", "name": "weather"})
    );
    for arguments in [text, json!({"place": "Bern"})] {
        let deepseek = messages(&asked(arguments, "call_1"), &source("deepseek-v3")).expect("messages");
        let call = fields(&deepseek[1]);
        assert_eq!(call["tool_calls"][0]["function"]["arguments"], "{\"place\":\"Bern\"}", "it joins texts");
        assert_eq!(call["content"], Json::Null, "calls are those without content");
    }
    let mistral = messages(&asked(json!(""), "call_1"), &source("own-brackets")).expect("messages");
    let id = fields(&mistral[1])["tool_calls"][0]["id"].as_str().expect("an id").to_owned();
    assert!(id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric()), "{id}");
    assert_eq!(fields(&mistral[2])["tool_call_id"], id.as_str());
    let kimi = "<|tool_calls_section_begin|>{{ tool_call['id'] }}";
    let kimi = messages(&asked(json!("{}"), "call_1"), kimi).expect("messages");
    assert_eq!(fields(&kimi[1])["tool_calls"][0]["id"], "functions.weather:0");
    assert_eq!(fields(&kimi[2])["tool_call_id"], "functions.weather:0");
    let gemma = messages(&asked(json!("{}"), "call_1"), "<|tool_call>call: message['tool_responses']")
        .expect("messages");
    assert_eq!(gemma.len(), 2);
    assert_eq!(fields(&gemma[1])["tool_responses"], json!([{"name": "weather", "response": "21"}]));
    let developer = [json!({"role": "developer", "content": "Be brief.", "name": null})];
    assert_eq!(
        fields(&messages(&developer, "").expect("messages")[0]),
        json!({"role": "system", "content": "Be brief."})
    );
    assert_eq!(
        messages(&developer, "{% if role == 'developer' %}").expect("messages")[0].role(),
        "developer"
    );
}

#[test]
fn what_is_wrong_is_told_with_its_message() {
    let call =
        |function: Json| json!({"role": "assistant", "tool_calls": [{"id": "1", "function": function}]});
    let cases = [
        (json!("hi"), "it is no object"),
        (json!({"content": "hi"}), "it has no role"),
        (json!({"role": 1}), "it has no role"),
        (json!({"role": "user", "content": 1}), "its content is neither"),
        (
            json!({"role": "user", "content": [{"type": "image_url"}]}),
            "a part of the content is of type \"image_url\"",
        ),
        (json!({"role": "user", "content": [{"type": "text"}]}), "a part of the content is of type \"text\""),
        (json!({"role": "assistant", "tool_calls": 1}), "tool_calls is no list"),
        (call(json!({"arguments": "{}"})), "a call has no name"),
        (call(json!({"name": "f", "arguments": "{"})), "the arguments of its call of \"f\" are no JSON: EOF"),
        (call(json!({"name": "f", "arguments": "[1]"})), "the arguments of its call of \"f\" are no object"),
        (call(json!({"name": "f", "arguments": 1})), "the arguments of its call of \"f\" are no object"),
    ];
    for (message, expected) in cases {
        let all = [json!({"role": "user", "content": "hi"}), message.clone()];
        match messages(&all, "") {
            Err(TextError::Message { index: 1, what }) => {
                assert!(what.starts_with(expected), "{message}: {what}")
            }
            other => panic!("{message}: {other:?}"),
        }
    }
}

/// What a template makes of an answer with calls is read back as the same answer.
#[test]
fn what_templates_write_is_read_back() {
    let tokenizer = vocabulary();
    let arguments = json!({
        "place": "Saint-\"Étienne\"\n\\ 中",
        "days": 3,
        "exact": true,
        "where": {"lat": 45.5, "lon": null},
    });
    let schema = json!({"properties": {"place": {"type": "string"}, "days": {"type": "integer"},
        "exact": {"type": "boolean"}, "where": {"type": "object"}}});
    let tools = vec![
        json!({"type": "function", "function": {"name": "weather", "description": "", "parameters": schema}}),
        json!({"function": {"name": "now", "description": "", "parameters": {"properties": {}}}}),
    ];
    let cases = [
        ("qwen3", "hermes", 2),
        ("deepseek-v3", "deepseek-v3", 2),
        ("own-keys-and-values", "glm", 2),
        ("own-brackets", "mistral", 2),
        ("own-channels", "harmony", 1),
    ];
    let call = |id: &str, name: &str, arguments: &str| {
        let function = json!({"name": name, "arguments": arguments});
        json!({"id": id, "type": "function", "function": function})
    };
    for (name, format, calls) in cases {
        let source = source(name);
        let found = Format::of_template(&source).expect(name);
        assert_eq!(found.name(), format);
        let mut written =
            vec![call("call00001", "weather", &arguments.to_string()), call("call00002", "now", "{}")];
        written.truncate(calls);
        let said = [
            json!({"role": "user", "content": "How warm is it?"}),
            json!({"role": "assistant", "content": "", "tool_calls": written}),
        ];
        let said = messages(&said, &source).expect("messages");
        let template = ChatTemplate::new(&source).expect("a template");
        let render = |messages: &[Message], open| {
            let conversation = Conversation::new(messages, open, &tokenizer).with_tools(tools.clone());
            template.render_apart(&conversation, &tokenizer).expect("a text").text().to_owned()
        };
        let prompt = render(&said[..1], true);
        let all = render(&said, false);
        let answer = all.strip_prefix(prompt.as_str()).unwrap_or_else(|| panic!("{name}: {all}"));
        let mut parser = AnswerParser::new(Some(found), &prompt, &tools).whole();
        let mut read: Vec<(String, String)> = Vec::new();
        let mut text = String::new();
        for part in [parser.push(answer), parser.finish()].concat() {
            match part {
                AnswerPart::Call { name, .. } => read.push((name, String::new())),
                AnswerPart::Arguments { index, delta } => read[index].1.push_str(&delta),
                AnswerPart::Text(more) => text.push_str(&more),
                AnswerPart::Reasoning(_) => {}
            }
        }
        let read: Vec<(&str, Json)> = read
            .iter()
            .map(|(name, text)| (name.as_str(), serde_json::from_str(text).expect(text)))
            .collect();
        let expected = [("weather", arguments.clone()), ("now", json!({}))];
        assert_eq!(read, expected[..calls], "{name}: {answer}");
        // What ends the answer is a control token, which no answer has as text.
        let ends = ["<|im_end|>", "</s>", "<｜end▁of▁sentence｜>", "<|call|>"];
        let rest = ends.iter().fold(text, |text, end| text.replace(end, ""));
        assert_eq!(rest.trim(), "", "{name}: {answer}");
    }
}

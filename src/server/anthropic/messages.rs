//! Messages as this dialect has them, made into those of OpenAI's shape, which templates see.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::error::ApiError;
use crate::text::Message;

/// A message: one text, or blocks.
#[derive(Debug, Deserialize)]
pub struct InMessage {
    role: String,
    content: Value,
}

/// The system's text and the messages of a request.
///
/// # Errors
/// A role that there is not; blocks that are no text, call or result.
pub fn messages(system: Option<Value>, all: Vec<InMessage>) -> Result<Vec<Message>, ApiError> {
    let mut made = Vec::with_capacity(all.len() + 1);
    if let Some(system) = system.filter(|system| !system.is_null()) {
        made.push(Message::new("system", text(system, "system")?));
    }
    for (i, InMessage { role, content }) in all.into_iter().enumerate() {
        let at = format!("messages[{i}].content");
        match &*role {
            "user" => user(content, &at, &mut made)?,
            "assistant" => made.push(assistant(content, &at)?),
            "system" => made.push(Message::new("system", text(content, &at)?)),
            _ => return Err(ApiError::invalid(format!("messages[{i}].role"), "user or assistant is needed")),
        }
    }
    Ok(made)
}

/// Blocks, of which a text is one.
fn blocks(content: Value, at: &str) -> Result<Vec<Map<String, Value>>, ApiError> {
    let wrong = |at: String| ApiError::invalid(at, "a block is needed");
    match content {
        Value::String(text) => {
            let block = [("type", "text".to_owned()), ("text", text)];
            Ok(vec![block.map(|(name, value)| (name.to_owned(), value.into())).into_iter().collect()])
        }
        Value::Array(blocks) => {
            let block = |(i, block)| match block {
                Value::Object(block) => Ok(block),
                _ => Err(wrong(format!("{at}[{i}]"))),
            };
            blocks.into_iter().enumerate().map(block).collect()
        }
        _ => Err(ApiError::invalid(at, "a text or a list of blocks is needed")),
    }
}

fn field<'b>(block: &'b Map<String, Value>, name: &str) -> Option<&'b str> {
    block.get(name).and_then(Value::as_str)
}

fn needed(block: &Map<String, Value>, name: &str, at: &str) -> Result<String, ApiError> {
    let text = field(block, name).map(str::to_owned);
    text.ok_or_else(|| ApiError::invalid(format!("{at}.{name}"), "a text is needed"))
}

/// What cannot be read, by its type.
fn unknown(block: &Map<String, Value>, at: &str) -> ApiError {
    let at = format!("{at}.type");
    match field(block, "type") {
        Some(ty) => ApiError::unsupported(at, format!("blocks of the type {ty:?} cannot be read here")),
        None => ApiError::invalid(at, "a type is needed"),
    }
}

/// The text of a block that is one: a text, or a document that is one.
fn text_of(block: &Map<String, Value>, at: &str) -> Result<String, ApiError> {
    match field(block, "type") {
        Some("text") => needed(block, "text", at),
        Some("document") if block.get("source").is_some_and(|source| source["type"] == "text") => {
            let data = block["source"]["data"].as_str();
            data.map(str::to_owned)
                .ok_or_else(|| ApiError::invalid(format!("{at}.source.data"), "a text is needed"))
        }
        _ => Err(unknown(block, at)),
    }
}

/// The texts of blocks that are all texts.
fn text(content: Value, at: &str) -> Result<String, ApiError> {
    let blocks = blocks(content, at)?;
    let texts = blocks.iter().enumerate().map(|(i, block)| text_of(block, &format!("{at}[{i}]")));
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}

/// What a user says, and what tools have said, each in a message of its own and in their order.
fn user(content: Value, at: &str, made: &mut Vec<Message>) -> Result<(), ApiError> {
    let mut texts: Vec<String> = Vec::new();
    let say = |texts: &mut Vec<String>, made: &mut Vec<Message>| {
        if !texts.is_empty() {
            made.push(Message::new("user", std::mem::take(texts).join("\n")));
        }
    };
    let before = made.len();
    for (i, mut block) in blocks(content, at)?.into_iter().enumerate() {
        let at = format!("{at}[{i}]");
        if field(&block, "type") != Some("tool_result") {
            texts.push(text_of(&block, &at)?);
            continue;
        }
        say(&mut texts, made);
        let id = needed(&block, "tool_use_id", &at)?;
        let result = match block.remove("content") {
            None | Some(Value::Null) => String::new(),
            Some(content) => text(content, &format!("{at}.content"))?,
        };
        made.push(Message::new("tool", result).with("tool_call_id", id));
    }
    say(&mut texts, made);
    if made.len() == before {
        return Err(ApiError::invalid(at, "there is nothing in it"));
    }
    Ok(())
}

/// What the model has said, thought and called.
fn assistant(content: Value, at: &str) -> Result<Message, ApiError> {
    let (mut texts, mut thoughts, mut calls) = (String::new(), String::new(), Vec::new());
    for (i, block) in blocks(content, at)?.iter().enumerate() {
        let at = format!("{at}[{i}]");
        match field(block, "type") {
            Some("thinking") => thoughts.push_str(&needed(block, "thinking", &at)?),
            // Nobody here can read it.
            Some("redacted_thinking") => {}
            Some("tool_use") => {
                let arguments = match block.get("input") {
                    Some(input @ Value::Object(_)) => input.to_string(),
                    _ => return Err(ApiError::invalid(format!("{at}.input"), "an object is needed")),
                };
                let function = json!({ "name": needed(block, "name", &at)?, "arguments": arguments });
                let id = needed(block, "id", &at)?;
                calls.push(json!({ "id": id, "type": "function", "function": function }));
            }
            _ => texts.push_str(&text_of(block, &at)?),
        }
    }
    let mut message = Message::new("assistant", texts);
    if !thoughts.is_empty() {
        message = message.with("reasoning_content", thoughts);
    }
    if !calls.is_empty() {
        message = message.with("tool_calls", calls);
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(system: Value, all: Value) -> Result<Value, ApiError> {
        let all = serde_json::from_value(all).expect("messages");
        Ok(serde_json::to_value(messages(Some(system), all)?).unwrap())
    }

    #[test]
    fn texts_and_blocks_of_text_are_the_same() {
        let plain = made(json!("s"), json!([{ "role": "user", "content": "a" }])).unwrap();
        let blocks = json!([{ "type": "text", "text": "a", "cache_control": { "type": "ephemeral" } }]);
        let system = json!([{ "type": "text", "text": "s" }]);
        assert_eq!(made(system, json!([{ "role": "user", "content": blocks }])).unwrap(), plain);
        assert_eq!(plain, json!([{ "role": "system", "content": "s" }, { "role": "user", "content": "a" }]));
    }

    #[test]
    fn calls_and_their_results() {
        let all = json!([
            { "role": "user", "content": "weather?" },
            { "role": "assistant", "content": [
                { "type": "thinking", "thinking": "hm", "signature": "" },
                { "type": "redacted_thinking", "data": "xx" },
                { "type": "text", "text": "I look." },
                { "type": "tool_use", "id": "t1", "name": "f", "input": { "b": 1, "a": [2] } },
                { "type": "tool_use", "id": "t2", "name": "g", "input": {} },
            ] },
            { "role": "user", "content": [
                { "type": "tool_result", "tool_use_id": "t1", "content": "rain" },
                { "type": "tool_result", "tool_use_id": "t2", "is_error": true,
                  "content": [{ "type": "text", "text": "no" }, { "type": "text", "text": "way" }] },
                { "type": "tool_result", "tool_use_id": "t3" },
                { "type": "text", "text": "well?" },
            ] },
        ]);
        let call = |id: &str, name: &str, arguments: &str| {
            let function = json!({ "name": name, "arguments": arguments });
            json!({ "id": id, "type": "function", "function": function })
        };
        let calls = [call("t1", "f", "{\"b\":1,\"a\":[2]}"), call("t2", "g", "{}")];
        let expected = json!([
            { "role": "user", "content": "weather?" },
            { "role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": calls },
            { "role": "tool", "content": "rain", "tool_call_id": "t1" },
            { "role": "tool", "content": "no\nway", "tool_call_id": "t2" },
            { "role": "tool", "content": "", "tool_call_id": "t3" },
            { "role": "user", "content": "well?" },
        ]);
        assert_eq!(made(Value::Null, all).unwrap(), expected);
    }

    #[test]
    fn documents_are_read_where_they_are_text() {
        let document = |source: Value| {
            let block = json!({ "type": "document", "source": source });
            json!([{ "role": "user", "content": [block] }])
        };
        let text = json!({ "type": "text", "media_type": "text/plain", "data": "a" });
        assert_eq!(made(Value::Null, document(text)).unwrap()[0]["content"], "a");
        let error = made(Value::Null, document(json!({ "type": "base64" }))).unwrap_err();
        assert!(error.message.contains("\"document\""), "{}", error.message);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let user = |block: Value| json!([{ "role": "user", "content": [block] }]);
        let last = json!({ "role": "user", "content": "a" });
        let said = |block: Value| json!([{ "role": "assistant", "content": [block] }, last]);
        for (all, field) in [
            (json!([{ "role": "tool", "content": "a" }]), "messages[0].role"),
            (json!([{ "role": "user", "content": [] }]), "messages[0].content"),
            (json!([{ "role": "user", "content": null }]), "messages[0].content"),
            (json!([{ "role": "user", "content": ["a"] }]), "messages[0].content[0]"),
            (user(json!({ "type": "image", "source": {} })), "messages[0].content[0].type"),
            (user(json!({ "text": "a" })), "messages[0].content[0].type"),
            (user(json!({ "type": "text" })), "messages[0].content[0].text"),
            (user(json!({ "type": "tool_result" })), "messages[0].content[0].tool_use_id"),
            (
                user(json!({ "type": "tool_result", "tool_use_id": "t", "content": [{ "type": "image" }] })),
                "messages[0].content[0].content[0].type",
            ),
            (
                said(json!({ "type": "tool_use", "id": "t", "name": "f", "input": "x" })),
                "messages[0].content[0].input",
            ),
            (said(json!({ "type": "tool_use", "name": "f", "input": {} })), "messages[0].content[0].id"),
        ] {
            assert_eq!(made(Value::Null, all.clone()).unwrap_err().field.as_deref(), Some(field), "{all}");
        }
        assert_eq!(made(json!(3), json!([])).unwrap_err().field.as_deref(), Some("system"));
    }
}

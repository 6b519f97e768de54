//! Items of an input, made into the messages of a chat.

use serde_json::{Map, Value, json};

use super::super::super::error::ApiError;
use super::super::messages::text;
use crate::text::Message;

/// What a model did at a time, which comes in several items.
#[derive(Default)]
struct Turn {
    reasoning: String,
    content: Option<String>,
    calls: Vec<Value>,
}

impl Turn {
    /// Ends it, where there is one.
    fn end(&mut self, made: &mut Vec<Message>) {
        let Turn { reasoning, content, calls } = std::mem::take(self);
        if reasoning.is_empty() && content.is_none() && calls.is_empty() {
            return;
        }
        let mut message = Message::new("assistant", content.unwrap_or_default());
        if !reasoning.is_empty() {
            message = message.with("reasoning_content", reasoning);
        }
        if !calls.is_empty() {
            message = message.with("tool_calls", calls);
        }
        made.push(message);
    }
}

/// The messages of a request.
///
/// # Errors
/// Items of other types than messages, reasoning, calls of functions and their results; what is no text.
pub fn messages(
    instructions: Option<String>,
    items: Vec<Map<String, Value>>,
) -> Result<Vec<Message>, ApiError> {
    let mut made = Vec::with_capacity(items.len() + 1);
    if let Some(instructions) = instructions.filter(|text| !text.is_empty()) {
        made.push(Message::new("system", instructions));
    }
    let mut turn = Turn::default();
    for (i, mut item) in items.into_iter().enumerate() {
        let at = format!("input[{i}]");
        let ty = item.get("type").and_then(Value::as_str).unwrap_or("message").to_owned();
        match &*ty {
            "message" => message(&mut item, &at, &mut turn, &mut made)?,
            "reasoning" => {
                if turn.content.is_some() || !turn.calls.is_empty() {
                    turn.end(&mut made);
                }
                turn.reasoning.push_str(&thoughts(&item));
            }
            "function_call" => {
                let arguments = needed(&item, "arguments", &at)?;
                let function = json!({ "name": needed(&item, "name", &at)?, "arguments": arguments });
                let id = needed(&item, "call_id", &at)?;
                turn.calls.push(json!({ "id": id, "type": "function", "function": function }));
            }
            "function_call_output" => {
                turn.end(&mut made);
                let output = text(item.remove("output").unwrap_or_default(), &format!("{at}.output"))?;
                made.push(Message::new("tool", output).with("tool_call_id", needed(&item, "call_id", &at)?));
            }
            "item_reference" => {
                let message = "nothing is stored here: send the item itself";
                return Err(ApiError::unsupported(format!("{at}.type"), message));
            }
            other => {
                let message = format!("items of the type {other:?} cannot be read here");
                return Err(ApiError::unsupported(format!("{at}.type"), message));
            }
        }
    }
    turn.end(&mut made);
    Ok(made)
}

fn needed(item: &Map<String, Value>, name: &str, at: &str) -> Result<String, ApiError> {
    let text = item.get(name).and_then(Value::as_str).map(str::to_owned);
    text.ok_or_else(|| ApiError::invalid(format!("{at}.{name}"), "a text is needed"))
}

fn message(
    item: &mut Map<String, Value>,
    at: &str,
    turn: &mut Turn,
    made: &mut Vec<Message>,
) -> Result<(), ApiError> {
    let content = text(item.remove("content").unwrap_or_default(), &format!("{at}.content"))?;
    match item.get("role").and_then(Value::as_str) {
        Some("assistant") => {
            if turn.content.is_some() || !turn.calls.is_empty() {
                turn.end(made);
            }
            turn.content = Some(content);
        }
        Some("user") => {
            turn.end(made);
            made.push(Message::new("user", content));
        }
        Some("system" | "developer") => {
            turn.end(made);
            made.push(Message::new("system", content));
        }
        _ => {
            let message = "one of user, assistant, system, developer is needed";
            return Err(ApiError::invalid(format!("{at}.role"), message));
        }
    }
    Ok(())
}

/// The text of a reasoning item; its summary where it has no more.
fn thoughts(item: &Map<String, Value>) -> String {
    let texts = |name: &str| {
        let parts = item.get(name).and_then(Value::as_array).into_iter().flatten();
        parts.filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n")
    };
    let content = texts("content");
    if content.is_empty() { texts("summary") } else { content }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(items: Value) -> Result<Value, ApiError> {
        let items = serde_json::from_value(items).expect("items");
        Ok(serde_json::to_value(messages(Some("s".to_owned()), items)?).unwrap())
    }

    #[test]
    fn items_of_a_turn_are_a_message() {
        let call =
            |id: &str| json!({ "type": "function_call", "call_id": id, "name": "f", "arguments": "{}" });
        let ty = "function_call_output";
        let output = |id: &str, output: Value| json!({ "type": ty, "call_id": id, "output": output });
        let items = json!([
            { "role": "developer", "content": [{ "type": "input_text", "text": "d" }] },
            { "type": "message", "role": "user", "content": "?" },
            { "type": "reasoning", "id": "r", "summary": [],
              "content": [{ "type": "reasoning_text", "text": "hm" }] },
            { "type": "message", "role": "assistant",
              "content": [{ "type": "output_text", "text": "I look." }] },
            call("a"),
            call("b"),
            output("a", json!("1")),
            output("b", json!([{ "type": "input_text", "text": "2" }])),
            { "type": "reasoning", "summary": [{ "type": "summary_text", "text": "so" }] },
            call("c"),
            { "type": "reasoning", "summary": [], "encrypted_content": "xx" },
            { "role": "assistant", "content": "done" },
        ]);
        let function = json!({ "name": "f", "arguments": "{}" });
        let call = |id: &str| json!({ "id": id, "type": "function", "function": function });
        let expected = json!([
            { "role": "system", "content": "s" },
            { "role": "system", "content": "d" },
            { "role": "user", "content": "?" },
            { "role": "assistant", "content": "I look.", "reasoning_content": "hm",
              "tool_calls": [call("a"), call("b")] },
            { "role": "tool", "content": "1", "tool_call_id": "a" },
            { "role": "tool", "content": "2", "tool_call_id": "b" },
            { "role": "assistant", "content": "", "reasoning_content": "so", "tool_calls": [call("c")] },
            { "role": "assistant", "content": "done" },
        ]);
        assert_eq!(made(items).unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (item, field) in [
            (json!({ "role": "me", "content": "a" }), "input[0].role"),
            (json!({ "role": "user" }), "input[0].content"),
            (json!({ "role": "user", "content": [{ "type": "input_image" }] }), "input[0].content[0].type"),
            (json!({ "type": "item_reference", "id": "x" }), "input[0].type"),
            (json!({ "type": "web_search_call" }), "input[0].type"),
            (json!({ "type": "function_call", "call_id": "a", "name": "f" }), "input[0].arguments"),
            (json!({ "type": "function_call_output", "output": "a" }), "input[0].call_id"),
            (json!({ "type": "function_call_output", "call_id": "a" }), "input[0].output"),
        ] {
            assert_eq!(made(json!([item])).unwrap_err().field.as_deref(), Some(field), "{item}");
        }
    }
}

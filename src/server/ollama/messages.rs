//! Messages as this dialect has them, made into those of OpenAI's shape, which templates see.

use serde::Deserialize;
use serde_json::{Value, json};

use super::super::error::ApiError;
use crate::text::Message;

/// A message.
#[derive(Debug, Deserialize)]
pub struct InMessage {
    role: String,
    content: Option<String>,
    thinking: Option<String>,
    images: Option<Vec<Value>>,
    tool_calls: Option<Vec<InCall>>,
    tool_name: Option<String>,
    tool_call_id: Option<String>,
}

#[derive(Debug, Deserialize)]
struct InCall {
    id: Option<String>,
    function: InFunction,
}

#[derive(Debug, Deserialize)]
struct InFunction {
    name: String,
    arguments: Option<Value>,
}

/// The messages of a request.
///
/// # Errors
/// A role that there is not; pictures; arguments that are no object.
pub fn messages(all: Vec<InMessage>) -> Result<Vec<Message>, ApiError> {
    // Calls without a result so far: their ids and names.
    let mut open: Vec<(String, String)> = Vec::new();
    let mut calls = 0;
    let mut made = Vec::with_capacity(all.len());
    for (i, message) in all.into_iter().enumerate() {
        let at = format!("messages[{i}]");
        if message.images.is_some_and(|images| !images.is_empty()) {
            return Err(ApiError::unsupported(format!("{at}.images"), "this server takes text alone"));
        }
        if !["system", "user", "assistant", "tool"].contains(&&*message.role) {
            let message = "one of system, user, assistant, tool is needed";
            return Err(ApiError::invalid(format!("{at}.role"), message));
        }
        let mut out = Message::new(message.role, message.content.unwrap_or_default());
        if let Some(thinking) = message.thinking.filter(|thinking| !thinking.is_empty()) {
            out = out.with("reasoning_content", thinking);
        }
        let mut made_calls: Vec<Value> = Vec::new();
        for (n, call) in message.tool_calls.unwrap_or_default().into_iter().enumerate() {
            let InFunction { name, arguments } = call.function;
            let arguments = match arguments {
                None | Some(Value::Null) => "{}".to_owned(),
                Some(object @ Value::Object(_)) => object.to_string(),
                Some(_) => {
                    let at = format!("{at}.tool_calls[{n}].function.arguments");
                    return Err(ApiError::invalid(at, "an object is needed"));
                }
            };
            let id = call.id.filter(|id| !id.is_empty()).unwrap_or_else(|| format!("call_{calls}"));
            calls += 1;
            let function = json!({ "name": name, "arguments": arguments });
            made_calls.push(json!({ "id": id, "type": "function", "function": function }));
            open.push((id, name));
        }
        if !made_calls.is_empty() {
            out = out.with("tool_calls", made_calls);
        }
        if out.role() == "tool" {
            if let Some(id) = of_call(&mut open, message.tool_call_id, message.tool_name.as_deref()) {
                out = out.with("tool_call_id", id);
            }
            if let Some(name) = message.tool_name {
                out = out.with("name", name);
            }
        }
        made.push(out);
    }
    Ok(made)
}

/// The id of the call that a result is of: as the result says, or the first open one of the tool's name.
fn of_call(open: &mut Vec<(String, String)>, id: Option<String>, name: Option<&str>) -> Option<String> {
    let is_it = |(of, tool): &(String, String)| match (&id, name) {
        (Some(id), _) => of == id,
        (None, Some(name)) => tool == name,
        (None, None) => true,
    };
    let found = open.iter().position(is_it).map(|at| open.remove(at).0);
    id.or(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(all: Value) -> Result<Value, ApiError> {
        Ok(serde_json::to_value(messages(serde_json::from_value(all).expect("messages"))?).unwrap())
    }

    #[test]
    fn results_find_their_calls() {
        let call = |name: &str| json!({ "function": { "name": name, "arguments": { "a": 1 } } });
        let all = json!([
            { "role": "user", "content": "?" },
            { "role": "assistant", "content": "", "thinking": "hm", "tool_calls": [call("f"), call("g")] },
            { "role": "tool", "tool_name": "g", "content": "2" },
            { "role": "tool", "content": "1" },
            { "role": "assistant", "tool_calls": [{ "id": "own", "function": { "name": "f" } }] },
            { "role": "tool", "tool_call_id": "own", "content": "3" },
        ]);
        let call = |id: &str, name: &str, arguments: &str| {
            let function = json!({ "name": name, "arguments": arguments });
            json!({ "id": id, "type": "function", "function": function })
        };
        let first = [call("call_0", "f", "{\"a\":1}"), call("call_1", "g", "{\"a\":1}")];
        let expected = json!([
            { "role": "user", "content": "?" },
            { "role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": first },
            { "role": "tool", "content": "2", "tool_call_id": "call_1", "name": "g" },
            { "role": "tool", "content": "1", "tool_call_id": "call_0" },
            { "role": "assistant", "content": "", "tool_calls": [call("own", "f", "{}")] },
            { "role": "tool", "content": "3", "tool_call_id": "own" },
        ]);
        assert_eq!(made(all).unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (message, field) in [
            (json!({ "role": "me" }), "messages[0].role"),
            (json!({ "role": "user", "content": "a", "images": ["x"] }), "messages[0].images"),
            (
                json!({ "role": "assistant",
                    "tool_calls": [{ "function": { "name": "f", "arguments": "{}" } }] }),
                "messages[0].tool_calls[0].function.arguments",
            ),
        ] {
            assert_eq!(made(json!([message])).unwrap_err().field.as_deref(), Some(field));
        }
    }
}

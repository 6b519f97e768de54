//! Messages as this dialect has them, made into those that a template sees.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::error::ApiError;
use crate::text::Message;

/// A message. What else it has goes to the template as it is.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct InMessage(Map<String, Value>);

/// Roles that there are.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// The messages of a request.
///
/// # Errors
/// A role that there is not; content that is no text; pictures and sound.
pub fn messages(all: Vec<InMessage>) -> Result<Vec<Message>, ApiError> {
    all.into_iter().enumerate().map(|(i, message)| message.into_message(&format!("messages[{i}]"))).collect()
}

impl InMessage {
    fn into_message(self, at: &str) -> Result<Message, ApiError> {
        let InMessage(mut fields) = self;
        let role = fields.get("role").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !ROLES.contains(&&*role) {
            return Err(ApiError::invalid(
                format!("{at}.role"),
                format!("one of {} is needed", ROLES.join(", ")),
            ));
        }
        // A newer name of the same.
        if role == "developer" {
            fields.insert("role".to_owned(), "system".into());
        }
        let content = match fields.remove("content") {
            None | Some(Value::Null) if role == "assistant" => String::new(),
            content => text(content.unwrap_or_default(), &format!("{at}.content"))?,
        };
        fields.insert("content".to_owned(), content.into());
        if let Some(calls) = fields.get_mut("tool_calls").filter(|calls| !calls.is_null()) {
            check_calls(calls, &format!("{at}.tool_calls"))?;
        }
        fields.retain(|_, value| !value.is_null());
        Ok(Message::from(fields))
    }
}

/// The text of a content, which may be a list of parts.
///
/// # Errors
/// What is no text.
pub fn text(content: Value, at: &str) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        _ => return Err(ApiError::invalid(at, "a text or a list of parts is needed")),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (i, part) in parts.iter().enumerate() {
        match part["type"].as_str() {
            Some("text" | "input_text" | "output_text" | "refusal") => {
                let text = part["text"].as_str().or(part["refusal"].as_str());
                texts.push(
                    text.ok_or_else(|| ApiError::invalid(format!("{at}[{i}].text"), "a text is needed"))?,
                );
            }
            Some(other) => {
                let what =
                    format!("parts of the type {other:?} cannot be read: this server takes text alone");
                return Err(ApiError::unsupported(format!("{at}[{i}].type"), what));
            }
            None => return Err(ApiError::invalid(format!("{at}[{i}].type"), "a text is needed")),
        }
    }
    Ok(texts.join("\n"))
}

/// Checks calls of tools that a model has made: each has a name, and arguments as text, which some clients
/// send as an object.
fn check_calls(calls: &mut Value, at: &str) -> Result<(), ApiError> {
    let Value::Array(calls) = calls else { return Err(ApiError::invalid(at, "a list of calls is needed")) };
    for (i, call) in calls.iter_mut().enumerate() {
        let at = format!("{at}[{i}].function");
        let Some(Value::Object(function)) = call.get_mut("function") else {
            return Err(ApiError::invalid(at, "a function is needed"));
        };
        if function.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
            return Err(ApiError::invalid(format!("{at}.name"), "a name is needed"));
        }
        let arguments = match function.get("arguments") {
            Some(Value::String(_)) => continue,
            None | Some(Value::Null) => "{}".to_owned(),
            Some(object @ Value::Object(_)) => object.to_string(),
            Some(_) => return Err(ApiError::invalid(format!("{at}.arguments"), "a JSON text is needed")),
        };
        function.insert("arguments".to_owned(), arguments.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn made(message: Value) -> Result<Value, ApiError> {
        let read: InMessage = serde_json::from_value(message).unwrap();
        Ok(serde_json::to_value(&messages(vec![read])?[0]).unwrap())
    }

    #[test]
    fn contents_are_texts() {
        let parts = json!([{ "type": "text", "text": "a" }, { "type": "input_text", "text": "b" }]);
        let message = json!({ "role": "developer", "name": null, "content": parts });
        assert_eq!(made(message).unwrap(), json!({ "role": "system", "content": "a\nb" }));
        assert_eq!(made(json!({ "role": "assistant" })).unwrap()["content"], "");
        for (wrong, field) in [
            (json!({ "role": "me", "content": "a" }), "messages[0].role"),
            (json!({ "role": "user" }), "messages[0].content"),
            (json!({ "role": "user", "content": 3 }), "messages[0].content"),
            (json!({ "role": "user", "content": [{ "type": "image_url" }] }), "messages[0].content[0].type"),
            (json!({ "role": "user", "content": [{ "type": "text" }] }), "messages[0].content[0].text"),
            (json!({ "role": "user", "content": ["a"] }), "messages[0].content[0].type"),
        ] {
            assert_eq!(made(wrong).unwrap_err().field.as_deref(), Some(field));
        }
    }

    #[test]
    fn arguments_of_calls_are_texts() {
        let call = |function: Value| {
            json!({ "role": "assistant", "content": null, "tool_calls":
            [{ "id": "c", "type": "function", "function": function }] })
        };
        let arguments = |given: Value| {
            let made = made(call(json!({ "name": "f", "arguments": given }))).unwrap();
            made["tool_calls"][0]["function"]["arguments"].clone()
        };
        assert_eq!(arguments(json!("{\"a\": 1}")), "{\"a\": 1}");
        assert_eq!(arguments(json!({ "a": 1 })), "{\"a\":1}");
        assert_eq!(arguments(Value::Null), "{}");
        let field = |message: Value| made(message).unwrap_err().field.unwrap();
        let at = "messages[0].tool_calls";
        assert_eq!(
            field(call(json!({ "name": "f", "arguments": 1 }))),
            format!("{at}[0].function.arguments")
        );
        assert_eq!(field(call(json!({ "arguments": "{}" }))), format!("{at}[0].function.name"));
        assert_eq!(field(call(json!("f"))), format!("{at}[0].function"));
        assert_eq!(field(json!({ "role": "assistant", "tool_calls": {} })), at);
    }
}

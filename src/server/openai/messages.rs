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
            None | Some(Value::Null) => {
                return Err(ApiError::invalid(format!("{at}.content"), "a text is needed"));
            }
            Some(Value::String(text)) => text,
            Some(Value::Array(parts)) => text_of(parts, at)?,
            Some(_) => {
                return Err(ApiError::invalid(
                    format!("{at}.content"),
                    "a text or a list of parts is needed",
                ));
            }
        };
        fields.insert("content".to_owned(), content.into());
        fields.retain(|_, value| !value.is_null());
        Ok(Message::from(fields))
    }
}

/// The texts of a content's parts.
fn text_of(parts: Vec<Value>, at: &str) -> Result<String, ApiError> {
    let mut texts = Vec::with_capacity(parts.len());
    for (i, part) in parts.iter().enumerate() {
        let at = format!("{at}.content[{i}]");
        match part.get("type").and_then(Value::as_str) {
            Some("text" | "input_text" | "output_text" | "refusal") => {
                let text = part.get("text").or_else(|| part.get("refusal")).and_then(Value::as_str);
                texts.push(text.ok_or_else(|| ApiError::invalid(format!("{at}.text"), "a text is needed"))?);
            }
            Some(other) => {
                let what =
                    format!("parts of the type {other:?} cannot be read: this server takes text alone");
                return Err(ApiError::unsupported(format!("{at}.type"), what));
            }
            None => return Err(ApiError::invalid(format!("{at}.type"), "a text is needed")),
        }
    }
    Ok(texts.join("\n"))
}

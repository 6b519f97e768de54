//! Requests as this dialect has them, made into one as all dialects have it.

use serde::Deserialize;
use serde_json::{Value, json};

use super::super::ask::{Ask, Chat, Input};
use super::super::error::ApiError;
use super::super::tools;
use super::messages::{InMessage, messages};
use super::options::Options;
use crate::text::Message;

/// What both kinds of requests have in common; how long the model is kept is not looked at.
#[derive(Debug, Default, Deserialize)]
pub struct Common {
    model: Option<String>,
    stream: Option<bool>,
    format: Option<Value>,
    options: Option<Options>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
}

/// Most tokens that probabilities are told of beside the one drawn.
const MAX_TOP_LOGPROBS: usize = 20;

impl Common {
    pub fn model(&self) -> &str {
        self.model.as_deref().unwrap_or_default()
    }

    pub fn streams(&self) -> bool {
        self.stream != Some(false)
    }

    /// The request as all dialects have it.
    ///
    /// # Errors
    /// What is not to be had here.
    pub fn ask(self, input: Input) -> Result<Ask, ApiError> {
        let format = match &self.format {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text.is_empty() => None,
            Some(Value::String(text)) if text == "json" => Some(json!({})),
            Some(schema @ Value::Object(_)) => Some(schema.clone()),
            Some(_) => return Err(ApiError::invalid("format", "\"json\" or a JSON schema is needed")),
        };
        let logprobs = match (self.logprobs, self.top_logprobs) {
            (Some(true), top) => Some(top.unwrap_or(0)),
            _ => None,
        };
        if logprobs > Some(MAX_TOP_LOGPROBS) {
            return Err(ApiError::invalid("top_logprobs", format!("at most {MAX_TOP_LOGPROBS} can be had")));
        }
        let options = self.options.unwrap_or_default();
        Ok(Ask {
            input,
            sampling: options.sampling()?,
            max_tokens: options.max_tokens(),
            stop: options.stop(),
            logprobs,
            choices: 1,
            format,
            model: self.model.unwrap_or_default(),
            ..Ask::default()
        })
    }
}

/// Whether the model is to think: yes, no, or how much.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Think {
    Wanted(bool),
    Effort(String),
}

fn think(wanted: Option<Think>, chat: &mut Chat) {
    match wanted {
        None => {}
        Some(Think::Wanted(wanted)) => chat.think(wanted),
        Some(Think::Effort(effort)) => {
            chat.think(true);
            chat.effort(&effort);
        }
    }
}

/// `/api/chat`.
#[derive(Debug, Deserialize)]
pub struct ChatFields {
    #[serde(default)]
    messages: Vec<InMessage>,
    tools: Option<Vec<Value>>,
    think: Option<Think>,
}

impl ChatFields {
    /// What is to be answered; nothing where the model is to be loaded alone.
    ///
    /// # Errors
    /// Messages and tools that cannot be read.
    pub fn input(self) -> Result<Option<Input>, ApiError> {
        if self.messages.is_empty() {
            return Ok(None);
        }
        let mut chat = Chat {
            messages: messages(self.messages)?,
            tools: tools::functions(self.tools.unwrap_or_default())?,
            ..Chat::default()
        };
        think(self.think, &mut chat);
        Ok(Some(Input::Chat(chat)))
    }
}

/// `/api/generate`.
#[derive(Debug, Deserialize)]
pub struct TextFields {
    #[serde(default)]
    prompt: String,
    system: Option<String>,
    template: Option<String>,
    suffix: Option<String>,
    raw: Option<bool>,
    images: Option<Vec<Value>>,
    context: Option<Vec<u32>>,
    think: Option<Think>,
}

impl TextFields {
    /// As [`ChatFields::input`].
    ///
    /// # Errors
    /// What is not to be had here.
    pub fn input(self) -> Result<Option<Input>, ApiError> {
        let is_given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let refused = [
            ("suffix", is_given(&self.suffix), "texts are continued, not filled in"),
            ("template", is_given(&self.template), "the model's own template is used"),
            ("images", self.images.is_some_and(|all| !all.is_empty()), "this server takes text alone"),
            ("context", self.context.is_some_and(|all| !all.is_empty()), "conversations are for /api/chat"),
        ];
        if let Some((field, _, why)) = refused.into_iter().find(|(_, given, _)| *given) {
            return Err(ApiError::unsupported(field, why));
        }
        if self.prompt.is_empty() {
            return Ok(None);
        }
        if self.raw == Some(true) {
            return Ok(Some(Input::Text(self.prompt)));
        }
        let system = self.system.filter(|system| !system.is_empty());
        let mut messages: Vec<Message> =
            system.map(|text| Message::new("system", text)).into_iter().collect();
        messages.push(Message::new("user", self.prompt));
        let mut chat = Chat { messages, ..Chat::default() };
        think(self.think, &mut chat);
        Ok(Some(Input::Chat(chat)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(fields: Value) -> Result<Option<Input>, ApiError> {
        serde_json::from_value::<TextFields>(fields).expect("fields").input()
    }

    fn chat(fields: Value) -> Result<Option<Input>, ApiError> {
        serde_json::from_value::<ChatFields>(fields).expect("fields").input()
    }

    fn ask(fields: Value) -> Result<Ask, ApiError> {
        serde_json::from_value::<Common>(fields).expect("fields").ask(Input::default())
    }

    #[test]
    fn texts_are_conversations_unless_raw() {
        let Some(Input::Chat(made)) = text(json!({ "prompt": "a", "system": "s", "think": "low" })).unwrap()
        else {
            panic!("no conversation")
        };
        assert_eq!(made.messages, [Message::new("system", "s"), Message::new("user", "a")]);
        let settings = json!({ "enable_thinking": true, "thinking": true, "reasoning_effort": "low" });
        assert_eq!(Value::from(made.settings), settings);
        let raw = text(json!({ "prompt": "a", "raw": true, "context": [] })).unwrap();
        assert!(matches!(raw, Some(Input::Text(text)) if text == "a"));
        assert!(text(json!({})).unwrap().is_none() && chat(json!({})).unwrap().is_none());
        for name in ["suffix", "template"] {
            assert_eq!(text(json!({ "prompt": "a", name: "b" })).unwrap_err().field.as_deref(), Some(name));
        }
        for name in ["images", "context"] {
            assert_eq!(text(json!({ "prompt": "a", name: [1] })).unwrap_err().field.as_deref(), Some(name));
        }
    }

    #[test]
    fn thinking_is_a_setting() {
        let fields = json!({ "messages": [{ "role": "user", "content": "a" }], "think": false });
        let Some(Input::Chat(made)) = chat(fields).unwrap() else { panic!("no conversation") };
        assert_eq!(Value::from(made.settings), json!({ "enable_thinking": false, "thinking": false }));
    }

    #[test]
    fn formats_are_json_or_a_schema() {
        let format = |format: Value| ask(json!({ "format": format })).map(|ask| ask.format);
        assert_eq!(format(json!("json")), Ok(Some(json!({}))));
        assert_eq!(format(json!({ "type": "object" })), Ok(Some(json!({ "type": "object" }))));
        assert_eq!(format(json!("")), Ok(None));
        assert_eq!(format(json!(null)), Ok(None));
        assert!(format(json!("xml")).is_err() && format(json!([])).is_err());
        assert_eq!(ask(json!({ "logprobs": true, "top_logprobs": 3 })).unwrap().logprobs, Some(3));
        assert!(ask(json!({ "logprobs": true, "top_logprobs": 21 })).is_err());
    }
}

//! What a template sees: messages, tools, documents, settings, and the texts of the model's special tokens.

use minijinja::value::{Serde, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::text::Tokenizer;

/// The names under which a message's reasoning goes; most templates read the first, those of gpt-oss
/// `thinking`.
pub(super) const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A message of a conversation: `role`, `content`, and what else a template reads, such as
/// `reasoning_content`, `tool_calls` and `tool_call_id`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Message(pub(super) Map<String, Json>);

impl Message {
    /// A message of this role: `system`, `user`, `assistant`, ..
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        let fields = [("role", role.into()), ("content", content.into())];
        Message(fields.map(|(key, text)| (key.to_owned(), Json::String(text))).into_iter().collect())
    }

    /// The message with one more field, or another value of it.
    pub fn with(mut self, key: impl Into<String>, value: impl Into<Json>) -> Message {
        self.0.insert(key.into(), value.into());
        self
    }

    /// A field that is a text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_str()
    }

    /// As JSON.
    pub fn to_json(&self) -> Json {
        Json::Object(self.0.clone())
    }

    /// Its role.
    pub fn role(&self) -> &str {
        self.text("role").unwrap_or_default()
    }

    /// Its content, where that is a text.
    pub fn content(&self) -> &str {
        self.text("content").unwrap_or_default()
    }

    /// What the template sees. As transformers has it, reasoning goes under all the names that templates read
    /// it by; a field that is null is null.
    fn fields(&self) -> Map<String, Json> {
        let Some(reasoning) =
            REASONING.iter().find_map(|name| self.0.get(*name).filter(|value| !value.is_null()))
        else {
            return self.0.clone();
        };
        let mut fields = Map::new();
        fields.insert("thinking".to_owned(), reasoning.clone());
        fields.extend(self.0.clone());
        fields.insert("reasoning_content".to_owned(), reasoning.clone());
        fields
    }
}

impl From<Map<String, Json>> for Message {
    fn from(fields: Map<String, Json>) -> Message {
        Message(fields)
    }
}

/// What a template sees: messages, and the texts of the model's special tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    pub(super) messages: Vec<Message>,
    pub(super) tools: Option<Vec<Json>>,
    pub(super) documents: Option<Vec<Json>>,
    pub(super) add_generation_prompt: bool,
    /// `bos_token` and its like, of those that the vocabulary has.
    pub(super) special_tokens: Map<String, Json>,
    pub(super) settings: Map<String, Json>,
}

impl Conversation {
    /// A conversation with a model of this vocabulary. With `add_generation_prompt` its text ends with what
    /// begins the assistant's answer.
    pub fn new(messages: &[Message], add_generation_prompt: bool, tokenizer: &Tokenizer) -> Conversation {
        let tokens = [
            ("bos_token", tokenizer.bos()),
            ("eos_token", tokenizer.eos()),
            ("unk_token", tokenizer.unknown()),
            ("pad_token", tokenizer.padding()),
        ];
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id));
        let special_tokens =
            tokens.into_iter().filter_map(|(name, id)| Some((name.to_owned(), text(id)?.into()))).collect();
        Conversation {
            messages: messages.to_vec(),
            tools: None,
            documents: None,
            add_generation_prompt,
            special_tokens,
            settings: Map::new(),
        }
    }

    /// The conversation with tools that the model may call, each described as a JSON schema.
    pub fn with_tools(mut self, tools: Vec<Json>) -> Conversation {
        self.tools = Some(tools);
        self
    }

    /// The conversation with documents that the model may refer to.
    pub fn with_documents(mut self, documents: Vec<Json>) -> Conversation {
        self.documents = Some(documents);
        self
    }

    /// The conversation with a value that this model's template knows by name, such as `enable_thinking` or
    /// `reasoning_effort`.
    pub fn with_setting(mut self, name: impl Into<String>, value: impl Into<Json>) -> Conversation {
        self.settings.insert(name.into(), value.into());
        self
    }

    /// The variables of the template. A later one of the same name counts.
    pub(super) fn values(&self) -> Value {
        let messages = self.messages.iter().map(|message| Value::from(Serde(message.fields())));
        let list = |list: &Option<Vec<Json>>| Value::from(Serde(list));
        let own = [
            ("messages", messages.collect()),
            ("tools", list(&self.tools)),
            ("documents", list(&self.documents)),
            ("add_generation_prompt", self.add_generation_prompt.into()),
        ];
        let named = self.special_tokens.iter().chain(&self.settings);
        let named = named.map(|(name, value)| (name.clone(), Value::from(Serde(value))));
        Value::from_pairs(named.chain(own.map(|(name, value)| (name.to_owned(), value))))
    }
}

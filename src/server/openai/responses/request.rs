//! A request as this API has it, made into one as all dialects have it.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::super::ask::{Ask, Chat, Input, Sampling};
use super::super::super::error::ApiError;
use super::super::super::tools;
use super::items::messages;

/// See the module. `store` and `truncation` are not looked at: nothing is stored, and nothing cut.
#[derive(Debug, Default, Deserialize)]
pub struct Request {
    model: Option<String>,
    input: Option<InInput>,
    instructions: Option<String>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    max_output_tokens: Option<i64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_logprobs: Option<usize>,
    include: Option<Vec<String>>,
    reasoning: Option<Reasoning>,
    text: Option<Text>,
    stream: Option<bool>,
    metadata: Option<Map<String, Value>>,
    previous_response_id: Option<String>,
    conversation: Option<Value>,
    prompt: Option<Value>,
    background: Option<bool>,
    // Not the API's own.
    seed: Option<i64>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    chat_template_kwargs: Option<Map<String, Value>>,
}

/// A text or items.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum InInput {
    Text(String),
    Items(Vec<Map<String, Value>>),
}

#[derive(Debug, Deserialize)]
struct Reasoning {
    effort: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Text {
    format: Option<Value>,
}

/// What `include` says where probabilities are wanted.
const LOGPROBS: &str = "message.output_text.logprobs";
/// Most tokens that probabilities are told of beside the one drawn.
const MAX_TOP_LOGPROBS: usize = 20;

impl Request {
    pub fn model(&self) -> &str {
        self.model.as_deref().unwrap_or_default()
    }

    pub fn streams(&self) -> bool {
        self.stream == Some(true)
    }

    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        let empty = match &self.input {
            None => true,
            Some(InInput::Text(text)) => text.is_empty(),
            Some(InInput::Items(items)) => items.is_empty(),
        };
        empty && self.check_state().is_ok()
    }

    /// What an answer says of its request.
    pub fn echo(&self) -> Map<String, Value> {
        let effort = self.reasoning.as_ref().and_then(|reasoning| reasoning.effort.as_deref());
        let format = self.text.as_ref().and_then(|text| text.format.clone());
        let echo = json!({
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata.clone().unwrap_or_default(),
            "parallel_tool_calls": self.parallel_tool_calls.unwrap_or(true),
            "previous_response_id": null,
            "reasoning": { "effort": effort, "summary": null },
            "store": false,
            "temperature": self.temperature,
            "text": { "format": format.unwrap_or_else(|| json!({ "type": "text" })) },
            "tool_choice": self.tool_choice.clone().unwrap_or_else(|| "auto".into()),
            "tools": self.tools.clone().unwrap_or_default(),
            "top_p": self.top_p,
            "truncation": "disabled",
            "background": false,
        });
        match echo {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }

    /// Refuses what needs a memory.
    fn check_state(&self) -> Result<(), ApiError> {
        let is_given = |value: &Option<Value>| value.as_ref().is_some_and(|value| !value.is_null());
        let refused = [
            (
                "previous_response_id",
                self.previous_response_id.is_some(),
                "send the whole conversation as input",
            ),
            ("conversation", is_given(&self.conversation), "send the whole conversation as input"),
            ("prompt", is_given(&self.prompt), "send its text as input"),
            ("background", self.background == Some(true), "an answer is given as it is made"),
        ];
        match refused.into_iter().find(|(_, given, _)| *given) {
            Some((field, _, instead)) => {
                Err(ApiError::unsupported(field, format!("nothing is stored here: {instead}")))
            }
            None => Ok(()),
        }
    }

    /// The request as all dialects have it.
    ///
    /// # Errors
    /// What needs a memory; what cannot be read, by its field.
    pub fn ask(self) -> Result<Ask, ApiError> {
        self.check_state()?;
        let max_tokens = match self.max_output_tokens {
            Some(n @ ..=0) => {
                return Err(ApiError::invalid("max_output_tokens", format!("{n} is less than 1")));
            }
            most => most.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        };
        let logprobs = self.include.iter().flatten().any(|what| what == LOGPROBS);
        let logprobs = logprobs.then_some(self.top_logprobs.unwrap_or(0));
        if logprobs > Some(MAX_TOP_LOGPROBS) {
            return Err(ApiError::invalid("top_logprobs", format!("at most {MAX_TOP_LOGPROBS} can be had")));
        }
        let items = match self.input {
            None => Vec::new(),
            Some(InInput::Text(text)) => {
                let message = json!({ "role": "user", "content": text });
                message.as_object().cloned().into_iter().collect()
            }
            Some(InInput::Items(items)) => items,
        };
        let mut chat = Chat {
            messages: messages(self.instructions, items)?,
            settings: self.chat_template_kwargs.unwrap_or_default(),
            tools: functions(self.tools.unwrap_or_default())?,
            tool_choice: tools::tool_choice(self.tool_choice.as_ref())?,
            parallel_tool_calls: self.parallel_tool_calls,
            begun: None,
        };
        if let Some(effort) = self.reasoning.and_then(|reasoning| reasoning.effort) {
            chat.effort(&effort);
        }
        let sampling = Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k.map(|k| usize::try_from(k).unwrap_or(0)),
            min_p: self.min_p,
            seed: self.seed.filter(|&seed| seed != -1).map(|seed| seed as u64),
            ..Sampling::default()
        };
        let format = self.text.and_then(|text| text.format);
        Ok(Ask {
            model: self.model.unwrap_or_default(),
            input: Input::Chat(chat),
            sampling,
            max_tokens,
            logprobs,
            choices: 1,
            format: tools::format(format.as_ref(), "text.format")?,
            ..Ask::default()
        })
    }
}

/// The tools that a client runs: functions. Others are left out, as agents offer theirs to every server.
fn functions(all: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    let mut made = Vec::new();
    for (i, tool) in all.into_iter().enumerate() {
        let Value::Object(mut fields) = tool else {
            return Err(ApiError::invalid(format!("tools[{i}]"), "a tool is needed"));
        };
        if fields.remove("type").is_some_and(|ty| ty == "function") {
            made.push(tools::function(fields, &format!("tools[{i}]"))?);
        }
    }
    tools::check_count(&made)?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::super::super::super::ask::ToolChoice;
    use super::*;

    fn request(fields: Value) -> Request {
        serde_json::from_value(fields).expect("a request")
    }

    fn ask(mut fields: Value) -> Result<Ask, ApiError> {
        fields["input"] = "a".into();
        request(fields).ask()
    }

    fn chat(ask: Ask) -> Chat {
        let Input::Chat(chat) = ask.input else { panic!("no chat") };
        chat
    }

    #[test]
    fn what_needs_a_memory_is_refused_by_name() {
        for (field, value) in [
            ("previous_response_id", json!("resp_1")),
            ("conversation", json!("conv_1")),
            ("prompt", json!({ "id": "pmpt_1" })),
            ("background", json!(true)),
        ] {
            let error = ask(json!({ field: value })).unwrap_err();
            assert_eq!(error.field.as_deref(), Some(field));
            assert!(error.message.contains("nothing is stored"), "{}", error.message);
            assert!(!request(json!({ field: value })).is_empty());
        }
        let stored = request(json!({ "store": true, "previous_response_id": null, "background": false }));
        assert!(stored.is_empty());
        assert_eq!(stored.echo()["store"], false);
    }

    #[test]
    fn functions_are_taken_and_other_tools_left() {
        let tools = json!([
            { "type": "custom", "name": "apply_patch", "format": {} },
            { "type": "function", "name": "f", "description": "d", "strict": false,
              "parameters": { "x": 1 } },
            { "type": "web_search" },
            { "type": "local_shell" },
        ]);
        let made =
            chat(ask(json!({ "tools": tools, "tool_choice": { "type": "function", "name": "f" } })).unwrap());
        let function = json!({ "name": "f", "description": "d", "strict": false, "parameters": { "x": 1 } });
        assert_eq!(made.tools, [json!({ "type": "function", "function": function })]);
        assert_eq!(made.tool_choice, ToolChoice::Named("f".into()));
        let error = ask(json!({ "tools": [{ "type": "function" }] })).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("tools[0].name"));
        assert!(ask(json!({ "tools": ["f"] })).is_err());
    }

    #[test]
    fn fields_by_their_names() {
        let made = ask(json!({ "max_output_tokens": 9, "temperature": 0.5, "seed": 3, "instructions": "s",
            "include": [LOGPROBS, "reasoning.encrypted_content"], "top_logprobs": 2,
            "reasoning": { "effort": "low" },
            "text": { "format": { "type": "json_object" }, "verbosity": "low" },
            "stream_options": {}, "prompt_cache_key": "k" }))
        .unwrap();
        assert_eq!((made.max_tokens, made.logprobs, &made.format), (Some(9), Some(2), &Some(json!({}))));
        assert_eq!((made.sampling.temperature, made.sampling.seed), (Some(0.5), Some(3)));
        let chat = chat(made);
        assert_eq!((chat.messages[0].role(), chat.messages[1].content()), ("system", "a"));
        assert_eq!(Value::from(chat.settings), json!({ "reasoning_effort": "low" }));
        assert!(ask(json!({ "max_output_tokens": 0 })).is_err());
        assert!(ask(json!({ "text": { "format": { "type": "xml" } } })).is_err());
    }
}

//! A request as this dialect has it, made into one as all dialects have it.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::ask::{Ask, Chat, Input, Sampling, ToolChoice};
use super::super::error::ApiError;
use super::super::tools;
use super::messages::{InMessage, messages};

/// What is to be answered: what a request for an answer and one for a count of tokens have in common.
#[derive(Debug, Default, Deserialize)]
pub struct Conversation {
    model: Option<String>,
    messages: Vec<InMessage>,
    system: Option<Value>,
    tools: Option<Vec<Map<String, Value>>>,
    tool_choice: Option<InToolChoice>,
    thinking: Option<Thinking>,
    output_config: Option<OutputConfig>,
}

/// What a request for an answer has beside the [`Conversation`].
#[derive(Debug, Deserialize)]
pub struct Request {
    max_tokens: Option<i64>,
    stop_sequences: Option<Vec<String>>,
    stream: Option<bool>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    /// Not the API's own: answers can be had again.
    seed: Option<i64>,
    output_format: Option<Value>,
    mcp_servers: Option<Vec<Value>>,
    container: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct InToolChoice {
    #[serde(rename = "type")]
    ty: String,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

/// How many tokens it may take is not looked at.
#[derive(Debug, Deserialize)]
struct Thinking {
    #[serde(rename = "type")]
    ty: String,
}

#[derive(Debug, Deserialize)]
struct OutputConfig {
    effort: Option<String>,
    format: Option<Value>,
}

impl Conversation {
    pub fn model(&self) -> &str {
        self.model.as_deref().unwrap_or_default()
    }

    /// The conversation as templates see it.
    ///
    /// # Errors
    /// What cannot be read, by its field.
    pub fn chat(self) -> Result<Chat, ApiError> {
        let mut chat = Chat {
            messages: messages(self.system, self.messages)?,
            tools: functions(self.tools.unwrap_or_default())?,
            ..Chat::default()
        };
        if let Some(choice) = self.tool_choice {
            chat.parallel_tool_calls = choice.disable_parallel_tool_use.map(|disabled| !disabled);
            chat.tool_choice = choice.choice()?;
        }
        match self.thinking.as_ref().map(|thinking| &*thinking.ty) {
            None => {}
            Some("enabled" | "adaptive") => chat.think(true),
            Some("disabled") => chat.think(false),
            Some(other) => {
                let message = format!("{other:?} is not known: enabled, adaptive and disabled are");
                return Err(ApiError::unsupported("thinking.type", message));
            }
        }
        if let Some(effort) = self.output_config.and_then(|config| config.effort) {
            chat.effort(&effort);
        }
        if chat.messages.last().is_some_and(|last| last.role() == "assistant") {
            chat.go_on()?;
        }
        Ok(chat)
    }
}

impl InToolChoice {
    fn choice(self) -> Result<ToolChoice, ApiError> {
        match (&*self.ty, self.name) {
            ("auto", _) => Ok(ToolChoice::Auto),
            ("any", _) => Ok(ToolChoice::Required),
            ("none", _) => Ok(ToolChoice::None),
            ("tool", Some(name)) => Ok(ToolChoice::Named(name)),
            ("tool", None) => Err(ApiError::invalid("tool_choice.name", "a name is needed")),
            (other, _) => {
                let message = format!("{other:?} is not known: auto, any, tool and none are");
                Err(ApiError::unsupported("tool_choice.type", message))
            }
        }
    }
}

/// The tools that a client runs and describes. Those that a server of Anthropic's would run, and those that
/// its models know without a description, are left out: agents offer them to every server.
fn functions(all: Vec<Map<String, Value>>) -> Result<Vec<Value>, ApiError> {
    let is_custom =
        |tool: &Map<String, Value>| matches!(tool.get("type").and_then(Value::as_str), None | Some("custom"));
    let mut made = Vec::new();
    for (i, mut tool) in all.into_iter().enumerate() {
        if !is_custom(&tool) {
            continue;
        }
        let mut fields = Map::new();
        for (name, theirs) in
            [("name", "name"), ("description", "description"), ("parameters", "input_schema")]
        {
            if let Some(value) = tool.remove(theirs) {
                fields.insert(name.to_owned(), value);
            }
        }
        let at = format!("tools[{i}]");
        let function = tools::function(fields, &at).map_err(|error| {
            // The API's name of the field.
            let own = |text: String| text.replace("parameters", "input_schema");
            ApiError { message: own(error.message), field: error.field.map(own), ..error }
        });
        made.push(function?);
    }
    tools::check_count(&made)?;
    Ok(made)
}

impl Request {
    pub fn streams(&self) -> bool {
        self.stream == Some(true)
    }

    /// The request as all dialects have it.
    ///
    /// # Errors
    /// What it lacks, and what is not to be had here.
    pub fn ask(self, mut conversation: Conversation) -> Result<Ask, ApiError> {
        let max_tokens = match self.max_tokens {
            Some(n @ 1..) => usize::try_from(n).unwrap_or(usize::MAX),
            Some(_) => return Err(ApiError::invalid("max_tokens", "at least 1 is needed")),
            None => return Err(ApiError::invalid("max_tokens", "field required")),
        };
        if self.mcp_servers.is_some_and(|servers| !servers.is_empty()) {
            return Err(ApiError::unsupported("mcp_servers", "this server asks no other servers"));
        }
        if self.container.is_some() {
            return Err(ApiError::unsupported("container", "nothing is run here"));
        }
        let config = conversation.output_config.as_mut();
        let format = match config.and_then(|config| config.format.take()) {
            Some(format) => tools::format(Some(&format), "output_config.format")?,
            None => tools::format(self.output_format.as_ref(), "output_format")?,
        };
        let sampling = Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k.map(|k| usize::try_from(k).unwrap_or(0)),
            seed: self.seed.map(|seed| seed as u64),
            ..Sampling::default()
        };
        Ok(Ask {
            model: conversation.model().to_owned(),
            input: Input::Chat(conversation.chat()?),
            sampling,
            max_tokens: Some(max_tokens),
            stop: self.stop_sequences.unwrap_or_default(),
            choices: 1,
            format,
            ..Ask::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ask(mut request: Value) -> Result<Ask, ApiError> {
        request["model"] = "m".into();
        request["messages"] = json!([{ "role": "user", "content": "a" }]);
        if request.get("max_tokens").is_none() {
            request["max_tokens"] = 5.into();
        }
        let conversation = serde_json::from_value(request.clone()).expect("a conversation");
        serde_json::from_value::<Request>(request).expect("a request").ask(conversation)
    }

    fn chat(request: Value) -> Result<Chat, ApiError> {
        let Input::Chat(chat) = ask(request)?.input else { panic!("no chat") };
        Ok(chat)
    }

    #[test]
    fn fields_by_their_names() {
        let made =
            ask(json!({ "stop_sequences": ["x"], "temperature": 0.5, "top_k": 3, "top_p": 0.9, "seed": 7,
            "metadata": { "user_id": "u" }, "service_tier": "auto" }))
            .unwrap();
        assert_eq!((made.max_tokens, made.stop, &*made.model), (Some(5), vec!["x".to_owned()], "m"));
        let sampling = Sampling {
            temperature: Some(0.5),
            top_k: Some(3),
            top_p: Some(0.9),
            seed: Some(7),
            ..Sampling::default()
        };
        assert_eq!(made.sampling, sampling);
        let schema = json!({ "type": "json_schema", "schema": { "type": "object" } });
        assert_eq!(
            ask(json!({ "output_format": schema })).unwrap().format,
            Some(json!({ "type": "object" }))
        );
        let nested = ask(json!({ "output_config": { "format": schema, "effort": "low" } })).unwrap();
        assert_eq!(nested.format, Some(json!({ "type": "object" })));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (request, field) in [
            (json!({ "max_tokens": null }), "max_tokens"),
            (json!({ "max_tokens": 0 }), "max_tokens"),
            (json!({ "thinking": { "type": "some" } }), "thinking.type"),
            (json!({ "tool_choice": { "type": "tool" } }), "tool_choice.name"),
            (json!({ "tool_choice": { "type": "all" } }), "tool_choice.type"),
            (json!({ "tools": [{ "input_schema": {} }] }), "tools[0].name"),
            (json!({ "tools": [{ "name": "f", "input_schema": 3 }] }), "tools[0].input_schema"),
            (json!({ "mcp_servers": [{}] }), "mcp_servers"),
            (json!({ "output_format": { "type": "xml" } }), "output_format.type"),
        ] {
            assert_eq!(ask(request.clone()).unwrap_err().field.as_deref(), Some(field), "{request}");
        }
    }

    #[test]
    fn tools_are_functions() {
        let schema = json!({ "type": "object", "properties": { "a": {} } });
        let tools = json!([
            { "name": "f", "description": "d", "input_schema": schema, "cache_control": {} },
            { "type": "web_search_20250305", "name": "web_search" },
            { "type": "custom", "name": "g", "input_schema": schema },
        ]);
        let made = chat(
            json!({ "tools": tools, "tool_choice": { "type": "any", "disable_parallel_tool_use": true } }),
        );
        let made = made.unwrap();
        let function = json!({ "name": "f", "description": "d", "parameters": schema });
        assert_eq!(made.tools[0], json!({ "type": "function", "function": function }));
        assert_eq!(made.tools.len(), 2);
        assert_eq!(made.tools[1]["function"]["name"], "g");
        assert_eq!((made.tool_choice, made.parallel_tool_calls), (ToolChoice::Required, Some(false)));
    }

    #[test]
    fn thinking_is_a_setting() {
        let settings = |request: Value| Value::from(chat(request).unwrap().settings);
        assert_eq!(settings(json!({})), json!({}));
        let on = json!({ "thinking": { "type": "enabled", "budget_tokens": 1024 } });
        assert_eq!(settings(on), json!({ "enable_thinking": true, "thinking": true }));
        let off = json!({ "thinking": { "type": "disabled" } });
        assert_eq!(settings(off), json!({ "enable_thinking": false, "thinking": false }));
    }
}

//! A request's input made into what a model reads, and what the answer to it has to be.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Server;
use super::ask::{Chat, Input, ToolChoice};
use super::error::{ApiError, ErrorKind};
use super::facts::{Facts, Template};
use super::worker::Worker;
use crate::text::tools::{self, Format};
use crate::text::{Constraint, Conversation, EncodeOptions, Grammar, Message, Rendered, TextError};

/// The format of calls where a chat template knows none: the one that most models have seen.
const PLAIN_CALLS: &str = "hermes";

/// A prompt as the model reads it.
pub struct Prompt {
    pub tokens: Vec<u32>,
    /// As text, where it was one; without an answer that has begun.
    pub text: String,
    /// A conversation's, whose answer may have reasoning and calls of tools.
    pub is_chat: bool,
    /// Whether it ends with the beginning of the answer.
    pub has_begun: bool,
    /// What ends an answer to it beside what the request says.
    pub stops: Vec<String>,
    /// How tools are called, where they may be.
    pub calls: Option<Calls>,
    pub constraint: Option<Constraint>,
}

/// How tools are called in an answer.
#[derive(Clone, Debug)]
pub struct Calls {
    pub format: Format,
    pub tools: Vec<Value>,
    /// Whether several may be called.
    pub parallel: bool,
}

/// What an answer has to be, where a request says so.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// JSON: of this schema, or any object where it is `{}`.
    pub format: Option<Value>,
    pub grammar: Option<Grammar>,
}

impl Server {
    /// The prompt of an input.
    ///
    /// # Errors
    /// What the template raises; what is no text of the vocabulary; none at all; grammars that are wrong.
    pub async fn prompt(
        self: &Arc<Server>,
        worker: &Worker,
        input: Input,
        held: Held,
    ) -> Result<Prompt, ApiError> {
        let (server, facts) = (Arc::clone(self), Arc::clone(&worker.facts));
        // A template runs in a process of its own, a long text takes a while, and so does a grammar.
        let made = tokio::task::spawn_blocking(move || {
            let mut prompt = server.make_prompt(&facts, &input)?;
            prompt.constraint = constraint(&facts, &input, &prompt, held)?;
            Ok(prompt)
        });
        made.await.map_err(|_| ApiError::internal("the prompt could not be made"))?
    }

    fn make_prompt(&self, facts: &Facts, input: &Input) -> Result<Prompt, ApiError> {
        let tokenizer = &facts.tokenizer;
        let invalid = |error: TextError| ApiError::new(ErrorKind::Invalid, error.to_string());
        let (mut calls, mut stops, mut has_begun) = (None, Vec::new(), false);
        let (tokens, text) = match input {
            Input::Chat(chat) => {
                let mut rendered = self.render(facts, chat)?;
                let text = rendered.text().to_owned();
                if let Some(begun) = &chat.begun {
                    let thoughts = begun.text("reasoning_content").unwrap_or_default();
                    rendered = rendered.with_answer(thoughts, begun.content(), tokenizer);
                    has_begun = true;
                }
                let tokens = tokenizer.encode_chat(&rendered).map_err(invalid)?;
                if let Some(template) = &facts.template {
                    stops.extend_from_slice(&template.stops);
                    calls = calls_of(chat, template);
                }
                (tokens, text)
            }
            Input::Text(text) => {
                let options = EncodeOptions { add_special: true, parse_special: true };
                (tokenizer.encode(text, options).map_err(invalid)?, text.clone())
            }
            Input::Tokens(tokens) => {
                if let Some(id) = tokens.iter().find(|&&id| id as usize >= facts.vocab) {
                    let message = format!("token {id} is outside the vocabulary of {}", facts.vocab);
                    return Err(ApiError::invalid("prompt", message));
                }
                (tokens.clone(), String::new())
            }
        };
        if tokens.is_empty() {
            return Err(ApiError::new(ErrorKind::Invalid, "the prompt is empty"));
        }
        let is_chat = matches!(input, Input::Chat(_));
        Ok(Prompt { tokens, text, is_chat, has_begun, stops, calls, constraint: None })
    }

    /// A conversation as the model's template writes it.
    ///
    /// # Errors
    /// Where there is no template, or it raises an error; messages that it cannot be given.
    pub fn render(&self, facts: &Facts, chat: &Chat) -> Result<Rendered, ApiError> {
        let Some(template) = &facts.template else {
            let message =
                format!("model {} has no chat template: /v1/completions continues texts", facts.name);
            return Err(ApiError::new(ErrorKind::Unsupported, message));
        };
        let messages = messages_for(template, chat)?;
        let tools = chat.callable();
        let render = |messages: &[Message]| {
            let mut conversation = Conversation::new(messages, true, &facts.tokenizer);
            for (name, value) in &chat.settings {
                conversation = conversation.with_setting(name.clone(), value.clone());
            }
            if !tools.is_empty() {
                conversation = conversation.with_tools(tools.to_vec());
            }
            let conversation = conversation.disguised(&facts.tokenizer, &template.source);
            (self.config.render)(&template.source, &conversation)
        };
        let rendered = render(&messages).or_else(|error| {
            // Many templates take a system message in the first place alone.
            let merged = merged_systems(&messages).and_then(|merged| render(&merged).ok());
            merged.ok_or_else(|| ApiError {
                field: Some("messages".to_owned()),
                ..ApiError::new(ErrorKind::Invalid, error)
            })
        })?;
        Ok(Rendered::new(rendered, &facts.tokenizer))
    }
}

/// How tools are called in the answer to a chat.
fn calls_of(chat: &Chat, template: &Template) -> Option<Calls> {
    let tools = chat.callable();
    let format = template.calls.or_else(|| Format::named(PLAIN_CALLS))?;
    let parallel = chat.parallel_tool_calls != Some(false);
    (!tools.is_empty()).then(|| Calls { format, tools: tools.to_vec(), parallel })
}

/// The messages as a template takes them: calls and their results in its way, or as text where it knows none.
fn messages_for(template: &Template, chat: &Chat) -> Result<Vec<Message>, ApiError> {
    let all: Vec<Value> = chat.messages.iter().map(Message::to_json).collect();
    let messages = tools::messages(&all, &template.source).map_err(|error| match error {
        TextError::Message { index, what } => ApiError::invalid(format!("messages[{index}]"), what),
        error => ApiError::invalid("messages", error),
    })?;
    if template.calls.is_some() {
        return Ok(messages);
    }
    let mut plain: Vec<Message> = messages.iter().map(plain_message).collect();
    let tools = chat.callable();
    if !tools.is_empty() {
        plain.insert(0, Message::new("system", tools_as_text(tools)));
        plain = merged_systems(&plain).unwrap_or(plain);
    }
    Ok(plain)
}

/// What a template that knows no tools is told of them.
fn tools_as_text(tools: &[Value]) -> String {
    let list: Vec<String> = tools.iter().map(Value::to_string).collect();
    format!(
        "You may call functions. Each is described by a line of JSON:\n{}\nTo call one, answer with \
         <tool_call>{{\"name\": NAME, \"arguments\": OBJECT}}</tool_call> and nothing else.",
        list.join("\n")
    )
}

/// A message without what a template that knows no tools would leave out.
fn plain_message(message: &Message) -> Message {
    let fields = message.to_json();
    if message.role() == "tool" {
        let text = format!("<tool_response>\n{}\n</tool_response>", message.content());
        return Message::new("user", text);
    }
    let Some(calls) = fields["tool_calls"].as_array() else { return message.clone() };
    let call = |call: &Value| {
        let function =
            json!({ "name": call["function"]["name"], "arguments": call["function"]["arguments"] });
        format!("<tool_call>\n{function}\n</tool_call>")
    };
    let texts = [message.content().to_owned()].into_iter().filter(|text| !text.is_empty());
    let text: Vec<String> = texts.chain(calls.iter().map(call)).collect();
    Message::new(message.role(), text.join("\n"))
}

/// What the answer to a prompt has to be, where it has to be something.
fn constraint(
    facts: &Facts,
    input: &Input,
    prompt: &Prompt,
    held: Held,
) -> Result<Option<Constraint>, ApiError> {
    let Held { format, grammar } = held;
    let forced = match input {
        Input::Chat(chat) => match &chat.tool_choice {
            ToolChoice::Required => Some(tools::Choice::Any),
            ToolChoice::Named(name) => Some(tools::Choice::Named(name.clone())),
            ToolChoice::Auto | ToolChoice::None => None,
        },
        _ => None,
    };
    let compiled = |grammar: &Grammar, field: &str| {
        let factory = facts.grammars()?;
        factory.constraint(grammar).map(Some).map_err(|error| ApiError::invalid(field, error))
    };
    match (forced.zip(prompt.calls.as_ref()), format, grammar) {
        (None, None, None) => Ok(None),
        _ if prompt.has_begun => Err(ApiError::unsupported(
            "messages",
            "an answer that has begun is not held to a call, a format or a grammar",
        )),
        (Some((choice, Calls { format, tools, parallel })), None, None) => {
            let wrong = |error: TextError| match error {
                TextError::Tool(what) => ApiError::invalid("tools", what),
                error => ApiError::invalid("tools", error),
            };
            let lark = format.grammar(tools, &choice, *parallel, &prompt.text, &facts.tokenizer);
            let grammar = lark.and_then(|lark| Grammar::lark(&lark)).map_err(wrong)?;
            compiled(&grammar, "tools").map_err(|error| wrong_parameters(facts, tools).unwrap_or(error))
        }
        (None, Some(schema), None) => {
            let field = "response_format";
            let wrong = |error| ApiError::invalid(field, error);
            let any = schema.as_object().is_some_and(serde_json::Map::is_empty);
            let plain = if any { Ok(Grammar::json_object()) } else { Grammar::json_schema(&schema) };
            let plain = compiled(&plain.map_err(wrong)?, field)?;
            let calls = facts.template.as_ref().and_then(|template| template.calls);
            let lark = tools::json_after_thought(calls, &schema, &prompt.text, &facts.tokenizer);
            match lark.filter(|_| matches!(input, Input::Chat(_))) {
                Some(lark) => compiled(&Grammar::lark(&lark).map_err(wrong)?, field),
                None => Ok(plain),
            }
        }
        (None, None, Some(grammar)) => compiled(&grammar, "grammar"),
        _ => Err(ApiError::unsupported(
            "response_format",
            "an answer is held to one of a call, a format and a grammar",
        )),
    }
}

/// What is wrong with the parameters of the first tool whose schema cannot be obeyed: the grammar of all
/// calls does not name it.
fn wrong_parameters(facts: &Facts, tools: &[Value]) -> Option<ApiError> {
    let factory = facts.grammars().ok()?;
    tools.iter().find_map(|tool| {
        let function = &tool["function"];
        let schema = function.get("parameters")?;
        let made = Grammar::json_schema(schema).and_then(|grammar| factory.constraint(&grammar));
        let error = made.err()?;
        Some(ApiError::invalid("tools", format!("the parameters of {}: {error}", function["name"])))
    })
}

/// The messages with the texts of all system messages in one, the first; `None` where they are so already.
fn merged_systems(messages: &[Message]) -> Option<Vec<Message>> {
    let is_system = |message: &&Message| message.role() == "system";
    messages.iter().skip(1).find(is_system)?;
    let texts: Vec<&str> = messages.iter().filter(is_system).map(Message::content).collect();
    let mut merged = vec![Message::new("system", texts.join("\n\n"))];
    merged.extend(messages.iter().filter(|message| !is_system(message)).cloned());
    Some(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_system_messages_are_merged_into_the_first() {
        let message = |role: &str, text: &str| Message::new(role, text);
        let plain = [message("system", "a"), message("user", "b")];
        assert_eq!(merged_systems(&plain), None);
        assert_eq!(merged_systems(&plain[1..]), None);
        let late = [
            message("user", "b"),
            message("system", "c"),
            message("assistant", "d").with("x", 1),
            message("system", "e"),
        ];
        let merged = [message("system", "c\n\ne"), late[0].clone(), late[2].clone()];
        assert_eq!(merged_systems(&late).unwrap(), merged);
        let two = [message("system", "a"), message("system", "b")];
        assert_eq!(merged_systems(&two).unwrap(), [message("system", "a\n\nb")]);
    }

    #[test]
    fn calls_are_text_to_a_template_that_knows_none() {
        let call = json!({ "role": "assistant", "content": "Let me see.", "tool_calls": [
            { "id": "c", "type": "function", "function": { "name": "f", "arguments": "{\"a\": 1}" } },
        ] });
        let answer = json!({ "role": "tool", "tool_call_id": "c", "content": "12" });
        let messages = [json!({ "role": "user", "content": "?" }), call, answer];
        let messages: Vec<Message> =
            messages.iter().map(|message| Message::from(message.as_object().unwrap().clone())).collect();
        let tools = vec![json!({ "type": "function", "function": { "name": "f", "parameters": {} } })];
        let chat = Chat { messages, tools, ..Chat::default() };
        let template = Template { source: String::new(), stops: Vec::new(), calls: None };
        let plain = messages_for(&template, &chat).unwrap();
        let roles: Vec<&str> = plain.iter().map(Message::role).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        assert!(plain[0].content().contains("\"name\":\"f\""), "{}", plain[0].content());
        let call = "Let me see.\n<tool_call>\n{\"name\":\"f\",\"arguments\":{\"a\":1}}\n</tool_call>";
        assert_eq!(plain[2].content(), call);
        assert_eq!(plain[3].content(), "<tool_response>\n12\n</tool_response>");
    }
}

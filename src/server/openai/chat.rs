//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::Server;
use super::super::answer::{Answer, Call, Delta, Piece, SIGN_OF_LIFE, Waited};
use super::super::ask::{Ask, Chat, Input};
use super::super::body::{EVENTS, Pieces, streamed};
use super::super::error::ApiError;
use super::super::tools;
use super::fields::Fields;
use super::messages::{InMessage, messages};
use super::{Head, end, error_value, extras, logprobs_value, reason_value, respond, told};
use crate::text::Part;

#[derive(Debug, Deserialize)]
struct ChatFields {
    messages: Vec<InMessage>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    chat_template_kwargs: Option<Map<String, Value>>,
    reasoning_effort: Option<String>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    functions: Option<Vec<Value>>,
    response_format: Option<Value>,
    /// As vLLM has it: the last message is an answer to be continued.
    continue_final_message: Option<bool>,
    add_generation_prompt: Option<bool>,
}

/// Most tokens that probabilities are told of beside the one drawn.
const MAX_TOP_LOGPROBS: usize = 20;

pub async fn completions(State(server): State<Arc<Server>>, body: Body) -> Response {
    respond(answer(&server, body).await)
}

async fn answer(server: &Arc<Server>, body: Body) -> Result<Response, ApiError> {
    let read = server.bodies.read(body).await?;
    let (fields, chat): (Fields, ChatFields) = (read.json()?, read.json()?);
    let share = read.into_share();
    let mut answer = server.ask(ask(&fields, chat)?).await?;
    drop(share);
    if fields.streams() {
        let usage = fields.tells_usage();
        return Ok(streamed(EVENTS, move |pieces| stream(answer, pieces, usage)));
    }
    let head = Head::new("chatcmpl-", "chat.completion", &answer);
    let whole = answer.whole().await?;
    let choices = whole.iter().enumerate().map(|(index, whole)| {
        let mut message = json!({ "role": "assistant", "content": whole.text });
        if !whole.calls.is_empty() {
            message["tool_calls"] = whole.calls.iter().map(call_value).collect();
            if whole.text.is_empty() {
                message["content"] = Value::Null;
            }
        }
        if !whole.reasoning.is_empty() {
            message["reasoning_content"] = whole.reasoning.trim().into();
        }
        let mut choice = json!({
            "index": index,
            "message": message,
            "finish_reason": whole.done.as_ref().map(|done| reason_value(done.reason)),
        });
        choice["logprobs"] =
            if whole.logprobs.is_empty() { Value::Null } else { logprobs_value(&whole.logprobs) };
        choice
    });
    Ok(Json(told(&head, choices.collect(), &answer)).into_response())
}

fn ask(fields: &Fields, chat: ChatFields) -> Result<Ask, ApiError> {
    let logprobs = match (chat.logprobs, chat.top_logprobs) {
        (Some(true), top) => Some(top.unwrap_or(0)),
        (_, Some(1..)) => return Err(ApiError::invalid("top_logprobs", "logprobs must be true")),
        _ => None,
    };
    if logprobs > Some(MAX_TOP_LOGPROBS) {
        return Err(ApiError::invalid("top_logprobs", format!("at most {MAX_TOP_LOGPROBS} can be had")));
    }
    if chat.functions.is_some_and(|functions| !functions.is_empty()) {
        return Err(ApiError::unsupported("functions", "tools are their newer form"));
    }
    let format = tools::format(chat.response_format.as_ref(), "response_format")?;
    let mut input = Chat {
        messages: messages(chat.messages)?,
        settings: chat.chat_template_kwargs.unwrap_or_default(),
        tools: tools::functions(chat.tools.unwrap_or_default())?,
        tool_choice: tools::tool_choice(chat.tool_choice.as_ref())?,
        parallel_tool_calls: chat.parallel_tool_calls,
        begun: None,
    };
    if let Some(effort) = chat.reasoning_effort {
        input.effort(&effort);
    }
    match (chat.continue_final_message == Some(true), chat.add_generation_prompt) {
        (true, Some(true)) => {
            let message = "continue_final_message continues an answer, this begins one";
            return Err(ApiError::invalid("add_generation_prompt", message));
        }
        (true, _) => input.go_on()?,
        (false, Some(false)) => {
            let message = "an answer is begun, or continued by continue_final_message";
            return Err(ApiError::unsupported("add_generation_prompt", message));
        }
        (false, _) => {}
    }
    Ok(Ask { input: Input::Chat(input), logprobs, format, ..fields.ask()? })
}

/// A call of a tool as it begins, or whole.
fn call_value(call: &Call) -> Value {
    let function = json!({ "name": call.name, "arguments": call.arguments });
    json!({ "id": call.id, "type": "function", "function": function })
}

/// A piece of a stream.
fn chunk(head: &Head, index: usize, delta: Value, reason: Option<&str>, logprobs: Value) -> Value {
    head.with(json!([{ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason }]))
}

/// Writes an answer as it comes.
async fn stream(mut answer: Answer, pieces: Pieces, usage: bool) {
    let head = Head::new("chatcmpl-", "chat.completion.chunk", &answer);
    for index in 0..answer.choices() {
        let first = json!({ "role": "assistant", "content": null });
        if !pieces.event(None, &chunk(&head, index, first, None, Value::Null)).await {
            return;
        }
    }
    loop {
        let piece = match answer.next_within(SIGN_OF_LIFE).await {
            // Comments confuse some clients; a piece with nothing new does not.
            Waited::Still => chunk(&head, 0, json!({}), None, Value::Null),
            Waited::Next(None) => break,
            Waited::Next(Some(Err(error))) => {
                pieces.event(None, &error_value(&error)).await;
                return;
            }
            Waited::Next(Some(Ok((_, Delta::Prefill { .. } | Delta::Read(_))))) => continue,
            Waited::Next(Some(Ok((index, Delta::Text(part, Piece { text, logprobs }))))) => {
                let name = match part {
                    Part::Answer => "content",
                    Part::Reasoning => "reasoning_content",
                };
                let logprobs = if logprobs.is_empty() { Value::Null } else { logprobs_value(&logprobs) };
                chunk(&head, index, json!({ name: text }), None, logprobs)
            }
            Waited::Next(Some(Ok((index, Delta::Call { index: of, id, name })))) => {
                let mut call = call_value(&Call { id, name, ..Call::default() });
                call["index"] = of.into();
                chunk(&head, index, json!({ "tool_calls": [call] }), None, Value::Null)
            }
            Waited::Next(Some(Ok((index, Delta::Arguments { index: of, delta })))) => {
                let call = json!({ "index": of, "function": { "arguments": delta } });
                chunk(&head, index, json!({ "tool_calls": [call] }), None, Value::Null)
            }
            Waited::Next(Some(Ok((index, Delta::Done(done))))) => {
                let mut last = chunk(&head, index, json!({}), Some(reason_value(done.reason)), Value::Null);
                last["wayinfer"] = extras(&answer);
                last
            }
        };
        if !pieces.event(None, &piece).await {
            return;
        }
    }
    end(&head, &answer, &pieces, usage).await;
}

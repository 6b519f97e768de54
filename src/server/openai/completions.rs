//! `/v1/completions`: texts continued as they are.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::Server;
use super::super::answer::{Answer, Delta, Piece, SIGN_OF_LIFE, TokenLogprobs, Waited};
use super::super::ask::{Ask, Input};
use super::super::body::{EVENTS, Pieces, streamed};
use super::super::error::ApiError;
use super::fields::Fields;
use super::{Head, end, error_value, reason_value, respond, told};

#[derive(Debug, Deserialize)]
struct TextFields {
    prompt: Prompt,
    logprobs: Option<usize>,
    echo: Option<bool>,
    suffix: Option<String>,
    best_of: Option<usize>,
}

/// What is to be continued.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    ManyTokens(Vec<Vec<u32>>),
}

/// Most tokens that probabilities are told of beside the one drawn.
const MAX_LOGPROBS: usize = 20;

pub async fn completions(State(server): State<Arc<Server>>, body: Body) -> Response {
    respond(answer(&server, body).await)
}

async fn answer(server: &Arc<Server>, body: Body) -> Result<Response, ApiError> {
    let read = server.bodies.read(body).await?;
    let (fields, text): (Fields, TextFields) = (read.json()?, read.json()?);
    let share = read.into_share();
    let mut answer = server.ask(ask(&fields, text)?).await?;
    drop(share);
    if fields.streams() {
        let usage = fields.tells_usage();
        return Ok(streamed(EVENTS, move |pieces| stream(answer, pieces, usage)));
    }
    let head = Head::new("cmpl-", "text_completion", &answer);
    let whole = answer.whole().await?;
    let choices = whole.iter().enumerate().map(|(index, whole)| {
        let reason = whole.done.as_ref().map(|done| reason_value(done.reason));
        choice(index, &whole.text, &whole.logprobs, 0, reason)
    });
    Ok(Json(told(&head, choices.collect(), &answer)).into_response())
}

fn ask(fields: &Fields, text: TextFields) -> Result<Ask, ApiError> {
    if text.echo == Some(true) {
        return Err(ApiError::unsupported("echo", "the prompt is not given back"));
    }
    if text.suffix.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::unsupported("suffix", "texts are continued, not filled in"));
    }
    let ask = fields.ask()?;
    if text.best_of.is_some_and(|best| best > ask.choices) {
        return Err(ApiError::unsupported("best_of", "no more answers are made than are given"));
    }
    if text.logprobs > Some(MAX_LOGPROBS) {
        return Err(ApiError::invalid("logprobs", format!("at most {MAX_LOGPROBS} can be had")));
    }
    let one = |n: usize| match n {
        1 => Ok(()),
        _ => Err(ApiError::unsupported("prompt", "one text is continued with a request")),
    };
    let input = match text.prompt {
        Prompt::Text(text) => Input::Text(text),
        Prompt::Tokens(tokens) => Input::Tokens(tokens),
        Prompt::Texts(mut texts) => {
            one(texts.len())?;
            Input::Text(texts.remove(0))
        }
        Prompt::ManyTokens(mut many) => {
            one(many.len())?;
            Input::Tokens(many.remove(0))
        }
    };
    Ok(Ask { input, logprobs: text.logprobs, ..ask })
}

/// A choice; its tokens begin so many characters into the answer.
fn choice(
    index: usize,
    text: &str,
    logprobs: &[TokenLogprobs],
    mut offset: usize,
    reason: Option<&str>,
) -> Value {
    let string = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut value = json!({ "index": index, "text": text, "logprobs": null, "finish_reason": reason });
    if !logprobs.is_empty() {
        let mut offsets = Vec::with_capacity(logprobs.len());
        for token in logprobs {
            offsets.push(offset);
            offset += string(&token.bytes).chars().count();
        }
        let top = |token: &TokenLogprobs| -> Value {
            let pairs = token.top.iter().map(|(bytes, logprob)| (string(bytes), Value::from(*logprob)));
            Value::Object(pairs.collect())
        };
        value["logprobs"] = json!({
            "tokens": logprobs.iter().map(|token| string(&token.bytes)).collect::<Vec<_>>(),
            "token_logprobs": logprobs.iter().map(|token| token.logprob).collect::<Vec<_>>(),
            "top_logprobs": logprobs.iter().map(top).collect::<Vec<_>>(),
            "text_offset": offsets,
        });
    }
    value
}

/// Writes an answer as it comes.
async fn stream(mut answer: Answer, pieces: Pieces, usage: bool) {
    let head = Head::new("cmpl-", "text_completion", &answer);
    let mut offsets = vec![0; answer.choices()];
    loop {
        let piece = match answer.next_within(SIGN_OF_LIFE).await {
            Waited::Still => head.with(json!([choice(0, "", &[], 0, None)])),
            Waited::Next(None) => break,
            Waited::Next(Some(Err(error))) => {
                pieces.event(None, &error_value(&error)).await;
                return;
            }
            // Texts call nothing.
            Waited::Next(Some(Ok((
                _,
                Delta::Prefill { .. } | Delta::Call { .. } | Delta::Arguments { .. },
            )))) => continue,
            Waited::Next(Some(Ok((index, Delta::Text(_, Piece { text, logprobs }))))) => {
                let offset = offsets[index];
                offsets[index] += text.chars().count();
                head.with(json!([choice(index, &text, &logprobs, offset, None)]))
            }
            Waited::Next(Some(Ok((index, Delta::Done(done))))) => {
                head.with(json!([choice(index, "", &[], 0, Some(reason_value(done.reason)))]))
            }
        };
        if !pieces.event(None, &piece).await {
            return;
        }
    }
    end(&head, &answer, &pieces, usage).await;
}

//! `/v1/completions`: texts continued as they are.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::Server;
use super::super::answer::{Answer, Delta, Echo, Piece, SIGN_OF_LIFE, TokenLogprobs, Waited};
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
        let mut choice = Text::new(index, answer.echo(index), whole.read.clone());
        let reason = whole.done.as_ref().map(|done| reason_value(done.reason));
        choice.piece(&whole.text, &whole.logprobs, reason)
    });
    Ok(Json(told(&head, choices.collect(), &answer)).into_response())
}

fn ask(fields: &Fields, text: TextFields) -> Result<Ask, ApiError> {
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
    let echo = text.echo == Some(true);
    let inputs: Vec<Input> = match text.prompt {
        Prompt::Text(text) => vec![Input::Text(text)],
        Prompt::Tokens(tokens) => vec![Input::Tokens(tokens)],
        Prompt::Texts(texts) => texts.into_iter().map(Input::Text).collect(),
        Prompt::ManyTokens(many) => many.into_iter().map(Input::Tokens).collect(),
    };
    let mut inputs = inputs.into_iter();
    let input = inputs.next().unwrap_or_default();
    Ok(Ask { input, others: inputs.collect(), echo, logprobs: text.logprobs, ..ask })
}

/// The text of a choice as it comes, behind the prompt where that is given back.
struct Text {
    index: usize,
    /// The prompt, and how probable its tokens are; until it has been told.
    echo: Option<(Echo, Vec<TokenLogprobs>)>,
    /// Characters that have been told.
    chars: usize,
}

fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Tokens as this dialect lists them.
#[derive(Default)]
struct Lists {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
}

impl Lists {
    fn push(&mut self, token: &TokenLogprobs, offset: usize) {
        let pairs = token.top.iter().map(|(bytes, logprob)| (string(bytes), Value::from(*logprob)));
        self.tokens.push(string(&token.bytes));
        self.token_logprobs.push(Some(token.logprob));
        self.top_logprobs.push(Value::Object(pairs.collect()));
        self.text_offset.push(offset);
    }

    /// The tokens of a prompt: nothing says how probable the first is.
    fn echo(&mut self, echo: &Echo, read: &[TokenLogprobs]) {
        let mut place = Place { text: echo.text.as_bytes(), at: 0 };
        self.tokens.push(string(&echo.first));
        self.token_logprobs.push(None);
        self.top_logprobs.push(Value::Null);
        self.text_offset.push(place.next(&echo.first));
        for token in read {
            let offset = place.next(&token.bytes);
            self.push(token, offset);
        }
    }
}

/// Where the tokens of a text begin in it. Those that it does not show, such as the one that begins every
/// text, take no place.
struct Place<'t> {
    text: &'t [u8],
    at: usize,
}

impl Place<'_> {
    /// The characters before the next token.
    fn next(&mut self, token: &[u8]) -> usize {
        let chars = String::from_utf8_lossy(&self.text[..self.at]).chars().count();
        let rest = &self.text[self.at..];
        // Some vocabularies put a space before a text.
        let bare = token.strip_prefix(b" ").unwrap_or(token);
        self.at += [token, bare].iter().find(|token| rest.starts_with(token)).map_or(0, |token| token.len());
        chars
    }
}

impl Text {
    fn new(index: usize, echo: Option<&Echo>, read: Vec<TokenLogprobs>) -> Text {
        Text { index, echo: echo.map(|echo| (echo.clone(), read)), chars: 0 }
    }

    /// A piece of the choice; the first one begins with the prompt.
    fn piece(&mut self, text: &str, logprobs: &[TokenLogprobs], reason: Option<&str>) -> Value {
        let (mut lists, mut whole) = (Lists::default(), String::new());
        if let Some((echo, read)) = self.echo.take() {
            if !logprobs.is_empty() || !read.is_empty() {
                lists.echo(&echo, &read);
            }
            whole = echo.text;
        }
        let mut offset = self.chars + whole.chars().count();
        for token in logprobs {
            lists.push(token, offset);
            offset += string(&token.bytes).chars().count();
        }
        whole.push_str(text);
        self.chars += whole.chars().count();
        let logprobs = match lists.tokens.is_empty() {
            true => Value::Null,
            false => json!({
                "tokens": lists.tokens,
                "token_logprobs": lists.token_logprobs,
                "top_logprobs": lists.top_logprobs,
                "text_offset": lists.text_offset,
            }),
        };
        json!({ "index": self.index, "text": whole, "logprobs": logprobs, "finish_reason": reason })
    }
}

/// Writes an answer as it comes.
async fn stream(mut answer: Answer, pieces: Pieces, usage: bool) {
    let head = Head::new("cmpl-", "text_completion", &answer);
    let choices = (0..answer.choices()).map(|index| Text::new(index, answer.echo(index), Vec::new()));
    let mut choices: Vec<Text> = choices.collect();
    loop {
        let piece = match answer.next_within(SIGN_OF_LIFE).await {
            Waited::Still => {
                let nothing = json!({ "index": 0, "text": "", "logprobs": null, "finish_reason": null });
                head.with(json!([nothing]))
            }
            Waited::Next(None) => break,
            Waited::Next(Some(Err(error))) => {
                pieces.event(None, &error_value(&error)).await;
                return;
            }
            Waited::Next(Some(Ok((index, Delta::Read(more))))) => {
                if let Some((_, read)) = &mut choices[index].echo {
                    read.extend(more);
                }
                continue;
            }
            // Texts call nothing.
            Waited::Next(Some(Ok((
                _,
                Delta::Prefill { .. } | Delta::Call { .. } | Delta::Arguments { .. },
            )))) => continue,
            Waited::Next(Some(Ok((index, Delta::Text(_, Piece { text, logprobs }))))) => {
                head.with(json!([choices[index].piece(&text, &logprobs, None)]))
            }
            Waited::Next(Some(Ok((index, Delta::Done(done))))) => {
                head.with(json!([choices[index].piece("", &[], Some(reason_value(done.reason)))]))
            }
        };
        if !pieces.event(None, &piece).await {
            return;
        }
    }
    end(&head, &answer, &pieces, usage).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_tokens() {
        let offsets = |text: &str, tokens: &[&[u8]]| -> Vec<usize> {
            let mut place = Place { text: text.as_bytes(), at: 0 };
            tokens.iter().map(|token| place.next(token)).collect()
        };
        assert_eq!(offsets("Once upon", &[b"<s>", b" Once", b" up", b"on"]), [0, 0, 4, 7]);
        assert_eq!(offsets("\u{e4}b", &[b"\xc3", b"\xa4", b"b"]), [0, 1, 1]);
    }
}

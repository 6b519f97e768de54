//! The dialect of OpenAI: <https://platform.openai.com/docs/api-reference>.

pub mod batch;
mod chat;
mod completions;
mod fields;
mod messages;
mod responses;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::Server;
use super::answer::{Answer, Reason, TokenLogprobs};
use super::body::Pieces;
use super::error::{ApiError, ErrorKind};
use super::models::Listed;
use crate::engine::Usage;
pub use fields::{Fields, OneOrMany};
pub use messages::{InMessage, messages};

pub fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/v1/chat/completions", post(chat::completions))
        .route("/chat/completions", post(chat::completions))
        .route("/v1/completions", post(completions::completions))
        .route("/completions", post(completions::completions))
        .merge(responses::routes())
        .route("/v1/models", get(models))
        .route("/models", get(models))
        .route("/v1/models/{*name}", get(model))
}

/// An error as this dialect has it.
pub fn error(error: &ApiError) -> Response {
    error.response(error_value(error))
}

fn error_value(error: &ApiError) -> Value {
    let (ty, code) = match error.kind {
        ErrorKind::ContextLength { .. } => ("invalid_request_error", Some("context_length_exceeded")),
        ErrorKind::Invalid | ErrorKind::TooLarge | ErrorKind::Timeout => ("invalid_request_error", None),
        ErrorKind::Unsupported | ErrorKind::NotImplemented => ("invalid_request_error", Some("unsupported")),
        ErrorKind::Unauthorized => ("authentication_error", Some("invalid_api_key")),
        ErrorKind::Forbidden => ("permission_error", None),
        ErrorKind::NoModel => ("invalid_request_error", Some("model_not_found")),
        ErrorKind::NotFound | ErrorKind::MethodNotAllowed => ("not_found_error", None),
        ErrorKind::Overloaded | ErrorKind::ShuttingDown => ("overloaded_error", Some("overloaded")),
        ErrorKind::NoRoom => ("server_error", Some("out_of_memory")),
        ErrorKind::Internal => ("server_error", None),
    };
    let mut value = json!({ "message": error.message, "type": ty, "param": error.field, "code": code });
    if let ErrorKind::ContextLength { tokens, context } = error.kind {
        value["n_prompt_tokens"] = tokens.into();
        value["n_ctx"] = context.into();
    }
    json!({ "error": value })
}

async fn models(State(server): State<Arc<Server>>) -> Json<Value> {
    let data: Vec<Value> = server.registry.list().iter().map(|listed| model_value(&server, listed)).collect();
    let id = |model: Option<&Value>| model.map(|model| model["id"].clone());
    let (first, last) = (id(data.first()), id(data.last()));
    let mut list = json!({ "object": "list", "data": data });
    // Anthropic's clients read a page of a list.
    list["has_more"] = false.into();
    list["first_id"] = first.into();
    list["last_id"] = last.into();
    // Codex looks for `models`; where it is empty it goes by the name that it is told.
    list["models"] = json!([]);
    Json(list)
}

async fn model(State(server): State<Arc<Server>>, Path(name): Path<String>) -> Response {
    match server.registry.list().iter().find(|listed| listed.name == name) {
        Some(listed) => Json(model_value(&server, listed)).into_response(),
        None => error(&ApiError::new(ErrorKind::NoModel, format!("there is no model {name:?}"))),
    }
}

/// A model of the list; what is known of it once it is loaded as well.
fn model_value(server: &Server, listed: &Listed) -> Value {
    let mut value = json!({
        "id": listed.name,
        "object": "model",
        "created": listed.created,
        "owned_by": "wayinfer",
        "type": "model",
        "display_name": listed.name,
        "created_at": rfc3339(listed.created),
        "size": listed.file_bytes,
    });
    let workers = server.registry.workers();
    if let Some(worker) = workers.iter().find(|worker| worker.facts.name == listed.name) {
        let facts = &worker.facts;
        value["context_length"] = facts.context.into();
        value["meta"] = json!({
            "n_ctx": facts.context,
            "n_ctx_train": facts.trained_context,
            "n_vocab": facts.vocab,
            "n_embd": facts.embd,
            "n_params": facts.parameters,
            "size": facts.file_bytes,
        });
    }
    value
}

/// What answers to one request have in common.
struct Head {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
}

impl Head {
    fn new(prefix: &str, object: &'static str, answer: &Answer) -> Head {
        let model = answer.facts.name.clone();
        Head { id: new_id(prefix), object, created: now(), model }
    }

    /// An object with these choices.
    fn with(&self, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        })
    }
}

/// Answers depend on the program's version, the model, the request and its seed.
const FINGERPRINT: &str = concat!("b", env!("CARGO_PKG_VERSION"), "-wayinfer");

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Seconds since 1970 as a date and time.
pub fn rfc3339(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    seconds.unwrap_or_default().to_string()
}

/// A name that nothing else has.
pub fn new_id(prefix: &str) -> String {
    let random = || RandomState::new().hash_one(prefix);
    format!("{prefix}{:016x}{:08x}", random(), random() as u32)
}

/// The answer to a request, or what is wrong with it.
fn respond(answered: Result<Response, ApiError>) -> Response {
    answered.unwrap_or_else(|wrong| error(&wrong))
}

/// An object with these choices, and what they took.
fn told(head: &Head, choices: Value, answer: &Answer) -> Value {
    let mut value = head.with(choices);
    value["usage"] = usage_value(&answer.usage());
    value["wayinfer"] = extras(answer);
    value
}

/// Ends a stream, with what it took where that is wanted: clients know this piece by its having no choices.
async fn end(head: &Head, answer: &Answer, pieces: &Pieces, usage: bool) {
    if usage {
        pieces.event(None, &told(head, json!([]), answer)).await;
    }
    pieces.raw("data: [DONE]\n\n").await;
}

fn usage_value(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.made,
        "total_tokens": usage.prompt + usage.made,
        "prompt_tokens_details": { "cached_tokens": usage.cached },
    })
}

/// What this server says beside what the dialect has.
fn extras(answer: &Answer) -> Value {
    let timings = answer.timings();
    let rate = timings.per_token().map(|seconds| 1.0 / seconds.max(1e-9));
    let stats = answer.worker().status().residency;
    json!({
        "seed": answer.seed,
        "tokens_per_second": rate,
        "seconds_to_first_token": timings.first.map(|first| first.as_secs_f64()),
        "context_length": answer.facts.context,
        "expert_hits": stats.hit_rate(),
    })
}

fn reason_value(reason: Reason) -> &'static str {
    match reason {
        Reason::Stop => "stop",
        Reason::Length => "length",
        Reason::ToolCalls => "tool_calls",
    }
}

fn logprobs_value(tokens: &[TokenLogprobs]) -> Value {
    json!({ "content": token_logprobs(tokens) })
}

/// Each token with its log-probability and those of others.
pub fn token_logprobs(tokens: &[TokenLogprobs]) -> Value {
    let entry = |bytes: &[u8], logprob: f32| {
        let token = String::from_utf8_lossy(bytes);
        json!({ "token": token, "logprob": logprob, "bytes": bytes })
    };
    let content = tokens.iter().map(|token| {
        let mut value = entry(&token.bytes, token.logprob);
        value["top_logprobs"] = token.top.iter().map(|(bytes, logprob)| entry(bytes, *logprob)).collect();
        value
    });
    content.collect()
}

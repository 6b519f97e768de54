//! What no dialect has: health, tokens of a text, templates, figures; and what is asked for in vain.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::ask::Chat;
use super::error::{ApiError, ErrorKind};
use super::openai::{InMessage, messages};
use super::{Server, anthropic, ollama, openai};
use crate::text::EncodeOptions;

pub fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/tokenizer_info", get(tokenizer_info))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/apply-template", post(apply_template))
}

/// An error as the dialect of a path has it.
pub fn error(path: &str, error: ApiError) -> Response {
    let is_under =
        |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if is_under("/v1/messages") {
        anthropic::error(&error)
    } else if is_under("/api") {
        ollama::error(&error)
    } else {
        openai::error(&error)
    }
}

pub async fn not_found(request: Request) -> Response {
    let path = request.uri().path();
    error(path, ApiError::new(ErrorKind::NotFound, format!("there is no {path}")))
}

pub async fn method_not_allowed(request: Request) -> Response {
    let (path, method) = (request.uri().path(), request.method());
    error(path, ApiError::new(ErrorKind::MethodNotAllowed, format!("{path} takes no {method}")))
}

async fn health() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

async fn metrics(State(server): State<Arc<Server>>) -> Response {
    let text = server.metrics.text(&server.registry.workers());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

/// What vLLM's clients ask of a vocabulary.
async fn tokenizer_info(State(server): State<Arc<Server>>) -> Response {
    let made = async {
        let worker = server.registry.get("").await?;
        let facts = &worker.facts;
        let text = |id: Option<u32>| id.and_then(|id| facts.tokenizer.token_text(id));
        Ok(json!({
            "tokenizer_class": "GGUF",
            "bos_token": text(facts.tokenizer.bos()),
            "eos_token": text(facts.tokenizer.eos()),
            "pad_token": text(facts.tokenizer.padding()),
            "unk_token": text(facts.tokenizer.unknown()),
            "add_bos_token": facts.tokenizer.adds_bos(),
            "add_eos_token": facts.tokenizer.adds_eos(),
            "model_max_length": facts.context,
            "chat_template": facts.template.as_ref().map(|template| &template.source),
        }))
    };
    respond(made.await)
}

#[derive(Deserialize)]
struct Tokenize {
    model: Option<String>,
    content: Option<String>,
    #[serde(default)]
    add_special: bool,
    #[serde(default)]
    parse_special: bool,
    /// The text as vLLM's clients send it: marks in it are special tokens always.
    prompt: Option<String>,
    add_special_tokens: Option<bool>,
    #[serde(default)]
    with_pieces: bool,
}

async fn tokenize(State(server): State<Arc<Server>>, body: Body) -> Response {
    let made = async {
        let (asked, _share): (Tokenize, _) = server.bodies.json(body).await?;
        let worker = server.registry.get(asked.model.as_deref().unwrap_or_default()).await?;
        let (field, text, options) = match (asked.content, asked.prompt) {
            (Some(content), None) => {
                let (add_special, parse_special) = (asked.add_special, asked.parse_special);
                ("content", content, EncodeOptions { add_special, parse_special })
            }
            (None, Some(prompt)) => {
                let add_special = asked.add_special_tokens.unwrap_or(true);
                ("prompt", prompt, EncodeOptions { add_special, parse_special: true })
            }
            _ => return Err(ApiError::invalid("content", "a text is needed, or \"prompt\" in its place")),
        };
        let facts = Arc::clone(&worker.facts);
        let encode = move || -> Result<Value, ApiError> {
            let encoded = facts.tokenizer.encode(&text, options);
            let ids = encoded.map_err(|error| ApiError::invalid(field, error))?;
            let (count, max_model_len) = (ids.len(), facts.context);
            match asked.with_pieces {
                true => {}
                false if field == "content" => return Ok(json!({ "tokens": ids })),
                false => {
                    return Ok(json!({ "tokens": ids, "count": count, "max_model_len": max_model_len }));
                }
            }
            let piece = |&id: &u32| {
                let bytes = facts.tokenizer.piece(id, true).unwrap_or_default();
                let piece = std::str::from_utf8(bytes).map_or_else(|_| json!(bytes), |text| json!(text));
                json!({ "id": id, "piece": piece })
            };
            Ok(json!({ "tokens": ids.iter().map(piece).collect::<Vec<_>>() }))
        };
        tokio::task::spawn_blocking(encode).await.map_err(ApiError::internal)?
    };
    respond(made.await)
}

#[derive(Deserialize)]
struct Detokenize {
    model: Option<String>,
    tokens: Vec<u32>,
}

async fn detokenize(State(server): State<Arc<Server>>, body: Body) -> Response {
    let made = async {
        let (asked, _share): (Detokenize, _) = server.bodies.json(body).await?;
        let worker = server.registry.get(asked.model.as_deref().unwrap_or_default()).await?;
        let vocab = worker.facts.vocab;
        if let Some(at) = asked.tokens.iter().position(|&id| id as usize >= vocab) {
            let message = format!("{} is outside the vocabulary of {vocab}", asked.tokens[at]);
            return Err(ApiError::invalid(format!("tokens[{at}]"), message));
        }
        let text = worker.facts.tokenizer.decode(&asked.tokens, true);
        // As llama.cpp's clients look for it, and vLLM's.
        Ok(json!({ "content": text, "prompt": text }))
    };
    respond(made.await)
}

#[derive(Deserialize)]
struct ApplyTemplate {
    model: Option<String>,
    messages: Vec<InMessage>,
    #[serde(default)]
    chat_template_kwargs: serde_json::Map<String, Value>,
}

async fn apply_template(State(server): State<Arc<Server>>, body: Body) -> Response {
    let made = async {
        let (asked, _share): (ApplyTemplate, _) = server.bodies.json(body).await?;
        let worker = server.registry.get(asked.model.as_deref().unwrap_or_default()).await?;
        let (messages, settings) = (messages(asked.messages)?, asked.chat_template_kwargs);
        let chat = Chat { messages, settings, ..Chat::default() };
        let (server, facts) = (Arc::clone(&server), Arc::clone(&worker.facts));
        let rendered = tokio::task::spawn_blocking(move || server.render(&facts, &chat)).await;
        Ok(json!({ "prompt": rendered.map_err(ApiError::internal)??.text() }))
    };
    respond(made.await)
}

/// JSON, or what is wrong as the dialect of no other path has it.
pub fn respond(made: Result<Value, ApiError>) -> Response {
    made.map_or_else(|wrong| error("/", wrong), |value| Json(value).into_response())
}

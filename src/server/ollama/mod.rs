//! The dialect of Ollama: <https://docs.ollama.com/api>. Lines of JSON, streamed unless a request says no.

mod lines;
mod messages;
mod models;
mod options;
mod request;

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::Server;
use super::body::{Read, streamed};
use super::error::{ApiError, ErrorKind};
use super::stream::{take, write};
use lines::{Kind, Lines};
use request::{ChatFields, Common, TextFields};

/// Clients ask for features by Ollama's version: this is the one whose API is spoken.
const VERSION: &str = "0.12.11";

/// The type of streamed answers.
const LINES: &str = "application/x-ndjson";

/// What Ollama has and this server has not, and why.
const REFUSED: [(&str, &str); 8] = [
    ("/api/pull", NO_STORE),
    ("/api/push", NO_STORE),
    ("/api/create", NO_STORE),
    ("/api/copy", NO_STORE),
    ("/api/delete", NO_STORE),
    ("/api/blobs/{*digest}", NO_STORE),
    ("/api/embed", NO_EMBEDDINGS),
    ("/api/embeddings", NO_EMBEDDINGS),
];
const NO_STORE: &str = "models are the files that the server was started with";
const NO_EMBEDDINGS: &str = "this server makes no embeddings";

pub fn routes() -> Router<Arc<Server>> {
    let router = Router::new()
        .route("/api/chat", post(chat))
        .route("/api/generate", post(generate))
        .route("/api/version", get(|| async { Json(json!({ "version": VERSION })) }))
        .route("/api/tags", get(models::tags))
        .route("/api/ps", get(models::ps))
        .route("/api/show", post(models::show));
    REFUSED.iter().fold(router, |router, &(path, why)| {
        let refused = move |uri: Uri| async move {
            error(&ApiError::new(ErrorKind::NotImplemented, format!("there is no {}: {why}", uri.path())))
        };
        router.route(path, any(refused))
    })
}

/// An error as this dialect has it.
pub fn error(error: &ApiError) -> Response {
    error.response(error_value(error))
}

fn error_value(error: &ApiError) -> Value {
    json!({ "error": error.message })
}

async fn chat(State(server): State<Arc<Server>>, body: Body) -> Response {
    respond(&server, body, Kind::Chat).await
}

async fn generate(State(server): State<Arc<Server>>, body: Body) -> Response {
    respond(&server, body, Kind::Text).await
}

async fn respond(server: &Arc<Server>, body: Body, kind: Kind) -> Response {
    let began = Instant::now();
    let answered = async { answer(server, server.bodies.read(body).await?, kind, began).await };
    answered.await.unwrap_or_else(|wrong: ApiError| error(&wrong))
}

async fn answer(server: &Arc<Server>, read: Read, kind: Kind, began: Instant) -> Result<Response, ApiError> {
    let common: Common = read.json()?;
    let input = match kind {
        Kind::Chat => read.json::<ChatFields>()?.input()?,
        Kind::Text => read.json::<TextFields>()?.input()?,
    };
    let share = read.into_share();
    let loading = Instant::now();
    let worker = server.registry.get(common.model()).await?;
    let name = if common.model().is_empty() { worker.facts.name.clone() } else { common.model().to_owned() };
    let mut lines = Lines::new(kind, name, began, loading.elapsed());
    let Some(input) = input else {
        // Nothing to answer: the model is to be loaded.
        return Ok(([("content-type", "application/json")], lines.loaded()).into_response());
    };
    let streams = common.streams();
    let answer = server.ask(common.ask(input)?).await?;
    drop(share);
    if streams {
        return Ok(streamed(LINES, move |pieces| write(answer, lines, pieces)));
    }
    take(answer, &mut lines).await?;
    Ok(([("content-type", "application/json")], lines.into_whole()).into_response())
}

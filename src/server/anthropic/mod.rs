//! The dialect of Anthropic: <https://docs.anthropic.com/en/api/messages>.

mod events;
mod messages;
mod request;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::Server;
use super::ask::Input;
use super::body::{EVENTS, streamed};
use super::error::{ApiError, ErrorKind};
use super::prompt::Held;
use super::stream::{take, write};
use events::Events;
use request::{Conversation, Request};

pub fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/v1/messages", post(messages_created))
        .route("/v1/messages/count_tokens", post(tokens_counted))
}

/// An error as this dialect has it.
pub fn error(error: &ApiError) -> Response {
    error.response(error_value(error))
}

fn error_value(error: &ApiError) -> Value {
    let ty = match error.kind {
        ErrorKind::Invalid | ErrorKind::Unsupported | ErrorKind::NotImplemented => "invalid_request_error",
        ErrorKind::ContextLength { .. } | ErrorKind::MethodNotAllowed => "invalid_request_error",
        ErrorKind::Unauthorized => "authentication_error",
        ErrorKind::Forbidden => "permission_error",
        ErrorKind::NotFound | ErrorKind::NoModel => "not_found_error",
        ErrorKind::TooLarge => "request_too_large",
        ErrorKind::Timeout => "timeout_error",
        ErrorKind::Overloaded | ErrorKind::ShuttingDown => "overloaded_error",
        ErrorKind::NoRoom | ErrorKind::Internal => "api_error",
    };
    let message = match error.kind {
        // Agents shorten what they send where they read this.
        ErrorKind::ContextLength { tokens, context } => {
            format!("prompt is too long: {tokens} tokens > {context} maximum")
        }
        _ => error.message.clone(),
    };
    json!({ "type": "error", "error": { "type": ty, "message": message } })
}

async fn messages_created(State(server): State<Arc<Server>>, body: Body) -> Response {
    match answer(&server, body).await {
        Ok(response) => response,
        Err(wrong) => error(&wrong),
    }
}

async fn answer(server: &Arc<Server>, body: Body) -> Result<Response, ApiError> {
    let read = server.bodies.read(body).await?;
    let (request, conversation): (Request, Conversation) = (read.json()?, read.json()?);
    let share = read.into_share();
    let streams = request.streams();
    let ask = request.ask(conversation)?;
    let stops = ask.stop.clone();
    let answer = server.ask(ask).await?;
    drop(share);
    let mut events = Events::new(answer.facts.name.clone(), answer.prompt_tokens, stops);
    if streams {
        return Ok(streamed(EVENTS, move |pieces| write(answer, events, pieces)));
    }
    take(answer, &mut events).await?;
    Ok(Json(events.into_message()).into_response())
}

async fn tokens_counted(State(server): State<Arc<Server>>, body: Body) -> Response {
    let counted = async {
        let (conversation, _share): (Conversation, _) = server.bodies.json(body).await?;
        let worker = server.registry.get(conversation.model()).await?;
        let prompt = server.prompt(&worker, Input::Chat(conversation.chat()?), Held::default()).await?;
        Ok(Json(json!({ "input_tokens": prompt.tokens.len() })).into_response())
    };
    counted.await.unwrap_or_else(|wrong: ApiError| error(&wrong))
}

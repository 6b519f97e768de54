//! `/v1/responses`, without memory: a request has to bring all that is to be known.

mod events;
mod items;
mod request;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post};
use axum::{Json, Router};

use super::super::Server;
use super::super::body::{EVENTS, streamed};
use super::super::error::{ApiError, ErrorKind};
use super::super::stream::{Writer, take, write};
use super::error;
use events::Events;
use request::Request;

pub fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/v1/responses", post(created))
        .route("/responses", post(created))
        .route("/v1/responses/{*rest}", any(stored))
}

/// What is asked of an answer that was given before.
async fn stored(uri: Uri) -> Response {
    let message = format!("there is no {}: answers are not stored here", uri.path());
    error(&ApiError::new(ErrorKind::NotFound, message))
}

async fn created(State(server): State<Arc<Server>>, body: Body) -> Response {
    match answer(&server, body).await {
        Ok(response) => response,
        Err(wrong) => error(&wrong),
    }
}

async fn answer(server: &Arc<Server>, body: Body) -> Result<Response, ApiError> {
    let (request, share): (Request, _) = server.bodies.json(body).await?;
    let (streams, echo) = (request.streams(), request.echo());
    if request.is_empty() {
        return nothing(server, &request, streams).await;
    }
    let answer = server.ask(request.ask()?).await?;
    drop(share);
    let mut events = Events::new(echo, &answer.facts.name);
    if streams {
        return Ok(streamed(EVENTS, move |pieces| write(answer, events, pieces)));
    }
    take(answer, &mut events).await?;
    Ok(Json(events.into_response()).into_response())
}

/// Clients ask for nothing to see whether somebody is there.
async fn nothing(server: &Arc<Server>, request: &Request, streams: bool) -> Result<Response, ApiError> {
    let (listed, _) = server.registry.describe(request.model()).await?;
    let mut events = Events::new(request.echo(), &listed.name);
    let mut text = events.begin();
    text += &events.nothing();
    if !streams {
        return Ok(Json(events.into_response()).into_response());
    }
    Ok(streamed(EVENTS, move |pieces| async move {
        pieces.raw(text).await;
    }))
}

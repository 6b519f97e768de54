//! Bodies of requests, and streams of events as answers.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::timeout;

use super::MAX_BODY;
use super::error::{ApiError, ErrorKind};

/// What a client has for the body of a request.
const BODY_TIME: Duration = Duration::from_secs(60);

/// The JSON of a request's body. The type that clients say it has does not matter.
///
/// # Errors
/// As [`read`] and [`parse`].
pub async fn json<T: DeserializeOwned>(body: Body) -> Result<T, ApiError> {
    parse(&read(body).await?)
}

/// The bytes of a request's body.
///
/// # Errors
/// A body that is too long or too slow.
pub async fn read(body: Body) -> Result<Bytes, ApiError> {
    let too_large =
        || ApiError::new(ErrorKind::TooLarge, format!("the body is longer than {MAX_BODY} bytes"));
    // What the head says of it: nothing has to come.
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    let read = timeout(BODY_TIME, to_bytes(body, MAX_BODY)).await;
    let read = read.map_err(|_| ApiError::new(ErrorKind::Timeout, "the body does not come"))?;
    read.map_err(|error| {
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        match source.contains("length limit") {
            true => too_large(),
            false => ApiError::new(ErrorKind::Invalid, "the body was broken off"),
        }
    })
}

/// JSON of a type.
///
/// # Errors
/// Text that is no JSON; a field of another type, by its name.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            serde_json::error::Category::Data if path != "." => ApiError::invalid(path, inner),
            _ => {
                ApiError::new(ErrorKind::Invalid, format!("the body is not the JSON that is needed: {inner}"))
            }
        }
    })?;
    let rest = deserializer.end();
    rest.map_err(|error| ApiError::new(ErrorKind::Invalid, format!("behind the JSON of the body: {error}")))?;
    Ok(parsed)
}

/// Pieces of a body that are waited for by a client; few, so that a slow one holds little.
const AHEAD: usize = 16;

/// What a client has to take a piece of its answer.
const PIECE_TIME: Duration = Duration::from_secs(120);

/// Where the pieces of a streamed answer go.
pub struct Pieces(Sender<Bytes>);

impl Pieces {
    /// Sends a server-sent event with this data, and of this name where it has one; `false` where the client
    /// has gone.
    pub async fn event(&self, name: Option<&str>, data: &impl Serialize) -> bool {
        let Ok(data) = serde_json::to_string(data) else { return false };
        let name = name.map(|name| format!("event: {name}\n")).unwrap_or_default();
        self.raw(format!("{name}data: {data}\n\n")).await
    }

    /// Sends text as it is; `false` where the client has gone, or takes nothing.
    pub async fn raw(&self, text: impl Into<Bytes>) -> bool {
        self.0.send_timeout(text.into(), PIECE_TIME).await.is_ok()
    }
}

struct Streamed(Receiver<Bytes>);

impl Stream for Streamed {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|piece| piece.map(Ok))
    }
}

/// An answer that comes in pieces, which `write` sends; it ends when that does. `write` is dropped when the
/// client goes, also where it waits for the model.
pub fn streamed<F>(content_type: &'static str, write: impl FnOnce(Pieces) -> F) -> Response
where
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = channel(AHEAD);
    let client = sender.clone();
    let written = write(Pieces(sender));
    tokio::spawn(async move {
        tokio::select! {
            () = written => {}
            () = client.closed() => {}
        }
    });
    let headers = [(CONTENT_TYPE, content_type), (CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(Streamed(receiver))).into_response()
}

/// The type of streams of server-sent events.
pub const EVENTS: &str = "text/event-stream";

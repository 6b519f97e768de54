//! Bodies of requests, and streams of events as answers.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::MAX_BODY;
use super::error::{ApiError, ErrorKind};

/// What a client has for the body of a request.
const BODY_TIME: Duration = Duration::from_secs(60);

/// Bytes that all bodies hold together beside the first ones of each.
const ALL_BODIES: usize = 128 << 20;
/// Bytes of each body that are not counted: a few clients with long bodies keep no ordinary request out.
const UNCOUNTED: usize = 64 << 10;

/// What the bodies of all requests may hold together.
pub struct Bodies(Arc<Semaphore>);

/// What a body holds of it, given back when dropped. It has to be kept until the prompt is made: what is
/// parsed is as long as the body.
pub struct Share(Option<OwnedSemaphorePermit>);

/// The bytes of a body.
pub struct Read {
    bytes: Vec<u8>,
    share: Share,
}

impl Read {
    /// Parses it.
    ///
    /// # Errors
    /// As [`parse`].
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        parse(&self.bytes)
    }

    /// Drops the bytes; what they were parsed to holds as much.
    pub fn into_share(self) -> Share {
        self.share
    }
}

impl Default for Bodies {
    fn default() -> Bodies {
        Bodies::new(ALL_BODIES)
    }
}

impl Bodies {
    fn new(bytes: usize) -> Bodies {
        Bodies(Arc::new(Semaphore::new(bytes)))
    }

    /// The JSON of a request's body. The type that clients say it has does not matter.
    ///
    /// # Errors
    /// As [`read`](Self::read) and [`parse`].
    pub async fn json<T: DeserializeOwned>(&self, body: Body) -> Result<(T, Share), ApiError> {
        let read = self.read(body).await?;
        Ok((read.json()?, read.into_share()))
    }

    /// The bytes of a request's body.
    ///
    /// # Errors
    /// A body that is too long or too slow; too much that others hold.
    pub async fn read(&self, body: Body) -> Result<Read, ApiError> {
        // What the head says of it: nothing has to come.
        if body.size_hint().lower() > MAX_BODY as u64 {
            return Err(too_large());
        }
        let read = timeout(BODY_TIME, self.collect(body)).await;
        read.map_err(|_| ApiError::new(ErrorKind::Timeout, "the body does not come"))?
    }

    async fn collect(&self, mut body: Body) -> Result<Read, ApiError> {
        let mut read = Read { bytes: Vec::new(), share: Share(None) };
        // What there is no room for is read all the same: a client that still writes would miss the reply.
        let (mut len, mut kept) = (0, true);
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            let frame = frame.map_err(|_| ApiError::new(ErrorKind::Invalid, "the body was broken off"))?;
            let Ok(data) = frame.into_data() else { continue };
            let counted = |len: usize| len.saturating_sub(UNCOUNTED);
            let more = counted(len + data.len()) - counted(len);
            len += data.len();
            if len > MAX_BODY {
                return Err(too_large());
            }
            kept = kept && self.take(more, &mut read.share);
            if kept {
                read.bytes.extend_from_slice(&data);
            } else {
                read = Read { bytes: Vec::new(), share: Share(None) };
            }
        }
        match kept {
            true => Ok(read),
            false => Err(ApiError::new(ErrorKind::Overloaded, "too many long requests are being read")),
        }
    }

    /// Takes so many bytes more; `false` where others hold them.
    fn take(&self, bytes: usize, share: &mut Share) -> bool {
        let wanted = u32::try_from(bytes).unwrap_or(u32::MAX);
        if wanted == 0 {
            return true;
        }
        let Ok(more) = Arc::clone(&self.0).try_acquire_many_owned(wanted) else { return false };
        match &mut share.0 {
            Some(held) => held.merge(more),
            None => share.0 = Some(more),
        }
        true
    }
}

fn too_large() -> ApiError {
    ApiError::new(ErrorKind::TooLarge, format!("the body is longer than {MAX_BODY} bytes"))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(bodies: &Bodies, len: usize) -> Result<Read, ApiError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(bodies.read(Body::from(vec![b' '; len])))
    }

    #[test]
    fn bodies_share_what_they_may_hold() {
        let bodies = Bodies::new(1000);
        let first = reads(&bodies, UNCOUNTED + 600).expect("room for the first");
        let error = reads(&bodies, UNCOUNTED + 401).err().expect("no room");
        assert_eq!((error.kind, error.kind.retry_after()), (ErrorKind::Overloaded, Some(1)));
        let second = reads(&bodies, UNCOUNTED + 400).expect("room for the second");
        // Short ones are always read.
        let short = reads(&bodies, UNCOUNTED).expect("room for a short one");
        assert_eq!(short.bytes.len(), UNCOUNTED);
        assert!(reads(&bodies, UNCOUNTED + 1).is_err());
        // What is parsed holds as much as its text.
        let share = first.into_share();
        assert!(reads(&bodies, UNCOUNTED + 1).is_err());
        drop(share);
        assert!(reads(&bodies, UNCOUNTED + 600).is_ok());
        drop(second);
        assert!(reads(&bodies, UNCOUNTED + 1000).is_ok() && reads(&bodies, UNCOUNTED + 1001).is_err());
        assert_eq!(bodies.0.available_permits(), 1000);
    }

    #[test]
    fn one_that_is_too_long_is_no_ones_fault() {
        let error = reads(&Bodies::new(1000), MAX_BODY + 1).err().expect("too long");
        assert_eq!(error.kind, ErrorKind::TooLarge);
    }
}

//! A server without a socket: requests and replies within the process, and its scheduler for what no dialect
//! asks for.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{Method, Request};
use tokio::task::AbortHandle;
use tower::ServiceExt;

use super::body::parse;
use super::error::ApiError;
use super::facts::Facts;
use super::openai::Fields;
use super::worker::{Work, Worker};
use super::{Config, Models, Server};
use crate::engine::{self, Sampler};

/// See the module. Its models end with it.
pub struct Local {
    pub(super) runtime: tokio::runtime::Runtime,
    pub(super) server: Arc<Server>,
    pub(super) router: Router,
}

/// How a text is to be continued step by step, as the fields of a completion's request say.
pub struct Continuation {
    pub sampler: Sampler,
    /// Tokens at most; as many as the context holds where not given.
    pub max_tokens: Option<usize>,
    /// Texts that end it.
    pub stop: Vec<String>,
}

/// A part of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// It comes first.
    Head { status: u16, content_type: String },
    /// More of the body.
    Data(Bytes),
}

/// A reply as it comes. Dropped, its request ends.
pub struct Reply {
    pieces: Receiver<Piece>,
    task: AbortHandle,
}

/// How long the models have to end once they are told to.
const LONGEST_END: Duration = Duration::from_secs(10);

impl Local {
    /// A server of these models.
    ///
    /// # Errors
    /// Where no thread can be had.
    pub fn new(config: Config, models: Arc<dyn Models>) -> std::io::Result<Local> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let server = Arc::new(Server::new(config, models));
        let router = server.router();
        Ok(Local { runtime, server, router })
    }

    /// Has a request answered; none where the method or the path is none. Waits for nothing.
    pub fn ask(&self, method: &str, path: &str, body: Vec<u8>) -> Option<Reply> {
        let request = request(Method::from_bytes(method.as_bytes()).ok()?, path, body)?;
        let (sender, pieces) = channel();
        let task = self.runtime.spawn(pass_on(self.router.clone(), request, sender));
        Some(Reply { pieces, task: task.abort_handle() })
    }

    /// The only model, which is loaded where it is not yet.
    fn worker(&self) -> Result<Worker, ApiError> {
        self.runtime.block_on(self.server.registry.get(""))
    }

    /// Loads the only model where it is not loaded yet; what is known of it.
    ///
    /// # Errors
    /// Why it cannot be loaded.
    pub fn facts(&self) -> Result<Arc<Facts>, ApiError> {
        Ok(self.worker()?.facts)
    }

    /// Has something done with the only model's scheduler, between two passes over requests. Where the engine
    /// ends before, it is dropped undone.
    ///
    /// # Errors
    /// Why the model cannot be loaded.
    pub fn with_scheduler(&self, work: Work) -> Result<(), ApiError> {
        self.worker()?.with_scheduler(work);
        Ok(())
    }

    /// Hands a request to the only model, beside those that are asked for in a dialect.
    ///
    /// # Errors
    /// Why the model cannot be loaded, or that its engine has ended. A text that was lent to it is back.
    pub fn go_on(&self, request: engine::Request) -> Result<(), ApiError> {
        self.worker()?.go_on(request)
    }

    /// How the fields of a completion's request, a JSON object, have a text continued.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn continuation(&self, fields: &[u8]) -> Result<Continuation, ApiError> {
        let facts = self.facts()?;
        let ask = parse::<Fields>(fields)?.ask()?;
        Ok(Continuation { sampler: ask.sampler(&facts)?, max_tokens: ask.max_tokens, stop: ask.stop })
    }

    /// Ends all requests and models, and waits for the end, for some seconds at most.
    pub fn close(&self) {
        self.server.registry.close();
        let began = Instant::now();
        while !self.server.registry.is_quiet() && began.elapsed() < LONGEST_END {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.server.registry.close();
    }
}

/// A request within the process; none where the path is no path.
pub(super) fn request(method: Method, path: &str, body: Vec<u8>) -> Option<Request<Body>> {
    let request = Request::builder().method(method).uri(path).header(HOST, "localhost");
    request.body(Body::from(body)).ok()
}

/// Sends what a request is answered with, until nobody takes it.
async fn pass_on(router: Router, request: Request<Body>, sender: Sender<Piece>) {
    let Ok(response) = router.oneshot(request).await;
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|ty| ty.to_str().ok());
    let content_type = content_type.unwrap_or_default().to_owned();
    let mut sent = sender.send(Piece::Head { status: response.status().as_u16(), content_type });
    let mut body = response.into_body();
    while sent.is_ok() {
        let frame = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        let Some(Ok(frame)) = frame else { return };
        sent = frame.into_data().map_or(Ok(()), |data| sender.send(Piece::Data(data)));
    }
}

impl Reply {
    /// What comes within this time, if anything does; none at the end.
    pub fn next_within(&self, time: Duration) -> Poll<Option<Piece>> {
        match self.pieces.recv_timeout(time) {
            Ok(piece) => Poll::Ready(Some(piece)),
            Err(RecvTimeoutError::Timeout) => Poll::Pending,
            Err(RecvTimeoutError::Disconnected) => Poll::Ready(None),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.task.abort();
    }
}

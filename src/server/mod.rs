//! FACE: the HTTP server. One file or folder an API dialect; all of them have requests answered by
//! [`Server::ask`].
//!
//! - `models` loads models when they are asked for; `worker` runs one on a thread of its own.
//! - `ask` is a request as all dialects have it, `prompt` what the model reads of it and what the answer has to
//!   be, `answer` what comes of it, `stream` has it written while it comes.
//! - `access` says who may ask; `connections` are taken on, and ended with the server.
//! - `local` is a server without a socket, for programs that have this library within them; `many` has the
//!   requests of a [`batch`] answered by it.
//! - `native` and `residency` are what no dialect has, `page` is the page to chat in.
//!
//! An answer depends on the model, the request and its seed alone.

mod access;
mod answer;
mod anthropic;
mod ask;
mod body;
mod connections;
mod error;
mod facts;
mod local;
mod many;
mod metrics;
mod models;
mod native;
mod ollama;
mod openai;
mod page;
mod prompt;
mod residency;
mod stream;
mod tools;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::HeaderValue;
use axum::http::header::{HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;

use crate::text::Conversation;
pub use access::Access;
use body::Bodies;
pub use error::{ApiError, ErrorKind, MORE_ROOM};
pub use facts::{Facts, Template};
pub use local::{Continuation, Local, Piece, Reply};
pub use many::{Answered, Asked};
use metrics::Metrics;
use models::Registry;
pub use models::{Described, Listed, Models, NotOpened};
pub use openai::batch;
pub use worker::{Opened, Work};

/// Runs a chat template's source over a conversation, where it can do no harm.
pub type Render = Arc<dyn Fn(&str, &Conversation) -> Result<String, String> + Send + Sync>;

/// How a server is run.
pub struct Config {
    pub address: SocketAddr,
    pub access: Access,
    /// Requests that may wait for a model beside those that run.
    pub queue: usize,
    /// Whether any name of a model means the only one that there is.
    pub any_name: bool,
    /// How long running answers have to end once the server is told to.
    pub drain: Duration,
    pub render: Render,
}

/// A server at work.
pub struct Server {
    config: Config,
    registry: Registry,
    metrics: Metrics,
    bodies: Bodies,
}

/// Bytes of the longest body of a request.
const MAX_BODY: usize = 32 << 20;

/// Serves until it is told to end by a signal. `listening` is told the address.
///
/// # Errors
/// Where the address cannot be had.
pub fn serve(
    config: Config,
    models: Arc<dyn Models>,
    listening: impl FnOnce(SocketAddr),
) -> std::io::Result<()> {
    // The engine has the cores; a request takes little.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let server = Arc::new(Server::new(config, models));
    let served = runtime.block_on(connections::serve(server, listening));
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

impl Server {
    fn new(config: Config, models: Arc<dyn Models>) -> Server {
        let registry = Registry::new(models, config.any_name, config.queue);
        Server { config, registry, metrics: Metrics::new(), bodies: Bodies::default() }
    }

    /// All that can be asked for.
    fn router(self: &Arc<Server>) -> Router {
        let router = Router::new()
            .merge(native::routes())
            .merge(residency::routes())
            .merge(openai::routes())
            .merge(anthropic::routes())
            .merge(ollama::routes())
            .merge(page::routes())
            .fallback(native::not_found)
            .method_not_allowed_fallback(native::method_not_allowed)
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .layer(from_fn_with_state(Arc::clone(self), guard));
        router.with_state(Arc::clone(self))
    }
}

/// Lets those through who may ask.
async fn guard(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let access = &server.config.access;
    let known = access.check_host(request.uri(), request.headers());
    let checked = known.and_then(|()| access.check_origin(request.headers())).and_then(|()| {
        let open = path == "/health" || page::is_page(path);
        if open { Ok(()) } else { access.check_key(request.headers()) }
    });
    let mut response = match checked {
        Ok(()) => next.run(request).await,
        Err(error) => native::error(path, error),
    };
    if response.status().as_u16() >= 400 {
        server.metrics.refused(response.status());
    }
    const HEADERS: [(HeaderName, HeaderValue); 2] = [
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    response.headers_mut().extend(HEADERS.map(|(name, value)| (Some(name), value)));
    response
}

//! Many requests to a server without a socket, as a batch has them.

use std::ops::ControlFlow;
use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::http::{Method, StatusCode};
use tokio::task::JoinSet;
use tower::ServiceExt;

use super::local::{Local, request};

/// A request of many.
#[derive(Debug)]
pub struct Asked {
    /// Which one it is to whoever asks.
    pub number: usize,
    pub path: String,
    pub body: Vec<u8>,
}

/// What it came to.
#[derive(Debug)]
pub struct Answered {
    pub number: usize,
    pub status: u16,
    pub body: Vec<u8>,
}

/// How long nothing is told of.
const TICK: Duration = Duration::from_millis(100);
/// Until a request that found no room is tried again.
const AGAIN: Duration = Duration::from_millis(50);

impl Local {
    /// Tokens that all models have made so far.
    pub fn tokens_made(&self) -> u64 {
        self.server.registry.workers().iter().map(|worker| worker.status().done.made).sum()
    }

    /// Has requests answered, so many at a time, in any order. `tell` is told of every answer, and of nothing
    /// (`None`) now and then; where it breaks off, what is under way is given up.
    pub fn answer_all(
        &self,
        at_once: usize,
        requests: impl IntoIterator<Item = Asked>,
        mut tell: impl FnMut(Option<Answered>) -> ControlFlow<()>,
    ) {
        let mut requests = requests.into_iter().fuse();
        self.runtime.block_on(async {
            let (mut under_way, mut tick) = (JoinSet::new(), tokio::time::interval(TICK));
            loop {
                while under_way.len() < at_once.max(1)
                    && let Some(asked) = requests.next()
                {
                    under_way.spawn(answer(self.router.clone(), asked));
                }
                let told = tokio::select! {
                    next = under_way.join_next() => match next {
                        None => return,
                        Some(Ok(answered)) => tell(Some(answered)),
                        Some(Err(failed)) => std::panic::resume_unwind(failed.into_panic()),
                    },
                    _ = tick.tick() => tell(None),
                };
                if told.is_break() {
                    // The tasks end with their set.
                    return;
                }
            }
        });
    }
}

/// The status and the body that a body is answered with; none where the path is no path.
async fn post(router: &Router, path: &str, body: Vec<u8>) -> Option<(StatusCode, Vec<u8>)> {
    let Ok(response) = router.clone().oneshot(request(Method::POST, path, body)?).await;
    let status = response.status();
    Some((status, to_bytes(response.into_body(), usize::MAX).await.ok()?.to_vec()))
}

/// Has a request answered, as soon as there is room for it.
async fn answer(router: Router, asked: Asked) -> Answered {
    let Asked { number, path, body } = asked;
    loop {
        match post(&router, &path, body.clone()).await {
            Some((StatusCode::SERVICE_UNAVAILABLE, _)) => tokio::time::sleep(AGAIN).await,
            Some((status, body)) => return Answered { number, status: status.as_u16(), body },
            None => return Answered { number, status: 400, body: Vec::new() },
        }
    }
}

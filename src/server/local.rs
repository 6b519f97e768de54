//! A server without a socket: requests and replies within the process.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use axum::http::header::HOST;
use tower::ServiceExt;

use super::{Config, Models, Server};

/// See the module. Its models end with it.
pub struct Local {
    pub(super) runtime: tokio::runtime::Runtime,
    pub(super) server: Arc<Server>,
    pub(super) router: Router,
}

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

    /// The status and the body that a body is answered with; none where the path is no path.
    pub fn post(&self, path: &str, body: Vec<u8>) -> Option<(u16, Vec<u8>)> {
        let request = Request::post(path).header(HOST, "localhost").body(Body::from(body)).ok()?;
        self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.ok()?;
            let status = response.status().as_u16();
            Some((status, to_bytes(response.into_body(), usize::MAX).await.ok()?.to_vec()))
        })
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.server.registry.close();
    }
}

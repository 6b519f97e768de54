//! The page at `/`: a chat, in files that are part of the program.

use std::sync::Arc;

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::Server;

/// Path, type and content of each file.
const FILES: &[(&str, &str, &str)] = &[];

/// Nothing that a model writes runs, and nothing is loaded from elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Whether a path is one of the page's files.
pub fn is_page(path: &str) -> bool {
    FILES.iter().any(|(known, ..)| *known == path)
}

pub fn routes() -> Router<Arc<Server>> {
    FILES.iter().fold(Router::new(), |router, &(path, ty, content)| {
        router.route(path, get(move || async move { file(ty, content) }))
    })
}

fn file(ty: &'static str, content: &'static str) -> Response {
    let headers = [(CONTENT_TYPE, ty), (CONTENT_SECURITY_POLICY, POLICY), (CACHE_CONTROL, "no-cache")];
    (headers, content).into_response()
}

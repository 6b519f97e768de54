//! The page at `/`: a chat, in files that are part of the program.

use std::sync::Arc;

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::Server;
use crate::show::PICTURES_CSS;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

/// Path, type and content of each file.
const FILES: &[(&str, &str, &str)] = &[
    ("/", HTML, include_str!("page/index.html")),
    ("/page/style.css", CSS, include_str!("page/style.css")),
    ("/page/pictures.css", CSS, PICTURES_CSS),
    ("/page/theme.js", JS, include_str!("page/theme.js")),
    ("/page/app.js", JS, include_str!("page/app.js")),
    ("/page/client.js", JS, include_str!("page/client.js")),
    ("/page/conversations.js", JS, include_str!("page/conversations.js")),
    ("/page/dom.js", JS, include_str!("page/dom.js")),
    ("/page/highlight.js", JS, include_str!("page/highlight.js")),
    ("/page/inline.js", JS, include_str!("page/inline.js")),
    ("/page/markdown.js", JS, include_str!("page/markdown.js")),
    ("/page/residency.js", JS, include_str!("page/residency.js")),
    ("/page/store.js", JS, include_str!("page/store.js")),
    ("/page/view.js", JS, include_str!("page/view.js")),
];

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses that a text names in quotes, as `prefix` and what follows up to the quote.
    fn named<'a>(text: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        text.split('"').filter_map(move |part| part.strip_prefix(prefix))
    }

    #[test]
    fn every_file_that_the_page_names_is_served() {
        for (path, _, content) in FILES {
            let prefix = if *path == "/" { "page/" } else { "./" };
            let missing: Vec<&str> =
                named(content, prefix).filter(|name| !is_page(&format!("/page/{name}"))).collect();
            assert!(missing.is_empty(), "{path} names {missing:?}");
        }
        let modules: usize = FILES.iter().map(|(_, _, content)| named(content, "./").count()).sum();
        assert!(modules >= FILES.len() - 5, "only {modules} imports were found");
        assert!(!is_page("/page/other.js") && !is_page("/page/") && !is_page("/v1/models"));
    }
}

//! What is wrong with a request, or has gone wrong with it; each dialect writes it in its own way.

use std::fmt;

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

/// What makes room where kept texts take all.
pub const MORE_ROOM: &str =
    "drop sessions, or open the model with a smaller type of kv= or memory for more texts by parallel=";

/// A request that is not answered, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub kind: ErrorKind,
    pub message: String,
    /// The field of the request that it is about.
    pub field: Option<String>,
}

/// Of which kind an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request makes no sense.
    Invalid,
    /// It asks for what there is not.
    Unsupported,
    /// Its path is one of the API's, but leads nowhere here.
    NotImplemented,
    /// Its prompt does not fit the context.
    ContextLength {
        tokens: usize,
        context: usize,
    },
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    /// There is no such model.
    NoModel,
    TooLarge,
    /// The client took too long.
    Timeout,
    /// Too many requests wait.
    Overloaded,
    /// The server is being shut down.
    ShuttingDown,
    /// What is kept within the process leaves no memory for it.
    NoRoom,
    /// Our own, or the model's.
    Internal,
}

impl ErrorKind {
    pub fn status(self) -> StatusCode {
        match self {
            ErrorKind::Invalid | ErrorKind::Unsupported | ErrorKind::ContextLength { .. } => {
                StatusCode::BAD_REQUEST
            }
            ErrorKind::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
            ErrorKind::Forbidden => StatusCode::FORBIDDEN,
            ErrorKind::NotFound | ErrorKind::NoModel => StatusCode::NOT_FOUND,
            ErrorKind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::Timeout => StatusCode::REQUEST_TIMEOUT,
            ErrorKind::Overloaded | ErrorKind::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::NoRoom => StatusCode::INSUFFICIENT_STORAGE,
            ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Seconds after which another try may do better.
    pub fn retry_after(self) -> Option<u32> {
        match self {
            ErrorKind::Overloaded => Some(1),
            ErrorKind::ShuttingDown => Some(10),
            _ => None,
        }
    }
}

impl ApiError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> ApiError {
        ApiError { kind, message: message.into(), field: None }
    }

    /// A field of the request that makes no sense.
    pub fn invalid(field: impl Into<String>, message: impl fmt::Display) -> ApiError {
        let field = field.into();
        ApiError { kind: ErrorKind::Invalid, message: format!("{field}: {message}"), field: Some(field) }
    }

    /// A field of the request that asks for what there is not.
    pub fn unsupported(field: impl Into<String>, message: impl fmt::Display) -> ApiError {
        ApiError { kind: ErrorKind::Unsupported, ..ApiError::invalid(field, message) }
    }

    pub fn internal(message: impl fmt::Display) -> ApiError {
        ApiError::new(ErrorKind::Internal, message.to_string())
    }

    /// No memory is left for it; with what can be done about that.
    pub fn no_room(message: impl fmt::Display) -> ApiError {
        ApiError::new(ErrorKind::NoRoom, format!("{message}; {MORE_ROOM}"))
    }

    /// The response that tells of it, in the words of a dialect.
    pub fn response(&self, body: Value) -> Response {
        let mut response = (self.kind.status(), Json(body)).into_response();
        if let Some(seconds) = self.kind.retry_after() {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }

    /// A prompt that does not fit. The words are those by which agents know that they have to shorten it.
    pub fn context_length(tokens: usize, context: usize) -> ApiError {
        let message = format!(
            "This model's maximum context length is {context} tokens. However, your messages resulted in \
             {tokens} tokens. Please reduce the length of the messages."
        );
        ApiError::new(ErrorKind::ContextLength { tokens, context }, message)
    }
}

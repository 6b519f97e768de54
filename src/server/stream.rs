//! Answers written while they come.

use super::answer::{Answer, Delta, SIGN_OF_LIFE, Timings, Waited};
use super::body::Pieces;
use super::error::ApiError;

/// How a dialect writes an answer: each returns the text that is sent, which may be none.
pub trait Writer {
    /// Before anything has come.
    fn begin(&mut self) -> String;

    /// While nothing comes: a sign of life.
    fn still(&mut self) -> String;

    /// For what has come; [`Delta::Done`] comes last.
    fn delta(&mut self, delta: Delta, timings: &Timings) -> String;

    /// For what has gone wrong; nothing comes after that.
    fn error(&mut self, error: &ApiError) -> String;
}

/// Sends the first of the answers as `writer` writes it.
pub async fn write(mut answer: Answer, mut writer: impl Writer, pieces: Pieces) {
    let mut text = writer.begin();
    loop {
        if !text.is_empty() && !pieces.raw(text).await {
            return;
        }
        text = match answer.next_within(SIGN_OF_LIFE).await {
            Waited::Still => writer.still(),
            Waited::Next(Some(Ok((_, delta)))) => writer.delta(delta, &answer.timings()),
            Waited::Next(Some(Err(error))) => {
                pieces.raw(writer.error(&error)).await;
                return;
            }
            Waited::Next(None) => return,
        };
    }
}

/// Has a writer take all of an answer.
///
/// # Errors
/// What has gone wrong with it.
pub async fn take(mut answer: Answer, writer: &mut impl Writer) -> Result<(), ApiError> {
    answer.hold_calls();
    while let Some(next) = answer.next().await {
        let (_, delta) = next?;
        writer.delta(delta, &answer.timings());
    }
    Ok(())
}

/// A server-sent event of this name.
pub fn event(name: &str, data: &serde_json::Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

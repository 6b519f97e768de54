//! A bar over bytes that are read, for commands that read whole models.

use std::fmt;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::output;

/// A bar over so many bytes, on a terminal's stderr alone.
pub fn new(what: &'static str, bytes: u64) -> ProgressBar {
    let template = format!("{what} {{bar:30}} {{done}} of {{all}}, {{rate}}, {{eta}} left");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    // There is nobody to tell of a failure to write.
    let style = style
        .with_key("done", |state: &ProgressState, out: &mut dyn fmt::Write| {
            let _ = out.write_str(&output::bytes(state.pos()));
        })
        .with_key("all", |state: &ProgressState, out: &mut dyn fmt::Write| {
            let _ = out.write_str(&output::bytes(state.len().unwrap_or(0)));
        })
        .with_key("rate", |state: &ProgressState, out: &mut dyn fmt::Write| {
            let _ = write!(out, "{}/s", output::bytes(state.per_sec() as u64));
        });
    ProgressBar::new(bytes).with_style(style)
}

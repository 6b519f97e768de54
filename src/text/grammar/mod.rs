//! Grammars that an answer has to obey: JSON schemas, regular expressions, Lark and GBNF.
//!
//! The crate `llguidance` says after each token which tokens may come next; [`GrammarFactory`] gives it a
//! file's own vocabulary, [`Constraint`] is a grammar at work on one answer. GBNF is turned into Lark
//! (`gbnf`).

mod constraint;
mod factory;
mod gbnf;
mod places;
#[cfg(test)]
mod tests;
mod trie;

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use super::TextError;
pub use constraint::{Constraint, TokenMask};
pub use factory::GrammarFactory;

/// Bytes of the longest grammar, and of the longest JSON schema.
const MAX_BYTES: usize = 128 << 10;
const MAX_SCHEMA_BYTES: usize = 1 << 20;

/// Levels that a JSON schema may be nested: what a parser of JSON text allows.
const MAX_DEPTH: usize = 128;

/// White space between the parts of a JSON text: none, a space, or a line end with its indentation. Without
/// an end to it a small model may go on with white space for ever.
const WHITE_SPACE: &str = r" |\r?\n[ \t]{0,40}";

/// What an answer has to be. It is compiled, and refused where it is wrong, by
/// [`GrammarFactory::constraint`].
#[derive(Clone, Debug, PartialEq)]
pub struct Grammar(Source);

#[derive(Clone, Debug, PartialEq)]
enum Source {
    Schema(Value),
    Regex(String),
    Lark(String),
    /// The Lark that GBNF became.
    Gbnf(String),
}

impl Grammar {
    /// JSON that a schema describes (as llguidance reads JSON Schema: drafts 4 to 2020-12; what it does not
    /// support is refused, never ignored). Properties come in the order of the schema.
    ///
    /// # Errors
    /// A schema that is no object or boolean, that is nested too deeply, or has over 1 MiB.
    pub fn json_schema(schema: &Value) -> Result<Grammar, TextError> {
        const KIND: &str = "JSON schema";
        let refused = |reason: String| TextError::Grammar { kind: KIND, reason };
        if !schema.is_object() && !schema.is_boolean() {
            return Err(refused("it is neither an object nor a boolean".to_owned()));
        }
        let len = size(schema, MAX_DEPTH).ok_or_else(|| refused(format!("over {MAX_DEPTH} levels deep")))?;
        check_len(KIND, len, MAX_SCHEMA_BYTES)?;
        // References would be read against another base than the schema's.
        if let Some(place) = places::with_id(schema) {
            return Err(refused(format!("a part has its own $id (at {place}), which is not supported")));
        }
        Ok(Grammar(Source::Schema(schema.clone())))
    }

    /// Any JSON object.
    pub fn json_object() -> Grammar {
        Grammar(Source::Schema(json!({ "type": "object" })))
    }

    /// Text that a regular expression matches from its beginning to its end (the syntax of the crate `regex`,
    /// without anchors and look-around).
    ///
    /// # Errors
    /// One of over 128 KiB.
    pub fn regex(regex: &str) -> Result<Grammar, TextError> {
        check_len("regular expression", regex.len(), MAX_BYTES)?;
        Ok(Grammar(Source::Regex(regex.to_owned())))
    }

    /// A grammar in llguidance's variant of Lark, which begins with the rule `start`. It may name control
    /// tokens (`<|name|>`, `<[id]>`).
    ///
    /// # Errors
    /// One of over 128 KiB, and the option `allow_invalid_utf8`: an answer is text.
    pub fn lark(lark: &str) -> Result<Grammar, TextError> {
        const KIND: &str = "Lark grammar";
        check_len(KIND, lark.len(), MAX_BYTES)?;
        if lark.contains("allow_invalid_utf8") {
            let reason = "allow_invalid_utf8 is not supported: an answer is text".to_owned();
            return Err(TextError::Grammar { kind: KIND, reason });
        }
        Ok(Grammar(Source::Lark(lark.to_owned())))
    }

    /// A grammar in llama.cpp's GBNF, which begins with the rule `root`.
    ///
    /// # Errors
    /// What is wrong, or not supported (tokens), with line and column; one of over 128 KiB, or that becomes
    /// too large.
    pub fn gbnf(gbnf: &str) -> Result<Grammar, TextError> {
        Ok(Grammar(Source::Gbnf(gbnf::to_lark(gbnf)?)))
    }

    /// Whether a text is GBNF rather than Lark: whether it has a rule `root ::=`.
    pub fn is_gbnf(text: &str) -> bool {
        gbnf::looks_like(text)
    }

    /// As the crate takes it.
    fn inner(&self) -> TopLevelGrammar {
        match &self.0 {
            Source::Schema(schema) => TopLevelGrammar::from_json_schema(with_options(schema)),
            Source::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Source::Lark(lark) | Source::Gbnf(lark) => TopLevelGrammar::from_lark(lark.clone()),
        }
    }

    /// The schema that it is.
    fn schema(&self) -> Option<&Value> {
        match &self.0 {
            Source::Schema(schema) => Some(schema),
            _ => None,
        }
    }

    /// Why it was refused, and where.
    fn refused(&self, reason: String, place: Option<String>) -> TextError {
        let kind = match &self.0 {
            Source::Schema(_) => "JSON schema",
            Source::Regex(_) => "regular expression",
            Source::Lark(_) => "Lark grammar",
            Source::Gbnf(_) => "GBNF grammar",
        };
        let at = place.map(|place| format!(" (at {place})")).unwrap_or_default();
        TextError::Grammar { kind, reason: reason + &at }
    }
}

/// A schema with what the crate is to know of the form of the JSON text.
pub(super) fn with_options(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        other => other.clone(),
    };
    if let Some(map) = schema.as_object_mut() {
        map.insert("x-guidance".to_owned(), json!({ "whitespace_pattern": WHITE_SPACE }));
    }
    schema
}

fn check_len(kind: &'static str, len: usize, max: usize) -> Result<(), TextError> {
    match len > max {
        true => Err(TextError::GrammarTooLong { kind, len, max }),
        false => Ok(()),
    }
}

/// About how many bytes a value has as text; `None` where it is nested more deeply than so many levels.
fn size(value: &Value, levels: usize) -> Option<usize> {
    let levels = levels.checked_sub(1)?;
    match value {
        Value::Array(list) => list.iter().try_fold(2, |sum, value| Some(sum + 1 + size(value, levels)?)),
        Value::Object(map) => {
            map.iter().try_fold(2, |sum, (key, value)| Some(sum + key.len() + 4 + size(value, levels)?))
        }
        Value::String(text) => Some(text.len() + 2),
        _ => Some(8),
    }
}

/// Bytes of the longest reason that is shown.
const MAX_REASON: usize = 300;

/// What the crate says is wrong, without what it adds about itself.
fn reason(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let own = ["\n<state>", "\n<non-verbose/>", "\n<backtrace>"];
    let end = own.iter().filter_map(|mark| text.find(mark)).min().unwrap_or(text.len());
    let text = text[..end].split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().find(|&(at, _)| at >= MAX_REASON) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

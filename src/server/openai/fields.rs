//! Fields that requests for chats and for texts have in common.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::ask::{Ask, Sampling};
use super::super::error::ApiError;
use crate::text::{Grammar, TextError};

/// See the module. What is null is not there.
#[derive(Debug, Default, Deserialize)]
pub struct Fields {
    pub model: Option<String>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    repeat_last_n: Option<i64>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<Map<String, Value>>,
    seed: Option<i64>,
    n: Option<usize>,
    stop: Option<OneOrMany>,
    /// What the answer has to be, as llama.cpp and vLLM have it.
    grammar: Option<String>,
    json_schema: Option<Value>,
    guided_json: Option<Value>,
    guided_regex: Option<String>,
    guided_grammar: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub struct StreamOptions {
    include_usage: Option<bool>,
}

/// A text or a list of texts.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Vec<String> {
    fn from(texts: OneOrMany) -> Vec<String> {
        match texts {
            OneOrMany::One(text) => vec![text],
            OneOrMany::Many(texts) => texts,
        }
    }
}

impl Fields {
    pub fn streams(&self) -> bool {
        self.stream == Some(true)
    }

    /// Whether the last piece of a stream tells of its tokens.
    pub fn tells_usage(&self) -> bool {
        self.stream_options.as_ref().is_some_and(|options| options.include_usage == Some(true))
    }

    /// What is added to the logits of tokens, by their ids.
    fn bias(&self) -> Result<Vec<(u32, f32)>, ApiError> {
        let entry = |(id, value): (&String, &Value)| {
            let wrong = |what| ApiError::invalid(format!("logit_bias[{id:?}]"), what);
            let number = match value {
                // To some clients that is a ban.
                Value::Bool(false) => Some(-100.0),
                value => value.as_f64(),
            };
            let id = id.parse().map_err(|_| wrong("the id of a token is needed"))?;
            Ok((id, number.ok_or_else(|| wrong("a number is needed"))? as f32))
        };
        self.logit_bias.iter().flatten().map(entry).collect()
    }

    /// What the answer has to be beside its format.
    fn grammar(&self) -> Result<Option<Grammar>, ApiError> {
        type Made = Result<Grammar, TextError>;
        let text = |text: &String| -> Made {
            if Grammar::is_gbnf(text) { Grammar::gbnf(text) } else { Grammar::lark(text) }
        };
        let wanted: [(&str, Option<Made>); 5] = [
            ("grammar", self.grammar.as_ref().map(text)),
            ("guided_grammar", self.guided_grammar.as_ref().map(text)),
            ("guided_regex", self.guided_regex.as_ref().map(|regex| Grammar::regex(regex))),
            ("json_schema", self.json_schema.as_ref().map(Grammar::json_schema)),
            ("guided_json", self.guided_json.as_ref().map(Grammar::json_schema)),
        ];
        let mut wanted = wanted.into_iter().filter_map(|(field, made)| Some((field, made?)));
        let Some((field, made)) = wanted.next() else { return Ok(None) };
        if let Some((other, _)) = wanted.next() {
            return Err(ApiError::invalid(other, format!("{field} says what the answer has to be")));
        }
        made.map(Some).map_err(|error| ApiError::invalid(field, error))
    }

    /// All but the input.
    ///
    /// # Errors
    /// Numbers that make no sense.
    pub fn ask(&self) -> Result<Ask, ApiError> {
        // To some clients -1 is no limit.
        let limit = |value: Option<i64>| value.filter(|&n| n >= 0).map(|n| n as usize);
        let most = self.max_completion_tokens.or(self.max_tokens);
        let sampling = Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k.map(|k| usize::try_from(k).unwrap_or(0)),
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty.or(self.repetition_penalty),
            repeat_last: limit(self.repeat_last_n),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            bias: self.bias()?,
            seed: self.seed.filter(|&seed| seed != -1).map(|seed| seed as u64),
        };
        if self.n == Some(0) {
            return Err(ApiError::invalid("n", "at least 1 is needed"));
        }
        Ok(Ask {
            model: self.model.clone().unwrap_or_default(),
            sampling,
            max_tokens: limit(most),
            stop: self.stop.clone().map(Vec::from).unwrap_or_default(),
            choices: self.n.unwrap_or(1),
            grammar: self.grammar()?,
            ..Ask::default()
        })
    }
}

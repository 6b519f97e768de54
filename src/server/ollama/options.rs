//! `options`: how tokens are chosen, by Ollama's names.

use serde::Deserialize;

use super::super::ask::Sampling;
use super::super::error::ApiError;
use super::super::openai::OneOrMany;

/// See the module. What says how a model is run (`num_gpu`, `num_thread`, ..) is not for a request to say.
/// `num_ctx` is not looked at either: a prompt that does not fit the server's context is refused, never cut.
#[derive(Debug, Default, Deserialize)]
pub struct Options {
    temperature: Option<f32>,
    top_k: Option<i64>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    seed: Option<i64>,
    num_predict: Option<i64>,
    stop: Option<OneOrMany>,
    repeat_penalty: Option<f32>,
    repeat_last_n: Option<i64>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    mirostat: Option<f32>,
    tfs_z: Option<f32>,
    typical_p: Option<f32>,
}

impl Options {
    /// How tokens are chosen.
    ///
    /// # Errors
    /// What would choose others and is not there, unless it is set to do nothing.
    pub fn sampling(&self) -> Result<Sampling, ApiError> {
        let lacking = [
            ("mirostat", self.mirostat, 0.0),
            ("tfs_z", self.tfs_z, 1.0),
            ("typical_p", self.typical_p, 1.0),
        ];
        for (name, value, neutral) in lacking {
            if value.is_some_and(|value| value != neutral) {
                return Err(ApiError::unsupported(
                    format!("options.{name}"),
                    "this server has no such sampler",
                ));
            }
        }
        let count = |value: i64| usize::try_from(value).unwrap_or(0);
        Ok(Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k.map(count),
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            // -1 is all of the context.
            repeat_last: self.repeat_last_n.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
            seed: self.seed.filter(|&seed| seed != -1).map(|seed| seed as u64),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            bias: Vec::new(),
        })
    }

    /// Tokens of an answer at most; nothing positive is no limit.
    pub fn max_tokens(&self) -> Option<usize> {
        self.num_predict.and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0)
    }

    pub fn stop(&self) -> Vec<String> {
        self.stop.clone().map(Vec::from).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn options(value: Value) -> Options {
        serde_json::from_value(value).expect("options")
    }

    #[test]
    fn options_by_their_names() {
        let made = options(json!({ "temperature": 0, "top_k": 20, "top_p": 0.9, "min_p": 0.1, "seed": 3,
            "num_predict": 7, "stop": ["a"], "repeat_penalty": 1.1, "repeat_last_n": -1,
            "num_ctx": 4096, "num_gpu": 1, "mirostat": 0, "typical_p": 1.0,
            "presence_penalty": 0.5, "frequency_penalty": 0.25 }));
        let sampling = Sampling {
            temperature: Some(0.0),
            top_p: Some(0.9),
            top_k: Some(20),
            min_p: Some(0.1),
            repeat_penalty: Some(1.1),
            repeat_last: Some(usize::MAX),
            seed: Some(3),
            presence_penalty: Some(0.5),
            frequency_penalty: Some(0.25),
            bias: Vec::new(),
        };
        assert_eq!(made.sampling(), Ok(sampling));
        assert_eq!((made.max_tokens(), made.stop()), (Some(7), vec!["a".to_owned()]));
        let free = options(json!({ "num_predict": -1, "seed": -1, "stop": "x", "top_k": -5 }));
        assert_eq!(free.sampling(), Ok(Sampling { top_k: Some(0), ..Sampling::default() }));
        assert_eq!((free.max_tokens(), free.stop()), (None, vec!["x".to_owned()]));
    }

    #[test]
    fn samplers_that_are_not_there_are_named() {
        for name in ["mirostat", "tfs_z", "typical_p"] {
            let error = options(json!({ name: 0.5 })).sampling().unwrap_err();
            assert_eq!(error.field, Some(format!("options.{name}")));
        }
    }
}

//! How tokens are chosen, in numbers.

use serde::Serialize;
use thiserror::Error;

/// How tokens are chosen. The chain runs in the order of the fields.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SamplerConfig {
    /// Added to the logits of tokens (OpenAI's `logit_bias`); a token's biases add up.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bias: Vec<(u32, f32)>,
    /// Tokens among the last [`SamplerConfig::repeat_last`] have positive logits divided and negative ones
    /// multiplied by this; 1 does nothing.
    pub repeat_penalty: f32,
    /// How far back the penalty looks, tokens.
    pub repeat_last: usize,
    /// Taken off the logits of tokens that the answer has (not the prompt), as OpenAI defines it:
    /// `logit -= presence_penalty + count * frequency_penalty`; 0 does nothing.
    #[serde(skip_serializing_if = "is_0")]
    pub presence_penalty: f32,
    /// Taken off once for each time that the answer has the token.
    #[serde(skip_serializing_if = "is_0")]
    pub frequency_penalty: f32,
    /// Keeps the k most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest tokens whose probabilities reach this; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as probable as the most probable; 0 keeps all.
    pub min_p: f32,
    /// Divides the logits before the draw; 0 takes the most probable token.
    pub temperature: f32,
    /// Of the generator.
    pub seed: u64,
}

impl SamplerConfig {
    /// The most probable token, always.
    pub fn greedy() -> SamplerConfig {
        SamplerConfig {
            bias: Vec::new(),
            repeat_penalty: 1.0,
            repeat_last: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            temperature: 0.0,
            seed: 0,
        }
    }
}

/// A number of a [`SamplerConfig`] that tokens cannot be chosen by.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("{field} is {value}, where a number {wanted} is needed")]
pub struct SamplerError {
    pub field: &'static str,
    pub value: f32,
    pub wanted: &'static str,
}

impl SamplerConfig {
    /// Whether tokens can be chosen by it.
    ///
    /// # Errors
    /// The first number outside its range; none may be infinite or NaN.
    pub fn check(&self) -> Result<(), SamplerError> {
        let fraction = |value: f32| (0.0..=1.0).contains(&value);
        let (moderate, range) = (|value: f32| value.abs() <= MAX_ADDED, "from -100 to 100");
        let bias = self.bias.iter().map(|&(_, value)| ("bias", value, range, moderate(value)));
        let checks = [
            ("repeat_penalty", self.repeat_penalty, "above 0", self.repeat_penalty > 0.0),
            ("presence_penalty", self.presence_penalty, range, moderate(self.presence_penalty)),
            ("frequency_penalty", self.frequency_penalty, range, moderate(self.frequency_penalty)),
            ("top_p", self.top_p, "from 0 to 1", fraction(self.top_p)),
            ("min_p", self.min_p, "from 0 to 1", fraction(self.min_p)),
            ("temperature", self.temperature, "of at least 0", self.temperature >= 0.0),
        ];
        let wrong = bias.chain(checks).find(|(_, value, _, fits)| !fits || !value.is_finite());
        wrong.map_or(Ok(()), |(field, value, wanted, _)| Err(SamplerError { field, value, wanted }))
    }
}

/// What is added to a logit at most, but for a frequency's count: OpenAI's bound of a bias.
const MAX_ADDED: f32 = 100.0;

fn is_0(value: &f32) -> bool {
    *value == 0.0
}

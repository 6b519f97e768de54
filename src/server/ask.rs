//! A request as all dialects have it: what to continue and how, made into work for an engine.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::Server;
use super::answer::Answer;
use super::error::{ApiError, ErrorKind};
use super::facts::Facts;
use super::worker::{Choice, Worker};
use crate::engine::{Sampler, SamplerConfig, SamplerError};
use crate::text::{Conversation, EncodeOptions, Message};

/// Most answers to one request.
pub const MAX_CHOICES: usize = 128;
/// Most texts that end an answer, and the longest of them in bytes.
const MAX_STOPS: usize = 64;
const MAX_STOP: usize = 4096;
/// Most messages of a conversation.
const MAX_MESSAGES: usize = 10_000;

/// See the module. Fields are named in errors as the dialect calls them, by `names`.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    pub model: String,
    pub input: Input,
    pub sampling: Sampling,
    /// Tokens of an answer at most; as many as the context holds where not given.
    pub max_tokens: Option<usize>,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// For each token, the log-probabilities of so many of the most probable ones.
    pub logprobs: Option<usize>,
    /// Answers; with seeds one after another.
    pub choices: usize,
}

/// What is to be continued.
#[derive(Clone, Debug)]
pub enum Input {
    Chat(Chat),
    Text(String),
    Tokens(Vec<u32>),
}

impl Default for Input {
    fn default() -> Input {
        Input::Text(String::new())
    }
}

/// A conversation to answer.
#[derive(Clone, Debug, Default)]
pub struct Chat {
    pub messages: Vec<Message>,
    /// What the template is told beside them.
    pub settings: Map<String, Value>,
}

/// How tokens are chosen, where a request says so.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<usize>,
    pub min_p: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub repeat_last: Option<usize>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    /// Added to the logits of tokens.
    pub bias: Vec<(u32, f32)>,
    pub seed: Option<u64>,
}

impl Sampling {
    /// The sampler's configuration, with what a model's faces say of the rest; the seed is random where
    /// nobody gives one.
    fn config(&self, facts: &Facts) -> SamplerConfig {
        let draws = [self.temperature, self.top_p, self.min_p].iter().any(Option::is_some)
            || self.top_k.is_some()
            || self.seed.is_some();
        let base = if draws { &facts.drawing } else { &facts.sampling };
        SamplerConfig {
            bias: self.bias.clone(),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(base.frequency_penalty),
            repeat_penalty: self.repeat_penalty.unwrap_or(base.repeat_penalty),
            repeat_last: self.repeat_last.unwrap_or(base.repeat_last),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            temperature: self.temperature.unwrap_or(base.temperature),
            seed: self.seed.unwrap_or_else(random_seed),
        }
    }
}

fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // 32 bits survive every client's numbers.
    RandomState::new().hash_one(std::process::id()) & u64::from(u32::MAX)
}

/// A prompt as the model reads it.
pub struct Prompt {
    pub tokens: Vec<u32>,
    /// As text, where it was one.
    pub text: String,
    /// What ends an answer to it beside what the request says.
    pub stops: Vec<String>,
}

impl Server {
    /// Has a request answered.
    ///
    /// # Errors
    /// What is wrong with it, that too many wait, or that the model cannot be loaded.
    pub async fn ask(self: &Arc<Server>, ask: Ask) -> Result<Answer, ApiError> {
        check(&ask)?;
        let worker = self.registry.get(&ask.model).await?;
        let sampling = ask.sampling.config(&worker.facts);
        let sampler = |n: usize| {
            let config = SamplerConfig { seed: sampling.seed.wrapping_add(n as u64), ..sampling.clone() };
            Sampler::new(config).map_err(wrong_number)
        };
        let samplers = (0..ask.choices.max(1)).map(sampler).collect::<Result<Vec<_>, _>>()?;
        let prompt = self.prompt(&worker, ask.input).await?;
        let room = room(&prompt.tokens, &worker.facts)?;
        let max_tokens = ask.max_tokens.unwrap_or(usize::MAX).min(room);
        let choice =
            |sampler| Choice { prompt: prompt.tokens.clone(), sampler, max_tokens, logprobs: ask.logprobs };
        let events = worker.submit(samplers.into_iter().map(choice).collect())?;
        let stops = ask.stop.into_iter().chain(prompt.stops).collect();
        self.metrics.asked(&worker.facts.name);
        Ok(Answer::new(
            Arc::clone(self),
            &worker,
            events,
            ask.choices.max(1),
            &prompt.text,
            stops,
            sampling.seed,
        ))
    }

    /// The prompt of an input.
    ///
    /// # Errors
    /// What the template raises; what is no text of the vocabulary; none at all.
    pub async fn prompt(self: &Arc<Server>, worker: &Worker, input: Input) -> Result<Prompt, ApiError> {
        let (server, facts) = (Arc::clone(self), Arc::clone(&worker.facts));
        // A template runs in a process of its own, and a long text takes a while.
        let made = tokio::task::spawn_blocking(move || server.make_prompt(&facts, input));
        made.await.map_err(|_| ApiError::internal("the prompt could not be made"))?
    }

    fn make_prompt(&self, facts: &Facts, input: Input) -> Result<Prompt, ApiError> {
        let tokenizer = &facts.tokenizer;
        let invalid = |error: crate::text::TextError| ApiError::new(ErrorKind::Invalid, error.to_string());
        let (tokens, text, stops) = match input {
            Input::Chat(chat) => {
                let text = self.render(facts, &chat)?;
                let tokens = tokenizer.encode_chat(&text).map_err(invalid)?;
                let stops = facts.template.as_ref().map(|template| template.stops.clone());
                (tokens, text, stops.unwrap_or_default())
            }
            Input::Text(text) => {
                let options = EncodeOptions { add_special: true, parse_special: true };
                (tokenizer.encode(&text, options).map_err(invalid)?, text, Vec::new())
            }
            Input::Tokens(tokens) => {
                if let Some(id) = tokens.iter().find(|&&id| id as usize >= facts.vocab) {
                    let message = format!("token {id} is outside the vocabulary of {}", facts.vocab);
                    return Err(ApiError::invalid("prompt", message));
                }
                (tokens, String::new(), Vec::new())
            }
        };
        if tokens.is_empty() {
            return Err(ApiError::new(ErrorKind::Invalid, "the prompt is empty"));
        }
        Ok(Prompt { tokens, text, stops })
    }

    /// A conversation as the model's template writes it.
    ///
    /// # Errors
    /// Where there is no template, or it raises an error.
    pub fn render(&self, facts: &Facts, chat: &Chat) -> Result<String, ApiError> {
        let Some(template) = &facts.template else {
            let message =
                format!("model {} has no chat template: /v1/completions continues texts", facts.name);
            return Err(ApiError::new(ErrorKind::Unsupported, message));
        };
        let mut conversation = Conversation::new(&chat.messages, true, &facts.tokenizer);
        for (name, value) in &chat.settings {
            conversation = conversation.with_setting(name.clone(), value.clone());
        }
        (self.config.render)(&template.source, &conversation).map_err(|error| ApiError {
            field: Some("messages".to_owned()),
            ..ApiError::new(ErrorKind::Invalid, error)
        })
    }
}

/// Tokens that an answer may have.
fn room(prompt: &[u32], facts: &Facts) -> Result<usize, ApiError> {
    match facts.context.checked_sub(prompt.len()) {
        Some(room @ 1..) => Ok(room),
        _ => Err(ApiError::context_length(prompt.len(), facts.context)),
    }
}

/// What makes no sense whatever the model.
fn check(ask: &Ask) -> Result<(), ApiError> {
    if ask.choices > MAX_CHOICES {
        return Err(ApiError::invalid("n", format!("at most {MAX_CHOICES} answers can be had")));
    }
    if ask.stop.len() > MAX_STOPS || ask.stop.iter().any(|stop| stop.len() > MAX_STOP) {
        let most = format!("at most {MAX_STOPS} texts of {MAX_STOP} bytes can end an answer");
        return Err(ApiError::invalid("stop", most));
    }
    if ask.stop.iter().any(String::is_empty) {
        return Err(ApiError::invalid("stop", "an empty text cannot end an answer"));
    }
    if ask.max_tokens == Some(0) {
        return Err(ApiError::invalid("max_tokens", "at least 1 is needed"));
    }
    match &ask.input {
        Input::Chat(chat) if chat.messages.is_empty() => {
            Err(ApiError::invalid("messages", "there is nothing to answer"))
        }
        Input::Chat(chat) if chat.messages.len() > MAX_MESSAGES => {
            Err(ApiError::invalid("messages", format!("there are more than {MAX_MESSAGES}")))
        }
        _ => Ok(()),
    }
}

fn wrong_number(error: SamplerError) -> ApiError {
    ApiError::invalid(error.field, format!("a number {} is needed", error.wanted))
}

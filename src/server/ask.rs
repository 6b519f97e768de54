//! A request as all dialects have it: what to continue and how, made into work for an engine.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::Server;
use super::answer::{Answer, Told};
use super::error::ApiError;
use super::facts::Facts;
use super::prompt::Held;
use super::worker::Choice;
use crate::engine::{Sampler, SamplerConfig, SamplerError};
use crate::text::{Grammar, Message};

/// Most answers to one request.
pub const MAX_CHOICES: usize = 128;
/// Most texts that end an answer, and the longest of them in bytes.
const MAX_STOPS: usize = 64;
const MAX_STOP: usize = 4096;
/// Most messages of a conversation.
const MAX_MESSAGES: usize = 10_000;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    pub model: String,
    pub input: Input,
    /// Texts that are continued beside it, each as if it had been asked for alone.
    pub others: Vec<Input>,
    /// Whether the texts themselves are given back; with `logprobs` how probable their tokens are, too.
    pub echo: bool,
    pub sampling: Sampling,
    /// Tokens of an answer at most; as many as the context holds where not given.
    pub max_tokens: Option<usize>,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// For each token, the log-probabilities of so many of the most probable ones.
    pub logprobs: Option<usize>,
    /// Answers to each text; with seeds one after another.
    pub choices: usize,
    /// JSON that an answer has to be: of this schema, or any object where it is `{}`.
    pub format: Option<Value>,
    /// What it has to be otherwise.
    pub grammar: Option<Grammar>,
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
    /// Functions that may be called, as OpenAI's chats have them.
    pub tools: Vec<Value>,
    pub tool_choice: ToolChoice,
    /// Whether several may be called at a time, where a request says so.
    pub parallel_tool_calls: Option<bool>,
    /// An answer that has begun and is to be continued.
    pub begun: Option<Message>,
}

/// Whether tools are to be called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As the model likes.
    #[default]
    Auto,
    None,
    /// At least one.
    Required,
    /// The one of this name.
    Named(String),
}

impl Chat {
    /// Tells the template whether reasoning is wanted, by the names that templates know this by.
    pub fn think(&mut self, wanted: bool) {
        for name in ["enable_thinking", "thinking"] {
            self.settings.entry(name).or_insert(wanted.into());
        }
    }

    /// Tells it how much of it is wanted: `low`, `medium`, `high`, ..; `none` is none at all.
    pub fn effort(&mut self, effort: &str) {
        match effort {
            "none" => self.think(false),
            _ => {
                self.settings.entry("reasoning_effort").or_insert(effort.into());
            }
        }
    }

    /// Continues the last message, an answer, in place of giving another. Models do not think in its
    /// midst: reasoning is not wanted, unless it has some or the request says so.
    ///
    /// # Errors
    /// Where the last message is no answer, or calls tools.
    pub fn go_on(&mut self) -> Result<(), ApiError> {
        let wrong = |what: &str| Err(ApiError::invalid("messages", what));
        let Some(last) = self.messages.pop_if(|last| last.role() == "assistant") else {
            return wrong("the last one is no answer that could be continued");
        };
        if last.to_json().get("tool_calls").is_some() {
            return wrong("the last one calls tools: their results have to follow");
        }
        if last.text("reasoning_content").is_none() {
            self.think(false);
        }
        self.begun = Some(last).filter(|last| !last.content().is_empty());
        Ok(())
    }

    /// The tools that the template tells of.
    pub fn callable(&self) -> &[Value] {
        if self.tool_choice == ToolChoice::None { &[] } else { &self.tools }
    }

    /// Whether there is what has to be called.
    fn check_tools(&self) -> Result<(), ApiError> {
        let wrong = |message: String| Err(ApiError::invalid("tool_choice", message));
        match &self.tool_choice {
            ToolChoice::Required if self.tools.is_empty() => wrong("there are no tools to call".to_owned()),
            ToolChoice::Named(name) if !self.tools.iter().any(|tool| tool["function"]["name"] == **name) => {
                wrong(format!("there is no tool {name:?}"))
            }
            _ => Ok(()),
        }
    }
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

impl Ask {
    /// What draws the tokens of a text that is continued step by step: no answer of it is a conversation's.
    ///
    /// # Errors
    /// As [`Server::ask`].
    pub fn sampler(&self, facts: &Facts) -> Result<Sampler, ApiError> {
        check(self)?;
        let mut sampler = Sampler::new(self.sampling.config(facts)).map_err(wrong_number)?;
        if let Some(grammar) = &self.grammar {
            let constraint = facts.grammars()?.constraint(grammar);
            sampler.constrain(constraint.map_err(|error| ApiError::invalid("grammar", error))?);
        }
        Ok(sampler)
    }
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
        let per_prompt = ask.choices.max(1);
        if per_prompt.saturating_mul(1 + ask.others.len()) > worker.most() {
            return Err(ApiError::invalid("n", format!("at most {} answers run or wait", worker.most())));
        }
        let held = Held { format: ask.format, grammar: ask.grammar };
        let (mut prompts, mut choices) = (Vec::new(), Vec::new());
        for input in std::iter::once(ask.input).chain(ask.others) {
            let prompt = self.prompt(&worker, input, held.clone()).await?;
            let least = usize::from(ask.max_tokens != Some(0));
            let room = room(&prompt.tokens, &worker.facts, least)?;
            for n in 0..per_prompt {
                let mut sampler = sampler(n)?;
                if let Some(constraint) = &prompt.constraint {
                    sampler.constrain(constraint.clone());
                }
                choices.push(Choice {
                    prompt: prompt.tokens.clone(),
                    sampler,
                    max_tokens: ask.max_tokens.unwrap_or(usize::MAX).min(room),
                    logprobs: ask.logprobs,
                    prompt_logprobs: ask.logprobs.filter(|_| ask.echo),
                });
            }
            prompts.push(prompt);
        }
        let events = worker.submit(choices)?;
        self.metrics.asked(&worker.facts.name);
        let told = Told { prompts, per_prompt, stops: ask.stop, seed: sampling.seed, echo: ask.echo };
        Ok(Answer::new(Arc::clone(self), &worker, events, told))
    }
}

/// Tokens that an answer may have, which are at least so many.
fn room(prompt: &[u32], facts: &Facts, least: usize) -> Result<usize, ApiError> {
    match facts.context.checked_sub(prompt.len()) {
        Some(room) if room >= least => Ok(room),
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
    let all = ask.choices.saturating_mul(1 + ask.others.len());
    if all > MAX_CHOICES {
        return Err(ApiError::invalid("prompt", format!("at most {MAX_CHOICES} answers can be had")));
    }
    if ask.max_tokens == Some(0) && !ask.echo {
        return Err(ApiError::invalid("max_tokens", "at least 1 is needed"));
    }
    match &ask.input {
        Input::Chat(chat) if chat.messages.is_empty() => {
            Err(ApiError::invalid("messages", "there is nothing to answer"))
        }
        Input::Chat(chat) if chat.messages.len() > MAX_MESSAGES => {
            Err(ApiError::invalid("messages", format!("there are more than {MAX_MESSAGES}")))
        }
        Input::Chat(chat) => chat.check_tools(),
        _ => Ok(()),
    }
}

fn wrong_number(error: SamplerError) -> ApiError {
    ApiError::invalid(error.field, format!("a number {} is needed", error.wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_to_be_called_is_there() {
        let tools = vec![serde_json::json!({ "type": "function", "function": { "name": "f" } })];
        let check = |tools: &[Value], tool_choice| {
            Chat { tools: tools.to_vec(), tool_choice, ..Chat::default() }.check_tools().is_ok()
        };
        assert!(check(&tools, ToolChoice::Required) && check(&tools, ToolChoice::Named("f".into())));
        assert!(!check(&tools, ToolChoice::Named("g".into())));
        assert!(!check(&[], ToolChoice::Required) && check(&[], ToolChoice::Auto));
    }

    #[test]
    fn the_last_answer_is_gone_on_with() {
        let user = Message::new("user", "a");
        let gone_on = |last: Message| {
            let mut chat = Chat { messages: vec![user.clone(), last], ..Chat::default() };
            chat.go_on().map(|()| chat)
        };
        let answer = Message::new("assistant", "b");
        let chat = gone_on(answer.clone()).unwrap();
        assert_eq!((&chat.messages[..], chat.begun), (&[user.clone()][..], Some(answer.clone())));
        assert_eq!(chat.settings["enable_thinking"], false);
        let thought = answer.clone().with("reasoning_content", "hm");
        assert!(gone_on(thought).unwrap().settings.is_empty());
        assert_eq!(gone_on(Message::new("assistant", "")).unwrap().begun, None);
        assert!(gone_on(user.clone()).is_err());
        assert!(gone_on(answer.with("tool_calls", serde_json::json!([{}]))).is_err());
    }

    #[test]
    fn wishes_for_reasoning_are_settings_where_the_request_sets_none() {
        let mut chat = Chat::default();
        chat.settings.insert("thinking".into(), 5.into());
        chat.effort("none");
        chat.effort("low");
        let settings =
            serde_json::json!({ "thinking": 5, "enable_thinking": false, "reasoning_effort": "low" });
        assert_eq!(Value::from(chat.settings), settings);
    }
}

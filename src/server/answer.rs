//! An answer as it comes: tokens made into text, its reasoning told apart, until something ends it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Server;
use super::error::{ApiError, ErrorKind};
use super::facts::Facts;
use super::prompt::Prompt;
use super::worker::{Events, Worker};
use crate::engine::{Drawn, End, EngineError, Event, Logprobs, StopMatcher, Usage};
use crate::text::Part;
use crate::text::tools::{AnswerParser, AnswerPart};

/// What is new of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Delta {
    /// So many tokens of the prompt have been read.
    Prefill {
        done: usize,
        of: usize,
    },
    /// So probable are the tokens of the prompt behind those told of before; the first is told of nowhere.
    Read(Vec<TokenLogprobs>),
    Text(Part, Piece),
    /// A tool is called: which of the answer's calls it is, a name for the call, the tool's.
    Call {
        index: usize,
        id: String,
        name: String,
    },
    /// More of a call's arguments; together they are the text of a JSON object.
    Arguments {
        index: usize,
        delta: String,
    },
    Done(Done),
}

/// Some text, with its tokens where their probabilities were asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    pub text: String,
    pub logprobs: Vec<TokenLogprobs>,
}

/// A token and those that it was chosen among.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    pub bytes: Vec<u8>,
    pub logprob: f32,
    pub top: Vec<(Vec<u8>, f32)>,
}

/// An answer that is over.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    pub reason: Reason,
    /// The text that ended it, where one did.
    pub stop: Option<String>,
    pub usage: Usage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Stop,
    Length,
    /// Tools are called.
    ToolCalls,
}

/// What came of waiting for an answer to go on.
pub enum Waited {
    Next(Option<Result<(usize, Delta), ApiError>>),
    /// Nothing yet.
    Still,
}

/// How long clients and what stands between are left without a sign of life.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// How fast it went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// From the request to the first token.
    pub first: Option<Duration>,
    /// From the first token to the last.
    pub rest: Duration,
    pub tokens: usize,
}

impl Timings {
    /// Seconds of each token behind the first.
    pub fn per_token(&self) -> Option<f64> {
        let rest = self.tokens.checked_sub(1).filter(|&rest| rest > 0)?;
        Some(self.rest.as_secs_f64() / rest as f64)
    }
}

/// See the module. Dropped, it ends.
pub struct Answer {
    pub facts: Arc<Facts>,
    pub seed: u64,
    pub prompt_tokens: usize,
    /// The texts, where they are to be given back.
    echoes: Option<Vec<Echo>>,
    /// Answers to each of the texts.
    per_prompt: usize,
    /// Of the first prompt's tokens.
    prompt_hash: [u8; 32],
    /// Whether an answer may have several calls.
    parallel_calls: bool,
    server: Arc<Server>,
    worker: Worker,
    events: Events,
    choices: Vec<Choice>,
    ready: VecDeque<(usize, Delta)>,
    began: Instant,
    first: Option<Instant>,
    last: Instant,
}

/// A text that is given back.
#[derive(Clone, Debug)]
pub struct Echo {
    pub text: String,
    /// Its first token, before which there is nothing that it could follow from.
    pub first: Vec<u8>,
}

/// What an answer is to.
pub struct Told {
    pub prompts: Vec<Prompt>,
    /// Answers to each.
    pub per_prompt: usize,
    /// Texts that end an answer, beside what the prompt says.
    pub stops: Vec<String>,
    pub seed: u64,
    pub echo: bool,
}

/// What tells the parts of an answer to a chat apart.
fn parser(prompt: &Prompt) -> AnswerParser {
    let parser = match &prompt.calls {
        Some(calls) => AnswerParser::new(Some(calls.format), &prompt.text, &calls.tools),
        None => AnswerParser::new(None, &prompt.text, &[]),
    };
    if prompt.has_begun { parser.in_text() } else { parser }
}

/// One of the answers to a request.
struct Choice {
    /// Bytes of a character that has not come whole.
    bytes: crate::text::Utf8Joiner,
    stops: StopMatcher,
    /// Tells reasoning and calls apart; none where a text is continued, of which all is text.
    parser: Option<AnswerParser>,
    /// Calls of tools that it has so far.
    calls: usize,
    /// Tokens whose text has not been told of.
    logprobs: Vec<TokenLogprobs>,
    usage: Usage,
    over: bool,
}

impl Answer {
    /// The answers to prompts that these events tell of: those to the first before the others.
    pub fn new(server: Arc<Server>, worker: &Worker, events: Events, told: Told) -> Answer {
        let Told { prompts, per_prompt, stops, seed, echo } = told;
        let choice = |prompt: &Prompt| Choice {
            bytes: Default::default(),
            stops: StopMatcher::new(stops.iter().chain(&prompt.stops).cloned()),
            parser: prompt.is_chat.then(|| parser(prompt)),
            calls: 0,
            logprobs: Vec::new(),
            usage: Usage::default(),
            over: false,
        };
        let tokenizer = &worker.facts.tokenizer;
        let echoed = |prompt: &Prompt| Echo {
            text: match prompt.text.as_str() {
                "" => tokenizer.decode(&prompt.tokens, true),
                text => text.to_owned(),
            },
            first: prompt
                .tokens
                .first()
                .and_then(|&id| tokenizer.piece(id, true))
                .unwrap_or_default()
                .to_vec(),
        };
        let first = prompts.first();
        let now = Instant::now();
        Answer {
            facts: Arc::clone(&worker.facts),
            seed,
            prompt_tokens: prompts.iter().map(|prompt| prompt.tokens.len()).sum(),
            echoes: echo.then(|| prompts.iter().map(echoed).collect()),
            per_prompt,
            prompt_hash: hash_of(first.map_or(&[], |prompt| &prompt.tokens)),
            parallel_calls: first.and_then(|prompt| prompt.calls.as_ref()).is_none_or(|calls| calls.parallel),
            server,
            worker: worker.clone(),
            events,
            choices: prompts
                .iter()
                .flat_map(|prompt| std::iter::repeat_with(|| choice(prompt)).take(per_prompt))
                .collect(),
            ready: VecDeque::new(),
            began: now,
            first: None,
            last: now,
        }
    }

    /// Answers that there will be.
    pub fn choices(&self) -> usize {
        self.choices.len()
    }

    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    pub fn timings(&self) -> Timings {
        Timings {
            first: self.first.map(|first| first - self.began),
            rest: self.first.map(|first| self.last - first).unwrap_or_default(),
            tokens: self.choices.iter().map(|choice| choice.usage.made).sum(),
        }
    }

    /// The text that an answer goes on from, where it is to be given back.
    pub fn echo(&self, number: usize) -> Option<&Echo> {
        self.echoes.as_ref()?.get(number / self.per_prompt)
    }

    /// Tokens of all answers together; each prompt is counted once.
    pub fn usage(&self) -> Usage {
        let mut all = Usage::default();
        for Choice { usage, .. } in self.choices.iter().step_by(self.per_prompt) {
            all.prompt += usage.prompt;
            all.cached += usage.cached;
        }
        Usage { made: self.choices.iter().map(|choice| choice.usage.made).sum(), ..all }
    }

    /// What comes next, and of which answer; none once all are over.
    ///
    /// # Errors
    /// What has gone wrong with any of them; nothing comes after that.
    pub async fn next(&mut self) -> Option<Result<(usize, Delta), ApiError>> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(Ok(ready));
            }
            if self.choices.iter().all(|choice| choice.over) {
                return None;
            }
            let Some((number, event)) = self.events.next().await else {
                self.choices.iter_mut().for_each(|choice| choice.over = true);
                return Some(Err(ApiError::internal("the model's engine has ended")));
            };
            if self.choices[number].over {
                continue;
            }
            if let Err(error) = self.take(number, event) {
                self.choices.iter_mut().for_each(|choice| choice.over = true);
                return Some(Err(error));
            }
        }
    }

    /// The same, or that nothing has come for so long.
    pub async fn next_within(&mut self, time: Duration) -> Waited {
        match tokio::time::timeout(time, self.next()).await {
            Ok(next) => Waited::Next(next),
            Err(_) => Waited::Still,
        }
    }

    fn take(&mut self, number: usize, event: Event) -> Result<(), ApiError> {
        match event {
            Event::Prefill { done, of } => self.ready.push_back((number, Delta::Prefill { done, of })),
            Event::Read(read) => {
                let read = read.into_iter().filter_map(|drawn| self.weighed(drawn)).collect();
                self.ready.push_back((number, Delta::Read(read)));
            }
            Event::Token(drawn) => {
                self.last = Instant::now();
                self.first.get_or_insert(self.last);
                self.token(number, drawn);
            }
            Event::End { why, usage, .. } => {
                let choice = &mut self.choices[number];
                choice.usage = usage;
                let reason = match why {
                    Ok(End::EndOfText) => Reason::Stop,
                    Ok(End::MaxTokens | End::ContextFull) => Reason::Length,
                    Ok(End::Left | End::Waits) => {
                        return Err(ApiError::internal("the request was broken off"));
                    }
                    Ok(End::Stopped) => {
                        return Err(ApiError::new(ErrorKind::ShuttingDown, "the server is being shut down"));
                    }
                    Err(error @ EngineError::NoRoom { .. }) => return Err(ApiError::no_room(error)),
                    Err(error) => return Err(ApiError::internal(error)),
                };
                let rest = choice.bytes.finish();
                self.text(number, &rest);
                if !self.choices[number].over {
                    let held = self.choices[number].stops.finish();
                    self.parts(number, &held);
                    self.end(number, reason, None);
                }
            }
        }
        Ok(())
    }

    /// A token with its probability, where that was asked for.
    fn weighed(&self, Drawn { id, logprobs }: Drawn) -> Option<TokenLogprobs> {
        let bytes = |id: u32| self.facts.tokenizer.piece(id, true).unwrap_or_default().to_vec();
        let Logprobs { chosen, top } = logprobs?;
        let top = top.iter().map(|&(id, logprob)| (bytes(id), logprob)).collect();
        Some(TokenLogprobs { bytes: bytes(id), logprob: chosen, top })
    }

    fn token(&mut self, number: usize, drawn: Drawn) {
        let id = drawn.id;
        let ends = self.facts.ends.contains(&id);
        // Who is given the prompt back counts tokens: the one that ends the text is among them.
        let weighed = self.weighed(drawn).filter(|_| !ends || self.echoes.is_some());
        let (facts, choice) = (&self.facts, &mut self.choices[number]);
        let tokenizer = &facts.tokenizer;
        choice.usage.made += 1;
        choice.logprobs.extend(weighed);
        if ends {
            return;
        }
        let mut piece = choice.bytes.push(tokenizer.piece(id, false).unwrap_or_default());
        // A control token is no text, but it may begin or end reasoning.
        if piece.is_empty()
            && let Some(mark) = tokenizer.token_text(id).filter(|text| choice.wants(text))
        {
            piece.push_str(mark);
        }
        self.text(number, &piece);
    }

    /// Takes text that has come; a text that ends the answer may be in it.
    fn text(&mut self, number: usize, text: &str) {
        let certain = self.choices[number].stops.push(text);
        self.parts(number, &certain);
        if let Some(stop) = self.choices[number].stops.stopped_by().map(str::to_owned) {
            self.events.leave(number);
            self.end(number, Reason::Stop, Some(stop));
        }
    }

    /// Tells of text that is certain.
    fn parts(&mut self, number: usize, certain: &str) {
        let parts = self.choices[number].read(certain);
        self.tell(number, parts);
        // Whole calls are told of late: one too many ends the answer where it begins all the same.
        let begun = self.choices[number].parser.as_ref().map_or(0, AnswerParser::begun);
        if begun > 1 && !self.parallel_calls && !self.choices[number].over {
            self.called_enough(number);
        }
    }

    /// Ends an answer that may have one call.
    fn called_enough(&mut self, number: usize) {
        self.events.leave(number);
        let choice = &mut self.choices[number];
        choice.over = true;
        let done = choice.done(Reason::ToolCalls, None);
        self.ready.push_back((number, Delta::Done(done)));
    }

    /// Has calls told of once they have come whole, for answers that are given whole: what goes wrong within
    /// a call is text then.
    pub fn hold_calls(&mut self) {
        for choice in &mut self.choices {
            choice.parser = choice.parser.take().map(AnswerParser::whole);
        }
    }

    fn tell(&mut self, number: usize, parts: Vec<AnswerPart>) {
        for part in parts {
            let choice = &mut self.choices[number];
            if choice.over {
                return;
            }
            let delta = match part {
                AnswerPart::Call { .. } if choice.calls > 0 && !self.parallel_calls => {
                    return self.called_enough(number);
                }
                AnswerPart::Call { index, name } => {
                    choice.calls += 1;
                    Delta::Call { index, id: self.call_id(number, index), name }
                }
                AnswerPart::Arguments { index, delta } => Delta::Arguments { index, delta },
                AnswerPart::Reasoning(text) => Delta::Text(Part::Reasoning, choice.piece(text)),
                AnswerPart::Text(text) => Delta::Text(Part::Answer, choice.piece(text)),
            };
            self.ready.push_back((number, delta));
        }
    }

    /// A name for a call: the same for the same request.
    fn call_id(&self, number: usize, index: usize) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.prompt_hash);
        for part in [self.seed, number as u64, index as u64] {
            hasher.update(&part.to_le_bytes());
        }
        format!("call_{}", &hasher.finalize().to_hex()[..24])
    }

    fn end(&mut self, number: usize, reason: Reason, stop: Option<String>) {
        let parts = self.choices[number].parser.as_mut().map(AnswerParser::finish).unwrap_or_default();
        self.tell(number, parts);
        let choice = &mut self.choices[number];
        if choice.over {
            return;
        }
        if self.echoes.is_some() && !choice.logprobs.is_empty() {
            let rest = choice.piece(String::new());
            self.ready.push_back((number, Delta::Text(Part::Answer, rest)));
        }
        choice.over = true;
        let called = choice.calls > 0 && reason == Reason::Stop;
        let done = choice.done(if called { Reason::ToolCalls } else { reason }, stop);
        self.ready.push_back((number, Delta::Done(done)));
    }
}

impl Choice {
    /// Whether a control token of this text tells parts apart.
    fn wants(&self, text: &str) -> bool {
        self.parser.as_ref().is_some_and(|parser| parser.wants(text))
    }

    /// The parts of text that is certain.
    fn read(&mut self, certain: &str) -> Vec<AnswerPart> {
        match &mut self.parser {
            Some(parser) => parser.push(certain),
            None if certain.is_empty() => Vec::new(),
            None => vec![AnswerPart::Text(certain.to_owned())],
        }
    }

    fn piece(&mut self, text: String) -> Piece {
        Piece { text, logprobs: std::mem::take(&mut self.logprobs) }
    }

    fn done(&self, reason: Reason, stop: Option<String>) -> Done {
        Done { reason, stop, usage: self.usage }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.server.metrics.answered(&self.facts.name, &self.usage(), &self.timings());
    }
}

fn hash_of(tokens: &[u32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for token in tokens {
        hasher.update(&token.to_le_bytes());
    }
    hasher.finalize().into()
}

/// A call of a tool that has come whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    pub id: String,
    pub name: String,
    /// The text of a JSON object, unless the answer ended within it.
    pub arguments: String,
}

/// An answer that has come whole.
#[derive(Clone, Debug, Default)]
pub struct Whole {
    pub text: String,
    pub reasoning: String,
    pub calls: Vec<Call>,
    /// Of the prompt's tokens behind the first.
    pub read: Vec<TokenLogprobs>,
    pub logprobs: Vec<TokenLogprobs>,
    pub done: Option<Done>,
}

impl Answer {
    /// Waits for all of it.
    ///
    /// # Errors
    /// As [`Answer::next`].
    pub async fn whole(&mut self) -> Result<Vec<Whole>, ApiError> {
        self.hold_calls();
        let mut all = vec![Whole::default(); self.choices()];
        while let Some(next) = self.next().await {
            let (number, delta) = next?;
            let whole = &mut all[number];
            match delta {
                Delta::Prefill { .. } => {}
                Delta::Read(read) => whole.read.extend(read),
                Delta::Text(part, piece) => {
                    match part {
                        Part::Answer => whole.text.push_str(&piece.text),
                        Part::Reasoning => whole.reasoning.push_str(&piece.text),
                    }
                    whole.logprobs.extend(piece.logprobs);
                }
                Delta::Call { id, name, .. } => whole.calls.push(Call { id, name, ..Call::default() }),
                Delta::Arguments { index, delta } => {
                    if let Some(call) = whole.calls.get_mut(index) {
                        call.arguments.push_str(&delta);
                    }
                }
                Delta::Done(done) => whole.done = Some(done),
            }
        }
        Ok(all)
    }
}

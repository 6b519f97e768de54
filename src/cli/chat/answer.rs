//! An answer: what is new of the prompt is read, tokens are drawn and shown as they come.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::talk::Talk;
use crate::cli::generate::rate;
use crate::cli::output::{binary_bytes, tell};
use crate::cli::prefix_cache::Cache;
use crate::cli::status::{prefill, prefill_unseen};
use crate::cli::{CliError, InFile};
use crate::engine::{
    Engine, EngineError, Sampler, SamplerConfig, Sequence, Speculation, SpeculationStats, StopMatcher,
};
use crate::text::tools::{AnswerParser, AnswerPart};
use crate::text::{Exchange, Part, TokenStream, Tokenizer};

/// What answers: an engine, and the sequence that remembers the conversation.
pub struct Answerer<'e, 'm> {
    pub engine: Engine<'m>,
    pub sequence: Sequence,
    pub cache: Cache,
    pub interrupted: &'e AtomicBool,
    pub path: &'e Path,
    pub speculation: Speculation,
}

/// What came of a message.
pub enum Answered {
    So {
        exchange: Exchange,
        cost: Cost,
    },
    /// It was broken off before the answer began, which has been said.
    NotBegun,
}

/// What an answer cost.
#[derive(Clone, Debug, Default)]
pub struct Cost {
    prompt: usize,
    prefilled: usize,
    prefill_s: f64,
    made: usize,
    decode_s: f64,
    speculation: SpeculationStats,
}

impl Cost {
    /// In short.
    pub fn line(&self, answerer: &Answerer<'_, '_>) -> String {
        let shown = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
        format!(
            "context {} of {} | {} new tokens read, {} tok/s | {} made, {} tok/s",
            answerer.sequence.past(),
            answerer.engine.context(),
            self.prefilled,
            shown(rate(self.prefilled, self.prefill_s)),
            self.made,
            shown(rate(self.made.saturating_sub(1), self.decode_s)),
        )
    }

    /// In full.
    pub fn lines(&self, answerer: &Answerer<'_, '_>) -> String {
        let SpeculationStats { drafted, accepted, passes } = self.speculation;
        format!(
            "{}\nprompt {} tokens, {} of them remembered\n\
             {passes} passes, {accepted} of {drafted} drafted tokens accepted\n\
             {} held by the context",
            self.line(answerer),
            self.prompt,
            self.prompt.saturating_sub(self.prefilled),
            binary_bytes(answerer.sequence.held_bytes()),
        )
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Said,
    Broken,
    Full,
}

/// An answer under way.
struct Draft<'t> {
    tokenizer: &'t Tokenizer,
    stream: TokenStream<'t>,
    stops: StopMatcher,
    parser: AnswerParser,
    made: Vec<u32>,
    answer: String,
    reasoning: String,
}

impl<'a> Talk<'a> {
    /// Answers a message.
    pub(super) fn answer(
        &mut self,
        user: &str,
        seed: u64,
        answerer: &mut Answerer<'_, '_>,
    ) -> Result<Answered, CliError> {
        let mut sampler = Sampler::new(SamplerConfig { seed, ..self.settings.sampler.clone() })?;
        self.constraint().into_iter().for_each(|constraint| sampler.constrain(constraint));
        let mut cost = Cost::default();
        let mut draft: Option<Draft<'_>> = None;
        let end = loop {
            let made = draft.as_ref().map_or(&[] as &[u32], |draft| &draft.made);
            let Some((text, mut ids)) = self.fit(user, made.len(), answerer)? else { break End::Full };
            cost.prompt = ids.len();
            if made.is_empty() {
                sampler.read(ids.iter().copied());
            }
            ids.extend(made);
            if answerer.read(&ids, self.is_in_terminal(), &mut cost)?.is_break() {
                break End::Broken;
            }
            let draft = draft.get_or_insert_with(|| self.draft(&text));
            match self.draw(draft, answerer, &mut sampler, &mut cost)? {
                // What is left has room once the oldest exchanges have gone.
                End::Full if self.may_drop() => {}
                end => break end,
            }
        };
        let Some(mut draft) = draft else {
            tell!("broken off before the answer began: the message is taken back");
            return Ok(Answered::NotBegun);
        };
        for (part, text) in draft.finish() {
            self.screen.put(part, &text)?;
        }
        self.screen.end()?;
        answerer.cache.keep(&answerer.sequence);
        if end == End::Full {
            tell!("the context is full: the answer ends here; /drop, /undo and /clear make room");
        }
        cost.made = draft.made.len();
        let reasoning = draft.reasoning.trim();
        let exchange = Exchange {
            user: user.to_owned(),
            answer: draft.answer.trim_end().to_owned(),
            reasoning: (!reasoning.is_empty()).then(|| reasoning.to_owned()),
        };
        Ok(Answered::So { exchange, cost })
    }

    /// Nothing yet, of the answer to a prompt.
    fn draft(&self, prompt: &str) -> Draft<'a> {
        Draft {
            tokenizer: self.tokenizer(),
            stream: self.tokenizer().stream(false),
            stops: StopMatcher::new(self.stops().iter().map(|&stop| stop.to_owned())),
            parser: AnswerParser::new(None, prompt, &[]),
            made: Vec::new(),
            answer: String::new(),
            reasoning: String::new(),
        }
    }

    /// Draws tokens until the answer ends.
    fn draw(
        &mut self,
        draft: &mut Draft<'_>,
        answerer: &mut Answerer<'_, '_>,
        sampler: &mut Sampler,
        cost: &mut Cost,
    ) -> Result<End, CliError> {
        let before = draft.made.len();
        let most = self.settings.max_tokens.map_or(usize::MAX, |most| most.get().saturating_sub(before));
        let started = Instant::now();
        let Answerer { engine, sequence, interrupted, path, speculation, .. } = answerer;
        let tokens = engine.generate(sequence, sampler).speculate(*speculation, most);
        let mut tokens = tokens.until(interrupted);
        let end = loop {
            if draft.made.len() - before >= most {
                break End::Said;
            }
            if interrupted.load(Ordering::Relaxed) {
                break End::Broken;
            }
            let Some(chosen) = tokens.next() else { break End::Full };
            // A pass over a streamed model takes long: it is broken off as well.
            if matches!(chosen, Err(EngineError::Interrupted)) {
                break End::Broken;
            }
            let id = chosen.in_file(path)?.id;
            draft.made.push(id);
            if draft.tokenizer.is_end_of_generation(id) {
                break End::Said;
            }
            for (part, text) in draft.push(id) {
                self.screen.put(part, &text)?;
            }
            if draft.stops.stopped() {
                break End::Said;
            }
        };
        let stats = tokens.stats();
        cost.speculation.drafted += stats.drafted;
        cost.speculation.accepted += stats.accepted;
        cost.speculation.passes += stats.passes;
        cost.decode_s += started.elapsed().as_secs_f64();
        Ok(end)
    }
}

impl Draft<'_> {
    /// The text that is certain with one more token.
    fn push(&mut self, id: u32) -> Vec<(Part, String)> {
        let mut piece = self.stream.push(id);
        // A control token is no text, but it may begin or end reasoning.
        if piece.is_empty()
            && let Some(mark) = self.tokenizer.token_text(id).filter(|text| self.parser.wants(text))
        {
            piece.push_str(mark);
        }
        let piece = self.stops.push(&piece);
        let parts = self.parser.push(&piece);
        self.note(parts)
    }

    /// What was held back.
    fn finish(&mut self) -> Vec<(Part, String)> {
        let mut rest = String::new();
        if !self.stops.stopped() {
            rest = self.stops.push(&self.stream.finish()) + &self.stops.finish();
        }
        let mut parts = self.parser.push(&rest);
        parts.extend(self.parser.finish());
        self.note(parts)
    }

    /// Adds to what was said; there are no tools to call.
    fn note(&mut self, parts: Vec<AnswerPart>) -> Vec<(Part, String)> {
        let parts: Vec<(Part, String)> = parts.into_iter().filter_map(AnswerPart::text).collect();
        for (part, text) in &parts {
            match part {
                Part::Reasoning => self.reasoning.push_str(text),
                Part::Answer => self.answer.push_str(text),
            }
        }
        parts
    }
}

impl Answerer<'_, '_> {
    /// Brings the sequence to these tokens: what it remembers of them is not read again. Whether it was
    /// broken off.
    fn read(&mut self, ids: &[u32], seen: bool, cost: &mut Cost) -> Result<ControlFlow<()>, CliError> {
        let same = ids.iter().zip(self.sequence.tokens()).take_while(|(a, b)| a == b).count();
        // The last token's logits are wanted.
        let kept = self.sequence.rewind(same.min(ids.len().saturating_sub(1)));
        let kept = kept + self.cache.restore(&mut self.sequence, ids);
        let started = Instant::now();
        let (engine, sequence, interrupted) = (&mut self.engine, &mut self.sequence, self.interrupted);
        let read = self.cache.feed(sequence, ids, |sequence, rest| match seen {
            true => prefill(engine, sequence, rest, interrupted, false),
            false => prefill_unseen(engine, sequence, rest, interrupted),
        });
        cost.prefilled += self.sequence.past() - kept;
        cost.prefill_s += started.elapsed().as_secs_f64();
        read.in_file(self.path)
    }
}

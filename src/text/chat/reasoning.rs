//! What a model thinks before it answers, told apart from the answer while both come.
//!
//! Families mark reasoning by a pair of texts around it, of which the template may put the first into the
//! prompt; those of OpenAI's Harmony format by a header before each part: `<|channel|>analysis<|message|>`.

use crate::text::tools;

/// The pairs around reasoning, by family: Qwen, DeepSeek, GLM and most others; Magistral; Seed OSS; Command
/// A; Gemma 4; EXAONE.
pub(in crate::text) const PAIRS: &[[&str; 2]] = &[
    ["<think>", "</think>"],
    ["[THINK]", "[/THINK]"],
    ["<seed:think>", "</seed:think>"],
    ["<|START_THINKING|>", "<|END_THINKING|>"],
    ["<|channel>thought", "<channel|>"],
    ["<thought>", "</thought>"],
    ["<mm:think>", "</mm:think>"],
];

const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
const END: &str = "<|end|>";
const CONSTRAIN: &str = "<|constrain|>";
/// What a prompt in Harmony ends with: a header follows.
const HARMONY_TURN: &str = "<|start|>assistant";
/// The channel of reasoning. What is for the user comes in `final`, and in `commentary` where it goes with
/// calls.
const ANALYSIS: &str = "analysis";
/// What stands before a recipient in a header.
const TO: &str = "to=";

/// Parts of what a model writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Reasoning,
    Answer,
    /// Whom the part that begins is for, where that is not the user: a tool.
    Recipient,
    /// What the recipient gets.
    Message,
}

/// Where the text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space has come: reasoning may begin.
    Start,
    Answer,
    /// Until this text.
    Reasoning(&'static str),
    /// A header of Harmony, until [`MESSAGE`].
    Header,
    /// A part of Harmony, until a header or the end of the part.
    Harmony(Kind),
}

/// Tells the parts apart, piece by piece; holds back what may be the start of a mark.
#[derive(Clone, Debug)]
pub struct Splitter {
    state: State,
    held: String,
    header: String,
    /// Whether white space is left out until text comes.
    trims: bool,
    /// What ends reasoning as well and belongs to the answer.
    ends: Vec<&'static str>,
}

/// Whether a token of this text marks a part: it has to reach [`Splitter::push`] though it is a control
/// token.
pub fn is_mark(text: &str) -> bool {
    PAIRS.iter().flatten().any(|mark| mark.contains(text) && !text.is_empty())
        || [START, CHANNEL, MESSAGE, END, CONSTRAIN].contains(&text)
}

/// Whether this text marks parts of a chat, in some family: a user-defined token of it is no part of what
/// people say.
pub fn is_reserved(text: &str) -> bool {
    let is_tag = text.len() > 2 && text.starts_with(['<', '[']) && text.ends_with(['>', ']']);
    let mut marks = PAIRS.iter().flatten().copied().chain(tools::marks().iter().copied());
    is_tag && marks.any(|mark| mark.starts_with(text))
}

impl Splitter {
    /// Of the answer to a prompt that ends so.
    pub fn after(prompt: &str) -> Splitter {
        let prompt = prompt.trim_end();
        let opened = PAIRS.iter().find(|[open, _]| prompt.ends_with(open));
        let state = match opened {
            Some([_, close]) => State::Reasoning(close),
            None if prompt.ends_with(HARMONY_TURN) => State::Header,
            None => State::Start,
        };
        Splitter {
            state,
            held: String::new(),
            header: String::new(),
            trims: opened.is_some(),
            ends: Vec::new(),
        }
    }

    /// The same, where these texts end reasoning as well: an answer may begin with them.
    pub fn ending_at(self, ends: Vec<&'static str>) -> Splitter {
        Splitter { ends, ..self }
    }

    /// The same within the answer: some of it has come.
    pub fn in_answer(self) -> Splitter {
        let state = if self.state == State::Header { State::Harmony(Kind::Answer) } else { State::Answer };
        Splitter { state, trims: false, ..self }
    }

    /// What leads from here to the answer: the end of the reasoning that is under way, with these thoughts
    /// before it, or a header.
    pub fn lead_in(&self, thoughts: &str) -> String {
        match self.state {
            State::Reasoning(close) => format!("{thoughts}\n{close}\n\n"),
            State::Header => format!("{CHANNEL}final{MESSAGE}"),
            _ => String::new(),
        }
    }

    /// Whether reasoning is under way.
    pub fn in_reasoning(&self) -> bool {
        matches!(self.state, State::Reasoning(_) | State::Harmony(Kind::Reasoning))
    }

    /// What ends the reasoning that is under way, where that is one text.
    pub fn close(&self) -> Option<&'static str> {
        match self.state {
            State::Reasoning(close) => Some(close),
            _ => None,
        }
    }

    /// Takes the next piece; returns what is certain of the text so far, part by part.
    pub fn push(&mut self, piece: &str) -> Vec<(Kind, String)> {
        self.held.push_str(piece);
        let mut out = Vec::new();
        while let Some((at, mark)) = self.next_mark() {
            let before: String = self.held.drain(..at).collect();
            if self.state != State::Start {
                self.give(before, &mut out);
            }
            if matches!(self.state, State::Reasoning(close) if close != mark) {
                self.state = State::Answer;
                continue;
            }
            self.held.drain(..mark.len());
            self.pass(mark, &mut out);
        }
        let keep = self.marks().iter().map(|mark| overlap(&self.held, mark)).max().unwrap_or(0);
        let certain = self.held.len() - keep;
        // A start of reasoning may still come behind white space.
        let blank = self.state == State::Start && self.held[..certain].trim().is_empty();
        let rest = self.held.split_off(if blank { 0 } else { certain });
        let certain = std::mem::replace(&mut self.held, rest);
        self.give(certain, &mut out);
        out
    }

    /// What was held back, at the end of the text.
    pub fn finish(&mut self) -> Vec<(Kind, String)> {
        let mut out = Vec::new();
        let rest = std::mem::take(&mut self.held);
        self.give(rest, &mut out);
        out
    }

    fn marks(&self) -> Vec<&'static str> {
        match self.state {
            State::Start => PAIRS.iter().map(|[open, _]| *open).chain([START, CHANNEL]).collect(),
            State::Answer => Vec::new(),
            State::Reasoning(close) => self.ends.iter().copied().chain([close]).collect(),
            State::Header => vec![MESSAGE],
            State::Harmony(_) => vec![START, CHANNEL, END],
        }
    }

    /// The first mark of the held text, and where it is. Before reasoning there is white space alone.
    fn next_mark(&self) -> Option<(usize, &'static str)> {
        let found = self.marks().into_iter().filter_map(|mark| Some((self.held.find(mark)?, mark))).min()?;
        let counts = self.state != State::Start || self.held[..found.0].trim().is_empty();
        counts.then_some(found)
    }

    /// Goes on behind a mark.
    fn pass(&mut self, mark: &'static str, out: &mut Vec<(Kind, String)>) {
        self.trims = true;
        self.state = match (self.state, mark) {
            (State::Header, _) => {
                let header = std::mem::take(&mut self.header);
                let part = match recipient(&header) {
                    Some(recipient) => {
                        out.push((Kind::Recipient, recipient.to_owned()));
                        Kind::Message
                    }
                    None if header.contains(&format!("{CHANNEL}{ANALYSIS}")) => Kind::Reasoning,
                    None => Kind::Answer,
                };
                State::Harmony(part)
            }
            (_, START) => State::Header,
            (_, CHANNEL) => {
                self.header.push_str(CHANNEL);
                State::Header
            }
            (State::Harmony(_), _) => State::Harmony(Kind::Answer),
            (State::Reasoning(_), _) => State::Answer,
            (_, open) => {
                let pair = PAIRS.iter().find(|pair| pair[0] == open);
                pair.map_or(State::Answer, |[_, close]| State::Reasoning(close))
            }
        };
    }

    /// Gives out text of the part that the state says.
    fn give(&mut self, text: String, out: &mut Vec<(Kind, String)>) {
        let part = match self.state {
            State::Header => return self.header.push_str(&text),
            State::Reasoning(_) => Kind::Reasoning,
            State::Harmony(part) => part,
            State::Start | State::Answer => Kind::Answer,
        };
        let shown = if self.trims { text.trim_start() } else { &text };
        if shown.is_empty() {
            return;
        }
        self.trims = false;
        if self.state == State::Start && !shown.trim().is_empty() {
            self.state = State::Answer;
        }
        out.push((part, shown.to_owned()));
    }
}

/// The tool that a header of Harmony names.
fn recipient(header: &str) -> Option<&str> {
    let ends = |c: char| c.is_whitespace() || c == '<';
    let recipient = header.split(TO).nth(1)?.split(ends).next()?;
    let recipient = recipient.strip_prefix("functions.").unwrap_or(recipient);
    (!recipient.is_empty() && !["assistant", "user", "all"].contains(&recipient)).then_some(recipient)
}

/// Bytes of the longest end of `text` that is a proper start of `mark`.
pub(in crate::text) fn overlap(text: &str, mark: &str) -> usize {
    mark.char_indices().map(|(at, _)| at).rev().find(|&n| text.ends_with(&mark[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of a text that comes in pieces of so many characters.
    fn parts(prompt: &str, text: &str, size: usize) -> [String; 2] {
        let mut splitter = Splitter::after(prompt);
        let chars: Vec<char> = text.chars().collect();
        let mut out: Vec<(Kind, String)> = Vec::new();
        for piece in chars.chunks(size) {
            out.extend(splitter.push(&piece.iter().collect::<String>()));
        }
        out.extend(splitter.finish());
        [Kind::Reasoning, Kind::Answer]
            .map(|wanted| out.iter().filter(|(part, _)| *part == wanted).map(|(_, t)| t.as_str()).collect())
    }

    #[test]
    fn parts_are_told_apart_whatever_the_pieces() {
        let cases = [
            ("<|im_start|>assistant\n", "<think>\nHm.\n</think>\n\nFour.", ["Hm.\n", "Four."]),
            ("<|im_start|>assistant\n<think>\n", "Hm.\n</think>\n\nFour.", ["Hm.\n", "Four."]),
            ("assistant\n", "\n<think></think>Four.", ["", "Four."]),
            ("assistant\n", "[THINK]a[/THINK]b", ["a", "b"]),
            ("assistant\n", "Write <think> and </think>.", ["", "Write <think> and </think>."]),
            ("assistant\n", "a < b", ["", "a < b"]),
            ("assistant\n<think>", "never ends", ["never ends", ""]),
            ("assistant\n", "<thi", ["", "<thi"]),
            (
                "<|start|>assistant",
                "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Four.",
                ["Hm.", "Four."],
            ),
            ("<|start|>assistant", "<|channel|>final<|message|>Four.", ["", "Four."]),
            ("<|start|>assistant", "<|message|>Four.", ["", "Four."]),
        ];
        for (prompt, text, expected) in cases {
            for size in [1, 2, 3, 7, 1000] {
                assert_eq!(parts(prompt, text, size), expected, "{text:?} in pieces of {size}");
            }
        }
    }

    /// Marks and their parts in any order, in pieces of every size.
    #[test]
    fn any_text_comes_out_the_same_in_any_pieces() {
        let mut state = 1u64;
        let mut below = |n: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        let marks: Vec<&str> = PAIRS.iter().flatten().copied().collect();
        let others = [START, CHANNEL, MESSAGE, END, HARMONY_TURN, "final", " ", "\n", "a", "<", "é"];
        for _ in 0..2000 {
            let mut text = String::new();
            for _ in 0..below(8) {
                let mark = match below(2) {
                    0 => marks[below(marks.len())],
                    _ => others[below(others.len())],
                };
                let end = if below(4) == 0 { below(mark.len()) } else { mark.len() };
                text.push_str(mark.get(..end).unwrap_or(mark));
            }
            let prompt = ["", "<think>\n", HARMONY_TURN][below(3)];
            let whole = parts(prompt, &text, usize::MAX);
            for size in 1..5 {
                assert_eq!(parts(prompt, &text, size), whole, "{prompt:?} {text:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn only_what_may_become_a_mark_is_held_back() {
        let mut splitter = Splitter::after("");
        assert_eq!(splitter.push("Hello"), [(Kind::Answer, "Hello".to_owned())]);
        assert_eq!(splitter.push(" <thi"), [(Kind::Answer, " <thi".to_owned())], "an answer has begun");
        let mut splitter = Splitter::after("<think>");
        assert!(splitter.in_reasoning());
        assert_eq!(splitter.push("a</thin"), [(Kind::Reasoning, "a".to_owned())]);
        assert_eq!(splitter.push("k>b"), [(Kind::Answer, "b".to_owned())]);
        assert!(!splitter.in_reasoning());
    }

    #[test]
    fn an_answer_that_has_begun_goes_on() {
        for (prompt, lead_in) in [
            ("assistant\n", ""),
            ("assistant\n<think>\n", "Hm.\n</think>\n\n"),
            (HARMONY_TURN, "<|channel|>final<|message|>"),
        ] {
            let splitter = Splitter::after(prompt);
            assert_eq!(splitter.lead_in("Hm."), lead_in);
            let mut splitter = splitter.in_answer();
            assert_eq!(splitter.push(" <think>"), [(Kind::Answer, " <think>".to_owned())], "{prompt}");
        }
        let mut harmony = Splitter::after(HARMONY_TURN).in_answer();
        let next = "a<|end|><|start|>assistant<|channel|>analysis<|message|>b";
        let parts = [(Kind::Answer, "a".to_owned()), (Kind::Reasoning, "b".to_owned())];
        assert_eq!(harmony.push(next), parts);
    }

    #[test]
    fn marks_are_known_whole_and_in_part() {
        assert!(is_mark("<think>") && is_mark("[/THINK]") && is_mark("<|channel>") && is_mark(MESSAGE));
        assert!(!is_mark("") && !is_mark("<|im_end|>"));
    }
}
